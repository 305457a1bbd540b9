"""Calibrate chooses, test is read once: which rows decide what, and what the public `evaluate` refuses."""

import hashlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import diffleak
from diffleak.data import draw
from diffleak.data.draw import calibrate_part
from diffleak.errors import UserError
from diffleak.records.audit import Accuracy, AchievedFPR, AUCAt, Gain, Oracle, RateAtFNR, RateAtFPR, Result
from diffleak.records.base import MOST_OFTEN, Estimate, Record
from diffleak.records.scores import Scores
from diffleak.stats import metrics
from diffleak.stats.evaluation import (
    REPEATS,
    SMALL_SIDE,
    Divisions,
    _best_oracle,
    divided,
    evaluate,
    evaluate_masked,
    evaluate_reference,
    evaluate_scores,
    gain,
    headline,
    on_every_split,
    on_first_split,
    over_repeats,
    samples,
    whole,
)


def cohort(m, n, seed=0):
    """Ids and labels in a shuffled order."""
    ids = np.array([f"m{i}" for i in range(m)] + [f"n{i}" for i in range(n)])
    order = np.random.default_rng(seed).permutation(m + n)
    return tuple(ids[order].tolist()), np.repeat([True, False], [m, n])[order]


def shifted(ids, member, shifts, seed=0, direction="large", attack="planted", timesteps=None):
    """Unit-variance scores whose members are shifted by shifts[k] at timestep k."""
    noise = np.random.default_rng(seed).normal(size=(len(ids), len(shifts)))
    membership = noise + member[:, None] * np.asarray(shifts, dtype=float)
    statistic = membership if direction == "large" else -membership
    return Scores(attack, direction, timesteps or tuple(range(10, 10 * len(shifts) + 10, 10)), ids, statistic)


def auc_of(membership, member):
    return roc_auc_score(member, membership)


# direction


def test_a_statistic_that_is_small_for_members_is_negated_and_a_large_one_is_not():
    ids, _ = cohort(3, 2)
    statistic = np.arange(5.0)[:, None]
    assert Scores("a", "small", (1,), ids, statistic).membership.tolist() == (-statistic).tolist()
    assert Scores("a", "large", (1,), ids, statistic).membership.tolist() == statistic.tolist()


def test_the_direction_is_applied_once_all_the_way_to_the_result():
    ids, member = cohort(300, 300)
    large, small = (shifted(ids, member, [1.0, 0.2], direction=d) for d in ("large", "small"))
    split = divided(ids, member, 0.2, 0)
    ours, mirrored = evaluate_scores(small, member, split), evaluate_scores(large, member, split)
    assert (ours.direction, mirrored.direction) == ("small", "large")
    assert ours.model_dump(exclude={"direction"}) == mirrored.model_dump(exclude={"direction"})
    assert ours.auc.value > 0.6
    table = samples([small], [ours], member, split)
    np.testing.assert_array_equal(table.scores["planted"], -small.statistic[:, 0])


def test_an_attack_in_the_wrong_direction_is_reported_below_one_half_and_not_flipped():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(-2, 1, 300), rng.normal(0, 1, 300)
    result = evaluate(members, nonmembers)
    assert result.auc.value == pytest.approx(auc_of(np.r_[members, nonmembers], np.repeat([1, 0], 300)))
    assert result.auc.high < 0.4
    assert result.tpr_at_fpr[0].value < 0.05
    assert result.asr.value < 0.6


# the calibrate part


@pytest.mark.parametrize(("m", "n"), [(500, 500), (200, 333), (60, 41), (10, 10)])
def test_the_calibrate_part_is_twenty_percent_of_each_side(m, n):
    ids, member = cohort(m, n)
    half = calibrate_part(ids, member, 0.2, 0)
    assert half[member].sum() == round(0.2 * m)
    assert half[~member].sum() == round(0.2 * n)


@pytest.mark.parametrize("most", [None, 5, 400])
def test_the_calibrate_part_is_the_first_of_each_side_in_the_order_of_the_hashes(most):
    ids = tuple(f"bild-ä{i}.png" for i in range(300))
    member = np.arange(300) % 3 == 0
    expected = np.zeros(300, dtype=bool)
    for side, size in ((True, 20), (False, 40)):
        digests = {
            hashlib.blake2b(f"calibrate\0007\0002\0{ids[i]}".encode(), digest_size=16).digest(): i for i in np.flatnonzero(member == side)
        }
        expected[[digests[key] for key in sorted(digests)][: min(size, most or size)]] = True
    assert calibrate_part(ids, member, 0.2, 7, 2, most).tolist() == expected.tolist()
    assert calibrate_part(ids, member, 0.0, 7).sum() == 0


def test_hashes_that_begin_alike_are_ordered_by_what_follows(monkeypatch):
    digests = [bytes(7) + bytes([1]) + bytes(7) + bytes([last]) for last in (5, 3, 9, 1)]
    monkeypatch.setattr(draw, "_keyed", lambda ids, *key: iter(digests[: len(ids)]))
    assert sorted(draw._first_keyed("abcd", 2)) == [1, 3]


