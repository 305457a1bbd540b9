"""Results as CSV: a header, then a row each; numbers in full, empty where they cannot be estimated."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord
from diffleak.records.base import Estimate
from diffleak.records.comparison import Comparison
from diffleak.report.results import rows


def results_csv(record: AuditRecord) -> str:
    """The results of an audit, as `diffleak.report.results.rows` has them."""
    return _csv(rows(record))


def comparison_csv(record: Comparison) -> str:
    """A comparison, a row an attack and entry: pooled over seeds with --pool, else a row a run."""
    if record.pooled:
        named = lambda p: {"attack": p.attack, "entry": p.entry, "seeds": p.seeds}
        auc = lambda p: {**_ends("auc", p.auc), "auc_spread": p.auc_spread}
        tpr = lambda p: {**_ends("tpr_at_1pct", p.tpr_at_1pct), "tpr_at_1pct_spread": p.tpr_spread}
        return _csv([{**named(p), **auc(p), **tpr(p), **_ends("auc_difference", p.difference)} for p in record.pooled])
    found = [(attack, e.name, r) for attack in record.attacks for e in record.entries for r in e.results if r.attack == attack]
    rates = lambda r: {**_ends("auc", r.auc), **_ends("tpr_at_1pct", r.tpr_at_1pct)}
    against = lambda r: _ends("auc_difference", r.difference.auc if r.difference else None)
    return _csv([{"attack": attack, "entry": name, "run": r.run, **rates(r), **against(r)} for attack, name, r in found])


def _ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    ends = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _csv(found: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]) if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: visible(value) if isinstance(value, str) else value for key, value in row.items()} for row in found)
    return text.getvalue()
