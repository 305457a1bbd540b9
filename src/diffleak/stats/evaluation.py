"""Scores and labels → results: the calibrate part chooses, the test part is read once.

Sets with fewer than 200 images a side use repeated splits, and every number is the median over them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float64

from diffleak.data.draw import calibrate_part
from diffleak.errors import UserError, of_them, one_or_more, unknown
from diffleak.records.audit import RATES, Accuracy, AchievedFPR, AUCAt, Gain, Oracle, RateAtFNR, RateAtFPR, Result
from diffleak.records.base import MOST_OFTEN, Estimate, Record
from diffleak.records.plan import Split
from diffleak.records.scores import Samples, Scores
from diffleak.records.variants import CALIBRATED, COMBINED, VARIANTS, Variant, masked_label
from diffleak.stats import metrics
from diffleak.stats.calibration import PLAIN, Features, in_logarithms
from diffleak.stats.rules import LOGISTIC, Key, column, column_of_images, named, settled

SMALL_SIDE = 200
REPEATS = 25
MOST = 1000  # images a side that settings are chosen on, where only these are scored at every setting
SAME = Estimate(value=0.0, low=0.0, high=0.0, method="none: the very same scores were chosen")
NEEDS_ALL = "needs --sweep all: the test part was scored at the chosen settings alone"
NO_TEST = "no test part: these images choose settings"
NO_CALIBRATION = "no calibrate part: the threshold was not chosen on separate images"

Evaluated = Sequence[tuple[Result, Scores]]  # a result for each division into calibrate and test part, with the scores it came from
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, eq=False)
class Divisions:
    """The calibrate part of every repeat, as rows of a (repeats, n) array; no rows of True without calibration."""

    calibrate: Bool[np.ndarray, "r n"]
    record: Split


def divided(
    ids: tuple[str, ...], member: Bool[np.ndarray, " n"], fraction: float, seed: int, calibration: bool = True, most: int | None = None
) -> Divisions:
    """How the images divide into calibrate and test, once or, for small sets, REPEATS times; with at most `most` a side to calibrate."""
    m, n = int(member.sum()), int((~member).sum())
    repeats = REPEATS if calibration and min(m, n) < SMALL_SIDE else 1
    fraction = fraction if calibration else 0.0
    drawn = [calibrate_part(ids, member, fraction, seed, repeat, most) for repeat in range(repeats)] if calibration else []
    rows = np.array(drawn or [np.zeros_like(member)])
    counts = (int(rows[0][member].sum()), int(rows[0][~member].sum()))
    record = Split(
        calibrate_fraction=fraction,
        seed=seed,
        repeats=repeats,
        members=m,
        nonmembers=n,
        calibrate_members=counts[0],
        calibrate_nonmembers=counts[1],
    )
    return Divisions(rows, record)


def evaluate_scores(scores: Scores, member: Bool[np.ndarray, " n"], split: Divisions) -> Result:
    """One attack's result over its timesteps; attack parameters and costs are left to the caller."""
    return whole(on_every_split(scores, member, split))[0]


def on_every_split(scores: Scores, member: Bool[np.ndarray, " n"], split: Divisions) -> Evaluated:
    """One attack's result for each division into calibrate and test part."""
    return [(_one_split(scores, member, calibrate, split.record.seed), scores) for calibrate in split.calibrate]


