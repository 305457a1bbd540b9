"""The images of an audit: who is a member and who is held out."""

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from leakscope.data.draw import keyed_order
from leakscope.data.sources import ImageSource, Pixels
from leakscope.errors import UserError


def read_split(path: Path, source: ImageSource) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The members and nonmembers of a split file, checked against the ids of `source`.

    Raises `UserError` for a file without the two lists, an id the data does not have, or one that is on both sides.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        members, nonmembers = (tuple(map(str, content[side])) for side in ("members", "nonmembers"))
    except OSError as error:
        raise UserError(f"the split file {path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} must be JSON of the form {{"members": [ids], "nonmembers": [ids]}}') from None
    known = set(source.ids)
    missing = [i for i in members + nonmembers if i not in known]
    if missing:
        raise UserError(
            f"{path} names {len(missing)} ids that {source.name} does not have (first: {missing[0]}; its ids look like {source.ids[0]})"
        )
    both = set(members) & set(nonmembers)
    if both:
        raise UserError(f"{path} has {len(both)} ids on both sides (first: {min(both)})")
    if len(set(members)) + len(set(nonmembers)) != len(members) + len(nonmembers):
        raise UserError(f"{path} lists an id twice")
    if not members:
        raise UserError(f"{path} must name at least one member")
    return members, nonmembers


def sort_key(image_id: str) -> tuple[int, str]:
    """The order of ids: row numbers sort as numbers, so that tables are read from front to back."""
    return len(image_id), image_id


@dataclass(frozen=True, eq=False)
class Cohort:
    """The images of one audit, sorted by id (`sort_key`), with their side. Images are read one at a time."""

    ids: tuple[str, ...]
    member: Bool[np.ndarray, " n"]
    read: tuple[Callable[[], Pixels], ...]
    names: tuple[str, str]  # where members and non-members come from

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, keep: Bool[np.ndarray, " n"]) -> "Cohort":
        """The cohort restricted to the images marked in `keep`."""
        rows = np.flatnonzero(keep)
        return Cohort(tuple(self.ids[i] for i in rows), self.member[rows], tuple(self.read[i] for i in rows), self.names)

    def of(self, image_id: str) -> Pixels:
        """The pixels of one image by its id; raises `UserError` when there is none."""
        row = bisect_left(self.ids, sort_key(image_id), key=sort_key)
        if row == len(self.ids) or self.ids[row] != image_id:
            raise UserError(f"the image {image_id} is no longer among the data of this audit")
        return self.read[row]()


def two_sources(members: ImageSource, nonmembers: ImageSource, limit: int | None = None, seed: int = 0) -> Cohort:
    """Members from one source, held-out images from another; ids that both use get the side as a prefix.

    `limit` keeps that many of each side, drawn by id and seed.
    """
    clash = not set(members.ids).isdisjoint(nonmembers.ids)
    prefixes = ("members/", "nonmembers/") if clash else ("", "")
    rows = []
    for source, prefix, is_member in zip((members, nonmembers), prefixes, (True, False), strict=True):
        position = {image_id: i for i, image_id in enumerate(source.ids)}
        for image_id in _limited(source.ids, limit, seed):
            rows.append((prefix + image_id, is_member, partial(source.read, position[image_id])))
    return _cohort(rows, (members.name, nonmembers.name))


def one_source(source: ImageSource, split: Path, limit: int | None = None, seed: int = 0) -> Cohort:
    """Both sides from one source, as a split file says."""
    members, nonmembers = read_split(split, source)
    if not nonmembers:
        raise UserError(f'{split} must name held-out images under "nonmembers"; it has none')
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    rows = [
        (image_id, is_member, partial(source.read, position[image_id]))
        for side, is_member in ((members, True), (nonmembers, False))
        for image_id in _limited(side, limit, seed)
    ]
    return _cohort(rows, (f"{source.name} [{split}: members]", f"{source.name} [{split}: nonmembers]"))


def _limited(ids: tuple[str, ...], limit: int | None, seed: int) -> list[str]:
    return list(ids) if limit is None else keyed_order(ids, "limit", seed)[:limit]


def _cohort(unsorted: Sequence[tuple[str, bool, Callable[[], Pixels]]], names: tuple[str, str]) -> Cohort:
    rows = sorted(unsorted, key=lambda row: sort_key(row[0]))
    return Cohort(tuple(r[0] for r in rows), np.array([r[1] for r in rows]), tuple(r[2] for r in rows), names)
