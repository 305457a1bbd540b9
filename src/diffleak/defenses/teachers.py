"""The teachers of a defence: given ones are checked, the others are trained, side by side where that pays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Thread, current_thread, main_thread

import yaml

from diffleak import hub
from diffleak.config import build, read_yaml
from diffleak.data.split import FILE, Split, find_split
from diffleak.defenses.config import DefendConfig
from diffleak.diffusion.devices import accelerators, one_accelerator_each
from diffleak.diffusion.target import Target
from diffleak.errors import UserError, one_or_more
from diffleak.training.config import TrainConfig
from diffleak.training.run import train
from diffleak.work.files import write_text
from diffleak.work.folder import read_object
from diffleak.work.progress import say

TEACHERS = ("teacher-1", "teacher-2")


def refuse_unfit_teachers(config: DefendConfig) -> None:
    """Raises `UserError` for given teachers that are no finished models, or that cannot teach together."""
    if not config.teachers:
        if config.halves:
            raise UserError("--halves says what given teachers were trained on; give --teachers A,B too, or leave it out")
        return
    if len(config.teachers) != 2:
        raise UserError(f"two teachers must be given, as --teachers A,B; got {len(config.teachers)}")
    if config.train_size:
        raise UserError("given teachers were trained already, which decides who is a member; leave out --train-size")
    _refuse_missing(config.teachers)
    target, _ = hub.load_pair((config.teachers[0], config.teachers[1]))
    _refuse_other_kind_of_teacher(config, config.teachers[0], target)


def _refuse_other_kind_of_teacher(config: DefendConfig, teacher: Path, target: Target) -> None:
    """A student works on what its teachers do: captions or none, and the latents of one autoencoder."""
    if (target.text is None) != (config.base is None):
        what = (
            "takes no captions; leave out --base" if target.text is None else "takes captions; give --base, the model it was trained from"
        )
        raise UserError(f"a student is a model like its teachers, and {teacher} {what}")
    latent = target.latent
    if config.autoencoder and not (latent and hub.codec_fingerprint(config.autoencoder) == hub.codec_fingerprint(teacher)):
        own = "with another autoencoder" if latent else "on pixels"
        raise UserError(f"a student works on what its teachers do, and {teacher} was trained {own}; leave out --autoencoder")
    if latent and config.flip and not config.base:
        raise UserError("latents cannot be flipped like pixels; leave out --flip")


def _refuse_missing(teachers: Sequence[Path]) -> None:
    for teacher in teachers:
        if not teacher.is_dir():
            raise UserError(f"--teachers must be folders of trained models; there is none at {teacher}")


def split_of(teacher: Path) -> Split:
    """The split.json of a teacher; raises `UserError` where none says what it was trained on."""
    split = find_split(teacher / FILE, "members")
    if split is None:
        raise UserError(
            f"nothing says what {teacher} was trained on: it has no split.json with members; "
            'put one there, or for two teachers give --halves FILE, JSON {"halves": [IDS OF THE FIRST, IDS OF THE SECOND]}'
        )
    return split


def one_teacher(config: DefendConfig) -> tuple[Path, ...]:
    """The teacher of plain distillation: given, or trained on all images."""
    if len(config.teachers) > 1 or config.halves:
        got = f"got {len(config.teachers)}" if len(config.teachers) > 1 else "--halves is for two"
        raise UserError(f"one-teacher distillation takes one teacher, as --teachers MODEL; {got}")
    if config.teachers:
        _refuse_missing(config.teachers)
        _refuse_other_kind_of_teacher(config, config.teachers[0], hub.load(config.teachers[0], device="cpu"))
        return config.teachers
    folder = config.output / "teacher"
    settings = config.model_copy(update={"output": folder, "steps": config.teacher_steps or config.steps})
    return (train(TrainConfig(**settings.model_dump(include=set(TrainConfig.model_fields)))),)


def train_teachers(config: DefendConfig, halves: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[Path, ...]:
    """Trains a teacher on each half, side by side where there are two devices or several cores."""
    folders = tuple(config.output / name for name in TEACHERS)
    split, steps = Split.read(config.output / FILE), config.teacher_steps or config.steps
    for folder in folders if split.teachers else ():
        path = folder / "train.json"
        before = read_object(path, f"delete {folder} to train it again").get("steps") if path.exists() else steps
        if before != steps:
            after = one_or_more(before, "step") if isinstance(before, int) else f"{before} steps"
            raise UserError(f"{folder} is finished after {after}, and what was made of it would not fit {steps}; choose another -o")
    together = _side_by_side(config)
    for number, (folder, half) in enumerate(zip(folders, halves, strict=True)):
        folder.mkdir(exist_ok=True)
        Split(half, split.nonmembers or halves[1 - number]).write(folder)
        threads = config.threads or (max(1, (os.cpu_count() or 1) // 2) if together else None)
        settings = config.model_copy(
            update={
                "output": folder,
                "split": folder / FILE,
                "train_size": None,
                "steps": steps,
                "seed": config.seed + number,
                "threads": threads,
            }
        )
        kept = settings.model_dump(mode="json", include=set(TrainConfig.model_fields), exclude_none=True)
        write_text(folder / "train.yaml", yaml.safe_dump(kept, sort_keys=False))
    if together:
        _run_side_by_side(folders)
    else:
        for folder in folders:
            say(f"{folder.name}: {folder}")
            train(build(TrainConfig, read_yaml(folder / "train.yaml")))
    return folders


def _side_by_side(config: DefendConfig) -> bool:
    """True if each teacher gets a process of its own: two accelerators, or at least two cores without any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # a launcher's processes share each training already
        if config.side_by_side:
            raise UserError("--side-by-side starts processes of its own; leave it out under a launcher")
        return False
    if config.side_by_side is not None:
        return config.side_by_side
    found = accelerators() if config.device == "auto" else 0
    return found >= 2 or (not found and (os.cpu_count() or 1) >= 2)


def _run_side_by_side(folders: Sequence[Path]) -> None:
    """One `diffleak train` per teacher; their lines carry the teacher's name, and the first failure stops both."""
    processes, threads, last = [], [], ["" for _ in folders]
    alone = current_thread() is main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # else it raises what ends this
    ended = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if alone else None
    for number, (folder, sees) in enumerate(zip(folders, one_accelerator_each(len(folders)), strict=True)):
        command = [sys.executable, "-m", "diffleak", "train", "-C", str(folder / "train.yaml")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **sees})
        processes.append(process)
        threads.append(Thread(target=_relay, args=(process.stderr, folder.name, number, last), daemon=True))
        threads[-1].start()
    try:
        while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
            time.sleep(0.1)
        codes = [process.poll() or 0 for process in processes]
    finally:
        for process in processes:
            process.terminate()  # nothing to a process that has ended
            process.wait()
        if ended is not None:
            signal.signal(signal.SIGTERM, ended)
    for thread in threads:
        thread.join()
    for folder, code, line in zip(folders, codes, last, strict=True):
        if code == 2:
            raise UserError(f"{folder.name}: {line.removeprefix('diffleak: ')}")
        if code:
            raise RuntimeError(f"training {folder} ended with exit code {code}: {line}")


def _relay(lines: Iterable[str], name: str, number: int, last: list[str]) -> None:
    for line in lines:
        last[number] = line.strip()
        say(f"{name} {line.rstrip()}")
