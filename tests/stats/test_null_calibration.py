"""Every printed interval covers its truth at least as often as it says, up to Monte Carlo error.

Each test simulates a few hundred data sets whose truth is known and counts how often the interval holds it. A test fails
when the count is lower than a binomial at the nominal level would be once in a thousand.
"""

import numpy as np
import pytest
from fixtures.reports import audit_of
from scipy.stats import binom, norm

from diffleak.comparison.compare import difference
from diffleak.comparison.runs import Run
from diffleak.records.audit import RATES
from diffleak.records.scores import Scores
from diffleak.stats import metrics
from diffleak.stats.blind import INVALID_ABOVE, blind_auc
from diffleak.stats.evaluation import divided, evaluate_scores, samples

pytestmark = pytest.mark.slow  # all of them together
RUNS = 300


def assert_covers(held, level=metrics.LEVEL):
    assert binom.cdf(int(np.sum(held)), len(held), level) > 1e-3, f"covered {np.sum(held)} of {len(held)} at level {level}"


def holds(estimate, truth):
    return estimate.low <= truth <= estimate.high


def draws(m, n, shift=0.0, spread=1.0, runs=RUNS, seed=0):
    """Members N(shift, spread), non-members N(0, 1)."""
    rng = np.random.default_rng((seed, m, n))
    for _ in range(runs):
        yield rng.normal(shift, spread, m), rng.normal(0, 1, n)


def true_auc(shift, spread=1.0):
    return norm.cdf(shift / np.hypot(1, spread))


def true_tpr(fpr, shift, spread=1.0):
    return norm.sf((norm.isf(fpr) - shift) / spread)


@pytest.mark.parametrize(
    ("m", "n", "shift", "spread"),
    [(20, 20, 0, 1), (100, 100, 0, 1), (40, 400, 0, 2), (100, 100, 1, 1), (60, 300, 0.7, 1.5), (400, 400, 2.5, 1)],
)
def test_the_auc_interval_covers(m, n, shift, spread):
    assert_covers([holds(metrics.auc_estimate(*pair), true_auc(shift, spread)) for pair in draws(m, n, shift, spread)])


@pytest.mark.parametrize(("n", "shift"), [(20, 2.5), (50, 3.0)])
def test_the_auc_interval_covers_near_perfect_separation(n, shift):
    assert_covers([holds(metrics.auc_estimate(*pair), true_auc(shift)) for pair in draws(n, n, shift)])


def test_the_auc_interval_covers_when_scores_are_tied():
    rng = np.random.default_rng(1)
    pairs = [(rng.integers(0, 4, 120).astype(float), rng.integers(0, 4, 90).astype(float)) for _ in range(RUNS)]
    assert_covers([holds(metrics.auc_estimate(*pair), 0.5) for pair in pairs])


@pytest.mark.parametrize(
    ("m", "n", "fpr"),
    [(200, 200, 0.1), (1000, 1000, 0.01), (50, 1000, 0.1), (1000, 100, 0.1), (300, 300, 0.01), (60, 60, 0.1), (1000, 1000, 0.001)],
)
@pytest.mark.parametrize("shift", [-0.5, 0, 1.5])
def test_the_tpr_interval_covers(m, n, fpr, shift):
    rates = [metrics.tpr_at_fpr(*pair, fpr, seed=i) for i, pair in enumerate(draws(m, n, shift, runs=200))]
    assert_covers([holds(rate, true_tpr(fpr, shift)) for rate in rates])


@pytest.mark.parametrize(("m", "n", "fnr"), [(200, 300, 0.1), (1000, 500, 0.01), (300, 200, 0.01)])
@pytest.mark.parametrize("shift", [0, 1])
def test_the_tnr_interval_covers(m, n, fnr, shift):
    spread = 1.5
    truth = norm.cdf(norm.ppf(fnr, shift, spread))
    rates = (metrics.tnr_at_fnr(*pair, fnr, seed=i) for i, pair in enumerate(draws(m, n, shift, spread, runs=200)))
    assert_covers([holds(rate, truth) for rate in rates])


