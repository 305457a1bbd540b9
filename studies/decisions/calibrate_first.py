"""What is lost by choosing among timesteps on at most 1,000 images a side, by simulation.

    python studies/decisions/calibrate_first.py [--runs 400] [--proposals | --coarse | --rules]

An attack has one score at each of 30 timesteps. Scores of members lie d higher, d peaks at one timestep and falls off from it over `width`
timesteps; the noise of an image is shared between timesteps (correlation between neighbours `alike`). So the true AUC at a timestep is
known: Phi(d / sqrt 2). A row per case: the loss of true AUC, in 1/1000, of the timestep that is chosen on 1,000 a side against the one
chosen on all of the calibrate part, on average with its Monte-Carlo error, and against the best timestep.

--proposals: the loss against all of two cheaper choices beside it, on the same images. "half": 500 a side. "staged": the best 10 of the 30
timesteps on the first 333 a side, and of these the best on 1,000; 0.56 of the forwards.

--coarse: the loss of what `--sweep coarse` chooses against what the whole sweep chooses on the same images, 100 and 1,000 a side. The peak
lies anywhere in the sweep, since a coarse sweep would be lucky with one on a timestep that it begins with.

--rules: the loss against all of three rules on the same 1,000 a side. "highest": the highest AUC, as audits choose. "smoothed": the highest
of AUCs that were smoothed over the timesteps, by a Gaussian process whose length and height are those of the largest likelihood.
"form known": the timestep of the largest expected AUC, for somebody who knows the height and the width of the peak, the errors of the AUCs
and how they correlate, and all but where the peak is: no rule that sees these AUCs alone does better on average over the places.
"""

import argparse
from itertools import product

import numpy as np
from scipy.stats import norm, rankdata

from diffleak.stats.choosing import column_aucs

TIMESTEPS = 30
FEW, ALL = 1000, 5000  # images a side that choose; 5,000 are the calibrate part of 25,000 a side
SIZES = (100, 1000)  # images a side of `coarse`
FIRST, KEPT = 333, 10  # of `staged`: images a side that all timesteps are scored on, and timesteps that are left
PEAKS, WIDTHS, ALIKE = (0.52, 0.55, 0.6, 0.8), (3.0, 10.0), (0.5, 0.9, 0.98)


def chosen(peak: float, width: float, alike: float, rng: np.random.Generator, few: int = FEW, whole: int = ALL) -> tuple[float, float]:
    """The loss of true AUC of what few choose, against what all choose and against the best timestep."""
    true, members, held_out = drawn(peak, width, alike, rng, whole)
    by_few, by_all = (true[best(members[:n], held_out[:n])] for n in (few, whole))
    return by_all - by_few, true.max() - by_few


