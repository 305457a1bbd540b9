"""`diffleak defend`: from one set of settings to the models of a defence, each an ordinary diffusers folder.

    dual           OUT/teacher-1/, OUT/teacher-2/ on disjoint halves, OUT/dual/ in which they take turns
    distill        the same teachers, OUT/student/ taught about each image by the teacher that never saw it
    one-teacher    the control: OUT/teacher/ on all images, OUT/student/ taught by it

OUT/split.json says who is a member, which half each is in and which teachers belong to the halves. Teachers are ordinary
runs of `diffleak train` (their settings are in OUT/teacher-1/train.yaml), so everything resumes; the same OUT serves
`dual` and `distill`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

import torch
import yaml

from diffleak import hub
from diffleak.config import build, read_yaml
from diffleak.data.pixels import ImageShape
from diffleak.data.sources import open_source
from diffleak.data.split import read_split
from diffleak.defenses.config import DefendConfig
from diffleak.defenses.halves import split_halves
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.training.config import TrainConfig
from diffleak.training.distillation import Lesson
from diffleak.training.images import read_training_data, training_shape
from diffleak.training.run import train
from diffleak.training.text_to_image import base_shape, load_base
from diffleak.work.files import checked_folder, write_text

TEACHERS = ("teacher-1", "teacher-2")


def defend(config: DefendConfig) -> Path:
    """Trains what is missing of a defence and returns the folder of the model that would be released.

    Raises `UserError` for a set too small to split, teachers that do not fit each other or the data, and a folder that
    holds another defence.
    """
    if config.kind not in ("denoiser", "text-to-image"):
        raise UserError(f"a defence trains denoisers; got kind {config.kind}: train the autoencoder first and give --autoencoder")
    checked_folder(config.output)
    _refuse_other_kind(config)
    if config.method == "one-teacher":
        return _student(config, Lesson(_one_teacher(config)))
    _refuse_strangers(config)
    halves = _halves(config)
    teachers = config.teachers or _train_teachers(config, halves)
    _write_split(config, halves, tuple(hub.fingerprint(teacher) for teacher in teachers))
    if config.method == "distill":
        return _student(config, Lesson(tuple(teachers), halves))
    dual = config.output / "dual"
    if (dual / hub.DUAL).exists() and json.loads((dual / hub.DUAL).read_text(encoding="utf-8")).get("choice") != config.choice:
        raise UserError(f"{dual} takes turns in another way; choose another -o, or the same --choice")
    if int(os.environ.get("RANK", 0)) == 0:
        hub.save_dual(dual, (teachers[0], teachers[1]), config.choice, config.seed)
        write_text(dual / "split.json", (config.output / "split.json").read_text(encoding="utf-8"))
    return dual


def _refuse_other_kind(config: DefendConfig) -> None:
    """Raises `UserError` when OUT holds a defence with another number of teachers, before anything of it is touched."""
    path = config.output / "split.json"
    two = "halves" in json.loads(path.read_text(encoding="utf-8")) if path.exists() else config.method != "one-teacher"
    if two != (config.method != "one-teacher"):
        raise UserError(f"{config.output} holds a defence with {'two teachers' if two else 'one teacher'}; choose another -o")


def _refuse_strangers(config: DefendConfig) -> None:
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


def _halves(config: DefendConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The halves of given teachers, of an earlier command in this folder, or new ones."""
    if config.teachers:
        return _given_halves(config)
    data = read_training_data(config.model_copy(update={"random_crops": None}), _shape(config))
    halves = split_halves(data.members, data.images, config.near_duplicates, config.seed)
    before = config.output / "split.json"
    if before.exists() and _read_halves(before) != (halves.first, halves.second):
        raise UserError(
            f"{config.output} holds a defence with other halves; choose another -o, or the same data, seed and --near-duplicates"
        )
    together = f", {halves.groups} groups of near-duplicates kept together" if halves.groups else ""
    print(f"halves: {len(halves.first)} and {len(halves.second)} images{together}", file=sys.stderr)
    if not data.nonmembers:
        print("every image is a member: none is held out to audit with (--train-size N or --split FILE hold some out)", file=sys.stderr)
    split = {"members": data.members, "nonmembers": data.nonmembers, "halves": [halves.first, halves.second]}
    if not before.exists():
        write_text(before, json.dumps(split))
    return halves.first, halves.second


def _shape(config: DefendConfig) -> ImageShape:
    """The images that the models of a defence are trained on."""
    if config.base:
        return base_shape(config, load_base(config, "cpu")[1])
    codec = hub.load_codec(config.autoencoder, device="cpu") if config.autoencoder else None
    return training_shape(open_source(config.data, config.decoding), config, codec.network.config.in_channels if codec else None)


