"""The report of a sweep over the checkpoints of a training."""

from collections.abc import Callable, Sequence

from diffleak.errors import one_or_more, visible
from diffleak.records.digests import FILE as DIGESTS
from diffleak.records.gate import Gated
from diffleak.records.scores import Unit
from diffleak.records.sweep import Point, SweepRecord
from diffleak.records.variants import speaks_of
from diffleak.report.judgement import EXCESS_TO_CHECK, TO_CHECK, Verdict, reversed_by
from diffleak.report.section import Block, Facts, Page, Section, Sentences, Tabulated, figure, page_of, prose
from diffleak.report.sections import FOR_THE_FILE, LINE, glossary, limits, reproduce, verdict, warnings
from diffleak.report.sections.audit.gates import checked, sentence
from diffleak.report.table import Cell, Column, Table, difference_cell, estimate_cell, rate_cell, tabulate
from diffleak.report.wording import count, counted, entries, interval, medians, moment
from diffleak.stats.evaluation import REPEATS, SMALL_SIDE

GLOSSARY = entries("""
    Member | an image the model was trained on; a held-out image comes from the same source but was not used for training.
    AUC | how often an attack ranks a random member above a random held-out image; 0.5 is guessing, 1 is always right.
    TPR at 1 % FPR | share of members an attack catches when it may raise a false alarm for 1 % of the held-out images.
    Checkpoint | the model, or the adapter, as it was after a number of training steps.
    Paired | two checkpoints are compared on the same images, so that a difference cannot come from the images.
""")
LIMITS = entries("""
    A lower bound. | Only the attacks of these runs were tried. A stronger one may find more; none of this proves that nothing leaks.
    One training. | The intervals cover the random choice of images. They do not cover another training run, seed or data set.
""")
SEVERAL = entries("""
    Many looks. | {points} checkpoints were audited, and the intervals are not widened for that.
    The steps between. | The curve says nothing about a checkpoint that was not audited.
""")
UNLIMITED = (
    "The audits had no limit, so this answer names no checkpoint: diffleak gate with this folder and --max-auc names "
    "the last within a limit."
)
CHOSEN = entries("""
    The choice. | The last checkpoint within the limits is chosen among {points}, which makes it look a little better than it is.
""")

SECTIONS: tuple[Callable[[SweepRecord, Gated | None], Section | None], ...] = (
    lambda record, gated: verdict(judged(record)),
    lambda record, gated: warnings(record.warnings),
    lambda record, gated: _curve(record),
    lambda record, gated: _table(record),
    lambda record, gated: checked(gated),
    lambda record, gated: _limits(record),
    lambda record, gated: _file(record),
    lambda record, gated: glossary(GLOSSARY, of_attacks=True),
    lambda record, gated: reproduce(record.command, prose("Each checkpoint has a run folder beside this page, with a report of its own.")),
)


def page(record: SweepRecord, gated: Gated | None = None) -> Page:
    """The report; gated: what `diffleak gate` checked."""
    steps = [count(point.step) for point in record.points]
    what = {"lora": "adapter", "network": "network", "model": "model"}[record.swept]
    at = f", {'step' if len(steps) == 1 else 'steps'} {' to '.join(dict.fromkeys((steps[0], steps[-1])))}" if record.step_source else ""
    return page_of(
        record,
        (make(record, gated) for make in SECTIONS),
        title=f"Audit of {_counted(record, 'checkpoint')}",
        heading="Audit of checkpoints" if len(steps) > 1 else "Audit of a checkpoint",
        meta=f"{_counted(record, what)}{at} · {_sides(record)}",
    )


def _counted(record: SweepRecord, what: str) -> str:
    return one_or_more(len(record.points), what)


def _sides(record: SweepRecord) -> str:
    return counted(_unit(record)).sides(record.members, record.nonmembers)


def _unit(record: SweepRecord) -> Unit:
    return "image" if record.settings.get("group") is None else "group"


def judged(record: SweepRecord) -> Verdict:
    """The last checkpoint within the limits, or without limits how the leak moves from the first to the last."""
    first, last, one = record.points[0], record.points[-1], len(record.points) == 1
    moves = (*dict.fromkeys((_said(record, first), _said(record, last))), *_wrong_way(record.points))
    steps = f"; steps are from {visible(record.step_source)}" if record.step_source else ""
    chosen = f"{'It' if one else 'Each'} is shown by the attack that was strongest on {_chosen_on(record)}{steps}."
    if not record.limited:
        title = f"AUC by training step: {_auc(first)} at the first checkpoint, {_auc(last)} at the last"
        title = f"AUC of the one checkpoint: {_auc(first)}" if one else title
        return Verdict("undecided", title, (*moves, chosen, UNLIMITED), last.attack)
    if record.last_passing is None:
        title = "The one checkpoint is not within the limits" if one else "No checkpoint is within the limits"
        return Verdict("leak", title, (*moves, chosen), last.attack)
    passing = next(point for point in record.points if point.name == record.last_passing)
    step = f", step {count(passing.step)}" if record.step_source else ""
    title = f"The {'one' if one else 'last'} checkpoint {'is ' if one else ''}within the limits: {visible(passing.name)}{step}"
    said = dict.fromkeys((_said(record, passing), *moves, chosen))
    fine = passing is last and _reversed(passing) is None
    return Verdict("no-leak-found" if fine else "undecided", title, tuple(said), passing.attack)