def test_the_calibrate_part_does_not_depend_on_the_order_of_the_images():
    ids, member = cohort(300, 200)
    order = np.random.default_rng(1).permutation(500)
    reordered = calibrate_part(tuple(ids[i] for i in order), member[order], 0.2, 0)
    np.testing.assert_array_equal(reordered, calibrate_part(ids, member, 0.2, 0)[order])


@pytest.mark.parametrize("other", [{"seed": 1}, {"repeat": 1}])
def test_another_seed_or_repeat_gives_another_calibrate_part(other):
    ids, member = cohort(300, 200)
    base = calibrate_part(ids, member, 0.2, 0)
    changed = calibrate_part(ids, member, 0.2, **{"seed": 0, **other})
    # independent draws of 20 % share about a fifth of their rows
    assert 0.05 < np.mean(changed[base]) < 0.45


def test_the_calibrate_part_is_no_block_of_consecutive_ids():
    ids = tuple(f"{i:05d}" for i in range(1000))
    half = calibrate_part(ids, np.ones(1000, dtype=bool), 0.2, 0)
    counts = half.reshape(10, 100).sum(axis=1)
    assert counts.sum() == 200
    assert counts.min() >= 5


def test_removing_an_image_moves_few_others_between_the_divided():
    ids, member = cohort(300, 300)
    keep = np.arange(600) != 17
    fewer = calibrate_part(tuple(i for i, k in zip(ids, keep, strict=True) if k), member[keep], 0.2, 0)
    assert np.sum(fewer != calibrate_part(ids, member, 0.2, 0)[keep]) <= 2


def test_large_sets_are_split_once_and_small_ones_repeatedly():
    for m, n, repeats in ((SMALL_SIDE, SMALL_SIDE, 1), (SMALL_SIDE - 1, 400, REPEATS), (400, SMALL_SIDE - 1, REPEATS)):
        split = divided(*cohort(m, n), 0.2, 3)
        assert split.record.repeats == repeats
        assert split.calibrate.shape == (repeats, m + n)
        assert len(np.unique(split.calibrate, axis=0)) == repeats
        record = split.record
        assert (record.members, record.nonmembers, record.seed) == (m, n, 3)
        assert (record.calibrate_members, record.calibrate_nonmembers) == (round(0.2 * m), round(0.2 * n))
    assert SMALL_SIDE == 200


def test_without_calibration_every_image_is_in_the_test_half():
    split = divided(*cohort(50, 60), 0.2, 0, calibration=False)
    assert not split.calibrate.any()
    assert (split.record.repeats, split.record.calibrate_fraction, split.record.calibrate_members) == (1, 0.0, 0)


# one split


def planted(m=400, n=400):
    """Timestep 10 works on calibrate only, timestep 20 on test only."""
    ids, member = cohort(m, n)
    split = divided(ids, member, 0.2, 0)
    rows = split.calibrate[0]
    membership = np.random.default_rng(2).normal(size=(m + n, 3))
    membership[rows & member, 0] += 2
    membership[~rows & member, 1] += 2
    return Scores("planted", "large", (10, 20, 30), ids, membership), member, split


def test_the_timestep_is_picked_on_calibrate_and_only_the_oracle_looks_at_test():
    scores, member, split = planted()
    result, rows = evaluate_scores(scores, member, split), split.calibrate[0]
    assert result.timestep == 10
    assert result.auc.value == pytest.approx(auc_of(scores.membership[~rows, 0], member[~rows]))
    assert result.auc.value < 0.6
    assert result.oracle.timestep == 20
    assert result.oracle.auc == pytest.approx(auc_of(scores.membership[~rows, 1], member[~rows]))
    assert result.oracle.auc > 0.85
    assert [p.timestep for p in result.per_timestep] == [10, 20, 30]
    for i, point in enumerate(result.per_timestep):
        assert point.auc == pytest.approx(auc_of(scores.membership[rows, i], member[rows]))


def test_every_rate_and_count_is_of_the_test_half():
    scores, member, split = planted()
    result, rows = evaluate_scores(scores, member, split), split.calibrate[0]
    column = scores.membership[:, 0]
    m, n = column[~rows & member], column[~rows & ~member]
    assert (result.n_members, result.n_nonmembers) == (len(m), len(n)) == (320, 320)
    assert result.auc == metrics.auc_estimate(m, n)
    assert result.tpr_at_fpr == tuple(metrics.tpr_at_fpr(m, n, a) for a in (0.1, 0.01, 0.001))
    assert result.tnr_at_fnr == tuple(metrics.tnr_at_fnr(m, n, a) for a in (0.1, 0.01, 0.001))


