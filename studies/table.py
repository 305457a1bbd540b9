"""Prints a study's tables as Markdown from its audit.json or compare.json: `python studies/table.py studies/cifar10/audit.json`.

Masked results have a table of their own, with what each mask adds; geometry has its quartiles and correlations.
"""

import sys
from pathlib import Path

from diffleak.records.audit import AuditRecord
from diffleak.records.base import Estimate
from diffleak.records.comparison import Comparison, Entry

HEADER = (
    "| attack | t | AUC | TPR at 10 % FPR | TPR at 1 % FPR | attack success | oracle AUC |\n| :-- | --: | --: | --: | --: | --: | --: |"
)


def printed(header: str, rows: list[str], record: AuditRecord | Comparison) -> str:
    """A table; of records of schema version 1 without the rates at a false-positive rate, which were made by an earlier definition."""
    lines = [*header.split("\n"), *rows]
    if record.schema_version == 1:
        cells = [line.strip("| ").split(" | ") for line in lines]
        kept = [i for i, title in enumerate(cells[0]) if not title.startswith("TPR at")]
        lines = [f"| {' | '.join(row[i] for i in kept)} |" for row in cells]
    return "\n".join(lines)


def cell(estimate: Estimate, scale: float, digits: int) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "n/e"
    value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def table(record: AuditRecord) -> str:
    """One row per attack: the chosen timestep, then test-half numbers with 95 % intervals; rates in percent."""
    rows = []
    for r in (r for r in record.results if r.mask is None):
        rates = " | ".join(cell(r.tpr(fpr), 100, 1) for fpr in (0.1, 0.01))
        name = f"**{r.attack}**" if r.attack == record.headline else r.attack
        oracle = "n/e" if r.oracle.auc is None else f"{r.oracle.auc:.3f}"
        rows.append(f"| {name} | {r.timestep} | {cell(r.auc, 1, 3)} | {rates} | {cell(r.asr, 100, 1)} | {oracle} |")
    return printed(HEADER, rows, record)


DEFENCE_HEADER = (
    "| model | worst attack | its AUC | TPR at 1 % FPR | minus undefended | secmi AUC | sima AUC | 1000 KID | Fréchet | Inception |\n"
    "| :-- | :-- | --: | --: | --: | --: | --: | --: | --: | --: |"
)
ATTACKED = ("secmi", "sima", "pia", "loss", "clid", "pfami", "black_box")  # the columns of a study of text-to-image models
SWAP_HEADER = "| attack | swap audit AUC | teacher 1 on its half | teacher 2 on its half |\n| :-- | --: | --: | --: |"


def defence_table(record: Comparison) -> str:
    """One row per entry: its worst attack, and quality with 95 % intervals; rates in percent."""
    rows = []
    for entry in record.entries:
        worst, difference = entry.worst_result, entry.worst.difference
        on = f"{worst.attack} ({Path(worst.run).name})" if len(entry.runs) > 1 else worst.attack
        privacy = (cell(worst.auc, 1, 3), cell(worst.tpr_at_1pct, 100, 1), cell(difference.auc, 1, 3) if difference else "")
        quality = [quality_cell(entry, *how) for how in (("kid", 1000, 1), ("frechet", 1, 2), ("inception_score", 1, 2))]
        rows.append(f"| {entry.name} | {on} | {' | '.join([*privacy, highest(entry, 'secmi'), highest(entry, 'sima'), *quality])} |")
    return printed(DEFENCE_HEADER, rows, record)


def text_table(record: Comparison) -> str:
    """One row per entry: its worst attack, the AUC of every attack on the artefact where it is highest, and quality where it is known."""
    named = [{r.attack.partition("(")[0]: r.attack for r in entry.results} for entry in record.entries]
    attacks = [name for name in ATTACKED if all(name in names for names in named)]
    measured = (("kid", 1000, 1), ("copy_rate", 100, 1)) if record.entries[0].quality else ()
    head = ["model", "worst attack", *attacks, *(("1000 KID", "copies, %") if measured else ())]
    rows = [head, [":--", ":--", *["--:"] * (len(head) - 2)]]
    for entry, names in zip(record.entries, named, strict=True):
        found = [highest(entry, names[name]) for name in attacks]
        quality = [quality_cell(entry, *how) for how in measured]
        rows.append([entry.name, entry.worst_result.attack.partition("(")[0], *found, *quality])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def highest(entry: Entry, attack: str) -> str:
    found = max((r.auc for r in entry.results if r.attack == attack), key=lambda auc: auc.value or 0.0)
    return cell(found, 1, 3)


