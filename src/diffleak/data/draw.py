"""Draws of images by id and seed: who is trained on, and which part settings are chosen on. Knows ids only, no images."""

import hashlib
from collections.abc import Iterator, Sequence
from operator import itemgetter

import numpy as np
from jaxtyping import Bool, Int64

from diffleak.errors import SettingError, UserError


def choose_members(ids: tuple[str, ...], size: int | None, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`size` ids drawn at random as members, the rest held out; all of them when `size` is None. Order is kept."""
    if size is None:
        return ids, ()
    if size >= len(ids):
        raise SettingError("train_size", f"must leave images to hold out: at most {len(ids) - 1} of {len(ids)}; got {size}")
    chosen = set(np.random.default_rng(seed).choice(len(ids), size, replace=False).tolist())
    members = tuple(image_id for i, image_id in enumerate(ids) if i in chosen)
    return members, tuple(image_id for i, image_id in enumerate(ids) if i not in chosen)


def toss(ids: tuple[str, ...], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Members and held-out images by a fair coin for each image, by a hash of its id and the seed, independent of all others."""
    heads = [bool(hashlib.blake2b(f"coin\0{seed}\0{image_id}".encode(), digest_size=1).digest()[0] & 1) for image_id in ids]
    sides = tuple(tuple(i for i, head in zip(ids, heads, strict=True) if head is side) for side in (True, False))
    if not all(sides):
        raise UserError(f"the coins put every image on one side, {len(ids):,} in all; give more images, or another --seed")
    return sides[0], sides[1]


def keyed_order(ids: tuple[str, ...], *key: object) -> list[str]:
    """`ids` in an order that depends on nothing but each id and `key`."""
    return [image_id for _, image_id in sorted(zip(_keyed(ids, *key), ids, strict=True), key=itemgetter(0))]


def ids_digest(ids: Sequence[str]) -> str:
    """A hash of a set of ids: equal for equal sets, whatever their order."""
    return hashlib.sha256("\0".join(sorted(ids)).encode()).hexdigest()


def calibrate_size(size: int, fraction: float) -> int:
    """How many images of a side of `size` settings are chosen on."""
    return round(fraction * size)


def images_for(tested: int, fraction: float) -> int:
    """The smallest side whose test part holds `tested` images."""
    size = tested
    while size - calibrate_size(size, fraction) < tested:
        size += 1
    return size


def side_with(calibrated: int, fraction: float) -> int:
    """The smallest side whose calibrate part holds `calibrated` images; `fraction` is above 0."""
    size = calibrated
    while calibrate_size(size, fraction) < calibrated:
        size += 1
    return size


def calibrate_part(
    ids: tuple[str, ...], member: Bool[np.ndarray, " n"], fraction: float, seed: int, repeat: int = 0, most: int | None = None
) -> Bool[np.ndarray, " n"]:
    """Which images settings are chosen on: `fraction` of each side, at most `most` of them, by a hash of id, seed and repeat."""
    calibrate = np.zeros(len(ids), dtype=bool)
    for side in (True, False):
        rows = np.flatnonzero(member == side)
        size = calibrate_size(len(rows), fraction)
        own = [ids[row] for row in rows.tolist()]
        calibrate[rows[_first_keyed(own, size if most is None else min(size, most), "calibrate", seed, repeat)]] = True
    return calibrate


def _first_keyed(ids: Sequence[str], count: int, *key: object) -> Int64[np.ndarray, " count"]:
    """The rows of the first `count` ids of `keyed_order`, in no order: without sorting all of them."""
    if not count:
        return np.empty(0, dtype=np.int64)
    digests = np.frombuffer(b"".join(_keyed(ids, *key)), dtype=">u8").astype(np.uint64)
    first, second = digests[::2], digests[1::2]
    rows = np.flatnonzero(first <= np.partition(first, count - 1)[count - 1])
    return rows[np.lexsort((second[rows], first[rows]))[:count]] if len(rows) > count else rows


def _keyed(ids: Sequence[str], *key: object) -> Iterator[bytes]:
    """A hash of each id and `key`, of 16 bytes."""
    start = hashlib.blake2b("".join(f"{part}\0" for part in key).encode(), digest_size=16)
    for image_id in ids:
        own = start.copy()
        own.update(image_id.encode())
        yield own.digest()