def test_the_thresholds_are_chosen_on_calibrate_and_counted_on_test():
    scores, member, split = planted()
    result, rows = evaluate_scores(scores, member, split), split.calibrate[0]
    column = scores.membership[:, 0]
    cal_m, cal_n, m, n = column[rows & member], column[rows & ~member], column[~rows & member], column[~rows & ~member]

    def accuracy(c, members, nonmembers):
        return (np.sum(members > c) + np.sum(nonmembers <= c)) / (len(members) + len(nonmembers))

    best = max(accuracy(c, cal_m, cal_n) for c in np.r_[cal_m, cal_n])
    assert accuracy(result.asr.threshold, cal_m, cal_n) == pytest.approx(best)
    assert result.asr.value == pytest.approx(accuracy(result.asr.threshold, m, n))
    kth = np.sort(cal_n)[-9]  # above it are floor(0.1 * 80)
    assert (result.achieved_fpr.target, result.achieved_fpr.threshold) == (0.1, kth)
    assert result.achieved_fpr.value == pytest.approx(np.mean(n > kth))


def test_scores_of_the_test_half_do_not_influence_any_choice():
    scores, member, split = planted()
    before, rows = evaluate_scores(scores, member, split), split.calibrate[0]
    changed = scores.statistic.copy()
    changed[~rows] = np.random.default_rng(9).normal(size=changed[~rows].shape) * 50
    after = evaluate_scores(Scores("planted", "large", scores.timesteps, scores.ids, changed), member, split)
    assert (after.timestep, after.per_timestep, after.asr.threshold) == (before.timestep, before.per_timestep, before.asr.threshold)
    assert after.achieved_fpr.threshold == before.achieved_fpr.threshold
    assert after.auc != before.auc


def test_scores_of_the_calibrate_part_do_not_influence_the_numbers_of_a_single_timestep():
    ids, member = cohort(300, 300)
    scores, split = shifted(ids, member, [1.0]), divided(ids, member, 0.2, 0)
    changed = scores.statistic.copy()
    changed[split.calibrate[0]] *= -3
    before, after = (evaluate_scores(s, member, split) for s in (scores, Scores("planted", "large", (10,), ids, changed)))
    assert (after.auc, after.tpr_at_fpr, after.tnr_at_fnr, after.oracle) == (
        before.auc,
        before.tpr_at_fpr,
        before.tnr_at_fnr,
        before.oracle,
    )


def test_the_oracle_takes_each_maximum_over_the_timesteps_separately():
    ids, member = cohort(400, 1500)
    membership = np.random.default_rng(3).normal(size=(1900, 2))
    membership[member, 0] += 1.2  # best AUC
    membership[np.flatnonzero(member)[::5], 1] += 9  # best TPR at 1 % FPR
    split = divided(ids, member, 0.2, 0)
    result, rows = evaluate_scores(Scores("a", "large", (10, 20), ids, membership), member, split), ~split.calibrate[0]
    columns = [(membership[rows & member, i], membership[rows & ~member, i]) for i in (0, 1)]
    assert result.oracle.timestep == 10
    assert result.oracle.auc == pytest.approx(max(metrics.auc(*c) for c in columns))
    rates = [metrics.tpr_at_fpr(*c, 0.01).value for c in columns]
    assert rates[1] > rates[0]
    assert (result.oracle.tpr_at_1pct, result.oracle.reason) == (rates[1], None)
    assert result.oracle.asr == pytest.approx(max(metrics.best_accuracy(*c)[1] for c in columns))


def test_without_a_calibrate_part_the_accuracy_is_null_and_says_why():
    ids, member = cohort(250, 250)
    result = evaluate_scores(shifted(ids, member, [1.0], timesteps=(200,)), member, divided(ids, member, 0.2, 0, calibration=False))
    assert result.timestep == 200
    assert (result.n_members, result.n_nonmembers, result.per_timestep) == (250, 250, ())
    for estimate in (result.asr, result.achieved_fpr):
        assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
        assert "no calibrate part" in estimate.reason


def test_a_sweep_without_a_calibrate_part_is_refused():
    ids, member = cohort(250, 250)
    with pytest.raises(UserError, match="planted: without a calibrate part there must be one timestep; got 2"):
        evaluate_scores(shifted(ids, member, [1, 1]), member, divided(ids, member, 0.2, 0, calibration=False))


# repeated splits


