"""The pages of folders that are no audit's, from their records: what `diffleak report` writes for them. No torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffleak.errors import UserError
from diffleak.records import check, comparison, extraction, inquiry, lora
from diffleak.records.base import Record
from diffleak.records.digests import RECORDS, refuse_edited_or_say, update_report
from diffleak.records.extraction import PAIRS, ExtractionRecord
from diffleak.report.media.html import to_html
from diffleak.report.media.markdown import to_markdown
from diffleak.report.pages import check as check_page
from diffleak.report.pages import comparison as comparison_page
from diffleak.report.pages import extraction as extraction_page
from diffleak.report.pages import inquiry as inquiry_page
from diffleak.report.pages import lora as lora_page
from diffleak.report.section import Page
from diffleak.report.sections.extraction import SHOWN, Pictures
from diffleak.work.files import write_text


class Kind(NamedTuple):
    """How the record of a folder is read, and its page is made and called."""

    read: Callable[[Path], Any]
    page: Callable[[Any], Page]
    file: str


KINDS = {
    lora.FILE: Kind(lora.read_lora, lora_page.page, lora.PAGE),
    inquiry.FILE: Kind(inquiry.read_inquiry, inquiry_page.page, inquiry.PAGE),
    extraction.FILE: Kind(lambda folder: extraction.read_extraction(folder / extraction.FILE), extraction_page.page, extraction.PAGE),
    comparison.FILE: Kind(lambda folder: comparison.read_comparison(folder / comparison.FILE), comparison_page.page, comparison.PAGE),
    check.FILE: Kind(check.read_check, check_page.page, check.PAGE),
}
FORMS = ("html", "markdown", "pdf")


class Written(NamedTuple):
    """A record, its page, and where that was written."""

    record: Record
    page: Page
    file: Path


def kinds_in(folder: Path) -> tuple[str, ...]:
    """The records in a folder that have a page here, by their file names; none for the folder of an audit or a sweep."""
    if any((folder / name).is_file() for name in ("audit.json", "sweep.json")):
        return ()
    return tuple(name for name in KINDS if (folder / name).is_file())


def write_again(folder: Path, form: str, thumbnails: bool = False) -> tuple[Written, ...]:
    """Writes the page of every record in a folder again, as HTML or PDF; for Markdown, too, as HTML.

    thumbnails: show the pairs of pictures that an extraction has left in pairs/. Raises `UserError` for another form, for pictures that
    are not there, and for a record that was edited.
    """
    names = kinds_in(folder)
    if form not in FORMS:
        raise UserError(f"--format {form} is of an audit; {folder} has {' and '.join(names)}: give {', '.join(FORMS)}")
    refuse_edited_or_say(folder)
    return tuple(_write(folder, KINDS[name], form, thumbnails) for name in names)


def _write(folder: Path, kind: Kind, form: str, thumbnails: bool) -> Written:
    record = kind.read(folder)
    page = extraction_page.page(record, _pictures(folder, record)) if thumbnails else kind.page(record)
    file = folder / kind.file
    if form == "pdf":
        from diffleak.report.media.pdf import write_pdf

        file = file.with_suffix(".pdf")
        write_pdf(page, file)
    else:
        write_text(file, to_html(page), private=True)
    update_report(folder, file.name)
    return Written(record, page, file)


def _pictures(folder: Path, record: Record) -> Pictures:
    """The pictures of the closest pairs, which the command leaves with --thumbnails."""
    if not isinstance(record, ExtractionRecord):
        raise UserError(f"{folder} keeps no pictures, so its page shows none: leave out --thumbnails")
    ranked = {pair.id: f"{rank:03d}-member.png" for rank, pair in enumerate(record.pairs[:SHOWN], 1)}
    drawn = {pair.image: f"{rank:03d}-drawing-{pair.image}.png" for rank, pair in enumerate(record.pairs[:SHOWN], 1)}
    lost = next((name for name in (*ranked.values(), *drawn.values()) if not (folder / PAIRS / name).is_file()), None)
    if lost:
        raise UserError(f"{folder / PAIRS / lost} is not there: repeat the extract command with --thumbnails, which keeps its drawings")
    return Pictures(lambda image: (folder / PAIRS / ranked[image]).read_bytes(), lambda image: (folder / PAIRS / drawn[image]).read_bytes())


def as_markdown(written: tuple[Written, ...]) -> str:
    """The pages one after the other."""
    return "\n".join(to_markdown(each.page) for each in written)


def refuse_others(folder: Path) -> None:
    """Raises `UserError` for a folder whose record has no page that can be made again from it alone."""
    there = [name for name in RECORDS if (folder / name).is_file() and name not in KINDS]
    if there and not kinds_in(folder) and not {"audit.json", "sweep.json"} & {*there}:
        raise UserError(f"the page of {there[0]} shows images that were drawn: repeat its command, which keeps the drawings")
