"""The level and the power of `diffleak inquire`, simulated: prints the tables of docs/design/018c-inquire.md.

    python studies/decisions/inquire.py [level|power|number|single|groups]... [--runs 400]

Images have a difficulty that every score shares, so that scores of all attacks and timesteps depend on each other, and seven complexities
that depend on it; under the null images in question and controls are exchangeable. Choices are those of the command: timestep, attack, all
attacks together, and, where it is said, calibration by complexity.
"""

import argparse
import sys
from dataclasses import replace

import numpy as np
from scipy.stats import binom

from diffleak.records.scores import Scores
from diffleak.stats.calibration import features
from diffleak.stats.choosing import blind_chooser, chooser
from diffleak.stats.inquiry import Tested, cut_and_test, images_for_power, placebo_sides, q_values

HILL = np.array([0.5, 1.0, 0.8, 0.4])  # of the effect at four timesteps
ATTACKS = {"sima": 1.0, "loss": 0.6, "pia": 0.8}  # and of three attacks
MEASURED = ("set", "one half", "one image", "any image found", "placebo", "blind test")


def drawn(rng: np.random.Generator, m: int, n: int, effect: float = 0.0, levels: int | None = None, own: float = 1.0):
    """Scores of three attacks, complexities, and who is in question; `levels`: statistics take so many values only, so most are tied."""
    question = np.arange(m + n) < m
    difficulty = rng.standard_t(4, m + n)
    parts = []
    for attack, share in ATTACKS.items():
        moved = effect * share * HILL * question[:, None]
        statistic = np.exp(0.5 * difficulty[:, None] + own * rng.normal(size=(m + n, len(HILL))) - moved)
        if levels:
            statistic = np.ceil(levels * (statistic.argsort(axis=0).argsort(axis=0) + 1) / (m + n))
        parts.append(Scores(attack, "small", (50, 100, 150, 200), tuple(map(str, range(m + n))), statistic))
    complexity = 0.7 * difficulty[:, None] + rng.normal(size=(m + n, 7))
    return parts, complexity, question


def keys_of(question: np.ndarray, run: int) -> tuple[str, ...]:
    return tuple(f"{run}/{i}" for i in range(len(question)))


def tested(parts, complexity, question, run: int, repeats: int, calibrated: bool) -> Tested:
    choose = chooser(parts, features(complexity), complexity) if calibrated else chooser(parts)
    return cut_and_test(keys_of(question, run), question, choose, run, repeats)


def placebo(parts, complexity, question, run: int, repeats: int) -> float:
    rows = np.flatnonzero(~question)
    keys = tuple(keys_of(question, run)[row] for row in rows)
    choose = chooser([scores.taken(rows) for scores in parts], features(complexity[rows]), complexity[rows])
    return cut_and_test(keys, placebo_sides(keys, run), choose, run, repeats).p_value


def blind(complexity, question, run: int, repeats: int) -> float:
    named = {str(i): column for i, column in enumerate(complexity.T)}
    return cut_and_test(keys_of(question, run), question, blind_chooser(named), run, repeats).p_value


def once(seed: int, m: int, n: int, repeats: int, levels: int | None, calibrated: bool) -> list[float]:
    """The p-values of one null, in the order of MEASURED; placebo and blind test only where `calibrated`, 1 elsewhere."""
    given = drawn(np.random.default_rng((seed, m, n)), m, n, 0.0, levels)
    found = tested(*given, seed, repeats, calibrated)
    images = found.image_p_values
    beside = [placebo(*given, seed, repeats), blind(given[1], given[2], seed, repeats)] if calibrated else [1.0, 1.0]
    return [found.p_value, found.directions[0].p_value, images[0], q_values(images).min(), *beside]


def level(runs: int, repeats: int = 11) -> None:
    """Nulls without calibration, which is slow, and a quarter as many with all choices, the placebo and the blind test."""
    print(
        f"Level: share of nulls that reject at 0.05, {repeats} cuts; with {runs} nulls an exact test stays below "
        f"{binom.ppf(0.999, runs, 0.05) / runs:.3f}, with {runs // 4} below {binom.ppf(0.999, runs // 4, 0.05) / (runs // 4):.3f}"
    )
    print(f"{'images':>7}{'controls':>9}{'levels':>8}{'nulls':>7}" + "".join(f"{name:>16}" for name in MEASURED))
    plain = ((20, 20, None), (20, 200, None), (20, 200, 5), (100, 100, 10), (250, 250, None))
    for m, n, levels, calibrated in (*((*row, False) for row in plain), (100, 100, None, True)):
        these = runs // 4 if calibrated else runs
        rows = np.array([once(seed, m, n, repeats, levels, calibrated) for seed in range(these)])
        shown = [f"{rate:>16.3f}" for rate in (rows <= 0.05).mean(axis=0)]
        shown[4:] = shown[4:] if calibrated else [f"{'-':>16}"] * 2
        print(f"{m:>7}{n:>9}{levels or '-':>8}{these:>7}" + "".join(shown), flush=True)


def power(runs: int, repeats: int = 11) -> None:
    print(f"Power: share of {runs} data sets in which the set is found at 0.05, by effect and images, 200 controls")
    print(f"{'images':>7}" + "".join(f"{f'effect {effect}':>14}" for effect in (0.0, 0.3, 0.6, 1.0, 1.5)))
    for m in (20, 50, 100, 200):
        rates = []
        for effect in (0.0, 0.3, 0.6, 1.0, 1.5):
            given = (drawn(np.random.default_rng((seed, m, 1)), m, 200, effect) for seed in range(runs))
            found = [tested(*each, seed, repeats, False).p_value for seed, each in enumerate(given)]
            rates.append(float(np.mean(np.array(found) <= 0.05)))
        print(f"{m:>7}" + "".join(f"{rate:>14.3f}" for rate in rates), flush=True)