def test_small_sets_report_medians_over_the_repeated_splits():
    ids, member = cohort(90, 70)
    scores = shifted(ids, member, [0.3, 1.0, 0.9], seed=4)
    split = divided(ids, member, 0.2, 0)
    result = evaluate_scores(scores, member, split)
    values = {"auc": [], "low": [], "tpr": [], "asr": [], "fpr": [], "oracle": [], "steps": [], "calibrate": []}
    for rows in split.calibrate:
        columns = scores.membership
        calibrate = [auc_of(columns[rows, i], member[rows]) for i in range(3)]
        chosen = int(np.argmax(calibrate))
        m, n = columns[~rows & member, chosen], columns[~rows & ~member, chosen]
        threshold, _ = metrics.best_accuracy(columns[rows & member, chosen], columns[rows & ~member, chosen])
        values["auc"].append(auc_of(np.r_[m, n], np.repeat([1, 0], [len(m), len(n)])))
        values["low"].append(metrics.auc_estimate(m, n).low)
        values["tpr"].append(np.mean(m > np.sort(n)[-6]))  # above it are floor(0.1 * 56)
        values["asr"].append((np.sum(m > threshold) + np.sum(n <= threshold)) / (len(m) + len(n)))
        values["fpr"].append(np.mean(n > np.sort(columns[rows & ~member, chosen])[-2]))  # above it is floor(0.1 * 14)
        values["oracle"].append(max(auc_of(columns[~rows, i], member[~rows]) for i in range(3)))
        values["steps"].append(scores.timesteps[chosen])
        values["calibrate"].append(calibrate)
    assert len(set(values["steps"])) > 1
    assert result.timestep == max(set(values["steps"]), key=values["steps"].count)
    assert result.auc.value == pytest.approx(np.median(values["auc"]))
    assert result.auc.low == pytest.approx(np.median(values["low"]))
    assert result.tpr_at_fpr[0].value == pytest.approx(np.median(values["tpr"]))
    assert result.asr.value == pytest.approx(np.median(values["asr"]))
    assert result.achieved_fpr.value == pytest.approx(np.median(values["fpr"]))
    assert result.oracle.auc == pytest.approx(np.median(values["oracle"]))
    assert [p.auc for p in result.per_timestep] == pytest.approx(np.median(values["calibrate"], axis=0).tolist())
    assert (result.n_members, result.n_nonmembers) == (72, 56)


def numbers_of(record, path=()):
    """The path of every number in a record, however deep, with whether its field says that it is the value chosen most often."""
    for name, field in type(record).model_fields.items():
        value, marked = getattr(record, name), MOST_OFTEN in field.metadata
        for i, item in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            where = (*path, name) if i is None else (*path, name, i)
            if isinstance(item, Record):
                yield from numbers_of(item, where)
            elif isinstance(item, int | float) and not isinstance(item, bool):
                yield where, marked


def at(record, path):
    for step in path:
        record = record[step] if isinstance(step, int) else getattr(record, step)
    return record


def replaced(record, path, value):
    if not path:
        return value
    head, *rest = path
    if isinstance(head, int):
        return tuple(replaced(item, rest, value) if i == head else item for i, item in enumerate(record))
    return record.model_copy(update={head: replaced(getattr(record, head), rest, value)})


def full_result():
    """A result in which no number is null."""
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "method": "m"}
    gain = Gain(**dict.fromkeys(("auc", "asr", "tpr_at_1pct"), Estimate(**estimate)))
    rates = tuple(RateAtFPR(**estimate, fpr=a, support="ok") for a in (0.1, 0.01))
    return Result(
        attack="a", mask_ratio=0.4, gain=gain, queries=30, queries_at_timestep=1, timestep=10, auc=Estimate(**estimate), tpr_at_fpr=rates,
        tnr_at_fnr=(RateAtFNR(**estimate, fnr=0.1, support="ok"),), asr=Accuracy(**estimate, baseline=0.5, threshold=0.1),
        achieved_fpr=AchievedFPR(**estimate, target=0.1, threshold=0.2), oracle=Oracle(timestep=20, auc=0.7, asr=0.6, tpr_at_1pct=0.1),
        n_members=80, n_nonmembers=80, per_timestep=(AUCAt(timestep=10, auc=0.6), AUCAt(timestep=20, auc=0.7)),
    )  # fmt: skip


MARKED = {("mask_ratio",), ("timestep",), ("oracle", "timestep")}


def test_every_number_of_a_result_is_a_median_over_repeated_splits_unless_its_field_says_otherwise():
    base, seen = full_result(), set()
    for path, marked in numbers_of(base):
        kind = type(at(base, path))
        results = [replaced(base, path, kind(value)) for value in (7, 1, 1, 9, 5)]
        assert at(over_repeats(results), path) == (1 if marked else 5), path
        assert replaced(over_repeats(results), path, at(base, path)) == base, f"{path} changes nothing else"
        seen |= {path} if marked else set()
    assert seen == MARKED
    every = {
        f for record in (Result, Estimate, RateAtFPR, RateAtFNR, Accuracy, AchievedFPR, Oracle, AUCAt, Gain) for f in record.model_fields
    }
    walked = {step for path, _ in numbers_of(base) for step in path}
    texts = {
        "attack",
        "mask",
        "variant",
        "complexity",
        "access",
        "parameters",
        "setting",
        "rule",
        "direction",
        "convention",
        "method",
        "reason",
        "support",
    }
    assert walked - set(range(9)) == every - texts, "a new field is in full_result, or is no number"


def test_a_number_that_some_split_lacks_is_null_with_a_reason_and_methods_that_differ_are_all_named():
    one, other = Estimate(value=1.0, low=0.5, high=2.0, method="a"), Estimate(value=2.0, low=None, high=None, method="b", reason="few")
    found = over_repeats([one, other, one])
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert (found.method, found.reason) == ("a or b", "no interval: some of the random divisions have none")
    assert over_repeats([one, one.model_copy(update={"method": None})]).method == "a or none"
    lost = over_repeats([one, Estimate(reason="few"), one])
    assert (lost.value, lost.low, lost.reason) == (None, None, "not estimable in some of the random divisions")
    rate = Accuracy(value=0.5, low=0.4, high=0.6, threshold=1.0)
    whole = over_repeats([rate, rate.model_copy(update={"threshold": None})])
    assert (whole.value, whole.threshold, whole.reason) == (0.5, None, None), "value and interval are there in every division"


