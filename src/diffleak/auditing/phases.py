"""Calibrate first: the calibrate part is scored over the sweep, and the test part at the timesteps that were chosen there.

    calibrate chunks → every worker has done its own → choose → chosen.json → test chunks at the chosen timesteps

With --sweep coarse the calibrate part is scored at every third timestep, and then at the timesteps beside the best ones.

Each step is a job of its own. What is chosen depends on finished chunks alone, so every worker chooses the same, and after an interruption
again. Noise is keyed by image and draw, so a statistic at a chosen timestep is the one of the whole sweep. An attack by a rule, which
settles one score of all its columns, and one from outside of this package are scored whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffleak.attacks.base import Attack
from diffleak.auditing import score as scoring
from diffleak.auditing.evaluating import beside_best, chosen_of
from diffleak.auditing.plan import Prepared
from diffleak.errors import one_or_more
from diffleak.records.chosen import write_chosen
from diffleak.records.scores import Scores
from diffleak.work.folder import Folder
from diffleak.work.shares import Share, wait_for_others


def in_phases(prepared: Prepared, folder: Folder, log: Callable[[str], None]) -> scoring.Collected | None:
    """Scores what is missing of this worker's share; all scores when every share is done then, else None."""
    if prepared.plan.sweep == "all":
        return _collected(prepared.job, prepared, folder, log)
    calibrate = _calibrated(prepared, folder, log)
    if calibrate is None:
        return None
    chosen = chosen_of(prepared.at(swept(calibrate)), calibrate)
    write_chosen(folder.path, chosen)
    test = _collected(job := prepared.testing(chosen.timesteps), prepared, folder, log)
    return None if test is None else _joined(prepared.calibrating, job, calibrate, test, chosen.timesteps)


def swept(collected: scoring.Collected) -> dict[str, tuple[int, ...]]:
    """The timesteps that the calibrate part, or every image, was scored at, by the label of each attack that sweeps."""
    return {group[0].attack: group[0].timesteps for group in collected.scores if group[0].rule is None}


def _calibrated(prepared: Prepared, folder: Folder, log: Callable[[str], None]) -> scoring.Collected | None:
    """The scores of the calibrate part; None where this shard waits for others."""
    found = _of_everybody(prepared.calibrating, prepared, folder, log)
    if found is None or prepared.plan.sweep != "coarse":
        return found
    between = beside_best(prepared.at(swept(found)), found, prepared)
    if not between:
        return found
    more = _of_everybody(prepared.refining(between), prepared, folder, log)
    return None if more is None else _interleaved(prepared.attacks, found, more, between)


def _of_everybody(job: scoring.Job, prepared: Prepared, folder: Folder, log: Callable[[str], None]) -> scoring.Collected | None:
    """The scores of a job of the calibrate part when all workers have done theirs; None for a shard, which does not wait."""
    worker = prepared.worker
    if scoring.score(job, folder, worker):
        if prepared.config.shard:
            log("the calibrate chunks of other shards are not finished: run this same command again when they are")
            return None
        unfinished = lambda: scoring.unfinished(job, folder)
        wait_for_others(unfinished, [*job.chunks], Share(worker.rank, worker.count), ("calibrate chunk", "calibrate chunks"), log)
    return scoring.collect(job, folder.path)


def _collected(job: scoring.Job, prepared: Prepared, folder: Folder, log: Callable[[str], None]) -> scoring.Collected | None:
    missing = scoring.score(job, folder, prepared.worker)
    if missing:
        belong = one_or_more(missing, "chunk belongs to another shard and is", "chunks belong to other shards and are")
        log(f"{belong} not finished; the last shard writes the results (or run this again later)")
    return None if missing else scoring.collect(job, folder.path)


def _interleaved(
    attacks: Sequence[Attack], coarse: scoring.Collected, more: scoring.Collected, between: dict[str, tuple[int, ...]]
) -> scoring.Collected:
    """The scores of two jobs of the same images as those at the timesteps of both, with what an attack settled for each of them."""
    added = dict(zip(between, zip(more.scores, more.parameters, strict=True), strict=True))
    scores, parameters = [], []
    for attack, group, settled in zip(attacks, coarse.scores, coarse.parameters, strict=True):
        others, other = added.get(attack.label, ((), settled))
        scores.append(tuple(_in_order(*pair) for pair in zip(group, others, strict=True)) if others else group)
        if others and (name := attack.unlabelled) in settled:
            values, timesteps = [*settled[name], *other[name]], [*group[0].timesteps, *others[0].timesteps]
            settled = {**settled, name: [values[i] for i in np.argsort(timesteps)]}
        parameters.append(settled)
    return _summed(coarse, more, tuple(scores), tuple(parameters), reconstruction=coarse.reconstruction, between_timesteps=between)


def _in_order(one: Scores, other: Scores) -> Scores:
    timesteps, statistic = (*one.timesteps, *other.timesteps), np.concatenate([one.statistic, other.statistic], axis=1)
    order = np.argsort(timesteps)
    return replace(one, timesteps=tuple(timesteps[i] for i in order), statistic=statistic[:, order])


def _joined(
    first: scoring.Job,
    second: scoring.Job,
    calibrate: scoring.Collected,
    test: scoring.Collected,
    timesteps: dict[str, tuple[int, ...]],
) -> scoring.Collected:
    """The scores of both parts as those of all images; NaN where the test part was not scored."""
    assert first.rows is not None and second.rows is not None, "each job is of a part"
    groups = [
        tuple(_both(first, second, *pair) for pair in zip(one, other, strict=True))
        for one, other in zip(calibrate.scores, test.scores, strict=True)
    ]
    reconstruction = None
    if calibrate.reconstruction is not None and test.reconstruction is not None:
        reconstruction = np.empty((len(first.cohort), calibrate.reconstruction.shape[1]))
        reconstruction[list(first.rows)], reconstruction[list(second.rows)] = calibrate.reconstruction, test.reconstruction
    timesteps_of = {"test_timesteps": timesteps, "between_timesteps": calibrate.between_timesteps}
    return _summed(calibrate, test, tuple(groups), calibrate.parameters, reconstruction=reconstruction, **timesteps_of)


def _summed(
    one: scoring.Collected,
    other: scoring.Collected,
    scores: tuple[tuple[Scores, ...], ...],
    parameters: tuple[dict[str, Any], ...],
    **parts: Any,
) -> scoring.Collected:
    """These scores with what the two jobs cost together."""
    return scoring.Collected(
        scores,
        parameters,
        one.queries + other.queries,
        one.saved + other.saved,
        one.seconds + other.seconds,
        one.chunks + other.chunks,
        halved_to=min((part.halved_to for part in (one, other) if part.halved_to is not None), default=None),
        read=one.read + other.read,
        **parts,
    )


def _both(first: scoring.Job, second: scoring.Job, calibrate: Scores, test: Scores) -> Scores:
    statistic = np.full((len(first.cohort), len(calibrate.timesteps)), np.nan)
    statistic[list(first.rows or ())] = calibrate.statistic
    columns = [calibrate.timesteps.index(t) for t in test.timesteps]
    statistic[np.ix_(list(second.rows or ()), columns)] = test.statistic
    return replace(calibrate, ids=first.cohort.ids, statistic=statistic)
