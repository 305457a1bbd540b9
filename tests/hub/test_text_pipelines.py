"""Text-to-image pipelines: what a folder answers is what diffusers' own pipeline computes, and a folder that is not whole is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from fixtures.text import CAPTIONS, CHANNELS, KINDS, LATENT, SIDE, TOKENS, autoencoder, clip_config, pipeline, text_folder, tokenizers
from safetensors.torch import load_file, save_file

from diffleak import hub
from diffleak.attacks import ATTACKS
from diffleak.attacks.spec import parse
from diffleak.attacks.subject import Encoder, Subject
from diffleak.data.pixels import ImageShape
from diffleak.diffusion.denoiser import Counted, Guided, NetworkDenoiser, to_noise
from diffleak.diffusion.dual import Dual
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import FlowSampler, sample
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.hub import pipelines

pytestmark = pytest.mark.usefixtures("undrawn")

DIFFUSION, FLOW = ("sd", "sd-v", "sdxl", "pixart"), ("sd3", "flux")
TEXTS = ("a house with a garden", "moon", "")
STEPS = 4


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: text_folder(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def targets(folders: dict[str, Path]) -> dict[str, Target]:
    return {kind: hub.load(folder, device="cpu") for kind, folder in folders.items()}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A folder of a kind that may be spoilt: `copied("sd")`."""
    return lambda kind, name="model": Path(shutil.copytree(folders[kind], tmp_path / name))


def latents(n: int = len(TEXTS), height: int = LATENT, width: int = LATENT) -> torch.Tensor:
    return torch.randn(n, CHANNELS, height, width, generator=torch.Generator().manual_seed(3))


def edit(file: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def reweighted(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the weights of a safetensors file."""
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        hub.load(folder, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the pipelines of diffusers -----------------------------------------------------------------------------------------


def theirs(folder: Path) -> Any:
    """diffusers' own pipeline of a folder; those of diffusion sampled by DDIM."""
    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    if not isinstance(made.scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        made.scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config, clip_sample=False)
    return made


def generated(made: Any, texts: list[str], z: torch.Tensor, guidance_scale: float, **keys: Any) -> torch.Tensor:
    if isinstance(made, diffusers.PixArtAlphaPipeline):
        keys = {"use_resolution_binning": False, "clean_caption": False, **keys}
    sides = {"height": 2 * z.shape[2], "width": 2 * z.shape[3]}
    keys = {"num_inference_steps": STEPS, "guidance_scale": guidance_scale, **sides, **keys}
    return made(texts, latents=z, output_type="latent", **keys).images


def network_of(made: Any) -> torch.nn.Module:
    return getattr(made, "unet", None) or made.transformer


def asked(made: Any, run: Callable[[], Any]) -> list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]]:
    """What the network of a pipeline is asked while `run` runs, and what it answers."""
    found = []

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        found.append((args, kwargs, output[0]))

    handle = network_of(made).register_forward_hook(hook, with_kwargs=True)
    run()
    handle.remove()
    return found


@pytest.mark.parametrize(
    ("kind", "scale"), [*((kind, 1.0) for kind in DIFFUSION), ("sd", 3.0), ("sd-v", 3.0), ("sdxl", 3.0), ("pixart", 3.0)]
)
def test_a_generation_is_that_of_the_pipeline_itself(folders: dict[str, Path], targets: dict[str, Target], kind: str, scale: float) -> None:
    """Captions, the empty caption of guidance, micro-conditions, masks, prediction type and schedule, all at once."""
    made, target = theirs(folders[kind]), targets[kind]
    noise = Noise(1, ("a", "b"), (CHANNELS, LATENT, LATENT))
    expected = generated(made, list(TEXTS[:2]), noise(0), scale)
    sampler = diffusers.DDIMScheduler.from_config(made.scheduler.config, prediction_type="epsilon")
    sampler.set_timesteps(STEPS)
    denoiser = target.denoiser if scale == 1 else Guided(target.denoiser, scale)
    drawn = sample(denoiser, sampler, noise, target.text(TEXTS[:2]))
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
    others = sample(denoiser, sampler, noise, target.text(["red heart", "cloud"]))
    assert (others - drawn).abs().max() > 0.01 * drawn.std(), "else the captions would not have been tested"


