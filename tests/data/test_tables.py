"""Tables as tools leave them: shards of Parquet, cells of paths, and what save_to_disk of `datasets` writes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.pictures import encoded, image, refusal

from diffleak.data.cohort import images_alone
from diffleak.data.sources import open_source
from diffleak.data.tables import parquet_part, table_source
from diffleak.errors import UserError
from diffleak.records.images import AS_TRAINERS

N = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 5, 4, 3), dtype=np.uint8)


def table(rows=range(N), **more):
    cells = [{"bytes": encoded(image(PIXELS[i])), "path": f"{i}.png"} for i in rows]
    return pa.table({"image": cells, "text": [f"of {i}" for i in rows], "label": [i % 3 for i in rows], **more})


def shard(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows), path, **options)


def whole(source, count=N):
    """Every image, caption and label of a source is that of its row."""
    assert source.ids == tuple(map(str, range(count))) and source.captions() == tuple((f"of {i}",) for i in range(count))
    assert all(np.array_equal(source.read(i), PIXELS[i]) for i in reversed(range(count)))
    assert source.labels().values == tuple(i % 3 for i in range(count))
    return source


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
        ("data/photos-00000-of-00002-0a1b.parquet", "data/photos-00001-of-00002-0c1d.parquet"),
        ("default/train/0000.parquet", "default/train/0001.parquet"),
        ("a.parquet", "b.parquet"),
    ],
)
def test_the_shards_of_a_folder_are_one_table_in_the_order_of_their_names(tmp_path, names):
    shard(tmp_path / names[1], range(4, N))
    shard(tmp_path / names[0], range(4), row_group_size=3)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.parquet").write_text("no table")
    assert (
        whole(open_source(tmp_path)).found == f"{tmp_path}: 6 images, captions from the column text, labels from the column label; 2 files"
    )


def test_of_several_splits_one_must_be_named_and_another_column_may_be(tmp_path):
    shard(tmp_path / "data/train-00000-of-00001.parquet", range(N))
    shard(tmp_path / "data/test-00000-of-00001.parquet", range(2))
    shard(tmp_path / "data/val/0.parquet", range(3))
    assert refusal(tmp_path) == f"{tmp_path} holds several splits, test, train, val: say which as {tmp_path}:train"
    assert refusal(f"{tmp_path}:dev") == f"{tmp_path} must have one split dev; it has test, train, val: name one of them"
    assert whole(open_source(f"{tmp_path}:train")).name == f"{tmp_path}:train"
    assert len(open_source(f"{tmp_path}:val")) == 3 and len(open_source(f"{tmp_path}:test:image")) == 2
    assert f"{tmp_path}:test has no column photo; it has image, text, label: name" in refusal(f"{tmp_path}:test:photo")


def test_missing_and_mixed_shards_are_refused_and_so_are_other_columns(tmp_path):
    shard(tmp_path / "train-00000-of-00003.parquet", range(4))
    shard(tmp_path / "train-00001-of-00003.parquet", range(4, N))
    names = "train-00000-of-00003.parquet, train-00001-of-00003.parquet"
    assert f"found 2 ({names}), and the names count 3: get those that are missing, " in refusal(tmp_path)
    assert len(open_source(tmp_path / "train-00001-of-00003.parquet")) == 2
    for other in ("train-00000-of-00001.parquet", "train.parquet", "train-00001-of-00003-0a1b.parquet"):
        shard(tmp_path / other, range(N))
        assert "must hold every file of a split once; found 3 (" in refusal(tmp_path), "their rows would be doubled"
        (tmp_path / other).unlink()
    pq.write_table(table(more=["x"] * N), tmp_path / "train-00002-of-00003.parquet")
    assert "must have the same columns; " in refusal(tmp_path)
    (tmp_path / "train-00002-of-00003.parquet").write_bytes(b"PAR1")
    assert "train-00002-of-00003.parquet cannot be read as Parquet" in refusal(tmp_path)


def test_an_image_beside_a_dataset_does_not_hide_it_and_tables_about_images_stay_beside_them(tmp_path):
    shard(tmp_path / "data/train-00000-of-00001.parquet", range(N))
    banner = tmp_path / "assets" / "0.png"
    banner.parent.mkdir()
    banner.write_bytes(encoded(image(PIXELS[0])))
    said = f"{tmp_path} must hold one kind of data; it has 1 image file (first: assets/0.png) and data/train-00000-of-00001.parquet: give "
    assert refusal(f"{tmp_path}:train") == f"{said}{tmp_path}/data:train, or the folder of the images"
    assert len(open_source(f"{tmp_path}/data:train")) == N
    for name in ("metadata.parquet", "captions.parquet"):
        pq.write_table(pa.table({"file_name": ["0.png"], "image": ["0.png"], "text": ["of 0"]}), banner.parent / name)
    source = open_source(banner.parent)
    assert source.ids == ("0.png",) and source.captions() == (("of 0",),)
    (banner.parent / "a.tar").touch()
    assert "0.png) and a.tar: give " in refusal(banner.parent)
    (banner.parent / "dataset_dict.json").touch()
    assert "and what save_to_disk wrote: move the image files away" in refusal(banner.parent)


@pytest.mark.parametrize("kind", ["texts", "structs"])
@pytest.mark.parametrize("beside", [True, False], ids=["from the file", "from the folder"])
def test_cells_may_hold_paths_from_the_folder_of_the_file_or_from_that_which_is_given(tmp_path, kind, beside):
    root, file = tmp_path / "set", tmp_path / "set" / "data" / "a.parquet"
    folder = root / "data" / "x" if beside else root / "x"
    folder.mkdir(parents=True)
    file.parent.mkdir(exist_ok=True)
    for i in range(N):
        (folder / f"{i}.img").write_bytes(encoded(image(PIXELS[i])))
    paths = [f"x/{i}.img" for i in range(N)]
    structs = pa.array([{"bytes": None, "path": path} for path in paths], table().schema.field("image").type)
    pq.write_table(table().set_column(0, "image", pa.array(paths) if kind == "texts" else structs), file)
    source = whole(table_source("set", root, [parquet_part(file)], None, AS_TRAINERS))
    (folder / "1.img").unlink()
    with pytest.raises(UserError, match=r"row 1: column 'image' holds no encoded image but x/1.img, which is not in .*data; put it"):
        source.read(1)
    if beside:
        assert np.array_equal(open_source(file).read(0), PIXELS[0])
        (root / "x").mkdir()
        (root / "x" / "0.img").write_bytes(b"another")
        with pytest.raises(UserError, match=r"row 0 must name one image; x/0.img is both .*: remove one"):
            source.read(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What save_to_disk leaves of a data set in two files, and of one with two splits."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("saved")
    kinds = {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.Value("int64")}
    rows = datasets.Dataset.from_dict(table().to_pydict(), features=datasets.Features(kinds))
    rows.save_to_disk(root / "one", num_shards=2)
    datasets.DatasetDict(train=rows, test=rows.select(range(2))).save_to_disk(root / "two")
    return root


def test_what_save_to_disk_leaves_is_read_in_place(saved):
    assert whole(open_source(saved / "one")).found.endswith("labels from the column label; 2 Arrow files")
    assert len(open_source(saved / "one" / "data-00001-of-00002.arrow")) == 3
    assert refusal(saved / "two") == f"{saved / 'two'} holds several splits, train, test: say which as {saved / 'two'}:train"
    assert "must have a split dev; it has train, test" in refusal(f"{saved / 'two'}:dev")
    assert whole(open_source(f"{saved / 'two'}:train")).name == f"{saved / 'two'}:train"
    assert images_alone(open_source(f"{saved / 'two'}:test")).found[0].startswith(f"{saved / 'two'}:test: 2 images")


def test_an_arrow_file_of_the_other_form_is_read_too(tmp_path):
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table().schema) as writer:
        writer.write_table(table(), max_chunksize=4)
    whole(open_source(tmp_path / "a.arrow"))


def test_an_arrow_file_with_a_column_twice_or_a_name_of_other_bytes_is_one_line(tmp_path):
    twice = pa.Table.from_arrays([pa.array(["x"])] * 2, ["image", "image"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, twice.schema) as writer:
        writer.write_table(twice)
    assert "cannot be read as an Arrow file (a column is there twice)" in refusal(tmp_path / "a.arrow")
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes().replace(b"image", b"im\xe5ge"))
    assert "cannot be read as an Arrow file (it is not UTF-8" in refusal(tmp_path / "a.arrow")


def test_a_damaged_saved_folder_is_one_line(saved, tmp_path):
    for name, content, said in (
        ("state.json", "{", "cannot be read"),
        ("state.json", json.dumps({"_data_files": [{"filename": "../one.arrow"}]}), "must list the Arrow files of the folder"),
        ("state.json", json.dumps({"_data_files": [{"filename": "gone.arrow"}]}), "gone.arrow cannot be read as an Arrow file"),
        ("data-00000-of-00002.arrow", (saved / "one" / "data-00000-of-00002.arrow").read_bytes()[:700], "cannot be read as an Arrow file"),
        ("data-00000-of-00002.arrow", b"", "cannot be read as an Arrow file"),
    ):
        for file in (saved / "one").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert said in refusal(tmp_path)
