"""split.json: which images a model was trained on, which were held out, and the halves of a defence."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffleak.data.sources import ImageSource
from diffleak.errors import UserError

FILE = "split.json"
DEFENDED = ("student", "dual", "teacher-1", "teacher-2")  # folders of a defence, whose split lies in the folder above
Role = Literal["member", "nonmember", "validation", "other half"]


@dataclass(frozen=True)
class ModelSplit:
    """What a model's split.json says of each id, and the data that its ids are of, where that is known."""

    path: Path
    roles: dict[str, Role]
    data: str | None


def own_split(folder: Path) -> Path | None:
    """The split.json of the model, or adapter, in a folder."""
    beside = folder / FILE
    above = folder.parent / FILE
    if not beside.is_file() and folder.name in DEFENDED and "halves" in (_json(above) or {}):
        return above
    return beside if beside.is_file() else None


def read_model_split(path: Path, audited: Path | None = None) -> ModelSplit | None:
    """The split.json of a model, with the other half where it is a teacher's; None for a file that says nothing of members."""
    content = _json(path)
    lists = {key: _ids((content or {}).get(key, [])) for key in ("members", "nonmembers", "validation")}
    if content is None or None in lists.values() or not lists["members"]:
        return None
    roles: dict[str, Role] = {}
    for key, role in (("nonmembers", "nonmember"), ("validation", "validation"), ("members", "member")):
        roles.update(dict.fromkeys(lists[key] or (), role))  # type: ignore[arg-type]
    for file in (path.parent.parent / FILE, audited):
        roles.update(dict.fromkeys(_other_half(file, set(lists["members"])), "other half") if file else {})
    trained = [path.parent / "train.json", *(path.parent / name / "train.json" for name in ("teacher-1", "teacher"))]
    trained += [path.parent.parent / "teacher-1" / "train.json"] if path.parent.name in DEFENDED else []
    return ModelSplit(path, roles, next((data for file in trained if (data := _training_data(_json(file) or {}))), None))


def _training_data(record: dict[str, Any]) -> str | None:
    """The data that a train.json names: its path, or a name such as `digits`. A relative path alone may be any folder's, and is none."""
    data, path = record.get("data"), record.get("data_path")
    if isinstance(path, str):
        return path
    return data if isinstance(data, str) and (data == "digits" or data.startswith("hf:") or Path(data).is_absolute()) else None


def _other_half(file: Path, members: set[str]) -> tuple[str, ...]:
    """The half of a defence that the model with these members was not trained on."""
    halves = (_json(file) or {}).get("halves")
    if not isinstance(halves, list) or len(halves) != 2:
        return ()
    one, two = (_ids(half) or () for half in halves)
    return two if set(one) == members else one if set(two) == members else ()


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _ids(listed: object) -> tuple[str, ...] | None:
    return tuple(map(str, listed)) if isinstance(listed, list) else None


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
