"""PIA and PIAN: is the model's own first guess of the noise a fixed point?

    e0 = eps(x0, 0)          r_t = eps(a_t x0 + s_t e0, t) - e0          PIAN: e0 <- e0 / mean|e0| * sqrt(2 / pi)

PIAN rescales e0, image by image, to the mean absolute value of a standard normal.

Kong, Duan, Ma, Shen, Zhu, Shi and Xu 2024, "An efficient membership inference attack for the diffusion model by proximal
initialization", arXiv 2305.18355, eq. 9 and 11; the norm is p = 4.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import pi, sqrt
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, finfo

from diffleak.attacks.base import ResidualAttack
from diffleak.attacks.subject import Subject


@dataclass(frozen=True, kw_only=True)
class _FixedPoint(ResidualAttack):
    p: float = 4.0

    source: ClassVar[str] = "Kong et al. 2024, arXiv 2305.18355"
    published_timestep: ClassVar[int | None] = 200

    @property
    def queries(self) -> int:
        return len(self.timesteps) + 1

    @abstractmethod
    def first(self, eps: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """e0, from the prediction at the clean image."""

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *s"]]:
        e0 = self.first(subject.eps(subject.x0, 0))
        for t in self.timesteps:
            yield subject.eps(subject.schedule.add_noise(subject.x0, t, e0), t) - e0


@final
@dataclass(frozen=True, kw_only=True)
class PIA(_FixedPoint):
    """How far the prediction at a noised image is from the one at the clean image. A small difference means member.

    Formula: `|eps(a_t x0 + s_t e0, t) - e0|**p` with `e0 = eps(x0, 0)`.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        p: The power of the norm.

    Source:
        Kong et al. 2024, arXiv 2305.18355, eq. 9.
    """

    name: ClassVar[str] = "pia"

    def first(self, eps: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        return eps


@final
@dataclass(frozen=True, kw_only=True)
class PIAN(_FixedPoint):
    """The same as pia, with the prediction at the clean image normalised. A small difference means member.

    Formula: `e0 <- e0 / mean|e0| * sqrt(2 / pi)`.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        p: The power of the norm.

    Source:
        Kong et al. 2024, arXiv 2305.18355, eq. 11.
    """

    name: ClassVar[str] = "pian"

    def first(self, eps: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        size = eps.abs().flatten(start_dim=1).mean(dim=1).reshape(-1, *[1] * (eps.ndim - 1))
        return eps / size.clamp_min(finfo(size.dtype).tiny) * sqrt(2 / pi)