@pytest.mark.parametrize(("m", "n", "shift"), [(200, 200, 0), (200, 200, 1), (300, 100, 0.5)])
def test_the_accuracy_interval_covers_the_accuracy_of_the_calibrated_threshold(m, n, shift):
    held = []
    for calibrate, test in zip(draws(m // 4, n // 4, shift, seed=1), draws(m, n, shift, seed=2), strict=True):
        threshold, _ = metrics.best_accuracy(*calibrate)
        truth = (m * norm.sf(threshold - shift) + n * norm.cdf(threshold)) / (m + n)
        held.append(holds(metrics.accuracy_at(threshold, *test), truth))
    assert_covers(held)


@pytest.mark.parametrize(("calibrate", "test"), [(15, 60), (100, 400), (1000, 300)])
def test_the_achieved_fpr_interval_covers_the_true_fpr_of_the_calibrated_threshold(calibrate, test):
    held = []
    for _, scores in draws(1, calibrate + test):
        achieved = metrics.achieved_fpr(scores[:calibrate], scores[calibrate:])
        held.append(holds(achieved, norm.sf(achieved.threshold)))
    assert_covers(held)


@pytest.mark.parametrize(("correlation", "shift"), [(0.0, 0.0), (0.9, 0.0), (0.9, 1.2)])
def test_the_interval_of_an_auc_difference_covers_zero_for_two_equally_good_attacks(correlation, shift):
    rng = np.random.default_rng(4)
    covariance = [[1, correlation], [correlation, 1]]
    held = []
    for _ in range(RUNS):
        members = rng.multivariate_normal([shift, shift], covariance, 120)
        nonmembers = rng.multivariate_normal([0, 0], covariance, 90)
        held.append(holds(metrics.auc_difference(members, nonmembers), 0))
    assert_covers(held)


def test_the_interval_of_an_auc_difference_covers_a_real_difference():
    rng = np.random.default_rng(5)
    covariance, truth = [[1, 0.7], [0.7, 1]], true_auc(1.5) - true_auc(0.5)
    held = []
    for _ in range(RUNS):
        members = rng.multivariate_normal([1.5, 0.5], covariance, 150)
        nonmembers = rng.multivariate_normal([0, 0], covariance, 150)
        held.append(holds(metrics.auc_difference(members, nonmembers), truth))
    assert_covers(held)


def pairs_of_attacks(m, n, correlation, shifts, runs, seed):
    """Scores of two correlated attacks, members shifted by `shifts`."""
    rng, covariance = np.random.default_rng((seed, m, n)), [[1, correlation], [correlation, 1]]
    for _ in range(runs):
        yield rng.multivariate_normal(shifts, covariance, m), rng.multivariate_normal([0, 0], covariance, n)


@pytest.mark.parametrize(
    ("m", "n", "correlation", "shifts"),
    [
        (200, 200, 0.9, (0, 0)),
        (100, 300, 0.9, (1, 1)),
        (60, 60, 0.7, (1.5, 0.5)),
        (10, 10, 0.99, (0.5, 0.4)),
        (100, 100, 0.999, (0.5, 0.45)),
    ],
    ids=["null", "equally good", "different", "few images", "few disagreements"],
)
def test_the_interval_of_an_accuracy_difference_covers(m, n, correlation, shifts):
    thresholds = np.array([0.2, 0.3])
    right = [m * norm.sf(t - shift) + n * norm.cdf(t) for t, shift in zip(thresholds, shifts, strict=True)]
    truth = (right[0] - right[1]) / (m + n)
    pairs = pairs_of_attacks(m, n, correlation, shifts, RUNS, seed=10)
    assert_covers([holds(metrics.accuracy_difference(*pair, thresholds), truth) for pair in pairs])


@pytest.mark.parametrize(
    ("m", "n", "fpr", "correlation", "shifts"),
    [
        (150, 150, 0.1, 0.9, (0, 0)),
        (150, 100, 0.1, 0.9, (1, 1)),
        (150, 100, 0.1, 0.7, (1.5, 0.5)),
        (60, 1000, 0.01, 0.7, (1.5, 0.5)),
    ],
    ids=["null", "equally good", "different", "different at 1 %"],
)
def test_the_interval_of_a_tpr_difference_covers(monkeypatch, m, n, fpr, correlation, shifts):
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", 300)
    truth = true_tpr(fpr, shifts[0]) - true_tpr(fpr, shifts[1])
    pairs = pairs_of_attacks(m, n, correlation, shifts, 100, seed=11)
    assert_covers([holds(metrics.tpr_difference(*pair, fpr, seed=i), truth) for i, pair in enumerate(pairs)])


def finds(estimate):
    """Whether the interval leaves out 0."""
    return estimate.low > 0 or estimate.high < 0


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.5), (0.9, 0.99)])
def test_a_paired_auc_difference_finds_a_real_one_and_more_surely_the_more_the_models_agree_on_difficulty(correlation, least):
    pairs = list(pairs_of_attacks(200, 200, correlation, (1.0, 0.7), 200, seed=13))
    found = np.mean([finds(metrics.auc_difference(*pair)) for pair in pairs])
    assert found > least
    if correlation:
        unpaired = np.mean([finds(metrics.auc_gap(*((m[:, c], n[:, c]) for c in (0, 1)))) for m, n in pairs])
        assert found > unpaired + 0.3, "pairing is what finds it"


