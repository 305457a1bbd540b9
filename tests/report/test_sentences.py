"""A sentence of an audit's report stands only where it is true."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures.pages import DECISIONS
from fixtures.reports import audit_of, latent_audit, markdown
from fixtures.runs import gaussian, make_run, swap_runs
from fixtures.sweeps import swept

from diffleak.comparison.compare import compare
from diffleak.records.audit import AuditRecord, Gate, Membership, Result
from diffleak.records.base import Estimate
from diffleak.records.epsilon import EpsilonRecord
from diffleak.records.evidence import Evidence, KnownAttack
from diffleak.records.groups import ExposedGroup, Groups
from diffleak.records.scores import Unit
from diffleak.records.sweep import read_sweep
from diffleak.report import handling
from diffleak.report.audited import Audited
from diffleak.report.figures import audit as figures
from diffleak.report.figures.keys import CHOSEN
from diffleak.report.glossary import TERMS
from diffleak.report.judgement import with_validity
from diffleak.report.media.html import PICTURE
from diffleak.report.media.latex import results_latex
from diffleak.report.pages import audit as audit_page
from diffleak.report.pages import comparison as comparison_page
from diffleak.report.pages import sweep as sweep_page
from diffleak.report.section import Facts, Sentences, Tabulated
from diffleak.report.sections.audit import (
    attacks,
    calibrated,
    coverage,
    epsilon,
    file,
    gates,
    geometry,
    glance,
    groups,
    made,
    reference,
    remedies,
)
from diffleak.report.table import rate_cell, table
from diffleak.report.wording import GROUPS, IMAGES
from diffleak.report.written import refresh_report

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def leak() -> AuditRecord:
    return with_validity(audit_of(n=600)[0])


def with_plan(record: AuditRecord, **changes) -> AuditRecord:
    return record.model_copy(update={"plan": record.plan.model_copy(update=changes)})


def with_split(record: AuditRecord, **changes) -> AuditRecord:
    return record.model_copy(update={"split": record.split.model_copy(update=changes)})


def with_first(record: AuditRecord, **changes) -> AuditRecord:
    """The record with fields of its first result replaced."""
    return record.model_copy(update={"results": (record.results[0].model_copy(update=changes), *record.results[1:])})


def without_calibration(record: AuditRecord) -> AuditRecord:
    return with_plan(record, calibration=False).model_copy(update={"headline": None})


def captioned(record: AuditRecord, choice: str) -> AuditRecord:
    return with_plan(record, captions=choice, captions_found=10, n_members=100, n_nonmembers=100)


def membership(record: AuditRecord, **changes) -> AuditRecord:
    return record.model_copy(update={"membership": Membership(source="two folders", status="taken on trust", reason="x", **changes)})


def in_divisions(record: AuditRecord, *taken_out: str) -> AuditRecord:
    """The record of 25 divisions with a calibrated result for each of its first attacks."""
    more: list[Result] = []
    for result, name in zip(record.results, taken_out, strict=False):
        gain = Estimate(value=0.0, low=-0.1, high=0.1)
        named = {"attack": f"{result.attack}[calibrated]", "complexity": name}
        gained = {"gain": {"auc": gain, "asr": gain, "tpr_at_1pct": gain}}
        more.append(Result.model_validate({**result.model_dump(), **named, **gained}))
    return with_split(record, repeats=25).model_copy(update={"results": (*record.results, *more)})


def calibrated_under_masks() -> AuditRecord:
    """An audit under a mask with a calibrated result of it, which has a table of its own."""
    record, _ = latent_audit(("influence:0.4",), geometry=False, shifts={"sima": 1.0})
    masked = next(result for result in record.results if result.mask)
    more = masked.model_copy(update={"attack": f"{masked.attack}[calibrated]", "complexity": "png"})
    return record.model_copy(update={"results": (*record.results, more)})


def caption_of(record: AuditRecord) -> str:
    (shown,) = attacks.section(Audited(record)).blocks
    assert isinstance(shown, Tabulated)
    return str(shown.caption)


def rows_of(record: AuditRecord, term: str) -> str:
    found = [{str(a): str(b) for a, b in block.rows} for block in file.section(Audited(record)).blocks if isinstance(block, Facts)]
    return found[0][term]


def how_made(record: AuditRecord) -> dict[str, str]:
    return {term: str(said) for term, said in made._rows(record)}


SAID: dict[str, tuple[Callable[[AuditRecord], str], str, str]] = {  # what is said of a record; what it holds, and what it does not
    "masks that have no other table": (lambda record: caption_of(calibrated_under_masks()), "n/e", "under other masks"),
    "masks that have one": (lambda record: caption_of(latent_audit(n=60)[0]), "under other masks", "under any mask"),
    "bold": (markdown, "Bold: the attack chosen on the calibrate part. Intervals are 95 %; rates are of the test part.", "all images"),
    "no bold": (lambda record: markdown(without_calibration(record)), "Intervals are 95 %; rates are of all images.", "Bold:"),
    "nothing was taken out in most divisions": (
        lambda record: " ".join(calibrated.sentences(in_divisions(record, "plain"))),
        "In the 25 random divisions calibration most often took nothing out of the scores of the attack.",
        "changed nothing",
    ),
    "nothing was taken out of one attack in most divisions": (
        lambda record: " ".join(calibrated.sentences(in_divisions(record, "png", "plain"))),
        "In the 25 random divisions calibration most often took nothing out of the scores of pia.",
        "did not help",
    ),
    "a timestep of a sweep": (lambda record: made.costs(Audited(record)).blocks[-1].data["text"], "pays less", "every timestep"),
    "the only timestep": (
        lambda record: str(made.costs(Audited(with_first(record, queries=1, queries_at_timestep=1))).blocks),
        "Scoring took",
        "pays less",
    ),
    "a limit on the TPR": (lambda record: gates.MET["max_tpr"], "it does not see an attack that works with its answers", "as a limit"),
    "captions of the images' own": (lambda record: how_made(captioned(record, "own"))["Captions"], "found for 10 of 200 images", "same"),
    "a caption for all": (
        lambda record: how_made(captioned(record, "fixed:a photo"))["Captions"],
        "the same for every image; 10 of 200 images have one of their own",
        "found",
    ),
    "no split.json": (lambda record: rows_of(membership(record), "Training images"), "known: no split.json lies beside", "fit"),
    "a split.json of other images": (
        lambda record: rows_of(membership(record, model_split="m/split.json"), "Training images"),
        "number not known: the split.json beside the model does not fit these images",
        "lies",
    ),
    "nothing is known of a split.json": (lambda record: rows_of(record, "Training images") + ".", "number not known.", "split.json"),
    "an audit without a number": (
        lambda record: glance.validity(with_validity(record.model_copy(update={"results": (), "headline": None}))),
        "no: nothing could be estimated",
        "membership",
    ),
    "a model that some attacks do not fit": (lambda record: coverage.ACCESSES["weights"], "that works with the model", "every attack, so"),
    "not estimable": (lambda record: dict(TERMS_OF)["n/e"], "not estimable", "little data"),
    "some numbers of some attacks": (lambda record: dict(TERMS_OF)["Combined"], "of several attacks", "all attacks"),
    "the setting without a calibrate part": (
        lambda record: next(column.hint for column in table(record).columns if column.title == "Timestep"),
        "where there is one",
        ", chosen",
    ),
}
TERMS_OF = [(name, said) for name, _, said in TERMS]


@pytest.mark.parametrize("kind", SAID)
def test_a_sentence_stands_where_it_is_true_and_nowhere_else(leak, kind):
    said, holds, lacks = SAID[kind]
    found = said(leak)
    assert holds in found and lacks not in found, found


def one_excess(record: AuditRecord) -> AuditRecord:
    """One attack that finds more than a reference does."""
    gained = record.results[0].model_copy(
        update={"attack": "sima[excess]", "variant": "excess", "auc": Estimate(value=0.7, low=0.6, high=0.8)}
    )
    return record.model_copy(update={"results": (record.results[0], gained)})


def attack_of(name: str, run: bool) -> KnownAttack:
    return KnownAttack(attack=name, access="black-box", about="It looks.", run=run)


def bound(**changes) -> str:
    record = EpsilonRecord.model_validate_json((DECISIONS / "epsilon-dp.json").read_text())
    return " ".join(epsilon.lines(record.model_copy(update=changes)))


def limited(reach: float) -> Gate:
    return Gate(limit="max_auc", attack="sima", quantity="AUC", at_most=0.6, reach=reach, passed=reach <= 0.6)


def one_probe() -> str:
    """How the distortion was measured, by one singular value and one probe."""
    record, samples = latent_audit(("influence:0.4",), n=60, shifts={"sima": 1.0})
    found = record.geometry.model_copy(update={"top": 1, "probes": 1})
    return geometry._intro(Audited(record, samples), found)[1].data["text"]


ONE = {  # what is said of one, and what it holds
    "an attack beyond the reference": (lambda record: reference.sentences(one_excess(record))[1], "1 of 1 attack tells members apart"),
    "an attack that was not run": (
        lambda record: glance.missing(record.model_copy(update={"evidence": Evidence(attacks=(attack_of("noise_probe", False),))})),
        "noise_probe. Outsiders of this release could run it.",
    ),
    "an attack that counts": (
        lambda record: " ".join(coverage.said(Evidence(attacks=(attack_of("noise_probe", False),)))),
        "Of 1 attack that counts, 0 were run. Not run, though it counts: noise_probe (black-box).",
    ),
    "a result above the limit": (lambda record: gates.outcome((limited(0.7), limited(0.5))), "; 1 of 2 is above the limit)"),
    "a guess": (lambda record: bound(guesses=1, right=1, top=1, bottom=0), "1 guess of which 1 right"),
    "an image of a guess": (lambda record: bound(guesses=1, right=1, top=1, bottom=0), "1 image as members and 0 as held out"),
    "an image of each side": (lambda record: IMAGES.sides(1, 1), "1 member, 1 held-out image"),
    "a group of each side": (lambda record: GROUPS.sides(1, 2), "1 group of members, 2 held-out groups"),
    "a singular value": (lambda record: one_probe(), "Distortion is the largest logarithmic singular value of the decoder's Jacobian"),
    "a probe": (lambda record: one_probe(), "estimated from 1 random probe."),
    "the largest singular value": (lambda record: how_made(with_plan(record, top=1))["Singular values"], "the largest, for distortion"),
}


@pytest.mark.parametrize("kind", ONE)
def test_one_is_said_in_the_singular(leak, kind):
    said, holds = ONE[kind]
    assert holds in said(leak)


def test_few_false_alarms_decide_a_rate_whatever_an_audit_counts():
    rate = audit_of({"sima": 1.0}, 200)[0].results[0]
    assert rate.tpr(0.01).support == "low"
    assert rate_cell(rate.tpr(0.01)).reason == "low support (fewer than 10 false alarms decide it; the interval allows for that)"
    notes = " ".join(table(audit_of({"sima": 1.0}, 200)[0]).notes)
    assert "fewer than 10 missed members decide it" in notes and "images decide" not in notes


@pytest.mark.parametrize(
    ("plan", "page"),
    [
        ({"lora": "dog", "captions": "own"}, "docs/defences.md, “Early stopping and DP-SGD”"),
        ({"embedding": "dog", "captions": "own"}, "docs/fine-tunes.md, “Fine-tuned models”"),
        ({"captions": "own"}, "docs/defences.md, “Text-to-image models”"),
        ({}, "docs/defences.md, “Defend”"),
    ],
)
def test_the_terminal_names_the_page_that_has_the_steps_of_this_kind_of_model(leak, plan, page):
    found = remedies.section(Audited(with_plan(leak, **plan)))
    (short,) = [block for block in found.blocks if isinstance(block, Sentences)]
    assert short.said[0].endswith(f"report.html has the steps ({page}).")


def test_groups_are_listed_by_score_where_none_is_shown_to_be_exposed(leak):
    listed = (ExposedGroup(group="a", images=2, score=1.0, exposure=0.1),)
    made = Groups(column="person", members=60, nonmembers=60, images=(1, 2, 3), tested=(48, 48), attack="sima", exposed=listed)
    found = groups.section(Audited(leak.model_copy(update={"groups": made})))
    assert [block.caption for block in found.blocks if isinstance(block, Tabulated)] == ["The groups with the highest scores first."]


def test_a_table_for_a_paper_says_what_n_e_is_where_it_has_one(leak):
    assert "n/e: not estimable." not in results_latex(leak)
    assert r"In brackets: 95 \% intervals. n/e: not estimable.}" in results_latex(with_first(leak, auc=Estimate(reason="few")))


@pytest.mark.usefixtures("drawn")
def test_a_threshold_that_its_key_names_is_drawn_also_where_it_lies_beyond_all_scores():
    record, samples = audit_of({"sima": 1.0}, 100)
    asr = record.results[0].asr.model_copy(update={"threshold": 1e6})
    lines = lambda result: figures.histogram(samples, result, "scores", small=False).count(CHOSEN)
    without = record.results[0].model_copy(update={"asr": asr.model_copy(update={"threshold": None})})
    beyond = record.results[0].model_copy(update={"asr": asr})
    assert lines(beyond) == lines(record.results[0]) == lines(without) + 1


def test_an_image_of_a_figure_is_described_without_a_part_that_need_not_be_there():
    record, samples = audit_of({"sima": 1.0}, 60)
    shown = figures.histogram(samples, record.results[0], "scores", small=True), figures.roc(record.results, samples, "sima")
    assert all("test part" not in str(each) for each in shown)


def test_a_command_that_is_given_is_one_that_a_shell_takes(tmp_path, capsys):
    assert "diffleak reveal 'my runs/a' gives their names" in handling.in_terminal(True, Path("my runs/a"))
    folder = tmp_path / "my run"
    folder.mkdir()
    for name, content in (("report.html", PICTURE), ("audit.json", "{}")):
        (folder / name).write_text(content)
    refresh_report(folder)
    assert f"diffleak report '{folder}' --thumbnails writes it" in capsys.readouterr().err


OF_IMAGES = re.compile(r"Images of the group|score of its images|complexity of the images|image by image|per image")  # of groups, too


@pytest.mark.parametrize("kind", ["audit", "compare", "sweep", "swap"])
def test_hints_of_columns_speak_of_what_is_counted(tmp_path, leak, kind):
    """Where groups are counted, of groups; of images there is no other hint than without groups."""

    def hints(unit: Unit) -> str:
        if kind == "audit":
            record = in_divisions(one_excess(leak), "sima")
            of = record.model_copy(update={"results": (*record.results, *calibrated_under_masks().results)})
            page = audit_page.page(with_split(of, unit=unit))
        elif kind == "sweep":
            counts = {} if unit == "image" else {"group": "person"}
            page = sweep_page.page(read_sweep(swept(tmp_path / unit, **counts)))
        else:
            together = {} if unit == "image" else {"groups": np.arange(800) // 4}
            if kind == "swap":
                one, two, halves = swap_runs(tmp_path / unit, 1.5, 3.0, **together)
                page = comparison_page.page(compare([f"dual={one},{two}", str(one)], halves=halves))
            else:
                runs = [make_run(tmp_path / unit / name, {"sima": gaussian(1.0)}, seed=seed, **together) for seed, name in enumerate("ab")]
                page = comparison_page.page(compare(list(map(str, runs))))
        tables = [block.table for section in page.sections for block in section.blocks if isinstance(block, Tabulated)]
        found = " / ".join(column.hint for each in tables for column in each.columns)
        assert tables and not re.search(r"\{\w*\}", found)
        return found

    said, of_images = hints("group"), hints("image")
    assert not re.search(r"\b[Ii]mages?\b", OF_IMAGES.sub("", said)), said
    assert "group" in said and "groups of members" not in of_images and "held-out group" not in of_images
