"""Training: the folder it leaves, resumption, processes, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import leakscope
from leakscope import hub
from leakscope.errors import UserError
from leakscope.training import loop
from leakscope.training.denoiser import DenoisingLoss

TINY = {
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)


@pytest.fixture
def data(tmp_path) -> Path:
    np.save(tmp_path / "images.npy", IMAGES)
    return tmp_path / "images.npy"


def config(data: Path, output: Path, **changes):
    base = {"data": str(data), "output": output, "steps": 6, "batch_size": 4, "model": TINY, "device": "cpu", "checkpoint_every": 2}
    base["threads"] = 1
    return leakscope.train_config(None, None, **{**base, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def same(first: Path, second: Path, **tolerance) -> bool:
    one, two = weights(first), weights(second)
    return all(torch.allclose(one[k], two[k], **tolerance) if tolerance else torch.equal(one[k], two[k]) for k in one)


def test_training_leaves_a_diffusers_folder_and_a_split(data, tmp_path):
    from diffusers import DDPMPipeline

    folder = leakscope.train(config(data, tmp_path / "model", train_size=20))
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert pipeline.unet.config.sample_size == 8
    split = json.loads((folder / "split.json").read_text())
    assert len(split["members"]) == 20
    assert sorted(split["members"] + split["nonmembers"], key=int) == [str(i) for i in range(30)]
    assert leakscope.load(folder, device="cpu").shape.height == 8
    assert pd.read_csv(folder / "losses.csv").step.iloc[-1] == 6


def test_training_learns(data, tmp_path):
    folder = leakscope.train(config(data, tmp_path / "model", steps=150, batch_size=8, learning_rate=3e-3, checkpoint_every=150))
    losses = pd.read_csv(folder / "losses.csv").loss
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data, tmp_path):
    a, b, c = (leakscope.train(config(data, tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert same(a, b)
    assert not same(a, c)


def test_a_longer_run_continues_a_shorter_one_exactly(data, tmp_path):
    once = leakscope.train(config(data, tmp_path / "once", steps=6, ema_decay=0.9))
    twice = leakscope.train(config(data, tmp_path / "twice", steps=3, ema_decay=0.9))
    leakscope.train(config(data, tmp_path / "twice", steps=6, ema_decay=0.9))
    assert same(once, twice)
    with pytest.raises(UserError, match="already trained for 6 steps; --steps must be at least that"):
        leakscope.train(config(data, twice, steps=3, ema_decay=0.9))


@pytest.mark.slow
def test_killed_and_resumed_training_equals_uninterrupted(data, tmp_path):
    yaml = tmp_path / "train.yaml"
    yaml.write_text(
        json.dumps({"data": str(data), "steps": 60, "batch_size": 4, "model": TINY, "device": "cpu", "checkpoint_every": 15, "threads": 1})
    )
    command = [sys.executable, "-m", "leakscope", "train", "-C", str(yaml), "-o"]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (killed / "checkpoint").exists():
        time.sleep(0.005)
    assert process.poll() is None, "the run must be alive to be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "unet").exists()
    for folder in (killed, tmp_path / "whole"):
        assert subprocess.run([*command, str(folder)], capture_output=True).returncode == 0
    assert same(killed, tmp_path / "whole")
    assert (killed / "losses.csv").read_text().splitlines()[-1] == (tmp_path / "whole" / "losses.csv").read_text().splitlines()[-1]


@pytest.mark.slow
def test_two_processes_under_accelerate_launch_train_the_same_model_as_one(data, tmp_path):
    yaml = tmp_path / "train.yaml"
    yaml.write_text(
        json.dumps({"data": str(data), "steps": 4, "batch_size": 8, "model": TINY, "device": "cpu", "learning_rate": 1e-3, "threads": 1})
    )
    arguments = ["-m", "leakscope", "train", "-C", str(yaml), "-o"]
    one = [sys.executable, *arguments, str(tmp_path / "one")]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    two = [*launch, "--dynamo_backend", "no", "--main_process_port", "0", *arguments, str(tmp_path / "two")]
    for command in (one, two):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert same(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-4)


def test_steps_visit_every_image_once_an_epoch():
    rows = np.concatenate([loop._rows(step, 4, 10, seed=0) for step in range(5)])
    assert sorted(rows[:10]) == list(range(10))
    assert sorted(rows[10:20]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:20])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_target_is_that_of_the_prediction_type(prediction_type):
    scheduler = hub.new_scheduler({"prediction_type": prediction_type})
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 1, 4, 4, generator=generator)
    t = torch.tensor([5, 300, 900])
    a, s = (v.reshape(-1, 1, 1, 1) for v in (scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()))
    expected = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[prediction_type]
    torch.testing.assert_close(DenoisingLoss(torch.nn.Identity(), scheduler)._target(x0, noise, t), expected)


def test_another_run_in_the_same_folder_is_refused(data, tmp_path):
    leakscope.train(config(data, tmp_path / "model"))
    with pytest.raises(UserError, match=r"holds another training run \(seed was 0, now 1\)"):
        leakscope.train(config(data, tmp_path / "model", seed=1))


def test_bad_settings_are_one_line(data, tmp_path):
    out = tmp_path / "model"
    cases = [
        ({"learning_rat": 1e-3}, "unknown config key 'learning_rat'; did you mean 'learning_rate'"),
        ({"steps": 0}, "steps: .*greater than or equal to 1; got 0"),
        ({"mixed_precision": "fp8"}, "mixed_precision: .*'no', 'fp16' or 'bf16'; got 'fp8'"),
        ({"model": {**TINY, "block_out_chanels": [8]}}, "unknown model key 'block_out_chanels'; did you mean 'block_out_channels'"),
        ({"model": {**TINY, "down_block_types": ["DownBlock2D", "NoBlock"]}}, "diffusers refuses this UNet2DModel"),
        ({"scheduler": {"beta_shedule": "linear"}}, "unknown scheduler key 'beta_shedule'; did you mean 'beta_schedule'"),
        ({"scheduler": {"beta_schedule": "cubic"}}, "diffusers refuses this DDPMScheduler"),
        ({"train_size": 30}, "train_size must leave images to hold out: at most 29 of 30; got 30"),
        ({"data": str(tmp_path / "nowhere")}, "found nothing at"),
        ({"split": tmp_path / "no.json"}, "split file .* cannot be read"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            leakscope.train(config(**{"data": data, "output": out, **change}))
    with pytest.raises(UserError, match="unknown preset 'digit'; did you mean 'digits'"):
        leakscope.train_config("digit", data="digits", output=out)


def test_images_that_cannot_be_halved_often_enough_are_refused(tmp_path):
    np.save(tmp_path / "odd.npy", np.zeros((12, 9, 9), dtype=np.uint8))
    with pytest.raises(UserError, match=r"image sides must be multiples of 2 .*got 9 x 9 grey: use --resize"):
        leakscope.train(config(tmp_path / "odd.npy", tmp_path / "model"))
    folder = leakscope.train(config(tmp_path / "odd.npy", tmp_path / "model", resize=8))
    assert leakscope.load(folder, device="cpu").shape.height == 8


def test_a_diverging_loss_stops_with_advice(data, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "new_network", lambda _: _Diverging())
    with pytest.raises(UserError, match="the loss is nan at step 0; lower learning_rate"):
        leakscope.train(config(data, tmp_path / "model"))


class _Diverging(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(float("nan")))

    def forward(self, x, t):
        return type("Output", (), {"sample": x * self.weight})


def test_presets_are_valid_and_flags_win_over_the_file_over_the_preset(tmp_path):
    yaml = tmp_path / "c.yaml"
    yaml.write_text("steps: 7\nbatch-size: 3\n")
    for preset in ("digits", "small", "ddpm", "vae", "vq", "latent"):
        chosen = leakscope.train_config(preset, yaml, data="digits", output=tmp_path, batch_size=5)
        assert (chosen.steps, chosen.batch_size) == (7, 5)
        assert chosen.model["block_out_channels"]


def test_a_kill_between_the_two_renames_of_a_save_loses_nothing(data, tmp_path):
    once = leakscope.train(config(data, tmp_path / "once", steps=6))
    twice = leakscope.train(config(data, tmp_path / "twice", steps=4))
    (twice / "checkpoint").rename(twice / "checkpoint.old")
    leakscope.train(config(data, twice, steps=6))
    assert same(once, twice)
    assert pd.read_csv(twice / "losses.csv").step.iloc[0] == 4, "it went on from the old checkpoint"


def test_images_need_not_be_square(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((12, 8, 16), dtype=np.uint8))
    folder = leakscope.train(config(tmp_path / "wide.npy", tmp_path / "model"))
    shape = leakscope.load(folder, device="cpu").shape
    assert (shape.height, shape.width) == (8, 16)


def test_a_model_that_was_trained_elsewhere_is_not_overwritten(data, tmp_path):
    folder = leakscope.train(config(data, tmp_path / "model"))
    (folder / "train.json").unlink()
    with pytest.raises(UserError, match="holds a model that this command did not train"):
        leakscope.train(config(data, folder))


def test_yaml_timesteps_with_colons_stay_text(tmp_path):
    from leakscope.config import read_yaml

    (tmp_path / "c.yaml").write_text("a: 10:50\nb: 10:300:10\nc: 7\nd: 1e-3\ne: 2.5\nf: 0x10\ng: true\nh: 2024-01-01x\n")
    found = read_yaml(tmp_path / "c.yaml")
    assert (found["a"], found["b"], found["c"], found["e"], found["g"]) == ("10:50", "10:300:10", 7, 2.5, True)
    assert (type(found["c"]), found["d"], found["f"]) == (int, 1e-3, 16)
