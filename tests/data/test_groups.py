"""`--group`: a column of the metadata, wherever images come from, and what is refused."""

import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diffleak.data.anonymity import Key
from diffleak.data.cohort import one_source, two_sources
from diffleak.data.groups import group_name, groups_of, refuse_both_sides
from diffleak.data.sources import open_source
from diffleak.errors import UserError

PEOPLE = ["ann", "ann", "bob", "7"]


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def folder(root, people=PEOPLE, first=0, form="jsonl"):
    root.mkdir(parents=True)
    rows = []
    for i, person in enumerate(people):
        (root / f"{i}.png").write_bytes(encoded(first + i))
        rows.append({"file_name": f"{i}.png", **({} if person is None else {"person": person})})
    if form == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        getattr(pd.DataFrame(rows), f"to_{form}")(root / f"metadata.{form}", index=False)
    return root


def packed(path):
    with tarfile.open(path, "w") as tar:
        for i, person in enumerate(PEOPLE):
            for name, content in ((f"{i}.png", encoded(i)), (f"{i}.json", json.dumps({"person": person}).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def table(path):
    pd.DataFrame({"image": [encoded(i) for i in range(4)], "person": PEOPLE}).to_parquet(path)
    return path


def arrays(path):
    np.savez(path, images=np.zeros((4, 8, 8), np.uint8), person=np.array(PEOPLE), other=np.zeros(3))
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("jsonl", lambda root: folder(root / "data")),
        ("csv", lambda root: folder(root / "data", form="csv")),
        ("metadata.parquet", lambda root: folder(root / "data", form="parquet")),
        ("parquet", lambda root: table(root / "data.parquet")),
        ("tar", lambda root: packed(root / "data.tar")),
        ("npz", lambda root: f"{arrays(root / 'data.npz')}:images"),
    ],
)
def test_the_column_is_read_where_labels_and_captions_are(tmp_path, name, write):
    source = open_source(str(write(tmp_path)))
    assert tuple(map(group_name, source.column("person"))) == tuple(PEOPLE)
    assert source.column("nobody") is None


def test_data_without_columns_has_none():
    assert open_source("digits").column("person") is None


@pytest.mark.parametrize(
    ("value", "group"), [("ann", "ann"), (" ann ", "ann"), (7, "7"), (7.0, "7"), ("7", "7"), (None, None), ("", None), (float("nan"), None)]
)
def test_a_value_is_a_text_or_a_whole_number(value, group):
    assert group_name(value) == group


@pytest.mark.parametrize("value", [True, 1.5, ["ann"], {"name": "ann"}])
def test_other_values_are_none_of_these(value):
    with pytest.raises(ValueError, match=r"."):
        group_name(value)


def sides(tmp_path, members, nonmembers):
    folders = folder(tmp_path / "in", members), folder(tmp_path / "out", nonmembers, 100)
    return two_sources(*map(open_source, folders))


def test_groups_are_in_the_order_of_the_images_of_both_sides(tmp_path):
    cohort = sides(tmp_path, ["ann", "bob"], ["eve", "dan"])
    found = dict(zip(cohort.ids, groups_of(cohort, "person"), strict=True))
    assert found == {"members/0.png": "ann", "members/1.png": "bob", "nonmembers/0.png": "eve", "nonmembers/1.png": "dan"}
    refuse_both_sides(groups_of(cohort, "person"), cohort, "person")


def test_images_outside_of_the_split_need_no_group(tmp_path):
    data = folder(tmp_path / "data", ["ann", "bob", None])
    (tmp_path / "split.json").write_text(json.dumps({"members": ["0.png"], "nonmembers": ["1.png"]}))
    assert groups_of(one_source(open_source(data), tmp_path / "split.json"), "person") == ("ann", "bob")


@pytest.mark.parametrize(
    ("members", "nonmembers", "column", "said"),
    [
        (["a", "b"], ["c", "d"], "persn", r"no column persn: it has file_name, person; is person meant\?"),
        (["a", None], [None, "d"], "person", r"2 of 4 have none in the column person \(first: members/1\.png\)"),
        (["a", "b"], [["c"], "d"], "person", r"texts or whole numbers; nonmembers/0\.png has \[.*c.*\]: correct it"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_the_first_image(tmp_path, members, nonmembers, column, said):
    with pytest.raises(UserError, match=said) as refused:
        groups_of(sides(tmp_path, members, nonmembers), column)
    assert "\n" not in str(refused.value)


def test_a_side_without_the_column_lacks_groups(tmp_path):
    with pytest.raises(UserError, match=r"2 of 4 have none in the column person \(first: nonmembers/0\.png\)"):
        groups_of(sides(tmp_path, ["a", "b"], [None, None]), "person")


def test_a_group_on_both_sides_is_refused_by_name_but_not_of_an_anonymous_cohort(tmp_path):
    cohort = sides(tmp_path, ["bob", "ann", "ann"], ["dan", "ann", "bob"])
    groups = groups_of(cohort, "person")
    with pytest.raises(UserError, match=r"2 groups by person are on both \(first: ann, with members: 2, held-out images: 1\)"):
        refuse_both_sides(groups, cohort, "person")
    one = sides(tmp_path / "one", ["bob", "ann"], ["dan", "ann"])
    with pytest.raises(UserError, match="1 group by person is on both"):
        refuse_both_sides(groups_of(one, "person"), one, "person")
    with pytest.raises(UserError) as refused:
        refuse_both_sides(groups, cohort.renamed(Key(bytes(32))), "person")
    assert "ann" not in str(refused.value).replace("the same command", "") and "without --anonymous" in str(refused.value)


def test_groups_of_an_anonymous_run_are_keyed():
    key = Key(bytes(range(32)))
    assert len(set(key.groups(["ann", "bob", "ann"]))) == 2 and key.groups(["ann"])[0].startswith("g")
    assert key.groups(["ann"])[0][1:] != key.ids(["ann"])[0][1:], "an image of that name has another id"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("diffleak.data.anonymity.DIGITS", 1)
        with pytest.raises(UserError, match="two groups have the same keyed name"):
            key.groups([str(i) for i in range(17)])
