"""`leakscope quality`: real images to features, images drawn, their features, the statistics, the record.

Everything that can be refused is refused before the first image is drawn: the real images are read and their features
computed first. The same call resumes: drawn chunks are kept in the output folder.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

from leakscope import hub
from leakscope.config import build
from leakscope.data.cohort import Cohort
from leakscope.data.pixels import ImageShape, fit, pixel_hash, png, shape_of
from leakscope.environment import environment
from leakscope.errors import UserError
from leakscope.files import checked_folder, write_text
from leakscope.generation import Drawing, draw, plan_drawing
from leakscope.hub import Target
from leakscope.progress import progress
from leakscope.quality import copies, statistics
from leakscope.quality.config import QualityConfig, Real, read_real, source_name
from leakscope.quality.extractors import BATCH, Extractor, Features, extract, open_extractor, probe
from leakscope.quality.record import FILE, ImageSet, Metric, MetricName, QualityCosts, QualityRecord, read_quality
from leakscope.record import Estimate
from leakscope.report.quality import Pictures, html
from leakscope.threads import side_by_side

SCORES = "nearest.csv"


@dataclass(frozen=True, eq=False)
class RealSet:
    """One set of real images, read once: its features, and those for copies where that is another encoder's."""

    cohort: Cohort
    fingerprint: str
    hashes: frozenset[bytes]
    features: Features
    for_copies: Float[np.ndarray, "n d"]

    @property
    def described(self) -> ImageSet:
        return ImageSet(source=source_name(self.cohort), n=len(self.cohort), fingerprint=self.fingerprint)


@dataclass(frozen=True, eq=False)
class Measured:
    """The record, the generated images and the real ones, from which the report is made."""

    record: QualityRecord
    images: UInt8[np.ndarray, "n h w c"]
    real: Real
    shape: ImageShape

    def save(self, folder: Path, thumbnails: bool = False) -> None:
        """Writes quality.html and quality.json; `thumbnails` shows the closest training images, which are private."""
        training = self.real.training if thumbnails else None
        of = None if training is None else (lambda image_id: png(fit(training.of(image_id), self.shape, True, image_id)))
        write_text(folder / "quality.html", html(self.record, Pictures(lambda i: png(self.images[i]), of)))
        write_text(folder / FILE, self.record.model_dump_json(indent=2))


def measure_quality(model: "str | Path | Target", extractor: Any = None, **settings: Any) -> Measured:
    """Draws images of a model and compares them with real ones; the Python form of `leakscope quality`.

    model: a diffusers folder, hub id or `Target`. extractor: a spec or a function (see `extractors`). settings: as
    `QualityConfig`. Raises `UserError` for what cannot be measured.
    """
    spec = {} if extractor is None or not isinstance(extractor, str | Path) else {"extractor": str(extractor)}
    name = {} if isinstance(model, Target) else {"model": str(model)}
    config = build(QualityConfig, settings, spec, name)
    target = model if isinstance(model, Target) else None
    return measure(config, target, extractor if callable(extractor) else None)


