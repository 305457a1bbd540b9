"""Training speed: our loop, a distillation step and two teachers side by side, each against the plain thing, in one run."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

CHANNELS = (32, 64, 64)
SIZE = 32
BATCH = 16
IMAGES = 256
STEPS = 8  # of each kind in a round
ROUNDS = 4


def settings(data: Path, output: Path, threads: int, steps: int = 1) -> Any:
    from diffleak.training.config import train_config

    blocks = len(CHANNELS)
    model = {
        "layers_per_block": 1,
        "block_out_channels": CHANNELS,
        "down_block_types": ["DownBlock2D"] * blocks,
        "up_block_types": ["UpBlock2D"] * blocks,
        "norm_num_groups": 8,
    }
    return train_config(data=str(data), output=output, batch_size=BATCH, steps=steps, threads=threads, device="cpu", model=model)


def stepper(config: Any, teacher: torch.nn.Module | None = None) -> Callable[[], None]:
    """One step of diffleak's loop, of ordinary training or with a teacher's targets."""
    from diffleak.data.sources import open_source
    from diffleak.training.denoiser import DenoisingLoss, denoiser_task, network_config
    from diffleak.training.images import read_training_data, training_shape
    from diffleak.training.loop import Loop, accelerator_of

    accelerator = accelerator_of(config)
    shape = training_shape(open_source(config.data), config)
    data = read_training_data(config, shape)
    task = denoiser_task(config, network_config(config, shape), data, None, None, accelerator.device)
    if teacher is not None:
        from dataclasses import replace

        loss: Any = task.module
        task = replace(
            task, module=DenoisingLoss(loss.network, loss.noising.scheduler, (teacher,)), given=(None, np.zeros(IMAGES, np.int64))
        )
    loop = Loop(config, accelerator, task)

    def step() -> None:
        loop._one_step()
        loop.step += 1

    return step


def plain_stepper(config: Any) -> Callable[[], None]:
    """One step of the loop of diffusers' unconditional training example, written anew, with the same model and batch."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from torch.utils.data import DataLoader, TensorDataset

    from diffleak import hub
    from diffleak.data.pixels import ImageShape, to_model
    from diffleak.training.denoiser import network_config

    accelerator = Accelerator(cpu=True)
    model: Any = hub.new_network(network_config(config, ImageShape(3, SIZE, SIZE)))
    images = torch.from_numpy(to_model(np.load(config.data)))
    loader = DataLoader(TensorDataset(images), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10_000)
    model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
    scheduler: Any = DDPMScheduler()

    def batches() -> Any:
        while True:
            yield from loader

    source = batches()

    def step() -> None:
        (clean,) = next(source)
        noise = torch.randn(clean.shape)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),)).long()
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with accelerator.accumulate(model):
            loss = torch.nn.functional.mse_loss(model(noisy, timesteps).sample.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        loss.detach().item()

    return step


def interleaved(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The best seconds per step of each, taken in turns so that all see the same machine."""
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            best[name] = min(best[name], (time.perf_counter() - started) / STEPS)
    return best


def step_ratios(scratch: Path) -> tuple[float, float]:
    """(our steps/s ÷ those of the plain loop, seconds of a distillation step ÷ those of an ordinary one)."""
    from diffleak import hub
    from diffleak.data.pixels import ImageShape
    from diffleak.training.denoiser import network_config

    np.save(scratch / "images.npy", np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8))
    config = settings(scratch / "images.npy", scratch / "model", threads=1)
    torch.manual_seed(0)
    teacher = hub.new_network(network_config(config, ImageShape(3, SIZE, SIZE))).eval().requires_grad_(False)
    seconds = interleaved({"plain": plain_stepper(config), "ours": stepper(config), "student": stepper(config, teacher)})
    return seconds["plain"] / seconds["ours"], seconds["student"] / seconds["ours"]


def side_by_side_ratio(scratch: Path, steps: int = 60) -> float:
    """Seconds of two trainings in two processes of one thread each ÷ those of one, start-up included, best of two."""
    data = scratch / "images.npy"
    np.save(data, np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8))
    times: dict[int, float] = {}
    for attempt in range(2):
        for count in (1, 2):
            folders = [scratch / f"{attempt}-{count}-{number}" for number in range(count)]
            command = [sys.executable, __file__, str(data), str(steps)]
            started = time.perf_counter()
            running = [subprocess.Popen([*command, str(folder)], stderr=subprocess.DEVNULL) for folder in folders]
            if any(process.wait() for process in running):
                raise RuntimeError("a training of the benchmark failed")
            times[count] = min(times.get(count, float("inf")), time.perf_counter() - started)
    return times[2] / times[1]


if __name__ == "__main__":
    from diffleak.training.run import train

    train(settings(Path(sys.argv[1]), Path(sys.argv[3]), threads=1, steps=int(sys.argv[2])))
