"""The script that measures an accelerator runs to its end on a CPU, so that it is ready when there is one."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffleak.diffusion.analytic import Memoriser, linear_schedule

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("accelerator", BENCHMARKS / "accelerator.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "accelerator", module)
    spec.loader.exec_module(module)
    return module


def test_every_part_is_measured_in_every_precision(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "LOOP", 2)
    monkeypatch.setattr(module, "ATTACKS", ("loss", "secmi"))
    ended = module.main([str(tmp_path), "--tiny", "--device", "cpu"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert not [line for line in lines if "error" in line]
    parts = ["audit", "bare", "scores", "geometry", "quality"]
    assert [line["part"] for line in lines] == ["machine", *parts, *parts, "training"]
    full, half = (line for line in lines if line["part"] == "scores")
    assert (full["dtype"], full["largest"], full["predictions"], full["beyond"]) == ("float32", 0, 0, []), "the CPU's own scores"
    assert half["dtype"] == "bfloat16" and 0 < half["loss"] < half["tolerance"] and 2**-10 < half["predictions"] < 2**-4
    assert half["beyond"] == ["secmi"], "its predictions differ by a few percent of their size"
    assert ended == 0


def subject(module: Any, error: float) -> Any:
    """A batch asked of a memoriser whose predictions are off by a share of their size, in a direction of their own."""
    from diffleak.attacks.subject import Subject
    from diffleak.diffusion.denoiser import Denoiser
    from diffleak.diffusion.noise import Noise

    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact, away = Memoriser(images, linear_schedule()), torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))

    def moved(x: torch.Tensor, t: int) -> torch.Tensor:
        eps = exact(x, t)
        size = eps.flatten(1).norm(dim=1) / away.norm()
        return eps + error * size[:, None, None, None] * away

    x0 = images[:2] + 0.3
    return Subject(Denoiser.from_function(moved, exact.schedule.alphas_cumprod), x0, Noise(0, ("a", "b"), (1, 4, 4)))


def test_a_statistic_weighs_rounding_as_its_predictions_do(module, monkeypatch):
    """The condition of each attack against differences: of predictions that are a little off, to first order."""
    monkeypatch.setattr(module, "ATTACKS", ("loss", "sima"))
    small = 1e-3
    found, moved = (module.statistics(subject(module, error)) for error in (0.0, small))
    for name, weights in module.conditions(subject(module, 0.0)).items():
        assert (np.abs(moved[name] / found[name] - 1) <= 1.01 * small * weights + 1e-5).all() and (weights > 0).all()
    assert module.conditions(subject(module, 0.0))["sima"] == pytest.approx(4 * np.ones((2, 2)), rel=1.0), "p = 4, |ds/de| |e| >= p s"


@pytest.mark.parametrize(("error", "within"), [(0.0, True), (0.003, True), (0.1, False)])
def test_predictions_that_are_off_by_more_than_rounding_are_outside(module, error, within):
    own = subject(module, 0.0)
    expected = module.Expected(module.statistics(own), module.conditions(own), module.predictions(own), (9, 100))
    found = module.judged(subject(module, error), expected, ("bfloat16", True))
    assert found["within"] == within and found["predictions"] == pytest.approx(error, abs=1e-4)
    assert found["predictions_tolerance"] == 3 * 2**-8
