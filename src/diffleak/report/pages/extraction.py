"""The report on training images that a model gives back, and its section for a model card."""

from collections.abc import Iterable

from diffleak.errors import one_or_more, visible
from diffleak.records.extraction import ExtractionRecord
from diffleak.report import handling
from diffleak.report.section import Page, Section, facts, page_of
from diffleak.report.sections import glossary, limits, model, public, reproduce, verdict, warnings
from diffleak.report.sections.extraction import Pictures, made, pairs, rates
from diffleak.report.sections.extraction import verdict as judge
from diffleak.report.wording import count, entries, last_part, last_parts

GLOSSARY = entries("""
    Member | an image that the model was trained on.
    Held-out image | an image of the same kind that it was not trained on.
    Drawing | an image that the model generates.
    Tiled pixel distance | both images are cut into 4 x 4 tiles; the distance is the largest root mean square difference of two tiles
        at the same place. 0 is equal, 1 is black against white.
    Features | numbers that a trained network computes from an image; their distance is 1 minus the cosine, 0 for the same direction.
    Copy | a member that is closer to its nearest drawing than most held-out images are to theirs, such as 99 % of them. The word
        says how close it is, not why.
    Threshold | the distance to the nearest drawing below which an image has a copy; a part of the held-out images sets it.
    p | of the held-out images that set the threshold, the share that are as close to a drawing, or closer, counted so that it is
        never 0.
    Sampler | the procedure by which a model draws an image from noise, in a number of steps, such as ddim, ddpm or dpm.
    Chance | how often as many members or more would have a copy if the model treated members as it treats held-out images.
""")

LIMITS = entries("""
    What was not drawn. | {images} images were drawn. A copy that the model draws once in a million images, or for another prompt, is
        not found; other attacks look for membership without drawing.
    A distance sees less than an eye. | A mirrored, cropped or recoloured copy is far away in pixels; an encoder may find it. Two
        plain images are close without being copies.
""")
HELD_OUT = entries("""
    The same kind. | The threshold allows for plain images that are close by chance only if the held-out images are of the same kind as
        the members.
    Near-duplicates. | Held-out images that nearly equal a member are left out, and near-duplicates on one side count as one image.
        Other images that belong together, such as those of one person, count as independent: if they are copied together, the intervals
        are too narrow.
    One model, one sampler. | The intervals cover the random choice of images. They do not cover another training run, sampler or
        number of steps.
""")
NONE_HELD_OUT = entries("""
    Near-duplicates. | Near-duplicates among the members count as one image.
    One model, one sampler. | Another training run, sampler or number of steps may draw other images.
""")

SECTIONS = (
    lambda record, pictures: verdict(judge(record)),
    lambda record, pictures: warnings(record.warnings, "Note"),
    lambda record, pictures: rates(record),
    pairs,
    lambda record, pictures: _limits(record),
    lambda record, pictures: glossary(GLOSSARY),
    lambda record, pictures: reproduce(record.command, facts(made(record))),
)


def _limits(record: ExtractionRecord) -> Section:
    return limits((*LIMITS, *(HELD_OUT if record.held_out else NONE_HELD_OUT)), images=count(record.images))


def page(record: ExtractionRecord, pictures: Pictures | None = None) -> Page:
    """The report; only with pictures it shows images."""
    images = [one_or_more(record.members.n, "member")]
    images += [one_or_more(record.held_out.n, "held-out image")] if record.held_out else []
    images += [one_or_more(record.images, "drawing")]
    return page_of(
        record,
        (make(record, pictures) for make in SECTIONS),
        title=f"Training images that {visible(record.model)} gives back",
        heading="Training images given back",
        meta=f"{model(record.model, record.lora)} · {', '.join(images)}",
        handling=handling.on_page(record.anonymous is not None, pictures is not None),
        style="extraction.css",
    )


def on_card(record: ExtractionRecord, digests: Iterable[tuple[str, str]] = ()) -> Page:
    """What everybody may know: the answer, the rates, their limits, and how it was measured; no image is named."""
    unnamed = tuple(each.model_copy(update={"distance": public.of_file(each.distance)}) for each in record.distances)  # it may be a path
    record = record.model_copy(update={"distances": unnamed})
    about = f"Training images that {last_parts(record.lora) if record.lora else last_part(record.model)} gives back"
    others = f", {one_or_more(record.held_out.n, 'held-out image')}" if record.held_out else ""
    each = f", {count(record.draws)} for each caption" if record.draws else ""
    guidance = "" if record.guidance_scale is None else f", guidance {record.guidance_scale:g}"
    how = f"sampler {visible(record.sampler)}, {one_or_more(record.steps, 'step')}{guidance}, seed {record.seed}"
    rows = [
        *public.model_rows(record.model, record.model_fingerprint, record.adapters),
        ("Drawings", f"{count(record.images)}{each}; {how}"),
        *((("Captions", visible(public.public_captions(record.captions))),) if record.captions is not None else ()),
        ("Images", f"{one_or_more(record.members.n, 'member')}{others or ', no held-out images'}"),
        ("Hash of the members", visible(record.members.fingerprint)),
    ]
    made = (
        verdict(judge(record, public=True), "Does the model draw images that it was trained on?"),
        rates(record),
        _limits(record),
        public.section(record, rows, digests),
    )
    return page_of(record, made, title=about, heading="Training images given back", meta=about)
