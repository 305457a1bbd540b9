"""Distillation of denoisers: a student learns what its teachers predict instead of the noise that was drawn.

    loss = mean |sg f_teacher(x_t, t) - f_student(x_t, t)|^2,   x_t = q(x0, t, e)

DistillMD alternates: a batch from half 1 of the data with the targets of teacher 2, who never saw it, then a batch from
half 2 with those of teacher 1 (Tran et al. 2024, arXiv 2410.16657, section 3.3). With one teacher this is plain
distillation, the control. f is the network's own prediction, the predicted noise for an epsilon model.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffleak import hub
from diffleak.data.draw import ids_digest
from diffleak.diffusion.denoiser import NetworkDenoiser
from diffleak.diffusion.dual import refuse_incompatible
from diffleak.errors import UserError, one_or_more, shown
from diffleak.training.task import Rows, shuffled


@dataclass(frozen=True)
class Lesson:
    """Who teaches what: one teacher for all images, or two with the half of the data that each was trained on."""

    teachers: tuple[Path, ...]
    halves: tuple[tuple[str, ...], ...] = ()

    def record(self) -> dict[str, Any]:
        """What decides the student besides its own settings."""
        halves = {"halves": [ids_digest(half) for half in self.halves]} if self.halves else {}
        return {"teachers": [hub.fingerprint(teacher) for teacher in self.teachers], **halves}


def other_teacher(teachers: tuple[Any, ...], half: Int[Tensor, " b"]) -> Any:
    """The teacher that was not trained on the half a batch is from; the only one where there is one."""
    if len(teachers) == 1:
        return teachers[0]
    if bool((half != half[0]).any()):
        raise RuntimeError("a batch must come from one half of the data")
    return teachers[1 - int(half[0])]


def teacher_networks(lesson: Lesson, device: torch.device, scheduler: Any, shape: tuple[int, ...]) -> tuple[torch.nn.Module, ...]:
    """The frozen networks of a lesson; raises `UserError` for teachers that the student cannot learn from."""
    targets, flow = [hub.load(teacher, device=str(device)) for teacher in lesson.teachers], hub.flow_schedule(scheduler)
    for path, target in zip(lesson.teachers, targets, strict=True):
        denoiser = target.denoiser
        if not isinstance(denoiser, NetworkDenoiser):
            raise UserError(f"a teacher must be one network; {path} holds several")
        refuse_incompatible(targets[0].denoiser, denoiser)
        predicts = "flow" if flow else scheduler.config.prediction_type
        if predicts != denoiser.prediction_type:
            raise UserError(f"student and teachers must have the same prediction type; got {predicts} and {denoiser.prediction_type}")
        own = np.asarray((flow or scheduler).alphas_cumprod, dtype=np.float64)
        if own.shape != denoiser.schedule.alphas_cumprod.shape or not np.allclose(own, denoiser.schedule.alphas_cumprod, rtol=1e-5):
            raise UserError(
                f"student and teachers must have the same noise schedule; {path} has another: leave out `scheduler`, or set it alike"
            )
        config: Any = denoiser.network.config
        size = config.sample_size or shape[1:]
        takes = (config.in_channels, *((size, size) if isinstance(size, int) else tuple(size)))
        if takes != tuple(shape):
            raise UserError(
                f"student and teachers must take inputs of the same shape; {path} takes {takes}, the student's are {tuple(shape)}: "
                "give the --resize and --autoencoder that the teachers were trained with"
            )
    return tuple(target.denoiser.network for target in targets)  # type: ignore[attr-defined]


def half_of(ids: tuple[str, ...], lesson: Lesson) -> Int[np.ndarray, " n"]:
    """The half, 0 or 1, of every image; all 0 with one teacher. Raises `UserError` for an image in neither half."""
    if not lesson.halves:
        return np.zeros(len(ids), dtype=np.int64)
    number = {image_id: half for half, own in enumerate(lesson.halves) for image_id in own}
    lost = [i for i in ids if i not in number]
    if lost:
        raise UserError(
            f"every training image must be in one of the halves; {one_or_more(len(lost), 'is', 'are')} in neither (first: {shown(lost[0])})"
        )
    return np.array([number[i] for i in ids], dtype=np.int64)


def alternating(half: Int[np.ndarray, " n"]) -> Rows:
    """Batches from half 0 and half 1 in turns, each half shuffled as `shuffled` does."""
    if not half.any():
        return partial(shuffled, n=len(half))
    members = [np.flatnonzero(half == number) for number in (0, 1)]
    return lambda step, size, seed: members[step % 2][shuffled(step // 2, size, seed, n=len(members[step % 2]))]
