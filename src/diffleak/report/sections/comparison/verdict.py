"""The verdict on a comparison, in plain words.

lowers       for some entry the interval of its worst AUC minus the baseline's worst lies below 0, no attack that is clearly stronger
             on it than that worst one, which the calibrate part chose, comes near the baseline's, and none separates the sides the
             wrong way round: with its answers reversed it works
not-shown    for none it does; the intervals say what cannot be excluded
undecided    the baseline's strongest attack separates the sides the wrong way round; or in some run the sides differ without the model,
             and its user allowed that; or nothing checked that they do not, or the check can have missed a difference of the sources as
             large as the leak
invalid      in some run they differ and its user did not allow it, or no difference has an interval

Of a comparison with an invalid run no number is shown; compare.json keeps them.
"""

from pathlib import Path

from diffleak.errors import visible
from diffleak.records.base import Estimate
from diffleak.records.comparison import ComparedResult, Comparison, Entry, SwapResult
from diffleak.records.variants import VARIANTS, may_lead, speaks_of
from diffleak.report.judgement import EXCESS_TO_CHECK, REVERSED, TO_CHECK, Verdict, reversed_by
from diffleak.report.wording import Counted, count, counted, signed, signed_interval, spoken
from diffleak.stats.blind import finding, may_explain

QUALITY = {
    "kid": "KID",
    "frechet": "Fréchet distance",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "copy_rate": "copy rate",
    "clip_score": "CLIP score",
    "kid_difference": "KID difference",
}


def invalid_runs(record: Comparison) -> tuple[str, ...]:
    """The runs whose sides come from different sources, where their users did not allow it."""
    return _different(record, allowed=False)


def _different(record: Comparison, allowed: bool) -> tuple[str, ...]:
    runs = [run for entry in record.entries for run in entry.runs]
    return tuple(run.run for run in runs if finding(run.blind) == "different" and run.allow_shift == allowed)


def comparison_verdict(record: Comparison) -> Verdict:
    """States what the differences to the baseline mean."""
    invalid = invalid_runs(record)
    if invalid:
        title = "Invalid: in some audits the two sides come from different sources, so the numbers do not measure membership."
        reason = "Members differ from held-out images without the model in "
        sentences: tuple[str, ...] = (
            f"{reason}{visible(', '.join(invalid))}. Audit again with sides from one source.",
            "No result is shown. compare.json keeps the numbers.",
        )
        return Verdict("invalid", title, sentences)
    judged = _of_differences(record)
    shifted, unsure = _different(record, allowed=True), _unsure(record)
    title, said = judged.title, list(judged.sentences)
    if unsure:
        title = "Undecided: in some audits a difference between the sources of the two sides may be all that the attacks find."
        said.append(
            f"The check for one source was not made, or could not find a difference that small, in {visible(', '.join(unsure))}. "
            "Audit more images of each side."
        )
    if shifted:
        title = (
            "Undecided: in some audits the two sides come from different sources, so the numbers below mix membership with that difference."
        )
        said.append(f"--allow-shift accepted this in {visible(', '.join(shifted))}. Audit again with sides from one source.")
    if judged.level == "invalid":
        return Verdict("invalid", judged.title, tuple(said))
    return Verdict("undecided" if shifted or unsure else judged.level, title, tuple(said))


def _unsure(record: Comparison) -> tuple[str, ...]:
    """The runs in which a difference between the sources that was not found may be all that the entry's strongest attack finds."""
    found = []
    for entry in record.entries:
        low = entry.worst_result.auc.low or 0.0
        found += [run.run for run in entry.runs if finding(run.blind) == "unchecked" or (low > 0.5 and may_explain(run.blind, low))]
    return tuple(found)


