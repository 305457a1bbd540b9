"""What every kind of data is read as: an `ImageSource`, and the texts that an image has. No reader of files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffleak.data.decoding import Decoded, Pixels, of_array
from diffleak.data.labels import Labels
from diffleak.data.names import Names
from diffleak.errors import is_text, one_or_more, shown
from diffleak.records.images import AS_TRAINERS, NOTHING, Decoding, LeftOut

CAPTION_COLUMNS = ("text", "caption")

Texts = tuple[str, ...]


class Said(NamedTuple):
    """Where captions and labels of the images are, in words, each empty where there are none; `beside` ends the line."""

    captions: str = ""
    labels: str = ""
    beside: str = ""


NOTHING_SAID = Said()


@dataclass(frozen=True)
class ImageSource:
    """A named, ordered set of images that are read one at a time.

    `ids` are unique: the path below an image folder, the row number (as text) of an array or table, or the
    key of a sample in a tar shard.
    `read(i)` returns image i as uint8 (height, width, channels) with 1, 3 or 4 channels. `labels()` reads what
    the data says of their classes, `captions()` the texts of each image, its own caption first and none where it has none; both return
    None where the data has none at all; `names()` is what the files that hold them name, None without such files. `decoded(i)` is image i
    with what was done to it by the choices of `decoding`; `left_out` counts the files of a folder that were not read; `said()` is
    where captions and labels are, for people, and never raises. `column(name)` is what a column of the data holds for each image, None for
    an image without a value, and None alone where the data has no such column. `side_by_side`: several threads may read images at once.
    """

    name: str
    ids: tuple[str, ...]
    read: Callable[[int], Pixels]
    labels: Callable[[], Labels | None] = lambda: None
    captions: Callable[[], tuple[Texts, ...] | None] = lambda: None
    look: Callable[[int], Decoded] | None = None  # as `read`, with notes
    decoding: Decoding = AS_TRAINERS
    left_out: LeftOut = NOTHING
    names: Callable[[], Names | None] = lambda: None
    said: Callable[[], Said] = lambda: NOTHING_SAID
    column: Callable[[str], tuple[Any, ...] | None] = lambda name: None
    side_by_side: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def found(self) -> str:
        """What was found where, in a line for people: "DIR: 416 images, captions from 416 .txt files, labels none"."""
        said, of = self.said(), lambda where: f"from {where}" if where else "none"
        beside = f"; {said.beside}" if said.beside else ""
        counted = one_or_more(len(self), "image")
        return f"{shown(self.name, 120)}: {counted}, captions {of(said.captions)}, labels {of(said.labels)}{beside}"

    def decoded(self, i: int) -> Decoded:
        """The pixels of image i, with notes on what was done to it."""
        return self.look(i) if self.look else of_array(self.read(i), AS_TRAINERS)


def texts_of(value: Any) -> Texts:
    """One text, a list of them, or None, as the distinct texts in their order; raises `ValueError` for anything else."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    texts = [text for text in texts if text is not None] if isinstance(texts, list | tuple) else [texts]
    if not all(isinstance(text, str) and is_text(text) for text in texts):
        raise ValueError(f"got the text {shown(json.dumps(value, default=str))}")
    return tuple(dict.fromkeys(texts))


def lines_of(text: str) -> Texts:
    """The distinct lines of a caption file that say something: the first is the caption, the others are further texts of the image."""
    return not_blank([line.strip() for line in text.replace("\r", "\n").split("\n")])


def several_lines(count: int) -> str:
    """A note on that many caption files of several lines; nothing for none."""
    return f" ({one_or_more(count, 'has', 'have')} several lines: the first counts)" if count else ""


def not_blank(texts: Any) -> Texts:
    """The texts of an image that say something: a blank one is what many tables hold where there is no caption."""
    return tuple(text for text in texts_of(texts) if text.strip())
