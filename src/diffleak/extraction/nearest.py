"""The drawing nearest to each image, by the tiled pixel distance or by an encoder: among all drawings, or among those for its caption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from diffleak.extraction.sides import Side, features_of
from diffleak.hub.encoders import Extractor
from diffleak.records.extraction import TILES
from diffleak.stats import extraction as stats


class Nearest(NamedTuple):
    """Distance of each image to its nearest drawing, and the number of that drawing among all."""

    distance: Float64[np.ndarray, " n"]
    image: Int64[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Distance:
    """A distance of images and drawings. `seen` is what it sees of a side, `drawings` what it sees of these.

    of_pairs(x, y): the distances of rows, pair by pair. search(x, y): the smallest of each row of x over y, and where in y that is.
    """

    name: str
    fingerprint: str
    seen: Callable[[Side], np.ndarray]
    drawings: np.ndarray
    of_pairs: Callable[[np.ndarray, np.ndarray], np.ndarray]
    search: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

    def nearest(self, side: Side, first: int, draws: int | None) -> Nearest:
        """The nearest drawings of a side: of image i among the `draws` that start at first + i · draws, or among all for None."""
        x = self.seen(side)
        if draws is None:
            return Nearest(*self.search(x, self.drawings))
        rows = first + draws * np.arange(len(x))
        distances = np.stack([self.of_pairs(x, self.drawings[rows + j]) for j in range(draws)])
        best = distances.argmin(axis=0)
        return Nearest(distances[best, np.arange(len(x))], rows + best)

    def between(self, side: Side, images: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """The distance of each image of a side and the drawing of that number."""
        return np.asarray(self.of_pairs(self.seen(side), self.drawings[images]))


def distances(drawings: UInt8[np.ndarray, "k h w c"], encoder: Extractor | None) -> Sequence[Distance]:
    """The distance of an encoder, which then decides, and the tiled one."""
    fingerprint = f"{stats.TILES} x {stats.TILES} tiles"
    tiles = Distance(TILES, fingerprint, lambda side: side.pixels, drawings, stats.tiled_distances, stats.nearest_by_tiles)
    if encoder is None:
        return (tiles,)
    features = features_of("drawings", drawings, encoder)
    encoded = Distance(encoder.name, encoder.fingerprint, _features, features, stats.encoded_distances, stats.nearest_encoded)
    return encoded, tiles


def _features(side: Side) -> np.ndarray:
    assert side.features is not None, "an encoder that compares drawings has seen the real images first"
    return side.features