def quality_cell(entry: Entry, name: str, scale: float, digits: int) -> str:
    metric = entry.quality.metric(name) if entry.quality else None
    return cell(metric, scale, digits) if metric else "n/e"


def swap_table(record: Comparison) -> str:
    """The swap audit of the two teachers beside the ordinary one."""
    assert record.swap is not None
    rows = [f"| {r.attack} | {cell(r.auc, 1, 3)} | {cell(r.own[0], 1, 3)} | {cell(r.own[1], 1, 3)} |" for r in record.swap.results]
    return "\n".join([SWAP_HEADER, *rows])


MASKS = ("influence:0.4", "random:0.4", "reverse:0.4", "reverse:0.9")
MASK_HEADER = (
    "| attack | mask | AUC | AUC minus unmasked | success minus unmasked | TPR at 1 % FPR minus unmasked |\n"
    "| :-- | :-- | --: | --: | --: | --: |"
)


def mask_table(record: AuditRecord) -> str:
    """What each mask adds to each attack; differences with 95 % intervals, rates in percent."""
    rows = []
    for r in record.results:
        if r.mask in MASKS and r.gain is not None:
            added = (cell(r.gain.auc, 1, 3), cell(r.gain.asr, 100, 1), cell(r.gain.tpr_at_1pct, 100, 1))
            rows.append(f"| {r.attack.partition('[')[0]} | {r.mask} | {r.auc.value:.3f} | {' | '.join(added)} |")
    return printed(MASK_HEADER, rows, record)


def sweep_table(record: AuditRecord) -> str:
    """AUC by the share of latent coordinates dropped, least influential first."""
    ratios = [i / 10 for i in range(10)]
    by_mask = {r.attack: r.auc.value for r in record.results}
    plain = [r.attack for r in record.results if r.mask is None and f"{r.attack}[influence:0.1]" in by_mask]
    rows = [
        f"| {name} | " + " | ".join(f"{by_mask[f'{name}[influence:{ratio}]' if ratio else name]:.3f}" for ratio in ratios) + " |"
        for name in plain
    ]
    head = "| attack | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |\n| :-- |" + " --: |" * len(ratios)
    return "\n".join([head, *rows])


def geometry_table(record: AuditRecord) -> str:
    """AUC by quartile of distortion, and the correlations."""
    found = record.geometry
    assert found is not None
    rows = [
        f"| {q.quartile} | {q.low:.1f} to {q.high:.1f} | {q.n_members} / {q.n_nonmembers} | {cell(q.auc, 1, 3)} |" for q in found.quartiles
    ]
    lines = [
        f"highest minus lowest quartile: {cell(found.high_minus_low, 1, 3)}",
        f"AUC of distortion alone: {cell(found.distortion_auc, 1, 3)}",
        f"correlation of distortion with low-frequency energy: {cell(found.low_frequency, 1, 2)}",
        f"correlation of distortion with high-frequency energy: {cell(found.high_frequency, 1, 2)}",
        *(f"{f.filtered} minus {f.attack}, AUC: {cell(f.gain.auc, 1, 3)}" for f in found.filters),
    ]
    head = f"| quartile of distortion | log volume | members / held out | AUC of {found.attack} |\n| --: | :-- | --: | --: |"
    return "\n".join([head, *rows, "", *(f"- {line}" for line in lines)])


def tables(record: AuditRecord) -> str:
    """All tables of a record."""
    parts = [table(record)]
    if any(r.mask for r in record.results):
        parts.append(mask_table(record))
    if any(r.mask == "influence:0.1" for r in record.results):
        parts.append(sweep_table(record))
    if record.geometry is not None and record.geometry.quartiles:
        parts.append(geometry_table(record))
    return "\n\n".join(parts)


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    if "compare" in Path(sys.argv[1]).name:
        compared = Comparison.model_validate_json(text)
        asked = any(r.attack == "clid" for r in compared.baseline.results)  # only text-to-image models are asked that
        print("\n\n".join([text_table(compared) if asked else defence_table(compared), *([swap_table(compared)] if compared.swap else [])]))
    else:
        print(tables(AuditRecord.model_validate_json(text)))
