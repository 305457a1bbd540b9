"""The training loop: resumable, and the same for any number of processes.

Step n always sees the same images and the same random numbers, whatever was interrupted and however many processes
share the batch: the order of images is a permutation keyed by (seed, epoch), everything random is keyed by (seed, step).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Generator, Tensor

from leakscope import hub
from leakscope.data.pixels import to_model
from leakscope.errors import UserError
from leakscope.files import write_text
from leakscope.progress import progress
from leakscope.training.settings import TrainConfig

LOSS_EVERY = 50  # steps averaged in one point of the loss curve
Rows = Callable[[int, int, int], Int[np.ndarray, " b"]]  # of (step, batch size, seed): the images of one step
MAY_CHANGE = frozenset({"output", "steps", "checkpoint_every", "threads", "device"})  # between a run and its resumption


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained: `module(x, *given, *draws)` gives the loss of a batch.

    `inputs` are uint8 images (n, h, w, c) or float32 latents (n, *z); `given` is what else belongs to each image, one array
    per argument, or None for an argument that is None. `draw(n, generator)` gives the random numbers of a whole batch, each
    with n rows; `save(folder)` writes the finished model. `rows` chooses the images of a step, by default all in turn.
    """

    module: torch.nn.Module
    inputs: np.ndarray
    given: tuple[np.ndarray | None, ...]
    draw: Callable[[int, Generator], tuple[Tensor, ...]]
    save: Callable[[Path], None]
    rows: Rows | None = None


def accelerator_of(config: TrainConfig) -> Any:
    """accelerate's view of this process; its CPU threads are shared with the other processes of this machine."""
    from accelerate import Accelerator

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // processes))
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.device == "cpu")
    if config.batch_size % accelerator.num_processes:
        raise UserError(f"batch_size must be a multiple of the {accelerator.num_processes} processes; got {config.batch_size}")
    return accelerator


def refuse_other_run(folder: Path, record: dict[str, Any]) -> None:
    """Raises `UserError` when the folder holds another training run, or a model from elsewhere."""
    path = folder / "train.json"
    if not path.exists():
        if any((folder / name).exists() for name in (*hub.PARTS, "model_index.json")):
            raise UserError(f"{folder} holds a model that this command did not train; choose another -o")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    defaults = {name: f.default for name, f in TrainConfig.model_fields.items()}  # of settings that older runs did not have
    changed = [k for k in record if k not in MAY_CHANGE and record[k] != before.get(k, defaults.get(k))]
    if changed:
        was = ", ".join(f"{k} was {before.get(k)!r}, now {record[k]!r}" for k in changed[:3])
        raise UserError(f"{folder} holds another training run ({was}); choose another -o, or the same settings to resume")


@contextmanager
def clear_memory_message(batch_size: int) -> Iterator[None]:
    """Turns running out of memory into one line."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        reason = "the device"
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        reason = "this machine"
    else:
        return
    raise UserError(
        f"{reason} has too little memory for this model with batches of {batch_size}; lower --batch-size or make the model smaller"
    )


class Loop:
    """The loop and its state; exists so that a checkpoint can hold all of it."""

    def __init__(self, config: TrainConfig, accelerator: Any, task: Task) -> None:
        self.config, self.accelerator, self.task = config, accelerator, task
        optimizer = torch.optim.AdamW(task.module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.module, self.optimizer = accelerator.prepare(task.module, optimizer)
        self.ema = hub.moving_average(task.module, config.ema_decay) if config.ema_decay else None
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
        """Trains to the configured number of steps, from a checkpoint where there is one, and saves the model."""
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
        loss = self.module(*self._batch())
        shared = float(accelerator.reduce(loss.detach(), "mean"))
        if not isfinite(shared):  # on every process alike, so that none waits for another
            raise UserError(
                f"the loss is {shared} at step {self.step}; lower learning_rate ({config.learning_rate}) and start in a new folder"
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.module.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.step(self.module.parameters())
        return shared

    def _batch(self) -> tuple[Tensor | None, ...]:
        """This process's share of step `self.step`: inputs and random numbers are cut from those of the whole batch."""
        config, accelerator, task = self.config, self.accelerator, self.task
        choose = task.rows or partial(shuffled, n=len(task.inputs))
        rows = choose(self.step, config.batch_size, config.seed)
        generator = Generator().manual_seed(_mix(config.seed, self.step))
        inputs = task.inputs[rows]
        x = torch.from_numpy(to_model(inputs) if inputs.dtype == np.uint8 else inputs)
        draws = task.draw(len(rows), generator)
        if config.flip:
            flipped = torch.rand(len(rows), generator=generator) < 0.5
            x[flipped] = x[flipped].flip(-1)
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        own = lambda part: part[share].to(accelerator.device)
        given = [None if array is None else own(torch.from_numpy(array[rows])) for array in task.given]
        return own(x), *given, *(own(part) for part in draws)

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
        if self.ema:
            self.ema.copy_to(self.module.parameters())
        if self.accelerator.is_main_process:
            try:
                self.task.save(folder)
            except (OSError, SafetensorError) as error:
                raise UserError(f"the model {folder} cannot be written ({error}); free the disk and run the same command again") from None
            write_text(folder / "losses.csv", "step,loss\n" + "".join(f"{int(s)},{value:.6f}\n" for s, value in self.losses))
        self.accelerator.wait_for_everyone()
        return folder


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@lru_cache(maxsize=2)
def _order(epoch: int, n: int, seed: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng((seed, epoch)).permutation(n)


def shuffled(step: int, batch_size: int, seed: int, n: int) -> Int[np.ndarray, " b"]:
    """The images of one step: consecutive places in the endless sequence of shuffled epochs of n images."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_order(int(p // n), n, seed)[p % n] for p in places])
