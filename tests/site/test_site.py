"""The site, built strictly: no dead link or anchor, nothing from elsewhere, and every page fits a phone and a desk."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
from fixtures.browser import NEEDS_BROWSER, opened, resize
from fixtures.site import ROOT

from diffleak import cli
from diffleak.attacks import ATTACKS

mkdocs = pytest.importorskip("mkdocs.config", reason="the extra docs is not installed")
PHONE, DESK = (390, 844), (1280, 900)

# What a page has, and what sticks out of the window or of its own box: boxes that scroll by themselves, and what lies in them, aside.
LOOK = """
const root = document.documentElement, wide = root.clientWidth + 0.5, text = e => e.tagName + ' ' + e.textContent.trim().slice(0, 60);
const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
const out = [];
const walk = e => {
  const box = e.getBoundingClientRect();
  if (box.width && (box.right > wide || box.left < -0.5)) out.push(text(e));
  if (!scrolls(e) && e.tagName !== 'svg') [...e.children].forEach(walk);
};
document.querySelectorAll('.md-header__title, main .md-content, footer').forEach(walk);
return {
  overflow: root.scrollWidth - root.clientWidth,
  out,
  headed: [...document.querySelectorAll('article h1')].some(e => e.checkVisibility()),
  low: document.querySelector('article').getBoundingClientRect().height < 50,
  styled: getComputedStyle(document.querySelector('.md-header')).position === 'sticky',
  empty: [...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).map(i => i.src),
  asked: [window, ...Array.from(frames)].flatMap(w => w.performance.getEntriesByType('resource').map(e => e.name)),
};
"""
STILL = "document.head.appendChild(document.createElement('style')).textContent = '* {transition: none !important}'"
ELSEWHERE = """
const image = new Image(), done = arguments[0];
image.onload = image.onerror = () => setTimeout(done, 50);
image.src = 'http://diffleak.invalid/seen.png';
"""


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = opened(tmp_path_factory.mktemp("profile"), ("browser",))
    yield driver
    driver.quit()


@NEEDS_BROWSER
def test_every_page_fits_a_phone_and_a_desk_and_asks_no_other_machine(site: Path, pages: dict[str, Read], browser: Any) -> None:
    """The first page has the whole search; the others get the index of one page, since building the whole one takes half a second."""
    index = site / "search" / "search_index.js"
    before, _, whole = index.read_text(encoding="utf-8").partition("=")
    short = json.loads(whole)
    short["docs"] = short["docs"][:1]
    wrong: list[tuple[str, Any]] = []
    sizes = (PHONE, DESK)
    for name in ("index.html", *(set(pages) - {"index.html"})):
        browser.get((site / name).as_uri())
        browser.execute_script(STILL)
        sizes = sizes[::-1]  # the first is that which the page before had last
        for size in sizes:
            resize(browser, size)
            seen = browser.execute_script(LOOK)
            asked = seen.pop("asked")
            wrong += [(name, url) for url in asked if not url.startswith(("file:", "data:", "blob:"))]
            if seen != {"overflow": 0, "out": [], "headed": True, "low": False, "styled": True, "empty": []}:
                wrong.append((name, size, seen))
        wrong += [(name, entry["message"]) for entry in browser.get_log("browser")]
        index.write_text(f"{before}={json.dumps(short)}", encoding="utf-8")
    assert not wrong, "\n".join(map(str, wrong))
    browser.execute_async_script(ELSEWHERE)
    assert "http://diffleak.invalid/seen.png" in browser.execute_script(LOOK)["asked"], "a request to another machine would be seen"
