"""Where the classes of images come from, which of a model's classes that is, and what is refused."""

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffleak.data.cohort import images_alone, one_source, two_sources
from diffleak.data.labels import ClassNames, Labels, Side, folder_labels, names_of, number
from diffleak.data.pixels import ImageShape
from diffleak.data.scan import scan
from diffleak.data.sources import open_source
from diffleak.errors import UserError

pytestmark = pytest.mark.usefixtures("undrawn")

NAMES = ("b/1.png", "a/2.png", "b/0.png", "c/9.png")
ANIMALS = ClassNames({"cat": 2, "dog": 0, "emu": 1}, "train.json", closed=True)
ID2LABEL = ClassNames({"cat": 2, "dog": 0, "emu": 1}, "model_index.json")


def folder(path, names=NAMES, rows=None, file="metadata.jsonl"):
    """Distinct grey images under these names; `rows` become a metadata file, those that are text as they are."""
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng((*map(ord, path.name), i)).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(path / name)
    if rows is not None:
        metadata(path / file, rows)
    return path


def metadata(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def numbered(source, classes=10, names=None):
    """The class of every image of a source by its id, as an audit has it."""
    cohort = images_alone(source if not hasattr(source, "joinpath") else open_source(source))
    found = cohort.labels(classes, names or ClassNames())
    return dict(zip(cohort.ids, found.numbers.tolist(), strict=True))


def classes_of(path, *layout, classes=10, names=None):
    """The classes of images of this layout, folder by folder."""
    found = numbered(folder(path, [f"{f}/{i}.png" for i, f in enumerate(layout)]), classes, names)
    return [found[f"{f}/{i}.png"] for i, f in enumerate(layout)]


def refused(path, *layout, classes=10, names=None):
    with pytest.raises(UserError) as refusal:
        classes_of(path, *layout, classes=classes, names=names)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def arrays(path, images=5, **others):
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (images, 4, 4), dtype=np.uint8), **others)
    return open_source(f"{path}:images")


def table(path, labels, column="label", **others):
    cells = [b"not decoded"] * len(labels)
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary()), column: labels, **others}), path, row_group_size=2)
    return open_source(path)


# folders


def test_folders_named_by_class_numbers_are_those_classes_however_few_and_in_whatever_order(tmp_path):
    assert classes_of(tmp_path / "few", "3", "5", "9") == [3, 5, 9]
    assert classes_of(tmp_path / "long", "2", "10", "1", "11", "0", classes=12) == [2, 10, 1, 11, 0]
    assert classes_of(tmp_path / "padded", "02", "10", "00", classes=12) == [2, 10, 0]
    assert classes_of(tmp_path / "one", "7") == [7]


def test_as_many_folders_as_classes_are_numbered_as_torchvision_and_datasets_do(tmp_path):
    names = ["class_10", "class_2", "B", "a", "Ä"]
    oracle = {name: i for i, name in enumerate(sorted(names))}  # torchvision.datasets.ImageFolder.find_classes
    assert classes_of(tmp_path / "x", *names, classes=5) == [oracle[name] for name in names]


def test_folders_named_as_the_models_own_classes_are_those_however_few(tmp_path):
    assert classes_of(tmp_path / "x", "emu", "cat", classes=3, names=ANIMALS) == [1, 2]
    assert classes_of(tmp_path / "y", "emu", "cat", classes=1000, names=ID2LABEL) == [1, 2]
    digits = ClassNames({"1": 0, "2": 1, "10": 2}, "train.json", closed=True)
    assert classes_of(tmp_path / "z", "10", "1", classes=11, names=digits) == [2, 0]
    assert "folders are no classes" in refused(tmp_path / "w", "0", "1", classes=11, names=digits)  # its own 1 is another number


@pytest.mark.parametrize("names", [None, ANIMALS])
def test_some_of_the_class_folders_are_refused_and_shown_where_their_names_say_nothing(tmp_path, names):
    said = refused(tmp_path / "x", "ape", "bee", "cow", "ape", names=names)
    own, as_many = ("dog, emu, cat", "") if names else ("its folder states none", "if there are 10, all at one depth, ")
    assert "conditioned on one of 10 classes" in said and "images have 3 folders (ape, bee, cow)" in said
    assert f"folders count as classes {as_many}if they are named 0 to 9, or if they have the model's own class names ({own})" in said


