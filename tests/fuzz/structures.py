"""Changes to the values in a file of a known form: they keep the form, so that they get past its parser."""

import csv
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from math import inf, nan
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

# texts that stand for what the writers of JSON and YAML do not write; alphanumeric, so that YAML puts them into no quotes
RAW = {
    "RAWdeeplists": 2000 * "[" + 2000 * "]",
    "RAWdeep": 400 * "[" + 400 * "]",
    "RAWdeepobjects": 2000 * '{"a":' + "1" + 2000 * "}",
    "RAWhugenumber": "1" + 400 * "0",
    "RAWlongnumber": 5000 * "7",
    "RAWsurrogate": '"\\ud800"',
    "RAWnan": "NaN",
    "RAWminusinfinity": "-Infinity",
}
TWICE = "KEYtwice"
NUMBERS = (0, -1, 1, 2, 7, 0.5, -0.25, 10**9, -(10**9), 2**31, 2**63, -(2**63) - 1, 1e308, 1e-320)
TEXTS = (
    "",
    " ",
    "x",
    "0",
    "1",
    "nan",
    "true",
    "null",
    "a\nb",
    "\x00",
    "\x1b[2J",
    "\u202egnp.exe",
    "é",
    "../../etc/passwd",
    "/dev/zero",
    "x" * 100_000,
)
VALUES = (None, True, False, *NUMBERS, *TEXTS, *RAW, [], {}, [None], [[]], {"a": 1}, ["x"] * 1000)


def odd_value(rng: Random, value: Any = None) -> Any:
    """Something that a value could not be, or could only just be; now and then the value in a list, as a text or nearly the same."""
    kin: list[Any] = [[value], str(value), {"value": value}, [value, value]]
    if isinstance(value, bool):
        kin += 2 * [not value]
    elif isinstance(value, int | float):
        kin += [value + 1, -value, value * 1.5, 1000 * value, float(value)]
    elif isinstance(value, str):
        kin += [value[:-1], value + value, value.upper(), f" {value} "]
    elif isinstance(value, list):
        kin += [value[:-1], value + value, value[::-1], dict(enumerate(map(str, value)))]
    return rng.choice(kin) if rng.random() < 0.3 else rng.choice(VALUES)


def change_tree(rng: Random, tree: Any) -> tuple[str, Any]:
    """One change to one value, key or item of nested lists and objects."""
    places = list(_places(tree, ()))
    if not places or rng.random() < 0.03:
        new = odd_value(rng)
        return f"{_shown(new)} as a whole", new
    path = rng.choice(places)
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    key, where = path[-1], "/".join(map(str, path))[:120]
    way = rng.choice(("value", "value", "value", "value", "drop", "double", "rename", "swap"))
    if way == "drop":
        del parent[key]
        return f"{where} left out", tree
    if way == "double":
        if isinstance(parent, list):
            parent.insert(key, parent[key])
        else:
            parent[TWICE + str(key)] = odd_value(rng, parent[key])
        return f"{where} twice", tree
    if way == "rename" and isinstance(parent, dict):
        new = rng.choice([f"{key}x", str(key).upper(), "", "\x1b[2J", "x" * 5000, "\u202e", str(key)[:-1]])
        parent[new] = parent.pop(key)
        return f"{where} is now called {_shown(new)}", tree
    if way == "swap":
        other = rng.choice(places)
        new: Any = tree
        for step in other:
            new = new[step]
        parent[key] = json.loads(json.dumps(new))
        return f"{where} as {'/'.join(map(str, other))[:60]}", tree
    new = odd_value(rng, parent[key])
    parent[key] = new
    return f"{where} as {_shown(new)}", tree


def _places(tree: Any, path: tuple[Any, ...]) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}… ({len(text)})"


def dump(tree: Any, indent: int | None = None) -> str:
    """JSON, with what RAW and TWICE stand for in their places."""
    text = json.dumps(tree, indent=indent).replace(TWICE, "")
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def of_json(rng: Random, content: bytes) -> tuple[str, bytes]:
    said, tree = change_tree(rng, json.loads(content))
    return said, dump(tree).encode("utf-8", "surrogatepass")