def on_first_split(scores: Scores, member: Bool[np.ndarray, " n"], split: Divisions) -> Result:
    """One attack's result for the first division alone: settings and test images that belong together."""
    return _one_split(scores, member, split.calibrate[0], split.record.seed)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One setting of a variant that the calibrate part may choose: the fields of a `Result` that name it, and the scores under it."""

    named: Mapping[str, Any]
    scores: Scores


Choice = Callable[[Sequence[Candidate], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]], Candidate]  # of candidates, member, calibrate


def evaluate_variant(
    label: str,
    candidates: Sequence[Sequence[Candidate]],
    base: Evaluated,
    member: Bool[np.ndarray, " n"],
    split: Divisions,
    choose: Choice | None = None,
) -> Evaluated:
    """The results of a variant of an attack on every split, with what it adds to those of `base`.

    candidates: what may be chosen on each split. The timestep is that of the best AUC on the calibrate part, and so is the candidate,
    unless `choose` says another one.
    """
    found = []
    for calibrate, offered, plain in zip(split.calibrate, candidates, base, strict=True):
        chosen = (choose or best_candidate)(offered, member, calibrate) if len(offered) > 1 else offered[0]
        result = _one_split(chosen.scores, member, calibrate, split.record.seed)
        columns = [settled(c.scores, member, calibrate) for c in offered]
        oracles = [_oracle(c.keys, *_sides(c.membership, member, calibrate)[2:]) for c in columns]
        update = {
            "attack": label,
            **chosen.named,
            "oracle": _best_oracle(oracles),
            "gain": gain((result, chosen.scores), plain, member, ~calibrate, split.record.seed),
        }
        found.append((result.model_copy(update=update), replace(chosen.scores, attack=label)))
    return found


def evaluate_masked(
    mask: str, masked: Mapping[float, Scores], base: Evaluated, member: Bool[np.ndarray, " n"], split: Divisions
) -> Evaluated:
    """The results of an attack under a mask, whose ratio is chosen among those that there are scores of."""
    label = masked_label(base[0][0].attack, mask)
    candidates = [Candidate({"mask": mask, "mask_ratio": ratio}, scores) for ratio, scores in masked.items()]
    return evaluate_variant(label, [candidates] * len(split.calibrate), base, member, split)


def evaluate_calibrated(base: Evaluated, features: Features, member: Bool[np.ndarray, " u"], split: Divisions) -> Evaluated:
    """The results of an attack with what the complexity of each image explains taken out, or left in where that is better.

    `base` are the results of the attack, or of a variant of it; `features` those of `stats.calibration`. Better means clearly so
    (see `clearly_best_candidate`): on few images the best of several is better by chance.
    """

    def candidates(result: Result, scores: Scores) -> list[Candidate]:
        fields = {"mask": result.mask, "mask_ratio": result.mask_ratio, "variant": result.variant}
        offered = {PLAIN: scores, **{name: replace(scores, complexity=each) for name, each in features.items()}}
        return [Candidate({**fields, "complexity": name}, each) for name, each in offered.items()]

    label = masked_label(base[0][0].attack, CALIBRATED)
    return evaluate_variant(label, [candidates(*each) for each in base], base, member, split, clearly_best_candidate)


def whole(evaluated: Evaluated) -> tuple[Result, Scores]:
    """The result of the one division, or the medians over repeated ones, with the scores under the setting chosen most often."""
    result = over_repeats([each for each, _ in evaluated])
    masked = next(scores for each, scores in evaluated if each.mask_ratio == result.mask_ratio)
    calibrated = next(scores for each, scores in evaluated if each.complexity == result.complexity)
    return result, replace(masked, complexity=calibrated.complexity)


def evaluate_reference(
    scores: Sequence[Scores], base: Evaluated, member: Bool[np.ndarray, " n"], split: Divisions
) -> tuple[Evaluated, Evaluated]:
    """The results of an attack on the reference model, and on the excess of the audited one over it.

    `scores` are those of the reference and the excess; `base` the results of the model. The gain of the reference is what the model
    adds to it, that of the excess what subtracting the reference adds to the model's scores.
    """
    found: dict[Variant, list[tuple[Result, Scores]]] = {variant: [] for variant in VARIANTS}
    for calibrate, plain in zip(split.calibrate, base, strict=True):
        for variant, part in zip(VARIANTS, scores, strict=True):
            own = (_one_split(part, member, calibrate, split.record.seed), part)
            pair = (plain, own) if variant == "reference" else (own, plain)
            added = gain(*pair, member, ~calibrate, split.record.seed)
            found[variant].append((own[0].model_copy(update={"variant": variant, "gain": added}), part))
    return found["reference"], found["excess"]


def may_be_combined(scores: Scores) -> bool:
    """True if the statistics of an attack may go into `combined`; an attack that is a regression itself stays beside it."""
    return scores.rule != LOGISTIC


def combined(parts: Sequence[Scores], complexity: Float64[np.ndarray, "n f"] | None) -> Scores:
    """All numbers of several attacks on the same images as the components of one: its rule is a logistic regression on them.

    Statistics are taken in logarithms as in calibration (`stats.calibration`); `complexity` joins them where it is given.
    """
    columns = [scores.membership if scores.rule or scores.logarithmic else in_logarithms(scores.membership) for scores in parts]
    components = np.concatenate([*columns, *(() if complexity is None else (complexity,))], axis=1)
    return Scores(COMBINED, "large", tuple(range(components.shape[1])), parts[0].ids, components, LOGISTIC, unit=parts[0].unit)


def evaluate_combined(scores: Scores, base: Evaluated, member: Bool[np.ndarray, " n"], split: Divisions) -> Evaluated:
    """The results of `combined` scores, with what they add to those of `base`, the best of the attacks alone.

    Where the regression is not clearly better on the calibrate part, they are those of `base`: it has many weights and few images.
    """
    candidates = [[Candidate({}, plain), Candidate({}, scores)] for _, plain in base]
    return evaluate_variant(scores.attack, candidates, base, member, split, clearly_best_candidate)


def best_candidate(offered: Sequence[Candidate], member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> Candidate:
    """The candidate of the best AUC on the calibrate part."""
    return offered[max(range(len(offered)), key=[_best(c.scores, member, calibrate)[0] for c in offered].__getitem__)]


def clearly_best_candidate(offered: Sequence[Candidate], member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> Candidate:
    """The first candidate, unless the best one has a higher AUC on the calibrate part and the paired 95 % interval lies above 0."""
    aucs, columns = zip(*(_best(c.scores, member, calibrate) for c in offered), strict=True)
    best = max(range(len(offered)), key=aucs.__getitem__)
    m, n, *_ = _sides(np.stack([columns[best], columns[0]], axis=1), member, calibrate)
    low = metrics.auc_difference(m, n).low
    return offered[best] if low is not None and low > 0 else offered[0]


def _best(scores: Scores, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> tuple[float, Float64[np.ndarray, " n"]]:
    """The best AUC of any column on the calibrate part, and that column."""
    columns = settled(scores, member, calibrate)
    m, n, *_ = _sides(columns.membership, member, calibrate)
    aucs = [metrics.auc(m[:, i], n[:, i]) for i in range(len(columns.keys))]
    return max(aucs), columns.membership[:, int(np.argmax(aucs))]


def gain(
    masked: tuple[Result, Scores], unmasked: tuple[Result, Scores], member: Bool[np.ndarray, " n"], test: Bool[np.ndarray, " n"], seed: int
) -> Gain:
    """What the first of two results adds to the second on the same test images, each at its own settings."""
    if masked[1] is unmasked[1] and masked[0].timestep == unmasked[0].timestep:
        parts = (masked[0].auc, masked[0].asr, masked[0].tpr(0.01))
        auc, asr, tpr = (Estimate(reason=part.reason) if part.value is None else SAME for part in parts)
        return Gain(auc=auc, asr=asr, tpr_at_1pct=tpr)
    if not test.any():
        return Gain(**dict.fromkeys(("auc", "asr", "tpr_at_1pct"), Estimate(reason=NO_TEST)))
    columns = [column(scores, result, member, ~test) for result, scores in (masked, unmasked)]
    m, n = (np.stack([column[test & side] for column in columns], axis=1) for side in (member, ~member))
    calibrated = all(result.asr.value is not None for result, _ in (masked, unmasked))
    thresholds = [-np.inf if result.asr.threshold is None else result.asr.threshold for result, _ in (masked, unmasked)]
    asr = metrics.accuracy_difference(m, n, np.array(thresholds)) if calibrated else Estimate(reason=NO_CALIBRATION)
    return Gain(auc=metrics.auc_difference(m, n), asr=asr, tpr_at_1pct=metrics.tpr_difference(m, n, 0.01, seed))


def samples(all_scores: Sequence[Scores], results: Sequence[Result], member: Bool[np.ndarray, " n"], split: Divisions) -> Samples:
    """The table of membership scores of images at each attack's chosen timestep or setting, with the parts of the first split.

    `member` and `split` are of the units where images count together.
    """
    unit = slice(None) if all_scores[0].unit is None else all_scores[0].unit
    of_images, calibrate = member[unit], split.calibrate[0][unit]
    columns = {s.attack: column_of_images(s, r, of_images, calibrate) for s, r in zip(all_scores, results, strict=True)}
    return Samples(all_scores[0].ids, of_images, ~calibrate, columns)


def headline(results: Sequence[Result]) -> str | None:
    """The attack that looked best on the calibrate part, controls of masks aside; None without one."""
    best = [(max(point.auc for point in r.per_timestep), r.attack) for r in results if r.per_timestep and r.leads]
    return max(best, key=lambda pair: pair[0])[1] if best else None


def evaluate(
    member_scores: Any,
    nonmember_scores: Any,
    convention: str = "member-exact",
    part: tuple[Any, Any] | None = None,
    ids: tuple[Sequence[str], Sequence[str]] | None = None,
    seed: int = 0,
) -> Result:
    """The statistics of finished scores, higher = more likely a member.

    Nothing is chosen but the thresholds of `asr` and `achieved_fpr`: AUC and rates are of all images, those two are calibrated on a hashed
    20 % and counted on the rest.

    Args:
        member_scores: The scores of members, a sequence of finite numbers.
        nonmember_scores: The scores of held-out images.
        convention: How rates are counted: "member-exact", or that of another paper's code (`diffleak metrics --help`).
        part: For each side, which images belong to the test part (bool); then everything is of the test part.
        ids: For each side, the names that decide the hash; without them it is the position.
        seed: Seed of the hash.

    Returns:
        AUC, rates and attack success with 95 % intervals.

    Raises:
        UserError: For scores that are empty or not finite.
    """
    m, n = (_checked(scores, side) for scores, side in ((member_scores, "member"), (nonmember_scores, "non-member")))
    if convention not in metrics.CONVENTIONS:
        raise unknown("convention", convention, metrics.CONVENTIONS)
    member = np.repeat([True, False], [len(m), len(n)])
    names = tuple(map(str, [*ids[0], *ids[1]] if ids else range(len(member))))
    scores = Scores("scores", "large", (0,), names, np.concatenate([m, n])[:, None])
    if part is not None:
        tests = [np.asarray(side, dtype=bool) for side in part]
        if not all(side.any() for side in tests):
            raise UserError("the test part must hold members and non-members")
        test = np.concatenate(tests)
        m, n = m[tests[0]], n[tests[1]]
        record = divided(scores.ids, member, 0.2, seed, calibration=False).record
        result = evaluate_scores(scores, member, Divisions(~test[None], record))
    else:
        whole = evaluate_scores(scores, member, divided(scores.ids, member, 0.2, seed, calibration=False))
        split = divided(scores.ids, member, 0.2, seed)
        carried = [_carried(*_sides(scores.membership[:, 0], member, calibrate)) for calibrate in split.calibrate]
        asr, achieved = (over_repeats(same) for same in zip(*carried, strict=True))
        result = whole.model_copy(update={"asr": asr, "achieved_fpr": achieved})
    result = without_timestep(result)
    return result if convention == "member-exact" else _by_convention(result, m, n, convention)


def without_timestep(result: Result) -> Result:
    """A result of scores that were not measured at timesteps."""
    return result.model_copy(update={"timestep": None, "per_timestep": (), "oracle": result.oracle.model_copy(update={"timestep": None})})


def _checked(scores: Any, side: str) -> Float64[np.ndarray, " n"]:
    array = np.asarray(scores, dtype=np.float64).ravel()
    if len(array) == 0:
        raise UserError(f"there must be at least one {side} score; got none")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise UserError(f"scores must be finite numbers; {of_them(bad, one_or_more(len(array), f'{side} score'))} not")
    return array


def _one_split(scores: Scores, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"], seed: int) -> Result:
    membership, keys = settled(scores, member, calibrate)
    cal_m, cal_n, test_m, test_n = _sides(membership, member, calibrate)
    calibrated = bool(len(cal_m) and len(cal_n))
    if not calibrated and len(keys) > 1:
        raise UserError(f"{scores.attack}: without a calibrate part there must be one timestep; got {len(keys)}")
    per_timestep = tuple(AUCAt(**named(key), auc=metrics.auc(cal_m[:, i], cal_n[:, i])) for i, key in enumerate(keys)) if calibrated else ()
    chosen = int(np.argmax([point.auc for point in per_timestep])) if calibrated else 0
    m, n = test_m[:, chosen], test_n[:, chosen]
    named_so = {"attack": scores.attack, **named(keys[chosen]), "rule": scores.rule, "direction": scores.direction}
    if not len(m) and not len(n):
        return _untested(named_so, per_timestep)
    if np.isnan(m).any() or np.isnan(n).any():
        raise UserError(f"{scores.attack}: the test part was not scored at the setting that leads, {keys[chosen]}: run it with --sweep all")
    asr, achieved = _carried(cal_m[:, chosen], cal_n[:, chosen], m, n)
    return Result(
        **named_so,
        auc=metrics.auc_estimate(m, n),
        tpr_at_fpr=tuple(metrics.tpr_at_fpr(m, n, a, seed) for a in RATES),
        tnr_at_fnr=tuple(metrics.tnr_at_fnr(m, n, a, seed) for a in RATES),
        asr=asr,
        achieved_fpr=achieved,
        oracle=_oracle(keys, test_m, test_n),
        n_members=len(m),
        n_nonmembers=len(n),
        per_timestep=per_timestep,
    )


def _untested(named_so: Mapping[str, Any], per_timestep: tuple[AUCAt, ...]) -> Result:
    """What images that only choose settings say: the choice, and nothing of a test part."""
    nothing = Estimate(reason=NO_TEST)
    return Result(
        **named_so,
        auc=nothing,
        tpr_at_fpr=tuple(RateAtFPR(fpr=rate, support="none", reason=NO_TEST) for rate in RATES),
        tnr_at_fnr=tuple(RateAtFNR(fnr=rate, support="none", reason=NO_TEST) for rate in RATES),
        asr=Accuracy(reason=NO_TEST),
        achieved_fpr=AchievedFPR(reason=NO_TEST),
        oracle=Oracle(reason=NO_TEST),
        n_members=0,
        n_nonmembers=0,
        per_timestep=per_timestep,
    )


def _best_oracle(oracles: Sequence[Oracle]) -> Oracle:
    """Each number from the candidate where it is largest; null where not every candidate was scored."""
    lost = next((oracle for oracle in oracles if oracle.auc is None), None)
    if lost is not None:
        return lost
    best = max(oracles, key=lambda oracle: oracle.auc or 0.0)
    largest = lambda key: max((value for oracle in oracles if (value := getattr(oracle, key)) is not None), default=None)
    return best.model_copy(update={key: largest(key) for key in ("asr", "tpr_at_1pct")})


def _sides(membership: np.ndarray, member: Bool[np.ndarray, " n"], calibrate: Bool[np.ndarray, " n"]) -> tuple[np.ndarray, ...]:
    """Members and non-members of the calibrate part, then of the test part."""
    return tuple(membership[half & side] for half in (calibrate, ~calibrate) for side in (member, ~member))


def _carried(cal_m: metrics.Sample, cal_n: metrics.Sample, m: metrics.Sample, n: metrics.Sample) -> tuple[Accuracy, AchievedFPR]:
    """What thresholds of the calibrate part give on the test part."""
    if not len(cal_m) or not len(cal_n):
        return Accuracy(reason=NO_CALIBRATION), AchievedFPR(reason=NO_CALIBRATION)
    threshold, _ = metrics.best_accuracy(cal_m, cal_n)
    return metrics.accuracy_at(threshold, m, n), metrics.achieved_fpr(cal_n, n)


def _oracle(keys: Sequence[Key], m: Float64[np.ndarray, "m k"], n: Float64[np.ndarray, "n k"]) -> Oracle:
    if not len(m) and not len(n):
        return Oracle(reason=NO_TEST)
    if np.isnan(m).any() or np.isnan(n).any():
        return Oracle(reason=NEEDS_ALL)
    columns = range(len(keys))
    aucs = [metrics.auc(m[:, i], n[:, i]) for i in columns]
    rates = [metrics.tpr_value(m[:, i], n[:, i], 0.01) for i in columns]
    return Oracle(
        **named(keys[int(np.argmax(aucs))]),
        auc=max(aucs),
        asr=max(metrics.best_accuracy(m[:, i], n[:, i])[1] for i in columns),
        tpr_at_1pct=None if None in rates else max(r for r in rates if r is not None),
        reason=f"tpr_at_1pct is not estimable (needs >= 100 non-members, has {len(n)})" if None in rates else None,
    )


def over_repeats(records: Sequence[R]) -> R:
    """One record for those of repeated splits, field by field.

    A number is the median, or null with a reason where some split lacks it; a field that is marked MOST_OFTEN is the value
    chosen most often. Records and tuples of them are combined in the same way, so a new field needs no line here.
    """
    first, update = records[0], dict[str, Any]()
    for name, field in type(first).model_fields.items():
        values = [getattr(record, name) for record in records]
        if any(value != values[0] for value in values):
            often = MOST_OFTEN in field.metadata
            update[name] = Counter(values).most_common(1)[0][0] if often else _over_repeats(name, values)
    found = first.model_copy(update=update)
    lost = None in update.values() and "reason" in type(first).model_fields
    return found.model_copy(update={"reason": _lost(found)}) if lost else found


def _lost(found: Record) -> str | None:
    """Why the medians of repeated splits lack a number, or its interval."""
    if getattr(found, "value", None) is None:
        return "not estimable in some of the random divisions"
    without = isinstance(found, Estimate) and (found.low is None or found.high is None)
    return "no interval: some of the random divisions have none" if without else None


def _over_repeats(name: str, values: Sequence[Any]) -> Any:
    """What stands for values that differ between splits."""
    kinds = {type(value) for value in values}
    if kinds == {float}:
        return float(np.median(values))
    if kinds == {int}:
        return median_low(values)
    if len(kinds) == 1 and isinstance(values[0], Record):
        return over_repeats(values)
    if kinds == {tuple}:
        return tuple(over_repeats(same) for same in zip(*values, strict=True))
    if kinds <= {str, type(None)}:
        return " or ".join(sorted({value or "none" for value in values}))
    if type(None) in kinds:
        return None
    raise TypeError(f"repeated splits give {name} of {', '.join(sorted(kind.__name__ for kind in kinds))}, which has no median")


def _by_convention(result: Result, m: Float64[np.ndarray, " m"], n: Float64[np.ndarray, " n"], convention: str) -> Result:
    compute = metrics.CONVENTIONS[convention]
    assert compute is not None
    numbers, reason = compute(m, n), f"the {convention} convention has no interval"
    rates = tuple(
        exact.model_copy(update={"value": value, "low": None, "high": None, "method": None, "reason": reason})
        for exact, value in zip(result.tpr_at_fpr, numbers.tpr, strict=True)
    )
    asr = Accuracy(value=numbers.asr, reason=f"{reason}; the threshold is the best on these very scores")
    return result.model_copy(
        update={"convention": convention, "auc": Estimate(value=numbers.auc, reason=reason), "tpr_at_fpr": rates, "asr": asr}
    )
