"""A report as one HTML file that opens offline: no script, no request; its security policy (CSP) has the browser refuse any."""

import base64
import re
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from diffleak.report.section import Page, breakable, words

if TYPE_CHECKING:
    from jinja2 import Template


def to_html(page: Page) -> str:
    """The whole file; the same page gives the same bytes."""
    made = [(section, section.on("page")) for section in page.leading_first()]
    said = words([(section.title, section.menu, blocks) for section, blocks in made]) if any(s.explains for s, _ in made) else ""
    explained = [(section, (*blocks, *(section.explains(said) if section.explains else ()))) for section, blocks in made]
    shown = [(section, blocks) for section, blocks in explained if blocks]
    lead, rest = [pair for pair in shown if pair[0].leads], [pair for pair in shown if not pair[0].leads]
    menu = [section for section, _ in rest if section.menu] if len(rest) > 1 else []
    text = _template().render(page=page, lead=lead, sections=rest, menu=menu)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


PICTURE = "data:image/png;base64,"  # what a page with a picture holds


def data_uri(png: bytes) -> str:
    """An image inside of the page, which requests none."""
    return PICTURE + base64.b64encode(png).decode("ascii")


def _prose(text: str) -> Markup:
    """Running text: what stands in backticks is code, a paper's arXiv number is a link, and a number stays beside its percent sign."""
    text = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text)).replace(" %", "&nbsp;%"))
    return Markup(re.sub(r"\barXiv (\d{4}\.\d{5})\b", r'<a href="https://arxiv.org/abs/\1">arXiv&nbsp;\1</a>', text))


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("diffleak.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "prose": _prose,
        "breakable": breakable,
    }
    return environment.get_template("page.html.j2")
