"""`diffleak train`: from settings to a diffusers folder."""

import json
import os
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diffleak import hub
from diffleak.data.draw import ids_digest
from diffleak.data.sources import open_source
from diffleak.data.split import Split
from diffleak.diffusion.target import Target
from diffleak.errors import UserError, one_or_more
from diffleak.records.images import refuse_other_reading
from diffleak.records.run_folder import TRAINED, refuse_other_command
from diffleak.training.autoencoder import autoencoder_config, autoencoder_task
from diffleak.training.config import TrainConfig
from diffleak.training.denoiser import denoiser_task, network_config
from diffleak.training.distillation import Lesson
from diffleak.training.early_stopping import EarlyStopping, split_task
from diffleak.training.images import TrainingData, read_training_data, training_shape
from diffleak.training.loop import Loop, accelerator_of, claim_run, refuse_other_run
from diffleak.training.private import Privacy, PrivateTraining, plan_privacy, poisson
from diffleak.training.task import Task
from diffleak.training.text_to_image import base_shape, load_base, make_base, text_to_image_task
from diffleak.work.files import checked_folder, locked, write_text
from diffleak.work.memory import memory_message
from diffleak.work.progress import say
from diffleak.work.reading import load_json
from diffleak.work.threads import threads_kept


def train(config: TrainConfig, lesson: Lesson | None = None) -> Path:
    """Trains (or goes on training) the model of `config`.

    Args:
        config: The settings, as `train_config` makes them.
        lesson: What a student learns by distillation; None for ordinary training.

    Returns:
        The model's folder.

    Raises:
        UserError: For data or a configuration that cannot be trained, or for a folder that holds another run or that another process is
            training in.
    """
    refuse_other_command(config.output, TRAINED)
    with threads_kept():
        accelerator = accelerator_of(config)
        checked_folder(config.output)
        with locked(config.output) if accelerator.is_main_process else nullcontext():
            return _train(config, lesson, accelerator)


def _train(config: TrainConfig, lesson: Lesson | None, accelerator: Any) -> Path:
    codec = hub.load_codec(config.autoencoder, device=str(accelerator.device)) if config.autoencoder else None
    record = config.model_dump(mode="json") | {"schema_version": 1} | (lesson.record() if lesson else {})
    record |= {"autoencoder_fingerprint": hub.codec_fingerprint(config.autoencoder)} if config.autoencoder else {}
    base = None
    if config.kind == "text-to-image":
        refuse_other_run(config.output, record)
        base = _base(config, accelerator)
        shape = base_shape(config, base[1])
        network, record = config.model, record | {"base_fingerprint": base[1].fingerprint}
        if config.base and os.path.isfile(config.base):  # of which OUT/base was made, under a fingerprint of its own
            record |= {"base_file_fingerprint": hub.file_fingerprint(config.base, config.model_config_)}
    else:
        shape = training_shape(open_source(config.data, config.decoding), config, codec.network.config.in_channels if codec else None)
        latent = hub.latent_shape(codec, shape) if codec else shape
        network = network_config(config, latent) if config.kind == "denoiser" else autoencoder_config(config, shape)
        record |= {"model": network}
    record |= {"data_path": str(Path(config.data).absolute())} if Path(config.data).exists() else {}
    refuse_other_run(config.output, record)
    data = read_training_data(config, shape)
    for teacher in lesson.teachers if lesson else ():
        for trained in hub.training_records(teacher):
            refuse_other_reading(trained, config.decoding, data.tally, shape.channels == 4)
    privacy = plan_privacy(config, data.public_size, accelerator.num_processes) if config.private else None
    record |= {"members": ids_digest(data.members), **({"privacy": privacy.record()} if privacy else {})}
    record |= (
        {"texts": ids_digest([json.dumps(told) for told in zip(data.members + data.validation, data.captions, strict=True)])}
        if data.captions
        else {}
    )
    record |= {"classes": data.classes} if network.get("num_class_embeds") else {}
    _refuse_other_classes(lesson, network, data.classes)
    record |= {"images": asdict(data.tally)}
    refuse_other_run(config.output, record)
    if images := data.tally.described(config.decoding, shape.channels == 4):
        say(f"images: {', '.join(images)}")
    torch.manual_seed(config.seed)
    with memory_message(config.batch_size, _advice(config)):
        if base:
            task = text_to_image_task(config, base, data, lesson)
        elif config.kind == "denoiser":
            task = denoiser_task(config, network, data, codec, lesson, accelerator.device)
        else:
            task = autoencoder_task(config, network, data)
        base = codec = None  # frees the text encoders, which are not asked again
        loop = _loop(config, accelerator, task, data, privacy)
    if accelerator.is_main_process:
        claim_run(config.output, record)
        Split(data.members, data.nonmembers, data.validation, drawn=data.drawn).write(config.output)
    with memory_message(config.batch_size, _advice(config)):
        folder = loop.go()
    if accelerator.is_main_process:
        write_text(folder / "train.json", json.dumps(record | _outcome(loop), indent=2))
    return folder


