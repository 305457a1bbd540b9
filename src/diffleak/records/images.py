"""How image files become the pixels that a model is given: what the user chose, and what was found. No Pillow, no numpy.

A trainer turns a photo upright or does not, drops transparency or lays it on a colour. The model knows its training images that
way only, so an audit must read them in the same way, say what it did, and record it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from diffleak.errors import UserError, one_or_more, shown
from diffleak.work.reading import load_json

Exif = Literal["apply", "ignore"]
Alpha = Literal["drop", "white", "black"]
DIM = 4  # values that all lie at or below a 4th of their range are of another range


@dataclass(frozen=True)
class Decoding:
    """How image files are read. The defaults are what `datasets` and the usual trainers do: turn upright, `convert("RGB")`."""

    exif: Exif = "apply"
    """"apply" turns every image upright; "ignore" reads it as Pillow opens it, which turns TIFF files all the same."""
    alpha: Alpha = "drop"
    """"drop" keeps the colours under transparency, "white" and "black" lay the image on that colour."""
    white: int | None = None
    """Value that is white in grey images of more than 8 bits, v -> round(255 v / white).

    Null for the range of 2^b values that the file allows, v -> v >> (b - 8).
    """

    def refuse(self, channels: int) -> None:
        """Raises `UserError` where the model takes transparency itself, and it was to be laid on a colour."""
        if channels == 4 and self.alpha != "drop":
            raise UserError(f"--alpha {self.alpha} lays transparent images on a colour, and this model takes RGBA: leave it out")


AS_TRAINERS = Decoding()


@dataclass(frozen=True)
class Notes:
    """What was found and done when one image was decoded."""

    turned: bool = False
    """True where the image was turned upright by its EXIF orientation."""
    by_pillow: bool = False
    """True where Pillow turned the image when it loaded a TIFF file, whatever was chosen."""
    left_turned: bool = False
    """True where the image has an orientation, which was ignored."""
    transparent: bool = False
    """True where some pixel is transparent."""
    first_frame: bool = False
    """True where the file has several frames or pages, of which the first was read."""
    largest: int | None = None
    """Largest value of an image of more than 8 bits; null for other images."""
    full: int | None = None
    """Largest value that the file of such an image allows; null where the file does not say it, and for other images."""
    upper: bool = False
    """True where only the upper 8 bits could be read."""

    @property
    def dim(self) -> bool:
        """True if the values fill so little of the range that the range may be another one."""
        return self.largest is not None and (self.full is None or self.largest * DIM <= self.full)


PLAIN = Notes()


@dataclass(frozen=True)
class LeftOut:
    """Files of a folder that were not read."""

    unopened: int = 0
    """Number of files that look like images and are not opened: Pillow does not, or they are no files."""
    first_unopened: str | None = None
    """Name of the first of them; null where there is none, and where files must not be named."""
    hidden: int = 0
    """Number of hidden images."""
    first_hidden: str | None = None
    """Name of the first of them; null where there is none, and where files must not be named."""

    def unnamed(self) -> "LeftOut":
        """The counts alone, for what must not name files."""
        return LeftOut(self.unopened, None, self.hidden, None)


NOTHING = LeftOut()
SEEN = ("turned", "by_pillow", "left_turned", "transparent", "dim", "upper")  # what notes and tallies call alike


@dataclass(frozen=True)
class Tally:
    """How many images of a set needed what, and how many files were left out."""

    turned: int = 0
    """Number of images turned upright by their EXIF orientation."""
    by_pillow: int = 0
    """Number of TIFF images that Pillow turned, whatever was chosen."""
    left_turned: int = 0
    """Number of images whose orientation was ignored."""
    transparent: int = 0
    """Number of images with transparent pixels."""
    first_frames: int = 0
    """Number of images of several frames or pages, of which the first was read."""
    deep: int = 0
    """Number of images of more than 8 bits."""
    dim: int = 0
    """Number of images of more than 8 bits that use less than a quarter of their range, or whose file does not say the range."""
    without_range: int = 0
    """Number of images of more than 8 bits whose file does not say the range."""
    upper: int = 0
    """Number of images of which only the upper 8 bits could be read."""
    largest: int | None = None
    """Largest value of the brightest image of more than 8 bits; null without such images."""
    full: int | None = None
    """Largest value that the file of that image allows; null where it does not say it, and without such images."""
    unopened: int = 0
    """Number of files that look like images and are not opened: Pillow does not, or they are no files."""
    first_unopened: str | None = None
    """Name of the first of them; null where there is none, and in an anonymous run."""
    hidden: int = 0
    """Number of hidden images, which were left out."""
    first_hidden: str | None = None
    """Name of the first of them; null where there is none, and in an anonymous run."""

    def plus(self, notes: Notes) -> "Tally":
        """The tally with one more image."""
        if notes is PLAIN:
            return self
        deep = notes.largest is not None
        counted: dict[str, Any] = {key: int(getattr(notes, key)) for key in SEEN}
        one = Tally(first_frames=int(notes.first_frame), deep=int(deep), without_range=int(deep and notes.full is None), **counted)
        return self.with_set(replace(one, largest=notes.largest, full=notes.full))

    def with_set(self, other: "Tally") -> "Tally":
        """The tally of two sets of images."""
        counts = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(Tally) if each.default == 0}
        brightest = max(self, other, key=_filled)
        return Tally(
            **counts,
            largest=brightest.largest,
            full=brightest.full,
            first_unopened=self.first_unopened or other.first_unopened,
            first_hidden=self.first_hidden or other.first_hidden,
        )

    def with_left_out(self, left_out: Iterable[LeftOut]) -> "Tally":
        """The tally with what was left out of its folders."""
        tally = self
        for each in left_out:
            tally = tally.with_set(Tally(**asdict(each)))
        return tally

    def refuse(self, where: str, decoding: Decoding) -> None:
        """Raises `UserError` where nothing says which value is white, or where all values lie far below the white of their files."""
        if decoding.white is not None:
            return
        if self.without_range:
            of = "whole numbers of 32 bits"
            hold = f"file in {where} holds {of} and does not say it", f"files in {where} hold {of} and do not say it"
            raise UserError(
                f"something must say which value is white; {one_or_more(self.without_range, *hold)} (largest value of those above 8 bits: "
                f"{self.largest}): give --white LEVEL"
            )
        if self.deep and 2 * self.dim >= self.deep:  # more than a few night pictures
            white = f"give the value that is white as --white LEVEL, such as 4095 for 12 bits, or {self.full} if they are that dark"
            way = "convert them to 8 bits" if self.upper else white
            which = one_or_more(self.deep, "file") if self.dim == self.deep else f"{self.dim:,} of {one_or_more(self.deep, 'file')}"
            use = "uses" if self.dim == 1 else "use"
            raise UserError(
                f"images of more than 8 bits must use their range; {which} in {where} {use} less than a quarter of it (largest value of "
                f"all: {self.largest:,} of {self.full:,}), so that they would be nearly black: {way}"
            )

    def refuse_white(self, decoding: Decoding) -> None:
        """Raises `UserError` for a `white` of images that are none of more than 8 bits."""
        if decoding.white is not None and not self.deep:
            raise UserError(f"--white {decoding.white} is for images of more than 8 bits, and there are none: leave it out")

    def described(self, decoding: Decoding, keeps_alpha: bool = False) -> tuple[str, ...]:
        """The counts that are not zero, in words."""
        alpha = "" if keeps_alpha else " (alpha dropped)" if decoding.alpha == "drop" else f" (laid on {decoding.alpha})"
        white = f"white is {decoding.white:,}" if decoding.white else f"largest value {self.largest or 0:,} of {self.full or 0:,}"
        use = f"{self.dim:,} of them {'uses' if self.dim == 1 else 'use'} less than a quarter of their range"
        dim = f", {use}" if self.dim and not decoding.white else ""
        named = lambda first: "" if first is None else f"; first: '{shown(first)}'"
        found = (
            (self.turned, "turned upright by EXIF"),
            (self.by_pillow, "turned upright by Pillow (TIFF)"),
            (self.left_turned, "not turned (EXIF ignored)"),
            (self.transparent, f"transparent{alpha}"),
            (self.first_frames, "animated or of several pages (the first is read)"),
            (self.deep, f"of more than 8 bits ({white}{dim})"),
            (
                self.unopened,
                f"not opened ({'looks like an image' if self.unopened == 1 else 'look like images'}{named(self.first_unopened)})",
            ),
            (self.hidden, f"hidden and left out{named(self.first_hidden)}"),
        )
        return tuple(f"{count:,} {words}" for count, words in found if count)

    @property
    def alike(self) -> str:
        """How two images are alike that the model is given as the same pixels."""
        reduced = ("at 8 bits",) * bool(self.deep) + ("without alpha",) * bool(self.transparent)
        return "pixel for pixel" + (f" as the model is given them ({', '.join(reduced)})" if reduced else "")


SHOWN_BY = {"exif": ("turned", "left_turned"), "alpha": ("transparent",), "white": ("deep",)}  # the counts that a choice matters for


FIRST_READING = {"exif": "ignore", "alpha": "white"}  # how version 0.1 read images, without recording what that changed


def first_reading(counts: Mapping[str, Any]) -> dict[str, str]:
    """The choices of version 0.1 that another reading of these images would change."""
    return {key: value for key, value in FIRST_READING.items() if any(counts.get(count) for count in SHOWN_BY[key])}


def refuse_other_reading(trained: Path, decoding: Decoding, tally: Tally, keeps_alpha: bool = False) -> None:
    """Raises `UserError` where a train.json says that training read its images in another way.

    Only a choice that mattered counts: some image of the training and some image here has to be one that it changes. A model that
    `keeps_alpha` is given it under any choice.
    """
    try:
        record = load_json(trained) if trained.is_file() else {}
        if record.get("schema_version") == 1 and "images" not in record and "data" in record:  # trained by version 0.1
            record = {**record, **FIRST_READING, "images": {"turned": 1, "transparent": 1}}
        counts = record.get("images", {})
        mattered = {key: sum(counts.get(count, 0) for count in by) for key, by in SHOWN_BY.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return  # somebody else's train.json, or a damaged one: nothing is known
    for key, by in SHOWN_BY.items():
        if key == "alpha" and keeps_alpha:
            continue
        here, differ = getattr(decoding, key), sum(getattr(tally, count) for count in by)
        if mattered[key] and differ and record.get(key) != here:
            way = f"leave out --{key}" if record.get(key) is None else f"give --{key} {shown(record[key])}"
            of = f"no value for {key}" if record.get(key) is None else f"{key} {shown(record[key])}"
            got = "none" if here is None else here
            raise UserError(
                f"images must be read as the model's training read them; {trained} has {of}, got {got}, and "
                f"{one_or_more(differ, 'image differs', 'images differ')} by it: {way}"
            )


NO_IMAGES = Tally()


def _filled(tally: Tally) -> tuple[float, int]:
    """How much of their range the values of a set fill; a range that no file says counts as the fullest."""
    largest = -1 if tally.largest is None else tally.largest
    return (largest / (tally.full or 1), largest)
