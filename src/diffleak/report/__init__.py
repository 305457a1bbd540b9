"""From a record to what people read: `pages` make a `Page` of it, the renderers here HTML, Markdown and terminal text. No torch here."""

from diffleak.report.judgement import Verdict, verdict
from diffleak.report.media.html import to_html
from diffleak.report.media.markdown import to_markdown
from diffleak.report.media.terminal import print_page
from diffleak.report.pages.audit import print_calibrated, print_result

__all__ = ["Verdict", "print_calibrated", "print_page", "print_result", "to_html", "to_markdown", "verdict"]
