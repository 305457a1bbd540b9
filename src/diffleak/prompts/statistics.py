"""The statistics of a prompt p, from the predictions of a model with it and without: d(x, t) = eps(x, t, p) - eps(x, t, "").

    magnitude   mean over the sampler's steps t of || d(x_t, t) ||                  while an image is drawn
    map         mean over the sampler's steps t of d(x_t, t)^2, summed over channels: where in the image the prompt acts
    noise_norm  || d(z, T) ||                                                       z ~ N(0, I), T the sampler's first timestep
    alignment   mean over pixels of cos(eps(z, t, ""), d(z, t)), over channels      the same z, t the sampler's third last timestep

Large means memorised for all of them: the prompt, not the noise, decides the image. The map sums up to the mean of || d ||^2. The last
two take four forwards and draw nothing; at low noise a memorised prompt pushes along what the model predicts anyway. A vector of zeros
has the cosine 0 with every other. All are of the predicted noise, whatever the network predicts itself; of flow matching, whose noise
is x_t + a_t f, norms carry the factor a_t, which is the same for every prompt.

magnitude: Wen, Liu, Chen and Lyu 2024, "Detecting, explaining, and mitigating memorization in diffusion models", ICLR.
noise_norm, alignment: Asthana and Belagiannis 2026, arXiv 2601.20642.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.denoiser import Denoiser, Guided, without_and_with
from diffleak.diffusion.devices import float64
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import sample

FORWARDS = 4  # of `from_noise`


class Drawn(NamedTuple):
    """A batch of images, or latents, and what their prompts did while they were drawn."""

    x0: Float[Tensor, "b c h w"]
    magnitude: Float64[Tensor, " b"]
    map: Float64[Tensor, "b h w"]


def draw(denoiser: Denoiser, guidance_scale: float, sampler: Any, noise: Noise, cond: Prompts) -> Drawn:
    """An image per prompt, under classifier-free guidance, which computes both predictions anyway."""
    norms, squares = list[Tensor](), torch.zeros(())

    def add(difference: Float[Tensor, "b c h w"]) -> None:
        nonlocal squares
        norms.append(norm(difference))
        squares = squares + float64(difference).square().sum(dim=1)

    x0 = sample(Guided(denoiser, guidance_scale, add), sampler, noise, cond)
    return Drawn(x0, torch.stack(norms).mean(dim=0), squares / len(norms))


def from_noise(denoiser: Denoiser, z: Float[Tensor, "b c h w"], timesteps: Sequence[int], cond: Prompts) -> Float64[Tensor, "b 2"]:
    """noise_norm and alignment of pure noise z at the two `timesteps` of `asked_at`."""
    first, low = (without_and_with(denoiser, z, t, cond) for t in timesteps)
    return torch.stack([norm(first[1] - first[0]), alignment(low[0], low[1] - low[0])], dim=1)


def asked_at(sampler: Any) -> tuple[int, int]:
    """The sampler's first timestep and its third last, or the first one where there are fewer."""
    visited = [int(t) for t in sampler.timesteps]
    return visited[0], visited[max(0, len(visited) - 3)]


def norm(difference: Float[Tensor, "b *s"]) -> Float64[Tensor, " b"]:
    """The Euclidean norm of each row."""
    return float64(difference).flatten(start_dim=1).norm(dim=1)


def alignment(empty: Float[Tensor, "b c *s"], difference: Float[Tensor, "b c *s"]) -> Float64[Tensor, " b"]:
    """The mean over pixels of the cosine over channels, in [-1, 1]."""
    cosines = (_unit(empty) * _unit(difference)).sum(dim=1).clamp(-1.0, 1.0)
    return cosines.flatten(start_dim=1).mean(dim=1)


def _unit(x: Float[Tensor, "b c *s"]) -> Float64[Tensor, "b c *s"]:
    """Vectors over channels at length 1; those of zeros stay."""
    exact = float64(x)
    length = exact.norm(dim=1, keepdim=True)
    return exact / torch.where(length > 0, length, 1.0)
