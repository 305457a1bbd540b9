"""`leakscope metrics`: a file of id, member, score → the statistics."""

from pathlib import Path

import numpy as np

from leakscope.errors import UserError, unknown
from leakscope.evaluation import evaluate
from leakscope.record import Result


def evaluate_file(path: Path, convention: str = "member-exact", column: str = "score") -> Result:
    """The statistics of a CSV or Parquet file with the columns id, member (0/1 or true/false) and `column`.

    A column `part` (calibrate / test), as in samples.csv, makes every number one of the test half. Raises `UserError` for
    a file that cannot be read, lacks a column, repeats an id, or holds anything but 0/1 members and finite scores.
    """
    table = _read(path)
    if len(table.column_names) == 1 and set(table.column_names[0]) & set(";\t"):
        raise UserError(f"{path} must separate its columns by commas; its first line is {table.column_names[0]!r}")
    twice = {name for name in table.column_names if table.column_names.count(name) > 1}
    if twice:
        raise UserError(f"{path} must have each column once; {min(twice)} is there twice")
    for name in ("id", "member", column):
        if name not in table.column_names:
            raise unknown(f"column of {path}", name, table.column_names)
    ids = table.column("id").to_pylist()
    if len(set(ids)) < len(ids):
        raise UserError(f"{path} must name each id once; it repeats {len(ids) - len(set(ids))}")
    member = _members(table, path)
    scores = _scores(table, path, column)
    test = _test_half(table, path) if "part" in table.column_names else None
    if not member.any() or member.all():
        raise UserError(f"{path} must hold members and non-members; it has {int(member.sum())} and {int((~member).sum())}")
    part = None if test is None or test.all() else (test[member], test[~member])
    names = np.array(ids, dtype=str)
    result = evaluate(scores[member], scores[~member], convention, part, (names[member].tolist(), names[~member].tolist()))
    return result.model_copy(update={"attack": column})


def _read(path: Path):  # type: ignore[no-untyped-def]  # pyarrow has no stubs
    import pyarrow as pa

    if not path.is_file():
        raise UserError(f"FILE must be a CSV or Parquet file of id,member,score; found nothing at {path}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path)
        from pyarrow import csv

        read = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types={"id": pa.string()}))
        _ = read.column_names  # decodes the header
        return read
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None


def _test_half(table, path: Path) -> np.ndarray:  # type: ignore[no-untyped-def]
    parts = table.column("part").to_pylist()
    odd = [p for p in parts if p not in ("calibrate", "test")]
    if odd:
        raise UserError(f"{path}: part must be calibrate or test; got {odd[0]}")
    return np.array([p == "test" for p in parts])


def _members(table, path: Path) -> np.ndarray:  # type: ignore[no-untyped-def]
    values = table.column("member").to_pylist()
    bad = next((v for v in values if v not in (0, 1)), None)  # True == 1
    if bad is not None or None in values:
        raise UserError(f"{path}: member must be 0 or 1; got {bad!r}")
    return np.array(values, dtype=bool)


def _scores(table, path: Path, column: str) -> np.ndarray:  # type: ignore[no-untyped-def]
    try:
        return np.array(table.column(column).to_pylist(), dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{path}: {column} must hold numbers; it is {table.column(column).type}") from None
