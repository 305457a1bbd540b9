"""Does leakage follow distortion? Planted answers, and the straight-line numbers behind them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom, hypergeom, norm
from sklearn.metrics import roc_auc_score

from diffleak.data.pixels import ImageShape
from diffleak.records.scores import Scores
from diffleak.stats import by_distortion, metrics
from diffleak.stats.by_distortion import SHOWN, analyse, correlation
from diffleak.stats.evaluation import divided, evaluate_scores
from diffleak.stats.units import units_of

TIMESTEPS = (10, 20, 30)


def planted(side, leak, seed=0, names=("sima",)):
    """`side` members and as many held-out images; `leak(distortion rank in [0, 1])` shifts the members' scores at timestep 20."""
    rng = np.random.default_rng((side, seed))
    distortion = rng.normal(size=2 * side)
    member = np.arange(2 * side) % 2 == 0
    rank = distortion.argsort().argsort() / (2 * side)
    all_scores = []
    for name in names:
        statistic = rng.normal(size=(2 * side, len(TIMESTEPS)))
        statistic[:, 1] -= member * leak(rank)  # small means member
        ids = tuple(f"image-{i:05d}" for i in range(2 * side))
        all_scores.append(Scores(name, "small", TIMESTEPS, ids, statistic))
    measured = np.column_stack([distortion, rng.exponential(size=(2 * side, 2))])
    return all_scores, member, measured


def analysed(all_scores, member, measured, split=None):
    split = split or divided(all_scores[0].ids, member, 0.2, 0)
    results = [evaluate_scores(scores, member, split) for scores in all_scores]
    inputs = SimpleNamespace(top=20, probes=8, shape=ImageShape(1, 8, 8), cohort=SimpleNamespace(ids=all_scores[0].ids))
    ids = all_scores[0].ids
    return analyse(inputs, measured, results, all_scores, units_of(ids, ids, member, np.arange(len(ids))), split)


def test_leakage_that_distortion_drives_rises_from_quartile_to_quartile():
    found = analysed(*planted(800, lambda rank: 3 * rank))
    aucs = [q.auc.value for q in found.quartiles]
    assert aucs == sorted(aucs) and aucs[0] < 0.7 < 0.9 < aucs[3]
    assert 0 < found.high_minus_low.low < found.high_minus_low.value == pytest.approx(aucs[3] - aucs[0])
    for quartile, mean_rank in zip(found.quartiles, (1 / 8, 3 / 8, 5 / 8, 7 / 8), strict=True):
        assert (
            quartile.auc.low < norm.cdf(3 * mean_rank / np.sqrt(2)) + 0.02
            and quartile.auc.high > norm.cdf(3 * mean_rank / np.sqrt(2)) - 0.02
        )


def test_leakage_that_falls_with_distortion_gives_a_negative_gap():
    assert analysed(*planted(800, lambda rank: 3 * (1 - rank))).high_minus_low.high < 0


@pytest.mark.parametrize("side", [150, 400])
def test_leakage_that_ignores_distortion_gives_a_gap_whose_interval_holds_zero(side):
    gaps = [analysed(*planted(side, lambda rank: 1.0, seed)).high_minus_low for seed in range(12)]
    held = sum(gap.low <= 0 <= gap.high for gap in gaps)
    assert binom.cdf(held, len(gaps), metrics.LEVEL) > 1e-3


def test_copies_of_images_change_no_number():
    """Every image twice, the two a cluster: units are the images of before, where images would be twice as many independent ones."""
    (scores,), member, measured = planted(300, lambda rank: 2 * rank)
    split = divided(scores.ids, member, 0.2, 0)
    once = analysed([scores], member, measured, split)
    ids, clusters = (*scores.ids, *(f"{image_id}-copy" for image_id in scores.ids)), np.tile(np.arange(600), 2)
    units = units_of(ids, ids, np.tile(member, 2), clusters)
    copied = replace(scores, ids=ids, statistic=np.tile(scores.statistic, (2, 1)))
    inputs = SimpleNamespace(top=20, probes=8, shape=ImageShape(1, 8, 8), cohort=SimpleNamespace(ids=ids))
    result = evaluate_scores(units.counting(copied), units.member, units.reduced(units.divided(0.2, 0)))
    twice = analyse(inputs, np.tile(measured, (2, 1)), [result], [copied], units, units.reduced(units.divided(0.2, 0)))
    gallery = {"highest", "lowest"}
    assert twice.model_dump(exclude=gallery) == once.model_dump(exclude=gallery)
    images = analysed([copied], np.tile(member, 2), np.tile(measured, (2, 1)))
    assert images.low_frequency.high - images.low_frequency.low < 0.8 * (once.low_frequency.high - once.low_frequency.low)
    assert {name.removesuffix("-copy") for name in twice.highest} < set(once.highest), "a gallery shows images"


