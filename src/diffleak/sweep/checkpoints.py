"""The checkpoints of a sweep: found by a pattern, looked at before anything starts, and put in the order of their training steps.

A step is read where all checkpoints have one of their own, in this order: `--steps`; the header of the file (`ss_steps` of kohya's
sd-scripts, `training_info` of ai-toolkit); the one number in which the names differ, as in name-000010.safetensors or checkpoint-500/;
train.json beside it, as `diffleak train` leaves it; `ss_epoch` in the header.

Patterns and adapters are looked at without torch, which takes seconds to load.
"""

import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from diffleak.auditing.config import AuditConfig
from diffleak.config import PATTERN
from diffleak.errors import WHY, UserError, listed, refusing, shown
from diffleak.records.headers import ADAPTER_FILES as ADAPTERS
from diffleak.records.headers import adapter_weight
from diffleak.work.listed import split_named, strength_of
from diffleak.work.progress import say
from diffleak.work.reading import PICKLES, STATE_DICTS, Unreadable, load_header, load_json

WEIGHTS = ".safetensors"
ONE_FILE = (WEIGHTS, *PICKLES)  # of a model in one file
KOHYA = re.compile(r"(.+)-(?:step)?(\d{6,})")
NARROWER = "narrow the pattern, or move it away"
OTHERS = "give another model, or leave it out"  # where models are named


@dataclass(frozen=True)
class Checkpoint:
    """One model of a sweep: what it is called, its place, and the training step that it is from."""

    name: str
    path: str
    step: int


@dataclass(frozen=True)
class Checkpoints:
    """All of a sweep in the order of their steps; `key` is the setting that names one, `source` says where the steps are from."""

    key: Literal["lora", "network", "model"]
    source: str
    found: tuple[Checkpoint, ...]


def checkpoints(config: AuditConfig) -> Checkpoints | None:
    """The checkpoints that a config names; None where it names one model.

    Raises `UserError` for patterns that match nothing, for what they match and is no checkpoint, for steps that cannot be found, and for
    --steps without a sweep.
    """
    check_model = partial(_check_model, do=OTHERS if config.sweep_models else NARROWER)
    swept: dict[Literal["lora", "network", "model"], tuple[list[str], Callable[[Path], None]]] = {
        "lora": (_adapters(config.lora), _check_adapter),
        "network": (_patterns(config.network), _check_network),
        "model": ([config.model, *config.sweep_models] if config.sweep_models else _patterns(config.model), check_model),
    }
    given = [key for key, (parts, _) in swept.items() if parts]
    if len(given) > 1:
        raise UserError(
            "the checkpoints must be adapters (a pattern in --lora), networks (one in --network) or models (--sweep-models): give one of "
            "these"
        )
    if not given:
        if config.steps:
            raise UserError(
                "--steps gives the training steps of several checkpoints, and here is only one: leave it out, or give a pattern"
            )
        return None
    key, (parts, check) = given[0], swept[given[0]]
    paths = [*dict.fromkeys(os.path.normpath(path) for part in parts for path in sorted(_matching(part), key=_by_number))]
    for path in paths if config.model_from is None else ():  # what a function of the user's own opens is its own affair
        check(Path(path))
    if config.drawings is not None:
        raise UserError("--drawings keeps the drawings of one model, and this audits several: leave it out, or audit one checkpoint")
    if len(paths) < 2:
        raise UserError(
            f"several checkpoints must be named or matched; found {listed(paths)} alone: to audit one, name it without a pattern and "
            "without --sweep-models"
        )
    return _ordered(key, paths, *_steps(paths, config.steps))


def adapters(pattern: str) -> Checkpoints:
    """The adapters that a pattern matches, or the one that it names; `source` is empty, and the step 0, for one alone.

    Raises `UserError` as `checkpoints` does.
    """
    paths = [*dict.fromkeys(os.path.normpath(path) for path in sorted(_matching(pattern), key=_by_number))]
    for path in paths:
        _check_adapter(Path(path), matched=not os.path.exists(pattern))
    return _ordered("lora", paths, *(_steps(paths, ()) if len(paths) > 1 else ("", (0,))))


