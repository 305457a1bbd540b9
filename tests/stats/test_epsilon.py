"""The lower bound on epsilon: against the theorem in plain loops, the paper's own numbers, scipy, and mechanisms of known epsilon."""

import numpy as np
import pytest
from oracles import epsilon as oracle
from scipy import optimize, stats

from diffleak.errors import UserError
from diffleak.stats.epsilon import SHARES, Guesser, calibrate_units, choose, count, lower_bound, p_value

RUNS = 400
MONTE_CARLO = 3 * np.sqrt(0.05 * 0.95 / RUNS)  # three standard errors of a rate of 5 %


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3, 0.5])  # the last takes the right-hand side beyond 1
@pytest.mark.parametrize(("units", "guesses", "right"), [(60, 40, 31), (25, 25, 25), (300, 50, 27), (40, 7, 6), (30, 10, 0), (9, 1, 1)])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
def test_the_p_value_is_that_of_the_theorem_summed_term_by_term(units, guesses, right, epsilon, delta):
    found = p_value(units, guesses, right, epsilon, delta)
    assert found == pytest.approx(oracle.p_value(units, guesses, right, epsilon, delta), rel=1e-9)


@pytest.mark.parametrize(
    ("units", "guesses", "right", "delta"), [(30, 20, 17, 1e-5), (30, 20, 17, 1e-3), (30, 30, 29, 0.0), (60, 40, 22, 0.0)]
)
def test_the_bound_is_the_last_epsilon_of_a_grid_that_is_rejected(units, guesses, right, delta):
    grid = oracle.lower_bound(units, guesses, right, delta, 0.95, step=0.1)
    assert grid <= lower_bound(units, guesses, right, delta) + 1e-9 < grid + 0.1 + 2e-9


@pytest.mark.parametrize(
    ("units", "guesses", "right", "delta", "printed"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],  # appendix D, section 7 (which cuts off 2.67585)
)
def test_the_bound_is_the_one_that_the_paper_prints(units, guesses, right, delta, printed):
    assert lower_bound(units, guesses, right, delta) == pytest.approx(printed, abs=1e-3)


