"""report.html of a run folder, from its record and from what other commands have left beside it. No torch."""

import shlex
from collections.abc import Callable
from pathlib import Path

from diffleak.records.audit import AuditRecord
from diffleak.records.comparison import FILE as COMPARE
from diffleak.records.comparison import PAGE as COMPARE_PAGE
from diffleak.records.comparison import read_comparison
from diffleak.records.digests import AUDIT, REPORT, Sealed, sealed, update_report
from diffleak.records.epsilon import read_epsilon
from diffleak.records.gate import read_gate
from diffleak.records.maps import Maps
from diffleak.records.run_folder import read_samples
from diffleak.records.scores import Samples
from diffleak.records.sweep import FILE as SWEEP
from diffleak.records.sweep import read_sweep
from diffleak.report.judgement import read_record
from diffleak.report.media.html import PICTURE, to_html
from diffleak.report.pages import comparison as comparison_page
from diffleak.report.pages import sweep as sweep_page
from diffleak.report.pages.audit import page
from diffleak.report.section import Page
from diffleak.work.files import write_text
from diffleak.work.progress import say


def write_report(
    folder: Path,
    record: AuditRecord,
    samples: Samples,
    thumbnail: Callable[[str], bytes] | None = None,
    maps: Maps | None = None,
    of: Sealed | None = None,
) -> None:
    """Writes report.html with the bound of epsilon.json and the limits of gate.json, for its owner only; its digest is the caller's.

    thumbnail, maps: as `page` takes them. of: the digests that it prints, by default those of the files in the folder.
    """
    made = page(record, samples, thumbnail, maps, of or sealed(folder), read_epsilon(folder), read_gate(folder))
    write_text(folder / REPORT, to_html(made), private=True)


def refresh_report(folder: Path) -> None:
    """Writes the report of a run again after another command has left its record there; nothing for a folder without a report.

    The same of a sweep or a comparison, whose pages show the limits of gate.json. A report with pictures stays as it is, since making
    those again takes the images; the command that does it is said.
    """
    if (folder / COMPARE).is_file() and (folder / COMPARE_PAGE).is_file():
        _rewrite(folder, COMPARE_PAGE, comparison_page.page(read_comparison(folder / COMPARE), read_gate(folder)))
    if not (folder / REPORT).is_file():
        return None
    if (folder / SWEEP).is_file():
        return _rewrite(folder, REPORT, sweep_page.page(read_sweep(folder), read_gate(folder)))
    if not (folder / AUDIT).is_file():
        return None
    if PICTURE in (folder / REPORT).read_text(encoding="utf-8", errors="replace"):
        again = shlex.join(["diffleak", "report", str(folder), "--thumbnails"])
        return say(f"note: {folder / REPORT} shows images and was not written again; {again} writes it")
    write_report(folder, read_record(folder), read_samples(folder))
    return update_report(folder)


def _rewrite(folder: Path, name: str, made: Page) -> None:
    write_text(folder / name, to_html(made), private=True)
    update_report(folder, name)
