"""What a model card ends with: how its record was made, when and by which version. A card is public: it names no path and no image."""

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from diffleak.errors import visible
from diffleak.records.plan import Adapter
from diffleak.report.section import Facts, Section
from diffleak.report.sections import FOR_THE_FILE
from diffleak.report.wording import last_part, moment

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
        parts.append(_public(flag, part))
        flag = part if part.startswith("-") else ""
    return " ".join(part if part in PLACES.values() else shlex.quote(part) for part in parts)


def _public(flag: str, value: str) -> str:
    if value.startswith("-") or (flag == "--images" and value.isdecimal()) or (flag == "--captions" and public_captions(value) == value):
        return value
    return PLACES.get(flag) or (last_part(value) if {"/", "\\"} & {*value} else value)


def public_captions(choice: str) -> str:
    """The choice of captions, without the path of a file."""
    return choice if choice in CHOICES or choice.startswith("fixed:") else "a captions file"


def model_rows(name: str, fingerprint: str | None, adapters: Iterable[Adapter] = ()) -> Iterator[tuple[str, str]]:
    """The model and its adapters, each by the last part of its path and its hash."""
    yield "Model", last_part(name)
    if fingerprint:
        yield "Hash of the model", visible(fingerprint)
    for adapter in adapters:
        yield "Adapter", f"{last_part(adapter.name)} at {adapter.strength:g}, sha256:{visible(adapter.sha256)}"
