"""A sentence is true in the branch in which it is printed: one of a kind, nothing held out, no calibrate part, no step, seeds pooled."""

import re
from pathlib import Path
from typing import Any

import pytest
from fixtures.extraction import extraction_record
from fixtures.quality import quality_record
from fixtures.reports import audit_of, html
from fixtures.runs import gaussian, make_run
from fixtures.sweeps import swept

from diffleak.comparison.compare import compare
from diffleak.errors import UserError
from diffleak.records.audit import Blind
from diffleak.records.base import Estimate
from diffleak.records.check import Side
from diffleak.records.comparison import Comparison
from diffleak.records.evidence import Evidence
from diffleak.records.extraction import ExtractionRecord
from diffleak.records.inquiry import InquiryRecord
from diffleak.records.lora import LoraRecord
from diffleak.records.sweep import Point, SweepRecord, read_sweep
from diffleak.report import to_html
from diffleak.report import verdict as verdict_of_audit
from diffleak.report.again import _pictures
from diffleak.report.judgement import EXCESS_TO_CHECK, FAIR, TO_CHECK, sources
from diffleak.report.pages import comparison, extraction, inquiry, lora, quality, sweep
from diffleak.report.section import Page
from diffleak.report.sections import extraction as extraction_sections
from diffleak.report.sections import quality as quality_sections
from diffleak.report.sections.check import _sizes
from diffleak.report.sections.comparison.verdict import comparison_verdict
from diffleak.report.wording import cut_captions, omitted, resized
from diffleak.stats.calibration import PLAIN

DECISIONS = Path(__file__).parents[2] / "studies" / "decisions"
pytestmark = pytest.mark.usefixtures("undrawn")


def text(page: Page | str) -> str:
    """The words of a page with its hints, without markup."""
    shown = page if isinstance(page, str) else to_html(page)
    return " ".join(re.sub(r"<[^>]+>", " ", shown).replace("<wbr>", "").split())


def studied(kind: type[Any], name: str, **changes: Any) -> Any:
    return kind.model_validate_json((DECISIONS / f"{name}.json").read_text()).model_copy(update=changes)


def part(record: Any, field: str, **changes: Any) -> Any:
    """The record with changes to one of its parts."""
    return record.model_copy(update={field: getattr(record, field).model_copy(update=changes)})


@pytest.mark.parametrize(
    "pixels",
    [{"value": 0.5, "low": 0.45, "high": 0.55}, {"value": 0.6, "p_value": 0.4}],
    ids=["classifier", "permutations"],
)
def test_sides_whose_classes_differ_are_never_said_to_look_fair(pixels):
    assert FAIR in sources(Blind(**pixels)) and FAIR in sources(Blind(**pixels, labels_p_value=0.5))
    said = sources(Blind(**pixels, labels_p_value=0.001))
    assert FAIR not in said and "The pixels show no difference between the sides." in said
    assert ("so chance can explain it" in said) == ("p_value" in pixels)


def test_a_calibrated_attack_that_took_nothing_out_is_not_said_to_be_corrected():
    record, _ = audit_of({"sima": 1.75}, 100)
    plain = record.results[0].model_copy(update={"attack": "sima[calibrated]", "complexity": PLAIN})
    again = record.model_copy(update={"results": (plain,), "headline": "sima[calibrated]"})
    for repeats, said in ((25, "sima: in most divisions the calibrate part chose no"), (1, "sima: the calibrate part chose no")):
        found = " ".join(verdict_of_audit(part(again, "split", repeats=repeats)).sentences)
        assert said in found and "the score that its complexity predicts is subtracted" not in found


def test_the_head_of_an_audit_says_of_what_the_tested_images_are_a_part():
    record, samples = audit_of({"sima": 1.75}, 100)
    known = record.model_copy(update={"evidence": Evidence(training_images=4000)})
    assert f"{record.plan.n_members} training images, of 4,000 that the model was trained on; " in text(html(known, samples))


@pytest.mark.parametrize(
    ("said", "one", "two"),
    [
        (cut_captions, "1 caption is longer than", "2 captions are longer than"),
        (omitted, "1 unreadable image was left out", "2 unreadable images were left out"),
        (
            lambda n: resized(n, "8 x 8", "real image"),
            "1 real image of another shape was resized to",
            "2 real images of another shape were",
        ),
    ],
)
def test_warnings_of_images_and_captions_are_counted_in_the_singular_too(said, one, two):
    assert said(1).startswith(one) and said(2).startswith(two)


