"""Schedules whose noise grows without bound: against the closed form of Gaussian data, and against diffusers' own steps."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from fixtures.models import TINY
from torch import Tensor

import diffleak
from diffleak import hub
from diffleak.diffusion.analytic import Gaussian
from diffleak.diffusion.denoiser import NetworkDenoiser
from diffleak.diffusion.preconditioning import Preconditioning
from diffleak.diffusion.schedule import Schedule

MEAN, VARIANCE = 0.3, 0.2  # of images in [-1, 1]
SIGMAS = np.array([0.01, 0.5, 3.0, 80.0])
NAMES = ["ScoreSdeVeScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]


class Answer(torch.nn.Module):
    """A network of one function of (input, time), with a weight that says its dtype."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.weight = function, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor) -> Any:
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=self.function(x, time.double().reshape(-1, 1, 1, 1)))


def score_of(mean: float, variance: float) -> Answer:
    """The score of a Gaussian under noise sigma: -(x - mean) / (variance + sigma^2)."""
    return Answer(lambda x, sigma: (mean - x) / (variance + sigma**2))


def edm_of(mean: float, variance: float, sigma_data: float, v_prediction: bool) -> Answer:
    """The network of EDM that is the optimal denoiser D of a Gaussian: D = c_skip x + c_out F(c_in x, log(sigma) / 4)."""

    def answer(x: Tensor, time: Tensor) -> Tensor:
        sigma = torch.exp(4 * time)
        x = x * torch.sqrt(sigma**2 + sigma_data**2)
        best = (variance * x + sigma**2 * mean) / (variance + sigma**2)
        c_out = sigma * sigma_data / torch.sqrt(sigma**2 + sigma_data**2) * (-1 if v_prediction else 1)
        return (best - sigma_data**2 / (sigma**2 + sigma_data**2) * x) / c_out

    return Answer(answer)


@pytest.mark.parametrize(
    ("network", "precondition", "times"),
    [
        (score_of(MEAN, VARIANCE), Preconditioning.score(SIGMAS, False), SIGMAS),
        (score_of((MEAN + 1) / 2, VARIANCE / 4), Preconditioning.score(SIGMAS, True), SIGMAS / 2),
        (edm_of(MEAN, VARIANCE, 0.5, False), Preconditioning.edm(SIGMAS, 0.5, False), np.log(SIGMAS) / 4),
        (edm_of(MEAN, VARIANCE, 1.0, True), Preconditioning.edm(SIGMAS, 1.0, True), np.log(SIGMAS) / 4),
    ],
    ids=["score", "score in [0, 1]", "edm", "edm of v"],
)
def test_the_best_network_for_gaussian_data_predicts_the_noise_of_the_closed_form(network, precondition, times):
    schedule = Schedule.exploding(SIGMAS, times)
    np.testing.assert_allclose(schedule.alphas_cumprod, 1 / (1 + SIGMAS**2))
    denoiser = NetworkDenoiser(network, schedule, "preconditioned", precondition=precondition)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 1, 4, 4)))
    found, oracle = denoiser.at_once(x, range(4)), Gaussian(MEAN, VARIANCE, schedule)
    torch.testing.assert_close(found, torch.cat([oracle(part, t) for t, part in enumerate(x.chunk(4))]), rtol=3e-6, atol=3e-6)


