"""The class of every image: what the data says of it, and which of a model's classes that is.

Data says it by whole numbers (a label column, metadata), by names (the same, with text), or by folders. A number is the
model's class of that number. Names and folders are classes of a model only if

    they are the model's own class names, as its folder states them; or
    they are the class numbers; or
    they are as many as the model has classes: then in the order of trainers, which is that of `sorted`
                                               for folders and a column's own for one of class names

Anything else is refused, since a model that is given another class answers about another image. Members and held-out images
are numbered together, so that a name is one number.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from diffleak.data.metadata import malformed, metadata_rows, said_by
from diffleak.data.names import Names, UnclearName
from diffleak.errors import WHY, UserError, is_text, listed, of_them, one_or_more, refusing, shown

HOLDING = "labels as whole numbers or names"
FOLDERS = "the names of the folders"
# What the Hugging Face convention takes for a split, and what the sides of an audit are called; no classes by their number alone.
SPLITS = {"train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation"}
SPLITS |= {"member", "members", "nonmember", "nonmembers", "held-out", "heldout", "held_out", "holdout"}
LISTED = 5  # names in a message
DIGITS = 18  # of a whole number; a text of more of them is a name

Value = int | str | None
Numbers = tuple[int | None, ...]


class NoClasses(UserError):
    """Folders or names that are no classes of the model."""


@dataclass(frozen=True)
class Labels:
    """What data says of the class of every image; without `values` it is `folders` that say it.

    `values` are numbers or names, None where an image has none; `order` are the names of a column of class names, in the
    order of their numbers. `folders` is the path above every image. `origin` ends the sentence "labels from". `names` are those in the
    files that say the values.
    """

    values: tuple[Value, ...] = ()
    origin: str = "the data"
    order: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    names: Names | None = None


@dataclass(frozen=True)
class ClassNames:
    """The names that a model's folder gives its classes; empty where it states none.

    `origin` says where. `closed`: the names are those of the folders or columns that it was trained on, so that other names
    are no classes of it. `doubt`: why names and folders cannot be matched with its classes, where that is known.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    origin: str = ""
    closed: bool = False
    doubt: str = ""


UNNAMED = ClassNames()


@dataclass(frozen=True, eq=False)
class Numbered:
    """The class of every image as a number of the model, where it came from, and the number of every name that is none itself.

    `files`: the names of images in the files that say the labels.
    """

    numbers: Int64[np.ndarray, " n"]
    origin: str
    names: dict[str, int]
    files: tuple[Names, ...] = ()


@dataclass(frozen=True)
class Side:
    """Members or held-out images: what they are called in messages, what their data says, and which of it is meant."""

    name: str
    labels: Labels
    ids: tuple[str, ...]
    rows: Sequence[int]


# what data says


def folder_labels(root: Path, ids: tuple[str, ...]) -> Labels | None:
    """The `label`s of the metadata files, else the folders of the images; None where there are neither."""
    found: dict[str, Value] = {}
    files, alike = set(), set()
    for row in metadata_rows(root, ids, HOLDING):
        alike |= {column for column in row.values if "label" in column.lower()}
        if "label" not in row.values:
            continue
        try:
            value = label_value(row.values["label"])
        except ValueError as error:
            raise malformed(row.file, HOLDING, error) from None
        if found.get(row.image, value) != value:
            both = f"{shown(row.image)} has the labels {shown(found[row.image])} and {shown(value)}"
            raise UnclearName(f"{row.file} must give each image one label; {both}: keep the one that the model was trained on")
        found[row.image] = value
        files.add(row.file)
    if alike and "label" not in alike:
        raise _no_column(f"the metadata in {root}", sorted(alike))
    folders = tuple(image_id.rpartition("/")[0] for image_id in ids)
    if any(value is not None for value in found.values()):
        origin = " and ".join(sorted({file.name for file in files}))
        return Labels(tuple(found.get(i) for i in ids), origin, folders=folders, names=Names.of(said_by(root, files), found, ids))
    return Labels(origin=FOLDERS, folders=folders) if any(folders) else None


