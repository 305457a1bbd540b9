"""The blind baseline: do members differ from held-out images without the model?

If something that sees only simple pixel statistics separates the two sides, they come from different sources, and an
attack's AUC may be that difference instead of membership. Das, Zhang and Tramèr 2024, "Blind baselines beat membership
inference attacks for foundation models", arXiv 2406.16201.

    from FEWEST images a side   a classifier, 5-fold cross-validated; different if the interval of its AUC lies above INVALID_ABOVE
    below                       the most telling of FEW_FEATURES statistics, an exact permutation test; different if p <= INVALID_P

Few images show only large differences, so the test of the second kind says which it would have found: `detectable_auc`.
Two sides of one source are called different in at most INVALID_P of audits. For a class-conditional model the classes are compared too,
by a permutation test of their own at the same level.

What is compared are units (`diffleak.stats.units`): near-duplicates on one side are one image with the mean of their statistics, since
copies make a difference of few images look like one of many. `check` and audits ask `Units.blind` and `Units.classes_p_value`, so of the
same images at the same size they have the same numbers.
"""

import warnings
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.data.features import CLASSIFIED
from diffleak.records.audit import Blind
from diffleak.records.base import Estimate
from diffleak.stats.metrics import ALPHA, auc_deviation, auc_estimate

FEWEST = 50  # images a side, below which five folds say little
INVALID_ABOVE = 0.6  # a lower end above this makes the audit invalid
INVALID_P = 0.01  # a permutation test at or below this does: one fair audit in a hundred
POWER = 0.8
PERMUTATIONS = 9_999
WIDER = 1.5

# What differs between cameras, scanners and ways of saving, whatever is in the picture: chosen for that, tuned on nothing.
FEW_FEATURES = ("brightness", "contrast", "colourfulness", "colour cast", "sharpness", "noise", "noise against sharpness", "JPEG blocks")

Finding = Literal["different", "perhaps", "alike", "unchecked"]


def few_features(features: Float64[np.ndarray, "n f"]) -> Float64[np.ndarray, "n k"]:
    """The FEW_FEATURES of images by their `image_features`."""
    sharpness, noise = features[:, 4:6].mean(axis=1), features[:, -1]
    share = noise / np.maximum(sharpness, 1e-12)
    return np.stack([*features[:, :3].T, features[:, -2], sharpness, noise, share, features[:, 6]], axis=1)


