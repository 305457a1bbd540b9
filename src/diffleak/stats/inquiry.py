"""Were these images trained on? Tests of images in question against controls, of which nobody knows the membership. No torch.

One cut puts half of each side into A and the rest into B. All choices are made on A (`Chooser`), and the test looks at B alone; then A
and B change places. Given A, the labels of B are exchangeable where the images in question are no members, so each of these is exact:

    set         one-sided permutation test of Mann and Whitney: p = P(U >= u), the exact distribution of U. Ties cost the images in
                question: a tie counts as won by the control. With any rule for ties that does not look at the sides U would have that
                distribution, and this u is never larger, so p is exact without ties and errs on the safe side with them.
    an image    conformal: p = (1 + controls of B with at least its score) / (1 + controls of B)         (Vovk; Bates et al. 2023)

The 2R p-values of R cuts, and the R of an image (it is in B once a cut), are merged as

    p = min(1, 2 median)        valid whatever their dependence         (Rüger 1978; Meinshausen, Meier and Bühlmann 2009)

q-values are those of Benjamini and Hochberg. They are proved for the p-values of one half (positive dependence: Bates et al. 2023, arXiv
2104.08279); for merged ones the simulation of docs/design/018c shows the rate. Scores of different folds are never pooled in one
ranking: that test rejects too often.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float64

from diffleak.data.draw import calibrate_part, keyed_order
from diffleak.records.base import Estimate
from diffleak.stats import metrics
from diffleak.stats.metrics import Several, auc_deviation

LEVEL = 0.05  # at which the set-level answer, the placebo and the blind check reject
POWER = 0.8
HALF = 5  # images a side in the smaller half, below which nothing can be chosen or tested
MOST = 1_000_000  # images in question that `images_for_power` thinks of
EXACT = 1e8  # additions: 300 images against 1,000 controls, about two seconds
PAIRS = 2_000_000  # of an image and a control, each a number in memory
LEAST = 1e-300  # no p-value is 0

Sample = Float64[np.ndarray, "_"]


@dataclass(frozen=True, eq=False)
class Chosen:
    """What was chosen on one half: the membership scores of all images, higher = more likely trained on, and its name."""

    scores: Float64[np.ndarray, " n"]
    name: str


Chooser = Callable[[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]], Chosen]
"""chooser(question, fit): all that is chosen depends on the sides of the images `fit` alone; `question` marks those in question."""


@dataclass(frozen=True, eq=False)
class Direction:
    """The test of one half of one cut, by scores that were chosen on the other."""

    repeat: int
    half: str  # the half that was tested, A or B
    chosen: str
    p_value: float
    auc: Estimate


@dataclass(frozen=True, eq=False)
class Tested:
    """The tests of all cuts. `images` are the p-values of the images in question, a row a cut, in the order of the rows."""

    directions: tuple[Direction, ...]
    images: Float64[np.ndarray, "r q"]

    @property
    def p_value(self) -> float:
        """The merged p-value of the set."""
        return merged(np.array([each.p_value for each in self.directions]))

    @property
    def auc(self) -> Estimate:
        """How often an image in question scores above a control: the medians over all halves of the AUC and of the ends of its interval.

        The merged p-value is at most 0.05 where about half of the intervals lie above one half; so this one then lies there too.
        """
        return _median([each.auc for each in self.directions])

    @property
    def image_p_values(self) -> Float64[np.ndarray, " q"]:
        """The merged p-value of each image in question."""
        return np.minimum(1.0, 2 * np.median(self.images, axis=0))


def cut_and_test(
    keys: tuple[str, ...],
    question: Bool[np.ndarray, " n"],
    choose: Chooser,
    seed: int,
    repeats: int,
    each: Callable[[], None] = lambda: None,
) -> Tested:
    """Cuts both sides into halves `repeats` times by a hash of key and seed, and tests each half by what the other chose.

    `each` is called after every half. Needs `HALF` images of each side in each half.
    """
    directions, images = list[Direction](), np.empty((repeats, int(question.sum())))
    for repeat in range(repeats):
        first = calibrate_part(keys, question, 0.5, seed, repeat)
        for half, fit in (("B", first), ("A", ~first)):
            chosen = choose(question, fit)
            asked, controls = chosen.scores[~fit & question], chosen.scores[~fit & ~question]
            directions.append(Direction(repeat, half, chosen.name, rank_test(asked, controls), metrics.auc_estimate(asked, controls)))
            images[repeat, ~fit[question]] = conformal(asked, controls)
            each()
    return Tested(tuple(directions), images)


def placebo_sides(keys: tuple[str, ...], seed: int) -> Bool[np.ndarray, " n"]:
    """One half of the controls, by a hash of key and seed: the images that a placebo puts in question."""
    chosen = set(keyed_order(keys, "placebo", seed)[: len(keys) // 2])
    return np.array([key in chosen for key in keys])


def rank_test(asked: Sample, controls: Sample) -> float:
    """The p-value of "`asked` score higher": P(U >= u) with u the pairs that `asked` win outright. In (0, 1]."""
    won, (m, n) = int(np.searchsorted(np.sort(controls), asked, side="left").sum()), sorted((len(asked), len(controls)))
    return float(upper_tail(m, n)[won]) if m * m * n <= EXACT and m * n <= PAIRS else normal_tail(won, m, n)


@lru_cache(maxsize=16)
def upper_tail(m: int, n: int) -> Float64[np.ndarray, " u"]:
    """P(U >= u) for u from 0 to m n, of the statistic of Mann and Whitney for m and n images without ties that are exchangeable.

    Its generating function is a Gaussian binomial coefficient, made factor by factor: (1 - x^(n+i)) / (1 - x^i), i from 1 to m, scaled by
    i / (n + i). Only additions of positive numbers decide the small tail, so it keeps its relative precision.
    """
    m, n = min(m, n), max(m, n)
    lower = np.zeros(m * n // 2 + 1)
    lower[0] = 1.0
    for i in range(1, m + 1):
        lower[n + i :] -= lower[: max(0, len(lower) - n - i)].copy()
        rows = -(-len(lower) // i)
        padded = np.zeros(rows * i)
        padded[: len(lower)] = lower
        lower = padded.reshape(rows, i).cumsum(axis=0).ravel()[: len(lower)] * (i / (n + i))
    probability = np.concatenate([lower, lower[: m * n + 1 - len(lower)][::-1]])  # U and m n - U have the same distribution
    return np.clip(probability[::-1].cumsum()[::-1], LEAST, 1.0)


def normal_tail(u: int, m: int, n: int) -> float:
    """P(U >= u), at least LEAST, by a normal distribution with a continuity correction, for more than EXACT operations or PAIRS.

    Its tails are heavier than those of U where p is below 0.04. It takes no memory, whatever m and n.
    """
    from scipy.special import ndtr

    deviation = math.sqrt(m * n * (m + n + 1) / 12)
    return max(float(ndtr(-(u - 0.5 - m * n / 2) / deviation)), LEAST)


def conformal(asked: Sample, controls: Sample) -> Sample:
    """(1 + controls that score at least as high) / (1 + controls), for each image of `asked`."""
    at_least = len(controls) - np.searchsorted(np.sort(controls), asked, side="left")
    return (1 + at_least) / (1 + len(controls))


def merged(p_values: Sample) -> float:
    """min(1, 2 median): a p-value, whatever the dependence of those that it is made of."""
    return float(min(1.0, 2 * np.median(p_values)))


def q_values(p_values: Sample) -> Sample:
    """Benjamini and Hochberg: the share of false discoveries to be expected among all images with a p-value as small, at most 1."""
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    found = np.empty(len(p_values))
    found[order] = np.minimum.accumulate(scaled[::-1])[::-1]  # from the largest p-value itself downwards
    return found


def images_for_power(auc: float, controls_each: float, power: float = POWER, level: float = LEVEL) -> int | None:
    """How many images in question, with `controls_each` controls for each, show an effect of this AUC with probability `power`.

    None where the AUC is not above one half, or where MOST images would not do. See `surely_shown`.
    """
    m = np.unique(np.round(np.geomspace(2 * HALF, MOST, 4000)).astype(np.int64)).astype(np.float64)
    enough = surely_shown(auc, m, np.maximum(2 * HALF, np.round(m * controls_each)), power, level)
    return int(m[enough.argmax()]) if enough.any() else None


def detectable_auc(images: int, controls: int, power: float = POWER, level: float = LEVEL) -> float | None:
    """The smallest AUC that so many images show with probability `power`; None where even the largest is not. See `surely_shown`."""
    grid = np.linspace(0.5, 1, 5001)[1:-1]
    enough = surely_shown(grid, float(images), float(controls), power, level)
    return float(grid[enough.argmax()]) if enough.any() else None


def surely_shown(auc: Several, m: Several, n: Several, power: float = POWER, level: float = LEVEL) -> Bool[np.ndarray, " k"]:
    """True where an effect of this AUC gives m images and n controls a merged p-value of at most `level` with probability `power`:

        auc - 1/2 >= z(1 - level / 2) s0(m/2, n/2) + z(power) s1(m, n)

    s0 is the deviation of a half's AUC where nothing leaks. The median over many cuts follows the AUC of all images, whose deviation under
    the effect is s1. level / 2 is the price of twice the median. Each of the three is one number, or one for each element.
    """
    null = np.sqrt((m + n + 2) / (6 * m * n))
    return np.asarray(auc - 0.5 >= NormalDist().inv_cdf(1 - level / 2) * null + NormalDist().inv_cdf(power) * auc_deviation(auc, m, n))


def _median(estimates: Sequence[Estimate]) -> Estimate:
    """The medians of estimates and of the ends of their intervals; an interval only where all have one."""
    ends = [[getattr(each, name) for each in estimates] for name in ("value", "low", "high")]
    value, low, high = (None if None in each else float(np.median(each)) for each in ends)
    if value is None:
        return Estimate(reason=next(each.reason for each in estimates if each.value is None))
    return Estimate(value=value, low=low, high=high, method=f"medians over {len(estimates)} halves; {estimates[0].method}")
