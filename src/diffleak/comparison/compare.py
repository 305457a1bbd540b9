"""`diffleak compare`: finished audits side by side, image by image, against the first of them.

    AUC difference    paired DeLong        TPR difference    paired bootstrap, thresholds re-derived

both on the images in the test part of both runs. An entry's number is its worst: the run and attack with the highest AUC on
the calibrate part. Small sets have several calibrate/test divisions: then each division of one run is paired with the same
of the other, with scores at the timestep chosen most often, and medians over them are reported. No torch here.
"""

import shlex
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from diffleak.comparison.runs import EntryRuns, Run, pair, quality_of, read_entries
from diffleak.comparison.swap import NO_HALVES, swap_or_reason, with_halves
from diffleak.data.draw import calibrate_size
from diffleak.errors import InvalidAudit, UserError, one_or_more, shown, unknown, visible
from diffleak.records.audit import EARLIER_RATES, Result
from diffleak.records.base import Estimate, written
from diffleak.records.comparison import (
    FILE,
    LOWER_IS_BETTER,
    PAGE,
    ComparedResult,
    ComparedRun,
    Comparison,
    Difference,
    Entry,
    PooledResult,
    Quality,
    Worst,
)
from diffleak.records.digests import write_recorded
from diffleak.records.gate import read_gate
from diffleak.records.quality import counted_one_by_one
from diffleak.records.run_folder import refuse_other_command
from diffleak.records.variants import COMBINED
from diffleak.report.judgement import allows_shift
from diffleak.report.sections.comparison.verdict import comparison_verdict, invalid_runs
from diffleak.report.wording import counted
from diffleak.stats import evaluation, metrics, pooling
from diffleak.stats.calibration import PLAIN
from diffleak.stats.reasons import reworded
from diffleak.work.files import checked_folder, write_text
from diffleak.work.folder import UNKNOWN

FEW_PAIRS = 0.9  # of a run's test images, below which the number of pairs is a warning


def compare(
    runs: Sequence[str],
    attacks: Sequence[str] = (),
    halves: Path | None = None,
    quality: Sequence[str] = (),
    seed: int = 0,
    output: Path | None = None,
    pool: bool = False,
) -> Comparison:
    """Compares finished audits, image by image, with the first of them.

    Args:
        runs: `RUN` or `NAME=RUN[,RUN...]`, the baseline first.
        attacks: Labels of attacks; by default all that every run has.
        halves: The split.json of a defence with two teachers, for the swap audit.
        quality: `NAME=FILE`, the quality.json of an entry.
        seed: Seed of the bootstrap.
        output: The folder where the record will go.
        pool: The runs of an entry are trainings of one recipe with other seeds, and every attack gets its mean over them.

    Returns:
        The record, as in compare.json.

    Raises:
        UserError: For runs that cannot be compared.
    """
    refuse_other_command(output, FILE)
    audited = read_entries(runs)
    entries, halves_file, why, unused = with_halves(audited, halves)
    shared = _attacks(entries, attacks)
    qualities = quality_of(entries, quality)
    compared = tuple(_entry(entry, entries[0], shared, qualities.get(entry.name), seed) for entry in entries)
    metric, reason = _quality_metric(compared)
    swap, swap_reason = swap_or_reason(audited, shared, halves_file, halves is not None) if halves_file else (None, why or NO_HALVES)
    record = Comparison(
        **written(_command(runs, attacks, halves, quality, seed, output, pool)),
        seed=seed,
        attacks=shared,
        entries=compared,
        differences=sum(len(entry.results) + 1 for entry in compared[1:]),
        quality_metric=metric,
        quality_reason=reason,
        swap=swap,
        swap_reason=swap_reason,
        pooled=_pooled(compared, shared) if pool else (),
        warnings=tuple(_warnings(entries, compared, shared, audited, unused)),
    )
    judged, invalid = comparison_verdict(record), bool(invalid_runs(record))
    reason = " ".join((judged.title, judged.sentences[0])) if invalid else None
    return record.model_copy(update={"valid": not invalid, "invalid_reason": reason, "verdict": judged.level})


