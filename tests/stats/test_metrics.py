"""The statistics against scikit-learn, scipy and straight-line re-implementations of the specification."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import betaincinv
from scipy.stats import binom, binomtest, ks_2samp, norm
from sklearn import metrics as sk

from diffleak import evaluate
from diffleak.stats import metrics
from diffleak.stats.binomial import at_most, rate_with_tail


def gaussians(m, n, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1.3, m), rng.normal(0, 1, n)


def tied(m, n, levels=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, levels + 1, m).astype(float), rng.integers(0, levels, n).astype(float)


def labelled(members, nonmembers):
    return np.repeat([1, 0], [len(members), len(nonmembers)]), np.concatenate([members, nonmembers])


SAMPLES = {
    "continuous": gaussians(340, 510),
    "tied": tied(230, 410),
    "constant": (np.ones(30), np.ones(40)),
    "heavy tailed": tuple(np.random.default_rng(3).standard_cauchy(300) * 1e6 + s for s in (1e6, 0)),
    "below one half": gaussians(120, 90, shift=-1.5),
    "tiny": (np.array([2.0, 1.0]), np.array([1.0, 0.0, 5.0])),
}
samples = pytest.mark.parametrize(("members", "nonmembers"), SAMPLES.values(), ids=SAMPLES.keys())


# AUC and ROC


@samples
def test_auc_equals_scikit_learn(members, nonmembers):
    assert metrics.auc(members, nonmembers) == pytest.approx(sk.roc_auc_score(*labelled(members, nonmembers)), abs=1e-12)


@pytest.mark.parametrize("count", [metrics.auc, metrics.auc_estimate])
def test_a_nan_is_no_score_that_beats_others(count):
    members, nonmembers = gaussians(20, 30)
    for side in (members, nonmembers):
        kept, side[3] = side[3], np.nan
        with pytest.raises(ValueError, match="some are NaN"):
            count(members, nonmembers)
        side[3] = kept


@samples
def test_roc_equals_scikit_learn_with_every_point_kept(members, nonmembers):
    fpr, tpr, thresholds = sk.roc_curve(*labelled(members, nonmembers), drop_intermediate=False)
    ours = metrics.roc(members, nonmembers)
    np.testing.assert_allclose(ours.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(ours.tpr, tpr, atol=1e-12)
    np.testing.assert_array_equal(ours.thresholds, thresholds)


def structural_components(members, nonmembers):
    """DeLong's components by the double loop of the paper."""
    wins = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in nonmembers] for x in members])
    return wins.mean(axis=1), wins.mean(axis=0)


@pytest.mark.parametrize(
    "pair", [gaussians(60, 45), tied(70, 50), gaussians(40, 90, shift=-1)], ids=["continuous", "tied", "below one half"]
)
def test_auc_interval_is_that_of_the_straight_line_delong_variance(pair):
    over_nonmembers, over_members = structural_components(*pair)
    value = over_nonmembers.mean()
    deviation = math.sqrt(np.var(over_nonmembers, ddof=1) / len(pair[0]) + np.var(over_members, ddof=1) / len(pair[1]))
    estimate = metrics.auc_estimate(*pair)
    assert estimate.method == "DeLong, logit scale"
    assert estimate.value == pytest.approx(value, abs=1e-12)
    for end, z in ((estimate.low, norm.ppf(0.025)), (estimate.high, norm.ppf(0.975))):
        odds = value / (1 - value) * math.exp(z * deviation / (value * (1 - value)))
        assert end == pytest.approx(odds / (1 + odds), abs=1e-12)


def test_auc_interval_stays_inside_zero_and_one():
    members, nonmembers = np.array([3.0, 4.0, 5.0, 0.5]), np.array([0.0, 1.0, 2.0])
    estimate = metrics.auc_estimate(members, nonmembers)
    assert estimate.value == pytest.approx(10 / 12)
    assert 0 < estimate.low < estimate.value < estimate.high < 1


@pytest.mark.parametrize(("members", "nonmembers"), [(1, 5), (5, 1), (1, 1)])
def test_auc_of_a_single_image_on_one_side_is_null_with_a_reason(members, nonmembers):
    estimate = metrics.auc_estimate(np.arange(members, dtype=float), np.arange(nonmembers, dtype=float))
    assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
    assert "at least 2 members and 2 non-members" in estimate.reason


