"""`light.txt` suffices for the commands that run no model, and any other command says in one line what is missing."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.headers import KOHYA
from fixtures.runs import gaussian, ids_of, make_run
from packaging.requirements import Requirement
from safetensors.numpy import save_file

import diffleak
from diffleak.data.pixels import to_model
from diffleak.diffusion.analytic import Memoriser, linear_schedule

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"accelerate", "diffusers", "huggingface-hub", "pandas", "safetensors", "torch"}
RUN_NO_MODEL = (
    ["metrics", "scores.csv"],
    ["metrics", "scores.csv", "--images", "both.npy"],
    ["check", "--members", "m.npy", "--nonmembers", "n.npy", "-o", "checked"],
    ["split", "both.npy", "--held-out", "0.2", "-o", "split.json"],
    ["report", "run"],
    ["report", "run", "--format", "markdown"],
    ["report", "run", "--format", "card"],
    ["report", "run", "--format", "latex"],
    ["compare", "run", "other", "-o", "compared"],
    ["gate", "run", "--max-auc", "0.99"],
    ["verify", "compared"],
    ["metadata", "lora.safetensors"],
    ["epsilon", "coin"],
    ["reveal", "hidden"],
    ["doctor"],
    ["attacks"],
    ["audit", "model", "--members", "m.npy", "--nonmembers", "n.npy", "-o", "audited"],
    ["extract", "model", "--members", "m.npy", "-o", "extracted"],
    ["lora", "model", "lora.safetensors", "--pictures", "m.npy", "-o", "answered"],
    ["train", "--data", "m.npy", "-o", "trained"],
)
PROGRAM = """
import contextlib, importlib.metadata, io, json, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

def version(name, installed=importlib.metadata.version):
    if name.replace("-", "_") in {refused}:
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)

sys.meta_path.insert(0, Refused())
importlib.metadata.version = version
from diffleak import cli

for arguments in {commands}:
    sys.argv = ["diffleak", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        except Exception as error:
            code = repr(error)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def requirements(lines: list[str]) -> dict[str, str]:
    return {each.name: str(each.specifier) for each in map(Requirement, lines)}


def test_light_txt_has_the_requirements_of_the_project_but_those_of_models_and_pandas():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    light = [line for line in (ROOT / "light.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    expected = {name: needed for name, needed in requirements(project["dependencies"]).items() if name not in LEFT_OUT}
    assert requirements(light) == expected


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, tuple[object, str, str]]:
    """Exit code, stdout and stderr of each command, in one process that has no torch."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "model").mkdir()  # what is not there is refused before
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    for name, part in (("m", images[:150]), ("n", images[150:]), ("both", images)):
        np.save(folder / f"{name}.npy", part)
    (folder / "scores.csv").write_text("\n".join(["id,member,score", *(f"{i},{int(i < 150)},{rng.normal():.4f}" for i in range(300))]))
    for name, d in (("run", 1.0), ("other", 0.5)):
        make_run(folder / name, {"sima": gaussian(d), "loss": gaussian(d / 2)})
    ids, member = ids_of(1000, 0)[0], rng.random(1000) < 0.5
    record = json.loads((make_run(folder / "coin", {"sima": gaussian(1.0)}, ids, member) / "audit.json").read_text())
    record["drawn"] = {"how": "coin", "seed": 0, "images": 1000, "together": [], "file": "model/split.json"}
    (folder / "coin" / "audit.json").write_text(json.dumps(record))
    model = diffleak.Target(Memoriser(torch.from_numpy(to_model(images[:60])), linear_schedule()), fingerprint="a memoriser")
    sides = {"members": str(folder / "m.npy"), "nonmembers": str(folder / "n.npy"), "limit": 60}
    diffleak.audit(model, **sides, attacks="loss", timesteps="40", output=folder / "hidden", anonymous=True)
    save_file({"a.lora_down.weight": images[0].astype(np.float32)}, folder / "lora.safetensors", metadata=KOHYA)
    refused = {name.replace("-", "_") for name in LEFT_OUT} | {"transformers", "peft", "datasets", "opacus"}
    program = PROGRAM.format(refused=refused, commands=[*map(list, RUN_NO_MODEL)])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return {" ".join(a): tuple(json.loads(line)) for a, line in zip(RUN_NO_MODEL, done.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize("command", [" ".join(a) for a in RUN_NO_MODEL[:-5]])
def test_a_command_that_runs_no_model_needs_no_torch(finished, command):
    code, out, err = finished[command]
    assert code == 0, err
    assert out


@pytest.mark.parametrize("command", [" ".join(a) for a in RUN_NO_MODEL[-5:]])
def test_any_other_command_says_in_one_line_what_to_install(finished, command):
    code, out, err = finished[command]
    assert (code, out) == (2, "")
    said = "diffleak: this command runs a model, which needs {}, and that is not installed: pip install diffleak\n"
    assert err in {said.format(name) for name in ("torch", "pandas")}
