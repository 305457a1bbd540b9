"""In a real browser, on a phone and on a desk: nothing overflows, everything is there, nothing is fetched or complained about."""

from pathlib import Path

import pytest
from fixtures.browser import NEEDS_BROWSER, opened, resize
from fixtures.extraction import extraction_page
from fixtures.pages import KINDS
from fixtures.prompts import prompts_page
from fixtures.quality import PAIRS, quality_page
from fixtures.reports import LATENT_SHIFTS, MASKS, SHIFTS, audit_of, html, latent_audit, mapped_audit, thumbnail
from fixtures.runs import gaussian, make_run, swap_runs, write_quality

from diffleak.comparison.compare import compare
from diffleak.report import pages as report_pages
from diffleak.report import to_html
from diffleak.report.pages import comparison

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = NEEDS_BROWSER

PHONE, PHONE_390, TABLET, DESK = (375, 812), (390, 844), (768, 1024), (1280, 900)
OTHERS = ("geometry", "geometry-long", "masks", "maps", "compare", "compare-long", "quality-long", "prompts", "extract", "extract-long")
LONG = {"sima": 1.5, "sima_mc(m=10,variant=norms,timesteps=50:150:50,p=4.0,normalisation=standardised)": 1.0}

# Elements that stick out of the page or of their own box, those in a scroll container aside.
OVERFLOWING = """
const wide = document.documentElement.clientWidth + 0.5, out = [];
for (const e of document.body.querySelectorAll('*')) {
  if (e.closest('svg') || e.closest('.scroll')?.scrollWidth > e.closest('.scroll')?.clientWidth) continue;
  const box = e.getBoundingClientRect();
  if (!box.width) continue;
  const inline = getComputedStyle(e).display === 'inline';
  const sticksOut = box.right > wide || box.left < -0.5 || (!inline && e.scrollWidth > e.clientWidth + 1);
  if (sticksOut) out.push(e.tagName + ' ' + e.textContent.slice(0, 60));
}
return out;
"""
SCROLLING = """
return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth + 1).map(s =>
  s.textContent.trim().slice(0, 60) + ' ' + [...s.querySelectorAll('td > *')].filter(e => e.getBoundingClientRect().right >
    s.getBoundingClientRect().right).map(e => e.textContent).slice(0, 3));
"""
SMALLEST = """
return Math.min(...[...document.querySelectorAll('p, li, td, th, dd, dt, small, figcaption, pre')].filter(e => e.checkVisibility() &&
  e.textContent.trim()).map(e => parseFloat(getComputedStyle(e).fontSize)));
"""
OUTSIDE_FIGURE = """
const out = [];
for (const svg of document.querySelectorAll('svg[role=img]')) {
  const frame = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll('text')) {
    const box = text.getBoundingClientRect();
    const across = box.left < frame.left - 1 || box.right > frame.right + 1;
    if (across || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) out.push(text.textContent);
  }
}
return out;
"""
OUTSIDE_TRACK = """
return [...document.querySelectorAll('.track')].filter(track => [...track.children].some(mark => {
  const outer = track.getBoundingClientRect(), inner = mark.getBoundingClientRect();
  return inner.left < outer.left - 12 || inner.right > outer.right + 12;
})).length;
"""
BOXES = "[...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
SIZES = f"return {BOXES}.map(b => [b.width, b.height])"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = opened(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A page of every kind."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, made in KINDS.items():
        (folder / f"{name}.html").write_text(made(folder / name), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    cases = {"leak": (SHIFTS, thumbnail), "null": (dict.fromkeys(SHIFTS, 0.0), None), "long": (LONG, None)}
    for name, (shifts, pictures) in cases.items():
        (folder / f"{name}.html").write_text(html(*audit_of(shifts, 600), pictures), encoding="utf-8")
    latent = {"geometry": (latent_audit(), thumbnail), "geometry-long": (latent_audit(shifts=LONG), None)}
    latent["masks"] = (latent_audit(("influence:0.4", "influence:auto", "random:0.4"), geometry=False), None)
    for name, (audit, pictures) in latent.items():
        (folder / f"{name}.html").write_text(html(*audit, pictures), encoding="utf-8")
    (folder / "maps.html").write_text(html(*mapped_audit()), encoding="utf-8")
    for name, record in comparisons(tmp_path_factory.mktemp("runs")).items():
        (folder / f"{name}.html").write_text(to_html(comparison.page(record)), encoding="utf-8")
    for name, long in {"quality": False, "quality-long": True}.items():
        (folder / f"{name}.html").write_text(quality_page(long), encoding="utf-8")
    for name, long in {"extract": False, "extract-long": True}.items():
        (folder / f"{name}.html").write_text(extraction_page(long), encoding="utf-8")
    (folder / "prompts.html").write_text(prompts_page(), encoding="utf-8")
    return folder


def comparisons(folder):
    """A comparison with everything in it, and one with long names and neither quality nor teachers."""
    label = next(a for a in LONG if "(" in a)
    attacks = {"sima": gaussian(1.5), label: gaussian(1.0), "loss": gaussian(0.5)}
    weaker = {a: gaussian(0.2) for a in attacks}
    made = [make_run(folder / name, a, seed=i) for i, (name, a) in enumerate([("undefended", attacks), ("distilled", weaker)])]
    one, two, _ = swap_runs(folder, d=1.0, difficulty=3.0)
    for i, run in enumerate((*made, one)):
        write_quality(run, kid=0.01 + 0.004 * i)
    name = "a-name-that-is-very-long-" * 3
    return {
        "compare": compare([*map(str, made), f"dual={one},{two}"]),
        "compare-long": compare([f"{name}1={made[0]}", f"{name}2={made[1]}"], quality=[]).model_copy(update={"quality_metric": None}),
    }


def show(browser, pages, name, size):
    resize(browser, size)
    browser.get((pages / f"{name}.html").as_uri())


@pytest.mark.parametrize("name", ["leak", "null", "long", "quality"])
def test_nothing_overflows(browser, pages, name):
    for size in (PHONE, TABLET, DESK):
        show(browser, pages, name, size)
        check_nothing_overflows(browser, size)


@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
def test_no_kind_of_page_overflows_and_a_phone_shows_tables_without_scrolling(browser, pages, kinds, name):
    for size in (PHONE, PHONE_390, TABLET, DESK):
        show(browser, kinds if name in KINDS else pages, name, size)
        check_nothing_overflows(browser, size)
        if size in (PHONE, PHONE_390):
            assert browser.execute_script(SCROLLING) == [], size
            assert browser.execute_script(SMALLEST) >= 10, "text that a phone's reader can read"


def check_nothing_overflows(browser, size):
    """Fails where something of the page that is shown, with all that is folded opened, sticks out."""
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.execute_script("const e = document.documentElement; return e.scrollWidth - e.clientWidth") <= 0, size
    assert browser.execute_script(OVERFLOWING) == [], size
    assert browser.execute_script(OUTSIDE_FIGURE) == [], size


def test_every_kind_of_page_is_opened():
    modules = {path.stem for path in Path(report_pages.__path__[0]).glob("*.py")} - {"__init__"}
    names = {"comparison": "compare", "extraction": "extract"}
    assert {names.get(each, each) for each in modules} <= {kind.partition("-")[0] for kind in (*KINDS, *OTHERS)}


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_every_section_and_figure_is_there_and_images_load_without_a_complaint(browser, pages, size):
    browser.get_log("browser")
    show(browser, pages, "leak", size)
    expected = {"section": 12, "figure > svg[role=img]": 3 + len(SHIFTS) - 1, ".exposed img": 12, "tbody tr": len(SHIFTS)}
    for selector, number in expected.items():
        sizes = browser.execute_script(SIZES, selector)
        assert len(sizes) == number
        assert all(width > 40 and height > 40 for width, height in sizes), (selector, sizes)
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_geometry_section_shows_its_figures_and_pictures_and_folds_the_long_table(browser, pages, size):
    browser.get_log("browser")
    show(browser, pages, "geometry", size)
    for selector, number in {"#geometry figure > svg[role=img]": 4, "#geometry .gallery img": 24, "#masks summary": 1}.items():
        sizes = browser.execute_script(SIZES, selector)
        assert len(sizes) == number
        assert all(width > 40 and height > 20 for width, height in sizes), (selector, sizes)
    visible = "return [...document.querySelectorAll('#masks tbody tr')].filter(e => e.checkVisibility()).length"
    assert browser.execute_script(visible) == 0
    browser.execute_script("document.querySelector('#masks summary').click()")
    assert browser.execute_script(visible) == len(LATENT_SHIFTS) * len(MASKS)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_of_quality_shows_its_images_and_tables(browser, pages, size):
    browser.get_log("browser")
    show(browser, pages, "quality", size)
    for selector, number in {"section": 7, ".grid img": 64, ".pairs img": 2 * PAIRS, "tbody tr": 6 + 5}.items():
        sizes = browser.execute_script(SIZES, selector)
        assert len(sizes) == number, selector
        assert all(width > 40 and height > 20 for width, height in sizes), (selector, sizes)
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_of_copies_shows_each_member_beside_its_drawing(browser, pages, size):
    browser.get_log("browser")
    show(browser, pages, "extract", size)
    boxes = browser.execute_script(f"return {BOXES}.map(b => [b.left, b.top, b.width, b.height])", ".copied img")
    assert len(boxes) == 48
    for member, drawing in zip(boxes[::2], boxes[1::2], strict=True):
        assert member[1:] == pytest.approx(drawing[1:], abs=0.1) and member[0] + member[2] <= drawing[0], "side by side, of one size"
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_of_prompts_shows_twelve_images_each_beside_its_map(browser, pages, size):
    browser.get_log("browser")
    show(browser, pages, "prompts", size)
    boxes = browser.execute_script(f"return {BOXES}.map(b => [b.left, b.top, b.width, b.height])", ".maps img")
    assert len(boxes) == 24
    for image, map in zip(boxes[::2], boxes[1::2], strict=True):
        assert image[1:] == pytest.approx(map[1:], abs=0.1) and image[0] + image[2] <= map[0], "side by side, of one size"
        assert min(*image[2:], *map[2:]) > 100
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("name", ["geometry", "masks", "compare", "quality", "extract"])
def test_other_tables_fit_a_desk_without_scrolling(browser, pages, name):
    show(browser, pages, name, DESK)
    assert set(browser.execute_script("return [...document.querySelectorAll('.scroll')].map(s => s.scrollWidth - s.clientWidth)")) == {0}


@pytest.mark.parametrize("name", ["leak", "geometry", "compare"])
@pytest.mark.parametrize(("size", "smallest"), [(PHONE, 8), (DESK, 11)], ids=["phone", "desk"])
def test_text_in_figures_can_be_read(browser, pages, size, smallest, name):
    show(browser, pages, name, size)
    heights = [height for _, height in browser.execute_script(SIZES, "svg[role=img] text")]
    assert min(heights) > smallest


def test_the_whole_table_fits_a_desk_without_scrolling(browser, pages):
    show(browser, pages, "leak", DESK)
    assert browser.execute_script("const s = document.querySelector('.scroll'); return s.scrollWidth - s.clientWidth") <= 0


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_comparison_shows_every_section_every_difference_and_the_scatter(browser, pages, size):
    browser.get_log("browser")
    show(browser, pages, "compare", size)
    for selector, number in {"section": 9, "figure > svg[role=img]": 1, ".track[role=img]": 8, "#swap tbody tr": 2}.items():
        sizes = browser.execute_script(SIZES, selector)
        assert len(sizes) == number
        assert all(width > 40 and height > 15 for width, height in sizes), (selector, sizes)
    assert browser.execute_script(OUTSIDE_TRACK) == 0
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("name", ["leak", "compare", "quality", "extract"])
def test_the_page_makes_no_request(browser, pages, name):
    browser.get_log("performance")
    show(browser, pages, name, DESK)
    sent = [entry["message"] for entry in browser.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]]
    assert not [m for m in sent if '"url":"file:' not in m and '"url":"data:' not in m]
