"""Who is held out: units of images drawn by share or by coin. Pure; knows ids and numbers only.

A unit is a set of images that stand on one side: near-duplicates of each other, images of one group, and what these chain together. As
a rule it is one image.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from diffleak.data.draw import keyed_order
from diffleak.data.duplicates import clusters_of

Unit = Int64[np.ndarray, "_"]


def units_of(clusters: Int64[np.ndarray, " n"], groups: Sequence[str | None]) -> list[Unit]:
    """The rows of every unit: images of one cluster, or of one group, are in one unit. An image of the group None has no group."""
    n = len(clusters)
    first: dict[object, int] = {}
    ends = [
        (row, first.setdefault(key, row))
        for row in range(n)
        for key in (int(clusters[row]), *(() if groups[row] is None else (("group", groups[row]),)))
    ]
    one, other = np.array(ends, dtype=np.int64).reshape(-1, 2).T
    unit = clusters_of(n, one, other)
    return np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])


def draw_coins(ids: tuple[str, ...], units: Sequence[Unit], seed: int) -> Bool[np.ndarray, " n"]:
    """True for every image that is held out: an independent fair coin for each unit, by its first id and the seed."""
    held = np.zeros(len(ids), dtype=bool)
    order = _in_keyed_order(ids, units, "coin", seed)
    for unit, coin in zip(order, np.random.default_rng((seed, 6)).integers(2, size=len(order)), strict=True):
        held[unit] = bool(coin)
    return held


def draw_share(
    ids: tuple[str, ...], units: Sequence[Unit], share: float, seed: int, classes: Sequence[object] = ()
) -> Bool[np.ndarray, " n"]:
    """True for every image that is held out: `share` of them, and of every class, as nearly as whole units allow.

    Class by class, large units first, a unit is held out with probability (images still to hold out) / (images left), so that every
    image has the chance `share`, and single images fill up the number exactly. What a class lacks or has too many of is passed on to
    the next one. A unit counts for the class that most of its images have; `classes` is empty where there are none.
    """
    of = classes or [None] * len(ids)
    by_class: dict[object, list[Unit]] = {}
    for unit in _in_keyed_order(ids, units, "share", seed):
        by_class.setdefault(Counter(of[row] for row in unit).most_common(1)[0][0], []).append(unit)
    held, rng = np.zeros(len(ids), dtype=bool), np.random.default_rng((seed, 5))
    wanted = 0.0
    for name in sorted(by_class, key=str):
        own = sorted(by_class[name], key=len, reverse=True)
        left = sum(map(len, own))
        wanted += share * left
        need = round(wanted)
        for unit in own:
            if len(unit) <= need and rng.random() < need / left:
                held[unit] = True
                need -= len(unit)
                wanted -= len(unit)
            left -= len(unit)
    return held


def _in_keyed_order(ids: tuple[str, ...], units: Sequence[Unit], *key: object) -> list[Unit]:
    """The units in an order that depends on their ids and `key` alone."""
    named = {min(ids[row] for row in unit): unit for unit in units}
    return [named[image_id] for image_id in keyed_order(tuple(named), *key)]
