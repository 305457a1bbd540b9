"""What a person sees before the first score: the plan before the model runs, and an estimate that does not make it run for long."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.commands import call

from diffleak.auditing import score as scoring
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.score import Pace
from diffleak.auditing.warnings import about_sides
from diffleak.config import build
from diffleak.diffusion.denoiser import NetworkDenoiser

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def given(model_folder, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("members", "nonmembers"):
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8))
    sides = {name: str(tmp_path / f"{name}.npy") for name in ("members", "nonmembers")}
    return {"model": str(model_folder()), **sides, "attacks": ("loss",), "timesteps": "100", "calibration": False, "device": "cpu"}


@pytest.fixture
def forwards(monkeypatch):
    """The number of images of every forward."""
    seen, forward = [], NetworkDenoiser.__call__

    def counted(self, x, t, cond=None):
        seen.append(len(x))
        return forward(self, x, t, cond)

    monkeypatch.setattr(NetworkDenoiser, "__call__", counted)
    return seen


def test_the_plan_is_said_before_the_model_runs(given, forwards):
    said = []
    prepared = prepare(build(AuditConfig, given), log=lambda line: said.append((line, len(forwards))))
    assert said == [(prepared.describe(), 0)]
    assert forwards and prepared.said and prepared.pace.query > 0


def test_the_command_says_the_plan_once_before_the_model_is_tried_and_then_the_time(given, capsys, monkeypatch, tmp_path):
    at = []
    monkeypatch.setattr(scoring, "probe", lambda job: at.append(capsys.readouterr().err) or Pace())
    settings = ["--members", given["members"], "--nonmembers", given["nonmembers"], "--attacks", "loss", "--timesteps", "100"]
    code, _, err = call(capsys, "audit", given["model"], *settings, "--no-calibration", "--device", "cpu", "-o", tmp_path / "run")
    assert code == 0 and at[0].count("plan: 12 members and 12 held-out images") == 1
    assert "plan: " not in err and err.startswith("time: about ")


@pytest.mark.parametrize("more", [[], ["--anonymous"], ["--allow-shift"], ["--dry-run"]], ids=["named", "anonymous", "allowed", "dry"])
def test_that_the_sides_differ_without_the_model_is_said_before_anything_is_scored(given, capsys, monkeypatch, tmp_path, more):
    np.save(given["nonmembers"], np.random.default_rng(1).integers(0, 20, (12, 8, 8, 1), dtype=np.uint8))
    score, at = scoring.score, []
    monkeypatch.setattr(scoring, "score", lambda *given: at.append(capsys.readouterr().err) or score(*given))
    sides = ["--members", given["members"], "--nonmembers", given["nonmembers"], "--attacks", "loss", "--timesteps", "100"]
    code, _, err = call(capsys, "audit", given["model"], *sides, "--no-calibration", "--device", "cpu", "-o", tmp_path / "run", *more)
    before = at[0] if at else err
    assert code == (4 if more in ([], ["--anonymous"]) else 0) and bool(at) == (more != ["--dry-run"])
    assert ("note: this audit will be invalid (exit 4), whatever the attacks find: Without the model, " in before) == (
        more != ["--allow-shift"]
    )


def test_a_command_that_cannot_accept_sides_that_differ_names_no_flag_for_it(given):
    class Without(AuditConfig):
        NO_FLAG = {"allow_shift"}

    np.save(given["nonmembers"], np.random.default_rng(1).integers(0, 20, (12, 8, 8, 1), dtype=np.uint8))
    said = [*about_sides(prepare(build(AuditConfig, given))), *about_sides(prepare(build(Without, given)))]
    assert ["--allow-shift" in line for line in said] == [True, False] and said[1].endswith("(`diffleak split`)")


@pytest.mark.parametrize("stream", ["out", "err"])
def test_a_dry_run_says_the_plan_once_before_the_model_is_tried(given, capsys, monkeypatch, stream):
    at = []
    monkeypatch.setattr(scoring, "probe", lambda job: at.append(getattr(capsys.readouterr(), stream)) or Pace())
    settings = ["--members", given["members"], "--nonmembers", given["nonmembers"], "--attacks", "loss", "--timesteps", "100"]
    more = ["--json"] if stream == "err" else []
    code, out, err = call(capsys, "audit", given["model"], *settings, "--no-calibration", "--device", "cpu", "--dry-run", *more)
    assert code == 0 and at[0].count("plan: 12 members and 12 held-out images") == 1
    assert "plan: " not in out + err
    assert json.loads(out)["n_members"] == 12 if more else out.startswith("time: about ")


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, True), (0.001, True), (0.9 * scoring.LONGEST_ROUND / 24, True), (1.0, False)])
def test_an_estimate_times_a_round_only_where_that_takes_seconds(given, forwards, seconds, runs):
    prepared = prepare(build(AuditConfig, {**given, "batch_size": 12, "threads": 1}))
    forwards.clear()
    said = replace(prepared, pace=Pace(query=seconds)).estimate()
    assert bool(forwards) == runs
    assert said == "about 24 s" or runs, "24 queries of a second each"


def test_the_pace_is_that_of_the_forwards_of_the_trial(given, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(scoring.time, "monotonic", lambda: now[0])
    forward = NetworkDenoiser.__call__

    def slow(self, x, t, cond=None):
        now[0] += 3.0 * len(x)
        return forward(self, x, t, cond)

    monkeypatch.setattr(NetworkDenoiser, "__call__", slow)
    pace = prepare(build(AuditConfig, given)).pace
    assert pace.query == pytest.approx(3.0 * torch.get_num_threads())
    assert pace.encoding == 0


def test_measurements_that_would_take_long_are_left_to_their_own_progress(given, monkeypatch):
    job = replace(prepare(build(AuditConfig, given)).job)
    monkeypatch.setattr(scoring, "_unmeasured", lambda *args: {0: ["influence", "latents"]})
    monkeypatch.setattr(type(job.target), "latent", True)
    monkeypatch.setattr(scoring, "_measuring_seconds", lambda *args: pytest.fail("this runs the codec for minutes"))
    share = scoring.Worker(0, 1, 1)
    assert scoring.estimate([job], None, share, Pace(query=1.0, encoding=10.0)) == "about 24 s (without the time for influence, latents)"
    alone = replace(job, attacks=())
    assert scoring.estimate([alone], None, share, Pace(query=1.0, encoding=10.0)) == "how long is not known yet"
