"""DualMD: two models trained on disjoint halves take turns, one per denoising step.

    eps(x_t, t) = eps_i(x_t, t),   i = turn of the step at t

Neither model alone draws a whole image, and each image is a member of one of them only. This protects what a sampler
draws; an attacker who has the weights can query both models, which `exposed` lists.
Tran et al. 2024, "Dual-Model Defense", arXiv 2410.16657, section 3.2.
"""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from diffleak.diffusion import Choice
from diffleak.diffusion.denoiser import Denoiser, NetworkDenoiser
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError


@final
@dataclass(frozen=True, eq=False)
class Dual(Denoiser, wrapper=True):
    """Two denoisers of the same schedule, one per step: in turns from `first` on, or by a coin keyed by (seed, step).

    No state is kept: the turn depends on the timestep alone, so a batch may be repeated or divided in any way.

    Args:
        teachers: The two denoisers.
        choice: "alternate", or "random" for the coin.
        seed: Seed of the coin.
        first: Which teacher takes the first step, 0 or 1.
        timesteps: Those of the sampler, in its order; None means the whole schedule, one timestep per step.

    Raises:
        UserError: For denoisers that do not fit each other.

    Source:
        Tran et al. 2024, arXiv 2410.16657 (DualMD).
    """

    teachers: tuple[Denoiser, Denoiser]
    choice: Choice = "alternate"
    seed: int = 0
    first: int = 0
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        refuse_incompatible(*self.teachers)

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        return self.teachers[0].schedule

    @property
    def exposed(self) -> tuple[Denoiser, ...]:
        return self.teachers

    def over(self, timesteps: tuple[int, ...]) -> "Dual":
        return replace(self, timesteps=timesteps)

    def turn(self, t: int) -> int:
        """The model, 0 or 1, that makes the step at timestep t; raises `UserError` for a timestep that the sampler does not visit."""
        if self.timesteps is None:
            step = len(self.schedule) - 1 - t
        elif t in self.timesteps:
            step = self.timesteps.index(t)
        else:
            raise UserError(f"this Dual takes turns over {len(self.timesteps)} timesteps, and {t} is none of them; use over(timesteps)")
        if self.choice == "alternate":
            return (self.first + step) % 2
        return int(np.random.default_rng((self.seed, step)).integers(2))

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        return self.teachers[self.turn(t)](x_t, t, cond)


def refuse_incompatible(one: Denoiser, other: Denoiser, who: str = "the two teachers") -> None:
    """Raises `UserError` unless two models share schedule, prediction type and classes; `who` they are, in words.

    Models that take turns must, and a teacher and its student.
    """
    tables = [(getattr(one.schedule, name), getattr(other.schedule, name)) for name in ("alphas_cumprod", "times")]
    if not all(np.array_equal(*pair) for pair in tables):
        raise UserError(f"{who} must have the same noise schedule; theirs differ: train both with the same settings")
    if isinstance(one, NetworkDenoiser) and isinstance(other, NetworkDenoiser):
        for name in ("prediction_type", "classes"):
            pair = getattr(one, name), getattr(other, name)
            if pair[0] != pair[1]:
                what, got = name.replace("_", " "), " and ".join("none" if each is None else str(each) for each in pair)
                raise UserError(f"{who} must have the same {what}; got {got}: train both with the same settings")
        if one.precondition and not one.precondition.equals(other.precondition):
            raise UserError(f"{who} must have the same sigma_data and prediction type; theirs differ: train both with the same settings")
