"""--sweep coarse: the calibrate part at every third timestep and beside the best ones, and all else as in an audit of everything."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.commands import call
from fixtures.interruptions import interrupted

import diffleak
from diffleak.attacks import ATTACKS
from diffleak.attacks.noise_aggregation import NoiseAggregation
from diffleak.attacks.spec import parse
from diffleak.auditing import phases
from diffleak.auditing import score as scoring
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.auditing.plan import Prepared, _every_third, _why_not_coarse, prepare
from diffleak.auditing.run import Audit
from diffleak.auditing.score import Worker
from diffleak.config import build
from diffleak.data.pixels import to_model
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.errors import UserError
from diffleak.records.plan import Plan
from diffleak.records.scores import chunk_files
from diffleak.report.sections.audit.made import _rows
from diffleak.stats.choosing import column_aucs
from diffleak.work import shares
from diffleak.work.folder import Folder

pytestmark = pytest.mark.usefixtures("undrawn")

SIDE = 200
MEMBERS, HELD_OUT = np.random.default_rng(0).integers(0, 256, (2, SIDE, 4, 4, 1), dtype=np.uint8)
GIVEN = {"attacks": "loss,secmi,noise_aggregation(metric=density)", "timesteps": "20:400:20", "threads": 1, "seed": 1, "chunk_size": 32}
AT_FIRST = 3 * 3  # files of the calibrate part at every third timestep
BESIDE = 2 * 3  # of the two attacks that do not walk


def blurred() -> diffleak.Target:
    """A model that knows its members a little."""
    return diffleak.Target(Memoriser(torch.from_numpy(to_model(MEMBERS[:60])), linear_schedule()), fingerprint="a memoriser of some")


def audit(sweep: str, folder: Path | None = None, **settings) -> Audit:
    return diffleak.audit(blurred(), members=MEMBERS, nonmembers=HELD_OUT, output=folder, sweep=sweep, **{**GIVEN, **settings})


def every_third(timesteps: tuple[int, ...]) -> tuple[int, ...]:
    """The second, fifth, eighth and so on, and the last where it would be beside none of them."""
    return tuple(t for i, t in enumerate(timesteps) if i % 3 == 1 or (i == len(timesteps) - 1 and i % 3 == 0))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coarse")
    return audit("coarse", folder), folder


@pytest.fixture(scope="module")
def everything():
    return audit("all")


def test_scores_are_those_of_an_audit_of_everything_to_the_bit(coarse, everything) -> None:
    made, _ = coarse
    for one, whole in zip(made.scores, everything.scores, strict=True):
        at = [whole.timesteps.index(t) for t in one.timesteps]
        scored = np.isfinite(one.statistic)
        assert np.array_equal(one.statistic[scored], whole.statistic[:, at][scored])
        assert scored[~made.samples.test].all(), "the calibrate part has them all"
        assert scored[made.samples.test].all(axis=0).tolist() == scored[made.samples.test].any(axis=0).tolist()


def test_what_is_chosen_is_better_on_the_calibrate_part_than_every_third_timestep_and_its_neighbours(coarse, everything) -> None:
    made, calibrate = coarse[0], ~coarse[0].samples.test
    member = made.samples.member
    for whole in everything.scores:
        direction = 1 if whole.direction == "large" else -1
        aucs = dict(
            zip(whole.timesteps, column_aucs(*(direction * whole.statistic[calibrate & side] for side in (member, ~member))), strict=True)
        )
        chosen = made[whole.attack].timestep
        place = whole.timesteps.index(chosen)
        assert aucs[chosen] == max(aucs[t] for t in {*every_third(whole.timesteps), *whole.timesteps[max(place - 1, 0) : place + 2]})


def test_the_calibrate_part_is_scored_at_every_third_timestep_and_beside_the_best_where_that_saves(coarse, everything) -> None:
    made, _ = coarse
    costs = made.record.costs
    assert costs.sweep == "coarse" and [*costs.between_timesteps] == ["loss", "noise_aggregation(metric=density)"]
    for scores, whole in zip(made.scores, everything.scores, strict=True):
        every = whole.timesteps
        first, between = every_third(every), costs.between_timesteps.get(scores.attack, every)
        assert scores.timesteps == tuple(sorted({*first, *between})), "secmi walks through all of them anyway"
        for result in made.results:
            if result.base == scores.attack:
                place = every.index(result.timestep)
                assert any({*every[max(i - 1, 0) : i + 2]} <= {*scores.timesteps} for i in (place - 1, place, place + 1)), "or beside it"
        assert [point.timestep for point in made[scores.attack].per_timestep] == list(scores.timesteps), "the report's curve"


def test_it_makes_the_forwards_that_it_says_and_fewer_than_a_whole_calibrate_part(coarse) -> None:
    made, _ = coarse
    calibrate, costs = int((~made.samples.test).sum()), made.record.costs
    declared = 0
    for scores in made.scores:
        attack = parse(scores.attack, ATTACKS, None)
        between, test = costs.between_timesteps.get(scores.attack), costs.test_timesteps[scores.attack]
        parts = [tuple(t for t in scores.timesteps if t not in (between or ())), *([between] if between else [])]
        declared += sum(calibrate * replace(attack, timesteps=part).queries for part in parts)
        declared += (len(made.samples.ids) - calibrate) * replace(attack, timesteps=test).queries
    assert costs.queries + costs.queries_saved == declared
    whole = audit("calibrate").record.costs
    assert costs.queries < 0.85 * whole.queries and costs.test_timesteps == whole.test_timesteps


def test_what_an_attack_settles_for_each_timestep_stays_beside_it(coarse, everything) -> None:
    label = "noise_aggregation(metric=density)"
    made, whole = coarse[0][label].parameters["bandwidth"], everything[label].parameters["bandwidth"]
    some, every = (next(scores.timesteps for scores in each.scores if scores.attack == label) for each in (coarse[0], everything))
    assert list(made) == [whole[every.index(t)] for t in some] and len(set(made)) == len(made) < len(whole)


def prepared(limit: int | None = None, **settings) -> Prepared:
    """The audit of `coarse` with these settings, checked."""
    given = {**GIVEN, "members": "in memory", "nonmembers": "in memory", "sweep": "coarse", **settings}
    cohort = diffleak.cohort(members=MEMBERS, nonmembers=HELD_OUT, seed=GIVEN["seed"], limit=limit)
    return prepare(build(AuditConfig, {"model": "denoiser", **given, **cohort.given}), blurred(), cohort)


@pytest.fixture(scope="module")
def ready() -> Prepared:
    return prepared()


def scored(ready: Prepared, folder: Path, rank: int = 0, count: int = 1, shard: bool = False):
    config = ready.config.model_copy(update={"shard": f"{rank + 1}/{count}"}) if shard else ready.config
    return phases.in_phases(replace(ready, config=config, worker=Worker(rank, count, 1)), Folder(folder), lambda line: None)


def same(coarse, folder: Path, found: scoring.Collected | None) -> None:
    """The folder of `coarse` and another one hold the same bytes, and the same was collected."""
    made, whole = coarse
    assert [file.name for file in chunk_files(whole)] == [file.name for file in chunk_files(folder)]
    for left, right in zip(chunk_files(whole), chunk_files(folder), strict=True):
        assert left.read_bytes() == right.read_bytes()
    assert (whole / "chosen.json").read_bytes() == (folder / "chosen.json").read_bytes()
    assert found is not None and found.between_timesteps == made.record.costs.between_timesteps
    for one, other in zip(made.scores, (group[0] for group in found.scores), strict=True):
        assert one.timesteps == other.timesteps and np.array_equal(one.statistic, other.statistic, equal_nan=True)


@pytest.mark.parametrize("after", [4, AT_FIRST, AT_FIRST + 2, AT_FIRST + BESIDE, AT_FIRST + BESIDE + 5])
def test_an_interrupted_audit_resumes_to_the_same_bytes(coarse, ready, tmp_path, after) -> None:
    interrupted(after, lambda: scored(ready, tmp_path))
    assert " left, about " in ready.estimate(tmp_path), "what is done is counted as it was planned, and what is chosen may be fewer"
    assert (tmp_path / "chosen.json").exists() == (after >= AT_FIRST + BESIDE) and len(chunk_files(tmp_path)) == after
    same(coarse, tmp_path, scored(ready, tmp_path))


def test_shards_that_are_run_again_until_all_is_done_give_the_same_bytes(coarse, ready, tmp_path) -> None:
    rounds = [[scored(ready, tmp_path, rank, 2, shard=True) for rank in range(2)] for _ in range(2)]
    assert rounds[0] == [None, None], "each lacks calibrate chunks of the other"
    same(coarse, tmp_path, rounds[1][1])


def test_workers_wait_for_each_other_and_give_the_same_bytes(coarse, ready, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shares, "POLL", 0.01)
    found = dict[int, scoring.Collected | None]()
    workers = [Thread(target=lambda rank=rank: found.update({rank: scored(ready, tmp_path, rank, 2)})) for rank in range(2)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    same(coarse, tmp_path, next(each for each in found.values() if each is not None))


@pytest.mark.parametrize("sweep", ["calibrate", "coarse"])
def test_what_is_given_for_each_timestep_is_kept_where_an_attack_is_scored_at_some(sweep) -> None:
    timesteps = tuple(range(40, 401, 20))
    given = NoiseAggregation(metric="density", timesteps=timesteps, bandwidth=tuple(0.01 * t for t in timesteps))
    made, whole = (audit(each, attacks=[given]) for each in (sweep, "all"))
    (one,), (every,) = made.scores, whole.scores
    scored, at = np.isfinite(one.statistic), [every.timesteps.index(t) for t in one.timesteps]
    assert np.array_equal(one.statistic[scored], every.statistic[:, at][scored]) and scored[made.samples.test].any()
    assert [*made.results[0].parameters["bandwidth"]] == [0.01 * t for t in one.timesteps]


def test_a_saved_audit_is_the_folder_that_an_audit_would_have_left(coarse, tmp_path) -> None:
    made, folder = coarse
    made.save(tmp_path / "saved")
    assert (folder / "chosen.json").read_bytes() == (tmp_path / "saved" / "chosen.json").read_bytes()
    for left, right in zip(chunk_files(folder), chunk_files(tmp_path / "saved"), strict=True):
        assert left.name == right.name and pq.read_table(left).equals(pq.read_table(right), check_metadata=True), (
            "and says the same of itself"
        )
    made.save(tmp_path / "saved")  # the same scores are there


def test_a_saved_audit_resumes_with_what_each_attack_settled_for_each_timestep(coarse, tmp_path) -> None:
    made, _ = coarse
    made.save(tmp_path)
    again = audit("coarse", tmp_path)
    assert [result.parameters for result in again.results] == [result.parameters for result in made.results]


def test_a_sweep_for_which_it_saves_nothing_is_that_of_calibrate_first_and_nothing_says_otherwise(capsys) -> None:
    few = audit("coarse", timesteps="50:200:50", attacks="loss")
    assert few.record.plan.sweep == few.record.costs.sweep == "calibrate" and few.record.costs.between_timesteps is None
    assert few.scores[0].timesteps == (50, 100, 150, 200)
    said = "note: --sweep coarse has no effect here: it would make no fewer forwards, so the calibrate part is scored at every timestep"
    assert said in capsys.readouterr().err
    longer = audit("coarse", timesteps="50:250:50", attacks="loss")
    assert longer.record.plan.sweep == "coarse" and 2 < len(longer.scores[0].timesteps) < 5
    assert "has no effect" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"limit": 100}, "with fewer than 200 images on a side every image is scored at every timestep"),
        ({"calibration": False, "timesteps": "100"}, "without a calibrate part every image is scored at one timestep"),
        ({"timesteps": "100"}, "no attack can be scored at a part of its timesteps, so every image is scored at all of them"),
    ],
)
def test_where_every_image_is_scored_alike_a_note_says_why(settings, why, capsys) -> None:
    assert prepared(attacks="loss", **settings).plan.sweep == "all"
    assert f"note: --sweep coarse has no effect here: {why}" in capsys.readouterr().err
    prepared(attacks="loss", sweep="calibrate", **settings)
    assert "note: --sweep" not in capsys.readouterr().err, "calibrate is the default, so nobody may have asked for it"


@pytest.mark.parametrize(("unit", "what"), [("image", "images"), ("cluster", "images"), ("group", "groups")])
def test_the_note_on_few_images_counts_a_cluster_as_an_image(unit, what):
    small = prepared(attacks="loss", limit=100)
    split = replace(small.split, record=small.split.record.model_copy(update={"unit": unit}))
    said = _why_not_coarse(small.config, split, small.attacks)
    assert said == f"with fewer than 200 {what} on a side every image is scored at every timestep"


def test_the_report_says_which_attack_was_scored_at_every_timestep(coarse) -> None:
    _, folder = coarse
    assert "at every third timestep, and those beside the best ones (secmi at every timestep);" in (folder / "report.html").read_text()


def test_the_plan_for_programs_counts_the_forwards_of_an_image_that_has_the_most(ready) -> None:
    first, between, _ = ready.jobs()
    assert ready.summary()["queries_per_image"] == first.queries_per_image + between.queries_per_image < ready.job.queries_per_image


@pytest.mark.parametrize("sweep", ["calibrate", "coarse"])
def test_geometry_refuses_it_since_its_curves_are_of_the_test_part(sweep) -> None:
    with pytest.raises(UserError, match="sweep"):
        build(GeometryConfig, {"model": "m", "members": "a", "nonmembers": "b", "output": "o", "sweep": sweep})


def test_the_plan_says_what_is_scored_and_another_sweep_is_another_plan(tmp_path, model_folder, capsys) -> None:
    sides = []
    for flag, images in (("--members", MEMBERS), ("--nonmembers", HELD_OUT)):
        np.save(tmp_path / f"{flag}.npy", np.tile(images, (1, 2, 2, 1)))
        sides += [flag, str(tmp_path / f"{flag}.npy")]
    settings = ["--attacks", "sima", "--timesteps", "50:300:50", "--threads", "1", "-o", str(tmp_path / "run")]
    given = ["audit", str(model_folder()), *sides, *settings]
    code, _, said = call(capsys, *given, "--sweep", "coarse")
    assert code == 0, said
    plan = (
        "2 denoiser queries per image of the calibrate part (80 images) and about 2 more beside the best timesteps, then about 3 per image"
    )
    assert plan in said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "the calibrate part at every third timestep, and those beside the best ones" in page
    code, _, said = call(capsys, *given)
    assert code == 2 and "belongs to another plan (--sweep was coarse, now calibrate;" in said


def test_a_folder_of_before_began_with_every_second_timestep_and_is_another_plan(coarse, tmp_path) -> None:
    made, folder = coarse
    plan = json.loads((folder / "plan.json").read_text())
    assert plan.pop("coarse_step") == 3
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"belongs to another plan \(step of --sweep coarse \(none stands for 2\) was none, now 3\)"):
        audit("coarse", tmp_path)
    before = made.record.model_copy(update={"plan": Plan.model_validate(plan)})
    assert "the calibrate part at every second timestep, and those" in str(dict(_rows(before))["Scored"])


@pytest.mark.parametrize("timesteps", range(1, 40))
def test_every_timestep_is_beside_one_that_is_scored_first(timesteps: int) -> None:
    attack = parse("loss", ATTACKS, tuple(range(timesteps)))
    first = _every_third(attack)
    assert first == every_third(attack.timesteps) and len(first) == -(-timesteps // 3)
    assert {*attack.timesteps} <= {t + side for t in first for side in (-1, 0, 1)}
