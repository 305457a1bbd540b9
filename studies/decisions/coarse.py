"""What `--sweep coarse` would have lost in finished audits of every image at every timestep (`--sweep all`).

    python studies/decisions/coarse.py RUN [RUN ...] [--divisions 50]

A row per attack: over random divisions into calibrate part (20 %) and test part, AUC on the test part at the timestep that the whole sweep
chooses on the calibrate part, how much less it is at the one that every third timestep and then its neighbours choose (in 1/1000, with the
standard deviation over the divisions), and how often both choose the same.
"""

import argparse
from pathlib import Path

import numpy as np
from calibrate_first import coarse_choice

from diffleak.records.run_folder import read_audit, read_samples, read_scores
from diffleak.stats.choosing import column_aucs

CALIBRATE = 0.2


def lost(scores: np.ndarray, member: np.ndarray, divisions: int) -> np.ndarray:
    """For each division: AUC at the choice of the whole sweep, what the other choice loses, and whether both are the same."""
    rng, found = np.random.default_rng(0), []
    for _ in range(divisions):
        calibrate = np.zeros(len(member), dtype=bool)
        for side in (member, ~member):
            rows = np.flatnonzero(side)
            calibrate[rng.choice(rows, round(CALIBRATE * len(rows)), replace=False)] = True
        aucs = column_aucs(scores[calibrate & member], scores[calibrate & ~member])
        whole, coarse = int(aucs.argmax()), coarse_choice(aucs)
        test = column_aucs(scores[~calibrate & member], scores[~calibrate & ~member])
        found.append((test[whole], test[whole] - test[coarse], whole == coarse))
    return np.array(found, dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--divisions", type=int, default=50)
    given = parser.parse_args()
    print("| run | attack | timesteps | AUC, whole sweep | coarse loses, 1/1000 | same choice |")
    print("|---|---|---|---|---|---|")
    for run in given.runs:
        record, samples = read_audit(run), read_samples(run)
        rows = {image_id: i for i, image_id in enumerate(samples.ids)}
        for result in record.results:
            if result.plain and result.timestep is not None and (scores := read_scores(run, result, rows)) is not None:
                auc, less, same = lost(scores.membership, samples.member, given.divisions).T
                said = f"{auc.mean():.3f} | {1000 * less.mean():.2f} ± {1000 * less.std():.2f} | {same.mean():.0%}"
                print(f"| {run.name} | {result.attack} | {len(scores.timesteps)} | {said} |")


if __name__ == "__main__":
    main()