@pytest.mark.parametrize(("m", "n"), [(2, 2), (10, 7), (30, 400)])
def test_perfect_separation_has_the_interval_of_as_many_pairs_as_the_smaller_side_has_images(m, n):
    high, low = np.arange(m, dtype=float) + n, np.arange(n, dtype=float)
    right, wrong = metrics.auc_estimate(high, low), metrics.auc_estimate(low, high)
    exact = binomtest(min(m, n), min(m, n)).proportion_ci(0.95, "exact")
    assert (right.value, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(exact.low)
    assert (wrong.value, wrong.low) == (0.0, 0.0)
    assert wrong.high == pytest.approx(1 - exact.low)


def test_scores_that_are_all_equal_have_the_interval_of_half_of_those_pairs():
    tied_scores = metrics.auc_estimate(np.ones(8), np.ones(6))
    exact = binomtest(3, 6).proportion_ci(0.95, "exact")
    assert (tied_scores.value, tied_scores.low, tied_scores.high) == pytest.approx((0.5, exact.low, exact.high))


def test_auc_difference_is_the_straight_line_paired_delong():
    rng = np.random.default_rng(5)
    shared_m, shared_n = rng.normal(1, 1, 50), rng.normal(0, 1, 40)
    members = np.stack([shared_m + rng.normal(0, 0.5, 50), np.round(shared_m)], axis=1)
    nonmembers = np.stack([shared_n + rng.normal(0, 0.5, 40), np.round(shared_n)], axis=1)
    (m0, n0), (m1, n1) = (structural_components(members[:, c], nonmembers[:, c]) for c in (0, 1))
    covariance_m, covariance_n = np.cov(m0, m1), np.cov(n0, n1)
    contrast = np.array([1, -1])
    deviation = math.sqrt(contrast @ (covariance_m / 50 + covariance_n / 40) @ contrast)
    estimate = metrics.auc_difference(members, nonmembers)
    assert estimate.value == pytest.approx(m0.mean() - m1.mean(), abs=1e-12)
    assert estimate.high - estimate.value == pytest.approx(norm.ppf(0.975) * deviation, abs=1e-12)
    assert estimate.value - estimate.low == pytest.approx(norm.ppf(0.975) * deviation, abs=1e-12)


def test_an_auc_difference_needs_two_images_of_each_side():
    members, nonmembers = np.array([[1.0, 2.0], [4.0, 1.0]]), np.array([[3.0, 0.0], [0.0, 3.0]])
    assert metrics.auc_difference(members, nonmembers).value == 0.75 - 0.5
    for few in (metrics.auc_difference(members[:1], nonmembers), metrics.auc_difference(members, nonmembers[:1])):
        assert (few.value, few.reason) == (None, "needs at least 2 members and 2 non-members")


@pytest.mark.parametrize(("other", "value"), [((9.0, 8.0, 7.0), 0.0), ((-7.0, -8.0, -9.0), 1.0)])
def test_an_auc_difference_without_variance_says_why_it_has_no_interval(other, value):
    """Of one attack on two models too, and where one separates the sides perfectly and the other one the wrong way round."""
    members, nonmembers = np.stack([[7.0, 8.0, 9.0], other], axis=1), np.zeros((3, 2))
    found = metrics.auc_difference(members, nonmembers)
    assert (found.value, found.low) == (value, None)
    assert found.reason == "no interval: the estimated variance is 0 (every image ranks alike in both, or all change alike)"


def test_auc_difference_interval_agrees_with_a_paired_bootstrap():
    rng = np.random.default_rng(6)
    members, nonmembers = rng.normal([1.0, 0.7], 1, (300, 2)), rng.normal(0, 1, (300, 2))
    members[:, 1] += 0.8 * members[:, 0]
    nonmembers[:, 1] += 0.8 * nonmembers[:, 0]
    draws = []
    for _ in range(1500):
        m, n = members[rng.integers(0, 300, 300)], nonmembers[rng.integers(0, 300, 300)]
        draws.append(metrics.auc(m[:, 0], n[:, 0]) - metrics.auc(m[:, 1], n[:, 1]))
    estimate = metrics.auc_difference(members, nonmembers)
    assert (estimate.high - estimate.low) / (2 * norm.ppf(0.975)) == pytest.approx(np.std(draws), rel=0.1)


def test_an_auc_gap_is_the_difference_with_the_intervals_of_both_groups_combined():
    first, second = gaussians(40, 60, 1.2, seed=1), gaussians(30, 50, 0.4, seed=2)
    a, b, gap = metrics.auc_estimate(*first), metrics.auc_estimate(*second), metrics.auc_gap(first, second)
    assert gap.value == pytest.approx(sk.roc_auc_score(*labelled(*first)) - sk.roc_auc_score(*labelled(*second)), abs=1e-12)
    assert gap.low == pytest.approx(gap.value - math.sqrt((a.value - a.low) ** 2 + (b.high - b.value) ** 2), abs=1e-12)
    assert gap.high == pytest.approx(gap.value + math.sqrt((a.high - a.value) ** 2 + (b.value - b.low) ** 2), abs=1e-12)


def test_an_auc_gap_of_large_groups_has_the_straight_line_delong_variance():
    first, second = gaussians(900, 800, 0.8, seed=1), gaussians(700, 1000, 0.4, seed=2)
    parts = [part for group in (first, second) for part in structural_components(*group)]
    half = norm.ppf(0.975) * math.sqrt(sum(np.var(part, ddof=1) / len(part) for part in parts))
    gap = metrics.auc_gap(first, second)
    assert gap.high - gap.value == pytest.approx(half, rel=0.03)
    assert gap.value - gap.low == pytest.approx(half, rel=0.03)


def test_an_auc_gap_of_separated_groups_stays_uncertain_and_within_one():
    separated = (np.arange(5) + 10.0, np.arange(6.0))
    gap = metrics.auc_gap(separated, separated)
    assert gap.value == 0 and -1 <= gap.low < -0.2 and 0.2 < gap.high <= 1
    opposite = metrics.auc_gap(separated, separated[::-1])
    assert opposite.value == 1 and opposite.low < opposite.high <= 1


@pytest.mark.parametrize("empty", range(4))
def test_an_auc_gap_with_a_single_image_on_some_side_is_null_with_a_reason(empty):
    sides = [np.arange(3.0) for _ in range(4)]
    sides[empty] = sides[empty][:1]
    gap = metrics.auc_gap((sides[0], sides[1]), (sides[2], sides[3]))
    assert (gap.value, gap.low, gap.high) == (None, None, None)
    assert gap.reason == "needs at least 2 members and 2 non-members in each of the two groups"


def paired(m, n, seed=0, shifts=(1.2, 0.6)):
    rng = np.random.default_rng(seed)
    sides = [rng.normal(0, 1, (size, 2)) + rng.normal(0, 1, (size, 1)) for size in (m, n)]
    return sides[0] + shifts, sides[1]


def test_an_accuracy_difference_counts_the_images_that_only_one_attack_gets_right():
    members, nonmembers, thresholds = *paired(70, 90), np.array([0.5, 0.3])
    only = [0, 0]
    for rows, is_member in ((members, True), (nonmembers, False)):
        for row in rows:
            right = [(score > threshold) == is_member for score, threshold in zip(row, thresholds, strict=True)]
            only[0] += right[0] and not right[1]
            only[1] += right[1] and not right[0]
    found = metrics.accuracy_difference(members, nonmembers, thresholds)
    accuracies = [metrics.accuracy_at(thresholds[c], members[:, c], nonmembers[:, c]).value for c in (0, 1)]
    assert found.value == pytest.approx((only[0] - only[1]) / 160) == pytest.approx(accuracies[0] - accuracies[1])
    half_each = np.repeat([1.0, -1.0, 0.0], [2 * only[0] + 1, 2 * only[1] + 1, 2 * (160 - sum(only)) + 2])  # in half images
    deviation = half_each.std() / math.sqrt(162)
    assert found.low == pytest.approx(half_each.mean() - norm.ppf(0.975) * deviation)
    assert found.high == pytest.approx(half_each.mean() + norm.ppf(0.975) * deviation)


def test_an_accuracy_difference_counts_a_score_at_the_threshold_as_a_nonmember():
    members, nonmembers = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[1.0, 0.5], [2.0, 1.0]])
    found = metrics.accuracy_difference(members, nonmembers, np.array([1.0, 0.5]))
    assert found.value == (1 - 3) / 4  # first: the non-member at 1; second: both members and the non-member at 0.5


