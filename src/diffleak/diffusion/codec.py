"""From images to the space a denoiser works in, and back: deterministic to encode, differentiable to decode.

    identity       z = x                                                    pixel models
    autoencoder    z = (h - shift) * scale,   h = posterior mean, or the encoder's output where it has no posterior
                   x = D(z / scale + shift)

A vector-quantised autoencoder is attacked at its output before quantisation, as in the original latent-diffusion code;
`snap` replaces a latent by the nearest code, which is what the decoder takes and where derivatives are taken.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffleak.diffusion.finite import advice
from diffleak.errors import UserError, shown


class Codec(ABC):
    """A map between images in [-1, 1] and the latents z that a denoiser was trained on."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *z"]:
        """The latents of a batch of images; no randomness."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *x"]:
        """The images of latents that `snap` returned; can be differentiated with respect to z."""

    def snap(self, z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *z"]:
        """The latents that the decoder takes: the nearest codes in a quantised model, else z itself."""
        return z


def latents_of(codec: Codec, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *z"]:
    """The latents of images; raises `UserError` unless the codec returns one row per image, in the dtype of x."""
    return _like(x, codec.encode(x), "the codec's encode", "latents of shape (b, channels, height, width)")


def images_of(codec: Codec, z: Float[Tensor, "b *z"], shape: tuple[int, ...] | None = None) -> Float[Tensor, "b *x"]:
    """The images of latents; raises `UserError` unless the codec returns one image per latent, of `shape` if that is known."""
    x = _like(z, codec.decode(codec.snap(z)), "the codec's decode", "images")
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise UserError(f"the codec's decode must return images of shape {shape}; got {tuple(x.shape[1:])}")
    return x


def refuse_broken(
    answer: Float[np.ndarray, "n *a"], codec: Codec, ids: Sequence[str], what: str = "latents", otherwise: str | None = None
) -> None:
    """Raises `UserError` if an autoencoder's answer for one of the images `ids` is not finite; names the first such image.

    what: what the answers are, for the message. otherwise: further advice for when all weights are finite, as in `advice`.
    """
    broken = np.argwhere(~np.isfinite(answer))
    if len(broken):
        got, image = answer[tuple(broken[0])], shown(ids[broken[0][0]])
        raise UserError(f"the autoencoder must return finite {what}; got {got} for image {image}: {advice(codec, otherwise=otherwise)}")


def _like(given: Tensor, answer: Any, subject: str, what: str) -> Tensor:
    """The answer, if it is a batch of as many rows and dimensions as the given one, in its dtype; channels and sides may differ."""
    alike = isinstance(answer, Tensor) and answer.ndim == given.ndim and len(answer) == len(given) and answer.dtype == given.dtype
    if alike:
        return answer  # type: ignore[no-any-return]
    got = f"{tuple(answer.shape)} {answer.dtype}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    raise UserError(f"{subject} must return {what}, one for each of the {len(given)} given, as {given.dtype}; got {got}")


@final
@dataclass(frozen=True)
class Identity(Codec):
    """No latents: the denoiser works on pixels."""

    def encode(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *x"]:
        return x

    def decode(self, z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *z"]:
        return z


@final
@dataclass(frozen=True, eq=False)
class Autoencoder(Codec):
    """A diffusers autoencoder, frozen.

    `scale` and `shift` are the config's scaling_factor and shift_factor (numbers, or one per channel).
    """

    network: Any
    scale: Float[Tensor, "#c"]
    shift: Float[Tensor, "#c"]

    def encode(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *z"]:
        encoded = self.network.encode(x)
        h = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else getattr(encoded, "latents", None)
        h = encoded.latent if h is None else h  # as AutoencoderDC calls it
        return (h - _per_channel(self.shift, h)) * _per_channel(self.scale, h)

    def decode(self, z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *x"]:
        unquantised = {"force_not_quantize": True} if self._quantised else {}
        return self.network.decode(_laid_out(self._to_network(z)), **unquantised).sample  # type: ignore[no-any-return]

    def snap(self, z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *z"]:
        if not self._quantised:
            return z
        codes = self.network.quantize(self._to_network(z))[0].detach()
        return (codes - _per_channel(self.shift, z)) * _per_channel(self.scale, z)

    @property
    def _quantised(self) -> bool:
        return hasattr(self.network, "quantize")

    def _to_network(self, z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *z"]:
        return z / _per_channel(self.scale, z) + _per_channel(self.shift, z)


def _per_channel(values: Float[Tensor, "#c"], z: Tensor) -> Tensor:
    return values.to(z).reshape(-1, *[1] * (z.ndim - 2))


def _laid_out(z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *z"]:
    """Latents whose derivatives are wanted, on a CPU with channels last: all layers follow, and convolutions are faster so.

    Otherwise as they are: torch's GroupNorm is a little less exact in that layout.
    """
    last = z.requires_grad and z.device.type == "cpu" and z.ndim == 4
    return z.contiguous(memory_format=torch.channels_last) if last else z
