"""Draws what each attack finds when it is told each image's own caption, none, and another image's.

`python studies/text/figure.py RUN-OWN RUN-EMPTY RUN-SWAPPED FILE.png`, of three audits of one model.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from diffleak.records.audit import AuditRecord

COLOURS = {"own": "#1f4e79", "empty": "#c55a11", "swapped": "#7f7f7f"}


def draw(runs: list[Path], output: Path) -> None:
    """One group of three intervals per attack."""
    records = [AuditRecord.model_validate_json((run / "audit.json").read_text(encoding="utf-8")) for run in runs]
    names = [result.attack for result in records[0].results if all(result.attack in {r.attack for r in other.results} for other in records)]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for i, record in enumerate(records):
        told = str(record.plan.captions)
        places = [k + 0.2 * (i - 1) for k in range(len(names))]
        found = [record.result(name).auc for name in names]
        values = [auc.value for auc in found]
        spans = [[v - auc.low for v, auc in zip(values, found, strict=True)], [auc.high - v for v, auc in zip(values, found, strict=True)]]
        axes.errorbar(places, values, yerr=spans, fmt="o", capsize=3, color=COLOURS[told], label=f"captions: {told}")
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(names)), [name.partition("(")[0] for name in names])
    axes.set_ylabel("AUC on the test part, 95 % interval")
    axes.set_ylim(0.3, 1.02)
    axes.legend(frameon=False)
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    draw([Path(run) for run in sys.argv[1:4]], Path(sys.argv[4]))
