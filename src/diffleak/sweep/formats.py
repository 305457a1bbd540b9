"""`diffleak report SWEEP --format ...`: the page on all checkpoints in another form. No torch."""

from pathlib import Path

from diffleak.errors import UserError
from diffleak.records import digests
from diffleak.records.gate import read_gate
from diffleak.records.sweep import SweepRecord, read_sweep
from diffleak.report import to_html, to_markdown
from diffleak.report.pages.sweep import page
from diffleak.work.files import write_text

PDF = "report.pdf"


def formatted(folder: Path, form: str) -> tuple[SweepRecord, str]:
    """The record, and the text to print; writes report.html, also for Markdown, or report.pdf.

    Raises `UserError` for a form that a sweep does not have, and `RecordEdited` for a record that was edited.
    """
    record = read_sweep(folder)
    digests.refuse_edited_or_say(folder)
    if form in ("card", "latex", "csv"):
        what = "a model card" if form == "card" else "a table of attacks"
        raise UserError(
            f"{folder} is an audit of several checkpoints, and {what} is of one model: give the run of the checkpoint that you release"
        )
    made = page(record, read_gate(folder))
    if form == "pdf":
        from diffleak.report.media.pdf import write_pdf

        write_pdf(made, folder / PDF)
        digests.update_report(folder, PDF)
        return record, f"report: {folder / PDF}"
    write_text(folder / digests.REPORT, to_html(made), private=True)
    digests.update_report(folder)
    return record, to_markdown(made) if form == "markdown" else f"report: {folder / digests.REPORT}"
