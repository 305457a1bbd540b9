"""All metrics."""

from diffleak.errors import visible
from diffleak.records.quality import Metric, QualityRecord
from diffleak.report.section import Section, Sentences, Tabulated, breakable
from diffleak.report.sections.quality.verdict import METRICS, SHARES, decimal, ends
from diffleak.report.table import NOT_ESTIMABLE, Cell, Column, Table, tabulate
from diffleak.report.wording import count, percent


def section(record: QualityRecord) -> Section:
    """A row per metric; in text the reasons for what is missing and how the images were drawn stand below."""
    caption = (
        "Features of "
        + breakable(visible(record.extractor))
        + f", dimension {count(record.dimension)}. In brackets: 95 % intervals over the choice of images; they do not count that of "
        "another training run. n/e: not estimable, with the reason."
    )
    missing = tuple(f"{METRICS[m.name].title}: {visible(m.reason or '')}" for m in record.metrics if m.value is None)
    drawn = f"{count(record.images)} images by {record.sampler} in {record.steps} steps, seed {record.seed}"
    real = f"{count(record.reference.n)} real images of {visible(record.reference.source)}"
    blocks = (
        Tabulated(metrics_table(record, page=False), first="Metric", where="text"),
        Sentences((*missing, f"{drawn}; {real}; features: {visible(record.extractor)}"), tone="small", wrapped=False, where="text"),
        Tabulated(metrics_table(record, page=True), caption, "Metric", look="metrics", where="page"),
    )
    return Section("metrics", "All metrics", blocks, "All metrics")


def metrics_table(record: QualityRecord, page: bool) -> Table:
    """All metrics in their order; a page also says what each means and how it was estimated."""
    how = Column(("How",), "", 5, lambda m: Cell(visible((m.reason if m.value is None else m.method) or "")), "how")
    drawn = (
        Column(("Value",), "", 1, _value),
        Column(("95 % interval" if page else "95 %",), "", 2, lambda m: Cell("" if m.value is None else ends(m, m.name in SHARES))),
        Column(("Better",), "", 3, lambda m: Cell(METRICS[m.name].better), "left"),
        *((how,) if page else ()),
    )
    return tabulate(record.metrics, drawn, lambda m: (METRICS[m.name].title, METRICS[m.name].meaning, False))


def _value(metric: Metric) -> Cell:
    if metric.value is None:
        return Cell(NOT_ESTIMABLE)
    return Cell(percent(metric.value) if metric.name in SHARES else decimal(metric.value))
