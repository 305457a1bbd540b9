"""A sweep over checkpoints: each is an ordinary audit in a folder of its own, and what they share is computed once.

All have the same images, division, attacks and timesteps; each is shown by the attack that its own calibrate part chose, as in its own
report, and compared with the checkpoint before it image by image (paired DeLong and bootstrap, as `diffleak compare` does).
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffleak.auditing import run as auditing
from diffleak.auditing.config import AuditConfig, read_cohort
from diffleak.auditing.plan import Prepared, checked, refuse_too_few
from diffleak.auditing.shared import Shared
from diffleak.auditing.warnings import about_release, about_sides
from diffleak.comparison.compare import difference
from diffleak.comparison.runs import Run
from diffleak.config import BASE, command_line
from diffleak.diffusion.target import Target
from diffleak.errors import GateFailed, InvalidAudit, UserError, one_or_more, shown
from diffleak.gating.limits import LIMITS
from diffleak.records import digests
from diffleak.records.audit import AuditRecord
from diffleak.records.base import written
from diffleak.records.gate import read_gate
from diffleak.records.plan import Plan
from diffleak.records.run_folder import refuse_other_command
from diffleak.records.sweep import FILE, Point, SweepRecord
from diffleak.report import to_html
from diffleak.report.judgement import wrong_way
from diffleak.report.sections.audit.gates import sentence
from diffleak.sweep.checkpoints import Checkpoint, Checkpoints
from diffleak.work.files import checked_folder
from diffleak.work.folder import named
from diffleak.work.progress import say

INPUTS = ".inputs"  # the folder of latents, until the sweep is finished


class First(NamedTuple):
    """What later checkpoints need of the first: not its model, which would stay in memory."""

    checkpoint: Checkpoint
    plan: Plan
    reference: Target | None


def describe(config: AuditConfig, found: Checkpoints, planned: Callable[[str], None], log: Callable[[str], None] = say) -> dict[str, Any]:
    """The plan of a sweep for machines; the first checkpoint is loaded, and tried when the plan is said.

    planned: called with the lines of the plan.   log: with a line for each finding about the images.
    """
    first = checked(_settings(config, found, found.found[0], None))
    planned(_plan_line(found, first))
    first = first.tried(planned)
    for line in (*about_release(first), *about_sides(first), *first.scan.cohort.found):
        log(line)
    return {
        "checkpoints": [{"name": each.name, "checkpoint": each.path, "step": each.step} for each in found.found],
        "step_source": found.source,
        "first": first.summary(),
        "queries": len(found.found) * first.queries,
    }


def sweep(config: AuditConfig, found: Checkpoints, log: Callable[[str], None] = say, timed: bool = True) -> SweepRecord | None:
    """Audits every checkpoint and leaves sweep.json and report.html; None when other shards have not finished.

    Raises `UserError` for checkpoints that cannot be given the same attacks and images, and `InvalidAudit` where the sides differ
    without the model, after the first checkpoint.
    """
    folder = config.output
    assert folder is not None, "the command needs one"
    refuse_other_command(folder, FILE)
    if config.anonymous and config.anonymous_key is None:
        raise UserError("the anonymous runs of several checkpoints must share a key, or they cannot be compared: give --anonymous-key FILE")
    folder = checked_folder(folder)
    shared, cohort, first, runs = Shared(folder / INPUTS), read_cohort(config), None, list[Run]()
    refuse_too_few(config, cohort)
    for number, each in enumerate(found.found, 1):
        # later checkpoints have the reference of the first one, where it is the same: the base of a model is its own
        reference = first.reference if first and (found.key == "lora" or config.reference != BASE) else None
        prepared = checked(_settings(config, found, each, folder / each.name), cohort=cohort, reference=reference, shared=shared)
        if first is None:
            first = First(each, prepared.plan, prepared.reference)
            log(_plan_line(found, prepared))
        try:
            _refuse_other_plan(first, prepared.plan, each)
        except UserError:
            _remove_inputs(folder)
            raise
        at = f", step {each.step:,}" if found.source else ""
        log(f"checkpoint {number} of {len(found.found)}: {each.name}{at}")
        prepared = prepared.tried(log)
        finished = auditing.run(prepared, folder / each.name, log, timed and number == 1, shared)
        del prepared  # else its model would be in memory beside the next one
        if finished is None:
            continue
        finished.save(folder / each.name, config.thumbnails)
        if finished.record.valid is False:
            _remove_inputs(folder)
            where = f"see {folder / each.name / 'report.html'}; no other checkpoint was audited"
            raise InvalidAudit(f"{finished.record.invalid_reason} The first checkpoint shows it: {where}.")
        runs.append(Run(str(folder / each.name), finished.record, finished.samples))
    if len(runs) < len(found.found):
        log("run the same command again when all shards have finished: it writes the page on all checkpoints")
        return None
    record = summary(config, found, runs)
    save(record, folder)
    _remove_inputs(folder)
    return record


def summary(config: AuditConfig, found: Checkpoints, runs: Sequence[Run]) -> SweepRecord:
    """The record of a sweep from its finished runs, which are in the order of the checkpoints."""
    points, limited = list[Point](), any(getattr(config, limit) is not None for limit in LIMITS)
    for number, (each, run) in enumerate(zip(found.found, runs, strict=True)):
        result, against = run.record.result(_lead(run.record)), wrong_way(run.record)
        before = (runs[number - 1], points[-1].attack) if points else None
        points.append(
            Point(
                name=each.name,
                run=each.name,
                checkpoint=each.path,
                step=each.step,
                attack=result.attack,
                timestep=result.timestep,
                auc=result.auc,
                tpr_at_1pct=result.tpr(0.01),
                wrong_way=against.attack if against else None,
                difference=difference((run, result.attack), before, config.seed) if before else None,
                gates=run.record.gates,
                passed=all(gate.passed for gate in run.record.gates) if limited else None,
            )
        )
    passing = [point for point in points if point.passed]
    first = runs[0].record
    return SweepRecord(
        **written(command_line(config, "audit", ("shard", "threads"))),
        settings=config.model_dump(mode="json"),
        swept=found.key,
        step_source=found.source,
        members=first.split.members,
        nonmembers=first.split.nonmembers,
        chosen_on="calibrate" if first.headline else "test",
        points=tuple(points),
        last_passing=passing[-1].name if passing else None,
        warnings=tuple(_warnings(points, [run.record for run in runs])),
    )


def save(record: SweepRecord, folder: Path) -> None:
    """Writes sweep.json and report.html."""
    from diffleak.report.pages.sweep import page

    runs = [name for point in record.points if (folder / (name := f"{point.run}/{digests.AUDIT}")).is_file()]
    digests.write_recorded(folder, {digests.REPORT: to_html(page(record, read_gate(folder))), FILE: record.model_dump_json(indent=2)}, runs)


def gate(record: SweepRecord) -> None:
    """Raises `GateFailed` where the last checkpoint does not meet every limit, with the last one that does."""
    last = record.points[-1]
    if last.passed is not False:
        return
    failed = [sentence(each) for each in last.gates if not each.passed]
    passing = f"the last that passes is {record.last_passing}" if record.last_passing else "no checkpoint passes"
    fails = f"the last checkpoint, {last.name} (step {last.step:,}), fails {one_or_more(len(failed), 'check')}; {passing}"
    raise GateFailed("\n".join((fails, *failed)))


def _settings(config: AuditConfig, found: Checkpoints, each: Checkpoint, output: Path | None) -> AuditConfig:
    """The settings of an ordinary audit of one checkpoint."""
    return config.model_copy(update={found.key: each.path, "sweep_models": (), "steps": (), "output": output})


def _remove_inputs(folder: Path) -> None:
    """Removes the latents that the runs shared; raises `UserError` where they stay."""
    shutil.rmtree(folder / INPUTS, ignore_errors=True)
    if (folder / INPUTS).exists():
        raise UserError(f"{folder / INPUTS} cannot be removed; the results are written, remove it by hand: it may show private images")


def _plan_line(found: Checkpoints, first: Prepared) -> str:
    steps, total = [each.step for each in found.found], len(found.found) * first.queries
    about = "" if first.plan.sweep == "all" else "about "
    known = f", steps {min(steps):,} to {max(steps):,} from {found.source}" if found.source else ""
    return (
        f"sweep: {one_or_more(len(steps), 'checkpoint')}{known}, {about}{total:,} denoiser queries in all; "
        "images, latents and text embeddings are computed once where the checkpoints share them"
    )


def _refuse_other_plan(first: First, plan: Plan, other: Checkpoint) -> None:
    """Raises `UserError` for a checkpoint that is given other attacks, timesteps or images than the first."""
    for key in ("attacks", "image_shape", "data_fingerprint", "captions", "guidance_scale", "labels"):
        if getattr(first.plan, key) != getattr(plan, key):
            way = ", or choose --attacks and --timesteps that fit both" if key == "attacks" else ""
            what = named(key, AuditConfig.PLANNED)
            raise UserError(
                f"the checkpoints of a sweep must be audited alike; {shown(other.path, 100)} differs in its {what} from "
                f"{shown(first.checkpoint.path, 100)}: audit them apart{way}"
            )


def _lead(record: AuditRecord) -> str:
    """The attack that the calibrate part chose, else the one of the largest AUC."""
    if record.headline:
        return record.headline
    return max((result for result in record.results if result.leads), key=lambda result: result.auc.value or 0.0).attack


def _warnings(points: Sequence[Point], records: Sequence[AuditRecord]) -> list[str]:
    """What holds for every checkpoint once, and for some with their names."""
    each = {line: [p.name for p, r in zip(points, records, strict=True) if line in r.warnings] for r in records for line in r.warnings}
    found = [line if len(names) == len(points) else f"{', '.join(names)}: {line}" for line, names in each.items()]
    attacks = list(dict.fromkeys(point.attack for point in points))
    if len(attacks) > 1:
        chosen = "the attack that its own calibrate part chose" if records[0].headline else "its attack of the largest AUC"
        found.append(f"each checkpoint is shown by {chosen}, so the curve is of {', '.join(attacks)}")
    passing = [i for i, point in enumerate(points) if point.passed]
    earlier = [points[i].name for i in range(passing[-1] if passing else 0) if not points[i].passed]
    if earlier:
        found.append(f"{', '.join(earlier)} failed a limit although a later checkpoint passes: so near to a limit, chance decides")
    return found
