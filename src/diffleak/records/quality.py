"""quality.json: what was drawn, what it was compared with, and each statistic with its interval. No torch.

Field names are the keys of quality.json; changing one needs a step of SCHEMA_VERSION and a line in the changelog. What
cannot be estimated is null, with the reason beside it.
"""

from pathlib import Path
from typing import Any, Literal

from diffleak.errors import UserError
from diffleak.records.audit import Environment, Membership
from diffleak.records.base import Estimate, Record, read_json
from diffleak.records.images import Alpha, Exif, Tally

SCHEMA_VERSION: Literal[1] = 1
FILE = "quality.json"

MetricName = Literal["frechet", "kid", "inception_score", "precision", "recall", "copy_rate", "clip_score"]


class Metric(Estimate):
    """One statistic of the generated images."""

    name: MetricName


class ImageSet(Record):
    """Real images: where they come from, how many, and a hash of their ids and pixels."""

    source: str
    n: int
    fingerprint: str


class Percentile(Record):
    """A percentile of the similarity to the nearest training image: of generated images, and of the real unseen reference."""

    percent: float
    generated: Estimate
    reference: float


class Pair(Record):
    """A generated image (its number) and the training image that it is most similar to."""

    image: int
    training_id: str
    similarity: float


class Copies(Record):
    """Similarities are cosines of features. `threshold` is the one of the copy rate, `chance` how often as many or more would
    exceed it if generated images were like unseen real ones; both are null when the reference is too small.
    """

    encoder: str
    encoder_fingerprint: str
    dimension: int
    threshold: float | None
    chance: float | None
    percentiles: tuple[Percentile, ...]
    pairs: tuple[Pair, ...]


class QualityCosts(Record):
    """Forwards of the denoiser of one image each, for all images; seconds of this call, without what was drawn before it."""

    forwards: int
    seconds_drawing: float
    seconds_measuring: float


class QualityRecord(Record):
    """quality.json. `prompts` says in words what a text-to-image model was told, `clip` what the CLIP score was taken with.

    `anonymous` is the name of the key of the ids.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    command: str
    model: str
    model_fingerprint: str
    lora: str | None = None
    lora_scale: float | None = None
    images: int
    image_shape: str
    sampler: str
    steps: int
    seed: int
    rounds: int
    classes: str | None
    prompts: str | None = None
    guidance_scale: float | None = None
    clip: str | None = None
    clip_fingerprint: str | None = None
    extractor: str
    extractor_fingerprint: str
    dimension: int
    reference: ImageSet
    training: ImageSet | None
    metrics: tuple[Metric, ...]
    copies: Copies | None
    scores: str | None
    warnings: tuple[str, ...]
    environment: Environment
    costs: QualityCosts
    membership: Membership | None = None
    settings: dict[str, Any] = {}
    anonymous: str | None = None
    exif: Exif = "apply"
    alpha: Alpha = "drop"
    white: int | None = None
    real_images: Tally = Tally()

    def metric(self, name: MetricName) -> Metric:
        """One statistic by its name."""
        return next(m for m in self.metrics if m.name == name)


def read_quality(folder: Path) -> QualityRecord:
    """The record in a folder; raises `UserError` for a folder without one, or of another schema version."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} must be the folder of a finished `diffleak quality`; it has no {FILE}")
    return read_json(path, QualityRecord)


def read_quality_file(path: Path) -> QualityRecord:
    """The record in a file of any name; raises `UserError` for one that cannot be read or is none."""
    return read_json(path, QualityRecord, "the quality file ", "must be a quality.json as `diffleak quality` writes it")
