"""Training: the folder it leaves, resumption, processes, and what it refuses."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.commands import call
from fixtures.models import AUTOENCODER, IMAGES, MODELS, PARTS, encoder_weights, few_steps, trained_weights
from fixtures.models import WIDER as TINY
from fixtures.processes import killed

import diffleak
from diffleak import hub
from diffleak.data.pixels import ImageShape, to_model
from diffleak.data.sources import ImageSource, Labels, open_source
from diffleak.errors import UserError
from diffleak.training import images, loop, run
from diffleak.training.autoencoder import QuantisedLoss, VariationalLoss, autoencoder_config
from diffleak.training.denoiser import DenoisingLoss, denoiser_task, encode_all, network_config
from diffleak.training.noising import Noising


def config(data: Path, output: Path, **changes):
    return few_steps(data, output, **{"model": TINY, **changes})


def same(first: Path, second: Path, read=trained_weights, **tolerance) -> bool:
    one, two = read(first), read(second)
    return all(torch.allclose(one[k], two[k], **tolerance) if tolerance else torch.equal(one[k], two[k]) for k in one)


def test_training_leaves_a_diffusers_folder_and_a_split(data, tmp_path):
    from diffusers import DDPMPipeline

    folder = diffleak.train(config(data, tmp_path / "model", train_size=20))
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert pipeline.unet.config.sample_size == 8
    split = json.loads((folder / "split.json").read_text())
    assert len(split["members"]) == 20
    assert sorted(split["members"] + split["nonmembers"], key=int) == [str(i) for i in range(30)]
    assert diffleak.load(folder, device="cpu").shape.height == 8
    assert pd.read_csv(folder / "losses.csv").step.iloc[-1] == 6


def test_training_learns(data, tmp_path):
    folder = diffleak.train(config(data, tmp_path / "model", steps=150, batch_size=8, learning_rate=3e-3, checkpoint_every=150))
    losses = pd.read_csv(folder / "losses.csv").loss
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data, tmp_path):
    a, b, c = (diffleak.train(config(data, tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert same(a, b)
    assert not same(a, c)


def test_a_longer_run_continues_a_shorter_one_exactly(data, tmp_path):
    once = diffleak.train(config(data, tmp_path / "once", steps=6, ema_decay=0.9))
    twice = diffleak.train(config(data, tmp_path / "twice", steps=3, ema_decay=0.9))
    diffleak.train(config(data, tmp_path / "twice", steps=6, ema_decay=0.9))
    assert same(once, twice)
    records = [json.loads((folder / "train.json").read_text()) | {"output": ""} for folder in (once, twice)]
    assert records[0] == records[1] and records[1]["steps"] == 6, "the folder's record is that of the latest call"
    with pytest.raises(UserError, match="already trained for 6 steps, more than 3: ask for as many, or choose another -o"):
        diffleak.train(config(data, twice, steps=3, ema_decay=0.9))


@pytest.mark.parametrize(
    ("size", "way"), [(1, "a batch of one; make the model smaller"), (4, "lower --batch-size or make the model smaller")]
)
def test_a_smaller_batch_is_advised_where_there_is_one(data, tmp_path, monkeypatch, size, way):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(run, "denoiser_task", full)
    with pytest.raises(UserError, match=f"{way}$"):
        diffleak.train(config(data, tmp_path / "out", batch_size=size))


def test_training_leaves_the_number_of_torchs_threads_as_it_was(data, tmp_path, monkeypatch):
    during = []
    monkeypatch.setattr(loop.Loop, "_one_step", lambda self: during.append(torch.get_num_threads()) or pytest.fail("stopped"))
    for threads in (2, None):
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            diffleak.train(config(data, tmp_path / f"{threads}", threads=threads))
        assert torch.get_num_threads() == 1
    assert during == [2, os.cpu_count()]


@pytest.mark.slow
def test_killed_and_resumed_training_equals_uninterrupted(data, tmp_path, capsys):
    yaml = tmp_path / "train.yaml"
    yaml.write_text(
        json.dumps({"data": str(data), "steps": 60, "batch_size": 4, "model": TINY, "device": "cpu", "checkpoint_every": 15, "threads": 1})
    )
    command, resumed = ["train", "-C", yaml, "-o"], tmp_path / "killed"
    killed((resumed / "checkpoint").exists, *command, resumed)
    assert (resumed / "checkpoint").exists() and not (resumed / "unet").exists()
    for folder in (resumed, tmp_path / "whole"):
        assert call(capsys, *command, folder)[0] == 0
    assert same(resumed, tmp_path / "whole")
    assert (resumed / "losses.csv").read_bytes() == (tmp_path / "whole" / "losses.csv").read_bytes()


def test_an_interrupted_run_writes_the_losses_of_an_uninterrupted_one(data, tmp_path, monkeypatch):
    """A point of the curve is a mean over steps, some of which a checkpoint lies between."""
    monkeypatch.setattr(loop, "LOSS_EVERY", 4)
    whole = diffleak.train(config(data, tmp_path / "whole", steps=8, checkpoint_every=3))
    step, kills = loop.Loop._one_step, [7, 5]

    def killed(self):
        if kills and self.step == kills[-1]:
            kills.pop()
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(loop.Loop, "_one_step", killed)
    while kills:
        with pytest.raises(KeyboardInterrupt):
            diffleak.train(config(data, tmp_path / "killed", steps=8, checkpoint_every=3))
    folder = diffleak.train(config(data, tmp_path / "killed", steps=8, checkpoint_every=3))
    assert (folder / "losses.csv").read_bytes() == (whole / "losses.csv").read_bytes()
    assert same(folder, whole)


def test_steps_visit_every_image_once_an_epoch():
    rows = np.concatenate([loop.shuffled(step, 4, 0, n=10) for step in range(5)])
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
    torch.testing.assert_close(Noising(scheduler).target(x0, noise, t), expected)


def test_another_run_in_the_same_folder_is_refused(data, tmp_path):
    diffleak.train(config(data, tmp_path / "model"))
    with pytest.raises(UserError, match=r"holds another training run \(--seed was 0, now 1\)"):
        diffleak.train(config(data, tmp_path / "model", seed=1))


def test_bad_settings_are_one_line(data, tmp_path):
    out = tmp_path / "model"
    cases = [
        ({"learning_rat": 1e-3}, "unknown config key 'learning_rat'; did you mean 'learning_rate'"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be 'no', 'fp16', 'bf16' or 'auto'; got 'fp8'"),
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
            diffleak.train(config(**{"data": data, "output": out, **change}))
    with pytest.raises(UserError, match="unknown preset 'digit'; did you mean 'digits'"):
        diffleak.train_config("digit", data="digits", output=out)


def test_a_network_that_would_predict_other_channels_than_it_takes_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="predict as many channels as it takes, 1; out_channels is 2: leave it out"):
        diffleak.train(config(data, tmp_path / "model", model={**TINY, "out_channels": 2}))


def test_images_that_cannot_be_halved_often_enough_are_refused(tmp_path):
    np.save(tmp_path / "odd.npy", np.zeros((12, 9, 9), dtype=np.uint8))
    with pytest.raises(UserError, match=r"image sides must be multiples of 2 .*got 9 x 9: use --resize"):
        diffleak.train(config(tmp_path / "odd.npy", tmp_path / "model"))
    folder = diffleak.train(config(tmp_path / "odd.npy", tmp_path / "model", resize=8))
    assert diffleak.load(folder, device="cpu").shape.height == 8


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (1e30, r"the loss is inf at step 0; lower --learning-rate"),
        (
            torch.nan,
            "the loss is nan before the first step: weight of the _Diverging holds NaN; start from a model whose weights are finite",
        ),
    ],
)
def test_a_diverging_loss_stops_with_advice(data, tmp_path, monkeypatch, weight, said):
    monkeypatch.setattr(hub, "new_network", lambda _: _Diverging(weight))
    with pytest.raises(UserError, match=said):
        diffleak.train(config(data, tmp_path / "model"))


class _Diverging(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x, t):
        return type("Output", (), {"sample": x * self.weight})


def test_presets_are_valid_and_flags_win_over_the_file_over_the_preset(tmp_path):
    yaml = tmp_path / "c.yaml"
    yaml.write_text("steps: 7\nbatch-size: 3\n")
    for preset in ("digits", "small", "ddpm", "vae", "vq", "latent"):
        given = {"autoencoder": tmp_path} if preset == "latent" else {}
        chosen = diffleak.train_config(preset, yaml, data="digits", output=tmp_path, batch_size=5, **given)
        assert (chosen.steps, chosen.batch_size) == (7, 5)
        assert chosen.model["block_out_channels"]


def test_a_preset_may_be_named_in_the_file_and_is_the_lowest_layer(tmp_path):
    yaml = tmp_path / "c.yaml"
    yaml.write_text("preset: vq\nsteps: 7\n")
    given = {"data": "digits", "output": tmp_path}
    assert diffleak.train_config(None, yaml, **given) == diffleak.train_config("vq", steps=7, **given)
    assert diffleak.train_config("ddpm", yaml, **given) == diffleak.train_config("ddpm", steps=7, **given), "the flag wins over the key"
    for content, said in (("preset: vqq", "unknown preset 'vqq'; did you mean 'vq'"), ("preset: [vq]", "unknown preset")):
        yaml.write_text(content)
        with pytest.raises(UserError, match=said):
            diffleak.train_config(None, yaml, **given)
    yaml.write_text("preset: latent")
    with pytest.raises(UserError, match="the preset latent trains on the latents of an autoencoder"):
        diffleak.train_config(None, yaml, **given)


def test_a_kill_between_the_two_renames_of_a_save_loses_nothing(data, tmp_path):
    once = diffleak.train(config(data, tmp_path / "once", steps=6))
    twice = diffleak.train(config(data, tmp_path / "twice", steps=4))
    (twice / "checkpoint").rename(twice / "checkpoint.old")
    diffleak.train(config(data, twice, steps=6))
    assert same(once, twice)
    assert pd.read_csv(twice / "losses.csv").step.iloc[0] == 4, "it went on from the old checkpoint"


def test_a_damaged_checkpoint_is_moved_aside_and_training_begins_again_to_the_same_weights(data, tmp_path, capsys):
    once = diffleak.train(config(data, tmp_path / "once", steps=4, ema_decay=0.9))
    twice = diffleak.train(config(data, tmp_path / "twice", steps=2, ema_decay=0.9))
    checkpoint = twice / "checkpoint"
    listed = json.loads((checkpoint / "sha256.json").read_text())
    assert listed == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in checkpoint.iterdir() if p.name != "sha256.json"}
    assert {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "state.pt"} <= set(listed)
    for name in (*listed, "sha256.json"):
        broken = bytearray((checkpoint / name).read_bytes())
        broken[len(broken) // 2] ^= 1
        (checkpoint / name).write_bytes(broken)
        capsys.readouterr()
        assert same(once, diffleak.train(config(data, twice, steps=4, ema_decay=0.9)))
        aside = "it is now checkpoint.damaged, and training begins again"
        assert any(line.startswith(f"{checkpoint} is damaged (") and line.endswith(aside) for line in capsys.readouterr().err.splitlines())
        assert (twice / "checkpoint.damaged" / name).read_bytes() == broken
    (checkpoint / "state.pt").unlink()
    capsys.readouterr()
    assert same(once, diffleak.train(config(data, twice, steps=4, ema_decay=0.9)))
    assert f"{checkpoint} is damaged (sha256.json cannot be read, or names a file that is missing): it is now" in capsys.readouterr().err


def test_a_planted_checkpoint_runs_no_code(data, tmp_path):
    class Planted:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    folder = diffleak.train(config(data, tmp_path / "model", steps=2))
    (folder / "checkpoint" / "sha256.json").unlink()  # else a changed file is not opened at all
    files = sorted(path for path in (folder / "checkpoint").iterdir() if path.suffix in (".pt", ".bin", ".pkl"))
    assert [path.name for path in files] == ["optimizer.bin", "random_states_0.pkl", "state.pt"]
    for path in [*files, folder / "checkpoint" / "custom_checkpoint_0.pkl"]:
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(pickle.dumps(Planted()))
        with pytest.raises(UserError, match=r"checkpoint cannot be read \(.*\); if its files are damaged, delete it"):
            diffleak.train(config(data, folder, steps=4))
        torch.save(Planted(), path)
        with pytest.raises(UserError, match="checkpoint cannot be read"):
            diffleak.train(config(data, folder, steps=4))
        assert not (tmp_path / "ran").exists()
        if before:
            path.write_bytes(before)


def test_a_checkpoint_of_an_earlier_version_is_resumed(data, tmp_path):
    once = diffleak.train(config(data, tmp_path / "once", steps=6, ema_decay=0.9))
    twice = diffleak.train(config(data, tmp_path / "twice", steps=4, ema_decay=0.9))
    state = torch.load(twice / "checkpoint" / "state.pt", weights_only=True)
    del state["recent"]
    torch.save(state, twice / "checkpoint" / "custom_checkpoint_0.pkl")
    (twice / "checkpoint" / "state.pt").unlink()
    (twice / "checkpoint" / "sha256.json").unlink()
    diffleak.train(config(data, twice, steps=6, ema_decay=0.9))
    assert same(once, twice)


def test_images_need_not_be_square(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((12, 8, 16), dtype=np.uint8))
    folder = diffleak.train(config(tmp_path / "wide.npy", tmp_path / "model"))
    shape = diffleak.load(folder, device="cpu").shape
    assert (shape.height, shape.width) == (8, 16)


def test_a_model_that_was_trained_elsewhere_is_not_overwritten(data, tmp_path):
    folder = diffleak.train(config(data, tmp_path / "model"))
    (folder / "train.json").unlink()
    with pytest.raises(UserError, match="holds a model that this command did not train"):
        diffleak.train(config(data, folder))


def test_yaml_timesteps_with_colons_stay_text(tmp_path):
    from diffleak.config import read_yaml

    (tmp_path / "c.yaml").write_text("a: 10:50\nb: 10:300:10\nc: 7\nd: 1e-3\ne: 2.5\nf: 0x10\ng: true\nh: 2024-01-01x\n")
    found = read_yaml(tmp_path / "c.yaml")
    assert (found["a"], found["b"], found["c"], found["e"], found["g"]) == ("10:50", "10:300:10", 7, 2.5, True)
    assert (type(found["c"]), found["d"], found["f"]) == (int, 1e-3, 16)


# --- autoencoders -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_file(digits, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npy"
    np.save(path, digits[:100])
    return path


@pytest.fixture(scope="module", params=PARTS)
def trained(request, digits_file, tmp_path_factory) -> tuple[str, Path]:
    """A kind of autoencoder, and the folder of one that was trained for seconds on 80 of 100 digits."""
    changes = {"kind": request.param, "model": MODELS[request.param], "steps": 150, "batch_size": 16, "learning_rate": 5e-3}
    changes |= {"checkpoint_every": 150, "train_size": 80, "kl_weight": 1e-4}
    return request.param, diffleak.train(config(digits_file, tmp_path_factory.mktemp(request.param) / "model", **changes))


def members(folder: Path, digits: np.ndarray) -> np.ndarray:
    """The images that a folder's split names as members."""
    return digits[[int(i) for i in json.loads((folder / "split.json").read_text())["members"]]]


