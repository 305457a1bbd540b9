"""Models with known answers: one that has memorised its images exactly, and one that knows nothing about any image.

Memoriser: the optimal denoiser of a finite set {y_i}, a kernel-weighted mean in closed form,

    x0_hat = sum_i w_i y_i,   w = softmax_i(-|x_t - a_t y_i|^2 / (2 s_t^2)),   eps = (x_t - a_t x0_hat) / s_t

With captions it is that of a finite set of pairs: a caption restricts the sum to the images that carry it. If no image
carries the caption, the answer is that of the Gaussian with the mean and variance of uniform pixels.

Gaussian: the optimal denoiser of N(mu, v I),

    eps = s_t (x_t - a_t mu) / (a_t^2 v + s_t^2)

The points and the mean count as weights: answers can be differentiated with respect to them.
Every attack must reach AUC 1 on the first and 0.5 on the second; `diffleak selfcheck` checks it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.schedule import Schedule


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 2e-2) -> Schedule:
    """The schedule of Ho et al. 2020: betas linear from 1e-4 to 0.02 over 1000 steps."""
    return Schedule(np.cumprod(1.0 - np.linspace(first, last, steps)))


@final
@dataclass(frozen=True, eq=False)
class Memoriser(Denoiser):
    """The optimal denoiser of the finite set `points`: the most a model can leak.

    With `texts`, one per point, it has memorised which caption belongs to which image, and answers `Prompts` from the images
    of that caption alone. An image that is given another image's caption then leaves no trace in the answer.
    """

    points: Float[Tensor, "n *s"]
    schedule: Schedule
    texts: tuple[str, ...] | None = None

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        return self._predicted(x_t, t, cond)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return {"points": self.points.requires_grad_()}

    def with_graph(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        parts = zip(x_t.chunk(len(timesteps)), timesteps, strict=True)
        return torch.cat([self._predicted(x, t, None) for x, t in parts])

    def _predicted(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any) -> Float[Tensor, "b *s"]:
        a, s = self.schedule.a(t), self.schedule.s(t)
        points = self.points.to(x_t)
        distances = (x_t.flatten(1)[:, None] - a * points.flatten(1)[None]).square().sum(dim=-1)
        carrying = self._carrying(cond, len(x_t)).to(x_t.device)
        weights = torch.softmax((-distances / (2 * s**2)).masked_fill(~carrying, torch.finfo(x_t.dtype).min), dim=1)
        eps = (x_t - a * (weights @ points.flatten(1)).reshape(x_t.shape)) / s
        known = carrying.any(dim=1).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.where(known, eps, Gaussian(0.0, 1 / 3, self.schedule)(x_t, t))

    def _carrying(self, cond: Any, batch: int) -> Bool[Tensor, "b n"]:
        """True where a point has the caption that an image of the batch is given."""
        if self.texts is None or cond is None:
            return torch.ones(batch, len(self.points), dtype=torch.bool)
        return torch.tensor([[text == given for text in self.texts] for given in cond.texts])


@final
@dataclass(frozen=True, eq=False)
class Gaussian(Denoiser):
    """The optimal denoiser of an isotropic normal with `mean` and `variance`: it leaks nothing."""

    mean: float
    variance: float
    schedule: Schedule

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        return self._predicted(x_t, t, self.mean)

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        return {"mean": torch.tensor(self.mean, dtype=torch.float64, requires_grad=True)}

    def with_graph(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        parts = zip(x_t.chunk(len(timesteps)), timesteps, strict=True)
        return torch.cat([self._predicted(x, t, self.weights["mean"]) for x, t in parts])

    def _predicted(self, x_t: Float[Tensor, "b *s"], t: int, mean: float | Tensor) -> Float[Tensor, "b *s"]:
        a, s = self.schedule.a(t), self.schedule.s(t)
        return s * (x_t - a * mean) / (a**2 * self.variance + s**2)