@pytest.mark.parametrize(("m", "n", "fpr", "shifts"), [(300, 300, 0.1, (1.5, 0.9)), (300, 1000, 0.01, (2.5, 1.5))])
def test_a_paired_tpr_difference_finds_a_real_one(monkeypatch, m, n, fpr, shifts):
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", 300)
    pairs = pairs_of_attacks(m, n, 0.9, shifts, 40, seed=14)
    assert np.mean([finds(metrics.tpr_difference(*pair, fpr, seed=i)) for i, pair in enumerate(pairs)]) > 0.8


@pytest.mark.parametrize("shifts", [(0, 0), (1, 1)], ids=["null", "equally good"])
def test_the_interval_of_a_tpr_difference_at_1_percent_covers_zero(monkeypatch, shifts):
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", 300)
    pairs = pairs_of_attacks(100, 1000, 0.7, shifts, 100, seed=15)
    estimates = [metrics.tpr_difference(*pair, 0.01, seed=i) for i, pair in enumerate(pairs)]
    assert_covers([holds(e, 0) for e in estimates if e.low is not None])


def null_comparison(n, d, seed):
    """Scores at three timesteps of two models that leak alike: images have their difficulty, members a shift of d in both."""
    rng, member = np.random.default_rng((seed, 16)), np.arange(2 * n) < n
    ids, difficulty = tuple(f"image-{i:04d}" for i in range(2 * n)), rng.normal(size=(2 * n, 1))
    for _ in range(2):
        yield Scores("sima", "large", (10, 20, 30), ids, d * member[:, None] + difficulty + rng.normal(size=(2 * n, 3))), member


@pytest.mark.parametrize(("n", "d", "runs"), [(300, 0.0, 60), (300, 1.0, 60), (60, 1.0, 15)], ids=["null", "one split", "repeated splits"])
def test_the_whole_comparison_of_two_models_that_leak_alike_covers_zero(monkeypatch, n, d, runs):
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", 10)  # of rates, which are not looked at here
    held, (blank, _) = [], audit_of({"sima": 1.0}, 20)
    for seed in range(runs):
        made = []
        for scores, member in null_comparison(n, d, seed):
            split = divided(scores.ids, member, 0.2, seed=0)
            result = evaluate_scores(scores, member, split)
            record = blank.model_copy(update={"split": split.record})
            made.append(Run("run", record, samples([scores], [result], member, split)))
        held.append(holds(difference((made[0], "sima"), (made[1], "sima"), 0).auc, 0))
    assert_covers(held)


@pytest.mark.parametrize("d", [0.0, 1.0])
def test_the_swap_audit_covers_its_truth_though_the_timestep_is_picked(d):
    held = []
    for seed in range(80):
        rng, first = np.random.default_rng((seed, 17)), np.arange(600) < 300
        difficulty = 3 * rng.normal(size=(600, 1))
        one, two = (d * own[:, None] + difficulty + rng.normal(size=(600, 3)) for own in (first, ~first))
        scores = Scores("swap", "large", (10, 20, 30), tuple(f"image-{i:04d}" for i in range(600)), one - two)
        held.append(holds(evaluate_scores(scores, first, divided(scores.ids, first, 0.2, seed)).auc, norm.cdf(2 * d / 2)))
    assert_covers(held)