def test_an_accuracy_difference_of_attacks_that_disagree_on_every_image_stays_within_one():
    members, nonmembers = np.tile([1.0, -1.0], (6, 1)), np.tile([-1.0, 1.0], (4, 1))
    better = metrics.accuracy_difference(members, nonmembers, np.zeros(2))
    worse = metrics.accuracy_difference(members[:, ::-1], nonmembers[:, ::-1], np.zeros(2))
    assert (better.value, better.high, worse.value, worse.low) == (1, 1, -1, -1)
    assert 0 < better.low < 1 and worse.high == pytest.approx(-better.low)


@pytest.mark.parametrize("size", [1, 5, 500])
def test_an_accuracy_difference_of_attacks_that_never_disagree_still_has_a_width(size):
    scores = np.tile(np.arange(size, dtype=float)[:, None], 2)
    found = metrics.accuracy_difference(scores, scores, np.zeros(2))
    assert found.value == 0 and -1 <= found.low < 0 < found.high <= 1
    assert found.high == pytest.approx(-found.low)


@pytest.mark.parametrize(("m", "n", "fpr"), [(80, 150, 0.1), (40, 1200, 0.01), (50, 101, 0.1)])
def test_a_tpr_difference_is_that_of_the_two_rates_with_resampled_images_and_rederived_thresholds(monkeypatch, m, n, fpr):
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", 600)
    members, nonmembers = paired(m, n)
    found = metrics.tpr_difference(members, nonmembers, fpr)
    rates = [metrics.tpr_at_fpr(members[:, c], nonmembers[:, c], fpr).value for c in (0, 1)]
    assert found.value == pytest.approx(rates[0] - rates[1])
    drawn = metrics._resampled(members, nonmembers, math.floor(fpr * n + 1e-9), np.random.default_rng((0, 2)))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
    rng, draws = np.random.default_rng(77), []
    for _ in range(600):
        own, others = members[rng.integers(0, m, m)], nonmembers[rng.integers(0, n, n)]
        draws.append(np.subtract(*(exact_tpr(own[:, c], others[:, c], fpr) for c in (0, 1))))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))


@pytest.mark.parametrize("levels", [None, 0.2], ids=["continuous", "tied"])
@pytest.mark.parametrize("k", [12, 60])
def test_resamples_drawn_by_counts_have_the_distribution_of_plain_ones(monkeypatch, k, levels):
    draws, m = 4000, 300
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", draws)
    sides = paired(m, 400)
    if levels:
        sides = tuple(np.round(side / levels) * levels for side in sides)
    plain = np.rint(m * metrics._resampled(*sides, k, np.random.default_rng(3)))
    monkeypatch.setattr(metrics, "_resampled", None)  # where no threshold lies outside of the window, none is drawn image by image
    counted = np.rint(m * metrics._counted(*sides, k, np.random.default_rng(4)))
    assert ks_2samp(plain, counted).pvalue > 1e-4
    error = 4.5 * math.sqrt(2 * 0.025 * 0.975 / draws)
    for level in (0.025, 0.975):
        at = np.quantile(plain, level)
        assert abs(np.mean(counted < at) - np.mean(plain < at)) < error


@pytest.mark.parametrize("row", [0, -1])
def test_a_resample_may_draw_any_image(monkeypatch, row):
    draws, size = 1000, 20
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", draws)
    member, held_out = np.zeros((size, 2)), np.zeros((size, 2))
    member[row, 0], held_out[row, 0] = 1, 2
    found = metrics._resampled(member, np.zeros((size, 2)), 3, np.random.default_rng(0))  # above 0 where that member is drawn
    lost = metrics._resampled(np.tile([1.0, 0.0], (size, 1)), held_out, 0, np.random.default_rng(1))  # 0 where that image is drawn
    drawn = 1 - (1 - 1 / size) ** size
    for share in (np.mean(found > 0), np.mean(lost == 0)):
        assert abs(share - drawn) < 4.5 * math.sqrt(drawn * (1 - drawn) / draws)


@pytest.mark.parametrize("k", [10, 150])
def test_a_tpr_difference_agrees_on_both_sides_of_the_size_from_which_it_counts(monkeypatch, k):
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", 1000)
    members, nonmembers = paired(1500, 1500)
    monkeypatch.setattr(metrics, "MOST_RESAMPLED", 3000)
    plain = metrics.tpr_difference(members, nonmembers, k / 1500)
    monkeypatch.setattr(metrics, "MOST_RESAMPLED", 2999)
    counted = metrics.tpr_difference(members, nonmembers, k / 1500)
    assert plain.value == counted.value and plain.method == counted.method
    assert plain.low != counted.low or plain.high != counted.high, "drawn in another way"
    for one, other in ((plain.low, counted.low), (plain.high, counted.high)):
        assert one == pytest.approx(other, abs=0.15 * (plain.high - plain.low))