def test_as_many_folders_as_classes_are_refused_where_the_model_knows_its_classes_by_other_names(tmp_path):
    assert "dog, emu, cat" in refused(tmp_path / "x", "ant", "bee", "cow", classes=3, names=ANIMALS)
    assert "dog, emu, cat" in refused(tmp_path / "y", "bear", "cat", "dog", classes=3, names=ID2LABEL)
    assert classes_of(tmp_path / "z", "n01", "n03", "n02", classes=3, names=ID2LABEL) == [0, 2, 1]  # folders of another naming


@pytest.mark.parametrize("above", ["train", "images", "data/train"])
def test_a_folder_above_the_class_folders_is_no_class(tmp_path, above):
    assert classes_of(tmp_path / "numbers", f"{above}/3", f"{above}/5") == [3, 5]
    assert classes_of(tmp_path / "names", f"{above}/b", f"{above}/a", classes=2) == [1, 0]
    assert classes_of(tmp_path / "own", f"{above}/emu", f"{above}/cat", names=ANIMALS) == [1, 2]


def test_splits_above_the_class_folders_are_no_classes_even_if_they_are_as_many_as_the_model_has(tmp_path):
    assert classes_of(tmp_path / "x", "train/b", "test/a", "test/b", classes=2) == [1, 0, 1]
    assert classes_of(tmp_path / "y", "members/3", "nonmembers/4") == [3, 4]
    assert "folders are no classes" in refused(tmp_path / "z", "train", "test", classes=2)
    assert "folders are no classes" in refused(tmp_path / "w", "train/cat", "test/cat", classes=2)


def test_a_single_folder_with_everything_is_no_class(tmp_path):
    assert "images have 1 folder (images)" in refused(tmp_path / "x", "images", "images")


def test_folders_inside_a_class_folder_are_no_classes(tmp_path):
    assert classes_of(tmp_path / "numbers", "3/left", "3", "5/right", "5/left/far") == [3, 3, 5, 5]
    assert classes_of(tmp_path / "names", "b/images", "a/images", classes=2) == [1, 0]
    assert "folders are no classes" in refused(tmp_path / "three", "a/x", "a/y", "b/x", classes=3)
    assert "folders are no classes" in refused(tmp_path / "two", "a/x", "a/y", "b/x", classes=2)
    assert "folders are no classes" in refused(tmp_path / "uneven", "a", "b", "c/x", classes=3)


@pytest.mark.parametrize("layout", [("3/5", "3/5"), ("cat/dog", "cat/dog"), ("alice/1", "alice/2", "bob/1")])
def test_folders_of_which_it_is_not_clear_which_are_classes_are_refused(tmp_path, layout):
    assert "it is not clear which of them are meant" in refused(tmp_path / "x", *layout, names=ANIMALS)


def test_a_hidden_folder_is_never_a_class_and_shifts_no_other(tmp_path):
    ids = (".ipynb_checkpoints/0.png", "a/1.png", "b/2.png")
    hidden = Labels(folders=folder_labels(tmp_path, ids).folders)
    source = open_source(np.zeros((3, 4, 4), dtype=np.uint8))
    source = type(source)("x", ids, source.read, lambda: hidden)
    with pytest.raises(UserError, match="folders are no classes"):
        images_alone(source).labels(3)


def test_two_folders_that_are_the_same_number_are_refused(tmp_path):
    assert "folders are no classes" in refused(tmp_path / "x", "3", "03", classes=10)


def test_numbers_beyond_the_classes_are_refused_and_not_counted(tmp_path):
    said = refused(tmp_path / "x", *map(str, range(1, 11)))
    assert "10 folders (1, 10, 2, 3, 4 and 5 more), named by numbers that are not all different ones from 0 to 9" in said


def test_a_label_of_thousands_of_digits_is_a_name_that_is_no_class(tmp_path):
    path = folder(tmp_path / "x", rows=[{"file_name": name, "label": 5000 * "7"} for name in NAMES])
    with pytest.raises(UserError, match="are names that are no classes"):
        numbered(path)


def test_an_image_beside_the_class_folders_is_refused(tmp_path):
    path = folder(tmp_path / "x", ("1.png", "3/2.png"))
    with pytest.raises(UserError, match=r"1 folder \(3\) and 1 image in none"):
        numbered(path)


def test_images_outside_a_folder_have_no_class(tmp_path):
    assert open_source(folder(tmp_path / "x", ("1.png", "2.png"))).labels() is None


# both sides


