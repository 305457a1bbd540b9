"""An audit of five attacks over thirty timesteps beside straight loops of the kind that the papers' codes make.

A straight loop runs each attack on its own, over all timesteps, in float32, and shares nothing:

    loss, sima     N forwards an image          pia, pian   N + 1: eps(x0, 0), then one at each timestep
    secmi          2 N + 1: one to reach t = 10 and then, at each timestep, one up to t + 10 and one back

Both sides use the same network, images, noise, batch size and one thread; their runs take turns. A run of the loop takes some of the
batches, and its seconds are scaled to all images, since it is linear in them. The scores of the two are compared: where they differ by more
than TOLERANCE no ratio is printed.

scoring     in one process: from the first forward to the last score, the estimate of time included
command     `diffleak audit` from its start to its report, against the loop alone, and against a script that imports what the loop needs,
            loads the model and the images and runs it

The network is small so that all of it ends in twenty minutes on two idle cores. So what is beside the forwards weighs more here than for a
network of use; one of more channels shows how far. The images are scikit-learn's digits with some noise, so that there are as many as are
wanted; the network is trained on half of them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ATTACKS = ("loss", "pia", "pian", "secmi", "sima")
TIMESTEPS = tuple(range(10, 301, 10))
STRIDE = 10  # of SecMI
FORWARDS = 30 + 31 + 31 + 61 + 30  # an image, in the straight loops
SHARED = 31  # of them that an audit of all timesteps does without: eps(x0, 0) for two attacks, and 29 of SecMI
BATCH = 100
STEPS = 400
TOLERANCE = 1e-3  # of a score, relative
SWEEPS = {"calibrate": "calibrate first", "coarse": "--sweep coarse", "all": "--sweep all"}
CALIBRATE = 0.2  # of the images
MOST = 1_000  # images a side that calibrate
AIMS = {500: 0.25, 5_000: 0.15}
SMALL = (8, 16)  # channels of the network
SIDES = ("members", "nonmembers")


class Size(NamedTuple):
    """Images a side, how often each is run, runs of the loop that take all images together, and what is run."""

    each: int
    runs: int
    parts: int
    sweeps: tuple[str, ...]
    commands: bool
    channels: tuple[int, int] = SMALL

    @property
    def name(self) -> str:
        """How many images a side, and for which network."""
        return f"{self.each:,} a side" + ("" if self.channels == SMALL else f", {self.channels[0]} channels")


SIZES = (
    Size(500, 6, 3, ("calibrate", "coarse", "all"), True),
    Size(500, 6, 5, ("calibrate", "coarse"), False, (32, 64)),
    Size(5_000, 6, 12, ("calibrate", "coarse"), False),
)


class Clock:
    """CPU and wall-clock seconds since it was made."""

    def __init__(self) -> None:
        self.started = np.array([time.process_time(), time.perf_counter()])

    def seconds(self) -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()]) - self.started


def main(scratch: Path, sizes: Sequence[Size] = SIZES) -> None:
    """Prints the ratios of seconds: median and range, CPU first and wall clock in brackets."""
    import torch

    torch.set_num_threads(1)
    for size in sizes:
        (folder := scratch / f"{size.each}-{size.channels[0]}").mkdir()
        make(folder, size.each, size.channels)
        measure(folder, size)


def measure(scratch: Path, size: Size) -> None:
    """Measures both sides, run by run, at one number of images."""
    ready = {sweep: prepared(scratch, sweep) for sweep in size.sweeps}
    inputs = ready["calibrate"].inputs
    loop = Loop(scratch, inputs.noise(inputs.cohort.keys, (1, 8, 8))(0), size.parts)
    took, found = dict[str, list[np.ndarray]](), dict[str, Any]()
    for turn in range(size.runs):
        took.setdefault("loop", []).append(loop.run(turn % size.parts))
        for sweep in size.sweeps:
            seconds, found[sweep] = scored(ready[sweep], scratch / f"{sweep}-{turn}")
            took.setdefault(sweep, []).append(seconds)
        if size.commands:
            took.setdefault("script", []).append(script(scratch, turn % size.parts, size.parts))
            took.setdefault("command", []).append(command(scratch, turn))
        said = ", ".join(f"{name} {each[-1][0]:.1f} s" for name, each in took.items())
        say(f"{size.name}, round {turn + 1} of {size.runs}: {said}")
    for sweep, collected in found.items():
        compare(SWEEPS[sweep], collected, loop.scores)
    for sweep in size.sweeps:
        aim = f"   (aim <= {AIMS[size.each]})" if sweep != "all" and size.each in AIMS else ""
        show(f"{size.name}, {SWEEPS[sweep]}, scoring ÷ straight loops", took[sweep], took["loop"], aim)
    if size.commands:
        show(f"{size.name}, command ÷ straight loops", took["command"], took["loop"])
        show(f"{size.name}, command ÷ script of straight loops", took["command"], took["script"])
        pairs = (("command", "calibrate"), ("script", "loop"))
        beside = [np.median([each[0] for each in took[a]]) - np.median([each[0] for each in took[b]]) for a, b in pairs]
        say(f"seconds of CPU beside the scoring: {beside[0]:.1f} of the command, {beside[1]:.1f} of the script")
    limits(size, found, took, loop.forward())


def say(line: str) -> None:
    print(f"papers    {line}", flush=True)


def show(name: str, ours: list[np.ndarray], theirs: list[np.ndarray], more: str = "") -> None:
    ratios = np.array([a / b for a, b in zip(ours, theirs, strict=True)]).T
    cpu, wall = (f"{np.median(each):.3f}, {each.min():.3f} to {each.max():.3f}" for each in ratios)
    say(f"{name}: {cpu} [{wall}], {len(ours)} runs{more}")


def limits(size: Size, found: dict[str, Any], took: dict[str, list[np.ndarray]], forward: float) -> None:
    """Prints the forwards of both sides at the seconds of one forward, how low the share could go, and what more images come to."""
    images, median = 2 * size.each, lambda name: float(np.median([each[0] for each in took[name]]))
    say(f"one forward of one image, in batches of {BATCH}: {1e3 * forward:.3f} ms of CPU")
    made = {"loop": images * FORWARDS, **{sweep: collected.queries for sweep, collected in found.items()}}
    for name, forwards in made.items():
        share = forwards / made["loop"]
        say(
            f"{SWEEPS.get(name, 'straight loops')}: {forwards:,} forwards ({share:.3f} of the loops'), {forwards * forward:.1f} s; "
            f"it takes {median(name):.1f} s"
        )
    say(f"test part scored at {found['calibrate'].test_timesteps}")
    swept = (FORWARDS - SHARED) / FORWARDS
    part = min(CALIBRATE, MOST / size.each)
    share = made["calibrate"] / made["loop"]
    say(f"of the {share:.3f}, {part * swept:.3f} are the calibrate part, {part:.0%} of the images at all timesteps: its floor")
    if size.each < MOST / CALIBRATE:
        return
    chosen, rate = (share - part * swept) / (1 - part), median("calibrate") / median("loop") / share
    for each, fraction in ((size.each, CALIBRATE / 2), (20_000, CALIBRATE), (50_000, CALIBRATE)):
        part = min(fraction, MOST / each)
        ratio = rate * (part * swept + (1 - part) * chosen)
        say(f"by forwards, not run: {each:,} a side, {part:.0%} of them calibrate, scoring ÷ straight loops: {ratio:.3f}")


def compare(name: str, collected: Any, theirs: np.ndarray) -> None:
    """Prints the largest relative difference of the scores; exits where it is above TOLERANCE, since no ratio means anything then."""
    ours = np.full(theirs.shape, np.nan)
    for found, group in zip(ours, collected.scores, strict=True):
        found[:, [TIMESTEPS.index(t) for t in group[0].timesteps]] = group[0].statistic
    there = np.isfinite(ours) & np.isfinite(theirs)
    gap = float((np.abs(ours - theirs) / np.abs(theirs))[there].max())
    images = np.isfinite(theirs).any(axis=(0, 2)).sum()
    say(f"{name}: {100 * there.mean():.0f} % of the scores compared, largest difference {gap:.1e} of a score (most {TOLERANCE:g})")
    if there.sum() < len(theirs) * images or gap > TOLERANCE:
        sys.exit(f"the scores must agree to {TOLERANCE:g} of a score, at one timestep at least; the ratios mean nothing")


def make(scratch: Path, each: int, channels: tuple[int, int]) -> None:
    """Digits as two arrays, and a model trained on the first of them."""
    from sklearn.datasets import load_digits

    from diffleak.training.config import train_config
    from diffleak.training.run import train

    rng, digits = np.random.default_rng(0), load_digits().images * (255 / 16)
    rng.shuffle(digits)
    more = digits[np.arange(2 * each) % len(digits)]
    if 2 * each > len(digits):
        more = more + rng.normal(0, 20, more.shape)
    for side, half in zip(SIDES, np.split(np.clip(np.rint(more), 0, 255).astype(np.uint8), 2), strict=True):
        np.save(scratch / f"{side}.npy", half)
    network: dict[str, Any] = {
        "layers_per_block": 1,
        "block_out_channels": [*channels],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
    }
    config: dict[str, Any] = {"data": str(scratch / "members.npy"), "steps": STEPS, "batch_size": 64, "learning_rate": 1e-3, "threads": 1}
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


def command(scratch: Path, turn: int) -> np.ndarray:
    """Seconds of the audit as a command, from its start to its report."""
    settings = f"--attacks {','.join(ATTACKS)} --timesteps 10:300:10 --batch-size {BATCH} --device cpu --threads 1 --ignore-model-split"
    sides = [word for side in SIDES for word in (f"--{side}", str(scratch / f"{side}.npy"))]
    given = [str(scratch / "model"), *sides, *settings.split(), "-o", str(scratch / f"command-{turn}")]
    return process([sys.executable, "-m", "diffleak", "audit", *given])[0]


def script(scratch: Path, part: int, parts: int) -> np.ndarray:
    """Seconds of the loops as a script of their own, those of its forwards scaled to all images."""
    used, printed = process([sys.executable, __file__, str(scratch), str(part), str(parts)])
    ran, scaled = np.array([float(word) for word in printed.split()]).reshape(2, 2)
    return used - ran + scaled


def process(command: list[str]) -> tuple[np.ndarray, str]:
    """CPU and wall-clock seconds of a process, and what it prints; exits where it fails (3 and 4 are results)."""
    started, environment = time.perf_counter(), {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        printed = running.stdout.read()
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode not in (0, 3, 4):
        sys.exit(f"exit code {running.returncode}: {' '.join(command)}")
    return np.array([used.ru_utime + used.ru_stime, time.perf_counter() - started]), printed


class Loop:
    """The straight loops over a model and its images, in float32 and by the scheduler's own table."""

    def __init__(self, scratch: Path, noise: "Tensor | None", parts: int) -> None:
        import torch
        from diffusers import DDIMScheduler, UNet2DModel

        self.network = UNet2DModel.from_pretrained(scratch / "model" / "unet").eval()
        self.alpha = DDIMScheduler.from_pretrained(scratch / "model" / "scheduler").alphas_cumprod
        images = np.concatenate([np.load(scratch / f"{side}.npy") for side in SIDES])
        self.x, self.parts = torch.from_numpy(images)[:, None] / 127.5 - 1, parts
        self.noise = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(0)) if noise is None else noise
        self.scores = np.full((len(ATTACKS), len(images), len(TIMESTEPS)), np.nan)

    def run(self, part: int) -> np.ndarray:
        """Scores some of the batches; its seconds scaled to all images."""
        seconds, share = self.timed(part)
        return seconds / share

    def timed(self, part: int) -> tuple[np.ndarray, float]:
        """The seconds of scoring some of the batches, and their share of the images."""
        import torch

        starts, attacks = range(part * BATCH, len(self.x), self.parts * BATCH), (self.loss, self.pia, self.pian, self.secmi, self.sima)
        clock = Clock()
        with torch.no_grad():
            for k, attack in enumerate(attacks):
                for i in starts:
                    rows = slice(i, i + BATCH)
                    self.scores[k, rows] = torch.stack(attack(self.x[rows], self.noise[rows]), 1).numpy()
        return clock.seconds(), BATCH * len(starts) / len(self.x)

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


if __name__ == "__main__":  # what `script` times
    import torch

    torch.set_num_threads(1)
    seconds, share = Loop(Path(sys.argv[1]), None, int(sys.argv[3])).timed(int(sys.argv[2]))
    print(*seconds, *(seconds / share))
