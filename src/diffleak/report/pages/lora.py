"""The report on which checkpoints of an adapter may be published, and its section for a model card."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import get_args

from diffleak.errors import one_or_more, visible
from diffleak.records.lora import Checkpoint, Decision, LoraRecord
from diffleak.records.plan import Adapter
from diffleak.report.judgement import Verdict
from diffleak.report.section import Page, Section, Sentences, Tabulated, facts, page_of
from diffleak.report.sections import glossary, limits, public, reproduce, verdict, warnings
from diffleak.report.table import Cell, Column, estimate_cell, rate_cell, tabulate
from diffleak.report.wording import count, entries, last_part, nearer_than_base

WORDS = entries("""
    Checkpoint | the adapter as it was after a number of training steps.
    Base | the model that the adapter was made for, without it.
""")
WORDS_AUDITED = entries("""
    Held-out picture | a picture of the same kind that the adapter was not trained on.
    AUC beyond the base | how often the adapter raises the score of a training picture more than that of a held-out one; 0.5 is
        guessing, 1 is always.
    TPR at 1 % FPR | share of the training pictures that an attack finds when it may name 1 % of the held-out ones falsely.
""")
WORDS_DRAWN = entries("""
    Drawn closer | pictures to which the adapter's drawings come closer than the base's drawings come to any picture at all.
    Closest | the smallest distance between a picture and a drawing by the adapter, and by the base; 0 is equal.
    Member, held out | a picture that the adapter was trained on; one of the same kind that it was not trained on.
    False alarm | a held-out picture that is taken for one of the training set.
    p | probability of this number or a higher one if the adapter drew no closer than the base.
""")
AUDITED = entries("""
    A lower bound. | Only the attacks of these audits were run. A stronger one may find more; nothing here proves that nothing leaks.
    The base may leak too. | If the base was trained on a picture, this comparison does not show that leak.
""")
SEVERAL = entries("""
    Many looks. | {checkpoints} checkpoints were audited, and the intervals are not widened for that.
""")
DRAWN = entries("""
    Nothing was held out. | The rate of false alarms is therefore unknown, and no checkpoint can be cleared.{next_time}
    A reason to look, no proof. | An adapter that learnt its subject well draws close to the pictures without copying them.{look}
    What was not drawn. | Another caption, another seed or more drawings may come closer.
