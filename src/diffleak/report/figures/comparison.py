"""The figures of a comparison: differences as bars of HTML, where names can be read, and privacy against quality as SVG."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from diffleak.errors import visible
from diffleak.records.base import Estimate
from diffleak.records.comparison import Comparison
from diffleak.report.figures.drawing import COLOURS, canvas, settings, svg
from diffleak.report.figures.keys import GUESS, LEAD
from diffleak.report.sections.comparison.verdict import QUALITY, artefact
from diffleak.report.wording import signed, signed_interval

NARROWEST = 0.05  # the axis of differences reaches at least this far


class Bar(NamedTuple):
    """One difference with its interval; positions are percent of the axis."""

    name: str
    note: str
    text: str
    at: float
    low: float
    width: float
    lowers: bool


class Group(NamedTuple):
    """The differences of one attack, or of the worst ones."""

    title: str
    worst: bool
    bars: tuple[Bar, ...]


class Forest(NamedTuple):
    """All AUC differences on one axis; `zero` and `ticks` are positions in percent."""

    groups: tuple[Group, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]
    unknown: int


def forest(record: Comparison) -> Forest | None:
    """The differences of the strongest attacks, then of each attack; None where none has an interval."""
    rows = [("The strongest attacks", True, e.name, e.worst.attack, e.worst.difference) for e in record.entries[1:]]
    for attack in record.attacks:
        for e in record.entries[1:]:
            of_run = lambda r, e=e: artefact(r.run) if len(e.runs) > 1 else ""
            rows += [(attack, False, e.name, of_run(r), r.difference) for r in e.results if r.attack == attack]
    drawn = [(title, worst, name, note, d.auc) for title, worst, name, note, d in rows if d and d.auc.low is not None]
    if not drawn:
        return None
    ends = [x for *_, e in drawn for x in (e.low, e.high, e.value) if x is not None]
    low, high = min(*ends, -NARROWEST), max(*ends, NARROWEST)
    place = lambda x: 2 + 96 * (x - low) / (high - low)
    groups: dict[tuple[str, bool], list[Bar]] = {}
    for title, worst, name, note, estimate in drawn:
        groups.setdefault((title, worst), []).append(_bar(name, note, estimate, place))
    ticks = tuple((place(x), signed(x).rstrip("0").rstrip(".") if x else "0") for x in _ticks(low, high))
    shown = tuple(Group(visible(title), worst, tuple(bars)) for (title, worst), bars in groups.items())
    return Forest(shown, place(0.0), ticks, len(rows) - len(drawn))


def _bar(name: str, note: str, estimate: Estimate, place: Any) -> Bar:
    value, low, high = estimate.value or 0.0, estimate.low or 0.0, estimate.high or 0.0
    text = f"{signed(value)} {signed_interval(estimate)}"
    return Bar(visible(name), visible(note), text, place(value), place(low), place(high) - place(low), high < 0)


def _ticks(low: float, high: float) -> Sequence[float]:
    """Round numbers inside the axis, at most five, 0 among them."""
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / s <= 4)
    return [round(k * step, 2) for k in range(int(low / step), int(high / step) + 1)]


class Point(NamedTuple):
    """An entry in the scatter: its number there, name, colour, and both coordinates in words."""

    number: int
    name: str
    color: str
    quality: str
    privacy: str


def points(record: Comparison) -> tuple[Point, ...]:
    """The entries that have a quality and an AUC, the baseline first."""
    metric = record.quality_metric
    found: list[Point] = []
    for e in record.entries if metric else ():
        x, y = e.quality.metric(metric) if e.quality and metric else None, e.worst_result.auc
        if metric and x and x.value is not None and y.value is not None:
            ends = f" [{y.low:.3f}, {y.high:.3f}]" if y.low is not None and y.high is not None else ""
            color = LEAD if not found else COLOURS[(len(found) - 1) % len(COLOURS)]
            found.append(Point(len(found) + 1, visible(e.name), color, f"{QUALITY[metric]} {x.value:.4g}", f"AUC {y.value:.3f}{ends}"))
    return tuple(found)


def scatter(record: Comparison) -> str | None:
    """The worst AUC against the quality metric, numbered as `points`; None where there is nothing to compare."""
    metric, named = record.quality_metric, {p.name: p for p in points(record)}
    if metric is None or len(named) < 2:
        return None
    with settings():
        figure, axes = canvas(5.0, 4.0)
        axes.axhline(0.5, color=GUESS, linewidth=1.2, dashes=(1, 2))
        for e in record.entries:
            point, x = named.get(visible(e.name)), e.quality.metric(metric) if e.quality else None
            if point and x:
                _dot(axes, point, x, e.worst_result.auc)
        low, high = axes.get_ylim()
        axes.set(ylim=(min(low, 0.47), min(1.03, max(high, 0.58))), xlabel=f"{QUALITY[metric]} (lower = better images)")
        axes.set(ylabel="AUC of the strongest attack")
        axes.margins(x=0.12)
        return svg(figure, "privacy-quality", f"AUC of the strongest attack against {QUALITY[metric]}, a numbered dot per entry")


def _dot(axes: Axes, point: Point, x: Estimate, y: Estimate) -> None:
    """An entry's number in a dot, with the intervals of both coordinates."""
    line: dict[str, Any] = {"color": point.color, "linewidth": 2.0, "solid_capstyle": "butt"}
    across, up = x.value or 0.0, y.value or 0.0
    if y.low is not None and y.high is not None:
        axes.plot([across, across], [y.low, y.high], **line)
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [up, up], **line)
    axes.plot([across], [up], "o", color=point.color, markersize=15, markeredgecolor="white", zorder=5)
    axes.annotate(str(point.number), (across, up), color="white", ha="center", va="center", zorder=6)