@pytest.mark.parametrize(("kind", "scale"), [("sd3", 1.0), ("sd3", 3.0), ("flux", 1.0)])
@pytest.mark.parametrize("sides", [(8, 8), (4, 8)], ids=str)
def test_the_noise_of_a_flow_model_is_that_of_the_velocity_in_its_pipeline(
    folders: dict[str, Path], targets: dict[str, Target], kind: str, scale: float, sides: tuple[int, int]
) -> None:
    made, target, z = theirs(folders[kind]), targets[kind], latents(2, *sides)
    packed = made._pack_latents(z, 2, CHANNELS, *sides) if kind == "flux" else z
    keys = {"height": 2 * sides[0], "width": 2 * sides[1]}
    calls = asked(
        made, lambda: made(list(TEXTS[:2]), latents=packed, output_type="latent", num_inference_steps=STEPS, guidance_scale=scale, **keys)
    )
    assert len(calls) == STEPS
    sigma_of = lambda kwargs: float(kwargs["timestep"][0]) * (1 if kind == "flux" else 1e-3)
    sigmas = sorted(sigma_of(kwargs) for _, kwargs, _ in calls)
    denoiser = replace(target.denoiser, schedule=Schedule.flow(sigmas))
    guided = denoiser if scale == 1 else Guided(denoiser, scale)
    for _, kwargs, v in calls:
        x, sigma = kwargs["hidden_states"], sigma_of(kwargs)
        if kind == "flux":
            x, v = (made._unpack_latents(value, 2 * sides[0], 2 * sides[1], 2) for value in (x, v))
        if scale != 1:
            x, (empty, text) = x[:2], v.chunk(2)
            v = empty + scale * (text - empty)
        expected = x + (1 - sigma) * v
        torch.testing.assert_close(guided(x, sigmas.index(sigma), target.text(TEXTS[:2])), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_matter_to_every_kind_and_each_image_has_its_own(targets: dict[str, Target], kind: str) -> None:
    target, z = targets[kind], latents()
    eps = target.denoiser(z, 500, target.text(TEXTS))
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(target.denoiser(z[i : i + 1], 500, target.text([text])), eps[i : i + 1], rtol=1e-4, atol=1e-4)
    swapped = target.denoiser(z, 500, target.text(TEXTS[::-1]))
    assert (swapped[0] - eps[0]).abs().max() > 1e-4


def test_sdxl_is_told_the_size_of_an_uncropped_image(folders: dict[str, Path], targets: dict[str, Target]) -> None:
    made, target, z = theirs(folders["sdxl"]), targets["sdxl"], latents(2, 8, 12)
    theirs_asked = asked(made, lambda: generated(made, list(TEXTS[:2]), z, 1.0))[0][1]["added_cond_kwargs"]
    own = type("Own", (), {"unet": target.denoiser.network})
    ours_asked = asked(own, lambda: target.denoiser(z, 500, target.text(TEXTS[:2])))[0][1]["added_cond_kwargs"]
    assert ours_asked["time_ids"].tolist() == theirs_asked["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
    torch.testing.assert_close(ours_asked["text_embeds"], theirs_asked["text_embeds"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zeros", [True, False])
def test_no_caption_is_to_sdxl_what_its_folder_says(copied: Callable[..., Path], zeros: bool) -> None:
    folder = copied("sdxl")
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=zeros)
    made, target = theirs(folder), hub.load(folder, device="cpu")
    embedding, empty, pooled, empty_pooled = made.encode_prompt("moon", device="cpu", do_classifier_free_guidance=True)
    ours = target.text(["", "moon"]).tensors
    torch.testing.assert_close(ours["encoder_hidden_states"], torch.cat([empty, embedding]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["text_embeds"], torch.cat([empty_pooled, pooled]), rtol=1e-5, atol=1e-6)
    assert (ours["encoder_hidden_states"][0] == 0).all().item() is zeros


def test_pixart_attends_to_the_words_and_not_to_the_padding(targets: dict[str, Target]) -> None:
    target, z = targets["pixart"], latents(2)
    prompts = target.text(TEXTS[:2])
    mask, states = prompts.tensors["encoder_attention_mask"], prompts.tensors["encoder_hidden_states"]
    assert 0 < mask[1].sum() < mask[0].sum() < mask.shape[1]
    eps = target.denoiser(z, 500, prompts)
    noisy = replace(prompts, tensors={**prompts.tensors, "encoder_hidden_states": states + 5 * (mask == 0)[..., None]})
    torch.testing.assert_close(target.denoiser(z, 500, noisy), eps, rtol=1e-4, atol=1e-5)
    heard = replace(prompts, tensors={**prompts.tensors, "encoder_attention_mask": torch.ones_like(mask)})
    assert (target.denoiser(z, 500, heard) - eps).abs().max() > 1e-4


def test_the_largest_pixart_is_told_resolution_and_aspect_ratio(tmp_path: Path) -> None:
    made = pipeline("pixart")
    made.register_modules(
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            out_channels=2 * CHANNELS,
            num_layers=1,
            norm_num_groups=4,
            cross_attention_dim=24,
            sample_size=128,
            caption_channels=16,
            use_additional_conditions=True,
        ),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )
    made.save_pretrained(tmp_path / "large")
    made, target, z = theirs(tmp_path / "large"), hub.load(tmp_path / "large", device="cpu"), latents(2, 4, 8)
    calls = asked(made, lambda: generated(made, list(TEXTS[:2]), z, 1.0))
    x_t, t, v = calls[0][0][0], int(calls[0][1]["timestep"][0]), calls[0][2]
    torch.testing.assert_close(target.denoiser(x_t, t, target.text(TEXTS[:2])), v[:, :CHANNELS], rtol=1e-4, atol=1e-5)
    assert calls[0][1]["added_cond_kwargs"]["resolution"].tolist() == [[8, 16]] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-4), ("bfloat16", 0.1)])
