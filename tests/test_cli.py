"""The command line as a user meets it: what is printed where, exit codes, one line per mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.commands import call, refused
from fixtures.models import LEVELS, WIDER, save_untrained
from fixtures.processes import DIFFLEAK, Forked
from fixtures.text import CAPTIONS, text_folder
from PIL import Image

from diffleak import cli
from diffleak.attacks import ATTACKS
from diffleak.stats.rules import LOGISTIC

pytestmark = pytest.mark.usefixtures("few_divisions")
RNG = np.random.default_rng(0)
SETTINGS = ["--attacks", "sima,loss", "--timesteps", "50:100:50", "--device", "cpu", "--batch-size", "16", "--threads", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("model"), in_channels=3, out_channels=3)


@pytest.fixture
def sides(tmp_path) -> list[str]:
    for name in ("members", "nonmembers"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(12):
            Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{name}-{i:02d}.png")
    return ["--members", str(tmp_path / "members"), "--nonmembers", str(tmp_path / "nonmembers")]


def test_audit_prints_the_table_and_writes_the_run(capsys, model, sides, tmp_path):
    code, out, err = call(capsys, "audit", model, *sides, *SETTINGS, "-o", tmp_path / "run")
    assert code == 0
    assert err.startswith("plan: 12 members and 12 held-out images (8 x 8 RGB), 2 attacks, 4 denoiser queries per image, 96 in all")
    assert "sima" in out
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out
    assert (tmp_path / "run" / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_json_is_the_record_and_nothing_else_on_stdout(capsys, model, sides, tmp_path):
    code, out, _ = call(capsys, "audit", model, *sides, *SETTINGS, "-o", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "run" / "audit.json").read_text())


def test_dry_run_writes_nothing(capsys, model, sides, tmp_path):
    code, out, _ = call(capsys, "audit", model, *sides, *SETTINGS, "-o", tmp_path / "run", "--dry-run")
    assert code == 0
    plan, time = out.splitlines()
    assert plan.startswith("plan: 12 members") and re.fullmatch(r"time: about \d+ s", time), "nothing is left of what was not begun"
    assert not (tmp_path / "run").exists()


def test_report_renders_again_with_thumbnails_and_markdown(capsys, model, sides, tmp_path):
    call(capsys, "audit", model, *sides, *SETTINGS, "-o", tmp_path / "run")
    first = (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "report.html").unlink()
    assert call(capsys, "report", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "report.html").read_text() == first
    assert "data:image/png" not in first
    code, out, _ = call(capsys, "report", tmp_path / "run", "--thumbnails", "--markdown")
    assert code == 0
    assert "| sima |" in out.replace("**", "")
    assert "data:image/png" in (tmp_path / "run" / "report.html").read_text()


def test_settings_may_come_from_a_file_and_flags_win(capsys, model, sides, tmp_path):
    file = tmp_path / "audit.yaml"
    file.write_text("attacks: ['sima', 'sima_mc(m=2,variant=norms)']\ntimesteps: 50\nskip-unreadable: true\nseed: 3\n")
    code, out, _ = call(capsys, "audit", model, *sides, "-C", file, "--seed", 4, "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert [a["attack"] for a in plan["attacks"]] == ["sima", "sima_mc(m=2,variant=norms)"]
    assert (plan["seed"], plan["attacks"][0]["timesteps"]) == (4, [50])


def test_gates_give_exit_code_three_after_writing_everything(capsys, model, sides, tmp_path):
    code, out, err = call(capsys, "audit", model, *sides, *SETTINGS, "-o", tmp_path / "run", "--max-auc", "0.75")
    assert code == 3
    gates = json.loads((tmp_path / "run" / "audit.json").read_text())["gates"]
    assert [g["attack"] for g in gates] == ["sima", "loss"] and not all(g["passed"] for g in gates)
    for gate in gates:
        line = f"{gate['attack']}: {gate['quantity']} may reach {gate['reach']:.3f}, "
        assert f"{'passed' if gate['passed'] else 'failed'}: {line}" in " ".join(out.split())
        assert (line + "above the limit of 0.75" in err.splitlines()) == (not gate["passed"])


def test_a_limit_that_so_few_images_cannot_meet_is_one_line_before_anything_is_scored(capsys, model, sides, tmp_path):
    for more in ((), ("--dry-run",)):
        line = refused(capsys, "audit", model, *sides, *SETTINGS, "-o", tmp_path / "run", "--max-auc", "0.6", *more)
        assert "with 12 members and 12 held-out images" in line and "give at least 80 images on each side" in line
    assert not (tmp_path / "run").exists()


def test_an_invalid_audit_gives_exit_code_four_after_writing_everything(capsys, model, tmp_path):
    np.save(tmp_path / "m.npy", RNG.integers(128, 256, (60, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "n.npy", RNG.integers(0, 128, (60, 8, 8, 3), dtype=np.uint8))
    arguments = ["audit", model, "--members", tmp_path / "m.npy", "--nonmembers", tmp_path / "n.npy", *SETTINGS, "-o", tmp_path / "run"]
    code, out, err = call(capsys, *arguments, "--max-auc", "0.9")
    assert code == 4
    assert "different sources" in err and "No limit was checked." in err
    record = json.loads((tmp_path / "run" / "audit.json").read_text())
    report = (tmp_path / "run" / "report.html").read_text()
    assert record["valid"] is False and record["gates"] == [] and len(record["results"]) == 2
    assert not [w for w in record["warnings"] if "differ without the model" in w]
    for shown in (out, report, call(capsys, "report", tmp_path / "run")[1]):
        assert "Invalid" in shown and not [r for r in record["results"] if f"{r['auc']['value']:.3f}" in shown]
    printed = json.loads(call(capsys, "report", tmp_path / "run", "--json")[1])
    assert printed["valid"] is False and "different sources" in printed["invalid_reason"] and printed["results"] == record["results"]
    code, out, _ = call(capsys, *arguments, "--allow-shift")
    assert code == 0 and "mix membership with that difference" in " ".join(out.split())
    assert f"{record['results'][0]['auc']['value']:.3f}" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--attacks", "simma"], "unknown attack 'simma'; did you mean 'sima'"),
        (["--attacks", "sima_mc(n=3)"], "unknown parameter of sima_mc 'n'"),
        (["--attacks", "sima,sima"], "each attack must be listed once; sima"),
        (["--timesteps", "0:1000:100"], r"timesteps must lie in [0, 1000)"),
        (["--timesteps", "ten"], "--timesteps must be start:stop:step"),
        (["--shard", "3/2"], "--shard i/n needs 1 <= i <= n; got 3/2"),
        (["--batch-size", "0"], "--batch-size must be 'auto' or a whole number of at least 1"),
        (["--dtype", "float31"], "unknown dtype 'float31'; did you mean 'float32'"),
        (["--device", "quantum"], "device 'quantum' cannot be used"),
        (["--data", "digits"], "give --members and --nonmembers, or --data and --split, not both"),
        (["--max-auc", "1.5"], "--max-auc must be at most 1; got 1.5"),
        (["--atacks", "sima"], "No such option: --atacks"),
    ],
)
def test_wrong_settings_are_one_line(capsys, model, sides, tmp_path, change, message):
    assert message in refused(capsys, "audit", model, *sides, *SETTINGS, "-o", tmp_path / "run", *change)


def test_a_wrong_value_is_named_as_the_user_named_it(capsys, model, sides, tmp_path):
    file, run = tmp_path / "audit.yaml", ("audit", model, *sides, *SETTINGS, "-o", tmp_path / "run")
    file.write_text("limit: 0\nmax_auc: true\ncalibrate-fraction: 0.001\n")
    assert "diffleak: max_auc must not be true or false" in refused(capsys, *run, "-C", file)
    other = tmp_path / "lora.yaml"
    other.write_text("nonmembers: yes\n")
    lora = ("lora", "b", "a", "--pictures", "c", "-o", tmp_path / "lora", "-C", other)
    assert "diffleak: nonmembers must not be true or false" in refused(capsys, *lora), "by its second name"
    given = (*run, "-C", file, "--max-auc", 0.6)
    assert "diffleak: limit must be at least 1; got 0" in refused(capsys, *given)
    assert "diffleak: --limit must be at least 1; got -3" in refused(capsys, *given, "--limit", -3)
    said = "must leave images in both parts; 0.001 of 12 images"
    assert f"diffleak: calibrate_fraction {said}" in refused(capsys, *given, "--limit", 12)
    assert f"diffleak: --calibrate-fraction {said}" in refused(capsys, *given, "--limit", 12, "--calibrate-fraction", 0.001)
    assert "diffleak: --probes must be at least 1" in refused(capsys, *run, "--probes", 0), "no file"
    assert "diffleak: sima: timesteps must be start:stop:step" in refused(capsys, *run, "--attacks", "sima(timesteps=ten)"), "of an attack"


WITHOUT_TORCH = """
import sys