def test_what_repeated_splits_cannot_estimate_stays_null_with_its_reason():
    ids, member = cohort(60, 60)
    result = evaluate_scores(shifted(ids, member, [1.0]), member, divided(ids, member, 0.2, 0))
    assert result.tpr_at_fpr[1].value is None
    assert "needs >= 100 non-members, has 48" in result.tpr_at_fpr[1].reason
    assert "needs >= 100 members, has 48" in result.tnr_at_fnr[1].reason
    assert result.oracle.tpr_at_1pct is None
    assert result.oracle.reason == "tpr_at_1pct is not estimable (needs >= 100 non-members, has 48)"


def test_the_threshold_of_repeated_splits_is_null_where_some_split_has_none_and_success_is_still_a_median():
    # in some splits the best accuracy on calibrate is that of naming every image a member: no finite threshold
    ids, member = cohort(60, 20)
    scores, split = shifted(ids, member, [0.5]), divided(ids, member, 0.2, 0)
    result = evaluate_scores(scores, member, split)
    thresholds = [metrics.best_accuracy(scores.membership[r & member, 0], scores.membership[r & ~member, 0])[0] for r in split.calibrate]
    assert 0 < np.sum(np.isinf(thresholds)) < len(thresholds) / 2
    assert result.asr.threshold is None
    accuracies = [
        np.mean(np.r_[scores.membership[~r & member, 0] > t, scores.membership[~r & ~member, 0] <= t])
        for r, t in zip(split.calibrate, thresholds, strict=True)
    ]
    assert result.asr.value == pytest.approx(np.median(accuracies))


# what is said about several attacks


def test_the_headline_is_the_attack_that_looked_best_on_calibrate_not_on_test():
    scores, member, split = planted()
    planted_result = evaluate_scores(scores, member, split)  # 0.92 on calibrate, one half on test
    steady = evaluate_scores(shifted(scores.ids, member, [1.0], seed=5, attack="steady"), member, split)
    assert steady.auc.value > planted_result.auc.value + 0.1
    assert headline([steady, planted_result]) == "planted"
    assert headline([planted_result, steady]) == "planted"


def test_there_is_no_headline_without_a_calibrate_part():
    ids, member = cohort(250, 250)
    result = evaluate_scores(shifted(ids, member, [1.0]), member, divided(ids, member, 0.2, 0, calibration=False))
    assert headline([result]) is None
    assert headline([]) is None


def test_the_table_of_samples_holds_each_attacks_scores_at_its_own_timestep():
    ids, member = cohort(250, 260)
    split = divided(ids, member, 0.2, 0)
    both = [shifted(ids, member, [2, 0], attack="early"), shifted(ids, member, [0, 2], seed=1, direction="small", attack="late")]
    results = [evaluate_scores(s, member, split) for s in both]
    table = samples(both, results, member, split)
    assert table.ids == ids
    np.testing.assert_array_equal(table.member, member)
    np.testing.assert_array_equal(table.test, ~split.calibrate[0])
    np.testing.assert_array_equal(table.scores["early"], both[0].statistic[:, 0])
    np.testing.assert_array_equal(table.scores["late"], -both[1].statistic[:, 1])
    m, n = table.sides("late")
    assert metrics.auc(m, n) == pytest.approx(results[1].auc.value)
    assert [len(side) for side in table.sides("late", test=False)] == [50, 52]
    assert [len(side) for side in table.sides("late", test=None)] == [250, 260]


# the public function


def arrays(m=400, n=500, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, m), rng.normal(0, 1, n)


def test_evaluate_is_public_and_its_auc_and_rates_are_of_all_scores():
    members, nonmembers = arrays()
    result = diffleak.evaluate(members, nonmembers)
    assert result.auc.value == pytest.approx(auc_of(np.r_[members, nonmembers], np.repeat([1, 0], [400, 500])))
    assert result.tpr_at_fpr[1].value == pytest.approx(np.mean(members > np.sort(nonmembers)[-6]))
    assert (result.n_members, result.n_nonmembers) == (400, 500)
    assert (result.timestep, result.oracle.timestep, result.per_timestep) == (None, None, ())
    assert result.convention == "member-exact"


def test_evaluate_takes_lists_and_integers_as_well_as_arrays():
    assert evaluate([3, 2, 5], [1, 0, 2]) == evaluate(np.array([3.0, 2.0, 5.0]), np.array([1, 0, 2], dtype=np.int8))


