"""The swap audit of two teachers that were trained on disjoint halves D1 and D2 of the members, and audited on all of them.

    d(x) = membership score under teacher 1 - membership score under teacher 2

Every x is a member of one teacher and held out from the other, so how difficult x is by itself cancels in d. The AUC of d,
D1 against D2, is 0.5 when the teachers tell nothing, and close to 1 when which of them saw x can be read off, also where
each teacher's ordinary AUC is weak because images differ more from each other than members do from held-out images.
Timesteps are chosen on a calibrate part of D1 and D2 together (drawn for this audit, by id and seed); the numbers are of
the rest. Where an attack stores components, d is taken of each and settled there.

Near-duplicates of one half count as one image, as in the audits: d is taken of images, and a unit has the mean of its images'. Images that
either run counts together are together here; a cluster with images in both halves is a unit of each. Where the audits count groups, such as
those of one person, so does this, and each group must stand in one half: a person of both has trained both teachers. No torch here.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from diffleak.comparison.runs import EntryRuns, Run, default_halves, read_scores, refuse_other_counting
from diffleak.data.split import Defence, read_defence
from diffleak.errors import UserError, of_them, shown
from diffleak.records.audit import Result
from diffleak.records.comparison import SwapAudit, SwapResult
from diffleak.records.plan import Split
from diffleak.records.scores import Scores, numbered
from diffleak.stats import evaluation
from diffleak.stats.reasons import in_given_images
from diffleak.stats.units import Units, chained, units_of

NO_HALVES = "no split.json with two halves lies beside the audited models, and --halves names none"


class Sides(NamedTuple):
    """Ids of the positive and of the negative class."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


class Measured(NamedTuple):
    """One attack: its result, those of the difference and of either teacher alone, and how the halves were divided."""

    result: SwapResult
    swap: Result
    alone: tuple[Result, Result]
    split: Split


def swap_audit(entries: Sequence[EntryRuns], attacks: Sequence[str], halves: Defence) -> SwapAudit:
    """The swap audit of the two runs whose models the halves file names.

    Raises `UserError` when a teacher has no run, or a run does not hold members of both halves.
    """
    runs = [run for entry in entries for run in entry.runs]
    first, second = (_run_of(runs, halves, i) for i in (0, 1))
    _refuse_other_groups(first, second)
    shared = tuple(tuple(i for i in half if i in first.rows and i in second.rows) for half in halves.halves)
    for number, (half, audited) in enumerate(zip(halves.halves, shared, strict=True), 1):
        if len(audited) < 2:
            raise UserError(
                f"both teachers must be audited on the members of both halves; {first.name} and {second.name} share {len(audited)} of "
                f"the {len(half)} images of half {number}: audit each with all members"
            )
    swapped = Sides(shared[0], shared[1])
    across = _across((first, second), swapped)
    if (column := first.record.plan.group) is not None and across:
        have = of_them(across, f"the groups by {shown(column)}", "has", "have")
        raise UserError(
            f"the swap audit needs each group in one half; {have} images in both: draw the halves "
            f"with diffleak defend --group {shlex.quote(shown(column))}, or audit the teachers without --group"
        )
    own = (Sides(shared[0], _held_out(first)), Sides(shared[1], _held_out(second)))
    measured = {attack: _measured(attack, (first, second), swapped, own) for attack in attacks}
    found = {attack: m for attack, m in measured.items() if m is not None}
    if not found:
        raise UserError(
            f"the swap audit needs scores of both teachers at a shared timestep; {first.name} and {second.name} have none: "
            "audit them with the same --timesteps and --sweep all"
        )
    leading = [a for a in found if first.result(a).leads] or list(found)
    best = max(leading, key=lambda a: found[a].result.calibrate_auc or found[a].result.auc.value or 0.0)
    sizes = found[best]
    return SwapAudit(
        halves=str(halves.path),
        runs=(first.name, second.name),
        members=(sizes.split.members, sizes.split.nonmembers),
        tested=(sizes.swap.n_members, sizes.swap.n_nonmembers),
        nonmembers=(sizes.alone[0].n_nonmembers, sizes.alone[1].n_nonmembers),
        repeats=sizes.split.repeats,
        unit=sizes.split.unit,
        across=across,
        results=tuple(m.result for m in found.values()),
        best=best,
        omitted=tuple(a for a in measured if a not in found),
    )


class Halved(NamedTuple):
    """Entries with teachers on their own half."""

    entries: tuple[EntryRuns, ...]
    halves: Defence | None
    reason: str | None
    """Why there is no swap audit by the files that no flag named."""
    unused: str | None
    """Which of these files cannot be used, though a run may be on a teacher that they name."""


