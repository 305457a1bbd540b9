"""Training by two processes, started once for all: the models of one process, one decision to stop, one teacher at a time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.models import IMAGES, LEVELS, MODELS, WIDER, encoder_weights, trained_weights

import diffleak
from diffleak import hub
from diffleak.diffusion.dual import Dual

SETTINGS: dict[str, dict[str, Any]] = {
    kind: {"kind": kind, "model": MODELS.get(kind, WIDER), "learning_rate": 1e-3, "steps": 4, "warmup_steps": 0, "batch_size": 8}
    for kind in ("denoiser", "vae", "vq")
}
STOPPING = {"model": LEVELS, "learning_rate": 1e-30, "validation": 0.2, "patience": 1, "checkpoint_every": 2, "steps": 20, "batch_size": 4}
PROGRAM = """
import json, sys
from diffleak import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["diffleak", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> tuple[Path, str]:
    """A folder with what two processes have trained of each settings, and what they said."""
    folder, commands = tmp_path_factory.mktemp("two"), []
    np.save(folder / "images.npy", IMAGES)
    (folder / "program.py").write_text(PROGRAM)
    for name, settings in {**SETTINGS, "stopping": STOPPING}.items():
        (folder / f"{name}.yaml").write_text(json.dumps({**settings, "data": str(folder / "images.npy"), "device": "cpu", "threads": 1}))
        commands.append(["train", "-C", str(folder / f"{name}.yaml"), "-o", str(folder / name)])
    (folder / "dual.yaml").write_text(json.dumps({"model": LEVELS}))
    defence = ["--data", str(folder / "images.npy"), "--train-size", "16", "--steps", "2", "--batch-size", "4", "--device", "cpu"]
    commands.append(["defend", "dual", *defence, "-C", str(folder / "dual.yaml"), "-o", str(folder / "defence")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(folder / "program.py"), json.dumps(commands)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def alone(data: Path, output: Path, settings: dict[str, Any]) -> Path:
    return diffleak.train(diffleak.train_config(None, None, **settings, data=str(data), output=output, device="cpu", threads=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_two_processes_train_the_same_model_as_one(launched, data, tmp_path, kind):
    together = launched[0] / kind
    assert (together / "checkpoint" / "random_states_1.pkl").exists(), "there was a second process"
    read = trained_weights if kind == "denoiser" else encoder_weights
    one, two = (read(folder) for folder in (alone(data, tmp_path / "one", SETTINGS[kind]), together))
    assert all(torch.allclose(one[k], two[k], rtol=1e-3, atol=5e-4) for k in one), "the weights moved by 4e-3"


@pytest.mark.slow
def test_two_processes_stop_early_together(launched, data, tmp_path, capsys):
    """With one check's patience and a learning rate of nothing, all checks are equal, so both processes stop at the second."""
    alone(data, tmp_path / "one", STOPPING)
    one, two = (
        json.loads((folder / "train.json").read_text())["early_stopping"] for folder in (tmp_path / "one", launched[0] / "stopping")
    )
    assert (two["last_step"], one["last_step"]) == (4, 4)
    assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-6)
    assert "early stopping: saved step 2, validation loss" in launched[1]
    assert "stopped at step 4: no lower for 1 check\n" in launched[1]


@pytest.mark.slow
def test_under_a_launcher_both_processes_train_the_same_teacher(launched):
    """Two ranks must not start teachers of their own, whose gradients would meet."""
    assert isinstance(hub.load(launched[0] / "defence" / "dual").denoiser, Dual)
    assert (launched[0] / "defence" / "teacher-2" / "checkpoint" / "random_states_1.pkl").exists(), "there was a second process"
