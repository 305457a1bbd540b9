"""The sections of the report on training images that a model gives back."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from diffleak.errors import one_or_more, visible
from diffleak.records.base import Estimate
from diffleak.records.extraction import FILE, PAIRS, TILES, CopyRates, ExtractionRecord, Pair
from diffleak.report.audited import not_shown
from diffleak.report.judgement import Verdict
from diffleak.report.media.html import data_uri
from diffleak.report.section import Block, Section, Sentences, Tabulated, drawn, prose
from diffleak.report.sections import device, fingerprinted, of_images, of_model, versions
from diffleak.report.table import Cell, Column, missing, tabulate
from diffleak.report.wording import count, duration, interval, percent, spoken

ALPHA = 0.025  # one-sided
SHOWN = 24  # pairs on a page
PRINTED = 8  # pairs in a terminal


@dataclass(frozen=True, eq=False)
class Pictures:
    """PNGs of members by id, and of drawings by number; both are private, and shown with --thumbnails only."""

    member: Callable[[str], bytes]
    drawing: Callable[[int], bytes]


def verdict(record: ExtractionRecord, public: bool = False) -> Verdict:
    """States whether more members than chance explains are drawn; never that none can be. public: without what names an image."""
    rates, closest = record.decisive, _closest(record, public)
    look = () if public else ("Look at the first pairs: a pair that shows the same picture is a finding, whatever the rate is.",)
    by = f"by {_name(rates)}"
    if rates.copies is None or rates.chance is None:
        if record.held_out is None:
            title, why = (
                "Undecided: it was measured how close drawings come to the training images, but not how close they come by chance.",
                "No rate",
            )
        else:
            title, why = (
                "Undecided: there are too few held-out images to say how close a drawing comes to a picture by chance.",
                f"No rate: {visible(rates.copy_rate.reason or '')}",
            )
        if record.held_out is None:
            why += ": no held-out images were given; their distances to the nearest drawings would show how close drawings come by chance"
        return Verdict("undecided", title, (f"{why}.", closest, *look))
    value, said = spoken(rates.copy_rate)
    have = "has" if rates.copies == 1 else "have"
    size = f"{count(rates.copies)} of {_members(record)} {have} a copy, {value} (95 % interval {said}): measured {by}, a member with a "
    size += f"copy is closer to a drawing than {100 * (1 - record.false_copies):g} % of the held-out images are."
    beside = _beside(rates)
    chance = (
        "If the model drew members no more closely than held-out images, as many copies or more would be counted by chance with a "
        f"probability of {rates.chance:.2g}."
    )
    if rates.chance < ALPHA:
        if not rates.copy_rate.low:
            chance += " The interval begins at 0 because few held-out images set the threshold; this probability takes that into account."
        return Verdict("leak", "The model reproduces training images.", (size, f"{beside} {chance}", closest, *look))
    high = rates.copy_rate.high or 0.0
    bound = f"These drawings rule out that more than {percent(high)} of the members have a copy; fewer may have one."
    bound = bound if high < 1 else "With so few held-out images no share of copies is ruled out."
    title = "No more copies of members were found than chance explains."
    return Verdict("no-leak-found", title, (size, f"{beside} {chance} {bound}", closest, *look))


def _members(record: ExtractionRecord) -> str:
    """How many members count."""
    if record.distinct_members in (None, record.members.n):
        return one_or_more(record.members.n, "member")
    return f"{one_or_more(record.distinct_members or 0, 'member')} (near-duplicates counted once)"


def _beside(rates: CopyRates) -> str:
    if rates.held_out_rate.value is None:
        return f"The rate of other held-out images could not be counted ({visible(rates.held_out_rate.reason or '')})."
    value, said = spoken(rates.held_out_rate)
    return f"Some held-out images set how close a copy must be; of the others, {value} ({said}) have a copy."


def _closest(record: ExtractionRecord, public: bool) -> str:
    first, other = record.pairs[0], record.decisive.closest_held_out
    if public:
        held_out = "" if other is None else f", the closest held-out image at {other:.3f}"
        return f"The closest member lies at a distance of {record.decisive.closest:.3f} from its nearest drawing{held_out}."
    beside = "" if other is None else f"; the held-out image closest to a drawing lies at {other:.3f}"
    return f"The closest pair is the member {visible(first.id)} at a distance of {record.decisive.closest:.3f}{beside}."


def _name(rates: CopyRates) -> str:
    return "tiled pixel distance" if rates.distance == TILES else f"features of {visible(rates.distance)}"


def rates(record: ExtractionRecord) -> Section:
    """A row per distance: copies among members, and false ones among held-out images."""
    where = "its own caption's drawings" if record.draws else "all drawings"
    meaning = (
        f"An image has a copy if its distance to the nearest of {where} is below the threshold. {count(record.calibrate)} held-out "
        f"images set the threshold: {percent(record.false_copies)} of such images lie below it. The column of held-out images "
        "is about the others. In brackets: 95 % intervals."
    )
    decides = "" if len(record.distances) == 1 else f" The first distance, {_name(record.decisive)}, says which pairs are copies."
    if record.decisive.threshold is None:
        why = "No held-out images were given" if record.held_out is None else "There are too few held-out images"
        meaning, decides = f"{why}, so no threshold says which distances are copies. Each distance is to the nearest of {where}.", ""
    chance = lambda r: Cell("-" if r.chance is None else f"{r.chance:.2g}")
    columns = (
        Column(("Members", "with a copy"), "", 1, lambda r: _rate_cell(r.copy_rate)),
        Column(
            ("Held-out images",),
            "The same rate of images that the model was not trained on: false copies.",
            2,
            lambda r: _rate_cell(r.held_out_rate),
        ),
        Column(("Chance",), "Probability of as many copies or more if the model treats members like held-out images.", 3, chance),
        Column(("Threshold",), "", 4, lambda r: Cell("-" if r.threshold is None else f"{r.threshold:.3f}")),
        Column(("Closest", "member"), "", 5, lambda r: Cell(f"{r.closest:.3f}")),
        Column(("Closest", "held out"), "", 6, lambda r: Cell("-" if r.closest_held_out is None else f"{r.closest_held_out:.3f}")),
    )
    rows = tabulate(record.distances, columns, lambda r: (_name(r), "decides" if r is record.decisive and decides else "", False))
    return Section("rates", "Copies among members", (Tabulated(rows, meaning + decides, "Distance"),), "Rates", "Copies")


def _rate_cell(rate: Estimate) -> Cell:
    return missing(rate.reason) if rate.value is None else Cell(percent(rate.value), (interval(rate, in_percent=True),))


def pairs(record: ExtractionRecord, pictures: Pictures | None) -> Section:
    """The closest pairs, each with the command that draws its drawing again."""
    shown = record.pairs[:SHOWN]
    what = f"The {count(len(shown))} closest of {count(len(record.pairs))} members, each with its nearest drawing, the most similar first."
    what = "The one member, with its nearest drawing." if len(record.pairs) == 1 else what
    what += f" {FILE} has all. Every model has such a list"
    what += "." if record.held_out is None else ": compare its distances with those of held-out images."
    private = "these are private training images, and perhaps copies of them"
    hidden: tuple[Block, ...] = (
        (not_shown(private, record.anonymous is not None), *_see(record))
        if pictures is None
        else (prose(f"The folder {PAIRS}/ has these pictures as files."),)
    )
    columns = (
        Column(("Distance",), "", 1, lambda p: Cell(f"{p.distances[record.decisive.distance]:.3f}")),
        Column(("p",), "", 3, lambda p: Cell("-" if p.p_value is None else f"{p.p_value:.2g}")),
        Column(("Copy",), "", 2, lambda p: Cell({True: "yes", False: "no", None: "-"}[p.is_copy])),
        Column(("Drawing",), "", 4, lambda p: Cell(str(p.image))),
    )
    printed = tabulate(record.pairs[:PRINTED], columns, lambda p: (p.id, "", False))
    blocks = (
        Tabulated(printed, first="Closest members", where="text"),
        prose(what),
        *hidden,
        drawn("copied", pairs=[_pair(record, pair, pictures) for pair in shown]),
    )
    return Section("pairs", "The closest pairs", blocks, "Pairs")


def _see(record: ExtractionRecord) -> tuple[Block, ...]:
    """The command that shows the pairs; none where their names are keyed, and of a search in Python."""
    if record.anonymous is not None or not record.command.startswith("diffleak extract "):
        return ()
    given = "--thumbnails" in shlex.split(record.command)
    command = visible(record.command if given else f"{record.command} --thumbnails")
    how = prose("To look at the pairs, repeat the command with this flag. Its drawings are kept, so nothing is drawn again:")
    line = f"The folder {PAIRS} has the pairs as images." if given else f"To look at the pairs: {command}"
    return (how, drawn("code", text=command), Sentences((line,), tone="small", where="terminal"))


def _pair(record: ExtractionRecord, pair: Pair, pictures: Pictures | None) -> dict[str, Any]:
    shown = (data_uri(pictures.member(pair.id)), data_uri(pictures.drawing(pair.image))) if pictures else None
    names = {rates.distance: _name(rates) for rates in record.distances}
    distances = "; ".join(f"{names[name]} {value:.3f}" for name, value in pair.distances.items())
    p = "" if pair.p_value is None else f", p = {pair.p_value:.2g}"
    same = "" if pair.counted_as is None else f"; a near-duplicate of {visible(pair.counted_as)}, which counts for both"
    number = f"{pair.image}, number {pair.draw + 1} of {record.draws} for this caption" if record.draws else f"{pair.image}"
    return {
        "id": visible(pair.id),
        "pictures": shown,
        "image": pair.image,
        "verdict": {True: "copy by the threshold", False: "no copy by the threshold", None: ""}[pair.is_copy],
        "distances": f"{distances}{p}{same}",
        "prompt": None if pair.prompt is None else visible(pair.prompt),
        "drawing": f"{number}, seed {pair.seed}" + ("" if pair.label is None else f", class {pair.label}"),
        "command": visible(record.reproduce(pair)),
    }


def made(record: ExtractionRecord) -> Iterator[tuple[str, str]]:
    """The settings, what they were used on, and what it took."""
    yield from of_model(record)
    captions, guidance = f"for each caption ({visible(record.captions or '')})", f"guidance {record.guidance_scale}"
    each = f", {count(record.draws)} {captions}, {guidance}" if record.draws else ""
    how = f"sampler {visible(record.sampler)}, {one_or_more(record.steps, 'step')}, seed {record.seed}"
    yield "Drawings", f"{count(record.images)} of {visible(record.image_shape)}{each}; {how}"
    if record.classes:
        yield "Classes", visible(record.classes)
    for rates in record.distances:
        yield "Distance", fingerprinted(_name(rates), rates.fingerprint)
    yield "Members", of_images(record.members)
    if record.held_out:
        alike = ((record.near_duplicates, "members"), (record.near_duplicates_held_out, "other held-out images"))
        said = (one_or_more(n, f"near-duplicate of {of} was left out", f"near-duplicates of {of} were left out") for n, of in alike if n)
        yield "Held-out images", Markup("; ").join((of_images(record.held_out), *said))
    costs = record.costs
    spent = f"this call drew for {duration(costs.seconds_drawing)} and compared for {duration(costs.seconds_comparing)}"
    read = (
        f", {one_or_more(costs.drawings_read, 'drawing read that was', 'drawings read that were')} drawn before"
        if costs.drawings_read
        else ""
    )
    yield "Cost", f"{count(costs.forwards)} forwards of one image each{read}; {spent}"
    yield "Device", device(record.environment)
    yield "Versions", versions(record.environment)
    yield "Record", f"{FILE}, schema version {record.schema_version}"