def test_other_dtypes_say_the_same_as_float32(
    folders: dict[str, Path], targets: dict[str, Target], kind: str, dtype: str, tolerance: float
) -> None:
    target, z = hub.load(folders[kind], dtype=dtype, device="cpu"), latents().to(torch.float64 if dtype == "float64" else torch.float32)
    eps = target.denoiser(z, 500, target.text(TEXTS))
    assert eps.dtype == target.x_dtype == z.dtype
    assert {p.dtype for p in target.text.pipeline.text_encoder.parameters()} == {getattr(torch, dtype)}
    expected = targets[kind].denoiser(z.float(), 500, targets[kind].text(TEXTS))
    assert (eps.float() - expected).std() < tolerance * expected.std()


# --- conversions and flow matching --------------------------------------------------------------------------------------


def test_every_prediction_stands_for_the_noise_that_diffusers_schedulers_derive_from_it() -> None:
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    schedule = Schedule(scheduler.alphas_cumprod)
    x0, noise = latents(2), latents(4)[2:]
    for t in (1, 90, 500, 998):
        at = torch.tensor([t, t])
        x_t, v = scheduler.add_noise(x0, noise, at), scheduler.get_velocity(x0, noise, at)
        for prediction, kind in ((noise, "epsilon"), (v, "v_prediction"), (x0, "sample")):
            torch.testing.assert_close(to_noise(prediction, x_t, t, schedule, kind), noise, rtol=1e-3, atol=2e-3 if t == 1 else 1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_schedule_of_flow_matching_is_the_schedulers_training_grid(shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = Schedule.flow(scheduler.sigmas.flip(0))
    assert schedule.is_flow and len(schedule) == 1000
    np.testing.assert_array_equal(schedule.noise, scheduler.sigmas.double().numpy()[::-1])
    straight = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(schedule.noise, shift * straight / (1 + (shift - 1) * straight), rtol=1e-5)
    np.testing.assert_allclose(schedule.times, scheduler.timesteps.double().numpy()[::-1], rtol=1e-6)
    np.testing.assert_array_equal(schedule.signal + schedule.noise, 1.0)
    kept = schedule.alphas_cumprod[:-1]
    np.testing.assert_allclose(kept / (1 - kept), (schedule.signal[:-1] / schedule.noise[:-1]) ** 2, rtol=1e-9)
    assert schedule.alphas_cumprod[-1] == 0
    x0, noise, t = latents(2), latents(4)[2:], 700
    expected = scheduler.scale_noise(x0, scheduler.timesteps.flip(0)[[t, t]], noise)
    torch.testing.assert_close(schedule.add_noise(x0, t, noise), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(to_noise(noise - x0, expected, t, schedule, "flow"), noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_ddim_step_of_flow_matching_is_an_euler_step(shift: float) -> None:
    schedule = Schedule.flow(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0))
    x_t, v = latents(2).double(), latents(4)[2:].double()
    for t, u in ((900, 400), (400, 900), (10, 0)):
        eps = to_noise(v, x_t, t, schedule, "flow")
        torch.testing.assert_close(schedule.ddim(x_t, eps, t, u), x_t + (schedule.s(u) - schedule.s(t)) * v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", FLOW)
def test_a_flow_model_is_sampled_as_diffusers_scheduler_does_on_the_same_sigmas(targets: dict[str, Target], kind: str) -> None:
    target = targets[kind]
    denoiser, cond = target.denoiser, target.text(TEXTS[:2])
    noise, sampler = Noise(1, ("a", "b"), (CHANNELS, LATENT, LATENT)), FlowSampler(denoiser.schedule, 6)
    assert sampler.timesteps[0] == len(denoiser.schedule) - 2 and sampler.timesteps[-1] == 0
    drawn = sample(denoiser, sampler, noise, cond)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[denoiser.schedule.s(t) for t in sampler.timesteps])
    x = noise(0)
    for t, time in zip(sampler.timesteps, scheduler.timesteps, strict=True):
        v = (denoiser(x, t, cond) - x) / denoiser.schedule.a(t)
        x = scheduler.step(v, time, x).prev_sample
    torch.testing.assert_close(drawn, x, rtol=1e-3, atol=1e-3)


# --- attacks ------------------------------------------------------------------------------------------------------------

SHORT = {"sima_mc": "sima_mc(m=2)", "black_box": "black_box(n=2,steps=2)", "noise_probe": "noise_probe(steps=2)"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [SHORT.get(name, name) for name in ATTACKS])
def test_every_attack_asks_every_kind_with_captions(targets: dict[str, Target], kind: str, name: str) -> None:
    target, x0, forwards = targets[kind], 0.5 * latents(2), []
    noise, cond = Noise(5, ("a", "b"), (CHANNELS, LATENT, LATENT)), target.text(TEXTS[:2])
    subject = Subject(
        target.denoiser,
        x0,
        noise,
        cond,
        encode=target.codec.encode,
        decode=target.codec.decode,
        images=lambda: torch.ones(2, 3, SIDE, SIDE),
        sampler=lambda steps: hub.new_sampler("ddim", target.denoiser.schedule, steps, clip=False),
        open_encoder=lambda spec: Encoder("hash", lambda x: x.flatten(start_dim=1)),
    )
    attack = parse(name, ATTACKS, (50, 150)).opened(subject).prepared(subject)
    with torch.inference_mode():
        counted = replace(subject, denoiser=Counted(target.denoiser, lambda n, t: forwards.append(n)))
        found = attack.statistics(replace(counted, reference=replace(counted)))
        others = attack.statistics(replace(subject, cond=target.text(["red heart", "cloud"]), reference=subject))
    assert found.shape == (len(attack.columns), 2) and found.dtype == torch.float64
    assert torch.isfinite(found).all()
    assert sum(forwards) == 2 * attack.queries
    assert (found != others).all(), "the caption must reach the network"


# --- text embeddings ----------------------------------------------------------------------------------------------------


def encoder_calls(pipeline: Any) -> list[int]:
    """Grows by one with every forward of the first text encoder."""
    calls: list[int] = []
    pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    return calls


def same(a: Any, b: Any) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_is_embedded_once_and_alike_in_every_batch(targets: dict[str, Target], kind: str) -> None:
    fresh = lambda: pipelines.PipelineText(targets[kind].text.pipeline)
    text = fresh()
    calls = encoder_calls(text.pipeline)
    first = text(["moon", "cloud", "moon", ""])
    once = len(calls)
    again = text(["moon", "cloud", "moon", ""])
    assert len(calls) == once and same(first, again)
    assert torch.equal(first.vectors[0], first.vectors[2])
    alone = [fresh()([name]) for name in ("moon", "cloud", "moon", "")]
    assert len(calls) == once // 3 * 7, "three distinct captions, then four alone"
    for i, single in enumerate(alone):
        assert all(torch.equal(single.tensors[k], first.tensors[k][i : i + 1]) for k in first.tensors)
    assert same(first.encode(["cloud"]), text(["cloud"]))


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "a StableDiffusionXLPipeline must have a text_encoder_2"),
        ({"text_encoder": [None, None]}, "a StableDiffusionPipeline must have a text_encoder"),
        ({"tokenizer": [None, None]}, "a StableDiffusionPipeline must have a tokenizer"),
    ],
)
def test_a_pipeline_without_what_embeds_its_captions_is_one_line(tmp_path: Path, change: dict[str, Any], lacks: str) -> None:
    folder = text_folder(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(UserError, match=f"{lacks}; .* has none: check that its model_index.json belongs to this model"):
        hub.load(folder, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_captions_embedded_together_are_those_embedded_alone_to_rounding_and_are_not_kept(targets: dict[str, Target], kind: str) -> None:
    text = pipelines.PipelineText(targets[kind].text.pipeline)
    told = ["moon", "a cloud over the sea", "", "moon"] * 5  # more than one piece
    together, alone = text(told, together=True), pipelines.PipelineText(targets[kind].text.pipeline)(told)
    assert together.texts == alone.texts and together.tensors.keys() == alone.tensors.keys() and not text._kept.made
    for name, value in alone.tensors.items():
        torch.testing.assert_close(together.tensors[name], value, rtol=1e-4, atol=1e-5)


def test_captions_that_were_evicted_are_embedded_again_alike(targets: dict[str, Target], monkeypatch: pytest.MonkeyPatch) -> None:
    text = pipelines.PipelineText(targets["sd"].text.pipeline)
    whole = text(CAPTIONS)
    one = sum(value.nbytes for value in text(["moon"]).tensors.values())
    for kept in (1, one, 3 * one):
        monkeypatch.setattr(pipelines, "CACHE_BYTES", kept)
        small = pipelines.PipelineText(targets["sd"].text.pipeline)
        for _ in range(2):
            assert same(small(CAPTIONS), whole)
        assert len(small._kept.made) == max(1, kept // one)
        assert small._kept.bytes == len(small._kept.made) * one


def test_models_that_share_embeddings_count_and_lock_them_together(targets: dict[str, Target]) -> None:
    one, other = (pipelines.PipelineText(targets["sd"].text.pipeline) for _ in range(2))
    one(["moon"])
    shared = pipelines.Kept()
    one.share(shared)
    other.share(shared)
    one(["cloud"]), other(["sun"])
    assert [*shared.made] == ["moon", "cloud", "sun"] and one._kept.lock is other._kept.lock
    assert shared.bytes == sum(value.nbytes for made in shared.made.values() for value in made.values())


def test_threads_share_one_cache(targets: dict[str, Target]) -> None:
    text = pipelines.PipelineText(targets["sd3"].text.pipeline)
    calls = encoder_calls(text.pipeline)
    expected = pipelines.PipelineText(targets["sd3"].text.pipeline)(CAPTIONS)
    before = len(calls)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: text(CAPTIONS[i % 4 :] + CAPTIONS[: i % 4]), range(12)))
    assert len(calls) == 2 * before
    assert all(same(prompts, expected) for prompts in found[::4])


@pytest.mark.parametrize(("kind", "limit"), [("sd", 16), ("sdxl", 16), ("pixart", 120), ("sd3", 256), ("flux", 512)])
def test_a_caption_is_called_truncated_from_the_first_token_that_is_lost(targets: dict[str, Target], kind: str, limit: int) -> None:
    """By hand: a caption of exactly `limit` tokens still says its last word, one of a token more does not."""
    text = targets[kind].text
    pipe = text.pipeline
    tokenizer = {"pixart": pipe.tokenizer, "flux": getattr(pipe, "tokenizer_2", None), "sd3": getattr(pipe, "tokenizer_3", None)}.get(kind)
    tokenizer = tokenizer or pipe.tokenizer
    count = lambda caption: len(tokenizer(caption).input_ids)
    ends = ("moon", "cloud")
    words = next(n for n in range(limit) if count(" ".join(["house"] * n + [ends[0]])) >= limit)
    filler = ["a"] if count(" ".join(["house"] * words + [ends[0]])) > limit else []
    base = ["house"] * (words - len(filler))
    while filler and count(" ".join(base + filler + [ends[0]])) < limit:
        filler.append("a")
    fits = " ".join(base + filler + [ends[0]])
    assert count(fits) == limit
    assert text.truncated([fits, "moon", "", fits + " " + ends[0]]) == [3]
    longer = [" ".join(["house"] * (limit + 3) + [end]) for end in ends]
    assert text.truncated(longer) == [0, 1]
    a, b = text(longer).vectors
    assert torch.equal(a, b), "what is called truncated has lost its end"


def test_pixart_counts_the_tokens_of_a_caption_as_it_reads_it(targets: dict[str, Target]) -> None:
    """It puts captions in small letters; capitals, which its vocabulary lacks, would count otherwise."""
    text, caption = targets["pixart"].text, " ".join(["house"] * 20)
    assert text.truncated([caption, caption.upper()]) == []
    n = next(n for n in range(1, 200) if text.truncated([" ".join(["house"] * n)]))
    assert text.truncated([" ".join(["HOUSE"] * n), " ".join(["HOUSE"] * (n - 1))]) == [0]


# --- loading ------------------------------------------------------------------------------------------------------------


def test_a_text_target_says_what_it_is(targets: dict[str, Target]) -> None:
    for kind, target in targets.items():
        assert target.shape == (None if kind == "flux" else ImageShape(3, SIDE, SIDE))
        assert target.latent and target.text is not None and target.classes is None


def test_the_first_stable_diffusion_has_the_scaling_factor_that_its_folder_does_not_say(copied: Callable[..., Path]) -> None:
    folder, x = copied("sd"), torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    edit(folder / "vae" / "config.json", scaling_factor=None)
    mean = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval().encode(x).latent_dist.mean.detach()
    torch.testing.assert_close(hub.load(folder, device="cpu").codec.encode(x), 0.18215 * mean, rtol=1e-5, atol=1e-6)


def test_no_other_autoencoder_may_be_silent_on_its_scaling_factor(copied: Callable[..., Path]) -> None:
    folder = copied("sdxl")
    edit(folder / "vae" / "config.json", scaling_factor=None)
    assert refusal(folder).startswith(f"{folder / 'vae'}/config.json must say scaling_factor")


def test_the_attention_of_the_first_autoencoders_has_other_names(copied: Callable[..., Path]) -> None:
    folder, x = copied("sd"), torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    expected = hub.load(folder, device="cpu").codec.encode(x)
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def rename(state: dict[str, torch.Tensor]) -> None:
        for key in list(state):
            for new, old in names.items():
                if new in key:
                    state[key.replace(new, old)] = state.pop(key)
        assert any("proj_attn" in key for key in state)

    reweighted(folder / "vae" / "diffusion_pytorch_model.safetensors", rename)
    assert torch.equal(hub.load(folder, device="cpu").codec.encode(x), expected)


def test_text_encoders_of_earlier_transformers_load_alike(copied: Callable[..., Path], targets: dict[str, Target]) -> None:
    folder = copied("sd")

    def rename(state: dict[str, torch.Tensor]) -> None:
        for key in list(state):
            if not key.startswith("text_model."):
                state[f"text_model.{key}"] = state.pop(key)
        state["text_model.embeddings.position_ids"] = torch.arange(16)[None]

    reweighted(folder / "text_encoder" / "model.safetensors", rename)
    assert same(hub.load(folder, device="cpu").text(TEXTS), targets["sd"].text(TEXTS))


class _Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_safety_checker_is_never_opened(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder, sprung = copied("sd"), tmp_path / "sprung"
    edit(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"], requires_safety_checker=True)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("no JSON")
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(sprung)))
    target = hub.load(folder, device="cpu")
    assert target.denoiser(latents(1), 90, target.text(["moon"])).shape == (1, CHANNELS, LATENT, LATENT)
    assert target.text.pipeline.safety_checker is None and not sprung.exists()


def test_a_pickled_text_encoder_that_runs_code_is_refused(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder, sprung = copied("sd"), tmp_path / "sprung"
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({"weight": _Trap(sprung)}, folder / "text_encoder" / "pytorch_model.bin")
    assert refusal(folder).startswith(f"{folder}/text_encoder/pytorch_model.bin is a pickle that would run code when it is opened (")
    assert not sprung.exists()


def test_a_pipeline_of_state_dicts_answers_as_that_of_safetensors(copied: Callable[..., Path], targets: dict[str, Target]) -> None:
    """With the names that transformers gave the weights of CLIP before its fifth version, which made those files."""
    folder = copied("sd")
    for part in ("unet", "vae", "text_encoder"):
        file = next((folder / part).glob("*.safetensors"))
        state = load_file(file)
        if part == "text_encoder":
            state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}
            state["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
        torch.save(state, file.with_name("pytorch_model.bin" if part == "text_encoder" else f"{file.stem}.bin"))
        file.unlink()
    found, expected = hub.load(folder, device="cpu"), targets["sd"]
    one, other = (target.denoiser(latents(), 90, target.text(TEXTS)) for target in (found, expected))
    assert torch.equal(one, other) and found.warnings == ()
    images = torch.linspace(-1, 1, 3 * SIDE * SIDE).reshape(1, 3, SIDE, SIDE)
    assert torch.equal(found.codec.encode(images), expected.codec.encode(images))


def test_a_pipeline_of_half_precision_files_alone_is_what_diffusers_makes_of_its_variant(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    diffusers.DiffusionPipeline.from_pretrained(folders["sd"], torch_dtype=torch.float16).save_pretrained(folder, variant="fp16")
    found = hub.load(folder, device="cpu")
    made = diffusers.DiffusionPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float32)
    embedded = made.encode_prompt(list(TEXTS), "cpu", 1, False)[0]
    with torch.no_grad():
        expected = made.unet(latents(), 90, embedded).sample
    torch.testing.assert_close(found.denoiser(latents(), 90, found.text(TEXTS)), expected, rtol=1e-5, atol=1e-6)
    files = {part: f"{part}/ holds no plain weights: " for part in ("vae", "unet", "text_encoder")}
    assert [line.partition(" was opened, which is ")[2] for line in found.warnings] == ["float16"] * 3
    assert all(any(said in line for line in found.warnings) for said in files.values())


def test_a_text_encoder_without_weights_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied("sd3")
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    assert refusal(folder).startswith(f"{folder}/text_encoder_2 must hold the weights as .safetensors, or as a state dict (.bin, ")


@pytest.mark.parametrize(("kind", "part", "key"), [("sd", "text_encoder", "layer_norm1"), ("flux", "text_encoder_2", "shared")])
def test_a_text_encoder_that_lacks_weights_is_refused_and_not_drawn_at_random(
    copied: Callable[..., Path], kind: str, part: str, key: str
) -> None:
    folder = copied(kind)
    reweighted(folder / part / "model.safetensors", lambda state: [state.pop(name) for name in list(state) if key in name])
    assert refusal(folder).startswith(f"{folder}/{part}: the weights do not match config.json (first: ")


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
@pytest.mark.parametrize("kind", ["sd", "pixart"])
def test_a_missing_part_is_named(copied: Callable[..., Path], kind: str, part: str) -> None:
    folder = copied(kind)
    shutil.rmtree(folder / part)
    assert refusal(folder) == f"{folder} must hold {part}/, which its model_index.json names; it is missing: fetch the model again"


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_3"])
def test_a_tokenizer_without_a_vocabulary_is_refused_and_not_replaced_by_an_empty_one(copied: Callable[..., Path], part: str) -> None:
    folder = copied("sd3")
    (folder / part / "tokenizer.json").unlink()
    assert refusal(folder).startswith(f"{folder}/{part} must hold a vocabulary (tokenizer.json, ")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("text_encoder/config.json", "{", "must be JSON ("),
        ("text_encoder/config.json", "[]", "must hold a JSON object; got list"),
        ("text_encoder/model.safetensors", "x" * 100, "must be a whole safetensors file ("),
        ("tokenizer/tokenizer.json", "{", "must be JSON ("),
        ("tokenizer/tokenizer_config.json", '{"model_max_length"', "must be JSON ("),
        ("tokenizer/vocab.json", "[]", "must hold a JSON object; got list"),
    ],
)
def test_a_damaged_text_encoder_or_tokenizer_is_one_line_that_names_the_file(
    copied: Callable[..., Path], file: str, content: str, said: str
) -> None:
    folder = copied("sd")
    (folder / file).write_text(content)
    assert refusal(folder).startswith(f"{folder}/{file} {said}")


