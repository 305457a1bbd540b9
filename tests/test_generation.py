"""Images drawn from a model: the same whatever the batch, the threads and the interruptions; refusals before any work."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from fixtures.text import text_folder

from diffleak import hub
from diffleak.data.pixels import ImageShape, to_uint8
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.denoiser import Counted, Denoiser, Guided
from diffleak.diffusion.dual import Dual
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import sample
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.generation import CHUNK, generate, plan_drawing
from diffleak.work.files import seal

SCHEDULE = linear_schedule()
SHAPE = ImageShape(1, 4, 4)


def analytic(denoiser: Denoiser | None = None, **keys) -> Target:
    return Target(denoiser or Gaussian(0.2, 0.3, SCHEDULE), SHAPE, fingerprint="f", **keys)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm"])
def test_images_depend_on_neither_batches_nor_threads_nor_how_many_are_drawn(model_folder: Callable[..., Path], sampler: str) -> None:
    target = hub.load(model_folder(), device="cpu")
    drawn = generate(target, 9, steps=4, sampler=sampler, threads=1)
    assert drawn.shape == (9, 8, 8, 1)
    assert drawn.dtype == np.uint8
    for other in (
        generate(target, 9, steps=4, sampler=sampler, batch_size=2, threads=2),
        generate(target, 12, steps=4, sampler=sampler)[:9],
    ):
        assert np.abs(drawn.astype(int) - other).max() <= 1
    assert (drawn != generate(target, 9, seed=1, steps=4, sampler=sampler)).mean() > 0.3
    assert len(np.unique(drawn.reshape(9, -1), axis=0)) == 9


def test_what_an_interrupted_call_drew_is_kept_and_the_rest_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK, "cpu", 4)
    whole = generate(analytic(), 10, steps=3, folder=tmp_path / "whole")
    calls = 0

    def interrupt(n: int, t: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    counted = Counted(Gaussian(0.2, 0.3, SCHEDULE), interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(analytic(counted), 10, steps=3, folder=tmp_path / "cut")
    drawn = {p.name for p in (tmp_path / "cut" / "generated").glob("*.npy")}
    assert "images-00000.npy" in drawn and "images-00001.npy" not in drawn, "the third may have begun before the second had failed"
    calls = 10
    np.testing.assert_array_equal(generate(analytic(counted), 10, steps=3, folder=tmp_path / "cut"), whole)
    assert calls == 10 + (3 - len(drawn)) * 3, "a finished chunk is not drawn again"
    np.testing.assert_array_equal(generate(analytic(counted), 10, steps=3, folder=tmp_path / "cut"), whole)
    assert calls == 10 + (3 - len(drawn)) * 3


def test_two_models_take_turns_and_adaptive_rounds_ask_them_again() -> None:
    calls: list[tuple[int, int]] = []
    pair = tuple(Counted(Gaussian(m, 1.0, SCHEDULE), lambda n, t, which=i: calls.append((which, n))) for i, m in enumerate((0.5, -0.5)))
    target = analytic(Dual(pair))
    once = generate(target, 6, steps=4, batch_size=6)
    assert calls == [(0, 6), (1, 6)] * 2
    calls.clear()
    thrice = generate(target, 6, steps=4, rounds=3, batch_size=6)
    assert [which for which, _ in calls] == [0, 1, 0, 1] + 2 * [0, 1, 0]
    assert (once != thrice).any()


def test_a_dual_folder_draws_images_that_are_those_of_neither_model(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    one, other = model_folder("one"), model_folder("other")
    loaded = hub.load(other, device="cpu")
    torch.manual_seed(1)
    for weights in loaded.denoiser.network.parameters():  # type: ignore[attr-defined]
        weights.data.normal_(0, 0.1)
    hub.save(other, loaded.denoiser.network, hub.new_scheduler({}))  # type: ignore[attr-defined]
    hub.save_dual(tmp_path / "dual", (one, other))
    drawn = [generate(hub.load(folder, device="cpu"), 4, steps=4) for folder in (one, other, tmp_path / "dual")]
    assert (drawn[2] != drawn[0]).any()
    assert (drawn[2] != drawn[1]).any()


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_latents_are_snapped_and_decoded_to_images(latent_folder: Callable[..., Path], kind: str) -> None:
    target = hub.load(latent_folder(kind=kind), device="cpu")
    drawn = generate(target, 3, steps=3)
    assert drawn.shape == (3, 8, 8, 1)
    assert np.abs(drawn.astype(int) - generate(target, 3, steps=3, batch_size=1)).max() <= 1


def test_a_class_conditional_model_draws_given_classes_and_all_of_them_by_default(latent_folder: Callable[..., Path]) -> None:
    target = hub.load(latent_folder(network="transformer"), device="cpu")
    first, second = (generate(target, 4, steps=2, labels=np.full(4, label)) for label in (0, 9))
    assert (first != second).any()
    assert generate(target, 4, steps=2).shape == first.shape
    with pytest.raises(UserError, match=r"labels must be 4 numbers in \[0, 10\); got 4 from 10 to 10"):
        generate(target, 4, steps=2, labels=np.full(4, 10))
    with pytest.raises(UserError, match=r"labels must be 4 numbers in \[0, 10\); got 0$"):
        generate(target, 4, steps=2, labels=np.zeros(0, dtype=np.int64))


def test_an_image_of_a_memoriser_is_one_of_its_points() -> None:
    points = torch.randn((5, 1, 4, 4), generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    drawn = generate(analytic(Memoriser(points, SCHEDULE)), 8, steps=50)
    known = np.rint((points.numpy() + 1) * 127.5).reshape(5, -1)
    assert np.abs(drawn.reshape(8, 1, -1) - known[None]).max(axis=2).min(axis=1).max() < 8


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("images must be at least 1, so that there is something to measure; got 0", {"n": 0}),
        (r"steps must lie in \[1, 1000\], the model's schedule; got 1001", {"steps": 1001}),
        ("unknown sampler 'ddym'; did you mean", {"sampler": "ddym"}),
        ("rounds must be at least 1; got 0", {"rounds": 0}),
        ("rounds are an attack on two models that take turns; this is one model: leave out --rounds 2", {"rounds": 2}),
        ("batch_size must be at least 1; got 0", {"batch_size": 0}),
        ("this model is not conditioned on classes; leave out the labels", {"labels": np.zeros(2, dtype=np.int64)}),
    ],
)
def test_what_cannot_be_drawn_is_refused(message: str, arguments: dict) -> None:
    with pytest.raises(UserError, match=message):
        generate(analytic(), **{"n": 2, **arguments})


def test_rounds_refuse_samplers_with_memory_and_a_single_step() -> None:
    dual = analytic(Dual((Gaussian(0.5, 1.0, SCHEDULE), Gaussian(-0.5, 1.0, SCHEDULE))))
    with pytest.raises(UserError, match="more than one round needs a sampler without memory, ddim or ddpm; got dpm"):
        generate(dual, 2, sampler="dpm", rounds=2)
    with pytest.raises(UserError, match="more than one round needs at least 2 steps, since rounds start at the second; got 1"):
        generate(dual, 2, steps=1, rounds=2)


def test_a_model_of_any_size_must_be_told_the_size() -> None:
    target = Target(Gaussian(0.2, 0.3, SCHEDULE))
    with pytest.raises(UserError, match="takes images of any size, so the size to draw must be given"):
        generate(target, 2)
    assert generate(target, 2, steps=2, shape=ImageShape(3, 5, 6)).shape == (2, 5, 6, 3)


def test_numbers_that_are_not_finite_are_refused_with_the_image() -> None:
    broken = Denoiser.from_function(lambda x, t: x * float("nan"), SCHEDULE.alphas_cumprod)
    with pytest.raises(
        UserError, match="the model must draw finite numbers; image 0 of seed 0 has NaN or infinity: check what it computes"
    ):
        generate(analytic(broken), 2, steps=2)


def test_another_sampler_is_advised_where_there_is_one() -> None:
    for schedule, more in ((SCHEDULE, ", or use another sampler$"), (Schedule.flow(np.arange(1, 101) / 100, 100), "$")):
        with pytest.raises(UserError, match="check what it computes" + more):
            generate(analytic(Gaussian(float("nan"), 0.3, schedule)), 2, steps=2)


def test_an_autoencoder_that_decodes_to_nan_is_named_and_not_the_model(latent_folder: Callable[..., Path]) -> None:
    target = hub.load(latent_folder(), device="cpu")
    target.codec.network.decoder.conv_out.bias.fill_(torch.nan)
    said = (
        "the autoencoder must decode to finite numbers; image 0 of seed 0 has NaN or infinity: decoder.conv_out.bias of the AutoencoderKL"
    )
    with pytest.raises(UserError, match=said):
        generate(target, 2, steps=2)


def test_a_folder_belongs_to_one_plan(tmp_path: Path) -> None:
    whole = generate(analytic(), 3, steps=2, folder=tmp_path)
    with pytest.raises(UserError, match="holds images drawn with another number of steps \(2, now 3\); choose another folder"):
        generate(analytic(), 3, steps=3, folder=tmp_path)
    with pytest.raises(UserError, match="and nothing says that they are of this model"):
        generate(Target(Gaussian(0.2, 0.3, SCHEDULE), SHAPE), 3, steps=2, folder=tmp_path)
    chunk = tmp_path / "generated" / "images-00000.npy"
    np.save(chunk, np.zeros((2, 4, 4, 1), dtype=np.uint8))
    seal(chunk)
    with pytest.raises(UserError, match=r"must hold 3 images; its array is .*: delete it and run the same command again"):
        generate(analytic(), 3, steps=2, folder=tmp_path)
    chunk.write_bytes(b"")
    assert np.array_equal(generate(analytic(), 3, steps=2, folder=tmp_path), whole), "what was damaged is drawn again"
    (tmp_path / "generated" / "plan.json").write_text("{")
    with pytest.raises(UserError, match="to begin again"):
        generate(analytic(), 3, steps=2, folder=tmp_path)
    (tmp_path / "generated" / "plan.json").write_text("[]")
    with pytest.raises(UserError, match=r"plan.json cannot be read \(it holds a list\); delete .* to begin again"):
        generate(analytic(), 3, steps=2, folder=tmp_path)


def prompted(**keys) -> Target:
    """A model that draws the image of a caption, and grey where it is told nothing."""
    points = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (len(PROMPTS), 1, 4, 4)))
    return analytic(Memoriser(points, SCHEDULE, PROMPTS), text=Text(), dtype="float64", **keys)


PROMPTS = ("a house", "moon", "red heart")


class Text:
    """Embeds nothing but the texts themselves, and would notice two threads in it."""

    def __init__(self) -> None:
        self.inside = Lock()

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        assert self.inside.acquire(blocking=False), "two threads embed at once"
        try:
            return Prompts(tuple(texts), {"embeds": torch.tensor([[len(text)] for text in texts])}, self)
        finally:
            self.inside.release()

    def truncated(self, texts: Sequence[str]) -> list[int]:
        return []


def test_each_image_is_drawn_of_its_own_prompt_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK, "cpu", 4)
    texts = [PROMPTS[i % 3] for i in range(10)]
    drawn = generate(prompted(), 10, steps=5, prompts=texts, guidance_scale=1.0, threads=1)
    known = to_uint8(prompted().denoiser.points.float().numpy())
    np.testing.assert_allclose(drawn.astype(int), known[[i % 3 for i in range(10)]], atol=1)
    guided = generate(prompted(), 10, steps=5, prompts=texts, guidance_scale=3.0, threads=1)
    other = generate(prompted(), 10, steps=5, prompts=texts, guidance_scale=3.0, batch_size=3, threads=3)
    assert np.abs(guided.astype(int) - other).max() <= 1
    assert (guided != drawn).any()


def test_several_images_of_one_prompt_differ() -> None:
    drawn = generate(prompted(), 6, steps=3, prompts=["nobody's"] * 6)
    assert len(np.unique(drawn.reshape(6, -1), axis=0)) == 6
    np.testing.assert_array_equal(generate(prompted(), 2, steps=3, prompts=["nobody's"] * 2), drawn[:2])


def test_guidance_is_counted_twice_and_takes_the_place_of_the_targets_own() -> None:
    asked: list[int] = []
    target = prompted()
    counted = replace(target, denoiser=Counted(target.denoiser, lambda n, t: asked.append(n)))
    for scale, forwards in ((None, 2), (3.0, 2), (1.0, 1)):
        asked.clear()
        drawing = plan_drawing(counted, 3, steps=4, prompts=PROMPTS, guidance_scale=scale)
        assert drawing.forwards == 4 * forwards
        generate(counted, 3, steps=4, prompts=PROMPTS, guidance_scale=scale)
        assert sum(asked) == 3 * drawing.forwards
    own = replace(target, denoiser=Guided(target.denoiser, 2.0))
    assert plan_drawing(own, 3, prompts=PROMPTS).guidance_scale == 2.0
    assert plan_drawing(target, 3, prompts=PROMPTS).guidance_scale == 7.5
    images = [generate(t, 3, steps=4, prompts=PROMPTS, guidance_scale=3.0) for t in (own, target)]
    np.testing.assert_array_equal(*images)


def test_two_models_take_turns_under_guidance_too() -> None:
    calls: list[tuple[int, int]] = []
    pair = []
    for i, mean in enumerate((0.5, -0.5)):
        gaussian = Gaussian(mean, 1.0, SCHEDULE)
        told = Denoiser.from_function(lambda x, t, cond, gaussian=gaussian: gaussian(x, t), SCHEDULE.alphas_cumprod)
        pair.append(Counted(told, lambda n, t, i=i: calls.append((i, n))))
    generate(analytic(Dual(tuple(pair)), text=Text()), 3, steps=4, prompts=PROMPTS, batch_size=3)
    assert calls == [(0, 6), (1, 6)] * 2


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_pipelines_draw_latents_that_are_not_clipped(tmp_path: Path, kind: str) -> None:
    target = hub.load(text_folder(tmp_path / "model", kind), device="cpu")
    drawn = generate(target, 3, steps=3, prompts=PROMPTS, guidance_scale=4.0)
    assert drawn.shape == (3, 16, 16, 3)
    noise = Noise(0, ("0", "1", "2"), (4, 8, 8), stream="sample")
    sampler = hub.new_sampler("ddim", target.denoiser.schedule, 3, clip=False)
    with torch.inference_mode():
        z = sample(Guided(target.denoiser, 4.0), sampler, noise, target.text(PROMPTS))
        expected = to_uint8(target.codec.decode(z).numpy())
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_a_folder_of_other_prompts_or_another_guidance_is_refused(tmp_path: Path) -> None:
    generate(prompted(), 3, steps=2, prompts=PROMPTS, folder=tmp_path)
    with pytest.raises(UserError, match="drawn with another list of prompts; choose another folder"):
        generate(prompted(), 3, steps=2, prompts=PROMPTS[::-1], folder=tmp_path)
    with pytest.raises(UserError, match=r"drawn with another guidance scale \(7\.5, now 2\.0\)"):
        generate(prompted(), 3, steps=2, prompts=PROMPTS, guidance_scale=2.0, folder=tmp_path)


@pytest.mark.parametrize(
    ("message", "target", "keys"),
    [
        ("draws from prompts: give prompts, a text for each image", prompted, {}),
        ("prompts must be 3 texts, one for each image; got 2", prompted, {"prompts": PROMPTS[:2]}),
        ("prompts must be 3 texts, one for each image; got one text", prompted, {"prompts": "abc"}),
        (
            r"at least 0 \(1 is no guidance\); got -1",
            prompted,
            {"prompts": PROMPTS, "guidance_scale": -1.0},
        ),
        ("takes no text: leave them out", analytic, {"prompts": PROMPTS}),
        ("takes no captions; leave out the guidance scale", analytic, {"guidance_scale": 2.0}),
    ],
)
def test_prompts_must_fit_the_model_and_the_images(message: str, target: Callable[[], Target], keys: dict) -> None:
    with pytest.raises(UserError, match=message):
        generate(target(), 3, **keys)


def test_a_model_of_flow_matching_is_never_sampled_at_its_last_timestep(tmp_path: Path) -> None:
    schedule = hub.load(text_folder(tmp_path / "model", "sd3"), device="cpu").denoiser.schedule
    most = len(schedule) - 1
    assert len(set(hub.new_sampler("ddim", schedule, most, clip=False).timesteps)) == most
    with pytest.raises(UserError, match=rf"steps must lie in \[1, {most}\]"):
        hub.new_sampler("ddim", schedule, most + 1, clip=False)