def test_a_resample_whose_threshold_lies_outside_of_the_window_is_drawn_image_by_image(monkeypatch):
    monkeypatch.setattr(metrics, "WINDOW", 0)
    monkeypatch.setattr(metrics, "PAIRED_BOOTSTRAPS", 50)
    sides = paired(200, 300)
    found = metrics._counted(*sides, 20, np.random.default_rng(0))
    assert found.shape == (50,)
    assert abs(found.mean() - metrics.tpr_difference(*sides, 20 / 300).value) < 0.1


def test_a_tpr_difference_of_an_attack_and_itself_by_counts_is_zero_in_every_resample():
    members, nonmembers = paired(60, 120)
    assert not metrics._counted(members[:, [0, 0]], nonmembers[:, [0, 0]], 12, np.random.default_rng(0)).any()


@pytest.mark.parametrize("make", [gaussians, tied])
def test_placements_are_the_straight_count_of_pairs(make):
    members, nonmembers = make(37, 53)
    above = (members[:, None] > nonmembers) + 0.5 * (members[:, None] == nonmembers)
    found = metrics._placements(members, nonmembers)
    assert found[0].tolist() == (above.sum(axis=1) / 53).tolist()
    assert found[1].tolist() == (1 - (37 - above.sum(axis=0)) / 37).tolist(), "as 1 - a share, so that older results stay to the bit"
    assert metrics.auc(members, nonmembers) == above.sum() / (37 * 53)


def test_a_tpr_difference_of_an_attack_and_itself_is_exactly_zero_and_the_swap_changes_the_sign():
    members, nonmembers = paired(60, 120)
    same = metrics.tpr_difference(members[:, [0, 0]], nonmembers[:, [0, 0]], 0.1)
    assert (same.value, same.low, same.high) == (0, None, None), "no resample changes it, which is no certainty"
    there, back = (metrics.tpr_difference(members[:, c], nonmembers[:, c], 0.1) for c in ([0, 1], [1, 0]))
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


@pytest.mark.parametrize(("n", "fpr"), [(999, 0.01), (100, 0.01), (99, 0.1)])
def test_a_tpr_difference_that_fewer_than_ten_false_positives_decide_has_no_interval(n, fpr):
    found = metrics.tpr_difference(*paired(200, n), fpr)
    assert found.value is not None and found.low is None and found.high is None and found.method is None
    assert found.reason == "no interval: fewer than 10 false alarms decide it"


def test_a_tpr_difference_to_an_attack_that_finds_no_member_is_the_whole_rate():
    members, nonmembers = paired(60, 50)
    members[:, 1] = nonmembers[:, 1].min() - 1
    rate = exact_tpr(members[:, 0], nonmembers[:, 0], 0.1)
    assert rate > 0 and metrics.tpr_difference(members, nonmembers, 0.1).value == pytest.approx(rate)


def test_a_tpr_difference_that_ten_false_positives_decide_has_one():
    found = metrics.tpr_difference(*paired(200, 100), 0.1)
    assert found.low <= found.value <= found.high and found.reason is None


@pytest.mark.parametrize(("m", "n", "reason"), [(20, 99, "needs >= 100 non-members, has 99"), (0, 200, "no members")])
def test_a_tpr_difference_that_cannot_be_estimated_is_null_with_the_reason_of_the_rate(m, n, reason):
    found = metrics.tpr_difference(*paired(m, n), 0.01)
    assert found.value is None and reason in found.reason


@pytest.mark.parametrize("fpr", [0.1, 0.01, 0.29])
@pytest.mark.parametrize("n", [5, 100, 290])
def test_the_bare_rate_is_that_of_the_estimate_and_null_where_there_is_none(n, fpr):
    for members, nonmembers in (gaussians(37, n), tied(37, n)):
        expected = exact_tpr(members, nonmembers, fpr) if round(fpr * n, 6) >= 1 else None
        assert metrics.tpr_value(members, nonmembers, fpr) == metrics.tpr_at_fpr(members, nonmembers, fpr).value == expected
        assert metrics.tpr_value(members[:0], nonmembers, fpr) is None


# TPR at a false-positive rate


def exact_tpr(members, nonmembers, fpr):
    """The highest TPR of scikit-learn's exact ROC whose FPR is at most `fpr`; the ROC's own rounding is allowed for."""
    curve_fpr, curve_tpr, _ = sk.roc_curve(*labelled(members, nonmembers), drop_intermediate=False)
    return curve_tpr[curve_fpr <= fpr + 1e-12].max()


@pytest.mark.parametrize("fpr", [0.1, 0.01, 0.001, 0.29, 0.57])
@pytest.mark.parametrize("n", [10, 11, 99, 100, 109, 999, 1000, 1999, 2500, 2900, 5000])
@pytest.mark.parametrize("make", [gaussians, tied, lambda m, n: tied(m, n, levels=300), lambda m, n: gaussians(m, n, shift=-2)])
def test_tpr_at_a_rate_is_the_highest_of_scikit_learns_exact_roc(make, n, fpr):
    members, nonmembers = make(170, n)
    rate, mirror = metrics.tpr_at_fpr(members, nonmembers, fpr), metrics.tnr_at_fnr(nonmembers, members, fpr)
    if round(fpr * n, 6) < 1:
        assert rate.value is mirror.value is None
        return
    assert rate.value == pytest.approx(exact_tpr(members, nonmembers, fpr), abs=1e-12)
    assert mirror.value == pytest.approx(exact_tpr(-members, -nonmembers, fpr), abs=1e-12)
    assert rate.fpr == fpr and rate.low <= rate.value <= rate.high and mirror.low <= mirror.value <= mirror.high


