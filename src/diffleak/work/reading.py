"""Reading files that people made, or that were damaged: one function for each kind, with limits.

Each opens a regular file and nothing else (a pipe or a device could be read for ever), of a size that somebody may mean, and raises
`Unreadable` with a short reason, whatever its parser raises. The caller says which file it was and what to do.
"""

import csv
import io
import json
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml

from diffleak.errors import DiffleakError

if TYPE_CHECKING:
    import pyarrow as pa

UTF_8 = "utf-8-sig"  # with or without a mark at its beginning
ROWS = 500  # lines of a CSV file that are lists at one time: few enough for the cache of a core, which is four times as fast as 50,000
LARGEST = 2**30  # bytes of a text: a split of ten million images
LARGEST_SETTINGS = 2**22  # bytes of a config file
LARGEST_HEADER = 10**8  # bytes, as the library of safetensors allows
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")  # endings of what torch.save and others pickle
STATE_DICTS = (".bin", ".pt", ".pth", ".ckpt")  # those of them that torch.save writes
OTHER_WEIGHTS = {b"PK\x03\x04": "a zip, as PyTorch pickles are", b"\x80": "a pickle", b"GGUF": "a GGUF file"}  # by their first bytes
LONGEST_REASON = 120  # characters
COLONLESS = {
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"^[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
}
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Unreadable(ValueError):
    """A file does not hold what it should; the message is the reason, one short line that does not name the file."""


def load_text(path: Path, limit: int = LARGEST) -> str:
    """The text of a UTF-8 file as it is stored, without the mark that some editors put at its beginning."""
    with parsing():
        return _not_utf_16(path, limit).decode(UTF_8)


def _not_utf_16(path: Path, limit: int = LARGEST) -> bytes:
    with opened(path, limit) as file, parsing():
        content = file.read()
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise Unreadable("it is UTF-16: save it as UTF-8")
        return content


def load_json(path: Path) -> Any:
    """What a JSON file holds, with each key once."""
    text = load_text(path)
    with parsing():
        return json.loads(text, object_pairs_hook=_with_each_key_once)


def load_lines(path: Path) -> list[Any]:
    """The JSON values in the lines of a file; blank lines hold none."""
    found = []
    # not splitlines: it would also cut at the other line separators of Unicode, which JSON has inside its texts
    for number, line in enumerate(load_text(path).split("\n"), 1):
        if line.strip():
            with parsing(f"line {number}: "):
                found.append(json.loads(line, object_pairs_hook=_with_each_key_once))
    return found


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which parsers would keep the last of two values in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse_twice("key", [key for key, _ in pairs])
    return found


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    """Raises `Unreadable` for names of which one is there twice."""
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise Unreadable(f"the {what} {twice[0][:40]!r} is there twice")


def load_rows(path: Path) -> list[list[str]]:
    """The fields of every line of a CSV file that is not blank."""
    return [*_rows(path)]


class Columns(NamedTuple):
    """A CSV file column by column, which takes a fraction of the time and memory of a list for each row."""

    names: list[str]
    """The fields of the first line that is not blank; none in an empty file."""
    values: list[list[str]]
    """The texts of each column, without the first line; not all of them where there is an odd row."""
    odd: tuple[int, int] | None
    """The number of the first row that has not one field for each name, counted from 1 without blank lines, and how many it has."""


def load_columns(path: Path) -> Columns:
    """The columns of a CSV file with their names in its first line."""
    rows = _rows(path)
    names = next(rows, [])
    values, odd, before = [list[str]() for _ in names], None, 0
    while batch := [*islice(rows, ROWS)]:
        if odd is None and {*map(len, batch)} != {len(names)}:
            odd = next((before + i, len(row)) for i, row in enumerate(batch, 1) if len(row) != len(names))
        if odd is None:
            for column, texts in zip(values, zip(*batch, strict=True), strict=True):
                column.extend(texts)
        before += len(batch)
    return Columns(names, values, odd)


def _rows(path: Path) -> Iterator[list[str]]:
    content = _not_utf_16(path)
    with parsing():
        content.decode(UTF_8)  # here, since an error further down would count its bytes from the middle of the file
        yield from filter(None, csv.reader(io.TextIOWrapper(io.BytesIO(content), UTF_8, newline="")))


def load_table(path: Path) -> list[dict[str, str | None]]:
    """The rows of a CSV file by the names in its first line; None where a row ends early."""
    text = load_text(path)
    with parsing():
        reader = csv.DictReader(io.StringIO(text, newline=""))
        _refuse_twice("column", reader.fieldnames or ())
        rows = []
        for row in reader:
            if None in row:
                raise Unreadable(f"line {reader.line_num} has more fields than the header: put texts with commas in double quotes")
            rows.append(row)
        return rows


