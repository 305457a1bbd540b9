"""The report of an inquiry: were these images trained on? And its section for a model card."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from diffleak.errors import one_or_more, visible
from diffleak.records.base import Estimate
from diffleak.records.inquiry import Group, Image, InquiryRecord, of_controls
from diffleak.report import handling
from diffleak.report.judgement import Verdict, reversed_by
from diffleak.report.section import Page, Section, Sentences, Tabulated, facts, page_of, prose
from diffleak.report.sections import device, fingerprinted, glossary, limits, model, public, reproduce, verdict, versions, warnings
from diffleak.report.table import Cell, Column, estimate_cell, tabulate
from diffleak.report.wording import count, entries, interval, last_part, last_parts, percent

SHOWN = 20  # images in the table; inquiry.csv has all
FOUND = 0.05  # share of false discoveries at which an image is called found
TO_NAME = 77  # controls, 39 in the larger half: 2 / (1 + 39) = FOUND

GLOSSARY = entries("""
    Image in question | an image that may, or may not, have been in the training set.
    Control | an image of the same source that was certainly not in the training set.
    Score | a number that an attack computes from the model's answers for an image; images that were trained on tend to score higher.
    p-value (p) | how probable scores as high as these are for images that were not trained on. Small values speak for training.
    q-value | the share of wrong claims to expect if you claim that this image, and every image with a smaller p-value, was trained
        on. At 0.05 about one claim in twenty is wrong.
    AUC | how often an image in question scores above a control; 0.5 is no difference, 1 is always.
    Placebo | the same test between two halves of the controls, where there is nothing to find.
    Blind test | the same test with scores that are computed from the images alone, without the model.
    Cut | one division of both sides into halves A and B. What is chosen on one half is tested on the other, then they change places.
""")
LIMITS = entries("""
    Not which images, unless they are named one by one. | The answer is about the set. One trained image among many can go unseen, and a few
        can make the whole set stand out.
    Not shown is not disproved. | A stronger attack, other captions or more images may show what this test did not. {sensitivity}
    The controls carry the answer. | If some controls were trained on, the test misses training. If they differ from the images in
        question in a way that the blind test cannot see, such as subject, style or fame, the test can report such a difference as if
        it were training.
    Copies elsewhere. | An image can have been trained on through a copy on another site, a crop or a near-duplicate. The test cannot
        tell these apart. Nor can it tell if this model was trained on the image, or only the model that it was made from.
    Independent images. | The p-values take images, or groups of them, for independent. Near-duplicates are counted once, and not at
        all where they are on both sides. Images that belong together otherwise, such as those of one artist or one shoot, make the
        answer look surer than it is: count them as groups, with --group COLUMN.
    Statistics, not law. | The numbers are evidence about the training set. They do not say whether the use was allowed.
