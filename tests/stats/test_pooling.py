"""Numbers over seeds: the interval counts the seed, and holds whether or not the runs share their images."""

import numpy as np
import pytest
from scipy import stats

from diffleak.errors import UserError
from diffleak.records.base import Estimate
from diffleak.stats.pooling import difference, pooled

RUNS = 1000
MONTE_CARLO = 3 * np.sqrt(0.05 * 0.95 / RUNS)


def estimates(values, error):
    return [Estimate(value=v, low=v - 1.959964 * error, high=v + 1.959964 * error, method="DeLong") for v in values]


def seen(rng, seeds, tau, error, shared):
    """The numbers of `seeds` trainings that differ by tau, tested on images of which a part of the error, `shared`, is the same in all."""
    common = rng.normal(0, error * np.sqrt(shared))
    return 0.7 + common + rng.normal(0, error * np.sqrt(1 - shared), seeds) + rng.normal(0, tau, seeds)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("tau", "shared"), [(0.0, 1.0), (0.01, 1.0), (0.05, 1.0), (0.05, 0.0), (0.02, 0.5)])
def test_the_interval_covers_whatever_part_the_seed_and_the_images_have(seeds, tau, shared):
    rng, missed, narrow = np.random.default_rng(seeds), 0, 0
    for _ in range(RUNS):
        values = seen(rng, seeds, tau, 0.02, shared)
        mean = pooled(estimates(values, 0.02)).mean
        missed += not mean.low <= 0.7 <= mean.high
        ends = stats.t.interval(0.95, 2, 0, 1)[1] * values.std(ddof=1) / np.sqrt(seeds) if seeds == 3 else np.inf
        narrow += abs(values.mean() - 0.7) > ends
    assert missed / RUNS <= 0.05 + MONTE_CARLO
    if seeds == 3 and shared == 1.0 and tau <= 0.01:
        assert narrow / RUNS > 0.1, "the spread over seeds alone does not see images that all runs share"


def test_the_mean_the_spread_and_the_interval_are_their_formulas():
    found = pooled(estimates([0.6, 0.7, 0.8], 0.02))
    half = np.hypot(stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3), stats.norm.ppf(0.975) * 0.02)
    assert found.spread == pytest.approx(0.1) and found.mean.value == pytest.approx(0.7)
    assert (found.mean.low, found.mean.high) == (pytest.approx(0.7 - half), pytest.approx(0.7 + half))
    assert pooled(estimates([0.99, 1.0], 0.02)).mean.high == 1


def test_what_a_run_lacks_the_mean_lacks_with_the_reason():
    lost = Estimate(reason="needs >= 100 non-members")
    found = pooled([*estimates([0.6], 0.02), lost])
    assert found.mean.value is None and found.spread is None and "1 of 2 runs: needs >= 100" in found.mean.reason
    bare = pooled([*estimates([0.6], 0.02), Estimate(value=0.8, reason="none")])
    assert bare.mean.value == pytest.approx(0.7) and bare.mean.low is None and "1 of 2 runs has no interval" in bare.mean.reason
    (known,) = estimates([0.5], 0.02)
    for pair in ((found.mean, known), (known, found.mean), (found.mean, bare.mean)):
        assert difference(*pair) == Estimate(reason=found.mean.reason)
    for pair, value in (((bare.mean, known), 0.2), ((known, bare.mean), -0.2)):
        assert difference(*pair).model_dump(exclude_none=True) == {"value": pytest.approx(value), "reason": bare.mean.reason}
    with pytest.raises(UserError, match="at least 2 runs; got 1"):
        pooled(estimates([0.6], 0.02))


def test_the_difference_of_two_recipes_covers():
    rng, missed = np.random.default_rng(0), 0
    for _ in range(RUNS):
        one, two = (pooled(estimates(seen(rng, 3, 0.02, 0.02, 1.0), 0.02)).mean for _ in range(2))
        found = difference(one, two)
        missed += not found.low <= 0 <= found.high
    assert missed / RUNS <= 0.05 + MONTE_CARLO


def test_the_ends_of_a_difference_are_those_of_the_two_numbers_added_in_squares():
    first = Estimate(value=0.7, low=0.6, high=0.75, method="pooled")
    second = Estimate(value=0.5, low=0.48, high=0.56, method="pooled")
    found = difference(first, second)
    assert (found.value, found.low) == (pytest.approx(0.2), pytest.approx(0.2 - np.hypot(0.1, 0.06)))
    assert found.high == pytest.approx(0.2 + np.hypot(0.05, 0.02))
    certain, wide = Estimate(value=1.0, low=0.9, high=1.0, method="pooled"), Estimate(value=0.1, low=0.0, high=0.9, method="pooled")
    assert difference(certain, wide).high == 1.0 and difference(wide, certain).low == -0.9 - 0.1