def _given_halves(config: DefendConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What given teachers were trained on, checked against each other and the data."""
    if config.halves:
        first, second = _read_halves(config.halves)
        for teacher, half in zip(config.teachers, (first, second), strict=True):
            if (teacher / "split.json").exists() and set(_trained_on(teacher)) != set(half):
                raise UserError(f"{config.halves} must give the halves in the order of --teachers; {teacher}/split.json has other members")
    else:
        first, second = (_trained_on(teacher) for teacher in config.teachers)
    both = set(first) & set(second)
    if both:
        raise UserError(f"the teachers must be trained on disjoint images; {len(both)} are in both splits (first: {min(both)})")
    source = open_source(config.data, config.decoding)
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
            'put one there, or for two teachers give --halves FILE, JSON {"halves": [IDS OF THE FIRST, IDS OF THE SECOND]}'
        ) from None


def _read_halves(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["halves"]
        if not all(isinstance(half, list) for half in listed):
            raise TypeError
        first, second = (tuple(map(str, half)) for half in listed)
    except OSError as error:
        raise UserError(f"the halves {path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} must be JSON of the form {{"halves": [IDS OF THE FIRST, IDS OF THE SECOND]}}') from None
    if not first or not second:
        raise UserError(f"{path} must give both halves at least one image")
    return first, second


def _held_out(config: DefendConfig, members: set[str], ids: tuple[str, ...]) -> tuple[str, ...]:
    """Who is held out: as the split file of the data says; with given teachers and none, every other image of the data."""
    if not config.split:
        aside = {i for teacher in config.teachers for i in _listed(teacher, "validation")}  # they chose a teacher's weights
        return tuple(i for i in ids if i not in members and i not in aside)
    listed, held_out = read_split(config.split, open_source(config.data, config.decoding))
    if set(listed) != members:
        raise UserError(
            f"{config.split} must have the members that the teachers were trained on; "
            f"{len(set(listed) ^ members)} ids are in only one of the two"
        )
    return held_out


def _write_split(config: DefendConfig, halves: tuple[tuple[str, ...], tuple[str, ...]], fingerprints: Sequence[str]) -> None:
    """Writes OUT/split.json; raises `UserError` when it is that of another defence."""
    path, ids = config.output / "split.json", open_source(config.data, config.decoding).ids
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if before and (before.get("teachers", list(fingerprints)) != list(fingerprints) or _read_halves(path) != tuple(halves)):
        raise UserError(f"{config.output} holds a defence with other teachers; choose another -o")
    members = {i for half in halves for i in half}
    held_out = before["nonmembers"] if before else _held_out(config, members, ids)
    split = {"members": [i for i in ids if i in members], "nonmembers": held_out, "halves": halves, "teachers": fingerprints}
    write_text(path, json.dumps(split))


def _train_teachers(config: DefendConfig, halves: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[Path, ...]:
    """Trains a teacher on each half, side by side where there are two devices or several cores."""
    folders = tuple(config.output / name for name in TEACHERS)
    split = json.loads((config.output / "split.json").read_text(encoding="utf-8"))
    nonmembers, steps = split["nonmembers"], config.teacher_steps or config.steps
    for folder in folders if "teachers" in split else ():
        before = json.loads((folder / "train.json").read_text(encoding="utf-8"))["steps"] if (folder / "train.json").exists() else steps
        if before != steps:
            raise UserError(f"{folder} is finished after {before} steps, and what was made of it would not fit {steps}; choose another -o")
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
            print(f"{folder.name}: {folder}", file=sys.stderr)
            train(build(TrainConfig, read_yaml(folder / "train.yaml")))
    return folders


def _side_by_side(config: DefendConfig) -> bool:
    """Whether each teacher gets a process of its own: two accelerators, or at least two cores without any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # a launcher's processes share each training already
        if config.side_by_side:
            raise UserError("--side-by-side starts processes of its own; leave it out under a launcher")
        return False
    if config.side_by_side is not None:
        return config.side_by_side
    accelerators = torch.cuda.device_count() if config.device == "auto" else 0
    return accelerators >= 2 or (not accelerators and (os.cpu_count() or 1) >= 2)


def _run_side_by_side(folders: Sequence[Path]) -> None:
    """One `diffleak train` per teacher; their lines carry the teacher's name, and the first failure stops both."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = [name for name in visible.split(",") if name] or [str(number) for number in range(torch.cuda.device_count())]
    processes, threads, last = [], [], ["" for _ in folders]
    ended = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if current_thread() is main_thread() else None
    for number, folder in enumerate(folders):
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {})}
        command = [sys.executable, "-m", "diffleak", "train", "-C", str(folder / "train.yaml")]
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
        print(f"{name} {line}", end="", file=sys.stderr, flush=True)


def _one_teacher(config: DefendConfig) -> tuple[Path, ...]:
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


def _student(config: DefendConfig, lesson: Lesson) -> Path:
    """Trains the student, by default a network like its first teacher's, on everything its teachers were trained on."""
    teacher = lesson.teachers[0]
    split = config.output / "split.json"
    if not lesson.halves:
        trained = json.dumps({"members": _trained_on(teacher), "nonmembers": _listed(teacher, "nonmembers")})
        if split.exists() and split.read_text(encoding="utf-8") != trained:
            raise UserError(f"{config.output} holds a defence with other teachers; choose another -o")
        write_text(split, trained)
    update: dict[str, Any] = {
        "output": config.output / "student",
        "steps": config.student_steps or config.steps,
        "split": split,
        "train_size": None,
        "seed": config.seed + len(lesson.teachers),
    }
    if not config.base:
        latent = any((teacher / name).is_dir() for name in hub.AUTOENCODER_FOLDERS)
        model, scheduler = hub.settings_of(teacher)
        update |= {
            "autoencoder": teacher if latent else None,
            "model": config.model or model,
            "scheduler": config.scheduler or scheduler,
        }
    return train(TrainConfig(**config.model_copy(update=update).model_dump(include=set(TrainConfig.model_fields))), lesson)


def _listed(teacher: Path, side: str) -> list[str]:
    """The ids on one side of a teacher's split.json; none without the file."""
    path = teacher / "split.json"
    return list(json.loads(path.read_text(encoding="utf-8")).get(side, [])) if path.exists() else []