def _base(config: TrainConfig, accelerator: Any) -> tuple[Path, Target]:
    """The model that a text-to-image run starts from; the first process makes a new one, or that of one file, before the others read it."""
    if accelerator.is_main_process and not (config.base and not os.path.isfile(config.base)):
        make_base(config)
    accelerator.wait_for_everyone()
    return load_base(config, accelerator.device)


def _refuse_other_classes(lesson: Lesson | None, network: dict[str, Any], classes: dict[str, int] | None) -> None:
    """Raises `UserError` for a teacher that numbers its classes otherwise than the data of its student."""
    for teacher in lesson.teachers if lesson and network.get("num_class_embeds") else ():
        own = hub.class_names(teacher, network["num_class_embeds"]).numbers
        if own and dict(own) != (classes or {}):
            raise UserError(f"a student's data must number the classes as its teachers do; {teacher} was trained with others: use its data")


def outcome(folder: Path) -> dict[str, Any]:
    """What early stopping and DP-SGD add to train.json when a run is over: `early_stopping`, `spent`."""
    record = load_json(folder / "train.json")
    return {key: record[key] for key in ("early_stopping", "spent") if key in record}


def _advice(config: TrainConfig) -> str:
    """What takes less memory."""
    return "make the model smaller" if config.batch_size == 1 else "lower --batch-size or make the model smaller"


def describe(outcome: dict[str, Any]) -> str:
    """The same as lines to print, each with a line break before it."""
    lines = ""
    if stop := outcome.get("early_stopping"):
        lines += f"\nearly stopping: saved step {stop['saved_step']}, validation loss {stop['validation_loss']:.4f}; "
        lines += f"stopped at step {stop['last_step']}: {stop['stopped']}"
    if spent := outcome.get("spent"):
        lines += f"\nprivacy: epsilon {spent['epsilon']:.3f} at delta {spent['delta']:g} for each single image "
        lines += f"after {one_or_more(spent['steps'], 'step')}, "
        lines += "as long as the seed, train.json, losses.csv and checkpoint/ stay secret"
    return lines


def _loop(config: TrainConfig, accelerator: Any, task: Task, data: TrainingData, privacy: Privacy | None) -> Loop:
    """The loop, with early stopping on the images after the members, or private, where the settings say so."""
    members = len(data.members)
    stopping = None
    if config.validation:
        task, aside = split_task(task, members)
        stopping = EarlyStopping(aside, config.patience, config.batch_size, config.seed)
    if privacy is None:
        return Loop(config, accelerator, task, stopping)
    return Loop(config, accelerator, replace(task, rows=poisson(members, data.public_size)), private=PrivateTraining(privacy, config))


def _outcome(loop: Loop) -> dict[str, Any]:
    """The keys of train.json that only a finished run has."""
    result: dict[str, Any] = {}
    if loop.stopping:
        result["early_stopping"] = loop.stopping.record(loop.step)
    if loop.private:
        privacy = loop.private.privacy
        result["spent"] = {"epsilon": privacy.epsilon(loop.step), "delta": privacy.delta, "steps": loop.step}
    return result
