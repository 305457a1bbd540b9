"""The tests of an inquiry hold their level, whatever the scores, and find what they say they find."""

import tracemalloc
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, false_discovery_control, mannwhitneyu, norm, rankdata

from diffleak.records.base import Estimate
from diffleak.records.scores import Scores
from diffleak.stats import inquiry
from diffleak.stats.calibration import features
from diffleak.stats.choosing import blind_chooser, chooser, column_aucs, discriminant
from diffleak.stats.inquiry import (
    Chosen,
    Direction,
    conformal,
    cut_and_test,
    detectable_auc,
    images_for_power,
    merged,
    normal_tail,
    placebo_sides,
    q_values,
    rank_test,
    surely_shown,
    upper_tail,
)
from diffleak.stats.metrics import auc_deviation

RUNS = 200


def best_column(columns: np.ndarray):
    """A chooser among the columns of an array: the best AUC on the half that chooses."""

    def choose(question: np.ndarray, fit: np.ndarray) -> Chosen:
        aucs = column_aucs(columns[fit & question], columns[fit & ~question])
        best = int(aucs.argmax())
        return Chosen(columns[:, best], str(best))

    return choose


def dependent(rng: np.random.Generator, n: int, ties: bool) -> np.ndarray:
    """Six columns that share each image's difficulty, of heavy tails; with ties most numbers are equal to others."""
    columns = rng.standard_t(3, (n, 1)) + rng.normal(size=(n, 6))
    return np.round(columns) if ties else columns


def keys_of(n: int, run: int = 0) -> tuple[str, ...]:
    return tuple(f"{run}/{i}" for i in range(n))


def assert_at_most(rejected, level, what):
    """No more rejections than a binomial at the level has once in a thousand."""
    assert binom.sf(np.sum(rejected) - 1, len(rejected), level) > 1e-3, f"{what}: {np.mean(rejected):.3f} at {level}"


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 5), (3, 9), (10, 4), (10, 100), (60, 61), (100, 100)])
def test_the_rank_test_is_that_of_scipy_without_ties(m, n):
    rng = np.random.default_rng((m, n))
    for shift in (-0.5, 0.0, 0.5, 2.0):
        asked, controls = rng.normal(shift, 1, m), rng.normal(size=n)
        exact = mannwhitneyu(asked, controls, alternative="greater", method="exact").pvalue
        assert rank_test(asked, controls) == pytest.approx(exact, rel=1e-8)


def test_the_rank_test_is_that_of_all_permutations_and_on_the_safe_side_with_ties():
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=9), rng.integers(0, 3, 9), np.zeros(9), np.array([0, 0, 0, 0, 1, 2, 3, 4, 5])):
        rows = [np.isin(np.arange(9), chosen) for chosen in combinations(range(9), 4)]
        ranks = rankdata(values)
        sums = np.array([ranks[row].sum() for row in rows])
        p_values = np.array([rank_test(values[row].astype(float), values[~row].astype(float)) for row in rows])
        exact = np.array([(sums >= each - 1e-9).mean() for each in sums])
        for level in np.unique(p_values):
            assert (p_values <= level + 1e-12).mean() <= level + 1e-9, "exact over all ways to say which images are in question"
        if len(np.unique(values)) == 9:
            assert p_values == pytest.approx(exact)


def test_scores_that_are_all_equal_show_nothing():
    assert rank_test(np.zeros(8), np.zeros(20)) == pytest.approx(1.0)
    assert conformal(np.zeros(3), np.zeros(9)).tolist() == [1.0] * 3


@pytest.mark.parametrize(("m", "n"), [(80, 120), (5, 4000)])
def test_many_images_are_judged_by_a_normal_tail_that_is_never_smaller_where_it_counts(monkeypatch, m, n):
    exact = upper_tail(m, n)
    normal = np.array([normal_tail(u, m, n) for u in range(m * n + 1)])
    small = exact < 0.04
    assert (normal[small] >= exact[small]).all() and np.abs(normal - exact).max() < (2e-3 if m > 50 else 0.01)
    rng = np.random.default_rng(0)
    asked, controls = rng.normal(0.3, 1, m), rng.normal(size=n)
    won = (asked[:, None] > controls).sum()
    assert rank_test(asked, controls) == exact[won]
    assert normal[won] == pytest.approx(mannwhitneyu(asked, controls, alternative="greater", method="asymptotic").pvalue, rel=1e-9)
    for limit, most in (("EXACT", m * m * n), ("PAIRS", m * n)):
        with monkeypatch.context() as patched:
            patched.setattr(inquiry, limit, most)
            assert rank_test(asked, controls) == exact[won]
            patched.setattr(inquiry, limit, most - 1)
            assert rank_test(asked, controls) == normal[won]


