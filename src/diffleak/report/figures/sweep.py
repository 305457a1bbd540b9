"""The figures of a sweep: leak against training step, with 95 % intervals."""

from collections.abc import Sequence
from typing import Literal

from matplotlib.ticker import FuncFormatter

from diffleak.records.sweep import SweepRecord
from diffleak.report.figures.drawing import canvas, settings, svg
from diffleak.report.figures.keys import GUESS, HELD_OUT, LEAD


def curve(record: SweepRecord, what: Literal["auc", "tpr_at_1pct"]) -> str | None:
    """AUC, or TPR at 1 % FPR in percent, against the step; checkpoints that fail a limit are hollow. None with nothing to draw."""
    scale = 1 if what == "auc" else 100
    known = [(p.step, estimate, p.passed) for p in record.points if (estimate := getattr(p, what)).value is not None]
    if not known:
        return None
    with settings():
        figure, axes = canvas(6.4, 3.4)
        axes.axhline(0.5 if what == "auc" else 1.0, color=GUESS, linewidth=1.2, dashes=(1, 2))
        axes.plot([step for step, _, _ in known], [scale * (e.value or 0) for _, e, _ in known], color=LEAD, linewidth=2.2)
        for step, e, passed in known:
            if e.low is not None and e.high is not None:
                axes.plot([step, step], [scale * e.low, scale * e.high], color=LEAD, linewidth=1.6, solid_capstyle="butt")
            edge, fill = (HELD_OUT, "white") if passed is False else (LEAD, LEAD)
            axes.plot([step], [scale * (e.value or 0)], "o", color=edge, markerfacecolor=fill, markersize=7)
        axes.set(xlabel="Training step", ylabel="AUC" if what == "auc" else "TPR at 1 % FPR")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        if what != "auc":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda percent, _: f"{percent:g} %"))
        _room(axes, [scale * x for _, e, _ in known for x in (e.low, e.high, e.value) if x is not None], what)
        return svg(figure, f"sweep-{what}", f"{'AUC' if what == 'auc' else 'TPR at 1 % FPR'} of each checkpoint against its training step")


def _room(axes: object, values: Sequence[float], what: str) -> None:
    """Keeps the axis of the numbers from magnifying what is close to guessing."""
    low, high = (min(*values, 0.45), max(*values, 0.65)) if what == "auc" else (0.0, max(*values, 5.0))
    axes.set_ylim(low - 0.02 * (high - low), high + 0.05 * (high - low))  # type: ignore[attr-defined]
