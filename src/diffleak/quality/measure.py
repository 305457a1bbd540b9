"""`diffleak quality`: real images to features, images drawn, their features, the statistics, the record.

Everything that can be refused is refused before the first image is drawn: the real images are read and their features
computed first. The same call resumes: drawn chunks are kept in the output folder.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

from diffleak import hub
from diffleak.config import build
from diffleak.data.anonymity import Key, key_beside_audit
from diffleak.data.cohort import Cohort
from diffleak.data.distinct import Distinct, distinct
from diffleak.data.labels import NoClasses
from diffleak.data.membership import check_membership
from diffleak.data.names import say_strays
from diffleak.data.pixels import ImageShape, fit, png, shape_of
from diffleak.diffusion.environment import environment
from diffleak.diffusion.target import Target, side_by_side
from diffleak.errors import UserError, one_or_more
from diffleak.generation import Drawing, draw, plan_drawing
from diffleak.hub.encoders import Extractor, open_extractor, probe
from diffleak.quality import copies
from diffleak.quality.alignment import Clip, NoClip, alignment, find_clip
from diffleak.quality.config import QualityConfig, Real, read_real, source_name
from diffleak.quality.features import Both, RealSet, cut, features_of, read_set, refuse_shared, tally_of
from diffleak.quality.prompts import Prompts, choose_prompts
from diffleak.records.audit import Membership
from diffleak.records.base import Estimate, now
from diffleak.records.digests import write_recorded
from diffleak.records.images import refuse_other_reading
from diffleak.records.quality import FILE, PAGE, Copies, Metric, MetricName, QualityCosts, QualityRecord, read_quality
from diffleak.records.run_folder import read_plan, refuse_other_command
from diffleak.report import to_html, wording
from diffleak.report.pages.quality import Pictures, page
from diffleak.report.wording import adapter, labels_from
from diffleak.stats.images import frechet_distance, inception_score, kernel_difference, kernel_distance, precision_recall
from diffleak.work.files import checked_folder, closing, open_to_others, write_text
from diffleak.work.folder import UNKNOWN
from diffleak.work.progress import say

SCORES = "nearest.csv"


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
        html = to_html(page(self.record, Pictures(lambda i: png(self.images[i]), of)))
        scores = (SCORES,) if self.record.scores and (folder / SCORES).is_file() else ()
        write_recorded(folder, {PAGE: html, FILE: self.record.model_dump_json(indent=2)}, scores, replaces=SCORES)


def measure_quality(model: "str | Path | Target", extractor: Any = None, **settings: Any) -> Measured:
    """Draws images of a model and compares them with real ones; the Python form of `diffleak quality`.

    Args:
        model: A diffusers folder, hub id or `Target`.
        extractor: An encoder as `--extractor` takes it, or a function of float images (b, c, h, w) in [-1, 1].
        **settings: As `QualityConfig`.

    Returns:
        The record, as in quality.json, and the images.

    Raises:
        UserError: For what cannot be measured.
    """
    spec = {} if extractor is None or not isinstance(extractor, str | Path) else {"extractor": str(extractor)}
    name = {} if isinstance(model, Target) else {"model": str(model)}
    config = build(QualityConfig, settings, spec, name)
    target = model if isinstance(model, Target) else None
    return measure(config, target, extractor if callable(extractor) else None)


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that can be known before real images are read: `encoders` are the extractor and the one that copies are found with."""

    config: QualityConfig
    target: Target
    real: Real
    drawing: Drawing
    classes: str | None
    encoders: tuple[Extractor, Extractor]
    prompts: Prompts | None
    clip: Clip | NoClip | None
    membership: Membership | None = None
    key: Key | None = None

    def describe(self) -> str:
        """The plan in one line."""
        drawing, training = self.drawing, self.real.training
        others = f" and {one_or_more(len(training), 'training image')}" if training else ""
        given = f"of {self.prompts.described}, guidance {drawing.guidance_scale:g}, " if self.prompts else ""
        return (
            f"plan: {adapter(self.target.lora, self.target.lora_scale, self.target.embedding)}"
            f"{one_or_more(drawing.n, 'image')} ({drawing.shape}) {given}by {drawing.sampler} in {one_or_more(drawing.steps, 'step')}, "
            f"{one_or_more(drawing.n * drawing.forwards, 'forward')}; against {len(self.real.reference):,} real images{others}; "
            f"features of {self.encoders[0].name}"
        )


