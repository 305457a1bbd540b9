"""One table of all audits of the study: `python studies/sharper/summary.py studies/sharper/*/audit.json`.

A row per model and kind of attack. Of a kind with several attacks it is the one with the highest AUC on the calibrate part, as the
package chooses its headline; the numbers are of the test part. The ratio is of the TPR at 1 % FPR to that of the best plain attack.
"""

import sys
from pathlib import Path

from diffleak.records.audit import AuditRecord, Result
from diffleak.records.base import Estimate
from diffleak.records.variants import COMBINED

WHITE_BOX = "gradient"
HEADER = "| model | kind | attack | AUC | TPR at 1 % FPR | ratio | queries an image |\n| :-- | :-- | :-- | --: | --: | --: | --: |"


def kind_of(result: Result) -> str | None:
    if result.attack == COMBINED:
        return COMBINED
    if result.mask or result.variant == "reference":
        return None
    kind = "excess over a reference" if result.variant else "white-box" if result.attack.startswith(WHITE_BOX) else "plain"
    if result.attack.startswith(WHITE_BOX) and (result.variant or result.complexity is not None):
        return None
    return kind if result.complexity is None else f"{kind}, calibrated".replace("plain, ", "")


def on_calibrate_part(result: Result) -> float:
    return max((at.auc for at in result.per_timestep), default=0.0)


def cell(estimate: Estimate, scale: float, digits: int) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "n/e"
    value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def rows(name: str, record: AuditRecord) -> list[str]:
    kinds: dict[str, list[Result]] = {}
    for result in record.results:
        if kind := kind_of(result):
            kinds.setdefault(kind, []).append(result)
    best = {kind: max(results, key=on_calibrate_part) for kind, results in kinds.items()}
    plain = best["plain"].tpr(0.01).value
    made = []
    for kind, result in best.items():
        rate = result.tpr(0.01)
        ratio = f"{rate.value / plain:.1f}" if plain and rate.value is not None else "n/e"
        made.append(f"| {name} | {kind} | {result.attack} | {cell(result.auc, 1, 3)} | {cell(rate, 100, 1)} | {ratio} | {result.queries} |")
    return made


def table(files: list[Path]) -> str:
    found = [rows(file.parent.name, AuditRecord.model_validate_json(file.read_text(encoding="utf-8"))) for file in files]
    return "\n".join([HEADER, *(row for part in found for row in part)])


if __name__ == "__main__":
    print(table([Path(file) for file in sys.argv[1:]]))
