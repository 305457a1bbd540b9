"""Noise as a probe: does the model give the image back from the noise that another model knows it by?

    z <- x0;   for t = t_1 < ... < t_n:   z <- ddim(z, eps_ref(z, t, c), from the noise level before t to that of t)
    for t = t_n > ... > t_1:              z <- ddim(z, eps(z, t, c), from the noise level of t to the one before)
    score = -log(|decode(z) - x|^2 / d + 1e-12)        d pixels; a small distance, so a high score, means member

The noise level before t_1 is none: the image itself. eta is 0 and nothing is clipped. The reference, which has not seen the members, turns
the image into its noise; the audited model draws from this noise, and does nothing else. A reference that is the audited model
itself gives the image back up to the error of the steps, so the reference's own score says how well an image can be given back at all.

The steps t_i are those of the deterministic sampler. Both ways go under the image's own caption, embedded by each model's own text encoder,
and by default without guidance, which no inversion undoes. The full text of the paper was not at hand: captions, steps, guidance and the
distance of pixels are choices made here.

"Noise as a probe: membership inference attacks on diffusion models leveraging initial noise" 2026, arXiv 2601.21628.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.attacks.base import Access, Attack, Direction
from diffleak.attacks.subject import Subject
from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.denoiser import Denoiser, guided
from diffleak.diffusion.devices import float64
from diffleak.errors import UserError

FLOOR = 1e-12


@final
@dataclass(frozen=True, kw_only=True)
class NoiseProbe(Attack):
    """How closely the model redraws the image from the noise that a reference finds for it. A small distance means member.

    Formula: `-log(|x' - x|**2 / d)`.

    Args:
        timesteps: None; the sampler has its own.
        steps: Of the inversion, and as many of the drawing.
        guidance_scale: Of the drawing; 1 is none.

    Source:
        "Noise as a probe" 2026, arXiv 2601.21628.
    """

    timesteps: tuple[int, ...] = ()
    steps: int = 50
    guidance_scale: float = 1.0

    name: ClassVar[str] = "noise_probe"
    access: ClassVar[Access] = "black-box"
    direction: ClassVar[Direction] = "large"
    source: ClassVar[str] = "Noise as a probe 2026, arXiv 2601.21628"
    rule: ClassVar[str | None] = "as_is"
    needs_text: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    in_all: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._plain_numbers()
        if self.timesteps:
            raise UserError("noise_probe draws whole images and has no timesteps; leave them out")
        if self.steps < 1:
            raise UserError(f"noise_probe: steps must be at least 1; got {self.steps}")
        if not isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError(f"noise_probe: guidance_scale must be a number of at least 0 (1 is no guidance); got {self.guidance_scale}")

    @property
    def columns(self) -> tuple[int, ...]:
        return (0,)

    @property
    def width(self) -> int:
        return 1 if self.guidance_scale == 1 else 2

    @property
    def queries(self) -> int:
        """Of the reference `steps`, and of the model as many, twice under guidance."""
        return self.steps * (1 + self.width)

    def opened(self, subject: Subject) -> "NoiseProbe":
        self._visited(subject)  # to refuse at once what cannot be drawn
        return self

    def statistics(self, subject: Subject, mask: Float[Tensor, "b *s"] | None = None) -> Float64[Tensor, "1 b"]:
        self._refuse_masks(mask)
        if not isinstance(subject.cond, Prompts):
            raise UserError(f"noise_probe needs the captions of the images as cond, a Prompts; got {type(subject.cond).__name__}")
        if subject.reference is None:
            raise UserError("noise_probe needs a reference model to invert images under: give Subject(..., reference=...)")
        timesteps = self._visited(subject)
        noise = inverted(subject.reference.denoiser, timesteps, subject.x0, subject.reference.cond)
        drawn = subject.decode(drawn_from(guided(subject.denoiser, self.guidance_scale), timesteps, noise, subject.cond))
        distance = (float64(drawn) - float64(subject.pixels())).square().flatten(start_dim=1).mean(dim=1)
        return -torch.log(distance + FLOOR)[None]

    def _visited(self, subject: Subject) -> tuple[int, ...]:
        """The timesteps of the sampler, rising."""
        timesteps = tuple(sorted(int(t) for t in subject.new_sampler(self.steps).timesteps))
        subject.schedule.check(timesteps)
        return timesteps


def inverted(denoiser: Denoiser, timesteps: tuple[int, ...], x0: Float[Tensor, "b *s"], cond: Any) -> Float[Tensor, "b *s"]:
    """The noise that deterministic DDIM brings images to, up rising timesteps. Each prediction is that at the noise level to come."""
    turns, z, before = denoiser.over(timesteps[::-1]), x0, None
    for t in timesteps:
        eps = turns(z, t, cond)
        z = denoiser.schedule.add_noise(z, t, eps) if before is None else denoiser.schedule.ddim(z, eps, before, t)
        before = t
    return z


def drawn_from(denoiser: Denoiser, timesteps: tuple[int, ...], z: Float[Tensor, "b *s"], cond: Any) -> Float[Tensor, "b *s"]:
    """The clean images that deterministic DDIM draws from z, the noise at the last of rising timesteps."""
    turns = denoiser.over(timesteps[::-1])
    for t, u in zip(timesteps[::-1], (*timesteps[-2::-1], None), strict=True):
        eps = turns(z, t, cond)
        z = denoiser.schedule.predict_x0(z, t, eps) if u is None else denoiser.schedule.ddim(z, eps, t, u)
    return z
