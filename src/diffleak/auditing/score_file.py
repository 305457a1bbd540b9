"""`diffleak metrics`: a file of id, member, score → the statistics."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from diffleak.data.draw import calibrate_size
from diffleak.errors import UserError, unknown
from diffleak.records.audit import AuditRecord, Result
from diffleak.stats.evaluation import evaluate
from diffleak.stats.reasons import reworded

OTHERS = (".json", ".jsonl", ".npy", ".npz", ".pt", ".pth", ".pkl", ".gz", ".zip", ".xlsx")  # files of other kinds that people have
DEFAULT_FRACTION = 0.2  # of the images of an audit that settings are chosen on
TRUTH = {"true": 1.0, "false": 0.0}


class Table(NamedTuple):
    """The names of a file's columns, and what gives the values of one: text from CSV, as stored from Parquet."""

    names: list[str]
    column: Callable[[str], list[Any]]


def evaluate_file(path: Path, convention: str = "member-exact", column: str = "score") -> Result:
    """The statistics of a CSV or Parquet file with the columns id, member (0/1 or true/false) and `column`.

    A column `part` (calibrate / test), as in samples.csv, makes every number one of the test part. Raises `UserError` for
    a file that cannot be read, lacks a column, repeats an id, or holds anything but 0/1 members and finite scores.
    """
    table = _read(path)
    if len(table.names) == 1 and set(table.names[0]) & set(";\t"):
        raise UserError(f"{path} must separate its columns by commas; its first line is {table.names[0]!r}")
    twice = {name for name in table.names if table.names.count(name) > 1}
    if twice:
        raise UserError(f"{path} must have each column once; {min(twice)} is there twice")
    for name in ("id", "member", column):
        if name not in table.names:
            raise unknown(f"column of {path}", name, table.names)
    ids = table.column("id")
    if len(set(ids)) < len(ids):
        raise UserError(f"{path} must name each id once; it repeats {len(ids) - len(set(ids))}")
    member = _members(table, path)
    scores = _scores(table, path, column)
    test = _test_half(table, path) if "part" in table.names else None
    if not member.any() or member.all():
        raise UserError(f"{path} must hold members and non-members; it has {int(member.sum())} and {int((~member).sum())}")
    part = None if test is None or test.all() else (test[member], test[~member])
    names = np.array(ids, dtype=str)
    result = evaluate(scores[member], scores[~member], convention, part, (names[member].tolist(), names[~member].tolist()))
    if part is not None:
        assert test is not None, "there is a part only where there is a column of it"
        result = reworded(result, int(member.sum()), int((~member).sum()), _calibrate_fraction(path, member, ~test))
    else:
        achieved = reworded(result.achieved_fpr, int(member.sum()), int((~member).sum()), DEFAULT_FRACTION)
        result = result.model_copy(update={"achieved_fpr": achieved})
    return result.model_copy(update={"attack": column})


def _calibrate_fraction(path: Path, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> float:
    """The fraction that was set: the audit's own, the default where that gives these parts, else what they come to."""
    record = _record_beside(path)
    if record:
        return record.split.calibrate_fraction
    sides = [(int(side.sum()), int((side & calibrate).sum())) for side in (member, ~member)]
    default = all(calibrate_size(given, DEFAULT_FRACTION) == set_apart for given, set_apart in sides)
    return DEFAULT_FRACTION if default else round(float(np.mean(calibrate)), 2)


def _record_beside(path: Path) -> AuditRecord | None:
    """The audit that a samples.csv is of; None where there is none to read."""
    if path.name != "samples.csv" or not (path.parent / "audit.json").is_file():
        return None
    from diffleak.report.judgement import read_record  # imports more than a score file needs

    try:
        return read_record(path.parent)
    except UserError:  # damaged, or of another version: nothing to compare with
        return None


def which_number(path: Path, column: str, result: Result) -> str | None:
    """What the numbers of a file with parts are of, and why they are not those of the audit that wrote it; None without parts.

    An audit of small sides reports medians over repeated divisions. samples.csv holds one of them, and the scores at the timestep
    that most of them chose.
    """
    table = _read(path)
    if "part" not in table.names or set(table.column("part")) == {"test"}:
        return None
    said = (
        f"these numbers are of the {result.n_members + result.n_nonmembers} images of the test part, one division of the images in {path}"
    )
    record = _record_beside(path)
    if record and record.valid is False:
        return f"the audit of {path.parent} is invalid, so these numbers do not measure membership: {record.invalid_reason}"
    own = next((r.auc.value for r in record.results if r.attack == column), None) if record else None
    if record is None or own is None or record.split.repeats == 1:
        return said
    return (
        f"{said}; the audit's own AUC is {own:.3f}, the median over {record.split.repeats} random divisions, each at the timestep or "
        "setting that its calibrate part chose"
    )


def backwards(result: Result) -> str | None:
    """A question where the whole interval of the AUC lies below one half; None elsewhere."""
    high = result.auc.high
    asks = "the interval of the AUC lies below 0.5: are lower scores those of members? Then give their negative, as higher means member"
    return asks if high is not None and high < 0.5 else None


def _read(path: Path) -> Table:
    if not path.is_file():
        raise UserError(f"FILE must be a CSV or Parquet file of id,member,score; found nothing at {path}")
    if path.suffix.lower() in OTHERS:
        raise UserError(f"FILE must be a CSV or Parquet file of id,member,score; got a {path.suffix} file, {path}: write the scores as CSV")
    return _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)


def _read_csv(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if not lines:
        raise UserError(f"{path} cannot be read (it is empty)")
    header, *rows = lines
    if header[0].startswith("#"):
        raise UserError(
            f"{path} must begin with the names of its columns, id,member,score; its first line is a comment: {header[0][:60]!r}"
        )
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        mark = next(mark for mark in ";\t|" if mark in header[0])
        raise UserError(f"the columns of {path} must be separated by commas, with a point in decimals; its first line has {mark!r}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"{path} must have {len(header)} columns in every row; row {number} has {len(row)}")
    return Table(header, lambda name: [row[header.index(name)] for row in rows])


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path.absolute())
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None
    for column in table.schema:
        if pa.types.is_nested(column.type):
            raise UserError(f"the columns of {path} must hold a text or a number in every row; {column.name} holds {str(column.type)[:60]}")
    return Table(table.column_names, lambda name: table.column(name).to_pylist())


def _test_half(table: Table, path: Path) -> Bool[np.ndarray, " n"]:
    parts = table.column("part")
    odd = [p for p in parts if p not in ("calibrate", "test")]
    if odd:
        raise UserError(f"{path}: part must be calibrate or test; got {odd[0]}")
    return np.array([p == "test" for p in parts])


def _members(table: Table, path: Path) -> Bool[np.ndarray, " n"]:
    values = table.column("member")
    numbers = [_number(value) for value in values]
    bad = [value for value, number in zip(values, numbers, strict=True) if number not in (0, 1)]
    if bad:
        raise UserError(f"{path}: member must be 0 or 1; got {bad[0] or None}")
    return np.array(numbers, dtype=bool)


def _number(value: Any) -> float | None:
    """A number or a truth value, in a type of its own or as text; None for anything else."""
    try:
        return TRUTH[value.lower()] if isinstance(value, str) and value.lower() in TRUTH else float(value)
    except (TypeError, ValueError):
        return None


def _scores(table: Table, path: Path, column: str) -> Float64[np.ndarray, " n"]:
    values = [np.nan if value in ("", None) else value for value in table.column(column)]
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        odd = next(value for value in values if _number(value) is None)
        raise UserError(f"{path}: {column} must hold numbers; got {odd!r}") from None