def _wrong_way(points: Sequence[Point]) -> tuple[str, ...]:
    """The checkpoints at which an attack would work with its answers reversed, which a limit on the TPR does not count."""
    by = {attack: [each.name for each in points if _reversed(each) == attack] for attack in map(_reversed, points) if attack}
    of = "; ".join(f"{visible(attack)} at {visible(', '.join(names))}" for attack, names in by.items())
    check = EXCESS_TO_CHECK if all(speaks_of(attack, "excess") for attack in by) else TO_CHECK
    return (f"Some scores separate the sides, but the wrong way round: {of}. {check}",) if by else ()


def _reversed(point: Point) -> str | None:
    """The attack of a checkpoint that would work reversed; a record of an earlier version has no more than the one that is shown."""
    if "wrong_way" in point.model_fields_set:
        return point.wrong_way
    return point.attack if reversed_by(point.auc, 1) else None


def _chosen_on(record: SweepRecord) -> str:
    """The images that each checkpoint's attack was chosen on."""
    return "its calibrate part" if record.chosen_on == "calibrate" else "the images that it is tested on"


def _limits(record: SweepRecord) -> Section:
    several = SEVERAL if len(record.points) > 1 else ()
    return limits((*LIMITS, *several, *(CHOSEN if several and record.last_passing else ())), points=count(len(record.points)))


def _file(record: SweepRecord) -> Section:
    """What somebody needs who keeps the page for the file; the report of each checkpoint has the rest."""
    given = {name.capitalize(): str(record.settings[name]) for name in ("title", "auditor", "note") if record.settings.get(name)}
    rows = (
        *((term, visible(what)) for term, what in given.items()),
        ("Checkpoints", ", ".join(visible(point.name) for point in record.points)),
        ("Images", f"{_sides(record)}, the same for every checkpoint"),
        ("Finished", visible(moment(record.created))),
        ("Tool", f"diffleak {visible(record.diffleak)}"),
        ("Hashes", f"SHA-256 in {DIGESTS}, here and in the folder of each checkpoint; diffleak verify compares them"),
        ("Signature", f"name {LINE} date {LINE} signed {LINE}"),
    )
    return Section("file", FOR_THE_FILE, (Facts(rows),), FOR_THE_FILE, FOR_THE_FILE)


def _auc(point: Point) -> str:
    return "not estimable" if point.auc.value is None else f"{point.auc.value:.3f}"


def _said(record: SweepRecord, point: Point) -> str:
    ends = interval(point.auc, False)
    at = f"At step {count(point.step)} ({visible(point.name)})" if record.step_source else f"{visible(point.name)}:"
    return f"{at} {visible(point.attack)} has AUC {_auc(point)}{f' {ends}' if ends else ''}."


def _curve(record: SweepRecord) -> Section | None:
    """The leak against the steps; nothing of one checkpoint."""
    if len(record.points) == 1:
        return None
    return Section("curve", "Leak against training step", (), "Curve", later=lambda: _curves(record))


def _curves(record: SweepRecord) -> tuple[Block, ...]:
    from diffleak.report.figures.sweep import curve

    read = "Upright lines: 95 % intervals. Dotted: guessing." + (" Hollow: a limit is not met." if record.limited else "")
    drawn = [(svg, what) for what in ("auc", "tpr_at_1pct") if (svg := curve(record, what))]  # type: ignore[arg-type]
    return tuple(figure(svg, (read,)) for svg, _ in drawn) or (prose("No number can be estimated, so there is nothing to draw."),)


def _table(record: SweepRecord) -> Section:
    limit = lambda p: Cell("met" if p.passed else f"{sum(not gate.passed for gate in p.gates)} of {len(p.gates)} failed")
    gated = (Column(("Limits",), "Whether every limit is met.", 2, limit, look="left"),) if record.limited else ()
    against = lambda p: difference_cell(p.difference.auc) if p.difference else Cell("-")
    part = "On the test part." if record.chosen_on == "calibrate" else "On all {several}."
    steps = Column(("Step",), f"From {record.step_source}.", 1, lambda p: Cell(count(p.step)))
    before = Column(("AUC difference", "to the one before"), "On the same {several}, paired.", 4, against)
    columns = (
        *((steps,) if record.step_source else ()),
        Column(("AUC",), f"{part} In brackets: 95 % interval.", 1, lambda p: estimate_cell(p.auc)),
        Column(("TPR at", "1 % FPR"), part, 3, lambda p: rate_cell(p.tpr_at_1pct)),
        *((before,) if len(record.points) > 1 else ()),
        Column(("Attack",), f"The strongest on {_chosen_on(record)}.", 2, lambda p: Cell(visible(p.attack)), look="left"),
        *gated,
    )
    last, unit = record.last_passing, _unit(record)
    made: Table = tabulate(record.points, columns, lambda p: (p.name, p.checkpoint, p.name == last), unit)
    few = record.chosen_on == "calibrate" and min(record.members, record.nonmembers) < SMALL_SIDE
    said = ("A row per checkpoint. Small print: 95 % intervals.", *medians(REPEATS if few else 1))
    caption = " ".join((*said, "Marked: the last within every limit.") if last else said)
    return Section("checkpoints", "Checkpoints", (Tabulated(made, caption, "Checkpoint"), *_failed(record)), "Checkpoints", "Checkpoints")


def _failed(record: SweepRecord) -> tuple[Block, ...]:
    """The limits that the last checkpoint does not meet."""
    last = record.points[-1]
    said = tuple(f"{visible(last.name)}: {sentence(gate)}" for gate in last.gates if not gate.passed)
    return (Sentences(said, tuple("failed" for _ in said)),) if said else ()
