"""What is lost by choosing among timesteps on at most 1,000 images a side, by simulation.

    python studies/decisions/calibrate_first.py [--runs 400]

An attack has one score at each of 30 timesteps. Scores of members lie d higher, d peaks at one timestep and falls off from it over `width`
timesteps; the noise of an image is shared between timesteps (correlation between neighbours `alike`). So the true AUC at a timestep is
known: Phi(d / sqrt 2). A row per case: the loss of true AUC, in 1/1000, of the timestep that is chosen on 1,000 a side against the one
chosen on all of the calibrate part, on average with its Monte-Carlo error, and against the best timestep.
"""

import argparse
from itertools import product
from statistics import NormalDist

import numpy as np

from diffleak.stats.choosing import column_aucs

TIMESTEPS = 30
FEW, ALL = 1000, 5000  # images a side that choose; 5,000 are the calibrate part of 25,000 a side
PEAKS, WIDTHS, ALIKE = (0.52, 0.55, 0.6, 0.8), (3.0, 10.0), (0.5, 0.9, 0.98)


def chosen(peak: float, width: float, alike: float, rng: np.random.Generator, few: int = FEW, whole: int = ALL) -> tuple[float, float]:
    """The loss of true AUC of what few choose, against what all choose and against the best timestep."""
    steps = np.arange(TIMESTEPS)
    d = NormalDist().inv_cdf(peak) * np.sqrt(2) * np.exp(-(((steps - TIMESTEPS // 3) / width) ** 2) / 2)
    noise = rng.standard_normal((2, whole, TIMESTEPS))
    for t in steps[1:]:
        noise[:, :, t] = alike * noise[:, :, t - 1] + np.sqrt(1 - alike**2) * noise[:, :, t]
    members, held_out = noise[0] + d, noise[1]
    true = np.array([NormalDist().cdf(each / np.sqrt(2)) for each in d])
    by_few, by_all = (true[int(column_aucs(members[:n], held_out[:n]).argmax())] for n in (few, whole))
    return by_all - by_few, true.max() - by_few


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print("| best AUC | width | alike | loss against all, 1/1000 | loss against the best, 1/1000 |")
    print("|---|---|---|---|---|")
    for case in product(PEAKS, WIDTHS, ALIKE):
        rng = np.random.default_rng([int(1000 * value) for value in case])
        lost = 1000 * np.array([chosen(*case, rng) for _ in range(runs)])
        error = lost[:, 0].std(ddof=1) / np.sqrt(runs)
        print(f"| {case[0]} | {case[1]:g} | {case[2]} | {lost[:, 0].mean():.2f} ± {error:.2f} | {lost[:, 1].mean():.2f} |", flush=True)


if __name__ == "__main__":
    main()