@pytest.mark.parametrize(("guesses", "right"), [(10, 10), (100, 80), (1000, 530), (1000, 900), (5000, 4999), (20_000, 10_300)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_without_delta_the_bound_is_the_clopper_pearson_interval_of_the_rate(guesses, right, level):
    rate = stats.beta.ppf(1 - level, right, guesses - right + 1)
    expected = max(0.0, float(np.log(rate / (1 - rate))))
    assert lower_bound(guesses, guesses, right, 0.0, level) == pytest.approx(expected, abs=1e-6)


def scipy_bound(units, guesses, right, delta, level):
    """The root of the p-value, with scipy's binomial and Brent's method."""

    def p(epsilon):
        w = stats.binom(guesses, 1 / (1 + np.exp(-epsilon)))
        i = np.arange(1, right + 1)
        alpha = ((w.cdf(right - 1) - w.cdf(right - 1 - i)) / i).max()
        return w.sf(right - 1) + 2 * units * delta * alpha - (1 - level)

    return optimize.brentq(p, 0, 30, xtol=1e-10) if p(0) < 0 else 0.0


@pytest.mark.parametrize("delta", [1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize(
    ("units", "guesses", "right"),
    [
        (500, 200, 150),
        (2000, 100, 99),
        (50_000, 3000, 2000),
        (800, 640, 600),
        (400, 40, 22),
        (462, 144, 131),
        (640, 80, 54),
        (480, 408, 399),
    ],
)
def test_the_bound_is_that_of_jax_privacy(units, guesses, right, delta):
    """Scores of which so many stand above one threshold, so many of them of members; jax_privacy is in no extra of diffleak."""
    auditing = pytest.importorskip(
        "jax_privacy.auditing", reason="jax-privacy is not installed (a package of the registry, for this test alone)"
    )
    members = max(right, units // 2)
    scores = [np.repeat([1.0, 0.0], [above, n - above]) for above, n in ((right, members), (guesses - right, units - members))]
    found = auditing.CanaryScoreAuditor(*scores).epsilon_one_run(0.05, delta, threshold_strategy=auditing.Explicit(0.5))
    assert lower_bound(units, guesses, right, delta) == pytest.approx(found, abs=2e-6)


def test_a_table_of_bounds_is_that_of_scipy():
    table = [(m, r, v, d) for m, r, v in [(500, 200, 150), (2000, 100, 99), (50_000, 3000, 2000), (800, 640, 600), (400, 40, 22)]
             for d in (1e-6, 1e-5, 1e-4)]  # fmt: skip
    found = [lower_bound(*row) for row in table]
    assert found == pytest.approx([scipy_bound(*row, 0.95) for row in table], abs=1e-6)
    assert found[-1] == 0.0 < found[0]


def test_the_bound_falls_with_delta_and_the_level_and_rises_with_right_guesses():
    assert lower_bound(1000, 100, 80, 0.0) > lower_bound(1000, 100, 80, 1e-5) > lower_bound(1000, 100, 80, 1e-3)
    assert lower_bound(1000, 100, 80, 0.0, 0.9) > lower_bound(1000, 100, 80, 0.0, 0.99)
    bounds = [lower_bound(1000, 100, v, 1e-5) for v in range(101)]
    assert bounds == sorted(bounds) and bounds[50] == 0.0 and lower_bound(10, 0, 0, 1e-5) == 0.0


@pytest.mark.parametrize(
    "values",
    [(10, 5, 6, 0.0), (4, 5, 3, 0.0), (10, 5, -1, 0.0), (10, 5, 3, 1.0), (10, 5, 3, -0.1), (10, 5, 3, 0.0, 0.0), (10, 5, 3, 0.0, 1.0)],
)
def test_counts_deltas_and_levels_that_cannot_be_are_refused(values):
    with pytest.raises(UserError, match="must"):
        lower_bound(*values)


# Randomised response says each coin as it is with probability e^epsilon / (1 + e^epsilon): it is epsilon-private, and no less.

EPSILONS = (0.0, 0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", [0.0, 1e-5])
def test_of_randomised_response_at_most_one_bound_in_twenty_exceeds_the_truth(epsilon, delta):
    rng, guesses = np.random.default_rng(int(100 * epsilon)), 500
    right = rng.binomial(guesses, 1 / (1 + np.exp(-epsilon)), size=RUNS)
    bounds = np.array([lower_bound(guesses, guesses, int(v), delta) for v in right])
    assert (bounds > epsilon).mean() <= 0.05 + MONTE_CARLO
    if epsilon:
        assert (bounds > 0).mean() > 0.95 and np.median(bounds) > 0.6 * epsilon
    else:
        assert (bounds > 0).mean() <= 0.05 + MONTE_CARLO


def released(epsilon, member, rng, columns):
    """What attacks see of randomised response: a column that knows its answers, and columns of noise alone."""
    said = np.where(rng.random(len(member)) < 1 / (1 + np.exp(-epsilon)), member, ~member)
    scores = rng.normal(size=(len(member), columns))
    scores[:, 0] += 8 * said  # of those who are said to be members every score is higher
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])  # the others are in studies/decisions/epsilon.py
def test_choosing_on_a_calibrate_part_keeps_the_level(epsilon):
    bounds = []
    for run in range(RUNS):
        rng = np.random.default_rng((run, int(10 * epsilon)))
        member = rng.random(400) < 0.5
        scores, calibrate = released(epsilon, member, rng, 6), np.arange(400) < 100
        guesser = choose(scores[calibrate], member[calibrate], 1e-5, 0.95, run, 300)
        bounds.append(lower_bound(*count(guesser, scores[~calibrate], member[~calibrate], run), 1e-5))
    assert np.mean(np.array(bounds) > epsilon) <= 0.05 + MONTE_CARLO
    if epsilon >= 1:
        assert np.mean(np.array(bounds) > 0) > 0.9 and np.median(bounds) > 0.5 * epsilon


def test_choosing_on_the_images_that_are_counted_would_not_keep_it():
    exceeded = 0
    for run in range(50):
        rng = np.random.default_rng(run)
        member, scores = rng.random(200) < 0.5, rng.normal(size=(200, 40))
        guesser = choose(scores, member, 0.0, 0.95, run, 200)
        exceeded += lower_bound(*count(guesser, scores, member, run), 0.0) > 0
    assert exceeded > 10, "else the test above would show nothing"


def test_a_few_images_that_are_sure_are_enough_and_the_others_are_not_guessed():
    rng = np.random.default_rng(0)
    member = rng.random(2000) < 0.5
    exposed = member & (rng.random(2000) < 0.1)
    scores = rng.normal(size=(2000, 2))
    scores[exposed, 1] += 9
    guesser = choose(scores[:500], member[:500], 1e-5, 0.95, 0, 1500)
    counted = count(guesser, scores[500:], member[500:], 0)
    assert guesser.column == 1 and 0 < guesser.top < 0.1 and guesser.bottom == 0
    assert counted.units == 1500 and counted.guesses < 150 and counted.right > 0.95 * counted.guesses
    assert lower_bound(*counted, 1e-5) > 2


def hits(scores, member, top, bottom):
    """Right guesses of the `top` highest and the `bottom` lowest of different scores, one by one."""
    rows = sorted(range(len(member)), key=lambda i: -scores[i])
    return sum(bool(member[i]) for i in rows[:top]) + sum(not member[i] for i in rows[len(rows) - bottom :])


def test_a_count_is_that_of_the_sorted_scores_one_by_one():
    rng = np.random.default_rng(3)
    member, scores = rng.random(43) < 0.5, rng.normal(size=(43, 3))
    for column, top, bottom in ((0, 0.1, 0.0), (1, 0.0, 0.3), (2, 0.25, 0.1), (2, 0.5, 0.5)):
        above = round(43 * top)
        below = min(round(43 * bottom), 43 - above)
        right = hits(scores[:, column], member, above, below)
        assert count(Guesser(column, top, bottom), scores, member, 0) == (43, above + below, right)


@pytest.mark.parametrize(
    ("members", "leak", "exposed", "tested"),
    [(31, 2.0, 0.0, 200), (30, 20.0, 0.0, 60), (20, 0.0, 9.0, 200), (30, 0.5, 0.0, 30), (30, -3.0, 0.0, 200)],
    ids=["some right", "all right", "held-out images alone", "too few", "all wrong"],
)
def test_what_is_chosen_promises_as_much_as_any_guesser(members, leak, exposed, tested):
    """Of all columns and ends: the bound of as large a share of the tested units, at the rate (v + 1) / (r + 2) less a standard error."""
    rng, n = np.random.default_rng(6), 60
    member = rng.permutation(n) < members
    scores = rng.normal(size=(n, 3)) + leak * member[:, None] * np.array([0.2, 1.0, 0.8])
    scores[np.flatnonzero(~member)[:30]] -= exposed
    sizes = [round(share * n) for share in SHARES]

    def promise(column, top, bottom):
        right, guesses = hits(scores[:, column], member, top, bottom), top + bottom
        rate, scaled = (right + 1) / (guesses + 2), round(guesses * tested / n)
        return tested, scaled, int(scaled * (rate - np.sqrt(rate * (1 - rate) / (guesses + 2))))

    promises = {promise(column, top, bottom) for column in range(3) for top in sizes for bottom in sizes if 0 < top + bottom <= n}
    guesser = choose(scores, member, 1e-5, 0.95, 0, tested)
    chosen = promise(guesser.column, round(guesser.top * n), round(guesser.bottom * n))
    best = max(lower_bound(*each, 1e-5) for each in promises)
    assert lower_bound(*chosen, 1e-5) == best and (best > 0) == (leak + exposed > 1)
    if not best:
        assert p_value(*chosen, 0.0, 1e-5) == min(p_value(*each, 0.0, 1e-5) for each in promises)


def test_equal_scores_do_not_give_away_the_order_of_the_rows():
    """Members stand first where ids name folders, so the order of rows must not decide between equal scores."""
    member = np.arange(1000) < 500
    right = [count(Guesser(0, 0.25, 0.25), np.zeros((1000, 1)), member, seed).right for seed in range(50)]
    assert abs(np.mean(right) - 250) < 3 * np.std(right) / np.sqrt(50) + 1e-9
    rising = np.arange(1000.0)[::-1, None]
    assert count(Guesser(0, 0.25, 0.25), rising, member, 0) == (1000, 500, 500)


def test_the_calibrate_units_are_a_share_of_all_whatever_their_side():
    ids = [f"{i}.png" for i in range(1000)]
    chosen = calibrate_units(ids, 0.2, 3)
    assert chosen.sum() == 200 and (chosen == calibrate_units(ids, 0.2, 3)).all() and (chosen != calibrate_units(ids, 0.2, 4)).any()
    again = calibrate_units(ids[::-1], 0.2, 3)[::-1]
    assert (again == chosen).all(), "by id, not by row"
