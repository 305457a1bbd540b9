"""The report on the quality of images and on copies."""

from diffleak.errors import visible
from diffleak.records.quality import QualityRecord
from diffleak.report import handling
from diffleak.report.section import Page, Section, facts, page_of
from diffleak.report.sections import glossary, limits, model, reproduce, verdict, warnings
from diffleak.report.sections.quality import Pictures, copies, images, made, metrics
from diffleak.report.sections.quality import verdict as judge
from diffleak.report.wording import count, entries

GLOSSARY = entries("""
    Feature | a number that a trained network reads off an image; images with similar features look alike to that network.
    Reference | real images that the generated ones are compared with, normally ones that the model was not trained on.
    Fréchet distance | how far generated images are from real ones, by mean and covariance of their features (FID with those of
        Inception); grows as the sample gets smaller.
    KID | kernel inception distance: also how far generated images are from real ones. The number of images does not move it on
        average, so it serves small samples too.
    Sampler | the procedure by which a model draws an image from noise, in a number of steps, such as ddim, ddpm or dpm.
    Similarity | the cosine between the features of two images; 1 is the same direction.
    CLIP score | how well images fit the captions they were drawn for; another CLIP model gives other scores.
    Threshold | the similarity to the nearest training image above which a generated image counts as a copy; 99 % of the unseen real
        images lie below it.
    Copy rate | the share of generated images that are closer to a training image than 99 % of unseen real images are. About 1 % is
        normal.
""")

LIMITS = entries("""
    One network. | All numbers are about the features of one network. Do not compare numbers of different extractors, or of different
        numbers of images.
    The Fréchet distance is biased. | It is larger the fewer images there are. Its interval shows how much the choice of images moves
        it, but does not correct that.
    Copies, not membership. | A model that draws no copies can still reveal who was in the training set; that is what an audit
        measures.
    Rare copies. | {images} images were drawn. A copy that the model draws once in a million images is not found.
    One model, one sampler. | The intervals cover the random choice of images. They do not cover another training run, sampler or
        number of steps.
""")

COPY_RATE = entries("""
    Chance neighbours. | The threshold comes from at most {real} unseen real images: near-duplicates count once, and those of training
        images not at all. The verdict and the interval of the copy rate both take the random choice of these images into account.
""")

SECTIONS = (
    lambda record, pictures: verdict(judge(record)),
    lambda record, pictures: warnings(record.warnings, "Note"),
    lambda record, pictures: metrics(record),
    images,
    copies,
    lambda record, pictures: _limits(record),
    lambda record, pictures: glossary(GLOSSARY),
    lambda record, pictures: reproduce(record.command, facts(made(record))),
)


def _limits(record: QualityRecord) -> Section:
    known = LIMITS if record.metric("copy_rate").value is None else (*LIMITS, *COPY_RATE)
    return limits(known, images=count(record.images), real=count(record.reference.n))


def page(record: QualityRecord, pictures: Pictures | None = None) -> Page:
    """The report; only with pictures it shows images."""
    numbers = f"{count(record.images)} generated images, {count(record.reference.n)} real ones"
    shown = pictures is not None and pictures.training is not None
    return page_of(
        record,
        (make(record, pictures) for make in SECTIONS),
        title=f"Image quality of {visible(record.model)}",
        heading="Image quality and copies",
        meta=f"{model(record.model, record.lora)} · {numbers}",
        handling=handling.on_page(record.anonymous is not None, shown) if record.copies else "",
        style="quality.css",
    )