def save(record: Comparison, folder: Path) -> None:
    """Writes compare.json and compare.html."""
    from diffleak.report import to_html
    from diffleak.report.pages.comparison import page

    write_recorded(folder, {PAGE: to_html(page(record, read_gate(folder))), FILE: record.model_dump_json(indent=2)})


def write_tables(record: Comparison, latex: Path | None, csv: Path | None) -> None:
    """Writes the attacks as a LaTeX table and as CSV; nothing for a comparison that is not valid, of which no number is shown."""
    from diffleak.report.media.latex import comparison_latex
    from diffleak.report.media.results_csv import comparison_csv

    for path, table in ((latex, comparison_latex), (csv, comparison_csv)):
        if path is not None and record.valid is not False:
            checked_folder(path.parent)
            write_text(path, table(record))


def refuse_invalid(record: Comparison) -> None:
    """Raises `InvalidAudit` when a run's numbers do not measure membership."""
    if record.valid is False:
        raise InvalidAudit(record.invalid_reason or "some audit is invalid")


def _attacks(entries: Sequence[EntryRuns], asked: Sequence[str]) -> tuple[str, ...]:
    """The attacks that every run has, in the order of the baseline, or those of them that `asked` names.

    A calibrated attack of which nothing was taken out in any run is the attack itself, and is compared where `asked` names it.
    """
    runs = [run for entry in entries for run in entry.runs]
    shared = tuple(a for a in runs[0].attacks if all(a in run.attacks and _made_alike(run, runs[0], a) for run in runs))
    if not shared:
        has = "; ".join(f"{run.name} has {', '.join(run.attacks) or 'none'}" for run in runs[:4])
        raise UserError(f"the runs must share at least one attack, parameters included; {has}: audit them with the same --attacks")
    for attack in asked:
        if attack not in shared:
            raise unknown("attack, or one that not every run has:", attack, shared)
    chosen = tuple(dict.fromkeys(asked)) or tuple(a for a in shared if not _as_before(runs, a))
    if not any(runs[0].result(a).leads for a in chosen):
        raise UserError(
            "controls of masks, and what is found in the reference, cannot be an entry's strongest attack; name another beside "
            f"{', '.join(chosen)}"
        )
    return chosen


def _as_before(runs: Sequence[Run], attack: str) -> bool:
    """True for a calibrated attack of which nothing was taken out in any run that has it."""
    return all(run.result(attack).complexity == PLAIN for run in runs if attack in run.attacks)


def _made_alike(run: Run, other: Run, attack: str) -> bool:
    """True if an attack is made of the same ones in two runs; other labels say their parameters."""
    return attack != COMBINED or all(
        run.result(attack).parameters.get(key) == other.result(attack).parameters.get(key) for key in ("attacks", "complexity")
    )


def _entry(entry: EntryRuns, baseline: EntryRuns, attacks: Sequence[str], quality: tuple[Quality, str] | None, seed: int) -> Entry:
    """One entry's results, and its differences unless it is the baseline itself."""
    other = None if entry is baseline else baseline
    once = cache(lambda first, second: difference(first, second, seed))  # that of the strongest attack is also one of the results
    results = [_result(run, attack, other, once) for run in entry.runs for attack in attacks]
    run, attack, chosen_on = _worst(entry.runs, attacks)
    against = _worst(baseline.runs, attacks)
    return Entry(
        name=entry.name,
        runs=tuple(_described(run) for run in entry.runs),
        results=tuple(results),
        worst=Worst(
            run=run.name,
            attack=attack,
            chosen_on=chosen_on,
            not_excluded=run.result(attack).auc.high,
            difference=None if other is None else once((run, attack), against[:2]),
        ),
        quality=quality[0] if quality else None,
        quality_file=quality[1] if quality else None,
    )


def _described(run: Run) -> ComparedRun:
    record = run.record
    return ComparedRun(
        run=run.name,
        command=record.command,
        model=record.plan.model,
        model_fingerprint=record.plan.model_fingerprint,
        data_fingerprint=record.plan.data_fingerprint,
        members=record.split.members,
        nonmembers=record.split.nonmembers,
        repeats=record.split.repeats,
        blind=record.blind,
        allow_shift=allows_shift(record.settings),
        group=record.plan.group,
    )