def sides(tmp_path, members, nonmembers, rows=None, **keys):
    paths = [
        folder(tmp_path / side, [f"{f}/{i}.png" for i, f in enumerate(layout)]) for side, layout in (("m", members), ("n", nonmembers))
    ]
    if rows is not None:
        metadata(paths[0] / "metadata.jsonl", rows)
    cohort = two_sources(*map(open_source, paths))
    found = cohort.labels(**{"classes": 10, "names": ClassNames(), **keys})
    return {i: int(n) for i, n in zip(cohort.ids, found.numbers, strict=True)}, found


@pytest.mark.parametrize(
    ("keys", "members", "nonmembers", "expected"),
    [
        ({}, ("3", "5"), ("5", "9"), {"3": 3, "5": 5, "9": 9}),
        ({"names": ANIMALS}, ("cat", "dog"), ("emu", "cat"), {"cat": 2, "dog": 0, "emu": 1}),
        ({"classes": 3}, ("a", "b", "c"), ("c", "b"), {"a": 0, "b": 1, "c": 2}),
        ({"classes": 3}, ("c",), ("a", "b", "c"), {"a": 0, "b": 1, "c": 2}),
        ({}, ("train/3", "train/5"), ("5", "9"), {"3": 3, "5": 5, "9": 9}),
    ],
)
def test_a_name_is_one_number_on_both_sides_whatever_folders_each_has(tmp_path, keys, members, nonmembers, expected):
    found, _ = sides(tmp_path, members, nonmembers, **keys)
    assert len(found) == len(members) + len(nonmembers)
    assert all(number == expected[i.split("/")[-2]] for i, number in found.items())


def test_folders_of_which_neither_side_has_all_are_refused_with_what_each_has(tmp_path):
    with pytest.raises(UserError, match=r"members have 2 folders \(a, b\), held-out images have 2 folders \(b, c\)"):
        sides(tmp_path, ("a", "b"), ("b", "c"), classes=3)
    with pytest.raises(UserError, match=r"held-out images have 1 folder \(photos\)"):  # which is no third class
        sides(tmp_path / "other", ("a", "b"), ("photos",), classes=3)


def test_labels_of_one_side_and_folders_of_the_other_are_taken_where_they_agree(tmp_path):
    rows = [{"file_name": "3/0.png", "label": 3}, {"file_name": "x/1.png", "label": 7}]
    found, said = sides(tmp_path, ("3", "x"), ("5", "3"), rows)
    assert found == {"3/0.png": 3, "x/1.png": 7, "5/0.png": 5, "3/1.png": 3}
    assert said.origin == "metadata.jsonl (members) and the names of the folders, which are the class numbers (held-out images)"
    rows[0]["label"] = 4
    metadata(tmp_path / "m" / "metadata.jsonl", rows)
    with pytest.raises(UserError, match=r"3/0.png of the members has the label 4 by metadata.jsonl, and the folder 3 .* is 3"):
        two_sources(open_source(tmp_path / "m"), open_source(tmp_path / "n")).labels(10)


def test_labels_of_one_side_only_are_refused(tmp_path):
    with_labels, without = arrays(tmp_path / "m.npz", labels=np.arange(5)), arrays(tmp_path / "n.npz")
    for cohort, side in ((two_sources(with_labels, without), "held-out images"), (two_sources(without, with_labels), "members")):
        with pytest.raises(UserError, match=f"must both have labels; the {side} have none"):
            cohort.labels(5)
    assert two_sources(without, without).labels(5) is None


def test_the_class_folders_of_all_the_data_count_not_only_those_of_the_split(tmp_path):
    path = folder(tmp_path / "x", [f"{f}/{i}.png" for i, f in enumerate("abc")])
    (tmp_path / "split.json").write_text(json.dumps({"members": ["b/1.png"], "nonmembers": ["c/2.png"]}))
    assert one_source(open_source(path), tmp_path / "split.json").labels(3).numbers.tolist() == [1, 2]


def test_the_labels_of_a_cohort_follow_its_images_whatever_the_limit(tmp_path):
    labels = np.arange(30) % 7
    members, nonmembers = arrays(tmp_path / "m.npz", 30, labels=labels), arrays(tmp_path / "n.npz", 30, labels=labels + 10)
    cohort = two_sources(members, nonmembers, limit=9)
    expected = [int(i.rpartition("/")[2]) % 7 + (10 if i.startswith("nonmembers/") else 0) for i in cohort.ids]
    assert cohort.labels(17).numbers.tolist() == expected and len(expected) == 18