def _ordered(key: Literal["lora", "network", "model"], paths: Sequence[str], source: str, steps: Sequence[int]) -> Checkpoints:
    named = zip(_names(paths), paths, steps, strict=True)
    return Checkpoints(key, source, tuple(sorted((Checkpoint(*each) for each in named), key=lambda each: each.step)))


def _adapters(given: str | None) -> list[str]:
    """The parts of --lora, where one is a pattern and no file with brackets in its name; none for adapters that are merged together."""
    parts = split_named(given, "--lora") if given else []
    whole = [
        (name, value) if value is None or os.path.exists(name) or strength_of(value) is not None else (f"{name}@{value}", None)
        for name, value in parts
    ]
    if not any(PATTERN.search(name) and not os.path.exists(name) for name, _ in whole):
        return []
    strong = next((f"{name}@{value}" for name, value in whole if value is not None), None)
    if strong:
        raise UserError(
            f"the adapters of a sweep have one strength, that of --lora-scale; {shown(strong, 150)} has another: leave out its @"
        )
    return [name for name, _ in whole]


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
        raise UserError(f"a pattern or name must match files or folders; nothing matches {shown(pattern, 150)}")
    return found


def _check_adapter(path: Path, matched: bool = True) -> None:
    """Raises `UserError` for what a pattern matches, or the user names, and is no adapter; of a file the header alone is read."""
    must = "the pattern must match adapters alone" if matched else f"an adapter must be a {WEIGHTS} file, or a folder with one"
    named, do = shown(path, 150), NARROWER if matched else "give the adapter, behind the model that it was made for"
    if path.is_dir():
        if not any((path / name).is_file() for name in ADAPTERS):
            raise UserError(f"{must}; {named} has none of {' and '.join(ADAPTERS)}: {do}")
        return
    if path.suffix.lower() != WEIGHTS:
        raise UserError(f"{must}{f', as {WEIGHTS} files or folders; it matches {named} too' if matched else f'; got {named}'}: {do}")
    with refusing(Unreadable, f"{must}; {named} cannot be read ({WHY}): {do}"):
        names = load_header(path).tensors
    if not adapter_weight(names):
        raise UserError(f"{must}; {named} is none (it holds {shown(next(iter(names), 'no weight'))}): {do}")


def _check_model(path: Path, do: str) -> None:
    """Raises `UserError` for a checkpoint that is no model, with advice; of a file the header alone is read, of a pickle nothing."""
    from diffleak.hub.folders import NETWORKS

    must, named = "the checkpoints of a sweep must be models", shown(path, 150)
    if path.is_file() and path.suffix.lower() in ONE_FILE:
        return _check_header(path, must, do)
    if not any((path / name).is_dir() for name in NETWORKS):
        raise UserError(f"{must}; {named} has no {' or '.join(f'{name}/' for name in NETWORKS)}: {do}")
    if not (path / "scheduler").is_dir():
        raise UserError(
            f"{must}; {named} holds a denoiser alone, as it has no scheduler/: audit the model that it was made from, --network PATTERN"
        )


def _check_network(path: Path) -> None:
    """Raises `UserError` for what a pattern matches and is no denoiser, as far as names and headers tell."""
    from diffleak.hub.folders import NETWORKS
    from diffleak.hub.weights import AVERAGE, chosen, copies

    must, named = "the pattern of --network must match denoisers alone", shown(path, 150)
    if path.is_file() and path.suffix.lower() in (WEIGHTS, *STATE_DICTS):
        return _check_header(path, must, NARROWER)
    parts = [f"{name}{more}" for name in NETWORKS for more in ("", AVERAGE)]
    holds = path.is_dir() and (any((path / part).is_dir() for part in parts) or chosen(copies(entry.name for entry in path.iterdir())))
    if not holds or any((path / name).is_file() for name in ADAPTERS):
        raise UserError(f"{must}; {named} is none: {NARROWER}")


