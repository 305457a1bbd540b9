"""Finished runs side by side: which belong to which entry, who is tested in both, and what else lies in their folders.

No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.data.split import FILE as SPLIT
from diffleak.data.split import find_split
from diffleak.errors import UserError, one_or_more, shown, unknown
from diffleak.records.audit import AuditRecord, Result
from diffleak.records.comparison import Quality
from diffleak.records.digests import refuse_edited
from diffleak.records.quality import FILE as QUALITY
from diffleak.records.quality import read_quality
from diffleak.records.run_folder import read_samples, unfinished
from diffleak.records.run_folder import read_scores as read_result_scores
from diffleak.records.scores import Samples, Scores, chunk_files, means, numbered
from diffleak.report.judgement import read_record
from diffleak.stats import evaluation
from diffleak.stats.units import chained
from diffleak.work.progress import doing


@dataclass(frozen=True, eq=False)
class Run:
    """A finished audit: its folder as the user wrote it, its record and its samples.

    `images` has a row for each image, `samples` one for each unit that the audit counts, such as a group of images.
    """

    name: str
    record: AuditRecord
    images: Samples

    @cached_property
    def samples(self) -> Samples:
        """What the audit counts: images, clusters of near-duplicates or groups, with the mean of their images' scores."""
        return self.images.counted

    @property
    def folder(self) -> Path:
        return Path(self.name)

    @cached_property
    def tests(self) -> Bool[np.ndarray, "r n"]:
        """The test part of every calibrate/test division, drawn again where samples.csv has only the first of several."""
        split, s = self.record.split, self.samples
        if split.repeats == 1:
            return s.test[None]
        return ~evaluation.divided(s.ids, s.member, split.calibrate_fraction, split.seed).calibrate

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each image in `images`."""
        return {image_id: row for row, image_id in enumerate(self.images.ids)}

    @cached_property
    def number(self) -> Int64[np.ndarray, " n"]:
        """The row in `samples` of the unit that each image counts in."""
        found = self.images.number
        return np.arange(len(self.images.ids)) if found is None else found

    @property
    def attacks(self) -> tuple[str, ...]:
        """The labels that have both a result and scores."""
        return tuple(r.attack for r in self.record.results if r.attack in self.samples.scores)

    def result(self, attack: str) -> Result:
        return self.record.result(attack)


@dataclass(frozen=True, eq=False)
class EntryRuns:
    """A name and the runs that it stands for."""

    name: str
    runs: tuple[Run, ...]


class Pairing(NamedTuple):
    """The images that two runs share, and the units that they make: images that count together in either run count together here."""

    first: Int64[np.ndarray, " p"]
    """The row of each image in the first run."""
    second: Int64[np.ndarray, " p"]
    """The row of each image in the second run."""
    unit: Int64[np.ndarray, " p"]
    """The number of each image's unit, from 0 in the order of their first images."""
    member: Bool[np.ndarray, " u"]
    """True for each unit of members."""
    differ: bool
    """True where the runs count the shared images otherwise, so that some units are those of neither."""

    def scores(self, first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "u 2"]:
        """The scores of the units, of those of all images of the first and of the second run."""
        return means(np.stack([first[self.first], second[self.second]], axis=1), self.unit)

    def tested(self, first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " m"]) -> Bool[np.ndarray, " u"]:
        """The units all of whose images are in the test part of both runs, of the test parts of all images of either."""
        tested = np.ones(len(self.member), dtype=bool)
        tested[self.unit[~(first[self.first] & second[self.second])]] = False
        return tested


def read_entries(arguments: Sequence[str]) -> tuple[EntryRuns, ...]:
    """The entries that `RUN` and `NAME=RUN[,RUN...]` name, read from disk; the first is the baseline.

    Raises `UserError` for fewer than two, a name that is there twice, or a folder without a finished audit.
    """
    named = [_parse(argument) for argument in arguments]
    if len(named) < 2:
        raise UserError(f"a comparison needs at least two entries, the baseline first; got {len(named)}: add another RUN")
    names = [name for name, _ in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"each entry needs a name of its own; '{twice}' is there twice: write NAME=RUN to name one")
    return tuple(EntryRuns(name, tuple(_read(run) for run in runs)) for name, runs in named)


def _parse(argument: str) -> tuple[str, tuple[str, ...]]:
    """The name and the folders of one argument; a folder whose own name holds "=" is a folder."""
    name, equals, runs = argument.partition("=")
    if not equals or Path(argument).is_dir():
        return Path(argument).absolute().name or argument, (argument,)
    folders = (runs,) if Path(runs).is_dir() else tuple(part.strip() for part in runs.split(","))
    if not name.strip() or not all(folders):
        raise UserError(f"an entry must be RUN or NAME=RUN[,RUN...]; got '{argument}'")
    twice = next((f for f in folders if folders.count(f) > 1), None)
    if twice:
        raise UserError(f"an entry must list each run once; '{name}' has {twice} twice")
    return name.strip(), folders


