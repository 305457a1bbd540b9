"""`leakscope train`: from settings to a diffusers folder."""

import json
from pathlib import Path
from typing import Any

import torch

from leakscope import hub
from leakscope.data.sources import open_source
from leakscope.files import checked_folder, write_text
from leakscope.training.autoencoder import autoencoder_config, autoencoder_task
from leakscope.training.denoiser import denoiser_task, network_config
from leakscope.training.distillation import Lesson
from leakscope.training.images import read_training_data, training_shape
from leakscope.training.loop import Loop, accelerator_of, clear_memory_message, refuse_other_run
from leakscope.training.settings import TrainConfig


def train(config: TrainConfig, lesson: Lesson | None = None) -> Path:
    """Trains (or goes on training) the model of `config`, with a lesson by distillation, and returns its folder.

    Raises `UserError` for data or a configuration that cannot be trained, or for a folder that holds another run.
    """
    accelerator = accelerator_of(config)
    codec = hub.load_codec(config.autoencoder, device=str(accelerator.device)) if config.autoencoder else None
    shape = training_shape(open_source(config.data), config, codec.network.config.in_channels if codec else None)
    latent = hub.latent_shape(codec, shape) if codec else shape
    network = network_config(config, latent) if config.kind == "denoiser" else autoencoder_config(config, shape)
    checked_folder(config.output)
    record = _record(config, network) | (
        {"autoencoder_fingerprint": hub.codec_fingerprint(config.autoencoder)} if config.autoencoder else {}
    )
    record |= lesson.record() if lesson else {}
    refuse_other_run(config.output, record)
    data = read_training_data(config, shape)
    torch.manual_seed(config.seed)
    with clear_memory_message(config.batch_size):
        if config.kind == "denoiser":
            task = denoiser_task(config, network, data, codec, lesson, accelerator.device)
        else:
            task = autoencoder_task(config, network, data)
        loop = Loop(config, accelerator, task)
    if accelerator.is_main_process:
        write_text(config.output / "train.json", json.dumps(record, indent=2))
        write_text(config.output / "split.json", json.dumps({"members": data.members, "nonmembers": data.nonmembers}))
    with clear_memory_message(config.batch_size):
        return loop.go()


def _record(config: TrainConfig, network: dict[str, Any]) -> dict[str, Any]:
    return {**config.model_dump(mode="json"), "model": network, "schema_version": 1}
