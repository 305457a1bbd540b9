"""The histograms of the scores of prompts."""

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from diffleak.records.prompts import PromptsRecord, Statistic
from diffleak.report.figures.drawing import bars, canvas, edges, settings, svg
from diffleak.report.sections.prompts import STATISTICS

BINS = 24


def histogram(record: PromptsRecord, name: Statistic) -> str:
    """One statistic of the memorised (filled) and the ordinary prompts (line); of all, filled, where there are no lists."""
    of = lambda wanted: np.array([getattr(row, name) for row in record.prompts if wanted(row.memorised)], dtype=np.float64)
    filled, line = of(lambda memorised: memorised is not False), of(lambda memorised: memorised is False)
    with settings():
        figure, axes = canvas(4.4, 2.8)
        bars(axes, edges(np.concatenate([filled, line]), BINS), filled, line)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set(xlabel=STATISTICS[name].title, ylabel="share of prompts")
        what = "memorised against ordinary prompts" if len(line) else "all prompts"
        return svg(figure, name, f"Histogram of the {STATISTICS[name].title.lower()}: {what}")
