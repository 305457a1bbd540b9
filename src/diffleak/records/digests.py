"""digests.json: the SHA-256 of every file that a command left in a folder, and the comparison of a folder with it. No torch.

`write_recorded` is how a command writes its record, page and tables; `refuse_edited` is what a command calls before it reads the record of
another one.

Digests find an edit that was made by accident or without care: who edits a file and digests.json too is not found, unless a copy of
`whole` was kept elsewhere, as in the printed report. They prove no authorship.

    whole = SHA-256 of the lines "<sha256>  <path>" of plan.json, audit.json, samples.csv and scores/*.parquet, sorted by path

which is what `sha256sum plan.json audit.json samples.csv scores/*.parquet | LC_ALL=C sort -k2 | sha256sum` prints.

Commands that end in one folder at the same time write the file one after the other, each with the digests of those before it.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from diffleak.errors import WHY, DiffleakError, UserError, of_them, one_or_more, refusing, shown
from diffleak.records.base import Record, Version, now, read_json
from diffleak.work.files import checked_folder, hash_file, in_turn, write_bytes, write_text
from diffleak.work.progress import say
from diffleak.work.reading import Unreadable

FILE = "digests.json"
AUDIT, SAMPLES, PLAN, REPORT = "audit.json", "samples.csv", "plan.json", "report.html"
RECORDS = (
    AUDIT,
    "sweep.json",
    "compare.json",
    "quality.json",
    "prompts.json",
    "extract.json",
    "inquiry.json",
    "check.json",
    "epsilon.json",
    "gate.json",
    "lora.json",
)  # of the commands, each with its digest
SCORES = "scores/*.parquet"
MADE_WITH_IT = ("geometry.parquet", "influence.npy", "complexity.parquet", "maps.npy", "chosen.json")
PAGES = (".html", ".pdf")  # endings of what is written again from the records, so it may change
KEPT_BACK = ("anonymous.key", "ids.csv")  # of an anonymous run, and never passed on
MEASURED = ("latents", "influence", "distortion", "reconstruction")
BOOKKEEPING = ("seconds", *MEASURED, "generated", "drawings", ".inputs")  # folders of no result

Status = Literal["unchanged", "edited", "missing", "unknown"]


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


class RecordEdited(UserError):
    """A record was edited, so no command reads it (exit code 2)."""


class Differs(DiffleakError):
    """`verify` has found a file that is not as it was recorded (exit code 1)."""


def digest(text: str) -> str:
    """The SHA-256 of a text as it is written to disk."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def whole(files: Mapping[str, str]) -> str:
    """The SHA-256 over the digests of files, by their paths."""
    return digest("".join(f"{found}  {path}\n" for path, found in sorted(files.items(), key=lambda item: item[0].encode())))


def record_files(folder: Path, written: Mapping[str, str] | None = None) -> dict[str, str]:
    """The digest of each file that an audit's record is made of; `written`: digests of files that are about to be written."""
    known = dict(written or {})
    paths = [name for name in (AUDIT, SAMPLES) if (folder / name).is_file()] + scored(folder)
    return {**_hashed(folder, (path for path in paths if path not in known)), **known}


def scored(folder: Path) -> list[str]:
    """Paths of the plan and the scores in a folder, of those that are there."""
    there = [folder / PLAN] * (folder / PLAN).is_file() + sorted(folder.glob(SCORES))
    return [path.relative_to(folder).as_posix() for path in there]


def made_with_scores(folder: Path) -> list[str]:
    """What an audit measures beside its scores, of what is there."""
    return [name for name in MADE_WITH_IT if (folder / name).is_file()]


def sealed(folder: Path, audit: str | None = None) -> Sealed:
    """What the report of a folder prints; `audit`: the text of audit.json where that is about to be written."""
    files = record_files(folder, {AUDIT: digest(audit)} if audit is not None else None)
    return Sealed(files[AUDIT], whole(files), len(files))


def write_audit_digests(folder: Path) -> None:
    """Writes the digests of all that an audit left; those of other commands' files in the folder stay."""
    files = record_files(folder)
    beside = _hashed(folder, [*made_with_scores(folder), *([REPORT] if (folder / REPORT).is_file() else [])])
    _write(folder, files | beside, whole(files), lambda path: path.startswith("scores/") or path in MADE_WITH_IT)


