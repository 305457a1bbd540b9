"""The first page, what was not run, the part for the file, the glossary, and the forms of a report."""

import re
import shlex
import shutil
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from fixtures.commands import call
from fixtures.pages import KINDS
from fixtures.prompts import prompts_page
from fixtures.quality import quality_page
from fixtures.reports import MONTE_CARLO, SHIFTS, audit_of, html, latent_audit, mapped_audit, markdown, print_terminal, thumbnail
from fixtures.runs import gaussian, make_run
from huggingface_hub import ModelCard
from rich.console import Console

from diffleak.attacks import ATTACKS
from diffleak.attacks.listing import listing
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.evidence import known
from diffleak.comparison.compare import compare
from diffleak.config import flag, settings_of
from diffleak.errors import UserError
from diffleak.extraction.config import ExtractConfig
from diffleak.records.audit import Blind, Gate, Membership
from diffleak.records.base import Estimate
from diffleak.records.digests import Sealed
from diffleak.records.evidence import Evidence
from diffleak.report import pages as report_pages
from diffleak.report import to_html, to_markdown, verdict
from diffleak.report.audited import Audited
from diffleak.report.glossary import OF_ATTACKS, TERMS
from diffleak.report.judgement import NAMED, NO_INCIDENT, NOT_OF_EXTRACT, with_validity
from diffleak.report.media import pdf
from diffleak.report.media.card import model_card
from diffleak.report.media.latex import results_latex
from diffleak.report.pages import comparison
from diffleak.report.pages.audit import on_card, on_paper, page
from diffleak.report.sections import FOR_THE_FILE, UNSHOWN
from diffleak.report.sections.audit import attacks, calibrated, coverage, file, glance, remedies

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]
DIFFERENT = Blind(value=0.81, low=0.78, high=0.84)
NULL = dict.fromkeys(SHIFTS, 0.0)
SEALED = Sealed("12" * 32, "34" * 32, 19)
RUN = tuple(ATTACKS[name]() for name in ("sima", "pia", "pian", "secmi", "loss", "sima_mc", "noise_aggregation"))
GIVEN = {"title": "Ward model 2.1", "auditor": "K. Example", "note": "Before the board meets", "started": "2025-01-31T11:20:00+00:00"}
CHROMIUM = next(filter(None, map(shutil.which, pdf.BROWSERS)), None)


def evidence(takes_text: bool = False, run=RUN, **changes) -> Evidence:
    return Evidence(**{**GIVEN, "training_images": 4000, "attacks": known(run, takes_text), **changes})


@pytest.fixture(scope="module")
def leak():
    gates = (Gate(limit="max_auc", attack="sima", quantity="AUC", at_most=0.6, reach=0.91, passed=False),)
    record, samples = audit_of(n=600, evidence=evidence(), gates=gates)
    return with_validity(record), samples


@pytest.fixture(scope="module")
def shown(leak):
    """The page of the leak, which takes a second to draw."""
    return html(*leak, thumbnail)


def other(record, **changes):
    return with_validity(record.model_copy(update=changes))


