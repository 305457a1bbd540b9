"""Power by formula (`diffleak.stats.power`) against simulation of the intervals that audits print.

    python studies/decisions/power.py [--runs 400]

A row per number of test images: the smallest detectable AUC and TPR at 1 % FPR, and how often an attack that has just that is told from
chance. Close to 0.8 is right; the Monte-Carlo error of 400 runs is 0.02.
"""

import argparse
from statistics import NormalDist

import numpy as np

from diffleak.stats.metrics import auc_estimate, tpr_at_fpr
from diffleak.stats.power import detectable_auc, detectable_tpr

SIZES = ((24, 24), (50, 50), (100, 100), (400, 100), (400, 400), (500, 500), (500, 2000), (1000, 1000), (2000, 2000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print("| members | held out | AUC | detected | TPR at 1 % FPR | detected |")
    print("|---|---|---|---|---|---|")
    for m, n in SIZES:
        rng = np.random.default_rng((m, n))
        auc, tpr = detectable_auc(m, n), detectable_tpr(m, n)
        assert auc is not None
        shift = NormalDist().inv_cdf(auc) * np.sqrt(2)
        seen = [(auc_estimate(rng.normal(shift, 1, m), rng.normal(0, 1, n)).low or 0) > 0.5 for _ in range(runs)]
        rate = "-"
        if tpr is not None:
            memorised = (tpr - 0.01) / 0.99
            scores = lambda memorised=memorised, m=m, rng=rng: np.where(rng.random(m) < memorised, 50.0, 0.0) + rng.normal(size=m)
            rate = f"{np.mean([(tpr_at_fpr(scores(), rng.normal(size=n), 0.01).low or 0) > 0.01 for _ in range(runs)]):.3f}"
        print(f"| {m:,} | {n:,} | {auc:.3f} | {np.mean(seen):.3f} | {'-' if tpr is None else f'{tpr:.4f}'} | {rate} |", flush=True)


if __name__ == "__main__":
    main()
