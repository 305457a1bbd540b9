"""A report on paper: the browser that is installed prints a page as PDF, without a window and without a request."""

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from diffleak.errors import WHY, UserError, refusing, shown
from diffleak.report.media.html import to_html
from diffleak.report.section import Page
from diffleak.work.files import write_atomic

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
SECONDS = 120


def find_browser() -> str:
    """The path of a browser that prints; raises `UserError` where none is installed."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UserError(
            "a PDF is printed by Chromium, Chrome or Edge, and none of them is on the PATH: install one, or open the page (.html) in "
            "any browser and print it"
        )
    return found


def write_pdf(page: Page, path: Path) -> None:
    """Prints a page into a file; raises `UserError` where no browser is there, and where it fails, with what it said."""
    browser = find_browser()
    with TemporaryDirectory() as scratch:
        html, printed = Path(scratch) / "report.html", Path(scratch) / "report.pdf"
        html.write_text(to_html(page), encoding="utf-8")
        options = [
            "--headless",
            "--disable-gpu",
            "--no-sandbox",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
        ]
        own = [f"--user-data-dir={Path(scratch) / 'profile'}", "--no-pdf-header-footer", f"--print-to-pdf={printed}", html.as_uri()]
        failed = f"{browser} did not print the report ({WHY}); open the page (.html) in a browser and print it"
        with refusing((OSError, subprocess.TimeoutExpired), failed, lambda error: shown(error, 120)):
            done = subprocess.run([browser, *options, *own], capture_output=True, text=True, timeout=SECONDS, errors="replace")
        if done.returncode or not printed.is_file():
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(failed.replace(WHY, shown(said, 120)))
        write_atomic(path, lambda temporary: shutil.copyfile(printed, temporary), private=True)
