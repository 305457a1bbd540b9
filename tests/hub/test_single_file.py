"""Models in one file against the same models as diffusers folders: weights, predictions, embeddings and refusals."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from fixtures import single_file as one
from fixtures.text import CAPTIONS, pipeline
from safetensors.torch import load_file, save_file

from diffleak.errors import LONGEST, UserError
from diffleak.hub import load, unpack
from diffleak.hub.single_file import open_single_file

KINDS = ("sd", "sd-v", "sdxl", "sd3")
LARGE = pytest.mark.skipif(not os.environ.get("DIFFLEAK_LARGE"), reason="takes 10 GB of memory and a minute: set DIFFLEAK_LARGE=1")


class Made(NamedTuple):
    """One model three times: as a diffusers folder, as one file, and as the settings that the file lacks."""

    folder: Path
    file: Path
    settings: Path
    state: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def make(kind: str) -> Made:
        if kind not in known:
            root, whole = tmp_path_factory.mktemp(kind), flux_of_full_width() if kind == "flux" else pipeline(kind)
            if kind == "sd3":  # files leave its projection out, which is the identity
                whole.text_encoder.text_projection = torch.nn.Linear(16, 16, bias=False)
                whole.text_encoder.text_projection.weight.data = torch.eye(16)
                whole.text_encoder.config.projection_dim = 16
                whole.transformer = type(whole.transformer)(**{**whole.transformer.config, "pooled_projection_dim": 24})
            state = one.one_file(whole)
            state.pop("text_encoders.clip_l.transformer.text_projection.weight", None)
            whole.save_pretrained(root / "folder")
            known[kind] = Made(
                root / "folder", one.write(root / f"{kind}.safetensors", state), one.settings(whole, root / "settings"), state
            )
        return known[kind]

    return make


def flux_of_full_width() -> Any:
    """A Flux of one block of either kind, as wide as the published ones, which is the width that diffusers' renaming takes for granted."""
    whole = pipeline("flux")
    few = {**whole.transformer.config, "attention_head_dim": 128, "num_attention_heads": 24, "axes_dims_rope": (16, 56, 56)}
    whole.transformer = type(whole.transformer)(**few)
    return whole


def refusal(*args: Any, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, device="cpu", **how)
    message = str(caught.value)
    assert len(message) <= LONGEST, message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("flux", marks=LARGE)])
def test_a_model_in_one_file_has_the_weights_predictions_and_latents_of_its_folder_bit_for_bit(made: Any, kind: str) -> None:
    model = made(kind)
    folder, file = load(model.folder, device="cpu"), load(model.file, device="cpu", model_config=model.settings)
    networks = [[t.denoiser.network, t.codec.network, *t.text.networks] for t in (folder, file)]
    for expected, found in zip(*networks, strict=True):
        theirs, ours = expected.state_dict(), found.state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs), type(expected).__name__
        for parameter in (*expected.parameters(), *found.parameters()):  # a mapped file lies where its header ends: this shifts a last bit
            parameter.data = parameter.data.clone()
    x = torch.randn(2, *(4, 8, 8), generator=torch.Generator().manual_seed(0))
    answers = [t.denoiser(x, 300, t.text(CAPTIONS[:2])) for t in (folder, file)]
    assert torch.equal(*answers)
    assert (folder.warnings, file.warnings) == ((), ())
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(folder.codec.encode(pixels), file.codec.encode(pixels))
    assert (folder.shape, folder.latent) == (file.shape, file.latent)


def test_diffusers_opens_the_same_file_as_the_same_model(made: Any) -> None:
    model = made("sd")
    whole = StableDiffusionPipeline.from_single_file(str(model.file), config=str(model.settings), local_files_only=True)
    target = load(model.file, device="cpu", model_config=model.settings)
    for theirs, ours in (
        (whole.unet, target.denoiser.network),
        (whole.vae, target.codec.network),
        (whole.text_encoder, *target.text.networks),
    ):
        assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())


