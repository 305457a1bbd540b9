"""A model as one sees it who is given its images alone, and the encoders that they may be compared with."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffleak import hub
from diffleak.attacks.base import Draw, Encoder, Service
from diffleak.data.pixels import ImageShape, to_uint8
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import sample
from diffleak.diffusion.target import Target
from diffleak.generation import decoded
from diffleak.hub.encoders import BATCH, Extractor, extract, open_extractor, probe


def service(target: Target, shape: ImageShape) -> Service:
    """What is drawn of a model in images of `shape`, by the deterministic sampler; and encoders by their specs, on its device."""
    return Service(partial(_drawing, target, shape), partial(_encoder, target, shape))


def _drawing(target: Target, shape: ImageShape, steps: int) -> Draw:
    new_sampler = partial(hub.new_sampler, "ddim", target.denoiser.schedule, steps, clip=not target.latent)
    new_sampler()  # to refuse at once what cannot be drawn

    def draw(denoiser: Denoiser, noise: Noise, cond: Any) -> Float[Tensor, "b c h w"]:
        return decoded(target, shape, sample(denoiser, new_sampler(), noise, cond))

    return draw


def _encoder(target: Target, shape: ImageShape, spec: str) -> Encoder:
    extractor = open_extractor(spec, target.device)
    probe(extractor, shape)
    return Encoder(extractor.fingerprint, partial(_vectors, extractor))


def _vectors(extractor: Extractor, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    images = to_uint8(torch.nan_to_num(x).float().cpu().numpy())
    return torch.from_numpy(extract(extractor, (images[start : start + BATCH] for start in range(0, len(images), BATCH))).features)
