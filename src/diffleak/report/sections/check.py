"""The sections of the page on a check of two sides."""

from collections.abc import Iterator

from diffleak.data.scan import FEWEST
from diffleak.errors import one_or_more, visible
from diffleak.records.check import CheckRecord, Needed, Side
from diffleak.report.judgement import Verdict, sources
from diffleak.report.section import Section, Sentences, Tabulated, drawn
from diffleak.report.table import NOT_ESTIMABLE, Cell, Column, tabulate
from diffleak.report.wording import count, percent
from diffleak.stats.blind import finding

SHOWN = 100  # pairs on a page
SIZES = 4  # shapes that are named
WHERE = {"across": "across the sides", "members": "members", "nonmembers": "held out"}


def verdict(record: CheckRecord) -> Verdict:
    """The answer: may these sides be audited, and what would such an audit see?"""
    blind = record.blind.model_copy(update={"labels_p_value": record.classes_p_value})
    sentences = (*(f"{visible(problem[:1].upper() + problem[1:])}." for problem in record.problems), _seen(record), sources(blind))
    if too_few(record):
        return Verdict("invalid", f"Too few images: an audit needs at least {FEWEST} on each side.", sentences)
    if record.duplicates.exact_across:
        return Verdict("invalid", "Not fair: an audit refuses two sides that share images.", sentences)
    if not record.valid:
        return Verdict("invalid", "Not fair: an audit of these two sides would be invalid.", sentences)
    if record.duplicates.near_across or finding(blind) != "alike":
        return Verdict("undecided", "These two sides can be audited, with a reservation.", sentences)
    return Verdict(
        "no-leak-found",
        "These two sides can be audited: no copies across them and no difference in pixel statistics were found.",
        sentences,
    )


FEWEST_FOR_TPR = 100  # held-out images to test on, of which 1 % is one


def too_few(record: CheckRecord) -> bool:
    """True where an audit would refuse the sides for their number, whatever else is wrong with them."""
    return min(record.members.distinct, record.nonmembers.distinct) < FEWEST


def _seen(record: CheckRecord) -> str:
    power, parts = record.power, []
    if power.auc is not None:
        parts.append(f"an AUC of {power.auc:.3f} or more")
    if power.tpr_at_1pct is not None:
        parts.append(f"a TPR of {percent(power.tpr_at_1pct)} or more at 1 % false alarms")
    of = f"{one_or_more(power.members, 'member')} and {one_or_more(power.nonmembers, 'held-out image')} to test on"
    if not parts:
        return f"With {of}, an audit detects even the largest leak with a probability below {power.probability:g}."
    unseen = f"; however large a TPR at 1 % false alarms is, it is detected with a probability below {power.probability:g}"
    if power.nonmembers < FEWEST_FOR_TPR:
        unseen = f"; the TPR at 1 % false alarms cannot be estimated, which takes {FEWEST_FOR_TPR} held-out images to test on"
    missing = "" if power.tpr_at_1pct is not None else unseen
    return f"With {of}, an audit detects {' and '.join(parts)} with probability {power.probability:g}{missing}."


def sides(record: CheckRecord) -> Section:
    """What was found on either side."""
    columns = (
        Column(("Images",), "All, also those that cannot be read.", 1, lambda s: Cell(count(s.images))),
        Column(("Distinct",), "Readable images, a cluster of near-duplicates counted as one.", 3, lambda s: Cell(count(s.distinct))),
        Column(("Unreadable",), "", 4, lambda s: Cell(count(s.images - s.readable))),
        Column(("Captions",), "Images that have one.", 2, lambda s: Cell(count(s.captions))),
        Column(("Labels",), "Images that have one.", 5, lambda s: Cell(count(s.labels))),
        Column(("Sizes",), "", 6, lambda s: Cell(_sizes(s)), look="left"),
    )
    rows = ((record.members, "members"), (record.nonmembers, "held out"))
    names = {id(side): name for side, name in rows}
    table = tabulate([side for side, _ in rows], columns, lambda side: (names[id(side)], side.source, False))
    one = bool(record.settings.get("split"))  # one data for both sides: its captions and labels are found once
    where = [
        f"{what} from {visible(place)} ({count(members)} of members, {count(nonmembers)} of held-out images)"
        for what, place, members, nonmembers in (
            ("captions", record.members.captions_from, record.members.captions, record.nonmembers.captions),
            ("labels", record.members.labels_from, record.members.labels, record.nonmembers.labels),
        )
        if one and place
    ] or [
        f"{what} of the {called} from {visible(place)}"
        for side, called in ((record.members, "members"), (record.nonmembers, "held-out images"))
        for what, place in (("captions", side.captions_from), ("labels", side.labels_from))
        if not one and place
    ]
    lines = (Sentences((f"Found: {'; '.join(where)}.",), tone="small", listed=False),) if where else ()
    return Section("sides", "The two sides", (Tabulated(table, "", "Side"), *lines), "Sides", brief="The two sides")


