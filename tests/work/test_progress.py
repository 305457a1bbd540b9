"""Progress in logs: nothing for short work, plain lines for long work, an honest rest after a resume."""

import pytest

from diffleak.work import progress as module


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
