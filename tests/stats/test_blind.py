"""Can the sides be told apart without the model? Level, power and what follows for the verdict, from 10 images a side."""

import itertools

import numpy as np
import pytest
import torch
from fixtures.reports import audit_of
from scipy.ndimage import gaussian_filter
from scipy.stats import binom, mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

import diffleak
from diffleak.data.features import CLASSIFIED, FEATURES, image_features, names
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.records.audit import AuditRecord, Blind
from diffleak.records.base import Estimate
from diffleak.report import verdict
from diffleak.stats import blind, metrics
from diffleak.stats.blind import finding, labels_p_value
from diffleak.stats.inquiry import upper_tail
from diffleak.stats.metrics import auc_deviation


def sides(members, nonmembers):
    return np.arange(members + nonmembers) < members


def pictures(n, rng, brightness=0.0, noise=2.0, blur=0.6, size=16):
    """Smooth random scenes as one camera takes them: its exposure, its noise and its lens."""
    scenes = gaussian_filter(rng.normal(size=(n, size, size, 3)), (0, 2, 2, 0)) * 320 + 120 + 10 * rng.normal(size=(n, 1, 1, 3))
    taken = gaussian_filter(scenes, (0, blur, blur, 0)) + brightness + noise * rng.normal(size=scenes.shape)
    return np.clip(np.rint(taken), 0, 255).astype(np.uint8)


def features(images):
    return np.stack([image_features(image) for image in images])


# --- the test ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "nonmembers"), [(10, 10), (30, 12)], ids=str)
def test_sides_of_one_source_are_called_different_no_more_often_than_the_level_says(members, nonmembers):
    rng, runs, p = np.random.default_rng(members), 400, []
    for seed in range(runs):
        drawn = rng.normal(size=(members + nonmembers, 4)) @ rng.normal(size=(4, 6))
        drawn[:, 5] = drawn[:, 5] > 1  # a statistic with many ties
        p.append(blind.permutation_test(drawn, sides(members, nonmembers), seed, permutations=199).p_value)
    for level in (blind.INVALID_P, 0.05, 0.3):
        called = np.mean(np.array(p) <= level)
        assert called <= level + 3 * np.sqrt(level * (1 - level) / runs)
    assert np.mean(np.array(p) <= 0.3) > 0.2  # and it is not just a test that never calls


def test_p_is_the_share_of_all_divisions_that_do_as_well():
    rng = np.random.default_rng(5)
    drawn, member = rng.normal(size=(10, 3)) + 0.9 * sides(5, 5)[:, None], sides(5, 5)
    pairs = drawn[:, None] > drawn[None]  # AUC by counting pairs
    best = lambda rows: max(abs(pairs[list(rows)][:, [i for i in range(10) if i not in rows], k].mean() - 0.5) for k in range(3))
    assert best(range(5)) == pytest.approx(max(abs(roc_auc_score(member, drawn[:, k]) - 0.5) for k in range(3)))
    every = np.array([best(rows) for rows in itertools.combinations(range(10), 5)])
    exact = np.mean(every >= best(range(5)) - 1e-12)
    found = blind.permutation_test(drawn, member)
    assert 0.02 < exact < 0.9 and found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999))
    assert found.value == pytest.approx(0.5 + best(range(5)))


def test_of_one_statistic_it_is_the_exact_test_of_mann_and_whitney():
    rng = np.random.default_rng(6)
    for members, nonmembers in ((8, 12), (12, 8)):
        drawn, member = rng.normal(size=(20, 1)) + 0.8 * sides(members, nonmembers)[:, None], sides(members, nonmembers)
        exact = mannwhitneyu(drawn[member, 0], drawn[~member, 0], method="exact").pvalue
        assert blind.permutation_test(drawn, member).p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999))


