"""The sections of the report on images and copies, the pictures that they show and the names of the metrics."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from diffleak.errors import one_or_more, visible
from diffleak.records.base import Estimate
from diffleak.records.quality import Copies, MetricName, Pair, QualityRecord
from diffleak.report.audited import not_shown
from diffleak.report.judgement import Verdict
from diffleak.report.media.html import data_uri
from diffleak.report.section import Block, Section, Sentences, Tabulated, breakable, drawn, heading, prose
from diffleak.report.sections import device, fingerprinted, of_images, of_model, versions
from diffleak.report.table import NOT_ESTIMABLE, Cell, Column, Table, tabulate
from diffleak.report.wording import count, duration, interval, number, percent, spoken


@dataclass(frozen=True, eq=False)
class Pictures:
    """PNGs: `generated` by number, and `training` by id, which is private and None without --thumbnails."""

    generated: Callable[[int], bytes]
    training: Callable[[str], bytes] | None


ALPHA = 0.05
SHARES: tuple[MetricName, ...] = ("precision", "recall", "copy_rate")


class Wording(NamedTuple):
    """A metric's name, what it says, and which way is better."""

    title: str
    meaning: str
    better: str


METRICS: dict[MetricName, Wording] = {
    "frechet": Wording("Fréchet distance", "distance of means and covariances of the features", "lower"),
    "kid": Wording("KID", "squared kernel distance, unbiased: 0 on average for real images", "lower"),
    "inception_score": Wording("Inception score", "each image clearly of a class, and all classes drawn", "higher"),
    "precision": Wording("Precision", "generated images that look like real ones", "higher"),
    "recall": Wording("Recall", "real images that the model could have drawn", "higher"),
    "copy_rate": Wording(
        "Copy rate", "generated images nearer to training than 99 % of unseen real images are", "lower; 1 % without copies"
    ),
    "clip_score": Wording("CLIP score", "100 times the cosine of image and caption to CLIP", "higher"),
    "kid_difference": Wording(
        "KID difference", "KID to the training images minus KID to held-out images: below 0, closer to the training images", "0"
    ),
}


def verdict(record: QualityRecord) -> Verdict:
    """States whether the model copies its training images, then how far its images are from real ones; never that it copies nothing."""
    rate = record.metric("copy_rate")
    distance = _distance(record)
    if rate.value is None or rate.low is None or rate.high is None:
        measured = any(metric.value is not None for metric in record.metrics)
        title = "How far the images are from real ones was measured" if measured else "Nothing could be measured with so few images"
        title += "; whether training images are copied was not." if measured else "."
        return Verdict("invalid", title, (distance, f"No copy rate: {visible(rate.reason or '')}."))
    value, said = spoken(rate)
    size = f"{value} of the generated images (95 % interval {said}) are nearer to a training image than 99 % of unseen real images are"
    closest = _closest(record)
    chance = record.copies.chance if record.copies else None
    if chance is not None and chance < ALPHA / 2:
        return Verdict("leak", "The model draws images that are too close to its training images.", (f"{size}.", closest, distance))
    ruled = f"More than {percent(rate.high)} is ruled out; less is possible." if rate.high < 1 else "No copy rate is ruled out."
    bound = f"{size}; a model that copies nothing has 1 %. {ruled}"
    return Verdict("no-leak-found", "No more near-copies were found than chance explains.", (bound, closest, distance))


def _distance(record: QualityRecord) -> str:
    kid, images = record.metric("kid"), f"{count(record.images)} generated and {count(record.reference.n)} real images"
    if kid.value is None or kid.low is None:
        return f"The distance to real images could not be estimated ({visible(kid.reason or '')})."
    size = f"KID {decimal(kid.value)}, 95 % interval {ends(kid, False)}, {images}, features of {visible(record.extractor)}"
    if kid.low > 0:
        return f"Generated and real images differ ({size})."
    return f"No difference between generated and real images was found; one cannot be excluded ({size})."