def test_quartiles_are_those_of_members_and_held_out_images_together():
    all_scores, member, measured = planted(400, lambda rank: rank)
    measured[member, 0] += 1.5  # members alone, or held-out images alone, have other quartiles
    split = divided(all_scores[0].ids, member, 0.2, 0)
    test, distortion = ~split.calibrate[0], measured[:, 0]
    distortion[np.flatnonzero(test)[[3, 4]]] = 60.0, -60.0  # the largest and the smallest are tested too
    found = analysed(all_scores, member, measured, split)
    bounds = np.quantile(distortion, [0, 0.25, 0.5, 0.75, 1])
    assert [q.low for q in found.quartiles] == bounds[:-1].tolist() and [q.high for q in found.quartiles] == bounds[1:].tolist()
    for i, quartile in enumerate(found.quartiles):
        inside = test & (distortion >= bounds[i]) & ((distortion < bounds[i + 1]) | (i == 3))
        assert (quartile.n_members, quartile.n_nonmembers) == ((inside & member).sum(), (inside & ~member).sum())
        expected = [roc_auc_score(member[inside], -all_scores[0].statistic[inside, k]) for k in range(3)]
        assert [p.auc for p in quartile.per_timestep] == pytest.approx(expected, abs=1e-12)
        assert quartile.auc.value == pytest.approx(expected[1], abs=1e-12), "the timestep that calibration chose"
    assert sum(q.n_members + q.n_nonmembers for q in found.quartiles) == test.sum()


def test_the_band_is_that_of_random_quarters_and_lies_around_the_whole():
    all_scores, member, measured = planted(800, lambda rank: 1.5)
    found, test = analysed(all_scores, member, measured), ~divided(all_scores[0].ids, member, 0.2, 0).calibrate[0]
    assert [point.timestep for point in found.band] == list(TIMESTEPS)
    for k, point in enumerate(found.band):
        whole = roc_auc_score(member[test], -all_scores[0].statistic[test, k])
        assert abs(point.mean - whole) < 3 * point.sd and 0.005 < point.sd < 0.08


@pytest.mark.parametrize("side", [0, 1], ids=["members", "held-out images"])
def test_a_quarter_of_the_band_holds_no_image_twice(monkeypatch, side):
    """Where one side scores 1 or -1 and all of the other 0, the AUC is a share of a hypergeometric number."""
    monkeypatch.setattr(by_distortion, "DRAWS", 4000)
    sides = [np.zeros((30, 1)), np.zeros((30, 1))]
    sides[side] = np.repeat([1.0, -1.0], [19, 23])[:, None]  # 10 of 42 are drawn
    (point,) = by_distortion._band(Scores("sima", "large", (20,), ("a",), np.zeros((1, 1))), tuple(sides))
    exact = hypergeom(42, 19, 10)
    assert point.timestep == 20 and point.sd == pytest.approx(exact.std() / 10, rel=4 / np.sqrt(8000))
    mean = exact.mean() / 10 if side == 0 else 1 - exact.mean() / 10
    assert point.mean == pytest.approx(mean, abs=4 * exact.std() / 10 / np.sqrt(4000))
    monkeypatch.setattr(by_distortion, "DRAWS", 2)
    (point,) = by_distortion._band(Scores("sima", "large", (20,), ("a",), np.zeros((1, 1))), tuple(sides))
    both = 10 * np.array([point.mean - point.sd / np.sqrt(2), point.mean + point.sd / np.sqrt(2)])
    assert both == pytest.approx(np.round(both)) and 0 < point.sd < 1, "two tenths, and their standard deviation as a sample"


def test_the_first_timestep_may_be_0():
    (scores,), member, measured = planted(60, lambda rank: 2.0)
    scores = replace(scores, timesteps=(20, 0, 10))  # the leak is at 0
    found, test = analysed([scores], member, measured), ~divided(scores.ids, member, 0.2, 0).calibrate[0]
    bounds = np.quantile(measured[:, 0], [0.25, 0.5, 0.75])
    for q, quartile in enumerate(found.quartiles):
        inside = test & (np.searchsorted(bounds, measured[:, 0], side="right") == q)
        assert quartile.auc.value == pytest.approx(roc_auc_score(member[inside], -scores.statistic[inside, 1]))


def test_distortion_itself_is_judged_as_an_attack_on_all_images():
    all_scores, member, measured = planted(100, lambda rank: 0.0)
    measured[member, 0] += 1
    assert analysed(all_scores, member, measured).distortion_auc.value == pytest.approx(roc_auc_score(member, measured[:, 0]))


def test_images_of_highest_and_lowest_distortion_are_named_in_order():
    all_scores, member, measured = planted(60, lambda rank: 0.0)
    measured[[5, 9], 0] = 50.0  # a tie
    found = analysed(all_scores, member, measured)
    ranked = sorted(range(120), key=lambda i: (measured[i, 0], i))
    ids = all_scores[0].ids
    assert found.lowest == tuple(ids[i] for i in ranked[:SHOWN]) and found.highest == tuple(ids[i] for i in ranked[::-1][:SHOWN])


