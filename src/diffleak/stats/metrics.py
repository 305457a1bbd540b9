"""Membership statistics from scores: exact, member-positive, each with an interval that holds.

Higher score = more likely a member. M members, N non-members. ROC by sorting float64 scores; ties cost the attacker.

    TPR at a    share of members strictly above the (k+1)-th largest non-member score, k = floor(a N): the highest TPR of the
                exact ROC whose FPR is at most a, for "member if score > threshold" then raises at most k false alarms
    AUC         P(member > non-member) + 1/2 P(tie); interval by DeLong, DeLong and Clarke-Pearson 1988

Only numpy is imported, so that `diffleak metrics` answers at once; scikit-learn and scipy are the tests' oracles.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from diffleak.records.audit import RATES, Accuracy, AchievedFPR, RateAtFNR, RateAtFPR
from diffleak.records.base import Estimate
from diffleak.stats.binomial import at_most, rate_with_tail

LEVEL = 0.95
ALPHA = 1 - LEVEL
NORMAL = NormalDist().inv_cdf(1 - ALPHA / 2)  # standard deviations on either side of a normal estimate
BOOTSTRAPS = 10_000
PAIRED_BOOTSTRAPS = 2_000  # each sorts all scores again
MOST_RESAMPLED = 20_000  # images of both sides above which a paired bootstrap counts instead
WINDOW = 8  # standard deviations of a threshold's rank in which it is looked for
FEW = 10  # expected false positives below which a rate has low support
TOO_FEW = "needs at least 2 members and 2 non-members"
FEW_HITS = 6  # members on either side of the threshold below which percentiles of the bootstrap are too narrow

Sample = Float64[np.ndarray, "_"]  # the two sides have their own sizes
Several = float | Float64[np.ndarray, " k"]


class ROC(NamedTuple):
    """The exact empirical ROC: one point per distinct score, from (0, 0) to (1, 1)."""

    fpr: Sample
    tpr: Sample
    thresholds: Sample


def roc(members: Sample, nonmembers: Sample) -> ROC:
    """All operating points "member if score >= threshold", thresholds falling from +inf."""
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]
    at_least = lambda scores: np.concatenate([[0], len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")]) / len(scores)
    return ROC(at_least(nonmembers), at_least(members), np.concatenate([[np.inf], thresholds]))


def auc(members: Sample, nonmembers: Sample) -> float:
    """P(member > non-member) + P(tie) / 2."""
    beaten = _beaten(np.sort(members), np.sort(nonmembers))
    return float(beaten.sum() / (len(members) * len(nonmembers)))


def auc_estimate(members: Sample, nonmembers: Sample) -> Estimate:
    """AUC with DeLong's interval, taken on the logit scale.

    On the plain scale it covers too little near separation; for large samples both agree.
    Where the two sides are perfectly separated (or all tied) DeLong's variance is 0; the interval then rests on min(M, N)
    disjoint pairs, an exact binomial bound.
    """
    m, n = len(members), len(nonmembers)
    if min(m, n) < 2:
        return Estimate(reason=TOO_FEW)
    value = auc(members, nonmembers)
    placements_m, placements_n = _placements(members, nonmembers)
    deviation = np.sqrt(placements_m.var(ddof=1) / m + placements_n.var(ddof=1) / n)
    if deviation == 0:
        low, high = clopper_pearson(round(value * min(m, n)), min(m, n))
        return Estimate(value=value, low=low, high=high, method="exact binomial on disjoint pairs")
    odds, factor = value / (1 - value), math.exp(NORMAL * deviation / (value * (1 - value)))
    low, high = (odds / (1 + odds) for odds in (odds / factor, odds * factor))
    return Estimate(value=value, low=low, high=high, method="DeLong, logit scale")


def auc_deviation(auc: Several, m: Several, n: Several) -> Several:
    """The standard deviation of the AUC of m images against n others, exact for exponential scores (Hanley and McNeil 1982)."""
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (one - auc**2) + (n - 1) * (two - auc**2)) / (m * n)
    return np.asarray(np.sqrt(variance))


def auc_difference(members: Float64[np.ndarray, "m 2"], nonmembers: Float64[np.ndarray, "n 2"]) -> Estimate:
    """AUC of column 0 minus AUC of column 1 on the same images, with DeLong's paired interval.

    Where no image is ranked differently the estimated variance is 0, which is no certainty: then there is no interval.
    """
    if min(len(members), len(nonmembers)) < 2:
        return Estimate(reason=TOO_FEW)
    columns = [_placements(members[:, c], nonmembers[:, c]) for c in (0, 1)]
    value = float(columns[0][0].mean() - columns[1][0].mean())
    variance = sum(np.var(columns[0][side] - columns[1][side], ddof=1) / len(columns[0][side]) for side in (0, 1))
    if variance == 0:
        return Estimate(
            value=value, reason="no interval: the estimated variance is 0 (every image ranks alike in both, or all change alike)"
        )
    half = float(NORMAL * np.sqrt(variance))
    return Estimate(value=value, low=value - half, high=value + half, method="paired DeLong")


def auc_gap(first: tuple[Sample, Sample], second: tuple[Sample, Sample]) -> Estimate:
    """AUC of the first (members, nonmembers) minus that of the second, which are other images.

    The interval combines those of both groups (Zou and Donner 2008), which hold in small and nearly separated groups too.
    """
    a, b = auc_estimate(*first), auc_estimate(*second)
    if a.value is None or b.value is None:
        return Estimate(reason=f"{TOO_FEW} in each of the two groups")
    below_a, above_a, below_b, above_b = (
        abs(e.value - bound) if e.value is not None and bound is not None else 0.0 for e in (a, b) for bound in (e.low, e.high)
    )
    value = a.value - b.value
    low, high = value - float(np.hypot(below_a, above_b)), value + float(np.hypot(above_a, below_b))
    return Estimate(value=value, low=low, high=high, method="DeLong, independent groups")


def threshold_at(nonmembers: Sample, k: int) -> float:
    """The lowest threshold of "member if score > threshold" with at most k false alarms: the (k+1)-th largest score, 0 <= k < n."""
    n = len(nonmembers)
    return float(np.partition(nonmembers, n - 1 - k)[n - 1 - k])


def tpr_difference(members: Float64[np.ndarray, "m 2"], nonmembers: Float64[np.ndarray, "n 2"], fpr: float, seed: int = 0) -> Estimate:
    """TPR of column 0 minus TPR of column 1 at the same false-positive rate, on the same images.

    Stratified bootstrap of images, both thresholds re-derived each time; no interval where fewer than FEW false positives
    decide it. Of more than MOST_RESAMPLED images the resamples are drawn by counts, which has the same distribution.
    """
    n, m = len(nonmembers), len(members)
    k = _count(fpr, n)
    if k < 1 or not m:
        return Estimate(reason=tpr_at_fpr(members[:, 0], nonmembers[:, 0], fpr).reason)
    rates = [tpr_value(members[:, c], nonmembers[:, c], fpr) or 0.0 for c in (0, 1)]
    value = rates[0] - rates[1]
    if k < FEW:
        return Estimate(value=value, reason=f"no interval: fewer than {FEW} false alarms decide it")
    drawn = _resampled if m + n <= MOST_RESAMPLED else _counted
    differences = drawn(members, nonmembers, k, np.random.default_rng((seed, 2)))
    low, high = np.quantile(differences, [ALPHA / 2, 1 - ALPHA / 2])
    if low == high:
        return Estimate(value=value, reason="no interval: no resampling of these images changes the difference")
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), method="paired stratified bootstrap")


def accuracy_difference(
    members: Float64[np.ndarray, "m 2"], nonmembers: Float64[np.ndarray, "n 2"], thresholds: Float64[np.ndarray, "2"]
) -> Estimate:
    """Accuracy of column 0 minus that of column 1 at thresholds chosen elsewhere, on the same images.

    Interval of Agresti and Min 2005: half an image is added to each of the four outcomes, so that it has a width, and covers,
    where the attacks disagree on few images or none.
    """
    right = np.concatenate([members > thresholds, nonmembers <= thresholds])
    gained, lost = (int((right[:, c] & ~right[:, 1 - c]).sum()) for c in (0, 1))
    one, other, total = gained + 0.5, lost + 0.5, len(right) + 2
    centre, half = (one - other) / total, float(NORMAL * np.sqrt(one + other - (one - other) ** 2 / total) / total)
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    return Estimate(value=(gained - lost) / len(right), low=low, high=high, method="paired, Agresti-Min")


def tpr_value(members: Sample, nonmembers: Sample, fpr: float) -> float | None:
    """The TPR at a false-positive rate, without its interval; None where it cannot be estimated."""
    k = _count(fpr, len(nonmembers))
    return float(np.mean(members > threshold_at(nonmembers, k))) if k >= 1 and len(members) else None


def tpr_at_fpr(members: Sample, nonmembers: Sample, fpr: float, seed: int = 0) -> RateAtFPR:
    """TPR at a false-positive rate in (0, 1), with an interval that counts the threshold's own uncertainty.

    Stratified bootstrap with the threshold re-derived where a N >= 10 and at least FEW_HITS members lie on either side of
    the threshold, else the joint order-statistic interval. Null where a N < 1.
    """
    n = len(nonmembers)
    k = _count(fpr, n)
    if k < 1:
        needed = int(np.ceil(1 / fpr - 1e-9))
        return RateAtFPR(fpr=fpr, support="none", reason=f"not estimable (needs >= {needed} non-members, has {n})")
    if len(members) < 1:
        return RateAtFPR(fpr=fpr, support="none", reason="not estimable (no members)")
    value = tpr_value(members, nonmembers, fpr) or 0.0
    support: Literal["ok", "low"] = "low" if k < FEW else "ok"
    if k >= FEW and FEW_HITS <= round(value * len(members)) <= len(members) - FEW_HITS:
        low, high = _bootstrap(members, nonmembers, k, seed)
        method = "stratified bootstrap"
    else:
        low, high = order_statistics(members, nonmembers, fpr)
        method = "joint order statistics"
    return RateAtFPR(fpr=fpr, support=support, value=value, low=min(low, value), high=max(high, value), method=method)


def tnr_at_fnr(members: Sample, nonmembers: Sample, fnr: float, seed: int = 0) -> RateAtFNR:
    """The mirror: share of non-members strictly below the (k+1)-th smallest member score, k = floor(fnr M)."""
    mirror = tpr_at_fpr(-nonmembers, -members, fnr, seed)
    reason = mirror.reason.replace("non-members", "members") if mirror.reason else None
    return RateAtFNR(**{**mirror.model_dump(exclude={"fpr"}), "reason": reason}, fnr=fnr)


def best_accuracy(members: Sample, nonmembers: Sample) -> tuple[float, float]:
    """The threshold of "member if score > threshold" with the highest accuracy, and that accuracy.

    Thresholds lie midway between neighbouring scores; of equally good ones the highest is taken.
    """
    curve = roc(members, nonmembers)
    correct = curve.tpr * len(members) + (1 - curve.fpr) * len(nonmembers)
    best = int(np.argmax(correct))
    levels = curve.thresholds
    below = levels[best + 1] if best + 1 < len(levels) else -np.inf
    threshold = float(levels[best] / 2 + below / 2) if best else float(levels[1])
    if best and threshold >= levels[best]:  # neighbouring floats: halfway rounds up
        threshold = float(below)
    return threshold, float(correct[best] / (len(members) + len(nonmembers)))


def accuracy_at(threshold: float, members: Sample, nonmembers: Sample) -> Accuracy:
    """Attack success rate at a threshold that was chosen elsewhere, with the exact binomial interval."""
    total = len(members) + len(nonmembers)
    correct = int((members > threshold).sum() + (nonmembers <= threshold).sum())
    low, high = clopper_pearson(correct, total)
    baseline = max(len(members), len(nonmembers)) / total
    return Accuracy(value=correct / total, low=low, high=high, method="Clopper-Pearson", baseline=baseline, threshold=_finite(threshold))


def achieved_fpr(calibrate_nonmembers: Sample, test_nonmembers: Sample) -> AchievedFPR:
    """Carries the threshold of the estimable target nearest 1 % from one half to the other."""
    n = len(calibrate_nonmembers)
    targets = [a for a in RATES if _count(a, n) >= 1]
    if not targets or not len(test_nonmembers):
        return AchievedFPR(reason=f"not estimable (needs >= 10 non-members to calibrate on, has {n})")
    target = min(targets, key=lambda a: abs(a - 0.01))
    threshold = threshold_at(calibrate_nonmembers, _count(target, n))
    false = int((test_nonmembers > threshold).sum())
    low, high = clopper_pearson(false, len(test_nonmembers))
    return AchievedFPR(value=false / len(test_nonmembers), low=low, high=high, method="Clopper-Pearson", target=target, threshold=threshold)


def clopper_pearson(successes: int, trials: int, alpha: float = ALPHA) -> tuple[float, float]:
    """The exact two-sided binomial interval at level 1 - alpha."""
    return rate_with_tail(successes, trials, alpha / 2), 1 - rate_with_tail(trials - successes, trials, alpha / 2)


def exposure(scores: Sample, nonmembers: Sample) -> Sample:
    """For each score, the share of non-members that score at least as high: the false alarms if it were the threshold."""
    return (len(nonmembers) - np.searchsorted(np.sort(nonmembers), scores, side="left")) / len(nonmembers)


class ConventionNumbers(NamedTuple):
    """AUC, ASR and TPR at each of RATES as a paper's code computes them."""

    auc: float
    asr: float
    tpr: tuple[float | None, ...]


