"""Models in diffusers folders: what load() must answer, and what it must refuse in one line that says what to do."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler, UNet2DModel

from leakscope.attacks import ATTACKS
from leakscope.data.pixels import ImageShape
from leakscope.diffusion.noise import Noise
from leakscope.errors import UserError
from leakscope.hub import Target, checked_device, load, new_network, new_scheduler

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


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "ScoreSdeVeScheduler", "CMStochasticIterativeScheduler"])
def test_a_scheduler_that_has_no_alphas_cumprod_is_refused(model_folder: Folders, name: str) -> None:
    """Reading it as a DDPM scheduler would audit the model with betas that it was never trained with."""
    import diffusers

    folder = model_folder()
    getattr(diffusers, name)().save_pretrained(folder / "scheduler")
    assert name in refusal(folder)


def test_a_learned_variance_model_gives_its_mean_only(model_folder: Folders) -> None:
    folder = model_folder(in_channels=3, out_channels=6)
    x_t = images(2, 3, 8, 8)
    both = UNet2DModel.from_pretrained(folder / "unet").eval()(x_t, 50).sample
    assert both.shape == (2, 6, 8, 8)
    torch.testing.assert_close(load(folder, device="cpu").denoiser(x_t, 50), both[:, :3].detach(), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_attack_runs_on_a_loaded_model(model_folder: Folders, name: str, dtype: str) -> None:
    target = load(model_folder(), dtype=dtype, device="cpu")
    noise = Noise(0, ("a", "b"), (1, 8, 8), target.x_dtype)
    value = ATTACKS[name](timesteps=(50, 100)).statistics(target.denoiser, images(2, 1, 8, 8, dtype=target.x_dtype), noise)
    assert value.shape == (2, 2)
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


def test_another_kind_of_network_is_refused_by_name(model_folder: Folders) -> None:
    folder = model_folder()
    edit(unet_config(folder), _class_name="UNet2DConditionModel")
    assert refusal(folder) == f"networks must be one of UNet2DModel, DiTTransformer2DModel; {folder / 'unet'} holds a UNet2DConditionModel"


@pytest.mark.parametrize("keys", [{"num_class_embeds": 10}, {"class_embed_type": "timestep"}], ids=str)
def test_a_class_conditional_model_is_refused(model_folder: Folders, keys: dict) -> None:
    message = refusal(model_folder(**keys))
    assert message.endswith("is class-conditional; this version audits unconditional models only")


def test_a_pickle_checkpoint_is_refused_with_the_reason_and_a_way_out(
    model_folder: Folders, tiny_network: Callable[..., torch.nn.Module]
) -> None:
    folder = model_folder()
    weights(folder).unlink()
    tiny_network().save_pretrained(folder / "unet", safe_serialization=False)
    message = refusal(folder)
    assert message.startswith(
        f"{folder / 'unet' / 'diffusion_pytorch_model.bin'} is a pickle checkpoint, which runs code when it is opened"
    )
    assert "use_safetensors=False" in message
    assert "safe_serialization=True" in message
    converted = folder.parent / "converted"  # the way out works
    UNet2DModel.from_pretrained(folder / "unet", use_safetensors=False).save_pretrained(converted / "unet", safe_serialization=True)
    DDPMScheduler.from_pretrained(folder / "scheduler").save_pretrained(converted / "scheduler")
    assert isinstance(load(converted), Target)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".pkl", ".bin"])
def test_a_checkpoint_file_is_refused_unopened(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"never opened")
    assert refusal(file).startswith(f"{file} is a pickle checkpoint, which runs code when it is opened; convert it where you trust it")


def test_any_other_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert refusal(file) == f"MODEL must be a diffusers folder or a hub id; {file} is a file"


def test_a_folder_without_weights_is_refused(model_folder: Folders) -> None:
    folder = model_folder()
    weights(folder).unlink()
    assert refusal(folder) == f"{folder / 'unet'} must hold the weights as .safetensors; found none"


def test_truncated_weights_are_refused(model_folder: Folders) -> None:
    folder = model_folder()
    weights(folder).write_bytes(weights(folder).read_bytes()[:1000])
    assert refusal(folder).startswith(f"{folder / 'unet'} cannot be loaded: ")


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
    assert refusal(missing) == f"MODEL must be a diffusers folder or a hub id (owner/name); found nothing at {missing}"
    assert refusal("./nowhere") == "MODEL must be a diffusers folder or a hub id (owner/name); found nothing at ./nowhere"
    assert refusal("nowhere") == "MODEL must be a diffusers folder or a hub id (owner/name); found nothing at nowhere"


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


@pytest.mark.parametrize("part", ["vae", "vqvae", "text_encoder"])
def test_a_latent_or_text_model_is_not_audited_as_pixels(model_folder, part):
    folder = model_folder()
    (folder / part).mkdir()
    with pytest.raises(UserError, match=f"has a {part}/ folder: it is no plain pixel model"):
        load(folder, device="cpu")
