"""The results of an audit as plain rows, for tables of other programs: a data frame, CSV, LaTeX."""

from collections.abc import Iterator
from typing import Any

from diffleak.records.audit import RATES, AuditRecord, Result
from diffleak.records.base import Estimate

NAMES = {0.1: "10pct", 0.01: "1pct", 0.001: "01pct"}  # of the rates, as in tpr_at_1pct


def rows(record: AuditRecord) -> list[dict[str, Any]]:
    """A row a result, with the same keys in each; what cannot be estimated is None.

    attack, variant (plain, a mask, reference, excess, combined; with "calibrated" where complexity was taken out), access, timestep or
    setting, numbers of test images, each number with `_low` and `_high` of its 95 % interval, and queries: denoiser forwards per image.
    """
    return [dict(_row(result)) for result in record.results]


def variant(result: Result) -> str:
    """What an attack was run on or with, in a word or two."""
    kind = result.mask or result.variant or ("plain" if result.plain or result.complexity else result.attack)
    return kind if result.complexity is None else "calibrated" if kind == "plain" else f"{kind} calibrated"


def _row(result: Result) -> Iterator[tuple[str, Any]]:
    yield from (("attack", result.attack), ("variant", variant(result)), ("access", result.access))
    yield from (("timestep", result.timestep), ("setting", result.setting))
    yield from (("members", result.n_members), ("nonmembers", result.n_nonmembers))
    yield from _ends("auc", result.auc)
    for rate in RATES:
        yield from _ends(f"tpr_at_{NAMES[rate]}", result.tpr(rate))
    yield from _ends("tnr_at_1pct", result.tnr(0.01))
    yield from _ends("asr", result.asr)
    yield from (("oracle_auc", result.oracle.auc), ("queries", result.queries), ("queries_at_timestep", result.queries_at_timestep))


def _ends(name: str, estimate: Estimate) -> Iterator[tuple[str, float | None]]:
    return iter(((name, estimate.value), (f"{name}_low", estimate.low), (f"{name}_high", estimate.high)))