@pytest.mark.parametrize(("members", "nonmembers"), [(12, 12), (30, 30), (20, 60)], ids=str)
def test_a_shift_of_the_detectable_auc_is_found_with_the_probability_that_is_said(members, nonmembers):
    rng, runs, found = np.random.default_rng(members), 160, 0
    member = sides(members, nonmembers)
    auc = blind.permutation_test(rng.normal(size=(len(member), 8)), member).detectable_auc
    for seed in range(runs):
        drawn = rng.normal(size=(len(member), 8))
        drawn[member, 3] += np.sqrt(2) * norm.ppf(auc)
        found += blind.permutation_test(drawn, member, seed, permutations=399).p_value <= blind.INVALID_P
    assert found / runs == pytest.approx(blind.POWER, abs=3 * np.sqrt(0.16 / runs) + 0.03)


def test_fewer_than_99_permutations_can_detect_nothing():
    drawn = np.random.default_rng(15).normal(size=(40, 8)) + 3 * sides(20, 20)[:, None]
    few, enough = (blind.permutation_test(drawn, sides(20, 20), permutations=permutations) for permutations in (98, 99))
    assert (few.p_value, few.detectable_auc) == (1 / 99, None) and few.p_value > blind.INVALID_P
    assert enough.p_value == blind.INVALID_P and 0.5 < enough.detectable_auc < 1


def test_statistics_that_never_vary_find_nothing_and_promise_no_power_for_it():
    found = blind.permutation_test(np.zeros((60, 8)), sides(30, 30))
    assert found.p_value == 1.0 and found.value == 0.5
    assert found.detectable_auc > 0.7


def test_the_check_names_the_statistic_that_differs():
    rng = np.random.default_rng(8)
    changed = {"noise": {"noise": 9.0}, "brightness": {"brightness": 60.0}}
    for statistic, other in changed.items():
        images = np.concatenate([pictures(20, rng), pictures(20, rng, **other)])
        found = blind.blind_auc(features(images), sides(20, 20))
        assert found.p_value <= blind.INVALID_P and statistic in found.statistic


def test_the_statistics_of_the_small_test_are_those_that_they_are_named_for():
    images = np.random.default_rng(14).integers(0, 256, (4, 12, 20, 3), dtype=np.uint8)
    measured = dict(zip(names(), features(images).T, strict=True))
    sharpness = (measured["sharpness across"] + measured["sharpness down"]) / 2
    expected = measured | {"sharpness": sharpness, "noise against sharpness": measured["noise"] / sharpness}
    found = dict(zip(blind.FEW_FEATURES, blind.few_features(features(images)).T, strict=True))
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], err_msg=name)
    assert np.isfinite(blind.few_features(np.zeros((2, FEATURES)))).all(), "flat images have neither noise nor sharpness"


@pytest.mark.parametrize(("m", "n"), [(12, 12), (10, 30), (40, 15)])
def test_the_detectable_auc_is_the_first_of_its_formula(m, n):
    """Above the largest of the critical value and that of one statistic without ties, by the exact variance where nothing differs."""
    probability = -np.diff(np.append(upper_tail(m, n), 0.0))
    null = np.sqrt(probability @ (np.arange(m * n + 1) / (m * n) - 0.5) ** 2)
    aucs = np.linspace(0.5, 1, 5001)[:-1]
    for critical in (0.0, 0.3):
        needed = 0.5 + max(critical, norm.isf(blind.INVALID_P / 2) * null)
        shown = norm.sf((needed - aucs) / auc_deviation(aucs, float(m), float(n))) >= blind.POWER
        assert blind.detectable(m, n, critical) == aucs[shown][0]
    assert blind.detectable(m, n, 0.5) is None and blind.detectable(2, 2, 0.0) is None


def test_the_classifier_is_validated_in_as_many_folds_as_its_interval_counts(monkeypatch):
    from sklearn import model_selection

    folds, original = [], model_selection.cross_val_predict
    keep = lambda *args, cv, **keys: folds.append(cv.get_n_splits()) or original(*args, cv=cv, **keys)
    monkeypatch.setattr(model_selection, "cross_val_predict", keep)
    blind.blind_auc(np.random.default_rng(16).normal(size=(100, FEATURES)), sides(50, 50))
    (k,) = folds
    assert (1 / k + 1 / (k - 1)) / (1 / k) == pytest.approx(blind.WIDER**2)


