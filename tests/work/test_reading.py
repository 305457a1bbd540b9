"""The reader of each kind of file: what it takes, and that it refuses everything else with a reason, before it can block or grow."""

import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffleak.errors import UserError
from diffleak.work import reading
from diffleak.work.files import check_seal, hash_file, hash_files, seal
from diffleak.work.reading import (
    Unreadable,
    load_columns,
    load_json,
    load_lines,
    load_npy,
    load_parquet,
    load_rows,
    load_table,
    load_text,
    load_yaml,
    parsing,
)

READERS = (load_text, load_json, load_lines, load_rows, load_columns, load_table, load_yaml, load_parquet, load_npy, check_seal, hash_file)
each_reader = pytest.mark.parametrize("load", READERS, ids=lambda load: load.__name__)


@each_reader
def test_a_file_that_may_not_be_read_is_refused_as_that(load):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "secret"
        file.write_bytes(b"{}")
        file.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(Unreadable, match=r"^Permission denied$"):
                load(file)
        finally:
            if root:
                os.seteuid(0)


@each_reader
def test_only_a_regular_file_is_opened(tmp_path, load):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dead").symlink_to(tmp_path / "nothing")
    there = {"pipe": "it is a pipe", ".": "it is a folder", "nothing": "No such file or directory", "dead": "No such file or directory"}
    for name, reason in there.items():
        with pytest.raises(Unreadable, match=f"^{reason}$"):
            load(tmp_path / name)
    with pytest.raises(Unreadable, match="it is a device"):
        load(Path("/dev/zero"))
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:  # a socket's path is at most 108 bytes
        server.bind(f"{short}/socket")
        with pytest.raises(Unreadable, match="it is a socket"):
            load(Path(short) / "socket")


@each_reader
@pytest.mark.parametrize("content", [b"\xff\xfea\0", b"\0", b"PAR1", b"\x93NUMPY\x01\0", b"[" * 100_000, b'"' + b"x" * 10**6 + b"\xff"])
def test_no_content_ends_otherwise_than_in_an_answer_or_a_short_reason(tmp_path, load, content):
    (tmp_path / "file").write_bytes(content)
    reason = "fine"
    try:
        load(tmp_path / "file")
    except Unreadable as error:
        reason = str(error)
    assert 0 < len(reason) <= 2 * reading.LONGEST_REASON and "\n" not in reason


def test_a_mark_at_the_beginning_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}\r\n{"b": "\xe2\x80\xa8"}')
    assert load_lines(tmp_path / "a.json") == [{"a": 1}, {"b": "\u2028"}]
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert load_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_deep_nesting_is_named(tmp_path, text):
    (tmp_path / "file").write_text(text)
    for load in (load_json, load_lines, load_yaml):
        with pytest.raises(Unreadable, match=r"it is nested too deeply$"):
            load(tmp_path / "file")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2 * reading.LARGEST)
    for load, limit in ((load_json, reading.LARGEST), (load_yaml, reading.LARGEST_SETTINGS)):
        with pytest.raises(Unreadable, match=f"it has {2 * reading.LARGEST:,} bytes; at most {limit:,} bytes are read"):
            load(tmp_path / "huge")


def test_a_table_of_text_has_each_column_once_and_no_row_longer_than_the_header(tmp_path):
    file = tmp_path / "file"
    file.write_text('id,text\na,"x,\ny"\n\nb\n')
    assert load_table(file) == [{"id": "a", "text": "x,\ny"}, {"id": "b", "text": None}]
    assert load_rows(file) == [["id", "text"], ["a", "x,\ny"], ["b"]]
    assert load_columns(file) == (["id", "text"], [[], []], (2, 1)), "the second row has one field"