def test_a_pickle_of_weights_opens_as_the_safetensors_do(made: Any, tmp_path: Path) -> None:
    model = made("sd")
    torch.save({"state_dict": model.state, "global_step": 840000}, tmp_path / "model.ckpt")
    torch.save(model.state, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    expected = load(model.file, device="cpu", model_config=model.settings).denoiser.network.state_dict()
    for name in ("model.ckpt", "model.pt"):
        found = load(tmp_path / name, device="cpu", model_config=model.settings).denoiser.network.state_dict()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl"])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(made: Any, tmp_path: Path, suffix: str) -> None:
    model, sprung, file = made("sd"), tmp_path / "sprung", tmp_path / f"model{suffix}"
    torch.save({"state_dict": model.state, "callbacks": Trap(sprung)}, file)
    said = refusal(file, model_config=model.settings)
    assert said.startswith(f"{file} must be an undamaged pickle of weights alone (it names posix.mkdir")
    assert said.endswith("which could run code); give a .safetensors file of the model")
    file.write_bytes(pickle.dumps(Trap(sprung)))
    assert refusal(file, model_config=model.settings).startswith(f"{file} must be an undamaged pickle of weights alone (")
    assert not sprung.exists()


def test_a_file_of_the_denoiser_alone_takes_the_other_parts_from_the_folder(made: Any, tmp_path: Path) -> None:
    model = made("sd")
    start = "model.diffusion_model."
    for name in (start, ""):
        state = {name + key.removeprefix(start): value * 2 for key, value in model.state.items() if key.startswith(start)}
        file = one.write(tmp_path / "unet.safetensors", state)
        target, base = load(file, device="cpu", model_config=model.folder), load(model.folder, device="cpu")
        theirs, ours = base.denoiser.network.state_dict(), target.denoiser.network.state_dict()
        assert all(torch.equal(2 * value, ours[key]) for key, value in theirs.items())
        assert torch.equal(base.text(["cloud"]).vectors, target.text(["cloud"]).vectors)
        said = refusal(file, model_config=model.settings)
        assert said == (
            f"{file} holds no vae, and {model.settings} has no weights for one; "
            "give a --model-config folder of this Stable Diffusion 1 with the weights in vae/"
        )


def test_another_denoiser_in_a_model_of_one_file_has_a_fingerprint_of_its_weights_and_its_config(made: Any, tmp_path: Path) -> None:
    model, found = made("sd"), set()
    shutil.copytree(model.folder / "unet", tmp_path / "unet")
    shutil.copytree(tmp_path / "unet", tmp_path / "settings" / "unet_ema")  # which are not those that the file has
    shutil.copytree(model.settings, tmp_path / "settings", dirs_exist_ok=True)
    for change in ("", " "):
        config = tmp_path / "unet" / "config.json"
        config.write_text(config.read_text() + change)
        target = load(model.file, device="cpu", model_config=model.settings, network=tmp_path / "unet")
        found.add(target.fingerprint)
    plain = load(model.file, device="cpu", model_config=tmp_path / "settings")
    assert len(found | {plain.fingerprint}) == 3 and plain.warnings == ()


def test_the_fingerprint_is_of_the_file_the_settings_and_what_comes_from_their_folder(made: Any, tmp_path: Path) -> None:
    model = made("sd")
    which = lambda file, folder: open_single_file(file, folder).fingerprint
    first = which(model.file, model.settings)
    assert which(model.file, model.folder) == first  # whose own weights are not used
    other = one.write(tmp_path / model.file.name, {key: value + 1 for key, value in model.state.items()})
    assert which(other, model.settings) != first
    folder = tmp_path / "settings"
    shutil.copytree(model.settings, folder)
    for part in ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "vae/config.json"):
        path = folder / part
        path.write_text(path.read_text().replace("{", "{ ", 1))
        assert which(model.file, folder) != first
        path.write_text(path.read_text().replace("{ ", "{", 1))
    unet = one.write(tmp_path / "unet.safetensors", {key: value for key, value in model.state.items() if "diffusion_model" in key})
    shutil.copytree(model.folder, tmp_path / "whole")
    first = which(unet, tmp_path / "whole")
    weights = tmp_path / "whole" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights)
    assert which(unet, tmp_path / "whole") != first


