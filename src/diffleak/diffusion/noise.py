"""Standard normals keyed by (seed, image id, stream, draw).

Each image has its own counter-based stream, so its noise does not depend on the batch it is in, on the order of images,
on the number of workers, or on a run having been interrupted. This is the package's only source of noise for scoring.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.diffusion.devices import on_device


@dataclass(frozen=True)
class Noise:
    """The noise of one batch: `noise(j)` is draw j for every id, of shape (len(ids), *shape), always the same.

    Draws are kept for the life of the object, since attacks use the same draw at every timestep.

    Args:
        seed: Seed of all noise.
        ids: The images; the noise of an image depends on its id, not on its batch.
        shape: The shape of one image.
        dtype: Of the tensors.
        device: Of the tensors.
        stream: What the normals are for: other purposes get independent ones.
    """

    seed: int
    ids: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    stream: str = ""  # what the normals are for: other purposes get independent ones
    _drawn: dict[int, Tensor] = field(init=False, default_factory=dict, repr=False, compare=False)  # not handed on by replace()

    def __call__(self, draw: int) -> Float[Tensor, "b *s"]:
        if draw not in self._drawn:
            normals = _normals(self.seed, [i + self._suffix for i in self.ids], draw, self.shape)
            self._drawn[draw] = on_device(torch.from_numpy(normals), self.device, self.dtype)
        return self._drawn[draw].clone()  # whatever is done to it, the next caller gets the same normals

    def keep(self, draw: int, normals: Float[Tensor, "b *s"]) -> None:
        """Keeps normals that an equal object has drawn before."""
        self._drawn[draw] = normals

    @property
    def _suffix(self) -> str:
        return f"\0{self.stream}" if self.stream else ""


def generators(seed: int, ids: Sequence[str], stream: str) -> list[torch.Generator]:
    """One torch generator per id, keyed by (seed, id, stream), for samplers that draw their own noise."""
    digests = [hashlib.blake2b(f"{seed}\0{i}\0{stream}".encode(), digest_size=8).digest() for i in ids]
    return [torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1) for digest in digests]


def _normals(seed: int, ids: Sequence[str], draw: int, shape: Sequence[int]) -> Float64[np.ndarray, "b *s"]:
    """The normals of each id, those of a Philox generator with its key and the draw as counter."""
    bits = np.random.Philox(key=0)
    generator, state, normals = np.random.Generator(bits), bits.state, np.empty((len(ids), *shape))
    counter = np.array([0, 0, 0, draw], dtype=np.uint64)
    for of_one, image_id in zip(normals, ids, strict=True):
        digest = hashlib.blake2b(f"{seed}\0{image_id}".encode(), digest_size=16).digest()
        state["state"] = {"counter": counter, "key": np.frombuffer(digest, dtype=np.uint64)}
        bits.state = state
        generator.standard_normal(out=of_one)
    return normals
