"""The studies' own checks, small: their inputs, their settings, and that the tables printed are the numbers recorded."""

import gzip
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import norm

from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.config import build, read_yaml
from diffleak.records.audit import AuditRecord
from diffleak.records.comparison import Comparison
from diffleak.training.config import train_config

STUDIES = Path(__file__).parents[1] / "studies"
NAMES = ("cifar10", "fashion-mnist")


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def raw(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cifar10", "splits", "fashion-mnist"):
        (tmp_path / name).mkdir()
    index = rng.permutation(4000)[:600]
    images, labels = rng.integers(0, 256, (600, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, (600, 1))
    np.savez(tmp_path / "cifar10" / "cifar10-lossless-train4000-test1000.npz", train_images=images, train_index=index, train_labels=labels)
    np.savez(tmp_path / "splits" / "CIFAR10_train_ratio0.5.npz", mia_train_idxs=np.arange(0, 4000, 2), mia_eval_idxs=np.arange(1, 4000, 2))
    header = bytes(16)
    pixels = rng.integers(0, 256, (3000, 28, 28), dtype=np.uint8).tobytes()
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels, 1))
    classes = rng.integers(0, 10, 3000, dtype=np.uint8).tobytes()
    (tmp_path / "fashion-mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header[:8] + classes, 1))
    return tmp_path


@pytest.mark.parametrize(("name", "size"), [("cifar10", "MEMBERS"), ("cifar10-latent", "LATENT_MEMBERS")])
def test_cifar10_members_come_from_the_public_members_and_held_out_images_from_the_rest(raw, tmp_path, monkeypatch, name, size):
    prepare = script("prepare")
    monkeypatch.setattr(prepare, "DEFENCES_MEMBERS", {"cifar10": 100})
    monkeypatch.setattr(prepare, "DEFENCES_HELD_OUT", 100)
    monkeypatch.setattr(prepare, "LATENT_MEMBERS", 200)  # of the 286 public members here; 1000 of those in the real data
    prepare.cifar10(raw, tmp_path)
    split = json.loads((tmp_path / f"{name}-split.json").read_text())
    with np.load(raw / "cifar10" / "cifar10-lossless-train4000-test1000.npz") as arrays:
        index = arrays["train_index"]
    assert len(set(split["members"])) == getattr(prepare, size)
    assert all(index[int(i)] % 2 == 0 for i in split["members"])
    assert sorted(map(int, split["nonmembers"])) == np.flatnonzero(index % 2 == 1).tolist()
    assert np.load(tmp_path / "cifar10.npy").shape == (600, 32, 32, 3)


@pytest.mark.parametrize(("name", "size", "side"), [("fashion-mnist", "MEMBERS", 28), ("fashion-mnist-32", "LATENT_MEMBERS", 32)])
def test_fashion_mnist_sides_are_disjoint_and_of_the_stated_sizes(raw, tmp_path, name, size, side):
    prepare = script("prepare")
    prepare.fashion_mnist(raw, tmp_path)
    split, members = json.loads((tmp_path / f"{name}-split.json").read_text()), getattr(prepare, size)
    assert (len(split["members"]), len(split["nonmembers"])) == (members, prepare.FASHION_HELD_OUT)
    assert not set(split["members"]) & set(split["nonmembers"])
    images = np.load(tmp_path / f"{name}.npy")
    assert images.shape == (members + prepare.FASHION_HELD_OUT, side, side)
    assert side == 28 or images[:, [0, 1, -2, -1]].max() == images[:, :, [0, 1, -2, -1]].max() == 0 < images[:, 2, 2].max()


def test_the_sides_of_the_study_of_defences_and_what_its_extractors_learn_from_do_not_meet(raw, tmp_path, monkeypatch):
    prepare = script("prepare")
    monkeypatch.setattr(prepare, "DEFENCES_MEMBERS", {"cifar10": 100, "fashion-mnist": 400})
    monkeypatch.setattr(prepare, "DEFENCES_HELD_OUT", 100)
    monkeypatch.setattr(prepare, "LATENT_MEMBERS", 200)
    prepare.cifar10(raw, tmp_path)
    prepare.fashion_mnist(raw, tmp_path)
    sides = json.loads((tmp_path / "cifar10-defences-split.json").read_text())
    others = json.loads((tmp_path / "cifar10-others-split.json").read_text())["members"]
    assert sorted(map(int, [*sides["members"], *sides["nonmembers"], *others])) == list(range(600))
    images = np.load(tmp_path / "fashion-mnist.npy")
    with np.load(tmp_path / "fashion-mnist-others.npz") as arrays:
        seen = {image.tobytes() for image in images}
        assert not any(image.tobytes() in seen for image in arrays["images"])
        assert len(arrays["images"]) == len(arrays["labels"]) == 3000 - len(images)


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_a_study_are_valid_and_those_of_its_record(name):
    config = train_config(None, STUDIES / name / "train.yaml", data="x.npy", output="y")
    assert config.model["block_out_channels"][0] == 32
    audit = build(AuditConfig, read_yaml(STUDIES / name / "audit.yaml"), {"data": "x.npy", "split": "s.json"})
    record = AuditRecord.model_validate_json((STUDIES / name / "audit.json").read_text())
    then = [attack.replace("(sigma_scale=fixed)", "") for attack in audit.attacks]  # which was the default of noise aggregation
    assert [r.attack for r in record.results] == then
    assert record.settings["timesteps"] == audit.timesteps
    trained = yaml.safe_load((STUDIES / name / "train.yaml").read_text())
    assert f"{trained['steps']:,} steps" in (STUDIES / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_table_in_the_text_is_the_record(name):
    record = AuditRecord.model_validate_json((STUDIES / name / "audit.json").read_text())
    assert script("table").table(record) in (STUDIES / "README.md").read_text()


BEFORE_GRADIENT = ("cifar10-128-1500", "cifar10-latent-vae-1250")  # audited before that attack was there
SHOWN_WHOLE = (*BEFORE_GRADIENT, "cifar10-128-2500", "cifar10-latent-vae-2500")
SHARPER = sorted(path.parent.name for path in (STUDIES / "sharper").glob("*/audit.json"))


@pytest.mark.parametrize("name", SHARPER)
def test_the_tables_of_sharper_attacks_are_their_records_whose_scores_lie_beside_them(name):
    folder, said = STUDIES / "sharper" / name, (STUDIES / "README.md").read_text()
    record = AuditRecord.model_validate_json((folder / "audit.json").read_text())
    assert all(row in said for row in script("sharper/summary").rows(name, record)) and (folder / "samples.csv.gz").exists()
    assert name not in SHOWN_WHOLE or script("table").table(record) in said
    audit = build(AuditConfig, read_yaml(STUDIES / "sharper" / "audit.yaml"), {"data": "x.npy", "split": "s.json"})
    attacks = [attack for attack in audit.attacks if attack != "gradient" or name not in BEFORE_GRADIENT]
    assert record.settings["attacks"] == attacks and record.settings["timesteps"] == audit.timesteps
    assert not re.search(r"[ '=]/", record.command), "no absolute path of a machine"


@pytest.mark.parametrize("name", ["grid", "grid-16"])
def test_the_tables_of_the_whole_grid_are_its_rows(name):
    assert script("sharper/grid").table(STUDIES / "sharper" / f"{name}.csv.gz") in (STUDIES / "README.md").read_text()


@pytest.mark.parametrize("name", [*NAMES, "cifar10-vae", "cifar10-vq", "fashion-mnist-vae", "fashion-mnist-vq"])
def test_rates_of_an_earlier_definition_are_left_out_and_those_of_this_one_have_their_scores_beside_them(name):
    record = AuditRecord.model_validate_json((STUDIES / name / "audit.json").read_text())
    printed, scores = script("table").tables(record), STUDIES / name / "samples.csv.gz"
    assert (record.schema_version == 1) == ("TPR at 1 % FPR" not in printed) == (not scores.exists())


def test_what_is_left_out_follows_the_record():
    record = AuditRecord.model_validate_json((STUDIES / NAMES[0] / "audit.json").read_text())
    later = script("table").table(record.model_copy(update={"schema_version": 2})).splitlines()
    earlier = script("table").table(record).splitlines()
    cut = [" | ".join(cells[:3] + cells[5:]) for cells in (line.strip("| ").split(" | ") for line in later)]
    assert [line.strip("| ") for line in earlier] == cut and len(earlier) == len(record.results) + 2
    assert "TPR at 10 % FPR" in later[0] and "TPR at" not in earlier[0]


LATENT = ("cifar10-vae", "cifar10-vq", "fashion-mnist-vae", "fashion-mnist-vq")


@pytest.mark.parametrize("name", LATENT)
def test_the_tables_of_a_latent_study_are_its_record_and_its_settings_those_of_its_files(name):
    folder, text = STUDIES / name, (STUDIES / "README.md").read_text()
    record = AuditRecord.model_validate_json((folder / "audit.json").read_text())
    assert script("table").tables(record) in text
    trained = train_config(None, folder / "train.yaml", data="x.npy", output="y", autoencoder="z")
    encoder = train_config(None, folder / "autoencoder.yaml", data="x.npy", output="y")
    assert f"{trained.steps:,} steps" in text and f"{encoder.steps:,} steps" in text
    kind, file = (GeometryConfig, "geometry.yaml") if name.endswith("vae") else (AuditConfig, "audit.yaml")
    config = build(kind, read_yaml(folder / file), {"data": "x.npy", "split": "s.json"})
    assert record.plan.masks == tuple(m if ":" in m else f"{m}:0.4" for m in config.mask)
    assert [r.attack for r in record.results if r.mask is None] == list(config.attacks)
    sima = record.result("sima").auc.value
    assert 0.65 <= sima <= 0.95, "trained until it leaks, not until it is saturated"


@pytest.mark.parametrize("name", ["compare", "captions-compare", "empty-compare"])
def test_the_tables_of_the_study_of_text_models_are_its_records(name):
    record = Comparison.model_validate_json((STUDIES / "text" / f"{name}.json").read_text())
    assert script("table").text_table(record) in (STUDIES / "README.md").read_text()
    assert max(r.auc.value for r in record.baseline.results) >= 0.85, "the study asks for a model that leaks"


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_the_tables_of_the_study_of_defences_are_its_records(name):
    text = (STUDIES / "README.md").read_text()
    record = Comparison.model_validate_json((STUDIES / "defences" / f"{name}-compare.json").read_text())
    table = script("table")
    assert table.defence_table(record) in text and table.swap_table(record) in text
    trained = train_config(None, STUDIES / "defences" / f"{name}.yaml", data="x.npy", output="y")
    assert f"{trained.steps:,}" in text.partition("# Defences")[2]
    undefended = max(r.auc.value for r in record.baseline.results)
    assert undefended >= 0.85, "the study asks for a model that leaks"


def test_a_thousand_a_side_choose_nearly_as_well_as_all_do_and_thirty_do_not():
    study = script("decisions/calibrate_first")
    lost = {}
    for few in (1000, 30):
        rng = np.random.default_rng(0)
        runs = np.array([study.chosen(0.6, 10.0, 0.9, rng, few, 2500) for _ in range(30)])[:, 0]
        lost[few] = runs.mean(), runs.std(ddof=1) / np.sqrt(len(runs))
    assert lost[1000][0] < 0.003 + 2 * lost[1000][1], "of true AUC, with the Monte-Carlo error"
    assert lost[30][0] - 2 * lost[30][1] > 0.003, "so the simulation tells a good number from a bad one"


def test_the_study_of_rules_knows_the_errors_of_its_aucs_and_how_to_weigh_them():
    study, rng = script("decisions/calibrate_first"), np.random.default_rng(0)
    found = [study.with_errors(*study.drawn(0.6, 10.0, 0.9, rng, 150)[1:]) for _ in range(300)]
    spread, said = np.cov(np.array([aucs for aucs, _ in found]).T), np.mean([covariance for _, covariance in found], axis=0)
    assert np.abs(said / spread - 1)[[0, 10, 10, 29], [0, 10, 11, 29]].max() < 0.25, "300 draws give a variance to 8 %"
    curves, exact = np.array([study.aucs_of(0.6, 3.0, at) for at in range(30)]), 1e-8 * np.eye(30)
    assert all(study.expected(curves, curves[at], exact).argmax() == at for at in (0, 12, 29))
    assert np.abs(study.smoothed(curves[12], exact) - curves[12]).max() < 1e-3
    noisy, errors = curves[12] + 0.03 * rng.standard_normal((200, 30)), 0.03**2 * np.eye(30)
    hits = [
        np.mean([abs(f(aucs).argmax() - 12) <= 1 for aucs in noisy])
        for f in (lambda aucs: aucs, lambda aucs: study.smoothed(aucs, errors), lambda aucs: study.expected(curves, aucs, errors))
    ]
    assert hits[0] < hits[1] - 0.05 and hits[1] <= hits[2] + 0.05


def test_a_coarse_sweep_chooses_as_well_as_a_whole_one_on_the_same_images():
    study, rng = script("decisions/calibrate_first"), np.random.default_rng(0)
    lost = np.array([study.coarse(0.6, 3.0, 0.9, rng) for _ in range(60)])
    mean, error = lost.mean(axis=0), lost.std(axis=0, ddof=1) / np.sqrt(len(lost))
    assert (mean < 0.003 + 2 * error).all(), "of true AUC, with the Monte-Carlo error"
    assert (lost > 0).any(), "some choices are worse, so the simulation could find a loss"


def test_the_study_of_coarse_sweeps_chooses_as_they_do_and_finds_what_a_narrow_peak_loses(monkeypatch):
    monkeypatch.syspath_prepend(STUDIES / "decisions")
    study, choice = script("decisions/coarse"), script("decisions/calibrate_first").coarse_choice
    assert [choice(np.array(aucs)) for aucs in ([0.5, 0.9, 0.6, 0.5], [0.7, 0.6, 0.5, 0.9, 0.6], [0.9, 0.5, 0.5, 0.6, 0.7])] == [1, 0, 4]
    member = np.arange(400) < 200
    scores = np.random.default_rng(0).normal(size=(400, 9))
    scores[member, 5] += 3  # beside the best of every third timestep only by chance
    auc, less, same = study.lost(scores, member, 20).T
    assert auc.mean() > 0.97 and (less[same == 0] > 0.3).all() and (less[same == 1] == 0).all() and 0 < same.mean() < 1


def test_the_study_of_near_duplicates_draws_them_as_alike_as_it_says():
    study, rng = script("decisions/drawn_together"), np.random.default_rng(0)
    for alike in (0.0, 0.6, 0.9):
        drawn = study.draw(rng, 20000, 2, alike)
        assert abs(np.corrcoef(norm.ppf(drawn).T)[0, 1] - alike) < 4 / np.sqrt(20000), "four standard errors, or less"
        assert np.abs(np.quantile(drawn, (0.1, 0.5, 0.9)) - (0.1, 0.5, 0.9)).max() < 4 * 0.5 / np.sqrt(20000)
    same = study.draw(rng, 50, 3, 1.0)
    assert (same == same[:, :1]).all() and len(np.unique(same)) == 50


def test_the_study_of_near_duplicates_finds_what_counting_each_of_them_costs(monkeypatch, capsys):
    """The first and a bad row of each table of docs/design/018e, in 200 runs: rates with two Monte-Carlo standard errors."""
    study, runs = script("decisions/drawn_together"), 200
    most = lambda share: share + 2 * np.sqrt(share * (1 - share) / runs)
    monkeypatch.setattr(study, "EXTRACTED", (study.EXTRACTED[0], study.EXTRACTED[2], study.EXTRACTED[6]))
    monkeypatch.setattr(study, "MEASURED", (study.MEASURED[0], study.MEASURED[2]))
    monkeypatch.setattr(study, "LORA", (study.LORA[0], study.LORA[2]))
    study.main(runs)
    tables = [table.splitlines()[2:] for table in capsys.readouterr().out.strip().split("\n\n")]
    shares = lambda line, skip: [float(share) / 100 for share in re.findall(r"([\d.]+)%", line.split("|", skip + 1)[-1])]
    alone, alike, copied = (shares(line, 4) for line in tables[0])
    assert len({*alone[::2]}) == 1 and alone[0] <= most(study.ALARM), "without near-duplicates every count is the same"
    assert alike[2] > most(study.ALARM) > alike[6] and min(alone[1::2]) > 0.95, (
        "the nearest of each is a finding by chance, one of each is not"
    )
    assert copied[0] < 0.95 < copied[3], "the rate of all images is not covered as often as it is said to be, that of one of each is"
    alone, repeated = (shares(line, 2) for line in tables[1])
    assert alone[:2] == [alone[0]] * 2 and alone[2:4] == alone[4:6] and alone[2] <= most(0.05)
    assert repeated[2] > most(0.05) >= repeated[4], "p-values of KID differences are too small where every image counts"
    alone, repeated = (shares(line, 1) for line in tables[2])
    assert alone[0] == alone[1] <= most(0.05) and repeated[0] > most(0.05) > repeated[1]
