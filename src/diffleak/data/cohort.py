"""The images of an audit: who is a member and who is held out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int64

from diffleak.config import build
from diffleak.data.anonymity import Key
from diffleak.data.config import CohortConfig
from diffleak.data.decoding import SKIP_HINT, Decoded, Pixels, UnreadableImage
from diffleak.data.draw import keyed_order
from diffleak.data.image_source import ImageSource, Texts
from diffleak.data.labels import UNNAMED, ClassNames, Labels, Numbered, Side, number
from diffleak.data.names import Names, UnclearName
from diffleak.data.sources import open_source
from diffleak.data.split import read_split
from diffleak.errors import UserError, listed
from diffleak.records.images import Alpha, Decoding, Exif, LeftOut

T = TypeVar("T")

IN_MEMORY = "array"  # the name of images that no command line can name
CALLS = ("members", "held-out images")  # what messages call the two sides
PREFIXES = ("members/", "nonmembers/")  # of ids that both sides use


def sort_key(image_id: str) -> tuple[int, str]:
    """The order of ids: row numbers sort as numbers, so that tables are read from front to back."""
    return len(image_id), image_id


@dataclass(frozen=True, eq=False)
class Cohort:
    """The images of one audit, sorted by id (`sort_key`) or by bucket, with their side. Images are read one at a time.

    An image costs its id and nine bytes, however many there are.

    Args:
        ids: The images; keyed ids in an anonymous cohort. They are all that is written and printed.
        member: True for each member.
        position: The place of each image in the source of its side.
        sources: Of members and of held-out images, which may be the same.
        names: Where members and held-out images come from.
        keys: The ids of the data, by which noise is drawn and parts are divided, so that an anonymous run has the same numbers.
        given: The settings that name these images, where `cohort` made them.
        calls: What messages call the two sides.
    """

    ids: tuple[str, ...]
    member: Bool[np.ndarray, " n"]
    position: Int64[np.ndarray, " n"]  # in the source of its side
    sources: tuple[ImageSource, ImageSource]  # of members and of non-members, which may be the same
    names: tuple[str, str]  # where members and non-members come from
    keys: tuple[str, ...]  # `ids` itself unless the cohort is anonymous
    given: Mapping[str, Any] = field(default_factory=dict)  # the settings that name these images, where `cohort` made them
    calls: tuple[str, str] = CALLS  # what messages call members and non-members

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def anonymous(self) -> bool:
        """True where `ids` are keyed."""
        return self.ids is not self.keys

    def _of_both(self, asked: Callable[[ImageSource], T]) -> tuple[T, T]:
        """What the sources of members and of non-members answer; one that serves both sides is read once."""
        members, nonmembers = self.sources
        answer = asked(members)
        return answer, answer if members is nonmembers else asked(nonmembers)

    def _of_all(self, asked: Callable[[ImageSource], tuple[T, ...] | None], none: T) -> tuple[T, ...] | None:
        """What the sources answer for every image, `none` where its source has no answer; None where neither has one."""
        sides = self._of_both(asked)
        if sides == (None, None):
            return None
        values = ((sides[0 if m else 1], int(i)) for m, i in zip(self.member, self.position, strict=True))
        return tuple(none if side is None else side[i] for side, i in values)

    @property
    def side_by_side(self) -> bool:
        """True where several threads may read images at once."""
        return all(source.side_by_side for source in self.sources)

    def read(self, row: int) -> Pixels:
        """The pixels of the image in a row; raises `UnreadableImage`, whose message names the file unless the cohort is anonymous."""
        return self.decoded(row).pixels

    def decoded(self, row: int) -> Decoded:
        """The pixels of the image in a row, with notes on what was done to them; raises as `read` does."""
        try:
            return self.sources[0 if self.member[row] else 1].decoded(int(self.position[row]))
        except UnreadableImage:
            if not self.anonymous:
                raise
            raise UnreadableImage(f"the image {self.ids[row]} cannot be decoded; replace it{SKIP_HINT}") from None
        except UserError as error:
            if not self.anonymous:
                raise
            source, name = self.sources[0 if self.member[row] else 1], self.keys[row]
            own = source.ids[int(self.position[row])]
            said = str(error).replace(str(Path(source.name) / own), self.ids[row]).replace(own, self.ids[row]).replace(name, self.ids[row])
            raise UserError(said) from None

    @contextmanager
    def pointing_to_names(self, how: str) -> Iterator[None]:
        """Adds to a `UserError` about an image of an anonymous cohort how its file name can be had, as in "--dry-run"."""
        try:
            yield
        except UserError as error:
            if self.anonymous and any(image_id in str(error) for image_id in self.ids):
                raise type(error)(f"{error} ({how} gives file names)") from None
            raise

    @property
    def decoding(self) -> Decoding:
        """The choices that the images are read by."""
        return self.sources[0].decoding

    @property
    def found(self) -> tuple[str, ...]:
        """What was found where, in a line for each source."""
        members, nonmembers = self.sources
        return (members.found,) if members is nonmembers else (members.found, nonmembers.found)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What the sources left out of their folders."""
        members, nonmembers = self.sources
        return (members.left_out,) if members is nonmembers else (members.left_out, nonmembers.left_out)

    def labels(self, classes: int, names: ClassNames = UNNAMED) -> Numbered | None:
        """The class in [0, classes) of every image, by the class `names` of the model; None where neither source has labels.

        Raises `UserError` where only one source has them, and as `diffleak.data.labels.number` does.
        """
        rows = [self.position[self.member], self.position[~self.member]]
        calls, sources = list(self.calls), list(self.sources)
        if sources[0] is sources[1]:
            rows, calls, sources = [self.position], ["images"], sources[:1]
        with self.without_names():
            found = [source.labels() for source in sources]
        without = [call for call, labels in zip(calls, found, strict=True) if labels is None]
        if len(without) == len(found):
            return None
        if without:
            raise UserError(f"{' and '.join(self.calls)} must both have labels; the {without[0]} have none: give theirs in the same way")
        sides = [
            Side(call, self._shown(labels), self._named(source, positions), positions.tolist())
            for call, labels, source, positions in zip(calls, found, sources, rows, strict=True)
            if labels is not None
        ]
        numbers, origin, mapping = number(sides, classes, names)
        of = lambda row: numbers[0 if self.member[row] else -1][self.position[row]]
        files = tuple(side.labels.names for side in sides if side.labels.names)
        return Numbered(np.array([of(row) for row in range(len(self))], dtype=np.int64), origin, mapping, files)

    def _shown(self, labels: Labels) -> Labels:
        """Labels whose messages name no image of an anonymous cohort."""
        return replace(labels, names=labels.names.unnamed()) if self.anonymous and labels.names else labels

    def _named(self, source: ImageSource, positions: Int64[np.ndarray, " k"]) -> tuple[str, ...]:
        """What messages call the images of a source: by their ids here where those are keyed."""
        if not self.anonymous:
            return source.ids
        names = ["an image"] * len(source.ids)
        here = self.sources[0] is self.sources[1]
        for row, (member, position) in enumerate(zip(self.member, self.position, strict=True)):
            if here or self.sources[0 if member else 1] is source:
                names[int(position)] = self.ids[row]
        return tuple(names)

    @contextmanager
    def without_names(self) -> Iterator[None]:
        """Where files of labels or captions are read: an error of an anonymous cohort names no image."""
        try:
            yield
        except UnclearName:
            if not self.anonymous:
                raise
            raise UserError(
                "what a file says of the images cannot be read, or two readings of it are possible; the same command without --anonymous "
                "says which file it is, and why"
            ) from None

    def folders(self) -> Iterator[tuple[str, str]]:
        """Where the images of each side lie, and what stands before their path below it in `keys`."""
        for source, rows in zip(self.sources, (np.flatnonzero(self.member), np.flatnonzero(~self.member)), strict=True):
            for row in rows[:1]:
                yield source.name, self.keys[row].removesuffix(source.ids[int(self.position[row])])

    def names_in_files(self) -> tuple[Names | None, Names | None]:
        """What the files that hold labels and captions of each side name, None for a side without; no names of an anonymous cohort."""
        with self.without_names():
            sides = self._of_both(lambda source: source.names())
        first, second = (names.unnamed() if names and self.anonymous else names for names in sides)
        return first, second

    def columns(self) -> str:
        """In brackets, for the message that a column is missing: which columns the data has; nothing where it has none."""
        return next((f" ({names.file} has {listed(names.columns, 120)})" for names in self.names_in_files() if names and names.columns), "")

    def column(self, name: str) -> tuple[Any, ...] | None:
        """What a column of the data holds for every image, None for one without a value; None where neither source has the column."""
        return self._of_all(lambda source: source.column(name), None)

    def captions(self) -> tuple[Texts, ...] | None:
        """The texts of every image, its own caption first and none where it has none; None where neither source has any."""
        with self.without_names():
            return self._of_all(lambda source: source.captions(), ())

    def only(self, keep: Bool[np.ndarray, " n"]) -> "Cohort":
        """The cohort restricted to the images marked in `keep`."""
        return self.taken(np.flatnonzero(keep))

    def taken(self, rows: Int64[np.ndarray, " m"]) -> "Cohort":
        """The images of some rows, in the order of `rows`; `given` names all images, so it does not name those of fewer rows."""
        ids = tuple(self.ids[row] for row in rows)
        keys = tuple(self.keys[row] for row in rows) if self.anonymous else ids
        given = self.given
        if given and len(np.unique(rows)) < len(self):
            given = {"members": IN_MEMORY, "nonmembers": IN_MEMORY, **asdict(self.decoding)}
        return replace(self, ids=ids, keys=keys, member=self.member[rows], position=self.position[rows], given=given)

    def renamed(self, key: Key) -> "Cohort":
        """The same images in the same order under keyed ids, and without the names of files that were left out."""
        sources = self._of_both(lambda source: replace(source, left_out=source.left_out.unnamed()))
        return replace(self, ids=key.ids(self.keys), sources=sources)

    @property
    def by_id(self) -> Int64[np.ndarray, " n"]:
        """The rows in the order of `ids`: the order of keyed ids says nothing of that of the file names."""
        return _sorted_rows(self.ids)

    @property
    def by_key(self) -> Int64[np.ndarray, " n"]:
        """The rows in the order of `keys`, which is that of the same cohort under its own ids."""
        return _sorted_rows(self.keys)

    def of(self, image_id: str) -> Pixels:
        """The pixels of one image by its id; raises `UserError` when there is none, and in an anonymous cohort, which shows no image."""
        if self.anonymous:
            raise UserError("an anonymous run shows no images; leave out --thumbnails")
        if image_id not in self.ids:
            raise UserError(f"the image {image_id} is no longer among the data of this audit: put it back, or leave out --thumbnails")
        return self.read(self.ids.index(image_id))


