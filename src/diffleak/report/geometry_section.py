"""The geometry section of the page: what its template is given."""

from collections.abc import Callable, Sequence
from typing import Any

from diffleak.records.audit import AuditRecord, Quartile, Result
from diffleak.report import figures, geometry, geometry_figures, selection


def section(record: AuditRecord, lead: str | None, gallery: Callable[[Sequence[str]], list[Any]]) -> dict[str, Any]:
    """Sentences, tables, figures and galleries of a record whose geometry was studied."""
    found = record.geometry
    assert found is not None, "callers ask only where the geometry was studied"
    at = geometry.timestep(record)
    sweeps, drawn = _sweeps(record, lead)
    return {
        "record": found,
        "timestep": at,
        "main_mask": selection.MAIN_MASK,
        "gap": geometry.high_minus_low(found),
        "alone": geometry.alone(found),
        "by_quarter": geometry.by_quarter(record, found),
        "frequencies": geometry.frequencies(found),
        "quarters": [(_quarter(q), geometry_figures.style_of(q)) for q in found.quartiles],
        "curves": geometry_figures.quartile_curves(found, at),
        "intervals": geometry_figures.quartile_intervals(found, at),
        "correlations": geometry_figures.correlations(found),
        "sweep": geometry_figures.ratio_sweep(sweeps, drawn),
        "sweep_styles": [(s.attack, drawn[s.attack]) for s in sweeps],
        "reversed": any(s.reverse for s in sweeps),
        "controls": geometry.controls_table(record),
        "filters": geometry.filters_table(record),
        "highest": gallery(found.highest),
        "lowest": gallery(found.lowest),
    }


def _quarter(quartile: Quartile) -> dict[str, Any]:
    return {
        "name": geometry.quarter(quartile),
        "low": quartile.low,
        "high": quartile.high,
        "members": quartile.n_members,
        "nonmembers": quartile.n_nonmembers,
        "auc": geometry.auc_words(quartile.auc),
    }


def _sweeps(record: AuditRecord, lead: str | None) -> tuple[tuple[geometry_figures.Sweep, ...], dict[str, figures.LineStyle]]:
    """The sweep of every attack, the leading one first, and how each is drawn: in its colour of the other figures."""
    attacks = selection.unmasked(record)
    leading = next((selection.attack_of(r) for r in record.results if r.attack == lead), None)
    groups: dict[str, list[Result]] = {r.attack: [r] for r in sorted(attacks, key=lambda r: r.attack != leading)}
    for r in selection.masked(record):
        groups.setdefault(selection.attack_of(r), []).append(r)
    return geometry_figures.sweeps(list(groups.items())), figures.styles(attacks, leading)
