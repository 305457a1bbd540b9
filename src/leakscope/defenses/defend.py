"""`leakscope defend`: from one set of settings to the models of a defence, each an ordinary diffusers folder.

    dual           OUT/teacher-1/, OUT/teacher-2/ on disjoint halves, OUT/dual/ in which they take turns
    distill        the same teachers, OUT/student/ taught about each image by the teacher that never saw it
    one-teacher    the control: OUT/teacher/ on all images, OUT/student/ taught by it

OUT/split.json says who is a member, which half each is in and which teachers belong to the halves. Teachers are ordinary
runs of `leakscope train` (their settings are in OUT/teacher-1/train.yaml), so everything resumes; the same OUT serves
`dual` and `distill`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, model_validator

from leakscope import hub
from leakscope.config import build, read_yaml
from leakscope.data.sources import open_source
from leakscope.defenses.halves import split_halves
from leakscope.diffusion.dual import Choice
from leakscope.errors import UserError
from leakscope.files import checked_folder, write_text
from leakscope.training.distillation import Lesson
from leakscope.training.images import read_training_data, training_shape
from leakscope.training.run import train
from leakscope.training.settings import TrainConfig, train_settings

Method = Literal["dual", "distill", "one-teacher"]
TEACHERS = ("teacher-1", "teacher-2")


class DefendConfig(TrainConfig):
    """Everything that decides a defence: the settings of `leakscope train`, which all its models share, and these.

    `steps` holds for teachers and student alike unless `teacher_steps` or `student_steps` say otherwise. `teachers` are
    folders that are trained already; `halves` then says what on, where their own split.json does not.
    """

    method: Method
    teachers: tuple[Path, ...] = ()
    halves: Path | None = None
    near_duplicates: float = Field(0.03, ge=0, le=1)
    teacher_steps: int | None = Field(None, ge=1)
    student_steps: int | None = Field(None, ge=1)
    choice: Choice = "alternate"
    side_by_side: bool | None = None

    @model_validator(mode="after")
    def _no_yardsticks(self) -> "DefendConfig":
        if self.validation or self.private:
            which = "--validation" if self.validation else "DP-SGD"
            raise ValueError(f"{which} is another defence to compare with, not a part of this one; train it by leakscope train")
        return self


def defend_config(method: str, preset: str | None = None, file: Path | None = None, **flags: Any) -> DefendConfig:
    """The settings of a preset, then of a YAML file, then of the flags; with given teachers, a model like theirs."""
    given = flags.get("teachers") or (read_yaml(file).get("teachers") if file else None)
    if isinstance(given, str):
        given = flags["teachers"] = tuple(Path(part.strip()) for part in given.split(",") if part.strip())
    layers = train_settings(preset, file, {**flags, "method": method})
    if given and preset is None and file is None:
        layers = ({key: value for key, value in layers[0].items() if key not in ("model", "scheduler")}, *layers[1:])
    return build(DefendConfig, *layers)


def defend(config: DefendConfig) -> Path:
    """Trains what is missing of a defence and returns the folder of the model that would be released.

    Raises `UserError` for a set too small to split, teachers that do not fit each other or the data, and a folder that
    holds another defence.
    """
    if config.kind != "denoiser":
        raise UserError(f"a defence trains denoisers; got kind {config.kind}: train the autoencoder first and give --autoencoder")
    checked_folder(config.output)
    if config.method == "one-teacher":
        return _student(config, Lesson(_one_teacher(config)))
    halves = _halves(config)
    teachers = config.teachers or _train_teachers(config, halves)
    _write_split(config, halves, tuple(hub.fingerprint(teacher) for teacher in teachers))
    if config.method == "distill":
        return _student(config, Lesson(tuple(teachers), halves))
    dual = config.output / "dual"
    hub.save_dual(dual, (teachers[0], teachers[1]), config.choice, config.seed)
    write_text(dual / "split.json", (config.output / "split.json").read_text(encoding="utf-8"))
    return dual


def _halves(config: DefendConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The halves of given teachers, of an earlier command in this folder, or new ones."""
    if config.teachers and len(config.teachers) != 2:
        raise UserError(f"two teachers must be given, as --teachers A,B; got {len(config.teachers)}")
    if config.halves or config.teachers:
        return _given_halves(config)
    codec = hub.load_codec(config.autoencoder, device="cpu") if config.autoencoder else None
    shape = training_shape(open_source(config.data), config, codec.network.config.in_channels if codec else None)
    data = read_training_data(config, shape)
    halves = split_halves(data.members, data.images, config.near_duplicates, config.seed)
    before = config.output / "split.json"
    if before.exists() and _read_halves(before) != (halves.first, halves.second):
        raise UserError(
            f"{config.output} holds a defence with other halves; choose another -o, or the same data, seed and --near-duplicates"
        )
    together = f", {halves.groups} groups of near-duplicates kept together" if halves.groups else ""
    print(f"halves: {len(halves.first)} and {len(halves.second)} images{together}", file=sys.stderr)
    split = {"members": data.members, "nonmembers": data.nonmembers, "halves": [halves.first, halves.second]}
    if not before.exists():
        write_text(before, json.dumps(split))
    return halves.first, halves.second


