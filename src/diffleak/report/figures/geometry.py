"""The figures of the geometry section, drawn as those of an audit are: no text of the user's in them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from diffleak.records.audit import AuditRecord, BandAt, Geometry, Quartile, Result
from diffleak.records.base import Estimate
from diffleak.report import selection
from diffleak.report.figures.audit import styles
from diffleak.report.figures.drawing import canvas, settings, svg
from diffleak.report.figures.keys import BAND, BAND_LINE, CHOSEN, GUESS, LineStyle

# From light to dark blue, and from thin to thick: the order is seen, also in grey. The lightest is 3 : 1 on white.
QUARTILES = (
    LineStyle("#6C9BD2", 1.4, (1.5, 1.2)),
    LineStyle("#3F7FBF", 1.8, (5.0, 1.5)),
    LineStyle("#1F5A99", 2.2, (7.0, 1.5, 1.5, 1.5)),
    LineStyle("#0B2545", 2.8, ()),
)
NAMES = ("lowest", "second", "third", "highest")
SIDEWAYS = 0.018  # between triangles, so that none hides another


class Sweep(NamedTuple):
    """An attack's AUC by the share of coordinates dropped, from 0, and with the most influential ones dropped instead."""

    attack: str
    ratios: tuple[float, ...]
    aucs: tuple[float, ...]
    reverse: tuple[float, float] | None


def quartile_curves(geometry: Geometry, timestep: int | None) -> str | None:
    """AUC against timestep by quartile over the band of random subsets; None where there are no curves."""
    curves = [(style_of(q), q) for q in geometry.quartiles if q.per_timestep and q.auc.value is not None]  # none of a handful
    if not curves:
        return None
    with settings():
        figure, axes = canvas(5.0, 4.0)
        axes.axhline(0.5, color=GUESS, linewidth=1.2, dashes=(1, 2))
        _fill_band(axes, geometry.band)
        if timestep is not None:
            axes.axvline(timestep, color=CHOSEN, linewidth=1.0, dashes=(4, 2))
        for style, quartile in curves:
            points = sorted((p.timestep, p.auc) for p in quartile.per_timestep if p.timestep is not None)
            marker = "." if len(points) == 1 else None
            axes.plot([timestep for timestep, _ in points], [auc for _, auc in points], marker=marker, **style._asdict())
        low, high = axes.get_ylim()
        axes.set(xlabel="timestep", ylabel="AUC", ylim=(min(low, 0.47), max(high, 0.58)))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return svg(figure, "quartiles", "AUC against timestep for the four quarters of images by distortion, and for random subsets")


def _fill_band(axes: Axes, band: Sequence[BandAt]) -> None:
    points = sorted(band, key=lambda b: b.timestep)
    x = [b.timestep for b in points]
    low, high = [b.mean - b.sd for b in points], [b.mean + b.sd for b in points]
    axes.fill_between(x, low, high, color=BAND, alpha=0.5, linewidth=0)
    axes.plot(x, [b.mean for b in points], color=BAND_LINE, linewidth=1.2)


def quartile_intervals(geometry: Geometry, timestep: int | None) -> str | None:
    """AUC at the chosen timestep by quartile, with intervals; None where none could be estimated."""
    known = [q for q in geometry.quartiles if q.auc.value is not None]
    if not known:
        return None
    with settings():
        figure, axes = canvas(5.0, 3.2)
        axes.axhline(0.5, color=GUESS, linewidth=1.2, dashes=(1, 2))
        for at in geometry.band:
            if at.timestep == timestep:
                axes.axhspan(at.mean - at.sd, at.mean + at.sd, color=BAND, alpha=0.5, linewidth=0)
        for quartile in known:
            _whisker(axes, quartile.quartile, quartile.auc, style_of(quartile).color)
        low, high = axes.get_ylim()
        axes.set(ylabel="AUC", xlabel="quarter of images by distortion", xlim=(0.5, 4.5), ylim=(min(low, 0.47), max(high, 0.58)))
        axes.set_xticks(range(1, 5), NAMES)
        axes.grid(visible=False, axis="x")
        return svg(figure, "quartile-aucs", "AUC with its 95 % interval at the chosen timestep, by quarter of images by distortion")