def _secmi_grid(members: Sample, nonmembers: Sample) -> ConventionNumbers:
    """2000 linear thresholds over the range of scores, trapezoidal AUC, TPR at the nearest FPR."""
    m, n = -members, -nonmembers
    low, high = min(m.min(), n.min()), max(m.max(), n.max())
    thresholds = np.linspace(low, high, 2000, endpoint=False)
    tpr = np.searchsorted(np.sort(m), thresholds, side="right") / len(m)
    fpr = np.searchsorted(np.sort(n), thresholds, side="right") / len(n)
    asr = ((tpr * len(m) + (1 - fpr) * len(n)) / (len(m) + len(n))).max()
    rates = tuple(float(tpr[np.abs(fpr - a).argmin()]) for a in RATES)
    return ConventionNumbers(float(np.trapezoid(tpr, fpr)), float(asr), rates)


def _strict(members: Sample, nonmembers: Sample) -> ConventionNumbers:
    """The last exact ROC point with FPR strictly below the rate."""
    curve = roc(members, nonmembers)
    rates = tuple(float(curve.tpr[np.flatnonzero(curve.fpr < a)[-1]]) for a in RATES)
    return ConventionNumbers(auc(members, nonmembers), best_accuracy(members, nonmembers)[1], rates)


def _swapped(members: Sample, nonmembers: Sample) -> ConventionNumbers:
    """Non-member taken as the positive class, then as `pia-strict`."""
    return _strict(-nonmembers, -members)