sys.modules["torch"] = None  # importing it fails
from diffleak import cli

for line in sys.stdin:
    sys.argv = ["diffleak", *line.split()]
    try:
        cli.main()
    except SystemExit as stopped:
        print(stopped.code, file=sys.stderr)
"""


def test_images_models_and_adapters_that_are_not_there_are_refused_before_torch_is_loaded(model, sides, tmp_path):
    there = sides[1]
    audit = f"audit {model} --members {there} --nonmembers {there} -o r"
    (tmp_path / "x.safetensors").write_bytes(b"x")
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "sweep.json").write_text("{}")
    cases = {
        f"audit {model} --members {there} --nonmembers nowhere -o r": "found nothing at nowhere",
        f"audit nowhere --members {there} --nonmembers {there} -o r": "MODEL must be a diffusers folder",
        f"audit {model} --lora none-*.safetensors --members {there} --nonmembers {there} -o r": "nothing matches none-*.safetensors",
        f"audit none-* --members {there} --nonmembers {there} -o r": "nothing matches none-*",
        f"geometry {model} --data nowhere.npy -o r": "found nothing at nowhere.npy",
        f"inquire {model} --images nowhere --control {there} -o r": "found nothing at nowhere",
        f"extract {model} --members nowhere -o r": "found nothing at nowhere",
        f"quality {model} --real nowhere -o r": "found nothing at nowhere",
        "train --data nowhere -o r": "found nothing at nowhere",
        f"train --data {there} --base nowhere -o r": "--base must be a diffusers folder",
        "defend dual --data nowhere -o r": "found nothing at nowhere",
        "prompts nowhere --prompts p.txt": "MODEL must be a diffusers folder",
        f"lora {model} none-*.safetensors --pictures {there} -o r": "nothing matches none-*.safetensors",
        f"lora {model} {tmp_path}/x.safetensors --pictures {there} -o r": "cannot be read",
        f"lora {model} {there} --pictures {there} -o r": "has none of",
        f"lora {model} {there} --pictures nowhere -o r": "found nothing at nowhere",
        f"lora nowhere {there} --pictures {there} -o r": "BASE must be a diffusers folder",
        f"audit {model} --reference nowhere --members {there} --nonmembers {there} -o r": "--reference must be a diffusers folder",
        f"audit {model} --reference base --members {there} --nonmembers {there} -o r": "it needs --lora or --embedding",
        f"compare {there} nowhere": "has no audit.json",
        f"{audit} --network nowhere": "--network must be a folder or a file of weights; found nothing at nowhere",
        f"{audit} --lora {tmp_path}/x.safetensors@0.5,gone.safetensors": "--lora must be a file, a folder or a hub id (owner/name); found",
        f"{audit} --lora gone@2": "found nothing at gone",
        f"{audit} --embedding gone.pt@<kay>": "--embedding must be a file, a folder or a hub id (owner/name); found nothing at gone.pt",
        f"{audit} --model-config gone": "--model-config must be a folder or a hub id (owner/name); found nothing at gone",
        f"{audit} --captions gone.json": "--captions must be own, empty, fixed:TEXT, swapped or a file; got 'gone.json', and found nothing",
        f"audit {model} --data {there} --split gone.json -o r": "--split must be a file; found nothing at gone.json",
        f"extract {model} --members {there} --extractor sscd:gone.pt -o r": "--extractor must be a TorchScript file; found",
        f"extract {model} --members {there} --extractor gone.torchscript -o r": "--extractor must be a TorchScript file",
        f"quality {model} --real {there} --extractor dinov2:gone -o r": "--extractor must be a folder or a hub id (owner/name)",
        f"quality {model} --real {there} --copy-encoder inception:gone.pth -o r": "--copy-encoder must be a TorchScript file; found",
        f"quality {model} --real {there} --clip gone -o r": "--clip must be a folder or a hub id",
        f"quality {model} --real {there} --prompts gone.txt -o r": "--prompts must be a file; found nothing at gone.txt",
        f"prompts {model} --memorised gone.txt --ordinary p.txt": "--memorised must be a file; found nothing at gone.txt",
        f"train --data {there} --autoencoder gone --preset latent -o r": "--autoencoder must be a folder; found nothing at gone",
        f"train --data {there} --base {model} --captions gone -o r": "--captions must be own, or a file; found nothing at gone",
        f"defend dual --data {there} --teachers {model},gone -o r": "--teachers must be a folder; found nothing at gone",
        f"defend dual --data {there} --teachers {model},{model} --halves gone -o r": "--halves must be a file; found nothing at gone",
        f"caption {there} --captioner gone -o r.jsonl": "--captioner must be a folder or a hub id (owner/name); found nothing at gone",
        "convert gone.pt -o r": "CHECKPOINT must be a file; found nothing at gone.pt",
        f"convert {tmp_path}/x.safetensors --settings gone -o r": "--settings must be a file; found nothing at gone",
        f"lora {model} {tmp_path}/x.safetensors --pictures {there} --captions gone -o r": "--captions must be own, empty",
        f"{audit[:-1]} {tmp_path}/x.safetensors": "x.safetensors cannot be written (it is a file); choose another with -o",
        f"check --members {there} --nonmembers {there} -o {tmp_path}/x.safetensors/r": "cannot be written (Not a directory)",
        f"compare {there} {there} --latex {tmp_path}/swept": "swept cannot be written (it is a folder); choose another with --latex",
        f"compare {there} {there} --csv {tmp_path}/x.safetensors/r": "cannot be written (Not a directory); choose another with --csv",
        f"split {there} --coin -o {tmp_path}": "cannot be written (it is a folder); choose another with -o",
        f"split {there} --coin -o s.json --copy {tmp_path}/x.safetensors": "cannot be written (it is a file); choose another with --copy",
        f"caption {there} -o {tmp_path}/x.safetensors/r.jsonl": "cannot be written (Not a directory); choose another with -o",
        f"audit {model} --members {there} --nonmembers {there} -o {there}": "is the folder of the images that --members names; choose",
        f"{audit} --drawings {tmp_path}/x.safetensors": "cannot be written (it is a file); choose another with --drawings",
        f"{audit} --anonymous --anonymous-key {tmp_path}/swept": "cannot be written (it is a folder); choose another with --anonymous-key",
        f"demo -o {tmp_path}/x.safetensors": "cannot be written (it is a file); choose another with -o",
        f"compare {there} {there} -o {tmp_path}/swept": "is the folder of an audit of several checkpoints (sweep.json)",
        f"lora {model} {there} --pictures {there} -o {tmp_path}/swept": "is the folder of an audit of several checkpoints (sweep.json)",
    }
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], input="\n".join(cases), capture_output=True, text=True, cwd=tmp_path)
    lines = run.stderr.splitlines()
    assert len(lines) == 2 * len(cases), run.stderr
    for (command, said), line, code in zip(cases.items(), lines[::2], lines[1::2], strict=True):
        assert said in line and code == "2", (command, line, code)
    assert not (tmp_path / "r").exists()


def test_a_folder_that_may_not_be_written_is_refused_before_images_are_read(capsys, sides, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) != tmp_path / "closed")  # modes of folders do not bind a superuser
    for option in ("-o", "--drawings"):
        said = refused(capsys, "audit", "nobody/model", *sides, "-o", tmp_path / "r", option, tmp_path / "closed" / "r")
        assert f"cannot be written (Permission denied); choose another with {option}" in said


def test_results_do_not_go_into_the_folder_of_a_model(capsys, model, sides, tmp_path):
    data = ("--data", tmp_path / "members")
    for command in (
        ("audit", model, *sides),
        ("geometry", model, *data),
        ("quality", model, "--real", tmp_path / "members"),
        ("extract", model, "--members", tmp_path / "members"),
        ("check", *sides),
    ):
        before = sorted(Path(model).rglob("*"))
        assert f"{model} is the folder of a " in refused(capsys, *command, "-o", model), command
        assert sorted(Path(model).rglob("*")) == before


def test_an_unknown_config_key_names_the_nearest(capsys, model, sides, tmp_path):
    file = tmp_path / "audit.yaml"
    file.write_text("timestep: 50\n")
    assert "unknown config key 'timestep'; did you mean 'timesteps'" in refused(
        capsys, "audit", model, *sides, "-C", file, "-o", tmp_path / "run"
    )
    file.write_text("- a list\n")
    assert "must hold keys and values; got list" in refused(capsys, "audit", model, *sides, "-C", file)
    file.write_text("a: [")
    assert "cannot be read as YAML" in refused(capsys, "audit", model, *sides, "-C", file)


def test_wrong_data_is_one_line(capsys, model, sides, tmp_path):
    run = ["-o", tmp_path / "run"]
    nothing = tmp_path / "empty"
    nothing.mkdir()
    members, nonmembers = tmp_path / "members", tmp_path / "nonmembers"
    audit = ["audit", model, *SETTINGS, *run]
    assert "found nothing at" in refused(capsys, *audit, "--members", tmp_path / "no", "--nonmembers", nonmembers)
    assert "must contain images" in refused(capsys, *audit, "--members", nothing, "--nonmembers", nonmembers)
    assert "must be given as --members and --nonmembers" in refused(capsys, *audit, "--members", members)
    assert "needs a run folder" in refused(capsys, "audit", model, *SETTINGS, *sides)
    assert "at least 10 members and 10 held-out images; got 5 and 5" in refused(capsys, *audit, *sides, "--limit", 5)

    (members / "broken.png").write_bytes((members / "members-00.png").read_bytes()[:60])
    assert "broken.png" in refused(capsys, *audit, *sides)
    code, _, _ = call(capsys, *audit, *sides, "--skip-unreadable")
    assert code == 0
    record = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert record["omitted"][0].startswith("broken.png")
    (members / "broken.png").unlink()

    Image.fromarray(RNG.integers(0, 256, (10, 8, 3), dtype=np.uint8)).save(nonmembers / "tall.png")
    message = refused(capsys, *audit, *sides)
    assert "1 of 25 images does not have the shape the model takes, 8 x 8 RGB (first: tall.png is 10 x 8 RGB)" in message
    (nonmembers / "tall.png").unlink()

    Image.open(members / "members-03.png").save(nonmembers / "copy.bmp")
    assert "1 image is on both sides, pixel for pixel: members-03.png = copy.bmp" in refused(capsys, *audit, *sides)


def test_resizing_is_recorded(capsys, model, sides, tmp_path):
    Image.fromarray(RNG.integers(0, 256, (20, 16), dtype=np.uint8)).save(tmp_path / "members" / "grey.png")
    assert call(capsys, "audit", model, *sides, *SETTINGS, "--resize", "-o", tmp_path / "run")[0] == 0
    record = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert record["plan"]["resize"] is True
    assert any("resized" in w for w in record["warnings"])


def test_a_broken_model_is_one_line(capsys, model, sides, tmp_path):
    arguments = [*sides, *SETTINGS, "-o", tmp_path / "run"]
    assert "found nothing at" in refused(capsys, "audit", tmp_path / "no-model", *arguments)
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    assert "must be a diffusers model folder; unet/config.json is missing" in refused(capsys, "audit", hollow, *arguments)


def test_a_run_folder_that_is_none_is_one_line(capsys, tmp_path):
    assert "has no audit.json" in refused(capsys, "report", tmp_path)
    (tmp_path / "audit.json").write_text("{}")
    assert "cannot be read as schema version 2" in refused(capsys, "report", tmp_path)


def test_attacks_lists_every_attack(capsys, monkeypatch):
    code, out, _ = call(capsys, "attacks", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["attack"] for row in rows] == list(ATTACKS)
    seen_only = {"black_box": "black-box", "noise_probe": "black-box", "gradient": "white-box"}
    assert all(row["access"] == seen_only.get(row["attack"], "grey-box") and row["source"] for row in rows)
    about = "How large the noise is that the model predicts at the clean image. A small norm means member."
    assert {row["attack"]: row["about"] for row in rows}["sima"] == about
    queries = {row["attack"]: (row["queries_one_timestep"], row["queries_default_sweep"]) for row in rows}
    expected = {"sima": (1, 30), "pia": (2, 31), "secmi": (11, 32), "noise_aggregation": (5, 135), "pfami": (110, 110), "clid": (15, 15)}
    assert queries.items() >= expected.items(), "secmi at its published timestep, 90"
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call(capsys, "attacks")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert code == 0 and lines.keys() >= ATTACKS.keys()
    assert "all in one logistic regression (combined; without gradient and the classifier of black_box)" in out
    alone = {name for name, attack in ATTACKS.items() if attack().settled_by == LOGISTIC}
    assert alone == {"gradient"} and ATTACKS["black_box"](variant="classifier").settled_by == LOGISTIC, "what is a regression itself"
    assert " 1 / 30 " in lines["sima"] and " 110 " in lines["pfami"] and "/" not in lines["pfami"].split("2308")[0]
    assert "p=4.0, m=30, variant=mean" in lines["sima_mc"] and "timesteps=0:450:50, crops=10" in lines["pfami"]
    assert "default sweep: 10:300:10, for flow matching 50:950:50 of 1000 timesteps" in " ".join(out.split())


def test_selfcheck_passes_and_says_so(capsys):
    code, out, _ = call(capsys, "selfcheck", "--json")
    assert code == 0
    checks = json.loads(out)
    every = [name for name, kind in ATTACKS.items() if kind.in_all and not kind.needs_text]
    assert [check["attack"] for check in checks] == [*every, "gradient", "combined"]
    assert all(check["memoriser"] == 1.0 and check["passed"] for check in checks)


def test_selfcheck_fails_when_an_attack_is_wrong(capsys, monkeypatch):
    from diffleak.attacks.sima import SimA

    monkeypatch.setattr(
        SimA, "residuals", lambda self, subject: (subject.eps(subject.x0, t) * 0 + subject.noise(0) for t in self.timesteps)
    )
    for name in set(ATTACKS) - {"sima", "loss"}:  # the others are checked above
        monkeypatch.setattr(ATTACKS[name], "in_all", False)
    monkeypatch.setattr(import_module("diffleak.auditing.selfcheck"), "SIDE", 40)
    code, out, err = call(capsys, "selfcheck")
    assert code == 1
    lines = {line.split()[0]: line.split()[-1] for line in out.splitlines()}
    assert (lines["sima"], lines["loss"]) == ("FAILED", "ok")
    assert "selfcheck failed" in err


def test_metrics_of_samples_equal_those_of_the_audit(capsys, model, sides, tmp_path):
    np.save(tmp_path / "m.npy", RNG.integers(0, 256, (220, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "n.npy", RNG.integers(0, 256, (220, 8, 8, 3), dtype=np.uint8))
    files = ["--members", tmp_path / "m.npy", "--nonmembers", tmp_path / "n.npy"]
    assert call(capsys, "audit", model, *files, *SETTINGS, "-o", tmp_path / "run")[0] == 0
    record = json.loads((tmp_path / "run" / "audit.json").read_text())["results"][0]
    _, out, _ = call(capsys, "metrics", tmp_path / "run" / "samples.csv", "--score", "sima", "--json")
    result = json.loads(out)
    for key in ("auc", "tpr_at_fpr", "tnr_at_fnr", "asr", "achieved_fpr"):
        assert result[key] == record[key]


def test_train_then_audit_by_the_split_it_wrote(capsys, tmp_path):
    (tmp_path / "t.yaml").write_text(json.dumps({"model": WIDER, "batch_size": 8, "device": "cpu"}))
    code, out, _ = call(
        capsys, "train", "--data", "digits", "--train-size", 30, "--steps", 3, "-C", tmp_path / "t.yaml", "-o", tmp_path / "m", "--json"
    )
    assert code == 0
    split = json.loads(out)["split"]
    arguments = ["--data", "digits", "--split", split, "--limit", 30, *SETTINGS, "-o", tmp_path / "run"]
    assert call(capsys, "audit", tmp_path / "m", *arguments)[0] == 0
    members = json.loads(Path(split).read_text())["members"]
    samples = pd.read_csv(tmp_path / "run" / "samples.csv", dtype={"id": str})
    assert set(samples.id[samples.member == 1]) == set(members)


def test_interrupting_an_audit_says_that_it_resumes(capsys, model, sides, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffleak.auditing.score._prepared", interrupt)
    code, _, err = call(capsys, "audit", model, *sides, *SETTINGS, "-o", tmp_path / "run")
    assert code == 130
    assert "interrupted; finished work is kept, the same command resumes" in err
    monkeypatch.setattr("diffleak.auditing.run.prepare", interrupt)
    code, _, err = call(capsys, "audit", model, *sides, *SETTINGS, "--dry-run")
    assert code == 130 and "interrupted; run the same command again" in err


@pytest.mark.parametrize("command", ["audit", "extract"])
def test_sigterm_ends_a_command_as_ctrl_c_does_with_a_line_and_143(capsys, model, sides, tmp_path, command):
    flags = ("--draws" if command == "extract" else "--chunk-size", "1", "--device", "cpu", "--threads", "2", "-o", tmp_path / "run")
    flags = (*flags, "--batch-size", "1") if command == "audit" else ("--images", "400", *flags[2:], "--batch-size", "1")
    done = "scores/*.parquet" if command == "audit" else "**/*.npy"
    process = Forked([*DIFFLEAK, command, str(model), *sides, *map(str, flags)], os.environ, subprocess.PIPE, subprocess.DEVNULL, True)
    while process.poll() is None and not [*(tmp_path / "run").glob(done)]:
        time.sleep(0.01)
    process.terminate()
    assert process.wait() == 143
    lines = process.stderr.read().splitlines()
    assert lines[-1] == "diffleak: terminated; finished work is kept, the same command resumes" and "Traceback" not in "".join(lines)
    assert not [*(tmp_path / "run").rglob("*.part")] and not (tmp_path / "run" / "audit.json").exists()


def test_a_command_that_keeps_nothing_does_not_say_that_it_resumes(capsys, model, sides, tmp_path, monkeypatch):
    def stopped(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("diffleak.extraction.extract.search", stopped)
    code, _, err = call(capsys, "extract", model, *sides)
    assert code == 143 and "terminated; nothing is kept without -o: run the same command again" in err
    monkeypatch.setattr("diffleak.checking.check.check_images", stopped)
    code, _, err = call(capsys, "check", *sides)
    assert code == 143 and "terminated; run the same command again" in err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_bug_shows_its_traceback():
    code = "import diffleak.auditing.score_file as a; a.evaluate_and_say = lambda *_, **__: 1 / 0; from diffleak.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "metrics", "scores.csv"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr


LATENT = ["--timesteps", "50:100:50", "--device", "cpu", "--threads", "1", "--batch-size", "8"]


@pytest.fixture
def pictures(tmp_path, digits) -> Path:
    np.save(tmp_path / "pictures.npy", digits[:20])
    return tmp_path / "pictures.npy"


def test_the_help_of_geometry_names_its_flags_and_what_it_leaves(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = call(capsys, "geometry", "--help")
    assert (code, err) == (0, "")
    for said in (
        "--data",
        "--split",
        "--members",
        "--nonmembers",
        "--top",
        "--probes",
        "--mask",
        "--dry-run",
        "--json",
        "geometry.parquet",
    ):
        assert said in out
    assert "--max-auc" not in out, "geometry has no gate"


def test_geometry_of_images_alone_leaves_two_files_and_says_where(capsys, latent_folder, pictures, tmp_path):
    given = ["geometry", latent_folder(), "--data", pictures, "--top", 3, "--probes", 2, *LATENT, "-o", tmp_path / "out"]
    code, out, err = call(capsys, *given)
    assert code == 0
    assert out == f"geometry: {tmp_path / 'out' / 'geometry.parquet'}\ninfluence: {tmp_path / 'out' / 'influence.npy'}\n"
    assert err.startswith("plan: 20 images (8 x 8 grey), distortion from 3 singular values, influence from 2 probes, on cpu")
    table = pd.read_parquet(tmp_path / "out" / "geometry.parquet")
    assert sorted(table.id, key=int) == list(map(str, range(20))) and np.isfinite(table.distortion).all()
    assert np.load(tmp_path / "out" / "influence.npy").shape == (20, 4, 4, 4)
    code, out, _ = call(capsys, *given, "--json")
    assert code == 0 and json.loads(out) == {"finished": True, "images": 20}


def test_a_dry_run_of_geometry_prints_the_plan_as_json_and_writes_nothing(capsys, latent_folder, pictures, tmp_path):
    folder = latent_folder()
    code, out, err = call(
        capsys, "geometry", folder, "--data", pictures, "--top", 3, *LATENT, "-o", tmp_path / "out", "--dry-run", "--json"
    )
    plan = json.loads(out)
    planned, found = err.splitlines()
    assert code == 0 and planned.startswith("plan: 20 images (8 x 8 grey), distortion from 3 singular values, ")
    assert found == f"{pictures}: 20 images, captions none, labels none" and not (tmp_path / "out").exists()
    assert (plan["top"], plan["probes"], plan["attacks"], plan["masks"]) == (3, 8, [], [])
    assert (plan["queries"], plan["n_members"], plan["n_nonmembers"]) == (0, 0, 20)
    _, out, _ = call(capsys, "geometry", folder, "--data", pictures, "--top", 1, *LATENT, "--probes", 1, "-o", tmp_path / "1", "--dry-run")
    assert "distortion from 1 singular value, influence from 1 probe, on cpu" in out


def test_a_dry_run_of_geometry_with_two_sides_counts_their_queries(capsys, latent_folder, digits, tmp_path):
    for name, part in (("m", digits[:12]), ("n", digits[20:32])):
        np.save(tmp_path / f"{name}.npy", part)
    sides = ["--members", tmp_path / "m.npy", "--nonmembers", tmp_path / "n.npy", "--attacks", "sima,loss", "--mask", "influence,random"]
    code, out, _ = call(capsys, "geometry", latent_folder(), *sides, *LATENT, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and [a["attack"] for a in plan["attacks"]] == ["sima", "loss"]
    assert (plan["masks"], plan["top"], plan["queries_per_image"], plan["queries"]) == (["influence:0.4", "random:0.4"], 20, 4, 96)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--top", "65"], "--top must be at most 64, the most singular values there are; got 65"),
        (["--top", "0"], "--top must be at least 1; got 0"),
        (["--probes", "0"], "--probes must be at least 1; got 0"),
        (["--data", "nowhere.npy"], "found nothing at nowhere.npy"),
        (["--nonmembers", "digits"], "not both"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_flags_of_geometry_are_one_line(capsys, latent_folder, pictures, tmp_path, flags, said):
    given = {"--data": pictures, "--top": 3, "-o": tmp_path / "out"} | dict([flags])
    line = refused(capsys, "geometry", latent_folder(), *LATENT, *(part for pair in given.items() for part in pair))
    assert said in line
    assert not (tmp_path / "out" / "geometry.parquet").exists()


def test_geometry_needs_a_latent_model_data_and_an_output(capsys, latent_folder, model, pictures):
    assert "works on pixels" in refused(capsys, "geometry", model, "--data", pictures, *LATENT, "-o", "unused")
    assert "give --data DATA, or two sides as --members and --nonmembers" in refused(
        capsys, "geometry", latent_folder(), *LATENT, "-o", "unused"
    )
    assert "give -o DIR" in refused(capsys, "geometry", latent_folder("b"), "--data", pictures, "--top", 3, *LATENT)
    assert not Path("unused").exists()


def test_geometry_has_no_gate(capsys, latent_folder, pictures):
    code, out, err = call(capsys, "geometry", latent_folder(), "--data", pictures, "--max-auc", "0.6")
    assert (code, out) == (2, "") and "--max-auc" in err and "Traceback" not in err


def test_masked_results_in_json_name_their_mask_its_ratio_and_what_it_adds(capsys, latent_folder, digits, tmp_path):
    for name, part in (("m", digits[:24]), ("n", digits[30:54])):
        np.save(tmp_path / f"{name}.npy", part)
    sides = ["--members", tmp_path / "m.npy", "--nonmembers", tmp_path / "n.npy", "--attacks", "sima,loss_frequency", "--allow-shift"]
    code, out, _ = call(capsys, "audit", latent_folder(), *sides, *LATENT, "--mask", "influence", "-o", tmp_path / "run", "--json")
    results = {r["attack"]: r for r in json.loads(out)["results"]}
    assert code == 0 and list(results) == ["sima", "sima[influence:0.4]", "loss_frequency"]
    masked = results["sima[influence:0.4]"]
    assert (masked["mask"], masked["mask_ratio"]) == ("influence:0.4", 0.4)
    assert set(masked["gain"]) == {"auc", "asr", "tpr_at_1pct"}
    assert masked["gain"]["auc"]["low"] <= masked["gain"]["auc"]["value"] <= masked["gain"]["auc"]["high"]
    for plain in ("sima", "loss_frequency"):
        assert (results[plain]["mask"], results[plain]["mask_ratio"], results[plain]["gain"]) == (None, None, None)


def test_version_and_help(capsys):
    assert call(capsys, "--version")[1].startswith("diffleak 0.")
    for command in ("demo", "train", "audit", "metrics", "report", "attacks", "selfcheck"):
        code, out, _ = call(capsys, command, "--help")
        assert code == 0
        assert command in out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_cannot_move_the_cursor_of_a_terminal(capsys, tmp_path):
    line = refused(capsys, "metrics", tmp_path / "a\x1b[2J\u202eb.csv")
    assert "\\x1b[2J\\u202eb.csv" in line and line.isprintable()


OURS = ("plan: ", "time: ", "membership: ", "images: ", "captions found: ", "halves: ", "every image is a member")
OURS += ("warning: ", "note: ", "teacher-")
FOUND = r".*: [\d,]+ images, captions .*, labels "
WAITED = r"[a-z].*: \d+ s so far$"  # only on a slow machine
BARS = (
    r"(scoring|training|reading images|encoding|embedding|drawing|asking|checking|looking|features|captioning|CLIP score).*: [\d,]+/[\d,]+ "
)


@pytest.mark.slow
def test_stderr_has_our_own_lines_only(model, sides, tmp_path):
    data, text = sides[1], text_folder(tmp_path / "sd")
    settings = {"steps": 2, "batch_size": 4, "device": "cpu", "model": LEVELS}
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    (tmp_path / "p.txt").write_text("\n".join(CAPTIONS))
    train = ["--data", data, "-C", str(tmp_path / "c.yaml")]
    commands = [
        ["train", *train, "-o", tmp_path / "model", "--ema-decay", "0.9"],
        ["train", *train, "-o", tmp_path / "private", "--dp-epsilon", "5", "--dp-delta", "0.01"],
        ["defend", "dual", *train, "-o", tmp_path / "defence", "--one-by-one"],
        ["audit", model, *sides, *SETTINGS, "-o", tmp_path / "run"],
        ["quality", model, "--reference", data, "--images", "12", "--steps", "2", "--extractor", "pixels", "--device", "cpu"],
        ["prompts", text, "--prompts", tmp_path / "p.txt", "--steps", "2", "--device", "cpu", "-o", tmp_path / "prompts"],
        ["report", tmp_path / "run"],
        ["train", *train, "-o", tmp_path / "model", "--steps", "1"],  # which is refused
    ]
    script = """
