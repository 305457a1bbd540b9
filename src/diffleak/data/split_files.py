"""Split files as the literature and spreadsheets have them: who is a member, and who is held out.

.npz     `mia_train_idxs` and `mia_eval_idxs`: row numbers of the data (Duan et al. 2023, SecMI; Kong et al. 2023, PIA)
.npy     row numbers of the members, or True per row that is a member; the other rows are held out
.csv     file_name or id, and member (1 or 0) or split (train or test ...); rows of a validation split are on neither side
.txt     the id of a member on each line; the other images are held out
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffleak.data.image_source import ImageSource
from diffleak.data.metadata import needed
from diffleak.data.names import matched
from diffleak.errors import WHY, UserError, listed, one_or_more, refusing, shown
from diffleak.work.progress import say
from diffleak.work.reading import Unreadable, load_npy, load_table, load_text, opened, parsing

Sides = tuple[tuple[str, ...], tuple[str, ...]]

INDICES = ("mia_train_idxs", "mia_eval_idxs")
IDS, MEMBER, SPLIT = ("file_name", "id"), "member", "split"
YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
TRAINED = {"train", "training", "member", "members"}
HELD_OUT = {"test", "testing", "eval", "evaluation", "nonmember", "nonmembers", "held-out", "heldout", "held_out", "holdout"}
ASIDE = {"val", "valid", "validation", "dev"}


def read_sides(path: Path, source: ImageSource) -> Sides | None:
    """Members and held-out images as a file names them; None for a file of another kind, which is JSON.

    Where a file names one side, or leaves images out, a line says so. Raises `UserError` for a file that does not hold what it must, and
    for row numbers of data whose images have names.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        return None
    with refusing(ValueError, f"the split file {path} must hold {FORMS[path.suffix.lower()]} ({WHY})"):  # also `Unreadable`
        return reader(path, source)


def _npz(path: Path, source: ImageSource) -> Sides:
    with opened(path) as file, parsing(), np.load(file, allow_pickle=False) as arrays:
        missing = [name for name in INDICES if name not in arrays.files]
        if missing:
            raise Unreadable(f"it has {listed(arrays.files, 120) or 'nothing'}, and no {missing[0]}")
        members, nonmembers = (arrays[name] for name in INDICES)
    return _rows(members, source), _rows(nonmembers, source)


def _npy(path: Path, source: ImageSource) -> Sides:
    array = load_npy(path)
    if array.dtype == bool:
        if array.shape != (len(source),):
            raise ValueError(f"it has the shape {array.shape}, and {shown(source.name)} has {one_or_more(len(source), 'image')}")
        array = np.flatnonzero(array)
    members = _once(_rows(array, source))
    return members, _rest(path, members, source)


def _txt(path: Path, source: ImageSource) -> Sides:
    names = _once(tuple(line.strip() for line in load_text(path).split("\n") if line.strip()))
    meant = matched(path, names, source.ids, [(source.name, "")])
    return names, _rest(path, tuple(meant.values()), source)


def _csv(path: Path, source: ImageSource) -> Sides:
    sides: dict[str, list[str]] = {"member": [], "nonmember": [], "aside": []}
    words: Counter[str] = Counter()
    for number, row in enumerate(load_table(path), 1):
        if MEMBER in row and SPLIT in row:
            raise ValueError(f"it has both {MEMBER} and {SPLIT}: remove the one that does not count")
        name, said = needed(row, *IDS, where="it"), str(needed(row, MEMBER, SPLIT, where="it") or "").strip()
        if not name:
            raise ValueError(f"row {number:,} names no image")
        side = _side(said.lower(), MEMBER in row)
        if side is None:
            known = "1 or 0" if MEMBER in row else "train, test or val"
            raise ValueError(f"row {number:,} has {shown(said) or 'nothing'} for {known}")
        sides[side].append(str(name))
        words[said] += side == "aside"
    if aside := +words:
        left = one_or_more(len(sides["aside"]), f"image of {path} is", f"images of {path} are")
        say(f"note: {left} on neither side ({listed(aside, 60)})")
    return tuple(sides["member"]), tuple(sides["nonmember"])


def _side(said: str, as_number: bool) -> str | None:
    kinds = {"member": YES, "nonmember": NO} if as_number else {"member": TRAINED, "nonmember": HELD_OUT, "aside": ASIDE}
    return next((side for side, words in kinds.items() if said in words), None)


def _rows(numbers: np.ndarray, source: ImageSource) -> tuple[str, ...]:
    """The ids of rows; raises `UserError` where images have names, since nothing says in which order the numbers counted them."""
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(f"it has {numbers.dtype} of the shape {numbers.shape}, and row numbers are whole numbers in one row")
    if source.ids[0] != "0" or source.ids[-1] != str(len(source) - 1):
        raise UserError(
            f"row numbers are of a table or an array, and the images of {source.name} have names such as {shown(source.ids[0])}: "
            "give the data as a table in the order that was counted, or a split file with names"
        )
    outside = numbers[(numbers < 0) | (numbers >= len(source))]
    if len(outside):
        count = f"{one_or_more(len(outside), 'of its numbers is no row', 'of its numbers are no rows')} of {shown(source.name)}"
        raise ValueError(f"{count}, which has {len(source):,}; first: {outside[0]}")
    return tuple(map(str, numbers.tolist()))


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"it lists {shown(twice)} twice")
    return names


def _rest(path: Path, members: tuple[str, ...], source: ImageSource) -> tuple[str, ...]:
    known = set(members)
    rest = tuple(image_id for image_id in source.ids if image_id not in known)
    other = f"image of {shown(source.name)} counts" if len(rest) == 1 else f"{len(rest):,} images of {shown(source.name)} count"
    say(f"note: {path} names members alone; the other {other} as held out")
    return rest


READERS: dict[str, Callable[[Path, ImageSource], Sides]] = {".npz": _npz, ".npy": _npy, ".txt": _txt, ".csv": _csv}
FORMS = {
    ".npz": "mia_train_idxs and mia_eval_idxs, row numbers of the data",
    ".npy": "the row numbers of the members, or True or False per row",
    ".txt": "the id of a member on each line",
    ".csv": "the columns file_name or id, and member (1 or 0) or split (train, test or val)",
}
