"""How strongly a training step on an image would still change the model's weights: a white-box bound, for the owner of the weights.

    L(x0)        = mean over timesteps t and pixels of (eps(q(x0, t, e_t), t) - e_t)^2        the loss in eps, e_t keyed noise
    component k  = -log |dL / dW_k|^2                                                         of every trained tensor W_k, and no less
                                                                                              than rounding makes of the whole gradient

A logistic regression on the components, fitted on the calibrate part, is the score (`stats.rules`). The loss is that of the predicted
noise whatever the network was trained to predict; for models of v, x0 or flow that weighs timesteps otherwise than their training did.
Where a LoRA is audited, the tensors are its matrices A and B: of W' = W + f B A, with G = dL / dW', they have dL / dA = f B^T G and
dL / dB = f G A^T. On a reference G is the reference's own, taken in the same directions. What was merged as a DoRA, or into a text
encoder alone, has no such matrices in the denoiser: then it is the denoiser's tensors, as for a model without a LoRA.

Images are taken one at a time, each at all timesteps in one forward and one backward pass: so a gradient is of one image without a
copy of the weights for each, and as many rows are at work as the batch has images. In half precision the loss is scaled by the square
root of the number of pixels meanwhile, so that it neither vanishes nor overflows.
Pang, Wang, Kang, Huai and Zhang 2023, "White-box membership inference attacks against diffusion models", arXiv 2308.06405 (GSA1).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.attacks.base import Access, Attack, Direction
from diffleak.attacks.subject import Subject
from diffleak.diffusion.conditions import Prompts, chosen, joined
from diffleak.diffusion.denoiser import Denoiser, LowRank
from diffleak.diffusion.devices import float64
from diffleak.errors import UserError, shown


@final
@dataclass(frozen=True, kw_only=True)
class Gradient(Attack):
    """How strongly a training step on the image would still change the model's weights. Small gradients mean member.

    `of` says which weights are looked at; `tensors` are their names, `adapted` is what a LoRA added to them, and `size` the bytes of one
    gradient of them. All are empty until the model is known.
    """

    timesteps: tuple[int, ...] = tuple(range(50, 1000, 100))
    of: str = ""
    tensors: tuple[str, ...] = field(default=(), compare=False)
    adapted: Mapping[str, LowRank] = field(default_factory=dict, compare=False, repr=False)
    size: int = field(default=0, compare=False)

    name: ClassVar[str] = "gradient"
    access: ClassVar[Access] = "white-box"
    direction: ClassVar[Direction] = "large"
    source: ClassVar[str] = "Pang et al. 2023, arXiv 2308.06405"
    rule: ClassVar[str | None] = "logistic"
    in_all: ClassVar[bool] = False
    unlabelled: ClassVar[str] = "of"
    effort: ClassVar[int] = 3  # a backward pass takes about as long as two forward ones

    @property
    def columns(self) -> tuple[int, ...]:
        return tuple(range(len(self.tensors) * (2 if self.adapted else 1)))

    @property
    def memory(self) -> int:
        return self.size if self.adapted else 2 * self.size  # the sum so far, and the next; of a LoRA the sums are small

    @property
    def queries(self) -> int:
        return len(self.timesteps)

    def opened(self, subject: Subject) -> "Gradient":
        weights, adapted = subject.denoiser.exposed[0].weights, subject.denoiser.exposed[0].adapted
        if not weights:
            raise UserError(f"gradient is of a network's weights, and {subject.denoiser.subject} has none; leave it out")
        if any(weight.is_meta for weight in weights.values()):
            raise UserError("gradient needs the weights in the memory of the device; leave out --offload, or gradient")
        tensors = tuple(name for name in weights if not adapted or name in adapted)
        # these words are in plans, so others would refuse every run that was begun before
        of = f"the LoRA's matrices in {len(tensors)} layers" if adapted else f"{len(tensors)} tensors of the network"
        size = sum(weights[name].numel() * weights[name].element_size() for name in tensors)
        if subject.reference is not None:
            self._refuse_others(subject.reference.denoiser.exposed[0], {name: weights[name] for name in tensors})
        return replace(self, of=of, tensors=tensors, adapted=adapted, size=size)

    def _refuse_others(self, reference: Denoiser, weights: Mapping[str, Tensor]) -> None:
        """Raises `UserError` for a reference without the same weights."""
        have = reference.weights
        lost = next((name for name in weights if name not in have or have[name].shape != weights[name].shape), None)
        if lost is not None:
            raise UserError(
                f"gradient compares the same weights of the model and its reference, which has no such {shown(lost)}; "
                "leave out gradient, or give another reference"
            )

    def statistics(self, subject: Subject, mask: Float[Tensor, "b *s"] | None = None) -> Float64[Tensor, "k b"]:
        self._refuse_masks(mask)
        have = subject.denoiser.weights
        weights = [have[name] for name in self.tensors]
        noise = torch.stack([subject.noise(draw) for draw in range(len(self.timesteps))], dim=1)
        return torch.stack([self._of_one(subject, row, noise[row], weights) for row in range(len(subject))], dim=1)

    def _of_one(self, subject: Subject, row: int, noise: Float[Tensor, "t *s"], weights: list[Tensor]) -> Float64[Tensor, " k"]:
        """The components of one image, from as many timesteps at once as there are images in the batch."""
        total: list[Tensor] = []
        with torch.inference_mode(False), torch.enable_grad():
            x0, noise, cond = subject.x0[row : row + 1].clone(), noise.clone(), _outside(chosen(subject.cond, slice(row, row + 1)))
            for start in range(0, len(self.timesteps), len(subject)):
                times = self.timesteps[start : start + len(subject)]
                e = noise[start : start + len(times)]
                x_t = torch.cat([subject.schedule.add_noise(x0, t, e[i : i + 1]) for i, t in enumerate(times)])
                eps = subject.denoiser.with_graph(x_t, times, None if cond is None else joined([cond] * len(times)))
                loss = (eps - e).square().sum() / x0.numel() ** 0.5
                found = torch.autograd.grad(loss, weights, allow_unused=True)
                parts = list(self._parts(found, weights))
                total = parts if not total else [one + other for one, other in zip(total, parts, strict=True)]
            squares = torch.stack([float64(part).square().sum() for part in total]) / (x0.numel() * len(self.timesteps) ** 2)
            rounding = torch.finfo(total[0].dtype).eps ** 2 * squares.sum()
            return squares.clamp(min=rounding).clamp(min=torch.finfo(torch.float64).tiny).log().neg().detach()

    def _parts(self, found: tuple[Tensor | None, ...], weights: list[Tensor]) -> Iterator[Tensor]:
        """The gradients of the tensors, or of both matrices of each LoRA, in their order."""
        for name, gradient, weight in zip(self.tensors, found, weights, strict=True):
            g = torch.zeros_like(weight) if gradient is None else gradient
            if not self.adapted:
                yield g
                continue
            down, up, factor = self.adapted[name]
            flat = g.reshape(len(g), -1)
            yield factor * up.to(flat).reshape(len(up), -1).T @ flat
            yield factor * flat @ down.to(flat).reshape(len(down), -1).T


def _outside(cond: Any) -> Any:
    """A condition as tensors that may be part of a graph, which those of inference mode may not."""
    if isinstance(cond, Prompts):
        return replace(cond, tensors={name: value.clone() for name, value in cond.tensors.items()})
    return cond.clone() if isinstance(cond, Tensor) else cond
