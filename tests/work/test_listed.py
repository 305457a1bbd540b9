"""Lists of named files: an existing path wins over both marks."""

import pytest

from diffleak.errors import UserError
from diffleak.work.listed import join_named, split_named


def test_names_are_split_at_commas_and_values_at_the_last_mark():
    assert split_named("A@0.8,owner/B", "--lora") == [("A", "0.8"), ("owner/B", None)]
    assert split_named("A@b@0.5", "--lora") == [("A@b", "0.5")]
    assert split_named("@A", "--lora") == [("@A", None)]


def test_a_path_that_is_there_may_hold_both_marks(tmp_path):
    for name in ("a,b.bin", "c@0.5", "d"):
        (tmp_path / name).touch()
    assert split_named(f"{tmp_path}/d@0,{tmp_path}/d", "--lora") == [(f"{tmp_path}/d", "0"), (f"{tmp_path}/d", None)]
    text = f"{tmp_path}/a,b.bin@0.8,{tmp_path}/c@0.5,{tmp_path}/d@2"
    assert split_named(text, "--lora") == [(f"{tmp_path}/a,b.bin", "0.8"), (f"{tmp_path}/c@0.5", None), (f"{tmp_path}/d", "2")]


@pytest.mark.parametrize("text", ["", "A,", ",A", "A,,B"])
def test_a_name_that_is_left_out_is_refused(text):
    with pytest.raises(UserError, match="--lora must name something before and after each comma"):
        split_named(text, "--lora")


def test_a_list_is_written_as_the_command_line_has_it(tmp_path):
    assert join_named(["A", ("B", 0.8), (tmp_path, 2)], "--lora") == f"A,B@0.8,{tmp_path}@2"
    assert join_named("A,B", "--lora") == "A,B" and join_named([], "--lora") is None and join_named(None, "--lora") is None
    with pytest.raises(UserError, match=r"--lora must list names, or pairs of a name and a value; got \('B', \[\]\)"):
        join_named(["A", ("B", [])], "--lora")
