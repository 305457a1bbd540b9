"""split.json, written and read here alone: which images a model was trained on, which were held out, and the halves of a defence.

    members      [ids]                  images that the model was trained on
    nonmembers   [ids]                  images held out, none of which was trained on
    validation   [ids]                  images that training set aside to stop early; without early stopping the key is left out
    halves       [[ids], [ids]]         of a defence with two teachers: the members that each teacher was trained on
    teachers     [fingerprint] * 2      of a finished defence with two teachers: the model of each half
    drawn        {how, seed, held_out, together}     how the sides were drawn; left out where nothing is known of that

Ids are those of the data. A file of somebody else may have `members` and `nonmembers` alone, or be of another kind (`split_files`).
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffleak.data.image_source import ImageSource
from diffleak.data.names import matched
from diffleak.data.split_files import read_sides
from diffleak.errors import UserError, listed, of_them, one_or_more, shown
from diffleak.work.files import write_text
from diffleak.work.reading import Unreadable, load_json

FILE = "split.json"
DEFENDED = ("student", "dual", "teacher-1", "teacher-2")  # folders of a defence, whose split lies in the folder above
Role = Literal["member", "nonmember", "validation", "other half"]
Ids = tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """How the sides of a split were drawn."""

    how: Literal["share", "coin"]
    """"share": as many held-out images as `held_out` asks for; "coin": an independent fair coin decided the side of each unit."""
    seed: int
    """Seed of the draw."""
    held_out: float
    """Share of the images to hold out, in (0, 1); of a coin, the probability that a unit is held out, 0.5."""
    together: tuple[Ids, ...] = ()
    """Units of two images or more, which stand on one side as a whole; every other image is a unit of its own."""

    @classmethod
    def of(cls, value: object) -> "Drawn | None":
        """The content of the key `drawn`; None for anything else."""
        if not isinstance(value, dict):
            return None
        how, seed, held_out, together = (value.get(key) for key in ("how", "seed", "held_out", "together"))
        units = [_ids(unit) for unit in together] if isinstance(together, list) else []
        if (
            how not in ("share", "coin")
            or type(seed) is not int
            or isinstance(held_out, bool)
            or not isinstance(held_out, int | float)
            or None in units
        ):
            return None
        return cls(how, seed, float(held_out), tuple(unit for unit in units if unit is not None))


@dataclass(frozen=True)
class Split:
    """What split.json says; a key that it lacks, or that is no list, is empty here."""

    members: Ids = ()
    """Images that the model was trained on."""
    nonmembers: Ids = ()
    """Images held out from training."""
    validation: Ids = ()
    """Images set aside from the members to stop training early, on which nothing was trained."""
    halves: tuple[Ids, Ids] | None = None
    """Members that either teacher of a defence was trained on; null for other models."""
    teachers: tuple[str, str] | None = None
    """Fingerprint of the model of each half; null until both are trained, and for other models."""
    drawn: Drawn | None = None
    """How the sides were drawn; null where nothing is known of that."""

    @classmethod
    def read(cls, path: Path, *needs: str) -> "Split":
        """The content of a file; raises `Unreadable`, or `ValueError` where it lacks one of the keys `needs`."""
        content = load_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        found: dict[str, Any] = {key: _ids(content.get(key)) for key in ("members", "nonmembers", "validation")}
        found |= {"halves": _two(content.get("halves"), _ids), "teachers": _two(content.get("teachers"), str)}
        found["drawn"] = Drawn.of(content.get("drawn"))
        lacking = [key for key in needs if found[key] is None]
        if lacking:
            raise ValueError(f"it has {listed(content, 120) or 'nothing'}, and no list {lacking[0]}")
        return cls(**{key: value for key, value in found.items() if value is not None})

    def write(self, folder: Path) -> None:
        """Writes split.json into a folder, for its owner only: it names the training images."""
        write_text(folder / FILE, self.text, private=True)

    @property
    def text(self) -> str:
        """The content of the file."""
        lists = {"members": self.members, "nonmembers": self.nonmembers}
        optional: dict[str, Any] = {"validation": self.validation or None, "halves": self.halves, "teachers": self.teachers}
        optional["drawn"] = asdict(self.drawn) if self.drawn else None
        return json.dumps(lists | {key: value for key, value in optional.items() if value is not None})

    def other_half(self, members: Ids) -> Ids:
        """The half of a defence that the model with these members was not trained on; none for other models."""
        first, second = self.halves or ((), ())
        return second if set(first) == set(members) else first if set(second) == set(members) else ()


def _ids(listed: object) -> Ids | None:
    return tuple(map(str, listed)) if isinstance(listed, list) else None


def _two(listed: object, of: Callable[[Any], Any]) -> tuple[Any, Any] | None:
    if not isinstance(listed, list) or len(listed) != 2:
        return None
    first, second = map(of, listed)
    return None if first is None or second is None else (first, second)


def find_split(path: Path, *needs: str) -> Split | None:
    """The content of a file; None where there is none, or it lacks one of the keys `needs`."""
    try:
        return Split.read(path, *needs)
    except (OSError, ValueError):
        return None


def read_split(path: Path, source: ImageSource) -> tuple[Ids, Ids]:
    """The members and nonmembers of a split file, JSON or of a kind that `read_sides` reads, checked against the ids of `source`.

    The ids may be spelled in another way than the data does (`diffleak.data.names`); given are those of the data. Raises `UserError` for
    a file without the two lists, an id that the data does not have, or one that is on both sides.
    """
    sides = read_sides(path, source)
    if sides is None:
        split = _required(path, "split file ", '{"members": [ids], "nonmembers": [ids]}', "members", "nonmembers")
        sides = split.members, split.nonmembers
    meant = matched(path, sides[0] + sides[1], source.ids, [(source.name, "")])
    missing = [i for i in sides[0] + sides[1] if i not in meant]
    if missing:
        raise UserError(
            f"{path} names {one_or_more(len(missing), 'id')} that {source.name} does not have (first: {shown(missing[0])}; "
            f"its ids look like {shown(source.ids[0])})"
        )
    members, nonmembers = (tuple(meant[i] for i in side) for side in sides)
    both = set(members) & set(nonmembers)
    if both:
        raise UserError(f"{path} has {one_or_more(len(both), 'id')} on both sides (first: {shown(min(both))})")
    if len(set(members)) + len(set(nonmembers)) != len(members) + len(nonmembers):
        raise UserError(f"{path} must list each id once; one is there twice: remove it")
    if not members:
        raise UserError(f"{path} must name at least one member")
    return members, nonmembers


def read_drawn(path: Path, source: ImageSource) -> Drawn | None:
    """How the sides of a split file were drawn, with the ids of `source`; None for a file that does not say it."""
    split = find_split(path, "members", "nonmembers")
    if split is None or split.drawn is None:
        return None
    meant = matched(path, [i for unit in split.drawn.together for i in unit], source.ids, [(source.name, "")])
    return replace(split.drawn, together=tuple(tuple(meant.get(i, i) for i in unit) for unit in split.drawn.together))


def read_halves(path: Path) -> tuple[Ids, Ids]:
    """What either teacher of a file was trained on, in the order of the file; raises `UserError` unless it has two halves with images."""
    halves = _required(path, "halves ", '{"halves": [IDS OF THE FIRST, IDS OF THE SECOND]}', "halves").halves
    if halves is None or not all(halves):
        raise UserError(f"{path} must give both halves at least one image")
    return halves


class Defence(NamedTuple):
    """The split.json of a finished defence with two teachers."""

    path: Path
    """Path of the file."""
    halves: tuple[Ids, Ids]
    """Members that either teacher was trained on; disjoint, and none is empty."""
    teachers: tuple[str, str]
    """Fingerprint of the model of each half."""


def read_defence(path: Path) -> Defence:
    """The halves and the teachers of a defence; raises `UserError` unless it has two disjoint, non-empty halves of its members."""
    form = '{"members": [ids], "halves": [[ids], [ids]], "teachers": [fingerprint, fingerprint]}, as `diffleak defend` writes it'
    split = _required(path, "halves file ", form, "members", "halves", "teachers")
    assert split.halves is not None and split.teachers is not None
    (first, second), members = split.halves, set(split.members)
    others = [i for i in first + second if i not in members]
    if others:
        are = of_them(len(others), "their ids")
        raise UserError(f"{path}: the halves must be made of members; {are} not (first: {shown(others[0])})")
    both = set(first) & set(second)
    if both or not first or not second:
        found = f"{one_or_more(len(both), 'id is', 'ids are')} in both (first: {shown(min(both))})" if both else "one is empty"
        raise UserError(f"{path}: the halves must be disjoint and hold images; {found}")
    return Defence(path, split.halves, split.teachers)


def _required(path: Path, what: str, form: str, *needs: str) -> Split:
    try:
        return Split.read(path, *needs)
    except Unreadable as error:
        raise UserError(f"the {what}{path} cannot be read ({error}); it must be JSON of the form {form}") from None
    except ValueError as error:
        raise UserError(f"{path} must be JSON of the form {form} ({error})") from None


@dataclass(frozen=True)
class ModelSplit:
    """What a model's split.json says of each image, and the data that its ids are of."""

    path: Path
    """Path of the file."""
    roles: dict[str, Role]
    """Role of every image that the file lists, by its id; "other half" is what the other teacher of a defence was trained on."""
    data: str | None
    """Data that the model was trained on: a path, or a name such as `digits`; None where no train.json says it."""
    trained: bool
    """True where a train.json is there: then training wrote the file, which else may be of other images."""


