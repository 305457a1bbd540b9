"""The command, the runs and the methods of a comparison."""

from collections.abc import Iterator

from diffleak.errors import visible
from diffleak.records.comparison import Comparison, Entry
from diffleak.report.section import Block, Section, facts, heading
from diffleak.report.sections import fingerprinted, reproduce
from diffleak.report.wording import count, counted


def section(record: Comparison) -> Section:
    """The command, the runs of each entry, and the methods."""
    blocks: list[Block] = []
    for i, entry in enumerate(record.entries):
        blocks += [heading(visible(entry.name) + ("" if i else " (baseline)")), facts(_rows(entry))]
    methods = "AUC differences: paired DeLong. Differences of rates: paired stratified bootstrap, thresholds derived again each time."
    rows = (
        ("Seed", f"{record.seed}, of the bootstrap"),
        ("Methods", methods),
        ("Record", f"compare.json, schema version {record.schema_version}"),
    )
    return reproduce(record.command, *blocks, facts(rows))


def _rows(entry: Entry) -> Iterator[tuple[str, str]]:
    for run in entry.runs:
        yield "Run", fingerprinted(visible(run.run), run.command)
        yield "Model", fingerprinted(visible(run.model), run.model_fingerprint)
        sides = counted("image" if run.group is None else "group").sides(run.members, run.nonmembers)
        by = f" by {visible(run.group)}" if run.group is not None else ""
        yield "Data", fingerprinted(f"{sides}{by}", run.data_fingerprint)
    if entry.quality:
        found = entry.quality
        drawn = f"{count(found.images)} images of {visible(found.model)}, features of {visible(found.extractor)}"
        yield "Quality", f"{visible(str(entry.quality_file))}: {drawn}"
