"""What a model card ends with: how its record was made, when and by which version. A card is public: it names no path and no image."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any, TypeVar

from diffleak.errors import visible
from diffleak.records.base import Record
from diffleak.records.plan import Adapter
from diffleak.report.section import Facts, Section
from diffleak.report.sections import FOR_THE_FILE
from diffleak.report.wording import at_scale, last_part, last_parts, moment

R = TypeVar("R", bound=Record)

# options that name files of a person's machine, and what a reader puts there
PLACES = {
    **dict.fromkeys(("--pictures", "--members", "--images"), "IMAGES"),
    **dict.fromkeys(("--held-out", "--nonmembers"), "HELD-OUT"),
    **dict.fromkeys(("--output", "-o"), "OUT"),
    "--control": "CONTROLS",
    "--data": "DATA",
    "--split": "SPLIT",
    "--drawings": "DRAWINGS",
    "--anonymous-key": "KEY",
    "--captions": "CAPTIONS",
    "--group": "COLUMN",
}
CHOICES = ("own", "empty", "swapped")  # of captions, which are no file
LISTS = ("--lora", "--embedding")


def section(record: Any, rows: Iterable[tuple[str, str]], digests: Iterable[tuple[str, str]] = ()) -> Section:
    """These rows, and those of every record; digests: names of files and their SHA-256."""
    return Section("file", FOR_THE_FILE, (Facts((*rows, *_rows(record, digests))),), FOR_THE_FILE, FOR_THE_FILE)


def _rows(record: Any, digests: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    version = record.diffleak if hasattr(record, "diffleak") else record.environment.diffleak
    if record.command.startswith("diffleak "):
        yield "Command", visible(command(record.command))
    yield "Finished", visible(moment(record.created))
    yield "Tool", f"diffleak {visible(version)}"
    for name, sha256 in digests:
        yield name, f"SHA-256 {sha256}"


def command(line: str) -> str:
    """A command line without the paths of a person's machine: of models and adapters the last part, of images and folders a word."""
    parts, flag = list[str](), ""
    for part in shlex.split(line):
        parts.append(public_value(flag, part))
        flag = part if part.startswith("-") else ""
    return " ".join(part if part in PLACES.values() else shlex.quote(part) for part in parts)


def public_value(flag: str, value: str) -> str:
    """The value of an option without the paths of a person's machine."""
    if value.startswith("-") or (flag == "--images" and value.isdecimal()) or (flag == "--captions" and public_captions(value) == value):
        return value
    if flag in PLACES or not _is_path(value):
        return PLACES.get(flag, value)
    if flag in LISTS:
        return last_parts(value)
    shown = re.sub(r"(?<==)[^,()]*", lambda found: of_file(found[0]), value) if flag == "--attacks" else of_file(value)
    return last_part(shown) if _is_path(shown) else shown


def of_file(value: str) -> str:
    """An encoder or a file without the path: sscd:/data/x.pt as sscd:x.pt; what is no path stays."""
    kind = re.match(r"\w{2,}:|", value)
    assert kind, "an empty one if no other"
    return f"{kind[0]}{last_part(value[kind.end() :])}" if _is_path(value) else value


def without_files(record: R, labels: Iterable[str]) -> R:
    """The record with no path in the labels of attacks, wherever it has them: black_box(encoder=sscd:/data/x.pt) is given a file."""
    found = {value for label in labels for value in _parameters(label) if _is_path(value)}
    return type(record).model_validate(_replaced(record.model_dump(), sorted(found, key=len, reverse=True))) if found else record


def _replaced(value: Any, files: Sequence[str]) -> Any:
    """The same with `of_file` of each file, in all texts at any depth."""
    if isinstance(value, dict):
        return {_replaced(key, files): _replaced(each, files) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, files) for each in value)
    return reduce(lambda text, file: text.replace(file, of_file(file)), files, value) if isinstance(value, str) else value


def _parameters(label: str) -> list[str]:
    """The values in the brackets of a label such as black_box(encoder=clip,n=5)[excess]."""
    within = re.fullmatch(r"[^(]*\((.*)\)(\[.*\])?", label)
    return [part.partition("=")[2] for part in re.split(r",\s*(?=\w+=)", within[1])] if within else []


def _is_path(value: str) -> bool:
    return not {"/", "\\"}.isdisjoint(value)


def public_captions(choice: str) -> str:
    """The choice of captions, without the path of a file."""
    return choice if choice in CHOICES or choice.startswith("fixed:") else "a captions file"


def model_rows(name: str, fingerprint: str | None, adapters: Iterable[Adapter] = ()) -> Iterator[tuple[str, str]]:
    """The model and its adapters, each by the last part of its path and its hash."""
    yield "Model", last_part(name)
    if fingerprint:
        yield "Hash of the model", visible(fingerprint)
    for adapter in adapters:
        yield "Adapter", f"{last_part(adapter.name)} {at_scale(adapter.strength)}, sha256:{visible(adapter.sha256)}"
