"""A section is written once: what it says is in HTML, in the terminal and in Markdown, and a page needs one line to have it."""

import html as entities
import io
import re
from dataclasses import replace

import pytest
from fixtures.extraction import extraction_record
from fixtures.quality import quality_record
from fixtures.reports import audit_of, latent_audit
from fixtures.runs import gaussian, make_run
from rich.console import Console

from diffleak.comparison.compare import compare
from diffleak.records.audit import Gate
from diffleak.report import print_page, to_html, to_markdown
from diffleak.report.pages import audit, comparison, extraction, quality
from diffleak.report.section import Page, Section, Sentences, Tabulated, drawn, prose
from diffleak.report.table import Cell, Column, tabulate

GATES = (
    Gate(limit="max_auc", quantity="AUC", attack="sima", at_most=0.6, reach=0.712, passed=False),
    Gate(limit="max_auc", quantity="AUC", attack="pia", at_most=0.9, reach=0.7, passed=True),
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Page]:
    folder = tmp_path_factory.mktemp("runs")
    compared = compare(
        [str(make_run(folder / name, {"sima": gaussian(d)}, fingerprint=name)) for name, d in (("plain", 1.5), ("defended", 0.1))]
    )
    record, samples = latent_audit(("influence:0.4", "random:0.4"), n=60, shifts={"sima": 1.2, "pia": 0.9})
    return {
        "audit": audit.page(record.model_copy(update={"gates": GATES}), samples),
        "comparison": comparison.page(compared),
        "quality": quality.page(quality_record(copies=0.3)),
        "extraction": extraction.page(extraction_record(9)),
    }


def test_the_strength_of_a_regression_is_in_no_column_of_an_audit():
    record, samples = audit_of({"sima": 0.8})
    result = record.results[0]
    for setting, there in (("C=0.01", False), ("4 x 4", True)):
        oracle = result.oracle.model_copy(update={"timestep": None, "setting": setting})
        ruled = result.model_copy(update={"timestep": None, "setting": setting, "oracle": oracle})
        shown = to_html(audit.page(record.model_copy(update={"results": (ruled, *record.results[1:])}), samples))
        tables = shown.partition("<table")[2].rpartition("</table>")[0]
        assert (tables.count(setting) >= 2) == there and (there or setting not in tables)


def terminal(page: Page) -> str:
    stream = io.StringIO()
    print_page(page, Console(file=stream, width=300))
    return stream.getvalue()


def words(text: str) -> str:
    """The text with one space between words and without no-break spaces, as sentences are compared."""
    return " ".join(text.replace("\u00a0", " ").split())


def media(page: Page) -> dict[str, str]:
    """What a reader of each medium reads: tags, escapes and the ends of lines taken away."""
    text = re.sub(r"\\([\\`*_\[\]|~#])", r"\1", to_markdown(page))
    return {
        "HTML": words(entities.unescape(re.sub(r"<wbr>|</?(strong|span|sup)[^>]*>", "", to_html(page)))),
        "terminal": words(terminal(page)),
        "Markdown": words(entities.unescape(text)),
    }


@pytest.mark.parametrize("name", ["audit", "comparison", "quality", "extraction"])
def test_every_sentence_and_row_for_all_media_is_in_html_in_the_terminal_and_in_markdown(pages, name):
    blocks = [block for section in pages[name].sections for block in section.blocks if block.where == "everywhere"]
    said = [words(s) for block in blocks if isinstance(block, Sentences) for s in block.said]
    tables = [block.table for block in blocks if isinstance(block, Tabulated)]
    notes = [words(note) for table in tables for note in table.notes]
    numbers = [cell.text for table in tables for row in table.rows for cell in row.cells]
    assert len(said) >= 3 and (numbers or name != "audit")
    for medium, text in media(pages[name]).items():
        assert [part for part in (*said, *notes, *numbers) if part not in text] == [], medium


def test_a_command_at_the_end_of_a_sentence_is_one_line_of_a_terminal_whatever_its_width_so_that_it_can_be_pasted():
    command = f"diffleak audit BASE --members {'a-long-folder/' * 12}members --nonmembers 'b c' -o NEW-FOLDER"
    said = Sentences((f"To test it: {command}", "The header holds captions: diffleak removes them."))
    page = Page("A title", "A heading", "", "", "", (Section("novel", "The novel part", (said,), "Novel", "The novel part"),))
    print_page(page, Console(file=(stream := io.StringIO()), width=60))
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert lines[lines.index("To test it:") + 1] == command and "The header holds captions: diffleak removes them." in lines


def test_the_first_entry_of_a_comparison_is_its_baseline_in_all_media(pages):
    for medium, text in media(pages["comparison"]).items():
        assert "baseline" in text and not re.search(r"\breferences?\b", text), medium


def novel(_: object) -> Section:
    """A part of a report that no page has."""
    column = Column(("Number",), "", 1, lambda x: Cell(f"{x:.2f}"))
    table = Tabulated(tabulate([0.25], (column,), lambda x: ("a row", "", False)))
    return Section("novel", "The novel part", (Sentences(("It says a < b, and 5 % more.",)), table), "Novel", "The novel part")


def test_one_line_adds_a_section_to_the_page_its_contents_the_terminal_and_markdown(monkeypatch):
    record, samples = audit_of({"sima": 1.0}, 60)
    monkeypatch.setattr(audit, "SECTIONS", (*audit.SECTIONS, novel))
    page = audit.page(record, samples)
    contents = to_html(page).partition("</nav>")[0]
    assert '<a href="#novel">Novel</a>' in contents
    for medium, text in media(page).items():
        for part in ("The novel part", "It says a < b, and 5 % more.", "a row", "0.25"):
            assert part in text, (medium, part)


def test_figures_are_drawn_for_pages_only():
    drawings = []
    section = Section("figure", "A figure", (prose("It explains."),), later=lambda: drawings.append(1) or (drawn("code", text="drawn"),))
    page = Page("", "Report", "", "", "0", (section,))
    assert "It explains" not in terminal(page) + to_markdown(page) and drawings == []
    assert "It explains." in to_html(page) and "<code>drawn</code>" in to_html(page) and drawings


def test_a_section_that_says_nothing_in_text_has_no_title_there_and_one_for_text_alone_is_not_on_the_page(pages):
    page = pages["quality"]
    text_only = Section("left", "Left", (Sentences(("Only in text.",), where="text"),))
    page = replace(page, sections=(*page.sections, text_only))
    shown, text = to_html(page), (terminal(page), to_markdown(page))
    assert "Glossary" in shown and not any("Glossary" in t for t in text)
    assert "Only in text." not in shown and 'id="left"' not in shown and all("Only in text." in t for t in text)