def _whisker(axes: Axes, position: int, estimate: Estimate, color: str, across: bool = False) -> None:
    """A dot with its interval, upright, or `across` the figure."""
    line: dict[str, Any] = {"color": color, "linewidth": 2.2, "solid_capstyle": "butt"}
    dot: dict[str, Any] = {"color": color, "markersize": 8, "markeredgecolor": "white", "zorder": 5}
    if estimate.low is not None and estimate.high is not None:
        ends, both = (estimate.low, estimate.high), (position, position)
        axes.plot(*((ends, both) if across else (both, ends)), **line)
    axes.plot(*(([estimate.value], [position]) if across else ([position], [estimate.value])), "o", **dot)


def correlations(geometry: Geometry) -> str | None:
    """The correlations of distortion with low and high frequencies; None where neither could be estimated."""
    rows = (("high", geometry.high_frequency), ("low", geometry.low_frequency))
    if all(estimate.value is None for _, estimate in rows):
        return None
    with settings():
        figure, axes = canvas(5.0, 1.9)
        axes.axvline(0, color=GUESS, linewidth=1.2, dashes=(1, 2))
        for position, (_, estimate) in enumerate(rows):
            if estimate.value is not None:
                _whisker(axes, position, estimate, QUARTILES[2].color, across=True)
        axes.set(xlabel="correlation with distortion", xlim=(-1.02, 1.02), ylim=(-0.5, 1.5))
        axes.set_yticks(range(2), [f"{name}\nfrequencies" for name, _ in rows])
        axes.grid(visible=False, axis="y")
        return svg(figure, "frequencies", "Correlation of an image's distortion with its energy at low and at high frequencies")


def ratio_sweep(sweeps: Sequence[Sweep], drawn: dict[str, LineStyle]) -> str | None:
    """AUC against the share of coordinates dropped; a triangle marks the most influential ones dropped instead."""
    if not sweeps:
        return None
    with settings():
        figure, axes = canvas(5.0, 4.2)
        axes.axhline(0.5, color=GUESS, linewidth=1.2, dashes=(1, 2))
        for i, sweep in reversed(list(enumerate(sweeps))):  # the first is drawn last, on top
            style = drawn[sweep.attack]
            axes.plot(sweep.ratios, sweep.aucs, marker="o", markersize=3.5, **style._asdict())
            if sweep.reverse:
                ratio, auc = sweep.reverse
                aside = SIDEWAYS * (i - (len(sweeps) - 1) / 2)
                axes.plot(ratio + aside, auc, "v", color=style.color, markersize=8, markeredgecolor="white", zorder=5)
        low, high = axes.get_ylim()
        axes.set(xlabel="share of latent coordinates left out", ylabel="AUC", xlim=(-0.03, 0.97))
        axes.set(ylim=(min(low, 0.47), max(high, 0.58)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        return svg(figure, "ratios", "AUC of every attack against the share of latent coordinates left out, from none to 90 %")


def sweeps_of(record: AuditRecord, lead: str | None) -> tuple[tuple[Sweep, ...], dict[str, LineStyle]]:
    """The sweep of every attack, the leading one first, and how each is drawn: in its colour of the other figures."""
    attacks = [r for r in record.results if r.plain]
    leading = next((r.base for r in record.results if r.attack == lead), None)
    groups: dict[str, list[Result]] = {r.attack: [r] for r in sorted(attacks, key=lambda r: r.attack != leading)}
    for r in selection.masked(record):
        groups.setdefault(r.base, []).append(r)
    return sweeps(list(groups.items())), styles(attacks, leading)


def sweeps(results: Sequence[tuple[str, Sequence[Result]]]) -> tuple[Sweep, ...]:
    """The sweep of each (attack, its results) that has an unmasked AUC and at least one under an influence mask."""
    return tuple(s for s in (_sweep(attack, group) for attack, group in results) if len(s.ratios) > 1 and s.ratios[0] == 0.0)


def _sweep(attack: str, results: Sequence[Result]) -> Sweep:
    known = [(r.mask, r.mask_ratio or 0.0, r.auc.value) for r in results if r.auc.value is not None]
    fixed = [(ratio, auc) for mask, ratio, auc in known if mask is None or (mask.startswith("influence:") and mask != "influence:auto")]
    points = sorted(fixed)
    reverse = next(((ratio, auc) for mask, ratio, auc in known if mask == "reverse:0.9"), None)
    return Sweep(attack, tuple(ratio for ratio, _ in points), tuple(auc for _, auc in points), reverse)


def style_of(quartile: Quartile) -> LineStyle:
    """The style of a quartile, 1 to 4."""
    return QUARTILES[min(max(quartile.quartile, 1), 4) - 1]
