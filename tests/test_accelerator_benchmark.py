"""The script that measures an accelerator runs to its end on a CPU, so that it is ready when there is one."""

import importlib.util
import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_every_part_is_measured_in_every_precision(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("accelerator", BENCHMARKS / "accelerator.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LOOP", 2)
    monkeypatch.setattr(module, "ATTACKS", ("loss", "pia"))
    ended = module.main([str(tmp_path), "--tiny", "--device", "cpu"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert not [line for line in lines if "error" in line]
    parts = ["audit", "bare", "scores", "geometry", "quality"]
    assert [line["part"] for line in lines] == ["machine", *parts, *parts, "training"]
    scores = [line for line in lines if line["part"] == "scores"]
    assert [line["dtype"] for line in scores] == ["float32", "bfloat16"]
    assert scores[0]["largest"] == 0.0 and scores[1]["largest"] > 0, "the CPU's own scores, and the same in another precision"
    assert ended == (1 if any(line["largest"] > line["tolerance"] for line in scores) else 0)
