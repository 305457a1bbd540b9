"""All differences in AUC on one axis."""

from diffleak.errors import visible
from diffleak.records.comparison import Comparison
from diffleak.report.section import Block, Section, drawn, prose
from diffleak.report.wording import count


def section(record: Comparison) -> Section:
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
