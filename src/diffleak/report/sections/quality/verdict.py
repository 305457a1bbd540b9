"""The verdict on the quality of images and on copies, and the names of the metrics."""

from typing import NamedTuple

from diffleak.errors import visible
from diffleak.records.base import Estimate
from diffleak.records.quality import MetricName, QualityRecord
from diffleak.report.judgement import Verdict
from diffleak.report.wording import count, interval, number, percent, spoken

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
    bound = f"{size}, where a model that copies nothing has 1 %. More than {percent(rate.high)} can be excluded, less cannot."
    return Verdict("no-leak-found", "No more near-copies than unseen real images would give.", (bound, closest, distance))


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
    shown = f"{value:.3f} {interval(high.generated, in_percent=False)}".rstrip() if value is not None else "not estimable"
    return f"95th percentile of the similarity to the nearest training image: {shown}; of unseen real images {high.reference:.3f}."


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
