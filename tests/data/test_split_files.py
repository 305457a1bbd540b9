"""Split files of the literature and of spreadsheets: which images they make members, what is said, what is refused."""

import numpy as np
import pytest
from fixtures.pictures import encoded, image

from diffleak.data.cohort import cohort
from diffleak.data.sources import open_source
from diffleak.data.split import read_split
from diffleak.errors import UserError

PICTURES = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), dtype=np.uint8)
EVIL = "evil-was-run"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x" / "a").mkdir(parents=True)
    for i in range(6):
        (tmp_path / "x" / "a" / f"{i}.png").write_bytes(encoded(image(PICTURES[i][..., None])))
    return tmp_path / "x"


def written(path, content):
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ROWS = {
    "secmi.npz": ({"mia_train_idxs": [4, 1], "mia_eval_idxs": [0, 5], "ratio": 0.5}, ("0", "5"), ""),
    "rows.npy": ([4, 1], ("0", "2", "3", "5"), "names members alone; the other 4 images of array count as held out"),
    "mask.npy": ([False, True, False, False, True, False], ("0", "2", "3", "5"), "the other 4 images of array count as held out"),
    "ids.txt": ("4\r\n\n1\n", ("0", "2", "3", "5"), "the other 4 images of array count as held out"),
    "a.csv": ("id,member\n4,1\n0,0\n1,True\n5,false\n", ("0", "5"), ""),
    "b.CSV": ("id,split\n4,train\n2,val\n0,test\n1,Train\n5,test\n3,val\n", ("0", "5"), "2 images of {} are on neither side (val)"),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_kind_of_split_file_says_the_two_sides(tmp_path, capsys, name):
    content, held_out, said = ROWS[name]
    path = written(tmp_path / name, content)
    members, nonmembers = read_split(path, open_source(PICTURES))
    assert (sorted(members), nonmembers) == (["1", "4"], held_out)
    assert said.format(path) in capsys.readouterr().err
    audited = cohort(data=PICTURES, split=path)
    assert [i for i, member in zip(audited.ids, audited.member, strict=True) if member] == ["1", "4"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("ids.txt", "a/1.png\n./a/4.png"), ("a.csv", "file_name,split\na\\1.png,train\na/4.png,train\na/0.png,test\na/2.png,test\n")],
)
def test_lists_of_names_may_spell_them_in_another_way(folder, tmp_path, name, content):
    members, nonmembers = read_split(written(tmp_path / name, content), open_source(folder))
    assert members == ("a/1.png", "a/4.png") and nonmembers[:2] == ("a/0.png", "a/2.png")


BAD = {
    "missing.npz": ({"mia_train_idxs": [1]}, "must hold mia_train_idxs and mia_eval_idxs, row numbers of the data (it has mia"),
    "outside.npz": ({"mia_train_idxs": [1, 6, -1], "mia_eval_idxs": [2]}, "(2 of its numbers are no rows of array, which has 6; first: 6)"),
    "both.npz": ({"mia_train_idxs": [1], "mia_eval_idxs": [1]}, "has 1 id on both sides (first: 1)"),
    "floats.npz": ({"mia_train_idxs": [0.5], "mia_eval_idxs": [1]}, "it has float64 of the shape (1,), and row numbers are whole numbers"),
    "short.npy": ([True, False], "it has the shape (2,), and array has 6 images"),
    "twice.npy": ([1, 1], "(it lists 1 twice)"),
    "twice.txt": ("2\n1\n2\n", "must hold the id of a member on each line (it lists 2 twice)"),
    "none.npy": (np.zeros(0, dtype=int), "must name at least one member"),
    "cut.npz": (b"PK", "must hold mia_train_idxs"),
    "unknown.txt": ("1\n9\n", "names 1 id that array does not have (first: 9;"),
    "other.csv": ("id,score\n1,2\n", "and member (1 or 0) or split (train, test or val) (it has id, score, and no member or split)"),
    "word.csv": ("id,split\n1,train\n2,mine\n", "(row 2 has mine for train, test or val)"),
    "empty.csv": ("id,member\n1,\n", "(row 1 has nothing for 1 or 0)"),
    "both.csv": ("id,member,split\n1,1,test\n", "(it has both member and split: remove the one that does not count)"),
    "unnamed.csv": ("id,member\n,1\n", "(row 1 names no image)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_split_file_of_each_kind_is_one_line(tmp_path, name, capsys):
    content, said = BAD[name]
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else written(path, content)
    with pytest.raises(UserError) as error:
        read_split(path, open_source(PICTURES))
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) <= 400
    assert name in ("none.npy", "unknown.txt") or capsys.readouterr() == ("", ""), "and nothing is said of its other side"


def test_a_list_of_truths_for_a_single_image_counts_one_image(tmp_path):
    with pytest.raises(UserError, match=r"and array has 1 image\b"):
        read_split(written(tmp_path / "a.npy", [True, False]), open_source(PICTURES[:1]))


def test_row_numbers_are_refused_for_images_that_have_names(folder, tmp_path):
    path = written(tmp_path / "a.npz", {"mia_train_idxs": [1], "mia_eval_idxs": [2]})
    with pytest.raises(UserError, match=r"row numbers are of a table or an array, and the images of .*x have names such as a/0.png: give"):
        read_split(path, open_source(folder))


class Evil:
    """An object whose pickle writes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_split_file_of_pickled_objects_runs_nothing(tmp_path, name):
    objects = np.array([Evil(tmp_path / EVIL)], dtype=object)
    (np.savez if name == "a.npz" else np.save)(
        tmp_path / name, **({"mia_train_idxs": objects, "mia_eval_idxs": objects} if name == "a.npz" else {"arr": objects})
    )
    with pytest.raises(UserError, match=r"the split file .* must hold .*allow_pickle=False"):
        read_split(tmp_path / name, open_source(PICTURES))
    assert not (tmp_path / EVIL).exists()