def prepare(config: QualityConfig, target: Target | None = None, extractor: Callable[..., Any] | None = None) -> Prepared:
    """Loads the model and the extractors, and runs none of them."""
    refuse_other_command(config.output, FILE)
    key = key_beside_audit(config, FILE, lambda path: read_quality(path, QualityRecord))
    real = read_real(config, key)  # before the model is loaded
    target = hub.target_of(config, target)
    membership = _membership(config, target, real)
    shape = target.shape or shape_of(real.reference.read(0))
    first = open_extractor(extractor or config.extractor, target.device)
    second = open_extractor(config.copy_encoder, target.device) if config.copy_encoder else first
    labels, classes = _labels(target, real.reference, config)
    prompts = choose_prompts(config, target.text is not None, real.reference)
    drawing = plan_drawing(
        target,
        config.images,
        config.seed,
        config.steps,
        config.sampler,
        config.rounds,
        shape,
        labels,
        prompts.texts if prompts else None,
        config.guidance_scale,
    )
    clip = find_clip(config.clip, target.device) if prompts else None
    return Prepared(config, target, real, drawing, classes, (first, second), prompts, clip, membership, key)


def _membership(config: QualityConfig, target: Target, real: Real) -> Membership | None:
    """What the model's own split says of the training and the held-out images; None where only one of them is given."""
    if real.training is None:
        return None
    training = replace(real.training, member=np.ones(len(real.training), dtype=bool))
    names = f"{source_name(training)} (training) and {source_name(real.reference)} (reference)"
    given = f"the split file {config.split}" if config.split else names
    return check_membership([real.reference, training], given, target.split_file, config.split, config.ignore_model_split)


def measure(config: QualityConfig, target: Target | None = None, extractor: Callable[..., Any] | None = None) -> Measured:
    """Everything that a config says; writes nearest.csv and the drawn images into its output folder, nothing without one."""
    started = time.monotonic()
    prepared = prepare(config, target, extractor)
    say(prepared.describe())
    for each in set(prepared.encoders):
        probe(each, prepared.drawing.shape)
    folder = checked_folder(config.output) if config.output else None
    if prepared.key:
        say(f"anonymous: images go by keyed ids; keep their key {prepared.key.path}, and never pass it on with the results")
    elif folder and prepared.real.training and open_to_others(folder):
        say(f"others on this machine may read {folder}, which names images by file name: {closing(folder)}")
    read = partial(read_set, shape=prepared.drawing.shape, config=config, encoders=prepared.encoders)
    reference = read("reference", prepared.real.reference)
    training = read("training", prepared.real.training) if prepared.real.training else None
    tally = tally_of(reference, training)
    tally.refuse_white(config.decoding)
    for trained in prepared.target.trained:
        refuse_other_reading(trained, config.decoding, tally, prepared.drawing.shape.channels == 4)
    refuse_shared(reference, training, bool(config.split))
    counted = _counted(reference, training)
    if training and not counted.counted.any():
        many = f"{len(reference.cohort):,} in all"
        raise UserError(f"every image of the reference ({many}) is a near-duplicate of a training image; give others")
    if folder:
        _refuse_another_measurement(folder, prepared, reference, training)
    before = time.monotonic()
    images = draw(prepared.drawing, folder, config.batch_size, config.threads)
    drawn = time.monotonic()
    features = features_of("generated", len(images), cut(images), prepared.encoders)
    metrics, found = _statistics(prepared.encoders, features, reference, training, counted, config.seed)
    if prepared.prompts and prepared.clip:
        score = alignment(prepared.clip, images, prepared.prompts.texts, config.seed)
        metrics += (Metric(name="clip_score", **score.model_dump()),)
    if config.scores and folder and training:
        _write_scores(folder / SCORES, reference, training, features.for_copies)
    costs = QualityCosts(
        forwards=len(images) * prepared.drawing.forwards,
        seconds_drawing=round(drawn - before, 3),
        seconds_measuring=round(before - started + time.monotonic() - drawn, 3),
    )
    warnings = _warnings(prepared, reference, training, counted)
    return Measured(_record(prepared, reference, training, metrics, found, warnings, costs), images, prepared.real, prepared.drawing.shape)


