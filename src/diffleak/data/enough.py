"""How many images are left on each side once near-duplicates are counted as one, before a model is loaded."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from diffleak.data.cohort import Cohort
from diffleak.data.survey import survey

Sides = tuple[int, int]
SURE = 5  # times the fewest: so many files are not looked through, as that takes long and seldom finds too few
MOST = 2_000  # images that are looked through twice, since a model is not loaded yet


def counted(clusters: Int64[np.ndarray, " n"], member: Bool[np.ndarray, " n"], across: bool = True) -> Sides:
    """The clusters of each side; across=False leaves out those that have images on both."""
    first, second = (np.unique(clusters[side]) for side in (member, ~member))
    both = 0 if across else len(np.intersect1d(first, second))
    return len(first) - both, len(second) - both


def images_of(member: Bool[np.ndarray, " n"]) -> Sides:
    """How many images, or whatever else has a side, each side has."""
    return int(member.sum()), int((~member).sum())


def counted_before(cohort: Cohort, fewest: Sides, skip_unreadable: bool, across: bool = True) -> tuple[Sides, Sides] | None:
    """What each side counts as, and its readable files; None where both sides have files enough, and where a file cannot be read."""
    files = images_of(cohort.member)
    if len(cohort) > MOST or all(n >= SURE * least for n, least in zip(files, fewest, strict=True)):
        return None
    looked = survey(cohort)
    if looked.unreadable and not skip_unreadable:
        return None
    member = looked.cohort.member
    return counted(looked.duplicates.clusters, member, across), images_of(member)


def since(left: Sequence[int], files: Sequence[int], across: bool = True) -> str:
    """Why fewer count than there are files, as the end of a sentence; empty where each counts."""
    if tuple(left) == tuple(files):
        return ""
    also = "" if across else ", and not at all where one is on the other side"
    return f", since near-duplicates count once{also} ({' and '.join(f'{n:,}' for n in files)} files)"
