"""`diffleak report RUN --format ...`: the record of a finished audit in another form. No torch."""

from pathlib import Path
from typing import Literal, get_args

from diffleak.auditing.results import read_unedited, rewrite_report
from diffleak.errors import unknown
from diffleak.records import digests
from diffleak.records.audit import AuditRecord
from diffleak.report import to_markdown
from diffleak.report.pages.audit import on_paper, page

Format = Literal["html", "markdown", "card", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)
PDF = "report.pdf"


def known(name: str) -> Format:
    """A format by its name; raises `UserError` for another name, with the nearest one."""
    for each in FORMATS:
        if each == name:
            return each
    raise unknown("format", name, FORMATS)


def formatted(folder: Path, form: Format, thumbnails: bool = False) -> tuple[AuditRecord, str]:
    """The record, and the text to print: Markdown, a section for a model card, or where report.html or report.pdf was written.

    Raises `UserError` for a folder without a finished audit, and `RecordEdited` for a record that was edited.
    """
    if form == "html":
        return rewrite_report(folder, thumbnails), f"report: {folder / digests.REPORT}"
    record = read_unedited(folder)
    if form == "pdf":
        from diffleak.report.media.pdf import write_pdf

        write_pdf(on_paper(record, digests.sealed(folder)), folder / PDF)
        digests.update_report(folder, PDF)
        return record, f"report: {folder / PDF}"
    if form == "card":
        from diffleak.report.media.card import model_card

        return record, model_card(record, digests.sealed(folder))
    return record, to_markdown(page(record, sealed=digests.sealed(folder)))