def text(page: str) -> str:
    """What a reader of a page sees, opened parts too."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page.partition("<body>")[2], flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body.replace("<wbr>", "")).replace("&nbsp;", " ").split())


# --- the first page ---------------------------------------------------------------------------------------------------


def test_the_question_its_answer_the_facts_and_what_was_not_tested_stand_before_any_number_in_large_print_or_chart(shown):
    order = [
        "Can someone who has an image find out",
        "Yes: training images can be told apart",
        "Form of release",
        "AUC at most 0.6 is NOT MET (exceeded by 0.310): AUC may reach 0.910 (sima",
        "Is the audit valid?",
        "600 training images, of 4,000 that the model was trained on,",
        "What was not tested",
        'class="tiles"',
        'id="next"',
        'id="limits"',
        'id="attacks"',
        'id="roc"',
        'id="file"',
    ]
    found = [shown.replace("&nbsp;", " ").index(part) for part in order]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("unit", "group", "said", "part"),
    [
        (
            "cluster",
            None,
            "650 training images (600 with near-duplicates counted once)",
            "480 training and 480 held-out images (near-duplicates counted once)",
        ),
        ("group", "patient", "650 training images in 600 groups by patient", "480 held-out groups by patient"),
    ],
)
def test_where_images_count_together_every_page_and_table_says_what_is_counted(leak, unit, group, said, part):
    record = leak[0]
    plan = record.plan.model_copy(update={"n_members": 650, "n_nonmembers": 700, "group": group})
    record = other(record, plan=plan, split=record.split.model_copy(update={"unit": unit}))
    first = dict(glance.section(Audited(record)).blocks[0].rows)["Images tested"]
    assert (
        first.startswith(f"{said}, of 4,000 that the model was trained on, and {said.replace('650 training', '700 held-out')}")
        and part in first
    )
    assert said in glance.not_tested(record)[2] and "of 4,000 images" in glance.not_tested(record)[2]
    often = record.model_copy(update={"split": record.split.model_copy(update={"repeats": 25})})
    assert "; in each of 25 random divisions some of them were used" in glance.tested(often) and "; some of them" in glance.tested(record)
    kept = dict(file.section(Audited(record)).blocks[0].rows)
    assert said in kept["Counted"] and "120 training and 120 held-out " in kept["Images used for settings"] and part in str(kept)
    assert said in page(record).meta and said in markdown(record)
    card = ModelCard(model_card(record))
    assert said in card.data.eval_results[0].dataset_name
    assert said.replace("training images", "members") in results_latex(record)


def test_what_was_not_tested_is_three_lines_and_names_the_attacks(leak):
    lines = glance.not_tested(leak[0])
    assert len(lines) == 3
    assert "pfami, loss_frequency, pia_frequency, gradient" in lines[0] and "black_box" not in lines[0]
    assert "600 training images were tested, of 4,000" in lines[2]
    plan, split = leak[0].plan.model_copy(update={"n_members": 650}), leak[0].split.model_copy(update={"unit": "cluster", "members": 600})
    whole = other(leak[0], evidence=evidence(training_images=650), plan=plan, split=split)
    assert glance.not_tested(whole)[2].endswith("all 650 training images (600 with near-duplicates counted once) were tested.")
    alone = other(whole, split=split.model_copy(update={"members": 650}))
    assert glance.not_tested(alone)[2].endswith("all 650 training images were tested."), "no groups where each image is one"
    unknown = other(leak[0], evidence=evidence(training_images=None))
    assert "It is not known how many images the model was trained on" in glance.not_tested(unknown)[2]


def test_a_leak_is_said_to_be_no_incident_and_a_pair_no_share_of_people(leak, shown):
    said = verdict(leak[0]).sentences
    assert NO_INCIDENT in said and "it does not mean that 90 % of the images or people can be identified" in said[0]
    assert "not a share of images or people" in text(shown)


def test_a_rate_whose_interval_holds_guessing_is_said_to_be_undecided(leak):
    first, *others = leak[0].results
    rates = tuple(r.model_copy(update={"value": 0.083, "low": 0.0, "high": 0.171, "support": "low"}) for r in first.tpr_at_fpr)
    record = other(leak[0], results=(first.model_copy(update={"tpr_at_fpr": rates}), *others))
    assert any("1 % that guessing catches, so this number decides nothing" in each for each in verdict(record).sentences)


def test_a_higher_number_in_the_table_than_that_of_the_headline_is_explained(leak):
    record = other(leak[0], headline="pia")
    said = [
        each for each in verdict(record).sentences if each.startswith("Another attack, sima, has a higher number on these images, 90 %")
    ]
    assert said and "The report names pia because the calibrate part chose it" in said[0]
    assert not any(each.startswith("Another attack") for each in verdict(leak[0]).sentences)


def test_a_negative_score_has_a_rank_and_a_sentence_on_its_sign(shown):
    assert "rank 1" in text(shown) and "A score may be negative: only the order counts" in text(shown)


def test_unequal_sides_are_a_note_under_the_table_and_no_warning():
    record, _ = audit_of(n=300)
    asr = record.results[0].asr.model_copy(update={"baseline": 0.61})
    lopsided = record.model_copy(
        update={
            "results": (record.results[0].model_copy(update={"asr": asr}),),
            "split": record.split.model_copy(update={"members": 256, "nonmembers": 400}),
        }
    )
    assert "(256 and 400), and always naming the larger one is right 61.0 % of the time" in attacks.unequal(lopsided)[0]


def test_on_a_phone_the_contents_stay_and_what_is_not_shown_is_a_link_on_the_first_page(shown):
    phone = shown.partition("@media screen and (max-width: 700px)")[2].partition("@media print")[0]
    assert phone and "nav { display: none" not in phone
    assert '<a href="#limits">' in shown.partition('class="tiles"')[0]


# --- the form of release ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "takes_text", "title", "said", "missing"),
    [
        (
            None,
            False,
            "Yes: training",
            "which is assumed because no --release was given",
            "pfami, loss_frequency, pia_frequency, gradient",
        ),
        ("weights", False, "Yes: training", "release of the weights: anyone who has them can run", "pfami"),
        (
            "api",
            False,
            "Yes, but only shown with more access",
            "Outsiders can run none of the attacks of diffleak audit that work with this model",
            "nothing was tested",
        ),
        (
            "api",
            True,
            "Yes, but only shown with more access",
            "Outsiders can run black_box, noise_probe, but this audit did not",
            "black_box, noise_probe. Outsiders",
        ),
        (
            "images",
            True,
            "Yes, but only shown with more access",
            "No attack of diffleak audit works with such images alone",
            "no attack of diffleak audit works with drawn images",
        ),
    ],
)
def test_the_answer_is_tied_to_the_form_of_release(leak, release, takes_text, title, said, missing):
    record = other(leak[0], evidence=evidence(takes_text, release=release))
    judged = verdict(record)
    assert judged.title.startswith(title) and judged.level == "leak"
    assert any(said in each for each in judged.sentences)
    assert missing in glance.missing(record)


def test_what_a_black_box_attack_finds_decides_the_answer_for_an_interface(leak):
    drawn = [
        leak[0].results[0].model_copy(update={"attack": "black_box", "access": "black-box", "auc": auc})
        for auc in (leak[0].results[0].auc, leak[0].results[0].auc.model_copy(update={"value": 0.51, "low": 0.46, "high": 0.56}))
    ]
    api = evidence(True, (*RUN, ATTACKS["black_box"]()), release="api")
    titles = [verdict(other(leak[0], evidence=api, results=(*leak[0].results, result))).title for result in drawn]
    assert titles[0].startswith("Yes: training") and titles[1].startswith("Yes, but only shown with more access")
    weak = verdict(other(leak[0], evidence=api, results=(*leak[0].results, drawn[1])))
    assert any(
        "An attack that outsiders can run was run too: black_box ranks the member first in 51.0 % of pairs" in each
        for each in weak.sentences
    )


WEAK = {"value": 0.51, "low": 0.46, "high": 0.56}
ACCESS_RUN = {"none that counts": (), "a black-box one": ("black_box",), "one that cannot be estimated": ("unknown",)}


@pytest.mark.parametrize("takes_text", [True, False])
@pytest.mark.parametrize("ran", ACCESS_RUN)
@pytest.mark.parametrize("release", [None, "weights", "api", "images"])
def test_no_leak_is_said_to_be_found_only_of_a_release_that_an_attack_was_run_for(release, ran, takes_text):
    record, _ = audit_of({"sima": 0.0}, 300)
    auc = Estimate(reason="too few") if ran == "one that cannot be estimated" else record.results[0].auc.model_copy(update=WEAK)
    more = (
        []
        if ran == "none that counts"
        else [record.results[0].model_copy(update={"attack": "black_box", "access": "black-box", "auc": auc})]
    )
    run = (*RUN, *(ATTACKS[name]() for name in ("black_box", "noise_probe") if more))
    settings = {"model": "my model", "members": "in", "nonmembers": "out"}
    kept = evidence(takes_text, run, release=release)
    judged = verdict(other(record, results=(*record.results, *more), evidence=kept, settings=settings))
    counts = release in (None, "weights") or (release == "api" and ran == "a black-box one")
    assert judged.level == ("no-leak-found" if counts else "undecided")
    no_result = release == "api" and ran == "one that cannot be estimated" and takes_text
    assert ("for this form of release nothing was tested" in judged.title) is not (counts or no_result)
    assert ("for this form of release there is no result" in judged.title) is no_result
    command = "diffleak audit 'my model' --members in --nonmembers out --attacks black_box --release api -o NEW-FOLDER"
    if counts:
        assert not any("To test it" in each for each in judged.sentences)
    elif release == "images" or not takes_text:
        begin = "To test it, look for training images among those that the model draws"
        assert judged.sentences[-1] == f"{begin}: diffleak extract 'my model' --members in --nonmembers out -o NEW-FOLDER"
    elif ran == "none that counts":
        assert judged.sentences[-1] == f"To test it: {command}"
    else:
        assert judged.sentences[-1].startswith("To test it: give more images. From these, what black_box, noise_probe finds")


def test_a_release_is_tested_by_an_attack_that_the_same_command_can_run():
    from diffleak.report.judgement import WITH_REFERENCE

    assert {*WITH_REFERENCE} == {name for name, kind in ATTACKS.items() if kind.needs_reference and kind.access == "black-box"}
    record, _ = audit_of({"sima": 0.0}, 300)
    drawn = record.results[0].model_copy(update={"attack": "black_box", "access": "black-box", "auc": Estimate(reason="too few")})
    kept = evidence(True, (*RUN, ATTACKS["black_box"]()), release="api")
    for reference, last in ((None, "To test it: give more images."), ("base", "To test it: diffleak audit m --attacks noise_probe")):
        plan = record.plan.model_copy(update={"reference": reference})
        judged = verdict(other(record, results=(*record.results, drawn), evidence=kept, settings={"model": "m"}, plan=plan))
        assert judged.sentences[-1].startswith(last)


LIMIT = "is about these attacks and these images"
BELOW, AMID = ({"value": v, "low": v - 0.04, "high": v + 0.04} for v in (0.28, 0.5))
UNCHECKED = Blind(reason="needs >= 10 images a side")


@pytest.mark.parametrize("excess", [False, True])
@pytest.mark.parametrize("blind", [None, UNCHECKED])
@pytest.mark.parametrize(("release", "takes_text"), [("weights", False), ("api", True), ("api", False), ("images", True)])
@pytest.mark.parametrize("leads", [True, False])
def test_nowhere_is_no_leak_said_to_be_found_beside_a_clearly_reversed_attack(leads, release, takes_text, blind, excess):
    """Whether the reversed attack leads or another does, on pages, cards and terminals, and whatever else leaves the audit undecided."""
    record, samples = audit_of({"sima": 0.0, "pia": -1.0}, 300)
    aucs = {"sima": BELOW if leads else AMID, "pia": BELOW}
    results = [r.model_copy(update={"auc": r.auc.model_copy(update=aucs[r.attack])}) for r in record.results if r.attack in aucs]
    if excess:
        last = results[-1].model_copy(update={"attack": "pia[excess]", "variant": "excess"})
        results = [*(r.model_copy(update={"auc": r.auc.model_copy(update=AMID)}) for r in results[: -1 if leads else None]), last]
    wrong = results[-1].attack if excess or not leads else "sima"
    changes = {"results": tuple(results), "headline": wrong if leads else "sima", "evidence": evidence(takes_text, release=release)}
    record = other(record, blind=blind or record.blind, settings={"model": "m", "members": "in", "nonmembers": "out"}, **changes)
    judged = verdict(record)
    assert judged.title == f"Undecided: the scores of {wrong} separate the sides, but the wrong way round."
    said = " ".join(judged.sentences)
    assert "the reference was not trained on the members" in said if excess else "both come from one source" in said
    assert "Check that the sides are not swapped" in said and ("To test it" in said) is (release != "weights")
    assert ("To decide it: audit again with this version" in said) is (blind is not None)
    out = StringIO()
    print_terminal(record, Console(file=out, width=100))
    for shown in (" ".join((judged.title, said)), text(html(record, samples)), model_card(record), markdown(record), out.getvalue()):
        found = re.findall(r".{40}(?:no leak was found|found no leak).{20}", " ".join(shown.split()), flags=re.IGNORECASE)
        assert not [each for each in found if LIMIT not in each], found


def test_a_limit_that_a_reversed_attack_misses_is_not_said_to_be_missed_without_a_finding():
    (missed,) = (Gate(limit="max_auc", attack="pia", quantity="AUC", at_most=0.6, reach=0.76, passed=False),)
    record, _ = audit_of({"sima": 0.0, "pia": 0.0}, 300, gates=(missed,))
    for auc, said in ((AMID, True), (BELOW, False)):
        results = tuple(r.model_copy(update={"auc": r.auc.model_copy(update=auc if r.attack == "pia" else AMID)}) for r in record.results)
        assert (glance.NO_FINDING in glance.limit(Audited(other(record, results=results)))) is said


def test_an_excess_below_one_half_is_a_leak_of_the_reference_beside_the_attack_that_leads():
    record, _ = audit_of({"sima": 1.5}, 300)
    (own,) = record.results
    for auc, adds in ((BELOW, "the reference gives away more of these members"), (AMID, "no leak of this model's own is shown")):
        excess = own.model_copy(update={"attack": "sima[excess]", "variant": "excess", "auc": own.auc.model_copy(update=auc)})
        assert adds in " ".join(verdict(record.model_copy(update={"results": (own, excess)})).sentences)


@pytest.mark.parametrize("leaks", [True, False])
@pytest.mark.parametrize("ran", [("black_box",), ("black_box", "noise_probe")])
def test_an_attack_that_was_run_and_gave_no_estimate_is_not_said_to_be_missing(leak, ran, leaks):
    record = leak[0] if leaks else audit_of({"sima": 0.0}, 300)[0]
    drawn = record.results[0].model_copy(update={"attack": "black_box", "access": "black-box", "auc": Estimate(reason="too few")})
    kept = evidence(True, (*RUN, *(ATTACKS[name]() for name in ran)), release="api")
    judged = verdict(other(record, results=(*record.results, drawn), evidence=kept, settings={"model": "m"}))
    said = "\n".join((judged.title, *judged.sentences))
    assert f"Outsiders can run {', '.join(ran)}, but what that finds cannot be estimated from these images" in said
    assert "nothing was tested" not in said and "this audit did not" not in said


def test_a_leak_that_needs_more_access_is_said_with_the_command_that_tests_the_release(leak):
    judged = verdict(other(leak[0], evidence=evidence(True, release="api"), settings={"model": "m", "data": "d", "split": "s.json"}))
    assert judged.level == "leak" and judged.sentences[-1] == (
        "To test it: diffleak audit m --data d --split s.json --attacks black_box --release api -o NEW-FOLDER"
    )


@pytest.mark.parametrize("release", ["api", "images"])
def test_the_command_that_tests_the_release_is_of_the_same_model_and_images_read_in_the_same_way(leak, release):
    """Pasted, it must run: every setting that it names is one of its command."""
    config = AuditConfig(
        model="m",
        lora="a.safetensors",
        lora_scale=0.5,
        members="in",
        nonmembers="out",
        group="person",
        exif="ignore",
        alpha="white",
        white=4095,
        buckets="512",
        captions="swapped",
        reference="base",
        limit=50,
        seed=3,
        attacks="loss",
        output="run",
        max_auc=0.7,
    )
    settings = config.model_dump(mode="json")
    line = verdict(other(leak[0], evidence=evidence(True, release=release), settings=settings)).sentences[-1]
    same = "--lora a.safetensors --lora-scale 0.5{} --members in --nonmembers out{} --limit 50 --seed 3 --exif ignore --alpha white"
    if release == "api":
        assert (
            same.format(" --reference base --captions swapped", " --group person") + " --white 4095 --buckets 512 --attacks black_box"
            in line
        )
        kind, command = AuditConfig, "diffleak audit m "
    else:
        assert same.format("", "") + " --white 4095 --resize -o NEW-FOLDER" in line
        kind, command = ExtractConfig, "diffleak extract m "
    words = shlex.split(line[line.index(command) :])
    assert not {word for word in words if word.startswith("--")} - {flag(key) for key in settings_of(kind)}


@pytest.mark.parametrize(
    ("release", "call"),
    [("api", "diffleak.audit(...) {}, attacks='black_box', release='api'"), ("images", "model draws: diffleak.extract(...) {}")],
)
def test_of_objects_in_memory_no_command_line_is_said_to_test_the_release(leak, release, call):
    """`diffleak audit denoiser --members array` names nothing."""
    made = {"command": "diffleak.audit(...) from Python, with the settings recorded in audit.json"}
    settings = AuditConfig(members="array", nonmembers="array").model_dump(mode="json")
    line = verdict(other(leak[0], evidence=evidence(True, release=release), settings=settings, **made)).sentences[-1]
    assert call.format("from Python with the same model and images") in line and "array" not in line


def test_what_the_command_leaves_unsaid_is_the_default_of_its_setting():
    assert {key: field.default for key, field in settings_of(AuditConfig).items() if key in NAMED} == NAMED
    assert {key for key in NAMED if key not in settings_of(ExtractConfig)} == {*NOT_OF_EXTRACT}


@pytest.mark.parametrize(
    ("release", "takes_text", "last"),
    [
        ("weights", True, "the black_box attack"),
        ("weights", False, "diffleak extract looks"),
        ("api", True, "diffleak extract looks"),
        ("images", True, "Take the images that must not be exposed out"),
    ],
)
def test_the_steps_after_a_leak_fit_the_form_of_release(leak, release, takes_text, last):
    assert last in remedies.steps(other(leak[0], evidence=evidence(takes_text, release=release)))[-1].what


def test_what_an_outsider_needs_says_where_the_release_does_not_give_it(leak):
    assert glance.needs(other(leak[0], evidence=evidence(release="api")), "grey-box").endswith(
        "A release of an interface that draws images for its callers does not give that"
    )
    assert "does not give" not in glance.needs(other(leak[0], evidence=evidence()), "grey-box")


def test_the_coverage_names_every_attack_of_this_version_once_and_whether_it_was_run():
    kept = evidence()
    assert [each.attack for each in kept.attacks] == list(ATTACKS)
    assert {each.attack for each in kept.attacks if each.run} == {attack.name for attack in RUN}
    assert {each.attack for each in kept.attacks if each.unfit} == {name for name, kind in ATTACKS.items() if kind.needs_text}
    lines = " ".join(coverage.said(kept))
    assert all(name in lines for name in ATTACKS) and "Of 11 attacks that count, 7 were run" in lines


def test_records_of_earlier_versions_say_nothing_of_a_release():
    record, _ = audit_of({"sima": 1.0}, 100)
    judged = verdict(record)
    assert record.evidence is None and not any("release of" in each for each in judged.sentences)
    shown = markdown(record)
    assert "does not name those that were not run" in shown and coverage.TITLE not in shown


# --- what to do next --------------------------------------------------------------------------------------------------


def test_after_a_leak_the_steps_name_parts_of_the_documentation_that_are_there(leak, shown):
    pages = {page.name: page.read_text() for page in (ROOT / "docs").glob("*.md")}
    found = {f"{name}, {heading}" for name, said in pages.items() for heading in re.findall(r"^#+ (.+)$", said, flags=re.MULTILINE)}
    assert {step.where for step in remedies.STEPS} <= found
    assert "(docs/fine-tunes.md, “Which checkpoint?”)" in text(shown)
    assert all(step.name in text(shown) for step in remedies.steps(leak[0]))
    papers = re.findall(r'<a href="https://arxiv.org/abs/([0-9.]+)">arXiv&nbsp;\1</a>', shown)
    assert papers[-2:] == ["2410.16657", "1607.00133"]
    assert remedies.TITLE not in markdown(with_validity(audit_of(NULL, 300, evidence=evidence())[0]))


OF_KINDS = {  # what the plan has, whether it takes captions; what the steps name, and what they do not
    "unconditional": ({}, False, ("distill or dual trains", "--dp-epsilon", "looks for"), ("LoRA", "autoencoder", "--base", "black_box")),
    "on latents": ({"latent": True}, False, ("distill or dual trains", "does not cover an autoencoder"), ("LoRA", "--base", "black_box")),
    "whole text-to-image": ({"captions": "own"}, True, ("dual --base MODEL", "--release api"), ("--dp-epsilon", "LoRA", "looks for")),
    "LoRA": ({"lora": "dog", "captions": "own"}, True, ("--preset lora", "--release api"), ("dual", "--dp-epsilon", "looks for")),
    "embedding": ({"embedding": "dog", "captions": "own"}, True, ("audit them too",), ("dual", "--dp-", "--preset", "all of them")),
    "own code": ({"model_from": "my:model"}, False, ("needs code of its own",), ("LoRA", "dual --base", "black_box")),
}


@pytest.mark.parametrize("kind", OF_KINDS)
def test_the_steps_after_a_leak_are_those_that_this_kind_of_model_can_take(leak, kind):
    changes, takes_text, named, unnamed = OF_KINDS[kind]
    latent = changes.get("latent")
    plan = leak[0].plan.model_copy(update={key: value for key, value in changes.items() if key != "latent"})
    record = other(leak[0], plan=plan, evidence=evidence(takes_text), latent=latent)
    said = " ".join(step.what for step in remedies.steps(record))
    assert all(words in said for words in named) and not any(words in said for words in unnamed), said
    printed = text(to_html(on_paper(record)))
    assert all(step.name in printed for step in remedies.steps(record))


# --- for the file -----------------------------------------------------------------------------------------------------


def test_the_part_for_the_file_holds_who_what_when_and_the_hashes_in_every_form(leak):
    record = leak[0]
    pages = to_markdown(page(record, sealed=SEALED)), text(to_html(on_paper(record, SEALED)))
    for shown in (*pages, model_card(record, SEALED)):
        for part in ("K. Example", "4,000", record.plan.model_fingerprint, record.plan.data_fingerprint, "12" * 32, "34" * 32, "19 files"):
            assert part in shown, part
        assert "2025-01-31 11:20 UTC" in shown and "2025-01-31 12:00 UTC" in shown and "diffleak 0.1.0" in shown
        assert "120 training and 120 held-out images, drawn by seed 0" in shown
    for shown in pages:
        assert "Ward model 2.1" in shown and "Before the board meets" in shown and "signed ____" in shown.replace("\\_", "_")
    assert "It names no law or standard as fulfilled" in pages[1]


def test_no_page_names_a_law_as_fulfilled(leak, shown):
    for record in (leak[0], other(leak[0], blind=DIFFERENT), with_validity(audit_of(NULL, 200, evidence=evidence())[0])):
        made = text(shown) + text(to_html(on_paper(record))) + markdown(record) + model_card(record)
        assert not re.search(r"GDPR|DSGVO|AI Act|HIPAA|complian|comply|conform|anonymous in the sense", made)


def test_the_terminal_stays_short_of_the_file(leak):
    with Path("/dev/null").open("w") as nowhere:
        console = Console(file=nowhere, width=100, record=True)
        print_terminal(leak[0], console)
    shown = console.export_text()
    assert "For the file" not in shown and "What was not tested" in shown


# --- glossary ---------------------------------------------------------------------------------------------------------

JARGON = re.compile(  # a list of its own: readers named these words, with those of the pages' tables
    r"\bAUC\b|\bTPR\b|\bFPR\b|\bTNR\b|\bFNR\b|\bROC\b|\bDeLong\b|oracle|attack success|achieved FPR|baseline|"
    r"(?:grey|black|white)-box|n/e|forwards|chunks|queries|\bmembers?\b|held-out|calibrate part|pixel statistics|threshold|"
    r"timesteps?|fingerprint|SHA-256|\bseeds?\b|interval|false alarm|latents?\b|decoder|distortion|influence|\bmasks?\b|"
    r"excess|calibrated\b|combined|noise predictions|weights|DP-SGD|LoRA|near-duplicates?|clusters?|\bepsilon|\bdelta\b|\bcoins?\b|"
    r"guess(?:es|ing)?\b|p-values?",
    re.IGNORECASE,
)
PLAIN_CAPITALS = {"RGB", "UTC", "CPU", "NOT", "MET", "README", "NVIDIA", "PNG", "CSV", "RUN", "JSON", "ID"}  # no terms of this field


def glossary_of(page: str) -> str:
    return text("<body>" + page.partition('<section id="glossary"')[2].partition("</section>")[0]).casefold()


@pytest.mark.parametrize("kind", ["leak", "latent", "maps", *KINDS])
def test_every_term_that_a_page_prints_has_an_entry_in_its_glossary(shown, kind, tmp_path):
    if kind in KINDS:
        shown = KINDS[kind](tmp_path / kind)
    elif kind != "leak":
        shown = html(*(latent_audit(n=200) if kind == "latent" else mapped_audit()))
    explained = glossary_of(shown)
    printed = text(shown.replace(shown.partition('<section id="glossary"')[2].partition("</section>")[0], ""))
    terms = {term.casefold() for term in JARGON.findall(printed)}
    assert len(terms) > (20 if kind not in KINDS else 4)
    stem = lambda term: re.sub(r"(?<=y)$|ies$|s$", "", term)
    assert [term for term in sorted(terms) if stem(term) not in explained] == []
    capitals = set(re.findall(r"\b[A-Z]{2,}\b", re.sub(r"\S*[_/.]\S*", " ", printed))) - PLAIN_CAPITALS
    assert [word for word in sorted(capitals) if word.casefold() not in explained] == []


def compared(folder: Path) -> str:
    runs = [str(make_run(folder / name, {"sima": gaussian(d)}, seed=i)) for i, (name, d) in enumerate([("plain", 1.5), ("defended", 0.2)])]
    return to_html(comparison.page(compare(runs)))


PAGES = {**KINDS, "quality": lambda _: quality_page(), "prompts": lambda _: prompts_page(), "comparison": compared}
MEASURE_ATTACKS = {"audit", "invalid", "sweep", "check", "comparison", "lora-audited"}  # the kinds of page that an attack's words are of


def test_a_page_of_every_kind_has_its_glossary_checked():
    modules = {path.stem for path in Path(report_pages.__path__[0]).glob("*.py")} - {"__init__", "extraction"} | {"extract"}
    assert modules <= {kind.partition("-")[0] for kind in PAGES}


@pytest.mark.parametrize("kind", PAGES)
def test_a_word_that_another_page_uses_for_something_else_has_the_meaning_of_its_own_page(kind, tmp_path):
    shown = PAGES[kind](tmp_path / kind)
    glossary = shown.partition('<section id="glossary"')[2].partition("</section>")[0]
    explained = glossary_of(shown)
    names = [text(f"<body>{each}").casefold() for each in re.findall(r"<dt>(.*?)</dt>", glossary)]
    printed = text(shown.replace(glossary, ""))
    matching = lambda pattern, where: re.search(pattern, where, re.IGNORECASE)
    words = [(name, pattern, said) for name, pattern, said in OF_ATTACKS if matching(pattern, printed)]
    assert words, "a page without such a word tests nothing"
    missing = [name for name, pattern, _ in words if name.casefold() not in names and not any(matching(pattern, each) for each in names)]
    foreign = [name for name, _, said in words if said.casefold() in explained]
    if kind in MEASURE_ATTACKS:
        assert foreign, "it has at least one of these meanings"
    else:
        assert (missing, foreign) == ([], [])


@pytest.mark.parametrize("kind", ["audit", "sweep", "check", "inquiry", "lora-drawn", "extract-emoji"])
def test_only_a_comparison_and_unequal_sides_have_a_baseline(kind, tmp_path):
    assert "baseline" not in text(KINDS[kind](tmp_path / kind)).casefold()


@pytest.mark.parametrize("kind", KINDS)
def test_a_glossary_explains_each_word_once_and_no_page_shows_a_raw_backtick(kind, tmp_path):
    shown = KINDS[kind](tmp_path / kind)
    entries = re.findall(r"<dt>(.*?)</dt>", shown.partition('<section id="glossary"')[2].partition("</section>")[0])
    words = [word.strip().casefold() for entry in entries for word in re.split(r"[,()]", entry) if word.strip()]
    assert [word for word in words if words.count(word) > 1] == []
    assert re.findall(r"`[^`<>]+`", text(shown)) == []


def test_no_entry_of_the_glossary_names_a_section_which_its_page_may_lack():
    titles = [coverage.TITLE, glance.UNTESTED, attacks.TITLE, UNSHOWN, FOR_THE_FILE]
    assert not [(name, title) for name, _, said in (*OF_ATTACKS, *TERMS) for title in titles if title in said]


def test_a_page_explains_no_term_that_it_does_not_print(shown):
    explained = glossary_of(shown)
    assert "kernel inception distance" not in explained and "stretches small steps" not in explained


# --- card and PDF -----------------------------------------------------------------------------------------------------


def test_the_card_has_metadata_that_the_hub_reads_and_names_no_folder_and_no_image(leak):
    record, samples = leak
    made = model_card(record, SEALED)
    card = ModelCard(made)
    auc, tpr = card.data.eval_results
    assert (auc.metric_type, auc.metric_value) == ("membership_inference_auc", round(record.results[0].auc.value, 4))
    assert (tpr.metric_type, tpr.metric_value) == ("membership_inference_tpr_at_1pct_fpr", round(record.results[0].tpr(0.01).value, 4))
    assert auc.task_type == "unconditional-image-generation" and card.data.model_name == "ddpm"
    assert (
        card.text.partition("-->")[2].lstrip().startswith("### Membership audit") and "data/train" not in made and "runs/ddpm" not in made
    )
    assert "Before the board meets" not in made and "signed" not in made
    assert not [image for image in samples.ids if image in made]


@pytest.mark.parametrize("made", ["a leak", "no leak", "few images", "masks", "a reference", "limits"])
def test_the_card_and_the_paper_refer_to_no_table_list_or_chart_since_they_have_none(leak, made):
    record = {
        "a leak": lambda: leak[0],
        "no leak": lambda: audit_of(NULL, 300, evidence=evidence())[0],
        "few images": lambda: audit_of(SHIFTS, 60, evidence=evidence())[0],
        "masks": lambda: latent_audit(n=200, evidence=evidence())[0],
        "a reference": lambda: mapped_audit()[0],
        "limits": lambda: other(leak[0], gates=()),
    }[made]()
    for shown in (model_card(record, SEALED), text(to_html(on_paper(record, SEALED)))):
        prose = shown.replace("Source of the member list", "")
        assert re.findall(r"[^.]*\b(?:tables?|lists?|charts?|figures?|curves?|columns?)\b[^.]*", prose) == []


def test_the_card_of_an_invalid_audit_has_no_metrics_and_no_number_of_a_result(leak):
    made = model_card(other(leak[0], blind=DIFFERENT))
    card = ModelCard(made)
    assert card.data.eval_results is None and "Invalid: the two sides come from different sources" in card.text
    assert f"{leak[0].results[0].auc.value:.3f}" not in made
    assert "move the tags above" in made and "model-index" not in made


def test_a_card_has_the_answer_of_the_page_where_the_models_own_split_contradicts_the_sides_and_no_path_of_it(leak):
    reason = "3 members are held out (first: kay.png)"
    said = {"source": "the split file /home/kay/a.json", "model_split": "/home/kay/split.json", "reason": reason}
    found = Membership(status="contradicted, ignored", **said)
    record = other(leak[0], membership=found)
    made = " ".join(model_card(record, SEALED).split())
    assert verdict(record).title in made and "doubtful: the model's own split.json contradicts the two sides" in made
    assert "kay" not in made and "some of the images are on another side" in made
    assert "contradicts" not in model_card(other(leak[0], membership=found.model_copy(update={"status": "confirmed"})), SEALED)


def test_the_command_that_tests_a_release_names_no_path_on_a_card(leak):
    settings = {"model": "/home/kay/m", "members": "/home/kay/in", "nonmembers": "/home/kay/out", "lora": "/home/kay/a.safetensors"}
    record = other(leak[0], evidence=evidence(True, release="api"), settings=settings)
    made = " ".join(model_card(record, SEALED).split())
    assert "kay" in verdict(record).sentences[-1] and "kay" not in made
    assert "To test it: diffleak audit m " in made and "--members IMAGES" in made and "--lora a.safetensors" in made


def test_labels_that_mean_something_to_yaml_and_markdown_stay_text(leak):
    evil = "a: [b]\n---\n# c"
    record = other(leak[0], plan=leak[0].plan.model_copy(update={"model": evil}))
    card = ModelCard(model_card(record))
    assert "\n# c" not in card.text and "\n---" not in card.text and card.data.model_name.startswith("a: [b]")
    assert MONTE_CARLO.replace("_", "\\_") in markdown(record)


def test_tables_for_papers_are_printed_and_none_is_made_of_an_invalid_audit(tmp_path, capsys):
    pytest.importorskip("diffleak.report.media.latex")
    good, bad = (make_run(tmp_path / name, {"sima": gaussian(1.0)}, blind=blind) for name, blind in (("good", 0.5), ("bad", 0.9)))
    code, out, _ = call(capsys, "report", good, "--format", "latex")
    assert code == 0 and "\\begin{tabular}" in out
    code, out, _ = call(capsys, "report", good, "--format", "csv")
    assert code == 0 and out.splitlines()[1].startswith("sima,plain,")
    code, out, err = call(capsys, "report", bad, "--format", "csv")
    assert (code, out) == (4, "") and "No table is made of such numbers" in err


def test_without_a_browser_a_pdf_is_refused_in_one_line(leak, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="none of them is on the PATH: install one, or open the page"):
        pdf.write_pdf(on_paper(leak[0]), tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()


def test_a_browser_that_fails_is_named_with_what_it_said(leak, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "find_browser", lambda: "/bin/chromium")
    failed = subprocess.CompletedProcess([], 1, "", "one\nno display")
    monkeypatch.setattr(pdf.subprocess, "run", lambda *args, **how: failed)
    with pytest.raises(UserError, match=r"/bin/chromium did not print the report \(no display\)"):
        pdf.write_pdf(on_card(leak[0]), tmp_path / "report.pdf")


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed")
def test_the_pdf_of_a_leak_with_many_failed_limits_is_two_pages(leak, tmp_path, drawn):
    gates = tuple(Gate(limit="max_auc", attack=f"attack_{i}", quantity="AUC", at_most=0.6, reach=0.9, passed=False) for i in range(30))
    pages = lambda: len(re.findall(rb"/Type\s*/Page(?![a-z])", (tmp_path / "report.pdf").read_bytes()))
    pdf.write_pdf(on_paper(other(leak[0], gates=gates), SEALED), tmp_path / "report.pdf")
    assert pages() == 2
    plan = leak[0].plan.model_copy(update={"n_members": 650, "reference": "base", "reference_fingerprint": "sha256:" + 64 * "a"})
    split = leak[0].split.model_copy(update={"unit": "cluster"})
    text = evidence(True, training_images=650, split_digest="sha256:" + 64 * "b", release="weights")
    record = other(
        leak[0], plan=plan, split=split, evidence=text, membership=Membership(source="the split file coin.json", status="taken on trust")
    )
    pdf.write_pdf(on_paper(record, SEALED), tmp_path / "report.pdf")
    assert pages() == 2, "of a text model with a reference and near-duplicates"


def test_the_card_of_an_adapter_names_the_adapter_and_says_where_its_yaml_goes(leak):
    record = other(leak[0], plan=leak[0].plan.model_copy(update={"lora": "out/dog.safetensors"}))
    made = model_card(record)
    assert ModelCard(made).data.model_name == "dog.safetensors"
    assert made.count("<!-- ") == 1 and "move the tags and the model-index above into it" in made.split("---")[2].split("###")[0]


def test_the_card_names_no_path_of_an_encoder_and_each_of_several_adapters(leak):
    record = leak[0]
    label = "black_box(encoder=sscd:/home/kay/disc.pt)"
    plan = record.plan.model_copy(update={"attacks": ({"attack": label},), "lora": "/home/kay/x.safetensors@0.8,out/y"})
    results = tuple(each.model_copy(update={"attack": label}) if each is record.results[0] else each for each in record.results)
    costs = record.costs.model_copy(update={"test_timesteps": {label: (10,)}})
    record = record.model_copy(update={"plan": plan, "results": results, "headline": label, "costs": costs})
    made, table = model_card(record), results_latex(record)
    assert "encoder=sscd:disc.pt" in made and "kay" not in made
    assert "encoder=sscd:disc.pt" in table and "kay" not in table
    assert ModelCard(made).data.model_name == "x.safetensors@0.8,y"


def test_all_images_were_tested_where_there_are_no_others(leak):
    record = other(leak[0], evidence=evidence(training_images=leak[0].split.members))
    assert glance.not_tested(record)[2] == "Other images: all 600 training images were tested."


@pytest.mark.parametrize(("status", "end"), [("taken on trust", "is taken on trust."), ("contradicted, ignored", "not the same images.")])
def test_as_many_as_were_trained_on_need_not_be_those(leak, status, end):
    membership = Membership(source="the two sides", status=status, reason="they differ", model_split="split.json")
    record = other(leak[0], evidence=evidence(training_images=leak[0].split.members), membership=membership)
    said = glance.not_tested(record)[2]
    assert "all 600" not in said and "600 training images were tested, as many as the model was trained on" in said and said.endswith(end)


def test_what_an_attack_looks_at_is_said_without_its_parameters():
    for row in listing():
        assert "`" not in row["about"] and re.fullmatch(r"(How|The same as) [^.]+\. [A-Z][^.]+ means? member\.", row["about"]), row["about"]


def test_a_split_file_does_not_confirm_itself():
    of = lambda source: Membership(source=source, status="confirmed", model_split="m/split.json").sentence
    assert of("the split file ./m/split.json") == "The members are those listed in m/split.json, which the model's own training wrote."
    assert of("the split file s.json") == "The members are those of the split file s.json; the model's own m/split.json agrees."


def test_calibration_that_took_nothing_out_is_one_sentence_and_no_table(leak):
    again = leak[0].results[0].model_copy(update={"attack": "sima[calibrated]", "complexity": "plain"})
    record = other(leak[0], results=(*leak[0].results, again))
    found = calibrated.section(Audited(record))
    assert [type(block).__name__ for block in found.blocks] == ["Sentences"]
    assert found.blocks[0].said == ("Calibration changed nothing: on the calibrate part it did not help the attack.",)
