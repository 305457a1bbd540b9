"""How an image is noised for training, what the network must predict then, and which timesteps are drawn.

    diffusion        x_t = a_t x0 + s_t e                      target e, a_t e - s_t x0 or x0, as the scheduler's prediction type says
    flow matching    x_t = (1 - sigma_t) x0 + sigma_t e        target e - x0; the network is given num_train_timesteps sigma_t as its time

    uniform          t uniform in {0, ..., T - 1}
    u-shaped         t = floor(T u),   p(u) = (e^(a u) + e^(a (1 - u))) a / (2 (e^a - 1)) on [0, 1],   a = 4

The u-shaped density is the symmetric exponential one: most of the training happens near the two ends of the path of flow matching, and
less in its middle, where such models memorise (Rao and Moyer 2026, arXiv 2603.13421). Its form and a = 4 are those of Lee, Lin and
Fanti 2024, arXiv 2405.20320; the middle has 0.55 times the uniform density, the ends have 2.07 times.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor

from diffleak import hub
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError

Timesteps = Literal["uniform", "u-shaped"]
STEEPNESS = 4.0  # a

Draw = Callable[[int, Generator], Int[Tensor, " n"]]  # of (n, generator): n timesteps


@final
class Noising:
    """The forward process of a scheduler of diffusers."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    @cached_property
    def path(self) -> Schedule | None:
        """The schedule of flow matching, where the scheduler is that."""
        return hub.flow_schedule(self.scheduler)

    def noised(self, x0: Float[Tensor, "b *s"], noise: Float[Tensor, "b *s"], t: Int[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        """x_t, and the time of each image that the network is given."""
        if self.path is None:
            return self.scheduler.add_noise(x0, noise, t), t
        a, s, time = (of_each(table, t, x0) for table in (self.path.signal, self.path.noise, self.path.times))
        return a * x0 + s * noise, time.flatten()

    def target(self, x0: Float[Tensor, "b *s"], noise: Float[Tensor, "b *s"], t: Int[Tensor, " b"]) -> Float[Tensor, "b *s"]:
        """What the network must predict."""
        if self.path is not None:
            return noise - x0
        match self.scheduler.config.prediction_type:
            case "v_prediction":
                return self.scheduler.get_velocity(x0, noise, t)  # type: ignore[no-any-return]
            case "sample":
                return x0
            case _:
                return noise


def of_each(table: Shaped[np.ndarray, " T"], t: Int[Tensor, " b"], x0: Tensor) -> Shaped[Tensor, "b *ones"]:
    """A row of a schedule's table for every image; times of a discrete schedule stay whole numbers."""
    values = torch.from_numpy(table[t.cpu().numpy()]).to(x0.device)
    return (values if table.dtype.kind == "i" else values.to(x0.dtype)).reshape(-1, *[1] * (x0.ndim - 1))


def drawing_of(timesteps: Timesteps, total: int, flow: bool) -> Draw:
    """How the timesteps of a batch are drawn from {0, ..., total - 1}; raises `UserError` for u-shaped ones without flow matching."""
    if timesteps == "uniform":
        return lambda n, generator: torch.randint(0, total, (n,), generator=generator)
    if not flow:
        raise UserError(
            "--timesteps u-shaped is for models of flow matching, which memorise in the middle of their path, and this model is none: "
            "leave it out, or train one (scheduler: {_class_name: FlowMatchEulerDiscreteScheduler} in -C FILE)"
        )

    def u_shaped(n: int, generator: Generator) -> Int[Tensor, " n"]:
        v = torch.rand((n,), generator=generator, dtype=torch.float64)
        u = 0.5 + torch.asinh((2 * v - 1) * np.sinh(STEEPNESS / 2)) / STEEPNESS  # the inverse of the distribution function
        return (total * u).long().clamp(0, total - 1)

    return u_shaped