@pytest.mark.parametrize("kind", ["sd", "sd3"])
@pytest.mark.parametrize("given", [None, 10**12, 77, 0, -3, "x", [16], 2.5], ids=str)
def test_a_tokenizer_without_a_limit_that_can_be_used_has_that_of_its_text_encoder(
    copied: Callable[..., Path], targets: dict[str, Target], kind: str, given: Any
) -> None:
    folder, long = copied(kind), "a house with a garden " * 20
    for part in ("tokenizer", "tokenizer_2"):
        if (folder / part).is_dir():
            edit(folder / part / "tokenizer_config.json", model_max_length=given)
    target = hub.load(folder, device="cpu")
    assert same(target.text([long, "moon"]), targets[kind].text([long, "moon"])), "the limit that the encoder was saved with is its own"
    assert target.text.truncated([long, "moon"]) == targets[kind].text.truncated([long, "moon"])
    said = f"while the model was loaded: tokenizer/ gives model_max_length {given}, which its text encoder cannot take: 16 tokens are read"
    assert target.warnings[:1] == (() if given is None else (said,))


def test_a_smaller_limit_of_a_tokenizer_is_kept(copied: Callable[..., Path]) -> None:
    folder = copied("sd")
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=7)
    target = hub.load(folder, device="cpu")
    assert target.text(["moon"]).tensors["encoder_hidden_states"].shape[1] == 7 and not target.warnings