def test_what_a_file_says_of_its_prediction_is_followed_and_said(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = made("sd")
    whole = pipeline("sd-v")
    assert load(model.file, device="cpu", model_config=model.settings).denoiser.prediction_type == "epsilon"
    marked = {**model.state, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    shutil.copytree(model.settings, tmp_path / "settings")
    DDIMScheduler.from_config(pipeline("sd").scheduler.config).save_pretrained(tmp_path / "settings" / "scheduler")
    file = one.write(tmp_path / "v.safetensors", marked)
    target = load(file, device="cpu", model_config=tmp_path / "settings")
    assert target.denoiser.prediction_type == "v_prediction"
    expected = DDIMScheduler.from_config({**whole.scheduler.config, "rescale_betas_zero_snr": True}).alphas_cumprod
    assert np.array_equal(target.denoiser.schedule.alphas_cumprod, expected.double().numpy())
    assert [line.partition(", and")[0] for line in target.warnings] == [
        "v.safetensors states prediction_type v_prediction",
        "v.safetensors states rescale_betas_zero_snr true",
    ]
    assert "warning: v.safetensors states prediction_type v_prediction" in capsys.readouterr().err
    from_settings = {"device": "cpu", "model_config": model.settings}  # of a PNDMScheduler, which has no such setting
    followed = load(file, **from_settings)
    assert np.array_equal(followed.denoiser.schedule.alphas_cumprod, target.denoiser.schedule.alphas_cumprod)
    unpack(tmp_path / "folder", file, model.settings)
    again = load(tmp_path / "folder", device="cpu").denoiser
    assert (again.prediction_type, again.schedule.alphas_cumprod[-1]) == ("v_prediction", 0)
    alone = {key.removeprefix(START): value for key, value in marked.items() if key.startswith((START, "v_pred", "ztsnr"))}
    assert load(one.write(tmp_path / "a.safetensors", alone), device="cpu", model_config=model.folder).denoiser.prediction_type[0] == "v"
    kohya = one.write(tmp_path / "kohya.safetensors", model.state, **{"modelspec.prediction_type": "v"})
    assert load(kohya, device="cpu", model_config=tmp_path / "settings").denoiser.prediction_type == "v_prediction"


def test_weights_in_eight_bits_are_read_as_rounded_so_with_a_line(made: Any, tmp_path: Path) -> None:
    model = made("sd")
    rounded = {key: value.to(torch.float8_e4m3fn) for key, value in model.state.items()}
    target = load(one.write(tmp_path / "8.safetensors", rounded), device="cpu", model_config=model.settings)
    assert target.warnings == ("8.safetensors stores weights in 8 bits (float8_e4m3fn); the rounded weights are used",)
    key = "conv_in.weight"
    assert torch.equal(target.denoiser.network.state_dict()[key], rounded["model.diffusion_model.input_blocks.0.0.weight"].float())


def cut(state: dict[str, torch.Tensor], *starts: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.startswith(starts)}


START = "model.diffusion_model."
FIRST = f"{START}input_blocks.0.0.weight"
REFUSED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "vae": (lambda s: cut(s, "first_stage_model."), "is an autoencoder alone: give the model that works on its latents"),
    "text": (lambda s: cut(s, "cond_stage_model."), "is a text encoder alone: give the model that it belongs to"),
    "lora": (
        lambda s: {"lora_unet_mid_block.lora_down.weight": torch.zeros(1, 1)},
        "give the model that it was made for, and this with --lora",
    ),
    "embedding": (
        lambda s: {"emb_params": torch.zeros(1, 1)},
        "is a textual inversion: give the model that it was made for, and this with --embedding",
    ),
    "controlnet": (lambda s: {"control_model.input_blocks.0.0.weight": s[FIRST]}, "is a ControlNet: give the model that it steers"),
    "diffusers": (lambda s: {"conv_in.weight": s[FIRST]}, "is one network of a diffusers folder: give the folder that it belongs to"),
    "inpainting": (lambda s: {**s, FIRST: torch.zeros(8, 9, 3, 3)}, "is an inpainting model: it takes 9 channels, not only latents"),
    "pix2pix": (lambda s: {**s, FIRST: torch.zeros(8, 8, 3, 3)}, "is an InstructPix2Pix model: it takes 8 channels"),
    "refiner": (
        lambda s: {**s, f"{START}label_emb.0.0.weight": s[FIRST], "conditioner.embedders.0.model.ln_final.weight": s[FIRST]},
        "is the refiner of Stable Diffusion XL",
    ),
    "scaled": (lambda s: {**s, f"{FIRST[:-6]}scale_weight": s[FIRST]}, "stores weights in 8 bits with scales"),
    "nf4": (lambda s: {**s, f"{FIRST}.absmax": s[FIRST]}, "is quantised: give a file in 16 or 32 bits"),
    "int8": (lambda s: {**s, FIRST: s[FIRST].to(torch.int8)}, "is quantised (stored as int8): give a file in 16 or 32 bits"),
    "int8 text": (
        lambda s: {key: value.to(torch.int8) if "token_embedding" in key else value for key, value in s.items()},
        "token_em… is quantised (stored as int8): give a file in 16 or 32 bits",
    ),
    "edm": (lambda s: {**s, "edm_mean": s[FIRST]}, "has the noise levels of EDM"),
    "chroma": (lambda s: {f"{START}distilled_guidance_layer.in_proj.bias": s[FIRST]}, "holds a denoiser of another layout"),
    "unknown": (lambda s: {"layers.0.weight": s[FIRST]}, "has another layout (first weight: layers.0.weight)"),
    "missing": (lambda s: {k: v for k, v in s.items() if k != f"{START}out.2.bias"}, "(conv_out.bias is not in the file)"),
    "shape": (lambda s: {**s, f"{START}out.2.bias": torch.zeros(5)}, "(conv_out.bias has shape (5,), where (4,) is expected)"),
    "left over": (lambda s: {**s, f"{START}label_emb.weight": torch.zeros(3, 32)}, "label_emb.weight has none"),
    "deeper": (lambda s: {**s, f"{START}output_blocks.4.0.in_layers.0.bias": torch.zeros(8)}, "give the --model-config of this model"),
    "text lacks": (
        lambda s: {k: v for k, v in s.items() if not k.endswith("text_model.final_layer_norm.bias")},
        "model.safetensors, text_encoder: the weights do not match config.json (first: ",
    ),
    "text shape": (
        lambda s: {k: v[:5] if k.endswith("token_embedding.weight") else v for k, v in s.items()},
        "model.safetensors, text_encoder: the weights do not match config.json (embeddings.token_embedding.weight has shape (5, 16)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_of_something_else_is_refused_by_name(made: Any, tmp_path: Path, kind: str) -> None:
    change, expected = REFUSED[kind]
    model = made("sd")
    file = one.write(tmp_path / "model.safetensors", change(model.state))
    assert expected in refusal(file, model_config=model.settings)


def test_damaged_files_and_other_kinds_are_refused_in_one_line(made: Any, tmp_path: Path) -> None:
    model = made("sd")
    damaged = tmp_path / "cut.safetensors"
    damaged.write_bytes(model.file.read_bytes()[:5000])
    assert "must be a whole safetensors file" in refusal(damaged, model_config=model.settings)
    torch.save(model.state, tmp_path / "whole.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:5000])
    assert refusal(tmp_path / "cut.ckpt").startswith(f"{tmp_path}/cut.ckpt must be an undamaged pickle of weights alone (")
    torch.save([1, 2], tmp_path / "list.pt")
    assert refusal(tmp_path / "list.pt").endswith("or a state_dict of them; it holds a list without any")
    wrapped: dict[str, Any] = {}
    wrapped["state_dict"] = wrapped
    torch.save(wrapped, tmp_path / "endless.ckpt")
    assert refusal(tmp_path / "endless.ckpt").endswith("or a state_dict of them; it holds a dict without any")
    for name, said in (("model.gguf", "is a GGUF file, which is quantised"), ("model.onnx", "has another ending")):
        (tmp_path / name).write_bytes(b"x")
        assert refusal(tmp_path / name).endswith(said)


def test_settings_of_another_model_or_none_are_refused(made: Any, tmp_path: Path) -> None:
    model, xl = made("sd"), made("sdxl")
    said = refusal(model.file, model_config=xl.settings)
    assert said == (
        f"{model.file} is a Stable Diffusion 1, which needs the settings of a StableDiffusionPipeline; {xl.settings} has those of a "
        "StableDiffusionXLPipeline: give another --model-config"
    )
    assert refusal(model.file, model_config=tmp_path).startswith("--model-config must be a model's folder in diffusers' layout;")
    assert refusal(model.file, model_config=model.file).startswith("--model-config must be a folder or a hub id (owner/name);")
    assert refusal(model.folder, model_config=model.settings).startswith("--model-config gives the settings of a MODEL in one file, and ")
    assert refusal(model.file).startswith(
        "sd.safetensors is a Stable Diffusion 1 in one file; give a folder with the settings of "
        "stable-diffusion-v1-5/stable-diffusion-v1-5 as --model-config (no folder at stable-diffusion-v1-5/stable-diffusion-v1-5, and "
        "the hub gave no such model ("
    )