def number(runs: int, repeats: int = 11) -> None:
    """The printed number of images: with so many the set must be found in 80 % of data sets whose AUC is the one that it was made for."""
    from scipy.stats import norm

    print(f"Number of images: share of {runs} data sets of that size in which one score of this AUC is found at 0.05; 0.8 is right")
    print(f"{'AUC':>6}{'controls each':>15}{'images':>8}{'half of them':>14}{'as many':>9}{'twice':>7}")
    for auc in (0.6, 0.65, 0.7, 0.8):
        for each in (1.0, 4.0):
            m = images_for_power(auc, each)
            assert m is not None
            rates = []
            for size in (max(10, m // 2), m, 2 * m):
                n = max(10, round(size * each))
                found = []
                for seed in range(runs):
                    rng = np.random.default_rng((seed, size, 7))
                    question = np.arange(size + n) < size
                    score = rng.normal(size=size + n) + np.sqrt(2) * norm.ppf(auc) * question
                    one = [Scores("score", "large", (0,), tuple(map(str, range(size + n))), score[:, None])]
                    found.append(cut_and_test(keys_of(question, seed), question, chooser(one), seed, repeats).p_value)
                rates.append(float(np.mean(np.array(found) <= 0.05)))
            print(f"{auc:>6}{each:>15.0f}{m:>8}{rates[0]:>14.3f}{rates[1]:>9.3f}{rates[2]:>7.3f}", flush=True)


def single(runs: int, repeats: int = 11) -> None:
    """Images found at q <= 0.05 where some were trained on: share of wrong names, and of the trained images that are named."""
    print(
        f"Single images: {runs} data sets of 100 images in question and controls; scores of trained images are shifted by a normal effect"
    )
    print(f"{'trained':>8}{'controls':>9}{'effect':>7}{'wrong names':>13}{'named of the trained':>22}")
    for trained in (0, 20, 50, 90):
        for n, effect in ((200, 2.0), (200, 4.0), (1000, 4.0)):
            wrong, right = [], []
            for seed in range(runs):
                rng = np.random.default_rng((seed, trained, n, 11))
                question = np.arange(100 + n) < 100
                score = rng.normal(size=100 + n)
                score[:trained] += effect
                one = [Scores("score", "large", (0,), tuple(map(str, range(100 + n))), score[:, None])]
                found = cut_and_test(keys_of(question, seed), question, chooser(one), seed, repeats)
                named = q_values(found.image_p_values) <= 0.05
                wrong.append(named[trained:].sum() / max(1, named.sum()))
                right.append(named[:trained].mean() if trained else 0.0)
            print(f"{trained:>8}{n:>9}{effect:>7.1f}{np.mean(wrong):>13.3f}{np.mean(right):>22.3f}", flush=True)


def groups(runs: int, repeats: int = 11) -> None:
    """Nulls with groups of 2 to 8 images that share ICC of their variance: one half of one cut by groups, and by their images."""
    print(
        f"Groups: share of {runs} nulls that reject at 0.05, {repeats} cuts; an exact test stays below "
        f"{binom.ppf(0.999, runs, 0.05) / runs:.3f}"
    )
    print(
        f"{'groups':>7}{'of controls':>12}{'ICC':>5}{'set':>7}{'one half':>10}{'one group':>11}{'any group found':>17}"
        f"{'one half, images':>18}"
    )
    for m, n, icc in ((12, 24, 0.8), (12, 24, 0.2), (40, 80, 0.8)):
        found = []
        for seed in range(runs):
            rng = np.random.default_rng((seed, m, n, 13))
            unit, question = np.repeat(np.arange(m + n), rng.integers(2, 9, m + n)), np.arange(m + n) < m
            shared = np.sqrt(icc) * (rng.standard_t(4, (m + n, 1)) / np.sqrt(2) + 0.3 * rng.normal(size=(m + n, 4)))
            columns = shared[unit] + np.sqrt(1 - icc) * rng.normal(size=(len(unit), 4))
            parts = [Scores("score", "large", (50, 100, 150, 200), keys_of(unit, seed), columns)]
            by_group = cut_and_test(keys_of(question, seed), question, chooser([replace(parts[0], unit=unit)]), seed, repeats)
            by_image = cut_and_test(parts[0].ids, question[unit], chooser(parts), seed, 1)
            singles = by_group.image_p_values
            one_half = [each.directions[0].p_value for each in (by_group, by_image)]
            found.append([by_group.p_value, one_half[0], singles[0], q_values(singles).min(), one_half[1]])
        rates = (np.array(found) <= 0.05).mean(axis=0)
        print(f"{m:>7}{n:>12}{icc:>5}" + "".join(f"{rate:>{w}.3f}" for rate, w in zip(rates, (7, 10, 11, 17, 18), strict=True)), flush=True)


TABLES = {"level": level, "power": power, "number": number, "single": single, "groups": groups}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[*TABLES])
    parser.add_argument("--runs", type=int, default=400)
    asked = parser.parse_args()
    for name in asked.tables:
        TABLES[name](asked.runs)
        print()
    sys.exit(0)
