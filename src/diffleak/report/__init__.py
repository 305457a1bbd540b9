"""From a record to what people read: a verdict in words, a terminal table, Markdown and one HTML file. No torch here."""

from diffleak.report.judgement import Verdict, verdict
from diffleak.report.pages.audit import html, markdown, print_result, print_terminal

__all__ = ["Verdict", "html", "markdown", "print_result", "print_terminal", "verdict"]