def test_an_autoencoder_learns(trained):
    _, folder = trained
    losses = pd.read_csv(folder / "losses.csv").loss
    assert losses.iloc[-1] < 0.6 * losses.iloc[0]


def test_an_autoencoder_leaves_its_folder_its_split_and_its_settings(trained):
    kind, folder = trained
    left = {path.name for path in folder.iterdir()}
    assert left == {PARTS[kind], "split.json", "train.json", "losses.csv", "checkpoint"}
    split = json.loads((folder / "split.json").read_text())
    assert len(split["members"]) == 80
    assert sorted(split["members"] + split["nonmembers"], key=int) == [str(i) for i in range(100)]
    record = json.loads((folder / "train.json").read_text())
    assert (record["kind"], record["model"]["latent_channels"], record["model"]["in_channels"]) == (kind, 2, 1)


def test_an_autoencoder_loads_in_diffusers(trained):
    import diffusers

    kind, folder = trained
    network = {"vae": diffusers.AutoencoderKL, "vq": diffusers.VQModel}[kind].from_pretrained(folder, subfolder=PARTS[kind])
    assert network.config.sample_size == 8


def test_the_latents_of_the_members_have_standard_deviation_one(trained, digits):
    _, folder = trained
    codec = hub.load_codec(folder)
    z = codec.encode(torch.from_numpy(to_model(members(folder, digits))))
    assert z.shape == (80, 2, 4, 4)
    assert float(z.double().std(unbiased=False)) == pytest.approx(1, rel=1e-5)
    unscaled = z / codec.network.config.scaling_factor
    assert codec.network.config.scaling_factor == pytest.approx(1 / float(unscaled.std(unbiased=False)), rel=1e-5)
    assert float(unscaled.std()) != pytest.approx(1, rel=0.05), "the test must not pass without a scaling factor"


