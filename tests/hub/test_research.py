"""Checkpoints of pytorch-ddpm and guided-diffusion: what `convert` makes of them, and what it refuses in one line."""

import json
import os
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.commands import call, refused
from fixtures.research import DDPM, GUIDED, guided_diffusion_state, pytorch_ddpm_checkpoint, pytorch_ddpm_state
from oracles import research as oracle
from safetensors.torch import load_file, save_file

import diffleak
from diffleak import hub
from diffleak.attacks import ATTACKS
from diffleak.attacks.subject import Subject
from diffleak.diffusion.noise import Noise
from diffleak.hub.research import convert
from diffleak.records.conversion import Conversion

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8)).astype(np.float32)
FIXTURES = os.environ.get("DIFFLEAK_CHECKPOINTS")  # a folder of checkpoints with the outputs of the original code beside them


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def settings_file(folder: Path, keys: dict[str, Any]) -> Path:
    path = folder / "settings.json"
    path.write_text(json.dumps(keys))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The checkpoints of both code bases, and the model folders `ddpm` and `guided` made of them."""
    folder = tmp_path_factory.mktemp("research")
    content = pytorch_ddpm_checkpoint()
    table = content["ema_model"]["module.time_embedding.timembedding.0.weight"]
    table += 0.05 * torch.randn(table.shape, generator=torch.Generator().manual_seed(4))  # as an average, it is a table of its own
    convert(saved(folder / "ddpm.pt", content), folder / "ddpm")
    state = guided_diffusion_state(num_classes=5)
    keys = settings_file(folder, {**GUIDED, "num_classes": 5})
    convert(saved(folder / "guided.pt", state), folder / "guided", keys)
    return folder


def predicted(folder: Path, t: int, label: int | None = None, dtype: str = "float64") -> np.ndarray:
    denoiser = hub.load(folder, dtype=dtype).denoiser
    x = torch.from_numpy(IMAGES).to(torch.float64 if dtype == "float64" else torch.float32)
    return denoiser(x, t, None if label is None else torch.tensor([label, label])).numpy()


# --- what it makes ---


@pytest.mark.parametrize("t", [0, 730])
def test_the_average_of_pytorch_ddpm_predicts_by_its_own_table_of_times_what_the_formula_does(place, t):
    expected = oracle.pytorch_ddpm(torch.load(place / "ddpm.pt", weights_only=True)["ema_model"], DDPM, IMAGES, t)
    np.testing.assert_allclose(predicted(place / "ddpm", t), expected, atol=1e-9)
    np.testing.assert_allclose(predicted(place / "ddpm", t, dtype="float32"), expected, atol=1e-5)


def test_a_class_conditional_guided_diffusion_network_predicts_what_the_formula_does_less_its_variance(place):
    expected = oracle.guided_diffusion(torch.load(place / "guided.pt", weights_only=True), {**GUIDED, "num_classes": 5}, IMAGES, 730, 3)
    assert expected.shape[1] == 6
    np.testing.assert_allclose(predicted(place / "guided", 730, 3), expected[:, :3], atol=3e-6)  # whose time is float32


PLAIN = {"use_scale_shift_norm": False, "resblock_updown": False, "out_channels": 3}


@pytest.mark.parametrize(
    "keys",
    [
        {**PLAIN, "num_heads_upsample": 2},
        {"use_new_attention_order": True, "num_heads": None, "num_head_channels": 16, "attention_resolutions": [1, 2]},
        {**PLAIN, "num_res_blocks": 2, "channel_mult": [2, 1, 1], "attention_resolutions": []},
        {"channel_mult": [1], "resblock_updown": False, "attention_resolutions": []},
    ],
    ids=["convolutions", "new-order", "no-attention", "one-level"],
)
def test_every_layout_of_guided_diffusion_is_found_in_its_weights(tmp_path, keys):
    arguments = {key: value for key, value in {**GUIDED, **keys}.items() if value is not None}
    unsaid = {
        key: arguments[key]
        for key in ("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order")
        if key in arguments
    }
    state = guided_diffusion_state(**keys)
    convert(saved(tmp_path / "m.pt", state), tmp_path / "m", settings_file(tmp_path, unsaid))
    expected = oracle.guided_diffusion(state, {"num_heads": 0, **arguments}, IMAGES[:1], 90)[:, :3]
    np.testing.assert_allclose(predicted(tmp_path / "m", 90)[:1], expected, atol=3e-6)


def test_the_network_and_not_its_average_is_converted_where_that_is_asked_for(tmp_path):
    content = pytorch_ddpm_checkpoint(ch_mult=[1, 1, 2], attn=[0, 2])
    record = convert(saved(tmp_path / "c.pt", content), tmp_path / "net", weights="net")
    assert (record.weights, record.step) == ("net_model", 7)
    expected = oracle.pytorch_ddpm(content["net_model"], {**DDPM, "ch_mult": [1, 1, 2], "attn": [0, 2]}, IMAGES[:1], 5)
    np.testing.assert_allclose(predicted(tmp_path / "net", 5)[:1], expected, atol=1e-9)


def test_a_state_dict_alone_and_a_safetensors_file_give_the_same_weights_as_the_checkpoint(place, tmp_path):
    average = {key.removeprefix("module."): value for key, value in torch.load(place / "ddpm.pt", weights_only=True)["ema_model"].items()}
    save_file(average, tmp_path / "s.safetensors")
    convert(tmp_path / "s.safetensors", tmp_path / "s")
    one, other = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (place / "ddpm", tmp_path / "s"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_model_is_converted_into_the_empty_folder_one_stands_in_and_lends_its_caveats_with_its_network(place, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(place / "ddpm.pt", Path("."))
    assert {path.name for path in Path(".").iterdir()} == {"unet", "scheduler", "convert.json"}, "which is the same folder still"
    (tmp_path / "model").mkdir()
    for part in ("unet", "scheduler"):
        shutil.copytree(part, tmp_path / "model" / part)
    plain, lent = (hub.load(tmp_path / "model", network=network).warnings for network in (None, Path.cwd()))
    assert plain == () and lent == hub.load(".").warnings != ()


def test_the_schedule_is_that_of_the_original_code(place, tmp_path):
    linear = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(hub.load(place / "ddpm").denoiser.schedule.alphas_cumprod, linear, rtol=1e-4)
    keys = {"num_heads": 1, "diffusion_steps": 400, "noise_schedule": "cosine", "rescale_timesteps": True, "predict_xstart": True}
    state = guided_diffusion_state(**PLAIN)
    convert(saved(tmp_path / "m.pt", state), tmp_path / "m", settings_file(tmp_path, keys))
    target = hub.load(tmp_path / "m")
    bar = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = [min(1 - bar((i + 1) / 400) / bar(i / 400), 0.999) for i in range(400)]
    np.testing.assert_allclose(target.denoiser.schedule.alphas_cumprod, np.cumprod(1 - np.array(betas)), rtol=1e-3)
    x0 = oracle.guided_diffusion(state, {**GUIDED, **PLAIN, "num_heads": 1}, IMAGES, 500)  # t = 200 of 400, scaled to 1000
    a, s = target.denoiser.schedule.a(200), target.denoiser.schedule.s(200)
    np.testing.assert_allclose(predicted(tmp_path / "m", 200), (IMAGES - a * x0) / s, atol=1e-5)


def test_what_was_assumed_is_said_recorded_and_a_warning_of_every_load(place, tmp_path, capsys):
    code, out, err = call(capsys, "convert", place / "ddpm.pt", "-o", tmp_path / "m", "--json")
    said = json.loads(out)
    record = Conversion.model_validate_json((tmp_path / "m" / "convert.json").read_text())
    assert code == 0 and "assumed, as its code does by default: mean_type epsilon, beta_1 0.0001, beta_T 0.02" in err
    assert said["assumed"] == record.assumed == {"mean_type": "epsilon", "beta_1": 0.0001, "beta_T": 0.02}
    assert (said["weights"], said["code_base"]) == ("ema_model", "pytorch-ddpm")
    assert shlex.split(said["audit"])[:3] == ["diffleak", "audit", str(tmp_path / "m")]
    assert any("mean_type epsilon" in line for line in hub.load(tmp_path / "m").warnings)
    capsys.readouterr()
    whole = {"mean_type": "epsilon", "beta_1": 1e-4, "beta_T": 0.02, "img_size": 8, **DDPM}
    code, out, err = call(capsys, "convert", place / "ddpm.pt", "-o", tmp_path / "n", "--settings", settings_file(tmp_path, whole))
    assert (code, err) == (0, "") and f"diffleak audit {tmp_path / 'n'} " in out
    target = hub.load(tmp_path / "n")
    assert target.warnings == () and str(target.shape) == "8 x 8 RGB"


@pytest.mark.parametrize("name", ["gradient", "secmi", "sima"])
def test_attacks_run_on_a_converted_model_of_classes(place, name):
    target = hub.load(place / "guided")
    subject = Subject(target.denoiser, torch.from_numpy(IMAGES), Noise(0, ("a", "b"), (3, 8, 8)), cond=torch.tensor([1, 4]))
    attack = ATTACKS[name](timesteps=(50, 100)).opened(subject)
    assert torch.isfinite(attack.statistics(subject)).all()


@pytest.mark.parametrize("name", ["ddpm", "guided"])
def test_a_converted_network_is_differentiated_forwards_in_batches(place, name):
    """As the geometry and the sharper attacks do; the oracle is the difference of two predictions."""
    network = hub.load(place / name, dtype="float64").denoiser.network
    labels = torch.tensor([2]) if name == "guided" else None
    ask = lambda x: network(x[None], torch.tensor([100]), labels).sample[0]
    x = torch.from_numpy(IMAGES[0]).double()
    directions = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = torch.func.vmap(lambda v: torch.func.jvp(ask, (x,), (v,))[1])(directions)
    for v, found in zip(directions, along, strict=True):
        torch.testing.assert_close(found, (ask(x + 1e-5 * v) - ask(x - 1e-5 * v)) / 2e-5, rtol=1e-5, atol=1e-7)


def test_a_converted_model_runs_in_half_precision_and_its_table_of_times_is_no_weight(place):
    target = hub.load(place / "ddpm", dtype="bfloat16")
    assert torch.isfinite(target.denoiser(torch.from_numpy(IMAGES), 5)).all()
    assert "time_table" not in target.denoiser.weights and len(target.denoiser.weights) > 50


@pytest.mark.skipif(not FIXTURES, reason="DIFFLEAK_CHECKPOINTS names no folder of checkpoints with outputs of the original code")
@pytest.mark.parametrize("name", ["pytorch-ddpm-small", "guided-diffusion-small"])
def test_a_checkpoint_of_the_original_code_predicts_what_that_code_did(tmp_path, name):
    beside = lambda ending: Path(str(FIXTURES)) / f"{name}.{ending}"
    convert(beside("pt"), tmp_path / "m", beside("json"))
    outputs, denoiser = np.load(beside("npz")), hub.load(tmp_path / "m").denoiser
    for x, t, eps in zip(outputs["x"], outputs["t"], outputs["eps"], strict=True):
        np.testing.assert_allclose(denoiser(torch.from_numpy(x[None]), int(t))[0].numpy(), eps, atol=1e-5)


# --- what it refuses ---


class Harmful:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    """As that of NVlabs, by its name in the pickle."""


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
def test_a_pickle_that_would_run_code_is_refused_and_its_code_is_not_run(tmp_path, capsys, how):
    path, trap = tmp_path / "c.pt", tmp_path / "trap"
    content = {**pytorch_ddpm_state(), "harm": Harmful(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"ema": Harmful(trap)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    line = refused(capsys, "convert", path, "-o", tmp_path / "m")
    assert "is a pickle that would run code (posix.mkdir); it was not opened" in line
    assert not trap.exists() and not (tmp_path / "m").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_edm_is_refused_by_its_name(tmp_path, capsys, protocol, monkeypatch):
    monkeypatch.setattr(Harmful, "__reduce__", lambda self: (_reconstruct_persistent_obj, ({},)))
    monkeypatch.setitem(sys.modules, "torch_utils", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", SimpleNamespace(_reconstruct_persistent_obj=_reconstruct_persistent_obj))
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": Harmful(tmp_path)}, protocol))
    line = refused(capsys, "convert", tmp_path / "edm.pkl", "-o", tmp_path / "m")
    assert "is an EDM pickle (NVlabs), which would run its own code; it was not opened" in line and "--model-from" in line


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"], "CompVis latent diffusion"),
        (["init_conv.weight", "downs.0.0.block1.proj.weight"], "lucidrains' denoising-diffusion-pytorch"),
        (["module.all_modules.0.weight", "module.sigmas"], "score_sde"),
        (["down.0.block.0.norm1.weight"], "ermongroup/ddim"),
        (["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"], "diffusers"),
        (["model.enc.32x32_conv.weight"], "EDM (NVlabs)"),
        (["blocks.0.adaLN_modulation.1.weight"], "DiT (facebookresearch)"),
        (["layer.0.weight"], "its first weight is layer.0.weight"),
    ],
)
@pytest.mark.parametrize("within", [lambda state: state, lambda state: {"step": 3, "model": state}, lambda state: [state, {"state": {}}]])
def test_a_checkpoint_of_another_code_base_is_refused_by_its_name(tmp_path, keys, name, within):
    path = saved(tmp_path / "c.pt", within({key: torch.zeros(1) for key in keys}))
    with pytest.raises(diffleak.UserError, match=r"is of |must be a network of") as caught:
        convert(path, tmp_path / "m")
    assert name in str(caught.value) and len(str(caught.value)) <= 400


def guided_file(folder: Path, **changes: Any) -> Path:
    """A state dict of guided-diffusion with some weights changed; None takes one away."""
    state = guided_diffusion_state(**PLAIN) | changes
    return saved(folder / "g.pt", {key: value for key, value in state.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"middle_block.2.out_layers.3.bias": None}, "weights are missing (first: middle_block.2.out_layers.3.bias)"),
        ({"input_blocks.1.0.in_layers.2.weight": None}, "weights are missing ('input_blocks.1.0.in_layers.2.weight')"),
        ({"low_res.weight": torch.zeros(1)}, "has more weights (first: low_res.weight)"),
        ({"output_blocks.9.0.in_layers.0.weight": torch.zeros(1)}, "weights are missing ('output_blocks.5')"),
        ({"out.0.weight": torch.zeros(7)}, "out.0.weight has shape (7,), and (32,) would fit"),
        ({"time_embed.0.weight": torch.zeros(())}, "weights are missing (tuple index out of range)"),
        ({"out.0.weight": torch.zeros(32, dtype=torch.int8)}, "out.0.weight is stored as int8"),
        ({"out.2.weight": torch.zeros(4, 32, 3, 3)}, "takes 3 channels and returns 4"),
        ({"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}, "super-resolution"),
    ],
)
def test_damaged_weights_are_named(tmp_path, changes, said):
    with pytest.raises(diffleak.UserError) as caught:
        convert(guided_file(tmp_path, **changes), tmp_path / "m", settings_file(tmp_path, {"num_heads": 4}))
    assert said in str(caught.value) and len(str(caught.value)) <= 400
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("lacking", ["middleblocks.0.attn.proj.weight", "middleblocks.0.attn.proj_q.weight", "upblocks.0.attn.proj_v.bias"])
def test_a_weight_that_pytorch_ddpm_lacks_is_called_by_its_name_there(tmp_path, lacking):
    state = {key: value for key, value in pytorch_ddpm_state(attn=[0, 1]).items() if key != lacking}
    with pytest.raises(diffleak.UserError) as caught:
        convert(saved(tmp_path / "m.pt", state), tmp_path / "m")
    assert f"is a pytorch-ddpm network, but weights are missing ('{lacking}')" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "do not determine the number of attention heads"),
        ({"num_heads": 0}, "cannot be divided among 0 heads"),
        ({"num_heads": 5}, "channels of attention cannot be divided among 5 heads"),
        ({"num_head_channels": 48}, "cannot be divided among 0 heads"),
        ({"num_heads": "4"}, "num_heads in {file} must be a whole number; got '4'"),
        (
            {"num_heads": 4, "nois_schedule": "cosine"},
            "unknown setting of guided-diffusion in {file} 'nois_schedule'; did you mean 'noise_schedule'",
        ),
        ({"num_heads": 4, "noise_schedule": "karras"}, "noise_schedule in {file} must be linear or cosine; got karras"),
        ({"num_heads": 4, "diffusion_steps": 4000}, "must also have rescale_timesteps"),
        ({"num_heads": 4, "learn_sigma": True}, "learn_sigma in {file} is True, but the weights have False"),
        (
            {"num_heads": 4, "channel_mult": "1,1"},
            "channel_mult in {file} is 1,1, but the weights have [32, 64] channels",
        ),
        ({"num_heads": 4, "attention_resolutions": [4]}, "is [4], but the weights have [1] (levels from 0)"),
        ({"num_heads": 4, "image_size": 8, "attention_resolutions": "8"}, "is 8, but the weights have [1]"),
        ({"num_heads": 4, "attention_resolutions": "8"}, "give image_size too"),
        ({"num_heads": 4, "image_size": 9}, "the image size in {file} must be a multiple of 2"),
        ({"num_heads": 4, "class_cond": True}, "class_cond in {file} is True, but the weights have False"),
    ],
)
def test_settings_that_are_missing_wrong_or_contradict_the_weights_are_one_line(tmp_path, keys, said):
    file = settings_file(tmp_path, keys)
    with pytest.raises(diffleak.UserError) as caught:
        convert(guided_file(tmp_path), tmp_path / "m", file)
    assert said.format(file=file) in str(caught.value) and len(" ".join(str(caught.value).split(str(tmp_path)))) <= 400


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mean_type": "xprev"}, "mean_type"),
        ({"beta_T": 2.0}, "must grow between 0 and 1"),
        ({"T": 500}, "T in"),
        ({"attn": [0]}, "attn in"),
        ({"ch": 64}, "ch in"),
    ],
)
def test_settings_of_pytorch_ddpm_that_contradict_its_weights_are_refused(place, tmp_path, keys, said):
    with pytest.raises(diffleak.UserError, match=said):
        convert(place / "ddpm.pt", tmp_path / "m", settings_file(tmp_path, keys))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"checkpoint": "none.pt"}, "must be a checkpoint that torch.save wrote"),
        ({"checkpoint": ""}, "CHECKPOINT must be one file"),
        ({"settings": "none.json"}, "--settings must be a JSON file"),
        ({"output": "ddpm.pt"}, "exists: choose another -o"),
    ],
)
def test_inputs_and_outputs_of_a_call_from_python_are_refused_too(place, tmp_path, given, said):
    paths = {key: place / path for key, path in ({"checkpoint": "ddpm.pt"} | given).items()}
    with pytest.raises(diffleak.UserError, match=said):
        convert(**({"output": tmp_path / "m"} | paths))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{place}/none.pt"], "CHECKPOINT must be a file; found nothing at "),
        (["{place}"], "CHECKPOINT must be a file; found a folder at "),
        (["{place}/cut.pt"], "it is damaged or of another kind"),
        (["{place}/text.pt"], "is another pickle, or damaged"),
        (["{place}/ddpm.pt", "--settings", "{place}/none.json"], "--settings must be a file; found nothing at "),
        (["{place}/ddpm.pt", "--settings", "{place}/cut.pt"], "must be JSON"),
        (["{place}/ddpm.pt", "--weights", "model"], "which holds net_model, ema_model; got model"),
        (["{place}/guided.pt", "--weights", "ema"], "--weights chooses among the networks of a checkpoint"),
        (["{place}/two.pt"], "holds 2 networks (a, b): choose one of them with --weights NAME"),
        (["{place}/empty.pt"], "it holds no weights"),
        (["{place}/ddpm.pt", "-o", "{place}/ddpm"], " exists: choose another -o"),
        (["{place}/ddpm.pt", "-o", "{place}/text.pt"], "cannot be written (it is a file); choose another with -o"),
        (["{place}/ddpm.pt", "-o", "{place}/text.pt/m"], "cannot be written"),
    ],
)
def test_other_inputs_are_refused_in_one_line(place, tmp_path, capsys, arguments, said):
    (place / "cut.pt").write_bytes((place / "ddpm.pt").read_bytes()[:-1000])
    (place / "text.pt").write_text("no checkpoint")
    torch.save({name: pytorch_ddpm_state() for name in "ab"}, place / "two.pt")
    torch.save({"step": 1}, place / "empty.pt")
    output = [] if "-o" in arguments else ["-o", tmp_path / "m"]
    assert said in refused(capsys, "convert", *[a.format(place=place) for a in arguments], *output)
    assert not (tmp_path / "m").exists() and not [*place.glob(".*part")]
