"""`diffleak defend`: from one set of settings to the models of a defence, each an ordinary diffusers folder.

    dual           OUT/teacher-1/, OUT/teacher-2/ on disjoint halves, OUT/dual/ in which they take turns
    distill        the same teachers, OUT/student/ taught about each image by the teacher that never saw it
    one-teacher    the control: OUT/teacher/ on all images, OUT/student/ taught by it

OUT/split.json says who is a member, which half each is in and which teachers belong to the halves. Teachers are ordinary
runs of `diffleak train` (their settings are in OUT/teacher-1/train.yaml), so everything resumes; the same OUT serves
`dual` and `distill`.
"""

import os
from collections.abc import Set
from pathlib import Path
from typing import Any

from diffleak import hub
from diffleak.data.sources import open_source
from diffleak.data.split import FILE, Ids, Split, find_split, read_split
from diffleak.defenses.config import DefendConfig
from diffleak.defenses.halves import halves_of
from diffleak.defenses.teachers import one_teacher, refuse_unfit_teachers, split_of, train_teachers
from diffleak.errors import UserError, one_or_more
from diffleak.records.run_folder import TRAINED, refuse_other_command
from diffleak.training.config import TrainConfig
from diffleak.training.distillation import Lesson
from diffleak.training.run import train
from diffleak.work.files import checked_folder
from diffleak.work.folder import read_object


def defend(config: DefendConfig) -> Path:
    """Trains what is missing of a defence.

    Args:
        config: The settings, as `defend_config` makes them.

    Returns:
        The folder of the model that would be released.

    Raises:
        UserError: For a set too small to split, teachers that do not fit each other or the data, and a folder that holds another defence.

    Source:
        Tran et al. 2024, arXiv 2410.16657.
    """
    if config.kind not in ("denoiser", "text-to-image"):
        raise UserError(f"a defence trains denoisers; got kind {config.kind}: train the autoencoder first and give --autoencoder")
    refuse_other_command(config.output, TRAINED)
    checked_folder(config.output)
    _refuse_other_kind(config)
    if config.method == "one-teacher":
        return _student(config, Lesson(one_teacher(config)))
    refuse_unfit_teachers(config)
    halves = halves_of(config)
    teachers = config.teachers or train_teachers(config, halves)
    _write_split(config, halves, (hub.fingerprint(teachers[0]), hub.fingerprint(teachers[1])))
    if config.method == "distill":
        return _student(config, Lesson(tuple(teachers), halves))
    dual = config.output / "dual"
    turns = dual / hub.DUAL
    if turns.exists() and read_object(turns, f"delete {dual} to write it again").get("choice") != config.choice:
        raise UserError(f"{dual} takes turns in another way; choose another -o, or the same --choice")
    if int(os.environ.get("RANK", 0)) == 0:
        hub.save_dual(dual, (teachers[0], teachers[1]), config.choice, config.seed)
        Split.read(config.output / FILE).write(dual)
    return dual


def _refuse_other_kind(config: DefendConfig) -> None:
    """Raises `UserError` when OUT holds a defence with another number of teachers, before anything of it is touched."""
    path = config.output / FILE
    two = Split.read(path).halves is not None if path.exists() else config.method != "one-teacher"
    if two != (config.method != "one-teacher"):
        held = f"a defence with {'two teachers' if two else 'one teacher'}"
        if not two and not any((config.output / name).is_dir() for name in ("teacher", "student")):
            held = f"a {FILE} that no defence wrote"
        raise UserError(f"{config.output} holds {held}; choose another -o")


def _held_out(config: DefendConfig, members: Set[str], ids: Ids) -> Ids:
    """Who is held out: as the split file of the data says; with given teachers and none, every other image of the data."""
    if not config.split:
        splits = [find_split(teacher / FILE) or Split() for teacher in config.teachers]
        aside = {i for split in splits for i in split.validation}  # they chose a teacher's weights
        return tuple(i for i in ids if i not in members and i not in aside)
    listed, held_out = read_split(config.split, open_source(config.data, config.decoding))
    if set(listed) != members:
        raise UserError(
            f"{config.split} must have the members that the teachers were trained on; "
            f"{one_or_more(len(set(listed) ^ members), 'id is', 'ids are')} in only one of the two"
        )
    return held_out


def _write_split(config: DefendConfig, halves: tuple[Ids, Ids], fingerprints: tuple[str, str]) -> None:
    """Writes OUT/split.json; raises `UserError` when it is that of another defence."""
    path, ids = config.output / FILE, open_source(config.data, config.decoding).ids
    before = Split.read(path) if path.exists() else None
    if before and (before.teachers not in (None, fingerprints) or before.halves != halves):
        other = "halves" if before.teachers in (None, fingerprints) else "teachers"
        raise UserError(f"{config.output} holds a defence with other {other}; choose another -o")
    members = {i for half in halves for i in half}
    held_out = before.nonmembers if before else _held_out(config, members, ids)
    Split(tuple(i for i in ids if i in members), held_out, halves=halves, teachers=fingerprints).write(config.output)


def _student(config: DefendConfig, lesson: Lesson) -> Path:
    """Trains the student, by default a network like its first teacher's, on everything its teachers were trained on."""
    teacher = lesson.teachers[0]
    split = config.output / FILE
    if not lesson.halves:
        own = split_of(teacher)
        trained = Split(own.members, own.nonmembers)
        if split.exists() and Split.read(split) != trained:
            raise UserError(f"{config.output} holds a defence with another teacher; choose another -o")
        trained.write(config.output)
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
