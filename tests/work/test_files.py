"""Files that their owner alone may read, whatever writes them."""

import os
import subprocess
import sys

import numpy as np
import pytest

from diffleak.data.split import Split
from diffleak.errors import UserError
from diffleak.work.files import checked_folder, closing, open_private, scratch, write_atomic, write_bytes, write_new, write_text
from diffleak.work.folder import Folder


@pytest.fixture(autouse=True)
def usual_mask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_the_command_that_closes_a_file_or_folder_is_one_that_a_shell_takes(tmp_path):
    folder = checked_folder(tmp_path / "my run")
    for path, usual in ((folder, 0o755), (folder / "its key", 0o644)):
        path.touch()
        path.chmod(usual)
        subprocess.run(closing(path), shell=True, check=True)
    assert (mode(folder), mode(folder / "its key")) == (0o700, 0o600)


def test_a_private_file_is_its_owners_before_a_byte_is_in_it(tmp_path):
    seen = []
    write_atomic(tmp_path / "a", lambda temporary: seen.append((mode(temporary), temporary.write_bytes(b"x"))), private=True)
    assert seen == [(0o600, 1)] and mode(tmp_path / "a") == 0o600 and (tmp_path / "a").read_bytes() == b"x"
    write_text(tmp_path / "b", "ä\n", private=True)
    write_bytes(tmp_path / "c", b"y", private=True)
    write_text(tmp_path / "d", "open")
    assert (tmp_path / "b").read_bytes() == "ä\n".encode() and [mode(tmp_path / each) for each in "bcd"] == [0o600, 0o600, 0o644]
    with pytest.raises(FileExistsError):
        open_private(tmp_path / "a")


def test_chunks_of_work_and_a_split_file_are_their_owners(tmp_path):
    Folder(tmp_path).save("images.npy", np.zeros(3))
    Split(("a.png",), ("b.png",)).write(tmp_path)
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


HELD = """
import sys
from pathlib import Path
from diffleak.work.files import scratch
with scratch(Path(sys.argv[1]), ".weights-") as folder:
    (folder / "weights.pt").write_bytes(b"half")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_that_of_a_running_one_stays(tmp_path):
    def left():
        return sorted(path.name for path in tmp_path.glob(".weights-*"))

    with subprocess.Popen([sys.executable, "-c", HELD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        (running,) = left()
        with scratch(tmp_path, ".weights-") as own:
            assert left() == sorted([running, own.name])
        assert left() == [running], "one that ends removes its own"
        other.kill()
        other.wait()
    assert left() == [running], "the process could not remove it"
    with scratch(tmp_path, ".weights-") as own:
        assert left() == [own.name]
    assert left() == []


def test_a_place_that_cannot_be_written_to_is_named_as_the_user_named_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError) as stopped:
        write_new(tmp_path / "file" / "split.json", "{}")
    assert str(stopped.value).startswith(f"{tmp_path}/file/split.json cannot be written (")
    for flag in ("-o", "--copy"):
        with pytest.raises(UserError, match=f"choose another with {flag}$"):
            checked_folder(tmp_path / "file" / "sides", flag)
