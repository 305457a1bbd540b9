"""How much epsilon one training run gives away, at least (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846).

m units are in the training set or not by independent fair coins S in {-1, 1}^m. From the model alone the attacker guesses r of the coins
and abstains on the others; v guesses are right. If training is (epsilon, delta)-differentially private in each unit,

    P[V >= v] <= beta + 2 m delta alpha                  W ~ Binomial(r, e^epsilon / (1 + e^epsilon))
    beta  = P[W >= v]                                    what randomised response, the best of all private mechanisms, gets right
    alpha = max over i in 1 ... v of P[v > W >= v - i] / i

(theorem 5.2, corollary 5.4 and the code of appendix D). An epsilon at which the right-hand side is below 1 - level is rejected; the
bound is the largest of them. It holds for one run, whatever the images and the attack, as long as r and all that makes the guesses were
chosen without the m coins. So everything is chosen on a calibrate part with coins of its own, and the test part is counted once.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.data.draw import calibrate_size, keyed_order
from diffleak.errors import UserError
from diffleak.stats.binomial import at_most

LEVEL = 0.95
HALVINGS = 32  # of an interval of length 1
SHARES = (0.0, *(2.0 ** (-k / 2) for k in range(15, 1, -1)))  # of the units to guess at one end, from 0.6 % to a half


def p_value(units: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The chance of at least `right` right ones among `guesses`, at most, if training is (epsilon, delta)-private.

    units: m, coins that were thrown. guesses, right: r and v, with 0 <= v <= r <= m. epsilon: at least 0. delta: in [0, 1].
    Returns a probability in [0, 1].
    """
    if right == 0:
        return 1.0
    wrong = 1 / (1 + np.exp(epsilon))  # of one guess
    beta = float(at_most(guesses, wrong)[guesses - right])
    below = np.concatenate([[0.0], at_most(guesses, 1 - wrong)])  # P[W < j] for each j
    alpha = float(((below[right] - below[:right][::-1]) / np.arange(1, right + 1)).max())
    return min(1.0, beta + 2 * units * delta * alpha)


@lru_cache(maxsize=100_000)
def lower_bound(units: int, guesses: int, right: int, delta: float, level: float = LEVEL) -> float:
    """The largest epsilon that so many right guesses reject at `level`; 0 where they reject none.

    units: m, coins that were thrown. guesses, right: r and v, with 0 <= v <= r <= m. delta: in [0, 1). level: in (0, 1).
    Raises `UserError` for other values.
    """
    if not 0 <= right <= guesses <= units:
        raise UserError(f"right guesses, guesses and units must satisfy 0 <= right <= guesses <= units; got {right}, {guesses}, {units}")
    if not 0 <= delta < 1 or not 0 < level < 1:
        raise UserError(f"delta must be in [0, 1) and the level in (0, 1); got {delta:g} and {level:g}")
    rejected = lambda epsilon: p_value(units, guesses, right, epsilon, delta) < 1 - level
    if not rejected(0.0):
        return 0.0
    low = 0.0
    while rejected(low + 1):
        low += 1
    high = low + 1
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


class Guesser(NamedTuple):
    """How the coins are guessed: by which column of scores, and how many units at either end."""

    column: int
    """Number of the column, from 0."""
    top: float
    """Share of the units of the highest scores, in [0, 1/2], which are guessed to be members."""
    bottom: float
    """Share of the units of the lowest scores, in [0, 1/2], which are guessed to be held out."""


class Counted(NamedTuple):
    """What a guesser gets right."""

    units: int
    """Number of units, guessed or not."""
    guesses: int
    """Number of guesses."""
    right: int
    """Number of right guesses."""


def calibrate_units(ids: Sequence[str], fraction: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Which units everything is chosen on: `fraction` of all, by a hash of id and seed.

    Sides do not matter here, other than in the division of an audit: with as many of each side in a part, the coins of the test part
    would follow from one another.
    """
    chosen = set(keyed_order(tuple(ids), "epsilon", seed)[: calibrate_size(len(ids), fraction)])
    return np.array([each in chosen for each in ids], dtype=bool)


def choose(
    scores: Float64[np.ndarray, "n k"], member: Bool[np.ndarray, " n"], delta: float, level: float, seed: int, tested: int
) -> Guesser:
    """The guesser that promises the largest bound, chosen on the units of the calibrate part.

    Its promise is the bound of as large a share of the `tested` units of the test part, with a rate of right guesses one standard error
    below that of the calibrate part, (v + 1) / (r + 2): few guesses are right more often by chance, above all the best of many. The best
    among guessers that promise none has the smallest p-value at epsilon 0.

    scores: membership scores, higher = more likely a member, a column for each that may be chosen. seed: of the order of equal scores.
    """
    n = len(member)
    hits = _hits(scores, member, seed)
    sizes = sorted({round(share * n) for share in SHARES})
    best: dict[int, tuple[int, Guesser]] = {}  # of each number of guesses the most right ones: others promise no more
    for top in sizes:
        for bottom in sizes:
            if not 0 < top + bottom <= n:
                continue
            right = hits[0][top] + hits[1][bottom]
            column = int(right.argmax())
            if top + bottom not in best or right[column] > best[top + bottom][0]:
                best[top + bottom] = int(right[column]), Guesser(column, top / n, bottom / n)

    bound, found, least, fallback = 0.0, None, 2.0, None
    for guesses, (right, guesser) in best.items():
        rate = (right + 1) / (guesses + 2)
        scaled = round(guesses * tested / n)
        promised = tested, scaled, int(scaled * (rate - np.sqrt(rate * (1 - rate) / (guesses + 2))))  # the rate exceeds its error
        chance = p_value(*promised, bound, delta)
        if chance < 1 - level:  # rejects what the best so far rejects
            bound, found = lower_bound(*promised, delta, level), guesser
        elif found is None and chance < least:
            least, fallback = chance, guesser
    chosen = found or fallback
    assert chosen is not None, "the largest size is above 0"
    return chosen


def count(guesser: Guesser, scores: Float64[np.ndarray, "n k"], member: Bool[np.ndarray, " n"], seed: int) -> Counted:
    """What a guesser gets right on the units of the test part, with scores in the same columns that it was chosen from."""
    n = len(member)
    top = round(guesser.top * n)
    bottom = min(round(guesser.bottom * n), n - top)  # both halves of an odd number may round up
    members, held_out = _hits(scores[:, [guesser.column]], member, seed)
    return Counted(n, top + bottom, int(members[top, 0] + held_out[bottom, 0]))


def _hits(
    scores: Float64[np.ndarray, "n k"], member: Bool[np.ndarray, " n"], seed: int
) -> tuple[Int64[np.ndarray, "n1 k"], Int64[np.ndarray, "n1 k"]]:
    """How many of the j highest scores are members', and of the j lowest held-out images', for j = 0 ... n in each column.

    Equal scores stand in an order that is drawn: that of the rows may follow from the sides, as where ids name folders.
    """
    drawn = np.random.default_rng(seed).permutation(len(member))
    ordered = member[drawn][np.argsort(scores[drawn], axis=0, kind="stable")]
    none = np.zeros((1, scores.shape[1]), dtype=np.int64)
    return tuple(np.concatenate([none, np.cumsum(side, axis=0)]) for side in (ordered[::-1], ~ordered))  # type: ignore[return-value]
