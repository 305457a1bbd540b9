"""Exact binomial probabilities and their inverse, for X ~ Binomial(n, p).

    P(X = j + 1) / P(X = j) = (n - j) / (j + 1) · p / (1 - p)

Only numpy: scipy.special has both, but importing it takes a third of `diffleak metrics`. It is the tests' oracle.
"""

import math

import numpy as np
from jaxtyping import Float64


def at_most(trials: int, rate: float) -> Float64[np.ndarray, " n"]:
    """P(X <= j) for each of the n = trials + 1 counts j = 0 ... trials, at a rate in (0, 1)."""
    j, mode = np.arange(trials), min(int((trials + 1) * rate), trials)
    ratios = (trials - j) / (j + 1) * (rate / (1 - rate))
    below, above = np.cumprod(1 / ratios[:mode][::-1])[::-1], np.cumprod(ratios[mode:])  # relative to the mode, so never large
    sums = np.cumsum(np.concatenate([below, [1.0], above]))
    return sums / sums[-1]


def rate_with_tail(successes: int, trials: int, tail: float) -> float:
    """The rate p at which P(X >= successes) = tail, for a tail in (0, 1/2]; 0 for no successes.

    Newton's method on log P(X >= k) over u = log p, whose slope is k P(X = k) / P(X >= k). P(X >= k) is the distribution
    function of Beta(k, n - k + 1), log-concave in u, so after the first step u rises to the solution from below. There
    p <= k/n, hence P(X = k + t) <= exp(-t²/2n) P(X = k), and all terms beyond 9 √n are nothing.
    """
    k, n = successes, trials
    if k == 0:
        return 0.0
    j = np.arange(k, min(n, k + 9 * (math.isqrt(n) + 1)))
    ratios = (n - j) / (j + 1)
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    u, step = math.log(k / (n + 1)), math.inf
    while abs(step) > 1e-9:  # the next step would be of the order of its square
        p = math.exp(u)
        relative = 1 + float(np.cumprod(ratios * (p / (1 - p))).sum())  # P(X >= k) / P(X = k)
        log_tail = log_choose + k * u + (n - k) * math.log1p(-p) + math.log(relative)
        step = (math.log(tail) - log_tail) * relative / k
        u += step
    return math.exp(u)