""")

HANDLING = (
    "This page names training pictures (file name or row number), which is personal data if they show people. Pass it on only to people "
    "who may know which pictures the adapter was trained on."
)
BEHIND = re.compile(
    r" (?=To decide: |With \d|The headers? of |The file holds |\d[\d,]* files hold )"
)  # where the answer goes on to what to do

SMALLEST = "The smallest distance between a picture and a drawing by"
NEXT_TIME = (
    " Next time hold pictures out: ten are enough to measure, but with fewer than about 80 on each side "
    "no checkpoint can meet a limit of 0.6."
)

SECTIONS: tuple[Callable[[LoraRecord], Section | None], ...] = (
    lambda record: verdict(judged(record)),
    lambda record: warnings(record.warnings),
    lambda record: _table(record),
    lambda record: _headers(record),
    lambda record: _limits(record, next_time=NEXT_TIME, look=_look(record)),
    lambda record: glossary((*WORDS, *(WORDS_AUDITED if record.held_out else WORDS_DRAWN)), of_attacks=bool(record.held_out)),
    lambda record: reproduce(record.command, facts(_rows(record))),
)


def page(record: LoraRecord) -> Page:
    """The report."""
    held_out = f", {count(record.held_out)} held out" if record.held_out else ", none held out"
    return page_of(
        record,
        (make(record) for make in SECTIONS),
        title="Which checkpoints of the adapter may be published?",
        heading="Adapter checkpoints",
        meta=f"{_checkpoints(record)} on {visible(record.base)} · {one_or_more(record.pictures, 'picture')}{held_out}",
        handling=HANDLING if any(each.redrawn and each.redrawn.look_first for each in record.checkpoints) else "",
    )


def _checkpoints(record: LoraRecord) -> str:
    return one_or_more(len(record.checkpoints), "checkpoint")


QUESTION = "Does the adapter give away which pictures it was trained on?"
ANSWERS: dict[Decision, str] = {
    "do not publish": "Yes: training pictures can be told apart from held-out ones",
    "undecided": "Undecided",
    "publish": "No leak was found by the attacks that were run",
}


def on_card(record: LoraRecord, adapters: Mapping[str, tuple[Adapter, ...]], digests: Iterable[tuple[str, str]] = ()) -> Page:
    """What everybody may know: the answer, a row for each checkpoint, and how it was measured; adapters: of each checkpoint, by name."""
    measured = [each.excess for each in record.checkpoints if each.excess]
    record = public.without_files(record, (label for each in measured for label in (each.attack, *(gate.attack for gate in each.gates))))
    by = {decision: [visible(each.name) for each in record.checkpoints if each.decision == decision] for decision in get_args(Decision)}
    title = " ".join(f"{said}: {', '.join(by[decision])}." for decision, said in ANSWERS.items() if by[decision])
    reasons = tuple(f"{visible(each.name)}: {_public_reason(record, each)}." for each in record.checkpoints)
    held_out = f"{count(record.held_out)} held out" if record.held_out else "none held out"
    rows = [
        *public.model_rows(record.base, None, [adapter for each in record.checkpoints for adapter in adapters.get(each.name, ())]),
        ("Pictures", f"{count(record.pictures)} that it was trained on, {held_out}"),
        ("Captions", visible(public.public_captions(record.captions))),
        *_limit(record),
    ]
    made = (
        verdict(Verdict(judged(record).level, title, reasons), QUESTION),
        _table(record),
        _limits(record, next_time="", look=""),
        public.section(record, rows, digests),
    )
    about = f"Adapter of {last_part(record.base)}"
    return page_of(record, made, title=about, heading="What the adapter gives away", meta=about)


def _look(record: LoraRecord) -> str:
    """The advice to look at the pairs, and how they are shown."""
    shown = "" if record.settings.get("thumbnails") else " The same command with --thumbnails puts them on the pages of the drawings."
    return f" Look at the pairs.{shown}"


def _public_reason(record: LoraRecord, checkpoint: Checkpoint) -> str:
    """The reason without the names of pictures."""
    if checkpoint.redrawn is None:
        return visible(checkpoint.reason)
    nearer, p, compared = checkpoint.redrawn.nearer, checkpoint.redrawn.p_value, checkpoint.redrawn.pictures or record.pictures
    return f"{nearer_than_base(nearer, compared)} (p = {p:.2g}); without held-out pictures this decides nothing"


def _limits(record: LoraRecord, **said: str) -> Section:
    """The limits; said: what only the owner of the pictures can do."""
    audited = (*AUDITED, *(SEVERAL if len(record.checkpoints) > 1 else ()))
    return limits(audited if record.held_out else DRAWN, checkpoints=count(len(record.checkpoints)), **said)


def judged(record: LoraRecord) -> Verdict:
    """The answer, with the reason for each checkpoint."""
    decisions = {each.decision for each in record.checkpoints}
    level = "leak" if "do not publish" in decisions else "undecided" if "undecided" in decisions else "no-leak-found"
    reasons = tuple(f"{visible(each.name)}: {each.decision}; {visible(each.reason)}." for each in record.checkpoints)
    title, *rest = BEHIND.split(visible(record.answer), maxsplit=1)
    return Verdict(level, title, (*reasons, *rest))  # type: ignore[arg-type]


def _table(record: LoraRecord) -> Section:
    source = f"From {visible(record.step_source)}." if record.step_source else "Not known of an adapter alone."
    step = Column(("Step",), source, 1, lambda c: Cell("-" if c.step is None else count(c.step)))
    answer = Column(
        ("Answer",), "About the measured leak. What the files' headers give away stands below.", 1, lambda c: Cell(c.decision), look="left"
    )
    columns = (step, answer, *(_audited() if record.held_out else _drawn()))
    table = tabulate(record.checkpoints, columns, lambda c: (c.name, c.path, False))
    caption = "A row for each checkpoint." + (" Small print: 95 % intervals." if record.held_out else "")
    return Section("checkpoints", "Checkpoints", (Tabulated(table, caption, "Checkpoint"),), "Checkpoints", "Checkpoints")


def _audited() -> tuple[Column, ...]:
    return (
        Column(("AUC beyond", "the base"), "On the test part.", 2, lambda c: estimate_cell(c.excess.auc)),
        Column(("TPR at", "1 % FPR"), "On the test part.", 3, lambda c: rate_cell(c.excess.tpr_at_1pct)),
        Column(("Attack",), "The strongest on the calibrate part.", 3, lambda c: Cell(visible(c.excess.attack)), look="left"),
    )


def _drawn() -> tuple[Column, ...]:
    return (
        Column(("Drawn", "closer"), "Pictures drawn closer than the base ever draws.", 2, lambda c: Cell(count(c.redrawn.nearer))),
        Column(("p",), "", 3, lambda c: Cell(f"{c.redrawn.p_value:.2g}")),
        Column(("Closest",), f"{SMALLEST} the adapter.", 3, lambda c: Cell(f"{c.redrawn.closest:.3f}")),
        Column(("Closest", "of the base"), f"{SMALLEST} the base.", 4, lambda c: Cell(f"{c.redrawn.closest_of_base:.3f}")),
    )


def _headers(record: LoraRecord) -> Section | None:
    """What the headers of the files give away."""
    said = tuple(visible(f"{each.name}: {each.header.sentence}") for each in record.checkpoints if each.header and each.header.counts)
    return Section("headers", "What the files themselves say", (Sentences(said),), "Headers", "Headers") if said else None


def _rows(record: LoraRecord) -> list[tuple[str, str]]:
    repeats = "; ".join(f"{visible(name)}: {one_or_more(n, 'repeat')}" for name, n in record.repeats.items())
    rows = [("Pictures", visible(record.found) + (f"; {repeats}" if repeats else "")), ("Captions", visible(record.captions))]
    folders = "Each checkpoint has a folder beside this page, with a report of its own."
    return [*rows, *_limit(record), ("Folders", folders)]


def _limit(record: LoraRecord) -> list[tuple[str, str]]:
    limit = record.max_excess_auc
    return [] if limit is None else [("Limit", f"AUC beyond the base at most {limit:g}, with its whole interval")]