def test_a_rate_of_one_percent_of_a_hundred_images_allows_one_false_alarm_and_not_none():
    nonmembers = np.arange(100.0)
    assert metrics.tpr_at_fpr(np.array([98.5, 97.5, 99.5, 97.9]), nonmembers, 0.01).value == 0.5
    assert metrics.tpr_at_fpr(np.array([98.5]), nonmembers, 0.001).value is None
    assert metrics.threshold_at(nonmembers, 0) == 99 and metrics.threshold_at(nonmembers, 99) == 0


@pytest.mark.parametrize("k", [0, 1, 7, 39])
def test_a_threshold_raises_at_most_k_false_alarms_and_any_lower_one_raises_more(k):
    for _, nonmembers in (gaussians(1, 40), tied(1, 40), (None, np.ones(40))):
        threshold = metrics.threshold_at(nonmembers, k)
        assert np.sum(nonmembers > threshold) <= k < np.sum(nonmembers >= threshold)


def test_the_rates_of_the_rounding_tests_do_lose_one_when_multiplied_naively():
    assert (int(0.29 * 100), int(0.57 * 100)) == (28, 56)


def test_ties_at_the_threshold_cost_the_attacker():
    nonmembers = np.concatenate([np.zeros(90), np.ones(10)])
    assert metrics.tpr_at_fpr(np.ones(50), nonmembers, 0.1).value == 1.0, "the ten false alarms are allowed"
    assert metrics.tpr_at_fpr(np.ones(50), nonmembers, 0.09).value == 0.0, "nine are not, and the ten cannot be told apart"
    assert metrics.tpr_at_fpr(np.full(50, 1.0001), nonmembers, 0.09).value == 1.0
    assert metrics.tpr_at_fpr(np.ones(50), np.ones(100), 0.1).value == 0.0


@pytest.mark.parametrize(("n", "fpr", "needed"), [(9, 0.1, 10), (99, 0.01, 100), (999, 0.001, 1000), (1, 0.1, 10)])
def test_a_rate_that_the_sample_cannot_support_is_null_and_names_what_it_needs(n, fpr, needed):
    rate = metrics.tpr_at_fpr(*gaussians(500, n), fpr)
    assert (rate.value, rate.low, rate.high, rate.support) == (None, None, None, "none")
    assert f"not estimable (needs >= {needed} non-members" in rate.reason
    supported = metrics.tpr_at_fpr(*gaussians(500, needed), fpr)
    assert supported.value is not None
    assert supported.reason is None


@pytest.mark.parametrize(
    ("n", "fpr", "support"), [(99, 0.1, "low"), (100, 0.1, "ok"), (999, 0.01, "low"), (1000, 0.01, "ok"), (9999, 0.001, "low")]
)
def test_fewer_than_ten_expected_false_positives_are_flagged_as_low_support(n, fpr, support):
    assert metrics.tpr_at_fpr(*gaussians(300, n), fpr).support == support


def test_the_record_names_the_method_of_each_rate_interval():
    assert metrics.tpr_at_fpr(*gaussians(300, 1000), 0.01).method == "stratified bootstrap"
    assert metrics.tpr_at_fpr(*gaussians(300, 999), 0.01).method == "joint order statistics"


@pytest.mark.parametrize(("hits", "bootstrapped"), [(5, False), (6, True), (94, True), (95, False)])
def test_a_rate_is_bootstrapped_where_at_least_six_members_lie_on_either_side_of_the_threshold(hits, bootstrapped):
    nonmembers, members = np.arange(100.0), np.repeat([200.0, -1.0], [hits, 100 - hits])
    found = metrics.tpr_at_fpr(members, nonmembers, 0.1)
    assert found.value == hits / 100
    assert found.method == ("stratified bootstrap" if bootstrapped else "joint order statistics")


def test_a_rate_of_zero_or_one_still_has_an_interval_of_positive_width():
    nothing = metrics.tpr_at_fpr(np.zeros(300), np.arange(1.0, 1001.0), 0.01)
    everything = metrics.tpr_at_fpr(np.full(300, 5000.0), np.arange(1.0, 1001.0), 0.01)
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high > binomtest(0, 300).proportion_ci(0.95, "exact").high - 1e-12
    assert (everything.value, everything.high) == (1.0, 1.0)
    assert everything.low < binomtest(300, 300).proportion_ci(0.95, "exact").low + 1e-12


def order_statistic_interval(members, nonmembers, fpr):
    """Each of four one-sided statements at 1.25 %: two non-member order statistics around the quantile, two binomial bounds."""
    n, m, risk = len(nonmembers), len(members), 0.05 / 4
    falling = sorted(nonmembers, reverse=True)
    # the j-th largest lies above the quantile when at least j of N exceed it
    above = [falling[j - 1] for j in range(1, n + 1) if binom.sf(j - 1, n, fpr) >= 1 - risk]
    below = [falling[j] for j in range(n) if binom.cdf(j, n, fpr) >= 1 - risk]
    fewest = sum(x > above[-1] for x in members) if above else 0
    most = sum(x > below[0] for x in members) if below else m
    low = binomtest(fewest, m).proportion_ci(1 - 2 * risk, "exact").low
    return low, binomtest(most, m).proportion_ci(1 - 2 * risk, "exact").high


@pytest.mark.parametrize(("m", "n", "fpr"), [(200, 300, 0.01), (150, 80, 0.1), (400, 100, 0.01), (300, 15, 0.1), (50, 990, 0.01)])
def test_the_joint_order_statistic_interval_follows_its_definition(m, n, fpr):
    pair = gaussians(m, n, shift=2)
    low, high = order_statistic_interval(*pair, fpr)
    rate = metrics.tpr_at_fpr(*pair, fpr)
    assert rate.method == "joint order statistics"
    assert rate.low == pytest.approx(min(low, rate.value), abs=1e-9)
    assert rate.high == pytest.approx(max(high, rate.value), abs=1e-9)


