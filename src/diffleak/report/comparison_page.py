"""The comparison as one HTML file in the style of the report: opens offline, no script, no request."""

from typing import Any

from diffleak.records.comparison import Comparison
from diffleak.report import comparison as words
from diffleak.report.page import template

GLOSSARY = (
    ("Member", "an image the model was trained on; a held-out image comes from the same source but was not used for training."),
    ("AUC", "how often an attack ranks a random member above a random held-out image; 0.5 is guessing, 1 is always right."),
    ("AUC difference", "the AUC on an entry minus that on the reference, on the same images; below 0 the entry leaks less."),
    ("TPR at 1 % FPR", "share of members an attack catches when it may raise a false alarm for 1 % of the held-out images."),
    ("Worst attack", "the run and attack of an entry with the highest AUC on the calibrate part: what a capable outsider would use."),
    ("Calibrate, test part", "settings are chosen on the one; every number comes from the other."),
    ("Paired", "both models are judged on the same images, so that difficult images do not pass for a difference of the models."),
)


def comparison_html(record: Comparison) -> str:
    """The whole page; the same record gives the same bytes."""
    results = {"results": False} if words.invalid_runs(record) else _results(record)
    page = template("comparison.html.j2").render(record=record, verdict=words.comparison_verdict(record), **results)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _results(record: Comparison) -> dict[str, Any]:
    """Everything on the page that comes from the results."""
    from diffleak.report import comparison_figures as figures

    return {
        "results": True,
        "entries": words.entries_table(record, names=False),
        "attacks": words.attacks_table(record),
        "forest": figures.forest(record),
        "scatter": figures.scatter(record),
        "points": figures.points(record),
        "metric": words.QUALITY.get(record.quality_metric or "", ""),
        "how_to_quality": words.HOW_TO_QUALITY,
        "swap": record.swap,
        "swap_table": words.swap_table(record.swap) if record.swap else None,
        "swap_sentences": words.swap_sentences(record.swap) if record.swap else (),
        "glossary": GLOSSARY,
    }