def _record(
    prepared: Prepared,
    reference: RealSet,
    training: RealSet | None,
    metrics: tuple[Metric, ...],
    found: Copies | None,
    warnings: tuple[str, ...],
    costs: QualityCosts,
) -> QualityRecord:
    config, target, drawing, first = prepared.config, prepared.target, prepared.drawing, prepared.encoders[0]
    return QualityRecord(
        created=now(),
        command=config.command,
        **target.named,
        adapters=target.adapters,
        embeddings=target.embeddings,
        images=drawing.n,
        image_shape=str(drawing.shape),
        sampler=drawing.sampler,
        steps=drawing.steps,
        seed=drawing.seed,
        rounds=drawing.rounds,
        classes=prepared.classes,
        prompts=prepared.prompts.described if prepared.prompts else None,
        guidance_scale=drawing.guidance_scale,
        clip=prepared.clip.name if isinstance(prepared.clip, Clip) else None,
        clip_fingerprint=prepared.clip.fingerprint if isinstance(prepared.clip, Clip) else None,
        extractor=first.name,
        extractor_fingerprint=first.fingerprint,
        dimension=reference.features.plain.features.shape[1],
        reference=reference.described,
        training=training.described if training else None,
        metrics=metrics,
        copies=found,
        unit="cluster",
        scores=SCORES if config.scores else None,
        warnings=warnings,
        environment=environment(target, config.threads or side_by_side(target), config.seed, reference.fingerprint),
        costs=costs,
        membership=prepared.membership,
        settings=config.model_dump(mode="json"),
        anonymous=prepared.key.name if prepared.key else None,
        **asdict(config.decoding),
        real_images=tally_of(reference, training),
    )


def _labels(target: Target, reference: Cohort, config: QualityConfig) -> tuple[Int64[np.ndarray, " n"] | None, str | None]:
    """The classes to draw, in the frequencies of the reference where it has labels, else evenly; and that in words."""
    if target.classes is None or config.images < 1:
        return None, None
    try:
        labels = reference.labels(target.classes, target.class_names)
    except NoClasses:
        return None, f"evenly over {target.classes} classes, since the names or folders of the reference are no classes of the model"
    if labels is None:
        return None, f"evenly over {target.classes} classes, since the reference has no labels"
    say_strays(labels.files, reference.ids[0])
    drawn = np.random.default_rng(config.seed).choice(labels.numbers, size=config.images)
    origin = labels_from(labels.origin, None if reference.anonymous else labels.names)  # names of folders may name people
    return drawn, f"in the frequencies of the reference, over {target.classes} classes; labels from {origin}"


def _statistics(
    encoders: tuple[Extractor, Extractor],
    generated: Both,
    reference: RealSet,
    training: RealSet | None,
    counted: Distinct,
    seed: int,
) -> tuple[tuple[Metric, ...], Copies | None]:
    """counted: which real images count where near-duplicates count once, in the copies and the KID difference."""
    x, y = generated.plain.features, reference.features.plain.features
    precision, recall = precision_recall(x, y)
    found = copies.no_copies()
    difference, p_value = Estimate(reason=copies.UNKNOWN), None
    if training:
        encoder, of = (encoders[1].name, encoders[1].fingerprint), training.features.for_copies
        unseen = reference.features.for_copies[counted.counted]
        found = copies.find_copies(encoder, generated.for_copies, unseen, of, training.cohort.ids)
        difference, p_value = kernel_difference(x, training.features.plain.features[counted.members], y[counted.counted], seed)
    metrics: dict[MetricName, Estimate] = {
        "frechet": frechet_distance(x, y),
        "kid": kernel_distance(x, y),
        "inception_score": inception_score(generated.plain.probabilities),
        "precision": precision,
        "recall": recall,
    }
    listed = [Metric(name=name, **estimate.model_dump()) for name, estimate in metrics.items()]
    listed += [found.rate, Metric(name="kid_difference", p_value=p_value, **difference.model_dump())]
    return tuple(listed), found.copies


def _counted(reference: RealSet, training: RealSet | None) -> Distinct:
    """Which training images and which of the reference count, near-duplicates once."""
    if training:
        return distinct(training.looked, reference.looked)
    alone = distinct(reference.looked, None)
    return Distinct(alone.stands[:0], alone.members, 0, int((~alone.members).sum()))