# metadata


@pytest.mark.parametrize("file", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize("where", ["", "a/", "a/b/"])
def test_labels_come_from_a_metadata_file_in_any_folder_above_the_images(tmp_path, file, where):
    names = ["a/b/1.png", "a/b/2.png", "a/b/c/3.png"]
    rows = [{"file_name": name.removeprefix(where), "label": 7 - i} for i, name in enumerate(names)]
    path = folder(tmp_path / "x", names)
    metadata(path / f"{where}{file}", rows[::-1])
    assert numbered(path) == {"a/b/1.png": 7, "a/b/2.png": 6, "a/b/c/3.png": 5}
    assert images_alone(open_source(path)).labels(10).origin == file


def test_of_several_metadata_files_above_an_image_the_nearest_counts(tmp_path):
    names = ("1.png", "a/2.png", "a/b/3.png")
    path = folder(tmp_path / "x", names, [{"file_name": name, "label": 0} for name in names])
    metadata(path / "a" / "metadata.csv", [{"file_name": "2.png", "label": 1}, {"file_name": "b/3.png", "label": 2}])
    assert numbered(path) == {"1.png": 0, "a/2.png": 1, "a/b/3.png": 2}


def test_two_metadata_files_in_one_folder_are_refused(tmp_path):
    path = folder(tmp_path / "x", rows=[{"file_name": name, "label": 0} for name in NAMES])
    metadata(path / "metadata.csv", [{"file_name": name, "label": 1} for name in NAMES])
    with pytest.raises(UserError, match=r"must have one metadata file; it has metadata.jsonl and metadata.csv"):
        numbered(path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_what_lies_in_the_place_of_a_metadata_file_is_not_passed_over(tmp_path, name):
    file = folder(tmp_path / "data") / name
    file.symlink_to(tmp_path / "gone")
    for reason in ("No such file or directory", "it is a folder", "it is a pipe"):
        with pytest.raises(UserError, match=rf"{name} must hold .* \({reason}\)"):
            open_source(tmp_path / "data").labels()
        file.unlink() if reason[0] == "N" else file.rmdir() if "folder" in reason else file.unlink()
        os.mkfifo(file) if "folder" in reason else file.mkdir()


def test_labels_in_metadata_win_over_folders_whatever_their_order(tmp_path):
    rows = [{"file_name": name, "label": 7 - i, "text": "a caption"} for i, name in enumerate(NAMES)]
    path = folder(tmp_path / "x", rows=[*rows[::-1], "", {"file_name": "gone.png", "label": 0}])
    assert numbered(path) == {name: 7 - i for i, name in enumerate(NAMES)}


def test_metadata_without_labels_leaves_the_folders(tmp_path):
    path = folder(tmp_path / "x", ("3/1.png", "5/2.png"), [{"file_name": "3/1.png", "text": "a caption"}])
    assert numbered(path) == {"3/1.png": 3, "5/2.png": 5}


def test_labels_in_metadata_may_be_numbers_as_text_or_the_models_class_names(tmp_path):
    rows = [{"file_name": name, "label": label} for name, label in zip(NAMES, ("3", 5, " 10", 3), strict=True)]
    assert numbered(folder(tmp_path / "x", rows=rows), 11) == {"b/1.png": 3, "a/2.png": 5, "b/0.png": 10, "c/9.png": 3}
    rows = [{"file_name": name, "label": label} for name, label in zip(NAMES, ("emu", "cat", "emu", "dog"), strict=True)]
    path = folder(tmp_path / "y", rows=rows)
    assert numbered(path, names=ANIMALS) == {"b/1.png": 1, "a/2.png": 2, "b/0.png": 1, "c/9.png": 0}
    own = r"; give labels as numbers from 0 to \d+, or as the model's own class names \(its folder states none\)$"
    with pytest.raises(UserError, match=r"from metadata.jsonl are names that are no classes of it \(cat, dog, emu\)" + own):
        numbered(path, 3)  # as many as its classes, but a column of names has no order


def test_an_image_without_a_label_is_refused_by_name_but_not_where_the_audit_leaves_it_out(tmp_path):
    names = [f"{i}.png" for i in range(4)]
    path = folder(tmp_path / "x", names, [{"file_name": name, "label": 1} for name in names[1:]])
    with pytest.raises(
        UserError, match=r"every image needs a label; 1 of the 4 images has none by metadata.jsonl \(first: 0.png; .* 1.png\)"
    ):
        numbered(path)
    (tmp_path / "split.json").write_text(json.dumps({"members": names[1:2], "nonmembers": names[2:]}))
    assert one_source(open_source(path), tmp_path / "split.json").labels(10).numbers.tolist() == [1, 1, 1]


MALFORMED = {
    "no JSON": ["{file_name"],
    "no object": ["5"],
    "no file name": [{"label": 1}],
    "a name as label": [{"file_name": "b/1.png", "label": "cat"}],
    "a fraction": [{"file_name": "b/1.png", "label": 1.5}],
    "a truth value": [{"file_name": "b/1.png", "label": True}],
    "infinity": ['{"file_name": "b/1.png", "label": Infinity}'],
    "a list": [{"file_name": "b/1.png", "label": [1]}],
    "more than 64 bits": [{"file_name": "b/1.png", "label": 2**70}],
    "null": [{"file_name": "b/1.png", "label": None}],
    "a label missing": [{"file_name": "b/1.png", "label": 1}],
    "another name of the column": [{"file_name": "b/1.png", "fine_label": 1}],
    "two labels": [{"file_name": "b/1.png", "label": 1}, {"file_name": "b/1.png", "label": 2}],
}
SAID = (
    r"metadata.jsonl must hold a JSON object with file_name per line, labels as|every image needs a label|"
    r"are names that are no classes|must have its labels in a column `label`; it has fine_label|"
    r"must give each image one label; b/1.png has the labels 1 and 2"
)


@pytest.mark.parametrize("rows", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_metadata_stops_only_a_model_with_classes_and_in_one_line(tmp_path, rows):
    names = [f"{kind}/{i}.png" for kind in ("a", "b") for i in range(10)]
    cohort = two_sources(*(open_source(folder(tmp_path / side, names, rows)) for side in ("members", "held-out")))
    assert len(scan(cohort, ImageShape(1, 4, 4), False, False).cohort) == 40
    with pytest.raises(UserError, match=SAID) as refusal:
        scan(cohort, ImageShape(1, 4, 4), False, False, classes=10)
    assert "\n" not in str(refusal.value)


def test_metadata_that_is_no_text_is_one_line(tmp_path):
    path = folder(tmp_path / "x")
    for file in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
        (path / file).write_bytes(b"\xff\xfe\x00")
        source = open_source(path)
        assert len(source) == 4
        with pytest.raises(UserError, match=rf"{file} must hold .*file_name"):
            source.labels()
        (path / file).unlink()


# arrays and tables


@pytest.mark.parametrize("key", ["labels", "label", "train_Labels"])
@pytest.mark.parametrize("kind", ["int64", "uint8"])
def test_an_npz_has_the_labels_of_its_one_array_of_that_name(tmp_path, key, kind):
    source = arrays(tmp_path / "a.npz", **{key: np.array([3, 0, 2, 2, 9], dtype=kind)})
    assert list(numbered(source).values()) == [3, 0, 2, 2, 9]
    assert source.labels().origin == f"the array {key}"


UNFIT = {
    "two candidates": ({"labels": np.arange(5), "coarse_labels": np.arange(5)}, r"coarse_labels: int64 \(5,\); labels: int64 \(5,\)"),
    "one of two fits": ({"labels": np.arange(5.0), "coarse_labels": np.arange(5)}, "coarse_labels: int64"),
    "too few": ({"labels": np.arange(4)}, r"a name for each of its 5 images; those named like labels are labels: int64 \(4,\)"),
    "fractions": ({"labels": np.arange(5.0)}, r"labels: float64 \(5,\)"),
    "truth values": ({"labels": np.ones(5, dtype=bool)}, r"labels: bool \(5,\)"),
    "one-hot": ({"labels": np.eye(5, dtype=int)}, r"labels: int64 \(5, 5\)"),
    "objects": ({"labels": np.array(["a", None, 1, 2, 3], dtype=object)}, "labels: Python objects"),
}


@pytest.mark.parametrize(("others", "said"), UNFIT.values(), ids=UNFIT.keys())
def test_an_npz_without_exactly_one_fitting_array_opens_and_is_refused_by_a_model_with_classes(tmp_path, others, said):
    source = arrays(tmp_path / "a.npz", **others)
    assert len(source) == 5
    with pytest.raises(UserError, match=f"a.npz must have one array of labels, .*{said}"):
        source.labels()


def test_an_npz_without_such_an_array_has_no_labels(tmp_path):
    assert arrays(tmp_path / "a.npz", classes=np.arange(5)).labels() is None


def test_an_npz_takes_the_one_that_fits_of_several_named_like_labels_and_names_by_the_models_own(tmp_path):
    source = arrays(tmp_path / "a.npz", labels=np.arange(5), label_names=np.array(["a", "b"]))
    assert list(numbered(source).values()) == [0, 1, 2, 3, 4]
    names = arrays(tmp_path / "b.npz", labels=np.array(["cat", "dog", "emu", "emu", "cat"]))
    assert list(numbered(names, names=ANIMALS).values()) == [2, 0, 1, 1, 2]


def test_a_number_where_images_should_be_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.uint8(3))
    with pytest.raises(UserError, match=r"a.npz:one must hold uint8 images"):
        open_source(f"{tmp_path / 'a.npz'}:one")


def test_a_table_has_the_labels_of_its_column_across_row_groups(tmp_path):
    assert list(numbered(table(tmp_path / "a.parquet", pa.array([4, 0, 1, 1, 3], pa.int32()))).values()) == [4, 0, 1, 1, 3]
    assert list(numbered(table(tmp_path / "b.parquet", pa.array(["cat", "dog", "3"])), names=ClassNames({"cat": 2, "dog": 0, "3": 3}, "x")
                         ).values()) == [2, 0, 3]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["cat", "dog", "emu"], r"labels from the column label are names that are no classes of it \(cat, dog, emu\)"),
        ([0.0, 1.0, 2.0], r"the column label of .*a.parquet must hold labels as whole numbers or names \(got the label 0.0\)"),
        ([True, False, True], r"\(got the label true\)"),
        ([0, None, 2], r"every image needs a label; 1 of the 3 images has none by the column label \(first: 1\)"),
        ([0, 10, 2], r"labels must lie in \[0, 10\), the model's classes; 1 of the images does not \(first: 1 has 10\)"),
    ],
    ids=str,
)
def test_labels_of_a_table_that_are_no_classes_are_refused(tmp_path, labels, said):
    with pytest.raises(UserError, match=said):
        numbered(table(tmp_path / "a.parquet", pa.array(labels)))