def test_a_tokenizer_of_more_words_than_its_text_encoder_knows_is_one_line(copied: Callable[..., Path]) -> None:
    folder = copied("sd")
    tokenizer = tokenizers()[0]
    tokenizer.add_tokens(["giraffe"])
    tokenizer.save_pretrained(folder / "tokenizer")
    assert refusal(folder).startswith(f"a tokenizer and its text encoder must belong together; {folder}/tokenizer has ")


@pytest.mark.parametrize(
    ("part", "named", "said"),
    [
        ("tokenizer", ["os", "system"], 'must give tokenizer as ["transformers", NAME OF A CLASS]; got ["os", "system"]'),
        ("tokenizer", ["code", "Planted"], 'must give tokenizer as ["transformers", NAME OF A CLASS]; got ["code", "Planted"]'),
        (
            "tokenizer",
            ["transformers", "AutoTokenizer"],
            "must name a PreTrainedTokenizerBase of transformers as tokenizer; got AutoTokenizer",
        ),
        ("tokenizer", ["transformers", 3], "must give tokenizer as "),
        ("tokenizer", {"a": 1}, "must give tokenizer as "),
        ("text_encoder", ["transformers", "AutoModel"], "must name a PreTrainedModel of transformers as text_encoder; got AutoModel"),
        ("text_encoder", ["transformers", "pipeline"], "must name a PreTrainedModel of transformers as text_encoder; got pipeline"),
        ("text_encoder", "transformers", "must give text_encoder as "),
    ],
)
def test_an_index_may_name_text_encoders_and_tokenizers_and_nothing_that_runs_code(
    copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, named: Any, said: str
) -> None:
    folder, trap = copied("sd"), f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\nclass Planted: pass\n"
    for place in (folder, folder / part, tmp_path):
        (place / "code.py").write_text(trap)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("nobody is asked whether to run code"))
    for config in ("config.json", "tokenizer_config.json"):
        if (folder / part / config).is_file():
            edit(folder / part / config, auto_map={"AutoModel": "code.Planted", "AutoTokenizer": ["code.Planted", "code.Planted"]})
    edit(folder / "model_index.json", scheduler=["code", "Planted"])
    hub.load(folder, device="cpu")
    edit(folder / "model_index.json", **{part: named})
    assert refusal(folder).startswith(f"{folder}/model_index.json {said}")
    assert not (tmp_path / "sprung").exists()


