"""One image for each picture of two sides: what statistics of drawings count, whose rates hold for images that are independent.

Near-duplicates are drawn closely together or not at all. One of each cluster stands for it: that whose key comes first, so the choice knows
nothing of any drawing. Its distance to a drawing is then like that of any other image, however large the cluster is. The nearest of a
cluster would be nearer than other images by chance alone, and the mean of a cluster would spread less. Held-out images that are
near-duplicates of members count nowhere: a drawing near to them is no accident.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from diffleak.data.cohort import sort_key
from diffleak.data.duplicates import Sketches, find_duplicates


class Looked(NamedTuple):
    """What tells whether two images are near-duplicates: their `sketch` and the hash of their pixels; `keys` choose one of a cluster."""

    keys: tuple[str, ...]
    sketches: Sketches
    hashes: UInt8[np.ndarray, "n 32"]

    def only(self, keep: Bool[np.ndarray, " n"]) -> "Looked":
        """Some of the images."""
        return Looked(tuple(key for key, kept in zip(self.keys, keep, strict=True) if kept), self.sketches[keep], self.hashes[keep])


class Distinct(NamedTuple):
    """`stands`: the member that counts for each member, by its row. `counted` marks the held-out images that count.

    `beside` are held-out images that are near-duplicates of members, `again` those of another held-out image that counts.
    """

    stands: Int64[np.ndarray, " n"]
    counted: Bool[np.ndarray, " m"]
    beside: int
    again: int

    @property
    def members(self) -> Bool[np.ndarray, " n"]:
        """Which members count."""
        return self.stands == np.arange(len(self.stands))


def distinct(members: Looked, held_out: Looked | None) -> Distinct:
    """Who counts for whom among members and among held-out images."""
    sides = (members,) if held_out is None else (members, held_out)
    _, clusters = find_duplicates(np.concatenate([each.sketches for each in sides]), np.concatenate([each.hashes for each in sides]))
    n = len(members.keys)
    stands, others = leading(clusters[:n], members.keys), clusters[n:]
    beside = np.isin(others, clusters[:n])
    own = np.ones(0, dtype=bool) if held_out is None else leading(others, held_out.keys) == np.arange(len(others))
    return Distinct(stands, own & ~beside, int(beside.sum()), int((~own & ~beside).sum()))


def leading(clusters: Int64[np.ndarray, " n"], keys: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The row of the image of the smallest key in the cluster of each image, in whatever order they stand."""
    rows = np.array(sorted(range(len(keys)), key=lambda row: sort_key(keys[row])), dtype=np.int64)
    _, first, of = np.unique(clusters[rows], return_index=True, return_inverse=True)
    found = np.empty(len(keys), dtype=np.int64)
    found[rows] = rows[first[of]]
    return found
