"""The figures of a comparison: all differences in AUC on one axis, and attacks against the quality of the images."""

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.records.comparison import Comparison
from diffleak.report.section import Block, Section, breakable, drawn, figure, prose
from diffleak.report.sections.comparison.verdict import QUALITY
from diffleak.report.wording import count


def differences(record: Comparison) -> Section:
    """A bar per difference."""
    return Section("forest", f"Differences to {visible(record.baseline.name)}", (), "Differences", later=lambda: _bars(record))


def _bars(record: Comparison) -> tuple[Block, ...]:
    from diffleak.report.figures.comparison import forest

    found = forest(record)
    if found is None:
        return (prose("No difference has an interval, so there is nothing to draw; the tables say why.", ""),)
    read = (
        f"AUC of each entry minus that of {visible(record.baseline.name)}, on the same images, with 95 % intervals. Left of the dotted "
        "line the attack does worse on the entry; blue: the whole interval is left of it. An interval that crosses the line leaves open "
        "whether there is a difference."
    )
    missing = prose(f"Not drawn: {count(found.unknown)} without an interval; the tables say why.", "muted")
    return prose(read), drawn("forest", forest=found), *((missing,) if found.unknown else ())


HOW_TO_QUALITY = "diffleak quality MODEL --real HELDOUT --training TRAIN -o RUN"


def quality(record: Comparison) -> Section:
    """A dot per entry that has a quality; or how to measure it."""
    return Section("quality", "Attacks against quality", (), "Quality", later=lambda: _scatter(record))


def _scatter(record: Comparison) -> tuple[Block, ...]:
    from diffleak.report.figures import keys
    from diffleak.report.figures.comparison import points, scatter

    svg, shown = scatter(record), points(record)
    if svg is None:
        return _nothing(record.quality_reason or "fewer than two entries have both numbers")
    listed = [keys.Key(keys.dot(p.number, p.color), breakable(p.name) + f": {p.quality}, {p.privacy}") for p in shown]
    first = next(e.quality for e in record.entries if e.quality)
    read = (
        "The lower a dot, the worse the attack does; the further left, the closer the images are to real ones. A good defence is low "
        "without moving far to the right. Lines are 95 % intervals where there are any. "
        f"{QUALITY.get(record.quality_metric or '', '')} of {count(first.images)} generated images, features of {visible(first.extractor)}."
    )
    missing = prose("Entries without a quality.json are not in the figure.", "prose muted")
    drawn_all = len(shown) == len(record.entries)
    return figure(svg, (read,), [*listed, keys.GUESSING]), *(() if drawn_all else (missing,))


def _nothing(reason: str) -> tuple[Block, ...]:
    why = (
        f"There is nothing to plot: {visible(reason)}. A defence that ruins the images protects nothing worth having, so measure the "
        "image quality of each entry, with the same extractor and number of images:"
    )
    where = Markup(
        "It leaves quality.json in the run folder, where this comparison finds it; <code>--quality NAME=FILE</code> names one elsewhere."
    )
    return prose(why), drawn("code", text=HOW_TO_QUALITY), prose(where, "prose muted")