def measure(config: QualityConfig, target: Target | None = None, extractor: Callable[..., Any] | None = None) -> Measured:
    """Everything that a config says; writes nearest.csv and the drawn images into its output folder, nothing without one."""
    started = time.monotonic()
    target = target or hub.load(config.model, config.dtype, config.device)
    real = read_real(config)
    shape = target.shape or shape_of(real.reference.read(0))
    first = open_extractor(extractor or config.extractor, target.device)
    second = open_extractor(config.copy_encoder, target.device) if config.copy_encoder else first
    for each in {first, second}:
        probe(each, shape)
    labels, classes = _labels(target, real.reference, config)
    drawing = plan_drawing(target, config.images, config.seed, config.steps, config.sampler, config.rounds, shape, labels)
    folder = checked_folder(config.output) if config.output else None
    encoders = (first, second)
    reference = _read_set("reference", real.reference, shape, config.resize, encoders)
    training = _read_set("training", real.training, shape, config.resize, encoders) if real.training else None
    _refuse_shared(reference, training)
    if folder:
        _refuse_another_measurement(folder, target, encoders, reference, training)
    measuring, started = time.monotonic() - started, time.monotonic()
    images = _drawn(drawing, folder, config)
    drawing_seconds, started = time.monotonic() - started, time.monotonic()
    generated, for_copies = _features("generated", len(images), _cut(images), encoders)
    metrics, found = _statistics(encoders, generated, for_copies, reference, training)
    if config.scores and folder and training:
        _write_scores(folder / SCORES, reference, training, for_copies)
    costs = QualityCosts(
        forwards=config.images * drawing.forwards,
        seconds_drawing=round(drawing_seconds, 3),
        seconds_measuring=round(measuring + time.monotonic() - started, 3),
    )
    threads = config.threads or side_by_side(target)
    record = QualityRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=config.command,
        model=target.name,
        model_fingerprint=target.fingerprint,
        images=len(images),
        image_shape=str(shape),
        **config.model_dump(include={"sampler", "steps", "seed", "rounds"}),
        classes=classes,
        extractor=first.name,
        extractor_fingerprint=first.fingerprint,
        dimension=generated.features.shape[1],
        reference=reference.described,
        training=training.described if training else None,
        metrics=metrics,
        copies=found,
        scores=SCORES if config.scores else None,
        warnings=_warnings(config, target, drawing, reference, training),
        environment=environment(target, threads, config.seed, reference.fingerprint),
        costs=costs,
    )
    return Measured(record, images, real, shape)


def _labels(target: Target, reference: Cohort, config: QualityConfig) -> tuple[Int64[np.ndarray, " n"] | None, str | None]:
    """The classes to draw, in the frequencies of the reference where it has labels, else evenly; and that in words."""
    if target.classes is None or config.images < 1:
        return None, None
    labels = reference.labels()
    if labels is None:
        return None, f"evenly over {target.classes} classes, since the reference has no labels"
    if labels.min() < 0 or labels.max() >= target.classes:
        raise UserError(
            f"labels of the reference must lie in [0, {target.classes}), the model's classes; got {labels.min()} to {labels.max()}"
        )
    drawn = np.random.default_rng(config.seed).choice(labels, size=config.images)
    return drawn.astype(np.int64), f"in the frequencies of the reference, over {target.classes} classes"


def _read_set(role: str, cohort: Cohort, shape: ImageShape, resize: bool, encoders: tuple[Extractor, Extractor]) -> RealSet:
    """Reads every image once, for its hash and its features."""
    digest, hashes = hashlib.sha256(), set()

    def batches() -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        for start in range(0, len(cohort), BATCH):
            images = []
            for i in range(start, min(start + BATCH, len(cohort))):
                pixels = cohort.read(i)
                hashes.add(pixel_hash(pixels))
                digest.update(f"{cohort.ids[i]}\0{pixel_hash(pixels).hex()}\n".encode())
                images.append(fit(pixels, shape, resize, cohort.ids[i]))
            yield np.stack(images)

    features, for_copies = _features(role, len(cohort), batches(), encoders)
    return RealSet(cohort, digest.hexdigest(), frozenset(hashes), features, for_copies)


def _features(
    role: str, n: int, batches: Iterator[UInt8[np.ndarray, "b h w c"]], encoders: tuple[Extractor, Extractor]
) -> tuple[Features, Float[np.ndarray, "n d"]]:
    """The features of a set under the extractor, and under the encoder that looks for copies."""
    first, second = encoders
    others: list[np.ndarray] = []

    def both() -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        for images in batches:
            if second is not first:
                others.append(extract(second, [images]).features)
            yield images

    with progress(f"features, {role}", n, "images") as advance:
        features = extract(first, both(), advance)
    return features, np.concatenate(others) if others else features.features


def _cut(images: UInt8[np.ndarray, "n h w c"]) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    yield from (images[start : start + BATCH] for start in range(0, len(images), BATCH))


