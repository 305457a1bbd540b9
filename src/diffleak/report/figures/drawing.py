"""The style that all figures share, histograms, and inline SVG: same record, same bytes; ids that do not clash."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from diffleak.report.figures.keys import HELD_OUT, MEMBERS

COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#8C6D1F", "#56B4E9", "#444444")

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


def edges(values: Float64[np.ndarray, " n"], bins: int) -> Sequence[float]:
    """The edges of a histogram, which a few extreme values do not move, so that they do not flatten the rest."""
    low, high = np.quantile(values, [0.005, 0.995])
    if not high > low:
        low, high = low - 0.05 * max(1.0, abs(low)), high + 0.05 * max(1.0, abs(high))
    return np.linspace(low, high, bins + 1).tolist()  # type: ignore[no-any-return]


def bars(axes: Axes, ends: Sequence[float], filled: Float64[np.ndarray, " n"], outlined: Float64[np.ndarray, " m"]) -> None:
    """Draws two histograms, in percent of each; the outermost bars hold all that lies beyond them."""
    share = lambda values: 100 * np.histogram(np.clip(values, ends[0], ends[-1]), ends)[0] / len(values)
    axes.stairs(share(filled), ends, fill=True, color=MEMBERS, alpha=0.45)
    if len(outlined):
        axes.stairs(share(outlined), ends, color=HELD_OUT, linewidth=1.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda percent, _: f"{percent:g} %"))
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.01)


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