def with_halves(audited: Sequence[EntryRuns], given: Path | None) -> Halved:
    """The entries with teachers on their own half, and the halves file; or why a file that no flag named does not fit."""
    entries, used, unused, absent = tuple(audited), list[Defence](), list[str](), list[str]()
    for path in (given,) if given else default_halves(audited):
        try:
            halves = read_defence(path)
            entries = tuple(EntryRuns(entry.name, tuple(_own_half(run, halves) for run in entry.runs)) for entry in entries)
        except UserError as error:
            if given:
                raise
            unused.append(f"the halves in {path} are not used ({error})")
            continue
        fingerprints = {run.record.plan.model_fingerprint for entry in audited for run in entry.runs}
        if given or fingerprints & set(halves.teachers):
            used.append(halves)
        else:
            absent.append(f"{path} names two teachers, and no run audits either of them")
    swappable = [halves for halves in used if fingerprints >= set(halves.teachers)]
    return Halved(entries, next(iter(swappable or used), None), "; ".join((*unused, *absent)) or None, "; ".join(unused) or None)


def swap_or_reason(
    entries: Sequence[EntryRuns], attacks: Sequence[str], halves: Defence, asked: bool
) -> tuple[SwapAudit | None, str | None]:
    """The swap audit; where no flag asks for it and it cannot be made, the reason."""
    try:
        return swap_audit(entries, attacks, halves), None
    except UserError as error:
        if asked:
            raise UserError(f"{error}, or leave out --halves") from None
        return None, str(error)


def _own_half(run: Run, halves: Defence) -> Run:
    """A teacher's run restricted to the teacher's own half: the other half it never saw, so those are no members.

    Settings are chosen again on what is left. Attacks whose scores at every timestep are not on disk are left out.
    """
    fingerprint = run.record.plan.model_fingerprint
    if fingerprint not in halves.teachers:
        return run
    _check_members(run, halves)
    others = frozenset(halves.halves[1 - halves.teachers.index(fingerprint)])
    kept = [i for i in run.images.ids if i not in others]
    if len(kept) == len(run.images.ids):
        return run
    member = run.images.member[[run.rows[i] for i in kept]]
    sides = Sides(tuple(i for i, m in zip(kept, member, strict=True) if m), tuple(i for i, m in zip(kept, member, strict=True) if not m))
    found = [(run.result(attack), scores) for attack in run.attacks if (scores := read_scores(run, attack))]
    own = [_restricted(scores, run, sides, scores.timesteps) for _, scores in found]
    if not own or not sides.positive:
        raise UserError(
            f"{run.name} is on a teacher that {halves.path} names and must hold images of that teacher's own half, with scores; "
            "it holds none: audit it with all members"
        )
    units = _units((run,), sides)
    split = _divided(units, run)
    counted, member = [units.counting(scores) for scores in own], units.member
    results = [_kept(old, evaluation.evaluate_scores(scores, member, split)) for (old, _), scores in zip(found, counted, strict=True)]
    record = in_given_images(run.record.model_copy(update={"results": tuple(results), "split": split.record}))
    return Run(run.name, record, units.named(evaluation.samples(counted, results, member, split)))


def _kept(old: Result, new: Result) -> Result:
    """A result on fewer images: what evaluating sets is new, and the rest of the old result stays. Gains are of all images."""
    return old.model_copy(update={name: getattr(new, name) for name in new.model_fields_set} | {"gain": None})


def _run_of(runs: Sequence[Run], halves: Defence, which: int) -> Run:
    """The run on one teacher; of several, the one on the most members of both halves."""
    fingerprint = halves.teachers[which]
    found = [run for run in runs if run.record.plan.model_fingerprint == fingerprint]
    if not found:
        raise UserError(
            f"{halves.path} names two teachers, and each needs a run; none of the runs is on teacher {which + 1} "
            f"({fingerprint[:24]}): audit it on all members and add its RUN"
        )
    run = max(found, key=lambda r: sum(i in r.rows for i in chain(*halves.halves)))
    _check_members(run, halves)
    return run


def _check_members(run: Run, halves: Defence) -> None:
    if run.record.plan.anonymous:
        raise UserError(
            f"{halves.path} lists the halves by file name, and {run.name} is anonymous: audit the teachers without --anonymous to use it"
        )
    held_out = [i for i in chain(*halves.halves) if i in run.rows and not run.images.member[run.rows[i]]]
    if held_out:
        raise UserError(
            f"{halves.path}: the halves must be made of members; {run.name} holds out {len(held_out)} of their ids "
            f"(first: {shown(held_out[0])}): audit the teachers with all members as members"
        )


