"""Prints a study's table as Markdown from its audit.json: `python studies/table.py studies/cifar10/audit.json`."""

import sys
from pathlib import Path

from leakscope.record import AuditRecord, Estimate

HEADER = (
    "| attack | t | AUC | TPR at 10 % FPR | TPR at 1 % FPR | attack success | oracle AUC |\n| :-- | --: | --: | --: | --: | --: | --: |"
)


def cell(estimate: Estimate, scale: float, digits: int) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "n/e"
    value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def table(record: AuditRecord) -> str:
    """One row per attack: the chosen timestep, then test-half numbers with 95 % intervals; rates in percent."""
    rows = []
    for r in record.results:
        rates = {rate.fpr: cell(rate, 100, 1) for rate in r.tpr_at_fpr}
        name = f"**{r.attack}**" if r.attack == record.headline else r.attack
        oracle = "n/e" if r.oracle.auc is None else f"{r.oracle.auc:.3f}"
        rows.append(f"| {name} | {r.timestep} | {cell(r.auc, 1, 3)} | {rates[0.1]} | {rates[0.01]} | {cell(r.asr, 100, 1)} | {oracle} |")
    return "\n".join([HEADER, *rows])


if __name__ == "__main__":
    print(table(AuditRecord.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))))
