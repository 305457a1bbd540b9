"""A denoiser of pixels or of frozen latents, unconditional or with class labels.

    loss = mean |f(q(x0, t, e), t) - target|^2,   e standard normal

The plain loss of Ho et al. 2020 (arXiv 2006.11239, eq. 14), or of flow matching (Lipman et al. 2023, arXiv 2210.02747); `noising` has
q, the target and how t is drawn.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Generator, Tensor

from diffleak import hub
from diffleak.data.pixels import ImageShape, shape_of, to_model
from diffleak.diffusion.codec import Autoencoder, refuse_broken
from diffleak.diffusion.target import auto_batch_size
from diffleak.errors import UserError
from diffleak.training.config import TrainConfig
from diffleak.training.distillation import Lesson, alternating, half_of, other_teacher, teacher_networks
from diffleak.training.images import TrainingData
from diffleak.training.noising import Noising, drawing_of
from diffleak.training.task import Task
from diffleak.work.progress import progress


class DenoisingLoss(torch.nn.Module):
    """The loss of a network on its scheduler's forward process, or with teachers of a student, as a module that accelerate can wrap.

    `half` says which half of the data a student's batch is from.
    """

    def __init__(self, network: torch.nn.Module, scheduler: Any, teachers: tuple[Callable[..., Any], ...] = ()) -> None:
        super().__init__()
        self.network, self.noising = network, Noising(scheduler)
        self._teachers = (teachers,)  # in a tuple, so that they are no part of what is trained, saved and averaged

    def forward(
        self,
        x0: Float[Tensor, "b *s"],
        labels: Int[Tensor, " b"] | None,
        half: Int[Tensor, " b"] | None,
        t: Int[Tensor, " b"],
        noise: Float[Tensor, "b *s"],
    ) -> Float[Tensor, ""]:
        conditions = {} if labels is None else {"class_labels": labels}
        x_t, time = self.noising.noised(x0, noise, t)
        if half is None:
            target = self.noising.target(x0, noise, t)
        else:
            with torch.no_grad():
                target = other_teacher(self._teachers[0], half)(x_t, time, **conditions).sample.float()
        return torch.nn.functional.mse_loss(self.network(x_t, time, **conditions).sample.float(), target)


def network_config(config: TrainConfig, shape: ImageShape) -> dict[str, Any]:
    """The UNet2DModel configuration for inputs of `shape`; raises `UserError` when they cannot be halved often enough."""
    size = shape.height if shape.height == shape.width else [shape.height, shape.width]
    full = {"sample_size": size, "in_channels": shape.channels, "out_channels": shape.channels, **config.model}
    check_depth(len(full.get("block_out_channels", (0,) * 4)), shape, "latent" if config.autoencoder else "image")
    return full


def check_depth(levels: int, shape: ImageShape, what: str = "image") -> None:
    """Raises `UserError` unless the sides of `shape` can be halved `levels` - 1 times."""
    step = 2 ** (levels - 1)
    if shape.height % step or shape.width % step:
        raise UserError(
            f"{what} sides must be multiples of {step} for a network of {levels} levels; got {shape.height} x {shape.width}: "
            "use --resize or a preset with fewer levels"
        )


def denoiser_task(
    config: TrainConfig,
    network: dict[str, Any],
    data: TrainingData,
    codec: Autoencoder | None,
    lesson: Lesson | None,
    device: torch.device,
) -> Task:
    """The task of training a denoiser on the pixels of `data`, or on their latents under `codec`; with a lesson, a student."""
    takes, gives = network["in_channels"], network["out_channels"]
    if takes != gives:  # grey images would be broadcast against it
        raise UserError(f"a network is trained to predict as many channels as it takes, {takes}; out_channels is {gives}: leave it out")
    labels = _labels(network, data)
    model, scheduler = hub.new_network(network), hub.new_scheduler(config.scheduler)
    inputs = data.images if codec is None else encode_all(codec, data.images)
    timesteps = drawing_of(config.timesteps, scheduler.config.num_train_timesteps, hub.flow_schedule(scheduler) is not None)
    shape = (network["in_channels"], *(inputs.shape[1:3] if codec is None else inputs.shape[2:]))

    def draw(n: int, generator: Generator) -> tuple[Tensor, ...]:
        return timesteps(n, generator), torch.randn((n, *shape), generator=generator)

    save: Callable[[Path], None] = lambda folder: hub.save(folder, model, scheduler, codec)
    if lesson is None:
        return Task(DenoisingLoss(model, scheduler), inputs, (labels, None), draw, save)
    half = half_of(data.members, lesson)
    student = DenoisingLoss(model, scheduler, teacher_networks(lesson, device, scheduler, shape))
    return Task(student, inputs, (labels, half), draw, save, alternating(half))


def encode_all(codec: Autoencoder, images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n *z"]:
    """The latents of all images, a batch at a time; raises `UserError` where they are not finite numbers."""
    parts = []
    with torch.inference_mode(), progress("encoding images", len(images), "images") as advance:
        size = auto_batch_size(shape_of(images[0]), codec.scale.device.type)
        for start in range(0, len(images), size):
            batch = torch.from_numpy(to_model(images[start : start + size]))
            parts.append(codec.encode(batch.to(codec.scale)).float().cpu().numpy())
            advance(len(batch))
    latents = np.concatenate(parts)
    refuse_broken(latents, codec, [f"{row + 1} of {len(images)}" for row in range(len(images))])
    return latents


def _labels(network: dict[str, Any], data: TrainingData) -> np.ndarray | None:
    classes = network.get("num_class_embeds")
    if not classes:
        return None
    if data.labels is None:
        raise UserError(f"num_class_embeds is {classes}, so the data must have labels, one per image; it has none")
    return data.labels
