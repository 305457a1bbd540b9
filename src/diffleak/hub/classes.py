"""The class names in a model's folder: the id2label of a DiT pipeline, or what `diffleak train` recorded.

    MODEL/model_index.json   id2label: {number: "name, another name of it"}
    MODEL/train.json         classes: {name: number} of the data it was trained on, null where the data gave numbers
    MODEL/dual.json          classes, the same of the teachers

Version 0.1 recorded no names. It numbered the folders of the data by their paths in text order, unless a metadata.jsonl
gave labels; split.json shows which folders there were.
"""

import os
from pathlib import Path
from typing import Any

from diffleak.data.labels import UNNAMED, ClassNames
from diffleak.data.split import FILE, Split, find_split
from diffleak.errors import UserError
from diffleak.hub.configs import read_json
from diffleak.hub.folders import DUAL, INDEX

TRAINED = "train.json"
KEY = "classes"


def class_names(folder: Path, count: int) -> ClassNames:
    """The class names that a model's folder states; raises `UserError` unless they have numbers below `count`."""
    for name in (DUAL, TRAINED):
        if (folder / name).is_file():
            record = read_json(folder / name, "")
            if KEY in record:
                return _recorded(folder / name, record[KEY], count)
            if "schema_version" in record:  # written by this package
                return _of_version_0_1(folder, record, count)
    index = folder / INDEX
    stated = read_json(index, "").get("id2label") if index.is_file() else None
    return _id2label(index, stated, count) if stated else UNNAMED


def _recorded(path: Path, classes: Any, count: int) -> ClassNames:
    if classes is None:
        return UNNAMED
    if not isinstance(classes, dict) or not all(type(i) is int and 0 <= i < count for i in classes.values()):
        raise UserError(f"{path} must give classes as names with numbers below {count}; re-export the model")
    return ClassNames(classes, path.name, closed=True)


def _id2label(path: Path, stated: Any, count: int) -> ClassNames:
    """Every name and, as in DiTPipeline, the names between its commas; a name that several classes share is left out."""
    numbers = {str(i): i for i in range(count)}
    if not isinstance(stated, dict) or not stated.keys() <= numbers.keys() or not all(isinstance(text, str) for text in stated.values()):
        raise UserError(f"{path} must give id2label as names by numbers from 0 to {count - 1}; re-export the model")
    whole, parts = dict[str, set[int]](), dict[str, set[int]]()
    for key, text in stated.items():
        whole.setdefault(text.strip(), set()).add(numbers[key])
        for part in text.split(","):
            parts.setdefault(part.strip(), set()).add(numbers[key])
    of = {**parts, **whole}  # a whole name is no other class's because it is a part of that one's
    return ClassNames({name: next(iter(found)) for name, found in of.items() if name and len(found) == 1}, path.name)


def _of_version_0_1(folder: Path, record: dict[str, Any], count: int) -> ClassNames:
    """The names that version 0.1 numbered; a `doubt` unless there were no folders, or all are known and nothing else gave labels."""
    split = find_split(folder / FILE) or Split()
    ids = (*split.members, *split.nonmembers, *split.validation)
    paths = sorted({i.rpartition("/")[0] for i in ids})
    if ids and "" in paths:
        return UNNAMED  # some images were in no folder, so labels came from elsewhere
    names = [path.rpartition("/")[2] for path in paths]
    data = record.get("data")
    root = str(data)
    whole = os.path.isdir(root) and not record.get("split") and not os.path.isfile(os.path.join(root, "metadata.jsonl"))
    numeric = all(name.isascii() and name.isdecimal() for name in names)
    agree = numeric and all(int(name) == i for i, name in enumerate(names))  # by folders, and by labels that are those numbers
    sure = (agree and len(names) == count) or (whole and (agree or not numeric))
    if names and len({*names}) == len(names) <= count and sure:
        return ClassNames({name: i for i, name in enumerate(names)}, "split.json, in their order", closed=True)
    return ClassNames(
        doubt=f"{folder} was trained by version 0.1, which did not record the numbers of its class folders, so names cannot be matched "
        "with its classes: give labels as numbers, for example as `label` in metadata.jsonl, or train it again"
    )
