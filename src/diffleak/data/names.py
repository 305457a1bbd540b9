"""Which image a name in a file means: in split files, captions files and the metadata of a folder.

An exact id always wins. Any other spelling means an image where it finds that one and no other, tried in this order:

    path       ./x.png, a//x.png, images\\x.png; the path of the image file itself, absolute or from the working folder
    letters    composed or decomposed Unicode (NFC, NFD), as different systems write file names
    case       X.PNG for x.png

A spelling that finds two images is refused, and so are two spellings of one image: nobody knows which is meant.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import normpath
from typing import TypeVar

from diffleak.errors import UserError, one_or_more, shown
from diffleak.work.progress import say

Folders = Iterable[tuple[str | Path, str]]  # where images lie, and what stands before their path below it in their ids
V = TypeVar("V")


class UnclearName(UserError):
    """A name in a file of which nobody knows which image it means; the message has it, so it must not reach an anonymous run."""


@dataclass(frozen=True)
class Names:
    """The names in a file, compared with the ids of the data.

    strays: how many are of no image. first: the first of them, or of all names where every one is of an image; None where there is no
    name, and where files must not be named. columns: those of the file, where its columns decide what it says.
    """

    file: str
    strays: int = 0
    first: str | None = None
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: str | Path, names: Iterable[str], ids: Iterable[str], columns: tuple[str, ...] = ()) -> "Names":
        """What to say of `names`, in which those of an image are its id."""
        names, known = dict.fromkeys(names), {*ids}
        strays = [name for name in names if name not in known]
        return cls(str(file), len(strays), next(iter(strays or names), None), columns)

    def unnamed(self) -> "Names":
        """The count alone, for what must not name files."""
        return replace(self, first=None)

    def beside(self, image_id: str, file: str | None = None) -> str:
        """An image that the file does not name, and what the file, or `file` in a message that has named it, names instead."""
        file = file or self.file
        if self.strays:
            said = f"; {file} has {self._counted}" + (f", first: {shown(self.first)}" if self.first else "")
        else:
            said = f"; {file} has names such as {shown(self.first)}" if self.first else ""
        return shown(image_id) + said

    def note(self, image_id: str) -> str:
        """A line for people about names of no image, beside the id of one that the data has."""
        which = f"first: {shown(self.first)}; " if self.first else ""
        return f"note: {self.file} has {self._counted} ({which}the data has images such as {shown(image_id)})"

    @property
    def _counted(self) -> str:
        return f"{one_or_more(self.strays, 'name')} of no image"


def say_strays(files: Iterable[Names], image_id: str) -> None:
    """Says which files have names of no image, beside the id of an image; where an image lacks what they say, that is an error."""
    for names in files:
        if names.strays:
            say(names.note(image_id))


def by_id(file: str | Path, named: Mapping[str, V], ids: Sequence[str], folders: Folders) -> dict[str, V]:
    """What a file says of each name, under the ids that its names mean; names of no image stay as they are (see `matched`)."""
    found = matched(file, named, ids, folders)
    return {found.get(name, name): value for name, value in named.items()}


def matched(file: str | Path, names: Iterable[str], ids: Sequence[str], folders: Folders) -> dict[str, str]:
    """The id that each name means; a name of no image is left out.

    Raises `UnclearName` for one that means two images, and for two names that mean one.
    """
    names, known = dict.fromkeys(names), set(ids)
    found = {name: name for name in names if name in known}
    owner = dict(found)  # the name that an image was found by
    roots = [(os.path.abspath(folder), prefix) for folder, prefix in folders]
    paths = {name: os.path.abspath(name) for name in names if name not in found}
    for spelled in SPELLINGS:
        candidates = _candidates(paths, ids, roots, spelled) if paths else {}
        for name, images in candidates.items():
            if len(images) > 1:
                several = " and ".join(shown(image) for image in sorted(images)[:2])
                raise UnclearName(f"{file} must name each image as the data does; {shown(name)} may be {several}")
            (image,) = images
            if owner.setdefault(image, name) == name:
                found[name] = image
            elif owner[image] != image:
                raise UnclearName(f"{file} must name each image once; {shown(owner[image])} and {shown(name)} are both {shown(image)}")
        paths = {name: path for name, path in paths.items() if name not in candidates}
    return found


def spelling(name: str) -> str:
    """A name as a path that two programs write alike: with slashes, without steps that lead nowhere, in composed letters."""
    path = _as_path(name)
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _as_path(name: str) -> str:
    plain = name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()
    return normpath(plain.replace("\\", "/"))


SPELLINGS = (_as_path, spelling, lambda name: spelling(spelling(name).casefold()))


def _candidates(
    paths: Mapping[str, str], ids: Sequence[str], roots: Sequence[tuple[str, str]], spelled: Callable[[str], str]
) -> dict[str, set[str]]:
    """The images that are spelled as a name is, or as its path from here below the folder of images, for every name that has any."""
    above = [(spelled(root).rstrip("/") + "/", prefix) for root, prefix in roots]
    wanted = defaultdict[str, list[str]](list)
    for name, path in paths.items():
        path = spelled(path)
        below = [spelled(prefix + path.removeprefix(root)) for root, prefix in above if path.startswith(root)]
        for text in {spelled(name), *below}:
            wanted[text].append(name)
    found: dict[str, set[str]] = {}
    for image_id in ids:
        for name in wanted.get(spelled(image_id), ()):
            found.setdefault(name, set()).add(image_id)
    return found