def test_thumbnails_of_a_page_that_has_no_pairs_are_refused_without_a_word_on_its_other_pictures():
    with pytest.raises(UserError, match="keeps no pictures of pairs, which --thumbnails shows: leave it out"):
        _pictures(Path("out"), quality_record())


# Sweeps


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> SweepRecord:
    """A sweep of two checkpoints without a limit."""
    return read_sweep(swept(tmp_path_factory.mktemp("sweep") / "swept"))


def only(record: SweepRecord, **changes: Any) -> SweepRecord:
    """A sweep of its first checkpoint alone, as `lora` makes one of a single file."""
    return record.model_copy(update={"points": record.points[:1], "step_source": "", **changes})


def test_a_sweep_of_one_checkpoint_names_no_first_last_or_step(two):
    one = only(two)
    judged, shown = sweep.judged(one), text(sweep.page(one))
    assert judged.title == f"AUC of the one checkpoint: {one.points[0].auc.value:.3f}"
    assert sum("has AUC" in said for said in judged.sentences) == 1 and judged.sentences[0].startswith("a: sima has AUC")
    assert "Audit of 1 checkpoint" in shown and "1 adapter · " in shown
    for wrong in (
        "checkpoints were audited",
        "steps 0 to",
        "steps are from",
        "From .",
        "Many looks",
        "Leak against training step",
        "At step",
    ):
        assert wrong not in shown
    several = text(sweep.page(two))
    for right in (
        "Audit of 2 checkpoints",
        "2 adapters, steps 1 to 2",
        "2 checkpoints were audited",
        "steps are from --steps",
        "At step 1 (a)",
    ):
        assert right in several


def test_a_sweep_of_one_checkpoint_is_within_its_limits_or_not(two):
    passed = two.points[0].model_copy(update={"passed": True})
    within = sweep.judged(only(two, points=(passed,), last_passing="a"))
    assert within.title == "The one checkpoint is within the limits: a"
    above = sweep.judged(only(two, points=(passed.model_copy(update={"passed": False}),)))
    assert above.title == "The one checkpoint is not within the limits"


def test_only_a_sweep_that_chose_a_checkpoint_says_that_choosing_flatters_it(two):
    choice = "which makes it look a little better than it is"
    assert choice not in text(sweep.page(two))
    points = tuple(point.model_copy(update={"passed": True}) for point in two.points)
    assert choice in text(sweep.page(two.model_copy(update={"points": points, "last_passing": "b"})))


def test_a_sweep_without_a_calibrate_part_speaks_of_no_test_part(two):
    shown = text(to_html(sweep.page(two.model_copy(update={"chosen_on": "test"}))).partition('id="glossary"')[0])
    assert "test part" not in shown and "strongest on the images that it is tested on" in shown
    assert "On the test part" in to_html(sweep.page(two)), "the hint of a column"
    assert "On the test part" not in to_html(sweep.page(two.model_copy(update={"chosen_on": "test"})))


@pytest.mark.parametrize(("attack", "check"), [("sima", TO_CHECK), ("sima[excess]", EXCESS_TO_CHECK)])
def test_a_reversed_excess_of_a_checkpoint_speaks_of_the_reference(two, attack, check):
    points = (two.points[0].model_copy(update={"wrong_way": attack}), two.points[1])
    assert any(said.endswith(check) for said in sweep.judged(two.model_copy(update={"points": points})).sentences)


def test_a_sweep_of_an_earlier_version_whose_shown_attack_works_reversed_is_no_leak_not_found(two):
    def of(auc: Estimate, **known: Any) -> SweepRecord:
        old = {name: getattr(two.points[1], name) for name in Point.model_fields if name != "wrong_way"}
        points = (two.points[0].model_copy(update={"passed": True}), Point(**old | known | {"auc": auc, "passed": True}))
        return two.model_copy(update={"points": points, "last_passing": "b"})

    below, across = Estimate(value=0.3, low=0.2, high=0.4), Estimate(value=0.45, low=0.38, high=0.52)
    assert sweep.judged(of(across)).level == "no-leak-found" == sweep.judged(of(below, wrong_way=None)).level
    assert sweep.judged(of(below)).level == "undecided"
    assert any("the wrong way round: sima at b." in said for said in sweep.judged(of(below)).sentences)


# Comparisons


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Comparison:
    folder = tmp_path_factory.mktemp("compared")
    shifts = {"plain": 0.6, "dual": 1.4, "distil": 1.6}
    return compare(
        [str(make_run(folder / name, {"sima": gaussian(d), "loss": gaussian(d / 2)}, seed=i)) for i, (name, d) in enumerate(shifts.items())]
    )


