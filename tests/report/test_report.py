"""The report says what the record says: verdicts, reasons, escaping, the same bytes, no torch, nothing fetched from anywhere."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.reports import EVIL, MONTE_CARLO, SHIFTS, audit_of, html, markdown, print_terminal, thumbnail, without
from rich.console import Console
from sklearn.metrics import roc_curve

from diffleak.records.audit import Blind, Membership
from diffleak.records.base import Estimate
from diffleak.records.plan import Split
from diffleak.report import print_result, verdict
from diffleak.report import wording as w
from diffleak.report.audited import Audited
from diffleak.report.figures import audit as figures
from diffleak.report.judgement import FAIR, with_validity
from diffleak.report.sections.audit.exposed import most_exposed
from diffleak.report.table import table
from diffleak.stats import metrics

THREE = {"sima": 1.75, "pia": 0.8, MONTE_CARLO: 1.2}
DIFFERENT = Blind(value=0.81, low=0.78, high=0.84)


@pytest.fixture(scope="module")
def leak():
    return audit_of()


@pytest.fixture(scope="module")
def null():
    return audit_of(dict.fromkeys(THREE, 0.0), n=500, warnings=(), omitted=())


@pytest.fixture(scope="module")
def page(leak):
    return html(*leak, thumbnail)


def with_auc(record, **estimates):
    """The record with other AUCs: attack=(value, low, high)."""
    changed = {a: Estimate(value=v, low=low, high=high) for a, (v, low, high) in estimates.items()}
    results = tuple(r.model_copy(update={"auc": changed.get(r.attack, r.auc)}) for r in record.results)
    return record.model_copy(update={"results": results})


def terminal(record, width, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_terminal(record, Console(file=stream, width=width))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


# --- verdict ---------------------------------------------------------------------------------------------------------


def test_an_interval_above_one_half_is_a_leak_said_in_plain_words(leak):
    judged = verdict(leak[0])
    assert (judged.level, judged.attack) == ("leak", "sima")
    said = r"the attack named sima picks the member 8\d.\d % of the time \(95 % interval .* to .* %; 50 % is guessing\)"
    assert re.search(said, judged.sentences[0])
    assert re.search(r"At 1 % false alarms it catches \d+ % of the members", judged.sentences[1])


def test_an_interval_with_one_half_in_it_says_what_cannot_be_excluded_and_never_safe(null):
    record = with_auc(null[0], sima=(0.52, 0.48, 0.56))
    judged = verdict(record)
    assert judged.level == "no-leak-found"
    assert "up to 56.0 % of the time" in " ".join(judged.sentences)
    everything = html(record, null[1]) + markdown(record) + terminal(record, 100)
    assert not re.search(r"\b(safe|secure|private model)\b", everything, re.IGNORECASE)


def test_sides_that_differ_without_the_model_make_the_audit_invalid_before_anything_else(leak):
    judged = verdict(leak[0].model_copy(update={"blind": DIFFERENT}))
    assert judged.level == "invalid"
    assert "does not measure membership" in judged.title
    assert "81 %" in judged.sentences[0]


def test_a_blind_interval_between_one_half_and_the_limit_is_a_caution_not_an_invalid_audit(leak):
    record = leak[0].model_copy(update={"blind": Blind(value=0.56, low=0.53, high=0.59)})
    judged = verdict(record)
    assert judged.level == "leak"
    assert "may come from the images and not from the model" in judged.sentences[-1]
    said = "with a reservation: part of what the attacks find may come from a difference between the two sides, and not from the model"
    assert said in markdown(record)
    page = Path(__file__).parents[2] / "docs" / "report.md"
    assert said.replace(":", "*:") in page.read_text(encoding="utf-8"), "the page quotes it"


def test_a_blind_check_that_was_not_possible_is_said_with_its_reason_and_leaves_the_verdict_undecided(leak):
    judged = verdict(leak[0].model_copy(update={"blind": Blind(reason="needs >= 50 images a side, has 9")}))
    assert "(needs >= 50 images a side, has 9)" in judged.sentences[-2]
    assert judged.level == "undecided" and judged.title.startswith("Undecided: members can be told apart")


def test_an_interval_below_one_half_is_reported_as_pointing_the_wrong_way(null):
    judged = verdict(with_auc(null[0], sima=(0.3, 0.26, 0.34)))
    assert judged.level == "undecided" and judged.title == "Undecided: the scores of sima separate the sides, but the wrong way round."


def test_what_cannot_be_excluded_counts_answers_the_other_way_round_as_limits_do(null):
    below, above, even = (
        " ".join(verdict(with_auc(null[0], sima=auc)).sentences) for auc in ((0.44, 0.37, 0.51), (0.54, 0.49, 0.61), (0.5, 0.46, 0.54))
    )
    assert "picks the member up to 51.0 % of the time, or up to 63.0 % with its answers reversed; more images" in below
    assert "up to 61.0 % of the time; more images" in above and "up to 54.0 % of the time; more images" in even


def test_another_attack_counts_only_if_it_survives_the_correction_for_looking_at_all(null):
    nothing = {"sima": (0.5, 0.46, 0.54), MONTE_CARLO: (0.5, 0.46, 0.54)}
    assert verdict(with_auc(null[0], pia=(0.545, 0.505, 0.585), **nothing)).level == "no-leak-found"
    judged = verdict(with_auc(null[0], pia=(0.6, 0.56, 0.64), **nothing))
    assert (judged.level, judged.attack) == ("leak", "pia")
    assert "The attack chosen beforehand, sima, finds nothing" in " ".join(judged.sentences)


def test_without_a_headline_the_strongest_attack_is_judged_with_a_widened_interval(leak):
    judged = verdict(leak[0].model_copy(update={"headline": None}))
    assert (judged.level, judged.attack) == ("leak", "sima")
    assert "No attack was chosen beforehand" in " ".join(judged.sentences)


def test_the_strongest_of_several_attacks_is_not_said_to_include_one_half_when_its_printed_interval_does_not(null):
    nothing = dict.fromkeys([each.attack for each in null[0].results], (0.5, 0.46, 0.54))
    of = lambda low: verdict(with_auc(null[0], **nothing | {"pia": (0.545, low, 0.59)}).model_copy(update={"headline": None}))
    above, touching = " ".join(of(0.505).sentences), " ".join(of(0.5).sentences)
    assert (of(0.505).level, of(0.505).attack) == ("no-leak-found", "pia") and "95 % interval 50.5 to 59.0 %" in above
    assert "The interval includes 50 %" not in above and "Widened to allow for that, the interval includes 50 %" in above
    assert f"the strongest of {len(null[0].results)}, and" in above and "The interval includes 50 %" in touching


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        (None, "access)."),
        ("own", "The model was given each image's own caption, so the attacker must know it."),
        ("empty", "The model was given no captions; an attacker who knows them may find more."),
        ("swapped", "The model was given another image's caption with each image: a check of what captions give away, not of the risk."),
        ("fixed:a cat", "The model was given the same caption with every image; an attacker who knows their own may find more."),
        ("texts.csv", "The model was given the captions in texts.csv, so the attacker must know them."),
    ],
)
def test_the_verdict_says_what_the_model_was_told_of_each_image(leak, captions, said):
    plan = leak[0].plan.model_copy(update={"captions": captions})
    assert any(sentence.endswith(said) for sentence in verdict(leak[0].model_copy(update={"plan": plan})).sentences)


def test_without_results_or_without_an_interval_there_is_no_verdict(leak):
    record, samples = leak
    empty = record.model_copy(update={"headline": None, "results": ()})
    short = record.results[0].model_copy(update={"auc": Estimate(reason="needs at least 2 members and 2 non-members")})
    unknown = record.model_copy(update={"results": (short,)})
    assert verdict(empty).level == verdict(unknown).level == "invalid"
    assert "needs at least 2 members" in verdict(unknown).sentences[0]
    for case in (empty, unknown):
        assert "No verdict" in html(case, samples)
        assert "No verdict" in markdown(case)
        assert "No verdict" in terminal(case, 80)


def test_few_exposed_images_are_mentioned_although_the_average_shows_nothing(null):
    record = with_auc(null[0], sima=(0.51, 0.47, 0.55))
    first, *others = record.results
    rates = tuple(r.model_copy(update={"value": 0.08, "low": 0.04, "high": 0.12}) for r in first.tpr_at_fpr)
    record = record.model_copy(update={"results": (first.model_copy(update={"tpr_at_fpr": rates}), *others)})
    assert "a few images may be exposed" in " ".join(verdict(record).sentences)


def test_where_nothing_leaks_a_leak_is_called_at_most_one_time_in_twenty(null):
    rng, runs, called = np.random.default_rng(0), 300, 0
    for _ in range(runs):
        aucs = [metrics.auc_estimate(rng.normal(size=150), rng.normal(size=150)) for _ in null[0].results]
        results = tuple(r.model_copy(update={"auc": auc}) for r, auc in zip(null[0].results, aucs, strict=True))
        called += verdict(null[0].model_copy(update={"results": results})).level == "leak"
    assert called / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_medians_over_repeated_divisions_are_named(leak):
    split = Split(**{**leak[0].split.model_dump(), "repeats": 25})
    record = leak[0].model_copy(update={"split": split})
    said = " ".join(verdict(record).sentences)
    assert "median over 25 random divisions" in said and "were chosen on other images" not in said
    assert "first of 25 random divisions" in html(record, leak[1])


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (0.862, 0.891, 0.918, ("89 %", "86 to 92 %")),
        (0.501, 0.504, 0.507, ("50.4 %", "50.1 to 50.7 %")),
        (0.9991, 1.0, 1.0, ("100 %", "99.9 to 100 %")),
        (0.0, 0.00004, 0.0003, ("0.004 %", "0 to 0.03 %")),
    ],
)
def test_spoken_rates_keep_the_decimals_that_matter(low, value, high, said):
    assert w.spoken(Estimate(value=value, low=low, high=high)) == said


def test_exposure_is_said_as_one_in_n():
    assert w.exposed(0.0, 1600) == "none of the 1,600 held-out images scores as high"
    assert w.exposed(1 / 1600, 1600) == "about 1 in 1,600 held-out images scores as high"
    assert w.exposed(0.42, 1600) == "42 % of the held-out images score as high"


def test_what_does_not_print_is_spelled_out():
    assert w.visible(EVIL) == "<script>alert('x')</script>&\"|`é画\\x1b[2J\\u202e\\udcff.png"


def test_moments_and_durations_read_like_speech():
    assert w.moment("2025-01-31T12:00:05+00:00") == w.moment("2025-01-31T12:00:05Z") == "2025-01-31 12:00 UTC"
    assert w.moment("yesterday") == "yesterday"
    assert [w.duration(s) for s in (4.25, 754.2, 7260.0)] == ["4.2 s", "12 min 34 s", "2 h 1 min"]


# --- table, terminal, Markdown ---------------------------------------------------------------------------------------


def test_what_is_not_estimable_is_shown_with_its_reason_everywhere(null):
    record, samples = null
    reason = "TPR at 0.1 % FPR: not estimable (needs >= 1000 non-members, has 400)"
    assert reason in table(record).notes
    assert reason in terminal(record, 220)
    assert reason.replace(">", "&gt;") in markdown(record)
    page = html(record, samples).replace("&nbsp;", " ")
    assert reason.replace(">", "&gt;") in page
    assert re.search(r'title="not estimable \(needs &gt;= 1000 non-members, has 400\)"><span>n/e<sup>\d</sup>', page)


def test_the_baseline_is_shown_only_where_the_sides_are_unbalanced(leak):
    asr = leak[0].results[0].asr.model_copy(update={"baseline": 0.8})
    lopsided = leak[0].model_copy(update={"results": (leak[0].results[0].model_copy(update={"asr": asr}),)})
    assert "baseline 80.0 %" in markdown(lopsided)
    assert "baseline" not in markdown(leak[0])


def test_the_target_of_the_achieved_fpr_is_the_one_the_calibrate_part_could_support(leak):
    small, _ = audit_of({"sima": 1.0}, 60)
    assert "Achieved FPR (target 1 %)" in markdown(leak[0])
    assert "Achieved FPR (target 10 %)" in markdown(small)


@pytest.mark.parametrize("width", [60, 80, 120, 220])
def test_no_terminal_line_is_wider_than_the_terminal_and_hidden_columns_are_named(leak, width):
    shown = terminal(leak[0], width)
    assert max(map(len, shown.splitlines())) <= width
    assert "Yes: training images can be told apart" in " ".join(shown.split())
    assert "[0.8" in shown  # the interval of the headline's AUC stays at every width
    assert ("Not shown at this width" in shown) == (width < 200)
    assert "\x1b" not in shown


def test_a_terminal_without_unicode_still_gets_the_report(leak):
    assert "near-duplicates" in terminal(leak[0], 80, encoding="ascii")


def test_the_markdown_table_parses_and_holds_every_attack(leak):
    rows = [line for line in markdown(leak[0]).splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    assert len({len(row) for row in cells}) == 1
    assert set(re.sub(r"[\s:-]", "", "".join(cells[1]))) == set()
    assert [c[0].strip().strip("*").replace("\\", "") for c in cells[2:]] == list(SHIFTS)
    assert cells[2][0].strip() == "**sima**"
    assert "<script" not in markdown(leak[0])


def test_the_statistics_of_one_score_file_print_with_their_reasons(null):
    stream = io.StringIO()
    print_result(null[0].results[0], Console(file=stream, width=120))
    assert "not estimable (needs >= 1000 non-members, has 400)" in stream.getvalue()
    assert "400 members, 400 non-members" in stream.getvalue()


# --- HTML ------------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_has_no_script_and_asks_for_nothing(page):
    assert "<script" not in page.lower()
    page = re.sub(r'<a href="https://arxiv.org/abs/[0-9.]+">', "<a>", page)  # a link to a paper loads nothing until somebody follows it
    assert "http://" not in page and "https://" not in page and "@import" not in page
    for tag, attributes in Elements(page).found:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.findall(r"url\((?!#)", page)


def test_ids_and_labels_are_escaped_and_shown(page):
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page.replace("<wbr>", "")
    assert "\x1b" not in page and "\u202e" not in page
    page.encode("utf-8")
    assert MONTE_CARLO in page.replace("<wbr>", "")


def test_the_verdict_comes_first_then_warnings_then_the_sections_in_order(page):
    ids = [a["id"] for tag, a in Elements(page).found if tag == "section"]
    assert ids == [
        "verdict",
        "next",
        "limits",
        "attacks",
        "roc",
        "timesteps",
        "scores",
        "exposed",
        "costs",
        "file",
        "glossary",
        "reproduce",
    ]
    assert page.index("Yes: training images") < page.index('id="warnings"') < page.index('id="attacks"')


def test_element_ids_are_unique_and_every_reference_has_its_target(page):
    ids = [a["id"] for _, a in Elements(page).found if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) <= set(ids)


def test_every_figure_has_a_name_for_those_who_cannot_see_it(page):
    drawn = [a for tag, a in Elements(page).found if tag == "svg" and a.get("aria-hidden") != "true"]
    assert len(drawn) == 3 + len(SHIFTS) - 1
    assert all(a["role"] == "img" and a["aria-label"] for a in drawn)
    assert all(a["alt"] for tag, a in Elements(page).found if tag == "img")
    assert all(a.get("scope") in ("col", "row") for tag, a in Elements(page).found if tag == "th")
    assert re.search(r'<html lang="en-GB">', page) and "<caption>" in page and "<title>" in page


def test_the_same_record_gives_the_same_bytes(leak, page):
    assert html(*leak, thumbnail) == page


def test_bytes_do_not_depend_on_the_users_matplotlib_settings(leak, page):
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert html(*leak, thumbnail) == page


def test_images_are_shown_only_when_thumbnails_are_given(leak, page):
    assert page.count("data:image/png;base64,") == 12
    without_pictures = html(*leak)
    assert "<img" not in without_pictures
    assert "--thumbnails" in without_pictures and "private" in without_pictures


def test_the_most_exposed_member_of_the_test_half_leads_the_list(leak, page):
    first = re.search(r'<ol class="exposed">\s*<li>.*?</li>', page, re.DOTALL).group()
    assert "alert" in first and "none of the 1,600 held-out images scores as high" in first
    samples = leak[1]
    calibrate = {i for i, test in zip(samples.ids, samples.test, strict=True) if not test}
    shown = re.findall(r'class="id">(.*?)</span>', page.replace("<wbr>", ""))
    assert len(shown) == 12 and not calibrate & set(shown)


def test_near_duplicates_are_one_of_the_list_and_one_of_the_held_out_images_it_is_compared_with():
    """Held-out images in clusters of 20, members in pairs: rates are of clusters, of which the list has one image each."""
    record, samples = audit_of(n=500)
    samples, attack = replace(samples, ids=tuple(f"{i:04d}.png" for i in range(1000))), verdict(record).attack
    part = np.where(samples.member, np.arange(1000) // 2, 1000 + np.arange(1000) // 20)
    part = np.unique(np.stack([part, samples.test]), axis=1, return_inverse=True)[1]  # a cluster is in one part
    first = dict(zip(part[::-1], samples.ids[::-1], strict=True))
    clustered = replace(samples, units=tuple(first[each] for each in part), unit="cluster")
    table = pd.DataFrame({"cluster": clustered.units, "member": samples.member, "test": samples.test, "score": samples.scores[attack]})
    table = table[table.test].groupby("cluster").agg({"member": "first", "score": "mean"})
    top, held = table[table.member].score.nlargest(12), table[~table.member].score
    shares = [(held >= score).mean() for score in top]
    assert most_exposed(Audited(record, clustered)) == top.index.tolist()
    page = html(record, clustered).replace("<wbr>", "")
    said = [w.exposed(share, len(held)) for share in shares]
    items = re.findall(r"<li>.*?</li>", re.search(r'<ol class="exposed">.*?</ol>', page, re.DOTALL).group(), re.DOTALL)
    assert len(items) == 12 and all(words in " ".join(item.split()) for words, item in zip(said, items, strict=True))
    assert "Near-duplicates count as one image, with the mean of their scores." in page
    assert "Near-duplicates count as one image" not in html(record, samples)
    grouped = html(record, replace(clustered, unit="group"))
    assert "Images are compared one by one here" in grouped


def numbers_of(record):
    """Every number of the results, as the report would print it."""
    for result in record.results:
        for estimate in (result.auc, result.asr, *result.tpr_at_fpr):
            if estimate.value is not None:
                yield from (w.percent(estimate.value), f"{estimate.value:.3f}")


def test_an_invalid_audit_shows_why_and_what_to_do_and_nothing_else(leak):
    record, samples = leak
    invalid = record.model_copy(update={"blind": DIFFERENT, "warnings": ("sima: AUC 0.3133 is below 0.4",)})
    page, text, table_text = html(invalid, samples, thumbnail), terminal(invalid, 200), markdown(invalid)
    assert [a["id"] for tag, a in Elements(page).found if tag == "section"] == ["verdict", "file", "glossary", "reproduce"]
    assert not [tag for tag, _ in Elements(page).found if tag in ("img", "table", "figure", "ol")]
    for shown in (page.replace("&nbsp;", " "), text, table_text):
        assert "Invalid: the two sides come from different sources" in shown and "81 %" in shown
        assert "Divide one set of images at random" in shown
        assert not [number for number in numbers_of(record) if number in shown]
        assert not [i for i in samples.ids if i in shown] and "0.3133" not in shown
    unclicked = re.sub(r"<style>.*?</style>|<details>.*?</details>", "", page, flags=re.DOTALL).replace("&nbsp;", " ")
    assert "81 %" not in unclicked and "0.810" not in unclicked and "Divide one set" in unclicked
    assert "1,920,000" not in page and 'id="warnings"' not in page and "warning:" not in text and "Warnings" not in table_text


def test_what_is_allowed_to_differ_is_shown_under_a_headline_that_says_so(leak):
    record, samples = leak
    allowed = record.model_copy(update={"blind": DIFFERENT, "settings": {"allow_shift": True}})
    judged = verdict(allowed)
    assert judged.level == "undecided" and "the numbers below mix membership with that difference" in judged.title
    for shown in (html(allowed, samples), terminal(allowed, 200), markdown(allowed)):
        assert f"{record.results[0].auc.value:.3f}" in shown
    assert 'class="tile"' in html(allowed, samples)


def test_the_record_says_whether_it_is_valid_and_why_not(leak):
    cases = {"blind": DIFFERENT}, {"blind": DIFFERENT, "settings": {"allow_shift": True}}, {}
    found = [with_validity(leak[0].model_copy(update=case)) for case in cases]
    assert [record.valid for record in found] == [False, True, True]
    assert "come from different sources" in found[0].invalid_reason and "81 %" in found[0].invalid_reason
    assert found[1].invalid_reason is None and found[0].results == leak[0].results


CLAIMS = re.compile(r"where the model leaks|most exposed|leaks? (more|less)|leakage|at risk", re.IGNORECASE)


@pytest.mark.parametrize("level", ["leak", "no-leak-found", "undecided"])
def test_no_title_or_intro_claims_more_than_the_verdict(leak, null, level):
    record, samples = {"leak": leak, "no-leak-found": (with_auc(null[0], sima=(0.52, 0.48, 0.56)), null[1])}.get(level, leak)
    if level == "undecided":
        record = record.model_copy(update={"blind": Blind(reason="not made")})
    assert verdict(record).level == level
    page = html(record, samples)
    assert not CLAIMS.search(page.partition("</nav>")[2])
    said = {
        "leak": "the leak exposes most",
        "no-leak-found": "No leak was found, so this list",
        "undecided": "is undecided, as the verdict is",
    }
    assert [key for key, words in said.items() if words in page] == [level]
    assert f'<div class="verdict {level}">' in page and f".verdict.{level} {{" in page


def test_without_calibration_or_scores_the_page_says_so_instead_of_failing(leak):
    record, samples = leak
    fixed = record.model_copy(
        update={
            "headline": None,
            "plan": record.plan.model_copy(update={"calibration": False}),
            "results": tuple(r.model_copy(update={"per_timestep": ()}) for r in record.results[:1]),
        }
    )
    page = html(fixed, without(samples, "sima"))
    assert "there is no sweep to draw" in page and "There are no scores of members to rank" in page
    assert "settings that were fixed beforehand" in page


def test_constant_and_missing_scores_are_drawn_without_complaint(leak, recwarn):
    record, samples = leak
    constant = {a: np.zeros(len(samples.ids)) for a in samples.scores}
    constant["pia"] = np.where(np.arange(len(samples.ids)) % 7 == 0, np.nan, samples.scores["pia"])
    html(record, type(samples)(samples.ids, samples.member, samples.test, constant))
    assert [str(warning.message) for warning in recwarn] == []


def test_versions_seeds_fingerprints_costs_and_omitted_files_are_on_the_page(leak, page):
    record = leak[0]
    named = (record.command, record.environment.model_fingerprint, record.environment.device_name)
    for expected in (*named, "torch 2.6.0", "noise 0, split 0"):
        assert expected in page
    assert "1,920,000 forwards" in page and "12 min 34 s" in page
    assert "train/broken.png: not an image" in page


def test_a_long_list_of_omitted_files_is_cut(leak):
    page = html(leak[0].model_copy(update={"omitted": tuple(f"bad-{i}.png" for i in range(1000))}), leak[1])
    assert "bad-19.png" in page and "bad-20.png" not in page
    assert "and 980 more, all in audit.json" in page


def test_importing_and_writing_a_report_needs_no_torch():
    program = f"""
