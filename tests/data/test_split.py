"""split.json: its bytes, what is read back, and what counts as lacking."""

import json

import pytest

from diffleak.data.split import FILE, Drawn, Split, find_split

WHOLE = Split(("a", "b", "c"), ("d",), ("e",), (("a",), ("b", "c")), ("sha256:1", "sha256:2"))


@pytest.mark.parametrize(
    ("split", "text"),
    [
        (Split(("a", "b"), ("c",)), '{"members": ["a", "b"], "nonmembers": ["c"]}'),
        (
            WHOLE,
            '{"members": ["a", "b", "c"], "nonmembers": ["d"], "validation": ["e"], "halves": [["a"], ["b", "c"]], '
            '"teachers": ["sha256:1", "sha256:2"]}',
        ),
        (
            Split(("a", "b"), ("c",), drawn=Drawn("coin", 3, 0.5, (("a", "b"),))),
            '{"members": ["a", "b"], "nonmembers": ["c"], "drawn": {"how": "coin", "seed": 3, "held_out": 0.5, "together": [["a", "b"]]}}',
        ),
    ],
    ids=["train", "every key", "drawn"],
)
def test_a_split_has_the_keys_that_say_something_and_is_read_back_as_written(tmp_path, split, text):
    split.write(tmp_path)
    assert (tmp_path / FILE).read_text() == text and Split.read(tmp_path / FILE) == split


@pytest.mark.parametrize(
    ("key", "value"),
    [("members", "abc"), ("nonmembers", {"a": 1}), ("halves", [["a"]]), ("halves", [["a"], "b"]), ("teachers", ["x", "y", "z"])],
)
def test_a_key_that_is_no_list_as_it_should_be_is_lacking(tmp_path, key, value):
    path = tmp_path / FILE
    path.write_text(json.dumps({"members": ["a"], "nonmembers": ["b"], "halves": [["a"], ["c"]], "teachers": ["x", "y"], key: value}))
    assert find_split(path, key) is None
    assert find_split(path) == find_split(path, *{"members", "nonmembers", "halves", "teachers"} - {key}) is not None


@pytest.mark.parametrize("value", ["coin", {"how": "dice"}, {"seed": True}, {"seed": "0"}, {"held_out": "half"}, {"together": ["a"]}])
def test_a_draw_that_is_not_as_it_should_be_is_not_known(tmp_path, value):
    path, drawn = tmp_path / FILE, {"how": "share", "seed": 0, "held_out": 0.2}
    path.write_text(json.dumps({"members": ["a"], "nonmembers": ["b"], "drawn": drawn}))
    assert find_split(path).drawn == Drawn("share", 0, 0.2)
    path.write_text(json.dumps({"members": ["a"], "nonmembers": ["b"], "drawn": {**drawn, **value} if isinstance(value, dict) else value}))
    assert find_split(path) == Split(("a",), ("b",))


def test_the_other_half_is_that_of_the_teacher_with_other_members():
    assert WHOLE.other_half(("c", "b")) == ("a",) and WHOLE.other_half(("a",)) == ("b", "c")
    assert WHOLE.other_half(("a", "b", "c")) == Split(("a",)).other_half(("a",)) == ()