def resampled_rates(members, nonmembers, fpr, draws, seed):
    rng = np.random.default_rng(seed)
    values = np.empty(draws)
    for b in range(draws):
        m = members[rng.integers(0, len(members), len(members))]
        n = nonmembers[rng.integers(0, len(nonmembers), len(nonmembers))]
        values[b] = exact_tpr(m, n, fpr)
    return values


bootstrapped_pairs = pytest.mark.parametrize(
    ("pair", "fpr"),
    [
        (gaussians(400, 1000), 0.01),
        (gaussians(150, 250, shift=0), 0.1),
        (tied(300, 200, levels=40), 0.1),
        (gaussians(90, 1500, shift=3), 0.01),
    ],
    ids=["few false positives", "null", "tied", "high rate"],
)


@pytest.mark.slow
@bootstrapped_pairs
def test_the_exact_bootstrap_agrees_with_plain_resampling_that_rederives_the_threshold(pair, fpr):
    draws = 4000
    plain = resampled_rates(*pair, fpr, draws, seed=11)
    rate = metrics.tpr_at_fpr(*pair, fpr, seed=7)
    assert rate.method == "stratified bootstrap"
    error = 4.5 * math.sqrt(0.025 * 0.975 * (1 / draws + 1 / metrics.BOOTSTRAPS))
    for end, level in ((rate.low, 0.025), (rate.high, 0.975)):
        assert np.mean(plain < end - 1e-9) <= level + error
        assert np.mean(plain <= end + 1e-9) >= level - error


@bootstrapped_pairs
def test_the_ends_of_the_bootstrap_interval_are_the_exact_quantiles_of_all_resamples(monkeypatch, pair, fpr):
    draws = 200_000
    monkeypatch.setattr(metrics, "BOOTSTRAPS", draws)
    (members, nonmembers), rate = pair, metrics.tpr_at_fpr(*pair, fpr, seed=7)
    m, n, k = len(members), len(nonmembers), round(fpr * len(nonmembers))
    # the threshold is the r-th smallest image or a smaller one where at least n - k of n draws are among the r smallest
    chance = np.diff(binom.sf(n - k - 1, n, np.arange(n + 1) / n))
    above = np.array([np.mean(members > threshold) for threshold in np.sort(nonmembers)])
    at_most_so_many = lambda hits: float(chance @ binom.cdf(hits, m, above))
    error = 4.5 * math.sqrt(0.025 * 0.975 / draws)
    for end, level in ((rate.low, 0.025), (rate.high, 0.975)):
        hits = round(end * m)
        assert at_most_so_many(hits - 1) <= level + error and at_most_so_many(hits) >= level - error


def test_the_bootstrap_interval_is_reproducible_and_depends_on_the_seed_only_slightly():
    pair = gaussians(400, 2000)
    first, again, other = (metrics.tpr_at_fpr(*pair, 0.01, seed) for seed in (0, 0, 1))
    assert first == again
    assert other.low == pytest.approx(first.low, abs=0.02)
    assert other.value == first.value


# the mirror


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.001])
def test_tnr_at_fnr_is_the_tpr_of_the_mirrored_problem(rate):
    members, nonmembers = gaussians(1200, 700)
    ours = metrics.tnr_at_fnr(members, nonmembers, rate, seed=3).model_dump()
    mirror = metrics.tpr_at_fpr(-nonmembers, -members, rate, seed=3).model_dump()
    assert ours.pop("fnr") == mirror.pop("fpr")
    assert ours == mirror


def test_tnr_counts_the_nonmembers_below_all_but_one_percent_of_the_members():
    members, nonmembers = np.arange(1000.0), np.array([9.5, 10.5, -3.0, 500.0])
    assert metrics.tnr_at_fnr(members, nonmembers, 0.01).value == 0.5  # below 10: ten members are missed


def test_a_tnr_that_is_not_estimable_asks_for_members():
    rate = metrics.tnr_at_fnr(*gaussians(99, 500), 0.01)
    assert rate.value is None
    assert "needs >= 100 members, has 99" in rate.reason
    assert "non-members" not in rate.reason


# accuracy


def brute_force_accuracy(members, nonmembers):
    levels = np.concatenate([[-np.inf], members, nonmembers])
    return max((np.sum(members > c) + np.sum(nonmembers <= c)) / (len(members) + len(nonmembers)) for c in levels)


@samples
def test_best_accuracy_is_the_maximum_over_all_thresholds_and_is_reached_at_the_one_returned(members, nonmembers):
    threshold, accuracy = metrics.best_accuracy(members, nonmembers)
    assert accuracy == pytest.approx(brute_force_accuracy(members, nonmembers), abs=1e-12)
    reached = (np.sum(members > threshold) + np.sum(nonmembers <= threshold)) / (len(members) + len(nonmembers))
    assert reached == pytest.approx(accuracy, abs=1e-12)
    assert metrics.accuracy_at(threshold, members, nonmembers).value == pytest.approx(accuracy, abs=1e-12)


def test_the_best_threshold_lies_midway_between_the_neighbouring_scores():
    assert metrics.best_accuracy(np.array([4.0, 5.0]), np.array([1.0, 2.0])) == (3.0, 1.0)


def test_of_equally_good_thresholds_the_highest_is_taken():
    # 3.5 and 1.5 both get 3 of 4 right
    assert metrics.best_accuracy(np.array([4.0, 2.0]), np.array([3.0, 1.0])) == (3.5, 0.75)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_best_threshold_separates_scores_that_are_neighbouring_floats(steps):
    low = 1.0
    for _ in range(steps):
        low = np.nextafter(low, 2)
    members, nonmembers = np.array([np.nextafter(low, 2)]), np.array([low])
    threshold, accuracy = metrics.best_accuracy(members, nonmembers)
    assert accuracy == 1.0
    assert metrics.accuracy_at(threshold, members, nonmembers).value == 1.0


