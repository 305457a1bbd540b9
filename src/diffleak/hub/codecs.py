"""Autoencoders as codecs: loads them, wraps trained ones, and checks that they fit a denoiser."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from diffleak.data.pixels import ImageShape
from diffleak.diffusion.codec import Autoencoder, Codec
from diffleak.errors import UserError, first_lines, shown
from diffleak.hub.configs import are_numbers, read_json
from diffleak.hub.folders import DTYPES, autoencoder_folder, check_weights, hashed_weights, heard, pretrained
from diffleak.hub.single_file import SingleFile
from diffleak.work.memory import out_of_memory
from diffleak.work.progress import say
from diffleak.work.remembered import hash_weights

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
OF_PIPELINES = (*AUTOENCODERS, "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "AutoencoderDC")  # no model of ours works on their latents
FACTORLESS = ("AutoencoderKLFlux2", "AutoencoderKLQwenImage")  # they scale latents by statistics of their own
PATCH = 2  # latent pixels a side that FLUX.2 takes as one
PROBE = 64  # pixels a side of the blank image that shows how far an autoencoder scales down


def load_codec(folder: str | Path, dtype: str = "float32", device: str = "cpu", factor: float | None = None) -> Autoencoder:
    """The autoencoder in the vae/ or vqvae/ of a folder (or in the folder itself), frozen.

    Warnings of the libraries go to stderr. `factor` and errors are those of `read_codec`.
    """
    with heard() as said:
        codec = read_codec(folder, dtype, device, factor)
    for line in said:
        say(f"warning: while {folder} was loaded: {line}")
    return codec


def read_codec(
    folder: str | Path,
    dtype: str = "float32",
    device: str = "cpu",
    factor: float | None = None,
    kinds: Sequence[str] = AUTOENCODERS,
    single: SingleFile | None = None,
) -> Autoencoder:
    """As `load_codec`, for callers that collect warnings themselves.

    kinds: the accepted classes of autoencoders. factor: the scaling_factor for a config without one, as in the first Stable Diffusion
    folders. single: the file with the weights, where the folder has only their settings.
    Raises `UserError` for another kind of autoencoder, missing weights, and a config without a scaling_factor.
    """
    own = autoencoder_folder(Path(folder)) or Path(folder)
    config = read_json(own / "config.json", f"{folder} must hold an autoencoder, as vae/ or vqvae/")
    name = config.get("_class_name", "")
    if name not in kinds:
        raise UserError(f"autoencoders must be one of {', '.join(kinds)}; {own} holds a {shown(name) or 'config.json without _class_name'}")
    if config.get("lookup_from_codebook"):
        raise UserError(f"{own} decodes code numbers (lookup_from_codebook), which no diffusion model predicts; give another autoencoder")
    factor = config.get("scaling_factor", factor)
    if name not in FACTORLESS and not are_numbers([factor], 1, positive=True):
        raise UserError(
            f"{own}/config.json must say scaling_factor, the positive number by which latents were multiplied when the denoiser was "
            f"trained (0.18215 for Stable Diffusion 1); got {shown(factor)}: set it there"
        )
    if not are_numbers([config.get("shift_factor") or 0], 1):
        raise UserError(f"{own}/config.json must give shift_factor as a number, or null; got {shown(config['shift_factor'])}")
    for key, kind in (("latents_mean", "numbers"), ("latents_std", "positive numbers")):
        values, channels = config.get(key), config.get("z_dim", config.get("latent_channels", 4))
        if values is not None and not are_numbers(values, channels, positive=key == "latents_std"):
            said = f"{own}/config.json must give {key} as {channels} {kind}, one per latent channel, or null"
            raise UserError(f"{said}; got {shown(values)}")
    if single is not None and single.holds(own.name):
        return _codec(single.network(own.name, name, DTYPES[dtype]).to(device))
    check_weights(own)
    network: Any = pretrained(name, own, DTYPES[dtype]).to(device)
    if name == "AutoencoderKLFlux2":
        statistics = network.bn
        scale = 1 / (statistics.running_var + network.config.batch_norm_eps).sqrt()
        return Autoencoder(Patched(network), scale, statistics.running_mean)
    if name == "AutoencoderKLQwenImage":
        network.register_to_config(in_channels=network.config.input_channels, scaling_factor=1.0)
        return replace(_codec(network), network=Still(network))
    return _codec(network)


class Patched(torch.nn.Module):
    """An AutoencoderKLFlux2 with each block of 2 x 2 latent pixels as the channels of one, as its pipelines take them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.config = network, network.config

    def encode(self, x: Tensor) -> Any:
        return SimpleNamespace(latents=torch.nn.functional.pixel_unshuffle(self.network.encode(x).latent_dist.mode(), PATCH))

    def decode(self, z: Tensor) -> Any:
        return self.network.decode(torch.nn.functional.pixel_shuffle(z, PATCH))