import sys
import diffleak.report
heavy = {{"torch", "diffusers", "accelerate", "sklearn", "transformers"}}
assert not (heavy | {{"matplotlib", "jinja2"}}) & set(sys.modules)
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from fixtures.reports import audit_of, html
html(*audit_of({{"sima": 1.0}}, 100))
assert not heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("levels", [None, 12])
@pytest.mark.parametrize("n", [10, 64, 700])
def test_the_drawn_roc_is_the_exact_one_of_scikit_learn_and_its_band_holds_it(n, levels):
    rng = np.random.default_rng(n)
    members, nonmembers = rng.normal(0.8, 1, 90), rng.normal(0, 1, n)
    if levels:
        members, nonmembers = (np.round(x * levels / 4) for x in (members, nonmembers))
    exact_fpr, exact_tpr, _ = roc_curve(np.repeat([1, 0], [90, n]), np.r_[members, nonmembers], drop_intermediate=False)
    at_most = lambda fpr: exact_tpr[exact_fpr <= fpr + 1e-12].max()
    fpr, tpr = figures._curve(members, nonmembers)
    assert fpr[0] == pytest.approx(1 / n) and fpr[-1] == tpr[-1] == 1 and (np.diff(fpr) > 0).all()
    assert tpr == pytest.approx([at_most(x) for x in fpr])
    at, low, high = figures._band(members, nonmembers)
    assert all(a <= at_most(x) <= b for x, a, b in zip(at, low, high, strict=True))


