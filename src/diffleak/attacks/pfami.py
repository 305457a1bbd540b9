"""PFAMI: a member fits the model better than its own crops do, since it lies at a peak of what the model has learnt.

    L(x) = mean over coordinates of (eps(q(x, t, e_t), t) - e_t)^2
    f    = mean over t and crops x' of (L(x') - L(x)) / L(x)          high means member

The crops are centred, 0.95 ... 0.70 of the image's sides, resized back (bilinear, antialiased); x and its crops share the
noise e_t, draw i at the i-th timestep. On a latent model the image is cropped, not its latent. Fu, Wang, Gao, Liu, Li and
Jiang 2023, "A probabilistic fluctuation based membership inference attack for diffusion models", arXiv 2308.12143. Theirs
also subtracts the f of a reference model; that is left to what an audit does with a reference model for every attack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import interpolate

from diffleak.attacks.base import Attack, Direction, float64
from diffleak.diffusion.conditions import joined
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.noise import Noise
from diffleak.errors import UserError

LARGEST, SMALLEST = 0.95, 0.7
FLOOR = 1e-12  # of the image's own loss, which only a perfect memoriser has


@final
@dataclass(frozen=True, kw_only=True)
class PFAMI(Attack):
    """How much worse the model denoises `crops` crops of the image than the image. A large difference means member."""

    timesteps: tuple[int, ...] = tuple(range(0, 451, 50))
    crops: int = 10
    views: tuple[Tensor, ...] | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "pfami"
    direction: ClassVar[Direction] = "large"
    source: ClassVar[str] = "Fu et al. 2023, arXiv 2308.12143"
    rule: ClassVar[str | None] = "as_is"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops < 1:
            raise UserError(f"pfami: crops must be at least 1; got {self.crops}")

    @property
    def columns(self) -> tuple[int, ...]:
        return (0,)

    @property
    def width(self) -> int:
        return 1 + self.crops

    @property
    def queries(self) -> int:
        return len(self.timesteps) * self.width

    def for_batch(self, pixels: Callable[[], Tensor], encode: Callable[[Tensor], Tensor]) -> "PFAMI":
        return replace(self, views=tuple(encode(crop) for crop in self._cropped(pixels())))

    def _cropped(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b c h w"]]:
        return [cropped(x, share) for share in torch.linspace(LARGEST, SMALLEST, self.crops, dtype=torch.float64).tolist()]

    def statistics(
        self, denoiser: Denoiser, x0: Float[Tensor, "b *s"], noise: Noise, cond: Any = None, mask: Float[Tensor, "b *s"] | None = None
    ) -> Float64[Tensor, "1 b"]:
        self._refuse_masks(mask)
        images = torch.cat([x0, *(self._cropped(x0) if self.views is None else self.views)])
        conditions = joined([cond] * self.width)
        rows = [self._excess(denoiser, images, t, noise(i), conditions) for i, t in enumerate(self.timesteps)]
        return torch.stack(rows).mean(dim=0, keepdim=True)

    def _excess(
        self, denoiser: Denoiser, images: Float[Tensor, "wb *s"], t: int, e: Float[Tensor, "b *s"], cond: Any
    ) -> Float64[Tensor, " b"]:
        """(L(x') - L(x)) / L(x) at one timestep, the mean over crops."""
        shared = torch.cat([e] * self.width)
        error = denoiser(denoiser.schedule.add_noise(images, t, shared), t, cond) - shared
        losses = float64(error).square().flatten(start_dim=1).mean(dim=1).reshape(self.width, len(e))
        return ((losses[1:] - losses[0]) / losses[0].clamp_min(FLOOR)).mean(dim=0)


def cropped(x: Float[Tensor, "b c h w"], share: float) -> Float[Tensor, "b c h w"]:
    """The middle of the images, with sides of `share` times theirs, rounded to whole pixels, resized to their size."""
    size: Sequence[int] = x.shape[-2:]
    height, width = (max(1, round(share * side)) for side in size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    middle = x[..., top : top + height, left : left + width]
    return interpolate(middle, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
