"""From the components that some attacks store to membership scores, settled on the calibrate part. No torch.

    as_is     the one component is the score, nothing is settled
    mean      the mean of the components, nothing is settled
    clid      (1 - w) S(u) + w S(v), w in {0, 0.1, ..., 1}        S(x) = (x - median) / IQR, both of the calibrate part
    logistic  b + w . Z(x), a logistic regression with an L2      Z(x) = (x - mean) / standard deviation; all of the calibrate part
              penalty of inverse strength C in STRENGTHS

A rule makes candidate columns of the components, each with a setting that can be read ("w=0.3"), and the calibrate part
chooses among them as it does among timesteps. Adding one is a function here, and its name in RULES and on its attack.
No image is scored by a classifier that was trained on it: on the calibrate part there is one for each of FOLDS folds. So its AUC
there can be compared with those of other attacks, and a threshold from there holds on the test part.
(CLiD: Zhai et al. 2024, arXiv 2405.14800.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.errors import UserError
from diffleak.records.audit import Result
from diffleak.records.scores import Scores, means, numbered
from diffleak.stats.calibration import in_logarithms, residuals

FOLDS = 5
WEIGHTS = tuple(i / 10 for i in range(11))
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # the C of scikit-learn: a smaller one holds the weights down more

Key = int | str | None  # a timestep, a setting, or neither where there is nothing to choose


class Columns(NamedTuple):
    """What the calibrate part chooses from: membership scores, higher = more likely a member, and the key of each column."""

    membership: Float64[np.ndarray, "n k"]
    keys: tuple[Key, ...]


Rule = Callable[[Float64[np.ndarray, "n c"], Bool[np.ndarray, " n"], Bool[np.ndarray, " h"], Int64[np.ndarray, " h"]], Columns]


def _as_is(
    components: Float64[np.ndarray, "n 1"], calibrate: Bool[np.ndarray, " n"], member: Bool[np.ndarray, " h"], unit: Int64[np.ndarray, " h"]
) -> Columns:
    return Columns(components, (None,))


def _clid(
    components: Float64[np.ndarray, "n 2"], calibrate: Bool[np.ndarray, " n"], member: Bool[np.ndarray, " h"], unit: Int64[np.ndarray, " h"]
) -> Columns:
    u, v = robust_scaled(components, calibrate).T
    return Columns(np.stack([(1 - w) * u + w * v for w in WEIGHTS], axis=1), tuple(f"w={w:g}" for w in WEIGHTS))


def _mean(
    components: Float64[np.ndarray, "n c"], calibrate: Bool[np.ndarray, " n"], member: Bool[np.ndarray, " h"], unit: Int64[np.ndarray, " h"]
) -> Columns:
    return Columns(components.mean(axis=1, keepdims=True), (None,))


def _logistic(
    components: Float64[np.ndarray, "n c"], calibrate: Bool[np.ndarray, " n"], member: Bool[np.ndarray, " h"], unit: Int64[np.ndarray, " h"]
) -> Columns:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    spread = components[calibrate].std(axis=0)
    x = (components - components[calibrate].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    own = member[np.unique(unit, return_index=True)[1]]  # the side of each unit
    fewest = min(int(own.sum()), int((~own).sum()))
    if fewest < 2:
        raise UserError("a classifier needs two calibration images of each side; raise --calibrate-fraction")
    split = StratifiedKFold(min(FOLDS, fewest)).split(own, own)
    folds, known = [tuple(np.flatnonzero(np.isin(unit, part)) for part in each) for each in split], np.flatnonzero(calibrate)
    scores, scored = np.full((len(x), len(STRENGTHS)), np.nan), np.isfinite(x).all(axis=1)  # a test part may lack some components
    for i, strength in enumerate(STRENGTHS):
        model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=500)  # weights of unequal sides are left as they are
        scores[scored, i] = model.fit(x[calibrate], member).decision_function(x[scored])
        for fit, out in folds:
            scores[known[out], i] = model.fit(x[known[fit]], member[fit]).decision_function(x[known[out]])
    return Columns(scores, tuple(f"C={strength:g}" for strength in STRENGTHS))


AS_IS, MEAN, LOGISTIC = "as_is", "mean", "logistic"
RULES: dict[str, Rule] = {AS_IS: _as_is, MEAN: _mean, "clid": _clid, LOGISTIC: _logistic}


def needs_calibration(rule: str | None) -> bool:
    """True if a rule takes anything from the calibrate part."""
    return rule not in (None, AS_IS, MEAN)


def settled(scores: Scores, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> Columns:
    """The columns that scores offer for one division into calibrate and test part; without a rule those are the timesteps.

    Where the scores say what is regressed out of them, that is done last. Where they say which images count together, a row is the mean
    over the images of a unit, and `member` and `calibrate` are of the units.

    A rule is given the labels of the calibrate part alone, in its order, so that nothing can be fitted to those of the test
    part. Raises `UserError` for a rule that needs a calibrate part where there is none.
    """
    if scores.unit is None:
        return settled_images(scores, member, calibrate)
    columns = settled_images(scores, member[scores.unit], calibrate[scores.unit])
    return Columns(means(columns.membership, scores.unit), columns.keys)


def settled_images(scores: Scores, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> Columns:
    """The columns of the images themselves, whether or not some count together; raises as `settled` does."""
    unit = np.arange(len(member)) if scores.unit is None else scores.unit
    if needs_calibration(scores.rule) and not calibrate.any():
        raise UserError(f"{scores.attack} is fitted on the calibrate part: leave out --no-calibration, or this attack")
    if scores.rule is None:
        columns = Columns(scores.membership, scores.timesteps)
    else:
        known = member[calibrate].tobytes(), numbered(unit[calibrate]).tobytes()
        columns = _ruled(_Same(scores.membership, scores.statistic), scores.rule, calibrate.tobytes(), *known)
    if scores.complexity is None:
        return columns
    as_it_is = scores.rule or scores.logarithmic  # a rule's score is a logarithm or a difference
    scaled = columns.membership if as_it_is else in_logarithms(columns.membership)
    heldout = calibrate.copy()
    heldout[calibrate] = ~member[calibrate]
    return Columns(residuals(scaled, scores.complexity, heldout, unit), columns.keys)


@dataclass(frozen=True, eq=False)
class _Same:
    """Membership scores that are the same ones where the array of their statistics is."""

    membership: Float64[np.ndarray, "n c"]
    statistic: Float64[np.ndarray, "n c"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.statistic is other.statistic

    def __hash__(self) -> int:
        return id(self.statistic)


@lru_cache(maxsize=8)  # a result, its samples, its calibration and what it adds to another one ask for the same
def _ruled(scores: _Same, rule: str, calibrate: bytes, member: bytes, unit: bytes) -> Columns:
    """The columns of a rule; `member` and `unit` are of the calibrate part alone."""
    known = np.frombuffer(member, dtype=bool), np.frombuffer(unit, dtype=np.int64)
    return RULES[rule](scores.membership, np.frombuffer(calibrate, dtype=bool), *known)


def column(scores: Scores, result: Result, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """The membership scores of units at the timestep or setting of a result, settled on this calibrate part."""
    return _chosen(settled(scores, member, calibrate), result)


def column_of_images(
    scores: Scores, result: Result, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """The same of the images themselves, whether or not some count together."""
    return _chosen(settled_images(scores, member, calibrate), result)


def _chosen(columns: Columns, result: Result) -> Float64[np.ndarray, " n"]:
    key = result.timestep if result.setting is None else result.setting
    return columns.membership[:, columns.keys.index(key)]


def named(key: Key) -> dict[str, Any]:
    """A key as the fields of a record."""
    return {"timestep": key if isinstance(key, int) else None, "setting": key if isinstance(key, str) else None}


def robust_scaled(x: Float64[np.ndarray, "n c"], calibrate: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, "n c"]:
    """(x - median) / IQR of each column, both of the calibrate part; a column whose IQR is 0 there is only centred."""
    low, middle, high = np.quantile(x[calibrate], [0.25, 0.5, 0.75], axis=0)
    return (x - middle) / np.where(high > low, high - low, 1.0)
