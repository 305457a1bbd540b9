"""The groups of images that an audit counted in the place of images: part of audit.json. No torch."""

from diffleak.records.base import Record

LISTED = 20  # groups that are listed, the most exposed first


class ExposedGroup(Record):
    """One group of members in the test part."""

    group: str
    """The value of the column that its images have; keyed in an anonymous run."""
    images: int
    """Number of its images."""
    score: float
    """Mean membership score of its images; higher = more likely members."""
    exposure: float
    """Share of the held-out groups of the test part that score at least as high, a fraction in [0, 1]."""


class Groups(Record):
    """Which groups there are, and which of them the attack is surest of."""

    column: str
    """Column of the metadata whose values are the groups."""
    members: int
    """Number of groups of members, in both parts."""
    nonmembers: int
    """Number of held-out groups, in both parts."""
    images: tuple[int, int, int]
    """Number of images of the smallest, the middle (median, rounded down) and the largest group."""
    tested: tuple[int, int]
    """Number of groups of members and of held-out groups in the test part of the first division."""
    attack: str | None
    """Label of the attack whose scores rank the groups, the one that the verdict speaks of; null where there is none."""
    exposed: tuple[ExposedGroup, ...]
    """Groups of members of the test part, the highest score first; at most 20."""