def _first_ge(members: Sample, nonmembers: Sample) -> ConventionNumbers:
    """The first exact ROC point with FPR at or above the rate."""
    curve = roc(members, nonmembers)
    rates = tuple(float(curve.tpr[np.argmax(curve.fpr >= a)]) for a in RATES)
    return ConventionNumbers(auc(members, nonmembers), best_accuracy(members, nonmembers)[1], rates)


CONVENTIONS: dict[str, Callable[[Sample, Sample], ConventionNumbers] | None] = {
    "member-exact": None,
    "secmi-grid": _secmi_grid,
    "pia-strict": _strict,
    "swapped-strict": _swapped,
    "first-ge": _first_ge,
}


def _count(rate: float, n: int) -> int:
    """floor(rate n), safe against the rounding of products such as 0.01 * 2900."""
    return int(np.floor(rate * n + 1e-9))


def _finite(x: float) -> float | None:
    return x if np.isfinite(x) else None


def _beaten(scores: Sample, against: Sample) -> Sample:
    """For each score how many of `against` lie below it, a tie counting one half; both sorted, so that a million take 0.1 s.

    These are halves of whole numbers, so they and their sums are exact, and the midranks of Sun and Xu 2014 give the same ones.
    Raises `ValueError` for a NaN, which sorting puts last: it would beat every number, and tie with another one.
    """
    if any(len(side) and np.isnan(side[-1]) for side in (scores, against)):
        raise ValueError("scores must be numbers; some are NaN")
    return (np.searchsorted(against, scores, side="left") + np.searchsorted(against, scores, side="right")) / 2