def worst_of(record: Comparison, number: int, auc: Estimate | None = None, **changes: Any) -> Comparison:
    """The comparison with changes to the strongest attack of an entry."""
    entry = record.entries[number]
    attack = changes.get("attack", entry.worst.attack)
    given = {"attack": attack} if auc is None else {"attack": attack, "auc": auc}
    results = tuple(r.model_copy(update=given) if r is entry.worst_result else r for r in entry.results)
    changed = entry.model_copy(update={"results": results, "worst": entry.worst.model_copy(update=changes)})
    return record.model_copy(update={"entries": (*record.entries[:number], changed, *record.entries[number + 1 :])})


def test_several_stronger_entries_are_said_in_the_plural(compared):
    assert comparison_verdict(compared).title.endswith(" On dual, distil the strongest attack does better.")


def test_a_comparison_says_on_which_part_the_strongest_attacks_were_chosen(compared):
    without = "(on the test part where there is no calibrate part)"
    shown = to_html(comparison.page(compared))
    assert without not in shown and "has no calibrate part" not in shown
    some = to_html(comparison.page(worst_of(compared, 1, chosen_on="test")))
    assert some.count(f"with the highest AUC on the calibrate part {without}") >= 1 and some.count(without) >= 2
    assert 'title="The timestep, or setting; chosen on the calibrate part where there is one."' in some


def test_a_pooled_comparison_does_not_say_that_its_intervals_cover_no_seed(tmp_path):
    runs = {
        name: [str(make_run(tmp_path / f"{name}{i}", {"sima": gaussian(d)}, seed=i)) for i in (1, 2)]
        for name, d in (("a", 1.0), ("b", 0.4))
    }
    entries = [f"{name}={','.join(folders)}" for name, folders in runs.items()]
    shown, alone = (text(comparison.page(compare(entries, pool=pool))) for pool in (True, False))
    assert "Only the intervals of the table Over seeds cover another seed" in shown and "One training run each" not in shown
    assert "One training run each" in alone and "Only the intervals of the table" not in alone
    assert "Comparison of 4 audits" in shown


def test_a_reversed_excess_in_a_comparison_speaks_of_the_reference(compared):
    below = Estimate(value=0.3, low=0.25, high=0.35)
    base = comparison_verdict(worst_of(compared, 0, below, attack="sima[excess]"))
    assert base.level == "undecided" and any(EXCESS_TO_CHECK in said for said in base.sentences)
    assert any(TO_CHECK in said for said in comparison_verdict(worst_of(compared, 0, below)).sentences)
    entry = " ".join(comparison_verdict(worst_of(compared, 1, below, attack="sima[excess]")).sentences)
    assert "the reference gives away more of these members than the model does" in entry and "not a sign of safety" not in entry
    plain = " ".join(comparison_verdict(worst_of(compared, 1, below)).sentences)
    assert "not a sign of safety" in plain


# Extraction and quality


def rated(record: ExtractionRecord, **changes: Any) -> ExtractionRecord:
    """The record with other rates of the distance that decides."""
    distances = tuple(each.model_copy(update=changes) if each is record.decisive else each for each in record.distances)
    return record.model_copy(update={"distances": distances})


def test_a_search_that_finds_what_chance_explains_does_not_say_that_no_more_were_found():
    judged = extraction_sections.verdict(extraction_record())
    assert judged.title == "No more copies of members were found than chance explains."


@pytest.mark.parametrize(
    ("copies", "said"), [(0, "0 of 60 members have a copy"), (1, "1 of 60 members has a copy"), (2, "2 of 60 members have")]
)
def test_the_number_of_copies_has_its_verb_and_no_pronoun_without_a_noun(copies, said):
    judged = extraction_sections.verdict(rated(extraction_record(), copies=copies))
    assert judged.sentences[0].startswith(said) and "they are" not in judged.sentences[0]


def test_a_rate_of_one_rules_nothing_out():
    estimate = Estimate(value=0.01, low=0.0, high=1.0)
    judged = extraction_sections.verdict(rated(extraction_record(), copy_rate=estimate))
    assert "no share of copies is ruled out" in judged.sentences[1] and "rule out that more than" not in judged.sentences[1]
    record = quality_record()
    metrics = tuple(m.model_copy(update={"low": 0.0, "high": 1.0}) if m.name == "copy_rate" else m for m in record.metrics)
    said = quality_sections.verdict(record.model_copy(update={"metrics": metrics})).sentences[0]
    assert "No copy rate is ruled out." in said and "100 % is ruled out" not in said


