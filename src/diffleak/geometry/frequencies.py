"""How much of an image lies in its low and high spatial frequencies. No torch.

    low = sum of |F(x)|^2 over frequencies up to `RADIUS` of the image's side, high = over the rest

summed over channels, x in [-1, 1]. The radius is that of Rao, Qu and Moyer 2025 (arXiv 2511.20592, section 4.4): 5 cycles
for 32 pixels, 10 for 64, 40 for 256.
"""

import numpy as np
from jaxtyping import Float64, UInt8

RADIUS = 5 / 32  # of the shorter side, in cycles per image


def radius(height: int, width: int) -> float:
    """The frequency, in cycles per image, up to which an image of this size counts as low."""
    return RADIUS * min(height, width)


def energies(images: UInt8[np.ndarray, "n h w c"]) -> Float64[np.ndarray, "n 2"]:
    """The low- and high-frequency energy of each image."""
    height, width = images.shape[1:3]
    distance = np.hypot(np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width))
    low = distance <= radius(height, width)
    powers = (np.square(np.abs(np.fft.fft2(x / 127.5 - 1.0, axes=(0, 1)))).sum(axis=2) for x in images)
    return np.array([[power[low].sum(), power[~low].sum()] for power in powers]).reshape(-1, 2)
