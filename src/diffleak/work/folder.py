"""Long work as rows in chunks: a .npy for each, written when it is finished and found again by the same plan."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffleak.errors import UserError
from diffleak.work.files import checked_folder, write_atomic, write_new
from diffleak.work.memory import memory_message
from diffleak.work.progress import progress
from diffleak.work.threads import Tick, one_thread_each, run_all

PLAN = "plan.json"
UNKNOWN = "unknown"  # the fingerprint of a model in memory, which nobody can tell from another


def cut(n: int, sizes: dict[str, int], device: str) -> dict[int, range]:
    """The rows of every chunk; depends on the kind of device, cpu or cuda, not on the batch size or the number of threads."""
    size = sizes["cpu" if device == "cpu" else "cuda"]
    return {start // size: range(start, min(start + size, n)) for start in range(0, n, size)}


def in_chunks(
    folder: Path,
    plan: dict[str, Any],
    chunks: dict[int, range],
    compute: Callable[[range, Tick], np.ndarray],
    *,
    what: str,
    made: str,
    bar: str,
    forwards: int,
    batch_size: int,
    threads: int,
) -> np.ndarray:
    """The rows of all chunks, in their order; chunks that `folder` has already are read, not computed again.

    plan: all that decides the rows, `model_fingerprint` among it; a folder belongs to one. compute(rows, tick): an array of as
    many rows, calling tick(forwards) after every batch. what: the rows' name, of the files too, and `made` how they depend on
    the plan, as in "images" "drawn with". bar: what is being done. forwards: how many a row takes.
    Raises `UserError` for a folder of another plan, a damaged chunk, and too little memory for `batch_size`.
    """
    checked_folder(folder)
    _refuse_another_plan(folder, plan, what, made)
    file = lambda chunk: folder / f"{what}-{chunk:05d}.npy"
    missing = {chunk: rows for chunk, rows in chunks.items() if not file(chunk).exists()}

    def job(path: Path, rows: range, tick: Tick) -> None:
        write_atomic(path, partial(_save, compute(rows, tick)))

    if missing:
        total, left = (forwards * sum(map(len, part.values())) for part in (chunks, missing))
        with one_thread_each(), progress(bar, total, "forwards", done=total - left) as advance, memory_message(batch_size):
            run_all([partial(job, file(chunk), rows) for chunk, rows in missing.items()], threads, advance)
    found: list[np.ndarray] = []
    for chunk, rows in chunks.items():
        found.append(_read(file(chunk), (len(rows), *(found[0].shape[1:] if found else ())), what))
    return np.concatenate(found)


def _refuse_another_plan(folder: Path, plan: dict[str, Any], what: str, made: str) -> None:
    path = folder / PLAN
    if write_new(path, json.dumps(plan, indent=2)):
        return
    if plan["model_fingerprint"] == UNKNOWN:
        raise UserError(
            f"{folder} holds {what} already, and nobody can tell whether they are of this model; "
            "choose another folder, or give diffleak.Target(denoiser, fingerprint=...)"
        )
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError(f"it holds a {type(before).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete {folder} to begin again") from None
    for key, value in plan.items():
        if before.get(key) != value and key != "model":  # a model may have moved
            raise UserError(
                f"{folder} holds {what} {made} {key.replace('_', ' ')} {before.get(key)}, now it is {value}; choose another folder"
            )


def _save(rows: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def _read(path: Path, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A chunk's rows, which begin with `shape`: their number and, after the first chunk, all of it."""
    try:
        rows: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise UserError(f"{path} is damaged; delete it and run the same command again") from None
    if rows.ndim == 0 or rows.shape[: len(shape)] != shape:
        raise UserError(f"{path} must hold {shape[0]} {what}; its array is {rows.shape}: delete it and run the same command again")
    return rows
