"""What near-duplicates do to the numbers of `extract`, `quality` and `lora`: prints the tables of docs/design/018e.

    python studies/decisions/drawn_together.py [RUNS]

A picture is given `each` times, as near-duplicates. Of one image the distance to its nearest drawing is uniform in [0, 1]; those of
near-duplicates are dependent by a normal copula of correlation `alike`: 1 where all images search the same drawings, less where each has
drawings for a caption of its own. A share of the members' pictures is copied, with all its near-duplicates. Monte-Carlo error of 2.5 %
(2 sigma) at 1,000 runs: 1 point; of 95 %: 1.4 points.
"""

import sys
from collections.abc import Callable

import numpy as np
from scipy.stats import norm

from diffleak.lora.judge import redrawn
from diffleak.stats.extraction import copy_rates
from diffleak.stats.images import copy_chance, copy_rate, kernel_difference

SHARE = 0.01
ALARM = 0.025
EXTRACTED = (  # (pictures, each) of members and of held-out images, how alike, the share that is copied
    ((200, 1), (600, 1), 1.0, 0.0),
    ((40, 5), (600, 1), 1.0, 0.0),
    ((40, 5), (600, 1), 0.6, 0.0),
    ((200, 1), (300, 2), 1.0, 0.0),
    ((400, 1), (250, 4), 0.6, 0.0),
    ((200, 1), (600, 1), 1.0, 0.2),
    ((40, 5), (600, 1), 1.0, 0.2),
    ((40, 5), (600, 1), 0.6, 0.2),
)
MEASURED = (((100, 1), (200, 1)), ((50, 2), (200, 1)), ((100, 1), (120, 2)), ((60, 2), (110, 4)))  # of training and of the reference
LORA = ((12, 1), (12, 2), (4, 5))
COUNTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every image": np.ravel,
    "the nearest": lambda distances: distances.min(axis=1),
    "the mean": lambda distances: distances.mean(axis=1),
    "one of each": lambda distances: distances[:, 0],
}


def draw(rng: np.random.Generator, pictures: int, each: int, alike: float) -> np.ndarray:
    """The distance of every image, a picture a row."""
    own = np.sqrt(1 - alike) * rng.normal(size=(pictures, each))
    return norm.cdf(np.sqrt(alike) * rng.normal(size=(pictures, 1)) + own)


def extracted(runs: int) -> None:
    print("| members x each | held out x each | alike | copied |", *(f"{name}: false alarms, covered |" for name in COUNTS))
    print("|---" * (4 + len(COUNTS)) + "|")
    for members, held_out, alike, copied in EXTRACTED:
        rng, found = np.random.default_rng(0), {name: np.zeros((runs, 2)) for name in COUNTS}
        truth = copied + (1 - copied) * SHARE
        for run in range(runs):
            near, other = draw(rng, *members, alike), draw(rng, *held_out, alike)
            near[rng.random(members[0]) < copied] = -1.0
            half = rng.permutation(held_out[0]) < held_out[0] // 2
            for name, of in COUNTS.items():
                rates = copy_rates(of(near), of(other[half]), of(other[~half]), SHARE)
                assert rates.chance is not None and rates.members.low is not None and rates.members.high is not None
                found[name][run] = rates.chance < ALARM, rates.members.low <= truth <= rates.members.high
        cells = [f"{_alarms(rates[:, 0], copied)}, {rates[:, 1].mean():.1%}" for rates in found.values()]
        print(
            f"| {members[0]} x {members[1]} | {held_out[0]} x {held_out[1]} | {alike:g} | {copied:g} |", " | ".join(cells), "|", flush=True
        )


def _alarms(alarms: np.ndarray, copied: float) -> str:
    return "-" if copied else f"{alarms.mean():.1%}"


def measured(runs: int) -> None:
    print("| training x each | reference x each | copies: false alarms | one of each | KID difference: p <= 0.05, covered | one of each |")
    print("|---|---|---|---|---|---|")
    for training, reference in MEASURED:
        rng, found = np.random.default_rng(0), np.zeros((runs, 8))
        for run in range(runs):
            unseen, drawn = rng.random(reference[0]), rng.random(400)
            x, y, z = rng.normal(size=(60, 8)), rng.normal(size=(training[0], 8)), rng.normal(size=(reference[0], 8))
            for k, times in enumerate(((training[1], reference[1]), (1, 1))):
                similarity = np.repeat(unseen, times[1])
                chance, rate = copy_chance(drawn, similarity), copy_rate(drawn, similarity)
                estimate, p = kernel_difference(x, np.repeat(y, times[0], axis=0), np.repeat(z, times[1], axis=0), run)
                assert chance is not None and p is not None
                covered = [each.low <= true <= each.high for each, true in ((rate, SHARE), (estimate, 0.0))]  # type: ignore[operator]
                found[run, 4 * k : 4 * k + 4] = chance < ALARM, covered[0], p <= 0.05, covered[1]
        of = found.mean(axis=0)
        cells = f"{of[0]:.1%} | {of[4]:.1%} | {of[2]:.1%}, {of[3]:.1%} | {of[6]:.1%}, {of[7]:.1%}"
        print(f"| {training[0]} x {training[1]} | {reference[0]} x {reference[1]} | {cells} |", flush=True)


def adapters(runs: int) -> None:
    print("| pictures x each | every image: p <= 0.05 | the nearest of each: p <= 0.05 |")
    print("|---|---|---|")
    for pictures, each in LORA:
        rng, found = np.random.default_rng(0), np.zeros((runs, 2))
        for run in range(runs):
            one, other = (draw(rng, pictures, each, 0.9) for _ in range(2))
            for k, of in enumerate((np.ravel, COUNTS["the nearest"])):
                found[run, k] = redrawn(*(dict(zip(map(str, range(one.size)), of(x), strict=False)) for x in (one, other))).p_value <= 0.05
        print(f"| {pictures} x {each} | " + " | ".join(f"{share:.1%}" for share in found.mean(axis=0)) + " |", flush=True)


def main(runs: int) -> None:
    for table in (extracted, measured, adapters):
        table(runs)
        print()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
