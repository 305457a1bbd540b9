"""Calibrate first: the test part is scored at what the calibrate part chose, and everything said of it is as with all scores."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.commands import call
from fixtures.interruptions import interrupted
from fixtures.processes import killed

import diffleak
from diffleak.attacks import ATTACKS
from diffleak.attacks.spec import parse
from diffleak.auditing import phases
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import Prepared, prepare
from diffleak.auditing.run import Audit
from diffleak.auditing.score import Collected, Worker
from diffleak.config import build
from diffleak.data.draw import calibrate_part
from diffleak.data.pixels import to_model
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.noise import Noise
from diffleak.errors import UserError
from diffleak.records.chosen import Chosen
from diffleak.records.scores import META, ChunkMeta, chunk_files
from diffleak.stats import evaluation
from diffleak.stats.evaluation import NEEDS_ALL, divided
from diffleak.work import shares
from diffleak.work.folder import Folder

pytestmark = pytest.mark.usefixtures("undrawn")

SIDE = 200
MEMBERS, HELD_OUT = np.random.default_rng(0).integers(0, 256, (2, SIDE, 4, 4, 1), dtype=np.uint8)
SCHEDULE = linear_schedule()
ATTACKS_OF_RUN = "loss,secmi,noise_aggregation(metric=density)"
CALIBRATING = 3 * 3  # files of the calibrate part
GIVEN = {"timesteps": "50:300:50", "threads": 1, "seed": 1, "chunk_size": 32}


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


def test_images_that_count_together_are_chosen_on_and_tested_as_in_an_audit_of_everything():
    """Copies of one image on either side: pairs of which both, one and none are in the calibrate part."""
    sides = [np.concatenate([side, side[: SIDE // 4]]) for side in (MEMBERS, HELD_OUT)]
    named = {"members": sides[0], "nonmembers": sides[1], "attacks": "loss", **GIVEN}
    one, other = (diffleak.audit(blurred(), **named, sweep=sweep) for sweep in ("calibrate", "all"))
    assert one.record.split == other.record.split and one.record.split.unit == "cluster" and one.record.split.members == SIDE
    assert 0 < one.samples.test.mean() < 1 and one.record.costs.sweep == "calibrate"
    assert one.samples.scores["loss"].tolist() == other.samples.scores["loss"].tolist()
    assert one["loss"].auc == other["loss"].auc


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


def prepared(side: int = SIDE, **settings) -> Prepared:
    """The audit of `first` with these settings, checked."""
    given = {"attacks": ATTACKS_OF_RUN, **GIVEN, "members": "in memory", "nonmembers": "in memory", **settings}
    cohort = diffleak.cohort(members=MEMBERS[:side], nonmembers=HELD_OUT[:side], seed=GIVEN["seed"])
    return prepare(build(AuditConfig, {"model": "denoiser", **given, **cohort.given}), blurred(), cohort)


@pytest.fixture(scope="module")
def ready() -> Prepared:
    """The audit of `first`; workers differ in their share alone."""
    return prepared()


def scored(ready: Prepared, folder: Path, rank: int = 0, count: int = 1, shard: bool = False, log=lambda line: None):
    config = ready.config.model_copy(update={"shard": f"{rank + 1}/{count}"}) if shard else ready.config
    return phases.in_phases(replace(ready, config=config, worker=Worker(rank, count, 1)), Folder(folder), log)


def same(first, folder: Path, found: Collected) -> None:
    """The folder of `first` and another one hold the same bytes, and the same was collected."""
    made, whole = first
    assert [file.name for file in chunk_files(whole)] == [file.name for file in chunk_files(folder)]
    assert len(chunk_files(folder)) == 3 * (3 + 10)
    for left, right in zip(chunk_files(whole), chunk_files(folder), strict=True):
        assert left.read_bytes() == right.read_bytes()
    assert (whole / "chosen.json").read_bytes() == (folder / "chosen.json").read_bytes()
    for one, other in zip(made.scores, (group[0] for group in found.scores), strict=True):
        assert np.array_equal(one.statistic, other.statistic, equal_nan=True)


@pytest.mark.parametrize("count", [2, 3])
def test_shards_that_are_run_again_until_all_is_done_give_the_same_bytes(first, ready, tmp_path, count) -> None:
    said = list[str]()
    rounds = [[scored(ready, tmp_path, rank, count, shard=True, log=said.append) for rank in range(count)] for _ in range(2)]
    assert not any(rounds[0]) and not any(rounds[1][: count - 2]) and rounds[1][-1] is not None
    assert said[0] == "the calibrate chunks of other shards are not finished: run this same command again when they are"
    assert said.count(said[0]) == count - 1, "the last shard of the first round finds all of them"
    same(first, tmp_path, rounds[1][-1])


@pytest.mark.parametrize("count", [2, 3])
def test_workers_wait_for_each_other_say_for_whom_and_give_the_same_bytes(first, ready, tmp_path, monkeypatch, count) -> None:
    monkeypatch.setattr(shares, "POLL", 0.01)
    found, said = dict[int, Collected | None](), list[str]()
    waiting = Event()

    def log(line: str) -> None:
        said.append(line)
        waiting.set()

    def work(rank: int) -> None:
        found[rank] = scored(ready, tmp_path, rank, count, log=log)

    early = Thread(target=work, args=(0,))
    early.start()
    assert waiting.wait(60), "the first worker is done with its calibrate chunks, and no other has begun"
    waits = f"worker 1 of {count} waits for {'1 calibrate chunk of worker 2' if count == 2 else '2 calibrate chunks of worker 2, 3'}"
    assert said[0] == f"{waits}; if one of them has stopped, start it again and this one goes on"
    others = [Thread(target=work, args=(rank,)) for rank in range(1, count)]
    for each in others:
        each.start()
    for each in (early, *others):
        each.join()
    same(first, tmp_path, next(each for each in found.values() if each is not None))


def test_a_worker_that_waits_in_vain_ends_with_one_line_and_goes_on_when_it_is_started_again(first, ready, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shares, "POLL", 0.01)
    monkeypatch.setattr(shares, "PATIENCE", 0.05)
    with pytest.raises(UserError, match=r"worker 1 of 2 has seen no new one of the calibrate chunks of worker 2 for .* hours: start all"):
        scored(ready, tmp_path, 0, 2)
    assert scored(ready, tmp_path, 1, 2) is None, "the test chunks of the first worker are missing"
    same(first, tmp_path, scored(ready, tmp_path, 0, 2))


@pytest.mark.parametrize("after", [4, CALIBRATING, 24])
def test_an_interrupted_audit_resumes_to_the_same_bytes(first, ready, tmp_path, after) -> None:
    interrupted(after, lambda: scored(ready, tmp_path))
    assert (tmp_path / "chosen.json").exists() == (after >= CALIBRATING)
    (tmp_path / "chosen.json").write_text("what is in it decides nothing")
    same(first, tmp_path, scored(ready, tmp_path))


@pytest.mark.slow
def test_a_killed_audit_resumes_to_the_same_bytes(tmp_path, model_folder, capsys) -> None:
    sides = []
    for flag, images in (("--members", MEMBERS), ("--nonmembers", HELD_OUT)):
        np.save(tmp_path / f"{flag}.npy", np.tile(images, (1, 2, 2, 1)))
        sides += [flag, str(tmp_path / f"{flag}.npy")]
    settings = ["--attacks", "sima", "--timesteps", "50:150:50", "--chunk-size", "16", "--threads", "1"]
    given = ["audit", str(model_folder()), *sides, *settings]
    code, _, said = call(capsys, *given, "-o", str(tmp_path / "whole"))
    assert code == 0, said
    folder = tmp_path / "killed"
    killed(lambda: len(list(folder.glob("scores/chunk*"))) >= 7, *given, "-o", folder)  # 5 are of the calibrate part
    assert len(chunk_files(folder)) >= 7 and not (folder / "audit.json").exists()
    code, _, said = call(capsys, *given, "-o", str(folder))
    assert code == 0, said
    for left, right in zip(chunk_files(tmp_path / "whole"), chunk_files(folder), strict=True):
        assert left.read_bytes() == right.read_bytes()
    assert (tmp_path / "whole" / "samples.csv").read_bytes() == (folder / "samples.csv").read_bytes()


def test_a_saved_audit_is_the_folder_that_an_audit_would_have_left(first, tmp_path) -> None:
    made, folder = first
    made.save(tmp_path / "saved")
    assert (folder / "chosen.json").read_bytes() == (tmp_path / "saved" / "chosen.json").read_bytes()
    for left, right in zip(chunk_files(folder), chunk_files(tmp_path / "saved"), strict=True):
        assert left.name == right.name and pd.read_parquet(left).equals(pd.read_parquet(right))
        assert read_meta(left).queries == read_meta(right).queries
    table = made.to_frame()
    assert table["statistic"].notna().all() and len(table) < 400 * sum(len(s.timesteps) for s in made.scores)


def read_meta(path: Path) -> ChunkMeta:
    return ChunkMeta(**json.loads(pq.read_schema(path).metadata[META]))


def test_a_folder_of_before_is_refused_in_one_line_or_resumes_with_sweep_all(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "SMALL_SIDE", 20)  # so few are divided once
    few = {"members": MEMBERS[:40], "nonmembers": HELD_OUT[:40], "output": tmp_path, **GIVEN, "attacks": "sima"}
    diffleak.audit(blurred(), sweep="all", **few)
    plan = json.loads((tmp_path / "plan.json").read_text())
    for name in ("sweep", "faster", "estimator", "singular_values", "coarse_step"):
        del plan[name]  # as before there was one
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"belongs to another plan \(--sweep was all, now calibrate\)"):
        diffleak.audit(blurred(), **few)
    before = hashlib.sha256(json.dumps(plan, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
    files = chunk_files(tmp_path)
    assert {read_meta(file).plan for file in files} == {before}, "the id of the plan as an earlier version wrote it"
    (files[0]).unlink()
    written = [file.stat().st_mtime_ns for file in files[1:]]
    diffleak.audit(blurred(), sweep="all", **few)
    assert chunk_files(tmp_path) == files and [file.stat().st_mtime_ns for file in files[1:]] == written


def test_at_most_a_thousand_a_side_choose() -> None:
    ids, member = tuple(map(str, range(12_000))), np.arange(12_000) < 6_000
    whole, most = calibrate_part(ids, member, 0.2, 0), calibrate_part(ids, member, 0.2, 0, most=1000)
    assert [int((whole & side).sum()) for side in (member, ~member)] == [1200, 1200]
    assert [int((most & side).sum()) for side in (member, ~member)] == [1000, 1000] and not (most & ~whole).any()
    assert divided(ids, member, 0.2, 0, most=1000).record.calibrate_members == 1000


def test_small_sides_and_single_timesteps_are_scored_whole() -> None:
    assert prepared().plan.sweep == "calibrate"
    assert prepared(SIDE - 1).plan.sweep == prepared(timesteps="100").plan.sweep == prepared(sweep="all").plan.sweep == "all"