def _result(run: Run, attack: str, baseline: EntryRuns | None, differ: Callable[..., Difference]) -> ComparedResult:
    found = run.result(attack)
    against = None if baseline is None else _worst(baseline.runs, (attack,), controls=True)
    return ComparedResult(
        run=run.name,
        attack=attack,
        mask=found.mask,
        access=found.access,
        timestep=found.timestep,
        setting=found.setting,
        calibrate_auc=_calibrate_auc(found),
        auc=found.auc,
        tpr_at_10pct=found.tpr(0.1),
        tpr_at_1pct=found.tpr(0.01),
        n_members=found.n_members,
        n_nonmembers=found.n_nonmembers,
        difference=None if against is None else differ((run, attack), against[:2]),
    )


def _calibrate_auc(result: Result) -> float | None:
    return max((point.auc for point in result.per_timestep), default=None)


def _worst(
    runs: Sequence[Run], attacks: Sequence[str], controls: bool = False
) -> tuple[Run, str, Literal["calibrate", "repeated", "test"]]:
    """The run and attack with the highest AUC on calibrate; on test where some run has no calibrate part."""
    candidates = [(run, attack, run.result(attack)) for run in runs for attack in attacks]
    candidates = [c for c in candidates if controls or c[2].leads]
    calibrated = all(c[2].per_timestep for c in candidates)
    run, attack, _ = max(candidates, key=lambda c: (_calibrate_auc(c[2]) if calibrated else c[2].auc.value) or 0.0)
    repeated = any(run.record.split.repeats > 1 for run in runs) and len(candidates) > 1
    return run, attack, ("repeated" if repeated else "calibrate") if calibrated else "test"


def difference(first: tuple[Run, str], second: tuple[Run, str], seed: int) -> Difference:
    """The first attack on its run minus the second on its, on what is in the test part of both: images, or what they count as."""
    (one, attack), (two, other) = first, second
    pairing = pair(one, two)
    columns = pairing.scores(one.images.scores[attack], two.images.scores[other])
    found, sizes = [], []
    for repeat in range(max(len(one.tests), len(two.tests))):
        tested = pairing.tested(*(run.tests[repeat % len(run.tests)][run.number] for run in (one, two)))
        m, n = columns[tested & pairing.member], columns[tested & ~pairing.member]
        rates = (metrics.tpr_difference(m, n, fpr, seed) for fpr in (0.1, 0.01))
        found.append((metrics.auc_difference(m, n), *rates))
        sizes.append((len(m), len(n)))
    auc, at_10pct, at_1pct = (evaluation.over_repeats(same) for same in zip(*found, strict=True))
    found_differences = Difference(
        against_run=two.name,
        against_attack=other,
        auc=auc,
        tpr_at_10pct=at_10pct,
        tpr_at_1pct=at_1pct,
        members=sizes[0][0],
        nonmembers=sizes[0][1],
    )
    given = (int(pairing.member.sum()), int((~pairing.member).sum()))
    fraction = one.record.split.calibrate_fraction
    shared_parts = sizes[0] == tuple(size - calibrate_size(size, fraction) for size in given)
    return reworded(found_differences, *given, fraction, one.record.split.unit) if shared_parts else found_differences


def _pooled(entries: Sequence[Entry], attacks: Sequence[str]) -> tuple[PooledResult, ...]:
    """Every attack on every entry over its runs; raises `UserError` for an entry of one run."""
    alone = next((entry.name for entry in entries if len(entry.runs) < pooling.FEWEST), None)
    if alone is not None:
        raise UserError(f"--pool takes means over seeds, so each entry needs at least two runs, NAME=RUN,RUN; {alone} has one")
    found, baseline = list[PooledResult](), dict[str, Estimate]()
    for attack in attacks:
        for entry in entries:
            own = [result for result in entry.results if result.attack == attack]
            auc, rate = (pooling.pooled([pick(result) for result in own]) for pick in (lambda r: r.auc, lambda r: r.tpr_at_1pct))
            against = baseline.setdefault(attack, auc.mean)
            found.append(
                PooledResult(
                    entry=entry.name,
                    attack=attack,
                    seeds=len(own),
                    auc=auc.mean,
                    auc_spread=auc.spread,
                    tpr_at_1pct=rate.mean,
                    tpr_spread=rate.spread,
                    difference=None if entry is entries[0] else pooling.difference(auc.mean, against),
                )
            )
    return tuple(found)