def _closest(record: QualityRecord) -> str:
    assert record.copies is not None
    high = next(p for p in record.copies.percentiles if p.percent == 95)
    value = high.generated.value
    of_real = f"of unseen real images, at most {high.reference:.3f}"
    if value is None:
        return f"95 % of the generated images have a similarity to their nearest training image that is not estimable; {of_real}."
    shown = f"{value:.3f} {interval(high.generated, in_percent=False)}".rstrip()
    return f"95 % of the generated images have a similarity to their nearest training image of at most {shown}; {of_real}."


def decimal(x: float) -> str:
    """Three significant digits, without an exponent for what people read."""
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:#.3g}".rstrip(".") if x == 0 or abs(x) >= 1e-4 else f"{x:.2g}"


def ends(estimate: Estimate, share: bool) -> str:
    """The interval of a metric, in percent for a share; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (number(x) if share else decimal(x) for x in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def metrics(record: QualityRecord) -> Section:
    """A row per metric; in text the reasons for what is missing and how the images were drawn stand below."""
    caption = (
        "Features of "
        + breakable(visible(record.extractor))
        + f", dimension {count(record.dimension)}. In brackets: 95 % intervals over the choice of images; they do not cover another "
        "training run. n/e: not estimable, with the reason."
    )
    missing = tuple(f"{METRICS[m.name].title}: {visible(m.reason or '')}" for m in record.metrics if m.value is None)
    drawn = f"{count(record.images)} images by {record.sampler} in {one_or_more(record.steps, 'step')}, seed {record.seed}"
    real = f"{count(record.reference.n)} real images of {visible(record.reference.source)}"
    blocks = (
        Tabulated(metrics_table(record, page=False), first="Metric", where="text"),
        Sentences((*missing, f"{drawn}; {real}; features: {visible(record.extractor)}"), tone="small", wrapped=False, where="text"),
        Tabulated(metrics_table(record, page=True), caption, "Metric", look="metrics", where="page"),
        *((Sentences((said,), wrapped=True),) if (said := closer_to_members(record)) else ()),
    )
    return Section("metrics", "All metrics", blocks, "All metrics")


def closer_to_members(record: QualityRecord) -> str:
    """Says if generated images are closer to the training images than to held-out images; empty where that was not measured.

    A distilled model can withstand attacks on single images and still draw images closer to those it was trained on.
    """
    difference = next((m for m in record.metrics if m.name == "kid_difference"), None)  # records before 0.2 have none
    if difference is None or difference.value is None or difference.p_value is None:
        return ""
    size = f"KID difference {decimal(difference.value)}, 95 % interval {ends(difference, False)}, one-sided p = {difference.p_value:.2g}"
    if difference.p_value < ALPHA:
        return f"Generated images are closer to the training images than to held-out images ({size})."
    return f"No sign that generated images are closer to the training images than to held-out images ({size}); it cannot be excluded."


def metrics_table(record: QualityRecord, page: bool) -> Table:
    """All metrics in their order; a page also says what each means and how it was estimated."""
    how = Column(("How",), "", 5, lambda m: Cell(visible((m.reason if m.value is None else m.method) or "")), "how")
    number_of = lambda m: percent(m.value) if m.name in SHARES else decimal(m.value)
    value = lambda m: Cell(NOT_ESTIMABLE if m.value is None else number_of(m))
    drawn = (
        Column(("Value",), "", 1, value),
        Column(("95 % interval" if page else "95 %",), "", 2, lambda m: Cell("" if m.value is None else ends(m, m.name in SHARES))),
        Column(("Better",), "", 3, lambda m: Cell(METRICS[m.name].better), "left"),
        *((how,) if page else ()),
    )
    return tabulate(record.metrics, drawn, lambda m: (METRICS[m.name].title, METRICS[m.name].meaning, False))


GRID = 64


def images(record: QualityRecord, pictures: Pictures | None) -> Section:
    """The generated images, without picking."""
    return Section("images", "Generated images", (), "Generated images", later=lambda: _grid(record, pictures) if pictures else ())


def _grid(record: QualityRecord, pictures: Pictures) -> tuple[Block, ...]:
    shown = [data_uri(pictures.generated(i)) for i in range(min(record.images, GRID))]
    said = (
        f"The first {count(len(shown))} of {count(record.images)} images, as drawn, none picked. A generated image may itself be a copy of "
        "a private training image: look before you pass this page on."
    )
    return prose(said), drawn("grid", pictures=shown)


def copies(record: QualityRecord, pictures: Pictures | None) -> Section:
    """Percentiles of the similarity to the nearest training image, and the closest pairs."""
    found, title, menu = record.copies, "Copies of training images", "Copies"
    if found is None or record.training is None:
        unknown = Markup(
            "Not looked at: the training images are not known here. <code>--training DATA</code>, or "
            "<code>--data DATA --split FILE</code>, gives them."
        )
        return Section("copies", title, (prose(unknown),), menu)
    what = (
        f"For each generated image, the similarity to the nearest of {count(record.training.n)} training images, by features of "
        + breakable(visible(found.encoder))
        + ". Beside it the same for the reference, real images that are no copies: only what lies above that points to copying."
    )
    top = (
        "Each training image once, with the generated image that is most similar to it. Every model has such a list: "
        "compare it with the percentiles."
    )
    hidden = pictures is None or pictures.training is None
    private = "these are private training images, and perhaps copies of them"
    blocks = (
        prose(what),
        Tabulated(percentiles_table(found), _caption(found), "Percentile", look="metrics", where="page"),
        heading("The closest pairs"),
        prose(top),
        *((not_shown(private, record.anonymous is not None),) if hidden else ()),
        drawn("pairs", pairs=[_pair(pair, pictures) for pair in found.pairs]),
    )
    return Section("copies", title, blocks, menu)


def _caption(found: Copies) -> str:
    text = "Percentiles of the similarity to the nearest training image."
    if found.threshold is None:
        return text
    return (
        f"{text} The copy rate counts generated images with a similarity above {found.threshold:.3f}. If generated images "
        f"were like unseen real ones, as many or more would lie above {found.threshold:.3f} with a probability of {found.chance:.2g}."
    )


def percentiles_table(found: Copies) -> Table:
    """A row per percentile: generated images, and real ones that the model has not seen."""
    three = lambda x: NOT_ESTIMABLE if x is None else f"{x:.3f}"
    ends = lambda e: "" if e.low is None or e.high is None else f"[{e.low:.3f}, {e.high:.3f}]"
    drawn = (
        Column(("Generated",), "", 1, lambda p: Cell(three(p.generated.value))),
        Column(("95 % interval",), "", 2, lambda p: Cell(ends(p.generated))),
        Column(("Unseen real",), "", 3, lambda p: Cell(three(p.reference))),
    )
    return tabulate(found.percentiles, drawn, lambda p: ("largest" if p.percent == 100 else f"{p.percent:g} %", "", False))


def _pair(pair: Pair, pictures: Pictures | None) -> dict[str, Any]:
    training = pictures.training if pictures else None
    shown = (data_uri(pictures.generated(pair.image)), data_uri(training(pair.training_id))) if pictures and training else None
    return {"image": pair.image, "id": visible(pair.training_id), "similarity": f"{pair.similarity:.3f}", "pictures": shown}


def made(record: QualityRecord) -> Iterator[tuple[str, str]]:
    """The settings, what they were used on, and what it took."""
    yield from of_model(record)
    rounds = f", each drawn {record.rounds} times with noise added in between" if record.rounds > 1 else ""
    how = f"sampler {record.sampler}, {one_or_more(record.steps, 'step')}, seed {record.seed}{rounds}"
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
    yield "Reference", of_images(record.reference)
    if record.training:
        yield "Training images", of_images(record.training)
    costs = record.costs
    spent = f"this call drew for {duration(costs.seconds_drawing)} and measured for {duration(costs.seconds_measuring)}"
    yield "Cost", f"{count(costs.forwards)} forwards of one image each; {spent}"
    yield "Device", device(record.environment)
    yield "Versions", versions(record.environment)
    yield "Record", f"quality.json, schema version {record.schema_version}"