def possible_classes(labels: Labels | None) -> tuple[Value, ...]:
    """The class of every image where no model says which classes there are: its label, else its folder; nothing where there are none."""
    if labels is None or labels.values:
        return labels.values if labels else ()
    names = {folder.rpartition("/")[2].lower() for folder in labels.folders}
    return labels.folders if len(names - SPLITS) > 1 else ()


def table_labels(where: str, columns: Mapping[str, tuple[str, ...]], read: Callable[[str], list[Any]]) -> Labels | None:
    """The labels of a table: of its column `label`, else of its one column of class names; None where there is neither.

    columns: the class names of every column, in the order of their numbers, and none where it has none. Raises `UserError`
    for columns that may be meant and are not clear, and for a label that is neither a whole number nor a name.
    """
    column = label_column(columns)
    if column is None:
        if alike := _like_labels(columns):
            raise _no_column(where, alike)
        return None
    order = columns[column]
    with refusing(ValueError, f"the column {column} of {where} must hold {HOLDING} ({WHY})"):
        values = [label_value(value) for value in read(column)]
        if order:
            values = [_named(value, order) for value in values]
    if all(value is None for value in values):
        raise UserError(f"the column {column} of {where} must hold {HOLDING}; it holds none")
    return Labels(tuple(values), f"the column {column}", order)


def label_column(columns: Mapping[str, tuple[str, ...]]) -> str | None:
    """The column of a table that says the labels; None where there is none, or several that may be meant."""
    alike = _like_labels(columns)
    return "label" if "label" in columns else alike[0] if len(alike) == 1 and columns[alike[0]] else None


def _like_labels(columns: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [name for name, names in columns.items() if names or "label" in name.lower()]


def array_labels(where: str, arrays: Mapping[str, np.ndarray | None], count: int) -> Labels | None:
    """The labels of the one array named like labels that has a whole number or a name per image; None where there is no such name.

    arrays: the arrays named like labels, None for one that cannot be read. Raises `UserError` where none fits, or several.
    """
    if not arrays:
        return None
    long = {key: a for key, a in arrays.items() if a is not None and a.ndim and len(a) == count}
    fitting = [key for key, a in long.items() if a.shape == (count,) and a.dtype.kind in "iuU"]
    if len(fitting) != 1 or len(long) != 1:
        found = "; ".join(f"{key}: {'Python objects' if a is None else f'{a.dtype} {a.shape}'}" for key, a in sorted(arrays.items()))
        raise UserError(
            f"{where} must have one array of labels, a whole number or a name for each of its {count} images; "
            f"those named like labels are {shown(found, 120)}: keep the one that the model was trained on"
        )
    return Labels(tuple(label_value(value) for value in arrays[fitting[0]].tolist()), f"the array {fitting[0]}")  # type: ignore[union-attr]


def label_value(value: object) -> Value:
    """A label as a whole number, a name, or None where there is none; raises `ValueError` for anything else."""
    if isinstance(value, str) and is_text(value):
        return value.strip() or None
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63):
        return value
    raise ValueError(f"got the label {shown(json.dumps(value, default=str))}")


def _named(value: Value, order: tuple[str, ...]) -> Value:
    """The name of a class by its number in a column of class names, where -1 says that there is none."""
    if not isinstance(value, int):
        return value
    if not -1 <= value < len(order):
        raise ValueError(f"got the label {value} of {len(order)} class names")
    return None if value == -1 else order[value]


def _no_column(where: str, alike: Sequence[str]) -> UserError:
    return UserError(f"{where} must have its labels in a column `label`; it has {listed(alike)}: rename the one the model was trained on")


# which classes of a model that is


