"""Early stopping: the loss on images that are set aside says which weights are saved, and when to stop.

    validation loss(step) = mean over images and draws of the training loss, t and e drawn once and kept for all checks

The weights are those that would be saved (the moving average where there is one), in evaluation mode.
Prechelt 1998, "Early Stopping - But When?", criterion UP with strips of one check.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffleak.errors import one_or_more
from diffleak.training.task import Task, batch, keyed
from diffleak.work.files import write_text

DRAWS = 8  # of timestep and noise for each image, fewer where
ENOUGH = 4096  # losses make a curve that is smooth already
VALIDATION = 0x76616C  # keys of validation draws, which no training step has


def split_task(task: Task, n: int) -> tuple[Task, Task]:
    """The task on its first n images, and on the others."""
    cut = lambda part: replace(task, inputs=task.inputs[part], given=tuple(None if g is None else g[part] for g in task.given))
    return cut(slice(n)), cut(slice(n, None))


class EarlyStopping:
    """The curve and the best weights of a run; exists so that a checkpoint can hold both."""

    def __init__(self, task: Task, patience: int | None, batch_size: int, seed: int) -> None:
        self.task, self.patience, self.batch_size, self.seed = task, patience, batch_size, seed
        self.curve, self.best = list[list[float]](), list[Tensor]()

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve, self.best = state["curve"], state["best"]

    @property
    def finished(self) -> bool:
        """True if the last `patience` checks brought nothing better."""
        return self.patience is not None and len(self.curve) > 0 and len(self.curve) - 1 - self._best_check() >= self.patience

    def check(self, step: int, accelerator: Any, ema: Any, folder: Path) -> None:
        """Adds a point to the curve and to validation.csv, and keeps the weights when it is the lowest; the same on all processes."""
        with _as_saved(self.task.module, ema):
            self.curve.append([step, self._loss(accelerator)])
            if self._best_check() == len(self.curve) - 1:
                self.best = [p.detach().cpu().clone() for p in self.task.module.parameters()]
        if accelerator.is_main_process:
            rows = "".join(f"{int(s)},{value:.6f}\n" for s, value in self.curve)
            write_text(folder / "validation.csv", "step,loss\n" + rows)

    def restore_best(self) -> None:
        """Puts the best weights back into the network."""
        with torch.no_grad():
            for parameter, value in zip(self.task.module.parameters(), self.best, strict=True):
                parameter.copy_(value)

    def record(self, step: int) -> dict[str, Any]:
        """What train.json says about a run that ended at `step`."""
        best_step, loss = self.curve[self._best_check()]
        reason = f"no lower for {one_or_more(self.patience or 0, 'check')}" if self.finished else "all steps done"
        return {"saved_step": int(best_step), "validation_loss": loss, "last_step": step, "stopped": reason}

    def _best_check(self) -> int:
        return int(np.argmin([loss if isfinite(loss) else inf for _, loss in self.curve]))

    def _loss(self, accelerator: Any) -> float:
        """The mean over all images and draws; every process computes its share of the batches."""
        n = len(self.task.inputs)
        draws = min(DRAWS, max(1, ENOUGH // n))
        batches = [(draw, start) for draw in range(draws) for start in range(0, n, self.batch_size)]
        total = torch.zeros((), dtype=torch.float64)
        for draw, start in batches[accelerator.process_index :: accelerator.num_processes]:
            rows = np.arange(start, min(start + self.batch_size, n))
            arguments = batch(self.task, rows, keyed(self.seed, VALIDATION, draw, start), device=accelerator.device)
            total += float(self.task.module(*arguments)) * len(rows)
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total.to(accelerator.device), "sum")
        return float(total) / (n * draws)


@contextmanager
def _as_saved(module: torch.nn.Module, ema: Any) -> Iterator[None]:
    """The module in evaluation mode, with its averaged weights where there are any, and back again."""
    parameters = list(module.parameters())
    if ema:
        ema.store(parameters)
        ema.copy_to(parameters)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)
        if ema:
            ema.restore(parameters)
