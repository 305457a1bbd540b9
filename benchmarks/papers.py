"""An audit of five attacks over thirty timesteps beside straight loops of the kind that the papers' codes make.

A straight loop runs each attack on its own, over all timesteps, in float32, and shares nothing:

    loss, sima     N forwards an image          pia, pian   N + 1: eps(x0, 0), then one at each timestep
    secmi          2 N + 1: one to reach t = 10 and then, at each timestep, one up to t + 10 and one back

Both sides use the same network, images, noise, batch size and one thread, in one process; their runs take turns. A run of the loop takes
every third batch, and its seconds are scaled to all images, since it is linear in them. `scoring` is from the first forward to the last
score, the estimate of time included. `whole` adds imports, loading and checks before it and the evaluation, intervals and files of
results after it, measured once; of the loop it adds nothing. The scores of the two are compared first: where they differ by more than
TOLERANCE no ratio is printed.

The network is small so that all of it ends in ten minutes on an idle core, so `whole` weighs more here than for a network of use. The
images are scikit-learn's digits; the network is trained on half of those used. There are not 10,000 of them, so what is said of more
images is extrapolated: the forwards that an audit of so many makes, at the seconds of a forward that were measured.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ATTACKS = ("loss", "pia", "pian", "secmi", "sima")
TIMESTEPS = tuple(range(10, 301, 10))
STRIDE = 10  # of SecMI
FORWARDS = 30 + 31 + 31 + 61 + 30  # an image, in the straight loops
BATCH = 100
EACH = 500  # images a side
RUNS = 6
WHOLE_SWEEP = 2  # of these also with --sweep all
PARTS = 3  # runs of the loop that take all images together
STEPS = 400
TOLERANCE = 1e-3  # of a score, relative
SWEEPS = {"calibrate": "calibrate first", "all": "--sweep all"}
MOST = 1_000  # images a side that calibrate
AIMS = {500: 0.25, 5_000: 0.15}
SIDES = ("members", "nonmembers")


class Clock:
    """CPU and wall-clock seconds since it was made."""

    def __init__(self) -> None:
        self.started = np.array([time.process_time(), time.perf_counter()])

    def seconds(self) -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()]) - self.started


def main(scratch: Path) -> None:
    """Prints the ratios of seconds: median and range, CPU first and wall clock in brackets."""
    import torch

    torch.set_num_threads(1)
    if not (scratch / "model").exists():
        make(scratch)
    clock = Clock()
    ready = {sweep: prepared(scratch, sweep) for sweep in SWEEPS}
    before = clock.seconds() / len(SWEEPS)
    loop = Loop(scratch, ready["all"].inputs.noise(ready["all"].inputs.cohort.keys, (1, 8, 8))(0))
    straight, ours, found = list[np.ndarray](), dict[str, list[np.ndarray]](), dict[str, Any]()
    for turn in range(RUNS):
        straight.append(loop.run(turn % PARTS))
        for sweep in list(SWEEPS)[: 2 if turn < WHOLE_SWEEP else 1]:
            seconds, found[sweep] = scored(ready[sweep], scratch / f"{sweep}-{turn}")
            ours.setdefault(sweep, []).append(seconds)
        say(f"round {turn + 1} of {RUNS}: " + ", ".join(f"{name} {took[-1][0]:.1f} s" for name, took in {"loop": straight, **ours}.items()))
    for sweep, collected in found.items():
        compare(SWEEPS[sweep], collected, loop.scores)
    for sweep, took in ours.items():
        show(f"{SWEEPS[sweep]}, {EACH} a side, scoring", took, straight, sweep)
    whole = finished(ready["calibrate"], scratch / "calibrate-0") + before
    say(f"before and after scoring: {whole[0]:.1f} s ({before[0]:.1f} s of it imports, loading and checks), whatever the network")
    show(f"{SWEEPS['calibrate']}, {EACH} a side, whole", [took + whole for took in ours["calibrate"]], straight, "calibrate")
    limits(found, ours, straight, loop.forward())


def say(line: str) -> None:
    print(f"papers    {line}", flush=True)


def show(name: str, ours: list[np.ndarray], straight: list[np.ndarray], sweep: str) -> None:
    ratios = np.array([a / b for a, b in zip(ours, straight, strict=False)]).T
    cpu, wall = (f"{np.median(each):.3f}, {each.min():.3f} to {each.max():.3f}" for each in ratios)
    aim = f"   (aim <= {AIMS[EACH]})" if sweep == "calibrate" else ""
    say(f"{name} ÷ straight loops: {cpu} [{wall}], {len(ours)} runs{aim}")


def limits(found: dict[str, Any], ours: dict[str, list[np.ndarray]], straight: list[np.ndarray], forward: float) -> None:
    """Prints the forwards of both sides at the seconds of one forward, and what the forwards of more images come to."""
    images, mean = 2 * EACH, lambda took: float(np.median([each[0] for each in took]))
    say(f"one forward of one image, in batches of {BATCH}: {1e3 * forward:.3f} ms of CPU")
    made = {"straight loops": (images * FORWARDS, mean(straight))}
    made |= {SWEEPS[sweep]: (collected.queries, mean(ours[sweep])) for sweep, collected in found.items()}
    for name, (forwards, took) in made.items():
        share = forwards / (images * FORWARDS)
        say(f"{name}: {forwards:,} forwards ({share:.3f} of the loops'), {forwards * forward:.1f} s; it takes {took:.1f} s")
    say(f"test part scored at {found['calibrate'].test_timesteps}")
    whole_sweep, share = found["all"].queries / images, 0.2
    chosen = (found["calibrate"].queries / images - share * whole_sweep) / (1 - share)
    rate = made["calibrate first"][1] / made["calibrate first"][0] / (made["straight loops"][1] / made["straight loops"][0])
    for each, fraction in ((500, share), (5_000, share), (5_000, share / 2), (20_000, share), (50_000, share)):
        part = min(fraction, MOST / each)
        ratio = rate * (part * whole_sweep + (1 - part) * chosen) / FORWARDS
        aim = f"   (aim <= {AIMS[each]})" if each in AIMS else ""
        say(f"extrapolated by forwards, {each:,} a side, {part:.0%} of them calibrate, scoring ÷ straight loops: {ratio:.3f}{aim}")


def compare(name: str, collected: Any, theirs: np.ndarray) -> None:
    """Prints the largest relative difference of the scores; exits where it is above TOLERANCE, since no ratio means anything then."""
    ours = np.stack([group[0].statistic for group in collected.scores])
    there = np.isfinite(ours)
    gap = float((np.abs(ours - theirs) / np.abs(theirs))[there].max())
    say(f"{name}: {100 * there.mean():.0f} % of the loops' scores, largest difference {gap:.1e} of a score (most {TOLERANCE:g})")
    if there.sum() < len(theirs) * 2 * EACH or gap > TOLERANCE:
        sys.exit(f"the scores must agree to {TOLERANCE:g} of a score, at one timestep at least; the ratios mean nothing")


def make(scratch: Path) -> None:
    """1,000 digits as two arrays, and a model trained on the first half of them."""
    from sklearn.datasets import load_digits

    from diffleak.training.config import train_config
    from diffleak.training.run import train

    digits = np.clip(np.rint(load_digits().images * (255 / 16)), 0, 255).astype(np.uint8)
    np.random.default_rng(0).shuffle(digits)
    for side, half in zip(SIDES, np.split(digits[: 2 * EACH], 2), strict=True):
        np.save(scratch / f"{side}.npy", half)
    network = {
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
    }
    config = {"data": str(scratch / "members.npy"), "steps": STEPS, "batch_size": 64, "learning_rate": 1e-3, "threads": 1}
    train(train_config(output=scratch / "model", device="cpu", model=network, **config))


def prepared(scratch: Path, sweep: str) -> Any:
    """An audit that is ready to score, its images checked."""
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.config import build

    given: dict[str, Any] = {side: str(scratch / f"{side}.npy") for side in SIDES}
    given |= {"model": str(scratch / "model"), "attacks": ",".join(ATTACKS), "timesteps": "10:300:10", "sweep": sweep}
    given |= {"batch_size": BATCH, "device": "cpu", "threads": 1, "ignore_model_split": True}
    return prepare(build(AuditConfig, given))


def scored(ready: Any, folder: Path) -> tuple[np.ndarray, Any]:
    """Seconds of scoring into a new folder, and what was scored."""
    from diffleak.auditing import run as auditing

    clock = Clock()
    collected = auditing.score(ready, folder, log=lambda line: None)
    return clock.seconds(), collected


def finished(ready: Any, folder: Path) -> np.ndarray:
    """Seconds of all that follows scoring, in the folder of a scored run."""
    from diffleak.auditing import run as auditing

    clock = Clock()
    audit = auditing.run(ready, folder, log=lambda line: None, timed=False)
    assert audit is not None
    audit.save(folder)
    return clock.seconds()


class Loop:
    """The straight loops over a model and its images, in float32 and by the scheduler's own table."""

    def __init__(self, scratch: Path, noise: "Tensor") -> None:
        import torch
        from diffusers import DDIMScheduler, UNet2DModel

        self.network = UNet2DModel.from_pretrained(scratch / "model" / "unet").eval()
        self.alpha = DDIMScheduler.from_pretrained(scratch / "model" / "scheduler").alphas_cumprod
        images = np.concatenate([np.load(scratch / f"{side}.npy") for side in SIDES])
        self.x, self.noise = torch.from_numpy(images)[:, None] / 127.5 - 1, noise
        self.scores = np.full((len(ATTACKS), len(images), len(TIMESTEPS)), np.nan)

    def run(self, part: int) -> np.ndarray:
        """Scores every PARTS-th batch; its seconds scaled to all images."""
        import torch

        starts, attacks = range(part * BATCH, len(self.x), PARTS * BATCH), (self.loss, self.pia, self.pian, self.secmi, self.sima)
        clock = Clock()
        with torch.no_grad():
            for k, attack in enumerate(attacks):
                for i in starts:
                    rows = slice(i, i + BATCH)
                    self.scores[k, rows] = torch.stack(attack(self.x[rows], self.noise[rows]), 1).numpy()
        return clock.seconds() * len(self.x) / (BATCH * len(starts))

    def forward(self) -> float:
        """CPU seconds of one forward of one image: the fastest of some passes over the timesteps, the network alone."""
        import torch

        seconds = list[float]()
        with torch.inference_mode():
            for _ in range(10):
                clock = Clock()
                for t in TIMESTEPS:
                    self.network(self.x[:BATCH], torch.tensor(t))
                seconds.append(clock.seconds()[0] / len(TIMESTEPS) / BATCH)
        return min(seconds)

    def eps(self, x: "Tensor", t: int) -> "Tensor":
        return self.network(x, x.new_full((len(x),), t).long()).sample  # type: ignore[no-any-return]

    def noised(self, x: "Tensor", t: int, e: "Tensor") -> "Tensor":
        return self.alpha[t].sqrt() * x + (1 - self.alpha[t]).sqrt() * e  # type: ignore[no-any-return]

    def step(self, x: "Tensor", e: "Tensor", t: int, u: int) -> "Tensor":
        return self.noised((x - (1 - self.alpha[t]).sqrt() * e) / self.alpha[t].sqrt(), u, e)

    def loss(self, x: "Tensor", e: "Tensor") -> list["Tensor"]:
        return [norm(self.eps(self.noised(x, t, e), t) - e, 2) for t in TIMESTEPS]

    def pia(self, x: "Tensor", e: "Tensor", change: Callable[["Tensor"], "Tensor"] = lambda e0: e0) -> list["Tensor"]:
        e0 = change(self.eps(x, 0))
        return [norm(self.eps(self.noised(x, t, e0), t) - e0, 4) for t in TIMESTEPS]

    def pian(self, x: "Tensor", e: "Tensor") -> list["Tensor"]:
        return self.pia(x, e, lambda e0: e0 / e0.abs().mean((1, 2, 3), keepdim=True) * (2 / np.pi) ** 0.5)

    def secmi(self, x: "Tensor", e: "Tensor") -> list["Tensor"]:
        x, found = self.step(x, self.eps(x, 0), 0, STRIDE), []
        for t in TIMESTEPS:
            up = self.step(x, self.eps(x, t), t, t + STRIDE)
            found.append(norm(self.step(up, self.eps(up, t + STRIDE), t + STRIDE, t) - x, 2))
            x = up
        return found

    def sima(self, x: "Tensor", e: "Tensor") -> list["Tensor"]:
        return [norm(self.eps(x, t), 4) for t in TIMESTEPS]


def norm(r: "Tensor", p: int) -> "Tensor":
    return r.abs().pow(p).flatten(1).sum(1)
