"""digests.json: the SHA-256 of every file that a command left in a folder, and the comparison of a folder with it. No torch.

Digests find an edit that was made by accident or without care: who edits a file and digests.json too is not found, unless a copy of
`whole` was kept elsewhere, as in the printed report. They prove no authorship.

    whole = SHA-256 of the lines "<sha256>  <path>" of plan.json, audit.json, samples.csv and scores/*.parquet, sorted by path

which is what `sha256sum plan.json audit.json samples.csv scores/*.parquet | LC_ALL=C sort -k2 | sha256sum` prints.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from diffleak.errors import DiffleakError, UserError, shown
from diffleak.records.base import Record, Version, read_json
from diffleak.work.files import hash_file, write_text
from diffleak.work.reading import Unreadable

FILE = "digests.json"
AUDIT, SAMPLES, PLAN, REPORT = "audit.json", "samples.csv", "plan.json", "report.html"
SWEEP = "sweep.json"
SCORES = "scores/*.parquet"
MADE_WITH_IT = ("geometry.parquet", "influence.npy", "complexity.parquet", "chosen.json")
MAY_CHANGE = (REPORT, "report.pdf", "quality.html", "compare.html", "prompts.html")  # written again from the records
KEPT_BACK = ("anonymous.key", "ids.csv")  # of an anonymous run, and never passed on
BOOKKEEPING = ("seconds", "latents", "influence", "distortion", "reconstruction", "generated", ".inputs")  # folders of no result

Status = Literal["recorded", "edited", "missing", "unknown"]


class Digests(Record):
    """digests.json."""

    schema_version: Literal[1] = 1
    """Version of these fields."""
    diffleak: Version
    """Version of this package that wrote the file last."""
    created: str
    """Time in UTC at which the file was written last, as ISO 8601."""
    files: dict[str, str]
    """SHA-256 of each file in hexadecimal, by its path in the folder, with / between its parts."""
    whole: str | None = None
    """SHA-256 over the digests of plan.json, audit.json, samples.csv and scores/*.parquet; null for a folder without an audit."""


class Checked(NamedTuple):
    """A file of a folder, by its path there, and what its digest says of it."""

    path: str
    status: Status


class Sealed(NamedTuple):
    """What a report prints of the files beside it."""

    audit: str
    """SHA-256 of audit.json."""
    whole: str
    """SHA-256 over all files of the record (see `Digests.whole`)."""
    files: int
    """Number of these files."""


class RecordEdited(DiffleakError):
    """A file is not as it was recorded (exit code 1)."""


def digest(text: str) -> str:
    """The SHA-256 of a text as it is written to disk."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def whole(files: Mapping[str, str]) -> str:
    """The SHA-256 over the digests of files, by their paths."""
    return digest("".join(f"{found}  {path}\n" for path, found in sorted(files.items(), key=lambda item: item[0].encode())))


def record_files(folder: Path, written: Mapping[str, str] | None = None) -> dict[str, str]:
    """The digest of each file that an audit's record is made of; `written`: digests of files that are about to be written."""
    known = dict(written or {})
    there = [folder / name for name in (PLAN, AUDIT, SAMPLES) if (folder / name).is_file()] + sorted(folder.glob(SCORES))
    paths = [path.relative_to(folder).as_posix() for path in there]
    return {**_hashed(folder, (path for path in paths if path not in known)), **known}


def sealed(folder: Path, audit: str | None = None) -> Sealed:
    """What the report of a folder prints; `audit`: the text of audit.json where that is about to be written."""
    files = record_files(folder, {AUDIT: digest(audit)} if audit is not None else None)
    return Sealed(files[AUDIT], whole(files), len(files))


def write_audit_digests(folder: Path) -> None:
    """Writes the digests of all that an audit left; those of other commands' files in the folder stay."""
    files = record_files(folder)
    beside = _hashed(folder, (name for name in (*MADE_WITH_IT, REPORT) if (folder / name).is_file()))
    _write(folder, files | beside, whole(files), lambda path: path.startswith("scores/") or path in MADE_WITH_IT)


def add_digests(folder: Path, names: Iterable[str]) -> None:
    """Writes the digests of these files beside those that the folder has already."""
    before = _read(folder)
    _write(folder, _hashed(folder, names), total=before.whole if before else None)


def update_report(folder: Path, name: str = REPORT) -> None:
    """Writes the digest of a report that was made again; does nothing for a folder without digests, whose record nobody vouched for."""
    if _read(folder):
        add_digests(folder, (name,))


def verify(folder: str | Path) -> tuple[Checked, ...]:
    """Compares a finished run, or a sweep and each run in it, with its digests: a line for every file, the edited ones first.

    Raises `UserError` for a folder without digests, such as the run of an earlier version.
    """
    folder = Path(folder)
    digests = _read(folder)
    if digests is None:
        finished = any((folder / name).is_file() for name in (AUDIT, SWEEP))
        if not finished:
            raise UserError(f"RUN must be the folder of a finished audit or sweep; {folder} has no {FILE}")
        raise UserError(
            f"{folder} has no {FILE}, so nothing says what its files were: it is of an earlier version, or the file was removed; "
            "`diffleak report` still reads it, and repeating its audit command writes one"
        )
    order: tuple[Status, ...] = ("edited", "missing", "unknown", "recorded")
    return tuple(sorted(_compared(folder, digests, ""), key=lambda each: (order.index(each.status), each.path)))


def differing(found: Iterable[Checked]) -> list[Checked]:
    """The files that are not as they were recorded; one that nobody recorded is none of them."""
    return [each for each in found if each.status in ("edited", "missing")]


def refuse_differing(folder: Path, found: Iterable[Checked]) -> None:
    """Raises `RecordEdited` where a file is not as it was recorded."""
    found = list(found)
    if other := differing(found):
        raise RecordEdited(f"{len(other)} of {_recorded(found)} recorded files of {folder} are not as they were written ({_said(other)})")


def refuse_edited(folder: Path) -> bool:
    """Raises `RecordEdited` for a record that was edited, so that no report is made of it; False for a folder without digests.

    Reports may be missing or edited: they are made again.
    """
    digests = _read(folder)
    if digests is None:
        return False
    found = [each for each in _compared(folder, digests, "") if each.path.rpartition("/")[2] not in MAY_CHANGE]
    if other := differing(found):
        raise RecordEdited(
            f"{folder} is not as it was recorded ({_said(other)}): no report is made of it. Put the file back, or repeat the audit "
            "command, "
            "which writes the record again; `diffleak verify` lists every file"
        )
    return True


def _said(other: list[Checked]) -> str:
    more = f", and {len(other) - 3} more" if len(other) > 3 else ""
    return ", ".join(f"{each.path} {each.status}" for each in other[:3]) + more


def _recorded(found: list[Checked]) -> int:
    return sum(each.status != "unknown" for each in found)


def _compared(folder: Path, digests: Digests, prefix: str) -> Iterator[Checked]:
    """Every file of a folder; those of a run in it by the run's own digests, where it has some."""
    runs = [path.parent for path in sorted(folder.glob(f"*/{FILE}"))]
    for recorded, before in digests.files.items():
        yield Checked(prefix + recorded, _status(folder / recorded, before))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in digests.files and not _passed_over(name) and not any(run in path.parents for run in runs):
            yield Checked(prefix + name, "unknown")
    for run in runs:
        own = _read(run)
        if own:
            yield from (each for each in _compared(run, own, f"{prefix}{run.name}/") if each.path.removeprefix(prefix) not in digests.files)


