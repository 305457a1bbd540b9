"""Calibrate first: the calibrate part is scored at every timestep, and the test part at those that were chosen there.

    calibrate chunks → every worker has done its own → choose → chosen.json → test chunks at the chosen timesteps

Each part is a job of chunks of its own, numbered one after the other. What is chosen depends on finished chunks alone, so every worker
chooses the same, and after an interruption again. Noise is keyed by image and draw, so a statistic at a chosen timestep is the one of the
whole sweep. An attack by a rule, which settles one score of all its columns, and one from outside of this package are scored whole.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from diffleak.auditing import score as scoring
from diffleak.auditing.evaluating import chosen_of
from diffleak.auditing.plan import Prepared
from diffleak.records.chosen import write_chosen
from diffleak.records.scores import Scores
from diffleak.work.folder import Folder
from diffleak.work.shares import Share, wait_for_others


def in_phases(prepared: Prepared, folder: Folder, log: Callable[[str], None]) -> scoring.Collected | None:
    """Scores what is missing of this worker's share; all scores when every share is done then, else None."""
    jobs, worker = prepared.jobs(), prepared.worker
    if len(jobs) == 1:
        return _collected(jobs[0], prepared, folder, log)
    first = jobs[0]
    if scoring.score(first, folder, worker):
        if prepared.config.shard:
            log("the calibrate chunks of other shards are not finished: run this same command again when they are")
            return None
        unfinished = lambda: scoring.unfinished(first, folder)
        wait_for_others(unfinished, [*first.chunks], Share(worker.rank, worker.count), "calibrate chunks", log)
    calibrate = scoring.collect(first, folder.path)
    chosen = chosen_of(prepared, calibrate)
    write_chosen(folder.path, chosen)
    second = prepared.jobs(chosen.timesteps)[1]
    test = _collected(second, prepared, folder, log)
    return None if test is None else _joined(first, second, calibrate, test, chosen.timesteps)


def _collected(job: scoring.Job, prepared: Prepared, folder: Folder, log: Callable[[str], None]) -> scoring.Collected | None:
    missing = scoring.score(job, folder, prepared.worker)
    if missing:
        log(f"{missing} chunks belong to other shards and are not finished; the last shard writes the results (or run this again later)")
    return None if missing else scoring.collect(job, folder.path)


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
    return scoring.Collected(
        tuple(groups),
        calibrate.parameters,
        calibrate.queries + test.queries,
        calibrate.saved + test.saved,
        calibrate.seconds + test.seconds,
        calibrate.chunks + test.chunks,
        reconstruction,
        timesteps,
        min((part.halved_to for part in (calibrate, test) if part.halved_to is not None), default=None),
        calibrate.read + test.read,
    )


def _both(first: scoring.Job, second: scoring.Job, calibrate: Scores, test: Scores) -> Scores:
    statistic = np.full((len(first.cohort), len(calibrate.timesteps)), np.nan)
    statistic[list(first.rows or ())] = calibrate.statistic
    columns = [calibrate.timesteps.index(t) for t in test.timesteps]
    statistic[np.ix_(list(second.rows or ()), columns)] = test.statistic
    return replace(calibrate, ids=first.cohort.ids, statistic=statistic)