def own_split(folder: Path) -> Path | None:
    """The split.json of the model, or adapter, in a folder."""
    beside, above = folder / FILE, folder.parent / FILE
    if not beside.is_file() and folder.name in DEFENDED and find_split(above, "halves"):
        return above
    return beside if beside.is_file() else None


def read_model_split(path: Path, audited: Path | None = None) -> ModelSplit | None:
    """The split.json of a model, with the other half where it is a teacher's; None for a file that says nothing of members.

    audited: the split file of an audit, which may have the halves of a teacher's defence.
    """
    split = find_split(path, "members")
    if split is None or not split.members:
        return None
    roles: dict[str, Role] = {
        **dict.fromkeys(split.nonmembers, "nonmember"),
        **dict.fromkeys(split.validation, "validation"),
        **dict.fromkeys(split.members, "member"),
    }
    for file in (path.parent.parent / FILE, audited):
        defence = find_split(file, "halves") if file else None
        roles.update(dict.fromkeys(defence.other_half(split.members) if defence else (), "other half"))
    trained = [path.parent / "train.json", *(path.parent / name / "train.json" for name in ("teacher-1", "teacher"))]
    trained += [path.parent.parent / "teacher-1" / "train.json"] if path.parent.name in DEFENDED else []
    data = next((data for file in trained if (data := _training_data(file))), None)
    return ModelSplit(path, roles, data, any(file.is_file() for file in trained))


def _training_data(file: Path) -> str | None:
    """The data that a train.json names: its path, or a name such as `digits`. A relative path alone may be any folder's, and is none."""
    try:
        record = load_json(file)
        data, path = record.get("data"), record.get("data_path")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(path, str):
        return path
    return data if isinstance(data, str) and (data == "digits" or data.startswith("hf:") or Path(data).is_absolute()) else None
