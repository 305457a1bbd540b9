"""Shards of WebDataset: which members are a sample, what is said of it, and what is refused."""

import bz2
import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from fixtures.pictures import encoded, image

from diffleak.data.cohort import images_alone
from diffleak.data.names import UnclearName
from diffleak.data.sources import open_source
from diffleak.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def tar(path, files, **options):
    """An archive of files by their names; numbers stand for the picture of that number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            content = encoded(image(PIXELS[content])) if isinstance(content, int) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def refusal(make, kind=UserError):
    with pytest.raises(kind) as error:
        make()
    said = str(error.value)
    assert "\n" not in said and len(said) <= 400
    return said


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_are_the_members_of_one_key_over_all_shards(tmp_path, form):
    deep = "a" * 120
    files = [
        {
            f"{deep}/0.png": 0,
            f"{deep}/0.txt": "of 0\n",
            f"{deep}/0.cls": "2",
            "._1.png": "macOS",
            "./1.PNG": 1,
            "1.txt": "of 1",
            "1.cls": "0",
        },
        {"2.seg.png": 5, "2.png": 2, "2.cls": "1", "2.txt": "of 2", "2.json": json.dumps({"caption": "of 2", "width": 4})},
    ]
    for i, each in enumerate(files):
        tar(tmp_path / f"{i:05d}.tar", each, format=form)
    source = open_source(tmp_path)
    assert source.ids == (f"{deep}/0", "1", "2")
    assert all(np.array_equal(source.read(i), PIXELS[i]) for i in (2, 0, 1))
    assert source.captions() == (("of 0",), ("of 1",), ("of 2",))
    assert source.labels().values == (2, 0, 1) and images_alone(source).labels(3).numbers.tolist() == [0, 1, 2]  # in the order of ids
    said = "3 images, captions from 3 .txt members and 1 .json member, labels from 3 .cls members; 2 files"
    assert source.found == f"{tmp_path}: {said}"
    assert np.array_equal(open_source(f"{tmp_path / '00001.tar'}:seg.png").read(0), PIXELS[5])


def test_a_key_of_two_shards_goes_with_the_name_of_its_shard(tmp_path):
    tar(tmp_path / "a.tar", {"0.png": 0, "1.png": 1})
    tar(tmp_path / "b.tar", {"0.png": 2})
    source = open_source(tmp_path)
    assert source.ids == ("a/0", "a/1", "b/0") and np.array_equal(source.read(2), PIXELS[2])
    assert (source.captions(), source.labels()) == (None, None) and source.found.endswith("captions none, labels none; 2 files")


def test_the_first_line_of_a_text_is_the_caption_as_beside_images(tmp_path):
    source = open_source(
        tar(tmp_path / "a.tar", {"0.png": 0, "0.txt": "\n of 0 \r\nsecond\n", "0.caption": "of 0", "1.png": 1, "1.txt": "x"})
    )
    assert source.captions() == (("of 0", "second"), ("x",))
    assert "captions from 2 .txt members and 1 .caption member (1 has several lines: the first counts), labels" in source.found


def test_captions_and_labels_are_also_in_json(tmp_path):
    said = [{"text": "of 0", "label": "cat"}, {"caption": "of 1", "cls": 3}]
    files = {name: value for i, each in enumerate(said) for name, value in ((f"{i}.png", i), (f"{i}.json", json.dumps(each)))}
    source = open_source(tar(tmp_path / "train-0.tar", files))
    assert source.captions() == (("of 0",), ("of 1",)) and source.labels().values == ("cat", 3)


def test_splits_are_named_and_what_is_not_opened_is_counted(tmp_path):
    tar(tmp_path / "train-000.tar", {"0.png": 0, "1.jxl": "x", "2.txt": "no image"})
    tar(tmp_path / "val-000.tar", {"0.png": 1})
    assert refusal(lambda: open_source(tmp_path)) == f"{tmp_path} holds several splits, train, val: say which as {tmp_path}:train"
    source = open_source(f"{tmp_path}:train")
    assert source.ids == ("0",) and (source.left_out.unopened, source.left_out.first_unopened) == (1, "1.jxl")
    only = tar(tmp_path / "x" / "only.tar", {"0.jxl": "x"})
    assert "must contain samples with an image (" in refusal(lambda: open_source(only)) and "first: 0.jxl" in refusal(
        lambda: open_source(only)
    )


def damaged(content, place, value):
    return content[:place] + value + content[place + len(value) :]


def test_what_is_no_whole_shard_is_one_line(tmp_path):
    path = tmp_path / "a.tar"
    content = tar(path, {"0.png": 0, "0.txt": "of 0", "1.png": 1}).read_bytes()
    negative = tarfile.TarInfo("2.png").tobuf()
    negative = damaged(negative, 124, b"\xff" * 11 + b"\x00")  # a size below 0, by which some versions of tarfile go back for ever
    checksum = sum(negative[:148]) + 8 * 32 + sum(negative[156:512])
    for spoilt, said in (
        (content[:600], "cannot be read as a tar archive (it ends within 0.png)"),
        (content[:3072], "cannot be read as a tar archive (it ends before the mark of its end)"),
        (content[:3072] + damaged(negative, 148, b"%06o\0 " % checksum) + bytes(1024), "cannot be read as a tar archive ("),
        (b"no archive" * 100, "cannot be read as a tar archive ("),
        (b"", "cannot be read as a tar archive ("),
        (gzip.compress(content), "is a tar archive compressed with gzip: uncompress it, and give the .tar"),
        (bz2.compress(content), "is a tar archive compressed with bzip2: "),
    ):
        path.write_bytes(spoilt)
        assert said in refusal(lambda: open_source(path)), said
    tar(path, {"0.png": 0, "0.PNG": 1})
    assert "0.png is there twice: write the shard again" in refusal(lambda: open_source(path))
    tar(path, {"0.png": 0, "0.jpg": 1})
    assert "0 has jpg, png: say which as DATA:jpg" in refusal(lambda: open_source(path))
    assert len(open_source(f"{path}:png")) == 1
    assert open_source(tar(path, {"BZh91AY_001.png": 0})).ids == ("BZh91AY_001",), "a name is no mark of bzip2"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"0.txt": "a", "0.caption": "b"}, "must have one caption for each sample; 0 has a and b: give the one"),
        ({"0.json": "{"}, "0.json cannot be read (Expecting property name"),
        ({"0.json": "[1]"}, "0.json cannot be read (it holds a list)"),
        ({"0.json": '{"text": 5}'}, "0 must have texts (got the text 5)"),
        ({"0.cls": "1", "0.json": '{"label": 2}'}, "must give each image one label; 0 has 1 and 2"),
        ({"0.json": '{"label": 0.5}'}, "0 must have a whole number or a name as label"),
    ],
)
def test_captions_and_labels_that_are_unclear_are_one_line_and_name_no_image_of_an_anonymous_run(tmp_path, files, said):
    source = open_source(tar(tmp_path / "a.tar", {"0.png": 0, **files}))
    assert source.found and source.read(0).shape == (5, 4, 3)
    assert said in refusal(lambda: (source.captions(), source.labels()), UnclearName)


def test_a_shard_that_went_away_is_unreadable(tmp_path):
    path = tar(tmp_path / "a.tar", {"0.png": 0})
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:520])
    assert "a.tar: 0.png cannot be read (it ends early); put the shard back" in refusal(lambda: source.read(0))