def folder_with(path: Path, scheduler: Any, pipeline: bool = False, **keys: Any) -> Path:
    """A model folder with a scheduler of diffusers, and a network whose time is one number, as of such models."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**{**TINY, **keys})
    if pipeline:
        diffusers.ScoreSdeVePipeline(unet, scheduler).save_pretrained(path)
    else:
        unet.save_pretrained(path / "unet")
        scheduler.save_pretrained(path / "scheduler")
    return path


FOURIER = {"time_embedding_type": "fourier", "in_channels": 3, "out_channels": 3}


@pytest.mark.parametrize("pipeline", [True, False], ids=["images in [0, 1]", "images in [-1, 1]"])
def test_a_score_model_predicts_minus_sigma_times_the_score_that_its_pipeline_asks_for(tmp_path, pipeline):
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=50, sigma_max=60.0)
    target = hub.load(folder_with(tmp_path, scheduler, pipeline, **FOURIER))
    schedule, sigmas = target.denoiser.schedule, scheduler.sigmas.flip(0).double().numpy()
    factor = 2 if pipeline else 1  # sigmas are those of images in [-1, 1]
    np.testing.assert_allclose(schedule.alphas_cumprod, 1 / (1 + (factor * sigmas) ** 2), rtol=1e-12)
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    x0, e = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 8, 8)
    for t in (0, 20, 49):
        sigma = float(sigmas[t])
        inside = ((x0 + 1) / 2 if pipeline else x0) + sigma * e
        with torch.no_grad():
            expected = -sigma * unet(inside, torch.full((2,), sigma)).sample
        torch.testing.assert_close(target.denoiser(schedule.add_noise(x0, t, e), t), expected, rtol=1e-3, atol=1e-3)
    if pipeline:  # what decides the numbers is in the fingerprint
        (tmp_path / "model_index.json").unlink()
        assert hub.fingerprint(tmp_path) != target.fingerprint
    assert any(
        "sigma is" in line and ("[0, 1]" in line) == pipeline and line.endswith("in audits choose --timesteps by these values")
        for line in target.warnings
    )


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("keys", [{}, {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_schedule": "exponential"}])
def test_an_edm_model_implies_the_clean_image_that_its_scheduler_does(tmp_path, name, keys):
    scheduler = getattr(diffusers, name)(num_train_timesteps=40, **keys)
    target = hub.load(folder_with(tmp_path, scheduler))
    schedule, sigmas = target.denoiser.schedule, scheduler.sigmas[:-1].flip(0)
    np.testing.assert_allclose(schedule.alphas_cumprod, 1 / (1 + sigmas.double().numpy() ** 2), rtol=1e-12)
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    x0, e = torch.rand(2, 1, 8, 8) * 2 - 1, torch.randn(2, 1, 8, 8)
    for t in (3, 20, 39):
        sigma, x_t = sigmas[t], schedule.add_noise(x0, t, e)
        grown = x0 + sigma * e
        with torch.no_grad():
            answer = unet(scheduler.precondition_inputs(grown, sigma), scheduler.precondition_noise(sigma).expand(2)).sample
        clean = scheduler.precondition_outputs(grown, answer, sigma)
        torch.testing.assert_close(target.denoiser(x_t, t), (grown - clean) / sigma, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(schedule.predict_x0(x_t, t, target.denoiser(x_t, t)), clean, rtol=1e-3, atol=1e-3)


def test_models_of_another_sigma_data_or_answer_are_no_networks_of_a_model_and_no_pair(tmp_path):
    keys = ({}, {"prediction_type": "v_prediction"}, {"sigma_data": 1.0})
    folders = [folder_with(tmp_path / str(i), diffusers.EDMEulerScheduler(num_train_timesteps=40, **each)) for i, each in enumerate(keys)]
    for other in folders[1:]:
        with pytest.raises(diffleak.UserError, match="--network must have MODEL's noise schedule and prediction_type"):
            hub.load(folders[0], network=other)
        with pytest.raises(diffleak.UserError, match="the two teachers must have the same sigma_data and prediction type"):
            hub.load_pair((folders[0], other))
    assert hub.load(folders[0], network=folders[0]).denoiser.precondition


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=-1.0), "flow_shift in"),
        (diffusers.EDMEulerScheduler(sigma_data=math.nan), "sigma_data of"),
        (diffusers.EDMEulerScheduler(sigma_data=0.0), "sigma_data of"),
        (diffusers.EDMEulerScheduler(sigma_min=80.0, sigma_max=0.002), "must have growing sigmas above 0"),
        (diffusers.ScoreSdeVeScheduler(sigma_min=2.0, sigma_max=1.0), "must have growing sigmas above 0"),
        (diffusers.EDMEulerScheduler(prediction_type="sample"), "prediction_type must be epsilon or v_prediction"),
    ],
)
def test_a_schedule_that_is_none_is_refused(tmp_path, scheduler, said):
    folder = folder_with(tmp_path, scheduler)
    if isinstance(scheduler.config.get("sigma_data"), float) and math.isnan(scheduler.config.sigma_data):
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "sigma_data": None}))
    with pytest.raises(diffleak.UserError, match=said):
        hub.load(folder)