def _quality_metric(entries: Sequence[Entry]) -> tuple[Literal["kid", "frechet"] | None, str | None]:
    """What privacy can be plotted against, or why it cannot."""
    known = [(entry.name, entry.quality) for entry in entries if entry.quality]
    if len(known) < 2:
        return None, f"{'no entry has' if not known else f'only {known[0][0]} has'} a quality.json"
    if len({quality.setting for _, quality in known}) > 1:
        each = "; ".join(f"{name}: {quality.extractor}, {quality.images} images, {quality.drawn}" for name, quality in known)
        return (
            None,
            f"the metrics of quality are not comparable: extractors, numbers of images, references or samplers differ ({each})",
        )
    for metric in LOWER_IS_BETTER:
        if all(quality.metric(metric) for _, quality in known):
            return ("kid" if metric == "kid" else "frechet"), None
    return None, "the entries share neither a KID nor a Fréchet distance"


OTHER_HALF = (
    "image of the other half, which it never saw, is left out of its numbers",
    "images of the other half, which it never saw, are left out of its numbers",
)


def _warnings(
    entries: Sequence[EntryRuns], compared: Sequence[Entry], attacks: Sequence[str], audited: Sequence[EntryRuns], unused: str | None
) -> list[str]:
    found = [
        f"{entry.name}: {run.name} is on a teacher of one half of the members; "
        + one_or_more(len(run.images.ids) - len(own.images.ids), *OTHER_HALF)
        for entry, kept in zip(audited, entries, strict=True)
        for run, own in zip(entry.runs, kept.runs, strict=True)
        if own is not run
    ]
    found += [
        f"{entry.name}: {run.record.membership.sentence}"
        for entry in entries
        for run in entry.runs
        if run.record.membership and run.record.membership.status == "contradicted, ignored"
    ]
    column = entries[0].runs[0].record.plan.group
    if column is not None:
        found.append(f"the runs count groups by {shown(column)} and not images: every number and difference is of groups")
    if unused:
        found.append(f"{unused}; a teacher that was audited on both halves would count images it never saw as members")
    found += _of_one_model(entries)
    found += _about_pairs(entries, compared)
    found += _of_earlier_quality(compared)
    found += [f"{run.name}: {EARLIER_RATES}" for entry in entries for run in entry.runs if run.record.schema_version == 1]
    every = dict.fromkeys(a for entry in entries for run in entry.runs for a in run.attacks)
    left = [a for a in every if a not in attacks and not _as_before([run for entry in entries for run in entry.runs], a)]
    if left:
        found.append(f"attacks that some run lacks, or that --attack does not name, are left out: {', '.join(left)}")
    if any(run.record.split.repeats > 1 for entry in entries for run in entry.runs):
        found.append(
            f"fewer than {evaluation.SMALL_SIDE} {'images' if column is None else 'groups'} on a side: differences are medians over "
            f"{evaluation.REPEATS} calibrate/test divisions, with scores at the timestep that most of them chose, so they need not "
            "be what is left when one AUC is taken from the other"
        )
    if any(run.record.plan.anonymous and run.record.split.repeats > 1 for entry in entries for run in entry.runs):
        found.append(
            "the runs are anonymous: their divisions are drawn again by keyed ids, so numbers may differ a little from those of each report"
        )
    found += [
        f"{entry.name}: no calibrate part, so its strongest attack is the largest AUC on the test part, which flatters the attack"
        for entry in compared
        if entry.worst.chosen_on == "test"
    ]
    found += [
        f"{entry.name}: its strongest attack was chosen on the calibrate parts of all divisions together, which are nearly all the images "
        "that it is reported on: that flatters the attack, the more so the more attacks and runs an entry has"
        for entry in compared
        if entry.worst.chosen_on == "repeated"
    ]
    return found