def test_an_attack_that_separates_the_sides_the_wrong_way_is_named_though_another_leads():
    record, _ = audit_of({"sima": 0.0, "pia": -1.2})
    judged = verdict(record.model_copy(update={"headline": "sima"}))
    assert (judged.level, judged.title) == ("undecided", "Undecided: the scores of pia separate the sides, but the wrong way round.")
    assert any(said.startswith("But pia picks the held-out image") for said in judged.sentences) and judged.attack == "sima"
    found, _ = audit_of({"sima": 1.5, "pia": -1.2})
    assert verdict(found).level == "leak", "a leak that is found stays one"


def test_sides_that_the_models_own_split_contradicts_are_no_result(leak):
    record, _ = leak
    against = Membership(source="the split file a.json", status="contradicted, ignored", model_split="M/split.json", reason="all are")
    judged = verdict(record.model_copy(update={"membership": against}))
    assert judged.level == "undecided" and "split.json contradicts these sides" in judged.title
    assert "by M/split.json, all are. If M/split.json is right" in against.sentence


def test_classes_that_differ_are_given_as_the_reason_before_the_pixels(leak):
    record, _ = leak
    blind = Blind(value=0.5, low=0.45, high=0.55, labels_p_value=0.001)
    judged = verdict(record.model_copy(update={"blind": blind}))
    said = judged.sentences[0]
    assert judged.level == "invalid" and "The classes of members and held-out images differ by more than chance (p = 0.001)" in said
    assert said.endswith("The pixels show no difference between the sides.") and FAIR not in said


def test_one_of_a_kind_is_said_in_the_singular():
    said = [w.one_or_more(n, "image is left out", "images are left out") for n in (0, 1, 2, 1600)]
    assert said == ["0 images are left out", "1 image is left out", "2 images are left out", "1,600 images are left out"]
