"""Complexity calibration: what an image's complexity explains of its score is taken out. No torch.

A simple image gets a small statistic whether or not it was trained on. With c the `data.complexity` of an image at the size that the
model is given,

    u = log(statistic)       where every statistic of the attack is positive, as sums of powers are; else u = statistic
    u_hat = w0 + w . c       ridge regression on standardised c, fitted on the held-out images of the calibrate part
    calibrated = u - u_hat   direction unchanged

The calibrate part chooses which c are used: none ("plain"), "png", "bytes", "full", or of a latent model "reconstruction", all of the
image that the decoder makes of its latents. No held-out image there is calibrated by a fit that has seen it: there is one fit for each
of FOLDS folds, so AUCs there can be compared and a threshold from there holds on the test part. (The idea: Rao and Moyer 2026, arXiv
2603.13421, divide a statistic by the compressed length.)
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.records.scores import numbered

PLAIN = "plain"
RECONSTRUCTION = "reconstruction"
PARTS = {"png": slice(1), "bytes": slice(3), "full": slice(None)}  # of `data.complexity`
WORDS = {
    PLAIN: "none",
    "png": "PNG size",
    "bytes": "compressed sizes",
    "full": "compressed sizes and frequencies",
    RECONSTRUCTION: "compressed sizes and frequencies of the reconstruction",
}
FEWEST = 30  # held-out images of the calibrate part, below which nothing is fitted
FOLDS = 5
RIDGE = 1.0  # on standardised features: nothing for hundreds of images, a restraint for tens

Features = Mapping[str, Float64[np.ndarray, "n _"]]  # what may be taken out, by its name in WORDS


def features(complexity: Float64[np.ndarray, "n 7"], reconstruction: Float64[np.ndarray, "n 7"] | None = None) -> Features:
    """What may be taken out of scores: parts of the complexity of the images, and that of their reconstructions where there are any."""
    own = {name: complexity[:, part] for name, part in PARTS.items()}
    return own if reconstruction is None else {**own, RECONSTRUCTION: reconstruction}


def residuals(
    u: Float64[np.ndarray, "n k"],
    c: Float64[np.ndarray, "n f"],
    fitted: Bool[np.ndarray, " n"],
    unit: Int64[np.ndarray, " n"] | None = None,
) -> Float64[np.ndarray, "n k"]:
    """u minus what c predicts of it, by ridge regressions on the images `fitted`; each of those is predicted without itself.

    unit: the number of the unit that each image counts in; then it is predicted without any image of its unit.
    """
    rows = np.flatnonzero(fitted)
    own = np.arange(len(rows)) if unit is None else numbered(unit[rows])
    left = u - _predicted(c, u, rows, np.arange(len(u)))
    fold = (np.random.default_rng(0).permutation(int(own.max(initial=-1)) + 1) % FOLDS)[own]
    for number in range(FOLDS):
        out = rows[fold == number]
        left[out] = u[out] - _predicted(c, u, rows[fold != number], out)
    return left


def _predicted(
    c: Float64[np.ndarray, "n f"], u: Float64[np.ndarray, "n k"], fit: np.ndarray, rows: np.ndarray
) -> Float64[np.ndarray, "m k"]:
    """The prediction of u for some rows by a ridge regression on the rows `fit`; the intercept is not penalised."""
    mean, spread = c[fit].mean(axis=0), c[fit].std(axis=0)
    scaled = (c - mean) / np.where(spread > 0, spread, 1.0)
    x, level = scaled[fit], u[fit].mean(axis=0)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (u[fit] - level))
    return level + scaled[rows] @ weights


def in_logarithms(membership: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
    """± the logarithms of membership scores that are ± positive numbers, in the same order; others as they are. NaN, not scored, stays."""
    unknown = np.isnan(membership)
    one_sign = ((membership > 0) | unknown).all() or ((membership < 0) | unknown).all()
    return np.sign(membership) * np.log(np.abs(membership)) if one_sign else membership