def write_recorded(folder: Path, files: Mapping[str, str | bytes], also: Iterable[str] = (), replaces: str | tuple[str, ...] = ()) -> None:
    """Writes what a finished command leaves in its folder, for its owner only, and the digests of it.

    files: the contents by their paths in the folder. also: paths of files that are there already and belong to the record. replaces: how
    the paths begin that an earlier call left and this one may not, such as "pairs/"; their digests are dropped.
    Until the last file is written none of them has a digest, so that a call that was interrupted leaves no file that looks edited.
    """
    names, before = (*files, *also), _read(checked_folder(folder))
    stale = lambda path: path in names or path.startswith(replaces)
    if before and any(map(stale, before.files)):
        _write(folder, {}, gone=stale)
    for path, content in files.items():
        checked_folder((folder / path).parent)
        if isinstance(content, str):
            write_text(folder / path, content, private=True)
        else:
            write_bytes(folder / path, content, private=True)
    add_digests(folder, names)


def add_digests(folder: Path, names: Iterable[str]) -> None:
    """Writes the digests of these files beside those that the folder has already."""
    _write(folder, _hashed(folder, names))


def update_report(folder: Path, name: str = REPORT) -> None:
    """Writes the digest of a report that was made again; does nothing for a folder without digests, whose record nobody vouched for."""
    if _read(folder):
        add_digests(folder, (name,))


def verify(folder: str | Path) -> tuple[Checked, ...]:
    """Compares what commands left in a folder, and in each folder that belongs to it, with its digests.

    Args:
        folder: The folder of any finished command.

    Returns:
        Each file with its status, the edited ones first.

    Raises:
        UserError: For a folder without digests, such as one that an earlier version wrote.
    """
    folder = Path(folder)
    digests = _read(folder)
    if digests is None:
        record = next((name for name in RECORDS if (folder / name).is_file()), None)
        if record is None:
            raise UserError(f"RUN must be the folder of a finished command; {folder} has no {FILE}")
        raise UserError(
            f"{folder} has no {FILE}, so nothing says what its {record} was: it is of an earlier version, or the file was removed; "
            "commands still read it, and repeating the command that wrote it writes one"
        )
    if old := _without_digest(folder, digests):
        say(f"note: {folder} has no digest of {', '.join(old)}, written by an earlier version or by hand")
    order: tuple[Status, ...] = ("edited", "missing", "unknown", "unchanged")
    found = (*_compared(folder, digests, ""), *_unknown(folder, digests, ""))
    return tuple(sorted(found, key=lambda each: (order.index(each.status), each.path)))


def differing(found: Iterable[Checked]) -> list[Checked]:
    """The files that are not as they were recorded; one that nobody recorded is none of them."""
    return [each for each in found if each.status in ("edited", "missing")]


def sums(folder: str | Path) -> Sealed | None:
    """The hashes that the report of a folder prints, of its files as they are now; None without an audit, or where one cannot be read."""
    folder = Path(folder)
    try:
        return sealed(folder) if (folder / AUDIT).is_file() else None
    except UserError:
        return None


def closing(found: Iterable[Checked], made: Sealed | None) -> tuple[str, ...]:
    """What `verify` says at the end, in lines; none where a file is not as it was recorded, which is an error.

    made: the hashes that the report prints, where there is an audit.
    """
    found = list(found)
    if differing(found):
        return ()
    n, others = _recorded(found), len(found) - _recorded(found)
    all_of = f"All {n:,} recorded files are unchanged." if n > 1 else "The one recorded file is unchanged."
    all_of = all_of if n else f"{FILE} names no file, so nothing was compared."
    more = f" Nothing was recorded of {others:,} more (unknown)." if others else ""
    over = f" over {one_or_more(made.files, 'file')} (not report.html, which prints it)" if made else ""
    hashes = (f"audit.json    SHA-256 {made.audit}", f"whole record  SHA-256 {made.whole}{over}") if made else ()
    return (all_of + more + (" Compare these two hashes with those that the report or the card prints:" if made else ""), *hashes)


def refuse_differing(folder: Path, found: Iterable[Checked]) -> None:
    """Raises `Differs` where a file is not as it was recorded."""
    found = list(found)
    if other := differing(found):
        recorded = f"{one_or_more(_recorded(found), 'recorded file')} of {folder}"
        raise Differs(f"{of_them(len(other), recorded, 'is not as it was', 'are not as they were')} written ({_said(other)})")


def refuse_edited(folder: Path, *, only: str | None = None, but: Collection[str] = ()) -> bool:
    """Raises `RecordEdited` for a folder with an edited record, so that nothing is made of it; pages may change, they are made again.

    only: the one file that is read, where not all of the folder is. but: the files that the command itself is to write.
    False where a record, or that file, has no digest: an earlier version wrote it.
    """
    digests = _read(folder)
    if digests is None:
        return False
    read = [each for each in _compared(folder, digests, "") if each.path not in but and not each.path.endswith(PAGES)]
    if other := differing(each for each in read if only in (None, each.path)):
        raise RecordEdited(
            f"{folder} is not as it was recorded ({_said(other)}): nothing is made of it. Put the file back, or repeat the command that "
            "writes it; `diffleak verify` lists every file"
        )
    return only in digests.files if only else not _without_digest(folder, digests)


