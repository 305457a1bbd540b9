"""How masks are written, named and refused."""

import pytest

from diffleak.errors import UserError
from diffleak.geometry.masks import Mask, distinct, parse_mask
from diffleak.records.variants import CALIBRATED, CONTROLS, base_label, control_of, masked_label, may_lead


@pytest.mark.parametrize("control", CONTROLS)
def test_a_mask_without_a_ratio_drops_the_papers_forty_percent(control):
    choice = parse_mask(control)
    assert choice == parse_mask(f"{control}:0.4") and choice.masks == (Mask(control, 0.4),)
    assert choice.label == f"{control}:0.4"


@pytest.mark.parametrize(
    ("text", "label", "ratio"),
    [("influence:0.05", "influence:0.05", 0.05), (" random:.5 ", "random:0.5", 0.5), ("reverse:0.90", "reverse:0.9", 0.9)],
)
def test_a_mask_keeps_the_ratio_it_is_given(text, label, ratio):
    choice = parse_mask(text)
    assert (choice.label, choice.masks) == (label, (Mask(control_of(label), ratio),))


def test_auto_chooses_among_ten_ratios_of_influence_from_none_to_nine_tenths():
    choice = parse_mask("auto")
    assert choice.label == "influence:auto"
    assert choice.masks == tuple(Mask("influence", round(0.1 * i, 1)) for i in range(10))


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.85])
def test_a_masks_label_is_what_parse_takes(control, ratio):
    mask = Mask(control, ratio)
    assert parse_mask(mask.label).masks == (mask,)


@pytest.mark.parametrize("ratio", ["", "0", "1", "1.2", "-0.1", "nan", "inf", "x", "0,4", "40%", "0.4:0.5"])
def test_a_ratio_that_drops_nothing_everything_or_is_no_number_is_refused(ratio):
    with pytest.raises(UserError, match=r"a mask's ratio is the share of coordinates dropped, above 0 and below 1, as in random:0\.4; got"):
        parse_mask(f"random:{ratio}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("influense", "unknown mask 'influense'; did you mean 'influence'?"),
        ("Random:0.4", "unknown mask 'Random'; did you mean 'random'?"),
        ("", "unknown mask ''; known: auto, influence, random, reverse"),
        ("auto:0.4", "auto takes no ratio, it chooses one; for 0.4 write influence:0.4"),
        ("auto:", "auto takes no ratio, it chooses one; for a ratio of yours write influence:0.4"),
    ],
)
def test_an_unknown_mask_is_refused_and_the_nearest_named(text, message):
    with pytest.raises(UserError) as refusal:
        parse_mask(text)
    assert str(refusal.value) == message


def test_masks_that_several_choices_need_are_computed_once_and_no_mask_never():
    choices = tuple(map(parse_mask, ("influence:0.3", "auto", "random:0.3")))
    masks = distinct(choices)
    assert masks == (
        Mask("influence", 0.3),
        *(Mask("influence", i / 10) for i in (1, 2, 4, 5, 6, 7, 8, 9)),
        Mask("random", 0.3),
    )
    assert distinct(()) == ()


@pytest.mark.parametrize("attack", ["sima", "sima_mc(m=10,variant=norms)"])
@pytest.mark.parametrize("mask", ["influence:0.4", "random:0.05", "influence:auto"])
def test_the_attack_can_be_read_back_from_a_masked_label(attack, mask):
    assert masked_label(attack, mask) == f"{attack}[{mask}]"
    assert base_label(masked_label(attack, mask), mask) == attack
    assert base_label(masked_label(masked_label(attack, mask), CALIBRATED), mask, CALIBRATED) == attack
    assert base_label(attack, None) == attack


def test_only_influence_and_no_mask_speak_for_an_audit():
    leading = [mask for mask in (None, "influence:0.4", "influence:auto", "random:0.4", "reverse:0.9") if may_lead(mask)]
    assert leading == [None, "influence:0.4", "influence:auto"]
