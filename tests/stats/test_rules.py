"""Components become scores on the calibrate part: exactly which numbers, and that the test part has no say."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import RobustScaler

from diffleak.errors import UserError
from diffleak.records.scores import Scores
from diffleak.stats import rules
from diffleak.stats.evaluation import REPEATS, divided, evaluate_scores, headline, on_every_split, samples
from diffleak.stats.rules import RULES, column, needs_calibration, robust_scaled, settled


def planted(n=400, shifts=(1.0, 0.5), seed=0, rule="clid", scale=1.0):
    """Two components of n members and n others, members shifted."""
    rng = np.random.default_rng(seed)
    member = np.arange(2 * n) % 2 == 0
    components = (rng.normal(size=(2 * n, len(shifts))) + member[:, None] * np.array(shifts)) * np.array(scale)
    ids = tuple(f"i{k}" for k in range(2 * n))
    return Scores("clid", "large", tuple(range(len(shifts))), ids, components, rule), member


def test_robust_scaling_is_that_of_scikit_learn_fitted_on_the_calibrate_part():
    scores, _ = planted(scale=(1000.0, 1e-6))
    calibrate = np.arange(800) < 160
    expected = RobustScaler().fit(scores.statistic[calibrate]).transform(scores.statistic)
    np.testing.assert_allclose(robust_scaled(scores.statistic, calibrate), expected, rtol=1e-12, atol=1e-12)


def test_a_component_that_does_not_vary_on_the_calibrate_part_is_only_centred():
    x = np.array([[2.0], [2.0], [2.0], [5.0]])
    np.testing.assert_array_equal(robust_scaled(x, np.array([True, True, True, False])), [[0], [0], [0], [3]])


def test_clid_weighs_the_scaled_components_by_each_of_eleven_weights():
    scores, member = planted()
    calibrate = np.arange(800) < 160
    found = settled(scores, member, calibrate)
    assert found.keys == ("w=0", "w=0.1", "w=0.2", "w=0.3", "w=0.4", "w=0.5", "w=0.6", "w=0.7", "w=0.8", "w=0.9", "w=1")
    u, v = robust_scaled(scores.statistic, calibrate).T
    np.testing.assert_allclose(found.membership[:, 3], 0.7 * u + 0.3 * v, rtol=1e-12)
    np.testing.assert_array_equal(found.membership[:, 0], u)
    np.testing.assert_array_equal(found.membership[:, 10], v)


def test_the_weight_is_that_of_the_best_auc_on_the_calibrate_part_and_the_rest_is_read_there():
    scores, member = planted()
    split = divided(scores.ids, member, 0.2, 0)
    result, calibrate = evaluate_scores(scores, member, split), split.calibrate[0]
    columns = settled(scores, member, calibrate)
    aucs = [roc_auc_score(member[calibrate], c[calibrate]) for c in columns.membership.T]
    assert (result.timestep, result.setting, result.rule) == (None, columns.keys[int(np.argmax(aucs))], "clid")
    assert [(p.timestep, p.setting) for p in result.per_timestep] == [(None, key) for key in columns.keys]
    np.testing.assert_allclose([p.auc for p in result.per_timestep], aucs)
    chosen = column(scores, result, member, calibrate)
    assert result.auc.value == pytest.approx(roc_auc_score(member[~calibrate], chosen[~calibrate]))
    tested = [roc_auc_score(member[~calibrate], c[~calibrate]) for c in columns.membership.T]
    assert (result.oracle.timestep, result.oracle.setting) == (None, columns.keys[int(np.argmax(tested))])
    assert result.oracle.auc == pytest.approx(max(tested)) and result.oracle.auc >= result.auc.value
    assert headline([result]) == "clid"
    np.testing.assert_array_equal(samples([scores], [result], member, split).scores["clid"], chosen)


@pytest.mark.parametrize("better", [0, 1])
def test_the_weight_goes_to_the_component_that_tells_more(better):
    scores, member = planted(shifts=(3.0, 0.0) if better == 0 else (0.0, 3.0))
    result = evaluate_scores(scores, member, divided(scores.ids, member, 0.2, 0))
    weight = float(result.setting.removeprefix("w="))
    assert weight < 0.4 if better == 0 else weight > 0.6


def test_scores_and_labels_of_the_test_half_change_neither_the_setting_nor_the_scores_of_the_calibrate_part():
    scores, member = planted()
    split = divided(scores.ids, member, 0.2, 0)
    calibrate, rng = split.calibrate[0], np.random.default_rng(1)
    result = evaluate_scores(scores, member, split)
    disturbed, relabelled = scores.statistic.copy(), member.copy()
    disturbed[~calibrate] = 100 * rng.normal(size=disturbed[~calibrate].shape)
    relabelled[~calibrate] = rng.permutation(member[~calibrate])
    other = replace(scores, statistic=disturbed)
    for changed, labels in ((other, member), (scores, relabelled), (other, relabelled)):
        again = evaluate_scores(changed, labels, split)
        assert again.setting == result.setting and again.per_timestep == result.per_timestep
        np.testing.assert_array_equal(
            settled(changed, labels, calibrate).membership[calibrate], settled(scores, member, calibrate).membership[calibrate]
        )


def test_a_rule_is_given_the_labels_of_the_calibrate_part_alone(monkeypatch):
    scores, member = planted()
    given = []

    def watching(components, calibrate, labels, unit):
        given.append(labels)
        return rules.Columns(components[:, :1], (None,))

    monkeypatch.setitem(rules.RULES, "watching", watching)
    split = divided(scores.ids, member, 0.2, 0)
    evaluate_scores(replace(scores, rule="watching"), member, split)
    np.testing.assert_array_equal(given[0], member[split.calibrate[0]])


def test_small_sets_are_settled_anew_on_every_division_and_keep_the_weight_chosen_most_often():
    scores, member = planted(n=60)
    split = divided(scores.ids, member, 0.2, 0)
    each, result = [r for r, _ in on_every_split(scores, member, split)], evaluate_scores(scores, member, split)
    assert len(each) == REPEATS
    settings = [r.setting for r in each]
    assert len(set(settings)) > 1 and settings.count(result.setting) == max(map(settings.count, settings))
    assert result.auc.value == pytest.approx(np.median([r.auc.value for r in each]))
    assert [p.setting for p in result.per_timestep] == [p.setting for p in each[0].per_timestep]
    chosen = samples([scores], [result], member, split).scores["clid"]
    np.testing.assert_array_equal(chosen, column(scores, result, member, split.calibrate[0]))


def test_components_that_know_nothing_of_membership_give_an_auc_of_one_half():
    aucs, covered = [], 0
    for seed in range(60):
        scores, member = planted(n=200, shifts=(0.0, 0.0), seed=seed)
        auc = evaluate_scores(scores, member, divided(scores.ids, member, 0.2, seed)).auc
        aucs.append(auc.value)
        covered += auc.low <= 0.5 <= auc.high
    assert abs(np.mean(aucs) - 0.5) < 3.3 * 0.033 / np.sqrt(60)  # the standard error of one AUC of 160 a side
    assert covered >= 51  # nominally 57 of 60; fewer than 51 in one of 300 times


def test_one_number_per_image_has_neither_a_timestep_nor_a_setting_and_needs_no_calibrate_part():
    scores, member = planted(shifts=(1.0,), rule="as_is")
    for calibration in (True, False):
        result = evaluate_scores(scores, member, divided(scores.ids, member, 0.2, 0, calibration))
        assert (result.timestep, result.setting, result.rule, result.oracle.timestep) == (None, None, "as_is", None)
        assert len(result.per_timestep) == calibration
        split = divided(scores.ids, member, 0.2, 0, calibration)
        np.testing.assert_array_equal(samples([scores], [result], member, split).scores["clid"], scores.statistic[:, 0])


def test_the_direction_is_applied_before_a_rule():
    scores, member = planted(shifts=(1.0,), rule="as_is")
    mirrored = replace(scores, direction="small", statistic=-scores.statistic)
    split = divided(scores.ids, member, 0.2, 0)
    assert evaluate_scores(mirrored, member, split).auc == evaluate_scores(scores, member, split).auc


def test_components_without_a_calibrate_part_are_refused():
    scores, member = planted()
    with pytest.raises(UserError, match="clid is fitted on the calibrate part: leave out --no-calibration, or this attack"):
        evaluate_scores(scores, member, divided(scores.ids, member, 0.2, 0, calibration=False))


def test_a_classifier_scores_no_image_that_it_was_trained_on():
    """On noise, its AUC on the calibrate part is one half too, so that it is not chosen for having been trained there."""
    found = []
    for seed in range(20):
        scores, member = planted(n=50, shifts=(0.0,) * 20, seed=seed, rule="logistic")
        calibrate = np.arange(100) < 40
        membership = settled(scores, member, calibrate).membership[:, 0]
        found.append(roc_auc_score(member[calibrate], membership[calibrate]))
        with_other_labels = settled(scores, np.where(calibrate, member, ~member), calibrate).membership[:, 0]
        np.testing.assert_array_equal(membership, with_other_labels)
    assert abs(np.mean(found) - 0.5) < 0.1
    scores, member = planted(n=200, shifts=(2.0, 0.0), rule="logistic")
    membership = settled(scores, member, np.arange(400) < 100).membership[:, 0]
    assert roc_auc_score(member, membership) > 0.85


def test_a_classifier_needs_two_calibration_images_of_each_side():
    scores, member = planted(n=10, shifts=(1.0, 0.0), rule="logistic")
    with pytest.raises(UserError, match="needs two calibration images of each side; raise --calibrate-fraction"):
        settled(scores, member, np.arange(20) < 3)


def test_the_mean_is_of_all_components_and_takes_nothing_from_the_calibrate_part():
    statistic = np.random.default_rng(0).normal(size=(20, 5))
    scores = Scores("pfami", "large", tuple(range(5)), tuple(map(str, range(20))), statistic, "mean")
    columns = settled(scores, np.arange(20) < 10, np.zeros(20, dtype=bool))
    np.testing.assert_allclose(columns.membership[:, 0], statistic.mean(axis=1), atol=1e-12)
    assert columns.keys == (None,) and not any(map(needs_calibration, (None, "as_is", "mean"))) and needs_calibration("clid")


def test_a_classifier_is_scaled_by_the_calibrate_part_alone():
    rng = np.random.default_rng(1)
    member, calibrate = np.arange(60) % 2 == 0, np.arange(60) < 30
    statistic = rng.normal(size=(60, 3)) + member[:, None]
    wild = statistic.copy()
    wild[45:] *= 1000
    ids = tuple(map(str, range(60)))
    one, other = (settled(Scores("b", "large", (0, 1, 2), ids, s, "logistic"), member, calibrate).membership for s in (statistic, wild))
    np.testing.assert_array_equal(one[:45], other[:45])


def test_a_regression_is_fitted_once_for_the_scores_and_for_their_calibration(monkeypatch):
    calls, rng = [], np.random.default_rng(5)
    member, calibrate = np.arange(80) % 2 == 0, np.arange(80) < 40
    logistic = RULES["logistic"]
    monkeypatch.setitem(RULES, "logistic", lambda *given: calls.append(1) or logistic(*given))
    scores = Scores("x", "large", (0, 1), tuple(map(str, range(80))), rng.normal(size=(80, 2)), "logistic")
    plain = settled(scores, member, calibrate)
    settled(replace(scores, attack="x[calibrated]", complexity=rng.normal(size=(80, 7))), member, calibrate)
    assert len(calls) == 1
    other = settled(replace(scores, statistic=scores.statistic + np.arange(2)), member, calibrate)
    assert len(calls) == 2 and other.membership.shape == plain.membership.shape


def test_a_test_image_that_lacks_a_component_has_no_score_of_a_regression_and_changes_no_other():
    scores, member = planted(n=100, rule="logistic")
    calibrate = np.arange(200) < 80
    whole = settled(scores, member, calibrate).membership
    lacking = scores.statistic.copy()
    lacking[150, 1] = np.nan
    found = settled(replace(scores, statistic=lacking), member, calibrate).membership
    assert np.isnan(found[150]).all()
    np.testing.assert_array_equal(np.delete(found, 150, axis=0), np.delete(whole, 150, axis=0))


def test_a_component_that_does_not_vary_on_the_calibrate_part_adds_nothing_to_a_regression():
    scores, member = planted(n=100, rule="logistic")
    calibrate = np.arange(200) < 80
    more = replace(scores, timesteps=(0, 1, 2), statistic=np.column_stack([scores.statistic, np.full(200, 7.0)]))
    expected = settled(scores, member, calibrate).membership
    np.testing.assert_allclose(settled(more, member, calibrate).membership, expected, rtol=1e-6, atol=1e-9)


def test_two_images_of_each_side_suffice_for_a_regression_and_one_does_not():
    scores, member = planted(n=100, rule="logistic")
    two = np.isin(np.arange(200), (0, 1, 2, 3))
    assert np.isfinite(settled(scores, member, two).membership).all()
    for fewer in ((0, 1, 2), (0, 2, 4), (1, 3, 5)):  # members are the even ones
        with pytest.raises(UserError, match="needs two calibration images of each side"):
            settled(scores, member, np.isin(np.arange(200), fewer))
