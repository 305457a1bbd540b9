"""The main job end to end: plan, chunks, resume, workers, run folder, gates."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.commands import call
from fixtures.models import ATTENTION, save_untrained
from fixtures.processes import killed

import diffleak
from diffleak import hub
from diffleak.attacks.subject import Subject
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import gate, run
from diffleak.auditing.score import worker
from diffleak.config import build
from diffleak.data.draw import calibrate_part
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.errors import GateFailed, InvalidAudit, UserError
from diffleak.records.audit import EARLIER_RATES, AuditRecord
from diffleak.records.base import FORMER_NAME, Estimate
from diffleak.report.judgement import read_record

RNG = np.random.default_rng(0)
MEMBERS, NONMEMBERS = RNG.integers(0, 256, (2, 40, 8, 8), dtype=np.uint8)
FEW = "sima,loss"
ALL = "loss,secmi,pia,pian,sima,sima_mc(m=2),noise_aggregation,noise_aggregation(metric=density)"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("model"), **ATTENTION)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    np.save(folder / "members.npy", MEMBERS)
    np.save(folder / "nonmembers.npy", NONMEMBERS)
    return folder


pytestmark = pytest.mark.usefixtures("few_divisions")


def settings(data: Path, **changes):
    base = {"members": data / "members.npy", "nonmembers": data / "nonmembers.npy", "attacks": ALL, "timesteps": "50:100:50"}
    return {**base, "batch_size": 16, "chunk_size": 16, "device": "cpu", "threads": 1, **changes}


def scores(folder: Path) -> pd.DataFrame:
    frame = pd.concat(pd.read_parquet(f) for f in sorted((folder / "scores").glob("*.parquet")))
    return frame.sort_values(["attack", "id", "timestep"], ignore_index=True)


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    diffleak.audit(model, output=folder, **settings(data))
    return folder


@pytest.fixture(scope="module")
def few(model, data, tmp_path_factory) -> Path:
    """As `whole`, of two attacks: for what does not depend on the attack."""
    folder = tmp_path_factory.mktemp("few")
    diffleak.audit(model, output=folder, **settings(data, attacks=FEW))
    return folder


def test_a_run_folder_holds_what_the_interface_promises(whole):
    assert {"audit.json", "plan.json", "samples.csv", "report.html", "scores"} <= {p.name for p in whole.iterdir()}
    frame = pd.read_parquet(next((whole / "scores").glob("*.parquet")))
    assert list(frame.columns) == ["id", "attack", "timestep", "statistic"]
    assert str(frame.timestep.dtype) == "int32"
    assert str(frame.statistic.dtype) == "float64"
    samples = pd.read_csv(whole / "samples.csv")
    assert list(samples.columns[:3]) == ["id", "member", "part"]
    assert set(samples.part) == {"calibrate", "test"}
    assert samples.member.sum() == 40
    record = json.loads((whole / "audit.json").read_text())
    assert {"schema_version", "plan", "environment", "split", "results", "warnings", "costs"} <= set(record)
    promised = {"attack", "access", "queries", "timestep", "direction", "auc", "tpr_at_fpr", "tnr_at_fnr", "asr", "achieved_fpr", "oracle"}
    assert promised | {"n_members", "n_nonmembers", "per_timestep"} <= set(record["results"][0])


def test_a_record_of_the_former_name_is_read(whole):
    text = (whole / "audit.json").read_text()
    former = json.dumps(json.loads(text.replace('"diffleak":', f'"{FORMER_NAME}":')))
    assert former != text and AuditRecord.model_validate_json(former) == AuditRecord.model_validate_json(text)


def test_a_record_of_the_earlier_rates_is_read_with_a_warning_that_says_so(whole, tmp_path):
    record = json.loads((whole / "audit.json").read_text())
    assert record["schema_version"] == record["plan"]["schema_version"] == 2 and not any("0.1" in w for w in record["warnings"])
    (tmp_path / "audit.json").write_text(json.dumps(record | {"schema_version": 1}))
    assert read_record(whole).warnings == tuple(record["warnings"])
    assert read_record(tmp_path).warnings == (*record["warnings"], EARLIER_RATES)
    (tmp_path / "audit.json").write_text(json.dumps(record | {"schema_version": 3}))
    with pytest.raises(UserError, match="cannot be read as schema version 2"):
        read_record(tmp_path)


def test_samples_hold_the_membership_score_at_the_chosen_timestep(whole):
    record = AuditRecord.model_validate_json((whole / "audit.json").read_text())
    samples, frame = pd.read_csv(whole / "samples.csv").set_index("id"), scores(whole)
    for result in record.results:
        chosen = frame[(frame.attack == result.attack) & (frame.timestep == result.timestep)].set_index("id").statistic
        sign = -1 if result.direction == "small" else 1
        np.testing.assert_array_equal(samples[result.attack], sign * chosen.loc[samples.index])


def test_declared_queries_are_what_the_run_made(whole):
    record = AuditRecord.model_validate_json((whole / "audit.json").read_text())
    assert record.costs.queries + record.costs.queries_saved == 80 * sum(r.queries for r in record.results)


def test_the_scores_are_those_of_the_attack_called_by_hand(model, whole):
    from diffleak.attacks import ATTACKS
    from diffleak.data.pixels import to_model
    from diffleak.diffusion.noise import Noise

    target = hub.load(model, device="cpu")
    frame = scores(whole)
    for name in ("sima", "secmi", "loss"):
        mine = frame[frame.attack == name].pivot_table(index="id", columns="timestep", values="statistic")
        for i in (0, 7):
            key = f"members/{i}"  # both sides use row numbers as ids, so they carry the side
            x0 = torch.from_numpy(to_model(MEMBERS[i : i + 1, ..., None]))
            with torch.inference_mode():
                expected = ATTACKS[name](timesteps=(50, 100)).statistics(Subject(target.denoiser, x0, Noise(0, (key,), (1, 8, 8))))
            np.testing.assert_allclose(mine.loc[key], expected[:, 0], rtol=1e-4)


def test_one_two_and_three_workers_give_bit_identical_scores(model, data, whole, tmp_path, monkeypatch):
    for rank in range(2):
        with pytest.raises(UserError, match="other shards have not finished"):
            diffleak.audit(model, output=tmp_path / "shards", **settings(data, shard=f"{rank + 1}/3"))
    diffleak.audit(model, output=tmp_path / "shards", **settings(data, shard="3/3"))
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        if rank == 0:
            with pytest.raises(UserError, match="other shards"):
                diffleak.audit(model, output=tmp_path / "env", **settings(data))
        else:
            diffleak.audit(model, output=tmp_path / "env", **settings(data))
    for folder in (tmp_path / "shards", tmp_path / "env"):
        pd.testing.assert_frame_equal(scores(folder), scores(whole), check_exact=True)
        assert (folder / "samples.csv").read_text() == (whole / "samples.csv").read_text()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(capsys, model, data, whole, tmp_path):
    folder = tmp_path / "run"
    given = ["audit", model, "-o", folder]
    for key, value in settings(data).items():
        given += [f"--{key.replace('_', '-')}", value]
    killed(lambda: len(list(folder.glob("scores/chunk*"))) >= 9, *given)
    assert len(list(folder.glob("scores/chunk*"))) >= 9 and not (folder / "audit.json").exists()
    code, _, said = call(capsys, *given)
    assert code == 0, said
    pd.testing.assert_frame_equal(scores(folder), scores(whole), check_exact=True)
    assert (folder / "samples.csv").read_text() == (whole / "samples.csv").read_text()


def test_a_finished_run_is_not_scored_again(model, data, whole, monkeypatch):
    monkeypatch.setattr("diffleak.auditing.score._score_chunk", lambda *_: pytest.fail("scored again"))
    diffleak.audit(model, output=whole, **settings(data))


def test_another_plan_in_the_same_folder_is_refused(model, data, whole):
    for changes in ({"seed": 1}, {"timesteps": "50"}, {"attacks": "sima"}, {"batch_size": 4}, {"limit": 30}):
        with pytest.raises(UserError, match=r"belongs to another plan \(.* was .*, now .*\); use another -o"):
            diffleak.audit(model, output=whole, **settings(data, **changes))


def test_the_split_does_not_depend_on_order_and_is_a_fifth_of_each_side():
    ids = tuple(map(str, range(500)))
    member = np.arange(500) < 300
    half = calibrate_part(ids, member, 0.2, seed=0)
    assert (half[member].sum(), half[~member].sum()) == (60, 40)
    order = np.random.default_rng(0).permutation(500)
    shuffled = calibrate_part(tuple(ids[i] for i in order), member[order], 0.2, seed=0)
    np.testing.assert_array_equal(shuffled, half[order])


def test_a_nan_names_the_image_and_timestep_and_keeps_finished_chunks(data, tmp_path):
    schedule = linear_schedule().alphas_cumprod
    clean = diffleak.Target(diffleak.Denoiser.from_function(lambda x, t: 0.1 * x, schedule), fingerprint="mine")
    broken_at = torch.from_numpy(NONMEMBERS[3].astype(np.float32) / 127.5 - 1)

    def sometimes_nan(x, t):
        hit = (x[:, 0] == broken_at).all(dim=(1, 2))
        return torch.where(hit[:, None, None, None], torch.nan, 0.1 * x) if t == 100 else 0.1 * x

    broken = diffleak.Target(diffleak.Denoiser.from_function(sometimes_nan, schedule), fingerprint="mine")
    arguments = settings(data, attacks="sima")
    with pytest.raises(UserError, match=r"sima got nan for image nonmembers/3 at timestep 100.*finished chunks are kept"):
        diffleak.audit(broken, output=tmp_path, **arguments)
    kept = len(list(tmp_path.glob("scores/chunk*")))
    assert 0 < kept < 5
    assert diffleak.audit(clean, output=tmp_path, **arguments).results


def test_a_full_disk_is_one_line_and_loses_nothing(model, data, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    real, written = pq.write_table, []

    def full_after_three(table, path, *args, **kwargs):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        return real(table, path, *args, **kwargs)

    monkeypatch.setattr("pyarrow.parquet.write_table", full_after_three)
    with pytest.raises(UserError, match=r"cannot be written .*No space left on device.*finished work is kept"):
        diffleak.audit(model, output=tmp_path, **settings(data, attacks=FEW))
    assert len(list(tmp_path.glob("scores/*"))) == 3
    monkeypatch.setattr("pyarrow.parquet.write_table", real)
    assert diffleak.audit(model, output=tmp_path, **settings(data, attacks=FEW)).results


def test_an_unwritable_folder_is_refused_before_scoring(model, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output folder .* cannot be written"):
        diffleak.audit(model, output=tmp_path / "file" / "run", **settings(data))


def test_the_python_api_takes_arrays_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    memoriser = Memoriser(torch.from_numpy(MEMBERS[:, None].astype(np.float32) / 127.5 - 1).double(), linear_schedule())
    audit = diffleak.audit(memoriser, members=MEMBERS, nonmembers=NONMEMBERS, attacks=["sima", "pia"], timesteps="50:150:50")
    assert [r.auc.value for r in audit.results] == [1.0, 1.0]
    assert not list(tmp_path.iterdir())
    frame = audit.to_frame()
    assert len(frame) == 2 * 80 * 3
    assert frame.member.sum() == 2 * 40 * 3
    audit.save(tmp_path / "saved")
    assert {"audit.json", "samples.csv", "report.html", "scores"} <= {p.name for p in (tmp_path / "saved").iterdir()}
    np.testing.assert_array_equal(np.sort(scores(tmp_path / "saved").statistic), np.sort(frame.statistic))


def test_without_calibration_the_published_timestep_is_used_and_success_is_null(model, data):
    audit = diffleak.audit(model, **settings(data, attacks="secmi,pia,noise_aggregation", timesteps=None, calibration=False))
    assert [r.timestep for r in audit.results] == [90, 200, 80]
    assert all(r.asr.value is None and "calibrate" in r.asr.reason for r in audit.results)
    assert all(r.n_members == 40 for r in audit.results)
    with pytest.raises(UserError, match="sima has no published single timestep"):
        diffleak.audit(model, **settings(data, attacks="sima", timesteps=None, calibration=False))
    with pytest.raises(UserError, match="timesteps must be one number"):
        diffleak.audit(model, **settings(data, calibration=False))


def test_limit_takes_as_many_of_each_side_and_always_the_same(model, data):
    first, second = (diffleak.audit(model, **settings(data, attacks="sima", limit=20)) for _ in range(2))
    assert first.samples.ids == second.samples.ids
    assert (first.samples.member.sum(), (~first.samples.member).sum()) == (20, 20)


def test_sides_from_different_sources_make_the_audit_invalid():
    bright = np.clip(np.random.default_rng(1).integers(0, 256, (60, 8, 8)) + 60, 0, 255).astype(np.uint8)
    dark = np.random.default_rng(2).integers(0, 200, (60, 8, 8), dtype=np.uint8)
    model = diffleak.Denoiser.from_function(lambda x, t: 0.1 * x, linear_schedule().alphas_cumprod)
    audit = diffleak.audit(model, members=bright, nonmembers=dark, attacks="sima", timesteps="100")
    assert audit.record.blind.low > 0.9
    config = build(AuditConfig, {"members": "a", "nonmembers": "b"})
    with pytest.raises(InvalidAudit, match=r"two sides come from different sources.*A classifier that sees only pixel statistics"):
        gate(audit.record, config)
    gate(audit.record, build(AuditConfig, {"members": "a", "nonmembers": "b", "allow_shift": True}))


def test_gates_compare_the_upper_end_of_the_interval_in_either_direction(model, data):
    record = diffleak.audit(model, **settings(data, attacks="sima", timesteps="100")).record

    def check(low, high, **limits):
        auc = Estimate(value=(low + high) / 2, low=low, high=high)
        changed = record.model_copy(update={"results": (record.results[0].model_copy(update={"auc": auc}),)})
        gate(changed, build(AuditConfig, {"members": "a", "nonmembers": "b", "allow_shift": True, **limits}))

    check(0.45, 0.7, max_auc=0.7)
    with pytest.raises(GateFailed, match=r"sima: AUC may reach 0.700, above the limit of 0.69"):
        check(0.45, 0.7, max_auc=0.69)
    with pytest.raises(GateFailed, match=r"AUC with the attack's answers reversed \(are the sides swapped\?\) may reach 0.900"):
        check(0.1, 0.3, max_auc=0.6)
    with pytest.raises(GateFailed, match=r"TPR at 1 % FPR is not estimable .* so the limit of 0.5 cannot be confirmed"):
        check(0.45, 0.7, max_tpr=0.5)


def test_the_plan_comes_first_and_names_what_will_be_done(model, data, tmp_path):
    lines = []
    prepared = prepare(build(AuditConfig, {**settings(data, attacks=FEW), "model": str(model)}))
    run(prepared, tmp_path, lines.append)
    assert lines[0].startswith("plan: 40 members and 40 held-out images (8 x 8 grey), 2 attacks")
    assert f"{prepared.queries_per_image} denoiser queries per image" in lines[0]
    assert re.fullmatch(r"time: about \d+ (s|min|h)", lines[1]), "nothing was begun, so nothing is left"
    next(tmp_path.glob("scores/*.parquet")).unlink()
    assert re.fullmatch(r"about \d+ s left, \d+ queries are done already", prepared.estimate(tmp_path).replace("left, about", "left,"))
    one = prepare(build(AuditConfig, {**settings(data, attacks="loss", timesteps="100", calibration=False), "model": str(model)}))
    assert ", 1 attack, 1 denoiser query per image, 80 in all, " in one.describe()


def test_half_precision_and_double_agree_with_single_within_their_rounding(model, data):
    statistic = {}
    for dtype in ("float64", "float32", "bfloat16"):
        frame = diffleak.audit(model, **settings(data, attacks="sima,pia", dtype=dtype)).to_frame()
        statistic[dtype] = frame.statistic.to_numpy()
    np.testing.assert_allclose(statistic["float32"], statistic["float64"], rtol=1e-3)
    assert not np.array_equal(statistic["bfloat16"], statistic["float32"])
    assert np.corrcoef(np.log(statistic["bfloat16"]), np.log(statistic["float64"]))[0, 1] > 0.95


def test_scores_do_not_depend_on_batch_size_beyond_rounding(model, data):
    attacks = ALL.replace(",noise_aggregation(metric=density)", "")
    first, second = (diffleak.audit(model, **settings(data, attacks=attacks, limit=20, batch_size=b)).to_frame() for b in (5, 16))
    np.testing.assert_allclose(first.statistic, second.statistic, rtol=2e-3, atol=1e-4)


def test_scores_of_a_model_that_nobody_can_identify_are_not_taken_for_another_one(tmp_path):
    schedule = linear_schedule().alphas_cumprod
    first, second = (diffleak.Denoiser.from_function(lambda x, t, f=f: f * x, schedule) for f in (0.1, 0.2))
    diffleak.audit(first, members=MEMBERS, nonmembers=NONMEMBERS, attacks="sima", timesteps="100", output=tmp_path)
    for scores in ([], list(tmp_path.glob("scores/*"))):  # of the first audit, which in the end has written none yet
        for file in scores:
            file.unlink()
        with pytest.raises(UserError, match="nothing says that they are of this model"):
            diffleak.audit(second, members=MEMBERS, nonmembers=NONMEMBERS, attacks="sima", timesteps="100", output=tmp_path)


def err(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_saving_over_another_audit_is_refused_and_a_saved_audit_can_be_resumed(model, data, tmp_path, monkeypatch):
    saved = diffleak.audit(model, **settings(data, attacks="sima"))
    saved.save(tmp_path)
    other = diffleak.audit(model, **settings(data, attacks="sima", seed=1))
    with pytest.raises(UserError, match="belongs to another plan"):
        other.save(tmp_path)
    monkeypatch.setattr("diffleak.auditing.score._score_chunk", lambda *_: pytest.fail("scored again"))
    again = diffleak.audit(model, output=tmp_path, **settings(data, attacks="sima"))
    np.testing.assert_array_equal(again.scores[0].statistic, saved.scores[0].statistic)
    assert again.record.costs.queries == saved.record.costs.queries


def test_damaged_and_foreign_chunks_are_moved_aside_and_scored_again_to_the_same_bytes(model, data, few, tmp_path, capsys):
    import shutil

    run_folder, foreign = tmp_path / "run", tmp_path / "foreign"
    shutil.copytree(few, run_folder)
    diffleak.audit(model, output=foreign, **settings(data, attacks=FEW, seed=1))
    chunk = sorted((run_folder / "scores").glob("*.parquet"))[0]
    sound, flipped = chunk.read_bytes(), bytearray(chunk.read_bytes())
    flipped[len(flipped) // 3] ^= 4
    for content, reason in (
        (b"", "Parquet file size is 0 bytes"),
        (bytes(flipped), ""),
        ((foreign / "scores" / chunk.name).read_bytes(), "it belongs to another plan"),
    ):
        chunk.write_bytes(content)
        capsys.readouterr()
        diffleak.audit(model, output=run_folder, **settings(data, attacks=FEW))
        aside = chunk.with_name(f"{chunk.name}.damaged")
        said = f"{chunk} is damaged ({reason}"
        assert any(line.startswith(said) and line.endswith(f"it is now {aside.name}, and its chunk is done again") for line in err(capsys))
        assert aside.read_bytes() == content and chunk.read_bytes() == sound
    pd.testing.assert_frame_equal(scores(run_folder), scores(few), check_exact=True)


def test_halves_that_would_be_empty_and_impossible_seeds_are_refused_before_scoring(model, data):
    for fraction in (0.01, 0.99):
        with pytest.raises(UserError, match="calibrate_fraction must leave images in both parts"):
            diffleak.audit(model, **settings(data, calibrate_fraction=fraction))
    for seed in (-1, 2**33):
        with pytest.raises(UserError, match=r"^seed must "):
            diffleak.audit(model, **settings(data, seed=seed))


def test_the_command_in_the_record_repeats_the_audit(capsys, few, model):
    import shlex

    record = AuditRecord.model_validate_json((few / "audit.json").read_text())
    words = shlex.split(record.command)
    assert words[:3] == ["diffleak", "audit", str(model)]
    code, _, said = call(capsys, *words[1:])
    assert code == 0, said
    assert "all of it is done" in said


def test_a_folder_with_files_of_somebody_else_is_left_alone(model, data, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"already holds report.html, which no audit here has written"):
        diffleak.audit(model, output=tmp_path, **settings(data))
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("rank", "size", "said"),
    [
        ("x", "2", r"RANK and WORLD_SIZE must be whole numbers"),
        ("5", "2", r"RANK must lie in \[0, WORLD_SIZE\)"),
        ("-1", "2", r"RANK must lie"),
    ],
)
def test_a_rank_that_is_none_is_refused(monkeypatch, rank, size, said):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match=said):
        worker(None, 1, diffleak.Target(Memoriser(torch.zeros(1, 1, 2, 2), linear_schedule())))
