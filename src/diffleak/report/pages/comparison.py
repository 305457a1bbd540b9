"""The report of a comparison."""

from collections.abc import Callable

from rich.console import Console

from diffleak.errors import visible
from diffleak.records.comparison import Comparison
from diffleak.report.media import html as to_html
from diffleak.report.media.terminal import print_page
from diffleak.report.section import Page, Section, sections
from diffleak.report.sections import glossary, limits, verdict, warnings
from diffleak.report.sections.comparison import attacks, differences, made, quality, swap, worst
from diffleak.report.sections.comparison.verdict import comparison_verdict, invalid_runs
from diffleak.report.wording import count, moment

GLOSSARY = (
    ("Member", "an image the model was trained on; a held-out image comes from the same source but was not used for training."),
    ("AUC", "how often an attack ranks a random member above a random held-out image; 0.5 is guessing, 1 is always right."),
    ("AUC difference", "the AUC on an entry minus that on the baseline, on the same images; below 0 the entry leaks less."),
    ("TPR at 1 % FPR", "share of members an attack catches when it may raise a false alarm for 1 % of the held-out images."),
    ("Worst attack", "the run and attack of an entry with the highest AUC on the calibrate part: what a capable outsider would use."),
    ("Calibrate, test part", "settings are chosen on the one; every number comes from the other."),
    ("Paired", "both models are judged on the same images, so that difficult images do not pass for a difference of the models."),
)

SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    lambda record: verdict(comparison_verdict(record)),
    lambda record: warnings(record.warnings),
    worst.section,
    differences.section,
    quality.section,
    swap.section,
    attacks.section,
    lambda record: limits("comparison", "What this does not show", differences=count(record.differences)),
    lambda record: glossary(GLOSSARY),
    made.section,
)
OF_INVALID = (SECTIONS[0], made.section)  # with an invalid run only why there are no numbers, and how it was made


def page(record: Comparison) -> Page:
    """The report."""
    names = visible(", ".join(entry.name for entry in record.entries))
    return Page(
        title=f"Comparison of {len(record.entries)} audits",
        heading="Comparison of audits",
        meta=f"{names} · baseline {visible(record.baseline.name)}",
        created=visible(moment(record.created)),
        version=record.diffleak,
        sections=sections(make(record) for make in (OF_INVALID if invalid_runs(record) else SECTIONS)),
        style="comparison.css",
    )


def comparison_html(record: Comparison) -> str:
    """The whole page; the same record gives the same bytes."""
    return to_html.render(page(record))


def print_comparison(record: Comparison, console: Console) -> None:
    """Prints the report."""
    print_page(page(record), console)