def test_a_round_trip_costs_about_what_training_reported(trained, digits):
    """The loss adds to the reconstruction its noise (vae) or the distance to the codes (vq), so it is somewhat larger."""
    _, folder = trained
    codec, x = hub.load_codec(folder), torch.from_numpy(to_model(members(folder, digits)))
    error = float((codec.decode(codec.snap(codec.encode(x))) - x).abs().mean())
    reported = pd.read_csv(folder / "losses.csv").loss.iloc[-1]
    blank = float((x - x.median(dim=0).values).abs().mean())
    assert 0.4 * reported < error < 1.1 * reported
    assert error < 0.7 * blank, "it knows more than the median image"


@pytest.mark.parametrize("kind", PARTS)
def test_a_longer_autoencoder_run_continues_a_shorter_one_exactly(data, tmp_path, kind):
    changes = {"kind": kind, "model": MODELS[kind], "ema_decay": 0.9}
    once = diffleak.train(config(data, tmp_path / "once", **changes))
    twice = diffleak.train(config(data, tmp_path / "twice", **{**changes, "steps": 3}))
    assert not same(once, twice, encoder_weights)
    diffleak.train(config(data, twice, **changes))
    assert same(once, twice, encoder_weights)
    assert (once / PARTS[kind] / "config.json").read_text() == (twice / PARTS[kind] / "config.json").read_text()
    with pytest.raises(UserError, match=r"holds another training run"):
        diffleak.train(config(data, once, **{**changes, "model": {**MODELS[kind], "latent_channels": 3}}))