def test_attention_of_a_text_encoder_that_would_be_fetched_as_code_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied("sd")
    edit(folder / "text_encoder" / "config.json", attn_implementation="somebody/kernel")
    assert "must leave out attn_implementation, which may name code to run; got somebody/kernel" in refusal(folder)


def test_a_text_encoder_that_fails_for_a_caption_is_one_line(copied: Callable[..., Path]) -> None:
    folder = copied("sd")
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "pad_token": None}))
    with pytest.raises(UserError, match=r"^the text encoders of a StableDiffusionPipeline fail for 'moon' \(.*\); check the tokenizer"):
        hub.load(folder, device="cpu").text(["moon"])


@pytest.mark.parametrize("installed", [True, False])
def test_captions_that_are_not_cleaned_for_want_of_a_library_are_said_to_be_so(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(pipelines, "find_spec", lambda name: name if installed else None)
    said = hub.load(folders["pixart"], device="cpu").warnings
    assert [line.partition("; ")[2] for line in said] == ([] if installed else ["install beautifulsoup4 and ftfy"])
    assert not hub.load(folders["sd"], device="cpu").warnings


def test_a_stable_diffusion_3_without_its_largest_text_encoder_loads(copied: Callable[..., Path]) -> None:
    folder = copied("sd3")
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    edit(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    target = hub.load(folder, device="cpu")
    made = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    expected = made.encode_prompt("moon", None, None, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(target.text(["moon"]).tensors["encoder_hidden_states"], expected, rtol=1e-5, atol=1e-6)


def test_another_pipeline_is_refused_with_those_that_are_not(copied: Callable[..., Path]) -> None:
    folder = copied("sd")
    edit(folder / "model_index.json", _class_name="StableCascadeDecoderPipeline")
    message = refusal(folder)
    assert message.endswith(f"{folder} is a StableCascadeDecoderPipeline")
    assert all(name in message for name in pipelines.PIPELINES)


def test_the_fingerprint_follows_everything_that_captions_pass_through(copied: Callable[..., Path]) -> None:
    found = {hub.fingerprint(copied("sdxl", "plain")), hub.fingerprint(copied("sdxl", "moved"))}
    assert len(found) == 1, "not the place"

    def other(name: str, change: Callable[[Path], Any]) -> str:
        folder = copied("sdxl", name)
        change(folder)
        return hub.fingerprint(folder)

    nudge = lambda state: state[min(state)].add_(1e-3)
    found |= {
        other("encoder", lambda f: reweighted(f / "text_encoder_2" / "model.safetensors", nudge)),
        other("config", lambda f: edit(f / "text_encoder" / "config.json", num_attention_heads=4)),
        other("vocabulary", lambda f: edit(f / "tokenizer_2" / "tokenizer.json", version="2.0")),
        other("limit", lambda f: edit(f / "tokenizer" / "tokenizer_config.json", model_max_length=12)),
        other("empty", lambda f: edit(f / "model_index.json", force_zeros_for_empty_prompt=False)),
    }
    assert len(found) == 6


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_two_fine_tuned_text_models_become_one_folder_that_takes_turns(copied: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    one, other = copied(kind, "one"), copied(kind, "other")
    (network,) = [other / part for part in ("unet", "transformer") if (other / part).is_dir()]
    reweighted(network / "diffusion_pytorch_model.safetensors", lambda state: [value.mul_(1.1) for value in state.values()])
    hub.save_dual(tmp_path / "dual", (one, other))
    dual, first, second = (hub.load(folder, device="cpu") for folder in (tmp_path / "dual", one, other))
    assert isinstance(dual.denoiser, Dual) and dual.fingerprint not in (first.fingerprint, second.fingerprint)
    z, cond = latents(), dual.text(TEXTS)
    assert same(cond, first.text(TEXTS))
    for exposed, single in zip(dual.denoiser.exposed, (first, second), strict=True):
        assert torch.equal(exposed(z, 90, cond), single.denoiser(z, 90, single.text(TEXTS)))
    turns = dual.denoiser.over((90, 80))
    assert torch.equal(turns(z, 90, cond), first.denoiser(z, 90, cond)) and torch.equal(turns(z, 80, cond), second.denoiser(z, 80, cond))
    made = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "dual")
    assert type(made).__name__ == type(dual.text.pipeline).__name__


def test_text_models_with_other_text_encoders_cannot_take_turns(copied: Callable[..., Path], tmp_path: Path) -> None:
    one, other = copied("sd", "one"), copied("sd", "other")
    reweighted(other / "text_encoder" / "model.safetensors", lambda state: state[min(state)].add_(1e-3))
    with pytest.raises(
        UserError, match="the two teachers must share their text encoders; theirs differ: fine-tune both from the same model"
    ):
        hub.save_dual(tmp_path / "dual", (one, other))


def test_a_pipeline_of_classes_is_read_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=1,
        norm_num_groups=4,
        sample_size=LATENT,
        num_embeds_ada_norm=10,
    )
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.2)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    made = diffusers.DiTPipeline(network, autoencoder(), scheduler, id2label={str(i): str(i) for i in range(10)})
    made.save_pretrained(tmp_path / "dit")
    target, z, labels = hub.load(tmp_path / "dit", device="cpu"), latents(2), torch.tensor([3, 7])
    assert target.classes == 10 and target.text is None and isinstance(target.denoiser, NetworkDenoiser)
    with torch.no_grad():
        expected = network.eval()(z, torch.tensor([90, 90]), class_labels=labels).sample[:, :CHANNELS]
    torch.testing.assert_close(target.denoiser(z, 90, labels), expected, rtol=1e-5, atol=1e-6)
    assert (target.denoiser(z, 90, labels.flip(0)) - expected).abs().max() > 1e-4


def test_what_a_model_of_captions_is_asked_without_them_is_one_line(targets: dict[str, Target]) -> None:
    with pytest.raises(UserError, match="this model takes captions as its condition; got none"):
        targets["sd"].denoiser(latents(), 90)


def test_a_tiny_clip_may_be_made_of_any_tokens() -> None:
    """The fixture itself: every token of the captions is known, so that different captions are different tokens."""
    clip, t5 = tokenizers()
    assert clip_config(clip).vocab_size == len(clip)
    for tokenizer in (clip, t5):
        ids = [tuple(tokenizer(caption).input_ids) for caption in CAPTIONS]
        assert len(set(ids)) == len(CAPTIONS)


def test_a_flow_model_is_told_the_time_in_the_steps_of_its_own_scheduler(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "model", "sd3")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_train_timesteps": 100}))
    schedule = hub.load(folder, device="cpu").denoiser.schedule
    expected = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler").timesteps
    np.testing.assert_allclose(schedule.times, expected.flip(0).numpy(), rtol=1e-6)