def test_evaluate_calibrates_the_threshold_on_a_part_and_counts_on_the_rest():
    members, nonmembers = arrays(1000, 1000)
    accuracy = evaluate(members, nonmembers).asr
    exact = metrics.clopper_pearson(round(accuracy.value * 1600), 1600)
    assert (accuracy.low, accuracy.high) == pytest.approx(exact)
    assert accuracy.value == pytest.approx(0.69, abs=0.04)  # Phi(1/2) in the population
    assert accuracy.value < metrics.best_accuracy(members, nonmembers)[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_and_counted(value):
    members, nonmembers = arrays(20, 30)
    nonmembers[[3, 7]] = value
    with pytest.raises(UserError, match=r"^scores must be finite numbers; 2 of 30 non-member scores are not$"):
        evaluate(members, nonmembers)
    with pytest.raises(UserError, match=r"^scores must be finite numbers; 2 of 30 member scores are not$"):
        evaluate(nonmembers, members)


@pytest.mark.parametrize(("members", "nonmembers", "side"), [([], [1.0], "member"), ([1.0], [], "non-member")])
def test_an_empty_side_is_refused_by_name(members, nonmembers, side):
    with pytest.raises(UserError, match=f"^there must be at least one {side} score; got none$"):
        evaluate(members, nonmembers)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (5, 1), (2, 2), (3, 1), (3, 3)])
def test_tiny_samples_give_nulls_with_reasons_instead_of_errors(m, n):
    result = evaluate(np.arange(m) + 0.5, np.arange(n, dtype=float))
    for estimate in (result.auc, result.asr, result.achieved_fpr, *result.tpr_at_fpr, *result.tnr_at_fnr):
        assert (estimate.value is None) == (estimate.reason is not None)
    assert (result.auc.value is None) == (min(m, n) < 2)
    assert all(rate.value is None for rate in result.tpr_at_fpr)
    assert result.achieved_fpr.value is None


def test_an_unknown_convention_names_the_nearest_one():
    with pytest.raises(UserError, match="unknown convention 'secmi_grid'; did you mean 'secmi-grid'"):
        evaluate(*arrays(), convention="secmi_grid")


def test_part_makes_every_number_one_of_the_test_half():
    members, nonmembers = arrays(500, 600)
    test = (np.arange(500) % 4 != 0, np.arange(600) % 3 != 0)
    result = evaluate(members, nonmembers, part=test)
    m, n = members[test[0]], nonmembers[test[1]]
    assert (result.n_members, result.n_nonmembers) == (375, 400)
    assert result.auc == metrics.auc_estimate(m, n)
    threshold, _ = metrics.best_accuracy(members[~test[0]], nonmembers[~test[1]])
    assert result.asr == metrics.accuracy_at(threshold, m, n)
    assert result.achieved_fpr == metrics.achieved_fpr(nonmembers[~test[1]], n)
    assert result.oracle.auc == pytest.approx(result.auc.value)


@pytest.mark.parametrize("convention", [name for name in metrics.CONVENTIONS if name != "member-exact"])
def test_a_convention_with_part_is_computed_on_the_test_half_too(convention):
    members, nonmembers = arrays(500, 600)
    test = (np.arange(500) % 4 != 0, np.arange(600) % 3 != 0)
    members[~test[0]] += 50  # the calibrate part is perfectly separated, the test part is not
    by_part, alone = evaluate(members, nonmembers, convention, test), evaluate(members[test[0]], nonmembers[test[1]], convention)
    assert by_part.n_members == alone.n_members == 375
    assert by_part.auc == alone.auc
    assert by_part.tpr_at_fpr == alone.tpr_at_fpr
    assert by_part.asr == alone.asr


@pytest.mark.parametrize("empty", [0, 1])
def test_a_part_without_members_or_without_others_to_test_is_refused(empty):
    part = [np.ones(40, dtype=bool), np.ones(50, dtype=bool)]
    part[empty][:] = False
    with pytest.raises(UserError, match="the test part must hold members and non-members"):
        evaluate(*arrays(40, 50), part=tuple(part))


@pytest.mark.parametrize("side", [0, 1])
def test_a_part_that_leaves_one_side_to_calibrate_gives_no_threshold_and_says_why(side):
    part = [np.ones(40, dtype=bool), np.ones(50, dtype=bool)]
    part[side][:10] = False
    result = evaluate(*arrays(40, 50), part=tuple(part))
    assert result.asr.reason == result.achieved_fpr.reason == "no calibrate part: the threshold was not chosen on separate images"
    assert result.auc.value is not None


@pytest.mark.parametrize("side", [False, True])
def test_a_calibrate_part_of_one_side_is_none(side):
    ids, member = cohort(60, 60)
    one_sided = Divisions(divided(ids, member, 0.2, 0).calibrate[:1] & (member == side), divided(ids, member, 0.2, 0).record)
    assert one_sided.calibrate.sum() == 12
    result = evaluate_scores(shifted(ids, member, [1.0]), member, one_sided)
    assert result.per_timestep == () and result.asr.value is None and headline([result]) is None
    with pytest.raises(UserError, match="planted: without a calibrate part there must be one timestep; got 2"):
        evaluate_scores(shifted(ids, member, [1, 1]), member, one_sided)