def test_the_interval_of_the_classifier_is_half_as_wide_again_and_stays_in_0_to_1():
    widened = lambda value, low, high: blind._widened(Estimate(value=value, low=low, high=high, method="DeLong"))
    usual, high, low = widened(0.7, 0.6, 0.78), widened(0.95, 0.9, 0.99), widened(0.04, 0.01, 0.1)
    assert (usual.low, usual.value, usual.high) == pytest.approx((0.55, 0.7, 0.82)) and "widened" in usual.method
    assert (high.low, high.high) == pytest.approx((0.875, 1.0)) and (low.low, low.high) == pytest.approx((0.0, 0.13))
    unknown = Estimate(value=0.7, reason="no interval")
    assert blind._widened(unknown) == unknown


def test_noise_and_colour_cast_measure_what_they_are_named_for():
    rng = np.random.default_rng(9)
    slope = 80 + 0.5 * np.arange(128)[:, None, None] + 0.25 * np.arange(128)[None, :, None] + np.zeros(3)
    for sigma in (3.0, 6.0):  # independent noise in three channels: sigma / sqrt 3 in their mean; Immerkaer's formula gives it back
        noisy = np.clip(np.rint(slope + sigma * rng.normal(size=slope.shape)), 0, 255).astype(np.uint8)
        measured = image_features(noisy)[-1] * 255 * np.sqrt(np.pi / 2) / 6
        assert measured == pytest.approx(sigma / np.sqrt(3), rel=0.08)
    warm = np.broadcast_to(np.array([200, 120, 100], np.uint8), (8, 8, 3))
    assert image_features(warm)[-2] == pytest.approx(100 / 255)
    assert image_features(warm[..., :1])[-2] == 0.0


def test_from_fifty_images_a_side_the_classifier_decides_and_does_not_see_the_statistics_of_the_small_test():
    rng = np.random.default_rng(10)
    drawn = rng.normal(size=(100, FEATURES))
    with_difference = drawn.copy()
    with_difference[:50, CLASSIFIED:] += 9.0
    found = blind.blind_auc(with_difference, sides(50, 50))
    assert found.p_value is None and found == blind.blind_auc(drawn, sides(50, 50))
    assert blind.blind_auc(drawn[1:], sides(49, 50)).p_value is not None


# --- what follows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (Blind(value=0.8, p_value=0.01), "different"),
        (Blind(value=0.7, p_value=0.011), "perhaps"),
        (Blind(value=0.6, p_value=0.051), "alike"),
        (Blind(value=0.7, low=0.61, high=0.8), "different"),
        (Blind(value=0.7, low=0.6, high=0.8), "perhaps"),
        (Blind(value=0.6, low=0.51, high=0.7), "perhaps"),
        (Blind(value=0.6, low=0.5, high=0.7), "alike"),
        (Blind(value=0.5, low=0.4, high=0.6), "alike"),
        (Blind(value=0.9, reason="no interval"), "unchecked"),
        (Blind(reason="needs >= 50 images a side, has 9"), "unchecked"),
    ],
)
def test_what_a_check_found(check, said):
    assert blind.finding(check) == said


RECORD, _ = audit_of({"sima": 3.0}, 30, warnings=(), omitted=())


def small(check, low=0.9):
    """A record of 30 images a side whose headline attack has this lower end."""
    record = RECORD.model_copy(update={"blind": check})
    result = record.results[0]
    auc = Estimate(value=(1 + low) / 2, low=low, high=1.0)
    return record.model_copy(update={"results": (result.model_copy(update={"auc": auc}),)})


