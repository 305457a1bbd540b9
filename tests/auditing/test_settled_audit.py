"""Attacks that settle their score, in whole audits: records, files, comparisons, reports, resume, and what is refused."""

import io
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.captions import Captioned, captions
from fixtures.reports import audit_of, html, print_terminal
from fixtures.runs import make_run
from rich.console import Console

import diffleak
from diffleak.attacks.subject import Subject
from diffleak.auditing import inputs
from diffleak.auditing import plan as planning
from diffleak.auditing import score as scoring
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import run
from diffleak.comparison.compare import compare
from diffleak.comparison.runs import read_entries, read_scores
from diffleak.config import build
from diffleak.data.cohort import two_sources
from diffleak.data.sources import open_source
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.records.audit import AuditRecord

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
MEMBERS, NONMEMBERS = np.random.default_rng(0).integers(0, 256, (2, 40, 8, 8), dtype=np.uint8)
SETTINGS: dict[str, Any] = {"batch_size": 16, "chunk_size": 32, "device": "cpu", "threads": 1}


@dataclass(frozen=True)
class CaptionedTarget(Target):
    """A target with text, whose images have captions by their ids."""

    text: Any = "toy"


@pytest.fixture
def captioned(monkeypatch) -> Target:
    """A memoriser that is asked with captions."""

    def conditions(self, rows):
        ids = self.cohort.ids
        return captions(ids[rows] if isinstance(rows, slice) else [ids[i] for i in rows])

    monkeypatch.setattr(inputs.Inputs, "conditions", conditions)
    monkeypatch.setattr(planning, "_told", lambda config, target, images: None)  # arrays have no captions to be read
    points = torch.from_numpy(MEMBERS[:20, None] / 127.5 - 1.0)
    return CaptionedTarget(Captioned(Memoriser(points, linear_schedule())), dtype="float32", device="cpu")


@pytest.fixture
def memoriser() -> Target:
    return Target(Memoriser(torch.from_numpy(MEMBERS[:20, None] / 127.5 - 1.0), linear_schedule()), dtype="float32", device="cpu")


def test_clid_is_audited_from_components_to_report(captioned, tmp_path):
    audit = diffleak.audit(
        captioned, members=MEMBERS, nonmembers=NONMEMBERS, attacks="clid,sima", output=tmp_path / "run", timesteps="50:100:50", **SETTINGS
    )
    record = AuditRecord.model_validate_json((tmp_path / "run" / "audit.json").read_text())
    result = record.result("clid")
    assert (result.timestep, result.rule, result.direction, result.queries, result.queries_at_timestep) == (None, "clid", "large", 15, None)
    assert result.setting.startswith("w=") and len(result.per_timestep) == 11
    assert result.parameters == {"timesteps": [440, 450, 460]} and record.plan.attacks[0]["timesteps"] == [440, 450, 460]
    assert record.result("sima").timestep in (50, 100) and record.result("sima").setting is None
    frame = audit.to_frame()
    assert sorted(frame[frame.attack == "clid"].timestep.unique()) == [0, 1], "the numbers of the components"
    stored = read_scores(read_entries([str(tmp_path / "run")] * 1 + [f"again={tmp_path / 'run'}"])[0].runs[0], "clid")
    assert stored.rule == "clid"
    np.testing.assert_array_equal(stored.statistic, next(s for s in audit.scores if s.attack == "clid").statistic)
    assert np.isfinite(audit.samples.scores["clid"]).all()
    page = (tmp_path / "run" / "report.html").read_text()
    console = Console(file=io.StringIO(), width=200)
    print_terminal(record, console)
    assert result.setting in page and result.setting in console.file.getvalue()


def test_workers_resume_and_settle_to_the_same_numbers(captioned, tmp_path):
    attacks = "clid,pfami(crops=2)"
    whole = diffleak.audit(captioned, members=MEMBERS, nonmembers=NONMEMBERS, attacks=attacks, **SETTINGS)
    captioned = replace(captioned, fingerprint="sha256:toy")
    with pytest.raises(UserError, match="other shards"):
        diffleak.audit(captioned, members=MEMBERS, nonmembers=NONMEMBERS, attacks=attacks, output=tmp_path / "run", shard="1/2", **SETTINGS)
    parts = diffleak.audit(
        captioned, members=MEMBERS, nonmembers=NONMEMBERS, attacks=attacks, output=tmp_path / "run", shard="2/2", **SETTINGS
    )
    for mine, other in zip(parts.scores, whole.scores, strict=True):
        np.testing.assert_array_equal(mine.statistic, other.statistic)
    assert [r.model_dump() for r in parts.results] == [r.model_dump() for r in whole.results]


def test_a_saved_audit_has_the_files_of_one_that_ran_there(captioned, tmp_path):
    audit = diffleak.audit(captioned, members=MEMBERS, nonmembers=NONMEMBERS, attacks="clid", **SETTINGS)
    audit.save(tmp_path / "saved")
    saved = read_entries([str(tmp_path / "saved"), f"b={tmp_path / 'saved'}"])[0].runs[0]
    np.testing.assert_array_equal(read_scores(saved, "clid").statistic, audit.scores[0].statistic)


