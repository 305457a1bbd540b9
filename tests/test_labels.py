"""Where the classes of images come from, and what happens where there are none or they are malformed."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffleak.data.cohort import two_sources
from diffleak.data.pixels import ImageShape
from diffleak.data.scan import scan
from diffleak.data.sources import open_source
from diffleak.errors import UserError

NAMES = ("b/1.png", "a/2.png", "b/0.png", "c/9.png")


def folder(path, names=NAMES, rows=None):
    """Distinct grey images under these names; `rows` become lines of metadata.jsonl, text as it is."""
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng((len(str(path)), i)).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(path / name)
    if rows is not None:
        (path / "metadata.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def by_id(source):
    return dict(zip(source.ids, source.labels().numbers, strict=True))


def arrays(path, images=5, **others):
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (images, 4, 4), dtype=np.uint8), **others)
    return open_source(f"{path}:images")


def table(path, labels):
    cells = [b"not decoded"] * len(labels)
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary()), "label": labels}), path, row_group_size=2)
    return open_source(path)


def test_class_folders_are_numbered_in_the_order_of_their_names(tmp_path):
    source = open_source(folder(tmp_path / "x"))
    assert by_id(source) == {"a/2.png": 0, "b/0.png": 1, "b/1.png": 1, "c/9.png": 2}
    assert source.labels().names == ("a", "b", "c")


def test_nested_folders_are_classes_of_their_own(tmp_path):
    source = open_source(folder(tmp_path / "x", ("a/x/1.png", "a/y/1.png", "b/1.png")))
    assert source.labels().names == ("a/x", "a/y", "b")


def test_images_outside_a_folder_have_no_class(tmp_path):
    assert open_source(folder(tmp_path / "x", ("1.png", "2.png"))).labels() is None
    assert open_source(folder(tmp_path / "y", ("1.png", "a/2.png"))).labels() is None


def test_labels_in_metadata_win_over_folders_whatever_their_order(tmp_path):
    rows = [{"file_name": name, "label": 7 - i, "text": "a caption"} for i, name in enumerate(NAMES)]
    source = open_source(folder(tmp_path / "x", rows=[*rows[::-1], "", {"file_name": "gone.png", "label": 0}]))
    assert by_id(source) == {name: 7 - i for i, name in enumerate(NAMES)}
    assert source.labels().names == ()


def test_metadata_without_labels_leaves_the_folders(tmp_path):
    source = open_source(folder(tmp_path / "x", rows=[{"file_name": name, "text": "a caption"} for name in NAMES]))
    assert source.labels().names == ("a", "b", "c")


MALFORMED = {
    "no JSON": ["{file_name"],
    "no object": ["5"],
    "no file name": [{"label": 1}],
    "a name as label": [{"file_name": "b/1.png", "label": "cat"}],
    "a number as text": [{"file_name": "b/1.png", "label": "3"}],
    "a fraction": [{"file_name": "b/1.png", "label": 1.5}],
    "a truth value": [{"file_name": "b/1.png", "label": True}],
    "infinity": ['{"file_name": "b/1.png", "label": Infinity}'],
    "more than 64 bits": [{"file_name": "b/1.png", "label": 2**70}],
    "null": [{"file_name": "b/1.png", "label": None}],
    "a label missing": [{"file_name": "b/1.png", "label": 1}],
}


@pytest.mark.parametrize("rows", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_metadata_stops_only_a_model_with_classes_and_in_one_line(tmp_path, rows):
    names = [f"{kind}/{i}.png" for kind in ("a", "b") for i in range(10)]
    sides = [open_source(folder(tmp_path / side, names, rows if side == "members" else None)) for side in ("members", "held-out")]
    cohort = two_sources(*sides)
    assert len(scan(cohort, ImageShape(1, 4, 4), False, False).cohort) == 40
    with pytest.raises(
        UserError, match=r"metadata.jsonl must (hold a JSON object with file_name per line|give every image a label)"
    ) as refusal:
        scan(cohort, ImageShape(1, 4, 4), False, False, classes=10)
    assert "\n" not in str(refusal.value)


def test_metadata_that_is_no_text_is_one_line(tmp_path):
    path = folder(tmp_path / "x")
    (path / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    source = open_source(path)
    assert len(source) == 4
    with pytest.raises(UserError, match=r"metadata.jsonl must hold a JSON object"):
        source.labels()


@pytest.mark.parametrize("key", ["labels", "label", "train_Labels"])
@pytest.mark.parametrize("kind", ["int64", "uint8"])
def test_an_npz_has_the_labels_of_its_one_array_of_that_name(tmp_path, key, kind):
    assert arrays(tmp_path / "a.npz", **{key: np.array([3, 0, 2, 2, 9], dtype=kind)}).labels().numbers == (3, 0, 2, 2, 9)


UNFIT = {
    "two candidates": {"labels": np.arange(5), "coarse_labels": np.arange(5)},
    "none": {"classes": np.arange(5)},
    "too few": {"labels": np.arange(4)},
    "fractions": {"labels": np.arange(5.0)},
    "one-hot": {"labels": np.eye(5, dtype=int)},
    "names": {"labels": np.array(list("abcde"))},
    "objects": {"labels": np.array(["a", None, 1, 2, 3], dtype=object)},
}


@pytest.mark.parametrize("others", UNFIT.values(), ids=UNFIT.keys())
def test_an_npz_without_exactly_one_fitting_array_opens_and_has_no_labels(tmp_path, others):
    source = arrays(tmp_path / "a.npz", **others)
    assert len(source) == 5 and source.labels() is None


def test_an_npz_takes_the_one_that_fits_of_several_named_like_labels(tmp_path):
    source = arrays(tmp_path / "a.npz", labels=np.arange(5), label_names=np.array(["a", "b"]))
    assert source.labels().numbers == (0, 1, 2, 3, 4)


def test_a_number_where_images_should_be_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.uint8(3))
    with pytest.raises(UserError, match=r"a.npz:one must hold uint8 images"):
        open_source(f"{tmp_path / 'a.npz'}:one")


def test_a_table_has_the_labels_of_its_column_across_row_groups(tmp_path):
    assert table(tmp_path / "a.parquet", pa.array([4, 0, 1, 1, 3], pa.int32())).labels().numbers == (4, 0, 1, 1, 3)


@pytest.mark.parametrize("labels", [["cat", "dog", "emu"], [0.0, 1.0, 2.0], [0, None, 2], [True, False, True]], ids=str)
def test_a_table_whose_labels_are_no_whole_numbers_or_incomplete_has_none(tmp_path, labels):
    assert table(tmp_path / "a.parquet", pa.array(labels)).labels() is None


def test_a_table_without_the_column_and_a_plain_array_have_no_labels(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "class": [1]}), tmp_path / "a.parquet")
    assert open_source(tmp_path / "a.parquet").labels() is None
    assert open_source(np.zeros((3, 4, 4), dtype=np.uint8)).labels() is None


def test_digits_are_labelled_with_what_they_show():
    from sklearn.datasets import load_digits

    assert open_source("digits").labels().numbers == tuple(load_digits().target)


def test_the_labels_of_a_cohort_follow_its_images_whatever_the_limit(tmp_path):
    labels = np.arange(30) % 7
    members, nonmembers = arrays(tmp_path / "m.npz", 30, labels=labels), arrays(tmp_path / "n.npz", 30, labels=labels + 10)
    cohort = two_sources(members, nonmembers, limit=9)
    expected = [int(i.rpartition("/")[2]) % 7 + (10 if i.startswith("nonmembers/") else 0) for i in cohort.ids]
    assert cohort.labels().tolist() == expected and len(expected) == 18


def test_a_cohort_has_labels_only_if_both_sides_do(tmp_path):
    with_labels, without = arrays(tmp_path / "m.npz", labels=np.arange(5)), arrays(tmp_path / "n.npz")
    assert two_sources(with_labels, without).labels() is None and two_sources(without, with_labels).labels() is None
