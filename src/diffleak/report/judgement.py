"""The verdict of an audit: can an outsider tell members apart? In plain words.

The verdict rests on the attack that was chosen on the calibrate part, and on its AUC interval on the test part:

    leak             the interval lies above one half
    no-leak-found    it does not; the upper end says what cannot be excluded
    undecided        it does, but a difference between the sources may be the reason: one that so few images do not show (the
                     interval's lower end is below the AUC that the check would have found), or that was not looked for, or that
                     the user allowed; or the scores separate the sides against an attack's direction and no leak was found, or
                     the model's own split.json contradicts the sides and the user ignored that; or no leak was found and no attack
                     that counts for the form of release gave a result
    invalid          the sides differ without the model (see `diffleak.stats.blind`) and the user did not allow it, or there is no AUC

Of an invalid audit no number is shown; audit.json and samples.csv keep them.

Nowhere is it said that no leak was found where an attack separates the sides against its direction: with its answers reversed it works.

Another attack counts only if its interval stays above one half when widened for the number of attacks looked at
(Bonferroni), masked ones and those on the excess over a reference counted. Controls of masks never count: they are there to
show what a mask should not do; nor does what is found in the reference, which is another model. Each rule errs at most 2.5 %
of the time where nothing leaks, so the verdict errs at most 5 % (with one division; repeated divisions of small sets choose
and test on the same images in turn).
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from diffleak.config import flag
from diffleak.errors import visible
from diffleak.records.audit import AuditRecord, Blind, Result
from diffleak.records.base import Estimate
from diffleak.records.evidence import Evidence, KnownAttack, Release
from diffleak.records.run_folder import read_audit
from diffleak.records.variants import CALIBRATED, base_label
from diffleak.report.wording import IMAGES, Counted, count, counted, percent, spoken
from diffleak.stats.blind import INVALID_P, POWER, Finding, finding, may_explain
from diffleak.stats.calibration import PLAIN, RECONSTRUCTION
from diffleak.stats.metrics import ALPHA
from diffleak.stats.reasons import in_given_images

GUESSING = 0.5

SAME = 0.01  # AUCs that differ by less are printed alike
QUESTION = "Can someone who has an image find out that this model was trained on it?"
NO_INCIDENT = "This is a property of the model that a test has measured. It does not mean that images have been taken or published."
FAIR = "The comparison looks fair: nothing shows that the two sides come from different sources"
ACCESS = {
    "black-box": "ask the model for images",
    "grey-box": "read the model's noise predictions",
    "white-box": "look inside the model",
}
WITH_REFERENCE = ("noise_probe",)  # black-box attacks that an audit without a reference refuses
NAMED: dict[str, Any] = dict.fromkeys(  # settings that say which model and images are meant and how they are read, with their defaults
    (
        *("model_config", "model_from", "network", "weights", "lora", "lora_scale", "embedding", "dtype", "reference", "captions"),
        *("members", "nonmembers", "data", "split", "group", "limit", "seed", "exif", "alpha", "white", "resize", "buckets"),
        *("skip_unreadable", "ignore_model_split", "anonymous", "anonymous_key"),
    )
)
NAMED |= {"lora_scale": 1.0, "dtype": "float32", "seed": 0, "exif": "apply", "alpha": "drop"}
NAMED |= dict.fromkeys(("resize", "skip_unreadable", "ignore_model_split", "anonymous"), False)
NOT_OF_EXTRACT = ("reference", "group", "buckets")
REPAIR = "Divide one set of images at random, train on one part, hold out the other, and audit again with these two parts."
NO_VERDICT = "No verdict: the audit could not measure whether members can be told apart."
REVERSED = "The interval lies below 50 %: the scores do separate the sides, but it is the held-out images that look like members."
TO_CHECK = "Check that the sides are not swapped, that both come from one source, and that this model was trained on the members."
EXCESS_TO_CHECK = (
    "The reference gives away more of these members than this model does. Check that the sides are not swapped, and that the reference "
    "was not trained on the members."
)
KEPT = "No result is shown. audit.json and samples.csv keep the numbers; --allow-shift shows them, for what they are."
UNTESTED = "for this form of release nothing was tested"
UNESTIMATED = "for this form of release there is no result"
RELEASES: dict[Release, str] = {
    "weights": "the weights",
    "api": "an interface that draws images for its callers",
    "images": "drawn images alone",
}


@dataclass(frozen=True)
class Verdict:
    """The answer in one plain `title`, its grounds in `sentences`, and the attack they speak of."""

    # lowers and not-shown are only of comparisons
    level: Literal["leak", "no-leak-found", "undecided", "lowers", "not-shown", "invalid"]
    title: str
    sentences: tuple[str, ...]
    attack: str | None = None
    folded: int = 0  # how many of the first sentences a page shows after a click only, since they hold numbers of an invalid audit


def verdict(record: AuditRecord) -> Verdict:
    """What the numbers of an audit mean; never that a model is safe."""
    checked, allowed = finding(record.blind), allows_shift(record.settings)
    if checked == "different" and not allowed:
        title = "Invalid: the two sides come from different sources, so this audit does not measure membership."
        return Verdict("invalid", title, (sources(record.blind), REPAIR, KEPT), folded=1)
    candidates, chosen, finder, lead = _led(record)
    attack = lead.attack if lead else None
    if lead is None or lead.auc.low is None or lead.auc.high is None:
        why = lead.auc.reason if lead and lead.auc.reason else "the record holds no attack with an interval"
        return Verdict("invalid", NO_VERDICT, (f"The reason: {visible(why)}.", sources(record.blind)), attack)
    grounds = (
        *_beyond(record, lead),
        *_mask(record, lead),
        _provenance(record, lead, chosen, candidates),
        *_higher(candidates, lead, chosen),
    )
    grounds += (*_release(record, lead), sources(record.blind))
    wrong = wrong_way(record)
    backwards = wrong is lead
    words = counted(record.split.unit)
    caught = _caught(lead, words)
    middle = (
        (f"{REVERSED} {_to_check(lead)}",)
        if backwards
        else (caught,)
        if finder
        else (_not_excluded(lead.auc, words, _tries(candidates)), caught)
    )
    found = (_picks(lead, counted(record.split.unit)), *middle, *grounds)
    if checked == "different":
        title = "Undecided: the two sides come from different sources, so the numbers below mix membership with that difference."
        return Verdict("undecided", title, (*found, f"--allow-shift accepted this. {REPAIR}"), attack)
    if record.membership and record.membership.status == "contradicted, ignored":
        title = (
            "Undecided: the model's own split.json contradicts these sides (--ignore-model-split). The numbers may not be of membership."
        )
        return Verdict("undecided", title, found, attack)
    if finder and may_explain(record.blind, finder.auc.low or 0.0):
        title = f"Undecided: members can be told apart from held-out images, but {_unseen(record.blind)}."
        return Verdict("undecided", title, (*found, _settle(record.blind)), attack)
    if finder:
        there = _counts(record, lead) or any(_counts(record, r) and widened_low(r.auc, _tries(candidates)) > GUESSING for r in candidates)
        yes = "Yes" if there else "Yes, but only shown with more access than this release gives"
        title = f"{yes}: training images can be told apart from held-out images better than by guessing."
        return Verdict("leak", title, (*found[:2], NO_INCIDENT, *found[2:], *(() if there else _to_test(record))), attack)
    if wrong:
        title = f"Undecided: the scores of {visible(wrong.attack)} separate the sides, but the wrong way round."
        said = found if backwards else (found[0], _other_reversed(wrong), *found[1:])
        settle = (_settle(record.blind),) if checked == "unchecked" else ()
        return Verdict("undecided", title, (*said, *_to_test(record), *settle), attack)
    if _to_test(record):
        known = record.evidence is not None and any(each.run for each in record.evidence.counting)
        more = "The other attacks" if known else "The attacks"
        title = f"Undecided: {UNESTIMATED if known else UNTESTED}. {more} that were run need more access than outsiders have and "
        title += "found no leak."
        return Verdict("undecided", title, (*found, *_to_test(record)), attack)
    if checked == "unchecked":
        title = f"Undecided: no leak was found by these attacks, but {_unseen(record.blind)}."
        return Verdict("undecided", title, (*found, _settle(record.blind)), attack)
    title = "Not by these attacks: no leak was found. That does not prove that there is none."
    return Verdict("no-leak-found", title, found, attack)


class Led(NamedTuple):
    """The results that count, the one chosen beforehand, the one that finds a leak, and the one that the verdict speaks of."""

    candidates: tuple[Result, ...]
    chosen: Result | None
    finder: Result | None
    lead: Result | None


def _led(record: AuditRecord) -> Led:
    candidates = tuple(r for r in record.results if r.leads)
    chosen = next((r for r in candidates if r.attack == record.headline), None)
    finder = _finder(candidates, chosen)
    return Led(candidates, chosen, finder, finder or chosen or max(candidates, key=lambda r: r.auc.value or 0.0, default=None))


def wrong_way(record: AuditRecord) -> Result | None:
    """The attack whose scores separate the sides against its direction: the one that leads, else one that stands the correction."""
    candidates, _, _, lead = _led(record)
    if lead is not None and reversed_by(lead.auc, 1):
        return lead
    found = [r for r in candidates if reversed_by(r.auc, _tries(candidates))]
    return min(found, key=lambda r: r.auc.value or 1.0, default=None)


def reversed_by(auc: Estimate, tries: int) -> bool:
    """True if an interval, widened for the number of attacks looked at, lies wholly below one half."""
    return widened_low(mirrored(auc), tries) > GUESSING


def allows_shift(settings: dict[str, Any]) -> bool:
    """True if the user of an audit with these settings accepted that its sides may differ by themselves."""
    return bool(settings.get("allow_shift"))


def with_validity(record: AuditRecord) -> AuditRecord:
    """The record with `valid`, `invalid_reason` and `verdict` as its verdict has them."""
    judged = verdict(record)
    invalid = judged.level == "invalid"
    reason = " ".join((judged.title, *judged.sentences[:1])) if invalid else None
    return record.model_copy(update={"valid": not invalid, "invalid_reason": reason, "verdict": judged.level})


def read_record(folder: Path) -> AuditRecord:
    """The record of a finished run, judged again; raises `UserError` as `read_audit` does."""
    return with_validity(in_given_images(read_audit(folder)))


def _tries(candidates: Sequence[Result]) -> int:
    """How many of the results are scores of their own: one that took nothing out, or combined nothing, is another one again."""
    again = lambda r: r.complexity == PLAIN or r.parameters.get("clearly_better") is False
    return max(1, sum(not again(r) for r in candidates))


def _finder(candidates: Sequence[Result], chosen: Result | None) -> Result | None:
    """The attack that finds a leak: the chosen one, else the strongest that stands the correction."""
    if chosen and (chosen.auc.low or 0.0) > GUESSING:
        return chosen
    found = [r for r in candidates if r is not chosen and widened_low(r.auc, _tries(candidates)) > GUESSING]
    return max(found, key=lambda r: r.auc.value or 0.0, default=None)


def mirrored(auc: Estimate) -> Estimate:
    """The AUC of the same scores the other way round."""
    return Estimate(value=1 - auc.value, low=1 - auc.high) if auc.value is not None and auc.high is not None else Estimate()


def widened_low(auc: Estimate, tries: int) -> float:
    """The lower end of the interval at level 1 - ALPHA / tries."""
    if auc.value is None or auc.low is None:
        return 0.0
    quantile = NormalDist().inv_cdf
    return auc.value - (auc.value - auc.low) * quantile(1 - ALPHA / 2 / tries) / quantile(1 - ALPHA / 2)


def _picks(result: Result, words: Counted) -> str:
    value, ends = spoken(result.auc)
    pair = f"Given one {words.member} and one {words.held_out}, the attack named {visible(result.attack)} picks the {words.member}"
    few = "images or people" if words is IMAGES else "groups"
    about = f"This is about pairs: it does not mean that {value} of the {few} can be identified."
    return f"{pair} {value} of the time (95 % interval {ends}; 50 % is guessing). {about}"


def _caught(result: Result, words: Counted) -> str:
    """Members caught at 1 % false alarms; a few can be exposed where the average is not."""
    rate = result.tpr(0.01)
    if rate.value is None:
        why = re.sub(r"^not estimable \((.*)\)$", r"\1", rate.reason or "it is not in the record")
        return f"The share of {words.members} caught at 1 % false alarms cannot be estimated ({visible(why)})."
    if rate.low is None or rate.high is None:
        return f"At 1 % false alarms it catches {percent(rate.value)} of the {words.members} (guessing catches 1 %)."
    value, ends = spoken(rate)
    few = "images" if words is IMAGES else "groups"
    if rate.low <= rate.fpr:
        return (
            f"At 1 % false alarms it catches {value} of the {words.members} (95 % interval {ends}). The interval does not lie above the "
            "1 % that guessing catches, so this number decides nothing."
        )
    rough = f"; few {few} decide this, so it is rough" if rate.support == "low" else ""
    text = f"At 1 % false alarms it catches {value} of the {words.members} (95 % interval {ends}; guessing catches 1 %{rough})."
    if rate.low > rate.fpr and (result.auc.low or 0.0) <= GUESSING:
        text += f" That is more than guessing: a few {few} may be exposed although most are not."
    return text


def _not_excluded(auc: Estimate, words: Counted, tries: int) -> str:
    """What the interval leaves possible; it lies above 50 % where the attack is the strongest of several and that alone explains it."""
    more = "images" if words is IMAGES else "groups"
    includes = "The interval includes 50 %, which is what guessing gives."
    if (auc.low or 0.0) > GUESSING:
        includes = (
            f"The interval lies above 50 %, which is what guessing gives. But this attack is the strongest of {tries}, and the strongest "
            "has such an interval by chance more often than a single attack has. Widened to allow for that, the interval includes 50 %."
        )
    other_way = 1 - (auc.low or 0.0)
    reach = f", or up to {percent(other_way)} with its answers reversed" if other_way >= (auc.high or 1.0) + SAME else ""
    return (
        f"{includes} With these {more} it may be that the attack picks the {words.member} "
        f"up to {percent(auc.high or 1.0)} of the time{reach}; more {more} make the interval narrower, and a stronger attack may find more."
    )


def _beyond(record: AuditRecord, lead: Result) -> tuple[str, ...]:
    """What is left of the lead once the reference's own leak is taken out; nothing without a reference."""
    excess = next((r for r in record.results if r.variant == "excess" and r.complexity is None and r.base == lead.attack), None)
    if excess is None or excess.auc.low is None:
        return ()
    value, ends = spoken(excess.auc)
    adds = "a leak of this model's own is shown" if excess.auc.low > GUESSING else "no leak of this model's own is shown"
    adds = "the reference gives away more of these members than this model does" if reversed_by(excess.auc, 1) else adds
    return (
        f"Beyond its reference, {visible(record.plan.reference or '')}, the attack picks the member {value} of the time ({ends}): {adds}.",
    )


