"""Exact and near-duplicates among images: who is a copy of whom, and the clusters that copies make.

An image is known by its `sketch`, a grey thumbnail of SIDE x SIDE pixels, and exact copies by the hash of their pixels. Near-duplicates
are found in two steps, both blind to brightness, contrast and mirroring:

    1  crowd       distance 1 - correlation of the 8 x 8 halves of two sketches, upright or mirrored, whichever is smaller. c(i) is the
                   distance of image i to its CROWD-th nearest: how alike images of this set are anyway. Pairs nearer than SHORTLISTED
                   of both their c go on.
    2  alignment   one sketch is cropped by 5 % where that brings the two closer, and the other is regressed on it and its first-order
                   shifts and stretches. The distance of the pair is the share of the variance left over: 0 for copies, near 1 for
                   others.

A pair is a near-duplicate if its distance is at most RATIO of the smaller c, as in the ratio test of Lowe 2004: a fixed distance would
call all x-rays copies of each other, or miss the cropped photo. `studies/decisions/duplicates.py` counts what is found and what is not.

`within_radius` is another relation, of thumbnails in colour and at one fixed distance, which halves of defences are cut by.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int64, UInt8
from PIL import Image

from diffleak.data.pixels import ImageShape, fit
from diffleak.work.progress import progress

SIDE = 16  # pixels of a sketch
SMALLEST = 16  # pixels a side below which alike is not the same, and only exact copies are found
COARSE = 8  # pixels a side in the first step
CROWD = 32  # larger clusters than this of copies that are not exact count as a crowd, and are missed
FEW = 8  # images below which there is no crowd, and c is that of ordinary photos
ORDINARY = 0.3
SHORTLISTED = 0.6
RATIO = 0.15
NEARLY_EXACT = 0.002  # copies at any c
CROP = 0.05  # of a side
FLAT = 1.0  # standard deviation of the grey values, in [0, 255], below which an image has nothing to recognise
CELLS = 2**22  # distances in memory at once
PAIRS_AT_ONCE = 1024
GROUP = 16  # columns whose largest value stands for them
RIDGE = 1e-4  # of the mean variance of the regressors

Sketches = UInt8[np.ndarray, "n 16 16"]

THUMBNAIL = 16  # pixels a side
AT_ONCE = 256  # images whose neighbours are in memory together
SLACK = 1e-5  # of a distance, for rounding


class Pairs(NamedTuple):
    """Pairs of duplicates by the rows of their images, `first` < `second`, the closest pair first; distance 0 for exact copies."""

    first: Int64[np.ndarray, " p"]
    second: Int64[np.ndarray, " p"]
    distance: Float64[np.ndarray, " p"]
    exact: Bool[np.ndarray, " p"]

    def across(self, member: Bool[np.ndarray, " n"]) -> "Pairs":
        """The pairs of a member and a held-out image."""
        return self.only(member[self.first] != member[self.second])

    def only(self, keep: Bool[np.ndarray, " p"]) -> "Pairs":
        return Pairs(*(column[keep] for column in self))

    def taken(self, rows: Int64[np.ndarray, " m"], n: int) -> "Pairs":
        """The pairs among the images of some of n rows, in their order there; a pair of which one image is left out is none."""
        place = np.full(n, -1)
        place[rows] = np.arange(len(rows))
        one, other = place[self.first], place[self.second]
        both = (one >= 0) & (other >= 0)
        return Pairs(np.minimum(one, other), np.maximum(one, other), self.distance, self.exact).only(both)


class Duplicates(NamedTuple):
    """The duplicates among n images: pairs, and for every image the number of its cluster, from 0 without gaps.

    Clusters are the connected components of the pairs, so two images of one cluster need not be alike.
    """

    pairs: Pairs
    clusters: Int64[np.ndarray, " n"]


def beside_members(clusters: Int64[np.ndarray, " n"], member: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """True for every held-out image that shares its cluster with a member."""
    return ~member & np.isin(clusters, clusters[member])


def clusters_of_several(clusters: Int64[np.ndarray, " n"]) -> list[Int64[np.ndarray, "_"]]:
    """The rows of every cluster of two images or more."""
    sizes = np.bincount(clusters)
    rows = np.split(np.argsort(clusters, kind="stable"), np.cumsum(sizes)[:-1]) if len(sizes) else []
    return [each for each, size in zip(rows, sizes, strict=True) if size > 1]


def sketch(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "16 16"]:
    """The grey thumbnail of an image, stretched to a square; alpha is left out. That of an image of fewer than SMALLEST pixels is flat."""
    height, width, channels = pixels.shape
    if min(height, width) < SMALLEST:
        return np.zeros((SIDE, SIDE), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels[..., :3])).convert("L")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))


def find_duplicates(sketches: Sketches, hashes: UInt8[np.ndarray, "n 32"]) -> Duplicates:
    """All duplicates among images by their sketches and the hashes of their pixels. Memory is linear in n, time n^2 / 10^8 seconds."""
    n = len(sketches)
    _, rows, of = np.unique(hashes.view(f"S{hashes.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    first = rows[of]  # the first image with the same pixels
    copies = np.flatnonzero(first != np.arange(n))
    kept = np.sort(rows)
    near = near_pairs(sketches[kept])
    pairs = Pairs(
        np.concatenate([first[copies], kept[near.first]]),
        np.concatenate([copies, kept[near.second]]),
        np.concatenate([np.zeros(len(copies)), near.distance]),
        np.concatenate([np.ones(len(copies), dtype=bool), near.exact]),
    )
    order = np.lexsort((pairs.second, pairs.first, pairs.distance, ~pairs.exact))
    pairs = Pairs(*(column[order] for column in pairs))
    return Duplicates(pairs, clusters_of(n, pairs.first, pairs.second))


def clusters_of(n: int, first: Int64[np.ndarray, " p"], second: Int64[np.ndarray, " p"]) -> Int64[np.ndarray, " n"]:
    """The number of the connected component that each of n images is in, counted in the order of their first images."""
    if not len(first):
        return np.arange(n, dtype=np.int64)
    _, where, of = np.unique(_components(n, first, second), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(where))[of].astype(np.int64)


def _components(n: int, first: Int64[np.ndarray, " p"], second: Int64[np.ndarray, " p"]) -> Int[np.ndarray, " n"]:
    """The connected component of each of n images, in numbers that mean nothing else."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    return connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(n, n)), directed=False)[1]  # type: ignore[no-any-return]


