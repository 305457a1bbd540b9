"""All attacks in one regression: scikit-learn as oracle, what it may see, a planted signal, and simulation under the null."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffleak.records.scores import Scores
from diffleak.stats import metrics
from diffleak.stats.evaluation import combined, divided, evaluate_combined, may_be_combined, on_every_split, whole
from diffleak.stats.rules import STRENGTHS, settled

TIMESTEPS = (10, 20, 30)


def planted(n, leak=0.0, seed=0):
    """Two attacks that see the same leak through noise of their own, a rule's components, and complexity that explains the first."""
    rng = np.random.default_rng((seed, n))
    ids, member = tuple(f"image-{i:04d}" for i in range(2 * n)), np.arange(2 * n) % 2 == 0
    c = rng.normal(size=(2 * n, 7))
    noise = lambda k: rng.normal(size=(2 * n, 1)) + 0.3 * rng.normal(size=(2 * n, k)) - leak * member[:, None]
    one = Scores("sima", "small", TIMESTEPS, ids, np.exp(c[:, :1] + noise(3)))
    two = Scores("noise_aggregation", "large", TIMESTEPS, ids, -noise(3))
    three = Scores("clid", "large", (0, 1), ids, rng.normal(size=(2 * n, 2)), "clid")
    return [one, two, three], c, member


def test_components_are_logarithms_of_statistics_of_one_sign_scores_as_they_are_and_complexity():
    (one, two, three), c, _ = planted(20)
    found = combined([one, two, three], c)
    expected = np.concatenate([-np.log(one.statistic), two.statistic, three.statistic, c], axis=1)
    np.testing.assert_array_equal(found.membership, expected)
    assert found.attack == "combined" and found.timesteps == tuple(range(15))
    assert combined([one, two], None).statistic.shape == (40, 6)
    regressed = Scores("gradient", "small", (0, 1), one.ids, np.zeros((40, 2)), "logistic")
    assert [may_be_combined(each) for each in (one, three, regressed)] == [True, True, False]


def test_scores_of_the_test_part_are_those_of_scikit_learn_and_no_calibrate_image_is_scored_by_a_fit_with_it():
    parts, c, member = planted(100, leak=0.7)
    calibrate = divided(parts[0].ids, member, 0.5, 0).calibrate[0]
    scores = combined(parts, c)
    found = settled(scores, member, calibrate)
    assert found.keys == tuple(f"C={strength:g}" for strength in STRENGTHS)
    for column, strength in enumerate(STRENGTHS):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-10, max_iter=10_000))
        x = scores.statistic
        expected = model.fit(x[calibrate], member[calibrate]).decision_function(x[~calibrate])
        np.testing.assert_allclose(found.membership[~calibrate, column], expected, atol=2e-3)
    own = make_pipeline(StandardScaler(), LogisticRegression(C=1.0)).fit(x[calibrate], member[calibrate])
    fitted = roc_auc_score(member[calibrate], own.decision_function(x[calibrate]))
    assert roc_auc_score(member[calibrate], found.membership[calibrate, -1]) < fitted, "cross-fitted scores are no better than fitted ones"
    flipped = np.where(calibrate, member, ~member)
    np.testing.assert_array_equal(settled(scores, flipped, calibrate).membership, found.membership)


def test_two_attacks_of_independent_noise_find_more_together_and_the_gain_is_that_of_the_test_part():
    parts, c, member = planted(400, leak=0.8)
    split = divided(parts[0].ids, member, 0.5, 0)
    best = on_every_split(parts[1], member, split)
    result, source = whole(evaluate_combined(combined(parts, c), best, member, split))
    test = ~split.calibrate[0]
    columns = settled(source, member, split.calibrate[0])
    auc = roc_auc_score(member[test], columns.membership[test][:, columns.keys.index(result.setting)])
    assert result.auc.value == pytest.approx(auc)
    assert result.gain.auc.low > 0 and result.gain.auc.value == pytest.approx(auc - best[0][0].auc.value)
    assert result.leads and not result.plain and result.timestep is None


@pytest.mark.slow
def test_without_a_leak_intervals_cover_one_half_as_often_as_they_say():
    held, runs = [], 40
    for seed in range(runs):
        parts, c, member = planted(200, seed=seed)
        split = divided(parts[0].ids, member, 0.2, seed)
        auc = whole(evaluate_combined(combined(parts, c), on_every_split(parts[0], member, split), member, split))[0].auc
        held.append(auc.low <= 0.5 <= auc.high)
    assert binom.cdf(sum(held), runs, metrics.LEVEL) > 1e-3
