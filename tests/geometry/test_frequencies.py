"""The energy of low and high frequencies against a Fourier transform written out as sums."""

from cmath import exp
from math import cos, hypot, pi

import numpy as np
import pytest

from diffleak.geometry.frequencies import energies, radius


def images(height: int, width: int, channels: int, n: int = 3) -> np.ndarray:
    return np.random.default_rng((height, width, channels)).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def brute_force(image: np.ndarray, cycles: float) -> tuple[float, float]:
    """Every coefficient as a double sum; frequencies run from -side/2 to side/2."""
    height, width, channels = image.shape
    low = high = 0.0
    for u in range(-((height - 1) // 2), height // 2 + 1):
        for v in range(-((width - 1) // 2), width // 2 + 1):
            power = 0.0
            for c in range(channels):
                coefficient = sum(
                    (image[y, x, c] / 127.5 - 1) * exp(-2j * pi * (u * y / height + v * x / width))
                    for y in range(height)
                    for x in range(width)
                )
                power += abs(coefficient) ** 2
            if hypot(u, v) <= cycles:
                low += power
            else:
                high += power
    return low, high


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (7, 10, 3), (13, 6, 1)])
def test_energies_equal_those_of_the_transform_written_out(height, width, channels):
    batch = images(height, width, channels)
    expected = [brute_force(image, 5 / 32 * min(height, width)) for image in batch]
    np.testing.assert_allclose(energies(batch), expected, rtol=1e-10)


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (32, 32, 3), (31, 64, 4)])
def test_low_and_high_energy_add_up_to_that_of_the_pixels(height, width, channels):
    batch = images(height, width, channels)
    total = height * width * ((batch / 127.5 - 1) ** 2).sum(axis=(1, 2, 3))  # Parseval
    np.testing.assert_allclose(energies(batch).sum(axis=1), total, rtol=1e-12)


def test_the_radius_is_five_cycles_for_32_pixels_and_follows_the_shorter_side():
    assert [radius(side, side) for side in (32, 64, 256)] == [5, 10, 40]
    assert radius(48, 32) == radius(32, 48) == 5


@pytest.mark.parametrize(("cycles", "low"), [(0, True), (5, True), (6, False), (16, False)])
def test_a_wave_counts_as_low_up_to_the_radius_and_as_high_beyond(cycles, low):
    wave = np.array([cos(2 * pi * cycles * x / 32) for x in range(32)])
    image = np.rint(127.5 + 100 * wave)[None, None, :, None].repeat(32, axis=1).astype(np.uint8)
    found = energies(image)[0]
    assert found[0 if low else 1] > 0.99 * found.sum()


def test_energies_are_those_of_each_image_alone_in_float64():
    batch = images(8, 8, 3)
    assert energies(batch).dtype == np.float64
    np.testing.assert_allclose(energies(batch), np.concatenate([energies(batch[i : i + 1]) for i in range(len(batch))]), rtol=1e-12)