def test_a_test_of_very_many_images_takes_memory_for_the_images_and_not_for_their_pairs():
    """100,000 against 100,000 have 10^10 pairs: a number for each would take 80 GB."""
    rng = np.random.default_rng(1)
    asked, controls = rng.normal(0.01, 1, 100_000), rng.normal(size=100_000)
    tracemalloc.start()
    p = rank_test(asked, controls)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert p == pytest.approx(mannwhitneyu(asked, controls, alternative="greater", method="asymptotic").pvalue, rel=1e-3)
    assert peak < 50e6


def test_groups_of_dependent_images_are_tested_at_the_level_where_their_images_are_not():
    """12 groups in question and 24 of controls, of 2 to 8 images that share most of their score; the choosing half sees six columns."""
    found = []
    for run in range(RUNS // 2):
        rng = np.random.default_rng((run, 9))
        unit = np.repeat(np.arange(36), rng.integers(2, 9, 36))
        member = np.arange(36) < 12
        columns = (rng.standard_t(4, (36, 1)) + 0.3 * rng.normal(size=(36, 6)))[unit] + 0.3 * rng.normal(size=(len(unit), 6))
        scores = [Scores("a", "large", tuple(range(6)), keys_of(len(unit), run), columns)]
        groups = cut_and_test(keys_of(36, run), member, chooser([replace(scores[0], unit=unit)]), run, 3)
        images = cut_and_test(scores[0].ids, member[unit], chooser(scores), run, 3)
        of_groups = groups.image_p_values
        found.append([groups.p_value, groups.directions[0].p_value, of_groups[0], q_values(of_groups).min(), images.directions[0].p_value])
    rows = np.array(found)
    for k, what in enumerate(("set", "one half", "one group", "any group found")):
        for level in (0.05, 0.2):
            assert_at_most(rows[:, k] <= level, level, what)
    assert binom.sf((rows[:, 4] <= 0.05).sum() - 1, len(rows), 0.05) < 1e-3, "images of one group are no independent evidence"


def test_groups_of_one_image_give_the_numbers_of_images():
    rng = np.random.default_rng(10)
    ids, member, complexity = keys_of(160), np.arange(160) < 60, rng.normal(size=(160, 7))
    plain = [Scores(name, "small", (50, 100), ids, np.exp(rng.normal(size=(160, 2)) - member[:, None])) for name in ("sima", "loss")]
    grouped = [replace(scores, unit=np.arange(160)) for scores in plain]
    found = [cut_and_test(ids, member, chooser(parts, features(complexity), complexity), 0, 2) for parts in (plain, grouped)]
    assert [asdict(each) for each in found[0].directions] == [asdict(each) for each in found[1].directions]
    np.testing.assert_array_equal(found[0].images, found[1].images)


def test_a_set_that_no_floating_point_number_can_count_still_has_p_values():
    tail = np.array([normal_tail(u, 600, 700) for u in range(0, 600 * 700 + 1, 700)])  # 1e389 ways to say which are in question
    assert (tail > 0).all() and tail[0] == pytest.approx(1.0) and (np.diff(tail) <= 0).all()
    assert tail[300] == pytest.approx(0.5, abs=1e-3)
    assert 0 < rank_test(np.arange(600) + 700.0, np.arange(700.0)) < 1e-200


def test_conformal_p_values_count_controls_of_at_least_the_score():
    asked, controls = np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])
    expected = [(1 + sum(c >= a for c in controls)) / 5 for a in asked]
    assert conformal(asked, controls).tolist() == expected == [1.0, 0.8, 0.2]