def _higher(candidates: Sequence[Result], lead: Result, chosen: Result | None) -> tuple[str, ...]:
    """Why the attack of the highest number is not the one that is named, where that is so."""
    highest = max(candidates, key=lambda r: r.auc.value or 0.0)
    if lead is not chosen or (highest.auc.value or 0.0) < (lead.auc.value or 0.0) + SAME:
        return ()
    return (
        f"Another attack, {visible(highest.attack)}, has a higher number on these images, {percent(highest.auc.value or 0.0, 0)}. "
        f"The report names {visible(lead.attack)} because the calibrate part chose it. Naming the attack that comes out highest on "
        "the test part would overstate the leak.",
    )


def _counts(record: AuditRecord, result: Result) -> bool:
    """True if outsiders have the access that a result needs; records of earlier versions do not speak of a release."""
    return record.evidence is None or record.evidence.counts(result.access)


def _release(record: AuditRecord, lead: Result) -> tuple[str, ...]:
    """What the answer means for the form of release; nothing in records of earlier versions."""
    evidence = record.evidence
    if evidence is None:
        return ()
    released = evidence.released
    assumed = "" if evidence.release else ", which is assumed because no --release was given and it is the most cautious form"
    for_ = f"This answer is for a release of {RELEASES[released]}{assumed}"
    if evidence.counts(lead.access):
        whose = "anyone who has them" if released == "weights" else "any of its callers"
        return (f"{for_}: {whose} can run this attack.",)
    needs = f"{visible(lead.attack)} must {ACCESS.get(lead.access, lead.access)}, and this release does not let outsiders do that"
    if released == "images":
        return (
            f"{for_}: {needs}. No attack of diffleak audit works with such images alone; diffleak quality and diffleak extract "
            "measure what they show of training images.",
        )
    run = _counted_results(record)
    if run:
        ranks = "{} ranks the member first in {} of pairs (95 % interval {})"
        said = ", ".join(ranks.format(visible(r.attack), percent(r.auc.value or 0.0), spoken(r.auc)[1]) for r in run)
        also = "An attack that outsiders can run was run too" if len(run) == 1 else "Attacks that outsiders can run were run too"
        return (f"{for_}: {needs}. {also}: {said}.",)
    return (f"{for_}: {needs}. {_unanswered(evidence)}.",)


