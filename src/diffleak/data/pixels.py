"""From decoded pixels to what a model takes: the right size, the right channels, floats in [-1, 1]."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from diffleak.errors import UserError

CHANNEL_NAMES = {1: "grey", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class ImageShape:
    """What a model takes: `channels` and, where the model fixes them, `height` and `width` in pixels."""

    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width} {CHANNEL_NAMES.get(self.channels, f'{self.channels}-channel')}"


def shape_of(pixels: UInt8[np.ndarray, "h w c"]) -> ImageShape:
    height, width, channels = pixels.shape
    return ImageShape(channels, height, width)


def pixel_hash(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """The SHA-256 of the exact decoded pixels: equal for equal images, whatever their file format or name."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()


def without_alpha(pixels: UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w c2"]:
    """The image as it is, or its colours alone where a model of so many channels takes no alpha; grey ones as one channel."""
    if pixels.shape[2] != 4 or channels not in (1, 3):
        return pixels
    colours = pixels[..., :3]
    grey = channels == 1 and bool((colours == colours[..., :1]).all())
    return np.ascontiguousarray(colours[..., :1] if grey else colours)


def fit(
    pixels: UInt8[np.ndarray, "h w c"], shape: ImageShape, resize: bool, name: str, place: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "h2 w2 c2"]:
    """The image in the model's shape; without `resize` it must have that shape already.

    Alpha is dropped where the model takes none. Resizing is antialiased bicubic on the shorter side and a crop, of the centre or
    where `place` says (how far down and to the right, in [0, 1) of the possible positions).
    """
    pixels = without_alpha(pixels, shape.channels)
    got = shape_of(pixels)
    if got == shape:
        return pixels
    if not resize:
        raise UserError(f"{name} is {got}, the model takes {shape}; --resize converts it (antialiased, recorded)")
    if shape.channels not in CHANNEL_NAMES:
        raise UserError(f"images can be converted to 1, 3 or 4 channels; the model takes {shape.channels}")
    image = Image.fromarray(pixels[..., 0] if got.channels == 1 else pixels)
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[shape.channels])
    scale = max(shape.width / image.width, shape.height / image.height)
    width, height = max(shape.width, round(image.width * scale)), max(shape.height, round(image.height * scale))
    spare = (height - shape.height, width - shape.width)
    top, left = (int((n + 1) * at) for n, at in zip(spare, place, strict=True)) if place else (n // 2 for n in spare)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    array = np.asarray(image.crop((left, top, left + shape.width, top + shape.height)))
    return array[..., None] if array.ndim == 2 else array


def to_model(images: UInt8[np.ndarray, "b h w c"]) -> Float32[np.ndarray, "b c h w"]:
    """uint8 images as the floats in [-1, 1] that diffusion models are trained on."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1.0


def to_uint8(x: Float32[np.ndarray, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """The inverse of `to_model`, clipped to the range of pixels."""
    return np.clip(np.rint((x + 1.0) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def png(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """The image as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()
