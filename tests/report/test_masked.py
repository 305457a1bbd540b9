"""The report of latent models: what masks add, controls that never lead, and the geometry of the decoder."""

import io
import re

import pytest
from fixtures.reports import EVIL, LATENT_SHIFTS, MASKS, html, latent_audit, markdown, print_terminal, thumbnail
from rich.console import Console

from diffleak.records.audit import Blind, Gain, Geometry
from diffleak.records.base import Estimate
from diffleak.report import verdict
from diffleak.report.figures import geometry as figures
from diffleak.report.sections.audit import geometry as words
from diffleak.report.sections.audit.masks import masks_table, summaries
from diffleak.report.selection import shown
from diffleak.report.table import table
from diffleak.report.wording import medians
from diffleak.stats import evaluation

pytestmark = pytest.mark.usefixtures("undrawn")

PAPER = ("influence:0.4", "influence:auto", "random:0.4", "reverse:0.4")
UNKNOWN = Estimate(reason="needs > 2 members, has 1")
NOTHING = Gain(auc=UNKNOWN, asr=UNKNOWN, tpr_at_1pct=UNKNOWN)


@pytest.fixture(scope="module")
def studied():
    return latent_audit()


@pytest.fixture(scope="module")
def few():
    return latent_audit(PAPER, geometry=False)


@pytest.fixture(scope="module")
def page(studied):
    return html(*studied, thumbnail)


def changed(record, label, /, **update):
    """The record with some fields of one result replaced."""
    results = tuple(r.model_copy(update=update) if r.attack == label else r for r in record.results)
    return record.model_copy(update={"results": results})


def with_gain(record, attack, **auc):
    """The record with another AUC difference of one masked result."""
    gain = record.result(attack).gain.model_copy(update={"auc": Estimate(**auc)})
    return changed(record, attack, gain=gain)


def geometry_with(record, **update):
    return record.model_copy(update={"geometry": record.geometry.model_copy(update=update)})


def section(page, name):
    return re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL).group()


