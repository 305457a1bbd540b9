"""The files of one kind that a folder holds, by split: train-00000-of-00002.parquet, val/0000.parquet, test-000.tar ...

A split is what the file's name says, as the Hugging Face Hub names shards, else the folder it lies in. The shards of a split are read in
the order of their names, and are all there where the names count them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from diffleak.data.labels import SPLITS
from diffleak.errors import UserError, listed, shown

SHARDED = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(?!\d).*")
WORDS = re.compile(r"[-._ 0-9]+")


def counted(files: Sequence[Path]) -> str:
    """How many files, in words; of one its name."""
    return files[0].name if len(files) == 1 else f"{len(files):,} files"


def files_below(root: Path, ending: str) -> list[Path]:
    """The files of an ending in a folder and below, but hidden ones, in the order of their paths."""
    return sorted(path for path in _visible(root) if path.name.lower().endswith(ending))


def _visible(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if not entry.name.startswith("."):
            if not entry.is_dir():
                yield entry
            elif not entry.is_symlink():
                yield from _visible(entry)


def choose(root: Path, files: Iterable[Path], keys: Sequence[str]) -> tuple[tuple[Path, ...], str | None]:
    """The files of a split, and the column or ending that is left of `keys`, which are what the user wrote after the path.

    Raises `UserError` where there are several splits and none is named, for one that is not there, and for one of which shards
    are missing or there twice.
    """
    found = defaultdict[str, list[Path]](list)
    for path in files:
        found[_split(path.relative_to(root))].append(path)
    split, column = (*keys, None, None)[:2]
    matches = [name for name in found if split in (name, name.rpartition("/")[2])]
    matches = [split] if split in matches else matches
    if split is None or (column is None and len(found) == 1 and not matches):
        if len(found) == 1:
            return _whole(root, next(iter(found.values()))), split
        usual = sorted(filter(None, found), key=lambda name: "train" not in name.lower())[0]  # for an example
        raise UserError(f"{root} holds several splits, {_listed(found)}: say which as {root}:{usual}")
    if len(matches) != 1:
        raise UserError(f"{root} must have one split {shown(split)}; it has {_listed(found)}: name one of them")
    return _whole(root, found[matches[0]]), column


def _listed(splits: Iterable[str]) -> str:
    return listed([name or "one without a name" for name in splits], 120)


def _whole(root: Path, files: list[Path]) -> tuple[Path, ...]:
    """The files of a split; raises `UserError` where their names count other files than these, each once: rows would have other numbers."""
    shards = [match for path in files if (match := SHARDED.fullmatch(path.stem))]
    counts = sorted({int(match[3]) for match in shards})
    numbers = sorted(int(match[2]) for match in shards)
    whole = len(counts) == 1 and len(shards) == len(files) and numbers in ([*range(counts[0])], [*range(1, counts[0] + 1)])
    if counts and not whole:
        meant = " and ".join(f"{count:,}" for count in counts)
        found = f"{len(files):,} ({listed([file.name for file in files], 90)})"
        raise UserError(
            f"{shown(root, 150)} must hold every file of a split once; found {found}, and the names count {meant}: get those that are "
            "missing, move others away, or give one file"
        )
    return tuple(files)


def _split(path: Path) -> str:
    """The split of a file by its path below the data: folders that are no split (configurations) stay before it."""
    sharded = SHARDED.fullmatch(path.stem)
    folders = [*path.parts[:-1]]
    own = sharded[1] if sharded else _word(path.stem)
    if not own:
        last = next((i for i in reversed(range(len(folders))) if _word(folders[i])), None)
        own = folders.pop(last) if last is not None else ""
    return "/".join(filter(None, [*(folder for folder in folders if folder != "data"), own]))


def _word(name: str) -> str:
    """The split that a name says in one of its words, such as "train" of train_000 and "val" of coco-val."""
    if name.lower() in SPLITS:
        return name
    said = [word for word in WORDS.split(name) if word.lower() in SPLITS]
    return said[0] if len(said) == 1 else ""