def _write_scores(path: Path, reference: RealSet, training: RealSet, generated: Float[np.ndarray, "n d"]) -> None:
    ids = training.cohort.ids + reference.cohort.ids
    candidates = np.concatenate([training.features.for_copies, reference.features.for_copies])
    member = np.repeat([1, 0], [len(training.cohort), len(reference.cohort)])
    scores = copies.membership_scores(candidates, generated)
    rows = np.concatenate([training.cohort.by_id, len(training.cohort) + reference.cohort.by_id])  # not in the order of file names
    write_text(path, copies.scores_csv(tuple(ids[row] for row in rows), member[rows], scores[rows]), private=True)


def _refuse_another_measurement(folder: Path, prepared: Prepared, reference: RealSet, training: RealSet | None) -> None:
    encoders = prepared.encoders
    plan = read_plan(folder)
    if plan is not None and plan.model_fingerprint != prepared.target.fingerprint:
        raise UserError(f"{folder} is the folder of a run on another model; choose another folder")
    if not (folder / FILE).exists():
        return
    before = read_quality(folder / FILE, QualityRecord)
    if before.model_fingerprint == UNKNOWN:
        return  # the drawn images are refused then
    set_of = lambda s: None if s is None else (s.n, s.fingerprint)
    same = {
        "model": before.model_fingerprint == prepared.target.fingerprint,
        "extractor": (before.extractor, before.extractor_fingerprint) == (encoders[0].name, encoders[0].fingerprint),
        "real images": set_of(before.reference) == set_of(reference.described),
        "training images": set_of(before.training) == set_of(training.described if training else None),
        "CLIP": not before.clip or not isinstance(prepared.clip, Clip) or before.clip_fingerprint == prepared.clip.fingerprint,
        "copy encoder": not before.copies or not training or before.copies.encoder_fingerprint == encoders[1].fingerprint,
    }
    if changed := [what for what, kept in same.items() if not kept]:
        # the plan of the drawn images holds the model, and what real images say of captions and classes
        kept = "" if {"model", "real images"} & {*changed} else f", or delete {FILE}: the drawn images are kept"
        raise UserError(f"{folder / FILE} was not measured with the same {changed[0]}; choose another folder{kept}")


def _warnings(prepared: Prepared, reference: RealSet, training: RealSet | None, counted: Distinct) -> tuple[str, ...]:
    rounds = prepared.config.rounds
    found = [*prepared.target.warnings, *(line for each in dict.fromkeys(prepared.encoders) for line in each.warnings)]
    if isinstance(prepared.clip, Clip):
        found += prepared.clip.warnings
    if prepared.membership and prepared.membership.status != "confirmed":
        found.append(prepared.membership.sentence)
    if len(prepared.target.denoiser.exposed) > 1:
        again = f"; each image was drawn {rounds} times, with noise added in between" if rounds > 1 else ""
        found.append(f"two models take turns, one per step{again}")
    if prepared.prompts and prepared.target.text:
        found += prepared.target.unnamed(prepared.prompts.distinct)
        cut = len(prepared.target.text.truncated(prepared.prompts.distinct))
        if cut:
            found.append(wording.cut_captions(cut))
        if len(prepared.prompts.distinct) < prepared.drawing.n:
            found.append(
                f"{prepared.drawing.n} images were drawn of {one_or_more(len(prepared.prompts.distinct), 'different caption')}; "
                "intervals treat them as independent"
            )
    if resized := reference.resized + (training.resized if training else 0):
        found.append(wording.resized(resized, prepared.drawing.shape, "real image"))
    if images := tally_of(reference, training).described(prepared.config.decoding, prepared.drawing.shape.channels == 4):
        found.append(f"how the real images were read: {', '.join(images)}")
    omitted = reference.omitted + (training.omitted if training else 0)
    if omitted:
        found.append(wording.omitted(omitted))
    alike = ("reference image is a near-duplicate", "reference images are near-duplicates")
    if counted.again:
        once = "copies and the KID difference count each cluster once; " if training else ""
        found.append(
            f"{one_or_more(counted.again, *alike)} of other reference images: {once}the intervals of Fréchet "
            "distance, KID, precision and recall treat them as independent"
        )
    if counted.beside:
        found.append(
            f"{one_or_more(counted.beside, *alike)} of training images: copies and the KID difference leave such images out, "
            "since a drawing near to one is no accident"
        )
    if repeated := int((~counted.members).sum()):
        said = one_or_more(repeated, "training image is a near-duplicate", "training images are near-duplicates")
        found.append(f"{said} of others: the KID difference counts each cluster once")
    if training is None:
        found.append("it is not known if the model was trained on the reference images; if it was, every distance to them is too small")
    return tuple(found)
