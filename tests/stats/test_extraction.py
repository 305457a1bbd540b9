"""Distances of images and drawings against straight-line loops, and rates against held-out images under simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from diffleak.stats import extraction
from diffleak.stats.metrics import clopper_pearson


def images(seed: int, n: int, height: int = 9, width: int = 13, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def loop(x: np.ndarray, y: np.ndarray) -> float:
    """The tiled distance of two images, pixel by pixel; tile i of a side of s pixels begins at floor(i s / 4)."""
    largest, (height, width, channels) = 0.0, x.shape
    for row in range(4):
        for column in range(4):
            squares = [
                ((int(x[i, j, c]) - int(y[i, j, c])) / 255) ** 2
                for i in range(row * height // 4, (row + 1) * height // 4)
                for j in range(column * width // 4, (column + 1) * width // 4)
                for c in range(channels)
            ]
            largest = max(largest, (sum(squares) / len(squares)) ** 0.5)
    return largest


@pytest.mark.parametrize("shape", [(9, 13, 3), (8, 8, 1), (4, 5, 4)])
def test_the_tiled_distance_is_that_of_a_loop_over_pixels(shape, monkeypatch):
    x, y = images(0, 5, *shape), images(1, 7, *shape)
    expected = np.array([[loop(a, b) for b in y] for a in x])
    for block in (extraction.BLOCK, 2 * int(np.prod(shape))):  # all at once, and two images at a time
        monkeypatch.setattr(extraction, "BLOCK", block)
        np.testing.assert_allclose(extraction.tiled_distances(x, y[:5]), expected.diagonal(), rtol=1e-12)
        distance, index = extraction.nearest_by_tiles(x, y)
        np.testing.assert_allclose(distance, expected.min(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(index, expected.argmin(axis=1))
        twice = extraction.nearest_by_tiles(x, np.concatenate([y, y]))[1]
        np.testing.assert_array_equal(twice, index, err_msg="of drawings that are as near, the first")


def test_images_are_compared_in_parts_that_fit_into_memory_each_of_one_image_at_least(monkeypatch):
    x = images(0, 5, 4, 6, 2)  # 48 values each
    for block, sizes in ((extraction.BLOCK, [5]), (100, [2, 2, 1]), (96, [2, 2, 1]), (95, [1] * 5), (10, [1] * 5)):
        monkeypatch.setattr(extraction, "BLOCK", block)
        parts = extraction._rows(x)
        assert [part.stop - part.start for part in parts] == sizes, block
        assert np.concatenate([np.arange(5)[part] for part in parts]).tolist() == [0, 1, 2, 3, 4]


def test_equal_images_are_at_0_black_and_white_at_1_and_one_other_tile_is_enough():
    black, white = np.zeros((1, 8, 8, 1), np.uint8), np.full((1, 8, 8, 1), 255, np.uint8)
    spot = black.copy()
    spot[0, :2, :2] = 255
    assert extraction.tiled_distances(black, black) == [0.0]
    assert extraction.tiled_distances(black, white) == extraction.tiled_distances(black, spot) == [1.0]


def test_encoded_distances_are_one_minus_the_cosine():
    x, y = np.random.default_rng(0).standard_normal((2, 6, 5))
    cosines = np.array([[a @ b / (a @ a) ** 0.5 / (b @ b) ** 0.5 for b in y] for a in x])
    np.testing.assert_allclose(extraction.encoded_distances(x, y), 1 - cosines.diagonal())
    np.testing.assert_allclose(extraction.encoded_distances(x / 100, y / 100), 1 - cosines.diagonal(), err_msg="of any length")
    many = np.random.default_rng(1).standard_normal((300, 7))
    assert (extraction.encoded_distances(many, 3 * many) >= 0).all() and (extraction.encoded_distances(many, -3 * many) <= 2).all()
    assert extraction.encoded_distances(np.zeros((6, 5)), y).tolist() == [1.0] * 6
    distance, index = extraction.nearest_encoded(x, y)
    np.testing.assert_allclose(distance, 1 - cosines.max(axis=1))
    np.testing.assert_array_equal(index, cosines.argmax(axis=1))


def test_a_p_value_counts_the_held_out_images_that_are_as_near():
    held_out = np.array([0.3, 0.1, 0.2, 0.2])
    np.testing.assert_allclose(extraction.p_values(np.array([0.05, 0.1, 0.2, 0.25, 0.9]), held_out), [0.2, 0.4, 0.8, 0.8, 1.0])


def test_an_image_has_a_copy_exactly_where_its_p_value_is_at_most_the_share():
    rng = np.random.default_rng(0)
    for m, share in ((99, 0.01), (150, 0.01), (39, 0.05), (45, 0.05), (10, 0.1), (3, 0.5)):
        members, held_out = rng.integers(0, 60, 200) / 60, rng.integers(0, 60, m) / 60  # with ties
        rates = extraction.copy_rates(members, held_out, held_out, share)
        np.testing.assert_array_equal(members < rates.threshold, extraction.p_values(members, held_out) <= share + 1e-12)
        assert rates.members.value == np.mean(members < rates.threshold)


@pytest.mark.parametrize("share", [0.01, 0.05, 1 / 3, 0.5])
def test_a_threshold_needs_as_many_held_out_images_as_the_message_says(share):
    needed, members = extraction.images_needed(share), np.full(5, 0.1)
    assert (needed + 1) * share >= 1 - 1e-9 > needed * share - 1e-9
    assert extraction.copy_rates(members, np.linspace(0.2, 1, needed), members, share).members.value == 1
    without = extraction.copy_rates(members, np.linspace(0.2, 1, needed - 1), members, share)
    assert (without.threshold, without.members.value, without.chance) == (None, None, None)
    given = "1 sets" if needed == 2 else f"{needed - 1} set"
    said = f"needs at least {2 * needed} held-out images, of which half ({needed}) set the threshold; here {given} it"
    assert said in without.members.reason and said in without.held_out.reason


def reject(runs: int, m: int, members: int, share: float, ties: bool) -> tuple[float, int, int]:
    """False copies among exchangeable images: their mean rate, and of how many runs the chance is at most 0.05 and 0.025."""
    rng, rates, chances = np.random.default_rng(m), [], []
    for _ in range(runs):
        distances = rng.gamma(3.0, size=m + 2 * members)
        distances = np.round(distances, 1) if ties else distances
        found = extraction.copy_rates(distances[:members], distances[members : members + m], distances[members + m :], share)
        rates.append((found.members.value + found.held_out.value) / 2)
        chances.append(found.chance)
    return float(np.mean(rates)), int((np.array(chances) <= 0.05).sum()), int((np.array(chances) <= 0.025).sum())


@pytest.mark.parametrize(("m", "members", "share", "ties"), [(99, 128, 0.01, False), (300, 50, 0.01, True), (39, 300, 0.05, False)])
def test_the_threshold_holds_its_share_and_the_chance_its_level_when_nothing_was_learnt(m, members, share, ties):
    runs = 400
    rate, at_5, at_2 = reject(runs, m, members, share, ties)
    expected = int(share * (m + 1) + 1e-9) / (m + 1)
    noise = 3.3 * np.sqrt(expected * (1 - expected) / runs * (1 / (m + 2) + 1 / (2 * members)))
    assert rate <= expected + noise
    assert ties or rate >= expected - noise, "the threshold is not a stricter one either"
    for rejected, level in ((at_5, 0.05), (at_2, 0.025)):
        assert binomtest(rejected, runs, level, alternative="greater").pvalue > 1e-3, (rejected, level)


@pytest.mark.parametrize(("m", "share"), [(99, 0.01), (500, 0.01), (60, 0.05)])
@pytest.mark.parametrize("copied", [0.0, 0.1, 0.4])
def test_the_interval_of_the_members_covers_the_rate_at_the_true_threshold_which_few_held_out_images_miss(m, share, copied):
    """Held-out distances are uniform, so the true threshold is `share`; members are uniform too, but for a share that is copied."""
    rng, runs, members = np.random.default_rng(m), 400, 2000
    truth = copied + (1 - copied) * share
    covered, high, fixed = 0, 0, 0
    for _ in range(runs):
        of_members = np.where(rng.uniform(size=members) < copied, 0.0, rng.uniform(size=members))
        found = extraction.copy_rates(of_members, rng.uniform(size=m), rng.uniform(size=9), share)
        covered += found.members.low <= truth <= found.members.high
        high += found.members.high >= truth
        fixed += clopper_pearson(round(found.members.value * members), members)[1] >= truth
        assert found.members.low <= found.members.value <= found.members.high
    assert binomtest(covered, runs, 0.95, alternative="less").pvalue > 1e-3, covered
    assert binomtest(high, runs, 0.975, alternative="less").pvalue > 1e-3, high
    if copied == 0:
        assert binomtest(fixed, runs, 0.975, alternative="less").pvalue < 1e-6, (
            "Clopper-Pearson at the threshold as it is excludes the truth"
        )


def test_the_intervals_cover_the_rate_of_held_out_images_below_a_given_threshold():
    rng, covered, runs = np.random.default_rng(0), 0, 400
    held_out = np.linspace(1, 2, 99)
    for _ in range(runs):
        rate = extraction.copy_rates(np.ones(9), held_out, rng.uniform(0.7, 1.7, 60), 0.01).held_out
        covered += rate.low <= 0.3 <= rate.high
    assert binomtest(covered, runs, 0.95, alternative="less").pvalue > 1e-3, covered


def test_held_out_images_that_are_counted_have_a_copy_below_the_threshold_and_not_at_it():
    calibrate = np.linspace(0.2, 1, 9)  # the threshold at a share of 0.1 is the least of them
    counted = lambda *distances: extraction.copy_rates(np.ones(3), calibrate, np.array(distances), 0.1).held_out
    assert [counted(0.1, 0.2, 0.2, 0.3).value, counted(0.2).value, counted(0.1).value] == [0.25, 0.0, 1.0]
    assert (counted(0.1).low, counted(0.1).high) == clopper_pearson(1, 1)
    assert counted().value is None and counted().reason == "no held-out image is left to count on"


def test_the_chance_falls_as_more_members_are_copied():
    rng = np.random.default_rng(0)
    held_out, members = rng.uniform(1, 2, 200), rng.uniform(1, 2, 100)
    chances = []
    for copied in (0, 2, 5, 10):
        members[:copied] = 0.01
        chances.append(extraction.copy_rates(members, held_out, held_out, 0.01).chance)
    assert chances == sorted(chances, reverse=True) and chances[-1] < 1e-3
