"""What an audit counts: intervals hold for groups of dependent images, and nothing changes where every image counts alone."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from diffleak.records.scores import Samples, Scores, means, numbered
from diffleak.stats import evaluation, metrics
from diffleak.stats.calibration import residuals
from diffleak.stats.rules import settled
from diffleak.stats.units import chained, units_of

REPEATS = 400
MONTE_CARLO = 3 * np.sqrt(0.95 * 0.05 / REPEATS)  # of a coverage of 95 %


def names(n: int, letter: str = "i") -> tuple[str, ...]:
    return tuple(f"{letter}{k:04d}" for k in range(n))


def alone(n: int, member: np.ndarray):
    return units_of(names(n), names(n), member, np.arange(n))


def grouped(sizes: np.ndarray, member_groups: int):
    """Groups of these sizes, the first `member_groups` of them members."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    n = len(of)
    return units_of(names(n), names(n), of < member_groups, np.arange(n), [f"g{k}" for k in of])


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_intervals_cover_for_groups_of_dependent_images_where_those_of_images_do_not(shift):
    """30 groups a side of 2 to 14 images, whose scores share half of their variance; members' groups are shifted."""
    rng = np.random.default_rng(0)
    sizes = np.tile(rng.integers(2, 15, 30), 2)
    units = grouped(sizes, 30)
    member, nothing = units.member, np.zeros(60, dtype=bool)
    own = sizes[:30]
    spread = np.sqrt(2 + 1 / own[:, None] + 1 / own[None])
    truth_of_groups = np.vectorize(NormalDist().cdf)(shift / spread).mean()
    truth_of_images = NormalDist().cdf(shift / 2)
    covered = {"groups": 0, "images": 0}
    for _ in range(REPEATS):
        effect = rng.normal(size=60) + shift * member
        values = effect[units.of] + rng.normal(size=len(units.of))
        scores = Scores("a", "large", (0,), names(len(values)), values[:, None])
        column = settled(units.counting(scores), member, nothing).membership[:, 0]
        pairs = {
            "groups": (metrics.auc_estimate(column[member], column[~member]), truth_of_groups),
            "images": (metrics.auc_estimate(values[member[units.of]], values[~member[units.of]]), truth_of_images),
        }
        for what, (auc, truth) in pairs.items():
            covered[what] += auc.low <= truth <= auc.high
    assert covered["groups"] / REPEATS >= 0.95 - MONTE_CARLO
    assert covered["images"] / REPEATS < 0.75


def test_a_null_of_groups_is_called_a_leak_no_more_often_than_its_level_says_through_calibration_and_test():
    """250 groups a side, so one division: the chosen timestep's interval lies above one half in at most 2.5 % of nulls."""
    rng, runs = np.random.default_rng(1), 150
    units = grouped(np.full(500, 4), 250)
    split = units.reduced(units.divided(0.2, 0))
    test = ~split.calibrate[0]
    found = {"groups": 0, "images": 0}
    for _ in range(runs):
        statistic = rng.normal(size=(500, 3))[units.of] + 0.5 * rng.normal(size=(2000, 3))
        scores = units.counting(Scores("a", "large", (1, 2, 3), names(2000), statistic))
        columns = settled(scores, units.member, split.calibrate[0]).membership
        sides = [columns[~test & side] for side in (units.member, ~units.member)]
        best = int(np.argmax([metrics.auc(sides[0][:, k], sides[1][:, k]) for k in range(3)]))
        auc = metrics.auc_estimate(columns[test & units.member, best], columns[test & ~units.member, best])
        found["groups"] += auc.low > 0.5
        tested = test[units.of]
        members, nonmembers = (statistic[tested & side[units.of], best] for side in (units.member, ~units.member))
        found["images"] += metrics.auc_estimate(members, nonmembers).low > 0.5
    allowed = 0.025 + 3 * np.sqrt(0.025 * 0.975 / runs)
    assert found["groups"] / runs <= allowed
    assert found["images"] / runs > allowed


def test_where_every_image_counts_alone_nothing_is_touched():
    member = np.arange(50) % 2 == 0
    units = alone(50, member)
    scores = Scores("a", "large", (0,), names(50), np.ones((50, 1)))
    split = evaluation.divided(names(50), member, 0.2, 3)
    own = units.divided(0.2, 3)
    assert units.alone and units.digest is None and units.counting(scores) is scores and units.reduced(own) is own
    np.testing.assert_array_equal(own.calibrate, split.calibrate)
    assert own.record == split.record and own.record.unit == "image"
    values = np.random.default_rng(0).normal(size=(50, 3))
    assert units.mean(values) is values


