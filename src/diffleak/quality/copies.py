"""Copies: how close generated images come to training images, and what an outsider learns of membership from that.

    similarity of a generated image    max over training images of the cosine of their features
    score of a candidate image         max over generated images of the cosine: higher = more likely a member

Somepalli et al. 2023 (arXiv 2212.03860) report the 95th percentile of the first with SSCD features (Pizzi et al. 2022, arXiv
2202.10261). Nearness alone proves nothing: the same percentiles are given for real unseen images, which are no copies.
The second is the black-box attack that nearest generations allow (Chen et al. 2020, arXiv 1909.03935, for GANs).
"""

import csv
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from diffleak.records.base import Estimate
from diffleak.records.quality import Copies, Metric, Pair, Percentile
from diffleak.stats.images import copy_chance, copy_rate, copy_threshold, nearest, percentile

UNKNOWN = "the training images are not given: --training DATA, or --data DATA with --split FILE"
PERCENTS = (50.0, 90.0, 95.0, 99.0, 100.0)
PAIRS = 12

Vectors = Float[np.ndarray, "_ d"]


class Found(NamedTuple):
    """What the search for copies found; both None where the training images are not known."""

    rate: Metric
    copies: Copies | None


def no_copies() -> Found:
    """Nothing can be said without the training images."""
    return Found(_rate(Estimate(reason=UNKNOWN)), None)


def find_copies(encoder: tuple[str, str], generated: Vectors, reference: Vectors, training: Vectors, ids: tuple[str, ...]) -> Found:
    """The copy rate, the similarity percentiles and the closest pairs; `encoder` is its name and fingerprint, `ids` of training.

    A pair is listed once per training image, so that one image copied often does not fill the list.
    """
    similarity, index = nearest(generated, training)
    unseen, _ = nearest(reference, training)
    listed: dict[int, int] = {}
    for image in np.argsort(-similarity, kind="stable"):
        listed.setdefault(int(index[image]), int(image))
    pairs = tuple(Pair(image=i, training_id=ids[j], similarity=float(similarity[i])) for j, i in list(listed.items())[:PAIRS])
    copies = Copies(
        encoder=encoder[0],
        encoder_fingerprint=encoder[1],
        dimension=training.shape[1],
        threshold=copy_threshold(unseen),
        chance=copy_chance(similarity, unseen),
        percentiles=tuple(
            Percentile(percent=p, generated=percentile(similarity, p), reference=percentile(unseen, p).value or 0.0) for p in PERCENTS
        ),
        pairs=pairs,
    )
    return Found(_rate(copy_rate(similarity, unseen)), copies)


def membership_scores(candidates: Vectors, generated: Vectors) -> Float64[np.ndarray, " n"]:
    """Per candidate image, its similarity to the nearest generated image: higher = more likely a member."""
    return nearest(candidates, generated)[0]


def scores_csv(ids: tuple[str, ...], member: np.ndarray, scores: Float64[np.ndarray, " n"]) -> str:
    """A score file as `diffleak metrics` reads it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "member", "score"])
    writer.writerows([image_id, int(side), repr(float(score))] for image_id, side, score in zip(ids, member, scores, strict=True))
    return text.getvalue()


def _rate(estimate: Estimate) -> Metric:
    return Metric(name="copy_rate", **estimate.model_dump())
