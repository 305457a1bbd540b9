"""The images of an audit: who is a member and who is held out."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from diffleak.data.decoding import Decoded, Pixels
from diffleak.data.draw import keyed_order
from diffleak.data.handling import Decoding, LeftOut
from diffleak.data.sources import ImageSource, Texts
from diffleak.errors import UserError


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
    """The images of one audit, sorted by id (`sort_key`), with their side. Images are read one at a time.

    An image costs its id and nine bytes, however many there are.
    """

    ids: tuple[str, ...]
    member: Bool[np.ndarray, " n"]
    position: Int64[np.ndarray, " n"]  # in the source of its side
    sources: tuple[ImageSource, ImageSource]  # of members and of non-members, which may be the same
    names: tuple[str, str]  # where members and non-members come from

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, row: int) -> Pixels:
        """The pixels of the image in a row."""
        return self.sources[0 if self.member[row] else 1].read(int(self.position[row]))

    def decoded(self, row: int) -> Decoded:
        """The pixels of the image in a row, with notes on what was done to them."""
        return self.sources[0 if self.member[row] else 1].decoded(int(self.position[row]))

    @property
    def decoding(self) -> Decoding:
        """The choices that the images are read by."""
        return self.sources[0].decoding

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What the sources left out of their folders."""
        members, nonmembers = self.sources
        return (members.left_out,) if members is nonmembers else (members.left_out, nonmembers.left_out)

    def labels(self) -> Int64[np.ndarray, " n"] | None:
        """The class of every image; None unless both sources have classes.

        Raises `UserError` where they are numbers of folders that differ between the sources.
        """
        members, nonmembers = (source.labels() for source in self.sources)
        if members is None or nonmembers is None:
            return None
        if members.names != nonmembers.names:
            raise UserError(
                "members and held-out images must have the same class folders, or their numbers would not mean the same classes; "
                f"{self.names[0]} has {len(members.names)}, {self.names[1]} has {len(nonmembers.names)}: give a `label` in metadata.jsonl"
            )
        sides = (np.array(nonmembers.numbers), np.array(members.numbers))
        return np.array([sides[int(m)][i] for m, i in zip(self.member, self.position, strict=True)], dtype=np.int64)

    def captions(self) -> tuple[Texts, ...] | None:
        """The texts of every image, its own caption first and none where it has none; None where neither source has any."""
        members, nonmembers = (source.captions() for source in self.sources)
        if members is None and nonmembers is None:
            return None
        sides = (nonmembers, members)
        texts = ((sides[int(m)], int(i)) for m, i in zip(self.member, self.position, strict=True))
        return tuple(() if side is None else side[i] for side, i in texts)

    def only(self, keep: Bool[np.ndarray, " n"]) -> "Cohort":
        """The cohort restricted to the images marked in `keep`."""
        ids = tuple(compress(self.ids, keep))
        return replace(self, ids=ids, member=self.member[keep], position=self.position[keep])

    def of(self, image_id: str) -> Pixels:
        """The pixels of one image by its id; raises `UserError` when there is none."""
        row = bisect_left(self.ids, sort_key(image_id), key=sort_key)
        if row == len(self.ids) or self.ids[row] != image_id:
            raise UserError(f"the image {image_id} is no longer among the data of this audit")
        return self.read(row)


def two_sources(members: ImageSource, nonmembers: ImageSource, limit: int | None = None, seed: int = 0) -> Cohort:
    """Members from one source, held-out images from another; ids that both use get the side as a prefix.

    `limit` keeps that many of each side, drawn by id and seed.
    """
    clash = not set(members.ids).isdisjoint(nonmembers.ids)
    prefixes = ("members/", "nonmembers/") if clash else ("", "")
    sides = [_positions(source, source.ids, limit, seed) for source in (members, nonmembers)]
    return _cohort((members, nonmembers), sides, prefixes, (members.name, nonmembers.name))


def one_source(source: ImageSource, split: Path, limit: int | None = None, seed: int = 0) -> Cohort:
    """Both sides from one source, as a split file says."""
    listed = read_split(split, source)
    if not listed[1]:
        raise UserError(f'{split} must name held-out images under "nonmembers"; it has none')
    sides = [_positions(source, ids, limit, seed) for ids in listed]
    return _cohort((source, source), sides, ("", ""), (f"{source.name} [{split}: members]", f"{source.name} [{split}: nonmembers]"))


def images_alone(source: ImageSource, limit: int | None = None, seed: int = 0) -> Cohort:
    """Images of which nothing is said: all on the side of the non-members."""
    return _cohort((source, source), [[], _positions(source, source.ids, limit, seed)], ("", ""), (source.name, source.name))


def _positions(source: ImageSource, ids: tuple[str, ...], limit: int | None, seed: int) -> list[int]:
    """Where `ids`, or `limit` of them drawn by id and seed, stand in the source."""
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    return [position[image_id] for image_id in (ids if limit is None else keyed_order(ids, "limit", seed)[:limit])]


def _cohort(
    sources: tuple[ImageSource, ImageSource], sides: Sequence[list[int]], prefixes: tuple[str, str], names: tuple[str, str]
) -> Cohort:
    ids = [prefix + source.ids[i] for source, prefix, side in zip(sources, prefixes, sides, strict=True) for i in side]
    order = sorted(range(len(ids)), key=lambda row: sort_key(ids[row]))
    member = np.repeat([True, False], [len(side) for side in sides])
    position = np.array([*sides[0], *sides[1]], dtype=np.int64)
    return Cohort(tuple(ids[row] for row in order), member[order], position[order], sources, names)
