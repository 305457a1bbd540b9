"""Hashes of weights: remembered while a file is as it was, and never where that is in doubt."""

import os
import threading

import pytest

from diffleak.errors import UserError
from diffleak.work import remembered as module
from diffleak.work.files import hash_files


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files that count as large, changed an hour ago as far as anybody can see; the clock is theirs."""
    monkeypatch.setattr(module, "SMALL", 10)
    monkeypatch.setenv(module.VARIABLE, str(tmp_path / "cache"))
    found = [tmp_path / "a.safetensors", tmp_path / "b.json"]
    for file in found:
        file.write_text(file.name * 10)
    later(monkeypatch, found, 3600)
    return found


def later(monkeypatch, files, seconds):
    now = max(file.stat().st_ctime for file in files) + seconds
    monkeypatch.setattr(module.time, "time", lambda: now)


@pytest.fixture
def hashed(monkeypatch):
    """The files of every hash that was computed."""
    calls = []
    monkeypatch.setattr(module, "hash_files", lambda given: calls.append(list(given)) or hash_files(given))
    return calls


def test_weights_are_hashed_once(files, hashed):
    assert module.hash_weights(files) == module.hash_weights(files) == hash_files(files)
    assert hashed == [files]
    assert module.hash_weights(files[:1]) == hash_files(files[:1]) != hash_files(files)
    assert module.hash_weights(files[::-1]) == hash_files(files[::-1])


@pytest.mark.parametrize("change", ["content", "content with the old times", "another file in its place", "name"])
def test_a_changed_file_is_hashed_again(files, hashed, monkeypatch, change):
    before, status = module.hash_weights(files), files[0].stat()
    if change == "name":
        files[0] = files[0].rename(files[0].with_name("c.safetensors"))
    else:
        content = files[0].read_text().replace("a", "x", 1)
        if change.startswith("another"):
            files[0].with_name("new").write_text(content)
            os.replace(files[0].with_name("new"), files[0])
        else:
            files[0].write_text(content)
        if change != "content":
            os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    later(monkeypatch, files, 3600)
    assert module.hash_weights(files) == hash_files(files) != before
    assert len(hashed) == 2


@pytest.mark.parametrize(("seconds", "times"), [(0.5, 2), (1.9, 2), (2.1, 1)])
def test_a_file_that_has_just_changed_is_never_remembered(files, hashed, monkeypatch, seconds, times):
    later(monkeypatch, files, seconds)
    for _ in range(2):
        assert module.hash_weights(files) == hash_files(files)
    assert len(hashed) == times


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(files, monkeypatch):
    def changing(given):
        found = hash_files(given)
        files[0].write_text("changed meanwhile")
        return found

    monkeypatch.setattr(module, "hash_files", changing)
    module.hash_weights(files)
    assert not module.cache_folder().exists()


def test_small_files_are_hashed_each_time(files, hashed, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 2**24)
    for _ in range(2):
        module.hash_weights(files)
    assert len(hashed) == 2 and not module.cache_folder().exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"g" * 64, b"0" * 63, b"0" * 65, b"0" * 64 + b"\n"])
def test_a_damaged_cache_costs_time_alone(files, hashed, content):
    module.hash_weights(files)
    (entry,) = (module.cache_folder() / "hashes").iterdir()
    entry.write_bytes(content)
    assert module.hash_weights(files) == hash_files(files)
    assert entry.read_text() == hash_files(files), "and it is repaired"


@pytest.mark.parametrize("place", ["a file", "below a file", "a folder where the entry is to be", "off"])
def test_a_cache_that_cannot_be_written_costs_time_alone(files, hashed, monkeypatch, tmp_path, place):
    if place == "a folder where the entry is to be":
        module.hash_weights(files)
        (entry,) = (module.cache_folder() / "hashes").iterdir()
        entry.unlink()
        entry.mkdir()
        hashed.clear()
    else:
        (tmp_path / "file").write_text("")
        given = {"a file": str(tmp_path / "file"), "below a file": str(tmp_path / "file" / "below"), "off": ""}
        monkeypatch.setenv(module.VARIABLE, given[place])
    for _ in range(2):
        assert module.hash_weights(files) == hash_files(files)
    assert len(hashed) == 2


def test_several_writers_leave_one_whole_entry(files):
    found = []
    threads = [threading.Thread(target=lambda: found.append(module.hash_weights(files))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [hash_files(files)] * 8
    (entry,) = (module.cache_folder() / "hashes").iterdir()
    assert entry.read_text() == found[0]


def test_a_missing_file_is_the_error_of_hashing_it(files):
    files[0].unlink()
    with pytest.raises(UserError, match="cannot be read"):
        module.hash_weights(files)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DIFFLEAK_CACHE": "/some/where", "XDG_CACHE_HOME": "/x"}, "/some/where"),
        ({"DIFFLEAK_CACHE": "", "XDG_CACHE_HOME": "/x"}, None),
        ({"XDG_CACHE_HOME": "/x"}, "/x/diffleak"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/diffleak"),
        ({"HOME": "/home/me"}, "/home/me/.cache/diffleak"),
    ],
)
def test_the_cache_is_where_the_variables_say(monkeypatch, variables, expected):
    for name in ("DIFFLEAK_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = module.cache_folder()
    assert (None if found is None else str(found)) == expected