@pytest.mark.parametrize("kind", PARTS)
def test_the_seed_decides_the_autoencoder(data, tmp_path, kind):
    changes = {"kind": kind, "model": MODELS[kind], "steps": 2}
    a, b, c = (diffleak.train(config(data, tmp_path / name, seed=seed, **changes)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert same(a, b, encoder_weights)
    assert not same(a, c, encoder_weights)


def double(name: str, **keys) -> torch.nn.Module:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return hub.new_autoencoder(name, {"in_channels": 1, "out_channels": 1, **blocks, **AUTOENCODER, **keys}).double()


def agree_with_their_derivatives(loss: torch.Tensor, expected: torch.Tensor, network: torch.nn.Module) -> None:
    """The losses are float32 at the end; the derivatives follow from them, with respect to every weight."""
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    names, parameters = zip(*network.named_parameters(), strict=True)
    ours, theirs = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected))
    for name, one, two in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
    assert max(float(two.abs().max()) for two in theirs) > 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.01, 4.0])
def test_the_variational_loss_is_l1_and_the_mean_divergence_over_latent_coordinates(beta):
    network, generator = double("AutoencoderKL"), torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    e = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    mean, logvar = network.quant_conv(network.encoder(x)).chunk(2, dim=1)
    sigma = (logvar / 2).exp()
    image = network.decoder(network.post_quant_conv(mean + sigma * e))
    divergence = -sigma.log() + (sigma**2 + mean**2) / 2 - 1 / 2
    expected = (x - image).abs().mean() + beta * divergence.mean()
    agree_with_their_derivatives(VariationalLoss(network, beta)(x, None, e), expected, network)


