"""CLiD: what the caption adds to denoising a member, which the model saw together with it.

    L(c) = mean over t and coordinates of (eps(q(x0, t, e_t), t, c) - e_t)^2        e_t draw i at the i-th timestep, for every c
    D_i  = L(c_i) - L(c)            c_1 ... c_4: three reduced captions and the empty one
    components  -L(c) and the mean of D_i, both high for members; their scales and weights are settled on the calibrate part

A reduced caption keeps the 30, 50 or 70 % most important words (to the nearest, at least one) in their order; a word's
importance is 1 - the cosine of the embeddings of the caption with and without it, and of equal ones the earlier is kept.
Zhai, Chen, Dong, Li, Shen, Gao, Su and Liu 2024, "Membership inference on text-to-image diffusion models via conditional
likelihood discrepancy", arXiv 2405.14800.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.attacks.base import Attack, Direction
from diffleak.attacks.subject import Subject
from diffleak.diffusion.conditions import Prompts, joined
from diffleak.diffusion.devices import float64
from diffleak.errors import UserError

KEPT = (30, 50, 70)  # percent of the words


@final
@dataclass(frozen=True, kw_only=True)
class CLiD(Attack):
    """How much the caption helps the model to denoise the image, and how well it does so. A high score means member.

    Formula: Two components, `-L(c)` and the mean of `L(c_i) - L(c)` over reduced captions c_i, in a regression.

    Args:
        timesteps: Those that the loss L is averaged over.

    Source:
        Zhai et al. 2024, arXiv 2405.14800.
    """

    timesteps: tuple[int, ...] = (440, 450, 460)

    name: ClassVar[str] = "clid"
    direction: ClassVar[Direction] = "large"
    source: ClassVar[str] = "Zhai et al. 2024, arXiv 2405.14800"
    rule: ClassVar[str | None] = "clid"
    needs_text: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[int, ...]:
        return (0, 1)

    @property
    def width(self) -> int:
        return len(self.timesteps) * (len(KEPT) + 2)

    @property
    def queries(self) -> int:
        return self.width

    def statistics(self, subject: Subject, mask: Float[Tensor, "b *s"] | None = None) -> Float64[Tensor, "2 b"]:
        self._refuse_masks(mask)
        if not isinstance(subject.cond, Prompts):
            raise UserError(f"clid needs the captions of the images as cond, a Prompts; got {type(subject.cond).__name__}")
        conditions, count = all_conditions(subject.cond), len(self.timesteps)
        each = len(conditions)
        x_t = [subject.schedule.add_noise(subject.x0, t, subject.noise(i)) for i, t in enumerate(self.timesteps) for _ in conditions]
        e = torch.cat([subject.noise(i) for i in range(count) for _ in conditions])
        steps = [t for t in self.timesteps for _ in conditions]
        error = subject.eps(torch.cat(x_t), steps, joined(conditions * count)) - e
        losses = float64(error).square().flatten(start_dim=1).mean(dim=1).reshape(count, each, len(subject)).mean(dim=0)
        return torch.stack([-losses[0], (losses[1:] - losses[0]).mean(dim=0)])


def all_conditions(cond: Prompts) -> list[Prompts]:
    """The captions, the reduced ones and the empty ones."""
    ranked = [by_importance(cond, text) for text in cond.texts]
    reduced = [tuple(shortened(text, order, percent) for text, order in zip(cond.texts, ranked, strict=True)) for percent in KEPT]
    return [cond, *(cond.encode(texts) for texts in (*reduced, ("",) * len(cond)))]


def by_importance(cond: Prompts, text: str) -> tuple[int, ...]:
    """The places of the words of a text, the most important first."""
    words = text.split()
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    vectors = cond.encode([text, *without], together=True).vectors  # the company of a text is its own, whatever the batch
    importance = 1 - torch.cosine_similarity(vectors[1:], vectors[:1], dim=1)
    return tuple(torch.argsort(importance, descending=True, stable=True).tolist())


def shortened(text: str, order: Sequence[int], percent: int) -> str:
    """The `percent` most important words of a text in their own order; at least one where there are any."""
    words = text.split()
    count = max(1, (percent * len(words) + 50) // 100)
    return " ".join(words[i] for i in sorted(order[:count]))
