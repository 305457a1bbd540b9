"""PIA and PIAN: is the model's own first guess of the noise a fixed point?

    e0 = eps(x0, 0)          r_t = eps(a_t x0 + s_t e0, t) - e0          PIAN: e0 <- e0 / mean|e0| * sqrt(2 / pi)

PIAN rescales e0, image by image, to the mean absolute value of a standard normal.

Kong, Duan, Ma, Shen, Zhu, Shi and Xu 2024, "An efficient membership inference attack for the diffusion model by proximal
initialization", arXiv 2305.18355, eq. 9 and 11; the norm is p = 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi, sqrt
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, finfo

from diffleak.attacks.base import ResidualAttack
from diffleak.attacks.subject import Subject

SOURCE = "Kong et al. 2024, arXiv 2305.18355"


@final
@dataclass(frozen=True, kw_only=True)
class PIA(ResidualAttack):
    """The proximal initialisation attack. A small residual means member."""

    p: float = 4.0

    name: ClassVar[str] = "pia"
    source: ClassVar[str] = SOURCE
    published_timestep: ClassVar[int | None] = 200

    @property
    def queries(self) -> int:
        return len(self.timesteps) + 1

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *s"]]:
        yield from _fixed_point_residuals(self.timesteps, subject, subject.eps(subject.x0, 0))


@final
@dataclass(frozen=True, kw_only=True)
class PIAN(ResidualAttack):
    """PIA with the first prediction normalised. A small residual means member."""

    p: float = 4.0

    name: ClassVar[str] = "pian"
    source: ClassVar[str] = SOURCE
    published_timestep: ClassVar[int | None] = 200

    @property
    def queries(self) -> int:
        return len(self.timesteps) + 1

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *s"]]:
        e0 = subject.eps(subject.x0, 0)
        size = e0.abs().flatten(start_dim=1).mean(dim=1).reshape(-1, *[1] * (e0.ndim - 1))
        e0 = e0 / size.clamp_min(finfo(size.dtype).tiny) * sqrt(2 / pi)
        yield from _fixed_point_residuals(self.timesteps, subject, e0)


def _fixed_point_residuals(timesteps: tuple[int, ...], subject: Subject, e0: Float[Tensor, "b *s"]) -> Iterator[Float[Tensor, "b *s"]]:
    for t in timesteps:
        yield subject.eps(subject.schedule.add_noise(subject.x0, t, e0), t) - e0