def refuse_edited_or_say(folder: Path, but: Collection[str] = ()) -> None:
    """The same, and says where nothing can be compared."""
    if not refuse_edited(folder, but=but):
        digests = _read(folder)
        what = FILE if digests is None else f"digest of {', '.join(_without_digest(folder, digests))}"
        lacks = f"{folder} has no {what}"
        say(f"note: {lacks}, so its files cannot be compared with what was written")


def _said(other: list[Checked]) -> str:
    more = f", and {len(other) - 3} more" if len(other) > 3 else ""
    return ", ".join(f"{each.path} {each.status}" for each in other[:3]) + more


def _recorded(found: list[Checked]) -> int:
    return sum(each.status != "unknown" for each in found)


def _without_digest(folder: Path, digests: Digests) -> list[str]:
    """The records in a folder that have no digest."""
    return [name for name in RECORDS if name not in digests.files and (folder / name).is_file()]


def _parts(folder: Path, digests: Digests) -> list[str]:
    """The folders below one that have digests of their own and files of its record, as the runs of a sweep; none inside of another."""
    parents = {parent.as_posix() for name in digests.files for parent in PurePosixPath(name).parents if parent.name}
    found = sorted(each for each in parents if (folder / each / FILE).is_file())
    return [each for each in found if not any(each.startswith(f"{other}/") for other in found)]


def _compared(folder: Path, digests: Digests, prefix: str) -> Iterator[Checked]:
    """Every recorded file of a folder, and of its parts by their own digests."""
    for recorded, before in digests.files.items():
        yield Checked(prefix + recorded, _status(folder / recorded, before))
    for part in _parts(folder, digests):
        if own := _read(folder / part):
            within = _compared(folder / part, own, f"{prefix}{part}/")
            yield from (each for each in within if each.path.removeprefix(prefix) not in digests.files)


def _unknown(folder: Path, digests: Digests, prefix: str) -> Iterator[Checked]:
    """Every other file of a folder and of its parts; a folder that has digests of its own and is no part of it is passed over."""
    for path in sorted(folder.iterdir()):
        yield from _below(folder, path, digests, prefix)
    for part in _parts(folder, digests):
        if own := _read(folder / part):
            within = _unknown(folder / part, own, f"{prefix}{part}/")
            yield from (each for each in within if each.path.removeprefix(prefix) not in digests.files)


def _below(folder: Path, path: Path, digests: Digests, prefix: str) -> Iterator[Checked]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir() and not path.is_symlink() and not (path / FILE).is_file() and not _passed_over(name):
        for each in sorted(path.iterdir()):
            yield from _below(folder, each, digests, prefix)
    elif path.is_file() and name not in digests.files and not _passed_over(name):
        yield Checked(prefix + name, "unknown")


def _passed_over(name: str) -> bool:
    """True for what is no part of a record: digests.json itself, keys, hidden files and the inputs of work."""
    first, last = name.partition("/")[0], name.rpartition("/")[2]
    return last in (FILE, *KEPT_BACK) or last.startswith(".") or first in BOOKKEEPING


def _status(path: Path, before: str) -> Status:
    if not path.exists():
        return "missing"
    try:
        return "unchanged" if hash_file(path) == before else "edited"
    except Unreadable as error:
        if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UserError(f"{path} cannot be read ({error}): allow it, and run the same command again") from None
        return "edited"


def _hashed(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    found = dict[str, str]()
    for path in paths:
        with refusing(Unreadable, f"{folder / path} cannot be read ({WHY}); run the same command again"):
            found[path] = hash_file(folder / path)
    return found


def _read(folder: Path) -> Digests | None:
    """The digests of a folder, None where it has none; raises `UserError` for a file that holds no digests."""
    path, advice = folder / FILE, "put it back, or repeat the command of the folder, which writes it again"
    if not path.exists():
        return None
    found = read_json(path, Digests, advice=advice)
    if outside := next((name for name in found.files if name.startswith("/") or ".." in name.split("/")), None):
        raise UserError(f"{path} must name files of its own folder; it names {shown(outside)}: {advice}")
    return found


def _write(folder: Path, files: Mapping[str, str], total: str | None = None, gone: Callable[[str], bool] = lambda path: False) -> None:
    """Writes digests beside those that are there; of these the `gone` ones are left out. total: `whole`, by default as it is there."""
    with in_turn(folder):
        before = _read(folder)
        kept = {path: found for path, found in (before.files if before else {}).items() if not gone(path)}
        files, total = dict(sorted((kept | dict(files)).items())), total or (before.whole if before else None)
        made = Digests(diffleak=version("diffleak"), created=now(), files=files, whole=total)
        write_text(folder / FILE, made.model_dump_json(indent=2))