def test_a_leak_stands_only_above_what_the_check_would_have_found():
    check = Blind(value=0.58, p_value=0.4, detectable_auc=0.79, statistic="noise")
    assert verdict(small(check, low=0.80)).level == "leak"
    judged = verdict(small(check, low=0.78))
    assert judged.level == "undecided" and judged.title.startswith("Undecided: ")
    text = " ".join(judged.sentences)
    assert "the best single pixel statistic (noise) picks the member 58 % of the time" in text
    assert "with probability 0.8, a difference by which a statistic picks the member 79 % of the time or more" in text
    assert "audit more images of each side" in text


def test_what_a_check_can_have_missed_may_explain_an_auc():
    check = Blind(value=0.6, p_value=0.4, detectable_auc=0.8)
    assert blind.may_explain(check, 0.79) and not blind.may_explain(check, 0.8)
    nothing_shown = Blind(value=0.6, p_value=0.4)
    assert blind.may_explain(nothing_shown, 0.99) and not blind.may_explain(nothing_shown, 1.0)
    assert blind.may_explain(Blind(reason="has 9"), 1.0) and not blind.may_explain(Blind(value=0.5, low=0.4, high=0.6), 0.55)


def test_a_verdict_whose_check_was_never_made_is_undecided_with_a_leak_and_without():
    check = Blind(reason="needs >= 50 images a side, has 30")
    for low in (0.95, 0.45, 0.1):
        judged = verdict(small(check, low=low))
        assert judged.level == "undecided" and "it was not checked whether the two sides come from one source" in judged.title


def test_a_record_of_version_0_1_is_read_and_its_check_is_not_taken_for_one():
    record, _ = audit_of({"sima": 1.0}, 30)
    content = record.model_dump(mode="json")
    content["blind"] = {"value": None, "low": None, "high": None, "method": None, "reason": "needs >= 50 images a side, has 30"}
    for key in ("gates", "valid", "invalid_reason"):
        del content[key]
    assert verdict(AuditRecord.model_validate(content)).level == "undecided"


@pytest.mark.parametrize("auc", [0.65, 0.75, 0.8, 0.85, 0.9])
@pytest.mark.parametrize("same", [True, False], ids=["the attack reads the statistic", "the attack reads another"])
def test_a_difference_of_the_sources_alone_is_hardly_ever_called_a_leak(auc, same):
    """The sides differ by one statistic, and the attack's score is that one, or another that differs as much; no model saw any."""
    rng, runs, called, decided = np.random.default_rng(13), 60, 0, 0
    member, shift = sides(30, 30), np.sqrt(2) * norm.ppf(auc)
    for seed in range(runs):
        drawn = rng.normal(size=(60, 8))
        drawn[member, 2] += shift
        score = drawn[:, 2] if same else rng.normal(size=60) + shift * member
        check = blind.permutation_test(drawn, member, seed, permutations=399)
        attack = metrics.auc_estimate(score[member][6:], score[~member][6:])
        record = small(check)
        record = record.model_copy(update={"results": (record.results[0].model_copy(update={"auc": attack}),)})
        level = verdict(record).level
        called, decided = called + (level == "leak"), decided + (attack.low > 0.5)
    assert called <= 0.05 * runs
    assert decided > 0.3 * runs  # without the check most of these were leaks


@pytest.mark.parametrize("camera", [{"brightness": -40.0}, {"noise": 6.0}, {"brightness": -14.0, "blur": 0.9}], ids=str)
def test_thirty_pictures_of_another_camera_that_no_model_saw_are_undecided_or_invalid(camera):
    rng = np.random.default_rng(11)
    naive = diffleak.Denoiser.from_function(lambda x, t: x, linear_schedule().alphas_cumprod)
    one, other = pictures(30, rng, size=8), pictures(30, rng, size=8, **camera)
    audits = [
        diffleak.audit(naive, members=pair[0], nonmembers=pair[1], attacks="loss", timesteps="100", device="cpu")
        for pair in ((one, other), (other, one))
    ]
    assert {verdict(audit.record).level for audit in audits} <= {"invalid", "undecided", "no-leak-found"}
    assert "invalid" in {verdict(audit.record).level for audit in audits} or any(a.record.results[0].auc.low > 0.5 for a in audits)