def test_sima_is_shown_where_it_ran_else_the_first_unmasked_attack():
    assert analysed(*planted(40, lambda rank: 0.0, names=("loss", "sima"))).attack == "sima"
    assert analysed(*planted(40, lambda rank: 0.0, names=("pia", "loss"))).attack == "pia"


def test_filtered_attacks_are_compared_with_their_own_plain_attack():
    names = ("loss", "pia", "loss_frequency")
    all_scores, member, measured = planted(400, lambda rank: 1.0, names=names)
    found, test = analysed(all_scores, member, measured), ~divided(all_scores[0].ids, member, 0.2, 0).calibrate[0]
    assert [(f.attack, f.filtered) for f in found.filters] == [("loss", "loss_frequency")]
    aucs = [roc_auc_score(member[test], -all_scores[i].statistic[test, 1]) for i in (2, 0)]
    assert found.filters[0].gain.auc.value == pytest.approx(aucs[0] - aucs[1])


@pytest.mark.parametrize("slope", [0.0, 0.7, -3.0])
def test_correlation_is_pearsons_with_fishers_interval(slope):
    rng = np.random.default_rng(3)
    x = rng.normal(size=80)
    y = slope * x + rng.normal(size=80)
    found, r = correlation(x, y), np.corrcoef(x, y)[0, 1]
    half = norm.ppf(0.975) / np.sqrt(80 - 3)
    assert found.value == pytest.approx(r, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)), abs=1e-10)


def test_a_distortion_that_follows_frequencies_is_correlated_with_them():
    all_scores, member, measured = planted(100, lambda rank: 0.0)
    measured[:, 1] = 5 - 2 * measured[:, 0]
    found = analysed(all_scores, member, measured)
    assert found.low_frequency.value == pytest.approx(-1) and abs(found.high_frequency.value) < 0.3
    assert found.radius == 5 / 32 * 8


UNCORRELATED = {
    "three images": (np.arange(3.0), np.arange(3.0)),
    "constant": (np.arange(9.0), np.full(9, 0.1)),
    "constant too": (np.full(9, 0.1), np.arange(9.0)),
    "none": (np.empty(0), np.empty(0)),
}


def test_four_images_that_differ_are_enough_for_a_correlation():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 5.0])
    found = correlation(x, y)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and found.low < found.value < found.high


@pytest.mark.parametrize(("x", "y"), UNCORRELATED.values(), ids=UNCORRELATED.keys())
def test_a_correlation_that_cannot_be_estimated_is_null_with_a_reason(x, y):
    found = correlation(x, y)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.reason == "needs at least 4 images that differ"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [10, 12, 20])
def test_small_sets_give_nulls_with_reasons_and_no_traceback(side):
    for seed in range(5):
        found = analysed(*planted(side, lambda rank: rank, seed))
        for quartile in found.quartiles:
            estimable = min(quartile.n_members, quartile.n_nonmembers) >= 2
            assert (quartile.auc.value is not None) == estimable and bool(quartile.auc.reason) != estimable
            assert len(quartile.per_timestep) == (3 if min(quartile.n_members, quartile.n_nonmembers) else 0)
        assert (found.high_minus_low.value is None) == bool(found.high_minus_low.reason)
        assert found.model_validate_json(found.model_dump_json()) == found, "no NaN"


@pytest.mark.filterwarnings("error")
def test_quartiles_without_one_side_are_null_with_a_reason():
    all_scores, member, measured = planted(20, lambda rank: 0.0)
    measured[:, 0] = np.where(member, 1.0, 0.0) + 0.1 * np.random.default_rng(0).uniform(size=40)
    found = analysed(all_scores, member, measured)
    assert all(q.auc.reason == "needs at least 2 members and 2 non-members" and q.per_timestep == () for q in found.quartiles)
    assert found.high_minus_low.reason == "needs at least 2 members and 2 held-out images in the highest and in the lowest quarter"
    assert found.distortion_auc.value == 1


def test_a_quarter_of_a_handful_of_images_has_no_curve():
    from diffleak.records.base import Estimate
    from diffleak.report.figures.geometry import quartile_curves

    all_scores, member, measured = planted(40, lambda rank: 0.0)
    found = analysed(all_scores, member, measured)
    few = found.quartiles[0].model_copy(update={"auc": Estimate(reason="needs at least 2 members and 2 non-members")})
    lightest = "#6c9bd2"
    assert lightest in quartile_curves(found, 20)
    assert lightest not in quartile_curves(found.model_copy(update={"quartiles": (few, *found.quartiles[1:])}), 20)


@pytest.mark.filterwarnings("error")
def test_one_distortion_for_all_images_is_no_finding():
    all_scores, member, measured = planted(20, lambda rank: 0.0)
    measured[:, 0] = 2.0
    found = analysed(all_scores, member, measured)
    assert found.low_frequency.value is None and found.high_minus_low.value is None
    assert (found.distortion_auc.low, found.distortion_auc.value) < (0.5, 0.6)