class Still(torch.nn.Module):
    """An AutoencoderKLQwenImage, which encodes videos, applied to a video of one frame. It keeps state, so threads take turns."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.config, self._turn = network, network.config, Lock()

    def encode(self, x: Tensor) -> Any:
        with self._turn:
            return SimpleNamespace(latents=self.network.encode(x.unsqueeze(2)).latent_dist.mode().squeeze(2))

    def decode(self, z: Tensor) -> Any:
        with self._turn:
            return SimpleNamespace(sample=self.network.decode(z.unsqueeze(2)).sample.squeeze(2))


def codec_of(network: torch.nn.Module, scaling_factor: float) -> Autoencoder:
    """A trained autoencoder as a codec; writes the scaling factor into its config."""
    network.register_to_config(scaling_factor=scaling_factor)  # type: ignore[operator]
    return _codec(network)


def _codec(network: Any) -> Autoencoder:
    config, network = network.config, network.eval().requires_grad_(False)
    mean, std = (config.get(key) for key in ("latents_mean", "latents_std"))
    parameter = next(network.parameters())
    tensor = lambda values: torch.as_tensor(values, dtype=torch.float64).reshape(-1).to(parameter)
    shift = tensor(mean if mean is not None else config.get("shift_factor") or 0.0)
    return Autoencoder(network, tensor(config["scaling_factor"]) / tensor(std if std is not None else 1.0), shift)


def codec_fingerprint(folder: Path) -> str:
    """A hash of the weights and config of the autoencoder in a folder."""
    own = autoencoder_folder(folder) or folder
    return hash_weights([*hashed_weights(own), own / "config.json"])


def same_codec(one: Codec, other: Codec) -> bool:
    """True if two codecs give the same latents: the same settings, scale and weights, wherever they were saved."""
    if not isinstance(one, Autoencoder) or not isinstance(other, Autoencoder):
        return type(one) is type(other)
    settings = [{k: v for k, v in dict(codec.network.config).items() if k[0] != "_"} for codec in (one, other)]
    states = [{**codec.network.state_dict(), "scale": codec.scale, "shift": codec.shift} for codec in (one, other)]
    alike = settings[0] == settings[1] and type(one.network) is type(other.network) and states[0].keys() == states[1].keys()
    return alike and all(torch.equal(value.cpu(), states[1][key].cpu()) for key, value in states[0].items())


def latent_shape(codec: Autoencoder, shape: ImageShape) -> ImageShape:
    """The shape of the latents of images of `shape`; raises `UserError` if the autoencoder cannot divide their sides."""
    channels, factor = scaling(codec)
    if shape.height % factor or shape.width % factor:
        raise UserError(f"image sides must be multiples of {factor} for this autoencoder; got {shape}: use --resize")
    return ImageShape(channels, shape.height // factor, shape.width // factor)


def scaling(codec: Autoencoder) -> tuple[int, int]:
    """The number of latent channels and the factor by which latents are smaller than images, found by encoding a blank image."""
    channels = int(codec.network.config.in_channels)
    try:
        with torch.inference_mode():
            z = codec.encode(torch.zeros(1, channels, PROBE, PROBE, dtype=codec.scale.dtype, device=codec.scale.device))
    except (RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise UserError(f"the autoencoder cannot encode a blank image ({first_lines(error)}); check its config.json") from None
    return z.shape[1], PROBE // z.shape[2]


def image_shape(codec: Autoencoder, latent: ImageShape | None, taken: int, folder: Path) -> ImageShape | None:
    """The shape of a latent model's images; raises `UserError` unless the denoiser takes the autoencoder's channels."""
    channels, factor = scaling(codec)
    if channels != taken:
        raise UserError(
            f"the autoencoder and the denoiser of {folder} must belong together; the one makes latents of {channels} channels, "
            f"the other takes {taken}: give the autoencoder that the denoiser was trained on"
        )
    size = (latent.height * factor, latent.width * factor) if latent else None
    return ImageShape(int(codec.network.config.in_channels), *size) if size else None