def plain(page):
    """The words of a page, as they read."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page.replace("<wbr>", ""))).replace("&nbsp;", " ")


def terminal(record, width):
    stream = io.StringIO()
    print_terminal(record, Console(file=stream, width=width))
    return stream.getvalue()


# --- controls never lead -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["random:0.4", "reverse:0.9"])
def test_a_control_is_never_the_headline_however_good_it_looks_on_calibrate(few, mask):
    record, _ = few
    best = record.results[0].model_copy(
        update={
            "attack": f"sima[{mask}]",
            "mask": mask,
            "per_timestep": tuple(p.model_copy(update={"auc": 0.99}) for p in record.results[0].per_timestep),
        }
    )
    assert evaluation.headline([best]) is None
    assert evaluation.headline([best, *record.results]) == evaluation.headline(record.results) != best.attack


def test_an_influence_mask_may_be_the_headline_and_the_verdict_says_what_it_is(few):
    record, samples = few
    record = record.model_copy(update={"headline": "sima[influence:0.4]"})
    judged = verdict(record)
    assert (judged.level, judged.attack) == ("leak", "sima[influence:0.4]")
    assert "sima[influence:0.4] is the attack sima with 40 % of each image's latent left out" in " ".join(judged.sentences)
    assert "sima[influence:0.4] is the attack sima" in plain(html(record, samples))


def test_a_control_never_finds_the_leak_and_does_not_count_as_a_look(few):
    record, _ = few
    chance, strong = Estimate(value=0.5, low=0.46, high=0.54), Estimate(value=0.9, low=0.88, high=0.92)
    for r in record.results:
        control = r.mask is not None and not r.mask.startswith("influence")
        record = changed(record, r.attack, auc=strong if control else chance)
    assert verdict(record).level == "no-leak-found"
    assert verdict(record.model_copy(update={"headline": "sima[random:0.4]"})).attack not in ("sima[random:0.4]", "sima[reverse:0.4]")
    found = changed(record, "pia", auc=Estimate(value=0.6, low=0.56, high=0.64))
    assert verdict(found).attack == "pia"
    looks = len(LATENT_SHIFTS) * 3  # unmasked, influence:0.4, influence:auto
    assert f"because {looks} attacks (masked ones included) were looked at" in " ".join(verdict(found).sentences)
    assert not any(row.headline for row in table(record.model_copy(update={"headline": "sima[random:0.4]"})).rows)


# --- what masks add ----------------------------------------------------------------------------------------------------


def test_every_attack_and_mask_has_a_row_with_its_differences_and_their_intervals(few):
    record, samples = few
    content = masks_table(record)
    rows = [(row.attack, row.cells[0].text) for row in content.rows]
    assert rows == [(a, m) for a in LATENT_SHIFTS for m in PAPER]
    gain = record.result("sima[influence:0.4]").gain
    cells = {c.title: cell for c, cell in zip(content.columns, content.rows[0].cells, strict=True)}
    assert cells["AUC difference"].text == f"{gain.auc.value:+.3f}"
    assert cells["AUC difference"].details == (f"[{gain.auc.low:+.3f}, {gain.auc.high:+.3f}]",)
    assert cells["Attack success difference (points)"].text == f"{100 * gain.asr.value:+.1f}"
    assert cells["AUC unmasked"].text == f"{record.result('sima').auc.value:.3f}"
    assert cells["AUC masked"].text == f"{record.result('sima[influence:0.4]').auc.value:.3f}"
    for text in (section(html(record, samples), "masks"), markdown(record), terminal(record, 160)):
        assert cells["AUC difference"].text in text and cells["Attack success difference (points)"].text in text


def test_the_ratio_is_named_only_where_the_calibrate_part_chose_it(few):
    record, _ = few
    details = {row.cells[0].text: row.cells[0].details for row in masks_table(record).rows}
    assert details == {"influence:0.4": (), "influence:auto": ("chose 30 %",), "random:0.4": (), "reverse:0.4": ()}
    assert "chose 30 %" in markdown(record) and "chose 30 %" in terminal(record, 160)


def test_each_kind_of_mask_is_summed_up_in_one_sentence(few):
    record, samples = few
    for attack, ends in {"sima": (0.01, 0.03), "pia": (0.02, 0.04), "secmi": (-0.01, 0.02), "loss": (-0.05, -0.01)}.items():
        record = with_gain(record, f"{attack}[influence:0.4]", value=sum(ends) / 2, low=ends[0], high=ends[1])
    record = with_gain(record, "loss[random:0.4]", reason="needs more images")
    said = summaries(record)
    assert said[0].startswith(
        "Leaving out 40 % of the latent coordinates, those that matter least to the decoded picture: of 4 attacks, 2 gain,"
    )
    assert "2 gain, 1 loses, 1 undecided. Under influence:auto: of 4 attacks" in said[0]
    assert "drawn at random (a control)" in said[1] and "1 not estimable" in said[1]
    assert "matter most to the decoded picture (a control)" in said[2]
    for text in (plain(html(record, samples)), " ".join(terminal(record, 100).split())):
        assert all(sentence in text for sentence in said)


def test_a_difference_that_is_not_estimable_keeps_its_reason_and_is_escaped(few):
    record, samples = few
    record = changed(record, "sima[influence:0.4]", gain=Gain(auc=Estimate(reason=EVIL), asr=UNKNOWN, tpr_at_1pct=UNKNOWN))
    record = changed(record, "pia[influence:0.4]", gain=None)
    page = html(record, samples)
    assert "<script" not in page and "&lt;script&gt;" in section(page, "masks")
    for text in (plain(section(page, "masks")), markdown(record), " ".join(terminal(record, 200).split())):
        assert "the difference is not in the record" in text
        assert UNKNOWN.reason in text.replace("&gt;", ">")


def test_labels_of_masks_that_try_to_break_out_are_escaped_everywhere(few):
    record, samples = few
    mask = f"influence:{EVIL}"
    record = changed(record, "sima[influence:0.4]", attack=f"sima[{mask}]", mask=mask)
    page = html(record, samples)
    assert "<script" not in page + markdown(record)
    assert "\x1b" not in page + markdown(record) + terminal(record, 200)


def test_pixel_audits_show_nothing_of_masks_or_geometry(few):
    record, samples = few
    bare = record.model_copy(update={"results": record.results[:1], "plan": record.plan.model_copy(update={"masks": ()})})
    page = html(bare, samples)
    assert 'id="masks"' not in page and 'id="geometry"' not in page
    assert "What masks add" not in page + markdown(bare) + terminal(bare, 100)


# --- what is shown -----------------------------------------------------------------------------------------------------


def test_a_study_of_geometry_shows_unmasked_and_paper_masks_first_and_the_rest_in_its_tables(studied, page):
    record, _ = studied
    labels = [r.attack for r in shown(record)]
    masked = [a for a in labels if "[" in a]
    assert masked == [f"{a}[influence:0.4]" for a in LATENT_SHIFTS]
    assert [row.attack for row in table(record).rows] == labels
    assert "sima[random:0.4]" not in section(page, "roc") + section(page, "timesteps") + section(page, "scores")
    assert len(masks_table(record).rows) == len(LATENT_SHIFTS) * len(MASKS)
    assert "What masks add" in plain(section(page, "attacks"))
    assert "<details>" in section(page, "masks")


def test_the_result_that_the_verdict_speaks_of_is_always_shown(studied):
    record = studied[0].model_copy(update={"headline": "pia[influence:0.7]"})
    assert "pia[influence:0.7]" in [r.attack for r in shown(record)]
    assert next(row for row in table(record).rows if row.headline).attack == "pia[influence:0.7]"


def test_without_a_study_of_geometry_every_result_is_shown(few):
    assert shown(few[0]) == few[0].results


# --- geometry ----------------------------------------------------------------------------------------------------------


def test_the_geometry_section_has_its_figures_tables_galleries_and_links(studied, page):
    text = section(page, "geometry")
    labels = re.findall(r'<svg [^>]*aria-label="([^"]*)"', text)
    assert len(labels) == 4
    assert text.count("data:image/png") == len(studied[0].geometry.highest) + len(studied[0].geometry.lowest) == 24
    assert 'href="#geometry"' in page and 'href="#masks"' in page
    for term in ("Latent", "Decoder", "Influence", "Distortion", "Mask"):
        assert f"<dt>{term}</dt>" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_facts_of_masks_are_listed_for_those_who_repeat_the_audit(studied, page):
    facts = plain(section(page, "reproduce"))
    assert ", ".join(MASKS) in facts
    assert "8 per image" in facts and "the 20 largest" in facts and "Classes10" in facts


def test_the_difference_between_quarters_is_said_in_each_direction(studied):
    geometry = studied[0].geometry
    said = lambda **gap: words.high_minus_low(geometry.model_copy(update={"high_minus_low": Estimate(**gap)}))
    assert "does better on the images that the decoder distorts most" in said(value=0.1, low=0.02, high=0.18)
    assert "does worse on the images that the decoder distorts most" in said(value=-0.1, low=-0.18, high=-0.02)
    assert "one cannot be excluded" in said(value=0.1, low=-0.02, high=0.22)
    assert "could not be estimated (no attack was run)" in said(reason="no attack was run")


def test_distortion_alone_is_judged_in_both_directions_with_the_autoencoder_as_a_possible_reason(studied):
    geometry = studied[0].geometry
    said = lambda **auc: words.alone(geometry.model_copy(update={"distortion_auc": Estimate(**auc)}))
    for auc in ({"value": 0.7, "low": 0.65, "high": 0.75}, {"value": 0.3, "low": 0.25, "high": 0.35}):
        assert said(**auc).startswith("Distortion alone tells members apart")
        assert "autoencoder may have been trained on the members" in said(**auc)
    assert said(value=0.52, low=0.48, high=0.56).startswith("No sign")
    assert "could not be estimated" in said(reason="one side is empty")


def test_correlations_say_direction_interval_and_radius_or_that_there_is_none(studied):
    geometry = studied[0].geometry
    said = lambda **r: words.frequencies(geometry.model_copy(update={"low_frequency": Estimate(**r)}))[0]
    assert "are distorted more (correlation +0.300, 95 % interval [+0.200, +0.400]; up to 5 cycles per image)" in said(
        value=0.3, low=0.2, high=0.4
    )
    assert "are distorted less" in said(value=-0.3, low=-0.4, high=-0.2)
    assert "No clear relation" in said(value=0.02, low=-0.1, high=0.14)
    assert "could not be estimated (needs at least 4 images)" in said(reason="needs at least 4 images")


def test_the_short_version_is_in_the_terminal_and_in_markdown(studied):
    record, _ = studied
    said = words.sentences(record)
    assert len(said) == 7  # quarters, their difference, distortion alone, two correlations, two filters
    assert "highest 0." in said[0] and "at timestep 100" in said[0]
    shown_text = " ".join(terminal(record, 100).split())
    unescaped = markdown(record).replace("\\", "")
    for sentence in said:
        assert sentence in shown_text and sentence in unescaped


def test_attacks_are_compared_without_a_mask_with_it_and_with_both_controls(studied):
    record, _ = studied
    rows = [(row.attack, row.cells[0].text) for row in words.controls_table(record).rows]
    assert rows == [(a, m) for a in LATENT_SHIFTS for m in ("unmasked", "influence:0.4", "random:0.4", "reverse:0.4")]


def test_the_sweep_starts_unmasked_and_keeps_the_reversed_mask_apart(studied):
    record, _ = studied
    of = lambda attack: [r for r in record.results if r.attack == attack or r.attack.startswith(f"{attack}[")]
    (sweep,) = figures.sweeps([("sima", of("sima")), ("loss_frequency", of("loss_frequency"))])
    assert sweep.attack == "sima"
    assert sweep.ratios == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert sweep.aucs[0] == record.result("sima").auc.value and sweep.aucs[4] == record.result("sima[influence:0.4]").auc.value
    assert sweep.reverse == (0.9, record.result("sima[reverse:0.9]").auc.value)


def test_the_filter_stands_beside_the_mask(studied):
    record, _ = studied
    content = words.filters_table(record)
    assert [(row.attack, row.access) for row in content.rows] == [("loss", "loss_frequency"), ("pia", "pia_frequency")]
    gain, mask = record.geometry.filters[0].gain, record.result("loss[influence:0.4]").gain
    assert [cell.text for cell in content.rows[0].cells[:2]] == [f"{gain.auc.value:+.3f}", f"{mask.auc.value:+.3f}"]
    alone = record.model_copy(update={"results": tuple(r for r in record.results if r.mask != "influence:0.4")})
    assert any("influence:0.4 was not run" in note for note in words.filters_table(alone).notes)


def test_pictures_of_extreme_distortion_are_shown_only_with_thumbnails_and_ids_are_escaped(studied):
    record = geometry_with(studied[0], highest=(EVIL, "elsewhere.png"))
    page = html(record, studied[1])
    text = section(page, "geometry")
    assert "<img" not in text and "--thumbnails" in text and "private" in text
    assert "<script" not in page and "&lt;script&gt;" in text and "\x1b" not in page
    assert "unknown side" in text


def test_a_geometry_of_which_nothing_could_be_estimated_renders_with_its_reasons(studied):
    record, samples = studied
    empty = Geometry(
        top=20, probes=8, attack=None, quartiles=(), band=(), high_minus_low=UNKNOWN, distortion_auc=UNKNOWN, radius=5.0,
        low_frequency=UNKNOWN, high_frequency=UNKNOWN, highest=(), lowest=(), filters=(),
    )  # fmt: skip
    bare = record.model_copy(update={"geometry": empty, "results": (record.results[0],)})
    for text in (plain(section(html(bare, samples), "geometry")), markdown(bare), " ".join(terminal(bare, 100).split())):
        assert text.replace("&gt;", ">").replace("\\", "").count(UNKNOWN.reason) >= 4
    text = plain(section(html(bare, samples), "geometry"))
    for missing in ("No attack was run under these masks", "no sweep to draw", "The record names none", "with the frequency filter"):
        assert missing in text


def test_quarters_and_filters_that_lack_an_estimate_keep_the_others(studied):
    record, samples = studied
    first, *rest = record.geometry.quartiles
    quartiles = (first.model_copy(update={"auc": UNKNOWN, "per_timestep": (), "n_members": 1}), *rest)
    filters = tuple(f.model_copy(update={"gain": NOTHING}) for f in record.geometry.filters)
    record = geometry_with(record, quartiles=quartiles, filters=filters, band=(), high_frequency=UNKNOWN)
    page = html(record, samples)
    text = plain(section(page, "geometry"))
    assert "lowest: not estimable (needs &gt; 2 members, has 1)" in text and "highest: 0." in text
    assert "random quarters" not in text
    assert "What the frequency filter changes for loss could not be estimated" in markdown(record)


def test_an_invalid_audit_shows_neither_masks_nor_geometry(studied):
    record = studied[0].model_copy(update={"blind": Blind(value=0.81, low=0.78, high=0.84)})
    page, text = html(record, studied[1]), terminal(record, 120) + markdown(record)
    assert 'id="masks"' not in page and 'id="geometry"' not in page and "<svg" not in page
    assert "What masks add" not in text and "Geometry" not in text


def test_titles_of_masks_and_geometry_claim_no_leak(page):
    titles = " ".join(re.findall(r"<h[234][^>]*>(.*?)</h[234]>", page.partition("</nav>")[2]))
    assert "Geometry: attacks and the decoder" in titles and not re.search(r"\bleaks?\b", titles)


def test_medians_over_repeated_divisions_are_named_in_the_geometry(studied):
    record = studied[0].model_copy(update={"split": studied[0].split.model_copy(update={"repeats": 25})})
    assert "the first of 25 random divisions" in section(html(record, studied[1]), "geometry")


def test_the_page_of_a_latent_audit_is_the_same_bytes_each_time(studied, page, drawn):
    first, second = (html(*studied, thumbnail) for _ in range(2))
    assert first == second and len(first) > len(page), "figures are drawn"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_terminal_line_is_wider_than_the_terminal_with_masks(studied, few, width):
    for record in (studied[0], few[0]):
        lines = terminal(record, width).splitlines()
        assert max(map(len, lines)) <= width
        assert any(re.match(r"sima +│ +influence:0.4 │.* \+0", line) for line in lines)


def test_tables_of_repeated_divisions_say_that_a_difference_need_not_be_that_of_the_columns(few):
    record, _ = few
    repeated = record.model_copy(update={"split": record.split.model_copy(update={"repeats": 25})})
    (said,) = medians(25)
    assert "the median over 25 random divisions" in said and medians(1) == ()
    assert summaries(repeated) == (*summaries(record), said) and said not in summaries(record)
