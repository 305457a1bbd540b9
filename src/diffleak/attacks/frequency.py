"""The frequency filter: loss and PIA compared as images, with high frequencies turned down.

    z0_hat = (x_t - s_t eps) / a_t         target = (x_t - s_t e) / a_t = x0      e: the drawn noise, or PIA's eps(x0, 0)
    r_t = F(z0_hat - target)               F = inverse FFT of (gain 1 inside `radius`, `gain` outside)

Lian, Cai, Li and Bao 2025, "Unveiling impact of frequency components on membership inference attacks for diffusion
models", arXiv 2505.20955, with radius 5 and gain 0.2. On a latent model both sides are decoded to pixels first, as Rao, Qu
and Moyer 2025 (arXiv 2511.20592, appendix F, eq. 9-17) do; there they find it to weaken the attacks. F is linear, so it
is applied once, to the difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from diffleak.attacks.base import ResidualAttack
from diffleak.attacks.subject import Subject
from diffleak.errors import UserError

SOURCE = "Lian et al. 2025, arXiv 2505.20955"


@dataclass(frozen=True, kw_only=True)
class _FrequencyFilter(ResidualAttack):
    radius: float = 5.0
    gain: float = 0.2

    source: ClassVar[str] = SOURCE
    published_timestep: ClassVar[int | None] = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.radius < inf or not 0 <= self.gain <= 1:
            raise UserError(f"{self.name} needs a finite radius >= 0 and gain in [0, 1]; got {self.radius}, {self.gain}")

    @property
    def takes_masks(self) -> bool:
        return False  # a filtered image has no latent coordinates

    def _filtered(self, subject: Subject, e: Float[Tensor, "b *s"]) -> Iterator[Float[Tensor, "b *x"]]:
        target = subject.decode(subject.x0)
        for t in self.timesteps:
            x_t = subject.schedule.add_noise(subject.x0, t, e)
            z0_hat = subject.schedule.predict_x0(x_t, t, subject.eps(x_t, t))
            yield low_pass(subject.decode(z0_hat) - target, self.radius, self.gain)


@final
@dataclass(frozen=True, kw_only=True)
class LossFrequency(_FrequencyFilter):
    """The same as loss, with high frequencies turned down. A small difference means member.

    Formula: `|F(z0_hat - x0)|**p`, F turning high frequencies down.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        p: The power of the norm.
        radius: Frequencies up to it, in cycles per image, stay as they are.
        gain: What the others are multiplied by.

    Source:
        Lian, Cai, Li and Bao 2025, arXiv 2505.20955.
    """

    p: float = 2.0

    name: ClassVar[str] = "loss_frequency"

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *x"]]:
        yield from self._filtered(subject, subject.noise(0))


@final
@dataclass(frozen=True, kw_only=True)
class PIAFrequency(_FrequencyFilter):
    """The same as pia, with high frequencies turned down. A small difference means member.

    Formula: `|F(z0_hat - target)|**p` with the noise `eps(x0, 0)`, F turning high frequencies down.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        p: The power of the norm.
        radius: Frequencies up to it, in cycles per image, stay as they are.
        gain: What the others are multiplied by.

    Source:
        Lian, Cai, Li and Bao 2025, arXiv 2505.20955.
    """

    p: float = 4.0

    name: ClassVar[str] = "pia_frequency"

    @property
    def queries(self) -> int:
        return len(self.timesteps) + 1

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *x"]]:
        yield from self._filtered(subject, subject.eps(subject.x0, 0))


def low_pass(x: Float[Tensor, "b *c h w"], radius: float, gain: float) -> Float[Tensor, "b *c h w"]:
    """x with the spatial frequencies beyond `radius` (cycles per image) multiplied by `gain`."""
    frequencies = [torch.fft.fftfreq(side, 1 / side, dtype=x.dtype, device=x.device) for side in x.shape[-2:]]
    distance = (frequencies[0][:, None].square() + frequencies[1].square()).sqrt()
    return torch.fft.ifft2(torch.fft.fft2(x) * torch.where(distance > radius, gain, 1.0)).real
