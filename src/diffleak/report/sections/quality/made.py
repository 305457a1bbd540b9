"""The command and the settings behind the numbers on images."""

from collections.abc import Iterator

from diffleak.errors import visible
from diffleak.records.quality import ImageSet, QualityRecord
from diffleak.report.section import Section, facts
from diffleak.report.sections import adapted, device, fingerprinted, reproduce, versions
from diffleak.report.wording import count, duration


def section(record: QualityRecord) -> Section:
    """The command and the settings."""
    return reproduce(record.command, facts(_rows(record)))


def _rows(record: QualityRecord) -> Iterator[tuple[str, str]]:
    yield "Model", fingerprinted(visible(record.model), record.model_fingerprint)
    yield from adapted(record.lora, record.lora_scale)
    rounds = f", {record.rounds} adaptive rounds" if record.rounds > 1 else ""
    how = f"sampler {record.sampler}, {record.steps} steps, seed {record.seed}{rounds}"
    yield "Images", f"{count(record.images)} of {visible(record.image_shape)}, {how}"
    if record.classes:
        yield "Classes", f"drawn {visible(record.classes)}"
    if record.prompts:
        yield "Captions", f"drawn for {visible(record.prompts)}, guidance {record.guidance_scale}"
    if record.clip:
        yield "CLIP", fingerprinted(visible(record.clip), record.clip_fingerprint)
    yield "Extractor", fingerprinted(visible(record.extractor), record.extractor_fingerprint)
    if record.copies:
        yield "Copy encoder", fingerprinted(visible(record.copies.encoder), record.copies.encoder_fingerprint)
    yield "Reference", _set(record.reference)
    if record.training:
        yield "Training images", _set(record.training)
    costs = record.costs
    spent = f"this call drew for {duration(costs.seconds_drawing)} and measured for {duration(costs.seconds_measuring)}"
    yield "Cost", f"{count(costs.forwards)} forwards of one image each; {spent}"
    yield "Device", device(record.environment)
    yield "Versions", versions(record.environment)
    yield "Record", f"quality.json, schema version {record.schema_version}"


def _set(images: ImageSet) -> str:
    return fingerprinted(f"{visible(images.source)}, {count(images.n)} images", images.fingerprint)
