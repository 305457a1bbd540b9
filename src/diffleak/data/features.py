"""Simple pixel statistics of an image, whatever is in the picture: what the check for different sources looks at. numpy only."""

import numpy as np
from jaxtyping import Float64, UInt8

GRID = 4
CLASSIFIED = 12 + GRID**2
FEATURES = CLASSIFIED + 2


def image_features(pixels: UInt8[np.ndarray, "h w c"]) -> Float64[np.ndarray, " f"]:
    """FEATURES statistics of one image: brightness, contrast, colour, sharpness, 8-pixel blocking, a 4 x 4 thumbnail; cast, noise.

    The last two are not the classifier's. Noise: the mean response to a mask that ignores flat and evenly sloped areas
    (Immerkær 1996, "Fast noise variance estimation").
    """
    x = pixels[..., :3].astype(np.float64) / 255
    grey = x.mean(axis=2)
    across, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    colour = x.max(axis=2) - x.min(axis=2)
    blocks = across[:, 7::8].mean() if across.shape[1] > 8 else 0.0
    rows = np.array_split(np.arange(grey.shape[0]), GRID)
    columns = np.array_split(np.arange(grey.shape[1]), GRID)
    thumbnail = [grey[np.ix_(r, c)].mean() if len(r) and len(c) else 0.0 for r in rows for c in columns]
    levels = np.quantile(grey, [0.05, 0.5, 0.95])
    simple = [grey.mean(), grey.std(), colour.mean(), colour.std(), across.mean(), down.mean(), blocks - across.mean()]
    clipped = [(pixels == 0).mean(), (pixels == 255).mean()]
    bends = np.abs(np.diff(np.diff(grey, n=2, axis=0), n=2, axis=1))
    cast = (x[..., 0] - x[..., -1]).mean()  # warm or cold light
    return np.array([*simple, *clipped, *levels, *thumbnail, cast, bends.mean() if bends.size else 0.0])


def names() -> tuple[str, ...]:
    """What each of the numbers of `image_features` is called."""
    simple = ("brightness", "contrast", "colourfulness", "spread of colour", "sharpness across", "sharpness down", "JPEG blocks")
    levels = ("share of black", "share of white", "dark level", "middle level", "bright level")
    grid = tuple(f"brightness of part {row + 1},{column + 1}" for row in range(GRID) for column in range(GRID))
    return (*simple, *levels, *grid, "colour cast", "noise")