def test_finished_audits_are_compared_at_their_settings(captioned, tmp_path):
    for name in ("a", "b"):
        diffleak.audit(captioned, members=MEMBERS, nonmembers=NONMEMBERS, attacks="clid,pfami(crops=2)", output=tmp_path / name, **SETTINGS)
    compared = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    rows = {r.attack: r for r in compared.entries[1].results}
    assert rows["clid"].setting.startswith("w=") and rows["clid"].timestep is None
    assert rows["clid"].difference.auc.value == 0
    assert (rows["pfami(crops=2)"].setting, rows["pfami(crops=2)"].timestep) == (None, None)


def test_a_batch_shrinks_by_the_width_of_the_attack(memoriser, monkeypatch):
    sizes: list[int] = []
    ask = scoring.Counted.__call__
    monkeypatch.setattr(scoring.Counted, "__call__", lambda self, x, t, cond=None: (sizes.append(len(x)), ask(self, x, t, cond))[1])
    diffleak.audit(memoriser, members=MEMBERS, nonmembers=NONMEMBERS, attacks="pfami(crops=4)", **SETTINGS)
    assert set(sizes) == {3 * 5, 2 * 5, 5}, "batches of 16 rows hold three images of five rows, and the last of a chunk two or one"


def test_all_leaves_out_what_a_model_without_captions_cannot_be_asked(memoriser, captioned):
    config = build(AuditConfig, {"members": "array", "nonmembers": "array", "attacks": "all", "timesteps": "50:100:50", "device": "cpu"})
    cohort = two_sources(open_source(MEMBERS), open_source(NONMEMBERS))
    names = [a.name for a in prepare(config, memoriser, cohort).attacks]
    assert "clid" not in names and "pfami" in names
    with pytest.raises(UserError, match=r"clid works with captions, and .* takes none; leave it out"):
        prepare(config.model_copy(update={"attacks": ("sima", "clid(timesteps=7)")}), memoriser, cohort)
    assert "clid" in [a.name for a in prepare(config, captioned, cohort).attacks]


def test_without_calibration_a_score_that_is_settled_there_is_refused(captioned):
    settings = {**SETTINGS, "calibration": False, "timesteps": "50"}
    with pytest.raises(UserError, match="clid is fitted on the calibrate part: leave out --no-calibration, or this attack"):
        diffleak.audit(captioned, members=MEMBERS, nonmembers=NONMEMBERS, attacks="clid,sima", **settings)
    names = [
        r.attack
        for r in diffleak.audit(captioned, members=MEMBERS, nonmembers=NONMEMBERS, attacks="pfami(crops=2),sima", **settings).results
    ]
    assert names == ["pfami(crops=2)", "sima"]


def test_pfami_without_calibration_needs_no_timestep(memoriser):
    result = diffleak.audit(
        memoriser, members=MEMBERS, nonmembers=NONMEMBERS, attacks="pfami(crops=2)", calibration=False, **SETTINGS
    ).results[0]
    assert (result.timestep, result.setting, result.per_timestep) == (None, None, ())
    assert result.auc.value > 0.6  # half of the members are memorised


def test_an_infinite_number_of_such_an_attack_names_the_image_and_no_timestep(memoriser):
    broken = diffleak.Denoiser.from_function(lambda x, t: x / 0 if t == 200 else x, linear_schedule().alphas_cumprod)
    with pytest.raises(UserError, match=r"pfami got nan for image \S+: check what it computes"):
        diffleak.audit(broken, members=MEMBERS, nonmembers=NONMEMBERS, attacks="pfami", **SETTINGS)


def test_a_report_names_settings_where_others_have_timesteps():
    record, samples = audit_of({"sima": 1.0, "clid": 1.5}, n=400)
    changed = []
    for r in record.results:
        points = tuple(p.model_copy(update={"timestep": None, "setting": f"w={i / 30:.1f}"}) for i, p in enumerate(r.per_timestep))
        oracle = r.oracle.model_copy(update={"timestep": None, "setting": "w=0.8"})
        update = {"timestep": None, "setting": "w=0.3", "rule": "clid", "per_timestep": points, "oracle": oracle}
        changed.append(r if r.attack == "sima" else r.model_copy(update={**update, "queries_at_timestep": None}))
    record = record.model_copy(update={"results": tuple(changed), "headline": "clid"})
    console = Console(file=io.StringIO(), width=250)
    print_terminal(record, console)
    assert "w=0.3" in console.file.getvalue() and "w=0.8" in console.file.getvalue()
    page = html(record, samples)
    assert "w=0.3" in page and "None" not in page
    alone = record.model_copy(update={"results": tuple(changed[1:])})
    assert "there is no sweep to draw" in html(alone, samples)