def of_jsonl(rng: Random, content: bytes) -> tuple[str, bytes]:
    lines = content.decode().splitlines()
    i = rng.randrange(len(lines))
    said, tree = change_tree(rng, json.loads(lines[i]))
    lines[i] = dump(tree)
    return f"line {i}: {said}", "\n".join(lines).encode("utf-8", "surrogatepass")


def of_yaml(rng: Random, content: bytes) -> tuple[str, bytes]:
    said, tree = change_tree(rng, yaml.safe_load(content))
    text = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).replace(TWICE, "")
    for name, raw in RAW.items():
        text = text.replace(name, raw)
    extra = rng.choice(
        ("", "", "", "", "", "\n<<: {seed: 3}", "\na: &a 1\nb: *a", "\n---\nseed: 1", "\n!!python/object/apply:os.getpid []")
    )
    return said + (f", then {extra.strip()!r}" if extra else ""), (text + extra).encode()


def of_csv(rng: Random, content: bytes) -> tuple[str, bytes]:
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    i, j = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    separator, said = ",", ""
    match rng.choice(("cell", "cell", "cell", "cell", "column", "twice", "row", "rows", "field", "short", "header", "separator")):
        case "cell":
            new = odd_value(rng, rows[i][j])
            rows[i][j] = RAW[new] if isinstance(new, str) and new in RAW else str(new)
            said = f"row {i} column {j} as {_shown(new)}"
        case "column":
            rows, said = [row[:j] + row[j + 1 :] for row in rows], f"column {j} left out"
        case "twice":
            rows, said = [row[: j + 1] + row[j:] for row in rows], f"column {j} twice"
        case "row":
            rows, said = rows[:i] + rows[i + 1 :], f"row {i} left out"
        case "rows":
            rows, said = rows[: i + 1] + rows[i:], f"row {i} twice"
        case "field":
            rows[i] = [*rows[i], "one more"]
            said = f"one field more in row {i}"
        case "short":
            rows[i] = rows[i][:j]
            said = f"row {i} with {j} fields"
        case "header":
            new = str(rng.choice(TEXTS))
            rows[0][j] = new
            said = f"column {j} is called {_shown(new)}"
        case _:
            separator = rng.choice(";\t| ")
            said = f"separated by {separator!r}"
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    return said, text.getvalue().encode("utf-8", "surrogatepass")


# arrays, tables and pictures

DTYPES = (
    "<f4",
    ">u2",
    "|b1",
    "|i1",
    "|u1",
    "<u8",
    "|O",
    "<U4",
    "|S3",
    "|V3",
    "<M8[s]",
    "<c8",
    "[('a', '<f4'), ('b', '|O')]",
    "u1" * 5000,
    "x",
)
SHAPES = (
    "()",
    "(0,)",
    "(-1, 8, 8)",
    "(1000000000000,)",
    "(10**9, 8, 8)",
    "(True, 8, 8)",
    "(2.0, 8)",
    "(8, 8)",
    "(1,)*40",
    "None",
    "'x'",
    1500 * "(",
)