def _drawn(drawing: Drawing, folder: Path | None, config: QualityConfig) -> UInt8[np.ndarray, "n h w c"]:
    if folder:
        return draw(drawing, folder, config.batch_size, config.threads)
    with tempfile.TemporaryDirectory() as temporary:
        return draw(drawing, Path(temporary), config.batch_size, config.threads)


def _statistics(
    encoders: tuple[Extractor, Extractor],
    generated: Features,
    for_copies: Float[np.ndarray, "n d"],
    reference: RealSet,
    training: RealSet | None,
) -> tuple[tuple[Metric, ...], Any]:
    x, y = generated.features, reference.features.features
    precision, recall = statistics.precision_recall(x, y)
    found = copies.no_copies()
    if training:
        encoder = encoders[1].name, encoders[1].fingerprint
        found = copies.find_copies(encoder, for_copies, reference.for_copies, training.for_copies, training.cohort.ids)
    metrics: dict[MetricName, Estimate] = {
        "frechet": statistics.frechet_distance(x, y),
        "kid": statistics.kernel_distance(x, y),
        "inception_score": statistics.inception_score(generated.probabilities),
        "precision": precision,
        "recall": recall,
    }
    return (*(Metric(name=name, **estimate.model_dump()) for name, estimate in metrics.items()), found.rate), found.copies


def _write_scores(path: Path, reference: RealSet, training: RealSet, generated: Float[np.ndarray, "n d"]) -> None:
    ids = training.cohort.ids + reference.cohort.ids
    candidates = np.concatenate([training.for_copies, reference.for_copies])
    member = np.repeat([1, 0], [len(training.cohort), len(reference.cohort)])
    write_text(path, copies.scores_csv(ids, member, copies.membership_scores(candidates, generated)))


def _refuse_shared(reference: RealSet, training: RealSet | None) -> None:
    """The threshold of the copy rate comes from images that the model has not seen."""
    shared = len(reference.hashes & training.hashes) if training else 0
    if shared:
        raise UserError(
            f"reference and training must not share an image; {shared} are in both, pixel for pixel: "
            "remove them from the reference, or leave out --training"
        )


def _refuse_another_measurement(
    folder: Path, target: Target, encoders: tuple[Extractor, Extractor], reference: RealSet, training: RealSet | None
) -> None:
    if not (folder / FILE).exists():
        return
    before = read_quality(folder)
    if before.model_fingerprint == hub.UNKNOWN:
        return  # the drawn images are refused then
    set_of = lambda s: None if s is None else (s.n, s.fingerprint)
    pairs: dict[str, tuple[Any, Any]] = {
        "model": (before.model_fingerprint, target.fingerprint),
        "extractor": ((before.extractor, before.extractor_fingerprint), (encoders[0].name, encoders[0].fingerprint)),
        "reference": (set_of(before.reference), set_of(reference.described)),
        "training": (set_of(before.training), set_of(training.described if training else None)),
    }
    if before.copies and training:
        pairs["copy encoder"] = (before.copies.encoder_fingerprint, encoders[1].fingerprint)
    for what, (old, new) in pairs.items():
        if old != new:
            raise UserError(
                f"{folder / FILE} was measured with another {what}; choose another folder, or delete {FILE}: the drawn images are kept"
            )


def _warnings(config: QualityConfig, target: Target, drawing: Drawing, reference: RealSet, training: RealSet | None) -> tuple[str, ...]:
    found = []
    if len(target.denoiser.exposed) > 1:
        found.append("two models take turns, one per step" + (f"; drawn in {config.rounds} adaptive rounds" if config.rounds > 1 else ""))
    if config.resize:
        found.append(f"real images of another shape were resized to {drawing.shape} (bicubic, antialiased, centre crop)")
    repeated = len(reference.cohort) - len(reference.hashes)
    if repeated:
        found.append(f"{repeated} images occur more than once in the reference; intervals treat them as independent")
    if training is None and config.reference:
        found.append("whether the reference was trained on is not known; against training images every distance is too small")
    return tuple(found)
