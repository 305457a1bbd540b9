"""Near-duplicates: planted copies are found, other images are not, and the search is that of its formula."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffleak.data.duplicates import (
    CROWD,
    RATIO,
    SHORTLISTED,
    Pairs,
    _shortlist,
    aligned_distance,
    beside_members,
    clusters_of,
    find_duplicates,
    sketch,
)
from diffleak.data.pixels import pixel_hash


def scenes(n: int, seed: int = 0, size: int = 40) -> list[np.ndarray]:
    """Images with large and small shapes, as photos have: random fields of two scales."""
    rng = np.random.default_rng(seed)
    up = lambda side: np.asarray(
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize((size, size), 3), dtype=float
    )
    return [np.clip(0.7 * up(6) + 0.3 * up(14), 0, 255).astype(np.uint8) for _ in range(n)]


def duplicates(images: list[np.ndarray]):
    hashes = np.stack([np.frombuffer(pixel_hash(image), dtype=np.uint8) for image in images])
    return find_duplicates(np.stack([sketch(image) for image in images]), hashes)


def jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=60)
    return np.asarray(Image.open(stream))


COPIES = {
    "the same": lambda a: a.copy(),
    "encoded again": jpeg,
    "half size": lambda a: np.asarray(Image.fromarray(a).resize((20, 20), 3)),
    "other sides": lambda a: np.asarray(Image.fromarray(a).resize((64, 48), 3)),
    "mirrored": lambda a: a[:, ::-1],
    "cropped": lambda a: np.asarray(Image.fromarray(np.ascontiguousarray(a[2:, :-2])).resize((40, 40), 3)),
    "darker, less contrast": lambda a: (a * 0.6 + 20).astype(np.uint8),
    "grey": lambda a: np.asarray(Image.fromarray(a).convert("L"))[..., None],
    "with alpha": lambda a: np.dstack([a, np.full(a.shape[:2], 255, dtype=np.uint8)]),
}


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_pairs_with_their_originals_and_nothing_else_is(kind):
    images = scenes(120)
    copies = [COPIES[kind](image) for image in images[:40]]
    pairs, clusters = duplicates([*images, *copies])
    found = {*zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
    planted = {(i, 120 + i) for i in range(40)}
    assert found <= planted, "no other pair"
    assert len(found) >= (38 if kind == "cropped" else 40)
    assert bool(pairs.exact.all()) == (kind == "the same")
    assert (pairs.distance == 0).all() if kind == "the same" else (pairs.distance < 0.1).all()
    assert len(np.unique(clusters)) == 160 - len(found) and (np.unique(clusters) == np.arange(160 - len(found))).all()


def test_of_images_of_one_kind_few_are_called_copies_though_they_look_alike():
    """Digits, of which no two are copies: a fixed distance would pair many of them. Of fewer than 16 pixels a side none is paired."""
    small = [np.round(image * 15.9).astype(np.uint8)[..., None] for image in load_digits().images[:700]]
    assert not len(duplicates(small).pairs.first)
    digits = [np.asarray(Image.fromarray(image[..., 0]).resize((16, 16), Image.Resampling.BICUBIC))[..., None] for image in small]
    pairs = duplicates(digits).pairs
    assert len(pairs.first) <= 15
    sketches = np.stack([sketch(image) for image in digits])
    first, second = _shortlist(sketches)[0]
    assert (aligned_distance(sketches[first], sketches[second]) < 0.05).sum() > 100


def test_the_shortlist_is_that_of_all_correlations():
    images = scenes(90, seed=1)
    sketches = np.stack([sketch(image) for image in [*images, *(image[:, ::-1] for image in images[:9]), *map(jpeg, images[9:20])]])
    coarse = sketches.astype(np.float64).reshape(len(sketches), 8, 2, 8, 2).mean(axis=(2, 4))
    flat = lambda images: images.reshape(len(images), -1)
    correlation = lambda one, other: np.corrcoef(flat(one), flat(other))[: len(one), len(one) :]
    corr = np.maximum(correlation(coarse, coarse), correlation(coarse[:, :, ::-1], coarse))
    distance = 1 - corr
    np.fill_diagonal(distance, np.inf)
    crowd = np.sort(distance, axis=1)[:, CROWD - 1]
    (first, second), ours = _shortlist(sketches)
    np.testing.assert_allclose(ours, crowd, atol=1e-5)
    near = distance <= SHORTLISTED * np.minimum(crowd[:, None], crowd[None])
    assert {*zip(first.tolist(), second.tolist(), strict=True)} == {(i, j) for i, j in np.argwhere(near).tolist() if i < j}
    assert RATIO < SHORTLISTED


def test_the_distance_is_0_for_what_alignment_undoes_and_large_for_other_images():
    images = np.stack([sketch(image) for image in scenes(60, seed=2)])
    assert aligned_distance(images, images).max() < 1e-3
    assert aligned_distance(images, images[:, :, ::-1]).max() < 1e-3
    assert aligned_distance(images, (images * 0.5 + 40).astype(np.uint8)).max() < 0.01
    assert aligned_distance(images[:-1], images[1:]).min() > 0.1


def test_blank_images_are_copies_only_where_their_pixels_are_the_same():
    blank = lambda grey: np.full((16, 16, 1), grey, dtype=np.uint8)
    pairs, clusters = duplicates([blank(0), blank(0), blank(255), *scenes(20)])
    assert pairs.first.tolist() == [0] and pairs.second.tolist() == [1] and clusters[:3].tolist() == [0, 0, 1]


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9])
def test_few_images_are_searched_too(n):
    images = scenes(n, seed=3)
    assert len(duplicates(images).pairs.first) == 0
    pairs, clusters = duplicates([*images, jpeg(images[0])])
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0], [n]) and clusters[0] == clusters[n]


def test_no_image_has_no_duplicate():
    pairs, clusters = find_duplicates(np.zeros((0, 16, 16), np.uint8), np.zeros((0, 32), np.uint8))
    assert len(pairs.first) == len(clusters) == 0


def test_chains_are_one_cluster_numbered_by_their_first_images_and_move_with_the_order():
    clusters = clusters_of(6, np.array([4, 1]), np.array([5, 4]))
    assert clusters.tolist() == [0, 1, 2, 3, 1, 1]
    member = np.array([True, True, False, False, False, True])
    assert beside_members(clusters, member).tolist() == [False, False, False, False, True, False]
    pairs = Pairs(np.array([1, 4]), np.array([4, 5]), np.zeros(2), np.zeros(2, dtype=bool))
    assert pairs.across(member).second.tolist() == [4, 5]
    moved = pairs.taken(np.array([5, 4, 3, 2, 1, 0]), 6)
    assert moved.first.tolist() == [1, 0] and moved.second.tolist() == [4, 1]
    some = pairs.taken(np.array([5, 0, 4]), 6)
    assert (some.first.tolist(), some.second.tolist()) == ([0], [2]), "a pair whose other image is left out is none"


def test_a_scan_knows_the_clusters_of_its_images_in_their_order():
    from diffleak.data.cohort import two_sources
    from diffleak.data.scan import scan
    from diffleak.data.sources import open_source

    images = np.stack(scenes(30, seed=4, size=16))
    held = np.stack([*images[3:5, :, ::-1], *scenes(18, seed=5, size=16)])
    found = scan(two_sources(open_source(images), open_source(held)), None, False, False)
    where = {image_id: row for row, image_id in enumerate(found.cohort.ids)}
    assert found.clusters[where["members/3"]] == found.clusters[where["nonmembers/0"]]
    assert len(np.unique(found.clusters)) == 48 and beside_members(found.clusters, found.cohort.member).sum() == 2
    assert len(found.taken(np.flatnonzero(found.cohort.member)).pairs.first) == 0
    order = np.arange(50)[::-1].copy()
    turned = found.taken(order)
    assert (turned.clusters == found.clusters[order]).all()
    assert {
        frozenset((turned.cohort.ids[i], turned.cohort.ids[j])) for i, j in zip(turned.pairs.first, turned.pairs.second, strict=True)
    } == {
        frozenset(("members/3", "nonmembers/0")),
        frozenset(("members/4", "nonmembers/1")),
    }