def _of_differences(record: Comparison) -> Verdict:
    others = record.entries[1:]
    sentences = (_baseline(record.baseline, counted(record.unit)), *(_against(entry, record) for entry in others), _chosen(record))
    known = [e for e in others if _worst_difference(e).high is not None]
    if not known:
        return Verdict("invalid", "No verdict: no difference to the baseline could be measured.", sentences)
    baseline = visible(record.baseline.name)
    if reversed_by(record.baseline.worst_result.auc, 1):
        attack = visible(record.baseline.worst.attack)
        title = f"Undecided: on {baseline} the scores of {attack} separate the sides, but the wrong way round."
        check = EXCESS_TO_CHECK if speaks_of(record.baseline.worst.attack, "excess") else TO_CHECK
        return Verdict("undecided", title, (sentences[0], f"{REVERSED} {check}", *sentences[1:]))
    lower = [e for e in known if (_worst_difference(e).high or 0.0) < 0 and not (_undone(e, record) or wrong_way(e) or _undoes(e, record))]
    higher = [e for e in known if (_worst_difference(e).low or 0.0) > 0]
    if lower:
        best = min(lower, key=lambda e: _worst_difference(e).value or 0.0)
        by = f"its AUC is {_lowered(_worst_difference(best))} than that of {baseline}"
        who = f"{visible(best.name)} weakens the strongest attack"
        if len(others) > 1:
            most = f", {visible(best.name)} most by point estimate" if len(lower) > 1 else f": {visible(best.name)}"
            who = f"{len(lower)} of {len(others)} {'weaken' if len(lower) > 1 else 'weakens'} the strongest attack{most}"
        title = f"{who}: {by}." if len(others) == 1 or len(lower) > 1 else f"{who}; {by}."
        return Verdict("lowers", title, sentences)
    if missed(record.baseline):
        higher = []  # than a weak attack, which was chosen there by chance
    stronger = f" On {visible(', '.join(e.name for e in higher))} the strongest attack does better." if higher else ""
    subject = visible(others[0].name) if len(others) == 1 else f"None of the {len(others)} entries"
    shown = "was not shown" if len(others) == 1 else "was shown"
    return Verdict("not-shown", f"{subject} {shown} to weaken the strongest attack of {baseline}.{stronger}", sentences)


def wrong_way(entry: Entry) -> ComparedResult | None:
    """The attack on an entry whose scores separate the sides against its direction: its strongest, else one that stands the correction."""
    of_reference = lambda r: any(speaks_of(r.attack, variant) for variant in VARIANTS)  # an excess too, below one half
    found = [r for r in entry.results if may_lead(r.mask) and not of_reference(r)]
    if entry.worst_result in found and reversed_by(entry.worst_result.auc, 1):
        return entry.worst_result
    return min((r for r in found if reversed_by(r.auc, len(found))), key=lambda r: r.auc.value or 1.0, default=None)


def missed(entry: Entry) -> ComparedResult | None:
    """An attack on an entry that is clearly stronger than the one that its calibrate part chose: its interval lies above the other's."""
    of = lambda r, variant: speaks_of(r.attack, variant)
    chosen = entry.worst_result
    alike = lambda r: of(r, "excess") == of(chosen, "excess") and not of(r, "reference") and may_lead(r.mask)
    clear = [r for r in entry.results if alike(r) and (r.auc.low or 0.0) > (entry.worst.not_excluded or 1.0)]
    return max(clear, key=lambda r: r.auc.low or 0.0, default=None)


def _undoes(entry: Entry, record: Comparison) -> bool:
    """True if an attack that the calibrate part of an entry missed may be as strong as the baseline's strongest: the intervals overlap."""
    found = missed(entry)
    return found is not None and (found.auc.high or 1.0) >= (record.baseline.worst_result.auc.low or 0.0)


def _missed(entry: Entry) -> str:
    """Begins a sentence on an attack that is clearly stronger than the chosen one; empty where none is."""
    found = missed(entry)
    if found is None:
        return ""
    auc = f"{found.auc.value:.3f} [{found.auc.low:.3f}, {found.auc.high:.3f}]"
    where = visible(artefact(found.run) if len(entry.runs) > 1 else entry.name)
    return f" But {visible(found.attack)} has AUC {auc} on {where}; the calibrate part did not choose it, but an attacker may"


def _undone(entry: Entry, record: Comparison) -> SwapResult | None:
    """The swap audit of the two teachers of an entry, where it finds more than the entry's strongest attack."""
    swap = record.swap
    if swap is None or not set(swap.runs) <= {run.run for run in entry.runs}:
        return None
    best = next(r for r in swap.results if r.attack == swap.best)
    return best if (best.auc.low or 0.0) > (entry.worst.not_excluded or 0.0) else None


def _worst_difference(entry: Entry) -> Estimate:
    return entry.worst.difference.auc if entry.worst.difference else Estimate()


def _lowered(difference: Estimate) -> str:
    value, low, high = (abs(x or 0.0) for x in (difference.value, difference.high, difference.low))
    return f"{value:.3f} lower (95 % interval {low:.3f} to {high:.3f})"


