"""Statistics of generated against real images: closed forms, independent formulas, and calibration by simulation."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import betabinom, binom, binomtest, entropy
from scipy.stats import t as student

from diffleak.records.base import Estimate
from diffleak.stats import images
from diffleak.stats.metrics import order_statistics


def normals(seed: int, n: int, d: int, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + mean


def test_frechet_distance_of_isotropic_normals_is_its_closed_form():
    d, found = 4, images.frechet_distance(normals(0, 40_000, 4, 0.5, 2.0), normals(1, 40_000, 4))
    assert found.value == pytest.approx(d * (0.5**2 + (2 - 1) ** 2), rel=0.03)


def test_frechet_distance_is_the_formula_with_the_matrix_root_of_the_product():
    mixing = normals(2, 8, 8)
    x, y = normals(0, 300, 8) @ mixing, normals(1, 200, 8, 0.3)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert images.frechet_distance(x, y).value == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_a_sample_with_itself_is_zero_also_with_dead_features():
    x = normals(0, 100, 6)
    x[:, 2] = 0
    assert images.frechet_distance(x, x).value == pytest.approx(0, abs=1e-8)


def test_the_interval_of_the_frechet_distance_covers_the_truth_when_the_bias_is_small():
    truth, covered = 3 * (0.5**2 + 0.5**2), 0
    for seed in range(200):
        found = images.frechet_distance(normals(2 * seed, 1500, 3, 0.5, 1.5), normals(2 * seed + 1, 1500, 3))
        covered += found.low <= truth <= found.high
    assert binom.cdf(covered, 200, 0.95) > 1e-3, covered


@pytest.mark.parametrize(("live", "dead"), [(1, 0), (3, 0), (1, 2)], ids=["one feature", "three", "one of three"])
def test_the_interval_of_the_frechet_distance_is_as_wide_as_the_jackknife_says(live, dead):
    """The two agree as the images grow; with dead features, which have no variance, the numbers are those of the live ones."""
    x, y = normals(3, 400, live, 0.4, 1.7) @ (np.eye(live) + 0.5 * np.eye(live, k=1)), normals(4, 250, live)
    full = [np.column_stack([side, np.full((len(side), dead), 7.0)]) for side in (x, y)]
    found, variance = images.frechet_distance(*full), 0.0
    for k, side in enumerate((x, y)):
        without = [images.frechet_distance(*(np.delete(each, i, 0) if j == k else each for j, each in enumerate((x, y)))).value
                   for i in range(len(side))]  # fmt: skip
        variance += np.var(without) * (len(side) - 1)
    assert found.value == pytest.approx(images.frechet_distance(x, y).value)
    assert found.high - found.value == pytest.approx(found.value - found.low) == pytest.approx(1.959964 * np.sqrt(variance), rel=0.03)


def test_the_frechet_distance_and_its_interval_have_the_unit_of_squared_features():
    x, y = normals(0, 60, 3, 0.4, 1.7), normals(1, 50, 3)
    one, other = images.frechet_distance(x, y), images.frechet_distance(1e-4 * x, 1e-4 * y)
    assert (other.low, other.value, other.high) == pytest.approx((1e-8 * one.low, 1e-8 * one.value, 1e-8 * one.high), rel=1e-6)


def test_a_frechet_distance_and_its_interval_are_not_below_zero():
    found = [images.frechet_distance(normals(i, 30, 2), normals(i + 100, 30, 2)) for i in range(20)]
    assert min(f.value for f in found) > 0 and min(f.low for f in found) == 0


@pytest.mark.parametrize(("n", "m"), [(15, 40), (40, 15)])
def test_frechet_distance_is_refused_below_one_image_per_dimension(n, m):
    found = images.frechet_distance(normals(0, n, 16), normals(1, m, 16))
    assert found.value is None
    assert f"needs at least 16 images a side, the dimension of the features; got {n} generated and {m} real: use KID" in found.reason
    assert images.frechet_distance(normals(0, 16, 16), normals(1, 16, 16)).value > 0
    assert images.frechet_distance(normals(0, 2, 1), normals(1, 2, 1)).value is not None
    assert "needs at least 2 images" in images.frechet_distance(normals(0, 1, 1), normals(1, 5, 1)).reason


def direct_kid(x: np.ndarray, y: np.ndarray) -> float:
    k = lambda a, b: (a @ b / len(a) + 1) ** 3
    xx = [k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]
    yy = [k(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j]
    return float(np.mean(xx) + np.mean(yy) - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_kid_is_the_double_sum_of_its_definition(monkeypatch):
    monkeypatch.setattr(images, "BLOCK", 7)
    x, y = normals(0, 20, 5), normals(1, 13, 5, 0.4)
    assert images.kernel_distance(x, y).value == pytest.approx(direct_kid(x, y), rel=1e-10)


def test_the_jackknife_of_kid_is_that_of_leaving_out_each_image():
    x, y = normals(0, 14, 3), normals(1, 12, 3, 0.4)
    without_x = np.array([direct_kid(np.delete(x, i, 0), y) for i in range(14)])
    without_y = np.array([direct_kid(x, np.delete(y, i, 0)) for i in range(12)])
    deviation = np.sqrt(13 / 14 * ((without_x - without_x.mean()) ** 2).sum() + 11 / 12 * ((without_y - without_y.mean()) ** 2).sum())
    found = images.kernel_distance(x, y)
    assert found.high - found.value == pytest.approx(1.959964 * deviation, rel=1e-6)


def test_kid_needs_ten_images_a_side():
    assert images.kernel_distance(normals(0, 10, 2), normals(1, 10, 2)).value is not None
    for n, m in ((9, 10), (10, 9)):
        assert f"got {n} generated and {m} real" in images.kernel_distance(normals(0, n, 2), normals(1, m, 2)).reason


def test_kid_is_unbiased_and_its_interval_covers_zero_when_nothing_differs():
    found = [images.kernel_distance(normals(2 * i, 60, 6), normals(2 * i + 1, 60, 6)) for i in range(400)]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert np.mean([f.low <= 0 <= f.high for f in found]) > 0.93


def test_kid_sees_a_shift_and_its_interval_covers_the_truth():
    truth = images.kernel_distance(normals(10_001, 6000, 4, 0.5), normals(10_002, 6000, 4)).value
    found = [images.kernel_distance(normals(2 * i, 150, 4, 0.5), normals(2 * i + 1, 150, 4)) for i in range(200)]
    assert np.mean([f.low > 0 for f in found]) > 0.95
    assert binom.cdf(sum(f.low <= truth <= f.high for f in found), 200, 0.95) > 1e-3


def test_inception_score_is_one_for_equal_answers_and_the_number_of_classes_for_balanced_certainty():
    assert images.inception_score(np.full((200, 10), 0.1)).value == pytest.approx(1)
    certain = images.inception_score(np.eye(10)[np.arange(200) % 10])
    assert (certain.value, certain.low, certain.high) == pytest.approx((10, 10, 10))


@pytest.mark.parametrize("n", [100, 257])
def test_inception_score_is_that_of_ten_splits_with_students_interval(n):
    p = np.random.default_rng(n).dirichlet(np.full(7, 0.3), n)
    p[:, 2] = 0
    p /= p.sum(axis=1, keepdims=True)
    scores = [np.exp(np.mean([entropy(row, part.mean(axis=0)) for row in part])) for part in np.array_split(p, 10)]
    low, high = student.interval(0.95, 9, np.mean(scores), np.std(scores, ddof=1) / np.sqrt(10))
    found = images.inception_score(p)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(scores), low, high))
    alike = images.inception_score(np.random.default_rng(n).dirichlet(np.full(3, 3000.0), n))
    assert alike.low >= 1


def test_inception_score_says_why_there_is_none():
    assert "gives no class probabilities" in images.inception_score(None).reason
    assert "needs at least 100 generated images, 10 for each of 10 splits; got 99" in images.inception_score(np.full((99, 3), 1 / 3)).reason


def test_precision_and_recall_are_high_for_equal_distributions_and_zero_for_disjoint_ones():
    x, y = normals(0, 500, 4), normals(1, 500, 4)
    assert min(e.value for e in images.precision_recall(x, y)) > 0.8
    assert [e.value for e in images.precision_recall(x + 100, y)] == [0, 0]
    assert [e.value for e in images.precision_recall(x, x)] == [1, 1]


def test_a_collapsed_model_has_precision_without_recall():
    real = normals(1, 500, 4)
    precision, recall = images.precision_recall(np.repeat(real[:1], 500, axis=0) + 1e-3 * normals(0, 500, 4), real)
    assert precision.value > 0.95
    assert recall.value < 0.1


def test_precision_and_recall_are_shares_of_balls_counted_one_by_one_with_wilsons_interval(monkeypatch):
    monkeypatch.setattr(images, "BLOCK", 17)
    generated, real = normals(0, 60, 3, 0.8, 1.2), normals(1, 50, 3)
    kept = generated[np.sort(np.random.default_rng(3).permutation(60)[:50])]

    def covered(points, centres):
        radii = [sorted(np.linalg.norm(centres - c, axis=1))[3] for c in centres]  # the first is the centre itself
        return sum(any(np.linalg.norm(x - c) <= r for c, r in zip(centres, radii, strict=True)) for x in points)

    for found, inside in zip(images.precision_recall(generated, real, seed=3), (covered(kept, real), covered(real, kept)), strict=True):
        interval = binomtest(inside, 50).proportion_ci(method="wilson")
        assert 0 < inside < 50 and (found.value, found.low, found.high) == pytest.approx((inside / 50, interval.low, interval.high))
    assert images.precision_recall(generated / 100, real / 100, seed=3) == images.precision_recall(generated, real, seed=3)
    assert [found.value for found in images.precision_recall(np.ones((50, 2)), np.ones((50, 2)))] == [1, 1], "on the edge of a ball"


@pytest.mark.parametrize(("successes", "trials"), [(0, 9), (3, 9), (9, 9), (1, 400), (1, 1)])
def test_wilsons_interval_is_that_of_scipy(successes, trials):
    found, interval = images.wilson(successes, trials), binomtest(successes, trials).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((successes / trials, interval.low, interval.high), abs=1e-12)


def test_the_clip_score_is_the_mean_of_100_cosines_and_its_interval_that_of_resamples():
    cosines = np.random.default_rng(0).normal(0.25, 0.05, 400)
    found, deviation = images.clip_score(cosines), 100 * cosines.std() / 20
    assert found.value == pytest.approx(100 * cosines.mean())
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * deviation, found.value + 1.96 * deviation), abs=0.25 * deviation)
    assert images.clip_score(np.array([0.3, -0.1])).value == pytest.approx(15), "an image that points away counts as 0"
    assert "needs at least 2 images; got 1" in images.clip_score(np.array([0.3])).reason
    assert images.clip_score(cosines, seed=1).low != found.low == images.clip_score(cosines).low


def test_precision_and_recall_use_equal_numbers_and_refuse_few():
    precision, _ = images.precision_recall(normals(0, 90, 2), normals(1, 70, 2))
    assert "70 images a side" in precision.method
    assert (
        "needs at least 50 images a side; got 49 generated and 70 real"
        in images.precision_recall(normals(0, 49, 2), normals(1, 70, 2))[0].reason
    )


def test_nearest_is_the_largest_cosine(monkeypatch):
    monkeypatch.setattr(images, "BLOCK", 5)
    x, y = normals(0, 23, 4), normals(1, 17, 4)
    cosines = (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T
    similarity, index = images.nearest(x, y)
    np.testing.assert_allclose(similarity, cosines.max(axis=1))
    np.testing.assert_array_equal(index, cosines.argmax(axis=1))
    np.testing.assert_array_equal(images.nearest(x, np.concatenate([y, y]))[1], index, err_msg="of candidates that are as near, the first")
    np.testing.assert_allclose(images.nearest(x / 100, y / 100)[0], similarity, err_msg="of any length")
    many = normals(2, 300, 7)
    assert images.nearest(many, 3 * many)[0].max() == 1, "no rounding error is beyond 1"
    assert min(images.nearest(row, -3 * row)[0][0] for row in many[:, None]) == -1
    assert images.nearest(np.zeros((2, 4)), y)[0].tolist() == [0, 0]


@pytest.mark.parametrize(("m", "share"), [(99, 0.01), (198, 0.01), (199, 0.01), (19, 0.05), (45, 0.1)])
def test_the_copy_rate_and_its_chance_are_counted_above_the_threshold_one_by_one(m, share):
    rng = np.random.default_rng(m)
    reference, generated = rng.integers(0, 400, m) / 400, rng.integers(200, 400, 60) / 400  # with ties
    k = int(share * (m + 1) + 1e-9)
    threshold = sorted(reference, reverse=True)[k - 1]
    generated[:5] = threshold
    assert images.copy_threshold(reference, share) == threshold
    above, at_least = sum(x > threshold for x in generated), sum(x >= threshold for x in reference)
    chance = betabinom.sf(above - 1, 60, at_least, m + 1 - at_least)
    assert images.copy_chance(generated, reference, share) == pytest.approx(chance)
    found = images.copy_rate_of(generated, reference, threshold, share, "")
    low, high = order_statistics(generated, reference, share)
    assert (found.value, found.low, found.high) == (above / 60, min(low, above / 60), max(high, above / 60))


def test_the_copy_rate_of_fresh_images_is_one_percent_and_of_copies_one():
    rates = []
    for seed in range(200):
        reference, fresh = np.random.default_rng(seed).random((2, 199))
        rates.append(images.copy_rate(fresh, reference).value)
    assert np.mean(rates) == pytest.approx(0.01, abs=4 * np.std(rates) / np.sqrt(200))
    assert images.copy_rate(np.full(50, 2.0), reference).value == 1
    few = images.copy_rate(np.ones(5), np.ones(98)).reason
    assert few == "needs at least 99 reference images, of which 1 % sets the threshold; got 98, near-duplicates counted once"
    difference, _ = images.kernel_difference(np.ones((64, 2)), np.ones((9, 2)), np.ones((30, 2)))
    assert difference.reason.endswith("9 members and 30 held-out images, near-duplicates counted once")


@pytest.mark.parametrize("m", [120, 999])
@pytest.mark.parametrize("copied", [0.0, 0.2])
def test_the_interval_of_the_copy_rate_counts_that_the_threshold_is_estimated(m, copied):
    rng, covered, runs = np.random.default_rng(m), 0, 400
    truth = copied + (1 - copied) * 0.01
    for _ in range(runs):
        drawn = np.where(rng.random(2000) < copied, 2.0, rng.random(2000))
        rate = images.copy_rate(drawn, rng.random(m))
        covered += rate.low <= truth <= rate.high
    assert binomtest(covered, runs, 0.95, alternative="less").pvalue > 1e-3, covered


@pytest.mark.parametrize("m", [120, 999])
def test_a_threshold_from_few_images_raises_no_more_false_alarms(m):
    alarms = 0
    for seed in range(1000):
        drawn = np.random.default_rng(seed).random(m + 800)
        alarms += images.copy_chance(drawn[m:], drawn[:m]) < 0.025
    assert binom.sf(alarms - 1, 1000, 0.025) > 1e-3, alarms
    assert images.copy_chance(np.full(50, 2.0), drawn[:m]) < 1e-3
    assert images.copy_chance(np.ones(5), np.ones(98)) is None


def test_the_interval_of_a_percentile_covers_it():
    found = [images.percentile(np.random.default_rng(i).random(300), 95) for i in range(300)]
    assert binom.cdf(sum(f.low <= 0.95 <= f.high for f in found), 300, 0.95) > 1e-3
    assert images.percentile(np.arange(20.0), 99).low is None
    assert images.percentile(np.arange(20.0), 100) == Estimate(value=19.0, method="the sample's largest")


@pytest.mark.parametrize("percent", [5, 50, 95, 99])
def test_the_interval_of_a_percentile_is_between_the_order_statistics_that_the_binomial_gives(percent):
    """P(the r-th smallest of n lies above the percentile) <= 2.5 %, for the largest such r, and the same from the other side."""
    known = 0
    for n in (20, 72, 73, 74, 100, 367, 368, 369, 500):
        values = np.random.default_rng(n).permutation(n).astype(float)
        found = images.percentile(values, percent)
        assert found.value == np.ceil(percent * n / 100 - 1e-9) - 1
        lows = [r for r in range(1, n + 1) if binom.cdf(r - 1, n, percent / 100) <= 0.025]
        highs = [r for r in range(1, n + 1) if binom.sf(r - 1, n, percent / 100) <= 0.025]
        if lows and highs:
            assert (found.low, found.high) == (lows[-1] - 1, highs[0] - 1)
            known += 1
        else:
            assert found.low is None and f"{n} images are too few" in found.reason
    assert known >= 1


def double_sum_difference(generated, members, held_out):
    kernel = lambda x, y: (x @ y / len(x) + 1) ** 3
    pairs = lambda side: np.mean([kernel(x, y) for i, x in enumerate(side) for j, y in enumerate(side) if i != j])
    across = lambda side: np.mean([kernel(x, y) for x in generated for y in side])
    return pairs(members) - 2 * across(members) - pairs(held_out) + 2 * across(held_out)


def test_the_kid_difference_is_its_double_sum_and_that_of_two_kids(monkeypatch):
    rng = np.random.default_rng(1)
    monkeypatch.setattr(images, "BLOCK", 7)
    generated, members, held_out = (rng.normal(shift, 1, (n, 5)) for shift, n in ((0, 12), (0.1, 11), (0.4, 14)))
    value = images.kernel_difference(generated, members, held_out)[0].value
    assert value == pytest.approx(double_sum_difference(generated, members, held_out), rel=1e-10)
    two = images.kernel_distance(generated, members).value - images.kernel_distance(generated, held_out).value
    assert value == pytest.approx(two, rel=1e-8)


@pytest.mark.parametrize("exchanges", [40, 3])
def test_exchanged_sides_are_those_of_the_double_sum(monkeypatch, exchanges):
    rng = np.random.default_rng(2)
    monkeypatch.setattr(images, "RESAMPLES", exchanges)
    generated, members, held_out = (rng.normal(shift, 1, (n, 3)) for shift, n in ((0, 10), (0.1, 10), (0.3, 12)))
    estimate, p_value = images.kernel_difference(generated, members, held_out, seed=5)
    random, real = np.random.default_rng(5), np.concatenate([members, held_out])
    for side in (generated, members, held_out):
        random.permutation(len(side))
    first = [random.permutation(22)[:10] for _ in range(exchanges)]
    values = [double_sum_difference(generated, real[f], real[np.setdiff1d(np.arange(22), f)]) for f in first]
    low, high = np.quantile(values, [0.025, 0.975])
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - high, estimate.value - low), rel=1e-8)
    assert p_value == (1 + np.sum(np.array(values) <= estimate.value)) / (exchanges + 1)


def test_the_kid_difference_rejects_as_often_as_it_says_without_a_difference_and_sees_one(monkeypatch):
    rng = np.random.default_rng(3)
    monkeypatch.setattr(images, "RESAMPLES", 200)
    p_values, covered = [], 0
    for i in range(400):
        generated, members, held_out = (rng.normal(0, 1, (n, 4)) for n in (30, 25, 35))
        estimate, p_value = images.kernel_difference(generated, members, held_out, seed=i)
        p_values.append(p_value)
        covered += estimate.low <= 0 <= estimate.high
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.085  # 0.05, five standard errors of 400
    assert covered > 0.91 * 400
    members = rng.normal(0, 1, (60, 4))
    generated, held_out = members[:40] + rng.normal(0, 0.01, (40, 4)), rng.normal(0.8, 1, (60, 4))
    estimate, p_value = images.kernel_difference(generated, members, held_out)
    assert estimate.high < 0 and p_value < 0.01


def test_exchanges_that_give_the_same_difference_count_whatever_their_rounding():
    """Of 20 real images, 2 are of another kind, both of them members as the generated ones: C(18, 8) of C(20, 10) divisions have both."""
    share = 43758 / 184756
    for seed in range(4):
        usual, other = np.random.default_rng(seed).normal(0, 30, (2, 7))
        members, held_out = np.stack([*[usual] * 8, other, other]), np.stack([usual] * 10)
        p_value = images.kernel_difference(np.stack([other] * 12), members, held_out)[1]
        assert p_value == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / images.RESAMPLES))


def test_the_kid_difference_of_few_images_says_why_there_is_none():
    estimate, p_value = images.kernel_difference(np.ones((9, 2)), np.ones((10, 2)), np.ones((10, 2)))
    assert "needs at least 10 images of each kind; got 9 generated" in estimate.reason and p_value is None
