"""`diffleak metrics`: a file of id, member, score → the statistics."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from diffleak.data.draw import calibrate_size
from diffleak.errors import WHY, UserError, listed, of_them, one_or_more, refusing, shown, unknown
from diffleak.records.audit import AuditRecord, Result
from diffleak.records.digests import AUDIT, refuse_edited
from diffleak.records.scores import Scores
from diffleak.stats.calibration import FEWEST, features
from diffleak.stats.evaluation import divided, evaluate, evaluate_calibrated, on_every_split, whole, without_timestep
from diffleak.stats.reasons import reworded
from diffleak.work.progress import doing, progress
from diffleak.work.reading import Unreadable, found_at, load_columns, load_parquet, opened, opened_parquet, parsing

COLUMNS = "id,member,score"
MUST = f"FILE must be a CSV or Parquet file of {COLUMNS}"
PARQUET = b"PAR1"
BEGINNINGS = {  # of the contents of other kinds, whatever their names end in
    b"PK\x03\x04": "a ZIP archive, as .npz, .pth and .xlsx files are",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "an array of numpy",
    b"\x89HDF": "an HDF5 file",
    b"ARROW1": "an Arrow file",
    b"\x80\x04": "pickled Python",
    b"{": "JSON",
    b"[": "JSON",
}
OTHERS = (".json", ".jsonl", ".npy", ".npz", ".pt", ".pth", ".pkl", ".gz", ".zip", ".xlsx")  # files of other kinds that people have
DEFAULT_FRACTION = 0.2  # of the images of an audit that settings are chosen on
TRUTH = {"true": 1.0, "false": 0.0}


class Table(NamedTuple):
    """The names of a file's columns, and what gives the values of one: text from CSV, as stored from Parquet.

    A column that is not used may hold anything. Numbers of Parquet without a missing one come as an array.
    """

    names: list[str]
    column: Callable[[str], list[Any] | np.ndarray]


class Read(NamedTuple):
    """What a file says of every image, checked; `test` is None without a column `part`."""

    ids: list[str]
    member: Bool[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]
    test: Bool[np.ndarray, " n"] | None


def evaluate_file(path: Path, convention: str = "member-exact", column: str = "score") -> Result:
    """The statistics of a CSV or Parquet file with the columns id, member (0/1 or true/false) and `column`.

    A column `part` (calibrate / test), as in samples.csv, makes every number one of the test part. Raises `UserError` for
    a file that cannot be read, lacks a column, repeats an id, or holds anything but 0/1 members and finite scores.
    """
    return evaluate_and_say(path, convention, column)[0]


def evaluate_and_say(path: Path, convention: str = "member-exact", column: str = "score") -> tuple[Result, str | None]:
    """The statistics of a file as `evaluate_file` gives them, and in words which number they are where the file has parts."""
    ids, member, scores, test = _checked(path, column)
    part = None if test is None or test.all() else (test[member], test[~member])
    names = [[*compress(ids, side.tolist())] for side in (member, ~member)]
    result = evaluate(scores[member], scores[~member], convention, part, (names[0], names[1]))
    if part is not None:
        assert test is not None, "there is a part only where there is a column of it"
        result = reworded(result, int(member.sum()), int((~member).sum()), _calibrate_fraction(path, member, ~test))
    else:
        achieved = reworded(result.achieved_fpr, int(member.sum()), int((~member).sum()), DEFAULT_FRACTION)
        result = result.model_copy(update={"achieved_fpr": achieved})
    result = result.model_copy(update={"attack": column})
    return result, None if part is None else _which_number(path, column, result)


def calibrate_file(path: Path, images: str | Path, column: str = "score") -> tuple[Result, Result]:
    """The statistics of a score file as it is, and with what the complexity of its images explains taken out (`stats.calibration`).

    images: DATA with an image for every id of the file. Both are of the test part: of the column `part`, or of four fifths of the
    images; in files of fewer than 200 a side they are medians over 25 divisions. Raises `UserError` as `evaluate_file`, for an id
    without an image, for too few held-out images to calibrate on, and for images of one complexity.
    """
    ids, member, scores, test = _checked(path, column)
    split = divided(tuple(ids), member, DEFAULT_FRACTION, 0)
    if test is not None and not test.all():
        split = replace(split, calibrate=~test[None], record=split.record.model_copy(update={"repeats": 1}))
    heldout = int((split.calibrate & ~member).sum(axis=1).min())
    if heldout < FEWEST:
        raise UserError(f"calibration takes {FEWEST} held-out images in the calibrate part; {path} has {heldout}")
    measured = _complexities(path, ids, images)
    if not np.ptp(measured[~member], axis=0).any():
        raise UserError(f"the held-out images of {images} must differ in complexity; all {int((~member).sum())} have the same")
    plain = on_every_split(Scores(column, "large", (0,), tuple(ids), scores[:, None]), member, split)
    both = (whole(plain)[0], whole(evaluate_calibrated(plain, features(measured), member, split))[0])
    return tuple(without_timestep(result) for result in both)  # type: ignore[return-value]


def _complexities(path: Path, ids: Sequence[str], images: str | Path) -> Float64[np.ndarray, "n 7"]:
    """The complexity of the image of each id of a score file."""
    from diffleak.data.complexity import NAMES, complexity  # these import what a score file alone does not need
    from diffleak.data.decoding import WITHOUT_HINTS, UnreadableImage
    from diffleak.data.names import matched
    from diffleak.data.sources import open_source

    source = open_source(images)
    meant, row = matched(path, ids, source.ids, [(source.name, "")]), {image_id: i for i, image_id in enumerate(source.ids)}
    lost = [image_id for image_id in ids if image_id not in meant]
    if lost:
        raise UserError(
            f"every id of {path} must be an image of {source.name}; {of_them(len(lost), f'{len(ids):,}')} none (first: "
            f"{shown(lost[0])}; its images are called {shown(source.ids[0])} and so on)"
        )
    found = np.empty((len(ids), len(NAMES)))
    with progress("complexity", len(ids), "images") as advance:
        for i, image_id in enumerate(ids):
            with refusing(UnreadableImage, WHY, WITHOUT_HINTS):
                found[i] = complexity(source.read(row[meant[image_id]]))
            advance()
    return found


def _checked(path: Path, column: str) -> Read:
    with doing(f"reading {shown(path, 120)}"):
        return _checked_columns(path, column)


def _checked_columns(path: Path, column: str) -> Read:
    refuse_edited(path.parent, only=path.name)
    table = _read(path)
    twice = [name for name, times in Counter(table.names).items() if times > 1]
    if twice:
        raise UserError(f"{path} must have each column once; {shown(twice[0])} is there twice")
    needed = ("id", "member", column)
    if not {*needed} & {*table.names}:
        raise UserError(f"{path} must begin with the names of its columns, {COLUMNS}; it begins with {listed(table.names, 120)}")
    for name in needed:
        if name not in table.names:
            raise unknown(f"column of {path}", name, table.names)
    ids = _ids(table, path)
    member = _members(table, path)
    scores = _scores(table, path, column)
    test = _test_half(table, path) if "part" in table.names else None
    if not member.any() or member.all():
        raise UserError(f"{path} must hold members and non-members; it has {int(member.sum())} and {int((~member).sum())}")
    return Read(ids, member, scores, test)


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

    refuse_edited(path.parent, only=AUDIT)
    try:
        return read_record(path.parent)
    except UserError:  # damaged, or of another version: nothing to compare with
        return None


def _which_number(path: Path, column: str, result: Result) -> str:
    """What the numbers of a file with parts are of, and why they are not those of the audit that wrote it.

    An audit of small sides reports medians over repeated divisions. samples.csv holds one of them, and the scores at the timestep
    that most of them chose.
    """
    said = (
        f"these numbers are of the {result.n_members + result.n_nonmembers} images of the test part, one division of the images in {path}"
    )
    record = _record_beside(path)
    if record and record.valid is False:
        return f"the audit of {path.parent} is invalid, so these numbers do not measure membership: {record.invalid_reason}"
    if record and record.split.unit != "image":
        counts = f"groups by {shown(record.plan.group)}" if record.split.unit == "group" else "near-duplicates as one image"
        said += f"; the audit counts {counts}, so its own numbers and intervals are others"
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
    found = found_at(path)
    if found != "a file":
        inside = f": give {path / 'samples.csv'}" if (path / "samples.csv").is_file() else ""
        raise UserError(f"{MUST}; found {found} at {path}{inside}")
    with refusing(Unreadable, f"{path} cannot be read ({WHY})"):
        with opened(path, None) as file:
            begins = file.read(8)
        if path.suffix.lower() in OTHERS and not begins.startswith(PARQUET):
            raise UserError(f"{MUST}; got a {path.suffix} file, {path}: write the scores as CSV")
        if kind := next((kind for mark, kind in BEGINNINGS.items() if begins.lstrip().startswith(mark)), None):
            raise UserError(f"{MUST}; {path} looks like {kind}: write the scores as CSV")
        return _read_parquet(path) if begins.startswith(PARQUET) or path.suffix.lower() == ".parquet" else _read_csv(path)


def _read_csv(path: Path) -> Table:
    names, values, odd = load_columns(path)
    if not names:
        raise Unreadable("it is empty")
    header = [name.strip() for name in names]
    if header[0].startswith("#"):
        raise UserError(f"{path} must begin with the names of its columns, {COLUMNS}; its first line is a comment: '{shown(header[0])}'")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        mark = next(mark for mark in ";\t|" if mark in header[0])
        raise UserError(f"the columns of {path} must be separated by commas, with a point in decimals; its first line has {mark!r}")
    if odd:
        raise UserError(f"{path} must have {len(header)} columns in every row; row {odd[0]} has {odd[1]}")
    return Table(header, lambda name: values[header.index(name)])


def _read_parquet(path: Path) -> Table:
    with opened_parquet(path) as file:
        schema = file.schema_arrow

    def column(name: str) -> list[Any] | np.ndarray:
        import pyarrow.types as types

        kind = schema.field(name).type
        if types.is_nested(kind):
            raise UserError(f"the columns of {path} must hold a text or a number in every row; {shown(name)} holds {shown(kind)}")
        with refusing(Unreadable, f"the column {shown(name)} of {path} cannot be read ({WHY})"):
            found = load_parquet(path, [name]).column(0)
            with parsing():
                plain = types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
                return found.to_numpy() if plain and not found.null_count else found.to_pylist()

    return Table(schema.names, column)


def _ids(table: Table, path: Path) -> list[str]:
    given = table.column("id")
    values = given.tolist() if isinstance(given, np.ndarray) else given
    if not {*map(type, values)} <= {str, int} or "" in values:
        missing = [row for row, value in enumerate(values, 1) if value in ("", None) or value != value]
        if missing:
            raise UserError(
                f"{path} must have an id in every row; {one_or_more(len(missing), 'has', 'have')} none (first: row {missing[0]:,})"
            )
    ids = list(map(str, values))
    if (distinct := len({*ids})) < len(ids):
        twice = next(image_id for image_id, times in Counter(ids).items() if times > 1)
        raise UserError(f"{path} must name each id once; it repeats {len(ids) - distinct:,} (first: {shown(twice)})")
    return ids


def _test_half(table: Table, path: Path) -> Bool[np.ndarray, " n"]:
    parts = table.column("part")
    odd = next(((row, part) for row, part in enumerate(parts, 1) if part not in ("calibrate", "test")), None)
    if odd:
        raise UserError(f"{path}: part must be calibrate or test; got {_got(odd[1])} in row {odd[0]:,}")
    return np.array([p == "test" for p in parts])


def _members(table: Table, path: Path) -> Bool[np.ndarray, " n"]:
    values = table.column("member")
    numbers = _numbers(values)
    bad = np.flatnonzero((numbers != 0) & (numbers != 1))
    if len(bad):
        raise UserError(f"{path}: member must be 0 or 1; got {_got(_value(values, int(bad[0])))} in row {bad[0] + 1:,}")
    return numbers.astype(bool)


def _scores(table: Table, path: Path, column: str) -> Float64[np.ndarray, " n"]:
    values = table.column(column)
    numbers = _numbers(values)
    unknown_ones = ((row, _value(values, row)) for row in np.flatnonzero(np.isnan(numbers)).tolist())
    bad = next(((row, value) for row, value in unknown_ones if value not in ("", None) and _number(value) is None), None)
    if bad:
        raise UserError(f"{path}: {shown(column)} must hold numbers; got '{shown(bad[1])}' in row {bad[0] + 1:,}")
    return numbers


def _got(value: Any) -> str:
    return "nothing" if value is None or value != value else shown(value) or "nothing"


def _value(values: Sequence[Any] | np.ndarray, row: int) -> Any:
    return values[row].item() if isinstance(values, np.ndarray) else values[row]


def _numbers(values: Sequence[Any] | np.ndarray) -> Float64[np.ndarray, " n"]:
    """A number for each value, NaN for one that is none."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64)
    try:
        return np.fromiter(map(float, values), np.float64, len(values))
    except (TypeError, ValueError, OverflowError):  # some are words, or missing
        found = map(_number, values)
        return np.fromiter((np.nan if number is None else number for number in found), np.float64, len(values))


def _number(value: Any) -> float | None:
    """A number or a truth value, in a type of its own or as text; None for anything else."""
    try:
        return TRUTH[value.lower()] if isinstance(value, str) and value.lower() in TRUTH else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