@pytest.mark.parametrize("rows", [1, 2, 500])
def test_columns_are_the_rows_turned_whatever_is_a_list_at_one_time(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(reading, "ROWS", rows)
    file = tmp_path / "table.csv"
    file.write_bytes('\ufeffid,text\r\na,"x,\r\ny"\n\nb,\u2028ä\rc,""\n'.encode())
    header, *expected = load_rows(file)
    found = load_columns(file)
    assert found == (header, [list(column) for column in zip(*expected, strict=True)], None)
    assert found.values == [["a", "b", "c"], ["x,\r\ny", "\u2028ä", ""]]
    file.write_text("id,text\na,1\nb,2\n\nc\nd,1,2\n")
    assert load_columns(file).odd == (3, 1), "the first one, without blank lines"
    file.write_bytes(b"id,text\na\nb,\xff\n")
    with pytest.raises(Unreadable, match="byte 0xff at 12"):
        load_columns(file)
    file.write_text("id,text\na,x\nb,one, two\n")
    with pytest.raises(Unreadable, match="line 3 has more fields than the header: put texts with commas in double quotes"):
        load_table(file)
    file.write_text("id,id\na,x\n")
    with pytest.raises(Unreadable, match="the column 'id' is there twice"):
        load_table(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [1]\nb: *x", r"the alias \*x is not read; write the value out"),
        ("a: 1\nb:\n  c: 2\n  c: 3", "the key 'c' is there twice"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: !!int abc", "invalid literal"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("\ta: 1", "cannot start any token"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_yaml_holds_plain_values_written_out_once(tmp_path, text, reason):
    (tmp_path / "file").write_text(text)
    with pytest.raises(Unreadable, match=reason):
        load_yaml(tmp_path / "file")


def test_json_has_each_key_once(tmp_path):
    (tmp_path / "file").write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    for load in (load_json, load_lines):
        with pytest.raises(Unreadable, match="the key 'b' is there twice"):
            load(tmp_path / "file")


def test_yaml_numbers_have_no_base_60(tmp_path):
    (tmp_path / "file").write_text("timesteps: 10:50\nlearning_rate: 1e-4\nseed: 0")
    assert load_yaml(tmp_path / "file") == {"timesteps": "10:50", "learning_rate": 1e-4, "seed": 0}


def test_the_pages_of_a_parquet_file_are_compared_with_their_checksums(tmp_path):
    file, table = tmp_path / "x=1" / "exp:1", pa.table({"a": np.arange(1000.0)})
    file.parent.mkdir()  # neither a partition nor a URI, though the names look like them
    pq.write_table(table, file.open("wb"), write_page_checksum=True, compression="none", use_dictionary=False)
    assert load_parquet(file).equals(table)
    content = bytearray(file.read_bytes())
    content[content.index(np.float64(500).tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(Unreadable, match="CRC"):
        load_parquet(file)


def test_an_array_with_a_seal_is_an_array_and_every_flipped_bit_breaks_the_seal(tmp_path):
    file, rows = tmp_path / "a.npy", np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.save(file, rows)
    with pytest.raises(Unreadable, match="its checksum is not that of its content"):
        check_seal(file)
    seal(file)
    check_seal(file)
    assert np.array_equal(np.load(file), rows)
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        with pytest.raises(Unreadable, match="its checksum is not that of its content"):
            check_seal(file)
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(Unreadable, match="its checksum is not that of its content"):
            check_seal(file)


def test_objects_in_an_array_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(Unreadable, match="allow_pickle=False"):
        load_npy(tmp_path / "a.npy")


def test_an_interrupt_is_no_damage():
    with pytest.raises(KeyboardInterrupt), parsing():
        raise KeyboardInterrupt


def test_a_parquet_file_has_each_column_once(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(Unreadable, match=r"^the column 'a' is there twice$"):
        load_parquet(tmp_path / "a.parquet", ["a"])


def test_a_hash_of_several_files_is_of_files_alone_and_takes_any_name(tmp_path):
    names = [tmp_path / "a", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))]
    for name in names:
        name.write_bytes(b"1")
    assert hash_files(names) != hash_files(names[::-1])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe cannot be read \(it is a pipe\)"):
        hash_files([*names, tmp_path / "pipe"])
