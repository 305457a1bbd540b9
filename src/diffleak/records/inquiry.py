"""The record of an inquiry, "was my work in the training set?": inquiry.json and inquiry.csv. Field names are the keys. No torch."""

import csv
import io
from pathlib import Path
from typing import Literal

from diffleak.records.audit import Membership
from diffleak.records.base import Configured, Estimate, Record, read_json
from diffleak.records.headers import GivenAway
from diffleak.records.images import Tally
from diffleak.records.plan import Costs, Environment, Plan

FILE = "inquiry.json"
TABLE = "inquiry.csv"
PAGE = "inquiry.html"


class SetAnswer(Record):
    """The images in question as a set, against the controls."""

    p_value: float | None = None
    """Probability of scores as high as these for images that were not trained on, in (0, 1]; null where the inquiry is invalid."""
    auc: Estimate = Estimate()
    """How often an image in question scores above a control, in [0, 1]; 0.5 is no difference. The medians over all halves."""
    images: int
    """Number of images in question that were tested; here and below, with `group` of groups of them."""
    controls: int
    """Number of controls that were tested."""
    images_for_power_80: int | None = None
    """Number of images in question that would show this effect with probability 0.8 at level 0.05; null where no number would."""
    controls_for_power_80: int | None = None
    """Number of controls that go with them, in the same ratio as here; null where `images_for_power_80` is."""
    detectable_auc: float | None = None
    """Smallest effect, as an AUC in [0.5, 1], that so many images would show with probability 0.8; null where none is certain enough."""
    reason: str | None = None
    """Why a number is null, in words; null where none is."""


class Placebo(Record):
    """The same test between two halves of the controls, where there is nothing to find."""

    p_value: float
    """Probability of scores as high as these, in (0, 1]; small in one inquiry of twenty by chance."""
    auc: Estimate
    """How often a control of the one half scores above one of the other, in [0, 1]."""
    images: int
    """Number of controls in the place of the images in question."""
    controls: int
    """Number of controls that were left as controls."""


class BlindTest(Record):
    """The same test with scores that no model has a part in: pixel statistics, and captions and classes where the model is given them."""

    p_value: float
    """Probability of a difference as large, in (0, 1]; at or below 0.05 the two sides differ without the model."""
    auc: Estimate
    """How often an image in question has a higher score than a control, in [0, 1]; 0.5 is no difference."""
    chosen: str
    """Statistic that separates the sides best in most halves, in words."""
    detectable_auc: float | None = None
    """Smallest difference, as an AUC in [0.5, 1], that this test finds with probability 0.8; null where none is certain enough."""


class Image(Record):
    """One image in question."""

    id: str
    """Id of the image; keyed in an anonymous run."""
    p_value: float
    """Conformal p-value, merged over the cuts, in (0, 1]: how rarely an image that was not trained on scores as high."""
    q_value: float
    """Smallest share of false discoveries at which the image is among those found (Benjamini and Hochberg), in (0, 1]."""


class Group(Record):
    """One group of images in question."""

    group: str
    """The value of the column that its images have; keyed in an anonymous run."""
    images: int
    """Number of its images that were tested."""
    p_value: float
    """Conformal p-value, merged over the cuts, in (0, 1]: how rarely a group that was not trained on scores as high."""
    q_value: float
    """Smallest share of false discoveries at which the group is among those found (Benjamini and Hochberg), in (0, 1]."""


class Cut(Record):
    """The test of one half of one cut, by what the other half chose."""

    repeat: int
    """Number of the cut, from 0."""
    half: Literal["A", "B"]
    """Half that was tested."""
    chosen: str
    """What the other half chose: attack, calibration and timestep or setting, in words."""
    p_value: float
    """One-sided p-value of the exact permutation test, in (0, 1]."""
    auc: Estimate
    """How often an image in question scores above a control in this half, in [0, 1]."""


def of_controls(membership: Membership) -> str:
    """What the model's own split.json says of the controls, in a sentence."""
    if membership.status == "confirmed":
        return f"{membership.model_split} lists every control as held out."
    if membership.status == "contradicted, ignored":
        return f"By {membership.model_split}, {membership.reason} (--ignore-model-split)."
    trust = "It is taken on trust that the controls were not trained on"
    if membership.same_names:
        return f"{trust}. {membership.model_split} lists the same names as held out; {membership.reason}."
    of = f", and {membership.model_split} does not confirm it" if membership.model_split else ""
    return f"{trust}{of}: {membership.reason}."


class InquiryRecord(Configured):
    """inquiry.json."""

    plan: Plan
    """All that decides the scores; its members are the images in question, its held-out images the controls."""
    environment: Environment
    """Where the numbers come from."""
    level: float
    """Level of the set-level answer, of the placebo and of the blind test, in (0, 1)."""
    repeats: int
    """Number of cuts into halves."""
    valid: bool
    """False where the two sides differ without the model: then no answer is given."""
    invalid_reason: str | None = None
    """Why no answer is given, in words; null where one is."""
    set: SetAnswer
    """The images in question as a set."""
    placebo: Placebo
    """The same test between two halves of the controls."""
    blind: BlindTest
    """The same test without the model."""
    images: tuple[Image, ...]
    """Every image in question, in the order of the ids; empty where the inquiry is invalid or counts groups."""
    group: str | None = None
    """Column of the metadata whose values are the groups that were counted in the place of images; null where none was named."""
    groups: tuple[Group, ...] = ()
    """Every group in question, in the order of their names; empty where the inquiry is invalid or counts images."""
    cuts: tuple[Cut, ...]
    """The test of every half, in the order in which they were made; empty where the inquiry is invalid."""
    repeated: tuple[str, ...] = ()
    """Ids of images that are near-duplicates of another of their side, which counts once; they are not tested."""
    across: tuple[str, ...] = ()
    """Ids of images of either side that are near-duplicates of one on the other side, or of one that is; they are not tested."""
    warnings: tuple[str, ...]
    """What a reader must know of the numbers, a sentence each."""
    omitted: tuple[str, ...]
    """Ids of images that could not be read and were left out, with the reason."""
    truncated: tuple[str, ...] = ()
    """Ids of images whose captions are longer than the text encoder reads."""
    costs: Costs
    """What the scoring took."""
    membership: Membership | None = None
    """What the model's own split.json says of the controls; null where nothing was compared."""
    tally: Tally = Tally()
    """What reading the image files changed, counted."""
    headers: tuple[GivenAway, ...] = ()
    """What the headers of adapters, embeddings, and a model or network in one file give away."""


def to_csv(record: InquiryRecord) -> str:
    """inquiry.csv: id, p_value and q_value of every image in question, or group, images, p_value and q_value of every group."""
    listed: tuple[Image | Group, ...] = record.groups or record.images
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((Group if record.group is not None else Image).model_fields)
    writer.writerows([repr(value) if isinstance(value, float) else value for value in each.model_dump().values()] for each in listed)
    return text.getvalue()


def read_inquiry(folder: Path) -> InquiryRecord:
    """The record of a finished inquiry; raises `UserError` for a damaged one."""
    return read_json(folder / FILE, InquiryRecord, advice="repeat its command, which writes it again")