def _sizes(side: Side) -> str:
    named = ", ".join(f"{shape}: {count(n)}" for shape, n in side.shapes[:SIZES])
    return named + (f", and {one_or_more(len(side.shapes) - SIZES, 'other shape')}" if len(side.shapes) > SIZES else "")


def duplicates(record: CheckRecord) -> Section:
    """Counts of copies, and the pairs."""
    found = record.duplicates
    if not found.listed:
        said = "No image is a copy or a near-copy of another."
        return Section("duplicates", "Duplicates", (Sentences((said,), listed=False),), "Duplicates", brief="Duplicates")
    lines = (
        f"Across the sides, held-out images with exactly the pixels of a member: {count(found.exact_across)}; other near-duplicates of "
        f"members: {count(found.near_across)}.",
        f"On one side, exact copies: {count(found.exact_within)}; pairs of near-duplicates: {count(found.near_within)}.",
        f"Clusters: {count(found.clusters)}, with {count(found.clustered)} images. An audit counts a cluster as one image.",
    )
    columns = (
        Column(("Other image",), "", 1, lambda p: Cell(visible(p.second)), look="left"),
        Column(("Where",), "", 2, lambda p: Cell(WHERE[p.where]), look="left"),
        Column(("Distance",), "", 3, lambda p: Cell("exact" if p.exact else f"{p.distance:.3f}")),
    )
    head = lambda p: (p.first, "", False)
    table = lambda pairs: tabulate(pairs, columns, head)
    rest = found.listed - SHOWN
    more = f" The first {SHOWN} of {count(found.listed)} pairs; check.json has more." if rest > 0 else ""
    caption = f"Across the sides first, the closest first. Distance: 0 for copies, near 1 for images that have nothing in common.{more}"
    blocks = (
        Sentences(lines),
        Tabulated(table(found.pairs[:10]), caption, "Image", where="text", quoted=True),
        Tabulated(table(found.pairs[:SHOWN]), caption, "Image", where="page", quoted=True),
    )
    return Section("duplicates", "Duplicates", blocks, "Duplicates", brief="Duplicates")


def power(record: CheckRecord) -> Section:
    """What leaks of given sizes take."""

    def cell(needed: Needed) -> Cell:
        return Cell(NOT_ESTIMABLE, reason="more than a million") if needed.images is None else Cell(count(needed.images))

    columns = (Column(("Images on", "each side"), "This includes the images on which an audit chooses its settings.", 1, cell),)
    name = lambda n: (f"AUC {n.value:g}" if n.quantity == "AUC" else f"TPR {percent(n.value, 0)} at 1 % FPR", "", False)
    caption = (
        f"With so many images an audit detects a leak of this size with probability {record.power.probability:g}: the 95 % interval lies "
        "above what guessing gives. The rows of AUC are for a leak by which all members score a little higher; those of TPR for one by "
        "which a few members stand out, and the others do not."
    )
    rates = [each.images for each in record.power.needed if each.quantity != "AUC" and each.images is not None]
    if rates.count(fewest := min(rates, default=0)) > 1:
        caption += f" With fewer than {count(fewest)} the interval of a TPR begins at 0, however large the leak is."
    table = Tabulated(tabulate(record.power.needed, columns, name), caption, "Leak")
    return Section(
        "power",
        "How many images it takes",
        (Sentences((_seen(record),), listed=False), table),
        "Images needed",
        brief="How many images it takes",
    )


def unreadable(record: CheckRecord) -> Section | None:
    """The images that cannot be read; text has their number among the warnings."""
    if not record.unreadable:
        return None
    names = [visible(line) for line in record.unreadable[:SHOWN]]
    more = f"and {count(len(record.unreadable) - SHOWN)} more, see check.json" if len(record.unreadable) > SHOWN else ""
    return Section("unreadable", "Images that cannot be read", (drawn("names", names=names, more=more),), "Unreadable")


def made(record: CheckRecord) -> Iterator[tuple[str, str]]:
    """The data, and what looked at it."""
    yield "Members", visible(record.members.source)
    yield "Held out", visible(record.nonmembers.source)
    yield "Data fingerprint", record.data_fingerprint
    yield "Version", f"diffleak {visible(record.diffleak)}"
    yield "Record", f"check.json, schema version {record.schema_version}"
