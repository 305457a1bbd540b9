"""quality.json: what was drawn, what it was compared with, and each statistic with its interval. No torch.

Field names are the keys of quality.json; changing one needs a step of its version and a line in the changelog. What
cannot be estimated is null, with the reason beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict

from diffleak.records.audit import Membership
from diffleak.records.base import Estimate, Record, read_json
from diffleak.records.images import Alpha, Exif, Tally
from diffleak.records.plan import Environment, OfDrawings

FILE, PAGE = "quality.json", "quality.html"
DRAWN = "generated"  # the folder beside them of the images that were drawn
# what a record says of its numbers
ONE_BY_ONE = "of an earlier version, which counted near-duplicates one by one, and may be wrong where there are near-duplicates"

R = TypeVar("R", bound=Record)

MetricName = Literal["frechet", "kid", "inception_score", "precision", "recall", "copy_rate", "clip_score", "kid_difference"]
Unit = Literal["image", "cluster"]


class Metric(Estimate):
    """One statistic of the generated images."""

    model_config = ConfigDict(extra="ignore")

    name: MetricName
    """Name of the statistic."""
    p_value: float | None = None
    """How often exchanged sides give a difference as low or lower, in [0, 1]; null but for "kid_difference"."""


class ImageSet(Record):
    """A set of real images."""

    model_config = ConfigDict(extra="ignore")

    source: str
    """Where the images come from, in words."""
    n: int
    """Number of images."""
    fingerprint: str
    """Hash of their ids and pixels."""


class Percentile(Record):
    """A percentile of the similarity to the nearest training image."""

    percent: float
    """Which percentile, in [0, 100]."""
    generated: Estimate
    """The percentile of the generated images, a cosine in [-1, 1]."""
    reference: float
    """The percentile of the real images that the model was not trained on, a cosine in [-1, 1]."""


class Pair(Record):
    """A generated image and the training image that is most similar to it."""

    image: int
    """Number of the generated image, from 0."""
    training_id: str
    """Id of the training image; keyed in an anonymous run."""
    similarity: float
    """Cosine of their features, in [-1, 1]."""


class Copies(Record):
    """How similar generated images are to training images, by cosines of an encoder's features."""

    encoder: str
    """Name of the encoder of features."""
    encoder_fingerprint: str
    """Hash of the encoder's weights, or the size that its images are brought to."""
    dimension: int
    """Number of features of an image."""
    threshold: float | None
    """Similarity above which an image counts as a copy, a cosine in [-1, 1]; null with too few real images."""
    chance: float | None
    """Probability that as many images or more exceed the threshold if they are like real unseen ones, in [0, 1]; null without one."""
    percentiles: tuple[Percentile, ...]
    """Percentiles of the similarity to the nearest training image, in ascending order."""
    pairs: tuple[Pair, ...]
    """The most similar pairs, the most similar first."""


class QualityCosts(Record):
    """What the measurement took."""

    forwards: int
    """Denoiser forwards of one image each, for all generated images."""
    seconds_drawing: float
    """Wall-clock seconds of drawing in this call; images drawn by earlier calls are not in it."""
    seconds_measuring: float
    """Wall-clock seconds of everything else in this call."""


class QualityRecord(OfDrawings):
    """quality.json."""

    images: int
    """Number of generated images."""
    image_shape: str
    """Height x width in pixels, and grey, RGB or RGBA."""
    sampler: str
    """Name of the sampler that drew the images."""
    steps: int
    """Sampling steps of an image."""
    seed: int
    """Seed of every random draw."""
    rounds: int
    """Rounds of adaptive drawing of a pair of models that take turns; 1 for other models."""
    classes: str | None
    """Which classes the images were drawn of, in words; null for a model without classes."""
    prompts: str | None = None
    """Which prompts the images were drawn of, in words; null for a model that takes no text."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance in drawing; null without guidance."""
    clip: str | None = None
    """The CLIP model of the CLIP score; null without that score."""
    clip_fingerprint: str | None = None
    """Hash of the CLIP model's weights; null without that score."""
    extractor: str
    """Name of the extractor of features."""
    extractor_fingerprint: str
    """Hash of the extractor's weights, or the size that its images are brought to."""
    dimension: int
    """Number of features of an image."""
    reference: ImageSet
    """Real images that the model was not trained on."""
    training: ImageSet | None
    """Training images that copies are looked for in; null without them."""
    metrics: tuple[Metric, ...]
    """Each statistic with its interval."""
    copies: Copies | None
    """How similar generated images are to training images; null without those."""
    unit: Unit = "image"
    """What the copy rate and the KID difference count: "cluster", near-duplicates of real images once; "image", each of them, as in records
    of earlier versions."""
    scores: str | None
    """Name of the file of membership scores by nearest generated image; null without --scores."""
    warnings: tuple[str, ...]
    """What a reader must know of the numbers, a sentence each."""
    environment: Environment
    """Where the numbers come from."""
    costs: QualityCosts
    """What the measurement took."""
    membership: Membership | None = None
    """What the model's own split.json says of training and reference; null without training images, and in records of version 0.1."""
    settings: dict[str, Any] = {}
    """Every setting of the measurement by its name; empty in records of version 0.1."""
    anonymous: str | None = None
    """Name of the key of the ids; null where ids are file names."""
    exif: Exif = "apply"
    """Orientation of photos: "apply" turns every image upright, "ignore" reads it as it is stored."""
    alpha: Alpha = "drop"
    """Transparent images: "drop" keeps their colours, "white" and "black" lay them on that colour."""
    white: int | None = None
    """Value that is white in grey images of more than 8 bits; null for the largest that the file allows."""
    real_images: Tally = Tally()
    """What reading the real images' files changed, counted."""

    def metric(self, name: MetricName) -> Metric:
        """One statistic by its name."""
        return next(m for m in self.metrics if m.name == name)


def read_quality(path: Path, kind: type[R]) -> R:
    """The record in a quality.json of any name, or the part of it that `kind` has; raises `UserError` for a file that holds none."""
    return read_json(path, kind, "the quality file ", "must be a quality.json as `diffleak quality` writes it", "repeat that command")


def read_record(path: Path) -> QualityRecord:
    """The whole record, with a warning where an earlier version counted otherwise; raises `UserError` for a file that holds none."""
    record = read_quality(path, QualityRecord)
    said = counted_one_by_one(record.unit, record.metrics)
    return record.model_copy(update={"warnings": (*record.warnings, said)}) if said else record


def counted_one_by_one(unit: Unit, metrics: Sequence[Metric], beside: str = "") -> str | None:
    """Says that copies and the KID difference count each near-duplicate, and how to measure them anew; None where nothing does.

    beside: what else is to be said of these numbers.
    """
    if unit != "image" or not any(m.value is not None for m in metrics if m.name in ("copy_rate", "kid_difference")):
        return None
    return f"copy rate and KID difference are {ONE_BY_ONE}{beside}: repeat the quality command, which keeps the images drawn"