def test_thirty_pictures_of_one_camera_that_the_model_memorised_are_still_a_leak():
    rng = np.random.default_rng(12)
    members, nonmembers = pictures(30, rng, size=8), pictures(30, rng, size=8)
    seen = torch.from_numpy(members.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1).double()
    audit = diffleak.audit(
        Memoriser(seen, linear_schedule()), members=members, nonmembers=nonmembers, attacks="sima", timesteps="50:150:50"
    )
    assert audit.record.results[0].auc.value == 1.0 and audit.record.blind.p_value > 0.05
    assert verdict(audit.record).level == "leak" and audit.record.valid


def test_the_p_value_of_classes_is_exact_under_the_null_and_small_where_the_class_gives_the_side_away():
    rng, held = np.random.default_rng(8), []
    member = np.repeat([True, False], [40, 60])
    for seed in range(300):
        labels = rng.choice(5, size=100, p=[0.4, 0.3, 0.2, 0.07, 0.03])
        held.append(labels_p_value(labels, member, seed, permutations=199) <= 0.05)
    assert binom.sf(sum(held) - 1, 300, 0.05) > 1e-3
    assert labels_p_value(np.where(member, 1, 7), member) == 1e-4
    assert labels_p_value(np.zeros(100, dtype=np.int64), member) == 1
    renamed = np.array([10, 2, 33, 0, 7])
    assert all(labels_p_value(labels, member, s) == labels_p_value(renamed[labels], member, s) for s in range(3)), "names decide nothing"
    few = np.array([0, 0, 1, 1, 1])  # of the 10 ways to choose 2 of 5, one has both of class 0
    sides = np.array([True, True, False, False, False])
    assert labels_p_value(few, sides, permutations=9999) == pytest.approx(0.1, abs=0.02)


def test_the_p_value_of_classes_is_the_share_of_all_divisions_whose_statistic_is_as_large():
    labels, member = np.array([0] * 2 + [1] * 3 + [5] * 7), np.isin(np.arange(12), [0, 1, 5, 6, 7])
    sizes = {0: 2, 1: 3, 5: 7}

    def statistic(chosen):
        return sum((np.sum(labels[list(chosen)] == c) - n * 5 / 12) ** 2 / (n * 5 / 12) for c, n in sizes.items())

    every = np.array([statistic(chosen) for chosen in itertools.combinations(range(12), 5)])
    for each in (member, np.isin(np.arange(12), [0, 2, 3, 4, 5]), np.isin(np.arange(12), range(5, 10))):
        exact = np.mean(every >= statistic(np.flatnonzero(each)) - 1e-9)
        assert labels_p_value(labels, each) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999) + 1e-4)


def test_classes_that_tell_the_sides_apart_make_an_audit_invalid_whatever_the_pixels_say():
    alike = Blind(value=0.5, low=0.45, high=0.55, labels_p_value=0.3)
    assert finding(alike) == "alike" and finding(alike.model_copy(update={"labels_p_value": 0.01})) == "different"


def test_the_smaller_side_is_redrawn_from_all_images_without_repeats_and_the_same_draws_serve_the_next_audit():
    rows, runs = blind._redrawn(7, 3, 0, 5000), 5000
    assert rows.shape == (runs, 3) and (np.diff(np.sort(rows, axis=1), axis=1) > 0).all()
    drawn, share = np.bincount(rows.ravel()), 3 / 7
    assert len(drawn) == 7 and (np.abs(drawn - runs * share) < 4.5 * np.sqrt(runs * share * (1 - share))).all()
    assert blind._redrawn(7, 3, 0, 5000) is rows and not rows.flags.writeable and (blind._redrawn(7, 3, 1, 5000) != rows).any()