def two_sources(
    members: ImageSource,
    nonmembers: ImageSource,
    limit: int | None = None,
    seed: int = 0,
    calls: tuple[str, str] = CALLS,
    prefixes: tuple[str, str] = PREFIXES,
) -> Cohort:
    """Members from one source, held-out images from another; ids that both use get the side as a prefix.

    `limit` keeps that many of each side, drawn by id and seed. calls: what messages call the sides.
    """
    clash = not set(members.ids).isdisjoint(nonmembers.ids)
    sides = [_positions(source, source.ids, limit, seed) for source in (members, nonmembers)]
    made = _cohort((members, nonmembers), sides, prefixes if clash else ("", ""), (members.name, nonmembers.name))
    return replace(made, calls=calls)


def one_source(source: ImageSource, split: Path, limit: int | None = None, seed: int = 0) -> Cohort:
    """Both sides from one source, as a split file says."""
    listed = read_split(split, source)
    if not listed[1]:
        raise UserError(f"{split} must name held-out images; it has none")
    sides = [_positions(source, ids, limit, seed) for ids in listed]
    return _cohort((source, source), sides, ("", ""), (f"{source.name} [{split}: members]", f"{source.name} [{split}: nonmembers]"))


def cohort(
    members: Any = None,
    nonmembers: Any = None,
    *,
    data: Any = None,
    split: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    exif: Exif = "apply",
    alpha: Alpha = "drop",
    white: int | None = None,
) -> Cohort:
    """The images of an audit: members and held-out images, or one `data` with a `split` file that says who is a member.

    Args:
        members: A folder, a .npy, .npz, .parquet, .arrow or .tar file, "digits", "hf:NAME", or a uint8 array (N, H, W[, C]).
        nonmembers: The same, of held-out images.
        data: The same, of both sides, with `split`.
        split: A split file: .json, .csv, .txt, .npy or .npz.
        limit: At most so many images a side, drawn by `seed`.
        seed: Seed of that draw.
        exif: Orientation by EXIF: "apply" or "ignore".
        alpha: Transparency: "drop" it, or lay it on "white" or "black".
        white: What is white in grey images of more than 8 bits, such as 4095; None for their range.

    Returns:
        The cohort. Images are read one at a time, when they are needed.

    Raises:
        UserError: For data that cannot be read, for values that these settings cannot have, and unless it is two sides, or one `data` and a
            split.
    """
    if (data is None) != (split is None) or (data is None) == (members is None) or (members is None) != (nonmembers is None):
        raise UserError("a cohort has two sides: give members and nonmembers, or data and split")
    strange = [each for each in (members, nonmembers, data) if not isinstance(each, str | Path | np.ndarray | ImageSource | None)]
    if strange:
        raise UserError(f"images are a path, a name or a uint8 array (N, H, W[, C]) of numpy; got a {type(strange[0]).__name__}")
    config = build(CohortConfig, {"exif": exif, "alpha": alpha, "white": white, "limit": limit, "seed": seed})
    decoding = config.decoding
    if split is not None:
        made = one_source(open_source(data, decoding), Path(split), config.limit, config.seed)
    else:
        made = two_sources(open_source(members, decoding), open_source(nonmembers, decoding), config.limit, config.seed)
    named = {"members": members, "nonmembers": nonmembers, "data": data, "split": split}
    given = {key: str(value) if isinstance(value, str | Path) else IN_MEMORY for key, value in named.items() if value is not None}
    drawn = {} if limit is None else {"limit": config.limit, "seed": config.seed}
    return replace(made, given={**given, **asdict(decoding), **drawn})


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
    ids = tuple(prefix + source.ids[i] for source, prefix, side in zip(sources, prefixes, sides, strict=True) for i in side)
    member = np.repeat([True, False], [len(side) for side in sides])
    position = np.array([*sides[0], *sides[1]], dtype=np.int64)
    cohort = Cohort(ids, member, position, sources, names, ids)
    return cohort.taken(cohort.by_id)


def _sorted_rows(ids: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    return np.array(sorted(range(len(ids)), key=lambda row: sort_key(ids[row])), dtype=np.int64)
