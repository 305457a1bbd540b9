"""check.json: what is known of the two sides before an audit. Field names are its keys. No torch."""

from pathlib import Path
from typing import Any, Literal

from diffleak.records.audit import Blind
from diffleak.records.base import Record, read_json
from diffleak.records.images import Tally

SCHEMA_VERSION: Literal[1] = 1
FILE, PAGE = "check.json", "check.html"
Where = Literal["across", "members", "nonmembers"]


class Side(Record):
    """The images of one side."""

    source: str
    """Where the images come from, in words."""
    images: int
    """Number of images, those included that cannot be read."""
    readable: int
    """Number of images that can be read."""
    distinct: int
    """Number of readable images, a cluster of near-duplicates counted as one."""
    captions: int
    """Number of images that have a caption."""
    captions_from: str
    """Where the captions are, in words; empty without captions."""
    labels: int
    """Number of images that have a label, or a folder that may be a class."""
    labels_from: str
    """Where the labels are, in words; empty without labels."""
    shapes: tuple[tuple[str, int], ...]
    """Each shape, as height x width in pixels and channels, with its number of images; the most frequent first."""


class DuplicatePair(Record):
    """Two images of which one is a copy of the other, or nearly so."""

    first: str
    """Id of one image; a member where the pair is across the sides."""
    second: str
    """Id of the other image."""
    where: Where
    """"across" the sides, or the side that both images are on."""
    exact: bool
    """True where the pixels are the same."""
    distance: float
    """Share of the variance of one thumbnail that the other, aligned with it, does not explain, in [0, 1]; 0 for exact copies."""


class Duplicates(Record):
    """Copies and near-copies among all images."""

    exact_across: int
    """Number of held-out images whose pixels are those of a member."""
    near_across: int
    """Number of other held-out images that share a cluster with a member."""
    exact_within: int
    """Number of pairs of exact copies on one side, each further copy counted once."""
    near_within: int
    """Number of pairs of near-duplicates on one side."""
    clusters: int
    """Number of clusters of two images or more."""
    clustered: int
    """Number of images in these clusters."""
    pairs: tuple[DuplicatePair, ...]
    """Pairs across the sides first, then within, each the closest first; a long list is cut, see `listed`."""
    listed: int
    """Number of all pairs, of which `pairs` has the first."""


class Needed(Record):
    """How many images would show a leak of one size."""

    quantity: Literal["AUC", "TPR at 1 % FPR"]
    """What an audit of so many images would detect."""
    value: float
    """Its true value, in [0, 1]."""
    images: int | None
    """Smallest number of images on each side, calibrate part included; null above a million."""


class Power(Record):
    """What so many images can show: a leak that an audit detects with probability 0.8."""

    level: float
    """Level of the intervals in (0, 1), 0.95."""
    probability: float
    """Probability in (0, 1) with which an audit detects a leak of that size, 0.8."""
    members: int
    """Number of members in the test part, a cluster of near-duplicates counted as one."""
    nonmembers: int
    """Number of held-out images in the test part, counted alike."""
    auc: float | None
    """Smallest detectable AUC, in (0.5, 1]; null where not even perfect separation is."""
    tpr_at_1pct: float | None
    """Smallest detectable TPR at 1 % FPR, in (0.01, 1); null where none is."""
    needed: tuple[Needed, ...]
    """What leaks of given sizes take."""


class CheckRecord(Record):
    """check.json."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of these fields."""
    created: str
    """Time in UTC at which the record was written, as ISO 8601."""
    diffleak: str
    """Version of this package."""
    command: str
    """Command line that repeats the check."""
    settings: dict[str, Any]
    """Every setting of the check by its name."""
    valid: bool
    """False where an audit of these sides would be invalid or refused."""
    problems: tuple[str, ...]
    """Why it would be, a sentence each; empty where `valid`."""
    warnings: tuple[str, ...]
    """What else a reader must know of the sides, a sentence each."""
    members: Side
    """What was found of the members."""
    nonmembers: Side
    """What was found of the held-out images."""
    data_fingerprint: str
    """Hash of the ids and pixels of the readable images, as audits without labels and captions record it."""
    duplicates: Duplicates
    """Copies and near-copies among all images."""
    blind: Blind
    """What tells the sides apart without a model."""
    classes_p_value: float | None
    """Share of random divisions whose classes differ as much between the sides, in (0, 1]; null without classes."""
    power: Power
    """What so many images can show."""
    images: Tally
    """What reading the files changed, and what was left out, counted."""
    unreadable: tuple[str, ...]
    """Id of each image that cannot be read, with the reason."""


def read_check(folder: Path) -> CheckRecord:
    """The record in a folder; raises `UserError` where there is none that can be read."""
    return read_json(folder / FILE, CheckRecord, "the check ", "must be a check.json as `diffleak check` writes it", "repeat that command")