def test_the_best_threshold_separates_scores_near_the_largest_float():
    members, nonmembers = np.array([1.7e308]), np.array([1.5e308])
    threshold, _ = metrics.best_accuracy(members, nonmembers)
    assert metrics.accuracy_at(threshold, members, nonmembers).value == 1.0


def test_accuracy_at_a_given_threshold_counts_both_sides_with_an_exact_interval():
    members, nonmembers = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 2.5, 9.0])
    accuracy = metrics.accuracy_at(2.0, members, nonmembers)  # right: 3.0 | 0.0, 2.0
    exact = binomtest(3, 7).proportion_ci(0.95, "exact")
    assert accuracy.value == pytest.approx(3 / 7)
    assert (accuracy.low, accuracy.high) == pytest.approx((exact.low, exact.high))
    assert accuracy.baseline == pytest.approx(4 / 7)
    assert accuracy.threshold == 2.0


@pytest.mark.parametrize(("auc", "m", "n"), [(0.7, 5, 3), (0.95, 2, 7), (0.5, 4, 4)])
def test_the_deviation_of_an_auc_is_that_of_exponential_scores_pair_by_pair(auc, m, n):
    """Hanley and McNeil's is exact for scores of negative exponential distributions, whose rates have the ratio auc / (1 - auc)."""
    ratio = auc / (1 - auc)
    density = lambda x: np.exp(-x / ratio) / ratio  # of an member; a non-member's has mean 1
    two_members = quad(lambda x: np.exp(-x) * np.exp(-x / ratio) ** 2, 0, np.inf)[0]  # both above one non-member
    two_others = quad(lambda x: density(x) * (1 - np.exp(-x)) ** 2, 0, np.inf)[0]  # one above both
    pairs = [(i, j) for i in range(m) for j in range(n)]
    together = {(True, True): auc, (False, True): two_members, (True, False): two_others, (False, False): auc**2}
    variance = sum(together[i == k, j == h] - auc**2 for i, j in pairs for k, h in pairs) / len(pairs) ** 2
    assert metrics.auc_deviation(np.array([auc]), float(m), float(n)) == pytest.approx(np.sqrt(variance), rel=1e-7)


@pytest.mark.parametrize("trials", [1, 7, 200, 40_000])
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5, 0.999, 1])
@pytest.mark.parametrize("alpha", [0.05, 0.025])
def test_clopper_pearson_equals_scipy(trials, share, alpha):
    successes = round(share * trials)
    exact = binomtest(successes, trials).proportion_ci(1 - alpha, "exact")
    assert metrics.clopper_pearson(successes, trials, alpha) == pytest.approx((exact.low, exact.high), abs=1e-10)


@pytest.mark.parametrize("trials", [1, 2, 9, 50, 1600, 1_000_000])
@pytest.mark.parametrize("share", [0, 1e-6, 0.002, 0.3, 0.5, 0.97, 1])
def test_the_rate_with_a_given_tail_equals_scipy_however_small_the_tail(trials, share):
    for successes in {math.floor(share * trials), math.ceil(share * trials)} - {0}:
        for tail in (0.5, 0.025, 1e-4, 1e-12, 1e-100):
            exact = betaincinv(successes, trials - successes + 1, tail)
            assert rate_with_tail(successes, trials, tail) == pytest.approx(exact, rel=1e-8, abs=0), (successes, tail)
            assert rate_with_tail(successes, trials, tail) == pytest.approx(exact, rel=0, abs=1e-10), (successes, tail)
    assert rate_with_tail(0, trials, 0.025) == 0


@pytest.mark.parametrize("trials", [1, 2, 15, 300, 1_000_000])
@pytest.mark.parametrize("rate", [1e-6, 0.001, 0.1, 0.5, 0.999])
def test_binomial_probabilities_equal_scipy(trials, rate):
    counts = np.unique(np.clip(round(trials * rate) + np.arange(-2000, 2001), 0, trials))
    assert at_most(trials, rate)[counts] == pytest.approx(binom.cdf(counts, trials, rate), abs=1e-12)
    assert len(at_most(trials, rate)) == trials + 1


# thresholds carried from calibrate to test


def test_the_achieved_fpr_is_that_of_the_calibrated_threshold_on_other_nonmembers():
    calibrate, test = gaussians(500, 300, seed=1)
    threshold = sorted(calibrate, reverse=True)[5]  # above it are floor(0.01 * 500)
    false = int(sum(x > threshold for x in test))
    exact = binomtest(false, 300).proportion_ci(0.95, "exact")
    achieved = metrics.achieved_fpr(calibrate, test)
    assert achieved.target == 0.01
    assert achieved.threshold == threshold
    assert achieved.value == pytest.approx(false / 300)
    assert (achieved.low, achieved.high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("n", "target"), [(9, None), (10, 0.1), (99, 0.1), (100, 0.01), (5000, 0.01)])
def test_the_achieved_fpr_aims_at_one_percent_or_at_ten_when_calibrate_is_small(n, target):
    achieved = metrics.achieved_fpr(np.arange(n, dtype=float), np.arange(50.0))
    assert achieved.target == target
    assert (achieved.reason is None) == (target is not None)
    assert metrics.achieved_fpr(np.arange(n, dtype=float), np.empty(0)).value is None, "no held-out image to count"


def test_exposure_is_the_share_of_nonmembers_that_score_at_least_as_high():
    scores, nonmembers = tied(40, 70)
    expected = [np.mean(nonmembers >= s) for s in scores]
    np.testing.assert_allclose(metrics.exposure(scores, nonmembers), expected, atol=1e-12)


# nothing is rescaled


MONOTONE = {
    "exponential": np.exp,
    "times a million": lambda x: 1e6 * x,
    "in the thousands": lambda x: 4000 + 300 * x,
    "cube": lambda x: x**3,
    "equal in float32": lambda x: 1 + x * 2.0**-40,
    "tiny": lambda x: 1e-200 * x,
}


