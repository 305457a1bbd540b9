"""`diffleak gate`: a finished folder against limits, whatever commands have written into it.

    audit.json                    every attack, as `diffleak audit` judges it
    sweep.json                    the same of every checkpoint; the last one decides
    compare.json                  every result of every entry but the baseline
    quality.json, extract.json    the copy rate
    epsilon.json                  the lower bound on epsilon

Nothing is measured again. A number that is not there has not passed. Of an audit that is invalid or not finished no limit is checked,
those on other files beside it included. The report of an audit is written again, with the limits.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from diffleak.config import build, command_line, flag
from diffleak.errors import GateFailed, InvalidAudit, UserError, one_or_more, visible
from diffleak.gating.config import GateConfig
from diffleak.gating.limits import LIMITS, gates, gates_compared, judged
from diffleak.records import digests
from diffleak.records.audit import AuditRecord, Gate
from diffleak.records.base import Estimate, written
from diffleak.records.comparison import FILE as COMPARE
from diffleak.records.comparison import read_comparison
from diffleak.records.extraction import FILE as EXTRACT
from diffleak.records.extraction import counted_one_by_one as extracted_one_by_one
from diffleak.records.gate import EPSILON, FILE, Bound, CheckedFile, Extracted, GateRecord, Measured, read_part
from diffleak.records.inquiry import FILE as INQUIRY
from diffleak.records.lora import AUDITS
from diffleak.records.lora import FILE as LORA
from diffleak.records.quality import FILE as QUALITY
from diffleak.records.quality import counted_one_by_one, read_quality
from diffleak.records.run_folder import unfinished
from diffleak.records.sweep import FILE as SWEEP
from diffleak.records.sweep import read_sweep
from diffleak.report.judgement import read_record
from diffleak.report.sections.audit.gates import outcome
from diffleak.report.written import refresh_report
from diffleak.work.files import hash_file
from diffleak.work.progress import say

AUDIT = "audit.json"
ORDER = (*LIMITS, "max_copies", "max_epsilon")
MADE_BY = {
    LIMITS[0]: "diffleak audit MODEL --members DATA --nonmembers DATA -o",
    "max_copies": "diffleak extract MODEL --members DATA --nonmembers DATA -o",
    "max_epsilon": "diffleak epsilon",
}


class Found(NamedTuple):
    """The checks of the attacks in a folder, the files that they are from, and of a sweep the last checkpoint that passes."""

    checks: tuple[Gate, ...]
    files: tuple[Path, ...]
    last_passing: str | None = None
    fingerprint: str | None = None


class Beside(NamedTuple):
    """The check of a file that lies beside what was audited, and what a reader must know of its number."""

    check: Gate
    path: Path
    warning: str | None = None


def gate(run: str | Path, **limits: Any) -> GateRecord:
    """Checks a finished folder against limits, and writes RUN/gate.json and the limits into the report of an audit.

    A limit that is not met raises nothing: see `met` and `checks` of the record, or `refuse`.

    Args:
        run: The folder of an audit, a sweep, a comparison, or one with a quality.json, extract.json or epsilon.json.
        **limits: max_auc, max_tpr, max_excess_auc, max_copies (each in [0, 1]) and max_epsilon (at least 0), at least one of them.

    Returns:
        The record, as in gate.json.

    Raises:
        UserError: For a folder that lacks what a limit needs.
        InvalidAudit: Where its numbers do not measure membership.
    """
    return check_folder(build(GateConfig, {"run": run, **limits}))


def check_folder(config: GateConfig) -> GateRecord:
    """The same for settings that are there already."""
    folder = config.run
    if not folder.is_dir():
        raise UserError(f"RUN must be the folder of a finished command; there is no folder {folder}")
    digests.refuse_edited(folder, but=(FILE,))
    found = _attacks(folder, config)
    beside = [*_copies(folder, config, found.fingerprint), *_epsilon(folder, config, found.fingerprint)]
    checks = (*found.checks, *(each.check for each in beside))
    files = (*found.files, *(each.path for each in beside))
    warnings = tuple(f"{each.path.name}: {each.warning}" for each in beside if each.warning)
    for said in warnings:
        say(f"note: {said}")
    record = GateRecord(
        **written(command_line(config, "gate")),
        met=all(each.passed for each in checks),
        limits={limit: at_most for limit in ORDER if (at_most := getattr(config, limit)) is not None},
        checks=checks,
        last_passing=found.last_passing,
        files=tuple(CheckedFile(file=path.relative_to(folder).as_posix(), sha256=hash_file(path)) for path in files),
        warnings=warnings,
    )
    digests.write_recorded(folder, {FILE: record.model_dump_json(indent=2)})
    refresh_report(folder)
    return record


def met(record: GateRecord) -> tuple[str, ...]:
    """A line for each limit that is met, with the result that comes nearest to it, and for the last checkpoint of a sweep that passes."""
    kept = [_line(record, limit) for limit in record.limits if all(each.passed for each in _of(record, limit))]
    return (*kept, *([f"the last checkpoint that passes: {record.last_passing}"] if record.last_passing is not None else []))


def refuse(record: GateRecord) -> None:
    """Raises `GateFailed` with a line for every limit that is not met, and by how much."""
    failed = [_line(record, limit) for limit in record.limits if not all(each.passed for each in _of(record, limit))]
    if failed:
        raise GateFailed("\n".join((f"{len(failed)} of {one_or_more(len(record.limits), 'limit')} not met", *failed)))


def _of(record: GateRecord, limit: str) -> list[Gate]:
    return [each for each in record.checks if each.limit == limit]


def _line(record: GateRecord, limit: str) -> str:
    return f"{flag(limit)} {record.limits[limit]:g} {outcome(_of(record, limit))}"


# attacks


def _attacks(folder: Path, config: GateConfig) -> Found:
    """What is there of attacks, valid and finished, whether they have a limit or not."""
    kinds: dict[str, Callable[[Path, GateConfig], Found]] = {AUDIT: _audit, SWEEP: _sweep, COMPARE: _comparison}
    for name, read in kinds.items():
        if (folder / name).is_file():
            return read(folder, config)
    if unfinished(folder):
        raise UserError(f"RUN must be the folder of a finished command; {folder} is not finished: repeat its command, it resumes")
    limit = next((limit for limit in LIMITS if getattr(config, limit) is not None), None)
    if limit is None:
        return Found((), ())
    within = folder / AUDITS
    if (within / SWEEP).is_file():
        way = f"check {within}, which has a {SWEEP}"
    elif any((folder / name).is_file() for name in (LORA, INQUIRY)):
        way = f"{MADE_BY[LIMITS[0]]} RUN makes the first, in a folder of its own"
    else:
        way = f"{MADE_BY[LIMITS[0]]} {quote(str(folder))} makes the first"
    raise UserError(f"{flag(limit)} needs an {AUDIT}, {SWEEP} or {COMPARE}; {folder} has none of them: {way}")


def _audit(folder: Path, config: GateConfig) -> Found:
    record = read_record(folder)
    return Found(_of_audit(record, config, str(folder)), (folder / AUDIT,), None, record.plan.model_fingerprint)


def _of_audit(record: AuditRecord, config: GateConfig, name: str) -> tuple[Gate, ...]:
    if record.valid is False:
        raise InvalidAudit(f"{record.invalid_reason} No limit was checked.")
    if config.max_excess_auc is not None and not any(result.variant == "excess" for result in record.results):
        raise UserError(
            f"--max-excess-auc limits what leaks beyond a reference, and {name} was audited without one: audit it with --reference MODEL"
        )
    return gates(record.results, config, record.split.unit)


def _sweep(folder: Path, config: GateConfig) -> Found:
    points, passing, checks = read_sweep(folder).points, list[str](), tuple[Gate, ...]()
    for point in points:
        digests.refuse_edited(folder / point.run, but=(FILE,))
        checks = _of_audit(read_record(folder / point.run), config, str(folder / point.run))
        passing += [point.name] if checks and all(each.passed for each in checks) else []
    last = tuple(each.model_copy(update={"attack": f"{points[-1].name}: {each.attack}"}) for each in checks)
    return Found(last, (folder / SWEEP, *(folder / point.run / AUDIT for point in points)), passing[-1] if passing else None)


def _comparison(folder: Path, config: GateConfig) -> Found:
    record = read_comparison(folder / COMPARE)
    if record.valid is False:
        raise InvalidAudit(f"{record.invalid_reason} No limit was checked.")
    checks = gates_compared(record, config)
    lost = next((limit for limit in LIMITS if getattr(config, limit) is not None and all(each.limit != limit for each in checks)), None)
    if lost:
        raise UserError(f"{flag(lost)} needs attacks beyond a reference, and {folder} compares none: audit the runs with --reference MODEL")
    return Found(checks, (folder / COMPARE,))


# what lies beside them


def _copies(folder: Path, config: GateConfig, model: str | None) -> Iterator[Beside]:
    if config.max_copies is None:
        return
    found, unmeasured = list[tuple[Estimate, Path, str | None]](), (folder / QUALITY).is_file()
    if unmeasured:
        path = folder / QUALITY
        measured = read_quality(path, Measured)
        _refuse_other_model(path, measured.model_fingerprint, model)
        rate = next((metric for metric in measured.metrics if metric.name == "copy_rate" and measured.training), None)
        found += [(rate, path, counted_one_by_one(measured.unit, measured.metrics))] if rate else []
    if (path := folder / EXTRACT).is_file():
        extracted = read_part(path, Extracted, "extract")
        _refuse_other_model(path, extracted.model_fingerprint, model)
        found.append((extracted.copy_rate, path, extracted_one_by_one(extracted.distinct_members, extracted.copy_rate)))
    if not found and unmeasured:
        raise UserError(
            f"--max-copies needs a copy rate, and {folder / QUALITY} has none, since it was measured without training images: "
            f"{MADE_BY['max_copies']} {quote(str(folder))} makes one"
        )
    if not found:
        _refuse_alone(folder, f"--max-copies needs a {QUALITY} or an {EXTRACT}, and neither lies", (SWEEP, COMPARE, LORA))
        raise UserError(
            f"--max-copies needs a {QUALITY} or an {EXTRACT}; {folder} has neither: {MADE_BY['max_copies']} {quote(str(folder))} makes the "
            "second"
        )
    for share, path, warning in found:
        reason = share.reason if share.high is None else None
        yield Beside(judged("max_copies", path.name, "copy rate", config.max_copies, share.high, reason), path, warning)


def _epsilon(folder: Path, config: GateConfig, model: str | None) -> Iterator[Beside]:
    if config.max_epsilon is None:
        return
    path = folder / EPSILON
    if not path.is_file():
        _refuse_alone(folder, f"--max-epsilon needs an {EPSILON}, and none lies", (SWEEP, COMPARE, LORA, INQUIRY))
        raise UserError(f"--max-epsilon needs an {EPSILON}; {folder} has none: {MADE_BY['max_epsilon']} {quote(str(folder))} makes it")
    bound = read_part(path, Bound, "epsilon")
    _refuse_other_model(path, bound.model_fingerprint, model)
    quantity = "epsilon" if bound.delta is None else f"epsilon (delta {bound.delta:g})"
    yield Beside(judged("max_epsilon", path.name, quantity, config.max_epsilon, bound.epsilon, bound.reason), path)


def _refuse_alone(folder: Path, needs: str, records: Sequence[str]) -> None:
    """Raises `UserError` for the folder of a command beside whose record a limit's own never lies."""
    if alone := next((name for name in records if (folder / name).is_file()), None):
        raise UserError(f"{needs} beside a{'n' * (alone[0] in 'aeiou')} {alone}: check the folder of one audited model, not {folder}")


def _refuse_other_model(path: Path, measured: str | None, model: str | None) -> None:
    if measured is not None and model is not None and measured != model:
        raise UserError(f"{visible(str(path))} was made of another model than the audit beside it: repeat its command for this model")