def _given_halves(config: DefendConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What given teachers were trained on, checked against each other and the data."""
    if config.halves:
        first, second = _read_halves(config.halves)
    else:
        first, second = (_trained_on(teacher) for teacher in config.teachers)
    both = set(first) & set(second)
    if both:
        raise UserError(f"the teachers must be trained on disjoint images; {len(both)} are in both splits (first: {min(both)})")
    source = open_source(config.data)
    unknown = (set(first) | set(second)) - set(source.ids)
    if unknown:
        raise UserError(
            f"{source.name} must hold the images the teachers were trained on; {len(unknown)} are not there (first: {min(unknown)})"
        )
    return first, second


def _trained_on(teacher: Path) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads((teacher / "split.json").read_text(encoding="utf-8"))["members"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"nothing says what {teacher} was trained on: it has no split.json with members; "
            'give --halves FILE, JSON {"halves": [IDS OF THE FIRST, IDS OF THE SECOND]}'
        ) from None


def _read_halves(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        first, second = (tuple(map(str, half)) for half in json.loads(path.read_text(encoding="utf-8"))["halves"])
    except OSError as error:
        raise UserError(f"the halves {path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} must be JSON of the form {{"halves": [IDS OF THE FIRST, IDS OF THE SECOND]}}') from None
    if not first or not second:
        raise UserError(f"{path} must give both halves at least one image")
    return first, second


def _held_out(config: DefendConfig, members: set[str]) -> list[str]:
    """Who is held out: as the split file of the data says; with given teachers and none, every other image of the data."""
    before = config.output / "split.json"
    if before.exists():
        return list(json.loads(before.read_text(encoding="utf-8"))["nonmembers"])
    if config.split:
        return list(map(str, json.loads(config.split.read_text(encoding="utf-8"))["nonmembers"]))
    return [i for i in open_source(config.data).ids if i not in members]


def _write_split(config: DefendConfig, halves: tuple[tuple[str, ...], tuple[str, ...]], fingerprints: Sequence[str]) -> None:
    members = {i for half in halves for i in half}
    held_out = [i for i in _held_out(config, members) if i not in members]
    order = [i for i in open_source(config.data).ids if i in members]
    split = {"members": order, "nonmembers": held_out, "halves": halves, "teachers": fingerprints}
    write_text(config.output / "split.json", json.dumps(split))


def _train_teachers(config: DefendConfig, halves: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[Path, ...]:
    """Trains a teacher on each half, side by side where there are two devices or several cores."""
    folders = tuple(config.output / name for name in TEACHERS)
    nonmembers = json.loads((config.output / "split.json").read_text(encoding="utf-8"))["nonmembers"]
    together = _side_by_side(config)
    for number, (folder, half) in enumerate(zip(folders, halves, strict=True)):
        folder.mkdir(exist_ok=True)
        other = halves[1 - number]
        write_text(folder / "split.json", json.dumps({"members": half, "nonmembers": nonmembers or other}))
        threads = config.threads or (max(1, (os.cpu_count() or 1) // 2) if together else None)
        settings = config.model_copy(
            update={
                "output": folder,
                "split": folder / "split.json",
                "train_size": None,
                "steps": config.teacher_steps or config.steps,
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
            print(f"{folder.name}: {folder}", file=sys.stderr)
            train(build(TrainConfig, read_yaml(folder / "train.yaml")))
    return folders


def _side_by_side(config: DefendConfig) -> bool:
    """Whether each teacher gets a process of its own: two accelerators, or at least two cores without any."""
    if config.side_by_side is not None:
        return config.side_by_side
    accelerators = torch.cuda.device_count() if config.device == "auto" else 0
    return accelerators >= 2 or (not accelerators and (os.cpu_count() or 1) >= 2)


def _run_side_by_side(folders: Sequence[Path]) -> None:
    """One `leakscope train` per teacher; their lines carry the teacher's name, and the first failure stops both."""
    devices = torch.cuda.device_count()
    processes, threads, last = [], [], ["" for _ in folders]
    for number, folder in enumerate(folders):
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": str(number % devices)} if devices else {})}
        command = [sys.executable, "-m", "leakscope", "train", "-C", str(folder / "train.yaml")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
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
    for thread in threads:
        thread.join()
    for folder, code, line in zip(folders, codes, last, strict=True):
        if code == 2:
            raise UserError(f"{folder.name}: {line.removeprefix('leakscope: ')}")
        if code:
            raise RuntimeError(f"training {folder} ended with exit code {code}: {line}")


def _relay(lines: Iterable[str], name: str, number: int, last: list[str]) -> None:
    for line in lines:
        last[number] = line.strip()
        print(f"{name} {line}", end="", file=sys.stderr, flush=True)


def _one_teacher(config: DefendConfig) -> tuple[Path, ...]:
    """The teacher of plain distillation: given, or trained on all images."""
    if len(config.teachers) > 1:
        raise UserError(f"one-teacher distillation takes one teacher, as --teachers MODEL; got {len(config.teachers)}")
    if config.teachers:
        return config.teachers
    folder = config.output / "teacher"
    settings = config.model_copy(update={"output": folder, "steps": config.teacher_steps or config.steps})
    return (train(TrainConfig(**settings.model_dump(include=set(TrainConfig.model_fields)))),)


def _student(config: DefendConfig, lesson: Lesson) -> Path:
    """Trains the student, by default a network like its first teacher's, on everything its teachers were trained on."""
    teacher = lesson.teachers[0]
    split = config.output / "split.json"
    if not lesson.halves:
        trained = {"members": _trained_on(teacher), "nonmembers": _nonmembers(teacher)}
        write_text(split, json.dumps(trained))
    latent = any((teacher / name).is_dir() for name in hub.AUTOENCODER_FOLDERS)
    model, scheduler = hub.settings_of(teacher)
    update = {
        "output": config.output / "student",
        "steps": config.student_steps or config.steps,
        "split": split,
        "train_size": None,
        "seed": config.seed + len(lesson.teachers),
        "autoencoder": teacher if latent else None,
        "model": config.model or model,
        "scheduler": config.scheduler or scheduler,
    }
    return train(TrainConfig(**config.model_copy(update=update).model_dump(include=set(TrainConfig.model_fields))), lesson)


def _nonmembers(teacher: Path) -> list[str]:
    return list(json.loads((teacher / "split.json").read_text(encoding="utf-8")).get("nonmembers", []))