def number(sides: Sequence[Side], count: int, own: ClassNames) -> tuple[list[Numbers], str, dict[str, int]]:
    """The class in [0, count) of every image of every side, where it came from, and the number of every name.

    Raises `UserError` for names and folders that are no classes of the model, an image without a label, a label that is no
    class, and sides that number one name differently.
    """
    by_folder = [side for side in sides if not side.labels.values]
    named = [side for side in sides if any(isinstance(value, str) for value in side.labels.values)]
    if own.doubt and (by_folder or named):
        raise NoClasses(own.doubt)
    for side in sides:
        _refuse_unclear_numbers(side, own)
    names, how, level = _folder_numbers(by_folder, count, own) if by_folder else ({}, "", [])
    texts, told = _text_numbers(named, count, own) if named else ({}, "")
    differ = sorted(name for name in names.keys() & texts.keys() if names[name] != texts[name])
    if differ:
        first = differ[0]
        raise UserError(
            f"{' and '.join(side.name for side in sides)} must number a class alike; {shown(first)} is {names[first]} and {texts[first]}"
        )
    numbers: list[Numbers] = []
    origins = []
    for side in sides:
        if side in by_folder:
            numbers.append(tuple(names[name] for name in level[by_folder.index(side)]))
            origins.append(f"{side.labels.origin}, {how}")
        else:
            numbers.append(tuple(texts[value] if isinstance(value, str) else value for value in side.labels.values))
            origins.append(f"{side.labels.origin}, {told}" if told and side in named else side.labels.origin)
            _refuse_contradiction(side, numbers[-1], names)
        _refuse_outside(side, numbers[-1], count)
    unlike = len(set(origins)) > 1
    origin = " and ".join(f"{origin} ({side.name})" for side, origin in zip(sides, origins, strict=True)) if unlike else origins[0]
    return numbers, origin, dict(sorted({**names, **texts}.items(), key=lambda item: (item[1], item[0])))


def _refuse_unclear_numbers(side: Side, own: ClassNames) -> None:
    """Raises `UserError` for numbers beside names, and for a number that is the model's name of another class."""
    values = {side.labels.values[row] for row in side.rows} if side.labels.values else set()
    numbers, names = {v for v in values if isinstance(v, int)}, {v for v in values if isinstance(v, str)}
    if numbers and not _whole(names):
        raise UserError(
            f"labels must be all numbers or all names; the {side.name} have both by {side.labels.origin} "
            f"({min(numbers)} and {shown(min(names))})"
        )
    unclear = sorted(n for n in numbers if own.numbers.get(str(n), n) != n)
    if unclear:
        raise UserError(
            f"the label {unclear[0]} of the {side.name}, by {side.labels.origin}, may be the class {unclear[0]} or the class that the "
            f"model calls '{unclear[0]}', its number {own.numbers[str(unclear[0])]} by {own.origin}: give labels as text, which are names"
        )


def names_of(labels: Labels, count: int) -> dict[str, int]:
    """The number of every class that training data names: its folders or names define the classes there. Empty where it gives numbers.

    Names that are all whole numbers below `count` are those numbers; other names are numbered in their order. Raises
    `UserError` for folders of which it is not clear which are the classes.
    """
    if not labels.values:
        levels = _levels(labels.folders)
        usable = [level for level in levels if level.above and _whole(set(level.names))] or [level for level in levels if level.alone]
        if len(usable) != 1 or (len({*usable[0].names}) == 1 and not _whole({*usable[0].names})):
            raise NoClasses(
                f"the data must have its images in one folder per class, all at one depth; it has {_listed(labels.folders)}: "
                "move them, or give a `label` in metadata.jsonl"
            )
        names = {*usable[0].names}
    else:
        names = {*labels.order} or {value for value in labels.values if isinstance(value, str)}
        if names and not labels.order and _whole(names) and not _as_numbers(names, count):
            raise NoClasses(f"labels that are whole numbers must be different ones in [0, {count}); got {_few(sorted(names))}")
    if whole := _as_numbers(names, count):
        return dict(sorted(whole.items(), key=lambda item: item[1]))
    order = labels.order or sorted(names, key=lambda name: (int(name), name) if _whole(names) else (0, name))
    return {name: i for i, name in enumerate(order)}


