"""`make bench`: ratios from one run on this machine. Nothing here asserts; read the numbers.

`make bench PARTS=memory` (or `python benchmarks/bench.py memory threads`) runs some of the parts only.

overhead   queries/s of an audit ÷ queries/s of the same model called in a bare loop (same batch size, dtype, threads)
memory     peak memory of scoring 20,000 images ÷ that of 1,000
threads    seconds of two workers that each take all cores ÷ seconds of two workers that share them
geometry   seconds of a plain loop over images and vectors ÷ seconds of our influence and distortion
masks      seconds of scoring with four masks ÷ without, influence known
files      seconds of writing, checking and reading all files of a run, with their checksums ÷ seconds of scoring it
sharper    seconds of measuring complexity, and of all that calibration adds to the evaluation ÷ seconds of scoring sima over its sweep;
           seconds of `combined` for 10,000 images
scale      seconds of `metrics` and of the paired differences of `compare` for 1,000,000 images ÷ for 100,000, peak memory likewise
text       queries/s of an audit of a small Stable Diffusion ÷ those of its U-Net in a bare loop, embedding of captions included
training   our steps/s ÷ those of diffusers' example loop; a distillation step ÷ an ordinary one; two teachers side by side ÷ one
papers     seconds of an audit of five attacks ÷ those of straight loops, as the papers' codes make them
scaling    CPU seconds and memory of audits of 500 to 20,000 images; wall clock of 1, 2 and 4 workers
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from diffleak.work.folder import Folder

if TYPE_CHECKING:
    from diffleak.diffusion.target import Target

CHANNELS = (32, 64, 64)
SIZE = 32
BATCH = 32
IMAGES = 128
ROUNDS = 2
LOOP = 60


def make_model(folder: Path, size: int = SIZE, channels: tuple[int, ...] = CHANNELS) -> None:
    import torch

    from diffleak import hub

    torch.manual_seed(0)
    blocks = len(channels)
    config = {
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D",) * blocks,
        "up_block_types": ("UpBlock2D",) * blocks,
        "norm_num_groups": 8,
    }
    hub.save(folder, hub.new_network(config), hub.new_scheduler({}))


def overhead(scratch: Path) -> dict[str, float]:
    """Interleaved rounds of a bare loop and of an audit's scoring; the ratio of their best rates."""
    from diffleak import hub

    images = np.random.default_rng(0).integers(0, 256, (2, IMAGES // 2, SIZE, SIZE, 3), dtype=np.uint8)
    for name, side in zip(("members", "nonmembers"), images, strict=True):
        np.save(scratch / f"{name}.npy", side)
    make_model(scratch / "model")
    target = hub.load(scratch / "model", device="cpu")
    cores = os.cpu_count() or 1
    ratios = {attack: ratio(scratch, target, attack, 1) for attack in ("sima", "pia", "secmi")}
    return {**ratios, f"sima on {cores} cores": ratio(scratch, target, "sima", cores)}


def ratio(scratch: Path, target: "Target", attack: str, threads: int) -> float:
    """Best rate of an audit on `threads` chunks side by side over that of a loop on `threads` intra-op threads."""
    import torch

    from diffleak.auditing import score as scoring
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.config import build

    sides = {"members": scratch / "members.npy", "nonmembers": scratch / "nonmembers.npy"}
    settings = {
        "attacks": attack,
        "timesteps": "10:40:10",
        "batch_size": BATCH,
        "chunk_size": 2 * BATCH,
        "device": "cpu",
        "threads": threads,
    }
    prepared = prepare(build(AuditConfig, {**sides, **settings}), target)
    queries = prepared.queries_per_image * IMAGES
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    bare, audited = [], []
    for round_ in range(ROUNDS):
        torch.set_num_threads(threads)
        started = time.perf_counter()
        with torch.inference_mode():
            for i in range(queries // BATCH):
                _ = target.denoiser.network(x, torch.tensor(i % 1000)).sample
        bare.append(queries / (time.perf_counter() - started))
        started = time.perf_counter()
        assert scoring.score(prepared.job, Folder(scratch / f"{attack}-{threads}-{round_}"), prepared.worker) == 0
        audited.append(queries / (time.perf_counter() - started))
    return max(audited) / max(bare)


def peak_memory(scratch: Path, count: int) -> int:
    """Peak resident memory, in KiB, of a fresh process that scores `count` images a run of the command line would."""
    folder = scratch / f"memory-{count}"
    folder.mkdir()
    rng = np.random.default_rng(count)
    for name in ("members", "nonmembers"):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (count // 2, 16, 16, 3), dtype=np.uint8))
    make_model(folder / "model", size=16, channels=(8, 16))
    answer = subprocess.run(
        [sys.executable, __file__, "--score", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    return int(answer.stdout)


def score_only(folder: Path) -> None:
    from diffleak.auditing import score as scoring
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.config import build

    sides = {"members": folder / "members.npy", "nonmembers": folder / "nonmembers.npy", "model": str(folder / "model")}
    prepared = prepare(build(AuditConfig, {**sides, "attacks": "sima", "timesteps": "50:100:50", "device": "cpu"}))
    scoring.score(prepared.job, Folder(folder / "run"), prepared.worker)
    print(_peak())


def two_processes(scratch: Path, threads: int) -> float:
    """Seconds of wall clock of two bare loops side by side, each on `threads` intra-op threads (imports left out)."""
    workers = [
        subprocess.Popen([sys.executable, __file__, "--loop", str(scratch / "model"), str(threads)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    return max(float(worker.communicate()[0]) for worker in workers)


def loop_only(folder: Path, threads: int) -> None:
    import torch

    from diffleak import hub

    denoiser = hub.load(folder, device="cpu").denoiser
    torch.set_num_threads(threads)
    x = torch.randn(4, 3, SIZE, SIZE)
    with torch.inference_mode():
        denoiser(x, 0)
        started = time.perf_counter()
        for t in range(LOOP):
            denoiser(x, t)
    print(time.perf_counter() - started)


def print_overhead(scratch: Path) -> None:
    for attack, ratio in overhead(scratch).items():
        print(f"overhead  {attack:<15} audit ÷ bare loop: {ratio:.3f}   (aim >= 0.95)", flush=True)


def print_memory(scratch: Path) -> None:
    small, large = peak_memory(scratch, 1_000), peak_memory(scratch, 20_000)
    print(
        f"memory    20,000 ÷ 1,000 images: {large / small:.3f}   ({large / 1024:.0f} and {small / 1024:.0f} MiB; aim <= 1.05)",
        flush=True,
    )


def print_threads(scratch: Path) -> None:
    make_model(scratch / "model")
    cores = os.cpu_count() or 1
    greedy, ours = two_processes(scratch, cores), two_processes(scratch, 1)
    ratio_of_two = f"{greedy / ours:.2f}   (above 1: one is faster)"
    print(f"threads   two processes, {cores} intra-op threads each ÷ one each, as audits run: {ratio_of_two}", flush=True)


def print_geometry(scratch: Path) -> None:
    import geometry

    geometry.main()


def latent_audit(scratch: Path) -> tuple["Target", dict[str, Any]]:
    """A small latent model and the settings of an audit of it."""
    from geometry import make_codec

    from diffleak import hub

    preset = Path(hub.__file__).parents[1] / "training" / "presets" / "latent.yaml"
    network = hub.new_network({"sample_size": 8, "in_channels": 4, "out_channels": 4, **yaml.safe_load(preset.read_text())["model"]})
    hub.save(scratch / "model", network, hub.new_scheduler({}), hub.codec_of(make_codec().network, 1.0))
    images = np.random.default_rng(0).integers(0, 256, (2, IMAGES // 2, SIZE, SIZE, 3), dtype=np.uint8)
    for name, side in zip(("members", "nonmembers"), images, strict=True):
        np.save(scratch / f"{name}.npy", side)
    sides = {name: str(scratch / f"{name}.npy") for name in ("members", "nonmembers")}
    given = {"model": str(scratch / "model"), **sides, "attacks": "sima", "timesteps": "10:300:10", "device": "cpu", "threads": 1}
    return hub.load(scratch / "model", device="cpu"), given


def print_masks(scratch: Path) -> None:
    """Rounds of scoring sima with and without masks, taking turns; latents and influence are there already."""
    from diffleak.auditing import score as scoring
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.config import build

    (target, given), seconds = latent_audit(scratch), dict[str, list[float]]()
    for round_ in range(2 * ROUNDS):
        for name, masks in (("plain", ()), ("masked", ("influence", "random", "reverse", "influence:0.8"))):
            prepared = prepare(build(AuditConfig, {**given, "mask": masks}), target)
            job, folder = prepared.job, Folder(scratch / f"{name}-{round_}")
            job.inputs.prepare(folder, job.chunks, job.plan.batch_size, 1)
            started = time.perf_counter()
            assert scoring.score(job, folder, prepared.worker) == 0
            seconds.setdefault(name, []).append(time.perf_counter() - started)
    added = min(seconds["masked"]) / min(seconds["plain"]) - 1
    print(f"masks     four masks add {100 * added:.2f} % to the scoring time of sima   (aim < 1 % for one)", flush=True)


def print_files(scratch: Path) -> None:
    """All files of a run of sima on latents: the seconds of scoring it, and those of the files alone, done once more."""
    from diffleak.auditing import score as scoring
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.config import build
    from diffleak.records.scores import write_chunk

    target, given = latent_audit(scratch)
    prepared, folder = prepare(build(AuditConfig, given), target), Folder(scratch / "run")
    job = prepared.job
    started = time.perf_counter()
    assert scoring.score(job, folder, prepared.worker) == 0
    scored = time.perf_counter() - started
    best = scored
    for _ in range(2 * ROUNDS):
        started = time.perf_counter()
        assert scoring.score(job, folder, prepared.worker) == 0, "a run that is finished is checked only"
        scoring.collect(job, folder.path)
        for chunk, rows in job.chunks.items():
            for file in job.inputs.files(chunk):
                folder.save(file, folder.load(file))
            path, ids = job.file(folder.path, chunk, 0), job.cohort.ids[rows.start : rows.stop]
            statistic, meta = job.read(path, chunk, 0)
            write_chunk(path, ids, job.labels(job.attacks[0]), job.attacks[0].columns, statistic, meta, 0.0)
        best = min(best, time.perf_counter() - started)
    print(
        f"files     writing, checking and reading them takes {100 * best / scored:.2f} % of the scoring time of sima   (aim < 2 %)",
        flush=True,
    )


def print_sharper(scratch: Path) -> None:
    """Images of random pixels are the dearest to compress; the numbers of combined are those of six attacks at thirty timesteps."""
    from diffleak.attacks.base import SWEEP
    from diffleak.auditing import score as scoring
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.config import build
    from diffleak.data.complexity import complexity
    from diffleak.records.scores import Scores
    from diffleak.stats import evaluation
    from diffleak.stats.calibration import features

    rng, each = np.random.default_rng(0), IMAGES // 2
    images = rng.integers(0, 256, (2, each, SIZE, SIZE, 3), dtype=np.uint8)
    for name, side in zip(("members", "nonmembers"), images, strict=True):
        np.save(scratch / f"{name}.npy", side)
    make_model(scratch / "model")
    sides = {name: str(scratch / f"{name}.npy") for name in ("members", "nonmembers")}
    given = {"model": str(scratch / "model"), **sides, "attacks": ["sima"], "device": "cpu", "threads": 1}
    prepared, folder = prepare(build(AuditConfig, given)), Folder(scratch / "run")
    scored = _seconds(lambda: scoring.score(prepared.job, folder, prepared.worker)) / IMAGES
    measured = _seconds(lambda: [complexity(image) for image in images.reshape(IMAGES, SIZE, SIZE, 3)]) / IMAGES
    print(
        f"sharper   complexity takes {100 * measured / scored:.2f} % of scoring sima over {len(SWEEP)} timesteps   (aim < 2 %)", flush=True
    )
    n = 10_000
    ids, member, c = tuple(map(str, range(n))), np.arange(n) % 2 == 0, rng.normal(size=(n, 7))
    noise = lambda: np.exp(rng.normal(size=(n, 1)) + 0.3 * rng.normal(size=(n, len(SWEEP))))
    parts = [Scores(f"attack-{i}", "small", SWEEP, ids, noise()) for i in range(6)]
    split = evaluation.divided(ids, member, 0.2, 0)
    base = evaluation.on_every_split(parts[0], member, split)
    calibrated = _seconds(lambda: evaluation.evaluate_calibrated(base, features(c), member, split)) / n
    print(f"sharper   calibrating sima takes {100 * calibrated / scored:.2f} % of scoring it   (aim < 2 %)", flush=True)
    together = _seconds(lambda: evaluation.evaluate_combined(evaluation.combined(parts, c), base, member, split))
    print(f"sharper   combined, six attacks at {len(SWEEP)} timesteps, {n:,} images: {together:.2f} s   (aim < 1 s)", flush=True)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def print_scale(scratch: Path) -> None:
    """Seconds are those of the processor in a fresh process, imports left out: reading the file is in those of metrics."""
    for what in ("csv", "parquet", "differences"):
        (small, less), (large, more) = (scale_of(scratch, what, n) for n in (100_000, 1_000_000))
        print(
            f"scale     {what:<11} 1,000,000 ÷ 100,000 images: {large / small:.1f} in time, {more / less:.1f} in memory   "
            f"({large:.2f} and {small:.2f} s, {more / 1024:.0f} and {less / 1024:.0f} MiB; aim <= 12 and <= 10)",
            flush=True,
        )


def scale_of(scratch: Path, what: str, n: int) -> tuple[float, int]:
    """Seconds of the processor, and KiB of peak memory, of a fresh process that computes on n images."""
    command = [sys.executable, __file__, "--scale", what, str(scratch / f"{n}.{what}"), str(n)]
    for step in ("make", "take"):
        answer = subprocess.run([*command, step], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds, kib = answer.stdout.split()
    return float(seconds), int(kib)


def scale_only(what: str, path: Path, n: int, step: str) -> None:
    from diffleak.auditing.score_file import evaluate_file
    from diffleak.stats import metrics

    rng, member = np.random.default_rng(0), np.arange(n) % 2 == 0
    scores = rng.normal(size=(n, 2)) + member[:, None] * [0.5, 0.3]
    if step == "make" and what != "differences":
        import pandas as pd

        table = pd.DataFrame({"id": [f"{i:07d}.png" for i in range(n)], "member": member.astype(int), "score": scores[:, 0]})
        _ = table.to_csv(path, index=False) if what == "csv" else table.to_parquet(path)
    if step == "take":
        started = time.process_time()
        if what == "differences":
            m, n_ = scores[member], scores[~member]
            _ = metrics.auc_difference(m, n_), metrics.tpr_difference(m, n_, 0.1), metrics.tpr_difference(m, n_, 0.01)
        else:
            evaluate_file(path)
        print(time.process_time() - started, _peak())


def _peak() -> int:
    """Peak resident memory of this process in KiB."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin at the parent's size
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def print_text(scratch: Path) -> None:
    import text

    for attack, ratio in text.ratios(scratch):
        print(f"text      {attack:<15} audit ÷ bare loop: {ratio:.3f}   (aim >= 0.95)", flush=True)


def print_training(scratch: Path) -> None:
    import training

    ours, student = training.step_ratios(scratch)
    print(f"training  our steps/s ÷ those of diffusers' example loop  {ours:.3f}   (aim >= 1.0)", flush=True)
    print(f"training  a distillation step ÷ an ordinary step  {student:.3f}   (aim <= 1.45)", flush=True)
    pair = training.side_by_side_ratio(scratch)
    print(f"training  two teachers in two processes ÷ one in one  {pair:.3f}   (aim <= 1.15 where the cores allow it)", flush=True)


def print_scaling(scratch: Path) -> None:
    import scaling

    scaling.main(scratch)


def print_papers(scratch: Path) -> None:
    import papers

    papers.main(scratch)


PARTS = {
    "overhead": print_overhead,
    "memory": print_memory,
    "threads": print_threads,
    "geometry": print_geometry,
    "masks": print_masks,
    "files": print_files,
    "sharper": print_sharper,
    "scale": print_scale,
    "text": print_text,
    "training": print_training,
    "papers": print_papers,
    "scaling": print_scaling,
}


def main(names: list[str]) -> None:
    if not PARTS.keys() >= set(names):
        sys.exit(f"the parts are {', '.join(PARTS)}; got {' '.join(names)}")
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            PARTS[name](Path(scratch))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--score"]:
        score_only(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--loop"]:
        loop_only(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--scale"]:
        scale_only(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main(sys.argv[1:])
