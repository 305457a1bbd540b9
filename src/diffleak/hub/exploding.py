"""The schedules of diffusers whose noise grows without bound: ScoreSdeVeScheduler and those of EDM.

    alpha_bar_t = 1 / (1 + sigma_t^2),  sigma_t the scheduler's own, smallest first, in units of images in [-1, 1]

The network is given sigma_t as its time, or sigma_t's preconditioned logarithm. Images of ScoreSdeVePipeline lie in [0, 1], to which it
clips what it draws, so its sigmas count double here.
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
    """A schedule, and the way into its network and out."""

    schedule: Schedule
    precondition: Preconditioning


def exploding(scheduler: Any, folder: Path) -> Exploding | None:
    """The schedule of a variance-exploding scheduler of diffusers; None for other schedulers.

    folder: the model's, whose model_index.json says whether its pipeline is of images in [0, 1]. Warns of the noise at the timesteps that
    audits sweep by default, which is another than that of DDPM. Raises `UserError` for sigmas that are none.
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
            f"{folder} must have sigmas that grow from above 0; it has sigma_min {settings.sigma_min}, sigma_max {settings.sigma_max}"
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
        f"the schedule is that of {name}, whose timesteps hold other noise than those of DDPM: sigma is {some}, and {sigmas[-1]:.4g} at "
        f"its end, for images in [-1, 1]{', which the network is given in [0, 1]' if unit_range else ''}; choose --timesteps by that",
        stacklevel=2,
    )
    return Exploding(Schedule.exploding(sigmas, times.numpy()), precondition)