def _check_header(path: Path, must: str, do: str) -> None:
    if path.suffix.lower() != WEIGHTS:
        return
    with refusing(Unreadable, f"{must}; {shown(path, 150)} cannot be read ({WHY}): {do}"):
        adapter = adapter_weight(load_header(path).tensors)
    if adapter:
        raise UserError(f"{must}; {shown(path, 150)} is an adapter (it holds {shown(adapter)}): give such with --lora, or {do}")


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
            raise UserError(f"--steps must give each of the {len(paths)} checkpoints a step of its own, in this order: {_in_order(paths)}")
        return "--steps", given
    headers = [_header(path) for path in paths]
    of_names, named = _in_names(paths)
    sources: tuple[tuple[str, Callable[[int], int | None]], ...] = (
        ("their headers", lambda i: _number(headers[i].get("ss_steps")) or _number(_object(headers[i].get("training_info")).get("step"))),
        (of_names, lambda i: named[i] if named else None),
        ("train.json", lambda i: _trained(Path(paths[i]))),
        ("ss_epoch in their headers", lambda i: _number(headers[i].get("ss_epoch"))),
    )
    for source, read in sources:
        steps = [step for step in map(read, range(len(paths))) if step is not None]
        if len(set(steps)) == len(paths):
            return source, steps
    raise UserError(
        f"each checkpoint needs a training step of its own; neither headers nor names give one for all {len(paths)}: "
        f"give --steps, one each in this order: {_in_order(paths)}"
    )


def _in_order(paths: Sequence[str]) -> str:
    """The names of the checkpoints as a message holds them; where it cannot hold all, they are all said before it, a line each."""
    names = _names(paths)
    cut = listed(names, 150)
    if cut != listed(names, sum(len(name) + 2 for name in names)):
        for number, name in enumerate(names, 1):
            say(f"checkpoint {number} of {len(names)}: {shown(name, 150)}")
    return cut


def _header(path: str) -> dict[str, str]:
    """The texts in the header of a checkpoint's file; empty for a folder of a model."""
    files = [Path(path) / name for name in ADAPTERS] if os.path.isdir(path) else [Path(path)]
    file = next((file for file in files if file.is_file() and file.suffix == WEIGHTS), None)
    try:
        return load_header(file).metadata if file else {}
    except Unreadable:
        return {}


def _in_names(given: Sequence[str]) -> tuple[str, list[int] | None]:
    """The steps in the names of files or folders, or of the folders that files of one name are in; and where they are from, in words.

    kohya's sd-scripts leave the number out of the name of the last one, NAME beside NAME-000010: it counts as one interval later.
    """
    paths = [Path(path) for path in given]
    stems = [path.stem if path.suffix.lower() in (WEIGHTS, *STATE_DICTS) else path.name for path in paths]
    if len(set(stems)) == 1:
        stems = [path.parent.name for path in paths]
    last = min(stems, key=len)
    before = [match for stem in stems if stem != last and (match := KOHYA.fullmatch(stem)) and match[1] == last]
    if len(before) < len(stems) - 1 or not before:
        return "their names", _numbers(stems)
    steps = sorted({0, *(int(match[2]) for match in before)})
    after = 2 * steps[-1] - steps[-2] if len(steps) > 1 else 1
    found = [after if stem == last else int(KOHYA.fullmatch(stem)[2]) for stem in stems]  # type: ignore[index]
    return f"their names, where {shown(last)} has none and counts as the last, one interval later", found


def _numbers(stems: Sequence[str]) -> list[int] | None:
    """The one number in which names differ; None for names that differ in anything else."""
    pieces = [re.split(r"(\d+)", stem) for stem in stems]
    if len({len(each) for each in pieces}) > 1:
        return None
    differ = [i for i, each in enumerate(zip(*pieces, strict=True)) if len(set(each)) > 1]
    return [int(each[differ[0]]) for each in pieces] if len(differ) == 1 and differ[0] % 2 else None


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