def test_p_values_are_merged_as_twice_their_median_and_q_values_are_those_of_scipy():
    assert merged(np.array([0.01, 0.02, 0.9])) == 0.04 and merged(np.array([0.6, 0.7])) == 1.0
    p = np.random.default_rng(0).random(40) ** 3
    assert q_values(p) == pytest.approx(false_discovery_control(p))


@pytest.mark.parametrize(("m", "n", "ties"), [(20, 60, False), (20, 200, True), (60, 60, True)])
def test_no_test_of_an_inquiry_rejects_too_often_where_nothing_leaks(m, n, ties):
    question, found = np.arange(m + n) < m, []
    for run in range(RUNS):
        columns = dependent(np.random.default_rng((run, m, n)), m + n, ties)
        tested = cut_and_test(keys_of(m + n, run), question, best_column(columns), run, 3)
        images = tested.image_p_values
        found.append([tested.p_value, tested.directions[0].p_value, tested.images[0, 0], images[0], q_values(images).min()])
    rows = np.array(found)
    for k, what in enumerate(("set", "one half", "one image in one cut", "one image", "any image found")):
        for level in (0.05, 0.2):
            assert_at_most(rows[:, k] <= level, level, what)


def test_all_choices_of_the_command_keep_the_level():
    found = []
    for run in range(40):
        rng = np.random.default_rng((run, 5))
        question, difficulty = np.arange(140) < 70, rng.normal(size=(140, 1))
        ids = keys_of(140, run)
        parts = [Scores(name, "small", (50, 100), ids, np.exp(difficulty + rng.normal(size=(140, 2)))) for name in ("sima", "loss")]
        complexity = difficulty + rng.normal(size=(140, 7))
        tested = cut_and_test(ids, question, chooser(parts, features(complexity), complexity), run, 1)
        blind = cut_and_test(ids, question, blind_chooser(dict(zip("abcdefg", complexity.T, strict=True))), run, 1)
        found += [[tested.directions[k].p_value, blind.directions[k].p_value] for k in (0, 1)]
    rows = np.array(found)
    for k, what in enumerate(("set", "blind")):
        assert_at_most(rows[::2, k] <= 0.1, 0.1, what)
        assert_at_most(rows[1::2, k] <= 0.1, 0.1, what)


def test_false_names_are_rare_among_the_images_that_are_found():
    wrong, named = [], []
    for run in range(60):
        rng = np.random.default_rng((run, 6))
        question, score = np.arange(300) < 60, rng.normal(size=300)
        score[:30] += 5
        found = q_values(cut_and_test(keys_of(300, run), question, best_column(score[:, None]), run, 3).image_p_values) <= 0.05
        wrong.append(found[30:].sum() / max(1, found.sum()))
        named.append(found[:30].mean())
    assert np.mean(named) > 0.8
    assert np.mean(wrong) <= 0.05 + 3 * np.std(wrong) / np.sqrt(len(wrong))