def test_a_swap_audit_settles_the_differences_of_components(tmp_path):
    """Runs made by hand: two teachers, components that tell which of them saw an image."""
    ids = tuple(f"images/{i:04d}.png" for i in range(900))
    member = np.arange(900) < 600
    folders = []
    for number, own in ((1, np.arange(900) < 300), (2, member & (np.arange(900) >= 300))):
        folder, name = tmp_path / f"run-{number}", f"sha256:{number:064x}"
        difficulty = 3 * np.random.default_rng(9).normal(size=(900, 3))
        signal = lambda _, rng, own=own, difficulty=difficulty: own[:, None] * 1.0 + difficulty + 0.5 * rng.normal(size=(900, 3))
        make_run(folder, {"sima": signal}, ids, member, number, name, model=str(tmp_path / "dual" / f"teacher-{number}"))
        record = json.loads((folder / "audit.json").read_text())
        _as_components(folder, record)
        folders.append(str(folder))
    (tmp_path / "dual").mkdir()
    split = {"members": list(ids[:600]), "nonmembers": list(ids[600:]), "halves": [list(ids[:300]), list(ids[300:600])]}
    split["teachers"] = [f"sha256:{i:064x}" for i in (1, 2)]
    (tmp_path / "dual" / "split.json").write_text(json.dumps(split))
    swap = compare(folders).swap
    found = swap.results[0]
    assert (found.timestep, found.own_timesteps) == (None, (None, None)) and found.setting.startswith("w=")
    assert found.auc.value > 0.9 > max(own.value for own in found.own)


def _as_components(folder, record) -> None:
    """Rewrites a run of two of its columns as one that clid left: two components, high for members."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    result = record["results"][0]
    result |= {"timestep": None, "setting": "w=0.5", "rule": "clid", "direction": "large"}
    (folder / "audit.json").write_text(json.dumps(record))
    path = next((folder / "scores").glob("*.parquet"))
    table = pq.read_table(path)
    frame = table.to_pandas()
    columns = sorted(frame.timestep.unique())[:2]
    frame = frame[frame.timestep.isin(columns)]
    frame = frame.assign(timestep=frame.timestep.map({t: i for i, t in enumerate(columns)}).astype(np.int32), statistic=-frame.statistic)
    pq.write_table(pa.Table.from_pandas(frame, table.schema.remove_metadata(), preserve_index=False), path)


def test_pfami_on_a_latent_model_is_that_of_the_encoded_crops(latent_folder, digits, tmp_path):
    from diffleak.attacks.pfami import PFAMI
    from diffleak.data.pixels import to_model
    from diffleak.diffusion.noise import Noise

    folder = latent_folder()
    given = {"members": digits[:20], "nonmembers": digits[20:40], "timesteps": "40:80:40", **SETTINGS}
    audit = diffleak.audit(folder, attacks="pfami(crops=3,timesteps=40+80)", **given)
    target, row = diffleak.load(folder, device="cpu"), audit.scores[0].ids.index("members/7")
    x = torch.from_numpy(to_model(digits[7:8]))
    with torch.inference_mode():
        attack = PFAMI(crops=3, timesteps=(40, 80))
        z = target.codec.encode(x)
        noise = Noise(0, ("members/7",), tuple(z.shape[1:]))
        expected = attack.statistics(Subject(target.denoiser, z, noise, encode=target.codec.encode, images=lambda: x))
    np.testing.assert_allclose(audit.scores[0].statistic[row], expected[:, 0], rtol=1e-3)


def test_only_attacks_that_change_images_read_them_again(latent_folder, digits, monkeypatch):
    read: list[int] = []
    pixels = inputs.Inputs.pixels
    monkeypatch.setattr(inputs.Inputs, "pixels", lambda self, rows: (read.append(len(rows)), pixels(self, rows))[1])
    folder, given = latent_folder(), {"members": digits[:20], "nonmembers": digits[20:40], "timesteps": "40:80:40", **SETTINGS}
    diffleak.audit(folder, attacks="sima", **given)
    once = sum(read)
    read.clear()
    diffleak.audit(folder, attacks="pfami(crops=1,timesteps=40)", **given)
    assert sum(read) == once + 40


def test_a_geometry_of_attacks_that_sweep_nothing_has_no_curves_and_says_why(latent_folder, digits, tmp_path):
    sides = {"members": digits[:20], "nonmembers": digits[20:40]}
    for name, part in sides.items():
        np.save(tmp_path / f"{name}.npy", part)
    given = {name: str(tmp_path / f"{name}.npy") for name in sides} | {"model": str(latent_folder()), "output": tmp_path / "run"}
    attack = {"attacks": "pfami(crops=1,timesteps=40)", "mask": "influence", "timesteps": "40:80:40", "top": 3, **SETTINGS}
    config = build(GeometryConfig, {**given, **attack})
    audit = run(prepare(config), config.output, log=lambda line: None)
    geometry = audit.record.geometry
    assert (geometry.attack, geometry.quartiles, geometry.band) == (None, (), ())
    assert geometry.high_minus_low.reason == "no attack that sweeps timesteps was run"
    assert [r.attack for r in audit.results] == ["pfami(timesteps=40,crops=1)"], "it takes no mask"
    audit.save(config.output)
    assert "no attack that sweeps timesteps was run" in (config.output / "report.html").read_text()