def _of_earlier_quality(compared: Sequence[Entry]) -> list[str]:
    """The warning on entries whose copies were counted otherwise than this version counts them; empty where there are none."""
    measured = {entry.name: entry.quality for entry in compared if entry.quality}
    new = [visible(name) for name, quality in measured.items() if quality.unit == "cluster"]
    apart = f"; do not compare them with those of {', '.join(new)}" if new else ""
    before = {name: said for name, each in measured.items() if (said := counted_one_by_one(each.unit, each.metrics, apart))}
    return [f"{', '.join(map(visible, before))}: {next(iter(before.values()))}"] if before else []


def _of_one_model(entries: Sequence[EntryRuns]) -> list[str]:
    """A warning for each model that several runs are audits of."""
    by_model: dict[str, list[str]] = {}
    for run in (run for entry in entries for run in entry.runs):
        by_model.setdefault(run.record.plan.model_fingerprint, []).append(run.name)
    return [
        f"{', '.join(names)} are audits of the same model (same weights and settings): a difference between them comes from the images or "
        "from how the audits were made"
        for model, names in by_model.items()
        if len(names) > 1 and model != UNKNOWN
    ]


def _about_pairs(entries: Sequence[EntryRuns], compared: Sequence[Entry]) -> list[str]:
    """Warnings on differences that rest on fewer images than the entry's own numbers, or on other data."""
    baseline, found = entries[0].runs[0], []
    words = counted("image" if baseline.record.plan.group is None else "group")
    for entry, result in zip(entries[1:], compared[1:], strict=True):
        against = result.worst.difference
        assert against is not None, "only the baseline has none"
        numbers = [(one.name, one.worst_result.n_members, one.worst_result.n_nonmembers) for one in (result, compared[0])]
        fewer = [(name, m, n) for name, m, n in numbers if against.members + against.nonmembers < FEW_PAIRS * (m + n)]
        if fewer:
            found.append(
                f"{entry.name}: differences rest on the {against.members} {words.members} and {against.nonmembers} {words.all_held_out} "
                "in the test part of both runs, so they need not be what is left when one AUC is taken from the other; "
                + " and ".join(f"the numbers of {name} rest on {m} and {n}" for name, m, n in fewer)
            )
        for run in entry.runs:
            pairing = pair(run, baseline)
            if pairing.differ:
                found.append(
                    f"{entry.name}: {run.name} and {baseline.name} do not count the same images together as near-duplicates; images that "
                    f"either counts together are one here: the {len(pairing.first):,} images of both are {len(pairing.member):,}"
                )
            differs = _given_otherwise(run, baseline)
            if differs:
                found.append(f"{entry.name}: {differs}, and the difference may be due to that")
            elif run.record.plan.data_fingerprint != baseline.record.plan.data_fingerprint:
                found.append(
                    f"{entry.name}: {run.name} and {baseline.name} were audited on different data; the "
                    f"{len(pairing.first)} images with the same id are taken to be the same images"
                )
    return found


def _given_otherwise(run: Run, baseline: Run) -> str | None:
    """Names the captions, the guidance or the code of an attack in which two runs differ; None where they are the same."""
    for what in ("captions", "guidance_scale"):
        own, other = ("none" if (given := getattr(one.record.plan, what)) is None else given for one in (run, baseline))
        if own != other:
            name = what.replace("_", " ")
            return f"{run.name} was audited with {name} {visible(str(own))} and {baseline.name} with {visible(str(other))}"
    own, other = ({attack["attack"]: attack.get("code") for attack in one.record.plan.attacks} for one in (run, baseline))
    changed = sorted(label for label in own.keys() & other.keys() if own[label] != other[label])
    return f"the code of {visible(changed[0])} is another in {run.name} than in {baseline.name}" if changed else None


def _command(
    runs: Sequence[str], attacks: Sequence[str], halves: Path | None, quality: Sequence[str], seed: int, output: Path | None, pool: bool
) -> str:
    """The command line that repeats the comparison."""
    parts = ["diffleak", "compare", *runs]
    for flag, values in (("--attack", attacks), ("--quality", quality)):
        parts += [part for value in values for part in (flag, value)]
    parts += ["--halves", str(halves)] if halves else []
    parts += ["--seed", str(seed)] if seed else []
    parts += ["--pool"] if pool else []
    parts += ["-o", str(output)] if output else []
    return shlex.join(parts)