@dataclass(frozen=True)
class _Level:
    """The folders at one depth: the name above every image; `above`: the folders above say nothing; `alone`: nor do those below."""

    names: tuple[str, ...]
    above: bool
    alone: bool


def _levels(folders: Sequence[str]) -> list[_Level]:
    """The depths at which every image is in a folder, from the top."""
    parts = [folder.split("/") if folder else [] for folder in folders]
    depth = min(map(len, parts))
    columns = [tuple(part[d] for part in parts) for d in range(depth)]
    silent = [len({*names}) == 1 or all(name.lower() in SPLITS for name in {*names}) for names in columns]
    even = all(len(part) == depth for part in parts)
    odd = [any(name.startswith(".") or name.lower() in SPLITS for name in {*names}) for names in columns]
    return [_Level(names, all(silent[:d]), even and all(silent[:d] + silent[d + 1 :]) and not odd[d]) for d, names in enumerate(columns)]


def _folder_numbers(sides: Sequence[Side], count: int, own: ClassNames) -> tuple[dict[str, int], str, list[tuple[str, ...]]]:
    """The number of every class folder, why it is that, and the class folder of every image of every side."""
    options = [_levels(side.labels.folders) for side in sides]

    known = lambda levels: _as_own(_union(levels), own)
    numeric = lambda levels: _as_numbers(_union(levels), count, own)

    def counted(levels: Sequence[_Level]) -> dict[str, int] | None:
        names = _union(levels)
        whole_set = any({*level.names} == names for level in levels)
        return _by_count(sorted(names), count, own) if whole_set and all(level.alone for level in levels) else None

    for rule, how in ((known, _by_own(own)), (numeric, _ARE_NUMBERS), (counted, _IN_ORDER)):
        fitting = [(levels, found) for levels in product(*options) if (found := rule(levels))]
        if len(fitting) == 1 and all(level.above for level in fitting[0][0]):
            levels, found = fitting[0]
            same = rule is known and _whole({*found}) and all(int(name) == i for name, i in found.items())
            return found, _ARE_NUMBERS if same else how, [level.names for level in levels]
        if fitting:
            break
    listed = ", ".join(f"{side.name} have {_listed(side.labels.folders)}" for side in sides)
    why = ", and it is not clear which of them are meant" if fitting else ""
    if not fitting and any(_whole({*level.names}) for levels in options for level in levels):
        why = f", named by numbers that are not all different ones from 0 to {count - 1}"
    as_many = "" if own.closed else f"if there are {count}, all at one depth, "
    raise NoClasses(
        f"the model is conditioned on one of {count} classes, so every image needs a label, and the folders are no classes: "
        f"{listed}{why}; folders count as classes {as_many}if they are named 0 to {count - 1}, or if they have the "
        f"model's own class names ({_own_listed(own)}): rename them, or give a `label` in metadata.jsonl"
    )


def _text_numbers(sides: Sequence[Side], count: int, own: ClassNames) -> tuple[dict[str, int], str]:
    """The number of every name in the labels, and why it is that, where it is not the number itself."""
    used = {value for side in sides for value in side.labels.values if isinstance(value, str)}
    every = used.union(*(side.labels.order for side in sides))
    orders = {side.labels.order for side in sides}
    if found := _as_own(used, own):
        return found, _by_own(own)
    if found := _as_numbers(every, count, own):
        return found, ""
    if len(orders) == 1 and (order := next(iter(orders))):
        if found := _by_count(order, count, own):
            return found, _IN_ORDER
        one_more = len(order) < count  # the model has a class for none, as for guidance
        if one_more and not (own.numbers or own.closed or _whole({*order})):
            return {name: i for i, name in enumerate(order)}, "by the numbers of that column"
    raise NoClasses(
        f"the model is conditioned on one of {count} classes, and the labels from {sides[0].labels.origin} are names that are no classes "
        f"of it ({_few(sorted(every))}); give labels as numbers from 0 to {count - 1}, or as the model's own class names "
        f"({_own_listed(own)})"
    )


