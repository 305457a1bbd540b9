"""The blind baseline: can members be told from held-out images without the model?

If a classifier that sees only simple pixel statistics separates the two sides, they come from different sources, and an
attack's AUC may be that difference instead of membership. Das, Zhang and Tramèr 2024, "Blind baselines beat membership
inference attacks for foundation models", arXiv 2406.16201.
"""

import warnings

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from diffleak.metrics import auc_estimate
from diffleak.record import Estimate

FEWEST = 50  # images a side, below which five folds say little
INVALID_ABOVE = 0.6  # a lower end above this makes the audit invalid
GRID = 4
FEATURES = 12 + GRID**2
WIDER = 1.5


def image_features(pixels: UInt8[np.ndarray, "h w c"]) -> Float64[np.ndarray, " f"]:
    """FEATURES statistics of one image: brightness, contrast, colour, sharpness, 8-pixel blocking, a 4 x 4 thumbnail."""
    x = pixels[..., :3].astype(np.float64) / 255
    grey = x.mean(axis=2)
    across, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    colour = x.max(axis=2) - x.min(axis=2)
    blocks = across[:, 7::8].mean() if across.shape[1] > 8 else 0.0
    rows = np.array_split(np.arange(grey.shape[0]), GRID)
    columns = np.array_split(np.arange(grey.shape[1]), GRID)
    thumbnail = [grey[np.ix_(r, c)].mean() if len(r) and len(c) else 0.0 for r in rows for c in columns]
    levels = np.quantile(grey, [0.05, 0.5, 0.95])
    simple = [grey.mean(), grey.std(), colour.mean(), colour.std(), across.mean(), down.mean(), blocks - across.mean()]
    clipped = [(pixels == 0).mean(), (pixels == 255).mean()]
    return np.array([*simple, *clipped, *levels, *thumbnail])


def blind_auc(features: Float64[np.ndarray, "n f"], member: Bool[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """The cross-validated AUC of a classifier on `features`, with its interval; near one half for a sound audit."""
    smallest = int(min(member.sum(), (~member).sum()))
    if smallest < FEWEST:
        return Estimate(reason=f"needs >= {FEWEST} images a side, has {smallest}")
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=seed)
    classifier = HistGradientBoostingClassifier(max_iter=60, max_depth=3, learning_rate=0.1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = cross_val_predict(classifier, features, member, cv=folds, method="predict_proba")[:, 1]
    return _widened(auc_estimate(scores[member], scores[~member]))


def _widened(estimate: Estimate) -> Estimate:
    """DeLong's interval with the variance that overlapping training folds add.

    Each image both trains and tests. Nadeau and Bengio 2003 multiply the variance of k-fold results by
    (1/k + 1/(k-1)) / (1/k), which is 2.25 for five folds: 1.5 times the width.
    """
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    low, high = (max(0.0, min(1.0, estimate.value + WIDER * (end - estimate.value))) for end in (estimate.low, estimate.high))
    return estimate.model_copy(update={"low": low, "high": high, "method": "5-fold cross-validation, DeLong widened (Nadeau-Bengio)"})
