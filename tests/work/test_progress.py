"""Progress in logs: nothing for short work, plain lines for long work, an honest rest after a resume."""

import threading

import numpy as np
import pytest

from diffleak.work import progress as module

START = module._Watch.start  # which tests/conftest.py takes away


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_short_work_prints_nothing(capsys, clock):
    with module.progress("reading", 10, "images") as advance:
        for _ in range(10):
            clock[0] += 0.1
            advance(1)
    assert capsys.readouterr().err == ""


def test_long_work_prints_plain_lines_on_stderr_and_a_last_one(capsys, clock):
    with module.progress("scoring", 100, "queries") as advance:
        for _ in range(100):
            clock[0] += 1
            advance(1, "sima")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "scoring: 2/100 queries, 2 s, about 98 s left sima"
    assert lines[-1] == "scoring: 100/100 queries, 100 s sima"
    assert 6 <= len(lines) <= 10


def test_what_an_earlier_run_did_does_not_flatter_the_estimate(capsys, clock):
    with module.progress("scoring", 100, "queries", done=90) as advance:
        clock[0] += 5
        advance(5)
    assert "95/100 queries, 5 s, about 5 s left" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    with module.progress("scoring", 3, "queries") as advance:
        advance(3, "sima")
    assert "scoring" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "said"), [(None, "hello\n"), ("0", "hello\n"), ("1", "")])
def test_a_line_is_said_once_however_many_processes_there_are(monkeypatch, capsys, rank, said):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    module.say("hello")
    assert capsys.readouterr() == ("", said)


def test_a_line_that_falls_on_the_end_is_not_said_twice(capsys, clock):
    with module.progress("drawing", 3, "images") as advance:
        clock[0] += 5
        advance(3)
    assert capsys.readouterr().err == "drawing: 3/3 images, 5 s\n"


# no silence


@pytest.fixture
def watch(monkeypatch, clock):
    """The watch of the module, and what looks at the clock after so many seconds, as its thread does."""
    found = module._Watch()
    monkeypatch.setattr(module, "_watch", found)

    def after(seconds):
        for _ in range(round(seconds / module.LOOK_EVERY)):
            clock[0] += module.LOOK_EVERY
            found.look(clock[0])

    return after


def test_a_call_that_says_nothing_is_named_within_two_seconds_and_then_at_times(capsys, watch):
    with module.doing("loading sd15"):
        watch(1.2)
        assert capsys.readouterr().err == "", "short work says nothing"
        watch(0.6)
        assert capsys.readouterr().err == "loading sd15: 2 s so far\n"
        watch(14)
        assert capsys.readouterr().err == ""
        watch(2)
        assert capsys.readouterr().err == "loading sd15: 17 s so far\n"
    watch(60)
    assert capsys.readouterr() == ("", ""), "it is over"


def test_the_innermost_of_what_is_being_done_is_named(capsys, watch):
    with module.doing("diffleak audit"):
        watch(1)
        with module.doing("hashing"):
            watch(0.8)
        assert capsys.readouterr().err == "hashing: 1 s so far\n", "nobody was left for two seconds without a line"
        with module.doing("scanning"):
            watch(1.8)
            assert capsys.readouterr().err == "scanning: 2 s so far\n"
        watch(20)
        assert capsys.readouterr().err.startswith("diffleak audit: ")


def test_counted_work_whose_first_step_is_long_shows_that_it_has_begun(capsys, watch):
    with module.progress("scoring", 100, "queries") as advance:
        watch(1.8)
        assert capsys.readouterr().err == "scoring: 0/100 queries, 2 s\n"
        advance(1)
        watch(16)
        assert "scoring: 1/100 queries, 17 s, about" in capsys.readouterr().err


def test_what_is_said_meanwhile_counts_as_a_sign_of_life(capsys, watch, clock):
    with module.doing("loading"):
        watch(1)
        module.say("note: read with pickles")
        watch(1.2)
        assert capsys.readouterr().err == "note: read with pickles\n"
        watch(0.6)
        assert capsys.readouterr().err == "loading: 3 s so far\n"


def test_a_line_that_the_thread_says_just_before_is_not_said_twice(capsys, watch, clock, monkeypatch):
    class TakenByTheThread:
        def __enter__(self):
            module._watch.tasks[-1].show(clock[0])

        def __exit__(self, *error):
            pass

    with module.progress("hashing", 100, "MiB") as advance:
        clock[0] += 2
        with monkeypatch.context() as patched:
            patched.setattr(module._watch, "lock", TakenByTheThread())
            advance(1)
    assert capsys.readouterr().err == "hashing: 1/100 MiB, 2 s, about 198 s left\n"


def test_a_bar_is_left_alone(monkeypatch, capsys, watch):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    with module.doing("audit"), module.progress("scoring", 3, "queries"):
        watch(60)
    assert "so far" not in capsys.readouterr().err


def test_a_thread_looks_at_the_clock_while_something_is_done_and_ends_with_it(monkeypatch, capsys):
    monkeypatch.setattr(module, "SILENT", 0.0)
    monkeypatch.setattr(module, "LOOK_EVERY", 0.001)
    watch, shown = module._Watch(), threading.Event()
    monkeypatch.setattr(module._Watch, "start", START)
    with watch.during(lambda now: shown.set()):
        thread = next(each for each in threading.enumerate() if each.name == "diffleak-clock")
        assert shown.wait(30)
    thread.join(30)
    assert not thread.is_alive()


def test_a_slow_hash_a_slow_scan_and_a_slow_load_each_say_so_within_two_seconds(monkeypatch, capsys, watch, tmp_path):
    """Each is stopped at its first step, when the clock has moved on by two seconds."""
    from diffleak import hub
    from diffleak.data.cohort import Cohort, cohort
    from diffleak.data.scan import scan
    from diffleak.hub import loading
    from diffleak.work import files

    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(bytes(2 * files.BLOCK))
    monkeypatch.setattr(files, "SHOWN", 1)
    at_once = files.opened

    def slowly(path, limit):
        watch(1.8)
        return at_once(path, limit)

    monkeypatch.setattr(files, "opened", slowly)
    files.hash_files([weights])
    assert capsys.readouterr().err.startswith("hashing: 0/2 MiB, 2 s")

    class Stop(Exception):
        pass

    def stop(*args, **given):
        watch(1.8)
        raise Stop

    monkeypatch.setattr(loading, "located", stop)
    with pytest.raises(Stop):
        hub.load("sd15", device="cpu")
    assert capsys.readouterr().err == "loading sd15: 2 s so far\n"
    images = cohort(members=np.zeros((12, 8, 8, 3), dtype=np.uint8), nonmembers=np.ones((12, 8, 8, 3), dtype=np.uint8))
    monkeypatch.setattr(Cohort, "decoded", stop)
    with pytest.raises(Stop):
        scan(images, None, False, False)
    assert capsys.readouterr().err.startswith("checking images: 1/24 images, 2 s")
