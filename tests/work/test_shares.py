"""What a worker says while it waits for the chunks of others."""

import pytest

from diffleak.work import shares
from diffleak.work.shares import Share, wait_for_others


@pytest.mark.parametrize(
    ("left", "said"), [({1}, "waits for 1 chunk of drawings of worker 2"), ({1, 4}, "waits for 2 chunks of drawings of worker 2, 3")]
)
def test_a_worker_says_how_many_chunks_it_waits_for(monkeypatch, left, said):
    monkeypatch.setattr(shares, "POLL", 0.0)
    answers, lines = iter([left, set()]), []
    chunk, chunks = "chunk of drawings", "chunks of drawings"
    wait_for_others(lambda: next(answers), [0, 1, 4], Share(0, 3), (chunk, chunks), lines.append)
    assert len(lines) == 1 and lines[0].startswith(f"worker 1 of 3 {said}; ")