def _held_out(run: Run) -> tuple[str, ...]:
    return tuple(i for i, member in zip(run.images.ids, run.images.member, strict=True) if not member)


def _measured(attack: str, runs: tuple[Run, Run], swapped: Sides, own: tuple[Sides, Sides]) -> Measured | None:
    """One attack; None where some scores are missing."""
    one, two = (read_scores(run, attack) for run in runs)
    timesteps = tuple(sorted(set(one.timesteps) & set(two.timesteps))) if one and two else ()
    if one is None or two is None or not timesteps:
        return None
    a, b = _restricted(one, runs[0], swapped, timesteps), _restricted(two, runs[1], swapped, timesteps)
    difference = Scores(attack, "large", timesteps, a.ids, a.membership - b.membership, a.rule)
    swap, split = _evaluated(difference, swapped, runs, runs[0])
    first, _ = _evaluated(_restricted(one, runs[0], own[0], one.timesteps), own[0], runs[:1], runs[0])
    second, _ = _evaluated(_restricted(two, runs[1], own[1], two.timesteps), own[1], runs[1:], runs[1])
    result = SwapResult(
        attack=attack,
        timestep=swap.timestep,
        setting=swap.setting,
        calibrate_auc=max((point.auc for point in swap.per_timestep), default=None),
        auc=swap.auc,
        own=(first.auc, second.auc),
        own_timesteps=(first.timestep, second.timestep),
    )
    return Measured(result, swap, (first, second), split)


def _restricted(scores: Scores, run: Run, sides: Sides, timesteps: tuple[int, ...]) -> Scores:
    """The scores of the images of both sides, the positive ones first, at some timesteps."""
    ids = (*sides.positive, *sides.negative)
    rows = np.array([run.rows[i] for i in ids])
    columns = [scores.timesteps.index(t) for t in timesteps]
    return replace(scores, timesteps=timesteps, ids=ids, statistic=scores.statistic[rows][:, columns])


def _evaluated(scores: Scores, sides: Sides, counting: Sequence[Run], planned: Run) -> tuple[Result, Split]:
    """The result over a division of these images into halves as the plan of a run has it, counted as other runs count them."""
    units = _units(counting, sides)
    split = _divided(units, planned)
    return evaluation.evaluate_scores(units.counting(scores), units.member, split), split.record


def _units(runs: Sequence[Run], sides: Sides) -> Units:
    """What the images of both sides count as, the positive ones first: images that a run counts together are together on each side."""
    ids = (*sides.positive, *sides.negative)
    positive: Bool[np.ndarray, " n"] = np.repeat([True, False], [len(sides.positive), len(sides.negative)])
    return units_of(ids, ids, positive, _clusters(runs, ids), _groups(runs[0], ids))


def _groups(run: Run, ids: Sequence[str]) -> tuple[str, ...] | None:
    """The group of each image; None where the run counts images."""
    named = run.images.units if run.images.unit == "group" else None
    return None if named is None else tuple(named[run.rows[i]] for i in ids)


def _refuse_other_groups(first: Run, second: Run) -> None:
    """Raises `UserError` where the two runs do not count the same, or put an image that they share in different groups."""
    refuse_other_counting(first, second)
    shared = [i for i in first.images.ids if i in second.rows]
    one, two = (_groups(run, shared) for run in (first, second))
    if one != two:
        raise UserError(
            f"the swap audit needs the same groups in both runs; {first.name} and {second.name} put some images in different groups: "
            "audit both again on the same data"
        )


def _clusters(runs: Sequence[Run], ids: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The number of the cluster of each image: those of one run, or what the clusters of two chain together."""
    first, *more = (numbered(run.number[[run.rows[i] for i in ids]]) for run in runs)
    return chained(first, *more) if more else first


def _across(runs: tuple[Run, Run], halves: Sides) -> int:
    """How many clusters, or groups, have images in both halves."""
    clusters, first = _clusters(runs, (*halves.positive, *halves.negative)), len(halves.positive)
    return len(np.intersect1d(clusters[:first], clusters[first:]))


def _divided(units: Units, run: Run) -> evaluation.Divisions:
    """The division of the units as the run's plan has it."""
    plan = run.record.plan
    return units.reduced(units.divided(plan.calibrate_fraction, plan.seed, plan.calibration))
