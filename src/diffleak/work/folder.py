"""Long work in a folder: it belongs to one plan, its work is cut into chunks, and the same command resumes.

    claim the folder for a plan → cut the work into chunks → deal them to workers → run the missing ones → load

A chunk is the names of its files, and a chunk whose files exist is done. Files are written whole or not at all, so workers need
not talk to each other, an interruption loses the chunks in flight alone, and merging is reading the folder. Every file carries a
checksum: one that was damaged since is moved aside, and its chunk is missing again.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.lib.recfunctions import repack_fields

from diffleak.errors import WHY, UserError, of_system, refusing, shown
from diffleak.work.files import check_seal, checked_folder, seal, write_atomic, write_new
from diffleak.work.memory import memory_message
from diffleak.work.progress import progress, say
from diffleak.work.reading import Unreadable, load_json, load_npy
from diffleak.work.threads import Tick, one_thread_each, run_all

PLAN = "plan.json"
UNKNOWN = "unknown"  # the fingerprint of a model in memory, which nothing tells from another

K = TypeVar("K")
T = TypeVar("T")
Chunks = Mapping[K, Sequence[str | Path]]  # the files of each chunk, relative to the folder


class Change(NamedTuple):
    """A key of a plan whose value is another one than before."""

    key: str
    before: Any
    now: Any


PLANNED = {  # what the keys of a plan are called in a message, unless they are settings of the command
    "diffleak": "version of diffleak",
    "model_fingerprint": "model",
    "data_fingerprint": "set of images",
    "lora": "LoRA",
    "lora_scale": "scale of the LoRA",
    "embedding": "set of embeddings",
    "weights": "choice of weights",
    "schema_version": "version of the plan",
    "images": "number of images",
    "prompts": "list of prompts",
    "prompts_fingerprint": "list of prompts",
    "ids": "choice of images",
    "labels": "choice of classes",
    "steps": "number of steps",
    "rounds": "number of adaptive rounds",
    "draw": "choice of --no-draw",
    "k": "step of the t-error",
    "at_once": "number of images in a forward (--batch-size)",
    "dtype": "precision (--dtype)",
    "faster": "precision (--exact)",
}
HASH = re.compile(r"(sha256:)?[0-9a-f]{40,}")
Refusal = Callable[[Sequence[Change]], str]  # the message for a folder of another plan, of which these keys differ


@dataclass(frozen=True)
class Folder:
    """A folder of long work; nothing is written before `claim`."""

    path: Path

    def claim(
        self,
        plan: Mapping[str, Any],
        refusal: Refusal,
        *,
        file: str = PLAN,
        text: str | None = None,
        read: Callable[[], Mapping[str, Any]] | None = None,
        free: Collection[str] = (),
        again: UserError | None = None,
    ) -> bool:
        """Makes the folder the plan's own; True when it was free, False when it belongs to this very plan already.

        Of workers that start together exactly one is first. file: where the plan is kept. text: the plan as it is written, by
        default JSON. read: the plan of a folder that is not free, by default the JSON object in `file`; what earlier versions did
        not write is filled in there. free: keys that may differ. again: the error for a folder of this very plan, which does not
        say enough to resume (see `unnamed`). Raises `UserError` with `refusal` for the folder of another plan, and for a folder that
        cannot be written or whose plan cannot be read.
        """
        path = checked_folder(self.path) / file
        if write_new(path, text or json.dumps(plan, indent=2)):
            return True
        refuse_changes(read() if read else read_object(path, f"delete {self.path} to begin again"), plan, refusal, free)
        if again:
            raise again
        return False

    def unnamed(
        self, what: str, whose: str = "of this model", advice: str = "give diffleak.Target(denoiser, fingerprint=...)"
    ) -> UserError:
        """The error for a second claim of a plan that does not name its model, by default: the folder's work may be another one's."""
        return UserError(f"{self.path} holds {what}, and nothing says that they are {whose}; choose another folder, or {advice}")

    def missing(self, chunks: Chunks[K]) -> list[K]:
        """The chunks that are not done."""
        return [chunk for chunk, files in chunks.items() if not all((self.path / file).exists() for file in files)]

    def run(
        self,
        chunks: Chunks[K],
        job: Callable[[K, Tick], object],
        cost: Callable[[K], int],
        *,
        bar: str,
        unit: str,
        batch_size: int,
        threads: int,
    ) -> None:
        """Calls job(chunk, tick) for every missing chunk, `threads` of them side by side on one CPU thread each.

        A job writes the files of its chunk, and calls tick(n) after n of its cost(chunk) units. bar, unit: what the progress bar
        shows. The first failure in the order of the chunks stops the others at their next tick. Raises `UserError` for too little
        memory for `batch_size`.
        """
        todo = self.missing(chunks)
        if not todo:
            return
        total, left = (sum(map(cost, part)) for part in (chunks, todo))
        with one_thread_each(), progress(bar, total, unit, done=total - left) as advance, memory_message(batch_size):
            run_all([partial(job, chunk) for chunk in todo], threads, advance)

    def verify(self, chunks: Chunks[K], check: Callable[[K, Path], object] = lambda chunk, path: check_seal(path)) -> None:
        """Moves aside every file of the chunks for which check(chunk, path) raises `Unreadable`, and says so."""
        there = [(chunk, self.path / file) for chunk, files in chunks.items() for file in files if (self.path / file).exists()]
        with progress("checking", len(there), "files") as advance:
            for chunk, path in there:
                try:
                    check(chunk, path)
                except Unreadable as error:
                    say(f"{path} is damaged ({error}): it is now {set_aside(path).name}, and its chunk is done again", every=True)
                advance()

    def save(self, file: str, rows: np.ndarray) -> None:
        """Writes an array as a .npy file with a checksum at its end."""

        def write(path: Path) -> None:
            with path.open("wb") as stream:
                np.save(stream, rows, allow_pickle=False)
            seal(path)

        write_atomic(self.path / file, write, private=True)

    def load(self, file: str) -> np.ndarray:
        """The array in a .npy file; raises `UserError` for a damaged one, which is moved aside."""
        path = self.path / file
        try:
            check_seal(path)
            return load_npy(path)
        except Unreadable as error:
            raise damaged(path, error) from None


def damaged(path: Path, reason: Unreadable) -> UserError:
    """The error for a file of finished work that cannot be read; it is moved aside, so that its work is done again."""
    aside = f"it is now {set_aside(path).name}; " if path.exists() else ""
    return UserError(f"{path} is damaged ({reason}): {aside}run the same command again")


def set_aside(path: Path) -> Path:
    """Renames a damaged file, or a folder of such files, so that it counts as missing; returns its new path."""
    aside = path.with_name(f"{path.name}.damaged")
    with refusing(OSError, f"{path} is damaged and cannot be moved away ({WHY}); delete it and run the same command again", of_system):
        if aside.is_dir():
            shutil.rmtree(aside)
        return path.rename(aside)


def cut(n: int, size: int) -> dict[int, range]:
    """The rows of every chunk of n; `size` depends on neither the batch size nor the number of threads or workers."""
    return {start // size: range(start, min(start + size, n)) for start in range(0, n, size)}


def deal(chunks: Sequence[T], rank: int, count: int) -> Sequence[T]:
    """The chunks of worker `rank` of `count`: every count-th one."""
    return chunks[rank::count]


def in_chunks(
    folder: Folder,
    plan: Mapping[str, Any],
    chunks: Mapping[int, range],
    compute: Callable[[range, Tick], np.ndarray],
    *,
    what: str,
    made: str,
    bar: str,
    forwards: int,
    batch_size: int,
    threads: int,
    kind: np.dtype | None = None,
    fields: Sequence[str] | None = None,
    first: Callable[[Sequence[range]], None] | None = None,
) -> np.ndarray:
    """The rows of all chunks, in their order, from a folder that keeps each chunk as one .npy file.

    plan: all that decides the rows, `model_fingerprint` among it; the key `model` may differ, since a model may have moved.
    compute(rows, tick): an array of as many rows, calling tick(forwards) after every batch. what: the rows' name, of the files too,
    and `made` how they depend on the plan, as in "images" "drawn with". forwards: how many a row takes. kind: the dtype of the rows, by
    default that of the first chunk. fields: of rows with fields, those that are returned; the others stay on disk (see `row_on_disk`).
    first: is called once with the rows of the chunks that are missing, if any are.
    Raises `UserError` for a folder of another plan, a damaged chunk, and too little memory for `batch_size`.
    """

    def refusal(changed: Sequence[Change]) -> str:
        return f"{folder.path} holds {what} {made} {another(changed[0])}; choose another folder"

    files = {chunk: chunk_file(what, chunk) for chunk in chunks}
    work, cost = {chunk: [file] for chunk, file in files.items()}, lambda chunk: forwards * len(chunks[chunk])
    job = lambda chunk, tick: folder.save(files[chunk], compute(chunks[chunk], tick))
    unnamed = folder.unnamed(what) if plan["model_fingerprint"] == UNKNOWN else None
    folder.claim(plan, refusal if unnamed is None else lambda changed: str(unnamed), free={"model"}, again=unnamed)
    folder.verify(work)
    if first and (missing := folder.missing(work)):
        first([chunks[chunk] for chunk in missing])
    folder.run(work, job, cost, bar=bar, unit="forwards", batch_size=batch_size, threads=threads)
    found: list[np.ndarray] = []
    for chunk, file in files.items():
        rows, count = folder.load(file), len(chunks[chunk])
        kind = rows.dtype if kind is None else kind
        alike = rows.dtype == kind and (not found or rows.shape[1:] == found[0].shape[1:])
        if rows.ndim == 0 or len(rows) != count or not alike:
            raise UserError(
                f"{folder.path / file} must hold {count} {what}; its array is {rows.shape}: delete it and run the same command again"
            )
        found.append(rows if fields is None else repack_fields(rows[list(fields)]))
    return np.concatenate(found)


def row_on_disk(folder: Folder, what: str, chunks: Mapping[int, range], row: int) -> np.void:
    """One row of those that `in_chunks` wrote, with all of its fields; raises `UserError` for a damaged chunk."""
    chunk, rows = next((chunk, rows) for chunk, rows in chunks.items() if row in rows)
    return folder.load(chunk_file(what, chunk))[row - rows.start].copy()  # type: ignore[no-any-return]


def chunk_file(what: str, chunk: int) -> str:
    """The file of a chunk that `in_chunks` wrote."""
    return f"{what}-{chunk:05d}.npy"


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], refusal: Refusal, free: Collection[str] = ()) -> None:
    """Raises `UserError` with `refusal` when a key of `now` that is not `free` had another value before; a missing one was null."""
    changed = [Change(key, before.get(key), value) for key, value in now.items() if key not in free and before.get(key) != value]
    if changed:
        raise UserError(refusal(changed))


def another(changed: Change) -> str:
    """What is another one than before, with both values where a reader can tell them apart: "another number of steps (4, now 5)"."""
    key, *values = changed
    plain = all(value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)) for value in values)
    short = ["none" if value is None else shown(value) for value in values]
    said = f" ({short[0]}, now {short[1]})" if plain and not any(HASH.match(value) for value in short) else ""
    return f"another {named(key)}{said}"


def named(key: str, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """What a key of a plan is called in a message: by the `names` that a command has for its own (`diffleak.config.names_of`), or words."""
    return names.get(key) or PLANNED.get(key) or key.replace("_", " ")


def spelled(changed: Sequence[Change], names: Mapping[str, str] = MappingProxyType({})) -> str:
    """The first three changes in words, with long values cut: "--seed was 0, now 1; another set of images". names: as in `named`."""
    return "; ".join(_told(named(key, names), before, now) for key, before, now in changed[:3])


def _told(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        key = next((key for key in before | now if before.get(key) != now.get(key)), None)
        return f"another {name}" if key is None else _told(f"{key} of {name}", before.get(key), now.get(key))
    values = [_plainly(value) for value in (before, now)]
    return f"another {name}" if any(map(HASH.search, values)) else f"{name} was {values[0]}, now {values[1]}"


def _plainly(value: Any) -> str:
    """A value of a plan as a person writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple | dict) or value is None:
        return shown(", ".join(map(str, value))) if value else "none"
    return shown(value)


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in a file; raises `UserError` with `advice` for anything else."""
    with refusing(Unreadable, f"{path} cannot be read ({WHY}); {advice}"):
        found = load_json(path)
        if not isinstance(found, dict):
            raise Unreadable(f"it holds a {type(found).__name__}")
    return found
