"""The figures of an audit.

Names of attacks are set in HTML beside the figures (`styles` says how each is drawn), where they wrap and can be read.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from diffleak.errors import visible
from diffleak.records.audit import Result
from diffleak.records.scores import Samples
from diffleak.report.figures.drawing import COLOURS, bars, canvas, edges, settings, svg
from diffleak.report.figures.keys import CHOSEN, GUESS, LEAD, Key, LineStyle, lines
from diffleak.stats.metrics import tpr_at_fpr

DASHES = ((6.0, 2.0), (2.0, 1.5), (7.0, 2.0, 1.5, 2.0), (10.0, 3.0), (4.0, 1.5, 1.5, 1.5, 1.5, 1.5), (1.0, 1.0))
SHIFTS = (0, 2, 4, 1, 3, 5)  # of the dashes of an attack's masked forms
BAND_POINTS = 12
CURVE_POINTS = 240  # more is not visible, and 50,000 images would make the file heavy
MOST_BINS = 36

Sample = Float64[np.ndarray, " _"]  # the two sides differ in size


def styles(results: Sequence[Result], lead: str | None) -> dict[str, LineStyle]:
    """A style per result; `lead` is the thick solid line. An attack and its masked forms share a colour, not their dashes."""
    leading = next((r.base for r in results if r.attack == lead), None)
    attacks = list(dict.fromkeys(r.base for r in results if r.base != leading))
    drawn: dict[str, LineStyle] = {}
    variants: Counter[str] = Counter()
    for r in results:
        attack = r.base
        i, variant = (0 if attack == leading else attacks.index(attack)), SHIFTS[variants[attack] % 6]
        variants[attack] += 1
        # The dashes shift by one each time the colours have come round, so that 36 attacks are told apart.
        style = LineStyle(LEAD if attack == leading else COLOURS[i % 6], 1.5, DASHES[(i + i // 6 + variant) % 6])
        drawn[r.attack] = LineStyle(LEAD, 2.6, ()) if r.attack == lead else style
    return drawn


def key(results: Sequence[Result], listed: Sequence[Result], lead: str | None) -> list[Key]:
    """The key of the lines of all `results`, for those listed."""
    drawn = styles(results, lead)
    return lines([(r.attack, drawn[r.attack]) for r in listed], lead)


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
        title = "ROC curves of all attacks, both axes logarithmic: members caught against false alarms"
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
    """The scores of members (filled) and held-out images (line) on the test part; None where there are none."""
    members, nonmembers = finite_sides(samples, result.attack)
    if not len(members) or not len(nonmembers):
        return None
    bins = int(np.clip(2 * np.sqrt(min(len(members), len(nonmembers))), 10, MOST_BINS))
    ends = edges(np.concatenate([members, nonmembers]), bins)
    with settings():
        figure, axes = canvas(3.4, 2.2) if small else canvas(5.0, 3.4)
        bars(axes, ends, members, nonmembers)
        threshold = result.asr.threshold
        if threshold is not None:  # one beyond the outermost bars, which hold all that lies there, is drawn at their edge
            axes.axvline(float(np.clip(threshold, ends[0], ends[-1])), color=CHOSEN, linewidth=1.2, dashes=(4, 2))
        axes.xaxis.set_major_locator(MaxNLocator(3 if small else 5))
        axes.yaxis.set_major_locator(MaxNLocator(3 if small else 5))
        if not small:
            axes.set(
                xlabel="membership score (higher = more likely a member)",
                ylabel=f"share of {'groups' if samples.unit == 'group' else 'images'}",
            )
        title = f"Histogram of the scores of {visible(result.attack)}: members against held-out images"
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
