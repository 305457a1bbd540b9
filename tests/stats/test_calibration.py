"""Complexity calibration: scikit-learn as oracle, cross-fitting, what is chosen, a planted signal, and simulation under the null."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from diffleak.records.scores import Scores
from diffleak.stats import metrics
from diffleak.stats.calibration import FOLDS, PARTS, PLAIN, RIDGE, WORDS, features, in_logarithms, residuals
from diffleak.stats.evaluation import (
    Candidate,
    clearly_best_candidate,
    divided,
    evaluate_calibrated,
    evaluate_scores,
    on_every_split,
    samples,
    whole,
)
from diffleak.stats.rules import settled

TIMESTEPS = (10, 20, 30)


def cohort(n, seed=0):
    return tuple(f"image-{i:04d}" for i in range(2 * n)), np.arange(2 * n) % 2 == 0


def planted(n, leak=0.0, seed=0, explained=2.0):
    """Statistics exp(explained * c0 + noise - leak of members), and seven complexities that are alike on both sides."""
    rng = np.random.default_rng((seed, n))
    ids, member = cohort(n)
    c = rng.normal(size=(2 * n, 7))
    logs = explained * c[:, :1] + rng.normal(size=(2 * n, 1)) + 0.3 * rng.normal(size=(2 * n, len(TIMESTEPS))) - leak * member[:, None]
    return Scores("sima", "small", TIMESTEPS, ids, np.exp(logs)), c, member


def test_residuals_are_those_of_scikit_learns_ridge_and_fitted_images_are_predicted_by_folds_without_them():
    rng = np.random.default_rng(1)
    c, u, fitted = rng.normal(3, 2, (90, 4)) * (0.01, 1, 1000, 0) + 5, rng.normal(size=(90, 2)), np.arange(90) < 40
    found = residuals(u, c, fitted)

    def ridge(rows):
        scaler = StandardScaler().fit(c[rows])
        model = Ridge(alpha=RIDGE).fit(scaler.transform(c[rows]), u[rows])
        return lambda of: u[of] - model.predict(scaler.transform(c[of]))

    np.testing.assert_allclose(found[40:], ridge(np.arange(40))(np.arange(40, 90)), atol=1e-10)
    for row in range(40):
        changed = u.copy()
        changed[row] += 5
        again = residuals(changed, c, fitted)
        np.testing.assert_allclose(again[row], found[row] + 5, atol=1e-10), "the fit that predicts an image has not seen it"
        others = sum(np.allclose(again[other], found[other]) for other in range(40) if other != row)
        assert 40 // FOLDS - 1 <= others <= 40 // FOLDS, "those of its own fold"


def test_statistics_of_one_sign_are_taken_in_logarithms_that_keep_their_order():
    x = np.array([[1.0, 4.0], [9.0, 0.5]])
    np.testing.assert_array_equal(in_logarithms(x), np.log(x))
    np.testing.assert_array_equal(in_logarithms(-x), -np.log(x))
    for other in (x - 1, x * 0, np.array([[1.0, -1.0]])):
        np.testing.assert_array_equal(in_logarithms(other), other)


def test_statistics_that_are_logarithms_or_differences_already_are_taken_as_they_are():
    scores, c, member = planted(100)
    calibrate = divided(scores.ids, member, 0.2, 0).calibrate[0]
    given = replace(scores, statistic=np.log(scores.statistic) + 100, complexity=c, logarithmic=True)
    again = replace(scores, complexity=c)
    np.testing.assert_allclose(settled(given, member, calibrate).membership, settled(again, member, calibrate).membership, atol=1e-9)


def test_what_is_not_estimable_stays_so_where_the_same_scores_were_chosen():
    scores, c, member = planted(60, seed=3)
    split = divided(scores.ids, member, 0.2, 0)
    found = [each for each, _ in evaluate_calibrated(on_every_split(scores, member, split), features(c), member, split)]
    plain = [each for each in found if each.complexity == "plain"]
    assert plain and all(each.gain.auc.low == each.gain.auc.high == 0 for each in plain)
    assert all(each.gain.tpr_at_1pct.value is None and each.gain.tpr_at_1pct.reason for each in plain), "of 48 held-out images"


def test_test_labels_and_members_of_the_calibrate_part_are_never_fitted_to():
    scores, c, member = planted(100)
    calibrate = divided(scores.ids, member, 0.2, 0).calibrate[0]
    given = replace(scores, complexity=c)
    found = settled(given, member, calibrate).membership
    flipped = np.where(calibrate, member, ~member)
    np.testing.assert_array_equal(settled(given, flipped, calibrate).membership, found)
    changed = scores.statistic.copy()
    changed[calibrate & member] *= 7
    again = settled(replace(given, statistic=changed), member, calibrate).membership
    np.testing.assert_allclose(again[~(calibrate & member)], found[~(calibrate & member)], atol=1e-12)


@pytest.mark.parametrize("n", [400, 60], ids=["one split", "repeated splits"])
def test_a_leak_behind_complexity_is_found_and_the_gain_is_that_of_the_test_part(n):
    scores, c, member = planted(n, leak=1.5)
    split = divided(scores.ids, member, 0.5, 0)
    base = on_every_split(scores, member, split)
    evaluated = evaluate_calibrated(base, features(c), member, split)
    result, source = whole(evaluated)
    plain = evaluate_scores(scores, member, split)
    assert result.attack == "sima[calibrated]" and result.complexity in PARTS and source.complexity is not None
    assert result.base == "sima" and not result.plain and result.leads
    assert plain.auc.value < 0.72 < result.auc.value and result.gain.auc.low > 0
    if n == 400:
        test = ~split.calibrate[0]
        columns = settled(source, member, split.calibrate[0])
        aucs = [
            roc_auc_score(member[test], membership[test])
            for membership in (
                columns.membership[:, columns.keys.index(result.timestep)],
                scores.membership[:, TIMESTEPS.index(plain.timestep)],
            )
        ]
        assert result.auc.value == pytest.approx(aucs[0]) and result.gain.auc.value == pytest.approx(aucs[0] - aucs[1])
    table = samples([source], [result], member, split)
    assert np.isfinite(table.scores["sima[calibrated]"]).all()


def test_a_leak_behind_the_complexity_of_reconstructions_is_found_where_that_is_offered_too():
    scores, c, member = planted(400, leak=1.5)
    split = divided(scores.ids, member, 0.2, 0)
    base = on_every_split(scores, member, split)
    of_image = 0.3 * c + np.random.default_rng(7).normal(size=c.shape)
    offered = (features(of_image), features(of_image, c))
    with_own, with_both = (whole(evaluate_calibrated(base, each, member, split))[0] for each in offered)
    assert with_both.complexity == "reconstruction" and with_own.complexity in {PLAIN, *PARTS}
    assert with_both.auc.low > with_own.auc.high
    assert [PLAIN, *offered[1]] == list(WORDS), "every candidate has its words"


def test_a_candidate_is_chosen_where_the_paired_interval_on_the_calibrate_part_lies_above_zero_and_nowhere_else():
    rng, outcomes = np.random.default_rng(8), set()
    for shift in np.linspace(0, 1.5, 30):
        ids, member = cohort(60)
        calibrate = np.arange(len(ids)) < 60
        noise = rng.normal(size=(120, 2))
        plain, other = (Scores("x", "large", (0,), ids, noise[:, [i]] + by * member[:, None]) for i, by in enumerate((0.3, 0.3 + shift)))
        chosen = clearly_best_candidate([Candidate({}, plain), Candidate({}, other)], member, calibrate).scores
        both = np.concatenate([other.statistic, plain.statistic], axis=1)[calibrate]
        m, n = both[member[calibrate]], both[~member[calibrate]]
        wins = (m[:, None] > n[None]).astype(float)  # no ties: DeLong's components are means of these
        parts = [wins.mean(axis=axis) for axis in (1, 0)]
        spread = sum(np.var(part[:, 0] - part[:, 1], ddof=1) / len(part) for part in parts)
        clear = wins[..., 0].mean() - wins[..., 1].mean() > norm.ppf(0.975) * np.sqrt(spread)
        assert (chosen is other) == clear
        outcomes.add(bool(clear))
    assert outcomes == {True, False}


def test_where_complexity_explains_nothing_the_plain_attack_may_be_chosen_and_adds_nothing():
    scores, c, member = planted(150, leak=1.0, explained=0.0, seed=3)
    split = divided(scores.ids, member, 0.2, 0)
    result, source = whole(evaluate_calibrated(on_every_split(scores, member, split), features(c), member, split))
    assert abs(result.gain.auc.value) < 0.02
    if result.complexity == "plain":
        assert source.complexity is None and result.gain.auc.value == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "runs", "explained"),
    [(200, 40, 0.0), (200, 40, 3.0), (60, 6, 3.0)],
    ids=["no relation", "complexity alone", "complexity alone, repeated splits"],
)
def test_without_a_leak_calibrated_intervals_cover_one_half_as_often_as_they_say(n, runs, explained):
    held = []
    for seed in range(runs):
        scores, c, member = planted(n, seed=seed, explained=explained)
        split = divided(scores.ids, member, 0.5, seed)
        offered = features(c + np.random.default_rng(seed).normal(size=c.shape), c)  # of images, and of reconstructions that explain more
        auc = whole(evaluate_calibrated(on_every_split(scores, member, split), offered, member, split))[0].auc
        held.append(auc.low <= 0.5 <= auc.high)
    assert binom.cdf(sum(held), runs, metrics.LEVEL) > 1e-3
