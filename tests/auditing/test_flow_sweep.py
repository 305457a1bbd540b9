"""The default sweep of models of flow matching: which timesteps, for which attacks, and where it is said."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from diffleak.attacks.base import SWEEP, ResidualAttack
from diffleak.attacks.loss import Loss
from diffleak.attacks.sima import SimA
from diffleak.attacks.spec import FLOW_SWEEP, default_sweep, spec_of
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import Prepared, choose_attacks, prepare
from diffleak.config import build
from diffleak.data.cohort import Cohort, two_sources
from diffleak.data.sources import ImageSource
from diffleak.diffusion.analytic import Gaussian, linear_schedule
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError

pytestmark = pytest.mark.usefixtures("undrawn")


def flow(total: int = 1000) -> Schedule:
    return Schedule.flow(np.arange(1, total + 1) / total, total)


@dataclass(frozen=True, kw_only=True)
class Own(ResidualAttack):
    timesteps: tuple[int, ...] = (30, 60)

    def residuals(self, subject):
        yield from (subject.eps(subject.x0, t) for t in self.timesteps)


def chosen(attacks: str, schedule: Schedule | None, made=(), **given) -> dict[str, tuple[int, ...]]:
    config = build(AuditConfig, {"members": "a", "nonmembers": "b", "attacks": attacks, **given})
    return {a.label: a.timesteps for a in choose_attacks(config, {spec_of(attack): attack for attack in made}, schedule)}


def test_the_default_sweep_covers_the_path_of_flow_matching_in_twentieths_whatever_the_length_of_the_schedule():
    assert default_sweep(flow()) == FLOW_SWEEP == tuple(range(50, 951, 50))
    assert default_sweep(flow(100)) == tuple(range(5, 96, 5))
    assert default_sweep() == default_sweep(linear_schedule()) == SWEEP
    for total in (21, 30, 50, 77, 1024):
        sweep, schedule = default_sweep(flow(total)), flow(total)
        assert len(sweep) == 19 and all(t < u for t, u in pairwise(sweep))
        schedule.check(sweep)
        shares = np.array([schedule.s(t) for t in sweep])
        assert np.abs(shares - np.arange(1, 20) / 20).max() <= 1 / total + 1e-12


@pytest.mark.parametrize("total", [1, 2, 20])
def test_a_schedule_that_is_too_short_for_the_default_sweep_is_refused_unless_nothing_takes_it(total):
    with pytest.raises(
        UserError, match=f"^a model of flow matching is swept .* more than 20 timesteps; its schedule has {total}: give --t"
    ):
        chosen("sima", flow(total))
    assert chosen("sima,loss", flow(total), timesteps="0") == {"sima": (0,), "loss": (0,)}
    assert chosen("pfami(timesteps=0)", flow(total)) == {"pfami(timesteps=0)": (0,)}


def test_only_timesteps_that_nobody_chose_are_those_of_flow_matching():
    assert chosen("sima,loss,noise_aggregation", flow()) == dict.fromkeys(("sima", "loss", "noise_aggregation"), FLOW_SWEEP)
    assert chosen("sima(timesteps=10:300:10),loss", flow()) == {"sima": SWEEP, "loss": FLOW_SWEEP}
    assert chosen("sima(p=2, timesteps = 70)", flow()) == {"sima(p=2.0)": (70,)}
    assert chosen("sima,loss", flow(), timesteps="10:300:10") == {"sima": SWEEP, "loss": SWEEP}
    assert chosen("clid,pfami", flow()) == chosen("clid,pfami", linear_schedule()), "attacks with a rule have timesteps of their own"
    made = (Own(), Loss(), SimA(timesteps=(5,)))
    found = chosen(",".join(spec_of(attack) for attack in made), flow(), made)
    assert found == {"Own": (30, 60), "loss": FLOW_SWEEP, "sima": (5,)}
    assert chosen("sima", linear_schedule()) == chosen("sima", None) == {"sima": SWEEP}


def test_without_calibration_a_flow_model_is_attacked_at_the_published_timestep():
    assert chosen("loss,secmi,pia", flow(), calibration=False) == {"loss": (200,), "secmi": (90,), "pia": (200,)}
    with pytest.raises(UserError, match="sima has no published single timestep; with --no-calibration give --timesteps T"):
        chosen("sima", flow(), calibration=False)
    with pytest.raises(UserError, match="chooses no timestep, so --timesteps must be one number"):
        chosen("loss(timesteps=10:300:10)", flow(), calibration=False)


def prepared(schedule: Schedule, attacks: str = "sima,loss", **settings) -> Prepared:
    config = build(AuditConfig, {"members": "in", "nonmembers": "out", "attacks": attacks, **settings})
    return prepare(config, Target(Gaussian(0.0, 0.3, schedule)), images())


def images() -> Cohort:
    drawn = np.random.default_rng(0).integers(0, 256, (2, 12, 4, 4, 1), dtype=np.uint8)
    sides = [ImageSource(name, tuple(f"{name}{i}" for i in range(12)), part.__getitem__) for name, part in zip("ab", drawn, strict=True)]
    return two_sources(*sides)


def test_the_plan_records_the_sweep_and_says_how_it_was_scaled():
    for total, grid, said in ((1000, FLOW_SWEEP, "from 50 to 950 of 1,000"), (100, tuple(range(5, 96, 5)), "from 5 to 95 of 100")):
        ready = prepared(flow(total))
        assert [attack["timesteps"] for attack in ready.plan.attacks] == [list(grid)] * 2
        assert f", 19 timesteps {said} (flow matching), " in ready.describe()
        assert ready.queries_per_image == 2 * 19
    assert "flow matching" not in prepared(linear_schedule()).describe()


@pytest.mark.parametrize("attack", ["secmi", "noise_aggregation"])
def test_attacks_that_walk_use_what_they_can_of_a_scaled_sweep(attack):
    (found,) = prepared(flow(50), attack).attacks
    expected = {"secmi": (10, 20, 30), "noise_aggregation": (40, 42, 45, 47)}[attack]
    assert found.timesteps == expected


def test_an_audit_of_flow_matching_runs_on_the_default_sweep(tmp_path: Path):
    from diffleak.auditing.run import run

    audit = run(prepared(flow(100), "sima"), tmp_path, lambda line: None)
    assert audit is not None and audit.scores[0].timesteps == tuple(range(5, 96, 5))
    assert torch.isfinite(torch.from_numpy(audit.scores[0].statistic)).all()