def _unanswered(evidence: Evidence) -> str:
    """Why no attack that outsiders can run answers for the form of release."""
    if ran := _named(each for each in evidence.counting if each.run):
        return f"Outsiders can run {ran}, but what that finds cannot be estimated from these images, so {UNESTIMATED}"
    if known := _named(evidence.counting):
        return f"Outsiders can run {known}, but this audit did not, so {UNTESTED}"
    return f"Outsiders can run none of the attacks of diffleak audit that work with this model, so {UNTESTED}"


def _named(attacks: Iterable[KnownAttack]) -> str:
    return ", ".join(visible(each.attack) for each in attacks)


def _counted_results(record: AuditRecord) -> list[Result]:
    """The results that have an interval and that count for the form of release; of a checkpoint beyond its base all are on the excess."""
    found = [r for r in record.results if r.leads and _counts(record, r) and r.auc.low is not None]
    return [r for r in found if r.plain] or found


def _to_test(record: AuditRecord) -> tuple[str, ...]:
    """The command that tests this form of release, where nothing that was run counts for it."""
    evidence = record.evidence
    if evidence is None or _counted_results(record):
        return ()
    fit = tuple(each for each in evidence.counting if each.run or record.plan.reference or each.attack not in WITH_REFERENCE)
    if not fit:
        return (f"To test it, look for training images among those that the model draws: {_command(record, 'extract')}",)
    if all(each.run for each in fit):
        return (f"To test it: give more images. From these, what {_named(fit)} finds cannot be estimated.",)
    named = next(each.attack for each in fit if not each.run)
    return (f"To test it: {_command(record, 'audit', attacks=named, release=evidence.released)}",)


