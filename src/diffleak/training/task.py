"""What is trained, and what one step of it sees.

Everything random is keyed: the order of images is a permutation of (seed, epoch), the numbers of a batch come from a
generator of (seed, step). A batch is therefore the same whatever was interrupted and however many processes share it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Generator, Tensor

from diffleak.data.pixels import to_model
from diffleak.diffusion.finite import broken_weight
from diffleak.errors import UserError

Rows = Callable[[int, int, int], Int[np.ndarray, " b"]]  # of (step, batch size, seed): the images of one step


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained: `module(x, *given, *draws)` gives the loss of a batch.

    `inputs` are uint8 images (n, h, w, c) or float32 latents (n, *z); `given` is what else belongs to each image, one array
    per argument, or None for an argument that is None. `draw(n, generator)` gives the random numbers of a whole batch, each
    with n rows; `save(folder)` writes the finished model. `rows` chooses the images of a step, by default all in turn.
    """

    module: torch.nn.Module
    inputs: np.ndarray
    given: tuple[np.ndarray | None, ...]
    draw: Callable[[int, Generator], tuple[Tensor, ...]]
    save: Callable[[Path], None]
    rows: Rows | None = None


def batch(
    task: Task,
    rows: Int[np.ndarray, " b"],
    generator: Generator,
    flip: bool = False,
    share: slice = slice(None),
    device: torch.device | str = "cpu",
) -> tuple[Tensor | None, ...]:
    """The arguments of `task.module` for `rows`: a process's `share` of inputs and of random numbers drawn for the whole batch."""
    inputs = task.inputs[rows]
    flip = flip and inputs.dtype == np.uint8  # latents of flipped images are inputs of their own
    x = torch.from_numpy(to_model(inputs) if inputs.dtype == np.uint8 else inputs)
    draws = task.draw(len(rows), generator)
    if flip:
        flipped = torch.rand(len(rows), generator=generator) < 0.5
        x[flipped] = x[flipped].flip(-1)
    own = lambda part: part[share].to(device)
    given = [None if array is None else own(torch.from_numpy(array[rows])) for array in task.given]
    return own(x), *given, *(own(part) for part in draws)


def refuse_divergence(loss: float, step: int, learning_rate: float, module: torch.nn.Module) -> None:
    """Raises `UserError` for a loss that is no number any more; before the first step the weights it starts from are at fault."""
    if isfinite(loss):
        return
    if step == 0 and (broken := broken_weight(*module.children(), module)):
        raise UserError(f"the loss is {loss} before the first step: {broken}; start from a model whose weights are finite numbers")
    raise UserError(f"the loss is {loss} at step {step}; lower --learning-rate ({learning_rate}) and start in a new folder")


def keyed(*numbers: int) -> Generator:
    """A generator of random numbers that depends on nothing but `numbers`."""
    return Generator().manual_seed(mix(*numbers))


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@lru_cache(maxsize=2)
def _order(epoch: int, n: int, seed: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng((seed, epoch)).permutation(n)


def shuffled(step: int, batch_size: int, seed: int, n: int) -> Int[np.ndarray, " b"]:
    """The images of one step: consecutive places in the endless sequence of shuffled epochs of n images."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_order(int(p // n), n, seed)[p % n] for p in places])
