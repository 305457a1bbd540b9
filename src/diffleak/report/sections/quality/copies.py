"""The similarity of generated images to training images."""

from typing import Any

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.records.quality import Copies, Pair, QualityRecord
from diffleak.report.audited import not_shown
from diffleak.report.media.html import data_uri
from diffleak.report.section import Section, Tabulated, breakable, drawn, heading, prose
from diffleak.report.sections.quality import Pictures
from diffleak.report.table import NOT_ESTIMABLE, Cell, Column, Table, tabulate
from diffleak.report.wording import count


def section(record: QualityRecord, pictures: Pictures | None) -> Section:
    """Percentiles of the similarity to the nearest training image, and the closest pairs."""
    found, title, menu = record.copies, "Copies of training images", "Copies"
    if found is None or record.training is None:
        unknown = Markup(
            "Not looked at: the training images are not known here. <code>--training DATA</code>, or "
            "<code>--data DATA --split FILE</code>, gives them."
        )
        return Section("copies", title, (prose(unknown),), menu)
    what = (
        f"For each generated image, the similarity to the nearest of {count(record.training.n)} training images, by features of "
        + breakable(visible(found.encoder))
        + ". Beside it the same for the reference, real images that are no copies: only what lies above that points to copying."
    )
    top = (
        "Each training image once, with the generated image that is most similar to it. The top of this list is there for every model; "
        "compare it with the percentiles."
    )
    hidden = pictures is None or pictures.training is None
    private = "these are private training images, and perhaps copies of them"
    blocks = (
        prose(what),
        Tabulated(percentiles_table(found), _caption(found), "Percentile", look="metrics", where="page"),
        heading("The closest pairs"),
        prose(top),
        *((not_shown(private, record.anonymous is not None),) if hidden else ()),
        drawn("pairs", pairs=[_pair(pair, pictures) for pair in found.pairs]),
    )
    return Section("copies", title, blocks, menu)


def _caption(found: Copies) -> str:
    text = "Percentiles of the similarity to the nearest training image."
    if found.threshold is None:
        return text
    return (
        f"{text} The copy rate counts generated images above {found.threshold:.3f}; if they were like unseen real images, as many or more "
        f"would lie above it with probability {found.chance:.2g}."
    )


def percentiles_table(found: Copies) -> Table:
    """A row per percentile: generated images, and real ones that the model has not seen."""
    three = lambda x: NOT_ESTIMABLE if x is None else f"{x:.3f}"
    ends = lambda e: "" if e.low is None or e.high is None else f"[{e.low:.3f}, {e.high:.3f}]"
    drawn = (
        Column(("Generated",), "", 1, lambda p: Cell(three(p.generated.value))),
        Column(("95 % interval",), "", 2, lambda p: Cell(ends(p.generated))),
        Column(("Unseen real",), "", 3, lambda p: Cell(three(p.reference))),
    )
    return tabulate(found.percentiles, drawn, lambda p: ("largest" if p.percent == 100 else f"{p.percent:g} %", "", False))


def _pair(pair: Pair, pictures: Pictures | None) -> dict[str, Any]:
    training = pictures.training if pictures else None
    shown = (data_uri(pictures.generated(pair.image)), data_uri(training(pair.training_id))) if pictures and training else None
    return {"image": pair.image, "id": visible(pair.training_id), "similarity": f"{pair.similarity:.3f}", "pictures": shown}
