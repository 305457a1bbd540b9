"""Texts beside the images, as the trainers of kohya read them: which counts, what is said, what is refused."""

import numpy as np
import pytest
from fixtures.pictures import encoded, image

from diffleak.data.captions import choose_captions
from diffleak.data.cohort import images_alone
from diffleak.data.sources import open_source
from diffleak.errors import UserError

TAGS = "1girl, red hair, (blue_eyes:1.2), a b"


@pytest.fixture
def folder(tmp_path):
    """Three images in a kohya folder."""
    (tmp_path / "10_cat").mkdir()
    for i in range(3):
        (tmp_path / "10_cat" / f"{i}.a.png").write_bytes(encoded(image(np.full((4, 4, 3), 9 * i, np.uint8))))
    return tmp_path


def write(folder, **texts):
    for name, text in texts.items():
        kind, _, i = name.partition("_")
        (folder / "10_cat" / f"{i}.a.{kind}").write_bytes(text if isinstance(text, bytes) else text.encode())


def refusal(folder):
    with pytest.raises(UserError) as error:
        choose_captions(images_alone(open_source(folder)), "own", 0)
    said = str(error.value)
    assert "\n" not in said and len(said) <= 400
    return said


@pytest.mark.parametrize("kind", ["txt", "caption"])
def test_tags_stay_one_text_and_the_first_line_that_says_something_is_the_caption(folder, kind):
    write(folder, **{f"{kind}_0": f"{TAGS}\n", f"{kind}_1": f"\ufeff\r\n {TAGS} \r\nsecond\r\n", f"{kind}_2": "z"})
    source = open_source(folder)
    assert source.captions() == ((TAGS,), (TAGS, "second"), ("z",)) and source.names() is None
    lines = "(1 has several lines: the first counts)"
    assert source.found == f"{folder}: 3 images, captions from 3 .{kind} files {lines}, labels from the names of the folders (1)"
    assert choose_captions(images_alone(source), "own", 0).texts == (TAGS, TAGS, "z")


def test_both_kinds_may_stand_beside_an_image_where_they_say_the_same(folder):
    write(folder, txt_0="x", caption_0="x\n", txt_1="y", caption_2="z")
    source = open_source(folder)
    assert source.captions() == (("x",), ("y",), ("z",))
    assert "captions from 2 .txt files and 2 .caption files, labels" in source.found
    write(folder, caption_0="other")
    assert refusal(folder) == (
        f"{folder} must have one kind of caption files; the .txt and the .caption of 10_cat/0.a.png differ: "
        "keep the kind that the model was trained with"
    )


def test_metadata_that_says_captions_counts_and_the_line_says_so(folder):
    write(folder, txt_0="x", txt_1="y", txt_2="z")
    (folder / "metadata.csv").write_text("file_name,label\n10_cat/0.a.png,1\n")
    source = open_source(folder)
    assert source.captions() == (("x",), ("y",), ("z",)) and "captions from 3 .txt files, labels from metadata.csv" in source.found
    (folder / "metadata.csv").write_text("file_name,caption\n10_cat/0.a.png,of metadata\n")
    assert source.captions() == (("of metadata",), (), ())
    assert "captions from metadata.csv, " in source.found and source.found.endswith("; 3 .txt files beside them not read")
    (folder / "metadata.csv").write_text("damaged\nx\n")
    assert source.found.endswith("; its metadata cannot be used")


def test_caption_files_that_are_all_empty_are_no_captions(folder):
    write(folder, txt_0="", txt_1="")
    assert f"{folder}: 3 images, captions none, labels" in open_source(folder).found
    write(folder, txt_1="x")
    (folder / "metadata.csv").write_text("file_name,caption\n10_cat/0.a.png,of metadata\n")
    assert open_source(folder).found.endswith("; 2 .txt files (1 empty) beside them not read")
    (folder / "10_cat" / "0.a.txt").unlink()
    assert open_source(folder).found.endswith("; 1 .txt file beside them not read")


def test_an_image_without_a_caption_is_named_beside_files_of_no_image(folder):
    write(folder, txt_0="x", txt_1="", txt_2="z")
    assert "captions from 3 .txt files (1 empty), " in open_source(folder).found
    assert "captions found: 2/3; every image needs one (first without: 10_cat/1.a.png): give them" in refusal(folder)
    (folder / "10_cat" / "1.a.txt").rename(folder / "10_cat" / "1.txt")
    assert f"(first without: 10_cat/1.a.png; {folder} has 1 name of no image, first: 10_cat/1.txt)" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("caf\xe9".encode("cp1252"), "it is not UTF-8 (byte 0xe9 at 3)"),
        ("x".encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        (None, "it is a folder"),
    ],
)
def test_a_file_that_is_no_text_is_one_line_and_stops_only_who_asks_for_captions(folder, content, said):
    write(folder, txt_0="x", txt_1="y")
    (folder / "10_cat" / "2.a.txt").mkdir() if content is None else write(folder, txt_2=content)
    assert "captions from 3 .txt files" in open_source(folder).found
    assert refusal(folder) == f"the caption file {folder}/10_cat/2.a.txt cannot be read ({said}): save it as UTF-8 text, or remove it"
