"""The site, built strictly: no dead link or anchor, nothing from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
from fixtures.site import ROOT

from diffleak import cli
from diffleak.attacks import ATTACKS

mkdocs = pytest.importorskip("mkdocs.config", reason="the extra docs is not installed")


class Read(HTMLParser):
    """The anchors, links and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect") and given.get("href"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NO_MKDOCS_2_WARNING", "1")
        settings = mkdocs.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        build(settings)  # ends with Abort for any warning
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Read]:
    return {
        page.relative_to(site).as_posix(): Read(page.read_text(encoding="utf-8"))
        for page in site.rglob("*.html")
        if page.name != "404.html"
    }


def test_no_link_or_anchor_is_dead_and_nothing_comes_from_elsewhere(site: Path, pages: dict[str, Read]) -> None:
    assert len(pages) > 50
    dead = []
    for name, page in pages.items():
        for link in (*page.links, *page.loaded):
            if link.startswith(("http:", "https:", "mailto:", "data:")):
                continue
            path, _, anchor = link.partition("#")
            target = ((site / name).parent / unquote(path)).resolve() if path else site / name
            known = pages.get(target.relative_to(site).as_posix()) if target.is_relative_to(site) else None
            if not target.is_file() or (anchor and known and unquote(anchor) not in known.ids):
                dead.append((name, link))
        assert [link for link in page.loaded if link.startswith(("http:", "https:", "//"))] == [], name
    assert dead == []


def test_the_reference_has_every_command_option_attack_and_record(site: Path) -> None:
    def text(name: str) -> str:
        return re.sub(r"<[^>]+>", "", (site / name).read_text(encoding="utf-8"))

    commands, attacks, records = (text(name) for name in ("reference/commands.html", "attacks.html", "reference/records.html"))
    for name, command in typer.main.get_command(cli.app).commands.items():
        assert f"diffleak {name} " in commands
        for option in command.make_context(name, [], resilient_parsing=True).command.params:
            assert all(flag in commands for flag in option.opts if flag.startswith("-")), (name, option.opts)
    assert set(ATTACKS) <= set(re.findall(r"\w+", attacks))
    for path in (ROOT / "src" / "diffleak" / "records").glob("*.py"):
        for kind in re.findall(r"^class (\w+)\(Record\)", path.read_text(encoding="utf-8"), flags=re.M):
            assert re.search(rf"\b{kind}\b", records), f"{kind} of {path.name} is not on the page: add its module to docs/hooks.py"