""")


class Words(NamedTuple):
    """What a page calls what is counted."""

    one: str
    several: str
    control: str
    controls: str


IMAGES = Words("image", "images", "a control", "controls")
GROUPS = Words("group", "groups", "a group of controls", "groups of controls")


def words(record: InquiryRecord) -> Words:
    return IMAGES if record.group is None else GROUPS


SECTIONS: tuple[Callable[[InquiryRecord], Section | None], ...] = (
    lambda record: verdict(judged(record)),
    lambda record: warnings(record.warnings),
    lambda record: _tests(record),
    lambda record: limits(LIMITS, sensitivity=_sensitivity(record)),
    lambda record: _images(record),
    lambda record: _chosen(record),
    lambda record: glossary(GLOSSARY),
    lambda record: _made(record),
)


def page(record: InquiryRecord) -> Page:
    """The report."""
    said = words(record)
    numbers = f"{count(record.set.images)} {said.several} in question, {count(record.set.controls)} {said.controls}"
    numbers += f", by {visible(record.group)}" if record.group is not None else ""
    return page_of(
        record,
        (make(record) for make in SECTIONS),
        title=f"Inquiry: {visible(record.plan.model)}",
        heading="Were these images in the training set?",
        meta=f"{model(record.plan.model, record.plan.lora)} · {numbers}",
        handling=_handling(record),
    )


def on_card(record: InquiryRecord, digests: Iterable[tuple[str, str]] = ()) -> Page:
    """What everybody may know: the answer, its two checks, its limits, and how it was measured; no image is named."""
    record = public.without_files(record, (attack["attack"] for attack in record.plan.attacks))
    plan, said = record.plan, words(record)
    about = f"Inquiry: {last_parts(plan.lora) if plan.lora else last_part(plan.model)}"
    sides = f"{count(record.set.images)} {said.several} in question, {count(record.set.controls)} {said.controls}"
    rows = [
        *public.model_rows(plan.model, plan.model_fingerprint),
        *((("Adapter", last_parts(plan.lora)),) if plan.lora is not None else ()),
        *((("Reference", last_part(plan.reference)),) if plan.reference is not None else ()),
        ("Tested", sides),
        ("Hash of the images", visible(plan.data_fingerprint)),
        ("Attacks", visible(", ".join(attack["attack"] for attack in plan.attacks))),
        *((("Captions", visible(public.public_captions(plan.captions))),) if plan.captions is not None else ()),
        ("Cuts", f"{record.repeats}, by seed {plan.seed}"),
    ]
    made = (
        verdict(judged(record), "Do these images score as if the model had been trained on them?"),
        _tests(record) if record.valid else None,
        limits(LIMITS, sensitivity=_sensitivity(record)),
        public.section(record, rows, digests),
    )
    return page_of(record, made, title=about, heading="Were these images in the training set?", meta=about)


def judged(record: InquiryRecord) -> Verdict:
    """The answer in one sentence, and what it rests on."""
    if not record.valid:
        return Verdict("invalid", "No answer: the two sides differ without the model.", (record.invalid_reason or "",))
    p = record.set.p_value
    assert p is not None, "a valid inquiry has a p-value"
    tested = f"{_said(p)}; {_auc(record.set.auc, words(record))}."
    if p <= record.level:
        title = "Yes: as a set, these images score like images the model was trained on."
        means = f"If none of them had been trained on, scores this high would come up {_rarely(p)}."
        return Verdict("leak", title, (tested, means, _singles(record), _beside(record), *_small(record)))
    title = "Not shown: these images do not score clearly higher than the controls."
    not_shown = "This does not show that they were not trained on."
    if reversed_by(record.set.auc, 1):
        said = words(record).controls
        not_shown += f" Here the {said} score higher: check that the two sides are not swapped, and that no control was trained on."
    return Verdict("undecided", title, (tested, not_shown, _needed(record), _beside(record)))


def _said(p: float) -> str:
    return f"The p-value of the set is {number(p)}"


def number(p: float) -> str:
    """A p-value: 0.031, or 2e-06."""
    return f"{p:.2g}" if p < 0.001 else f"{p:.3f}"


def _rarely(p: float) -> str:
    """A p-value as how often, in words."""
    if p >= 0.001:
        return f"in at most {percent(p)} of such tests"
    return f"in less than one of {count(10 ** min(6, int(-math.log10(p))))} such tests"


def _auc(auc: Estimate, said: Words) -> str:
    if auc.value is None:
        return f"the AUC is not estimable ({auc.reason})"
    ends = interval(auc, False)
    one = "an image" if said is IMAGES else "a group"
    return f"{one} in question scores above {said.control} {percent(auc.value, 0)} of the time (50 % is no difference)" + (
        f", AUC {auc.value:.3f} {ends}" if ends else ""
    )


def _singles(record: InquiryRecord) -> str:
    listed, said = _listed(record), words(record)
    found = [each for each in listed if each.q_value <= FOUND]
    if not found:
        few = (
            f" With {count(record.set.controls)} {said.controls} none can have one: that takes {TO_NAME}."
            if record.set.controls < TO_NAME
            else ""
        )
        return f"No single {said.one} can be named: none has a q-value of {FOUND:g} or less.{few}"
    return f"Named one by one, with a q-value of {FOUND:g} or less: {count(len(found))} of {count(len(listed))} {said.several}."


def _listed(record: InquiryRecord) -> tuple[Image | Group, ...]:
    """Every image in question, or every group."""
    found: tuple[Image | Group, ...] = record.groups or record.images
    return found


def _needed(record: InquiryRecord) -> str:
    said = words(record)
    if record.set.images_for_power_80 is None:
        return _sensitivity(record)
    return (
        f"An effect as large as the one measured would show with probability 80 % in about {count(record.set.images_for_power_80)} "
        f"{said.several} and {count(record.set.controls_for_power_80 or 0)} {said.controls}. {_sensitivity(record)}"
    )


def _sensitivity(record: InquiryRecord) -> str:
    if not record.valid:
        return ""
    auc = record.set.detectable_auc
    if auc is None:
        return f"With so few {words(record).several} even the largest effect is found with a probability below 80 %."
    tested = one_or_more(record.set.images, words(record).one, words(record).several)
    against = f"{count(record.set.controls)} {words(record).controls}"
    return f"With {tested} in question and {against}, an effect of AUC {auc:.2f} or more is found with a probability of 80 %."


def _beside(record: InquiryRecord) -> str:
    found = f"Placebo: p = {number(record.placebo.p_value)}. Blind test: p = {number(record.blind.p_value)}."
    return f"{found} Both should be above {record.level:g}."


def _small(record: InquiryRecord) -> tuple[str, ...]:
    """What a blind test on so few images can have missed, where that is as large as the effect."""
    effect, seen = record.set.auc.value, record.blind.detectable_auc
    if effect is None or (seen is not None and effect >= seen):
        return ()
    return (f"{_seen(record)} So it may have missed a difference as large as the effect: check the controls.",)


def _seen(record: InquiryRecord) -> str:
    """Which difference the blind test would have found."""
    if record.blind.detectable_auc is None:
        return f"With so few {words(record).several} the blind test finds even the largest difference with a probability below 80 %."
    return f"The blind test finds a difference of AUC {record.blind.detectable_auc:.2f} or more with probability 80 %."


def _tests(record: InquiryRecord) -> Section:
    said = words(record)
    asked = f"{said.several.capitalize()} in question"
    rows = [("Placebo", record.placebo.images, record.placebo.controls, record.placebo.p_value, record.placebo.auc)]
    rows.append(("Blind test", record.set.images, record.set.controls, record.blind.p_value, record.blind.auc))
    if record.valid and record.set.p_value is not None:
        rows.insert(0, (asked, record.set.images, record.set.controls, record.set.p_value, record.set.auc))
    explained = {
        asked: "with the model",
        "Placebo": "among controls",
        "Blind test": "without the model",
    }
    columns = (
        Column(("p-value",), "Small values speak for a difference.", 1, lambda row: Cell(number(row[3]))),
        Column(("AUC",), "0.5 is no difference. In brackets: 95 % interval.", 2, lambda row: estimate_cell(row[4])),
        Column((said.several.capitalize(),), "Those in question, or what stands in their place.", 3, lambda row: Cell(count(row[1]))),
        Column(("Controls",), f"{said.several.capitalize()} that they are compared with.", 4, lambda row: Cell(count(row[2]))),
    )
    table = tabulate(rows, columns, lambda row: (row[0], explained[row[0]], explained[row[0]] == "with the model"))
    merged = f"All are the same test; each p-value is twice the median over {2 * record.repeats} halves."
    notes = (
        f"{merged} If the blind test finds a difference, there is no answer. If the placebo does, repeat with another --seed.",
        "Placebo: half of the controls against the other half. Blind test: those in question against the controls, by pixel "
        f"statistics{' and the size of groups' if said is GROUPS else ''}; chosen most often: {visible(record.blind.chosen)}. "
        f"{_seen(record)}",
    )
    return Section(
        "tests",
        "The answer and its two checks",
        (Tabulated(table, "In brackets: 95 % intervals.", "Test", notes=notes),),
        "Checks",
        "The answer and its checks",
    )


def _images(record: InquiryRecord) -> Section | None:
    listed, said = _listed(record), words(record)
    if not listed:
        return None
    ranked = sorted(listed, key=lambda each: (each.p_value, each.q_value))
    columns = (
        Column(
            ("p-value",),
            f"How often {'a group' if said is GROUPS else 'an image'} that is not in the training set scores as high.",
            1,
            lambda each: Cell(number(each.p_value)),
        ),
        Column(
            ("q-value",),
            "If you name this one and all above it, the share of names to be expected wrong.",
            2,
            lambda each: Cell(number(each.q_value)),
        ),
        *((Column(("Images",), "Images of the group.", 3, lambda each: Cell(count(each.images))),) if said is GROUPS else ()),
    )
    name = lambda each: visible(each.group if isinstance(each, Group) else each.id)
    table = tabulate(ranked[:SHOWN], columns, lambda each: (name(each), "", each.q_value <= FOUND))
    more = f" Shown are the first {SHOWN} of {count(len(ranked))}; inquiry.csv lists all." if len(ranked) > SHOWN else ""
    best = 2 / (1 + (record.set.controls + 1) // 2)  # of one that was tested in the larger half
    caption = (
        f"The {said.several} in question, smallest p-value first.{more} Marked: a q-value of {FOUND:g} or less. With "
        f"{count(record.set.controls)} {said.controls} no p-value of a single {said.one} can be below {number(best)}."
    )
    one, several = said.one.capitalize(), said.several.capitalize()
    return Section("images", f"{one} by {said.one}", (Tabulated(table, caption, one, look="narrow"),), several, several)


def _chosen(record: InquiryRecord) -> Section | None:
    if not record.cuts:
        return None
    names = Counter(each.chosen for each in record.cuts)
    of = lambda name: [each for each in record.cuts if each.chosen == name]
    middle = lambda cuts: sorted(each.p_value for each in cuts)[(len(cuts) - 1) // 2]
    columns: tuple[Column, ...] = (
        Column(("Halves",), "How many halves chose it.", 1, lambda name: Cell(count(names[name]))),
        Column(
            ("p-value,", "median"), "Of the halves that it was tested on; not yet doubled.", 2, lambda name: Cell(number(middle(of(name))))
        ),
    )
    table = tabulate([name for name, _ in names.most_common()], columns, lambda name: (visible(name), "", False))
    ps = sorted(each.p_value for each in record.cuts)
    caption = (
        f"{one_or_more(record.repeats, 'cut')}, {len(record.cuts)} tested halves. Their p-values lie between {number(ps[0])} and "
        f"{number(ps[-1])}; the answer is twice their median."
    )
    return Section(
        "chosen", "What the halves chose", (Tabulated(table, caption, "Attack and setting"),), "Choices", "What the halves chose"
    )


def _handling(record: InquiryRecord) -> str:
    if record.plan.anonymous is not None:
        return handling.on_page(True)
    return (
        "This page names images (file name or row number) and says how strongly each looks like a training image, which is personal data "
        "if they show people. With --anonymous, a run names images by ids that only your key turns back into names."
    )


def _made(record: InquiryRecord) -> Section:
    plan, environment = record.plan, record.environment
    rows = [
        ("Model", fingerprinted(visible(plan.model), plan.model_fingerprint)),
        ("Images in question", visible(plan.members)),
        ("Controls", visible(plan.nonmembers)),
        *((("Known of the controls", visible(of_controls(record.membership))),) if record.membership else ()),
        ("Images", fingerprinted(f"{visible(plan.image_shape)}", plan.data_fingerprint)),
        ("Attacks", visible(", ".join(attack["attack"] for attack in plan.attacks))),
        *((("Captions", visible(plan.captions)),) if plan.captions is not None else ()),
        *((("Reference", visible(plan.reference)),) if plan.reference is not None else ()),
        *((("Counted", f"groups by {visible(record.group)}"),) if record.group is not None else ()),
        ("Cuts", f"{record.repeats}, by a hash of id and seed {plan.seed}"),
        ("Denoiser queries", count(record.costs.queries)),
        ("Device", device(environment)),
        ("Versions", versions(environment)),
    ]
    lists = (
        ("Near-duplicates of other images of their side, which were not counted again:", record.repeated),
        ("Near-duplicates of images on the other side, which were not tested:", record.across),
    )
    left_out = [block for what, ids in lists if ids for block in (prose(what), Sentences(tuple(map(visible, ids)), where="page"))]
    return reproduce(record.command, facts(rows), *left_out)
