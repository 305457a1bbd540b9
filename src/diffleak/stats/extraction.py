"""Which training images a model gives back: distances to drawings, and rates against held-out images. numpy float64, no torch.

    l(x, y)    sqrt of the mean of ((x - y) / 255)^2 over the values of a tile         in [0, 1]
    d(x, y)    max of l over 16 tiles at the same places, 4 x 4                        the tiled distance
    p          (1 + calibrate images as near to a drawing or nearer) / (1 + calibrate images)

The maximum over tiles is what keeps two pictures with one large plain background from being near each other (Carlini et al. 2023, arXiv
2301.13188, section 4.2). p is the conformal p-value of one image: if the model treats it as it treats held-out images, p <= a has a
probability of at most a, whatever the distances are distributed like.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8

from diffleak.errors import one_or_more
from diffleak.records.base import Estimate
from diffleak.stats.images import copy_chance, copy_rate_of, copy_threshold, nearest
from diffleak.stats.metrics import clopper_pearson

TILES = 4  # a side
BLOCK = 2**23  # values of images in memory at a time, as float64

Images = UInt8[np.ndarray, "_ h w c"]
Distances = Float64[np.ndarray, " n"]


class Rates(NamedTuple):
    """Copies among members, and among held-out images that the threshold was not made of.

    `threshold` is the distance below which an image has a copy. `chance` is the probability of as many copies or more if members are
    like held-out images.
    """

    threshold: float | None
    members: Estimate
    held_out: Estimate
    chance: float | None


def tiled_distances(images: Images, drawings: Images) -> Distances:
    """d of the n images and the n drawings, pair by pair; sides of at least `TILES` pixels."""
    rows = _rows(images)
    parts = (images[part].astype(np.float64) - drawings[part] for part in rows)
    return np.concatenate([_largest([np.square(gap[:, y, x]).mean(axis=(1, 2, 3)) for y, x in _tiles(gap)]) for gap in parts])


def nearest_by_tiles(images: Images, drawings: Images) -> tuple[Distances, Int64[np.ndarray, " n"]]:
    """d of each image and the drawing that is nearest to it, and which one that is; sides of at least `TILES` pixels."""
    distance, index = np.full(len(images), np.inf), np.zeros(len(images), dtype=np.int64)
    for other in _rows(drawings):
        y = [_flat(tile) for tile in _cut(drawings[other])]
        for part in _rows(images):
            x = [_flat(tile) for tile in _cut(images[part])]
            d = _largest([_squares(a, b) / a.shape[1] for a, b in zip(x, y, strict=True)])
            best = d.argmin(axis=1)
            values = d[np.arange(len(best)), best]
            better = values < distance[part]
            distance[part] = np.where(better, values, distance[part])
            index[part] = np.where(better, best + other.start, index[part])
    return distance, index


def encoded_distances(images: Float[np.ndarray, "n d"], drawings: Float[np.ndarray, "n d"]) -> Distances:
    """1 minus the cosine of the features of the n images and the n drawings, pair by pair, in [0, 2]."""
    x, y = images.astype(np.float64), drawings.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return 1 - np.clip((x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), -1, 1)  # type: ignore[no-any-return]


def nearest_encoded(images: Float[np.ndarray, "n d"], drawings: Float[np.ndarray, "k d"]) -> tuple[Distances, Int64[np.ndarray, " n"]]:
    """1 minus the cosine of each image and the drawing that is nearest to it, and which one that is."""
    similarity, index = nearest(images, drawings)
    return 1 - similarity, index


def p_values(distances: Distances, calibrate: Float64[np.ndarray, " m"]) -> Distances:
    """The conformal p-value of each distance, in [1 / (m + 1), 1]; `calibrate` are those of the calibrate part of the held-out images."""
    return (1 + np.searchsorted(np.sort(calibrate), distances, side="right")) / (1 + len(calibrate))


def images_needed(share: float) -> int:
    """The smallest calibrate part that a threshold at this share of false copies can be read from."""
    return int(np.ceil(1 / share - 1e-9)) - 1


def too_few(share: float, calibrate: int) -> str:
    """Why there is no rate with so small a calibrate part, which is half of the held-out images."""
    least = images_needed(share)
    return (
        f"at {100 * share:g} % false copies needs at least {2 * least} held-out images, of which half ({least}) set the threshold; here "
        f"{one_or_more(calibrate, 'sets it', 'set it')}"
    )


def copy_rates(members: Distances, calibrate: Float64[np.ndarray, " m"], counted: Float64[np.ndarray, " k"], share: float) -> Rates:
    """The share of images that are nearer to a drawing than all but a share of the calibrate part are to theirs.

    Exactly p <= share. The members' interval is for the distance below which exactly `share` of held-out images lie, wherever the
    calibrate part leaves that distance open (`order_statistics`); below about 4.4 / share images its lower end is 0.
    That of the counted images is Clopper and Pearson's for the threshold as it is. `chance` is exact for independent images
    (`copy_chance`).
    """
    top = copy_threshold(-calibrate, share)
    if top is None:
        few = f"a rate {too_few(share, len(calibrate))}"
        return Rates(None, Estimate(reason=few), Estimate(reason=few), None)
    of = f"threshold from {len(calibrate)} held-out images, of which a share of {share:g} lie below it"
    given = copy_rate_of(-members, -calibrate, top, share, f"joint order statistics; {of}")
    return Rates(-top, given, _counted(counted < -top, f"Clopper-Pearson; {of}"), copy_chance(-members, -calibrate, share))


def _counted(below: Bool[np.ndarray, " k"], method: str) -> Estimate:
    if len(below) == 0:
        return Estimate(reason="no held-out image is left to count on")
    low, high = clopper_pearson(int(below.sum()), len(below))
    return Estimate(value=float(below.mean()), low=low, high=high, method=method)


def _tiles(images: np.ndarray) -> list[tuple[slice, slice]]:
    """Where the tiles lie; of a side that is no multiple of `TILES` they differ by a pixel."""
    rows, columns = (np.arange(TILES + 1) * side // TILES for side in images.shape[1:3])
    edges = [[slice(int(a), int(b)) for a, b in pairwise(cuts)] for cuts in (rows, columns)]
    return [(y, x) for y in edges[0] for x in edges[1]]


def _cut(images: Images) -> Iterator[Images]:
    yield from (images[:, y, x] for y, x in _tiles(images))


def _flat(tile: Images) -> Float64[np.ndarray, "n d"]:
    return tile.reshape(len(tile), -1).astype(np.float64)


def _squares(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "k d"]) -> Float64[np.ndarray, "n k"]:
    """Squared distances; exact, since the pixels are whole numbers."""
    return np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None] - 2 * x @ y.T  # type: ignore[no-any-return]


def _largest(squares: list[Float64[np.ndarray, "*n"]]) -> Float64[np.ndarray, "*n"]:
    """The largest of the tiles, as a root mean square in [0, 1]."""
    return np.sqrt(np.maximum.reduce(squares)) / 255  # type: ignore[no-any-return]


def _rows(images: Images) -> list[slice]:
    """Parts of so many images that their values fit into memory."""
    size = max(1, BLOCK // max(1, int(np.prod(images.shape[1:]))))
    return [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]
