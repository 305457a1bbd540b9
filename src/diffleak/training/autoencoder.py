"""The autoencoders of latent models: a β-VAE and a vector-quantised one, both with an L1 reconstruction.

    β-VAE    mean |x - D(h)| + β mean KL(N(μ, σ²) || N(0, 1)),   h = μ + σ e        means over pixels and latent coordinates
    VQ       mean |x - D(h_q)| + 1/4 mean |h_q - sg h|² + mean |sg h_q - h|²,       gradients straight through h_q = code(h)

Higgins et al. 2017 (β-VAE); van den Oord, Vinyals and Kavukcuoglu 2017, arXiv 1711.00937, eq. 3, with the 1/4 on the
codebook term, as the original latent diffusion and diffusers' VQModel have it. The L1 term and the
sizes follow Rao, Qu and Moyer 2025, arXiv 2511.20592, appendix H. When training ends, scaling_factor is set to one over
the standard deviation of the training latents, as latent diffusion does.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from diffleak import hub
from diffleak.data.pixels import ImageShape
from diffleak.training.config import TrainConfig
from diffleak.training.denoiser import check_depth, encode_all
from diffleak.training.images import TrainingData
from diffleak.training.task import Task

NAMES = {"vae": "AutoencoderKL", "vq": "VQModel"}


class VariationalLoss(torch.nn.Module):
    """The loss of a β-VAE, as a module that accelerate can wrap."""

    def __init__(self, network: Any, kl_weight: float) -> None:
        super().__init__()
        self.network, self.kl_weight = network, kl_weight

    def forward(self, x: Float[Tensor, "b *x"], labels: None, e: Float[Tensor, "b *z"]) -> Float[Tensor, ""]:
        posterior = self.network.encode(x).latent_dist
        image = self.network.decode(posterior.mean + posterior.std * e).sample
        return (image.float() - x).abs().mean() + self.kl_weight * posterior.kl().float().mean() / e[0].numel()


class QuantisedLoss(torch.nn.Module):
    """The loss of a VQ autoencoder, as a module that accelerate can wrap."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "b *x"], labels: None) -> Float[Tensor, ""]:
        codes, distance, _ = self.network.quantize(self.network.encode(x).latents)
        image = self.network.decode(codes, force_not_quantize=True).sample
        return (image.float() - x).abs().mean() + distance.float()


def autoencoder_config(config: TrainConfig, shape: ImageShape) -> dict[str, Any]:
    """The AutoencoderKL or VQModel configuration for images of `shape`."""
    levels = len(config.model.get("block_out_channels", (0,)))
    check_depth(levels, shape)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return {"in_channels": shape.channels, "out_channels": shape.channels, "sample_size": shape.height, **blocks, **config.model}


def autoencoder_task(config: TrainConfig, network: dict[str, Any], data: TrainingData) -> Task:
    """The task of training an autoencoder on the images of `data`."""
    model: Any = hub.new_autoencoder(NAMES[config.kind], network)
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    latent = (model.config.latent_channels, data.images.shape[1] // factor, data.images.shape[2] // factor)

    def draw(n: int, generator: Generator) -> tuple[Tensor, ...]:
        return (torch.randn((n, *latent), generator=generator),) if config.kind == "vae" else ()

    def save(folder: Path) -> None:
        unscaled = encode_all(hub.codec_of(model, 1.0), data.images)
        hub.save_autoencoder(folder, hub.codec_of(model, 1 / float(unscaled.std())))

    return Task(
        VariationalLoss(model, config.kl_weight) if config.kind == "vae" else QuantisedLoss(model), data.images, (None,), draw, save
    )