def _passed_over(name: str) -> bool:
    """True for what is no part of a record: digests.json itself, keys, hidden files and the inputs of work."""
    first, last = name.partition("/")[0], name.rpartition("/")[2]
    return last in (FILE, *KEPT_BACK) or last.startswith(".") or first in BOOKKEEPING


def _status(path: Path, before: str) -> Status:
    if not path.exists():
        return "missing"
    try:
        return "recorded" if hash_file(path) == before else "edited"
    except Unreadable:
        return "edited"


def _hashed(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    try:
        return {path: hash_file(folder / path) for path in paths}
    except Unreadable as error:
        raise UserError(f"a file of {folder} cannot be read ({error}); run the same command again") from None


def _read(folder: Path) -> Digests | None:
    """The digests of a folder, None where it has none; raises `UserError` for a file that holds no digests."""
    path, advice = folder / FILE, "put it back, or repeat the audit command, which writes it again"
    if not path.exists():
        return None
    found = read_json(path, Digests, advice=advice)
    if outside := next((name for name in found.files if name.startswith("/") or ".." in name.split("/")), None):
        raise UserError(f"{path} must name files of its own folder; it names {shown(outside)}: {advice}")
    return found


def _write(folder: Path, files: Mapping[str, str], total: str | None, gone: Callable[[str], bool] = lambda path: False) -> None:
    """Writes digests beside those that are there; of these the `gone` ones are left out."""
    before = _read(folder)
    kept = {path: found for path, found in (before.files if before else {}).items() if not gone(path)}
    made = Digests(
        diffleak=version("diffleak"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=dict(sorted((kept | dict(files)).items())),
        whole=total,
    )
    write_text(folder / FILE, made.model_dump_json(indent=2))