def _command(record: AuditRecord, command: str, **more: str) -> str:
    """A command line on the model and the images of an audit, which leaves its results in a new folder; of objects in memory, a call."""
    if not record.command.startswith("diffleak "):
        changed = "".join(f", {key}={value!r}" for key, value in more.items())
        return visible(f"diffleak.{command}(...) from Python with the same model and images{changed}")
    settings = {key: record.settings.get(key) for key in ("model", *NAMED)}
    if command == "extract":
        # it draws images of one shape, each with its own caption
        settings |= {"resize": settings["resize"] or bool(settings["buckets"]), **dict.fromkeys(NOT_OF_EXTRACT)}
        settings |= {"captions": None} if settings["captions"] == "swapped" else {}
    given = list[str]()
    for key, unsaid in NAMED.items():
        if (value := settings[key]) not in (None, unsaid):
            given += [flag(key)] if value is True else [flag(key), str(value)]
    given += [part for key, value in more.items() for part in (flag(key), value)]
    return visible(shlex.join(["diffleak", command, str(settings.get("model") or "MODEL"), *given, "-o", "NEW-FOLDER"]))


def _other_reversed(result: Result) -> str:
    value, ends = spoken(result.auc)
    return (
        f"But {visible(result.attack)} picks the held-out image: it names the member {value} of the time (95 % interval {ends}), less "
        f"often than guessing. {_to_check(result)}"
    )


