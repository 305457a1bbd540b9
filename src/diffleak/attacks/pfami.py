"""PFAMI: a member fits the model better than its own crops do, since it lies at a peak of what the model has learnt.

    L(x) = mean over coordinates of (eps(q(x, t, e_t), t) - e_t)^2
    f    = mean over t and crops x' of (L(x') - L(x)) / L(x)          high means member

The crops are centred, 0.95 ... 0.70 of the image's sides, resized back (bilinear, antialiased); x and its crops share the
noise e_t, draw i at the i-th timestep. On a latent model the image is cropped, not its latent. Fu, Wang, Gao, Liu, Li and
Jiang 2023, "A probabilistic fluctuation based membership inference attack for diffusion models", arXiv 2308.12143. Theirs
also subtracts the f of a reference model; that is left to what an audit does with a reference model for every attack.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import interpolate

from diffleak.attacks.base import Attack, Direction
from diffleak.attacks.subject import Subject
from diffleak.diffusion.devices import float64
from diffleak.errors import UserError

LARGEST, SMALLEST = 0.95, 0.7
FLOOR = 1e-12  # of the image's own loss, which only a perfect memoriser has


@final
@dataclass(frozen=True, kw_only=True)
class PFAMI(Attack):
    """How much worse the model denoises crops of the image than the image itself. A large difference means member.

    Formula: `mean of (L(x') - L(x)) / L(x)`.

    Args:
        timesteps: Those that the loss L is averaged over.
        crops: Crops of the image, 0.95 to 0.70 of its sides.

    Source:
        Fu et al. 2023, arXiv 2308.12143.
    """

    timesteps: tuple[int, ...] = tuple(range(0, 451, 50))
    crops: int = 10

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

    def statistics(self, subject: Subject, mask: Float[Tensor, "b *s"] | None = None) -> Float64[Tensor, "1 b"]:
        self._refuse_masks(mask)
        pixels, shares = subject.pixels(), torch.linspace(LARGEST, SMALLEST, self.crops, dtype=torch.float64).tolist()
        views = torch.cat([subject.x0, *(subject.encode(cropped(pixels, share)) for share in shares)])
        rows = [self._excess(subject, views, t, subject.noise(i)) for i, t in enumerate(self.timesteps)]
        return torch.stack(rows).mean(dim=0, keepdim=True)

    def _excess(self, subject: Subject, views: Float[Tensor, "wb *s"], t: int, e: Float[Tensor, "b *s"]) -> Float64[Tensor, " b"]:
        """(L(x') - L(x)) / L(x) at one timestep, the mean over crops."""
        shared = torch.cat([e] * self.width)
        error = subject.eps(subject.schedule.add_noise(views, t, shared), t) - shared
        losses = float64(error).square().flatten(start_dim=1).mean(dim=1).reshape(self.width, len(e))
        return ((losses[1:] - losses[0]) / losses[0].clamp_min(FLOOR)).mean(dim=0)


def cropped(x: Float[Tensor, "b c h w"], share: float) -> Float[Tensor, "b c h w"]:
    """The middle of the images, with sides of `share` times theirs, rounded to whole pixels, resized to their size."""
    size: Sequence[int] = x.shape[-2:]
    height, width = (max(1, round(share * side)) for side in size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    middle = x[..., top : top + height, left : left + width]
    return interpolate(middle, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
