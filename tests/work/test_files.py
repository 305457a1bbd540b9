"""One reader of JSON: what it takes, and what it refuses as its callers expect."""

import os

import pytest

from diffleak.data.metadata import read_lines
from diffleak.work.files import load_json


def test_a_mark_at_the_beginning_is_no_part_of_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert load_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "nothing", ""])
def test_what_is_no_json_or_nested_too_deeply_is_a_value_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    for read in (load_json, *((read_lines,) if text else ())):
        with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
            read(tmp_path / "a.json")


def test_a_folder_or_nothing_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        load_json(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="it is no file"):
        load_json(tmp_path / "pipe.json")
    with pytest.raises(FileNotFoundError):
        load_json(tmp_path / "nothing.json")