def _to_check(result: Result) -> str:
    """What may be wrong where scores separate the sides against an attack's direction."""
    return EXCESS_TO_CHECK if result.variant == "excess" else TO_CHECK


def _mask(record: AuditRecord, result: Result) -> tuple[str, ...]:
    """What a calibrated or masked attack, or one on the excess, is, for those who meet its label first."""
    if result.complexity is not None:
        before = visible(base_label(result.attack, CALIBRATED))
        if result.complexity == PLAIN:
            part = "in most divisions the calibrate part" if record.split.repeats > 1 else "the calibrate part"
            return (f"{visible(result.attack)} is the attack {before}: {part} chose no correction for how simple each image is.",)
        whose = "the reconstruction of each image" if result.complexity == RECONSTRUCTION else "each image"
        return (
            f"{visible(result.attack)} is the attack {before}, corrected for how simple {whose} is: the score that its complexity predicts "
            "is subtracted.",
        )
    if result.variant == "excess":
        return (
            f"{visible(result.attack)} is the attack {visible(result.base)} on the excess: the score of an image in this model minus its "
            f"score in the reference, {visible(record.plan.reference or '')}.",
        )
    if result.mask is None:
        return ()
    share = "a share" if result.mask_ratio is None else percent(result.mask_ratio, 0)
    name = f"{visible(result.attack)} is the attack {visible(result.base)}"
    return (f"{name} with {share} of each image's latent left out: the part that matters least to the decoded picture.",)


