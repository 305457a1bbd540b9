"""A text-to-image model: its denoiser, or low-rank adapters of it, trained on images with captions.

    loss = mean |f(a_t x0 + s_t e, t, c) - target|^2,   t over the model's own schedule, c one of the image's texts

The target is that of the model's prediction type: e, a_t e - s_t x0, x0, or e - x0 for flow matching. Autoencoder and text
encoders stay as they are, so latents and text embeddings are computed once, before the first step. Prompt
diversification is `diversify`: each step draws one of the texts that an image has (Tran et al. 2024, arXiv 2410.16657,
section 3.4). With a lesson the target is what the teacher of the other half predicts.
"""

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Generator, Tensor

from diffleak import hub
from diffleak.data.image_source import Texts
from diffleak.data.pixels import ImageShape
from diffleak.data.sources import open_source
from diffleak.diffusion.codec import Autoencoder
from diffleak.diffusion.conditions import one_at_a_time
from diffleak.diffusion.denoiser import NetworkDenoiser
from diffleak.diffusion.dual import refuse_incompatible
from diffleak.diffusion.target import Target
from diffleak.errors import UserError, of_them, one_or_more, shown
from diffleak.training.config import TrainConfig
from diffleak.training.denoiser import encode_all
from diffleak.training.distillation import Lesson, alternating, half_of, other_teacher
from diffleak.training.images import TrainingData, captions_of, training_shape
from diffleak.training.noising import drawing_of, of_each
from diffleak.training.task import Task
from diffleak.work.progress import progress, say

BASE = "base"  # the folder of a new model's untrained state, from which every resumption starts
CHOICES = 3  # numbers drawn for an image and step: which view, which text, whether any text