def load_yaml(path: Path) -> Any:
    """What a YAML file of settings holds, without aliases, which can stand for any size, and with each key once."""
    text = load_text(path, LARGEST_SETTINGS)
    with parsing():
        try:
            return yaml.load(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = str(error.problem)
            said = f"{error.context} {problem}" if problem.startswith("but ") else problem
            raise Unreadable(f"line {mark.line + 1 if mark else 1}: {said}") from None


@contextmanager
def opened_parquet(path: Path) -> Iterator["pa.parquet.ParquetFile"]:
    """A Parquet file with each column once, closed at the end; the checksums of its pages are compared where it has any."""
    import pyarrow.parquet as pq

    with opened(path, None) as file, parsing():
        table = pq.ParquetFile(file, page_checksum_verification=True)
        _refuse_twice("column", table.schema_arrow.names)
        yield table


def load_parquet(path: Path, columns: Sequence[str] | None = None) -> "pa.Table":
    """The table in a Parquet file, or some of its columns."""
    with opened_parquet(path) as file:
        return file.read(columns=columns)


def load_column(path: Path, name: str) -> list[Any]:
    """The values of one column of a Parquet file, as Python's own."""
    table = load_parquet(path, [name])
    with parsing():
        return table.column(0).to_pylist()  # type: ignore[no-any-return]


def load_npy(path: Path) -> np.ndarray:
    """The array in a .npy file, of plain numbers: nothing in it is unpickled."""
    with opened(path, None) as file, parsing():
        return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]


class Header(NamedTuple):
    """The header of a .safetensors file: what it says beside its tensors, the tensors by their names, and where their bytes begin."""

    metadata: dict[str, str]
    tensors: dict[str, Any]
    begins: int


def load_header(path: Path) -> Header:
    """The header of a .safetensors file, of which nothing else is read.

    Its first 8 bytes are the length of a JSON object, which gives each tensor's dtype, shape and place, and texts as `__metadata__`;
    the bytes of the tensors follow, without holes (https://github.com/huggingface/safetensors).
    """
    with opened(path, None) as file, parsing():
        begins = file.read(8)
        length, size = int.from_bytes(begins, "little"), path.stat().st_size
        content = file.read(length) if length <= min(LARGEST_HEADER, size - 8) else b""
        if not content.startswith(b"{"):  # only then, since a length may begin as another kind of file does
            other = next((kind for mark, kind in OTHER_WEIGHTS.items() if begins.startswith(mark)), None)
            raise Unreadable(
                f"it is {other}" if other else "it is no whole safetensors file: its first 8 bytes are not the length of a header"
            )
        header = json.loads(content.decode(), object_pairs_hook=_with_each_key_once)
        if not isinstance(header, dict):
            raise Unreadable("its header is no JSON object")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise Unreadable("its __metadata__ must be texts by their names")
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if end != size - 8 - length:
            raise Unreadable(f"it is no whole safetensors file: its tensors take {end:,} bytes, and it has {size - 8 - length:,}")
        return Header(metadata, header, 8 + length)


def found_at(path: Path) -> str:
    """What there is at a path, in words: "a file", "a folder", "a pipe", "nothing" ..."""
    try:
        return KINDS.get(stat.S_IFMT(path.stat().st_mode), "a file")
    except PermissionError:
        return "nothing that may be read"
    except (OSError, ValueError):
        return "nothing"


@contextmanager
def opened(path: Path, limit: int | None = LARGEST) -> Iterator[BufferedReader]:
    """A regular file of at most `limit` bytes, open for reading."""
    with parsing():
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"it is {KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}")
        if limit is not None and status.st_size > limit:
            raise Unreadable(f"it has {status.st_size:,} bytes; at most {limit:,} bytes are read")
        file = path.open("rb")
    with file:
        yield file


@contextmanager
def parsing(where: str = "") -> Iterator[None]:
    """Turns whatever a parser raises for the content of a file into `Unreadable`; `where` begins its message."""
    try:
        yield
    except (DiffleakError, Unreadable):
        raise
    except RecursionError:
        raise Unreadable(f"{where}it is nested too deeply") from None
    except MemoryError:
        raise Unreadable(f"{where}it takes more memory than there is") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"{where}it is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start:,})") from None
    except Exception as error:  # each parser raises its own kinds, and damaged bytes bring out the rarest
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(where + (f"{reason[:LONGEST_REASON]}…" if len(reason) > LONGEST_REASON else reason)) from None


class _Loader(yaml.SafeLoader):
    """YAML without base-60 numbers, which would read the timesteps 10:50 as 650, without aliases, and without a key that is there twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise Unreadable(f"the alias *{self.peek_event().anchor} is not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        _refuse_twice("key", keys)
        if "<<" in keys:
            raise Unreadable("the merge key << is not read; write its keys out")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, COLONLESS.get(tag, pattern)) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