def proposed(peak: float, width: float, alike: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """The loss of true AUC against what all choose: of 1,000 a side, half as many, and `staged`."""
    true, members, held_out = drawn(peak, width, alike, rng, ALL)
    left = np.argsort(column_aucs(members[:FIRST], held_out[:FIRST]))[-KEPT:]
    staged = left[best(members[:FEW, left], held_out[:FEW, left])]
    picked = (best(members[:FEW], held_out[:FEW]), best(members[: FEW // 2], held_out[: FEW // 2]), staged)
    by_all = true[best(members, held_out)]
    return tuple(by_all - true[each] for each in picked)  # type: ignore[return-value]


def coarse(peak: float, width: float, alike: float, rng: np.random.Generator) -> tuple[float, ...]:
    """The loss of true AUC of `--sweep coarse` against what the whole sweep chooses on as many images, for each of SIZES."""
    true, members, held_out = drawn(peak, width, alike, rng, max(SIZES), rng.uniform(0, TIMESTEPS - 1))
    lost = []
    for few in SIZES:
        aucs = column_aucs(members[:few], held_out[:few])
        lost.append(true[aucs.argmax()] - true[coarse_choice(aucs)])
    return tuple(lost)


def coarse_choice(aucs: np.ndarray) -> int:
    """The timestep that `--sweep coarse` chooses: the best of every third one, or one beside it."""
    swept = [min(t, len(aucs) - 1) for t in range(1, len(aucs) + 1, 3)]
    first = swept[int(aucs[swept].argmax())]
    beside = [t for t in (first - 1, first, first + 1) if 0 <= t < len(aucs)]
    return beside[int(aucs[beside].argmax())]


def by_rules(peak: float, width: float, alike: float, rng: np.random.Generator) -> tuple[float, ...]:
    """The loss of true AUC against what all choose: of the highest AUC on 1,000 a side, of smoothed ones, and where the form is known."""
    true, members, held_out = drawn(peak, width, alike, rng, ALL)
    by_all, (aucs, covariance) = true[best(members, held_out)], with_errors(members[:FEW], held_out[:FEW])
    curves = np.array([aucs_of(peak, width, at) for at in range(TIMESTEPS)])
    values = (aucs, smoothed(aucs, covariance), expected(curves, aucs, covariance))
    return tuple(by_all - true[each.argmax()] for each in values)


def with_errors(members: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The AUC at each timestep, and the covariance of these (DeLong)."""
    m, ranks = len(members), rankdata(np.concatenate([members, held_out]), axis=0)
    above = (ranks[:m] - rankdata(members, axis=0)) / len(held_out)  # held-out images below each member
    below = 1 - (ranks[m:] - rankdata(held_out, axis=0)) / m
    return above.mean(axis=0), np.cov(above.T) / m + np.cov(below.T) / len(held_out)


def smoothed(aucs: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The mean of a Gaussian process around 0.5 given AUCs with these errors, of the likeliest of some lengths and heights."""
    apart, y, found = np.subtract.outer(np.arange(TIMESTEPS), np.arange(TIMESTEPS)), aucs - 0.5, []
    for length, height in product((1.5, 3, 6, 12), (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3)):
        prior = height**2 * np.exp(-((apart / length) ** 2) / 2)
        whole = prior + covariance + 1e-9 * np.eye(TIMESTEPS)
        solved = np.linalg.solve(whole, y)
        found.append((-y @ solved - np.linalg.slogdet(whole)[1], 0.5 + prior @ solved))
    return max(found, key=lambda each: each[0])[1]  # type: ignore[no-any-return]


def expected(curves: np.ndarray, aucs: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The mean of the curves, weighted by how likely each makes AUCs with these errors."""
    off = aucs - curves
    fit = -np.einsum("ij,jk,ik->i", off, np.linalg.inv(covariance + 1e-9 * np.eye(TIMESTEPS)), off) / 2
    weights = np.exp(fit - fit.max())
    return weights @ curves / weights.sum()  # type: ignore[no-any-return]


def best(members: np.ndarray, held_out: np.ndarray) -> int:
    return int(column_aucs(members, held_out).argmax())


def drawn(
    peak: float, width: float, alike: float, rng: np.random.Generator, whole: int, at: float = TIMESTEPS // 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The true AUC at each timestep, with its peak `at` one or between two, and the scores of both sides."""
    true, noise = aucs_of(peak, width, at), rng.standard_normal((2, whole, TIMESTEPS))
    for t in range(1, TIMESTEPS):
        noise[:, :, t] = alike * noise[:, :, t - 1] + np.sqrt(1 - alike**2) * noise[:, :, t]
    return true, noise[0] + np.sqrt(2) * norm.ppf(true), noise[1]


def aucs_of(peak: float, width: float, at: float) -> np.ndarray:
    """The true AUC at each timestep."""
    return norm.cdf(norm.ppf(peak) * np.exp(-(((np.arange(TIMESTEPS) - at) / width) ** 2) / 2))  # type: ignore[no-any-return]


MADE = {  # what is simulated by the name of its option, and its columns
    "": (chosen, ("loss against all, 1/1000", "loss against the best, 1/1000")),
    "proposals": (proposed, ("1,000 a side", "half", "staged")),
    "coarse": (coarse, tuple(f"{few:,} a side, 1/1000" for few in SIZES)),
    "rules": (by_rules, ("highest", "smoothed", "form known")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=400)
    which = parser.add_mutually_exclusive_group()
    for name in MADE:
        if name:
            which.add_argument(f"--{name}", action="store_const", const=name, dest="made", default="")
    given = parser.parse_args()
    simulated, columns = MADE[given.made]
    print(f"| best AUC | width | alike | {' | '.join(columns)} |")
    print("|---" * (3 + len(columns)) + "|")
    for case in product(PEAKS, WIDTHS, ALIKE):
        rng = np.random.default_rng([int(1000 * value) for value in case])
        lost = 1000 * np.array([simulated(*case, rng) for _ in range(given.runs)])
        mean, error = lost.mean(axis=0), lost.std(axis=0, ddof=1) / np.sqrt(given.runs)
        found = [f"{m:.2f} ± {e:.2f}" for m, e in zip(mean, error, strict=True)]
        print(f"| {case[0]} | {case[1]:g} | {case[2]} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