def test_names_decide_which_finished_scores_choose_the_threshold():
    members, nonmembers = arrays(400, 300)
    names = [f"m{i}" for i in range(400)], [f"n{i}" for i in range(300)]
    rows = calibrate_part((*names[0], *names[1]), np.repeat([True, False], [400, 300]), 0.2, 7)
    threshold, _ = metrics.best_accuracy(members[rows[:400]], nonmembers[rows[400:]])
    result = evaluate(members, nonmembers, ids=names, seed=7)
    assert result.asr == metrics.accuracy_at(threshold, members[~rows[:400]], nonmembers[~rows[400:]])
    assert result.asr != evaluate(members, nonmembers, seed=7).asr


def test_thresholds_of_finished_scores_of_few_images_are_medians_over_the_divisions_too():
    rng = np.random.default_rng(3)
    members, nonmembers = rng.normal(0.8, 1, 90), rng.normal(0, 1, 70)
    result = evaluate(members, nonmembers)
    member, scores = np.repeat([True, False], [90, 70]), np.r_[members, nonmembers]
    accuracies, rates = [], []
    for rows in divided(tuple(map(str, range(160))), member, 0.2, 0).calibrate:
        threshold, _ = metrics.best_accuracy(scores[rows & member], scores[rows & ~member])
        accuracies.append(np.mean(np.r_[scores[~rows & member] > threshold, scores[~rows & ~member] <= threshold]))
        rates.append(np.mean(scores[~rows & ~member] > np.sort(scores[rows & ~member])[-2]))
    assert len({*accuracies}) > 1 and accuracies[0] != np.median(accuracies) and rates[0] != np.median(rates)
    assert result.asr.value == pytest.approx(np.median(accuracies)) and result.achieved_fpr.value == pytest.approx(np.median(rates))


@pytest.mark.parametrize("n", [40, 300], ids=["repeated", "once"])
def test_evaluating_sets_every_field_of_a_result_but_those_that_an_audit_says_of_an_attack(n):
    """An audit of a teacher's own half takes what is set from the new result, and the rest from the old one."""
    said = {"mask", "mask_ratio", "variant", "complexity", "gain", "access", "parameters", "queries", "queries_at_timestep", "convention"}
    ids, member = cohort(n, n)
    assert evaluate_scores(shifted(ids, member, [0.5, 1.0]), member, divided(ids, member, 0.2, 0)).model_fields_set ^ said == set(
        Result.model_fields
    )


def test_the_oracle_of_a_mask_whose_ratio_is_chosen_is_the_best_of_every_ratio_for_each_number_apart():
    ids, member = cohort(300, 300)
    split = divided(ids, member, 0.2, 0)
    plain = shifted(ids, member, [0.5, 0.5])
    masked = {r: shifted(ids, member, [0.5, 0.45], seed=s, attack="planted") for r, s in ((0.2, 39), (0.6, 38), (0.8, 40))}
    result, _ = whole(evaluate_masked("influence:auto", masked, on_every_split(plain, member, split), member, split))
    test, best = ~split.calibrate[0], {"auc": [], "asr": [], "tpr": []}
    for scores in masked.values():
        sides = [(column[test & member], column[test & ~member]) for column in scores.membership.T]
        best["auc"].append(max(auc_of(np.r_[m, n], np.repeat([1, 0], [len(m), len(n)])) for m, n in sides))
        best["asr"].append(max(metrics.best_accuracy(m, n)[1] for m, n in sides))
        best["tpr"].append(max(metrics.tpr_value(m, n, 0.01) for m, n in sides))
    assert np.argmax(best["auc"]) != np.argmax(best["asr"]) != np.argmax(best["tpr"]), "the case tells them apart"
    assert np.argmax(best["auc"]) == 1, "and the best is neither the first nor the last"
    found = (result.oracle.auc, result.oracle.asr, result.oracle.tpr_at_1pct)
    assert found == pytest.approx((max(best["auc"]), max(best["asr"]), max(best["tpr"])))


def test_the_ratio_of_a_mask_is_that_of_the_best_auc_on_the_calibrate_part():
    ids, member = cohort(300, 300)
    split = divided(ids, member, 0.2, 0)
    masked = {ratio: shifted(ids, member, [shift], seed=s) for s, (ratio, shift) in enumerate(((0.2, 0.3), (0.6, 1.5), (0.8, 0.6)))}
    result, scores = whole(evaluate_masked("influence:auto", masked, on_every_split(masked[0.2], member, split), member, split))
    rows = split.calibrate[0]
    aucs = {ratio: auc_of(each.membership[rows, 0], member[rows]) for ratio, each in masked.items()}
    assert result.mask_ratio == max(aucs, key=aucs.__getitem__) == 0.6
    assert result.per_timestep[0].auc == pytest.approx(aucs[0.6]) and np.array_equal(scores.statistic, masked[0.6].statistic)