def _baseline(entry: Entry, words: Counted) -> str:
    attack, name = visible(entry.worst.attack), visible(entry.name)
    auc = entry.worst_result.auc
    if auc.value is None or auc.low is None or auc.high is None:
        why = visible(auc.reason or "no reason given")
        return f"{name} is the baseline; the AUC of its strongest attack, {attack}, has no interval: {why}."
    value, ends = spoken(auc)
    pair = f"Given one {words.member} and one {words.held_out}, the strongest attack on {name}, {attack}, picks the {words.member}"
    rest = "As a fraction, that share is the AUC; those of the other entries are compared with it."
    weak = f"{_missed(entry)}, and the other entries are compared with less than that." if missed(entry) else ""
    return f"{pair} {value} of the time (95 % interval {ends}; 50 % is guessing). {rest}{weak}"


def _against(entry: Entry, record: Comparison) -> str:
    """One entry: its strongest attack, the difference to the baseline's worst, what is not excluded, and its quality."""
    auc, against = entry.worst_result.auc, entry.worst.difference
    assert against is not None, "only the baseline has none"
    where = f" on {visible(artefact(entry.worst.run))}" if len(entry.runs) > 1 else ""
    head = f"{visible(entry.name)}: the strongest attack is {visible(entry.worst.attack)}{where}"
    if auc.value is None or auc.low is None or auc.high is None:
        return f"{head}; its AUC has no interval ({visible(auc.reason or 'no reason given')})."
    words = counted(record.unit)
    pairs = f"the {count(against.members)} {words.members} and {count(against.nonmembers)} {words.all_held_out} that both were tested on"
    if against.auc.value is None or against.auc.low is None:
        versus = f"the difference in AUC on {pairs} has no interval ({visible(against.auc.reason or 'no reason given')})"
    else:
        versus = f"the difference in AUC is {signed(against.auc.value)} {signed_interval(against.auc)} on {pairs}"
    meant = not_excluded(auc, speaks_of(entry.worst.attack, "excess"))
    text = f"{head}, AUC {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]; {versus}. {meant}"
    both = _undone(entry, record)
    if both is not None and both.auc.value is not None:
        text += (
            f" But an attacker who has both teachers can tell which of them was trained on an image ({visible(both.attack)}, AUC "
            f"{both.auc.value:.3f} in the swap audit)."
        )
    wrong = wrong_way(entry)
    if wrong is not None and wrong is not entry.worst_result:
        text += f" But {visible(wrong.attack)} has AUC {wrong.auc.value:.3f}. {not_excluded(wrong.auc)}"
    stronger = _missed(entry)
    text += f"{stronger}." if stronger else ""
    if both is not None or wrong is not None or _undoes(entry, record):
        text += f" So {visible(entry.name)} does not count as weakening the attack."
    quality = _quality_words(entry, record)
    return f"{text} {quality}" if quality else text


def not_excluded(auc: Estimate, excess: bool = False) -> str:
    """States what the interval leaves possible; that an AUC is "close to one half" is never said without it. excess: over a reference."""
    assert auc.low is not None and auc.high is not None, "callers speak only of intervals"
    if auc.high < 0.5 and excess:
        return "The interval of its AUC lies below 0.5: the reference gives away more of these members than the model does."
    if auc.high < 0.5:
        return (
            f"The interval of its AUC lies below 0.5: the scores point the wrong way, and an attacker who turns them round may reach "
            f"an AUC of {1 - auc.low:.3f}, so this is not a sign of safety."
        )
    if auc.low <= 0.5:
        return f"The interval of its AUC includes guessing (0.5); an AUC up to {auc.high:.3f} cannot be excluded."
    return f"Its AUC is above guessing (0.5); an AUC up to {auc.high:.3f} cannot be excluded."


def _quality_words(entry: Entry, record: Comparison) -> str:
    metric = record.quality_metric
    pair = [e.quality.metric(metric) if e.quality and metric else None for e in (entry, record.baseline)]
    if metric is None or pair[0] is None or pair[0].value is None:
        return ""
    against = f", against {pair[1].value:.4g} of {visible(record.baseline.name)}" if pair[1] and pair[1].value is not None else ""
    return f"Quality: {QUALITY[metric]} {pair[0].value:.4g}{against} (lower is better)."


def chosen_on(record: Comparison) -> str:
    """The part that the strongest attacks were chosen on."""
    without = any(entry.worst.chosen_on == "test" for entry in record.entries)
    return "the calibrate part" + (" (on the test part where there is no calibrate part)" if without else "")


def _chosen(record: Comparison) -> str:
    tested = f"Strongest means the highest AUC on {chosen_on(record)}, over all runs of an entry and all attacks that every run has"
    return f"{tested}; the numbers are of the test part; a difference of two runs is of the images that are in the test parts of both."


def artefact(run: str) -> str:
    """A run as it is shown: the last part of its path."""
    return Path(run).name or run
