"""One image for each picture: which of near-duplicates counts, whatever the order of rows, and which held-out images count nowhere."""

import numpy as np
from fixtures.blocks import blocks

from diffleak.data.cohort import sort_key
from diffleak.data.distinct import Looked, distinct, leading
from diffleak.data.duplicates import sketch
from diffleak.data.pixels import pixel_hash


def looked(images: np.ndarray, keys: list[str]) -> Looked:
    hashes = np.frombuffer(b"".join(map(pixel_hash, images)), dtype=np.uint8).reshape(len(images), 32)
    return Looked(tuple(keys), np.stack([sketch(image) for image in images]), hashes)


def test_the_smallest_key_leads_its_cluster_in_any_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        clusters, keys = rng.integers(0, 7, 30), [str(k) for k in rng.permutation(200)[:30]]
        expected = [min(np.flatnonzero(clusters == c), key=lambda row: sort_key(keys[row])) for c in clusters]
        np.testing.assert_array_equal(leading(clusters, keys), expected)
    assert leading(np.zeros(0, dtype=np.int64), []).tolist() == []


def test_near_duplicates_count_once_on_a_side_and_nowhere_among_held_out_images_beside_members():
    pictures = blocks(12, 0)
    members = np.concatenate([pictures[:5], pictures[1:2, :, ::-1], pictures[3:4]])  # 5 is 1 mirrored, and 6 is 3
    held_out = np.concatenate([pictures[5:9], pictures[6:7, :, ::-1], pictures[0:1, :, ::-1], pictures[0:1] // 2])
    names, others = list("abcdefg"), list("tuvwxyz")
    found = distinct(looked(members, names), looked(held_out, others))
    assert [names[row] for row in found.stands] == ["a", "b", "c", "d", "e", "b", "d"]
    assert found.members.tolist() == [True] * 5 + [False] * 2
    assert found.counted.tolist() == [True] * 4 + [False] * 3 and (found.beside, found.again) == (2, 1)
    order = np.random.default_rng(1).permutation(7)
    again = distinct(looked(members[order], [names[k] for k in order]), looked(held_out[order], [others[k] for k in order]))
    np.testing.assert_array_equal(again.members, found.members[order])
    np.testing.assert_array_equal(again.counted, found.counted[order])
    assert [names[order[row]] for row in again.stands] == [names[found.stands[k]] for k in order]
    alone = distinct(looked(members, names), None)
    assert alone.members.tolist() == found.members.tolist() and (len(alone.counted), alone.beside, alone.again) == (0, 0, 0)