import sys, json, warnings
from diffleak import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["diffleak", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        print(f"code {ended.code}", file=sys.stderr)
warnings.warn("a library's\\nwarning", RuntimeWarning)
warnings.warn("of later versions", FutureWarning)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands, default=str)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("code ")] == ["code 0"] * 7 + ["code 2"], done.stderr
    assert lines[-1] == "warning: a library's warning"
    known = re.compile(f"{BARS}|{FOUND}|{WAITED}")
    strange = [line for line in lines if not line.startswith((*OURS, "code ", "diffleak: ")) and not known.match(line)]
    assert strange == [] and not re.search(r"Warning:|\[(transformers|diffusers)\]|\x1b", done.stdout)


def test_an_ascii_terminal_does_not_end_a_finished_command(tmp_path):
    (tmp_path / "läufe").mkdir()
    rows = [f"{i},{i % 2},{i * 0.61 % 1}" for i in range(40)]
    (tmp_path / "läufe" / "s.csv").write_text("\n".join(["id,member,score", *rows]))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "diffleak", "metrics", str(tmp_path / "läufe" / "s.csv"), "--score", "nichts"]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]  # a slow machine says before it that the command is running
    assert said.startswith(b"diffleak: ") and b"l\\xe4ufe" in said


def test_a_value_behind_a_flag_that_takes_none_is_named(capsys, monkeypatch):
    for argv, said in (
        (
            ["audit", "m", "--resize", "512", "-o", "r"],
            "--resize takes no value here, since images are brought to the size of the model: leave out 512",
        ),
        (["audit", "m", "--dry-run", "yes"], "--dry-run takes no value here: leave out yes"),
        (["audit", "m", "--members", "a", "--resize", "a"], "--resize takes no value here, since images are brought to the size of"),
        (["audit", "m", "--members", "a", "--nonmembers", "b", "a"], "Got unexpected extra argument"),
        (["audit", "m", "--lora=a", "b"], "Got unexpected extra argument"),
    ):
        monkeypatch.setattr(sys, "argv", ["diffleak", *argv])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2 and capsys.readouterr().err.startswith(f"diffleak: {said}")


def test_a_pattern_that_the_shell_has_expanded_is_to_be_quoted(tmp_path, capsys, monkeypatch):
    first, second, third = (str(tmp_path / f"a dog-{i}.safetensors") for i in range(3))
    for name in (first, second):
        Path(name).touch()
    for argv in (["lora", "BASE", first, second, "--pictures", "P"], ["audit", "BASE", "--lora", first, second]):
        monkeypatch.setattr(sys, "argv", ["diffleak", *argv])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = f"one name goes where {first} and {second} stand: put a pattern into quotes, so that the shell does not expand it"
        assert stopped.value.code == 2 and capsys.readouterr().err == f"diffleak: {said}\n"
    monkeypatch.setattr(sys, "argv", ["diffleak", "audit", "BASE", "--lora", first, third])
    with pytest.raises(SystemExit):
        cli.main()
    assert "unexpected extra argument" in capsys.readouterr().err, "a file that is not there came from no pattern"