def of_npy(rng: Random, content: bytes) -> tuple[str, bytes]:
    """Another header, or other numbers under the same one."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if rng.random() < 0.3:
        ways: dict[str, Callable[[], np.ndarray]] = {
            "as float32": lambda: array.astype(np.float32),
            "as objects": lambda: array.astype(object),
            "in Fortran's order": lambda: np.asfortranarray(array),
            "one row less": lambda: array[:-1],
            "without rows": lambda: array[:0],
            "one axis more": lambda: array[None],
            "one axis less": lambda: array[0],
            "the rows reversed": lambda: array[::-1].copy(),
            "of two channels": lambda: np.stack([array, array], axis=-1),
            "as a structure": lambda: array.view([("a", array.dtype)]),
        }
        said = rng.choice(sorted(ways))
        stream = io.BytesIO()
        np.save(stream, ways[said](), allow_pickle=True)
        return said, stream.getvalue()
    header = {"descr": repr(array.dtype.str), "fortran_order": "False", "shape": str(array.shape)}
    key = rng.choice(("descr", "descr", "shape", "shape", "fortran_order"))
    options = {
        "descr": [t if t[0] == "[" else repr(t) for t in DTYPES],
        "shape": SHAPES,
        "fortran_order": ("True", "2", "'x'", "None", "[]"),
    }
    header[key] = rng.choice(options[key])
    text = "{" + ", ".join(f"'{name}': {value}" for name, value in header.items()) + ", }"
    version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 0), (0, 0)))
    length = struct.pack("<H" if version[0] < 2 else "<I", min(len(text) + 1, 65535))
    made = b"\x93NUMPY" + bytes(version) + length + text.encode() + b"\n" + array.tobytes()
    return f"{key} {_shown(header[key])}, version {version[0]}", made


def of_npz(rng: Random, content: bytes) -> tuple[str, bytes]:
    """Another set of arrays, or one of them changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    i = rng.randrange(len(parts))
    name, part = parts[i]
    match rng.choice(("change", "change", "drop", "double", "rename", "text", "bomb", "none")):
        case "change":
            said, part = of_npy(rng, part)
            parts[i], said = (name, part), f"{name}: {said}"
        case "drop":
            said = f"without {name}"
            del parts[i]
        case "double":
            said = f"{name} twice"
            parts.insert(i, parts[i])
        case "rename":
            new = rng.choice(("label.npy", "labels.npy", "x.npy", "", "../../x.npy", "\x1b[2J.npy", "x" * 300, "x.txt"))
            said, parts[i] = f"{name} as {_shown(new)}", (new, part)
        case "text":
            said, parts[i] = f"a text as {name}", (name, b"text")
        case "bomb":
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**36, 8, 8)})
            said, parts[i] = f"{name} of 4 TiB by its header", (name, stream.getvalue() + bytes(2**22))
        case _:
            said, parts = "no array", []
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))) as archive:
        for name, part in parts:
            archive.writestr(zipfile.ZipInfo(name), part)
    return said, made.getvalue()


def of_parquet(rng: Random, content: bytes) -> tuple[str, bytes]:
    """Another column, another type of a column, missing values, other metadata."""
    table = pq.read_table(pa.BufferReader(content))
    names, columns, metadata = list(table.column_names), list(table.columns), table.schema.metadata
    i, n = rng.randrange(len(names)), len(table)
    row = rng.randrange(n)
    values = columns[i].to_pylist()
    match rng.choice(("type", "type", "type", "null", "nulls", "value", "drop", "double", "rename", "empty", "metadata")):
        case "type":
            kinds: dict[str, Callable[[], pa.Array]] = {
                "numbers": lambda: pa.array(np.arange(n, dtype=np.float64)),
                "whole numbers": lambda: pa.array(np.arange(n)),
                "texts": lambda: pa.array([str(value) for value in values]),
                "bytes": lambda: pa.array([str(value).encode() + b"\xff" for value in values]),
                "lists": lambda: pa.array([[value] for value in map(str, values)]),
                "structures": lambda: pa.array([{"value": str(value)} for value in values]),
                "truth": lambda: pa.array([k % 2 == 0 for k in range(n)]),
                "times": lambda: pa.array(np.arange(n).astype("datetime64[s]")),
                "nothing": lambda: pa.nulls(n),
                "NaN": lambda: pa.array(np.full(n, nan)),
                "infinity": lambda: pa.array(np.full(n, inf)),
                "a dictionary": lambda: pa.array([str(value) for value in values]).dictionary_encode(),
                "decimals": lambda: pa.array(np.arange(n)).cast(pa.decimal128(30, 2)),
                "zero-sized binary": lambda: pa.array([b""] * n),
                "large texts": lambda: pa.array([str(value) for value in values], pa.large_string()),
                "maps": lambda: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
            }
            said = rng.choice(sorted(kinds))
            columns[i], said = kinds[said](), f"{names[i]} as {said}"
        case "null" | "nulls":
            rows = [row] if rng.random() < 0.5 else range(row, n)
            columns[i] = pa.array([None if k in rows else value for k, value in enumerate(values)], columns[i].type)
            said = f"{names[i]} without {len(rows)} values"
        case "value":
            text = rng.choice([text for text in TEXTS if "\ud800" not in text])
            said = f"{names[i]} {row} as {_shown(text)}"
            columns[i] = pa.array([text if k == row else str(value) for k, value in enumerate(values)])
        case "drop":
            said = f"without {names[i]}"
            del names[i], columns[i]
        case "double":
            said = f"{names[i]} twice"
            names, columns = [*names, names[i]], [*columns, columns[i]]
        case "rename":
            new = rng.choice(("label", "labels", "text", "", "\x1b[2J", "x" * 5000, names[i].upper(), names[0]))
            said, names[i] = f"{names[i]} as {_shown(new)}", new
        case "empty":
            said, columns = "no rows", [column.slice(0, 0) for column in columns]
        case _:
            said = "other metadata"
            metadata = {
                b"huggingface": rng.choice(
                    (b"{", b"[]", b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}', b"\xff")
                )
            }
    made, sink = pa.table(columns, names=names).replace_schema_metadata(metadata), io.BytesIO()
    small = rng.choice((None, 3))
    pq.write_table(made, sink, row_group_size=small)
    return said + (", in groups of three" if small else ""), sink.getvalue()