def test_a_table_whose_columns_are_only_named_like_labels_is_refused_and_one_without_any_has_none(tmp_path):
    source = table(tmp_path / "a.parquet", [1, 2], "fine_label", coarse_label=[0, 0])
    with pytest.raises(UserError, match=r"must have its labels in a column `label`; it has fine_label, coarse_label"):
        source.labels()
    assert table(tmp_path / "b.parquet", [1, 2], "class").labels() is None
    assert open_source(np.zeros((3, 4, 4), dtype=np.uint8)).labels() is None


def class_table(tmp_path, numbers, names, column="label"):
    """A data set of the hub with a column of class names, as Parquet and as a source of the hub."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    path = folder(tmp_path / "images", [f"{i}.png" for i in range(len(numbers))])
    cells = [{"bytes": (path / f"{i}.png").read_bytes(), "path": None} for i in range(len(numbers))]
    kinds = datasets.Features({"image": datasets.Image(), column: datasets.ClassLabel(names=names)})
    file = tmp_path / "set" / "train-00000.parquet"
    datasets.Dataset.from_dict({"image": cells, column: numbers}, features=kinds).to_parquet(file)
    return open_source(file), open_source(f"hf:{tmp_path / 'set'}")


def test_a_column_of_class_names_is_read_by_its_names(tmp_path, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    few = class_table(tmp_path, [0, 1, 2, 2], ["3", "5", "9"], "digit")
    for source in few:  # what `datasets` makes of class folders 3, 5 and 9
        assert list(numbered(source).values()) == [3, 5, 9, 9]
        with pytest.raises(UserError, match=r"no classes of it \(3, 5, 9\)"):
            numbered(source, 9)


def test_a_column_of_class_names_has_its_own_order_where_they_are_as_many_as_the_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for source in class_table(tmp_path, [0, 1, 2, 0], ["emu", "cat", "dog"]):
        assert list(numbered(source, 3).values()) == [0, 1, 2, 0]
        assert list(numbered(source, 3, ANIMALS).values()) == [1, 2, 0, 1]
        with pytest.raises(UserError, match=r"no classes of it \(cat, dog, emu\)"):
            numbered(source, 10, ClassNames({"cow": 0}, "model_index.json"))


def test_digits_are_labelled_with_what_they_show():
    from sklearn.datasets import load_digits

    assert open_source("digits").labels().values == tuple(load_digits().target)


# training


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (Labels(folders=("2", "10", "2")), 11, {"2": 2, "10": 10}),
        (Labels(folders=("2", "10", "1")), 10, {"1": 0, "2": 1, "10": 2}),
        (Labels(folders=("b", "a", "c")), 10, {"a": 0, "b": 1, "c": 2}),
        (Labels(folders=("train/b", "test/a")), 10, {"a": 0, "b": 1}),
        (Labels(("emu", "cat", "emu")), 10, {"cat": 0, "emu": 1}),
        (Labels(("9", "10", 3)), 11, {"9": 9, "10": 10}),
        (Labels(("emu", "cat"), order=("emu", "cat", "dog")), 10, {"emu": 0, "cat": 1, "dog": 2}),
        (Labels((3, 5)), 10, {}),
    ],
)
def test_training_data_names_its_classes_as_trainers_number_them_and_whole_numbers_are_themselves(labels, classes, expected):
    assert names_of(labels, classes) == expected


@pytest.mark.parametrize("folders", [("images",), ("a/x", "a/y", "b/z"), ("a", ""), ("train/cat", "test/cat")])
def test_training_refuses_folders_of_which_it_is_not_clear_which_are_the_classes(folders):
    with pytest.raises(UserError, match="must have its images in one folder per class"):
        names_of(Labels(folders=folders), 10)


# numbers that may be names, and the other way round


def test_a_number_that_the_model_calls_another_class_is_refused_and_the_same_as_text_is_its_name(tmp_path):
    own = ClassNames({"1": 0, "2": 1}, "train.json", closed=True)
    rows = lambda kind: [{"file_name": name, "label": kind(1 + i % 2)} for i, name in enumerate(NAMES)]
    assert [*numbered(folder(tmp_path / "text", rows=rows(str)), 3, own).values()].count(0) == 2
    with pytest.raises(UserError, match=r"the label 1 of the images, by metadata\.jsonl, may be the class 1 or the class that the model"):
        numbered(folder(tmp_path / "numbers", rows=rows(int)), 3, own)


def test_numbers_beside_names_are_refused(tmp_path):
    rows = [{"file_name": name, "label": label} for name, label in zip(NAMES, (0, 1, "cat", "dog"), strict=True)]
    with pytest.raises(UserError, match=r"labels must be all numbers or all names; the images have both by metadata.jsonl \(0 and cat\)"):
        numbered(folder(tmp_path / "mixed", rows=rows), 4, ANIMALS)


def test_training_refuses_numeric_labels_beyond_its_classes_in_text_as_in_numbers():
    assert names_of(Labels(("0", "1")), 2) == {"0": 0, "1": 1}
    with pytest.raises(UserError, match=r"labels that are whole numbers must be different ones in \[0, 2\); got 1, 2"):
        names_of(Labels(("1", "2")), 2)
    assert names_of(Labels(folders=("1", "2")), 2) == {"1": 0, "2": 1}, "folders are numbered in their order, which is recorded"


def test_a_column_of_fewer_class_names_than_a_foreign_model_has_classes_gives_its_own_numbers():
    side = Side("images", Labels(("dog", "cat"), "the column label", ("cat", "dog")), ("a", "b"), (0, 1))
    numbers, origin, names = number([side], 3, ClassNames())
    assert (numbers, names) == ([(1, 0)], {"cat": 0, "dog": 1}) and origin.endswith("by the numbers of that column")
    with pytest.raises(UserError, match="names that are no classes"):
        number([side], 3, ClassNames({"emu": 0}, "model_index.json"))


def test_sides_that_number_a_class_differently_are_called_as_the_command_calls_them(tmp_path):
    by_folder = Side("images in question", folder_labels(tmp_path, ("ant/a.png", "bee/b.png")), ("ant/a.png", "bee/b.png"), (0, 1))
    named = Side("controls", Labels(("bee", "ant"), "the column label", ("bee", "ant")), ("x", "y"), (0, 1))
    with pytest.raises(UserError, match="images in question and controls must number a class alike; ant is 0 and 1"):
        number([by_folder, named], 2, ClassNames())
