"""Images from noise: any diffusers sampler, driven by a `Denoiser`.

    x_T ~ N(0, I),   x_u = step(eps(x_t, t), t, x_t)   over the sampler's own timesteps

The sampler must take predicted noise (prediction_type epsilon), which is what every `Denoiser` returns. Each image has
its own random numbers, keyed by seed and id, so it does not depend on the batch in which it is drawn.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffleak.diffusion.conditions import chosen
from diffleak.diffusion.denoiser import Denoiser, counting
from diffleak.diffusion.devices import free_unused_memory
from diffleak.diffusion.noise import Noise, generators
from diffleak.diffusion.schedule import Schedule
from diffleak.work.room import Room
from diffleak.work.threads import Tick

DRAWINGS = "images that are drawn"  # in the words of `Room`


def sample(
    denoiser: Denoiser,
    sampler: Any,
    noise: Noise,
    cond: Any = None,
    rounds: int = 1,
    on_step: Callable[[int], object] = lambda images: None,
) -> Float[Tensor, "b *s"]:
    """One image, or latent, per id of `noise`.

    sampler: a diffusers scheduler on which `set_timesteps` was called. rounds: 1 draws an ordinary image. More rounds are an
    attack on `Dual`: each noises the image again to the sampler's second timestep and draws it from there, where the first
    model takes the first turn once more, so that of every earlier round only that model's first step remains
    (Tran et al. 2024, arXiv 2410.16657, appendix A.5). on_step: called with the number of images after every forward.
    """
    timesteps = [int(t) for t in sampler.timesteps]
    random = {"generator": generators(noise.seed, noise.ids, "sampler")} if _is_random(sampler) else {}
    x = noise(0) * float(sampler.init_noise_sigma)
    for number in range(rounds):
        visited = timesteps if number == 0 else timesteps[1:]
        if number:
            x = denoiser.schedule.add_noise(x, visited[0], noise(number))
        turns = denoiser.over(tuple(visited))
        for t in visited:
            x = sampler.step(turns(sampler.scale_model_input(x, t), t, cond), t, x, **random).prev_sample
            on_step(len(x))
    return x


@final
@dataclass(frozen=True, eq=False)
class AtOnce:
    """How many images every forward that draws has: `size`, or as many as memory has `room` for once it has run out."""

    size: int
    room: Room = field(default_factory=lambda: Room(DRAWINGS))

    @classmethod
    def on(cls, device: str, size: int) -> "AtOnce":
        """The same, on a device whose unused memory is given back before the next attempt."""
        return cls(size, Room(DRAWINGS, partial(free_unused_memory, device)))

    @property
    def halved_to(self) -> int | None:
        """The number of images in a forward now, where memory has had no room for `size`; else None."""
        most = self.room.most
        return most if most is not None and most < self.size else None


def sample_alike(
    denoiser: Denoiser,
    new_sampler: Callable[[], Any],
    noise: Noise,
    cond: Any,
    at_once: AtOnce,
    decode: Callable[[Tensor, Sequence[int]], Tensor],
    on_step: Callable[[int], None] = lambda images: None,
) -> Float[Tensor, "b *s"]:
    """One decoded image per id of `noise`, in forwards of exactly as many images, so that no bit of an image depends on the others.

    The last digits of a forward depend on the number of images in it and not on which they are. The last forward repeats its last image
    until it is full; `on_step` and a `Counted` denoiser count the wanted images alone. If memory runs out, the counts of that forward are
    undone, and it and those that follow are smaller. cond: of all ids. decode: takes latents and the numbers of their ids.
    """
    n = len(noise.ids)

    def drawn(rows: slice, tick: Tick) -> Float[Tensor, "w *s"]:
        size, wanted, taken_back = rows.stop - rows.start, min(rows.stop, n) - rows.start, list[Callable[[], object]]()
        full = [min(row, n - 1) for row in range(rows.start, rows.stop)]
        batch = replace(noise, ids=tuple(noise.ids[row] for row in full))
        try:
            counted = counting(denoiser, wanted, size, taken_back)
            z = sample(counted, new_sampler(), batch, chosen(cond, full), on_step=lambda images: tick(wanted))
            return decode(z, full)[:wanted]
        except (RuntimeError, MemoryError):
            for take_back in taken_back:
                take_back()
            raise

    return torch.cat([x for _, x in at_once.room.each(n, at_once.size, drawn, on_step, full=True)])


class Stepped(NamedTuple):
    """What a sampler's step returns, as diffusers' own do."""

    prev_sample: Tensor


@final
class FlowSampler:
    """Euler steps of flow matching for predicted noise: x_u = x_t + (sigma_u - sigma_t) f, which is `Schedule.ddim`.

    Has the part of a diffusers scheduler that `sample` uses. It starts one timestep before the last: at sigma = 1 the
    predicted noise does not determine the network's prediction.
    """

    init_noise_sigma = 1.0

    def __init__(self, schedule: Schedule, steps: int) -> None:
        self.schedule = schedule
        self.timesteps = [int(t) for t in np.rint(np.linspace(len(schedule) - 2, 0, steps))]

    def scale_model_input(self, x: Tensor, t: int) -> Tensor:
        """x itself."""
        return x

    def step(self, eps: Float[Tensor, "b *s"], t: int, x: Float[Tensor, "b *s"]) -> Stepped:
        """From timestep t to the next one, or from the last one to the clean image."""
        place = self.timesteps.index(t)
        if place + 1 == len(self.timesteps):
            return Stepped(self.schedule.predict_x0(x, t, eps))
        return Stepped(self.schedule.ddim(x, eps, t, self.timesteps[place + 1]))


def _is_random(sampler: Any) -> bool:
    return "generator" in inspect.signature(sampler.step).parameters