@pytest.mark.parametrize("rule", [None, "clid", "logistic"])
@pytest.mark.parametrize("complexity", [False, True])
def test_groups_of_one_image_give_the_numbers_of_images_to_the_bit(rule, complexity):
    n, rng = 440, np.random.default_rng(2)
    member = np.arange(n) % 2 == 0
    units = units_of(names(n), names(n), member, np.arange(n), names(n))
    assert units.kind == "group" and not units.alone
    statistic = np.exp(rng.normal(size=(n, 2)) - 0.7 * member[:, None])
    plain = Scores("a", "small", (10, 20), names(n), statistic, rule, complexity=rng.normal(size=(n, 7)) if complexity else None)
    split = evaluation.divided(names(n), member, 0.2, 0)
    results = [evaluation.evaluate_scores(s, member, split) for s in (plain, replace(plain, unit=units.of))]
    assert results[0] == results[1]
    tables = [evaluation.samples([s], [results[0]], member, split) for s in (plain, replace(plain, unit=units.of))]
    np.testing.assert_array_equal(tables[0].scores["a"], tables[1].scores["a"])


def test_the_score_of_a_unit_is_the_mean_of_its_images_scores_in_the_table_too():
    """Calibrated and combined scores too: what `compare` reads from samples.csv is what the audit counted."""
    rng = np.random.default_rng(3)
    units = grouped(rng.integers(1, 5, 600), 300)
    n = len(units.of)
    statistic = np.exp(rng.normal(size=(n, 2)) + 0.3 * units.member[units.of, None])
    complexity = rng.normal(size=(n, 7))
    split = units.reduced(units.divided(0.2, 0))
    plain = units.counting(Scores("a", "large", (1, 2), names(n), statistic))
    together = evaluation.combined([plain, plain], complexity)
    for scores in (plain, replace(plain, complexity=complexity), together):
        result = evaluation.on_first_split(scores, units.member, split)
        table = evaluation.samples([scores], [result], units.member, split)
        table = replace(table, units=tuple(units.names[unit] for unit in units.of), unit="group")
        column = evaluation.column(scores, result, units.member, split.calibrate[0])
        assert table.counted.ids == units.names
        np.testing.assert_array_equal(table.counted.scores[scores.attack], column)
        by_hand = [table.scores[scores.attack][units.of == unit].mean() for unit in range(len(units))]
        np.testing.assert_allclose(column, by_hand, rtol=1e-12)
        m, nonmembers = table.counted.sides(scores.attack)
        assert metrics.auc_estimate(m, nonmembers) == result.auc


def test_no_image_of_a_unit_is_predicted_by_a_fit_that_has_seen_another_one():
    rng = np.random.default_rng(4)
    unit = np.repeat(np.arange(40), 3)
    u, c, fitted = rng.normal(size=(120, 1)), rng.normal(size=(120, 2)), np.ones(120, dtype=bool)
    before = residuals(u, c, fitted, unit)
    changed = u.copy()
    changed[unit == 7] += 100.0
    moved = np.flatnonzero(np.abs(residuals(changed, c, fitted, unit) - changed - (before - u))[:, 0] > 1e-9)
    assert len(moved) > 0 and not np.isin(moved, np.flatnonzero(unit == 7)).any(), "its own prediction is from the others"
    apart = np.flatnonzero(np.abs(residuals(changed, c, fitted) - changed - (residuals(u, c, fitted) - u))[:, 0] > 1e-9)
    assert np.isin(apart, np.flatnonzero(unit == 7)).any(), "folds of images leak"


def test_copies_in_the_calibrate_part_do_not_make_a_regression_look_better_than_it_is():
    """Noise of many columns, each image there 5 times: with its copies in another fold it would be recognised."""
    rng = np.random.default_rng(5)
    unit = numbered(rng.permutation(np.repeat(np.arange(60), 5)))
    member = np.arange(60) % 2 == 0
    statistic = rng.normal(size=(60, 40))[unit]
    scores = Scores("a", "large", tuple(range(40)), names(300), statistic, "logistic")
    calibrate = np.ones(60, dtype=bool)
    best = lambda columns, side: max(metrics.auc(columns[side, k], columns[~side, k]) for k in range(columns.shape[1]))
    assert best(settled(replace(scores, unit=unit), member, calibrate).membership, member) < 0.75
    images = best(settled(scores, member[unit], calibrate[unit]).membership, member[unit])
    assert images > 0.95, "the copies are what folds of images recognise"


