"""Two disjoint halves of a training set, with near-duplicates on one side.

A pair that straddled the halves would be a member of both teachers under two names. Two images are near-duplicates when
the root mean square difference of their 16 x 16 thumbnails, upright or mirrored, is at most `radius` (pixels in [0, 1]);
groups are the connected components of that relation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8

from leakscope.data.pixels import ImageShape, fit
from leakscope.errors import UserError

THUMBNAIL = 16  # pixels a side
SMALLEST = 2  # images a half must have


class Halves(NamedTuple):
    """The images of each half in the order they were given, and how many groups of near-duplicates were kept together."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    groups: int


def split_halves(ids: Sequence[str], images: UInt8[np.ndarray, "n h w c"], radius: float, seed: int) -> Halves:
    """Deals the images to two halves, as even in size as the groups of near-duplicates allow.

    Raises `UserError` when a half would have fewer than SMALLEST images.
    """
    group = near_duplicates(images, radius)
    sizes = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, so that single images even the halves out
    side, filled = np.zeros(len(sizes), dtype=int), [0, 0]
    for number in order:
        side[number] = int(filled[1] < filled[0])
        filled[side[number]] += sizes[number]
    if min(filled) < SMALLEST:
        raise UserError(
            f"the training set must split into two halves of at least {SMALLEST} images without a near-duplicate in both; it has "
            f"{len(ids)} images in {len(sizes)} groups: give more images, or a smaller --near-duplicates (now {radius:g})"
        )
    first, second = (tuple(i for i, g in zip(ids, group, strict=True) if side[g] == half) for half in (0, 1))
    return Halves(first, second, int((sizes > 1).sum()))


def near_duplicates(images: UInt8[np.ndarray, "n h w c"], radius: float) -> Int[np.ndarray, " n"]:
    """The number of the group of near-duplicates that each image is in."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors

    upright, mirrored = thumbnails(images), thumbnails(images[:, :, ::-1])
    reach = radius * float(np.sqrt(upright.shape[1])) + 1e-6
    near = NearestNeighbors(radius=reach, algorithm="brute").fit(upright)
    graph = near.radius_neighbors_graph(upright) + near.radius_neighbors_graph(mirrored)
    _, group = connected_components(graph, directed=False)
    return group  # type: ignore[no-any-return]


def thumbnails(images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n d"]:
    """Every image at THUMBNAIL pixels a side (smaller ones as they are), flat, in [0, 1]."""
    _, height, width, channels = images.shape
    if min(height, width) > THUMBNAIL:
        shape = ImageShape(channels, THUMBNAIL, THUMBNAIL)
        images = np.stack([fit(np.ascontiguousarray(image), shape, True, "image") for image in images])
    return images.reshape(len(images), -1).astype(np.float32) / 255
