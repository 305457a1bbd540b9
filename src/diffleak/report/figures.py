"""The figures of the report as inline SVG: same record, same bytes; ids that do not clash; no text of the user's in them.

Names of attacks are set in HTML beside the figures (`styles` says how each is drawn), where they wrap and can be read.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from diffleak.errors import visible
from diffleak.records.audit import Result
from diffleak.records.scores import Samples
from diffleak.report.selection import attack_of
from diffleak.stats.metrics import tpr_at_fpr

# Okabe and Ito's palette, which the colour-blind can tell apart; dashes say the same without colour.
LEAD, MEMBERS, HELD_OUT, GUESS = "#0072B2", "#0072B2", "#D55E00", "#767676"
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#8C6D1F", "#56B4E9", "#444444")
DASHES = ((6.0, 2.0), (2.0, 1.5), (7.0, 2.0, 1.5, 2.0), (10.0, 3.0), (4.0, 1.5, 1.5, 1.5, 1.5, 1.5), (1.0, 1.0))
SHIFTS = (0, 2, 4, 1, 3, 5)  # of the dashes of an attack's masked forms
BAND_POINTS = 12
CURVE_POINTS = 240  # more is not visible, and 50,000 images would make the file heavy
MOST_BINS = 36

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, in the reader's font
    "svg.hashsalt": "diffleak",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the layout is the same on every machine
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": "#1f2328",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "figure.constrained_layout.use": True,
}

Sample = Float64[np.ndarray, " _"]  # the two sides differ in size


class LineStyle(NamedTuple):
    """How an attack is drawn everywhere, named as matplotlib does; dashes are in line widths, empty = solid."""

    color: str
    linewidth: float
    dashes: tuple[float, ...]


def styles(results: Sequence[Result], lead: str | None) -> dict[str, LineStyle]:
    """A style per result; `lead` is the thick solid line. An attack and its masked forms share a colour, not their dashes."""
    leading = next((attack_of(r) for r in results if r.attack == lead), None)
    attacks = list(dict.fromkeys(attack_of(r) for r in results if attack_of(r) != leading))
    drawn: dict[str, LineStyle] = {}
    variants: Counter[str] = Counter()
    for r in results:
        attack = attack_of(r)
        i, variant = (0 if attack == leading else attacks.index(attack)), SHIFTS[variants[attack] % 6]
        variants[attack] += 1
        # The dashes shift by one each time the colours have come round, so that 36 attacks are told apart.
        style = LineStyle(LEAD if attack == leading else COLOURS[i % 6], 1.5, DASHES[(i + i // 6 + variant) % 6])
        drawn[r.attack] = LineStyle(LEAD, 2.6, ()) if r.attack == lead else style
    return drawn


def roc(results: Sequence[Result], samples: Samples, lead: str | None) -> str | None:
    """TPR against FPR of the test part on log-log axes, the lead with its 95 % band; None where there are no scores."""
    sides = {r.attack: finite_sides(samples, r.attack) for r in results}
    sides = {attack: pair for attack, pair in sides.items() if len(pair[0]) and len(pair[1])}
    if not sides:
        return None
    lowest = 1 / max(len(pair[1]) for pair in sides.values())
    drawn = styles(results, lead)
    with settings():
        figure, axes = canvas(5.0, 4.6)
        axes.plot([lowest, 1], [lowest, 1], color=GUESS, linewidth=1.2, dashes=(1, 2))
        if lead in sides:
            grid, low, high = _band(*sides[lead])
            axes.fill_between(grid, np.maximum(low, lowest), np.maximum(high, lowest), color=LEAD, alpha=0.16, linewidth=0)
        for attack in sorted(sides, key=lambda a: a == lead):  # the lead is drawn last, on top
            fpr, tpr = _curve(*sides[attack])
            style = drawn[attack]
            axes.plot(fpr, np.where(tpr > 0, tpr, np.nan), drawstyle="steps-post", **style._asdict())
        axes.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.03))
        axes.set(xlabel="false alarms among held-out images (FPR)", ylabel="members caught (TPR)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(10))
            axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %"))
            axis.set_minor_formatter(NullFormatter())
        title = "ROC curves of all attacks on the test part, both axes logarithmic: members caught against false alarms"
        return svg(figure, "roc", title)


def timesteps(results: Sequence[Result], lead: str | None) -> str | None:
    """AUC against timestep on the calibrate part, the chosen timestep marked; None where nothing was swept."""
    swept = [r for r in results if r.per_timestep and r.timestep is not None]
    if not swept:
        return None
    drawn = styles(results, lead)
    with settings():
        figure, axes = canvas(5.0, 3.7)
        axes.axhline(0.5, color=GUESS, linewidth=1.2, dashes=(1, 2))
        for result in sorted(swept, key=lambda r: r.attack == lead):
            _plot_sweep(axes, result, drawn[result.attack])
        low, high = axes.get_ylim()
        axes.set(xlabel="timestep", ylabel="AUC on the calibrate part", ylim=(min(low, 0.47), max(high, 0.58)))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        title = "AUC of every attack on the calibrate part against timestep; a dot marks the chosen timestep"
        return svg(figure, "timesteps", title)


def _plot_sweep(axes: Axes, result: Result, style: LineStyle) -> None:
    points = sorted((p.timestep, p.auc) for p in result.per_timestep if p.timestep is not None)
    x, y = [timestep for timestep, _ in points], [auc for _, auc in points]
    marker = "." if len(points) == 1 else None
    axes.plot(x, y, marker=marker, **style._asdict())
    chosen = [point for point in points if point[0] == result.timestep]
    dot: dict[str, Any] = {"markersize": 8, "markeredgecolor": "white", "zorder": 5}
    axes.plot([timestep for timestep, _ in chosen], [auc for _, auc in chosen], "o", color=style.color, **dot)


def histogram(samples: Samples, result: Result, name: str, small: bool) -> str | None:
    """The scores of members (filled) and held-out images (line) on the test part; None where there are none.

    The outermost bars hold all that lies beyond them, so that a few extreme scores do not flatten the rest.
    """
    members, nonmembers = finite_sides(samples, result.attack)
    if not len(members) or not len(nonmembers):
        return None
    low, high = np.quantile(np.concatenate([members, nonmembers]), [0.005, 0.995])
    if not high > low:
        low, high = low - 0.05 * max(1.0, abs(low)), high + 0.05 * max(1.0, abs(high))
    bins = int(np.clip(2 * np.sqrt(min(len(members), len(nonmembers))), 10, MOST_BINS))
    edges = np.linspace(low, high, bins + 1)
    share = lambda scores: 100 * np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0] / len(scores)
    with settings():
        figure, axes = canvas(3.4, 2.2) if small else canvas(5.0, 3.4)
        axes.stairs(share(members), edges, fill=True, color=MEMBERS, alpha=0.45)
        axes.stairs(share(nonmembers), edges, color=HELD_OUT, linewidth=1.8)
        threshold = result.asr.threshold
        if threshold is not None and edges[0] < threshold < edges[-1]:
            axes.axvline(threshold, color="#1f2328", linewidth=1.2, dashes=(4, 2))
        axes.xaxis.set_major_locator(MaxNLocator(3 if small else 5))
        axes.yaxis.set_major_locator(MaxNLocator(3 if small else 5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda percent, _: f"{percent:g} %"))
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.01)
        if not small:
            axes.set(xlabel="membership score (higher = more likely a member)", ylabel="share of images")
        title = f"Histogram of the scores of {visible(result.attack)} on the test part: members against held-out images"
        return svg(figure, name, title)


def finite_sides(samples: Samples, attack: str) -> tuple[Sample, Sample]:
    """(members, nonmembers) of the test part without scores that are no numbers; empty for an unknown attack."""
    if attack not in samples.scores:
        return np.empty(0), np.empty(0)
    members, nonmembers = samples.sides(attack)
    return members[np.isfinite(members)], nonmembers[np.isfinite(nonmembers)]


def _curve(members: Sample, nonmembers: Sample) -> tuple[Sample, Sample]:
    """The exact ROC at the FPRs k / N, k spaced evenly on the logarithmic axis, as in the table: the TPR with at most k false alarms."""
    n = len(nonmembers)
    k = np.unique(np.geomspace(1, n, CURVE_POINTS).round().astype(int))
    k = k[k < n]
    thresholds = np.sort(nonmembers)[n - 1 - k]
    tpr = 1 - np.searchsorted(np.sort(members), thresholds, side="right") / len(members)
    return np.append(k / n, 1.0), np.append(tpr, 1.0)


def _band(members: Sample, nonmembers: Sample) -> tuple[Sample, Sample, Sample]:
    """FPRs from the smallest estimable one up, and the pointwise 95 % interval of the TPR at each."""
    n = len(nonmembers)
    k = np.unique(np.geomspace(1, max(1, 0.9 * n), BAND_POINTS).round().astype(int))
    rates = [tpr_at_fpr(members, nonmembers, int(i) / n) for i in k if i < n]
    fpr, low, high = (np.array([getattr(rate, key) for rate in rates], dtype=np.float64) for key in ("fpr", "low", "high"))
    return fpr, low, high


@contextmanager
def settings() -> Iterator[None]:
    """Our style on top of matplotlib's own defaults, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element for HTML, its ids prefixed with `name`, without the metadata of a file."""
    figure.patch.set_alpha(0)
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    head, body = text.split(">", 1)
    box = "".join(re.findall(r'viewBox="[^"]*"', head))
    return f'<svg {box} role="img" aria-label="{escape(label)}">{body}'