def of_safetensors(rng: Random, content: bytes) -> tuple[str, bytes]:
    """Another header with its right length, or other numbers under the same one."""
    (length,) = struct.unpack("<Q", content[:8])
    header, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
    if rng.random() < 0.3:
        size = rng.choice((1, 4, 64, len(numbers) // 4))
        at = 4 * rng.randrange(max(1, len(numbers) // 4 - size))
        value = rng.choice((nan, inf, -inf, 0.0, 1e30, -1.0, 3e38))
        made = numbers[:at] + size * struct.pack("<f", value) + numbers[at + 4 * size :]
        return f"{size} numbers from byte {at} on are {value}", content[: 8 + length] + made
    if rng.random() < 0.1:
        claimed = rng.choice((0, 1, length - 1, length + 1, 2**20, 2**40, 2**63, 2**64 - 1))
        return f"a header of {claimed} bytes", struct.pack("<Q", claimed) + content[8:]
    said, header = change_tree(rng, header)
    text = dump(header).encode("utf-8", "surrogatepass")
    return said, struct.pack("<Q", len(text)) + text + numbers


HEADERS = [("width", 0), ("width", 9), ("width", 2**31 - 1), ("height", 7), ("height", 40_000), ("bits", 16), ("bits", 3)]
HEADERS += [("colour", 6), ("colour", 3), ("colour", 9), ("interlace", 1)]


def of_png(rng: Random, content: bytes) -> tuple[str, bytes]:
    """Another chunk, or another order of them, each with its right checksum."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    i = rng.randrange(len(chunks))
    match rng.choice(("header", "header", "drop", "double", "swap", "text", "exif", "palette", "data")):
        case "header":
            field, value = rng.choice(HEADERS)
            names = ("width", "height", "bits", "colour", "compression", "filter", "interlace")
            form = dict(zip(names, struct.unpack(">IIBBBBB", chunks[0][1]), strict=True))
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *(form | {field: value}).values()))
            said = f"{field} {value}"
        case "drop":
            said = f"without {chunks.pop(i)[0]!r}"
        case "double":
            chunks.insert(i, chunks[i])
            said = f"{chunks[i][0]!r} twice"
        case "swap":
            j = rng.randrange(len(chunks))
            chunks[i], chunks[j] = chunks[j], chunks[i]
            said = f"chunks {i} and {j} swapped"
        case "text":
            chunks.insert(1, (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(2**26))))
            said = "a text of 64 MiB"
        case "exif":
            tag = rng.choice(
                (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([rng.randrange(256)]) + b"\0\0\0\0\0\0", b"II*\0", b"")
            )
            chunks.insert(1, (b"eXIf", tag))
            said = f"EXIF {tag.hex()}"
        case "palette":
            chunks.insert(1, (rng.choice((b"PLTE", b"tRNS", b"gAMA", b"iCCP")), rng.randbytes(rng.choice((0, 1, 3, 300)))))
            said = f"{chunks[1][0]!r} of {len(chunks[1][1])} bytes"
        case _:
            chunks = [(name, zlib.compress(rng.randbytes(rng.choice((0, 10, 5000)))) if name == b"IDAT" else part) for name, part in chunks]
            said = "other pixels"
    made = b"".join(struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks)
    return said, content[:8] + made


FORMS: dict[str, Callable[[Random, bytes], tuple[str, bytes]]] = {
    ".json": of_json,
    ".jsonl": of_jsonl,
    ".yaml": of_yaml,
    ".csv": of_csv,
    ".npy": of_npy,
    ".npz": of_npz,
    ".parquet": of_parquet,
    ".safetensors": of_safetensors,
    ".png": of_png,
}
