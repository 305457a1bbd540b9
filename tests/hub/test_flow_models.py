"""Flow models whose captions a language model reads: a folder answers what its pipeline's own sampling loop makes of its network."""

import json
import shutil
from bisect import bisect_left
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from fixtures.flow_models import CHANNELS, FLOW_MODELS, flow_folder, flow_model, mistral_tokenizer
from transformers import ProcessorMixin

from diffleak import hub
from diffleak.data.pixels import ImageShape
from diffleak.diffusion.denoiser import Guided
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError

TEXTS = ["a house with a garden", "moon"]  # of different lengths
SIDES = (4, 8)
PACKED, FLUX2 = ("qwen", "chroma"), ("flux2", "flux2-dev")


class TextsAlone(ProcessorMixin):
    """The library's processor of a chat without images: that of the larger FLUX.2 is not made without torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)

    def __call__(self, text: Any, images: Any = None, videos: Any = None, **how: Any) -> Any:
        return self.tokenizer(text, **how)


class Loop(NamedTuple):
    """What a pipeline's loop did: latents, sigma and velocity of every step, the latents and the images at its end."""

    steps: list[tuple[torch.Tensor, float, torch.Tensor]]
    latents: torch.Tensor
    images: torch.Tensor


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow-models")
    return {kind: flow_folder(root / kind, kind) for kind in FLOW_MODELS}


@pytest.fixture(scope="module")
def targets(folders: dict[str, Path]) -> dict[str, Target]:
    return {kind: hub.load(folder, device="cpu") for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    """diffusers' own pipelines of the folders."""
    made = {kind: diffusers.DiffusionPipeline.from_pretrained(folder) for kind, folder in folders.items() if kind != "flux2-dev"}
    made["flux2-dev"] = flow_model("flux2-dev")
    made["flux2-dev"].tokenizer = TextsAlone(mistral_tokenizer())
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
    return made


def latents(kind: str) -> torch.Tensor:
    return torch.randn(len(TEXTS), CHANNELS[kind], *SIDES, generator=torch.Generator().manual_seed(3))


def stepped(made: Any, kind: str, monkeypatch: pytest.MonkeyPatch, **how: Any) -> Loop:
    """What a pipeline's own loop of three steps hands to its scheduler and gets from it, as pictures, and the images it ends in."""
    steps, last, z, step = [], [], latents(kind), type(made.scheduler).step
    unpacked = (lambda x: made._unpack_latents(x, 2 * SIDES[0], 2 * SIDES[1], 2).reshape(z.shape)) if kind in PACKED else lambda x: x
    if kind in FLUX2:
        unpacked = lambda x: x.transpose(1, 2).reshape(z.shape)

    def heard(self: Any, v: torch.Tensor, t: torch.Tensor, x: torch.Tensor, **others: Any) -> Any:
        steps.append((unpacked(x).clone(), float(t) / 1000, unpacked(v).clone()))
        found = step(self, v, t, x, **others)
        last.append(unpacked(found[0]).clone())
        return found

    monkeypatch.setattr(type(made.scheduler), "step", heard)
    given = made._pack_latents(z, len(TEXTS), CHANNELS[kind], *SIDES) if kind in PACKED else z
    factor = {"flux2": 4, "flux2-dev": 4, "lumina2": 8, "sana": 32}.get(kind, 2)
    sides = {"height": SIDES[0] * factor, "width": SIDES[1] * factor}
    images = made(prompt=list(TEXTS), latents=given, output_type="pt", num_inference_steps=3, **sides, **how).images
    return Loop(steps, last[-1], images)


ALONE: dict[str, dict[str, Any]] = {
    "flux2": {"guidance_scale": 1.0},
    "flux2-dev": {"guidance_scale": 1.0},
    "z-image": {"guidance_scale": 0.0},
    "qwen": {"true_cfg_scale": 1.0},
    "chroma": {"guidance_scale": 1.0},
    "lumina2": {"guidance_scale": 1.0},
    "sana": {"guidance_scale": 1.0, "use_resolution_binning": False},
}
GUIDED: dict[str, dict[str, Any]] = {
    "flux2": {"guidance_scale": 3.0},
    "z-image": {"guidance_scale": 2.0},  # counted from 0
    "chroma": {"guidance_scale": 3.0},
    "lumina2": {"guidance_scale": 3.0, "cfg_normalization": False},
    "sana": {"guidance_scale": 3.0, "use_resolution_binning": False},
}


@pytest.mark.parametrize(
    ("kind", "scale", "how"), [*((kind, 1.0, how) for kind, how in ALONE.items()), *((kind, 3.0, how) for kind, how in GUIDED.items())]
)
def test_noise_and_images_are_those_of_the_velocity_and_the_latents_of_the_pipelines_own_loop(
    targets: dict[str, Target], theirs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str, scale: float, how: dict[str, Any]
) -> None:
    """Packing, positions, time, sign, templates, masks, the empty caption and the autoencoder's scales, all at once."""
    target, loop = targets[kind], stepped(theirs[kind], kind, monkeypatch, **how)
    sigmas = sorted(sigma for _, sigma, _ in loop.steps)
    denoiser = replace(target.denoiser, schedule=Schedule.flow(sigmas))
    asked, captions = denoiser if scale == 1 else Guided(denoiser, scale), target.text(TEXTS)
    assert len([sigma for sigma in sigmas if sigma < 1]) >= 2, "at sigma = 1 every velocity stands for the same noise"
    for x, sigma, v in loop.steps:
        torch.testing.assert_close(asked(x, sigmas.index(sigma), captions), x + (1 - sigma) * v, rtol=1e-5, atol=2e-5)
    others = asked(x, sigmas.index(sigma), target.text(TEXTS[::-1]))
    assert (others - x - (1 - sigma) * v).abs().max() > 2e-4, "else the captions would not have been tested"
    with torch.no_grad():
        images = target.codec.decode(loop.latents)
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), loop.images, rtol=1e-5, atol=1e-5)
    assert loop.images.std() > 0.01


