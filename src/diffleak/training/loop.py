"""The training loop: resumable, and the same for any number of processes.

Step n always sees the same images and the same random numbers (see task.py). What early stopping remembers is part of every
checkpoint, so that an interrupted run stops where an uninterrupted one would.
"""

import json
import os
import shutil
from functools import partial
from math import isnan, nan
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from diffleak import hub
from diffleak.config import names_of, settings_of
from diffleak.diffusion.devices import broken_device, takes_bfloat16
from diffleak.errors import WHY, SettingError, UserError, first_lines, refusing
from diffleak.records.images import FIRST_READING, first_reading
from diffleak.records.run_folder import TRAINED
from diffleak.training.config import TrainConfig
from diffleak.training.early_stopping import EarlyStopping
from diffleak.training.private import PrivateTraining
from diffleak.training.task import Task, batch, keyed, refuse_divergence, shuffled
from diffleak.work.files import hash_file, write_text
from diffleak.work.folder import Folder, Refusal, read_object, refuse_changes, set_aside, spelled
from diffleak.work.memory import out_of_memory
from diffleak.work.progress import progress, say
from diffleak.work.reading import load_json

LOSS_EVERY = 50  # steps averaged in one point of the loss curve
MAY_CHANGE = frozenset({"output", "split", "steps", "checkpoint_every", "threads", "device"})  # between a run and its resumption
SUMS = "sha256.json"  # of the files of a checkpoint
STATE = "state.pt"  # of the loop: step, losses and those since the last point, moving average, early stopping
OUTCOMES = frozenset({"early_stopping", "spent"})  # keys of train.json that only a finished run has
SAID = frozenset({"images", "data_path"})  # keys that say what was found in the data and decide nothing
UNWRITTEN = f"cannot be written ({WHY}); free the disk and run the same command again"
FIXED_BY = {"validation": "checkpoint_every", "dp_epsilon": "steps"}  # unless this setting makes the result depend on it


def accelerator_of(config: TrainConfig) -> Any:
    """accelerate's view of this process; its CPU threads are shared with the other processes of this machine."""
    from accelerate import Accelerator

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // processes))
    able = takes_bfloat16(config.device)
    precision = ("bf16" if able else "no") if config.mixed_precision == "auto" else config.mixed_precision
    accelerator = Accelerator(mixed_precision=precision, cpu=config.device == "cpu")
    if config.batch_size % accelerator.num_processes:
        raise SettingError("batch_size", f"must be a multiple of the {accelerator.num_processes} processes; got {config.batch_size}")
    return accelerator


def refuse_other_run(folder: Path, record: dict[str, Any]) -> None:
    """Raises `UserError` when the folder holds another training run, or a model from elsewhere."""
    if (folder / TRAINED).exists():
        refuse_changes(*_compared(folder, record))
    elif any((folder / name).exists() for name in (*hub.PARTS, hub.INDEX)):
        raise UserError(f"{folder} holds a model that this command did not train; choose another -o")


def claim_run(folder: Path, record: dict[str, Any]) -> None:
    """Makes the folder this run's by its train.json, which holds the settings of the latest call; raises as `refuse_other_run`."""
    refuse_other_run(folder, record)
    text = json.dumps(record, indent=2)
    _, now, refusal, free = _compared(folder, record)
    if not Folder(folder).claim(now, refusal, file=TRAINED, text=text, read=lambda: _compared(folder, record)[0], free=free):
        write_text(folder / TRAINED, text)  # what may change, such as the steps


def _compared(folder: Path, record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Refusal, frozenset[str]]:
    """The record that a folder has and the new one as they are compared, the message where they differ, and the keys that may.

    A record with a hash of the `members` is complete: then a key that only the earlier run has is a difference too.
    """
    path = folder / TRAINED
    before = read_object(path, f"choose another -o, or delete {folder} to begin again") if path.exists() else {}
    defaults = {name: f.default for name, f in settings_of(TrainConfig).items()}  # of settings that older runs did not have
    unread = "images" not in before and "images" not in record  # which reading matters is known when the images have been read
    if "images" not in before:
        defaults |= first_reading(record.get("images", {}))
    free = OUTCOMES | SAID | (MAY_CHANGE - {fixed for key, fixed in FIXED_BY.items() if record.get(key) is not None})
    free |= set(FIRST_READING) if unread else set()
    free |= set() if "members" in before else {"members"}  # older runs did not say
    gone = {key: None for key in before if key not in record} if "members" in record else {}
    way, names = "choose another -o, or the same settings to resume", names_of(TrainConfig)
    refusal = lambda changed: f"{folder} holds another training run ({spelled(changed, names)}); {way}"
    return defaults | before, record | gone, refusal, free


