"""Forwards that attacks share: a prediction that one attack has needed is not made again for the next.

Attacks ask the same in two places, and there the answer depends on nothing of the attack:

    eps(x0, t)                the clean image        PIA, PIAN, PIA with a filter and SecMI at t = 0; SimA at every t
    eps(q(x0, t, e_0), t)     its first noise draw   the loss, the loss with a filter and the first copy of Monte-Carlo SimA

These two are recognised by their numbers, so no attack says anything about it. An answer is shared within one batch of one model
alone, where the same forward gives the same bits: the last bits of a forward depend on how many rows it has. So the centre terms
of PFAMI and CLiD, which ride in forwards of many rows, are not shared. The first noise draw itself is made once for all attacks, too.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.noise import Noise

MOST_BYTES = 256 * 2**20  # of kept answers, over all chunks in work
DRAWS = 1 / 8  # of these that noise may fill

Asked = Callable[[], Tensor]


@final
@dataclass(eq=False)
class Memory:
    """The answers that are kept for the chunks in work, at most `most` bytes of them; what has no room is made again.

    Of several threads that want the same answer one queries the model, and the others wait for it: the queries do not depend on which is
    faster.
    """

    most: int = MOST_BYTES
    _kept: dict[Hashable, dict[Hashable, Tensor]] = field(default_factory=dict)
    _asking: dict[Hashable, Lock] = field(default_factory=dict)
    _guard: Any = field(default_factory=Lock)
    _size: int = 0

    def answer(self, chunk: Hashable, key: Hashable, ask: Asked, part: float = 1.0) -> tuple[Float[Tensor, "b *s"], bool]:
        """The answer to a question of a chunk, and True where it was there already.

        part: a new answer is kept if this part of the memory has room for it and for all that is kept.
        """
        with self._guard:
            turn = self._asking.setdefault((chunk, key), Lock())
        with turn:
            found = self._kept.get(chunk, {}).get(key)
            if found is not None:
                return found.clone(), True
            made = ask()
            with self._guard:
                size = made.numel() * made.element_size()
                if self._size + size <= part * self.most:
                    self._kept.setdefault(chunk, {})[key] = made.clone()
                    self._size += size
            return made, False

    def draw_once(self, chunk: Hashable, batch: Hashable, noise: Noise) -> None:
        """Lets `noise` take its first draw from an earlier attack on the same batch of a chunk.

        Draws take no room from answers: a draw is made again much faster than a forward.
        """
        noise.keep(0, self.answer(chunk, (batch, "noise"), lambda: noise(0), DRAWS)[0])

    def forget(self, chunk: Hashable) -> None:
        """Drops the answers of a chunk that every attack has scored."""
        with self._guard:
            dropped = self._kept.pop(chunk, {}).values()
            self._size -= sum(answer.numel() * answer.element_size() for answer in dropped)
            self._asking = {key: turn for key, turn in self._asking.items() if key[0] != chunk}  # type: ignore[index]


@final
@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of one denoiser about one batch under its conditions; chunk and batch say which in `memory`.

    saved: is called with the images and the timestep of every forward that another attack has made.
    """

    memory: Memory
    chunk: Hashable
    batch: Hashable
    denoiser: Denoiser
    x0: Float[Tensor, "b *s"]
    noise: Noise
    cond: Any
    saved: Callable[[int, int], None] = lambda images, t: None

    def eps(self, x_t: Float[Tensor, "b *s"], t: int, ask: Asked) -> Float[Tensor, "b *s"]:
        """The prediction at x_t, kept from an earlier attack where it is one that attacks share, else made now."""
        kind = self._kind(x_t, t)
        if kind is None:
            return ask()
        found, there = self.memory.answer(self.chunk, (self.batch, kind, t), ask)
        if there:
            self.saved(len(x_t) * self.denoiser.forwards, t)
        return found

    def _kind(self, x_t: Float[Tensor, "b *s"], t: int) -> str | None:
        """Which of the shared questions it is; None for one of the attack's own."""
        if x_t.shape != self.x0.shape or x_t.dtype != self.x0.dtype:
            return None
        if torch.equal(x_t, self.x0):
            return "clean"
        drawn = self.denoiser.schedule.add_noise(self.x0, t, self.noise(0))
        return "first draw" if torch.equal(x_t, drawn) else None