class TextToImageLoss(torch.nn.Module):
    """The loss of a text-to-image denoiser, or with teachers of a student, as a module that accelerate can wrap.

    embeddings: the text embeddings of every distinct caption, the empty one last.
    """

    def __init__(self, denoiser: NetworkDenoiser, embeddings: Mapping[str, Tensor], dropout: float, teachers: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.network, self.dropout = denoiser.network, dropout
        self._fixed = (denoiser, embeddings, teachers)  # in a tuple, so that they are no part of what is trained and saved

    def forward(
        self,
        views: Float[Tensor, "b v *s"],
        texts: Int[Tensor, "b k"],
        count: Int[Tensor, " b"],
        half: Int[Tensor, " b"],
        t: Int[Tensor, " b"],
        noise: Float[Tensor, "b *s"],
        choices: Float[Tensor, "b 3"],
    ) -> Float[Tensor, ""]:
        denoiser, embeddings, teachers = self._fixed
        rows = torch.arange(len(views), device=views.device)
        x0 = views[rows, (choices[:, 0] * views.shape[1]).long()]
        caption = texts[rows, (choices[:, 1] * count).long()]
        last = len(next(iter(embeddings.values()))) - 1
        caption = torch.where(choices[:, 2] < self.dropout, torch.full_like(caption, last), caption).cpu()
        conditions = {name: values[caption].to(x0.device) for name, values in embeddings.items()}
        a, s, time = (of_each(table, t, x0) for table in (denoiser.schedule.signal, denoiser.schedule.noise, denoiser.schedule.times))
        x_t = a * x0 + s * noise
        ask = lambda network: denoiser.ask(network, x_t, time.flatten(), conditions)[:, : x0.shape[1]].float()  # type: ignore[misc]
        if not teachers:
            return torch.nn.functional.mse_loss(ask(self.network), _target(denoiser, a, s, x0, noise))
        with torch.no_grad():
            target = ask(other_teacher(teachers, half))
        return torch.nn.functional.mse_loss(ask(self.network), target)


def _target(denoiser: NetworkDenoiser, a: Tensor, s: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    match denoiser.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return a * noise - s * x0
        case "sample":
            return x0
        case "flow":
            return noise - x0
    raise AssertionError(f"load_base refuses a model of {denoiser.prediction_type}")


def load_base(config: TrainConfig, device: torch.device | str) -> tuple[Path, Target]:
    """The folder of the model that training starts from, and the model."""
    made = config.base is None or os.path.isfile(config.base)
    folder = config.output / BASE if made else hub.located(str(config.base))
    if made and config.base and not folder.is_dir():  # of a defence, whose teachers make theirs
        target = hub.load(config.base, device=str(device), model_config=config.model_config_)
    else:
        target = hub.load(folder, device=str(device), model_config=None if made else config.model_config_)  # refused for a folder
    if target.text is None or not isinstance(target.denoiser, NetworkDenoiser) or not isinstance(target.codec, Autoencoder):
        raise UserError(f"--base must be a text-to-image model with one denoiser and an autoencoder; {config.base} is none")
    if target.denoiser.precondition is not None:
        raise UserError(f"--base must be a model of a DDPM or flow matching schedule; that of {config.base} is variance-exploding")
    if config.resize and target.shape and (target.shape.height, target.shape.width) != (config.resize, config.resize):
        raise UserError(f"{folder} takes images of {target.shape}; give --resize {target.shape.height}, got {config.resize}")
    return folder, target


def make_base(config: TrainConfig) -> None:
    """Makes OUT/base: an untrained Stable Diffusion for the latents of an autoencoder, its tokenizer built from the captions; or the parts
    of a `base` in one file.

    Only a folder with a train.json is known to have been made from these settings, so without one it is made again.
    """
    folder = config.output / BASE
    if folder.is_dir() and (config.output / "train.json").is_file():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    if config.base:
        hub.unpack(part, Path(config.base), config.model_config_)
    else:
        _new_base(config).save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _new_base(config: TrainConfig) -> Any:
    """The pipeline of a new text-to-image model."""
    assert config.autoencoder is not None, "settings without a base have an autoencoder"
    source, codec = open_source(config.data, config.decoding), hub.load_codec(config.autoencoder)
    texts = [text for texts in captions_of(source, config).values() for text in texts]
    if not texts:
        own = config.captions in (None, "own")
        where, do = (config.data, "add a `text` to metadata.jsonl, or give --captions FILE") if own else (config.captions, "add them")
        raise UserError(f"{where} must have captions, from which a new model's tokenizer is built: {do}")
    latent = hub.latent_shape(codec, training_shape(source, config, codec.network.config.in_channels))
    shape = {"sample_size": latent.height, "in_channels": latent.channels, "out_channels": latent.channels}
    torch.manual_seed(config.seed)
    scheduler = hub.new_scheduler(config.scheduler)
    if hub.flow_schedule(scheduler):
        raise UserError("a new text-to-image model is a Stable Diffusion, which has no flow matching; fine-tune a --base that has")
    return hub.new_text_to_image(texts, {**shape, **config.model}, config.text_encoder, codec, scheduler)


def base_shape(config: TrainConfig, target: Target) -> ImageShape:
    """The images that a model is fine-tuned on: those it takes; where it takes any size, of the first image or --resize."""
    channels = target.codec.network.config.in_channels  # type: ignore[attr-defined]
    return target.shape or training_shape(open_source(config.data, config.decoding), config, channels)


def text_to_image_task(config: TrainConfig, base: tuple[Path, Target], data: TrainingData, lesson: Lesson | None) -> Task:
    """The task of training the denoiser of `base` on the images and captions of `data`; with a lesson, of teaching it."""
    folder, target = base
    denoiser: Any = target.denoiser
    network = denoiser.network
    if config.lora_rank:
        hub.add_lora(folder, network, config.lora_rank)
        save = partial(hub.save_lora, base=folder, network=network)
    else:
        network.requires_grad_(True)
        save = partial(hub.save_fine_tuned, base=folder, network=network)
    network.train()
    latents = views(target, data.images, config)
    index, embeddings = embed_all(target, data.captions)
    half = half_of(data.members, lesson) if lesson else np.zeros(len(latents), dtype=np.int64)
    half = np.concatenate([half, np.zeros(len(latents) - len(half), dtype=np.int64)])  # those set aside for validation are in no half
    timesteps = drawing_of(config.timesteps, len(denoiser.schedule), denoiser.schedule.is_flow)

    def draw(n: int, generator: Generator) -> tuple[Tensor, ...]:
        t = timesteps(n, generator)
        return t, torch.randn((n, *latents.shape[2:]), generator=generator), torch.rand((n, CHOICES), generator=generator)

    teachers = _teachers(lesson, folder, target) if lesson else ()
    module = TextToImageLoss(denoiser, embeddings, config.caption_dropout, teachers)
    counts = np.array([len(texts) for texts in data.captions], dtype=np.int64)
    return Task(module, latents, (index, counts, half), draw, save, alternating(half) if lesson else None)


def views(target: Target, images: UInt8[np.ndarray, "nv h w c"], config: TrainConfig) -> Float32[np.ndarray, "n v *z"]:
    """The latents of every view of an image: of its crops, and with `flip` of their mirror images."""
    codec: Any = target.codec
    crops = config.random_crops or 1
    pixels = images.reshape(-1, crops, *images.shape[1:])
    if config.flip:
        pixels = np.concatenate([pixels, pixels[:, :, :, ::-1]], axis=1)
    flat = encode_all(codec, np.ascontiguousarray(pixels.reshape(-1, *images.shape[1:])))
    return flat.reshape(*pixels.shape[:2], *flat.shape[1:])


def embed_all(target: Target, captions: tuple[Texts, ...]) -> tuple[Int[np.ndarray, "n k"], dict[str, Tensor]]:
    """The embeddings of every distinct text, the empty one last, and the places of each image's texts among them."""
    distinct = sorted({text for texts in captions for text in texts} - {""})
    text: Any = target.text
    embed = one_at_a_time(text)
    rows, cut = [], text.truncated(distinct)
    if cut:
        longer = of_them(len(cut), one_or_more(len(distinct), "caption"))
        say(f"{longer} longer than the text encoder reads: only the beginning is read (first: '{shown(distinct[cut[0]])}')")
    with progress("embedding captions", len(distinct) + 1, "captions") as advance:
        for caption in [*distinct, ""]:
            rows.append({name: value.cpu() for name, value in embed([caption]).tensors.items()})
            advance(1)
    embeddings = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    place = {caption: i for i, caption in enumerate([*distinct, ""])}
    most = max(len(texts) for texts in captions)
    index = np.array([[place[texts[min(k, len(texts) - 1)]] for k in range(most)] for texts in captions], dtype=np.int64)
    return index, embeddings


def _teachers(lesson: Lesson, folder: Path, target: Target) -> tuple[torch.nn.Module, ...]:
    """The frozen networks of a lesson; raises `UserError` for teachers that are no relatives of the student."""
    networks = []
    for path in lesson.teachers:
        teacher = hub.load(path, device=target.device)
        if not isinstance(teacher.denoiser, NetworkDenoiser) or teacher.text is None:
            raise UserError(f"a teacher must be one text-to-image model like its student; {path} is none")
        refuse_incompatible(target.denoiser, teacher.denoiser, "student and teacher")
        same = hub.text_fingerprint(path) == hub.text_fingerprint(folder)
        if not same or hub.codec_fingerprint(path) != hub.codec_fingerprint(folder) or teacher.shape != target.shape:
            raise UserError(
                f"student and teachers must share text encoders and autoencoder; {path} has others: fine-tune all from one --base"
            )
        networks.append(teacher.denoiser.network)
    return tuple(networks)
