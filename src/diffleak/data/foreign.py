"""Data of kinds that are not read: what each is, and the way on to one that is."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from diffleak.data.listing import OTHERS, PICTURES
from diffleak.errors import shown

LOOKED_AT = 10_000  # files of a folder
FOLDER = "write its images as files into a folder, and give that"
ARRAY = "write its images as uint8 (N, H, W, C) with numpy.save, and give the .npy file"
PARQUET = "to_parquet('data.parquet'), and give that"


class Kind(NamedTuple):
    """A kind of file by the end of its name: what it is called, and what to do with one."""

    ends: str
    what: str
    way: str


KINDS = (
    Kind(r"\.zip|\.7z|\.rar", "an archive", "unpack it, and give the folder"),
    Kind(r"\.tar\.\w+|\.tgz|\.tbz2?|\.txz", "a compressed tar archive, such as a shard of WebDataset", "uncompress it, and give the .tar"),
    Kind(r"-ubyte(\.gz)?", "an IDX file, such as those of MNIST", ARRAY),
    Kind(r"\.gz|\.bz2|\.xz|\.zst", "a compressed file", "unpack it, and give what is inside"),
    Kind(r"\.feather", "a Feather file", f"write it as Parquet with pandas.read_feather(...).{PARQUET}"),
    Kind(r"\.csv|\.tsv|\.txt|\.jsonl?|\.xlsx", "a table", "give the folder of its images, with captions or labels in metadata.csv there"),
    Kind(r"\.lmdb|\.mdb", "an LMDB database", FOLDER),
    Kind(r"\.tfrecords?(-\d+-of-\d+)?", "a TFRecord file", FOLDER),
    Kind(r"\.h5|\.hdf5", "an HDF5 file", ARRAY),
    Kind(r"\.mat", "a MATLAB file", ARRAY),
    Kind(r"\.pt|\.pth|\.pkl|\.pickle|\.ckpt", "a file of pickled Python, which could run code and is not opened", ARRAY),
    Kind("|".join(map(re.escape, sorted(PICTURES | OTHERS))), "one image", "give the folder that holds it"),
)
READ = re.compile(r".*(\.arrow|\.npy|\.npz)", re.IGNORECASE | re.DOTALL)


def foreign_file(path: Path) -> str | None:
    """What a file is instead of data, and what to do; None for a kind that nobody knows."""
    kind = _kind(path)
    return f"{path} is {kind.what}: {kind.way}" if kind else None


def foreign_folder(path: Path) -> str | None:
    """What a folder without images holds instead, and what to do; None for one that holds nothing that could be meant."""
    if (path / "data.mdb").is_file():
        return f"{path} is an LMDB database: {FOLDER}"
    files = [*islice(_files(path), LOOKED_AT)]
    if tables := [file for file in files if READ.fullmatch(file.name)]:
        way = "give one of them" if len(tables) > 1 else f"give {tables[0]}"
        return f"{path} holds no images but {_counted(tables, path)}: {way}"
    kinds = Counter(kind for file in files if (kind := _kind(file)) and file.suffix not in (".json", ".txt"))
    if not kinds:
        return None
    kind, _ = kinds.most_common(1)[0]
    return f"{path} holds no images but {_counted([file for file in files if _kind(file) == kind], path)}, {kind.what}: {kind.way}"


def _kind(path: Path) -> Kind | None:
    return next((kind for kind in KINDS if re.search(f"({kind.ends})$", path.name, re.IGNORECASE)), None)


def _files(path: Path) -> Iterator[Path]:
    """The files of a folder and of the folders in it, but hidden ones, in their order."""
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith("."):
            below = sorted(entry.iterdir()) if entry.is_dir() else [entry]
            yield from (file for file in below if file.is_file())


def _counted(files: list[Path], root: Path) -> str:
    first = shown(files[0].relative_to(root).as_posix())
    return first if len(files) == 1 else f"{len(files):,} files such as {first}"
