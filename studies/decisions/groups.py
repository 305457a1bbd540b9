"""Coverage of the intervals of images and of groups, where images of a group are dependent: prints the table of docs/design/018b.

    python studies/decisions/groups.py [RUNS [RUNS_OF_RATES]]

A side has `groups` groups of `images` images. Score = group effect (variance ICC) + noise of the image (variance 1 - ICC), members' groups
shifted by `shift`. Every number is a share of RUNS simulated audits with one division; that of rates, which resample, of RUNS_OF_RATES.
Monte-Carlo error of 95 % (2 sigma): 1.5 points at 800 runs, 4.4 at 100.
"""

import sys
from statistics import NormalDist

import numpy as np

from diffleak.records.base import Estimate
from diffleak.records.scores import Scores
from diffleak.stats import metrics
from diffleak.stats.rules import settled
from diffleak.stats.units import units_of

CASES = ((30, 8, 0.5, 0.0), (30, 8, 0.5, 0.8), (30, 8, 0.1, 0.0), (100, 4, 0.3, 0.5), (250, 2, 0.9, 0.0), (250, 8, 0.5, 0.5))


def truth(column: np.ndarray, member: np.ndarray, k: int) -> float:
    """The TPR of a very large audit with k false alarms for every 100 held-out units."""
    return float(np.mean(column[member] > np.quantile(column[~member], 1 - k / 100)))


def draw(rng: np.random.Generator, of: np.ndarray, member: np.ndarray, icc: float, shift: float) -> np.ndarray:
    """A score for every image."""
    effect = np.sqrt(icc) * rng.normal(size=len(member)) + shift * member
    return effect[of] + np.sqrt(1 - icc) * rng.normal(size=len(of))


def main(runs: int, of_rates: int) -> None:
    print("| groups a side | images of each | ICC | shift | AUC, images | AUC, groups | TPR at 10 %, images | TPR at 10 %, groups |")
    print("|---|---|---|---|---|---|---|---|")
    for groups, images, icc, shift in CASES:
        rng, of = np.random.default_rng(0), np.repeat(np.arange(2 * groups), images)
        member, names = np.arange(2 * groups) < groups, [str(i) for i in range(len(of))]
        units = units_of(names, names, member[of], np.arange(len(of)), [f"g{k}" for k in of])
        large = np.repeat(np.arange(200_000), images), np.arange(200_000) < 100_000
        values = draw(rng, *large, icc, shift)
        of_groups = values.reshape(-1, images).mean(axis=1)
        rates = truth(values, large[1][large[0]], 10), truth(of_groups, large[1], 10)
        aucs = NormalDist().cdf(shift / 2**0.5), NormalDist().cdf(shift / (2 * (icc + (1 - icc) / images)) ** 0.5)
        covered = np.zeros(4)
        for run in range(runs):
            values = draw(rng, of, member, icc, shift)
            scores = units.counting(Scores("a", "large", (0,), tuple(names), values[:, None]))
            column = settled(scores, member, np.zeros(len(member), dtype=bool)).membership[:, 0]
            sides = ((values[member[of]], values[~member[of]]), (column[member], column[~member]))
            for i, (pair, auc, rate) in enumerate(zip(sides, aucs, rates, strict=True)):
                covered[i] += _covers(metrics.auc_estimate(*pair), auc) / runs
                if run < of_rates:
                    covered[2 + i] += _covers(metrics.tpr_at_fpr(*pair, 0.1), rate) / of_rates
        print(f"| {groups} | {images} | {icc:g} | {shift:g} | " + " | ".join(f"{share:.1%}" for share in covered) + " |", flush=True)


def _covers(found: Estimate, true: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= true <= found.high


if __name__ == "__main__":
    given = [*map(int, sys.argv[1:3])]
    main(*(given + [800, 100][len(given) :]))
