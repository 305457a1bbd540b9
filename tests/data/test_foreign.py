"""What people give as DATA and what is not read: each is named for what it is, with the way on, and nothing is opened that could block."""

import os
import socket
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.pictures import encoded, image, refusal

from diffleak.data.listing import list_images
from diffleak.data.sources import open_source
from diffleak.errors import UserError

PICTURE = encoded(image(np.arange(16, dtype=np.uint8).reshape(4, 4, 1)))


FILES = {
    "a.zip": "is an archive: unpack it, and give the folder",
    "a.tar.gz": "is a compressed tar archive, such as a shard of WebDataset: uncompress it, and give the .tar",
    "a.npy.gz": "is a compressed file: unpack it, and give what is inside",
    "train-images-idx3-ubyte": "is an IDX file, such as those of MNIST: write its images as uint8 (N, H, W, C) with numpy.save",
    "a.feather": "is a Feather file: write it as Parquet with pandas.read_feather(...).to_parquet('data.parquet')",
    "paths.CSV": "is a table: give the folder of its images",
    "a.lmdb": "is an LMDB database: write its images as files",
    "a.tfrecord-00000-of-00010": "is a TFRecord file: write its images as files",
    "a.h5": "is an HDF5 file: write its images as uint8",
    "a.mat": "is a MATLAB file",
    "a.pt": "is a file of pickled Python, which could run code and is not opened",
    "a.JPEG": "is one image: give the folder that holds it",
    "a.xyz": "has the ending '.xyz'",
    "xyz": "has no ending",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_named_with_the_way_on(tmp_path, name):
    (tmp_path / name).write_bytes(b"content")
    expected = f"DATA must be a folder of images, or a .npy, .npz, .parquet, .arrow or .tar file; {tmp_path / name} {FILES[name]}"
    assert refusal(tmp_path / name).startswith(expected)


FOLDERS = {
    "one array": (["a.npy", "notes.txt"], "holds no images but a.npy: give {}/a.npy"),
    "one Arrow file": (["a.arrow", "notes.txt"], "holds no images but a.arrow: give {}/a.arrow"),
    "LMDB": (["data.mdb", "lock.mdb"], "is an LMDB database"),
    "compressed shards": (
        [f"{i:03d}.tar.gz" for i in range(3)],
        "holds no images but 3 files such as 000.tar.gz, a compressed tar archive",
    ),
    "pickles": (["a.pt", "b.pt"], "holds no images but 2 files such as a.pt, a file of pickled Python, which could run code"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_without_images_is_named_for_what_it_holds(tmp_path, kind):
    names, said = FOLDERS[kind]
    for name in names:
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(b"content")
    assert said.replace("{}", str(tmp_path / "x")) in refusal(tmp_path / "x")


def test_a_folder_of_texts_alone_and_an_empty_text_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "must contain images" in refusal(tmp_path)
    assert "got an empty text" in refusal(" ")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["a/x.png", "b.png"], "it holds texts such as a/x.png, and no such file is in "),
        ([{"bytes": None, "path": "a/x.png"}, {"bytes": None, "path": "b.png"}], "it holds texts such as a/x.png, and no such file"),
        (["http://a.b/x.png", None], "it holds addresses such as http://a.b/x.png: download the images"),
        ([[1, 2], [3, 4]], "it holds list<element: int64>"),
        ([{"bytes": None, "path": None}], "it holds nothing: give the column or the folder of the images"),
    ],
    ids=["texts", "structs of paths", "addresses", "numbers", "nothing"],
)
def test_a_parquet_file_whose_image_column_holds_no_images_is_refused_at_once(tmp_path, cells, said):
    types = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if isinstance(cells[0], dict) else None
    pq.write_table(pa.table({"image": pa.array(cells, types)}), tmp_path / "a.parquet", row_group_size=1)
    assert f"the column image of {tmp_path / 'a.parquet'} must hold encoded images or paths of files; {said}" in refusal(
        tmp_path / "a.parquet"
    )


def test_the_ending_of_data_may_be_in_capitals(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    assert len(open_source(tmp_path / "A.NPY")) == 2


@pytest.fixture
def specials(tmp_path, monkeypatch):
    """A folder with one image, and with a pipe, a socket and links to a pipe and a device that are named like images or like nothing."""
    root = tmp_path / "x"
    root.mkdir()
    (root / "a.png").write_bytes(PICTURE)
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe")
    (root / "link.png").symlink_to(root / "pipe")
    (root / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(root)
        listening.bind("s.png")  # a socket's path may have 108 bytes only
        yield root


def test_a_pipe_a_socket_and_a_device_among_the_images_are_counted_and_never_opened(specials):
    before = time.monotonic()
    source = open_source(specials)
    assert source.ids == ("a.png",) and time.monotonic() - before < 5
    assert (source.left_out.unopened, source.left_out.first_unopened) == (4, "device.png")


def test_a_pipe_as_data_is_refused(specials):
    assert f"found a pipe at {specials / 'pipe'}" in refusal(specials / "pipe")


def test_a_folder_named_like_an_image_is_read_where_it_holds_images_and_counted_where_it_holds_none(tmp_path):
    for name in ("x.png/inner.png", "a.jpg/.hidden.png", "c.png/y.png/notes.txt", "d/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PICTURE if name.endswith(".png") else b"text")
    found = list_images(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == ["x.png/inner.png"]
    assert (found.left_out.unopened, found.left_out.first_unopened, found.left_out.hidden) == (1, "c.png/y.png", 1)
    with pytest.raises(UserError, match="1 looks like an image and is of a kind that is not opened"):
        open_source(tmp_path / "c.png")


def test_a_damaged_row_group_is_unreadable_by_its_rows(tmp_path):
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"image": [PICTURE] * 2}), path, row_group_size=1, **options)
    content = bytearray(path.read_bytes())
    start = content.rindex(PICTURE[:20])
    source = open_source(path)
    content[start - 20 : start - 4] = b"\xff" * 16
    path.write_bytes(content)
    assert source.read(0).shape == (4, 4, 1)
    with pytest.raises(UserError, match=r"row 1 cannot be read \(.*\); replace the file, or leave it out with --skip-unreadable"):
        source.read(1)