def of_ranks(result):
    """Everything in a result that depends on ranks only."""
    dump = result.model_dump()
    for key in ("asr", "achieved_fpr"):
        dump[key].pop("threshold")
    return dump


@pytest.mark.parametrize("transform", MONOTONE.values(), ids=MONOTONE.keys())
def test_a_monotone_transform_of_the_scores_changes_nothing(transform):
    members, nonmembers = (np.round(x, 2) for x in gaussians(1100, 1200))
    assert of_ranks(evaluate(transform(members), transform(nonmembers))) == of_ranks(evaluate(members, nonmembers))


def test_the_float32_transform_really_collapses_in_float32():
    members, _ = gaussians(1100, 1200)
    assert len(np.unique(MONOTONE["equal in float32"](members).astype(np.float32))) == 1


def test_raw_statistics_in_the_thousands_are_ranked_not_squashed():
    # a sigmoid of these is exactly 1.0 everywhere, which would give AUC 0.5
    members, nonmembers = gaussians(500, 1000, shift=3)
    result = evaluate(5000 + 100 * members, 5000 + 100 * nonmembers)
    assert result.auc.value == pytest.approx(sk.roc_auc_score(*labelled(members, nonmembers)))
    assert result.auc.value > 0.95
    assert result.tpr_at_fpr[1].value == pytest.approx(exact_tpr(members, nonmembers, 0.01))


# the papers' conventions, straight line


def secmi_grid(members, nonmembers):
    m, n = -members, -nonmembers
    low, high = min(m.min(), n.min()), max(m.max(), n.max())
    tpr, fpr, asr = [], [], []
    for i in range(2000):
        c = low + i * ((high - low) / 2000)
        tpr.append(np.mean(m <= c))
        fpr.append(np.mean(n <= c))
        asr.append((np.sum(m <= c) + np.sum(n > c)) / (len(m) + len(n)))
    area = sum((fpr[i + 1] - fpr[i]) * (tpr[i + 1] + tpr[i]) / 2 for i in range(1999))
    at = [tpr[min(range(2000), key=lambda i: abs(fpr[i] - a))] for a in (0.1, 0.01, 0.001)]
    return area, max(asr), at


def from_curve(pick, positive=1):
    def convention(members, nonmembers):
        y, s = labelled(members, nonmembers)
        if positive == 0:
            y, s = 1 - y, -s
        fpr, tpr, _ = sk.roc_curve(y, s, drop_intermediate=False)
        return sk.roc_auc_score(y, s), brute_force_accuracy(members, nonmembers), [pick(fpr, tpr, a) for a in (0.1, 0.01, 0.001)]

    return convention


STRAIGHT = {
    "secmi-grid": secmi_grid,
    "pia-strict": from_curve(lambda fpr, tpr, a: tpr[np.where(fpr < a)[0][-1]]),
    "swapped-strict": from_curve(lambda fpr, tpr, a: tpr[np.where(fpr < a)[0][-1]], positive=0),
    "first-ge": from_curve(lambda fpr, tpr, a: tpr[np.where(fpr >= a)[0][0]]),
}


@pytest.mark.parametrize("name", STRAIGHT)
@pytest.mark.parametrize(
    "pair",
    [gaussians(1000, 1000, shift=0.9), gaussians(1500, 1100, shift=0.9, seed=4), tied(700, 700, levels=30)],
    ids=["balanced", "unbalanced", "tied"],
)
def test_a_convention_equals_its_straight_line_reimplementation(name, pair):
    result = evaluate(*pair, convention=name)
    area, accuracy, rates = STRAIGHT[name](*pair)
    assert result.convention == name
    assert result.auc.value == pytest.approx(area, abs=1e-9)
    assert result.asr.value == pytest.approx(accuracy, abs=1e-9)
    assert [rate.value for rate in result.tpr_at_fpr] == pytest.approx(rates, abs=1e-9)


@pytest.mark.parametrize("name", STRAIGHT)
def test_numbers_of_a_convention_carry_no_interval_and_say_why(name):
    result = evaluate(*gaussians(300, 300), convention=name)
    for estimate in (result.auc, result.asr, *result.tpr_at_fpr):
        assert estimate.low is None
        assert estimate.high is None
        assert name in estimate.reason


def heavy_tailed():
    """Sums of squares of which a few are enormous; TPR at 1 % FPR is 9 % in the population."""
    rng = np.random.default_rng(8)
    members, nonmembers = 10 - rng.normal(norm.ppf(0.99) - norm.ppf(0.91), 1, 5000), 10 - rng.normal(0, 1, 5000)
    nonmembers[:3] = 1e9
    return -members, -nonmembers


def test_the_linear_grid_loses_a_heavy_tailed_attack_that_the_exact_roc_finds():
    pair = heavy_tailed()
    exact, grid = (evaluate(*pair, convention=name).tpr_at_fpr[1].value for name in ("member-exact", "secmi-grid"))
    assert exact == pytest.approx(0.09, abs=0.02)
    assert exact == exact_tpr(*pair, 0.01)
    assert grid < 0.001


def test_swapping_the_positive_class_changes_the_rates_of_asymmetric_scores_but_not_the_auc():
    rng = np.random.default_rng(9)
    members, nonmembers = rng.normal(1, 0.6, 2000), rng.normal(0, 1.4, 2000)
    ours, swapped = (evaluate(members, nonmembers, convention=name) for name in ("member-exact", "swapped-strict"))
    assert swapped.auc.value == pytest.approx(ours.auc.value, abs=1e-12)
    assert swapped.tpr_at_fpr[1].value > ours.tpr_at_fpr[1].value + 0.05
    assert swapped.tpr_at_fpr[1].value == pytest.approx(ours.tnr_at_fnr[1].value, abs=0.01)