def _provenance(record: AuditRecord, lead: Result, chosen: Result | None, candidates: Sequence[Result]) -> str:
    """How the attack was picked, what it was measured on and what access it needs."""
    words = counted(record.split.unit)
    sizes = f"{count(lead.n_members)} {words.members} and {count(lead.n_nonmembers)} {words.all_held_out}"
    tries = _tries(candidates)
    masked = any(r.mask for r in candidates)
    kinds = {
        "masked ones": masked,
        "those on the excess": any(r.variant for r in candidates),
        "calibrated ones": any(r.complexity for r in candidates),
    }
    also = " and ".join(kind for kind, there in kinds.items() if there)
    looked = f"{tries} attacks ({also} included)" if also else f"{tries} attacks"
    if lead is chosen:
        apart = "The attack and its settings were chosen on other images." if record.split.repeats == 1 else ""
        how = apart if record.plan.calibration else "All settings were fixed beforehand."
        each = " in each division" if record.plan.calibration and record.split.repeats > 1 else ""
        text = f"This was measured on {sizes}{each}. {how}".rstrip()
    elif chosen:
        text = (
            f"The attack chosen beforehand, {visible(chosen.attack)}, finds nothing on these {sizes}; "
            f"the one named here finds a leak, also when its interval is widened because {looked} were looked at."
        )
    elif tries == 1:
        text = f"This was measured on {sizes}, with one attack and settings that were fixed beforehand."
    else:
        text = (
            f"No attack was chosen beforehand: of {looked if also else tries}, the strongest on these {sizes} is named, "
            "and judged by an interval that is widened for that."
        )
    if record.split.repeats > 1:
        one = "an image" if words is IMAGES else "a group"
        text += (
            f" Because the sets are small, every number is the median over {record.split.repeats} random divisions into images to choose "
            f"on and images to test. This overstates the leak a little, since {one} that is tested in one division helps to choose in "
            "another."
        )
    if lead.access in ACCESS:
        text += f" An attacker must be able to {ACCESS[lead.access]} ({lead.access} access)."
    whose_word = f" {visible(record.membership.sentence)}" if record.membership else ""
    return text + _captions(record.plan.captions) + whose_word


