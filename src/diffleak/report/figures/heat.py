"""Maps of where in an image something acts, and the images beside them, as PNGs of a bounded size."""

import io

import matplotlib
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from diffleak.data.pixels import png

SIDE = 192  # pixels of the longer side of an image, at most; of a map the same
COLOURS = matplotlib.colormaps["viridis"]  # from dark to light, also for the colour-blind


def shrunk(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """An image as a PNG of at most SIDE pixels a side, and of about as many where it is smaller."""
    height, width, channels = pixels.shape
    if (longer := max(height, width)) <= SIDE:
        times = SIDE // longer
        return png(pixels.repeat(times, axis=0).repeat(times, axis=1))
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return png(array[..., None] if array.ndim == 2 else array)


def small(image: bytes, squares: Float32[np.ndarray, "h w"] | None = None) -> bytes:
    """The PNG of an image as `shrunk` makes it; with a map its centre alone, of the map's shape, as `data.pixels.fit` cuts it."""
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if squares is None:
        return shrunk(pixels)
    (height, width), (tall, wide) = pixels.shape[:2], squares.shape
    h, w = min(height, max(1, round(width * tall / wide))), min(width, max(1, round(height * wide / tall)))
    top, left = (height - h) // 2, (width - w) // 2
    return shrunk(pixels[top : top + h, left : left + w])


def scale() -> bytes:
    """The colours of a map from 0 to its largest value, as a PNG, which a browser's dark mode leaves as it is."""
    return heat_map(np.linspace(0, 1, SIDE, dtype=np.float32)[None])


def heat_map(squares: Float32[np.ndarray, "h w"]) -> bytes:
    """A map as a PNG of 256 colours, from 0 to its largest value; one of zeros is all dark."""
    top = float(squares.max())
    levels = np.rint(255 * (squares / top if top > 0 else np.zeros_like(squares))).astype(np.uint8)
    if max(levels.shape) > SIDE:
        image = Image.fromarray(levels)
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        levels = np.asarray(image)
    coloured = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
    coloured.putpalette(COLOURS(np.arange(256), bytes=True)[:, :3].tobytes())
    buffer = io.BytesIO()
    coloured.save(buffer, format="PNG")
    return buffer.getvalue()


def half_lies_in(squares: Float32[np.ndarray, "h w"]) -> float:
    """The smallest share of a map's places that hold half of its sum."""
    largest = np.cumsum(np.sort(squares.astype(np.float64), axis=None)[::-1])
    return float(np.searchsorted(largest, largest[-1] / 2) + 1) / len(largest)
