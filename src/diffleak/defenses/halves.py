"""Two disjoint halves of a training set, with near-duplicates on one side.

A pair that straddled the halves would be a member of both teachers under two names. Two images are near-duplicates when
the root mean square difference of their 16 x 16 thumbnails, upright or mirrored, is at most `radius` (pixels in [0, 1]);
groups are the connected components of that relation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int, UInt8

from diffleak import hub
from diffleak.data.pixels import ImageShape, fit
from diffleak.data.sources import open_source
from diffleak.data.split import FILE, Ids, Split, read_halves
from diffleak.defenses.config import DefendConfig
from diffleak.defenses.teachers import split_of
from diffleak.errors import UserError, shown
from diffleak.training.images import read_training_data, training_shape
from diffleak.training.text_to_image import base_shape, load_base
from diffleak.work.progress import progress, say

THUMBNAIL = 16  # pixels a side
SMALLEST = 2  # images a half must have
AT_ONCE = 256  # images whose neighbours are in memory together
SLACK = 1e-5  # of a distance, for rounding


class Halves(NamedTuple):
    """The images of each half in the order they were given, and how many groups of near-duplicates were kept together."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    groups: int


def halves_of(config: DefendConfig) -> tuple[Ids, Ids]:
    """The halves of given teachers, of an earlier command in this folder, or new ones."""
    if config.teachers:
        return _given_halves(config)
    data = read_training_data(config.model_copy(update={"random_crops": None}), _shape(config))
    halves = split_halves(data.members, data.images, config.near_duplicates, config.seed)
    before, both = config.output / FILE, (halves.first, halves.second)
    if before.exists() and read_halves(before) != both:
        raise UserError(
            f"{config.output} holds a defence with other halves; choose another -o, or the same data, seed and --near-duplicates"
        )
    together = f", {halves.groups} groups of near-duplicates kept together" if halves.groups else ""
    say(f"halves: {len(halves.first)} and {len(halves.second)} images{together}")
    if not data.nonmembers:
        say("every image is a member: none is held out to audit with (--train-size N or --split FILE hold some out)")
    if not before.exists():
        Split(data.members, data.nonmembers, halves=both).write(config.output)
    return both


def _shape(config: DefendConfig) -> ImageShape:
    """The images that the models of a defence are trained on."""
    if config.base:
        return base_shape(config, load_base(config, "cpu")[1])
    codec = hub.load_codec(config.autoencoder, device="cpu") if config.autoencoder else None
    return training_shape(open_source(config.data, config.decoding), config, codec.network.config.in_channels if codec else None)


def _given_halves(config: DefendConfig) -> tuple[Ids, Ids]:
    """What given teachers were trained on, checked against each other and the data."""
    if config.halves:
        first, second = read_halves(config.halves)
        for teacher, half in zip(config.teachers, (first, second), strict=True):
            if (teacher / FILE).exists() and set(split_of(teacher).members) != set(half):
                raise UserError(f"{config.halves} must give the halves in the order of --teachers; {teacher}/split.json has other members")
    else:
        first, second = (split_of(teacher).members for teacher in config.teachers)
    both = set(first) & set(second)
    if both:
        raise UserError(f"the teachers must be trained on disjoint images; {len(both)} are in both splits (first: {shown(min(both))})")
    source = open_source(config.data, config.decoding)
    unknown = (set(first) | set(second)) - set(source.ids)
    if unknown:
        raise UserError(
            f"{source.name} must hold the images the teachers were trained on; {len(unknown)} are not there (first: {shown(min(unknown))})"
        )
    return first, second


def split_halves(ids: Sequence[str], images: UInt8[np.ndarray, "n h w c"], radius: float, seed: int) -> Halves:
    """Deals the images to two halves, as even in size as the groups of near-duplicates allow.

    Raises `UserError` when a half would have fewer than SMALLEST images.
    """
    group = near_duplicates(images, radius)
    sizes = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, so that single images even the halves out
    side, filled, favoured = np.zeros(len(sizes), dtype=int), [0, 0], int(np.random.default_rng((seed, 4)).integers(2))
    for number in order:
        side[number] = favoured if filled[0] == filled[1] else int(filled[1] < filled[0])
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
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
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
                ends = (np.concatenate([rows[found.row], np.arange(n)]), np.concatenate([found.col, group]))
                _, group = connected_components(coo_array((np.ones(len(ends[0])), ends), shape=(n, n)), directed=False)
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
