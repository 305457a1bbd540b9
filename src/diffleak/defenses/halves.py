"""Two disjoint halves of a training set, with near-duplicates on one side, and the images of a group where there are groups.

A pair that straddled the halves would be a member of both teachers under two names. `diffleak.data.duplicates.within_radius` says
which images are near-duplicates.
"""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from diffleak import hub
from diffleak.data.cohort import images_alone
from diffleak.data.duplicates import within_radius
from diffleak.data.groups import groups_of
from diffleak.data.pixels import ImageShape
from diffleak.data.sources import open_source
from diffleak.data.split import FILE, Ids, Split, read_halves
from diffleak.defenses.config import DefendConfig
from diffleak.defenses.teachers import split_of
from diffleak.errors import UserError, one_or_more, shown
from diffleak.stats.units import chained
from diffleak.training.images import read_training_data, training_shape
from diffleak.training.text_to_image import base_shape, load_base
from diffleak.work.progress import say

SMALLEST = 2  # images a half must have


class Halves(NamedTuple):
    """The images of each half in the order they were given, and how many groups of several images were kept together."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    groups: int


def halves_of(config: DefendConfig) -> tuple[Ids, Ids]:
    """The halves of given teachers, of an earlier command in this folder, or new ones."""
    if config.teachers:
        return _given_halves(config)
    data = read_training_data(config.model_copy(update={"random_crops": None}), _shape(config))
    halves = split_halves(data.members, data.images, config.near_duplicates, config.seed, _groups(config, data.members, data.nonmembers))
    before, both = config.output / FILE, (halves.first, halves.second)
    if before.exists() and read_halves(before) != both:
        raise UserError(
            f"{config.output} holds a defence with other halves; choose another -o, or the same data, seed, --near-duplicates and --group"
        )
    near = "" if config.group is not None else " of near-duplicates"
    together = f", {one_or_more(halves.groups, f'group{near}', f'groups{near}')} kept together" if halves.groups else ""
    say(f"halves: {len(halves.first)} and {len(halves.second)} images{together}")
    if not data.nonmembers:
        hold = "--train-size N or --split FILE hold" if config.group is None else "--split FILE holds"
        say(f"every image is a member: none is held out to audit with ({hold} some out)")
    if not before.exists():
        Split(data.members, data.nonmembers, halves=both).write(config.output)
    return both


def _groups(config: DefendConfig, members: Sequence[str], held_out: Sequence[str]) -> Int64[np.ndarray, " n"] | None:
    """The number of the group of every member, by the column that the settings name; None where they name none.

    Raises `UserError` for a group that is held out in part: no audit counts such groups, and that would be known after the training.
    """
    if config.group is None:
        return None
    every = images_alone(open_source(config.data, config.decoding))
    of = dict(zip(every.ids, groups_of(every, config.group), strict=True))
    if both := sorted({of[i] for i in members} & {of[i] for i in held_out}):
        by = f"by {shown(config.group)}"
        raise UserError(
            f"a group must stand on one side; {one_or_more(len(both), f'group {by} has', f'groups {by} have')} members and held-out images "
            f"(first: {shown(both[0])}): draw the sides with `diffleak split DATA --held-out 0.2 "
            f"--group {shlex.quote(shown(config.group))} -o split.json`, and give --split split.json"
        )
    return np.unique([of[i] for i in members], return_inverse=True)[1]


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
        twice = one_or_more(len(both), "image is", "images are")
        raise UserError(f"the teachers must be trained on disjoint images; {twice} in both halves (first: {shown(min(both))})")
    source = open_source(config.data, config.decoding)
    unknown = (set(first) | set(second)) - set(source.ids)
    if unknown:
        are = one_or_more(len(unknown), "is", "are")
        raise UserError(f"{source.name} must hold the images the teachers were trained on; {are} not there (first: {shown(min(unknown))})")
    return first, second


def split_halves(
    ids: Sequence[str], images: UInt8[np.ndarray, "n h w c"], radius: float, seed: int, groups: Int64[np.ndarray, " n"] | None = None
) -> Halves:
    """Deals the images to two halves, as even in size as the groups allow: near-duplicates, the images of each of `groups`, and what
    these chain together.

    Raises `UserError` when a half would have fewer than SMALLEST images.
    """
    near = within_radius(images, radius)
    group = near if groups is None else chained(near, groups)
    sizes = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, so that single images even the halves out
    side, filled, favoured = np.zeros(len(sizes), dtype=int), [0, 0], int(np.random.default_rng((seed, 4)).integers(2))
    for number in order:
        side[number] = favoured if filled[0] == filled[1] else int(filled[1] < filled[0])
        filled[side[number]] += sizes[number]
    if min(filled) < SMALLEST:
        smaller = f", or a smaller --near-duplicates (now {radius:g})" if len(np.unique(near)) < len(ids) else ""
        raise UserError(
            f"the training set must split into two halves of at least {SMALLEST} images without a near-duplicate, or a group, in "
            f"both; it has {one_or_more(len(ids), 'image')} in {one_or_more(len(sizes), 'group')}: give more images{smaller}"
        )
    first, second = (tuple(i for i, g in zip(ids, group, strict=True) if side[g] == half) for half in (0, 1))
    return Halves(first, second, int((sizes > 1).sum()))
