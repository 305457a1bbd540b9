"""The power that is printed is the power of the intervals that audits print, by simulation."""

from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import beta, binom, multivariate_normal

from diffleak.stats import power
from diffleak.stats.metrics import auc_estimate, tpr_at_fpr

RUNS = 200


@pytest.mark.parametrize(("m", "n"), [(24, 24), (100, 400), (300, 300)])
def test_an_attack_of_the_detectable_auc_is_told_from_chance_four_times_in_five(m, n):
    auc = power.detectable_auc(m, n)
    rng, shift = np.random.default_rng((m, n)), NormalDist().inv_cdf(auc) * np.sqrt(2)
    seen = np.mean([auc_estimate(rng.normal(shift, 1, m), rng.normal(size=n)).low > 0.5 for _ in range(RUNS)])
    assert abs(seen - power.POWER) < 3.5 * np.sqrt(0.16 / RUNS) + 0.02  # the second term: the step of the grid, and few images


@pytest.mark.parametrize(("m", "n"), [(500, 500), (1000, 1000)])
def test_an_attack_of_the_detectable_tpr_is_told_from_chance_four_times_in_five(m, n):
    tpr = power.detectable_tpr(m, n)
    rng, memorised, seen = np.random.default_rng((m, n)), (tpr - 0.01) / 0.99, []
    for _ in range(RUNS // 3):
        members = rng.normal(size=m) + np.where(rng.random(m) < memorised, 50.0, 0.0)
        seen.append(tpr_at_fpr(members, rng.normal(size=n), 0.01).low > 0.01)
    assert abs(np.mean(seen) - power.POWER) < 3.5 * np.sqrt(0.16 / (RUNS // 3)) + 0.03


def test_where_nothing_leaks_no_more_than_the_level_is_told_from_chance():
    rng = np.random.default_rng(5)
    seen = np.mean([auc_estimate(rng.normal(size=100), rng.normal(size=100)).low > 0.5 for _ in range(400)])
    assert seen < 0.025 + 3.5 * np.sqrt(0.025 / 400)
    assert power.auc_power(0.5, 100, 100) == pytest.approx(0.025)


def test_the_variance_is_that_of_the_bivariate_normal():
    """Q = P(two members above one held-out image), whose differences are normal with correlation one half."""
    for auc in (0.55, 0.7, 0.95):
        z = NormalDist().inv_cdf(auc)
        both = multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([z, z])
        m, n = 60, 90
        variance = (auc * (1 - auc) + (m + n - 2) * (both - auc**2)) / (m * n)
        odds, deviation = np.log(auc / (1 - auc)), np.sqrt(variance) / (auc * (1 - auc))
        assert power.auc_power(auc, m, n) == pytest.approx(NormalDist().cdf(odds / deviation - 1.959964), abs=1e-5)


def test_power_rises_with_the_images_and_the_images_needed_are_the_fewest_that_have_it():
    aucs = [power.detectable_auc(n, n) for n in (20, 50, 200, 1000)]
    assert aucs == sorted(aucs, reverse=True)
    for auc in (0.55, 0.7):
        needed = power.images_for_auc(auc)
        assert power.auc_power(auc, needed, needed) >= power.POWER > power.auc_power(auc, needed - 1, needed - 1)
    for m, n in ((500, 450), (1000, 1000)):
        auc, tpr = power.detectable_auc(m, n), power.detectable_tpr(m, n)  # to a step of the grid
        assert power.auc_power(auc, m, n) >= power.POWER > power.auc_power(auc - 0.5 / power.GRID - 1e-9, m, n)
        assert power.tpr_power(tpr, m, n) >= power.POWER > power.tpr_power(tpr * 0.01 ** (1 / power.GRID) - 1e-9, m, n)
    assert power.images_for_tpr(0.02) > power.images_for_tpr(0.05) > 435


def test_few_images_show_no_rate_and_only_perfect_separation():
    assert power.detectable_tpr(99, 99) is None and power.detectable_tpr(5000, 400) is None
    assert power.detectable_auc(8, 8) == 1.0 and power.detectable_auc(3, 3) is None and power.detectable_auc(0, 5) is None


def test_two_images_a_side_have_the_power_of_the_formula_and_one_has_none():
    z, auc = NormalDist().inv_cdf(0.95), 0.95
    both = multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([z, z])
    deviation = np.sqrt((auc * (1 - auc) + 2 * (both - auc**2)) / 4) / (auc * (1 - auc))
    assert power.auc_power(auc, 2, 2) == pytest.approx(NormalDist().cdf(np.log(auc / (1 - auc)) / deviation - 1.959964), abs=1e-5)
    assert power.auc_power(auc, 1, 2) == power.auc_power(auc, 2, 1) == 0.0


@pytest.mark.parametrize(("m", "n"), [(500, 500), (1000, 1000)])
def test_where_nothing_leaks_a_rate_is_told_from_one_per_cent_no_more_often_than_the_level(m, n):
    assert 0 < power.tpr_power(0.01, m, n) < 0.05, "the level of both ends; that of one end is 2.5 %, which a bootstrap only comes near"
    assert power.tpr_power(0.01, m, n) < power.tpr_power(0.02, m, n) < power.tpr_power(0.1, m, n) <= 1
    assert power.tpr_power(0.5, 0, n) == power.tpr_power(0.5, m, 99) == 0.0


def test_the_power_of_a_rate_on_few_images_is_that_of_the_order_statistic_and_of_clopper_and_pearson():
    m, n, tpr, tail = 300, 600, 0.06, 0.05 / 4
    rank = max(r for r in range(1, n) if binom.sf(r - 1, n, 0.01) >= 1 - tail)  # of the held-out score that is surely above the quantile
    needed = next(hits for hits in range(1, m) if beta.ppf(tail, hits, m - hits + 1) > 0.01)
    memorised = (tpr - 0.01) / 0.99
    for quantiles, near in ((20_000, 1e-3), (power.QUANTILES, 1e-9)):
        u = beta(rank, n - rank + 1).ppf((np.arange(quantiles) + 0.5) / quantiles)
        expected = binom.sf(needed - 1, m, memorised + (1 - memorised) * u).mean()
        assert power.tpr_power(tpr, m, n) == pytest.approx(expected, abs=near) and 0.2 < expected < 0.999


@pytest.mark.parametrize(("m", "n"), [(700, 1000), (800, 1400), (300, 1999)])
def test_the_power_of_a_rate_on_many_images_is_that_of_the_threshold_and_the_quantile_of_its_bootstrap(m, n):
    tpr, rank = 0.04, n // 100 + 1  # of the held-out score at which one in a hundred lies above
    u = beta(rank, n - rank + 1).ppf((np.arange(power.QUANTILES) + 0.5) / power.QUANTILES)
    not_above = [binom.cdf(m // 100, m, np.clip(hits / m + u - u.mean(), 0, 1)).mean() for hits in range(m)]
    needed = next(hits for hits in range(1, m) if not_above[hits] < 0.025)
    memorised = (tpr - 0.01) / 0.99
    expected = binom.sf(needed - 1, m, memorised + (1 - memorised) * u).mean()
    assert power.tpr_power(tpr, m, n) == pytest.approx(expected, abs=1e-9) and 0.2 < expected < 0.999