def test_the_best_oracle_of_several_is_the_one_of_the_largest_auc_even_beside_one_of_zero():
    oracles = [Oracle(timestep=t, auc=auc, asr=0.5 + t / 100, tpr_at_1pct=rate) for t, auc, rate in ((1, 0.0, 0.2), (2, 0.4, 0.1))]
    for each in (oracles, oracles[::-1]):
        assert _best_oracle(each) == Oracle(timestep=2, auc=0.4, asr=0.52, tpr_at_1pct=0.2)


def test_where_every_image_only_chooses_settings_a_variant_says_so_in_place_of_numbers():
    ids, member = cohort(30, 30)
    split = Divisions(np.ones((1, 60), dtype=bool), divided(ids, member, 0.2, 0).record)
    masked = {ratio: shifted(ids, member, [0.5], seed=s) for s, ratio in enumerate((0.2, 0.6))}
    base = on_every_split(shifted(ids, member, [0.3], seed=5), member, split)
    (result, _) = evaluate_masked("influence:auto", masked, base, member, split)[0]
    assert result.mask_ratio in masked and len(result.per_timestep) == 1
    for nothing in (result.auc, result.asr, result.oracle, result.gain.auc, result.gain.asr, result.gain.tpr_at_1pct):
        assert nothing.reason == "no test part: these images choose settings"


def test_the_model_is_compared_with_its_reference_and_the_excess_with_the_model():
    ids, member = cohort(300, 300)
    split = divided(ids, member, 0.2, 0)
    model, reference, excess = (shifted(ids, member, [shift], seed=s) for s, shift in enumerate((0.8, 0.2, 1.4)))
    test = ~split.calibrate[0]
    aucs = [auc_of(each.membership[test, 0], member[test]) for each in (model, reference, excess)]
    found = [whole(each) for each in evaluate_reference((reference, excess), on_every_split(model, member, split), member, split)]
    assert [result.variant for result, _ in found] == ["reference", "excess"]
    assert found[0][1].statistic is reference.statistic and found[1][1].statistic is excess.statistic
    assert [result.auc.value for result, _ in found] == pytest.approx(aucs[1:])
    assert [result.gain.auc.value for result, _ in found] == pytest.approx([aucs[0] - aucs[1], aucs[2] - aucs[0]])


@pytest.mark.parametrize("swapped", [False, True])
def test_what_a_mask_adds_to_success_counts_every_image_as_a_member_where_that_was_best_on_calibrate(swapped):
    """Its threshold is minus infinity, and is recorded as none."""
    ids, member = cohort(600, 200)
    split = divided(ids, member, 0.2, 0)
    blind, seeing = shifted(ids, member, [-3.0]), shifted(ids, member, [1.5], seed=2)
    plain, masked = (seeing, blind) if swapped else (blind, seeing)
    base = on_every_split(plain, member, split)
    result, _ = whole(evaluate_masked("influence:0.4", {0.4: masked}, base, member, split))
    thresholds = (result.asr.threshold, base[0][0].asr.threshold)
    assert (thresholds[0] is None, thresholds[1] is None) == (swapped, not swapped)
    assert result.gain.asr.value == pytest.approx(result.asr.value - base[0][0].asr.value)
    assert min(result.asr.value, base[0][0].asr.value) == 0.75


@pytest.mark.parametrize(("side", "estimable"), [(300, True), (100, False)])
def test_the_very_same_scores_add_nothing_but_where_a_number_cannot_be_estimated(side, estimable):
    ids, member = cohort(side, side)
    split = divided(ids, member, 0.2, 0)
    test, scores = ~split.calibrate[0], shifted(ids, member, [0.5, 0.7])
    result = on_first_split(scores, member, split)
    found, nothing = gain((result, scores), (result, scores), member, test, 0), {"value": 0.0, "low": 0.0, "high": 0.0}
    for each in (found.auc, found.asr, *([found.tpr_at_1pct] if estimable else [])):
        assert each.model_dump(include={"value", "low", "high"}) == nothing and "the very same scores" in each.method
    if not estimable:
        assert found.tpr_at_1pct == Estimate(reason=result.tpr(0.01).reason)
    other = result.model_copy(update={"timestep": 10 if result.timestep == 20 else 20})
    columns = [scores.membership[test, k] for k in ((0, 1) if other.timestep == 10 else (1, 0))]
    added = gain((other, scores), (result, scores), member, test, 0).auc.value
    assert added == pytest.approx(auc_of(columns[0], member[test]) - auc_of(columns[1], member[test])) and added != 0


def test_what_a_mask_adds_is_measured_on_the_test_part():
    ids, member = cohort(300, 300)
    split = divided(ids, member, 0.2, 0)
    plain, masked = (shifted(ids, member, [d], seed=s) for d, s in ((0.4, 1), (0.8, 2)))
    result, _ = whole(evaluate_masked("influence:0.4", {0.4: masked}, on_every_split(plain, member, split), member, split))
    test = ~split.calibrate[0]
    aucs = [auc_of(scores.membership[test, 0], member[test]) for scores in (masked, plain)]
    assert result.gain.auc.value == pytest.approx(aucs[0] - aucs[1]) and result.auc.value == pytest.approx(aucs[0])
