"""`leakscope train`: a DDPM on an image set, saved as a diffusers folder, resumable, the same for any number of processes.

The loss is the plain one of Ho et al. 2020 (arXiv 2006.11239, eq. 14) with the target of the scheduler's prediction
type. Step n always sees the same images, timesteps and noise, whatever was interrupted and however many processes share
the batch: the order of images is a permutation keyed by (seed, epoch), the noise is keyed by (seed, step).
"""

import json
import shutil
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from leakscope import hub
from leakscope.config import Config, build, read_yaml
from leakscope.data.cohort import read_split
from leakscope.data.draw import choose_members
from leakscope.data.pixels import ImageShape, fit, shape_of, to_model
from leakscope.data.sources import SKIP_HINT, ImageSource, UnreadableImage, open_source
from leakscope.errors import UserError, unknown
from leakscope.files import checked_folder, write_text
from leakscope.progress import progress

PRESETS = Path(__file__).parent / "presets"
LOSS_EVERY = 50  # steps averaged in one point of the loss curve
MAY_CHANGE = frozenset({"output", "steps", "checkpoint_every", "threads", "device"})  # between a run and its resumption


class TrainConfig(Config):
    """Everything that decides a training run; the keys of `-C FILE` and, with dashes, the flags of `leakscope train`."""

    data: str
    output: Path
    split: Path | None = None
    train_size: int | None = Field(None, ge=1)
    resize: int | None = Field(None, ge=4)
    steps: int = Field(5000, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(100, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    flip: bool = False
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    checkpoint_every: int = Field(500, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int | None = Field(None, ge=1)
    device: Literal["cpu", "auto"] = "auto"
    model: dict[str, Any] = {}
    scheduler: dict[str, Any] = {}


@dataclass(frozen=True)
class TrainingData:
    """The training images in memory as uint8, and what split.json will say."""

    images: UInt8[np.ndarray, "n h w c"]
    members: tuple[str, ...]
    nonmembers: tuple[str, ...]


def train_config(preset: str | None = None, file: Path | None = None, **flags: Any) -> TrainConfig:
    """The settings of a preset, then of a YAML file, then of the flags, later ones winning."""
    presets = {p.stem: p for p in PRESETS.glob("*.yaml")}
    if preset is not None and preset not in presets:
        raise unknown("preset", preset, presets)
    base = read_yaml(presets[preset]) if preset else {} if file else read_yaml(presets["small"])
    return build(TrainConfig, base, read_yaml(file) if file else {}, flags)


def train(config: TrainConfig) -> Path:
    """Trains (or goes on training) the model of `config` and returns its folder.

    Raises `UserError` for data or a configuration that cannot be trained, or for a folder that holds another run.
    """
    source = open_source(config.data)
    shape = _training_shape(source, config)
    size = shape.height if shape.height == shape.width else [shape.height, shape.width]
    network_config = {"sample_size": size, "in_channels": shape.channels, "out_channels": shape.channels, **config.model}
    _check_depth(network_config, shape)
    accelerator = _accelerator(config)
    if config.batch_size % accelerator.num_processes:
        raise UserError(f"batch_size must be a multiple of the {accelerator.num_processes} processes; got {config.batch_size}")
    checked_folder(config.output)
    record = _record(config, network_config)
    _refuse_other_run(config.output, record)
    data = _read(source, shape, config)
    torch.manual_seed(config.seed)
    network, scheduler = hub.new_network(network_config), hub.new_scheduler(config.scheduler)
    if accelerator.is_main_process:
        write_text(config.output / "train.json", json.dumps(record, indent=2))
        write_text(config.output / "split.json", json.dumps({"members": data.members, "nonmembers": data.nonmembers}))
    return _Run(config, accelerator, network, scheduler, data.images).go()


class _Run:
    """The loop and its state; exists so that a checkpoint can hold all of it."""

    def __init__(self, config: TrainConfig, accelerator: Any, network: torch.nn.Module, scheduler: Any, images: np.ndarray) -> None:
        self.config, self.accelerator, self.scheduler, self.images = config, accelerator, scheduler, images
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.ema = hub.moving_average(network, config.ema_decay) if config.ema_decay else None
        self.step, self.losses = 0, list[list[float]]()
        accelerator.register_for_checkpointing(self)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "losses": self.losses, "ema": self.ema.state_dict() if self.ema else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.losses = state["step"], state["losses"]
        if self.ema:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)

    def go(self) -> Path:
        config, folder = self.config, self.config.output
        checkpoint = folder / "checkpoint"
        if not checkpoint.exists() and checkpoint.with_name("checkpoint.old").exists() and self.accelerator.is_main_process:
            checkpoint.with_name("checkpoint.old").rename(checkpoint)  # killed between the two renames of a save
        self.accelerator.wait_for_everyone()
        if checkpoint.exists():
            self.accelerator.load_state(str(checkpoint))
        if self.step > config.steps:
            raise UserError(f"{folder} is already trained for {self.step} steps; --steps must be at least that, got {config.steps}")
        recent: list[float] = []
        with progress("training", config.steps, "steps", done=self.step) as advance:
            while self.step < config.steps:
                recent.append(self._one_step())
                self.step += 1
                if self.step % LOSS_EVERY == 0 or self.step == config.steps:
                    self.losses.append([self.step, float(np.mean(recent))])
                    recent = []
                advance(1, f"loss {self.losses[-1][1]:.4f}" if self.losses else "")
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    self._save_checkpoint(checkpoint)
        return self._save_model(folder)

    def _one_step(self) -> float:
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        x0, t, noise = self._batch()
        target = _target(self.scheduler, x0, noise, t)
        with accelerator.autocast():
            prediction = self.network(self.scheduler.add_noise(x0, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(prediction.float(), target)
        shared = float(accelerator.reduce(loss.detach(), "mean"))
        if not isfinite(shared):  # on every process alike, so that none waits for another
            raise UserError(
                f"the loss is {shared} at step {self.step}; lower learning_rate ({config.learning_rate}) and start in a new folder"
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.step(self.network.parameters())
        return shared

    def _batch(self) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"], Float[Tensor, "b c h w"]]:
        """This process's share of step `self.step`: images, timesteps and noise are cut from those of the whole batch."""
        config, accelerator = self.config, self.accelerator
        rows = _rows(self.step, config.batch_size, len(self.images), config.seed)
        generator = torch.Generator().manual_seed(_mix(config.seed, self.step))
        x0 = torch.from_numpy(to_model(self.images[rows]))
        t = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        if config.flip:
            flipped = torch.rand(len(rows), generator=generator) < 0.5
            x0[flipped] = x0[flipped].flip(-1)
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        return tuple(part[share].to(accelerator.device) for part in (x0, t, noise))  # type: ignore[return-value]

    def _save_checkpoint(self, checkpoint: Path) -> None:
        fresh = checkpoint.with_name("checkpoint.part")
        if self.accelerator.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(fresh))
        except (OSError, RuntimeError) as error:
            raise UserError(f"the checkpoint {fresh} cannot be written ({error}); free the disk and run the same command again") from None
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            old = checkpoint.with_name("checkpoint.old")
            shutil.rmtree(old, ignore_errors=True)
            if checkpoint.exists():
                checkpoint.rename(old)
            fresh.rename(checkpoint)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _save_model(self, folder: Path) -> Path:
        network = self.accelerator.unwrap_model(self.network)
        if self.ema:
            self.ema.copy_to(network.parameters())
        if self.accelerator.is_main_process:
            try:
                hub.save(folder, network, self.scheduler)
            except (OSError, SafetensorError) as error:
                raise UserError(f"the model {folder} cannot be written ({error}); free the disk and run the same command again") from None
            write_text(folder / "losses.csv", "step,loss\n" + "".join(f"{int(s)},{value:.6f}\n" for s, value in self.losses))
        self.accelerator.wait_for_everyone()
        return folder


def _target(scheduler: Any, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    match scheduler.config.prediction_type:
        case "v_prediction":
            return scheduler.get_velocity(x0, noise, t)
        case "sample":
            return x0
        case _:
            return noise


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@lru_cache(maxsize=2)
def _order(epoch: int, n: int, seed: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng((seed, epoch)).permutation(n)


def _rows(step: int, batch_size: int, n: int, seed: int) -> Int[np.ndarray, " b"]:
    """The images of one step: consecutive places in the endless sequence of shuffled epochs."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_order(int(p // n), n, seed)[p % n] for p in places])


def _accelerator(config: TrainConfig) -> Any:
    import os

    from accelerate import Accelerator

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // processes))
    return Accelerator(mixed_precision=config.mixed_precision, cpu=config.device == "cpu")


def _training_shape(source: ImageSource, config: TrainConfig) -> ImageShape:
    first = shape_of(source.read(0))
    channels = int(config.model.get("in_channels", min(first.channels, 3)))
    return ImageShape(channels, config.resize or first.height, config.resize or first.width)


def _check_depth(network: dict[str, Any], shape: ImageShape) -> None:
    levels = len(network.get("block_out_channels", (0,) * 4))
    step = 2 ** (levels - 1)
    if shape.height % step or shape.width % step:
        raise UserError(
            f"image sides must be multiples of {step} for a network of {levels} levels; got {shape}: "
            "use --resize or a preset with fewer levels"
        )


def _read(source: ImageSource, shape: ImageShape, config: TrainConfig) -> TrainingData:
    if config.split:
        members, nonmembers = read_split(config.split, source)
    else:
        members, nonmembers = choose_members(source.ids, config.train_size, config.seed)
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    images = np.empty((len(members), shape.height, shape.width, shape.channels), dtype=np.uint8)
    with progress("reading images", len(members), "images") as advance:
        for row, image_id in enumerate(members):
            try:
                pixels = source.read(position[image_id])
            except UnreadableImage as error:
                raise UserError(str(error).replace(SKIP_HINT, "")) from None
            images[row] = fit(pixels, shape, config.resize is not None, f"{source.name}: {image_id}")
            advance(1)
    return TrainingData(images, members, nonmembers)


def _record(config: TrainConfig, network: dict[str, Any]) -> dict[str, Any]:
    record = config.model_dump(mode="json")
    return {**record, "model": network, "schema_version": 1}


def _refuse_other_run(folder: Path, record: dict[str, Any]) -> None:
    path = folder / "train.json"
    if not path.exists():
        if (folder / "unet").exists() or (folder / "model_index.json").exists():
            raise UserError(f"{folder} holds a model that this command did not train; choose another -o")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [k for k in record if k not in MAY_CHANGE and record[k] != before.get(k)]
    if changed:
        was = ", ".join(f"{k} was {before.get(k)!r}, now {record[k]!r}" for k in changed[:3])
        raise UserError(f"{folder} holds another training run ({was}); choose another -o, or the same settings to resume")
