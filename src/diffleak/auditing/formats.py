"""`diffleak report RUN --format ...`: the record of a finished audit in another form. No torch."""

from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

from diffleak.auditing.results import read_unedited, rewrite_report
from diffleak.errors import InvalidAudit, unknown
from diffleak.records import digests
from diffleak.records.audit import AuditRecord
from diffleak.records.epsilon import read_epsilon
from diffleak.records.gate import read_gate
from diffleak.report import to_markdown
from diffleak.report.pages.audit import on_paper, page

Format = Literal["html", "markdown", "card", "pdf", "latex", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
WITH_PAGE: tuple[Format, ...] = ("html", "markdown")  # these write report.html too
PDF = "report.pdf"
TABLES = {"latex": ("latex", "results_latex"), "csv": ("results_csv", "results_csv")}  # for papers: module of `media` and function


def known(name: str) -> Format:
    """A format by its name; raises `UserError` for another name, with the nearest one."""
    for each in FORMATS:
        if each == name:
            return each
    raise unknown("format", name, FORMATS)


def formatted(folder: Path, form: Format, thumbnails: bool = False) -> tuple[AuditRecord, str]:
    """The record, and the text to print: Markdown, a section for a model card, a table, or where report.html or report.pdf was written.

    Raises `UserError` for a folder without a finished audit, `RecordEdited` for a record that was edited, and `InvalidAudit` for a table of
    numbers that do not measure membership.
    """
    if form in WITH_PAGE:
        record = rewrite_report(folder, thumbnails)
        return record, to_markdown(
            page(record, sealed=digests.sealed(folder), bound=read_epsilon(folder), gated=read_gate(folder))
        ) if form == "markdown" else f"report: {folder / digests.REPORT}"
    record = read_unedited(folder)
    if form == "pdf":
        from diffleak.report.media.pdf import write_pdf

        write_pdf(on_paper(record, digests.sealed(folder), read_gate(folder)), folder / PDF)
        digests.update_report(folder, PDF)
        return record, f"report: {folder / PDF}"
    if form == "card":
        from diffleak.report.media.card import model_card

        return record, model_card(record, digests.sealed(folder), read_gate(folder))
    if record.valid is False:
        raise InvalidAudit(f"{record.invalid_reason} No table is made of such numbers; audit.json keeps them.")
    module, name = TABLES[form]
    return record, getattr(import_module(f"diffleak.report.media.{module}"), name)(record)
