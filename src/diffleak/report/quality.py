"""How good the images are and how many are copies, in words, as a terminal table and as one HTML file. No torch."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from diffleak.errors import visible
from diffleak.records.base import Estimate
from diffleak.records.quality import Metric, MetricName, QualityRecord
from diffleak.report import handling
from diffleak.report.judgement import Verdict
from diffleak.report.page import template
from diffleak.report.text import print_verdict
from diffleak.report.wording import count, interval, number, percent, spoken

ALPHA = 0.05
NOT_ESTIMABLE = "n/e"
GRID = 64  # generated images shown
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
}
GLOSSARY = (
    ("Feature", "a number that a trained network reads off an image; images with similar features look alike to that network."),
    ("Reference", "real images that the generated ones are compared with, normally ones that the model was not trained on."),
    ("Fréchet distance", "FID when the features are Inception's; grows as the sample gets smaller."),
    ("KID", "compares the same features without that bias, so it also serves small samples."),
    ("Similarity", "the cosine between the features of two images; 1 is the same direction."),
    ("CLIP score", "how well images fit the captions they were drawn for; depends on the CLIP that looks."),
    ("Copy rate", "how many generated images are nearer to some training image than 99 % of unseen real images are."),
)


@dataclass(frozen=True, eq=False)
class Pictures:
    """PNGs: `generated` by number, and `training` by id, which is private and None unless asked for."""

    generated: Callable[[int], bytes]
    training: Callable[[str], bytes] | None


@dataclass(frozen=True)
class Line:
    """One metric as it is printed; `reason` says why there is no value."""

    title: str
    meaning: str
    value: str
    interval: str
    better: str
    note: str


def verdict(record: QualityRecord) -> Verdict:
    """Whether the model copies its training images, then how far its images are from real ones; never that it copies nothing."""
    rate = record.metric("copy_rate")
    distance = _distance(record)
    if rate.value is None or rate.low is None or rate.high is None:
        measured = any(metric.value is not None for metric in record.metrics)
        title = "How far the images are from real ones was measured" if measured else "Nothing could be measured with so few images"
        title += "; whether training images are copied was not." if measured else "."
        return Verdict("invalid", title, (distance, f"No copy rate: {visible(rate.reason or '')}."))
    value, ends = spoken(rate)
    size = f"{value} of the generated images (95 % interval {ends}) are nearer to a training image than 99 % of unseen real images are"
    closest = _closest(record)
    chance = record.copies.chance if record.copies else None
    if chance is not None and chance < ALPHA / 2:
        return Verdict("leak", "The model draws images that are too close to its training images.", (f"{size}.", closest, distance))
    bound = f"{size}, where a model that copies nothing has 1 %. More than {percent(rate.high)} can be excluded, less cannot."
    return Verdict("no-leak-found", "No more near-copies than unseen real images would give.", (bound, closest, distance))


def _distance(record: QualityRecord) -> str:
    kid, images = record.metric("kid"), f"{count(record.images)} generated and {count(record.reference.n)} real images"
    if kid.value is None or kid.low is None:
        return f"The distance to real images could not be estimated ({visible(kid.reason or '')})."
    size = f"KID {decimal(kid.value)}, 95 % interval {_interval(kid, False)}, {images}, features of {visible(record.extractor)}"
    if kid.low > 0:
        return f"Generated and real images differ ({size})."
    return f"No difference between generated and real images was found; one cannot be excluded ({size})."


def _closest(record: QualityRecord) -> str:
    assert record.copies is not None
    high = next(p for p in record.copies.percentiles if p.percent == 95)
    value = high.generated.value
    shown = f"{value:.3f} {interval(high.generated, in_percent=False)}".rstrip() if value is not None else "not estimable"
    return f"95th percentile of the similarity to the nearest training image: {shown}; of unseen real images {high.reference:.3f}."


def lines(record: QualityRecord) -> tuple[Line, ...]:
    """All metrics in their order."""
    return tuple(_line(metric) for metric in record.metrics)


def _line(metric: Metric) -> Line:
    said, share = METRICS[metric.name], metric.name in SHARES
    if metric.value is None:
        return Line(said.title, said.meaning, NOT_ESTIMABLE, "", said.better, visible(metric.reason or ""))
    value = percent(metric.value) if share else decimal(metric.value)
    return Line(said.title, said.meaning, value, _interval(metric, share), said.better, visible(metric.method or ""))


def decimal(x: float) -> str:
    """Three significant digits, without an exponent for what people read."""
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:#.3g}".rstrip(".") if x == 0 or abs(x) >= 1e-4 else f"{x:.2g}"


def _interval(estimate: Estimate, share: bool) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (number(x) if share else decimal(x) for x in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def print_quality(record: QualityRecord, console: Console) -> None:
    """Prints the verdict, the metrics and the similarities."""
    print_verdict(verdict(record), record.warnings, console)
    table = RichTable(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("Metric", no_wrap=True)
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("Better", no_wrap=True)
    for line in lines(record):
        table.add_row(line.title, line.value, line.interval, line.better)
    console.print()
    console.print(table)
    for line in lines(record):
        if line.value == NOT_ESTIMABLE:
            console.print(Text(f"{line.title}: {line.note}", "dim"))
    drawn = f"{count(record.images)} images by {record.sampler} in {record.steps} steps, seed {record.seed}"
    source = visible(record.reference.source)
    console.print(Text(f"{drawn}; {count(record.reference.n)} real images of {source}; features: {visible(record.extractor)}", "dim"))


def html(record: QualityRecord, pictures: Pictures) -> str:
    """The whole page; generated images are shown, training images only where `pictures` gives them."""
    page = template("quality.html.j2").render(
        record=record,
        verdict=verdict(record),
        lines=lines(record),
        grid=[_uri(pictures.generated(i)) for i in _shown(record.images)],
        pairs=_pairs(record, pictures),
        percentiles=_percentiles(record),
        pictured=pictures.training is not None,
        handling=handling.on_page(record.anonymous is not None, pictures.training is not None) if record.copies else None,
        glossary=GLOSSARY,
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(n: int) -> list[int]:
    """The first images, as drawn: no picking."""
    return list(range(min(n, GRID)))


def _pairs(record: QualityRecord, pictures: Pictures) -> list[dict[str, str | None]]:
    if record.copies is None:
        return []
    training = pictures.training
    return [
        {
            "image": str(pair.image),
            "id": visible(pair.training_id),
            "similarity": f"{pair.similarity:.3f}",
            "generated": _uri(pictures.generated(pair.image)) if training else None,
            "training": _uri(training(pair.training_id)) if training else None,
        }
        for pair in record.copies.pairs
    ]


def _percentiles(record: QualityRecord) -> list[dict[str, str]]:
    if record.copies is None:
        return []
    name = lambda p: "largest" if p == 100 else f"{p:g} %"
    return [
        {
            "name": name(p.percent),
            "generated": NOT_ESTIMABLE if p.generated.value is None else f"{p.generated.value:.3f}",
            "interval": "" if p.generated.low is None or p.generated.high is None else f"[{p.generated.low:.3f}, {p.generated.high:.3f}]",
            "reference": f"{p.reference:.3f}",
        }
        for p in record.copies.percentiles
    ]


def _uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