class Loop:
    """The loop and its state, all of which a checkpoint holds."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Any,
        task: Task,
        stopping: EarlyStopping | None = None,
        private: PrivateTraining | None = None,
    ) -> None:
        self.config, self.accelerator, self.task, self.stopping, self.private = config, accelerator, task, stopping, private
        optimizer = torch.optim.AdamW(
            [p for p in task.module.parameters() if p.requires_grad], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        module, optimizer = private.wrap(task, optimizer) if private else (task.module, optimizer)
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        self.ema = hub.moving_average(task.module, config.ema_decay) if config.ema_decay else None
        self.step, self.losses = 0, list[list[float]]()
        self.recent = list[float]()  # losses since the last point of the curve

    def state_dict(self) -> dict[str, Any]:
        stopping = {"stopping": self.stopping.state_dict()} if self.stopping else {}
        ema = self.ema.state_dict() if self.ema else None
        return {"step": self.step, "losses": self.losses, "recent": self.recent, "ema": ema, **stopping}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.losses = state["step"], state["losses"]
        self.recent = state.get("recent", [])  # which earlier versions forgot
        if self.stopping:
            self.stopping.load_state_dict(state["stopping"])
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
        if self.accelerator.is_main_process and checkpoint.exists():
            _verify(checkpoint)
        self.accelerator.wait_for_everyone()
        if checkpoint.exists():
            self._load_checkpoint(checkpoint)
        if self.step > config.steps:
            raise UserError(
                f"{folder} is already trained for {self.step} steps, more than {config.steps}: ask for as many, or choose another -o"
            )
        with progress("training", config.steps, "steps", done=self.step) as advance:
            while self.step < config.steps and not (self.stopping and self.stopping.finished):
                self.recent.append(self._one_step())
                self.step += 1
                if self.step % LOSS_EVERY == 0 or self.step == config.steps:
                    self.losses.append([self.step, _mean(self.recent)])
                    self.recent = []
                advance(1, f"loss {self.losses[-1][1]:.4f}" if self.losses else "")
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    if self.stopping:
                        self.stopping.check(self.step, self.accelerator, self.ema, folder)
                    self._save_checkpoint(checkpoint)
        return self._save_model(folder)

    def _one_step(self) -> float:
        """One step of the optimiser; returns the mean loss of the batch, nan if it was empty."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        loss = self.private.gradients(self.module, self._batch(), self.step) if self.private else self._gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.step(self.module.parameters())
        return loss

    def _gradients(self) -> float:
        loss = self.module(*self._batch())
        shared = float(self.accelerator.reduce(loss.detach(), "mean"))
        refuse_divergence(
            shared, self.step, self.config.learning_rate, self.task.module
        )  # on every process alike, so that none waits for another
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        return shared

    def _batch(self) -> tuple[Tensor | None, ...]:
        """This process's share of step `self.step`."""
        config, accelerator = self.config, self.accelerator
        choose = self.task.rows or partial(shuffled, n=len(self.task.inputs))
        rows = choose(self.step, config.batch_size, config.seed)
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        return batch(self.task, rows, keyed(config.seed, self.step), config.flip, share, accelerator.device)

    def _load_checkpoint(self, checkpoint: Path) -> None:
        """Reads a checkpoint; only tensors and plain values are unpickled, so a planted file cannot run code."""
        from accelerate.utils.other import load

        earlier = checkpoint / "custom_checkpoint_0.pkl"  # what accelerate called the state, and read with pickle alone
        if earlier.exists() and self.accelerator.is_main_process:
            earlier.rename(checkpoint / STATE)
        self.accelerator.wait_for_everyone()
        random_states = checkpoint / f"random_states_{self.accelerator.process_index}.pkl"
        try:
            if random_states.exists():
                load(random_states)  # accelerate goes on without them, and says nothing, where they are damaged
            self.accelerator.load_state(str(checkpoint))
            self.load_state_dict(torch.load(checkpoint / STATE, map_location="cpu", weights_only=True))
        except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
            if out_of_memory(error) or broken_device(error):
                raise
            raise UserError(
                f"{checkpoint} cannot be read ({first_lines(error)}); if its files are damaged, delete it to begin again"
            ) from None

    def _save_checkpoint(self, checkpoint: Path) -> None:
        fresh = checkpoint.with_name("checkpoint.part")
        if self.accelerator.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with refusing((OSError, RuntimeError), f"the checkpoint {fresh} {UNWRITTEN}"):
            self.accelerator.save_state(str(fresh))
            if self.accelerator.is_main_process:
                torch.save(self.state_dict(), fresh / STATE)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_text(fresh / SUMS, json.dumps({file.name: hash_file(file) for file in sorted(fresh.iterdir())}, indent=2))
            old = checkpoint.with_name("checkpoint.old")
            shutil.rmtree(old, ignore_errors=True)
            if checkpoint.exists():
                checkpoint.rename(old)
            fresh.rename(checkpoint)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _save_model(self, folder: Path) -> Path:
        if self.stopping:
            self.stopping.restore_best()
        elif self.ema:
            self.ema.copy_to(self.module.parameters())
        if self.accelerator.is_main_process:
            with refusing((OSError, SafetensorError), f"the model {folder} {UNWRITTEN}"):
                self.task.save(folder)
            write_text(folder / "losses.csv", "step,loss\n" + "".join(f"{int(s)},{value:.6f}\n" for s, value in self.losses))
        self.accelerator.wait_for_everyone()
        return folder


def _verify(checkpoint: Path) -> None:
    """Moves a damaged checkpoint aside, and says so: training begins again then. Earlier versions wrote no checksums."""
    if not (checkpoint / SUMS).exists():
        return
    try:
        changed = (file for file, digest in load_json(checkpoint / SUMS).items() if hash_file(checkpoint / file) != digest)
        odd = next((f"{file}: its checksum is not that of its content" for file in changed), None)
    except (OSError, ValueError, AttributeError):
        odd = f"{SUMS} cannot be read, or names a file that is missing"
    if odd:
        aside = set_aside(checkpoint).name
        say(f"{checkpoint} is damaged ({odd}): it is now {aside}, and training begins again")


def _mean(losses: list[float]) -> float:
    """The mean over the batches that were not empty."""
    seen = [loss for loss in losses if not isnan(loss)]
    return float(np.mean(seen)) if seen else nan
