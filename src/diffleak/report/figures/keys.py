"""The keys of figures: the style of a line, and the samples of lines and bars that stand beside names, where these can be read."""

from collections.abc import Iterable
from typing import NamedTuple

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.report.section import breakable

# Okabe and Ito's palette, which the colour-blind can tell apart; dashes say the same without colour.
LEAD, MEMBERS, HELD_OUT, GUESS = "#0072B2", "#0072B2", "#D55E00", "#767676"
BAND, BAND_LINE, CHOSEN = "#b8b0a2", "#7d7364", "#1f2328"


class LineStyle(NamedTuple):
    """The style of an attack in all figures, named as matplotlib does; dashes are in line widths, empty = solid."""

    color: str
    linewidth: float
    dashes: tuple[float, ...]


class Key(NamedTuple):
    """A sample and its name."""

    sample: Markup
    name: str
    strong: bool = False


def _sample(inner: str) -> Markup:
    return Markup(f'<svg class="sample" viewBox="0 0 34 10" aria-hidden="true">{inner}</svg>')


def _stroke(ends: str, color: str, width: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line {ends} stroke="{color}" stroke-width="{width}"{dashed}/>'


ACROSS, UPRIGHT = 'x1="1" y1="5" x2="33" y2="5"', 'x1="17" y1="0" x2="17" y2="10"'


def line(style: LineStyle) -> Markup:
    """A piece of a line."""
    return _sample(_stroke(ACROSS, style.color, style.linewidth, "".join(f"{dash * style.linewidth} " for dash in style.dashes)))


GUESSING = Key(_sample(_stroke(ACROSS, GUESS, 1.2, "1.2 2.4")), "guessing")


def lines(styles: Iterable[tuple[str, LineStyle]], strong: str | None = None) -> list[Key]:
    """Attacks and guessing."""
    return [*(Key(line(style), breakable(visible(name)), name == strong) for name, style in styles), GUESSING]


def sides(filled: str, outlined: str, threshold: bool = False) -> list[Key]:
    """The two sides of a histogram, and its threshold."""
    bars = [
        Key(_sample(f'<rect x="1" y="0" width="32" height="10" fill="{MEMBERS}" opacity=".45"/>'), filled),
        Key(_sample(f'<path d="M1 9V3H17V6H33" fill="none" stroke="{HELD_OUT}" stroke-width="1.8"/>'), outlined),
    ]
    return [*bars, Key(_sample(_stroke(UPRIGHT, CHOSEN, 1.4, "4 2")), "threshold set on the calibrate part")] if threshold else bars


def band(name: str) -> Key:
    """A shaded band around a mean."""
    area = f'<rect x="1" y="0" width="32" height="10" fill="{BAND}" opacity=".5"/>'
    return Key(_sample(area + _stroke(ACROSS, BAND_LINE, 1.2)), name)


def chosen(name: str) -> Key:
    """An upright line at a chosen value."""
    return Key(_sample(_stroke(UPRIGHT, CHOSEN, 1.2, "4 2")), name)


def dot(number: int, color: str) -> Markup:
    """A numbered dot."""
    return Markup('<span class="number-dot" style="background:{}">{}</span>').format(color, number)