def _read(name: str) -> Run:
    folder = Path(name)
    if unfinished(folder):
        raise UserError(f"RUN must be the folder of a finished audit; {folder} is not finished: repeat its command, it resumes")
    with doing(f"reading {shown(name, 120)}"):
        refuse_edited(folder)
        return Run(name, read_record(folder), read_samples(folder))


@lru_cache(maxsize=2)  # the attacks of two runs are compared one after another
def pair(first: Run, second: Run) -> Pairing:
    """The images of both runs, and what they count as in both.

    Raises `UserError` when there are none, one is a member in only one of the runs, or one run counts groups that the other does not.
    """
    keys = [run.record.plan.anonymous for run in (first, second)]
    if keys[0] != keys[1]:
        how = " and ".join(
            f"{run.name} has {f'ids of the key {key}' if key else 'file names'}" for run, key in zip((first, second), keys, strict=True)
        )
        raise UserError(f"runs are compared image by image, so they must share ids; {how}: audit both with the same --anonymous-key FILE")
    refuse_other_counting(first, second)
    rows = _shared_rows(first, second)
    if not len(rows[0]):
        looks = " and ".join(f"{shown(run.images.ids[0])} in {run.name}" for run in (first, second))
        raise UserError(f"runs are compared image by image, so they must share ids; these share none (ids look like {looks})")
    members = [run.images.member[r] for run, r in zip((first, second), rows, strict=True)]
    differ = np.flatnonzero(members[0] != members[1])
    if len(differ):
        odd = first.images.ids[rows[0][differ[0]]]
        raise UserError(
            f"an image must be on the same side in both runs; {one_or_more(len(differ), 'id is a member', 'ids are members')} in only one "
            f"of {first.name} and {second.name} "
            f"(first: {shown(odd)}): audit both with the same split, or a teacher with its half of the members"
        )
    one, two = (numbered(run.number[r]) for run, r in zip((first, second), rows, strict=True))
    differ_in_units = not np.array_equal(one, two)
    unit = chained(one, two) if differ_in_units else one
    where = np.unique(unit, return_index=True)[1]
    return Pairing(rows[0], rows[1], unit, members[0][where], differ_in_units)


def refuse_other_counting(first: Run, second: Run) -> None:
    """Raises `UserError` where one run counts groups that the other does not."""
    columns = [run.record.plan.group for run in (first, second)]
    if columns[0] != columns[1]:
        counts = lambda run: f"groups by {shown(run.record.plan.group)}" if run.record.plan.group is not None else "images"
        how = " and ".join(f"{run.name} counts {counts(run)}" for run in (first, second))
        raise UserError(f"runs must count the same to be compared; {how}: audit both with the same --group, or both without")


def _shared_rows(first: Run, second: Run) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """The rows in both runs of the images that they share, in the order of the first."""
    if first.images.ids == second.images.ids:
        rows = np.arange(len(first.images.ids))
        return rows, rows
    shared = [i for i in first.images.ids if i in second.rows]
    of = lambda run: np.array([run.rows[i] for i in shared], dtype=np.int64)
    return of(first), of(second)


def read_scores(run: Run, attack: str) -> Scores | None:
    """The scores of one attack at the timesteps at which every image is scored, a row for each; None where no file has any of it.

    Raises `UserError` when the folder is missing or a file is damaged.
    """
    if not chunk_files(run.folder):
        raise UserError(f"the swap audit needs the scores of every timestep; {run.folder} has none under scores/: repeat its audit command")
    return read_result_scores(run.folder, run.result(attack), run.rows)


def quality_of(entries: Sequence[EntryRuns], given: Sequence[str]) -> dict[str, tuple[Quality, str]]:
    """The quality of each entry by its name, and the file it is from: the one given as NAME=FILE, else of its first run with one."""
    files: dict[str, Path] = {}
    named = {argument.partition("=")[0] for argument in given}
    for entry in (entry for entry in entries if entry.name not in named):
        run = next((run for run in entry.runs if (run.folder / QUALITY).is_file()), None)
        if run:
            files[entry.name] = run.folder / QUALITY
            if read_quality(files[entry.name], Quality).model_fingerprint != run.record.plan.model_fingerprint:
                raise UserError(
                    f"{files[entry.name]} was measured on another model than {run.name} audits; measure that model into the folder, "
                    f"or name the file with --quality {entry.name}=FILE"
                )
    for argument in given:
        name, equals, file = argument.partition("=")
        if not equals or not file:
            raise UserError(f"--quality must be NAME=FILE; got '{argument}'")
        if name not in {entry.name for entry in entries}:
            raise unknown("entry", name, [entry.name for entry in entries])
        files[name] = Path(file)
        refuse_edited(files[name].parent, only=files[name].name)
    return {name: (read_quality(path, Quality), str(path)) for name, path in files.items()}


def default_halves(entries: Sequence[EntryRuns]) -> tuple[Path, ...]:
    """Every split.json with halves beside the model of a run."""
    found: list[Path] = []
    for run in (run for entry in entries for run in entry.runs):
        path = Path(str(run.record.settings.get("model") or run.record.plan.model)).parent / SPLIT
        found += [path] if path not in found and find_split(path, "halves") else []
    return tuple(found)
