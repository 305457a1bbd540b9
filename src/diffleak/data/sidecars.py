"""Captions in text files beside the images, as the trainers of kohya, OneTrainer and ai-toolkit read them: x.txt or x.caption for x.png.

The first line that says something is the caption, as kohya's scripts take it; further lines are further texts of the image, of which
OneTrainer draws one. Tags with commas between them are one text. Where an image has both files and they differ, nobody knows which one
the model was trained with.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffleak.data.image_source import Texts, lines_of, several_lines
from diffleak.data.names import Names, UnclearName
from diffleak.errors import WHY, UserError, is_text, one_or_more, refusing, shown
from diffleak.work.reading import Unreadable, load_text

ENDINGS = (".txt", ".caption")
LONGEST = 2**20  # bytes of a caption file


@dataclass(frozen=True)
class Sidecars:
    """The caption files of every image, those of no image, and how many are empty."""

    root: Path
    of: tuple[tuple[Path, ...], ...]
    strays: tuple[str, ...]
    empty: int

    @property
    def counted(self) -> str:
        """How many files of which ending there are, in words; nothing where there are none."""
        counts = Counter(path.suffix for paths in self.of for path in paths)
        kinds = [one_or_more(counts[ending], f"{ending} file") for ending in ENDINGS if counts[ending]]
        return " and ".join(kinds) + (f" ({self.empty:,} empty)" if self.empty and kinds else "")

    @property
    def used(self) -> str:
        """The same where the captions are taken from them, with how many have several lines; nothing where all are empty.

        Reads them all, and never raises.
        """
        if self.empty == sum(map(len, self.of)):
            return ""

        def several(paths: tuple[Path, ...]) -> bool:
            try:
                return any(len(_read(path)) > 1 for path in paths)
            except UserError:
                return False

        return self.counted + several_lines(sum(map(several, self.of)))

    def names(self) -> Names | None:
        """The files of no image, where an image has none; else None, since they may be notes."""
        return Names(str(self.root), len(self.strays), self.strays[0]) if self.strays and not all(self.of) else None

    def captions(self, ids: Sequence[str]) -> tuple[Texts, ...] | None:
        """The texts of every image; None where no file says any. Raises `UnclearName` for a file that is no text and two that differ."""
        found = tuple(self._texts(image_id, paths) for image_id, paths in zip(ids, self.of, strict=True))
        return found if any(found) else None

    def _texts(self, image_id: str, paths: tuple[Path, ...]) -> Texts:
        said = [texts for path in paths if (texts := _read(path))]
        if len(said) > 1 and said[0] != said[1]:
            raise UnclearName(
                f"{self.root} must have one kind of caption files; the .txt and the .caption of {shown(image_id)} differ: "
                "keep the kind that the model was trained with"
            )
        return said[0] if said else ()


def find_sidecars(root: Path, files: Sequence[Path]) -> Sidecars:
    """The caption files beside the images `files`; only their names and sizes are read."""
    listed: dict[Path, dict[str, int]] = {folder: _listed(folder) for folder in {file.parent for file in files}}
    of = tuple(tuple(file.with_suffix(e) for e in ENDINGS if file.stem + e in listed[file.parent]) for file in files)
    used = {path for paths in of for path in paths}
    strays = sorted(path for folder, names in listed.items() for name in names if (path := folder / name) not in used)
    empty = sum(listed[path.parent][path.name] == 0 for path in used)
    return Sidecars(root, of, tuple(path.relative_to(root).as_posix() for path in strays), empty)


def _listed(folder: Path) -> dict[str, int]:
    """The bytes of every file that may hold a caption."""
    try:
        with os.scandir(folder) as entries:
            return {e.name: _size(e) for e in entries if e.name.endswith(ENDINGS) and not e.name.startswith(".")}
    except OSError:
        return {}


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _read(path: Path) -> Texts:
    with refusing(Unreadable, f"the caption file {path} cannot be read ({WHY}): save it as UTF-8 text, or remove it", raises=UnclearName):
        text = load_text(path, LONGEST)
    if not is_text(text):
        raise UnclearName(f"the caption file {path} must hold text; it holds half characters: save it as UTF-8 text, or remove it")
    return lines_of(text)