@pytest.mark.parametrize(("auc", "each"), [(0.7, 2.0)])
def test_the_number_of_images_that_is_printed_shows_the_effect_four_times_in_five(auc, each):
    size, runs = images_for_power(auc, each), 80
    rates = []
    for m in (size // 2, size, 2 * size):
        n, question = round(m * each), np.arange(m + round(m * each)) < m
        drawn = (np.random.default_rng((run, m)).normal(size=m + n) + np.sqrt(2) * norm.ppf(auc) * question for run in range(runs))
        p_values = [cut_and_test(keys_of(m + n, run), question, best_column(s[:, None]), run, 4).p_value for run, s in enumerate(drawn)]
        rates.append(np.mean(np.array(p_values) <= 0.05))
    spread = 3 * np.sqrt(0.8 * 0.2 / runs)
    assert abs(rates[1] - 0.8) < spread + 0.07, "the formula is rounded towards too many images"
    assert rates[0] < rates[1] < rates[2] and rates[2] > 0.95
    assert detectable_auc(size, round(size * each)) == pytest.approx(auc, abs=0.01)


def test_no_number_of_images_shows_what_is_not_there():
    assert images_for_power(0.5, 1.0) is None and images_for_power(0.3, 1.0) is None and images_for_power(0.50001, 1.0) is None
    assert images_for_power(0.9, 1.0) < images_for_power(0.7, 1.0) < images_for_power(0.6, 1.0)
    assert detectable_auc(10, 10) > detectable_auc(100, 100) > detectable_auc(1000, 1000) > 0.5


@pytest.mark.parametrize(("m", "n"), [(20, 20), (16, 60), (100, 40)])
def test_an_effect_is_surely_shown_from_the_auc_on_that_the_formula_gives(m, n):
    probability = -np.diff(np.append(upper_tail(m // 2, n // 2), 0.0))  # of the AUC of a half where nothing leaks
    null = np.sqrt(probability @ (np.arange(len(probability)) / (m * n / 4) - 0.5) ** 2)
    for power, level in ((0.8, 0.05), (0.9, 0.01)):
        aucs = np.arange(0.5, 1, 1e-5)
        shown = aucs - 0.5 >= norm.isf(level / 2) * null + norm.ppf(power) * auc_deviation(aucs, float(m), float(n))
        least = aucs[shown][0]
        assert surely_shown(aucs, float(m), float(n), power, level).tolist() == shown.tolist() and shown[-1]
        assert least - 1e-9 <= detectable_auc(m, n, power, level) < least + 1e-4 + 1e-9


def test_what_no_auc_of_so_few_images_shows_has_no_detectable_one():
    assert detectable_auc(2, 2) is None and detectable_auc(10, 10) < 1


@pytest.mark.parametrize(("auc", "each"), [(0.99, 1.0), (0.99, 0.2), (0.85, 0.1), (0.8, 0.5), (0.62, 3.0)])
def test_the_images_for_power_are_the_fewest_that_surely_show_the_effect(auc, each):
    """On a grid with steps of 0.3 %, from 10 images a side on."""
    found = images_for_power(auc, each)
    shown = lambda m: surely_shown(np.array([auc]), float(m), max(10.0, float(round(m * each)))).all()
    assert found >= 10 and shown(found) and (found == 10 or not shown(int(found / 1.004) - 1))
    assert (found == 10) == (auc == 0.99)


def test_no_p_value_is_above_1():
    assert max(upper_tail(m, n).max() for m in range(2, 30) for n in range(m, 60, 7)) == 1.0
    tested = inquiry.Tested((), np.array([[0.9, 0.2], [0.8, 0.3], [0.1, 0.4]]))
    assert tested.image_p_values.tolist() == [1.0, 0.6]


def test_an_effect_that_one_half_cannot_estimate_has_its_reason():
    known, unknown = Estimate(value=0.7, low=0.6, high=0.8, method="DeLong"), Estimate(reason="needs at least 2 images")
    open_ended = Estimate(value=0.9, reason="no interval")
    effect = lambda *aucs: inquiry.Tested(tuple(Direction(0, "B", "x", 0.5, auc) for auc in aucs), np.ones((1, 1))).auc
    assert effect(known, unknown).model_dump(exclude_none=True) == {"reason": "needs at least 2 images"}
    assert effect(known, open_ended, open_ended).model_dump(exclude={"method"}, exclude_none=True) == {"value": 0.9}
    assert effect(known, known).model_dump() == known.model_dump() | {"method": "medians over 2 halves; DeLong"}


def test_the_interval_of_the_effect_covers_it():
    truth, held = norm.cdf(0.5 / np.sqrt(2)), []
    for run in range(100):
        rng, question = np.random.default_rng((run, 8)), np.arange(120) < 40
        score = rng.normal(size=120) + 0.5 * question
        auc = cut_and_test(keys_of(120, run), question, best_column(score[:, None]), run, 3).auc
        held.append(auc.low <= truth <= auc.high)
    assert binom.cdf(np.sum(held), len(held), 0.95) > 1e-3


def test_cuts_depend_on_ids_and_seed_alone():
    rng = np.random.default_rng(0)
    keys, question, columns = keys_of(50), np.arange(50) < 20, rng.normal(size=(50, 3))
    order = rng.permutation(50)
    one = cut_and_test(keys, question, best_column(columns), 0, 3)
    other = cut_and_test(tuple(keys[i] for i in order), question[order], best_column(columns[order]), 0, 3)
    assert [each.p_value for each in one.directions] == [each.p_value for each in other.directions]
    assert one.image_p_values[order[question[order]]].tolist() == other.image_p_values.tolist()
    assert cut_and_test(keys, question, best_column(columns), 1, 3).p_value != one.p_value
    assert (
        placebo_sides(keys, 0).sum() == placebo_sides(keys_of(51), 0).sum() == 25
        and (placebo_sides(keys, 0) != placebo_sides(keys, 1)).any()
    )
    calls = []
    cut_and_test(keys, question, best_column(columns), 0, 3, lambda: calls.append(1))
    assert len(calls) == len(one.directions) == 6 and [each.half for each in one.directions] == ["B", "A"] * 3


def made(rng: np.random.Generator, n: int):
    ids = keys_of(n)
    components = Scores("clid", "large", (0, 1), ids, rng.normal(size=(n, 2)), "clid")
    parts = [Scores(name, "small", (50, 100), ids, np.exp(rng.normal(size=(n, 2)))) for name in ("sima", "loss")]
    return [*parts, components], rng.normal(size=(n, 7))


def test_what_is_chosen_does_not_depend_on_the_sides_of_the_half_that_is_tested():
    rng = np.random.default_rng(1)
    parts, complexity = made(rng, 160)
    question, fit = np.arange(160) < 80, np.arange(160) % 2 == 0
    other = question.copy()
    other[~fit] = rng.permutation(question[~fit])
    assert (other != question).any()
    for choose in (chooser(parts, features(complexity), complexity), blind_chooser({"a": complexity[:, 0], "b": complexity[:, 1]})):
        one, two = choose(question, fit), choose(other, fit)
        assert one.name == two.name and np.array_equal(one.scores, two.scores)


def test_all_attacks_together_are_chosen_where_no_single_one_shows_the_effect():
    rng = np.random.default_rng(2)
    question, shared = np.arange(400) < 200, rng.normal(size=400)
    noisy = {"sima": shared, "loss": -shared + 0.5 * question}
    parts = [Scores(name, "large", (50,), keys_of(400), (x + 0.1 * rng.normal(size=400))[:, None]) for name, x in noisy.items()]
    tested = cut_and_test(keys_of(400), question, chooser(parts), 0, 1)
    assert {each.chosen for each in tested.directions} == {"combined"} and tested.auc.value > 0.9


def test_complexity_is_taken_out_where_it_hides_the_effect():
    rng = np.random.default_rng(3)
    question, difficulty = np.arange(300) < 150, rng.normal(size=300)
    statistic = np.exp(3 * difficulty + 0.3 * rng.normal(size=300) - 0.5 * question)
    complexity = np.stack([difficulty, *rng.normal(size=(6, 300))], axis=1)
    tested = cut_and_test(
        keys_of(300), question, chooser([Scores("sima", "small", (50,), keys_of(300), statistic[:, None])], features(complexity)), 0, 1
    )
    assert all(each.chosen.startswith("sima[calibrated]") and each.chosen.endswith("at t = 50") for each in tested.directions)
    assert tested.p_value < 1e-6


def test_the_discriminant_scores_its_own_images_as_if_it_had_not_seen_them():
    aucs = []
    for run in range(100):
        rng = np.random.default_rng((run, 9))
        question = np.arange(60) < 20
        aucs.append(discriminant(rng.normal(size=(60, 40)), question, np.ones(60, dtype=bool), "all").auc)
    assert 0.5 < np.mean(aucs) < 0.6, "the best of four strengths, and no more"


def test_a_blind_scorer_finds_one_number_or_many():
    rng = np.random.default_rng(4)
    question, noise = np.arange(120) < 60, rng.normal(size=(120, 30))
    names = [f"number {i}" for i in range(30)]
    one, many = noise.copy(), noise + 0.45 * question[:, None]
    one[:, 7] -= 4 * question
    for numbers, said in ((one, None), (many, "all 30 statistics together")):
        tested = cut_and_test(keys_of(120), question, blind_chooser(dict(zip(names, numbers.T, strict=True))), 0, 3)
        assert tested.p_value < 1e-3
        assert said is None or said in {each.chosen for each in tested.directions}