def test_the_quantised_loss_is_l1_and_codes_to_latents_and_a_quarter_of_latents_to_codes():
    """By its derivatives too: the two distances are one number, and only the weights of their derivatives tell them apart."""
    network, generator = double("VQModel", num_vq_embeddings=16), torch.Generator().manual_seed(0)
    torch.nn.init.normal_(network.quantize.embedding.weight, std=0.3, generator=generator)
    x = torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    h = network.quant_conv(network.encoder(x))
    codes, vectors = network.quantize.embedding.weight, h.permute(0, 2, 3, 1).reshape(-1, 2)
    nearest = (vectors[:, None] - codes[None]).square().sum(-1).argmin(1)
    assert len(nearest.unique()) > 3
    code = codes[nearest].reshape(3, 4, 4, 2).permute(0, 3, 1, 2)
    image = network.decoder(network.post_quant_conv(h + (code - h).detach()))
    distances = (code - h.detach()).square().mean() / 4 + (code.detach() - h).square().mean()
    agree_with_their_derivatives(QuantisedLoss(network)(x, None), (x - image).abs().mean() + distances, network)


@pytest.mark.parametrize("kind", PARTS)
def test_an_autoencoder_of_images_that_cannot_be_halved_often_enough_is_refused(tmp_path, kind):
    np.save(tmp_path / "odd.npy", np.zeros((12, 8, 10), dtype=np.uint8))
    model = {**MODELS[kind], "block_out_channels": [8, 8, 8]}
    with pytest.raises(UserError, match=r"image sides must be multiples of 4 for a network of 3 levels; got 8 x 10: use --resize"):
        diffleak.train(config(tmp_path / "odd.npy", tmp_path / "model", kind=kind, model=model))