def blind_auc(
    features: Float64[np.ndarray, "n f"],
    member: Bool[np.ndarray, " n"],
    seed: int = 0,
    complexity: Float64[np.ndarray, "n c"] | None = None,
) -> Blind:
    """What tells the sides apart without the model: the classifier's AUC or, for few images, the permutation test.

    The classifier sees the `complexity` too, so that a difference of it cannot come into calibrated scores unnoticed.
    """
    smallest = int(min(member.sum(), (~member).sum()))
    if smallest < FEWEST:
        return permutation_test(few_features(features), member, seed)
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=seed)
    classifier = HistGradientBoostingClassifier(max_iter=60, max_depth=3, learning_rate=0.1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = np.column_stack([features[:, :CLASSIFIED], *(() if complexity is None else (complexity,))])
        scores = cross_val_predict(classifier, seen, member, cv=folds, method="predict_proba")[:, 1]
    return Blind(**_widened(auc_estimate(scores[member], scores[~member])).model_dump())


def permutation_test(
    features: Float64[np.ndarray, "n k"], member: Bool[np.ndarray, " n"], seed: int = 0, permutations: int = PERMUTATIONS
) -> Blind:
    """The feature that tells the sides apart best, and how often one does so by chance.

        T = max over features of |AUC - 1/2|        p = (1 + #{permuted T >= T}) / (1 + permutations)

    p is exact: if the sides are exchangeable, P(p <= a) <= a, whatever the features (Phipson and Smyth 2010). `detectable_auc` is
    the smallest AUC of one feature, shifted between normal distributions, that gives p <= INVALID_P with probability POWER.
    """
    from scipy.stats import rankdata

    m, n = int(member.sum()), int((~member).sum())
    drawn = np.flatnonzero(member if m <= n else ~member)  # the smaller side: the other ranks the other way round
    ranks = rankdata(features, axis=0)
    rows = np.concatenate([drawn[None], _redrawn(m + n, len(drawn), seed, permutations)])
    each = np.abs(_aucs(ranks, rows) - 0.5)
    statistics = each.max(axis=1)
    p_value = float((statistics[1:] >= statistics[0]).sum() + 1) / (permutations + 1)
    allowed = int(INVALID_P * (permutations + 1) + 1e-9)  # p <= INVALID_P: so many permuted T, less one, may be as large
    critical = np.sort(statistics[1:])[-allowed] if allowed else 0.5
    return Blind(
        value=float(0.5 + statistics[0]),
        method=f"permutation test, the largest AUC of {features.shape[1]} pixel statistics",
        reason="no interval: the most telling statistic is named, and p_value counts that it was picked",
        p_value=p_value,
        detectable_auc=detectable(m, n, float(critical)),
        statistic=FEW_FEATURES[int(each[0].argmax())] if features.shape[1] == len(FEW_FEATURES) else None,
    )


def labels_p_value(
    labels: Int64[np.ndarray, " n"], member: Bool[np.ndarray, " n"], seed: int = 0, permutations: int = PERMUTATIONS
) -> float:
    """How often a random division of these images has classes that differ as much between the sides.

        T = sum over classes of (members of the class - expected)^2 / expected        p = (1 + #{permuted T >= T}) / (1 + permutations)

    A class-conditional model is given the class, so classes that differ between the sides tell them apart as pixels do. p is exact, and
    does not depend on how the classes are numbered.
    """
    _, of = np.unique(labels, return_inverse=True)
    sizes, members = np.bincount(of), int(member.sum())
    of, sizes = np.argsort(np.argsort(sizes, kind="stable"))[of], np.sort(sizes)  # the classes drawn from in the order of their sizes
    expected = sizes * (members / len(labels))
    drawn = np.random.default_rng((seed, 4)).multivariate_hypergeometric(sizes, members, size=permutations, method="marginals")
    each = ((np.concatenate([np.bincount(of[member], minlength=len(sizes))[None], drawn]) - expected) ** 2 / expected).sum(axis=1)
    return float((each[1:] >= each[0] - 1e-9).sum() + 1) / (permutations + 1)


@lru_cache(maxsize=2)  # every audit of a sweep is of the same sides
def _redrawn(images: int, size: int, seed: int, permutations: int) -> Int64[np.ndarray, "r s"]:
    """Random choices of `size` of so many images, one a row."""
    rng = np.random.default_rng((seed, 3))
    rows = np.stack([rng.choice(images, size, replace=False, shuffle=False) for _ in range(permutations)])
    rows.flags.writeable = False
    return rows


def _aucs(ranks: Float64[np.ndarray, "n k"], rows: Int64[np.ndarray, "r s"]) -> Float64[np.ndarray, "r k"]:
    """P(an image of `rows` ranks above one that is not) for each set of rows and each feature, ties counted as one half."""
    size, others = rows.shape[1], len(ranks) - rows.shape[1]
    sums = np.stack([column[rows].sum(axis=1) for column in ranks.T], axis=1)
    return (sums - size * (size + 1) / 2) / (size * others)


def detectable(m: int, n: int, critical: float) -> float | None:
    """The smallest AUC whose estimate lies more than `critical` above one half with probability POWER; None where none does.

    Its estimate is taken as normal, with the deviation of `auc_deviation`. Features that are constant do not lower the
    critical value below that of one statistic without ties.
    """
    null = np.sqrt((m + n + 1) / (12 * m * n)) * NormalDist().inv_cdf(1 - INVALID_P / 2)
    needed = 0.5 + max(critical, float(null))
    grid = np.linspace(0.5, 1, 5001)[:-1]
    enough = (grid - needed) / auc_deviation(grid, float(m), float(n)) >= NormalDist().inv_cdf(POWER)
    return float(grid[enough.argmax()]) if enough.any() else None


def finding(blind: Blind) -> Finding:
    """What a check for different sources found; "perhaps" is a difference too small, or too uncertain, to end the audit."""
    if blind.labels_p_value is not None and blind.labels_p_value <= INVALID_P:
        return "different"
    if blind.p_value is not None:
        return "different" if blind.p_value <= INVALID_P else "perhaps" if blind.p_value <= ALPHA else "alike"
    if blind.value is None or blind.low is None:
        return "unchecked"
    return "different" if blind.low > INVALID_ABOVE else "perhaps" if blind.low > 0.5 else "alike"


def may_explain(blind: Blind, auc: float) -> bool:
    """True if a difference between the sources that the check can have missed may be all there is to an attack's `auc`.

    A check that was not made can have missed any; the permutation test those below its `detectable_auc`. The classifier
    does not need this: its AUC has an interval, which says what it can have missed.
    """
    if finding(blind) == "unchecked":
        return True
    if blind.p_value is None:
        return False
    return auc < (1.0 if blind.detectable_auc is None else blind.detectable_auc)


def _widened(estimate: Estimate) -> Estimate:
    """DeLong's interval with the variance that overlapping training folds add.

    Each image both trains and tests. Nadeau and Bengio 2003 multiply the variance of k-fold results by
    (1/k + 1/(k-1)) / (1/k), which is 2.25 for five folds: 1.5 times the width.
    """
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    low, high = (max(0.0, min(1.0, estimate.value + WIDER * (end - estimate.value))) for end in (estimate.low, estimate.high))
    return estimate.model_copy(update={"low": low, "high": high, "method": "5-fold cross-validation, DeLong widened (Nadeau-Bengio)"})
