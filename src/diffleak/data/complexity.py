"""How complex an image is, whatever model looks at it: its compressed sizes and the energy of its frequencies. numpy and Pillow.

A simple image gets a small statistic whether or not it was trained on (`stats.calibration` takes that out of a score).
"""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from diffleak.data.pixels import without_alpha

BANDS = 4
NAMES = ("png", "webp", "jpeg", *(f"band {i + 1}" for i in range(BANDS)))
JPEG_QUALITY = 75
FLOOR = 1e-12  # spectral energy, of flat images, is 0


def complexity(pixels: UInt8[np.ndarray, "h w c"]) -> Float64[np.ndarray, " 7"]:
    """The natural logarithms of what an image takes as PNG, lossless WebP and JPEG, and of the energy of BANDS bands of frequencies.

    Bytes are those of Pillow's encoders at their fastest lossless settings, of the colours alone. The bands divide the frequencies of the
    grey image from 0, left out, to 1/2 cycle per pixel along an axis into equal widths; what lies in the corners belongs to the last.
    Energy: the mean squared modulus of the orthonormal discrete Fourier transform of pixels in [0, 1].
    """
    colours = without_alpha(pixels, 3) if pixels.shape[2] == 4 else pixels
    picture = Image.fromarray(colours[..., 0] if colours.shape[2] == 1 else colours)
    fast = {"lossless": True, "quality": 0, "method": 0}  # a twentieth of the time of the defaults, as useful
    sizes = [_bytes(picture, "PNG", compress_level=1), _bytes(picture, "WEBP", **fast), _bytes(picture, "JPEG", quality=JPEG_QUALITY)]
    return np.log([*sizes, *(FLOOR + energy for energy in _bands(colours))])


def _bytes(picture: Image.Image, form: str, **options: object) -> int:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getbuffer().nbytes


def _bands(colours: UInt8[np.ndarray, "h w c"]) -> Sequence[float]:
    grey = colours.mean(axis=2) / 255
    power = np.abs(np.fft.rfft2(grey, norm="ortho")) ** 2
    radius = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.rfftfreq(grey.shape[1]))
    band = np.minimum((radius * 2 * BANDS).astype(int), BANDS - 1)
    twice = np.full(power.shape, 2.0)  # rfft2 leaves out the mirrored half
    twice[:, 0] = 1
    if grey.shape[1] % 2 == 0:
        twice[:, -1] = 1
    twice[0, 0] = 0  # the mean
    weights = [np.bincount(band.ravel(), values.ravel(), BANDS) for values in (power * twice, twice)]
    return list(weights[0] / np.maximum(weights[1], 1))
