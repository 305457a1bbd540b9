"""The first images, as drawn."""

from diffleak.records.quality import QualityRecord
from diffleak.report.media.html import data_uri
from diffleak.report.section import Block, Section, drawn, prose
from diffleak.report.sections.quality import Pictures
from diffleak.report.wording import count

GRID = 64


def section(record: QualityRecord, pictures: Pictures | None) -> Section:
    """The generated images, without picking."""
    return Section("images", "Generated images", (), "Generated images", later=lambda: _grid(record, pictures) if pictures else ())


def _grid(record: QualityRecord, pictures: Pictures) -> tuple[Block, ...]:
    shown = [data_uri(pictures.generated(i)) for i in range(min(record.images, GRID))]
    said = (
        f"The first {count(len(shown))} of {count(record.images)} images, as drawn, none picked. A generated image may itself be a copy of "
        "a private training image: look before you pass this page on."
    )
    return prose(said), drawn("grid", pictures=shown)
