"""Calibrate first: the test part is scored at what the calibrate part chose, and everything said of it is as with all scores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.commands import call

import diffleak
from diffleak.attacks import ATTACKS
from diffleak.attacks.spec import parse
from diffleak.auditing import phases
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import Audit
from diffleak.config import build
from diffleak.data.draw import calibrate_part
from diffleak.data.pixels import to_model
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.noise import Noise
from diffleak.errors import UserError
from diffleak.records.chosen import Chosen
from diffleak.records.scores import chunk_files
from diffleak.stats.evaluation import NEEDS_ALL

SIDE = 200
MEMBERS, HELD_OUT = np.random.default_rng(0).integers(0, 256, (2, SIDE, 4, 4, 1), dtype=np.uint8)
SCHEDULE = linear_schedule()
ATTACKS_OF_RUN = "loss,secmi,pia,sima,noise_aggregation(metric=density)"
GIVEN = {"timesteps": "50:300:50", "threads": 1, "seed": 1}


def blurred() -> diffleak.Target:
    """A model that knows its members a little: they are drawn to it, and complexity tells more than they do."""
    known = Memoriser(torch.from_numpy(to_model(MEMBERS[:60])), SCHEDULE)
    return diffleak.Target(known, fingerprint="a memoriser of some")


def audit(sweep: str = "calibrate", folder: Path | None = None, **settings) -> Audit:
    return diffleak.audit(
        blurred(),
        members=MEMBERS,
        nonmembers=HELD_OUT,
        output=folder,
        sweep=sweep,
        **{"attacks": ATTACKS_OF_RUN, **GIVEN, **settings},
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    return audit(folder=folder), folder


@pytest.fixture(scope="module")
def everything():
    return audit("all")


def test_the_choices_and_the_test_part_are_those_of_an_audit_of_everything(first, everything) -> None:
    made, _ = first
    compared = [result for result in made.results if result.attack != "combined"]
    assert len(compared) == 2 * len(ATTACKS_OF_RUN.split(",")) and any(result.complexity for result in compared)
    for one in compared:
        other = everything[one.attack]
        assert one.model_copy(update={"oracle": other.oracle}) == other
        assert one.oracle.auc is None and one.oracle.reason == NEEDS_ALL and other.oracle.auc is not None
        assert made.samples.scores[one.attack].tolist() == everything.samples.scores[one.attack].tolist()
    assert made.record.blind == everything.record.blind and made.record.split == everything.record.split


def test_the_test_part_is_scored_at_the_chosen_settings_alone_and_to_the_same_bits(first, everything) -> None:
    made, folder = first
    chosen = Chosen.model_validate_json((folder / "chosen.json").read_text())
    costs = made.record.costs
    assert costs.sweep == "calibrate" and costs.test_timesteps == chosen.timesteps and chosen.members == chosen.nonmembers == 40
    assert costs.queries < 0.6 * everything.record.costs.queries
    for one, other in zip(made.scores, everything.scores, strict=True):
        kept = [other.timesteps.index(t) for t in chosen.timesteps[one.attack]]
        assert 1 <= len(kept) < len(other.timesteps)
        assert np.array_equal(one.statistic[:, kept], other.statistic[:, kept])
        assert np.array_equal(one.statistic[~made.samples.test], other.statistic[~made.samples.test])
        lost = np.delete(one.statistic[made.samples.test], kept, axis=1)
        assert np.isnan(lost).all()
        used = {result.timestep for result in made.results if result.base == one.attack}
        assert used <= set(chosen.timesteps[one.attack])


@pytest.mark.parametrize("name", [name for name, kind in ATTACKS.items() if kind.rule is None])
def test_an_attack_on_some_timesteps_gives_the_statistics_of_the_whole_sweep(name: str) -> None:
    swept, some = (100, 150, 200, 250, 300), (150, 250)
    x0 = torch.from_numpy(to_model(MEMBERS[:3]))
    asked = diffleak.Subject(Gaussian(0.1, 0.5, SCHEDULE), x0, Noise(0, ("a", "b", "c"), tuple(x0.shape[1:])))
    whole, part = (parse(name, ATTACKS, timesteps).statistics(asked) for timesteps in (swept, some))
    assert torch.equal(part, whole[[swept.index(t) for t in some]])


def test_combined_takes_the_chosen_timestep_and_its_neighbours(first) -> None:
    made, folder = first
    result = made["combined"]
    chosen = json.loads((folder / "chosen.json").read_text())["timesteps"]
    for label in result.parameters["attacks"] if result.parameters["clearly_better"] else ():
        swept = tuple(range(50, 301, 50)) if label != "noise_aggregation" else (50, 100, 150, 200, 250, 300)
        at = swept.index(made[label].timestep)
        assert set(swept[max(at - 1, 0) : at + 2]) <= set(chosen[label])


@pytest.mark.parametrize("count", [2, 3])
def test_shards_that_are_run_until_all_is_done_give_the_same_bytes(first, tmp_path, capsys, count) -> None:
    made, folder = first
    said = []
    for turn in range(2):
        for shard in range(1, count + 1):
            try:
                again = audit(folder=tmp_path, shard=f"{shard}/{count}")
            except UserError as error:
                said.append(str(error))
    assert len(said) == 2 * count - 2, "all but the last of each round wait for others; the last but one of the second has all"
    assert "calibrate chunks of other shards are not finished: run this same command again" in capsys.readouterr().err
    same_files(folder, tmp_path)
    assert again.results == made.results


def same_files(one: Path, other: Path) -> None:
    assert [file.name for file in chunk_files(one)] == [file.name for file in chunk_files(other)]
    for left, right in zip(chunk_files(one), chunk_files(other), strict=True):
        assert left.read_bytes() == right.read_bytes()
    for name in ("samples.csv", "chosen.json", "plan.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
