"""How often the lower bound on epsilon exceeds the truth, for mechanisms whose epsilon is known.   python studies/decisions/epsilon.py

Randomised response says each of m coins as it is with probability e^epsilon / (1 + e^epsilon). "every coin": the attacker guesses all of
them by what was said. "a tenth": what was said is known of a tenth of the units alone, and noise of the others. "chosen": six columns of
scores, of which one knows what was said; column and numbers of guesses are chosen on a fifth of the units. 400 runs each.
"""

import numpy as np

from diffleak.stats.epsilon import choose, count, lower_bound

RUNS, UNITS, DELTA = 400, 500, 1e-5


def said(epsilon: float, member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(member)) < 1 / (1 + np.exp(-epsilon)), member, ~member)


def every_coin(epsilon: float, rng: np.random.Generator) -> float:
    member = rng.random(UNITS) < 0.5
    return lower_bound(UNITS, UNITS, int((said(epsilon, member, rng) == member).sum()), DELTA)


def chosen(epsilon: float, rng: np.random.Generator, share: float) -> float:
    member, seed = rng.random(UNITS) < 0.5, int(rng.integers(2**31))
    scores = rng.normal(size=(UNITS, 6))
    known = rng.random(UNITS) < share
    scores[known, 0] += np.where(said(epsilon, member, rng)[known], 8, -8)
    part = np.arange(UNITS) < UNITS // 5
    guesser = choose(scores[part], member[part], DELTA, 0.95, seed, int((~part).sum()))
    return lower_bound(*count(guesser, scores[~part], member[~part], seed), DELTA)


def main() -> None:
    print(f"{RUNS} runs of {UNITS} units, delta {DELTA:g}; at most 5 % may exceed (Monte-Carlo error of that: 1.1 points)\n")
    print("| mechanism | epsilon | bound exceeds it | bound is above 0 | median bound |")
    print("| :-- | --: | --: | --: | --: |")
    ways = {
        "every coin": every_coin,
        "chosen": lambda epsilon, rng: chosen(epsilon, rng, 1.0),
        "a tenth": lambda epsilon, rng: chosen(epsilon, rng, 0.1),
    }
    for name, run in ways.items():
        for epsilon in (0.0, 0.5, 1.0, 2.0, 4.0):
            bounds = np.array([run(epsilon, np.random.default_rng((number, int(10 * epsilon)))) for number in range(RUNS)])
            exceeds, positive = (f"{100 * np.mean(which):.1f} %" for which in (bounds > epsilon, bounds > 0))
            print(f"| {name} | {epsilon:g} | {exceeds} | {positive} | {np.median(bounds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
