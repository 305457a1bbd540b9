"""The checkpoints of a sweep: found by a pattern, looked at before anything starts, and put in the order of their training steps.

A step is read where all checkpoints have one of their own, in this order: `--steps`; the header of the file (`ss_steps` of kohya's
sd-scripts, `training_info` of ai-toolkit); the last number in the name, as in name-000010.safetensors or checkpoint-500/; train.json
beside it, as `diffleak train` leaves it; `ss_epoch` in the header.
"""

import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffleak.auditing.config import AuditConfig
from diffleak.errors import UserError, listed, shown
from diffleak.hub.adapters import FILES as ADAPTERS
from diffleak.hub.folders import NETWORKS
from diffleak.work.reading import Unreadable, load_header, load_json

PATTERN = re.compile(r"[*?[]")
WEIGHTS = ".safetensors"
NARROWER = "narrow the pattern, or move it away"
OF_ADAPTERS = re.compile(r"lora|hada_|lokr_|oft_|dora_|\.diff(_b)?$|\.alpha$")  # in the names of an adapter's weights


@dataclass(frozen=True)
class Checkpoint:
    """One model of a sweep: what it is called, its place, and the training step that it is from."""

    name: str
    path: str
    step: int


@dataclass(frozen=True)
class Checkpoints:
    """All of a sweep in the order of their steps; `key` is the setting that names one, `source` says where the steps are from."""

    key: str
    source: str
    found: tuple[Checkpoint, ...]


def checkpoints(config: AuditConfig) -> Checkpoints | None:
    """The checkpoints that a config names; None where it names one model.

    Raises `UserError` for patterns that match nothing, for what they match and is no checkpoint, for steps that cannot be found, and for
    --steps without a sweep.
    """
    loras = _patterns(config.lora)
    models = [config.model, *config.sweep_models] if config.sweep_models else _patterns(config.model)
    if loras and models:
        raise UserError("a sweep is over adapters (a pattern in --lora) or over models (--sweep-models), not over both")
    if not loras and not models:
        if config.steps:
            raise UserError("--steps are the training steps of several checkpoints, and one is audited: leave it out, or give a pattern")
        return None
    key, check = ("lora", _check_adapter) if loras else ("model", _check_model)
    paths = [*dict.fromkeys(os.path.normpath(path) for part in loras or models for path in sorted(_matching(part), key=_by_number))]
    for path in paths:
        check(Path(path))
    if len(paths) < 2:
        raise UserError(f"a sweep needs two checkpoints at least; found {listed(paths)}: name it without * to audit one")
    source, steps = _steps(paths, config.steps)
    named = zip(_names(paths), paths, steps, strict=True)
    return Checkpoints(key, source, tuple(sorted((Checkpoint(*each) for each in named), key=lambda each: each.step)))


def _patterns(given: str | None) -> list[str]:
    """The parts of a setting that is a pattern, between commas; none for one that names a single thing."""
    if given is None or os.path.exists(given) or not PATTERN.search(given):
        return []
    return [part.strip() for part in given.split(",") if part.strip()]


def _matching(pattern: str) -> list[str]:
    if os.path.exists(pattern):
        return [pattern]
    found = glob.glob(os.path.expanduser(pattern), recursive=True)
    if not found:
        raise UserError(f"a pattern of a sweep must match files or folders; nothing matches {shown(pattern, 150)}")
    return found


def _check_adapter(path: Path) -> None:
    """Raises `UserError` for what a pattern matches and is no adapter; of a file the header alone is read."""
    must, named = "the pattern of --lora must match adapters alone", shown(path, 150)
    if path.is_dir():
        if not any((path / name).is_file() for name in ADAPTERS):
            raise UserError(f"{must}; {named} has none of {' and '.join(ADAPTERS)}: {NARROWER}")
        return
    if path.suffix.lower() != WEIGHTS:
        raise UserError(f"{must}, as {WEIGHTS} files or folders; it matches {named} too: {NARROWER}")
    try:
        names = load_header(path).tensors
    except Unreadable as error:
        raise UserError(f"{must}; {named} cannot be read ({error}): {NARROWER}") from None
    if not any(OF_ADAPTERS.search(name) for name in names):
        raise UserError(f"{must}; {named} is none (it holds {shown(next(iter(names), 'no weight'))}): {NARROWER}")


def _check_model(path: Path) -> None:
    if not (any((path / name).is_dir() for name in NETWORKS) or (path.is_file() and path.suffix.lower() == WEIGHTS)):
        parts = " or ".join(f"{name}/" for name in NETWORKS)
        raise UserError(f"the checkpoints of a sweep must be models; {shown(path, 150)} has no {parts}: {NARROWER}")


def _by_number(path: str) -> list[tuple[int, int, str]]:
    """The key of an order in which a-10 comes behind a-9."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", path) if part]


def _names(paths: Sequence[str]) -> list[str]:
    """A name for each, which its run folder has: of the file or folder, with as much of what is above as tells them apart."""
    parts = [[part for part in Path(path.removesuffix(WEIGHTS)).parts if part != os.sep] for path in paths]
    for deep in range(1, max(map(len, parts)) + 1):
        names = ["-".join(each[-deep:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _steps(paths: Sequence[str], given: Sequence[int]) -> tuple[str, Sequence[int]]:
    """Where the steps are from, and the step of each path."""
    if given:
        if len(given) != len(paths) or len(set(given)) < len(given):
            asked = f"--steps must give each of the {len(paths)} checkpoints a step of its own"
            raise UserError(f"{asked}, in this order: {listed(paths, 200)}")
        return "--steps", given
    headers = [_header(path) for path in paths]
    sources: tuple[tuple[str, Callable[[int], int | None]], ...] = (
        ("their headers", lambda i: _number(headers[i].get("ss_steps")) or _number(_object(headers[i].get("training_info")).get("step"))),
        ("their names", lambda i: _in_name(Path(paths[i]))),
        ("train.json", lambda i: _trained(Path(paths[i]))),
        ("ss_epoch in their headers", lambda i: _number(headers[i].get("ss_epoch"))),
    )
    for source, read in sources:
        steps = [step for step in map(read, range(len(paths))) if step is not None]
        if len(set(steps)) == len(paths):
            return source, steps
    raise UserError(
        f"each checkpoint of a sweep needs a training step of its own; neither headers nor names give all {len(paths)} of them one: "
        f"give --steps, one each in this order: {listed(paths, 150)}"
    )


def _header(path: str) -> dict[str, str]:
    """The texts in the header of a checkpoint's file; empty for a folder of a model."""
    files = [Path(path) / name for name in ADAPTERS] if os.path.isdir(path) else [Path(path)]
    file = next((file for file in files if file.is_file() and file.suffix == WEIGHTS), None)
    try:
        return load_header(file).metadata if file else {}
    except Unreadable:
        return {}


def _in_name(path: Path) -> int | None:
    """The last number in the name of a file or folder, else of the folder that a file is in."""
    stem = path.stem if path.suffix == WEIGHTS else path.name
    numbers = re.findall(r"\d+", stem) or (re.findall(r"\d+", path.parent.name) if path.suffix == WEIGHTS else [])
    return int(numbers[-1]) if numbers else None


def _trained(path: Path) -> int | None:
    try:
        record = load_json((path if path.is_dir() else path.parent) / "train.json")
    except (OSError, ValueError):
        return None
    return _number(record.get("steps")) if isinstance(record, dict) else None


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> int | None:
    text = str(value)
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None
