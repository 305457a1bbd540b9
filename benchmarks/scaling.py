"""How an audit grows with the number of images and of workers: whole commands, from their start to the report.

images     SimA at two timesteps on 8 x 8 images of random pixels and a small network, one thread, every image at every timestep;
           CPU seconds, those of 1,000 more images, and the most memory that was resident
workers    5,000 such images at 30 timesteps in as many processes, each a shard and one thread: wall clock of all and its ratio to that of
           one, and CPU seconds of all together. Each imports, checks the images, and reads them; the last one writes the results
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

COUNTS = (500, 2_000, 5_000, 20_000)
WORKERS = (1, 2, 4)
SHARED = 5_000
FEW, MANY = "50:100:50", "10:300:10"  # timesteps


class Used(NamedTuple):
    cpu: float
    wall: float
    peak: float  # MiB


def main(scratch: Path) -> None:
    subprocess.run([sys.executable, __file__, str(scratch / "model")], check=True)  # here torch stays unloaded: peaks begin at this size
    last = None
    for count in COUNTS:
        used = together(scratch, count, 1, FEW)
        more = "" if last is None else f", {1_000 * (used.cpu - last[1].cpu) / (count - last[0]):.1f} s for 1,000 more"
        print(f"scaling   {count:>6,} images: {used.cpu:.0f} s of CPU{more}; {used.peak:.0f} MiB", flush=True)
        last = count, used
    cores = len(os.sched_getaffinity(0))
    alone = None
    for workers in WORKERS:
        used = together(scratch, SHARED, workers, MANY)
        alone, said = alone or used.wall, f", more than the {cores} cores" * (workers > cores)
        took = f"{used.wall:.0f} s ({used.wall / alone:.2f} of one's), {used.cpu:.0f} s of CPU"
        print(f"scaling   {SHARED:,} images, {workers} workers{said}: {took}; {used.peak:.0f} MiB each", flush=True)


def together(scratch: Path, images: int, workers: int, timesteps: str) -> Used:
    """What an audit of so many images takes in so many processes; the largest of their memories."""
    rng, command = np.random.default_rng(images), [sys.executable, "-m", "diffleak", "audit", str(scratch / "model")]
    for name in ("members", "nonmembers"):
        np.save(scratch / f"{name}.npy", rng.integers(0, 256, (images // 2, 8, 8, 3), dtype=np.uint8))
        command += [f"--{name}", str(scratch / f"{name}.npy")]
    command += ["--attacks", "sima", "--timesteps", timesteps, "--sweep", "all", "--device", "cpu", "--threads", "1"]
    command += ["--chunk-size", "250", "-o", str(scratch / f"run-{images}-{workers}-{timesteps.replace(':', '-')}")]
    started, environment = time.perf_counter(), {**os.environ, "OMP_NUM_THREADS": "1"}
    shards = [[] if workers == 1 else ["--shard", f"{i}/{workers}"] for i in range(1, workers + 1)]
    running = [subprocess.Popen([*command, *shard], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for shard in shards]
    ended = [_ended(process) for process in running]
    wall = time.perf_counter() - started
    return Used(sum(each.ru_utime + each.ru_stime for each in ended), wall, max(each.ru_maxrss for each in ended) / 1024)


def _ended(process: "subprocess.Popen[bytes]") -> resource.struct_rusage:
    """What a process has used; exits with what it said where it failed (3 and 4 are results)."""
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3, 4):
        sys.exit(f"the audit failed: {said}")
    return used


def make(folder: Path) -> None:
    from bench import make_model

    make_model(folder, size=8, channels=(8, 16))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