def test_guidance_of_qwen_image_is_plain_where_its_pipeline_rescales_and_a_warning_says_so(
    folders: dict[str, Path], theirs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    handle = theirs["qwen"].transformer.register_forward_hook(lambda module, args, output: answers.append(output[0]))
    loop = stepped(theirs["qwen"], "qwen", monkeypatch, true_cfg_scale=3.0, negative_prompt=["", ""])
    handle.remove()
    (x, sigma, rescaled), text, empty = loop.steps[-1], *answers[-2:]
    plain = theirs["qwen"]._unpack_latents(empty + 3 * (text - empty), 8, 16, 2).squeeze(2)
    guided = hub.load(folders["qwen"], device="cpu", guidance_scale=3.0)
    asked = replace(guided.denoiser, denoiser=replace(guided.denoiser.denoiser, schedule=Schedule.flow([sigma])))
    torch.testing.assert_close(asked(x, 0, guided.text(TEXTS)), x + (1 - sigma) * plain, rtol=1e-5, atol=2e-5)
    assert (plain - rescaled).abs().max() > 1e-3
    assert "with guidance, diffusers' QwenImagePipeline rescales the guided prediction to the norm" in guided.warnings[0]


def test_a_caption_alone_is_what_it_is_in_a_batch_and_the_empty_one_is_a_caption(targets: dict[str, Target]) -> None:
    for kind in FLOW_MODELS:
        if kind == "flux2-dev":
            continue  # as FLUX.2 klein's, at 30 layers
        target = targets[kind]
        z, texts = torch.randn(3, CHANNELS[kind], *SIDES, generator=torch.Generator().manual_seed(4)), [*TEXTS, ""]
        batch, together = target.text(texts), target.text(texts, together=True)
        eps = target.denoiser(z, 500, batch)
        assert all(torch.isfinite(value).all() for value in (eps, batch.vectors))
        for i, text in enumerate(texts):
            torch.testing.assert_close(target.denoiser(z[i : i + 1], 500, target.text([text])), eps[i : i + 1], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(target.denoiser(z, 500, together), eps, rtol=1e-4, atol=2e-5)


def test_a_latent_is_encoded_as_the_pipelines_encode_the_images_that_they_change(
    targets: dict[str, Target], theirs: dict[str, Any]
) -> None:
    x = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        flux2 = theirs["flux2"]._encode_vae_image(x, None)
        editing = SimpleNamespace(vae=theirs["qwen"].vae, latent_channels=4)
        qwen = diffusers.QwenImageEditPipeline._encode_vae_image(editing, x.unsqueeze(2), None).squeeze(2)
        sana = theirs["sana"].vae.encode(x).latent * 0.41
        for kind, expected in {"flux2": flux2, "qwen": qwen, "sana": sana}.items():
            torch.testing.assert_close(targets[kind].codec.encode(x), expected, rtol=1e-5, atol=1e-5)
    for kind, target in targets.items():
        z = target.codec.encode(x).requires_grad_()
        target.codec.decode(z).square().mean().backward()
        assert z.grad is not None and z.grad.abs().max() > 0, f"the decoder of {kind} can be differentiated"


def test_the_schedule_of_sana_is_that_of_its_sampler_on_sigmas_of_flow_matching(targets: dict[str, Target], theirs: dict[str, Any]) -> None:
    scheduler = copy(theirs["sana"].scheduler)
    scheduler.set_timesteps(999)
    schedule = targets["sana"].denoiser.schedule
    assert schedule.is_flow and schedule.noise[-1] == 1
    np.testing.assert_allclose(schedule.noise[:-1], scheduler.sigmas[:-1].flip(0), rtol=1e-5)
    np.testing.assert_allclose(schedule.times, 1000 * schedule.noise)


@pytest.mark.parametrize("kind", FLOW_MODELS)
def test_a_caption_is_counted_as_too_long_where_its_template_pushes_its_end_out(targets: dict[str, Target], kind: str) -> None:
    text = targets[kind].text
    words = bisect_left(range(600), True, key=lambda n: bool(text.truncated(["moon " * n])))  # of the shortest caption that is too long
    assert 10 < words < 600
    for count, lost in ((words + 12, True), (words - 2, False)):
        ends = [text(["moon " * count + end]).tensors["encoder_hidden_states"] for end in ("moon", "a")]
        assert torch.equal(*ends) is lost


@pytest.mark.parametrize("kind", ["z-image", "qwen", "chroma", "lumina2"])
def test_latents_of_odd_sides_are_one_line(targets: dict[str, Target], kind: str) -> None:
    with pytest.raises(UserError, match="takes images whose sides are multiples of 4; got 6 x 16: resize them"):
        targets[kind].denoiser(torch.zeros(1, CHANNELS[kind], 3, 8), 500, targets[kind].text(["moon"]))


def test_images_that_flux2_cannot_cut_into_its_latents_are_one_line(targets: dict[str, Target]) -> None:
    with pytest.raises(UserError, match="image sides must be multiples of 4 for this autoencoder; got 16 x 18 RGB: use --resize"):
        hub.latent_shape(targets["flux2"].codec, ImageShape(3, 16, 18))


# --- folders that are not whole -----------------------------------------------------------------------------------------


def spoilt(folder: Path, copy: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    change(content)
    (copy / file).write_text(json.dumps(content))
    return copy


def test_a_chat_template_that_is_missing_or_runs_code_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, written = Path(shutil.copytree(folders["z-image"], tmp_path / "model")), tmp_path / "written"
    template = folder / "tokenizer" / "chat_template.jinja"
    template.write_text("{{ cycler.__init__.__globals__.os.system('touch WRITTEN') }}".replace("WRITTEN", str(written)))
    with pytest.raises(UserError, match=r"the text encoders of a ZImagePipeline fail for 'moon' \(.*unsafe"):
        hub.load(folder, device="cpu").text(["moon"])
    assert not written.exists()
    before = hub.fingerprint(folder)
    template.unlink()
    assert hub.fingerprint(folder) != before, "a template is a part of the model"
    with pytest.raises(UserError, match=r"puts captions into its tokenizer's chat template, and .*tokenizer has none"):
        hub.load(folder, device="cpu")


def test_a_chat_that_the_tokenizer_alone_would_begin_otherwise_than_its_processor_is_one_line(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["flux2-dev"], tmp_path / "model"))
    template = folder / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().removeprefix("{{ bos_token }}"))
    with pytest.raises(UserError, match=r"fail for 'moon' \(the tokenizer's chat template must begin with its bos_token, <.im_start.>\)"):
        hub.load(folder, device="cpu").text(["moon"])


@pytest.mark.parametrize(
    ("kind", "file", "change", "said"),
    [
        ("qwen", "vae/config.json", lambda c: c.update(latents_std=[1, 2]), "must give latents_std as 4 positive numbers"),
        ("qwen", "text_encoder/config.json", lambda c: c["text_config"].update(attn_implementation="a/b"), "may name code to run; got a/b"),
        ("qwen", "model_index.json", lambda c: c.update(text_encoder=["model", "Own"]), "must give text_encoder as"),
        ("flux2", "vae/config.json", lambda c: c.update(patch_size=[1, 1]), "the weights do not match config.json|cannot be loaded"),
        ("sana", "vae/config.json", lambda c: c.pop("scaling_factor"), "must say scaling_factor"),
        ("sana", "scheduler/scheduler_config.json", lambda c: c.update(use_flow_sigmas=False), "prediction_type must be"),
        ("sana", "scheduler/scheduler_config.json", lambda c: c.update(flow_shift=0), "flow_shift in scheduler_config.json must be a"),
        ("lumina2", "transformer/config.json", lambda c: c.update(in_channels=8), "cannot be loaded|do not match"),
        ("chroma", "model_index.json", lambda c: c.update(_class_name="ChromaImg2ImgPipeline"), "is a ChromaImg2ImgPipeline"),
    ],
)
def test_a_spoilt_folder_is_one_line(
    folders: dict[str, Path], tmp_path: Path, kind: str, file: str, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        hub.load(spoilt(folders[kind], tmp_path / "model", file, change), device="cpu")
    assert "\n" not in str(caught.value)


def test_no_model_is_trained_on_the_latents_of_these_autoencoders(folders: dict[str, Path]) -> None:
    with pytest.raises(
        UserError, match=r"autoencoders must be one of AutoencoderKL, AutoencoderTiny, VQModel; .* holds a AutoencoderKLFlux2"
    ):
        hub.load_codec(folders["flux2"])
