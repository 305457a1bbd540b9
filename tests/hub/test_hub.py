"""Models in diffusers folders: what load() must answer, and what it must refuse in one line that says what to do."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
    UNet2DModel,
    VQModel,
)

from diffleak.attacks import ATTACKS
from diffleak.attacks.subject import Subject
from diffleak.data.pixels import ImageShape
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.hub import (
    checked_device,
    codec_of,
    codecs,
    configs,
    folders,
    latent_shape,
    load,
    load_codec,
    new_autoencoder,
    new_network,
    new_sampler,
    new_scheduler,
    save,
)

Folders = Callable[..., Path]


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape)).to(dtype)


def edit(file: Path, **changes: object) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def scheduler_config(folder: Path) -> Path:
    return folder / "scheduler" / "scheduler_config.json"


def unet_config(folder: Path) -> Path:
    return folder / "unet" / "config.json"


def weights(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def refusal(folder: str | Path, **options: str) -> str:
    """The message of the UserError that load must raise; one line, as the command line prints it."""
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


# --- what loads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, (8, 12)], ids=str)
def test_a_loaded_model_predicts_what_diffusers_predicts(model_folder: Folders, channels: int, size: int | tuple[int, int]) -> None:
    folder = model_folder(in_channels=channels, out_channels=channels, sample_size=size)
    target = load(folder, device="cpu")
    height, width = (size, size) if isinstance(size, int) else size
    assert target.shape == ImageShape(channels, height, width)
    x_t = images(4, channels, height, width)
    theirs = UNet2DModel.from_pretrained(folder / "unet").eval()
    for t in (0, 90, 999):
        with torch.no_grad():
            expected = theirs(x_t, t).sample
        assert expected.std() > 1e-3
        torch.testing.assert_close(target.denoiser(x_t, t), expected, rtol=1e-5, atol=1e-6)


def test_what_save_writes_is_a_pipeline_that_diffusers_loads(model_folder: Folders) -> None:
    pipeline = DDPMPipeline.from_pretrained(model_folder(scheduler={"num_train_timesteps": 77}))
    assert isinstance(pipeline.unet, UNet2DModel)
    assert pipeline.scheduler.config.num_train_timesteps == 77


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_becomes_the_noise_that_diffusers_implies(model_folder: Folders, prediction_type: str) -> None:
    folder = model_folder(scheduler={"prediction_type": prediction_type})
    target = load(folder, dtype="float64", device="cpu")
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False, set_alpha_to_one=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(100)
    network = UNet2DModel.from_pretrained(folder / "unet").double().eval()
    x_t = images(2, 1, 8, 8, dtype=torch.float64)
    for t in (10, 300, 900):
        with torch.no_grad():
            theirs = scheduler.step(network(x_t, t).sample, t, x_t, eta=0.0)
        eps = target.denoiser(x_t, t)
        torch.testing.assert_close(target.denoiser.schedule.predict_x0(x_t, t, eps), theirs.pred_original_sample, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(target.denoiser.schedule.ddim(x_t, eps, t, t - 10), theirs.prev_sample, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
        {"num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.3, 0.4]},
        {"num_train_timesteps": 50},
    ],
    ids=str,
)
def test_the_schedule_is_the_model_schedulers_own_table(model_folder: Folders, config: dict) -> None:
    table = load(model_folder(scheduler=config), device="cpu").denoiser.schedule.alphas_cumprod
    np.testing.assert_array_equal(table, DDPMScheduler(**config).alphas_cumprod.double().numpy())


@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_other_samplers_of_the_same_noise_process_give_their_table(model_folder: Folders, kind: type) -> None:
    folder = model_folder()
    scheduler = kind(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")
    scheduler.save_pretrained(folder / "scheduler")
    target = load(folder, device="cpu")
    np.testing.assert_array_equal(target.denoiser.schedule.alphas_cumprod, scheduler.alphas_cumprod.double().numpy())
    assert target.denoiser.prediction_type == "v_prediction"


RESCALED = [
    name for name in dir(diffusers) if name.endswith("Scheduler") and "rescale_betas_zero_snr" in str(signature(getattr(diffusers, name)))
]


@pytest.mark.parametrize("name", RESCALED)
def test_a_schedule_that_ends_without_signal_is_the_table_of_its_scheduler_whichever_it_is(name: str) -> None:
    """Some write 0 at the end, others 2^-24, which for linear betas lies above what comes before."""
    for betas in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        try:
            made = getattr(diffusers, name).from_config({"beta_schedule": betas, "rescale_betas_zero_snr": True})
        except NotImplementedError:
            continue
        table = made.alphas_cumprod.double().numpy()
        np.testing.assert_array_equal(Schedule(made.alphas_cumprod).alphas_cumprod, table)
        assert 0 <= table[-1] <= 2**-24


def test_a_model_of_euler_steps_and_linear_betas_without_signal_at_the_end_loads_and_draws(model_folder: Folders) -> None:
    folder = model_folder()
    scheduler = EulerDiscreteScheduler(beta_schedule="linear", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.save_pretrained(folder / "scheduler")
    schedule = load(folder, device="cpu").denoiser.schedule
    expected = EulerDiscreteScheduler.from_pretrained(folder / "scheduler").alphas_cumprod.double().numpy()
    np.testing.assert_array_equal(schedule.alphas_cumprod, expected)
    assert expected[-1] > expected[-2], "the case in question"
    for name in ("ddim", "dpm"):
        np.testing.assert_allclose(new_sampler(name, schedule, 5, False).alphas_cumprod.numpy(), expected, rtol=1e-3, atol=1e-9)
    assert new_sampler("ddpm", schedule, len(schedule), False).betas.min() >= 0, "no step has a negative variance"


@pytest.mark.parametrize("name", ["IPNDMScheduler", "CMStochasticIterativeScheduler"])
def test_a_scheduler_that_has_no_alphas_cumprod_is_refused(model_folder: Folders, name: str) -> None:
    """Reading it as a DDPM scheduler would audit the model with betas that it was never trained with."""
    import diffusers

    folder = model_folder()
    getattr(diffusers, name)().save_pretrained(folder / "scheduler")
    assert name in refusal(folder)


def test_a_learned_variance_model_gives_its_mean_only(model_folder: Folders) -> None:
    folder = model_folder(scheduler={"variance_type": "learned_range"}, in_channels=3, out_channels=6)
    x_t = images(2, 3, 8, 8)
    both = UNet2DModel.from_pretrained(folder / "unet").eval()(x_t, 50).sample
    assert both.shape == (2, 6, 8, 8)
    torch.testing.assert_close(load(folder, device="cpu").denoiser(x_t, 50), both[:, :3].detach(), rtol=1e-5, atol=1e-6)


def test_twice_the_channels_that_no_scheduler_declares_are_refused(model_folder: Folders) -> None:
    said = refusal(model_folder(in_channels=3, out_channels=6))
    assert "3 in and 6 out" in said and "variance_type 'fixed_small': set it to learned_range or learned" in said


@pytest.mark.parametrize(("inside", "out"), [(1, 3), (3, 1), (3, 4)])
def test_a_network_that_does_not_predict_images_is_refused(model_folder: Folders, inside: int, out: int) -> None:
    assert "channels" in refusal(model_folder(in_channels=inside, out_channels=out))


@pytest.mark.parametrize(
    ("dtype", "x_dtype", "tolerance"),
    [
        ("float32", torch.float32, 1e-5),
        ("float64", torch.float64, 1e-5),
        ("float16", torch.float32, 2e-2),
        ("bfloat16", torch.float32, 1e-1),
    ],
)
def test_every_dtype_runs_in_it_and_answers_in_float32_or_better(
    model_folder: Folders, dtype: str, x_dtype: torch.dtype, tolerance: float
) -> None:
    folder = model_folder()
    target = load(folder, dtype=dtype, device="cpu")
    assert {p.dtype for p in target.denoiser.network.parameters()} == {getattr(torch, dtype)}
    assert target.x_dtype == x_dtype
    eps = target.denoiser(images(2, 1, 8, 8, dtype=x_dtype), 90)
    assert eps.dtype == x_dtype
    exact = UNet2DModel.from_pretrained(folder / "unet").double().eval()(images(2, 1, 8, 8, dtype=torch.float64), 90).sample.detach()
    torch.testing.assert_close(eps.double(), exact, rtol=tolerance, atol=tolerance)


def test_a_loaded_network_is_frozen_and_in_eval_mode(model_folder: Folders) -> None:
    target = load(model_folder(dropout=0.5), device="cpu")
    x_t = images(2, 1, 8, 8)
    assert torch.equal(target.denoiser(x_t, 50), target.denoiser(x_t, 50))
    assert not any(p.requires_grad for p in target.denoiser.network.parameters())
    assert not target.denoiser.network.training


def test_a_target_says_what_it_is(model_folder: Folders) -> None:
    folder = model_folder()
    target = load(str(folder), dtype="float64", device="cpu")
    assert (target.name, target.dtype, target.device) == (str(folder), "float64", "cpu")


def test_a_model_of_any_size_has_no_shape(model_folder: Folders) -> None:
    assert load(model_folder(sample_size=None), device="cpu").shape is None


def test_the_fingerprint_follows_weights_schedule_and_config_and_not_the_place(model_folder: Folders) -> None:
    first, same = load(model_folder("a")).fingerprint, load(model_folder("b")).fingerprint
    assert first == same
    others = [
        load(model_folder("c", scheduler={"beta_end": 0.03})).fingerprint,
        load(model_folder("d", norm_eps=1e-6)).fingerprint,
    ]
    folder = model_folder("e")
    network = UNet2DModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        network.conv_out.bias += 1e-3
    network.save_pretrained(folder / "unet")
    others.append(load(folder).fingerprint)
    assert len({first, *others}) == 4


def test_the_pipeline_index_is_not_needed(model_folder: Folders) -> None:
    folder = model_folder()
    (folder / "model_index.json").unlink()
    assert isinstance(load(folder), Target)


def test_sharded_weights_load_like_whole_ones(model_folder: Folders, tiny_network: Callable[..., torch.nn.Module]) -> None:
    folder, x_t = model_folder(), images(2, 1, 8, 8)
    whole = load(folder, device="cpu").denoiser(x_t, 50)
    weights(folder).unlink()
    tiny_network().save_pretrained(folder / "unet", max_shard_size="20KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert torch.equal(load(folder, device="cpu").denoiser(x_t, 50), whole)


def test_safetensors_are_used_where_a_pickle_lies_beside_them(model_folder: Folders) -> None:
    folder = model_folder()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never opened")
    assert isinstance(load(folder), Target)


@pytest.mark.parametrize("name", [name for name, kind in ATTACKS.items() if not kind.needs_text])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_attack_runs_on_a_loaded_model(model_folder: Folders, name: str, dtype: str) -> None:
    target = load(model_folder(), dtype=dtype, device="cpu")
    noise = Noise(0, ("a", "b"), (1, 8, 8), target.x_dtype)
    subject = Subject(target.denoiser, images(2, 1, 8, 8, dtype=target.x_dtype), noise)
    attack = ATTACKS[name](timesteps=(50, 100)).opened(subject)
    value = attack.statistics(subject)
    assert value.shape == (len(attack.columns), 2)
    assert value.dtype == torch.float64
    assert torch.isfinite(value).all()


def test_loading_warns_of_nothing(model_folder: Folders, caplog: pytest.LogCaptureFixture) -> None:
    folder, library = model_folder(), logging.getLogger("diffusers")
    library.addHandler(caplog.handler)  # it does not hand its messages on to the root
    try:
        load(folder, device="cpu")
    finally:
        library.removeHandler(caplog.handler)
    assert caplog.messages == []


# --- what does not ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("must be a diffusers model folder; unet/config.json is missing")


def test_a_missing_network_config_is_named(model_folder: Folders) -> None:
    folder = model_folder()
    unet_config(folder).unlink()
    assert refusal(folder) == f"{folder} must be a diffusers model folder; unet/config.json is missing"


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_an_autoencoder_alone_says_what_is_missing_and_how_to_get_it(latent_folder: Folders, kind: str) -> None:
    folder = latent_folder(kind=kind)
    shutil.rmtree(folder / "unet")
    assert refusal(folder) == (
        f"{folder} holds an autoencoder, but no denoiser (unet/ or transformer/); "
        f"train one: diffleak train --preset latent --autoencoder {folder} --data DATA -o OUT"
    )


def test_a_missing_scheduler_is_named(model_folder: Folders) -> None:
    folder = model_folder()
    scheduler_config(folder).unlink()
    assert refusal(folder) == f"{folder} must say its noise schedule; scheduler/scheduler_config.json is missing"


@pytest.mark.parametrize("file", [unet_config, scheduler_config])
def test_broken_json_is_refused(model_folder: Folders, file: Callable[[Path], Path]) -> None:
    folder = model_folder()
    file(folder).write_text('{"sample_size": ')
    assert f"{file(folder)} must be JSON (Expecting value" in refusal(folder)
    file(folder).write_bytes(b"\xff\xfe\x00")
    assert f"{file(folder)} must be JSON (" in refusal(folder)
    file(folder).write_text("[1, 2]")
    assert refusal(folder) == f"{file(folder)} must hold a JSON object; got list"


VALUES = {str: "x", int: 3, float: 1.5, bool: True, list: [["a"]], dict: {"b": {"c": 1}}, type(None): None}


def test_a_key_that_is_read_is_refused_with_every_kind_of_value_that_it_cannot_have() -> None:
    for key, kinds in configs.KEYS.items():
        for kind, value in VALUES.items():
            if kind in kinds:
                configs.check_keys({key: value, f"unet.{key}": value}, "f.json")
                continue
            with pytest.raises(UserError, match=rf"^unet\.{key} of f\.json must be .*; got .*: correct it, or fetch the file again$"):
                configs.check_keys({f"unet.{key}": value}, "f.json")


@pytest.mark.parametrize(
    "name", [*sum(folders.NETWORKS.values(), ()), *codecs.AUTOENCODERS, "DDIMScheduler", "DPMSolverMultistepScheduler"]
)
def test_the_default_settings_of_every_class_are_of_the_kind_that_they_must_be(name: str) -> None:
    kind = getattr(diffusers, name)
    defaults = {key: each.default for key, each in signature(kind.__init__).parameters.items() if each.default is not each.empty}
    written = json.loads(json.dumps(defaults, default=list))
    configs.check_keys({key: value for key, value in written.items() if value is not None}, "f.json")
    configs.check_settings(kind, written, Path("f.json"))
    for key, value in written.items():
        if key not in configs.KEYS and value is not None:
            with pytest.raises(UserError, match=f"^{key} of f.json must be a value like "):
                configs.check_settings(kind, {key: {"no": "such"}}, Path("f.json"))


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("unet/config.json", "_class_name", ["UNet2DModel"], "must be a text; got ["),
        ("unet/config.json", "in_channels", None, "must be a whole number; got null"),
        ("unet/config.json", "norm_eps", {"a": 1}, "must be a value like 1e-05; got {"),
        ("unet/config.json", "layers_per_block", 10**12, "must fit its weights ("),
        ("unet/config.json", "sample_size", True, "must be a whole number or a list or null; got true"),
        ("scheduler/scheduler_config.json", "_class_name", {"a": []}, "must be a text; got {"),
        ("scheduler/scheduler_config.json", "prediction_type", 3, "must be a text; got 3"),
        ("scheduler/scheduler_config.json", "beta_schedule", [0.1], "must be a value like 'linear'; got ["),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12, "must lie in [1, 1000000]; got 1000000000000"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", -3, "must lie in [1, 1000000]; got -3"),
        ("vae/config.json", "_class_name", 7, "must be a text; got 7"),
        ("vae/config.json", "shift_factor", "x" * 300, "must be a number or null; got "),
        ("vae/config.json", "norm_num_groups", True, "must be a value like 32; got true"),
    ],
)
def test_a_setting_of_another_kind_is_one_line_that_names_the_file(
    latent_folder: Folders, file: str, key: str, value: object, said: str
) -> None:
    folder = latent_folder()
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), key: value}))
    message = refusal(folder)
    assert message.startswith(f"{key} of {folder / file} {said}") and len(message) <= 400


@pytest.mark.parametrize("content", ['{"_class_name": ["a"]}', '{"_class_name": null}', "[1]", "nothing"])
def test_an_index_that_names_no_pipeline_is_one_line(model_folder: Folders, content: str) -> None:
    folder = model_folder()
    (folder / "model_index.json").write_text(content)
    assert str(folder / "model_index.json") in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"text that is none", b"\xff" * 8, "half", "longer header", "shorter header"], ids=str)
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_damaged_weights_are_one_line_that_names_the_file(latent_folder: Folders, part: str, content: bytes | str) -> None:
    folder = latent_folder()
    file = folder / part / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    damaged = {"half": whole[: len(whole) // 2], "longer header": b"\x00\xff" + whole[2:], "shorter header": b"\x08\x00" + whole[2:]}
    file.write_bytes(content if isinstance(content, bytes) else damaged[content])
    message = refusal(folder)
    assert message.startswith(f"{file} must be a whole safetensors file (") and message.endswith("copy or fetch it again")


def test_another_kind_of_network_is_refused_by_name(model_folder: Folders) -> None:
    folder = model_folder()
    edit(unet_config(folder), _class_name="UNet3DConditionModel")
    assert refusal(folder).startswith("networks must be one of UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, ")
    assert refusal(folder).endswith(f"; {folder / 'unet'} holds a UNet3DConditionModel")


def test_a_network_of_captions_without_a_pipeline_that_embeds_them_is_refused(model_folder: Folders) -> None:
    folder = model_folder()
    edit(unet_config(folder), _class_name="UNet2DConditionModel")
    message = f"{folder / 'unet'} holds a UNet2DConditionModel, which takes captions; model_index.json must name its pipeline, one of "
    assert refusal(folder).startswith(message + "StableDiffusionPipeline, ")


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_classes_that_are_no_numbers_are_refused(model_folder: Folders, kind: str) -> None:
    folder = model_folder(class_embed_type=kind)
    assert refusal(folder) == f"class_embed_type must be null (labels by number); {folder / 'unet'} says '{kind}'"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "another.json"])
def test_a_pipe_in_a_part_of_a_model_is_not_waited_for(model_folder: Folders, name: str) -> None:
    folder = model_folder()
    (folder / "unet" / name).unlink(missing_ok=True)
    os.mkfifo(folder / "unet" / name)
    assert refusal(folder) == f"{folder / 'unet'} must hold only files; {name} is a pipe: fetch the model again"


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".pkl", ".bin"])
def test_a_checkpoint_file_that_is_none_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"never opened")
    assert refusal(file).startswith(f"{file} must be an undamaged pickle of weights alone (")


def test_any_other_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert refusal(file).startswith(f"{file} must be a whole safetensors file (")


def test_a_folder_without_weights_is_refused(model_folder: Folders) -> None:
    folder = model_folder()
    weights(folder).unlink()
    told = f"{folder / 'unet'} must hold the weights as .safetensors, or as a state dict (.bin, .pt, .pth, .ckpt); found none"
    assert refusal(folder) == told


def test_truncated_weights_are_refused(model_folder: Folders) -> None:
    folder = model_folder()
    weights(folder).write_bytes(weights(folder).read_bytes()[:1000])
    assert refusal(folder).startswith(f"{weights(folder)} must be a whole safetensors file (")


def test_a_lost_shard_is_named(model_folder: Folders, tiny_network: Callable[..., torch.nn.Module]) -> None:
    folder = model_folder()
    weights(folder).unlink()
    tiny_network().save_pretrained(folder / "unet", max_shard_size="20KB")
    lost = sorted((folder / "unet").glob("*.safetensors"))[0]
    lost.unlink()
    message = refusal(folder)
    assert message.startswith(f"{folder / 'unet'} cannot be loaded: ")
    assert lost.name in message


def test_weights_of_another_depth_are_refused(model_folder: Folders) -> None:
    folder = model_folder()
    edit(unet_config(folder), layers_per_block=2)
    assert "the weights do not match config.json (first: " in refusal(folder)
    folder = model_folder("deeper", layers_per_block=2)
    edit(unet_config(folder), layers_per_block=1)
    assert "the weights do not match config.json (first: " in refusal(folder)


def test_weights_of_another_width_are_refused_with_the_layer(model_folder: Folders) -> None:
    folder = model_folder()
    edit(unet_config(folder), block_out_channels=[8, 16])
    message = refusal(folder)
    assert str(folder / "unet") in message
    assert "size mismatch" in message or "resnets" in message


@pytest.mark.parametrize("size", ["8", [8, 8, 8], [8], {"height": 8}], ids=str)
def test_a_sample_size_that_is_no_size_is_refused(model_folder: Folders, size: object) -> None:
    folder = model_folder()
    edit(unet_config(folder), sample_size=size)
    assert "sample_size" in refusal(folder)


def test_an_unknown_prediction_type_is_refused(model_folder: Folders) -> None:
    folder = model_folder()
    edit(scheduler_config(folder), prediction_type="flow")
    assert refusal(folder) == f"prediction_type must be epsilon, v_prediction or sample; {folder} says 'flow'"


def test_an_unknown_beta_schedule_is_refused(model_folder: Folders) -> None:
    folder = model_folder()
    edit(scheduler_config(folder), beta_schedule="quadratic")
    assert refusal(folder).startswith(f"{scheduler_config(folder)} cannot be used: quadratic is not implemented")


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    for name in (missing, "./nowhere", "nowhere", "models/sd15.safetensors"):  # the last of which is no hub id
        must = "MODEL must be a diffusers folder, a hub id (owner/name), or a file with a whole model"
        assert refusal(name) == f"{must}; found nothing at {name}"


def test_a_hub_id_without_a_network_is_refused_in_one_line() -> None:
    message = refusal("owner/name")
    assert message.startswith("no folder at owner/name, and the hub gave no such model (")
    assert message.endswith("); pass a local folder")


@pytest.mark.parametrize(
    ("dtype", "near"), [("float23", "float"), ("bfloat", "bfloat16"), ("half", "known: bfloat16, float16, float32, float64")]
)
def test_an_unknown_dtype_names_the_nearest(model_folder: Folders, dtype: str, near: str) -> None:
    message = refusal(model_folder(), dtype=dtype)
    assert message.startswith(f"unknown dtype '{dtype}'; ")
    assert near in message


@pytest.mark.parametrize("device", ["tpu", "", "cpu:zero", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(model_folder: Folders, device: str) -> None:
    assert refusal(model_folder(), device=device).startswith(f"device '{device}' cannot be used (")


def test_the_default_device_exists() -> None:
    assert torch.empty(1, device=checked_device(None)).device.type == checked_device(None).type
    assert checked_device("cpu") == torch.device("cpu")


# --- new networks -------------------------------------------------------------------------------------------------------


def test_a_misspelt_model_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown model key 'layers_per_blok'; did you mean 'layers_per_block'"):
        new_network({"layers_per_blok": 1})


def test_a_network_that_diffusers_refuses_says_why() -> None:
    with pytest.raises(UserError, match="diffusers refuses this UNet2DModel configuration: Must provide the same number"):
        new_network({"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D", "UpBlock2D")})


def test_a_misspelt_scheduler_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown scheduler key 'beta_strat'; did you mean 'beta_start'"):
        new_scheduler({"beta_strat": 0.1})


def test_a_scheduler_that_diffusers_refuses_says_why() -> None:
    with pytest.raises(UserError, match="diffusers refuses this DDPMScheduler configuration: quadratic is not implemented"):
        new_scheduler({"beta_schedule": "quadratic"})


# --- classes ------------------------------------------------------------------------------------------------------------


def labels(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def test_a_class_conditional_unet_predicts_what_diffusers_predicts_for_the_labels(model_folder: Folders) -> None:
    folder = model_folder(num_class_embeds=10)
    target, x_t = load(folder, device="cpu"), images(3, 1, 8, 8)
    assert target.classes == 10
    network = UNet2DModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    expected = network(x_t, 50, class_labels=labels(0, 4, 9)).sample
    torch.testing.assert_close(target.denoiser(x_t, 50, labels(0, 4, 9)), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(target.denoiser(x_t, 50, labels(1, 1, 1)), expected, rtol=1e-3)


@pytest.mark.parametrize("keys", [{"network": "unet", "classes": 10}, {"network": "transformer"}], ids=str)
def test_a_class_conditional_model_without_labels_is_refused_in_one_line(latent_folder: Folders, keys: dict) -> None:
    target = load(latent_folder(**keys), device="cpu")
    with pytest.raises(UserError) as caught:
        target.denoiser(images(2, 4, 4, 4), 50)
    assert str(caught.value) == "this model takes labels of 10 classes as its condition; got none"


def test_an_unconditional_model_with_labels_is_refused_in_one_line(model_folder: Folders) -> None:
    target = load(model_folder(), device="cpu")
    assert target.classes is None
    with pytest.raises(UserError) as caught:
        target.denoiser(images(2, 1, 8, 8), 50, labels(1, 2))
    assert str(caught.value) == "this model takes no condition; got one"


@pytest.mark.parametrize("out", [4, 8, None], ids=["noise alone", "noise and variance", "as many as it takes"])
def test_a_transformer_predicts_what_diffusers_predicts_less_its_variance(latent_folder: Folders, out: int | None) -> None:
    folder = latent_folder(network="transformer", classes=7, out_channels=out)
    target, z_t = load(folder, device="cpu"), images(3, 4, 4, 4)
    assert target.classes == 7
    network = DiTTransformer2DModel.from_pretrained(folder / "transformer").eval().requires_grad_(False)
    both = network(z_t, torch.full((3,), 50), class_labels=labels(0, 3, 6)).sample
    assert both.shape == (3, out or 4, 4, 4) and both.std() > 1e-3
    torch.testing.assert_close(target.denoiser(z_t, 50, labels(0, 3, 6)), both[:, :4], rtol=1e-5, atol=1e-6)


def test_the_first_transformer_folders_load_under_their_old_class_name(latent_folder: Folders) -> None:
    """facebook/DiT-XL-2-256 says Transformer2DModel, with keys of the class it was split from."""
    folder, z_t = latent_folder(network="transformer"), images(2, 4, 4, 4)
    before = load(folder, device="cpu").denoiser(z_t, 50, labels(1, 2))
    edit(folder / "transformer" / "config.json", _class_name="Transformer2DModel", num_vector_embeds=False, only_cross_attention=False)
    assert torch.equal(load(folder, device="cpu").denoiser(z_t, 50, labels(1, 2)), before)


# --- latent models ------------------------------------------------------------------------------------------------------

KINDS = {"vae": AutoencoderKL, "tiny": AutoencoderTiny, "vqvae": VQModel}


def encoder_config(folder: Path) -> Path:
    (part,) = (folder / name for name in ("vae", "vqvae") if (folder / name).is_dir())
    return part / "config.json"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_every_autoencoder_loads_with_every_network(latent_folder: Folders, kind: str, network: str) -> None:
    folder = latent_folder(kind=kind, network=network)
    target = load(folder, device="cpu")
    assert target.latent
    assert target.shape == ImageShape(1, 8, 8), "the images, not the latents"
    z = target.codec.encode(images(2, 1, 8, 8))
    theirs = KINDS[kind].from_pretrained(encoder_config(folder).parent).eval().requires_grad_(False)
    encoded = theirs.encode(images(2, 1, 8, 8))
    h = encoded.latent_dist.mean if kind == "vae" else encoded.latents
    torch.testing.assert_close(z, h * theirs.config.scaling_factor, rtol=1e-5, atol=1e-6)
    cond = labels(3, 5) if network == "transformer" else None
    assert target.classes == (10 if network == "transformer" else None)
    assert target.denoiser(z, 50, cond).shape == z.shape


@pytest.mark.parametrize(("channels", "size"), [(3, 4), (1, 8), (3, (4, 6))], ids=str)
def test_the_images_of_a_latent_model_are_its_latents_scaled_up(latent_folder: Folders, channels: int, size: int | tuple[int, int]) -> None:
    folder = latent_folder(sample_size=size, encoder={"in_channels": channels, "out_channels": channels})
    height, width = (size, size) if isinstance(size, int) else size
    target = load(folder, device="cpu")
    assert target.shape == ImageShape(channels, 2 * height, 2 * width)
    assert target.codec.encode(images(2, channels, 2 * height, 2 * width)).shape == (2, 4, height, width)


def test_the_factor_between_images_and_latents_is_that_of_the_autoencoder(latent_folder: Folders) -> None:
    """SD-like: three halvings, by blocks of its own width."""
    encoder = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    folder = latent_folder(kind="tiny", encoder={**encoder, "num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4})
    assert load(folder, device="cpu").shape == ImageShape(1, 32, 32)


def test_a_latent_model_of_any_size_has_no_shape(latent_folder: Folders) -> None:
    target = load(latent_folder(sample_size=None), device="cpu")
    assert target.shape is None and target.latent


def test_a_pixel_model_is_not_latent(model_folder: Folders) -> None:
    target, x = load(model_folder(), device="cpu"), images(2, 1, 8, 8)
    assert not target.latent
    assert target.codec.encode(x) is x


@pytest.mark.parametrize(
    ("dtype", "encoder"), [("float16", torch.float32), ("bfloat16", torch.float32), ("float32", torch.float32), ("float64", torch.float64)]
)
def test_an_autoencoder_runs_in_at_least_float32(latent_folder: Folders, dtype: str, encoder: torch.dtype) -> None:
    target = load(latent_folder(), dtype=dtype, device="cpu")
    assert {p.dtype for p in target.denoiser.network.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in target.codec.network.parameters()} == {encoder}
    z = target.codec.encode(images(2, 1, 8, 8, dtype=target.x_dtype))
    assert z.dtype == target.codec.decode(z).dtype == target.denoiser(z, 50).dtype == encoder


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_transformer_runs_in_half_precision(latent_folder: Folders, dtype: str) -> None:
    folder, z_t = latent_folder(network="transformer"), images(2, 4, 4, 4)
    exact = load(folder, device="cpu").denoiser(z_t, 50, labels(1, 2))
    torch.testing.assert_close(load(folder, dtype=dtype, device="cpu").denoiser(z_t, 50, labels(1, 2)), exact, rtol=0.1, atol=0.1)


def test_the_fingerprint_of_a_pixel_model_is_its_schedule_weights_and_config(model_folder: Folders) -> None:
    folder, digest = model_folder(), hashlib.sha256()
    for file in (scheduler_config(folder), weights(folder), unet_config(folder)):
        digest.update(file.name.encode() + file.read_bytes())
    assert load(folder, device="cpu").fingerprint == digest.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_follows_the_weights_and_config_of_the_autoencoder_and_not_the_place(latent_folder: Folders, kind: str) -> None:
    first, same = (load(latent_folder(name, kind=kind), device="cpu").fingerprint for name in "ab")
    assert first == same
    scaled = load(latent_folder("c", kind=kind, encoder={"scaling_factor": 0.9}), device="cpu").fingerprint
    folder = latent_folder("d", kind=kind)
    network = KINDS[kind].from_pretrained(encoder_config(folder).parent)
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    before = encoder_config(folder).read_bytes()
    network.save_pretrained(encoder_config(folder).parent)
    encoder_config(folder).write_bytes(before)
    assert len({first, scaled, load(folder, device="cpu").fingerprint}) == 3


def test_the_fingerprint_of_a_transformer_follows_its_weights(latent_folder: Folders) -> None:
    folder = latent_folder(network="transformer")
    before = load(folder, device="cpu").fingerprint
    network = DiTTransformer2DModel.from_pretrained(folder / "transformer")
    with torch.no_grad():
        network.proj_out_2.bias += 1e-3
    network.save_pretrained(folder / "transformer")
    assert load(folder, device="cpu").fingerprint != before


@pytest.mark.parametrize("keys", [{"encoder": {"latent_channels": 3}}, {"in_channels": 8, "out_channels": 8}], ids=str)
def test_an_autoencoder_that_does_not_fit_the_denoiser_is_refused(latent_folder: Folders, keys: dict) -> None:
    folder = latent_folder(**keys)
    made, taken = (3, 4) if "encoder" in keys else (4, 8)
    assert refusal(folder, device="cpu") == (
        f"the autoencoder and the denoiser of {folder} must belong together; the one makes latents of {made} channels, the other takes "
        f"{taken}: give the autoencoder that the denoiser was trained on"
    )


@pytest.mark.parametrize("factor", [None, "0.18215", True, 0, -1.0, float("nan")], ids=repr)
def test_an_autoencoder_that_does_not_say_its_scaling_factor_is_refused_with_where_to_set_it(
    latent_folder: Folders, factor: object
) -> None:
    """The defaults of diffusers are those of one model, 0.18215, and 1: assuming one would audit other latents."""
    folder = latent_folder(kind="vqvae")
    edit(encoder_config(folder), scaling_factor=factor)
    message = refusal(folder, device="cpu")
    assert message.startswith(f"{encoder_config(folder)} must say scaling_factor, the positive number by which latents were multiplied")
    assert message.endswith(f"(0.18215 for Stable Diffusion 1); got {factor}: set it there")


def test_two_autoencoders_are_refused(latent_folder: Folders, autoencoder: Callable[..., torch.nn.Module]) -> None:
    folder = latent_folder(kind="vae")
    autoencoder("vqvae").save_pretrained(folder / "vqvae")
    assert refusal(folder, device="cpu") == f"{folder} must hold one autoencoder; it has vae/ and vqvae/"


def test_an_autoencoder_without_weights_is_refused(latent_folder: Folders) -> None:
    folder = latent_folder()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert refusal(folder, device="cpu").startswith(f"{folder / 'vae'} must hold the weights as .safetensors, or as a state dict")


@pytest.mark.parametrize(("name", "said"), [("AutoencoderDC", "AutoencoderDC"), (None, "config.json without _class_name")])
def test_another_kind_of_autoencoder_is_refused_by_name(latent_folder: Folders, name: str | None, said: str) -> None:
    folder = latent_folder()
    edit(encoder_config(folder), _class_name=name)
    assert refusal(folder, device="cpu") == (
        f"autoencoders must be one of AutoencoderKL, AutoencoderTiny, VQModel; {folder / 'vae'} holds a {said}"
    )


def test_an_autoencoder_of_code_numbers_is_refused(latent_folder: Folders) -> None:
    folder = latent_folder(kind="vqvae", encoder={"lookup_from_codebook": True})
    assert refusal(folder, device="cpu").startswith(f"{folder / 'vqvae'} decodes code numbers (lookup_from_codebook)")


@pytest.mark.parametrize("keys", [{"latents_mean": [0.1, 0.2]}, {"latents_std": [1.0, 2.0, 3.0]}, {"latents_std": [1.0, 0, 1, 1]}], ids=str)
def test_latent_statistics_of_another_number_of_channels_or_of_no_size_are_refused(latent_folder: Folders, keys: dict) -> None:
    folder = latent_folder()
    edit(encoder_config(folder), **keys)
    ((key, values),) = keys.items()
    kind = "positive numbers" if key == "latents_std" else "numbers"
    assert refusal(folder, device="cpu") == (
        f"{encoder_config(folder)} must give {key} as 4 {kind}, one per latent channel, or null; got {values}"
    )


def test_an_empty_autoencoder_folder_is_refused(model_folder: Folders) -> None:
    folder = model_folder()
    (folder / "vae").mkdir()
    assert refusal(folder) == f"{folder} must hold an autoencoder, as vae/ or vqvae/; vae/config.json is missing"


def test_a_folder_without_an_autoencoder_gives_no_codec(model_folder: Folders) -> None:
    folder = model_folder()
    with pytest.raises(UserError, match=r"must hold an autoencoder, as vae/ or vqvae/; model/config.json is missing"):
        load_codec(folder)


def test_an_autoencoder_loads_from_its_own_folder_too(latent_folder: Folders) -> None:
    folder, x = latent_folder(), images(2, 1, 8, 8)
    assert torch.equal(load_codec(folder).encode(x), load_codec(folder / "vae").encode(x))


def test_image_sides_become_latent_sides_or_are_refused(latent_folder: Folders) -> None:
    codec = load_codec(latent_folder())
    assert latent_shape(codec, ImageShape(1, 8, 12)) == ImageShape(4, 4, 6)
    with pytest.raises(UserError, match=r"image sides must be multiples of 2 for this autoencoder; got 8 x 9 grey: use --resize"):
        latent_shape(codec, ImageShape(1, 8, 9))


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "image_encoder"])
def test_a_model_of_captions_or_image_prompts_is_not_audited_as_one_of_images_alone(latent_folder: Folders, part: str) -> None:
    folder = latent_folder()
    (folder / part).mkdir()
    (folder / "model_index.json").unlink(missing_ok=True)
    assert refusal(folder).startswith("text-to-image models must be one of StableDiffusionPipeline, StableDiffusionXLPipeline, ")
    assert refusal(folder).endswith(f"named in model_index.json; {folder} has no such file")
    (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    assert refusal(folder).endswith(f"{folder} is a KandinskyPipeline")


# --- saving latent models -----------------------------------------------------------------------------------------------


@pytest.fixture
def resaved(latent_folder: Folders, tiny_network: Callable[..., torch.nn.Module]) -> Callable[..., tuple[Path, Path]]:
    """A latent folder as diffusers writes it, and the same model as `save` writes it."""

    def make(kind: str, name: str = "ours") -> tuple[Path, Path]:
        theirs = latent_folder("theirs", kind=kind, scheduler={"num_train_timesteps": 77})
        network = tiny_network(sample_size=4, in_channels=4, out_channels=4)
        save(theirs.parent / name, network, new_scheduler({"num_train_timesteps": 77}), load_codec(theirs))
        return theirs, theirs.parent / name

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_latent_model_loads_as_the_one_that_was_saved(resaved: Callable[..., tuple[Path, Path]], kind: str) -> None:
    before, after = (load(folder, device="cpu") for folder in resaved(kind))
    x = images(2, 1, 8, 8)
    z = before.codec.encode(x)
    assert before.shape == after.shape == ImageShape(1, 8, 8)
    assert torch.equal(after.codec.encode(x), z)
    assert torch.equal(after.codec.decode(z), before.codec.decode(z))
    assert torch.equal(after.denoiser(z, 50), before.denoiser(z, 50))


@pytest.mark.parametrize(("kind", "part"), [("vae", "vae"), ("tiny", "vae"), ("vqvae", "vqvae")])
def test_the_parts_of_a_saved_latent_model_load_in_diffusers(resaved: Callable[..., tuple[Path, Path]], kind: str, part: str) -> None:
    theirs, ours = resaved(kind)
    x = images(2, 1, 8, 8)
    first, second = (KINDS[kind].from_pretrained(folder, subfolder=part).eval() for folder in (theirs, ours))
    assert torch.equal(first(x).sample, second(x).sample)
    assert second.config.scaling_factor == first.config.scaling_factor
    assert UNet2DModel.from_pretrained(ours, subfolder="unet").config.sample_size == 4
    assert DDPMScheduler.from_pretrained(ours, subfolder="scheduler").config.num_train_timesteps == 77


def test_a_saved_latent_model_with_codes_is_a_pipeline_of_diffusers(resaved: Callable[..., tuple[Path, Path]]) -> None:
    pipeline = LDMPipeline.from_pretrained(resaved("vqvae")[1])
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.vqvae, VQModel) and isinstance(pipeline.unet, UNet2DModel)
    assert pipeline.vqvae.config.scaling_factor == 0.7
    assert np.asarray(pipeline(num_inference_steps=2, output_type="np").images).shape == (1, 8, 8, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_autoencoder_does_not_say_where_it_was_loaded_from(resaved: Callable[..., tuple[Path, Path]], kind: str) -> None:
    """Else the fingerprint of one and the same model would differ by machine, and tell of it."""
    theirs, ours = resaved(kind)
    assert str(theirs.parent) not in encoder_config(ours).read_text()


# --- new autoencoders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AutoencoderKL", "VQModel"])
def test_a_new_autoencoder_takes_every_key_of_diffusers_and_names_the_nearest_of_another(name: str) -> None:
    network = new_autoencoder(name, {"mid_block_add_attention": False, "block_out_channels": (8,), "norm_num_groups": 4})
    assert network.config.mid_block_add_attention is False
    with pytest.raises(UserError, match="unknown model key 'latent_chanels'; did you mean 'latent_channels'"):
        new_autoencoder(name, {"latent_chanels": 4})
    with pytest.raises(UserError, match=f"diffusers refuses this {name} configuration: "):
        new_autoencoder(name, {"down_block_types": ("NoBlock",)})


def test_a_new_autoencoder_of_code_numbers_is_refused() -> None:
    with pytest.raises(UserError, match="lookup_from_codebook must be left out: its decoder takes code numbers"):
        new_autoencoder("VQModel", {"lookup_from_codebook": True})


@pytest.mark.parametrize("kind", KINDS)
def test_a_codec_of_a_network_writes_its_scaling_factor_into_the_config(autoencoder: Callable[..., torch.nn.Module], kind: str) -> None:
    network, x = autoencoder(kind), images(2, 1, 8, 8)
    once = codec_of(network, 1.0).encode(x)
    codec = codec_of(network, 0.25)
    assert codec.network.config.scaling_factor == 0.25
    torch.testing.assert_close(codec.encode(x), once * 0.25)
