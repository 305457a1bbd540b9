"""A finished quality record and its page, without drawing anything."""

import numpy as np
from report_fixtures import audit_of, thumbnail

from diffleak.quality import statistics
from diffleak.quality.copies import find_copies
from diffleak.quality.record import ImageSet, Metric, QualityCosts, QualityRecord
from diffleak.record import Estimate
from diffleak.report.quality import Pictures, html

PAIRS = 12
LONG = "a-very-long-folder-name-without-any-space/" * 4


def quality_record(long: bool = False, copies: float = 0.0) -> QualityRecord:
    """Normal features of 400 generated, 300 real and 200 training images; `copies` is the share of copied ones."""
    random = np.random.default_rng(0)
    training, real, drawn = (random.standard_normal((n, 12)) for n in (200, 300, 400))
    drawn[: int(400 * copies)] = training[np.arange(int(400 * copies)) % 200] * 1.01
    name = LONG if long else ""
    ids = tuple(f"{name}{i:04d}.png" for i in range(200))
    found = find_copies((f"sscd:{name}sscd.pt", "0" * 64), drawn, real, training, ids)
    precision, recall = statistics.precision_recall(drawn, real)
    estimates = {
        "frechet": Estimate(
            reason="needs at least 2048 images a side, the dimension of the features; got 400 generated and 300 real: use KID"
        )
        if long
        else statistics.frechet_distance(drawn, real),
        "kid": statistics.kernel_distance(drawn, real),
        "inception_score": statistics.inception_score(None),
        "precision": precision,
        "recall": recall,
    }
    environment = audit_of({"sima": 1.0}, 60)[0].environment
    return QualityRecord(
        created="2025-01-31T12:00:00+00:00",
        command=f"diffleak quality {name}model --data digits --split split.json -o out",
        model=f"{name}model",
        model_fingerprint="1" * 64,
        images=400,
        image_shape="8 x 8 grey",
        sampler="ddim",
        steps=50,
        seed=0,
        rounds=1,
        classes=None,
        extractor=f"torchscript:{name}net.pt",
        extractor_fingerprint="2" * 64,
        dimension=12,
        reference=ImageSet(source=f"{name}digits", n=300, fingerprint="3" * 64),
        training=ImageSet(source="digits", n=200, fingerprint="4" * 64),
        metrics=(*(Metric(name=key, **e.model_dump()) for key, e in estimates.items()), found.rate),
        copies=found.copies,
        scores=None,
        warnings=("two models take turns, one per step",),
        environment=environment,
        costs=QualityCosts(forwards=20_000, seconds_drawing=12.5, seconds_measuring=3.25),
    )


def quality_page(long: bool = False) -> str:
    """The page with all pictures."""
    return html(quality_record(long, 0.3), Pictures(lambda i: thumbnail(str(i)), thumbnail))