@pytest.mark.parametrize("kind", PARTS)
def test_images_of_an_autoencoder_need_not_be_square(tmp_path, kind):
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), dtype=np.uint8))
    folder = diffleak.train(config(tmp_path / "wide.npy", tmp_path / "model", kind=kind, model=MODELS[kind], steps=1))
    assert hub.load_codec(folder).encode(torch.zeros(1, 3, 8, 12)).shape == (1, 2, 4, 6)


def test_settings_that_do_not_fit_the_kind_are_one_line(data, tmp_path, trained):
    _, folder = trained
    cases = [
        ({"kind": "vae", "autoencoder": folder}, "--autoencoder is for a denoiser of latents, and this trains a β-VAE; leave it out"),
        (
            {"kind": "vq", "autoencoder": folder},
            "--autoencoder is for a denoiser of latents, and this trains a VQ autoencoder; leave it out",
        ),
        ({"autoencoder": folder, "flip": True}, "latents cannot be flipped like pixels; leave out --flip, or flip the images themselves"),
        ({"kind": "gan"}, "kind must be 'denoiser', 'vae', 'vq' or 'text-to-image'; got 'gan'"),
        ({"kl_weight": -1}, "kl_weight must be at least 0; got -1"),
        ({"kind": "vae", "model": {**AUTOENCODER, "latent_chanels": 4}}, "unknown model key 'latent_chanels'; did you mean"),
        ({"kind": "vae", "model": {**AUTOENCODER, "norm_num_groups": 3}}, "diffusers refuses this AutoencoderKL configuration"),
        ({"autoencoder": tmp_path / "nowhere"}, "nowhere must hold an autoencoder, as vae/ or vqvae/"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            diffleak.train(config(data, tmp_path / "model", **change))
        assert "\n" not in str(caught.value)


# --- denoisers of latents -----------------------------------------------------------------------------------------------


def test_a_denoiser_of_latents_leaves_the_autoencoder_as_it_was_and_a_model_that_loads(trained, digits_file, tmp_path):
    kind, autoencoder = trained
    folder = diffleak.train(config(digits_file, tmp_path / "model", autoencoder=autoencoder, ema_decay=0.9))
    assert same(folder, autoencoder, encoder_weights)
    target = diffleak.load(folder, device="cpu")
    assert target.shape == ImageShape(1, 8, 8) and target.latent
    assert target.codec.network.config.scaling_factor == hub.load_codec(autoencoder).network.config.scaling_factor
    x = torch.from_numpy(to_model(IMAGES[:2, ..., None]))
    z = target.codec.encode(x)
    assert torch.equal(z, hub.load_codec(autoencoder).encode(x))
    assert target.denoiser(z, 50).shape == z.shape == (2, 2, 4, 4)
    assert str(tmp_path) not in (folder / PARTS[kind] / "config.json").read_text()


@pytest.mark.parametrize("part", ["", "part"])
def test_a_denoiser_of_latents_takes_the_split_of_the_autoencoder_unless_told_otherwise(trained, digits_file, tmp_path, part):
    kind, autoencoder = trained
    given = autoencoder / (part and PARTS[kind])
    own, train_size, split = tmp_path / "split.json", tmp_path / "train_size", tmp_path / "split"
    own.write_text(json.dumps({"members": ["1", "2", "3", "4"], "nonmembers": ["9"]}))
    of = lambda folder: json.loads((folder / "split.json").read_text())
    train = lambda output, **changes: diffleak.train(config(digits_file, output, autoencoder=given, steps=1, **changes))
    assert of(train(tmp_path / "none")) == of(autoencoder)
    assert len(of(train(train_size, train_size=10))["members"]) == 10
    assert of(train(split, split=own)) == json.loads(own.read_text())


def test_a_denoiser_of_latents_trains_on_the_codecs_latents_of_the_members(trained, digits_file, tmp_path, digits):
    _, autoencoder = trained
    codec, settings = hub.load_codec(autoencoder), config(digits_file, tmp_path / "model", autoencoder=autoencoder)
    data = images.read_training_data(settings, ImageShape(1, 8, 8))
    network = network_config(settings, ImageShape(2, 4, 4))
    task = denoiser_task(settings, network, data, codec, None, torch.device("cpu"))
    expected = codec.encode(torch.from_numpy(to_model(members(autoencoder, digits)))).numpy()
    assert task.inputs.dtype == np.float32
    np.testing.assert_allclose(task.inputs, expected, rtol=1e-4, atol=1e-5)
    t, noise = task.draw(3, torch.Generator().manual_seed(0))
    assert t.shape == (3,) and noise.shape == (3, 2, 4, 4)


def test_encoding_a_batch_at_a_time_keeps_every_image_in_its_place(trained, digits):
    codec = hub.load_codec(trained[1])
    whole = codec.encode(torch.from_numpy(to_model(digits[:130]))).numpy()
    np.testing.assert_allclose(encode_all(codec, digits[:130]), whole, rtol=1e-4, atol=1e-5)


def test_a_longer_run_on_latents_continues_a_shorter_one_exactly(trained, digits_file, tmp_path):
    _, autoencoder = trained
    changes = {"autoencoder": autoencoder, "ema_decay": 0.9}
    once = diffleak.train(config(digits_file, tmp_path / "once", **changes))
    twice = diffleak.train(config(digits_file, tmp_path / "twice", steps=3, **changes))
    diffleak.train(config(digits_file, twice, **changes))
    assert same(once, twice)


def test_images_that_the_autoencoder_cannot_divide_are_refused(trained, tmp_path):
    np.save(tmp_path / "odd.npy", np.zeros((12, 9, 9), dtype=np.uint8))
    with pytest.raises(UserError, match=r"image sides must be multiples of 2 for this autoencoder; got 9 x 9 grey: use --resize"):
        diffleak.train(config(tmp_path / "odd.npy", tmp_path / "model", autoencoder=trained[1]))


def test_latents_that_cannot_be_halved_often_enough_are_refused(trained, digits_file, tmp_path):
    blocks = {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4, "block_out_channels": [8] * 4}
    with pytest.raises(UserError, match=r"latent sides must be multiples of 8 for a network of 4 levels; got 4 x 4: use --resize"):
        diffleak.train(config(digits_file, tmp_path / "model", autoencoder=trained[1], model={**TINY, **blocks}))


def test_grey_images_are_refused_by_an_autoencoder_of_colours_unless_they_are_converted(digits_file, data, tmp_path):
    np.save(tmp_path / "rgb.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    autoencoder = diffleak.train(config(tmp_path / "rgb.npy", tmp_path / "vae", kind="vae", model=AUTOENCODER, steps=1))
    with pytest.raises(UserError, match="is 8 x 8 grey, the model takes 8 x 8 RGB; --resize converts it"):
        diffleak.train(config(data, tmp_path / "model", autoencoder=autoencoder))
    folder = diffleak.train(config(data, tmp_path / "model", autoencoder=autoencoder, resize=8, steps=1))
    assert diffleak.load(folder, device="cpu").shape == ImageShape(3, 8, 8)


def test_an_autoencoder_folder_is_not_overwritten_by_a_denoiser(trained, digits_file):
    _, autoencoder = trained
    with pytest.raises(UserError, match=r"holds another training run \(kind of model was (vae|vq), now denoiser"):
        diffleak.train(config(digits_file, autoencoder, autoencoder=autoencoder))


# --- classes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(monkeypatch, data):
    """Makes the data of `config` have labels."""

    def label(labels: tuple[int, ...]) -> None:
        source = open_source(str(data))
        for module in (run, images):
            monkeypatch.setattr(module, "open_source", lambda *_: ImageSource(source.name, source.ids, source.read, lambda: Labels(labels)))

    return label


CONDITIONAL = {**TINY, "num_class_embeds": 10}


def test_a_class_conditional_denoiser_sees_every_image_with_its_label(data, tmp_path, labelled, monkeypatch):
    labelled(tuple(i % 10 for i in range(30)))
    seen, forward = [], DenoisingLoss.forward

    def watched(self, x0, labels, half, t, noise):
        seen.extend(zip(x0.clone(), labels.tolist(), strict=True))
        return forward(self, x0, labels, half, t, noise)

    monkeypatch.setattr(DenoisingLoss, "forward", watched)
    folder = diffleak.train(config(data, tmp_path / "model", model=CONDITIONAL, train_size=20))
    everything = torch.from_numpy(to_model(IMAGES[..., None]))
    trained_on = set()
    for x0, label in seen:
        (i,) = [i for i in range(30) if torch.equal(x0, everything[i])]
        assert label == i % 10
        trained_on.add(str(i))
    assert len(seen) == 24 and trained_on == set(json.loads((folder / "split.json").read_text())["members"])


def test_a_class_conditional_denoiser_learns_its_classes_and_loads(data, tmp_path, labelled):
    labelled(tuple(i % 10 for i in range(30)))
    folder = diffleak.train(config(data, tmp_path / "model", model=CONDITIONAL))
    target = diffleak.load(folder, device="cpu")
    assert target.classes == 10
    x = torch.zeros(2, 1, 8, 8)
    assert not torch.allclose(target.denoiser(x, 50, torch.tensor([1, 2])), target.denoiser(x, 50, torch.tensor([3, 4])))
    again = diffleak.train(config(data, tmp_path / "again", model=CONDITIONAL))
    assert same(folder, again)
    moved = tuple((i + 1) % 10 for i in range(30))
    labelled(moved)
    assert not same(folder, diffleak.train(config(data, tmp_path / "moved", model=CONDITIONAL)))


def test_a_class_conditional_denoiser_of_latents_trains_and_loads(trained, data, tmp_path, labelled):
    labelled(tuple(i % 10 for i in range(30)))
    settings = config(data, tmp_path / "model", model=CONDITIONAL, autoencoder=trained[1], train_size=20, steps=2)
    target = diffleak.load(diffleak.train(settings), device="cpu")
    assert target.classes == 10 and target.latent


def test_labels_are_left_alone_by_a_denoiser_without_classes(data, tmp_path, labelled):
    labelled(tuple(range(100, 130)))
    assert diffleak.load(diffleak.train(config(data, tmp_path / "model", steps=1)), device="cpu").classes is None


def test_class_conditional_training_without_labels_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="num_class_embeds is 10, so the data must have labels, one per image; it has none"):
        diffleak.train(config(data, tmp_path / "model", model=CONDITIONAL))


@pytest.mark.parametrize("worst", [10, 99, -1])
def test_a_label_out_of_range_is_refused(data, tmp_path, labelled, worst):
    labelled((*range(10), worst, *range(9), *range(10)))
    with pytest.raises(
        UserError, match=rf"labels must lie in \[0, 10\), the model's classes; 1 of the training images does not \(first: .* has {worst}\)"
    ):
        diffleak.train(config(data, tmp_path / "model", model=CONDITIONAL))


# --- presets of latent models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "name"), [("vae", "AutoencoderKL"), ("vq", "VQModel")])
@pytest.mark.parametrize("side", [28, 32, 64])
def test_the_autoencoder_presets_make_images_four_times_smaller_with_four_channels(tmp_path, preset, name, side):
    settings = diffleak.train_config(preset, data="x.npy", output=tmp_path)
    assert settings.kind == preset
    network = hub.new_autoencoder(name, autoencoder_config(settings, ImageShape(3, side, side)))
    assert hub.latent_shape(hub.codec_of(network, 1.0), ImageShape(3, side, side)) == ImageShape(4, side // 4, side // 4)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(0.8e6, rel=0.05), "the size that the preset states"


def test_the_latent_preset_trains_on_the_latents_of_an_autoencoder(trained, digits_file, tmp_path):
    flags = {"data": str(digits_file), "output": tmp_path / "model", "autoencoder": trained[1], "device": "cpu", "threads": 1}
    folder = diffleak.train(diffleak.train_config("latent", steps=1, batch_size=2, **flags))
    target = diffleak.load(folder, device="cpu")
    assert target.shape == ImageShape(1, 8, 8) and target.latent
    assert sum(p.numel() for p in target.denoiser.network.parameters()) == pytest.approx(4.4e6, rel=0.05), "the size that it states"


def test_the_latent_preset_needs_an_autoencoder(tmp_path):
    with pytest.raises(UserError, match="the preset latent trains on the latents of an autoencoder: give --autoencoder FOLDER"):
        diffleak.train_config("latent", data="digits", output=tmp_path)


def test_an_autoencoder_folder_called_vae_still_brings_its_split(trained, digits_file, tmp_path):
    import shutil

    shutil.copytree(trained[1], tmp_path / "vae")
    flags = {"data": str(digits_file), "output": tmp_path / "model", "autoencoder": tmp_path / "vae", "device": "cpu", "threads": 1}
    folder = diffleak.train(diffleak.train_config("latent", steps=1, batch_size=2, **flags))
    assert json.loads((folder / "split.json").read_text()) == json.loads((tmp_path / "vae" / "split.json").read_text())