def _placements(members: Sample, nonmembers: Sample) -> tuple[Sample, Sample]:
    """DeLong's structural components: each member's share of beaten non-members, each non-member's of members above.

    O((M + N) log(M + N)): each side is sorted once, and looked up in the other in that order.
    """
    orders = [np.argsort(side) for side in (members, nonmembers)]
    m, n = (side[order] for side, order in zip((members, nonmembers), orders, strict=True))
    found = np.empty(len(m)), np.empty(len(n))
    found[0][orders[0]] = _beaten(m, n) / len(n)
    found[1][orders[1]] = 1 - _beaten(n, m) / len(m)
    return found


def _bootstrap(members: Sample, nonmembers: Sample, k: int, seed: int) -> tuple[float, float]:
    """Percentile interval of the stratified bootstrap, drawn exactly without resampling.

    The (k+1)-th largest of N uniform draws from the ranks 1..N is ceil(N U), U ~ Beta(N - k, k + 1); given that threshold,
    the number of resampled members above it is binomial.
    """
    rng = np.random.default_rng((seed, 1))
    n, m = len(nonmembers), len(members)
    ranks = np.ceil(n * rng.beta(n - k, k + 1, BOOTSTRAPS)).astype(int)
    thresholds = np.sort(nonmembers)[np.clip(ranks, 1, n) - 1]
    above = 1 - np.searchsorted(np.sort(members), thresholds, side="right") / m
    low, high = np.quantile(rng.binomial(m, above) / m, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _resampled(members: Float64[np.ndarray, "m 2"], nonmembers: Float64[np.ndarray, "n 2"], k: int, rng: np.random.Generator) -> Sample:
    """The difference of the two TPR in each of PAIRED_BOOTSTRAPS resamples, image by image."""
    (m, n), differences = (len(members), len(nonmembers)), []
    for _ in range(PAIRED_BOOTSTRAPS):
        held_out, own = nonmembers[rng.integers(0, n, n)], members[rng.integers(0, m, m)]
        above = (own > [threshold_at(held_out[:, c], k) for c in (0, 1)]).mean(axis=0)
        differences.append(above[0] - above[1])
    return np.array(differences)


def _counted(members: Float64[np.ndarray, "m 2"], nonmembers: Float64[np.ndarray, "n 2"], k: int, rng: np.random.Generator) -> Sample:
    """The same, in distribution, at O(sqrt(k)) a resample instead of O(M + N).

    In a resample the threshold of a column lies near the (k+1)-th largest score: within WINDOW standard deviations sqrt(k) of its rank, as
    good as always. So the images whose rank in either column is that near are drawn one by one, and of all others only how many lie above
    the ranks of both columns, of either, of none. Members that lie on one side of all thresholds drawn are counted once for all, and how
    many of those that only one column has above its threshold are resampled is multinomial.
    """
    n, half = len(nonmembers), math.ceil(WINDOW * math.sqrt(k)) + 1
    orders = [np.argsort(-nonmembers[:, c]) for c in (0, 1)]
    first, last = max(k - half, 0), min(k + half, n - 1)  # ranks from 0, of falling scores
    ranks = np.empty((n, 2), dtype=np.int64)
    for c in (0, 1):
        ranks[orders[c], c] = np.arange(n)
    near = ((ranks >= first) & (ranks <= last)).any(axis=1)
    close = np.clip(ranks[near] - first + 1, 0, last - first + 2)  # 0: above the window, at its end: below it
    outside = 2 * (ranks[~near, 0] < first) + (ranks[~near, 1] < first)
    shares = np.append(np.bincount(outside, minlength=4), len(close)) / n
    thresholds = np.empty((PAIRED_BOOTSTRAPS, 2))
    for b, (_, second_above, first_above, both_above, inside) in enumerate(rng.multinomial(n, shares, PAIRED_BOOTSTRAPS)):
        drawn = close[rng.integers(0, len(close), inside)]
        for c, above in ((0, first_above), (1, second_above)):
            counts = np.cumsum(np.bincount(drawn[:, c], minlength=last - first + 3))
            at = int(np.searchsorted(counts, k + 1 - both_above - above))  # the first place with more than k drawn down to it
            if not 1 <= at <= last - first + 1:
                return _resampled(members, nonmembers, k, rng)
            thresholds[b, c] = nonmembers[orders[c][first + at - 1], c]
    lowest, highest = thresholds.min(axis=0), thresholds.max(axis=0)
    undecided = ((members > lowest) & (members <= highest)).any(axis=1)
    settled, left, m = members[~undecided] > highest, members[undecided], len(members)
    only = lambda above: np.array([(above[:, c] & ~above[:, 1 - c]).sum() for c in (0, 1)])
    rates = (only(settled) + [only(left > threshold) for threshold in thresholds]) / m
    counts = rng.multinomial(m, np.column_stack([rates, 1 - rates.sum(axis=1)]))
    return (counts[:, 0] - counts[:, 1]) / m  # type: ignore[no-any-return]


def order_statistics(members: Sample, nonmembers: Sample, fpr: float) -> tuple[float, float]:
    """An interval for the TPR at the true (1 - fpr) quantile q of the non-members.

    Order statistics enclose q, exact binomial bounds hold at either end; each of the four sides takes alpha / 4.
    """
    n, m = len(nonmembers), len(members)
    falling = np.sort(nonmembers)[::-1]
    counts = np.arange(n + 1)
    below = at_most(n, fpr)  # P(at most j of N non-members exceed q)
    sure = counts[1:][1 - below[:-1] >= 1 - ALPHA / 4]  # j with P(at least j exceed q) high: the j-th largest is above q
    upper = falling[sure[-1] - 1] if len(sure) else np.inf
    enough = counts[below >= 1 - ALPHA / 4][0]  # at most this many exceed q: the next one is below q
    lower = falling[enough] if enough < n else -np.inf
    low = clopper_pearson(int((members > upper).sum()), m, ALPHA / 2)[0]
    high = clopper_pearson(int((members > lower).sum()), m, ALPHA / 2)[1]
    return low, high
