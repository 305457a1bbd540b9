"""What one half of the images chooses for the other: attack, timestep, calibration by complexity, and weights of several attacks. No torch.

    1. of each attack the timestep or setting of the best AUC
    2. its complexity calibration, where the half has enough controls to fit one and it is clearly better than none
    3. of these the attack of the best AUC
    4. all attacks together by one linear discriminant, where the half is large enough for one and it is clearly better than the best

The discriminant of numbers x, standardised on the half, with m the means of the two sides and S their pooled covariance there:

    score = w . x        w = (S + strength I)^-1 (m of the images in question - m of the controls)

of the strength in STRENGTHS of the best AUC. A large one leaves the difference of the means, which needs few images.

Clearly better: the paired 95 % interval of the difference of both AUCs lies above 0. Images of the half are scored by fits that have not
seen them (FOLDS folds), so their AUCs can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64

from diffleak.records.scores import Scores, means
from diffleak.records.variants import CALIBRATED, COMBINED, masked_label
from diffleak.stats.calibration import FEWEST, FOLDS, PLAIN, WORDS, Features
from diffleak.stats.evaluation import combined, may_be_combined
from diffleak.stats.inquiry import Chooser, Chosen
from diffleak.stats.metrics import auc_difference
from diffleak.stats.rules import settled

STRENGTHS = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True, eq=False)
class Offered:
    """One choice: its scores, higher = more likely trained on, its name, and its AUC on the half that chooses."""

    scores: Float64[np.ndarray, " n"]
    name: str
    auc: float


def chooser(parts: Sequence[Scores], taken_out: Features | None = None, complexity: Float64[np.ndarray, "n c"] | None = None) -> Chooser:
    """The chooser among the scores of several attacks on the same images.

    taken_out: what may be regressed out of scores, by its name. complexity: what joins the numbers of all attacks in their discriminant.
    Where the scores say which images count together, all of these are of images, and what is chosen is of units.
    """
    joined = [scores for scores in parts if may_be_combined(scores)]
    numbers = combined(joined, complexity).statistic if len(joined) > 1 else None
    if numbers is not None and (unit := joined[0].unit) is not None:
        numbers = means(numbers, unit)

    def choose(question: Bool[np.ndarray, " n"], fit: Bool[np.ndarray, " n"]) -> Chosen:
        controls, asked = int((fit & ~question).sum()), int((fit & question).sum())
        found = []
        for scores in parts:
            plain = _best(scores, question, fit, scores.attack)
            label = masked_label(scores.attack, CALIBRATED)
            others = taken_out.items() if taken_out and controls >= FEWEST else ()
            calibrated = [
                _best(replace(scores, complexity=c), question, fit, f"{label}, {WORDS.get(name, name)}")
                for name, c in others
                if name != PLAIN
            ]
            found.append(_clearly_best([plain, *calibrated], question, fit))
        best = max(found, key=lambda each: each.auc)
        if numbers is not None and min(controls, asked) >= FEWEST:
            best = _clearly_best([best, discriminant(numbers, question, fit, COMBINED)], question, fit)
        return Chosen(best.scores, best.name)

    return choose


def blind_chooser(named: Mapping[str, Float64[np.ndarray, " n"]]) -> Chooser:
    """The chooser of a scorer that never sees the model: one linear discriminant of all numbers of an image, by their names.

    A single number, in the direction of the half that chooses, where it is clearly better there than the discriminant.
    """
    numbers, names = np.stack([*named.values()], axis=1), [*named]

    def choose(question: Bool[np.ndarray, " n"], fit: Bool[np.ndarray, " n"]) -> Chosen:
        together = discriminant(numbers, question, fit, f"all {len(names)} statistics together")
        aucs = column_aucs(numbers[fit & question], numbers[fit & ~question])
        best = int(np.abs(aucs - 0.5).argmax())
        single = Offered(numbers[:, best] * (1 if aucs[best] >= 0.5 else -1), names[best], float(max(aucs[best], 1 - aucs[best])))
        chosen = _clearly_best([together, single], question, fit)
        return Chosen(chosen.scores, chosen.name)

    return choose


def _best(scores: Scores, question: Bool[np.ndarray, " n"], fit: Bool[np.ndarray, " n"], name: str) -> Offered:
    """The column of the best AUC on the images `fit`."""
    columns = settled(scores, question, fit)
    aucs = column_aucs(columns.membership[fit & question], columns.membership[fit & ~question])
    best = int(np.argmax(aucs))
    key = columns.keys[best]
    at = "" if key is None else f" at {key}" if isinstance(key, str) else f" at t = {key}"
    return Offered(columns.membership[:, best], name + at, float(aucs[best]))


def discriminant(numbers: Float64[np.ndarray, "n k"], question: Bool[np.ndarray, " n"], fit: Bool[np.ndarray, " n"], name: str) -> Offered:
    """The linear discriminant of the best AUC on the images `fit`, each of which is scored by one that was made without its fold."""
    spread = numbers[fit].std(axis=0)
    x = (numbers - numbers[fit].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    found = x @ _weights(x[fit], question[fit])
    rows, fold = np.flatnonzero(fit), np.empty(int(fit.sum()), dtype=np.int64)
    for side in (True, False):  # as many of each side in every fold, else the means of the rest would say which side is missing
        these = question[rows] == side
        fold[these] = np.random.default_rng(0).permutation(int(these.sum())) % FOLDS
    for number in range(FOLDS):
        made, out = rows[fold != number], rows[fold == number]
        found[out] = x[out] @ _weights(x[made], question[made])
    aucs = column_aucs(found[fit & question], found[fit & ~question])
    return Offered(found[:, int(aucs.argmax())], name, float(aucs.max()))


def _weights(x: Float64[np.ndarray, "m k"], asked: Bool[np.ndarray, " m"]) -> Float64[np.ndarray, "k s"]:
    """The weights of the discriminant at each strength."""
    means = np.stack([x[~asked].mean(axis=0), x[asked].mean(axis=0)])
    within = x - means[asked.astype(int)]
    values, vectors = np.linalg.eigh(within.T @ within / len(x))
    turned = vectors.T @ (means[1] - means[0])
    return np.asarray(vectors @ (turned[:, None] / (np.maximum(values, 0.0)[:, None] + np.array(STRENGTHS))))


def column_aucs(asked: Float64[np.ndarray, "m k"], controls: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, " k"]:
    """The AUC of every column, ties counted as one half."""
    from scipy.stats import rankdata

    m, n = len(asked), len(controls)
    ranks = rankdata(np.concatenate([asked, controls]), axis=0)
    return np.asarray((ranks[:m].sum(axis=0) - m * (m + 1) / 2) / (m * n))


def _clearly_best(offered: Sequence[Offered], question: Bool[np.ndarray, " n"], fit: Bool[np.ndarray, " n"]) -> Offered:
    """The first, unless the best has a higher AUC and the paired interval of the difference lies above 0."""
    best = max(offered, key=lambda each: each.auc)
    if best is offered[0]:
        return best
    pair = np.stack([best.scores, offered[0].scores], axis=1)
    low = auc_difference(pair[fit & question], pair[fit & ~question]).low
    return best if low is not None and low > 0 else offered[0]
