"""Messages stay one short line, whatever a user's file holds."""

import json
import time

import numpy as np
import pytest

from diffleak.data.captions import read_captions
from diffleak.data.decoding import UnreadableImage
from diffleak.data.prompts import read_prompts
from diffleak.data.sources import open_source
from diffleak.data.split import read_split
from diffleak.errors import SHOWN, WHY, UserError, listed, nearest, of_system, of_them, one_or_more, refusing, shown, unknown

HUGE = "x" * 10_000_000


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a.png", "a.png"),
        (7, "7"),
        (None, "None"),
        ("a\nb\x1b[2J\udcff", r"a\nb\x1b[2J\udcff"),
        ("y" * SHOWN, "y" * SHOWN),
        ("y" * (SHOWN + 1), "y" * (SHOWN - 1) + "…"),
        (HUGE, "x" * (SHOWN - 1) + "…"),
        ("\x1b" * SHOWN, r"\x1b" * 14 + r"\x1…"),
    ],
    ids=["text", "number", "none", "unprintable", "as long as may be", "longer", "huge", "long when spelled"],
)
def test_a_value_is_shown_whole_where_it_is_short_and_cut_where_it_is_long(value, said):
    assert shown(value) == said and len(said) <= SHOWN


def test_a_list_of_names_ends_with_how_many_more_there_are():
    assert listed(["a", "b"]) == "a, b" and listed([]) == ""
    assert listed(["abc"] * 5, limit=10) == "abc, abc and 3 more"
    assert listed([HUGE, "b"], limit=10) == f"{shown(HUGE)} and 1 more"
    assert unknown("thing", "q", map(str, range(10**5))).args[0].endswith(" more")


def test_the_nearest_name_is_found_among_long_ones_at_once():
    assert nearest("scroe", ["id", "score"]) == "score" and nearest("zzz", ["id"]) is None
    before = time.monotonic()
    assert unknown("column", HUGE, [HUGE[1:], "member"]).args[0] == f"unknown column '{shown(HUGE)}'; did you mean '{shown(HUGE)}'?"
    assert time.monotonic() - before < 2


FILES = {
    "a.csv": (f"{HUGE},text\n1,2\n", read_captions),
    "b.json": (json.dumps({"a": {"b": HUGE}}), read_captions),
    "c.jsonl": (json.dumps({HUGE: 1}), read_captions),
    "d.csv": ("a," * 1_000_000 + "b\n1\n", read_prompts),
    "e.jsonl": (json.dumps({"text": {"a": HUGE}}), read_prompts),
    "f.json": (
        json.dumps({"members": [HUGE], "nonmembers": ["y" * 5000]}),
        lambda path: read_split(path, open_source(np.zeros((3, 4, 4), np.uint8))),
    ),
    "g.json": (
        json.dumps({"members": [HUGE], "nonmembers": [HUGE]}),
        lambda path: read_split(path, open_source(np.zeros((3, 4, 4), np.uint8))),
    ),
    "h.json": (json.dumps({HUGE: []}), lambda path: read_split(path, open_source(np.zeros((3, 4, 4), np.uint8)))),
}


@pytest.mark.parametrize("name", FILES)
def test_a_huge_value_of_a_file_is_cut_in_the_message(tmp_path, name):
    content, read = FILES[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refusal:
        read(tmp_path / name)
    said = str(refusal.value).replace(str(tmp_path), "")
    assert len(said) <= 400 and "\n" not in said and name in said


def test_refusing_puts_a_message_with_the_reason_in_the_place_of_the_errors_it_names():
    with (
        pytest.raises(UserError, match=r"^a/\{b\} cannot be read \(no such thing\); give another$"),
        refusing(KeyError, message("a/{b}"), reason),
    ):
        raise KeyError("x")
    with (
        pytest.raises(UnreadableImage, match="without a reason"),
        refusing((KeyError, OSError), "without a reason", raises=UnreadableImage),
    ):
        raise OSError
    with pytest.raises(TypeError, match="a bug"), refusing(KeyError, message("a")):
        raise TypeError("a bug")


def test_refusing_all_that_a_library_may_raise_lets_a_refusal_pass_as_it_is():
    with pytest.raises(UserError, match=r"^say it plainly$"), refusing(Exception, message("a")):
        raise UserError("say it plainly")
    with pytest.raises(UserError, match=r"^a cannot be read \(say it\)"), refusing((UserError, Exception), message("a")):
        raise UserError("say it")


@pytest.mark.parametrize(
    ("error", "said"), [(OSError(28, "No space left on device", "a.txt"), "No space left on device"), (OSError("odd"), "odd")]
)
def test_what_the_system_says_of_a_file_comes_without_its_number_and_name(error, said):
    assert of_system(error) == said


def message(path):
    return f"{path} cannot be read ({WHY}); give another"


def reason(error):
    return "no such thing"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (lambda n: one_or_more(n, "image"), {0: "0 images", 1: "1 image", 1600: "1,600 images"}),
        (lambda n: one_or_more(n, "image is", "images are"), {1: "1 image is", 2: "2 images are"}),
        (lambda n: of_them(n, "12 images"), {1: "1 of 12 images is", 2: "2 of 12 images are"}),
        (lambda n: of_them(n, "them", "has", "have"), {1: "1 of them has", 1600: "1,600 of them have"}),
    ],
)
def test_a_number_has_its_noun_and_verb(said, expected):
    assert {n: said(n) for n in expected} == expected