_ARE_NUMBERS = "which are the class numbers"
_IN_ORDER = "in their order, as many as the model has classes"


def _by_own(own: ClassNames) -> str:
    return f"by the model's class names in {own.origin}"


def _as_own(names: set[str], own: ClassNames) -> dict[str, int] | None:
    return {name: own.numbers[name] for name in names} if names and names <= own.numbers.keys() else None


def _as_numbers(names: set[str], count: int, own: ClassNames | None = None) -> dict[str, int] | None:
    """Names that are class numbers, unless two are the same number or the model itself gives one another number."""
    if not names or not _whole(names):
        return None
    found = {name: int(name) for name in names}
    if len({*found.values()}) < len(names) or max(found.values()) >= count:
        return None
    return None if own and any(own.numbers.get(name, i) != i for name, i in found.items()) else found


def _by_count(order: Sequence[str], count: int, own: ClassNames) -> dict[str, int] | None:
    """As many names as the model has classes, in order, where nothing says otherwise: neither numbers nor names of its own."""
    if len(order) != count or _whole({*order}) or own.closed or any(name in own.numbers for name in order):
        return None
    return {name: i for i, name in enumerate(order)}


def _whole(names: set[str]) -> bool:
    return all(name.isascii() and name.isdecimal() and len(name) <= DIGITS for name in names)


def _union(levels: Sequence[_Level]) -> set[str]:
    return {name for level in levels for name in level.names}


def _refuse_contradiction(side: Side, numbers: Numbers, names: Mapping[str, int]) -> None:
    """Raises `UserError` for an image whose label differs from what the other side takes its folder for."""
    for row, folder in zip(side.rows, (side.labels.folders[i] for i in side.rows) if side.labels.folders and names else (), strict=False):
        for part in folder.split("/"):
            if names.get(part, numbers[row]) != numbers[row]:
                raise UserError(
                    f"both sides must number a class alike; {shown(side.ids[row])} of the {side.name} has the label "
                    f"{numbers[row]} by {side.labels.origin}, and the folder {shown(part)} of the other side is {names[part]}: "
                    "give both a `label`"
                )


def _refuse_outside(side: Side, numbers: Numbers, count: int) -> None:
    missing = [i for i in side.rows if numbers[i] is None]
    if missing:
        first, every = side.ids[missing[0]], f"the {len(side.rows):,} {side.name}"
        raise UserError(
            f"every image needs a label; {of_them(len(missing), every, 'has', 'have')} none by {side.labels.origin} "
            f"(first: {side.labels.names.beside(first) if side.labels.names else shown(first)})"
        )
    outside = [i for i in side.rows if not 0 <= (numbers[i] or 0) < count]
    if outside:
        raise UserError(
            f"labels must lie in [0, {count}), the model's classes; {of_them(len(outside), f'the {side.name}', 'does', 'do')} not "
            f"(first: {shown(side.ids[outside[0]])} has {numbers[outside[0]]})"
        )


def _listed(folders: Sequence[str]) -> str:
    """The folders of images: how many, and the first of them."""
    named = sorted({folder for folder in folders if folder})
    outside = sum(not folder for folder in folders)
    said = f"{one_or_more(len(named), 'folder')} ({_few(named)})" if named else "no folders"
    return said + (f" and {one_or_more(outside, 'image')} in none" if outside else "")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(partial(shown, limit=20), names[:LISTED])) + more


def _own_listed(own: ClassNames) -> str:
    return _few(sorted(own.numbers, key=lambda name: (own.numbers[name], name))) or "its folder states none"
