"""The complexity of an image: the sizes that encoders give, and spectral energy against a transform written out."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from diffleak.data.complexity import BANDS, NAMES, complexity

RNG = np.random.default_rng(0)
SHAPES = [(8, 8, 1), (9, 12, 3), (16, 7, 4)]


def image(shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_three_are_the_logarithms_of_bytes_that_decode_to_the_colours(shape):
    pixels = image(shape)
    colours = pixels[..., :3] if shape[2] > 1 else pixels[..., 0]
    found = np.exp(complexity(pixels)[:3])
    assert np.allclose(found, np.round(found))
    for size, form, options in zip(
        found, ("PNG", "WEBP", "JPEG"), ({"compress_level": 1}, {"lossless": True, "quality": 0, "method": 0}, {"quality": 75}), strict=True
    ):
        stream = io.BytesIO()
        Image.fromarray(colours).save(stream, form, **options)
        assert len(stream.getvalue()) == round(size)
        if form != "JPEG":
            decoded = np.asarray(Image.open(stream).convert("L" if shape[2] == 1 else "RGB"))
            np.testing.assert_array_equal(decoded, colours)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bands_are_mean_squared_moduli_of_a_fourier_transform_written_out(shape):
    pixels = image(shape)
    height, width = shape[:2]
    grey = (pixels[..., :3] if shape[2] == 4 else pixels).astype(float).mean(axis=2) / 255
    energies = [[] for _ in range(BANDS)]
    for a in range(height):
        for b in range(width):
            if a == b == 0:
                continue
            waves = np.exp(-2j * math.pi * (a * np.arange(height)[:, None] / height + b * np.arange(width) / width))
            power = abs((grey * waves).sum()) ** 2 / (height * width)
            radius = math.hypot(min(a, height - a) / height, min(b, width - b) / width)
            energies[min(int(radius * 2 * BANDS), BANDS - 1)].append(power)
    np.testing.assert_allclose(np.exp(complexity(pixels)[3:]), [np.mean(band) if band else 1e-12 for band in energies], rtol=1e-9)


def test_flat_images_have_finite_complexity_less_than_any_other():
    flat, noise = complexity(np.full((16, 16, 3), 128, dtype=np.uint8)), complexity(image((16, 16, 3)))
    assert len(flat) == len(NAMES) == 7 and np.isfinite(flat).all() and (flat < noise).all()
