"""`combined` and `gradient` in an audit: what they are made of, what they cost, when they are left out, and the page."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.commands import call, refused

import diffleak
from diffleak.comparison.compare import _made_alike
from diffleak.comparison.runs import Run
from diffleak.data.pixels import to_model
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.errors import UserError
from diffleak.records.run_folder import read_samples
from diffleak.report import to_html
from diffleak.report.pages.audit import page
from diffleak.stats.evaluation import combined
from diffleak.stats.rules import settled

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")

SIDE = 200
SCHEDULE = linear_schedule()
GIVEN = {"timesteps": "100:300:100", "seed": 2, "threads": 1}


def images(side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    members, held_out = np.random.default_rng(4).integers(0, 256, (2, side, 4, 4, 1), dtype=np.uint8)
    return members, held_out


def memoriser(images: np.ndarray) -> Memoriser:
    return Memoriser(torch.from_numpy(to_model(images)).double(), SCHEDULE)


def audit(model, side: int = SIDE, **settings):
    members, held_out = images(side)
    return diffleak.audit(model, members=members, nonmembers=held_out, **{**GIVEN, **settings})


class Planted(diffleak.Attack):
    """Sees who is a member of `audited` through noise of its own: statistic exp(noise - 1 for members)."""

    timesteps: tuple[int, ...] = (100, 200)
    queries = 1

    def statistics(self, subject, mask=None):
        subject.eps(subject.x0, 100)
        leak = torch.tensor([float(bytes(np.round(x.numpy() * 127.5 + 127.5).astype(np.uint8)) in MEMBERS) for x in subject.x0])
        noise = subject.noise(self.stream).double().flatten(start_dim=1).mean(dim=1) * 4
        return torch.exp(noise - leak.double()).expand(len(self.timesteps), -1).clone()


class One(Planted):
    stream = 0


class Two(Planted):
    stream = 1


WIDE = 400
MEMBERS = {image.tobytes() for image in images(WIDE)[0]}


@pytest.fixture(scope="module")
def audited():
    weak = {"calibrate_fraction": 0.5, "reference": Gaussian(0.0, 1 / 3, SCHEDULE)}
    return audit(Gaussian(0.0, 1 / 3, SCHEDULE), WIDE, attacks=[One(), Two(), "sima"], **weak)


def test_it_is_made_of_every_attack_at_every_timestep_and_asks_nothing_more(audited):
    result, parts = audited["combined"], [audited[name] for name in ("One", "Two", "sima")]
    assert result.parameters["attacks"] == ["One", "Two", "sima"] and result.parameters["complexity"]
    assert result.queries == sum(part.queries for part in parts) and result.rule == "logistic" and result.timestep is None
    best = max(parts, key=lambda part: max(point.auc for point in part.per_timestep))
    assert result.parameters["compared_with"] == best.attack and result.parameters["clearly_better"]
    assert result.gain.auc.low > 0 and result.gain.auc.value == pytest.approx(result.auc.value - best.auc.value)
    assert audited.record.headline == "combined"
    assert not any(name.startswith("combined[") for name in (found.attack for found in audited.results)), "a reference is not in it"


def test_its_scores_are_in_samples_csv_and_those_of_the_regression(audited, tmp_path: Path):
    folder = audited.save(tmp_path / "run")
    samples, by_name = read_samples(folder), {scores.attack: scores for scores in audited.scores}
    at = audited.record.costs.test_timesteps["sima"]  # where the test part is scored
    kept = [by_name["sima"].timesteps.index(t) for t in at]
    sima = replace(by_name["sima"], timesteps=at, statistic=by_name["sima"].statistic[:, kept])
    parts = combined([by_name["One"], by_name["Two"], sima], None)
    columns = settled(parts, samples.member, ~samples.test)
    found = samples.scores["combined"]
    assert np.corrcoef(found[samples.test], columns.membership[samples.test].mean(axis=1))[0, 1] > 0.8
    html = to_html(page(audited.record, samples))
    assert "combined: a logistic regression on the numbers of 3 attacks and the complexity of the images" in html
    assert "Its difference to sima" not in html and "the best of them by the calibrate part" in html


def test_where_it_is_not_clearly_better_it_is_the_best_attack_alone_and_says_so():
    found = audit(Gaussian(0.0, 1 / 3, SCHEDULE), attacks=["sima", "pia"])
    result = found["combined"]
    alone = found[result.parameters["compared_with"]]
    assert not result.parameters["clearly_better"] and (result.auc, result.timestep) == (alone.auc, alone.timestep)
    assert result.gain.auc.value == 0 and found.record.headline == alone.attack
    np.testing.assert_array_equal(found.samples.scores["combined"], found.samples.scores[alone.attack])
    assert "it was not clearly better than" in to_html(page(found.record, found.samples))


ALONE = {"attacks": ["sima"]}
UNCALIBRATED = {"timesteps": "100", "calibration": False}


@pytest.mark.parametrize(("changes", "side"), [(ALONE, SIDE), ({}, 60), (UNCALIBRATED, SIDE)])
def test_it_is_left_out_for_one_attack_for_small_sides_and_without_a_calibrate_part(changes, side):
    found = audit(Gaussian(0.0, 1 / 3, SCHEDULE), side, **{"attacks": ["sima", "pia"], **changes})
    assert not any(result.attack.startswith("combined") for result in found.results)


def test_a_calibrate_part_that_is_too_small_leaves_it_out_and_refuses_a_named_regression_before_anything_is_asked():
    model, few = Gaussian(0.0, 1 / 3, SCHEDULE), {"calibrate_fraction": 0.005}
    found = audit(model, attacks=["sima", "pia"], **few)
    assert not any(result.attack == "combined" for result in found.results)
    with pytest.raises(
        UserError,
        match=r"trains a classifier on the calibrate part, which needs two images of each side; it has 1: .*, or leave out gradient",
    ):
        audit(model, attacks=["sima", "gradient"], **few)


def test_runs_whose_regressions_are_of_other_attacks_do_not_share_it(audited):
    results = tuple(
        each.model_copy(update={"parameters": {**each.parameters, "attacks": ["sima"]}}) if each.attack == "combined" else each
        for each in audited.results
    )
    one, other = (
        Run("run", record, audited.samples) for record in (audited.record, audited.record.model_copy(update={"results": results}))
    )
    assert _made_alike(one, one, "combined") and not _made_alike(one, other, "combined") and _made_alike(one, other, "sima")


def test_a_regression_of_its_own_stays_beside_it_and_gradients_tell_members_of_a_memoriser():
    found = audit(memoriser(images()[0]), attacks=["sima", "pia", "gradient"])
    assert found["combined"].parameters["attacks"] == ["sima", "pia"] and found["combined"].access == "grey-box"
    gradient = found["gradient"]
    assert gradient.auc.value > 0.99 and gradient.access == "white-box" and gradient.queries == 10
    blank = audit(Gaussian(0.0, 1 / 3, SCHEDULE), attacks=["sima", "gradient"])["gradient"]
    assert blank.auc.low < 0.5 < blank.auc.high


def test_gradient_runs_on_a_folder_resumes_and_is_refused_without_weights_or_a_calibrate_part(model_folder, digits, tmp_path, capsys):
    for name, part in (("members", digits[:40]), ("nonmembers", digits[40:80])):
        np.save(tmp_path / f"{name}.npy", part)
    command = ("audit", model_folder("model"), "--members", tmp_path / "members.npy", "--nonmembers", tmp_path / "nonmembers.npy")
    command = (*command, "--attacks", "gradient(timesteps=100+500)", "--device", "cpu", "--threads", "1", "--chunk-size", "32", "-o")
    code, _, _ = call(capsys, *command, tmp_path / "run")
    assert code == 0
    scores = sorted((tmp_path / "run" / "scores").iterdir())
    whole = [file.read_bytes() for file in scores]
    scores[1].unlink()
    (tmp_path / "run" / "audit.json").unlink()
    assert call(capsys, *command, tmp_path / "run")[0] == 0
    assert [file.read_bytes() for file in scores] == whole
    said = refused(capsys, *command[:-1], "--no-calibration", "--timesteps", "100", "-o", tmp_path / "other")
    assert "gradient is fitted on the calibrate part" in said


def test_gradients_that_do_not_fit_into_memory_are_refused_with_what_to_set(model_folder, digits, tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "a.npy", digits[:40])
    np.save(tmp_path / "b.npy", digits[40:80])
    monkeypatch.setattr("diffleak.auditing.plan.free_memory", lambda device: 1000)
    sides = ("--members", tmp_path / "a.npy", "--nonmembers", tmp_path / "b.npy", "--device", "cpu", "--threads", "2")
    said = refused(capsys, "audit", model_folder("model"), *sides, "--attacks", "gradient", "-o", tmp_path / "run")
    assert "GiB beside the model (2 at once), and cpu has 0.0 GiB free; set --threads 1, --dtype bfloat16, or audit a LoRA" in said
    small = ("--threads", "1", "--dtype", "bfloat16", "--attacks", "gradient", "-o", tmp_path / "run")
    assert "has 0.0 GiB free; audit a LoRA" in refused(capsys, "audit", model_folder("model"), *sides, *small)
    assert call(capsys, "audit", model_folder("model"), *sides, "--attacks", "sima", "--dry-run")[0] == 0
