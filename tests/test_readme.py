"""The README: its first screen names the command for each question, its links lead somewhere, and it is short."""

import re

import pytest
import typer
from fixtures.site import PAGES, ROOT

from diffleak import cli

README = PAGES["README.md"]
FIRST_SCREEN = README.partition("## Two commands")[0]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.M)}


def test_the_first_screen_names_the_command_for_each_question() -> None:
    rows = [line for line in FIRST_SCREEN.splitlines() if line.startswith("| ")]
    for name in (
        *("split", "check", "audit", "lora", "inquire", "extract", "epsilon", "gate", "verify"),
        *("defend", "quality", "compare", "prompts", "metadata"),
    ):
        assert any(f"`{name}" in row for row in rows), name
    for flag in ("--group", "--lora", "--sweep-models"):
        assert any(flag in row for row in rows), flag
    assert "held nothing out" in FIRST_SCREEN
    order = [FIRST_SCREEN.index(f"`{name}") for name in ("split", "check", "audit", "gate")]
    assert order == sorted(order), "in the order of use"
    assert len(FIRST_SCREEN.splitlines()) <= 30


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150
    assert (ROOT / "docs" / "report.png").stat().st_size < 150_000


def test_every_link_of_the_readme_has_its_file_and_heading() -> None:
    """On GitHub, which gives headings other anchors than the site."""
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", README) if not link.startswith("http")]
    assert len(links) > 20
    for link in links:
        name, _, anchor = link.partition("#")
        page = ROOT / (name or "README.md")
        assert page.exists(), link
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", [name for name in PAGES if "/reference/" not in name])
def test_every_link_of_a_page_leads_to_a_file_of_the_repository(page: str) -> None:
    """Pages are read in the repository as well as on the site, which makes pages that the repository lacks."""
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link}
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_command_is_named_in_the_readme_or_on_the_page_of_questions() -> None:
    pages = README + PAGES["docs/questions.md"]
    named = set(re.findall(r"`(?:diffleak )?([a-z]+)[ `]", pages))
    assert set(typer.main.get_command(cli.app).commands) - named <= {"reveal"}, "reveal is for runs with --anonymous"


@pytest.mark.parametrize("page", PAGES)
def test_paragraphs_begin_with_a_capital_and_headings_stand_alone(page: str) -> None:
    plain = re.sub(r"^```.*?^```", "```", PAGES[page], flags=re.M | re.S)
    paragraphs = [part for part in re.split(r"\n\s*\n|^```$", plain, flags=re.M) if part.strip()]
    assert [part[:60] for part in paragraphs if re.match(r"\s*(?!diffleak )[a-z]", part)] == []
    assert re.findall(r"[^\n]\n#{2,3} .*", plain) == []


@pytest.mark.parametrize("page", PAGES)
def test_no_paragraph_of_a_page_runs_on_from_a_list(page: str) -> None:
    """A line with one space before it, under a bullet, becomes part of the bullet; what belongs to it has two."""
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)
    assert re.findall(r"^ \S.*", prose, flags=re.M) == []