def test_a_cluster_on_both_sides_is_a_unit_on_each_and_units_are_drawn_by_their_smallest_key():
    member = np.array([True, True, False, False, True, False])
    units = units_of(names(6), names(6, "k"), member, np.array([0, 1, 0, 2, 1, 2]))
    assert units.kind == "cluster" and units.of.tolist() == [0, 1, 2, 3, 1, 3]
    assert units.member.tolist() == [True, True, False, False]
    assert units.names == ("i0000", "i0001", "i0002", "i0003") and units.keys == ("k0000", "k0001", "k0002", "k0003")
    assert units.sizes().tolist() == [1, 2, 1, 2]
    assert units.most_often(np.array([4, 2, 1, 3, 0, 3])).tolist() == [4, 0, 1, 3]
    table = Samples(names(6), member, np.ones(6, dtype=bool), {"a": np.arange(6.0)})
    said = units.named(table)
    assert (said.units, said.unit) == (("i0000", "i0001", "i0002", "i0003", "i0001", "i0003"), "cluster")
    assert said.counted.ids == units.names and said.counted.scores["a"].tolist() == [0.0, 2.5, 2.0, 4.0]
    assert alone(6, member).named(table) is table


def test_images_in_any_order_make_the_same_units_in_the_same_parts():
    """Rows of keyed ids and of buckets stand in another order than the file names; a cluster is drawn by its smallest key all the same."""
    rng, n = np.random.default_rng(9), 300
    ids, keys, member = names(n), tuple(f"{k}.png" for k in range(n)), rng.random(n) < 0.5
    clusters = rng.integers(0, 120, n)
    units = units_of(ids, keys, member, clusters)
    calibrate = units.divided(0.2, 5).calibrate
    for _ in range(5):
        order = rng.permutation(n)
        taken = lambda each, order=order: tuple(each[row] for row in order)
        other = units_of(taken(ids), taken(keys), member[order], clusters[order])
        assert [other.names[unit] for unit in other.of] == [units.names[unit] for unit in units.of[order]]
        assert [other.keys[unit] for unit in other.of] == [units.keys[unit] for unit in units.of[order]]
        np.testing.assert_array_equal(other.divided(0.2, 5).calibrate, calibrate[:, order])
    assert units.keys[units.of[0]] == min((keys[row] for row in np.flatnonzero(units.of == units.of[0])), key=lambda k: (len(k), k))


def test_chained_units_are_the_connected_components_of_both():
    one, two = np.array([0, 0, 1, 2, 2, 3, 4]), np.array([0, 1, 2, 3, 4, 3, 5])
    assert chained(one, two).tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert chained(one, np.arange(7)).tolist() == numbered(one).tolist() == chained(np.arange(7), one).tolist()
    assert chained(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)).tolist() == []


def test_units_in_another_order_of_images_are_the_same_units():
    rng = np.random.default_rng(6)
    units = grouped(rng.integers(1, 6, 30), 15)
    order = rng.permutation(len(units.of))
    other = units.taken(order)
    assert [other.names[unit] for unit in other.of] == [units.names[units.of[row]] for row in order]
    assert dict(zip(other.names, other.member, strict=True)) == dict(zip(units.names, units.member, strict=True))
    assert list(dict.fromkeys(other.of.tolist())) == list(range(30)), "numbered in the order of their first images"
    np.testing.assert_array_equal(other.divided(0.2, 5).calibrate, units.divided(0.2, 5).calibrate[:, order])
    scores = Scores("a", "large", (0,), names(len(order)), rng.normal(size=(len(order), 1)), unit=units.of)
    np.testing.assert_array_equal(scores.taken(order).unit, other.of)


def test_a_unit_is_in_one_part_as_a_whole():
    units = grouped(np.random.default_rng(7).integers(1, 9, 80), 40)
    calibrate = units.divided(0.25, 0).calibrate
    for row in calibrate:
        parts = {(int(unit), bool(part)) for unit, part in zip(units.of, row, strict=True)}
        assert len(parts) == 80
    assert units.divided(0.25, 0).record.model_dump(include={"members", "calibrate_members", "unit"}) == {
        "members": 40,
        "calibrate_members": 10,
        "unit": "group",
    }


def test_means_are_those_of_a_loop():
    rng = np.random.default_rng(8)
    unit = numbered(rng.integers(0, 20, 100))
    values = rng.normal(size=(100, 3))
    expected = np.array([values[unit == k].mean(axis=0) for k in range(unit.max() + 1)])
    np.testing.assert_allclose(means(values, unit), expected, rtol=1e-12)
    np.testing.assert_array_equal(means(values[:, 0], np.arange(100)), values[:, 0])


def test_samples_without_units_are_counted_as_they_are():
    samples = Samples(names(3), np.array([True, False, True]), np.ones(3, dtype=bool), {"a": np.arange(3.0)})
    assert samples.counted is samples and samples.number is None
