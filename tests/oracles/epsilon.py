"""The bound of Steinke, Nasr and Jagielski (2023, arXiv 2305.08846) in plain loops and exact fractions, from theorem 5.2 alone."""

from fractions import Fraction
from math import comb, exp


def p_value(units: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """beta + 2 m delta max_i P[v > W >= v - i] / i, with W ~ Binomial(r, e^epsilon / (1 + e^epsilon)), every term summed one by one."""
    odds = Fraction(exp(epsilon))
    rate = odds / (1 + odds)
    mass = [comb(guesses, j) * rate**j * (1 - rate) ** (guesses - j) for j in range(guesses + 1)]
    beta = sum(mass[right:], Fraction(0))
    alpha = max((sum(mass[right - i : right], Fraction(0)) / i for i in range(1, right + 1)), default=Fraction(0))
    return float(min(Fraction(1), beta + 2 * units * Fraction(delta) * alpha))


def lower_bound(units: int, guesses: int, right: int, delta: float, level: float, step: float) -> float:
    """The largest epsilon on a grid of `step` that is rejected, going up from 0 until one is not; 0 where 0 is not rejected."""
    k = 0
    while p_value(units, guesses, right, k * step, delta) < 1 - level:
        k += 1
    return max(0, k - 1) * step
