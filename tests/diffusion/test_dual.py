"""DualMD: two models that take turns, driven by diffusers' own samplers, saved and loaded as one folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from diffleak import hub
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.denoiser import Counted, Denoiser, NetworkDenoiser
from diffleak.diffusion.dual import Dual, refuse_incompatible
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import sample
from diffleak.errors import UserError

SCHEDULE = linear_schedule()
NOISE = Noise(0, ("a", "b", "c"), (1, 4, 4))


def counted_pair() -> tuple[tuple[Denoiser, Denoiser], list[tuple[int, int]]]:
    calls: list[tuple[int, int]] = []
    note = lambda which: lambda n, t: calls.append((which, t))
    return (Counted(Gaussian(0.5, 1.0, SCHEDULE), note(0)), Counted(Gaussian(-0.5, 1.0, SCHEDULE), note(1))), calls


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 50), ("ddim", 7), ("ddpm", 20), ("dpm", 10)])
def test_the_models_take_turns_step_by_step_under_diffusers_own_samplers(sampler: str, steps: int) -> None:
    teachers, calls = counted_pair()
    scheduler = hub.new_sampler(sampler, SCHEDULE, steps, clip=True)
    sample(Dual(teachers), scheduler, NOISE)
    assert [t for _, t in calls] == [int(t) for t in scheduler.timesteps]
    assert [which for which, _ in calls] == [i % 2 for i in range(steps)]


def test_first_decides_who_makes_the_first_step() -> None:
    teachers, calls = counted_pair()
    sample(Dual(teachers, first=1), hub.new_sampler("ddim", SCHEDULE, 5, clip=True), NOISE)
    assert [which for which, _ in calls] == [1, 0, 1, 0, 1]


def test_without_a_sampler_every_timestep_of_the_schedule_is_a_step() -> None:
    dual = Dual(counted_pair()[0])
    assert [dual.turn(t) for t in (999, 998, 997, 0)] == [0, 1, 0, 1]


def test_random_turns_are_fair_coins_that_the_seed_decides() -> None:
    teachers = counted_pair()[0]
    turns = [[Dual(teachers, "random", seed).turn(t) for t in range(1000)] for seed in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]
    assert 450 < sum(turns[0]) < 550


def test_an_adaptive_round_starts_again_from_the_second_timestep_with_the_first_model() -> None:
    teachers, calls = counted_pair()
    scheduler = hub.new_sampler("ddim", SCHEDULE, 5, clip=True)
    sample(Dual(teachers), scheduler, NOISE, rounds=3)
    t = [int(value) for value in scheduler.timesteps]
    again = [(0, t[1]), (1, t[2]), (0, t[3]), (1, t[4])]
    assert calls == [(0, t[0]), (1, t[1]), (0, t[2]), (1, t[3]), (0, t[4]), *again, *again]


def test_our_sampling_is_the_one_of_a_diffusers_pipeline(model_folder: Callable[..., Path]) -> None:
    """DDIMPipeline on the same weights and the same starting noise, with its own loop."""
    target = hub.load(model_folder())
    assert target.shape
    shape = (target.shape.channels, target.shape.height, target.shape.width)
    noise = Noise(3, ("0", "1"), shape)
    ours = sample(target.denoiser, hub.new_sampler("ddim", target.denoiser.schedule, 10, clip=True), noise)
    unet: Any = target.denoiser.network  # type: ignore[attr-defined]
    theirs: Any = diffusers.DDIMScheduler(clip_sample=True)
    theirs.set_timesteps(10)
    x = noise(0)
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(unet(x, t).sample, t, x).prev_sample
    assert target.denoiser.schedule.alphas_cumprod == pytest.approx(theirs.alphas_cumprod.double().numpy(), rel=1e-5)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(sampler: str) -> None:
    denoiser = Memoriser(torch.randn((5, 1, 4, 4), generator=torch.Generator().manual_seed(0)), SCHEDULE)
    drawn = sample(denoiser, hub.new_sampler(sampler, SCHEDULE, 20, clip=False), NOISE)
    alone = sample(denoiser, hub.new_sampler(sampler, SCHEDULE, 20, clip=False), replace(NOISE, ids=("c",)))
    torch.testing.assert_close(drawn[2:], alone, rtol=1e-4, atol=1e-4)


def test_sampling_a_memoriser_draws_its_points() -> None:
    points = torch.randn((4, 1, 4, 4), generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    drawn = sample(Memoriser(points, SCHEDULE), hub.new_sampler("ddim", SCHEDULE, 100, clip=True), NOISE)
    nearest = (drawn[:, None] - points[None]).flatten(2).abs().amax(dim=2).amin(dim=1)
    assert nearest.max() < 0.05


def test_a_dual_folder_holds_both_networks_and_loads_with_diffusers(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    one, other = model_folder(), other_weights(model_folder(), tmp_path / "other")
    hub.save_dual(tmp_path / "dual", (one, other))
    dual = hub.load(tmp_path / "dual")
    assert isinstance(dual.denoiser, Dual)
    x = torch.randn((2, dual.shape.channels, dual.shape.height, dual.shape.width))  # type: ignore[union-attr]
    for folder, exposed in zip((one, other), dual.denoiser.exposed, strict=True):
        torch.testing.assert_close(hub.load(folder).denoiser(x, 100), exposed(x, 100), rtol=0, atol=0)
    second = diffusers.UNet2DModel.from_pretrained(tmp_path / "dual", subfolder="unet_2")
    torch.testing.assert_close(second(x, 100).sample, dual.denoiser.exposed[1](x, 100), rtol=1e-5, atol=1e-5)
    assert dual.fingerprint not in (hub.load(one).fingerprint, hub.load(other).fingerprint)


def test_a_folder_of_two_networks_must_say_how_they_take_turns(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_folder()
    hub.save_dual(tmp_path / "dual", (folder, folder))
    (tmp_path / "dual" / "dual.json").write_text('{"choice": "both"}')
    with pytest.raises(UserError, match=r"must give choice as alternate or random.*got both"):
        hub.load(tmp_path / "dual")
    (tmp_path / "dual" / "dual.json").unlink()
    with pytest.raises(UserError, match=r"must say how they take turns.*dual\.json is missing"):
        hub.load(tmp_path / "dual")


def test_teachers_with_different_schedules_or_prediction_types_are_refused(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    one = model_folder()
    for key, value, message in (
        ("beta_end", 0.03, "must have the same noise schedule"),
        ("prediction_type", "sample", "must have the same prediction type; got epsilon and sample"),
    ):
        other = other_weights(one, tmp_path / key)
        path = other / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        with pytest.raises(UserError, match=message):
            hub.save_dual(tmp_path / "dual", (one, other))
    assert not (tmp_path / "dual").exists()


def test_unknown_choices_samplers_and_steps_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown sampler 'ddin'.*ddim"):
        hub.new_sampler("ddin", SCHEDULE, 5, clip=True)
    with pytest.raises(UserError, match=r"steps must lie in \[1, 1000\].*got 0"):
        hub.new_sampler("ddim", SCHEDULE, 0, clip=True)
    with pytest.raises(UserError, match="takes turns over 3 timesteps, and 3 is none of them"):
        Dual(counted_pair()[0]).over((9, 5, 1))(torch.zeros((1, 1, 4, 4)), 3)


def other_weights(folder: Path, to: Path) -> Path:
    """A copy of a model folder whose network has other weights."""
    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(torch.from_numpy(np.random.default_rng(9).normal(0, 0.05, parameter.shape)).to(parameter))
    unet.save_pretrained(to / "unet")
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.save_pretrained(to / "scheduler")
    return to


def test_a_teacher_without_classes_is_told_from_one_with_them_in_words() -> None:
    one, other = (NetworkDenoiser(torch.nn.Identity(), SCHEDULE, classes=classes) for classes in (None, 10))
    with pytest.raises(UserError, match="must have the same classes; got none and 10: "):
        refuse_incompatible(one, other)