def test_a_search_without_held_out_images_speaks_of_no_threshold_or_interval_that_held_out_images_give():
    shown = to_html(extraction.page(extraction_record(held_out=0))).partition('id="limits"')[2].partition("</section>")[0]
    assert "Near-duplicates among the members count as one image." in shown
    for wrong in ("threshold", "Held-out images that", "The intervals"):
        assert wrong not in shown
    given = to_html(extraction.page(extraction_record())).partition('id="limits"')[2].partition("</section>")[0]
    assert "The threshold allows for" in given and "Held-out images that nearly equal a member are left out" in given


def test_quality_without_a_copy_rate_speaks_of_no_threshold():
    record = quality_record()
    metrics = tuple(m.model_copy(update={"value": None, "low": None, "high": None}) if m.name == "copy_rate" else m for m in record.metrics)
    assert "Chance neighbours" in text(quality.page(record))
    assert "Chance neighbours" not in text(quality.page(record.model_copy(update={"metrics": metrics})))


@pytest.mark.parametrize("steps", [1, 2])
def test_steps_of_drawing_are_counted_in_the_singular_too(steps):
    right = "1 step," if steps == 1 else "2 steps,"
    for page in (
        extraction.page(extraction_record().model_copy(update={"steps": steps})),
        extraction.on_card(extraction_record().model_copy(update={"steps": steps})),
        quality.page(quality_record().model_copy(update={"steps": steps})),
    ):
        assert right in text(page) and "1 steps" not in text(page)


def test_near_duplicates_that_were_left_out_are_counted_in_the_singular_too():
    one, two = (extraction_record().model_copy(update={"near_duplicates": n, "near_duplicates_held_out": n}) for n in (1, 2))
    assert "; 1 near-duplicate of members was left out; 1 near-duplicate of other held-out images was left out" in text(
        extraction.page(one)
    )
    shown = to_html(extraction.page(two))
    assert "; 2 near-duplicates of members were left out; " in text(shown) and "&lt;code" not in shown


# Inquiries, adapters, checks


def test_the_effect_that_an_inquiry_detects_is_of_the_images_that_it_tested():
    record = studied(InquiryRecord, "inquire-512-other")
    sides = f"With {record.set.images} images in question and {record.set.controls} controls"
    tested = f"{sides}, an effect of AUC {record.set.detectable_auc:.2f} or more"
    assert any(tested in said and "would show with probability 80 %" in said for said in inquiry.judged(record).sentences)


@pytest.mark.parametrize(("controls", "best"), [(38, "0.100"), (39, "0.095"), (40, "0.095"), (77, "0.050"), (76, "0.051")])
def test_the_smallest_p_value_of_an_image_is_that_of_the_larger_half_of_the_controls(controls, best):
    record = part(studied(InquiryRecord, "inquire-128-50"), "set", controls=controls)
    assert f"With {controls} controls no p-value of a single image can be below {best}." in text(inquiry.page(record))
    unnamed = tuple(each.model_copy(update={"q_value": 1.0}) for each in record.images)
    said = " ".join(inquiry.judged(record.model_copy(update={"images": unnamed})).sentences)
    assert ("none can have one: that takes 77." in said) == (controls < 77)


def test_one_cut_is_no_cuts():
    record = studied(InquiryRecord, "inquire-128-50", repeats=1)
    assert "1 cut, " in text(inquiry.page(record)) and "1 cuts" not in text(inquiry.page(record))


def test_a_reason_to_look_first_is_a_sentence():
    record = studied(LoraRecord, "lora-drawn")
    first = record.checkpoints[0].model_copy(update={"reason": "look first: to 7 of 12 pictures the adapter's drawings come closer"})
    reasons = lora.judged(record.model_copy(update={"checkpoints": (first, *record.checkpoints[1:])})).sentences
    assert reasons[0] == "e-lora-100: undecided; look first: to 7 of 12 pictures the adapter's drawings come closer."


def test_an_adapter_alone_has_no_step_and_one_repeat_is_one():
    record = studied(LoraRecord, "lora-drawn", step_source=None, repeats={"1_dog": 1, "2_cat": 2})
    shown = to_html(lora.page(record))
    assert "From ." not in shown and "Not known of an adapter alone." in shown
    assert "1_dog: 1 repeat; 2_cat: 2 repeats" in text(shown)


@pytest.mark.parametrize(("shapes", "said"), [(4, ""), (5, ", and 1 other shape"), (6, ", and 2 other shapes")])
def test_shapes_that_are_not_named_are_counted(shapes, said):
    side = Side.model_construct(shapes=tuple((f"{i} x {i} RGB", 1) for i in range(shapes)))
    assert _sizes(side) == ", ".join(f"{i} x {i} RGB: 1" for i in range(min(shapes, 4))) + said
