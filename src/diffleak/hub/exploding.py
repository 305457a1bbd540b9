"""The variance-exploding schedules of diffusers: ScoreSdeVeScheduler and those of EDM.

    alpha_bar_t = 1 / (1 + sigma_t^2),  sigma_t the scheduler's own, smallest first, in units of images in [-1, 1]

The network takes sigma_t as its time, or the preconditioned logarithm of sigma_t. Images of ScoreSdeVePipeline lie in [0, 1], to which it
clips its drawings, so its sigmas are doubled here.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diffleak.diffusion.preconditioning import Preconditioning
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError, shown
from diffleak.hub.configs import read_json
from diffleak.hub.folders import IN_UNIT_RANGE, INDEX

SCORE = "ScoreSdeVeScheduler"
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


class Exploding(NamedTuple):
    """A schedule, and the input and output transform of its network."""

    schedule: Schedule
    precondition: Preconditioning


def exploding(scheduler: Any, folder: Path) -> Exploding | None:
    """The schedule of a variance-exploding scheduler of diffusers; None for other schedulers.

    folder: the model's; its model_index.json says whether the pipeline's images lie in [0, 1]. Warns that the timesteps which audits sweep
    by default have other noise than in DDPM. Raises `UserError` unless the sigmas grow from above 0.
    """
    name = type(scheduler).__name__
    if name != SCORE and name not in EDM:
        return None
    index = folder / INDEX
    unit_range = name == SCORE and index.is_file() and read_json(index, "").get("_class_name") == IN_UNIT_RANGE
    own = (scheduler.sigmas if name == SCORE else scheduler.sigmas[:-1]).flip(0).double()  # which EDM's end with one for the image itself
    settings = scheduler.config
    if not (own > 0).all() or not own.isfinite().all() or (own.diff() <= 0).any():
        raise UserError(
            f"the scheduler of {folder} must have growing sigmas above 0; it has sigma_min {settings.sigma_min}, sigma_max "
            f"{settings.sigma_max}"
        )
    sigmas = own.numpy() * (2 if unit_range else 1)
    if name == SCORE:
        times, precondition = own, Preconditioning.score(sigmas, unit_range)
    else:
        if settings.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(f"prediction_type must be epsilon or v_prediction with {name}; {folder} says {shown(settings.prediction_type)}")
        if type(settings.sigma_data) not in (int, float) or not 0 < settings.sigma_data < np.inf:
            raise UserError(f"sigma_data of {folder} must be above 0; got {shown(settings.sigma_data)}")
        times = torch.as_tensor(scheduler.precondition_noise(own))
        precondition = Preconditioning.edm(sigmas, settings.sigma_data, settings.prediction_type == "v_prediction")
    some = ", ".join(f"{sigmas[t]:.3g} at {t}" for t in (0, 10, 100, 300) if t < len(sigmas))
    warnings.warn(
        f"the schedule is {name}, whose timesteps have other noise than those of DDPM: sigma is {some}, and {sigmas[-1]:.4g} at the end, "
        f"for images in [-1, 1]{' (the network takes them in [0, 1])' if unit_range else ''}; in audits choose --timesteps by these values",
        stacklevel=2,
    )
    return Exploding(Schedule.exploding(sigmas, times.numpy()), precondition)
