"""The parts of a diffusion model that an attack may see: schedule, denoiser, keyed noise, and models with known answers."""

from typing import Literal

Choice = Literal["alternate", "random"]  # how two models take turns (`diffleak.diffusion.dual`)
