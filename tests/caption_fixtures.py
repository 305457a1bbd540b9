"""A text encoder without a network: a caption is the sum of its words' vectors, on top of what every caption shares."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.prompts import Prompts

CAPTIONS = (
    "a red fox in the snow",
    "two boats",
    "lighthouse",
    "an old clock on a wooden table near the window of a cold room",
    "a a dog",
)


def word_vector(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=8)


def caption_vector(text: str) -> np.ndarray:
    return sum((word_vector(word) for word in text.split()), start=np.ones(8))


def toy_encode(texts: Sequence[str], together: bool = False) -> Prompts:
    return Prompts(tuple(texts), {"prompt_embeds": torch.from_numpy(np.stack([caption_vector(t) for t in texts]))[:, None]}, toy_encode)


def captions(ids: Sequence[str]) -> Prompts:
    """A caption per image that belongs to its id alone."""
    return toy_encode([CAPTIONS[int(hashlib.sha256(i.encode()).hexdigest(), 16) % len(CAPTIONS)] for i in ids])


class Captioned(Denoiser):
    """A denoiser whose image is moved by the caption, where it is given one."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.schedule = inner, inner.schedule

    def __call__(self, x_t, t, cond=None):
        if isinstance(cond, Prompts):
            shift = torch.tanh(cond.vectors.sum(dim=1) / 8).to(x_t).reshape(-1, *[1] * (x_t.ndim - 1))
            return self.inner(x_t + 0.1 * shift * torch.cos(x_t), t)
        return self.inner(x_t, t)