def _captions(captions: str | None) -> str:
    """The captions that a text-to-image model was given, which decide what an attack can find."""
    match captions:
        case None:
            return ""
        case "own":
            return " The model was given each image's own caption, so the attacker must know it."
        case "empty":
            return " The model was given no captions; an attacker who knows them may find more."
        case "swapped":
            return " The model was given another image's caption with each image: a check of what captions give away, not of the risk."
    if captions.startswith("fixed:"):
        return " The model was given the same caption with every image; an attacker who knows their own may find more."
    return f" The model was given the captions in {visible(captions)}, so the attacker must know them."


def _unseen(blind: Blind) -> str:
    """Why an attack's success may be a difference of the sources."""
    if finding(blind) == "unchecked":
        return "it was not checked whether the two sides come from one source"
    return "with so few images a difference between the two sources may be the reason"


def _settle(blind: Blind) -> str:
    """How to decide an audit that is undecided."""
    if finding(blind) == "unchecked":
        return f"To decide it: audit again with this version, which makes this check. {REPAIR}"
    return (
        "To decide it: audit more images of each side. Or make both sides from one source: divide one set of images at random, train on "
        "one part and hold out the other."
    )


def sources(blind: Blind) -> str:
    """What the check for different sources says, of the classes and of the pixels; it is fair only if both say so."""
    classes = ""
    if blind.labels_p_value is not None and blind.labels_p_value <= INVALID_P:
        classes = (
            f"The classes of members and held-out images differ by more than chance (p = {blind.labels_p_value:.2g}), so a score of a "
            "model that is given the class may separate the sides by it alone. "
        )
    return classes + _pixels(blind)


def _pixels(blind: Blind) -> str:
    """What the pixels say of it."""
    if blind.p_value is not None:
        return _permuted(blind, blind.p_value)
    if blind.value is None or blind.low is None or blind.high is None:
        why = f" ({visible(blind.reason)})" if blind.reason else ""
        unknown = f"It was not checked whether the two sides come from the same source{why}"
        return f"{unknown}; if they do not, the numbers of an audit do not measure membership."
    value, ends = spoken(blind)
    classifier = "A classifier that sees only pixel statistics and never the model"
    text = f"{classifier} picks the member {value} of the time (95 % interval {ends})"
    return text + _of_pixels(blind)


def _found_in_pixels(blind: Blind) -> Finding:
    """What the check found in the pixels, whatever the classes are."""
    return finding(blind.model_copy(update={"labels_p_value": None}))


def _of_pixels(blind: Blind) -> str:
    """What a check of pixels means, behind what it found."""
    means: dict[Finding, str] = {
        "different": "The images of the two sides differ by themselves, so a score may separate them without any membership",
        "perhaps": "So part of what attacks find may come from the images and not from the model",
        "alike": "The pixels show no difference between the sides" if finding(blind) == "different" else FAIR,
    }
    return f". {means[_found_in_pixels(blind)]}."


def _permuted(blind: Blind, p_value: float) -> str:
    """What the permutation test says, and what it would have found."""
    named = f"the best single pixel statistic ({blind.statistic})" if blind.statistic else "the best single pixel statistic"
    picks = f"picks the member {percent(blind.value, 0)} of the time" if blind.value is not None else "was compared"
    chance = ", so chance can explain it" if _found_in_pixels(blind) == "alike" else ""
    text = (
        f"Without the model, {named} {picks}. If the same images are divided at random, the best statistic does as well or better in "
        f"{percent(p_value, 0)} of cases (p = {p_value:.2g}){chance}{_of_pixels(blind)}"
    )
    if _found_in_pixels(blind) == "different":
        return text
    if blind.detectable_auc is None:
        return f"{text} With so few images this check can miss any difference."
    return (
        f"{text} With so few images this check finds, with probability {POWER:g}, a difference by which a statistic picks the member "
        f"{percent(blind.detectable_auc, 0)} of the time or more. It may miss smaller ones."
    )
