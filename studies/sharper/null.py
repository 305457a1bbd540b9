"""Whether intervals hold without a leak: `python studies/sharper/null.py [AUDITS]`, by default 400 simulated audits of 200 images a side.

Statistics of two attacks at three timesteps and the seven numbers of complexity are drawn alike for both sides; in "complexity alone"
complexity decides most of the statistics. A 95 % interval of the AUC must hold one half in about 95 of 100 audits.
"""

import sys

import numpy as np
from scipy.stats import binomtest

from diffleak.records.scores import Scores
from diffleak.stats.calibration import features
from diffleak.stats.evaluation import combined, divided, evaluate_calibrated, evaluate_combined, on_every_split, whole

SIDE, TIMESTEPS = 200, (10, 20, 30)


def audit(seed: int, explained: float) -> dict[str, bool]:
    """Whether the interval of each result holds one half."""
    rng = np.random.default_rng((seed, int(explained)))
    ids, member, c = tuple(f"image-{i:04d}" for i in range(2 * SIDE)), np.arange(2 * SIDE) % 2 == 0, rng.normal(size=(2 * SIDE, 7))
    noise = lambda: rng.normal(size=(2 * SIDE, 1)) + 0.3 * rng.normal(size=(2 * SIDE, len(TIMESTEPS)))
    parts = [Scores(name, "small", TIMESTEPS, ids, np.exp(explained * c[:, :1] + noise())) for name in ("one", "two")]
    split = divided(ids, member, 0.2, seed)
    plain = on_every_split(parts[0], member, split)
    found = {
        "plain": whole(plain)[0],
        "calibrated": whole(evaluate_calibrated(plain, features(c), member, split))[0],
        "combined": whole(evaluate_combined(combined(parts, c), plain, member, split))[0],
    }
    return {name: result.auc.low <= 0.5 <= result.auc.high for name, result in found.items()}


def main(audits: int) -> None:
    print("| | " + " | ".join(("plain", "calibrated", "combined")) + " |\n| :-- | --: | --: | --: |")
    for words, explained in (("no relation to complexity", 0.0), ("complexity alone", 3.0)):
        held = [audit(seed, explained) for seed in range(audits)]
        cells = []
        for name in held[0]:
            count = sum(each[name] for each in held)
            low, high = binomtest(count, audits).proportion_ci()
            cells.append(f"{100 * count / audits:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        print(f"| {words} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 400)