def near_pairs(sketches: Sketches) -> Pairs:
    """The near-duplicates among images no two of which have the same pixels."""
    (first, second), crowd = _shortlist(sketches)
    smaller = np.minimum(crowd[first], crowd[second])
    distance = np.concatenate(
        [np.zeros(0)]
        + [
            aligned_distance(sketches[first[at : at + PAIRS_AT_ONCE]], sketches[second[at : at + PAIRS_AT_ONCE]])
            for at in range(0, len(first), PAIRS_AT_ONCE)
        ]
    )
    keep = (distance <= RATIO * smaller) | (distance <= NEARLY_EXACT)
    return Pairs(first, second, distance, np.zeros(len(first), dtype=bool)).only(keep)


def _shortlist(sketches: Sketches) -> tuple[tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]], Float64[np.ndarray, " n"]]:
    """The pairs, first < second, that may be near-duplicates, and c of every image.

    A sketch is the sum of a part that mirroring keeps, e, and one that it turns round, o; so the larger of the two correlations is
    e · e' + |o · o'|, for the price of one.
    """
    n = len(sketches)
    even, odd = _halves(sketches)
    rank = min(CROWD, n // 2)
    crowd, found = np.full(n, ORDINARY), [np.zeros((3, 0))]
    rows_at_once = max(1, CELLS // max(n, 1))
    with progress("looking for near-duplicates", n, "images") as advance:
        for start in range(0, n, rows_at_once):
            rows = np.arange(start, min(start + rows_at_once, n))
            alike = odd[rows] @ odd.T
            np.abs(alike, out=alike)
            alike += even[rows] @ even.T
            alike[np.arange(len(rows)), rows] = -2.0
            if n >= FEW:
                row, column, value = _largest(alike, rank)
                crowd[rows] = 1 - value.reshape(len(rows), rank)[:, -1]
                found.append(np.stack([rows[row], column, 1 - value]))
            else:
                row, column = np.nonzero(alike > -2)
                found.append(np.stack([rows[row], column, 1 - alike[row, column]]))
            advance(len(rows))
    crowd = np.maximum(crowd, NEARLY_EXACT)
    pairs = np.concatenate(found, axis=1)
    first, second = np.minimum(pairs[0], pairs[1]).astype(np.int64), np.maximum(pairs[0], pairs[1]).astype(np.int64)
    keep = pairs[2] <= np.maximum(SHORTLISTED * np.minimum(crowd[first], crowd[second]), NEARLY_EXACT)
    unique = np.unique(first[keep] * n + second[keep])
    return (unique // max(n, 1), unique % max(n, 1)), crowd


def _halves(sketches: Sketches) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n d"]]:
    """The parts of the coarse sketches that mirroring keeps and turns round; together of mean 0 and length 1, or 0 where flat."""
    n, step = len(sketches), SIDE // COARSE
    coarse = sketches.reshape(n, COARSE, step, COARSE, step).mean(axis=(2, 4), dtype=np.float32)
    centred = coarse - coarse.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True))
    unit = np.where(length > FLAT * COARSE, centred / np.maximum(length, 1e-6), np.float32(0))
    left, right = unit[:, :, : COARSE // 2], unit[:, :, : COARSE // 2 - 1 : -1]
    root = np.float32(np.sqrt(0.5))
    return ((left + right) * root).reshape(n, COARSE**2 // 2), ((left - right) * root).reshape(n, COARSE**2 // 2)


def _largest(
    values: Float32[np.ndarray, "r n"], rank: int
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Row, column and value of the `rank` largest of every row, falling.

    The rank-th largest of the maxima of groups is at most the rank-th largest of all, so few values are ever sorted.
    """
    rows, n = values.shape
    groups = n // GROUP
    bounding = values[:, : groups * GROUP].reshape(rows, groups, GROUP).max(axis=2) if groups >= rank else values
    bound = np.partition(bounding, bounding.shape[1] - rank, axis=1)[:, bounding.shape[1] - rank]
    row, column = np.nonzero(values >= bound[:, None])
    value = values[row, column].astype(np.float64)
    order = np.lexsort((-value, row))
    row, column, value = row[order], column[order], value[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    keep = place < rank
    return row[keep], column[keep], value[keep]


def aligned_distance(first: Sketches, second: Sketches) -> Float64[np.ndarray, " p"]:
    """The distance in [0, 1] of pairs of sketches, the first of them mirrored where that brings the two closer."""
    one, other = first.astype(np.float32), second.astype(np.float32)
    mirrored, target = one[:, :, ::-1], _unit(other)
    turned = (_unit(mirrored) * target).sum(axis=1) > (_unit(one) * target).sum(axis=1)
    return _unexplained(np.where(turned[:, None, None], mirrored, one), other)


def _unexplained(one: Float32[np.ndarray, "p 16 16"], other: Float32[np.ndarray, "p 16 16"]) -> Float64[np.ndarray, " p"]:
    """The share of the variance left over after the best crop and a regression on shifts and stretches, to first order."""
    p = len(one)
    pairs = [(one, other), *((down @ one @ across.T, other) for down, across in CROPS), *((d @ other @ a.T, one) for d, a in CROPS)]
    best = np.stack([(_unit(x) * _unit(y)).sum(axis=1) for x, y in pairs]).argmax(axis=0)
    x, y = (np.stack([pair[side] for pair in pairs])[best, np.arange(p)] for side in (0, 1))
    down, across = np.gradient(x, axis=(1, 2))
    place = np.linspace(-1, 1, SIDE, dtype=np.float32)
    terms = np.stack([x, down, across, across * place, down * place[:, None]], axis=-1).reshape(p, SIDE**2, 5)
    terms -= terms.mean(axis=1, keepdims=True)
    target = y.reshape(p, SIDE**2, 1)
    target = target - target.mean(axis=1, keepdims=True)
    gram = terms.transpose(0, 2, 1) @ terms
    scale = np.trace(gram, axis1=1, axis2=2) / 5
    gram += np.eye(5, dtype=np.float32) * (RIDGE * scale + 1e-6)[:, None, None]
    left = target - terms @ np.linalg.solve(gram, terms.transpose(0, 2, 1) @ target)
    whole = (target**2).sum(axis=(1, 2))
    return np.where(whole > FLAT * SIDE**2, (left**2).sum(axis=(1, 2)) / np.maximum(whole, 1e-6), 1.0).astype(np.float64)


def _unit(x: Float32[np.ndarray, "p 16 16"]) -> Float32[np.ndarray, "p d"]:
    flat = x.reshape(len(x), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.sqrt((flat**2).sum(axis=1, keepdims=True)), 1e-6)  # type: ignore[no-any-return]


def _crop(at: float) -> Float32[np.ndarray, "16 16"]:
    """The matrix that cuts CROP of a side off, a share `at` of it before the rest, and stretches what is left, by linear interpolation."""
    centres = CROP * at + (np.arange(SIDE) + 0.5) / SIDE * (1 - CROP)
    place = np.clip(centres * SIDE - 0.5, 0, SIDE - 1)
    below = np.minimum(np.floor(place).astype(int), SIDE - 2)
    matrix = np.zeros((SIDE, SIDE), dtype=np.float32)
    matrix[np.arange(SIDE), below] = 1 - (place - below)
    matrix[np.arange(SIDE), below + 1] = place - below
    return matrix


CROPS = tuple((_crop(top), _crop(left)) for top in (0.0, 0.5, 1.0) for left in (0.0, 0.5, 1.0))


def within_radius(images: UInt8[np.ndarray, "n h w c"], radius: float) -> Int[np.ndarray, " n"]:
    """The number of the group of near-duplicates that each image is in.

    Two images are near-duplicates when the root mean square difference of their 16 x 16 thumbnails in colour, upright or mirrored, is at
    most `radius` (pixels in [0, 1]); groups are the connected components of that relation.
    """
    from sklearn.neighbors import NearestNeighbors

    upright, mirrored = thumbnails(images), thumbnails(images[:, :, ::-1])
    near = NearestNeighbors(radius=radius * float(np.sqrt(upright.shape[1])) + SLACK, algorithm="brute").fit(upright)
    n = len(upright)
    group = np.arange(n)
    with progress("looking for near-duplicates", n, "images") as advance:
        for start in range(0, n, AT_ONCE):  # a block at a time, since images that look alike have a neighbour in every other
            rows = np.arange(start, min(start + AT_ONCE, n))
            for side in (upright, mirrored):
                found = near.radius_neighbors_graph(side[rows]).tocoo()
                group = _components(n, np.concatenate([rows[found.row], np.arange(n)]), np.concatenate([found.col, group]))
                group = np.unique(group, return_index=True)[1][group]  # the first image of each group stands for it
            advance(len(rows))
    return np.unique(group, return_inverse=True)[1]  # type: ignore[no-any-return]


def thumbnails(images: UInt8[np.ndarray, "n h w c"]) -> Float64[np.ndarray, "n d"]:
    """Every image at THUMBNAIL pixels a side (smaller ones as they are), flat, in [0, 1]."""
    _, height, width, channels = images.shape
    if min(height, width) > THUMBNAIL:
        shape = ImageShape(channels, THUMBNAIL, THUMBNAIL)
        images = np.stack([fit(np.ascontiguousarray(image), shape, True, "image") for image in images])
    return images.reshape(len(images), -1).astype(np.float64) / 255
