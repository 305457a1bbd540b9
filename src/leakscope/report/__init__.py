"""From a record to what people read: a verdict in words, a terminal table, Markdown and one HTML file. No torch here."""

from leakscope.report.judgement import Verdict, verdict
from leakscope.report.page import html
from leakscope.report.text import markdown, print_result, print_terminal

__all__ = ["Verdict", "html", "markdown", "print_result", "print_terminal", "verdict"]