@pytest.mark.parametrize(
    ("size", "shifts"), [(3, (0, 0)), (10, (0, 0)), (40, (1, 1)), (100, (1.5, 0.5)), (10, (2.5, 1)), (40, (4, 3))], ids=str
)
def test_the_interval_of_an_auc_gap_between_groups_covers_also_for_few_images_and_near_separation(size, shifts):
    groups = zip(*(draws(size, size, shift, seed=i + 12) for i, shift in enumerate(shifts)), strict=True)
    truth = true_auc(shifts[0]) - true_auc(shifts[1])
    assert_covers([holds(metrics.auc_gap(*pair), truth) for pair in groups])


def test_the_blind_interval_covers_one_half_when_both_sides_are_alike():
    rng = np.random.default_rng(6)
    member = np.arange(100) < 50
    estimates = [blind_auc(rng.normal(size=(100, 4)), member, seed=i) for i in range(120)]
    assert max(e.low for e in estimates) < INVALID_ABOVE
    assert_covers([holds(e, 0.5) for e in estimates])


def null_scores(n, timesteps, rng):
    """Scores that know nothing of membership, at every timestep; half of their variance is shared between timesteps."""
    statistic = rng.normal(size=(2 * n, 1)) + rng.normal(size=(2 * n, timesteps))
    ids = tuple(f"image-{i:04d}" for i in range(2 * n))
    return Scores("null", "small", tuple(range(10, 10 * timesteps + 10, 10)), ids, statistic), np.arange(2 * n) % 2 == 0


@pytest.mark.parametrize(("n", "runs"), [(300, 120), (60, 30)], ids=["one split", "repeated splits"])
def test_the_whole_evaluation_covers_one_half_though_the_timestep_is_picked(n, runs):
    rng = np.random.default_rng((7, n))
    results = []
    for seed in range(runs):
        scores, member = null_scores(n, 10, rng)
        results.append(evaluate_scores(scores, member, divided(scores.ids, member, 0.2, seed)))
    assert {r.n_members for r in results} == {round(0.8 * n)}
    assert_covers([holds(r.auc, 0.5) for r in results])
    assert_covers([holds(r.asr, 0.5) for r in results])
    for i, rate in enumerate(RATES):
        for estimates in ([r.tpr_at_fpr[i] for r in results], [r.tnr_at_fnr[i] for r in results]):
            if estimates[0].value is not None:
                assert_covers([holds(e, rate) for e in estimates])
    # picking on calibrate must not show on test, picking on test must
    aucs, oracles = [r.auc.value for r in results], np.array([r.oracle.auc for r in results])
    assert abs(np.mean(aucs) - 0.5) < 4 * np.std(aucs) / np.sqrt(runs)
    assert np.mean(oracles) - 0.5 > 4 * np.std(oracles) / np.sqrt(runs)


def test_the_achieved_fpr_of_the_whole_evaluation_covers_the_truth_of_its_threshold():
    rng = np.random.default_rng(8)
    held = []
    for seed in range(100):
        scores, member = null_scores(300, 3, rng)
        achieved = evaluate_scores(scores, member, divided(scores.ids, member, 0.2, seed)).achieved_fpr
        held.append(holds(achieved, norm.sf(achieved.threshold, scale=np.sqrt(2))))
    assert_covers(held)


def test_near_separation_the_logit_interval_covers_where_the_plain_one_does_not():
    rng, shift, runs = np.random.default_rng(7), 3.5, 600
    truth = float(norm.cdf(shift / np.sqrt(2)))
    plain = logit = 0
    for _ in range(runs):
        members, nonmembers = rng.normal(shift, 1, 50), rng.normal(0, 1, 50)
        estimate = metrics.auc_estimate(members, nonmembers)
        wins = members[:, None] > nonmembers
        half = norm.ppf(0.975) * np.sqrt(wins.mean(axis=1).var(ddof=1) / 50 + wins.mean(axis=0).var(ddof=1) / 50)
        plain += wins.mean() - half <= truth <= wins.mean() + half
        logit += estimate.low <= truth <= estimate.high
    assert plain / runs < 0.9
    assert logit / runs > 0.92
