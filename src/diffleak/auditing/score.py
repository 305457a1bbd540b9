"""Scoring at scale: images in fixed chunks, one Parquet file per chunk and attack, dealt to workers, resumed by rerunning.

The cut into chunks and batches depends on the plan alone, and every number on its own image and key, so scores are
bit-identical for any number of workers and any history of interruptions. Workers never communicate: a file that exists
is done, and merging is reading the folder.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from itertools import accumulate, groupby
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from diffleak.attacks import ATTACKS
from diffleak.attacks.answers import Answers, Memory
from diffleak.attacks.base import Attack, Direction
from diffleak.attacks.spec import parse
from diffleak.attacks.subject import Subject
from diffleak.auditing.inputs import COMPLEXITY, INFLUENCE, Inputs, Loaded, Rows
from diffleak.data.cohort import Cohort
from diffleak.data.draw import keyed_order
from diffleak.diffusion.codec import Autoencoder, images_of
from diffleak.diffusion.denoiser import Counted, Denoiser, unguided
from diffleak.diffusion.devices import free_unused_memory
from diffleak.diffusion.finite import advice
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.target import Target, side_by_side
from diffleak.errors import UserError, one_or_more, shown
from diffleak.records.audit import AuditRecord
from diffleak.records.plan import Plan
from diffleak.records.scores import ChunkMeta, Scores, Spent, chunk_file, plan_id, read_chunk, read_spent, write_chunk
from diffleak.records.variants import VARIANTS, masked_label
from diffleak.work.folder import Folder, cut, damaged, deal
from diffleak.work.memory import memory_message
from diffleak.work.reading import Unreadable, load_parquet
from diffleak.work.room import Room
from diffleak.work.shares import share_of
from diffleak.work.threads import Tick, one_thread_each, pool

TIMED_IMAGES = 8  # encoded to estimate how long all will take
LONGEST_ROUND = 4.0  # seconds that the model may run only to estimate how long all will take
PREPARATION_IMAGES = 64
UNSTEADY_ATTACK = 0.01  # of the largest statistic
UNSTEADY = 0.05  # of the largest predicted number: more than rounding on any device


@dataclass(frozen=True)
class Worker:
    """Worker `rank` of `count`, scoring `threads` chunks side by side."""

    rank: int
    count: int
    threads: int


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be scored; labels are not in it, only which images may calibrate.

    A job of a part of the images has `rows`, in the order of the images, and numbers its chunks from `first`. One that adds timesteps to
    the scores of another job has its chunks, and numbers its attacks in the files from `first_attack`.
    """

    inputs: Inputs
    attacks: tuple[Attack, ...]
    plan: Plan
    calibrate: Bool[np.ndarray, " n"]
    reference: Inputs | None = None  # the same images for another model
    rows: tuple[int, ...] | None = None
    first: int = 0
    first_attack: int = 0

    @property
    def models(self) -> tuple[Inputs, ...]:
        """The inputs of every model that is scored, the audited one first."""
        return (self.inputs,) if self.reference is None else (self.inputs, self.reference)

    @property
    def cohort(self) -> Cohort:
        """The images."""
        return self.inputs.cohort

    @property
    def target(self) -> Target:
        """The model."""
        return self.inputs.target

    def queries(self, k: int) -> int:
        """Forwards per image that the k-th attack makes, over every model that it may ask and those of the reference."""
        return self.attacks[k].queries * sum(forwards(inputs.target, self.attacks[k]) for inputs in self.models)

    @property
    def queries_per_image(self) -> int:
        """Forwards per image of all attacks."""
        return sum(map(self.queries, range(len(self.attacks))))

    def labels(self, attack: Attack) -> list[str]:
        """How the scores of an attack are called: its own, those under its masks, those of the reference and the excess over it."""
        masks = [mask.label for mask in self.inputs.masks] if attack.takes_masks else []
        return [attack.label, *(masked_label(attack.label, name) for name in (*masks, *(VARIANTS if self.reference else ())))]

    @cached_property
    def chunks(self) -> dict[int, Rows]:
        """The images of every chunk."""
        return _chunks(self.plan, range(len(self.cohort)) if self.rows is None else self.rows, self.first)

    @property
    def images(self) -> int:
        """The number of images that are scored."""
        return len(self.cohort if self.rows is None else self.rows)

    def ids(self, rows: Rows) -> tuple[str, ...]:
        """The ids of some images."""
        ids = self.cohort.ids
        return tuple(ids[row] for row in rows)

    def file(self, folder: Path, chunk: int, k: int) -> Path:
        """Where the scores of one chunk and attack k are kept."""
        return chunk_file(folder, chunk, self.first_attack + k, self.attacks[k].name)

    def read(self, path: Path, chunk: int, k: int) -> tuple[Float64[np.ndarray, "m n k"], ChunkMeta]:
        """The scores in the file of one chunk and attack k; raises `Unreadable` for a file that is not of this job."""
        rows, attack = self.chunks[chunk], self.attacks[k]
        return read_chunk(path, plan_id(self.plan), self.ids(rows), self.labels(attack), attack.columns)


@dataclass(frozen=True, eq=False)
class Collected:
    """All scores of a run, with what they cost and the parameters that each attack ended with.

    Of each attack there are the unmasked scores, then those under each of its masks, or those of the reference and the excess.
    `queries` are the forwards that were made, `saved` those that an attack took from another one instead, `read` those of kept drawings.
    The test part has scores at `test_timesteps` alone, by the label of the attack, and NaN at others; None: all images have all scores.
    At `between_timesteps` the calibrate part was scored in a job of its own; None: it was not.
    `halved_to`: the fewest images that were scored, or drawn for a score, at once where memory ran out.
    `reconstruction` is the complexity of every image's reconstruction, where a latent model's scores are calibrated by it too.
    """

    scores: tuple[tuple[Scores, ...], ...]
    parameters: tuple[dict[str, Any], ...]
    queries: int
    saved: int
    seconds: float
    chunks: int
    reconstruction: Float64[np.ndarray, "n 7"] | None = None
    test_timesteps: dict[str, tuple[int, ...]] | None = None
    between_timesteps: dict[str, tuple[int, ...]] | None = None
    halved_to: int | None = None
    read: int = 0


def asked(target: Target, attack: Attack) -> tuple[Denoiser, ...]:
    """The models that an attack asks: every one that the release exposes, or where only images are seen, what draws them.

    Guidance is for those that predict noise: what draws has its own, and weights were trained without any.
    """
    if attack.access == "black-box":
        return (unguided(target.denoiser),)
    return target.denoiser.exposed if attack.access == "grey-box" else tuple(map(unguided, target.denoiser.exposed))


def forwards(target: Target, attack: Attack) -> int:
    """Network forwards for one query of an attack."""
    return sum(model.forwards for model in asked(target, attack))


def worker(shard: str | None, threads: int | None, target: Target) -> Worker:
    """This process's share: `--shard i/n` (1-based), else RANK and WORLD_SIZE, else everything.

    Raises `UserError` for a shard that is not of the form i/n with 1 <= i <= n, and for a RANK that is none of WORLD_SIZE.
    """
    share = share_of(shard)
    return Worker(share.rank, share.count, threads or side_by_side(target))


@dataclass(frozen=True)
class Pace:
    """How long a model took when it was tried, in seconds of one thread for each image; 0 where it was not tried."""

    query: float = 0.0
    """One forward of a denoiser."""
    encoding: float = 0.0
    """What brings an image into the space of the model."""


UNKNOWN_PACE = Pace()


def probe(job: Job) -> Pace:
    """Asks every model about two images at both ends of the sweep, before anything is scored; returns how long that took.

    Raises `UserError` for an answer that is not finite, or not like the images, or for a codec whose images are of another shape.
    """
    rows, sweep = [job.inputs.alike[0], job.inputs.alike[-1]], [t for attack in job.attacks for t in attack.timesteps] or [0]
    images, seconds, forwards_made = job.inputs.pixels(rows), 0.0, 0
    with torch.inference_mode(), memory_message(len(rows), smaller=False):
        started = time.monotonic()
        x0 = job.inputs.tensor(job.inputs.encode(images, rows))
        encoding = time.monotonic() - started
        if job.target.latent and not isinstance(job.target.codec, Autoencoder):
            shape = job.inputs.shape
            images_of(job.target.codec, x0, (shape.channels, shape.height, shape.width))
        for inputs in job.models if job.attacks else ():
            cond = inputs.conditions(rows)
            for denoiser in inputs.target.denoiser.exposed:
                _refuse_unsteady(denoiser, x0, max(sweep), cond, inputs.conditions(rows[:1]), inputs.target.name)
                for t in sorted({min(sweep), max(sweep)}):
                    started = time.monotonic()
                    finite = torch.isfinite(denoiser(x0, t, cond)).flatten(start_dim=1).all(dim=1).tolist()
                    seconds, forwards_made = seconds + time.monotonic() - started, forwards_made + denoiser.forwards
                    if not all(finite):
                        raise UserError(
                            f"the model must return finite numbers; {inputs.target.name} gives NaN or infinity at timestep {t} for image "
                            f"{shown(job.cohort.ids[rows[finite.index(False)]])}: {advice(denoiser)}"
                        )
        for attack in job.attacks:
            if attack.code is not None and not attack.needs_preparation:
                _refuse_unsteady_attack(job, attack, x0, rows)
    each = (torch.get_num_threads() if job.target.device == "cpu" else 1) / len(rows)
    return Pace(seconds * each / max(forwards_made, 1), encoding * each)


def _refuse_unsteady_attack(job: Job, attack: Attack, x0: Tensor, rows: list[int]) -> None:
    """Raises `UserError` for an attack from outside whose statistics change when they are computed again, or for an image alone."""

    def statistics(count: int) -> Tensor:
        noise = job.inputs.noise([job.cohort.keys[row] for row in rows[:count]], x0.shape[1:])
        subject = job.inputs.subject(job.target.denoiser.exposed[0], x0[:count].clone(), noise, rows[:count])
        subject = replace(subject, reference=_beside(job, attack, x0[:count], noise, rows[:count]))
        return _checked(attack, attack.masked_statistics(subject), 1, count)

    both = statistics(len(rows))
    limit = UNSTEADY_ATTACK * both.abs().nan_to_num().max()
    for again, when in ((statistics(len(rows)), "is run again"), (statistics(1), "is given an image alone")):
        if ((again - both[..., : again.shape[-1]]).abs() > limit).any():
            raise UserError(
                f"an attack must give an image the same statistic each time; {attack.label} gives another one when it {when}: "
                "take random numbers from subject.noise(j), and leave out what mixes the images of a batch"
            )


def _refuse_unsteady(denoiser: Denoiser, x0: Tensor, t: int, cond: Any, first: Any, name: str) -> None:
    """Raises `UserError` for a model that answers otherwise when it is called again, or for an image alone."""
    answer = denoiser(x0, t, cond)
    limit = UNSTEADY * answer.float().abs().max().clamp(min=1e-6)
    for again, when in ((denoiser(x0, t, cond), "is called again"), (denoiser(x0[:1], t, first), "is given an image alone")):
        if (again.float() - answer[: len(again)].float()).abs().max() > limit:
            raise UserError(
                f"the model must give an image the same answer each time; {name} gives another one when it {when}: "
                "put its network into eval mode, and leave out what is random or mixes the images of a batch"
            )


def estimate(jobs: Sequence[Job], folder: Folder | None, share: Worker, pace: Pace = UNKNOWN_PACE) -> str:
    """What this worker has to do of several jobs, and about how long it takes, from one timed round of forwards and of measurements.

    A round that would take longer than LONGEST_ROUND by the `pace` of the model is left out: then the pace itself is what is known, and of
    measurements nothing. The progress of the work says more as soon as it has begun.
    """
    unsaid, seconds, done, left, slots = "", 0.0, 0, 0, 1
    missing, measured = [(job, *_missing(job, folder, share)) for job in jobs], set[int]()
    for job, todo, _ in missing:
        every = sum(_queries(job, c, k) for c, k in _work(job, share))
        ahead = sum(_queries(job, c, k) for c, k in todo)
        left, done, slots = left + ahead, done + every - ahead, max(slots, min(share.threads, len(todo)))
    if not any(todo or unmeasured for _, todo, unmeasured in missing):
        return "all of it is done" if share.count == 1 else "all of this shard is done"
    if left:
        effort = sum(_queries(job, c, k) * job.attacks[k].effort for job, todo, _ in missing for c, k in todo)
        seconds += effort / (slots / pace.query if _round(jobs[0], pace) > LONGEST_ROUND else _speed(jobs[0], slots))
    for job, _, found in missing:
        unmeasured = {chunk: kinds for chunk, kinds in found.items() if chunk not in measured}  # two jobs may have the same chunks
        measured |= found.keys()
        if unmeasured and job.target.latent:
            kinds = sorted({kind for needed in unmeasured.values() for kind in needed})
            if TIMED_IMAGES * pace.encoding > LONGEST_ROUND:
                unsaid = f" (without the time for {', '.join(kinds)})"
                continue
            seconds += sum(len(job.chunks[c]) for c in unmeasured) * _measuring_seconds(job, kinds) / min(share.threads, len(unmeasured))
    known = f"{_readable(seconds)}{' left' if done else ''}{unsaid}" if seconds else "how long is not known yet"
    already = f"{'about ' if len(jobs) > 1 else ''}{one_or_more(done, 'query is', 'queries are')} done already"
    return known + (f", {already}" if done else "")


def _missing(job: Job, folder: Folder | None, share: Worker) -> tuple[list[tuple[int, int]], dict[int, list[str]]]:
    """This worker's chunks that are not scored, and those that are not measured."""
    work = _work(job, share)
    todo = folder.missing(work) if folder else list(work)
    return todo, _unmeasured(job, folder, share, todo)


def _unmeasured(job: Job, folder: Folder | None, share: Worker, todo: Sequence[tuple[int, int]]) -> dict[int, list[str]]:
    """This worker's chunks that need latents, influence, distortion or reconstruction and do not have them yet, with what they need."""
    if not job.target.latent:
        return {}
    scored, always, found = {c for c, _ in todo}, job.inputs.in_results(folder), dict[int, list[str]]()
    for c in _dealt(job, share):
        files = {kind: job.inputs.files(c, [kind]) for kind in job.inputs.kinds if c in scored or kind in always}
        found[c] = folder.missing(files) if folder else list(files)
    return {c: kinds for c, kinds in found.items() if kinds}


def score(job: Job, folder: Folder, share: Worker) -> int:
    """Scores this worker's missing chunks; returns how many chunk files of all workers are still missing then.

    Raises `UserError` when the model returns NaN (naming the first image and timestep) or the disk is full.
    """
    work, everyone = _work(job, share), Worker(0, 1, 1)
    folder.verify(_work(job, everyone), lambda pair, path: job.read(path, *pair))
    folder.verify({c: job.inputs.files(c) for c in _dealt(job, share)} | ({-1: [INFLUENCE]} if job.inputs.top else {}))
    if job.inputs.complexity is not None:
        folder.verify({0: [COMPLEXITY]}, lambda _, path: load_parquet(path))
    todo = folder.missing(work)
    unmeasured = _unmeasured(job, folder, share, todo)
    if unmeasured:
        job.inputs.prepare(folder, job.chunks, unmeasured, job.plan.batch_size, share.threads)
    if todo:
        for inputs in job.models:
            inputs.embed_first((row for chunk in sorted({chunk for chunk, _ in todo}) for row in job.chunks[chunk]), folder.path)
        _score_chunks(job, folder, work, todo, share.threads)
    return len(folder.missing(_work(job, everyone))) or len(_unmeasured(job, folder, everyone, []))


def unfinished(job: Job, folder: Folder) -> set[int]:
    """The chunks of all workers that are not finished."""
    everyone = Worker(0, 1, 1)
    return {chunk for chunk, _ in folder.missing(_work(job, everyone))} or {*_unmeasured(job, folder, everyone, [])}


def _dealt(job: Job, share: Worker) -> Sequence[int]:
    return deal(list(job.chunks), share.rank, share.count)


def _work(job: Job, share: Worker) -> dict[tuple[int, int], list[Path]]:
    """The file of each (chunk, attack) pair of one worker, which scores its chunks under all attacks."""
    return {(c, k): [job.file(Path(), c, k)] for c in _dealt(job, share) for k in range(len(job.attacks))}


def _queries(job: Job, chunk: int, k: int) -> int:
    return len(job.chunks[chunk]) * job.queries(k)


def collect(job: Job, folder: Path) -> Collected:
    """Reads every chunk of a finished run back into one `Scores` per attack."""
    scores, parameters, queries, spent = [], [], 0, Spent()
    ids = tuple(image_id for rows in job.chunks.values() for image_id in job.ids(rows))
    for k, attack in enumerate(job.attacks):
        columns, settled = [], attack.parameters()
        for chunk in job.chunks:
            path = job.file(folder, chunk, k)
            try:
                statistic, meta = job.read(path, chunk, k)
            except Unreadable as error:
                raise damaged(path, error) from None
            queries, spent, settled = queries + meta.queries, spent + read_spent(path), meta.parameters
            columns.append(statistic)
        labels, whole = job.labels(attack), np.concatenate(columns, axis=1)
        excess = masked_label(attack.label, VARIANTS[1])  # differences
        scores.append(
            tuple(
                Scores(name, attack.direction, attack.columns, ids, part, attack.settled_by, attack.logarithmic or name == excess)
                for name, part in zip(labels, whole, strict=True)
            )
        )
        parameters.append(settled)
    reconstruction = job.inputs.reconstruction(Folder(folder), job.chunks)
    saved, files = min(spent.saved, queries), len(job.chunks) * len(job.attacks)
    read = min(spent.read, queries - saved)
    made = queries - saved - read
    return Collected(
        tuple(scores), tuple(parameters), made, saved, spent.seconds, files, reconstruction, halved_to=spent.halved_to, read=read
    )


def save_scores(folder: Path, record: AuditRecord, scores: Sequence[Scores], calibrate: Bool[np.ndarray, " n"]) -> None:
    """Writes the scores of a finished audit as the chunks that its plan would have made; existing ones are left alone."""
    per_image = {result.attack: result for result in record.results}
    costs, saved, read = record.costs, record.costs.queries_saved, record.costs.queries_read
    asked_for = max(1, costs.queries + saved + read)
    swept = {each.attack: each.timesteps for each in scores}
    for path, part, statistic in _in_files(folder, record, scores, calibrate):
        if not path.exists():
            first, labels = part[0], [s.attack for s in part]
            made = len(first.ids) * max((per_image[label].queries or 0 for label in labels if label in per_image), default=0)
            made = int(made * _share(first.attack, first.timesteps, swept[first.attack]))
            of_drawings = min(read, made) if first.attack.startswith("black_box") else 0
            spent = Spent(costs.seconds * made / asked_for, min(saved, made - of_drawings), costs.halved_to, of_drawings)
            saved, read = saved - spent.saved, read - of_drawings
            settled = _settled_at(first, swept[first.attack], record.result(first.attack).parameters)
            meta = ChunkMeta(plan_id(record.plan), made, settled)
            write_chunk(path, first.ids, labels, first.timesteps, statistic, meta, spent)


def holds(folder: Path, record: AuditRecord, scores: Sequence[Scores], calibrate: Bool[np.ndarray, " n"]) -> bool:
    """True if a folder of the audit's plan has all of its scores, and these very ones."""
    plan = plan_id(record.plan)

    def same(path: Path, part: list[Scores], statistic: np.ndarray) -> bool:
        try:
            found, _ = read_chunk(path, plan, part[0].ids, [s.attack for s in part], part[0].timesteps)
        except Unreadable:
            return False
        return np.array_equal(found, statistic)

    return all(same(*each) for each in _in_files(folder, record, scores, calibrate))


def _share(label: str, timesteps: tuple[int, ...], swept: tuple[int, ...]) -> Fraction:
    """The share of the queries of an attack that it makes where it is scored at some of its timesteps."""
    if len(timesteps) == len(swept):
        return Fraction(1)
    return Fraction(*(parse(label, ATTACKS, given).queries for given in (timesteps, swept)))


def _settled_at(scores: Scores, swept: tuple[int, ...], parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an attack where it is scored at some of its timesteps: of what it settled for each, that of these."""
    if len(scores.timesteps) == len(swept) or (name := parse(scores.attack, ATTACKS, swept).unlabelled) not in parameters:
        return parameters
    return {**parameters, name: [value for t, value in zip(swept, parameters[name], strict=True) if t in scores.timesteps]}


def _in_files(
    folder: Path, record: AuditRecord, scores: Sequence[Scores], calibrate: Bool[np.ndarray, " n"]
) -> Iterator[tuple[Path, list[Scores], np.ndarray]]:
    """The file of every chunk of each attack, with the chunk's scores under every variant, and their statistics as one array."""
    chunks, plan = dict[int, Rows](), record.plan
    for part_rows in parts_of(plan, calibrate):
        chunks |= _chunks(plan, part_rows, len(chunks))
    between = record.costs.between_timesteps or {}
    for k, (attack, group) in enumerate(groupby(scores, key=lambda s: s.attack.partition("[")[0])):
        variants = list(group)
        for chunk, rows in chunks.items():
            taken = [s.taken(np.array(rows)) for s in variants]
            scored = {t for t, column in zip(taken[0].timesteps, taken[0].statistic.T, strict=True) if np.isfinite(column).all()}
            after = {*between.get(attack, ())} if calibrate[rows[0]] else set[int]()
            later = len(plan.attacks) + [*between].index(attack) if after else 0
            for number, columns in ((k, scored - after), (later, after)):
                if columns:
                    part = [_at(s, columns) for s in taken]
                    yield chunk_file(folder, chunk, number, attack.partition("(")[0]), part, np.stack([s.statistic for s in part])


def _at(scores: Scores, timesteps: set[int]) -> Scores:
    """The scores at some of their timesteps."""
    columns = [i for i, t in enumerate(scores.timesteps) if t in timesteps]
    return replace(scores, timesteps=tuple(scores.timesteps[i] for i in columns), statistic=scores.statistic[:, columns])


def parts_of(plan: Plan, calibrate: Bool[np.ndarray, " n"]) -> tuple[tuple[int, ...], ...]:
    """The images that are scored one part after the other: the calibrate part and then the test part, or all."""
    if plan.sweep == "all":
        return (tuple(range(len(calibrate))),)
    return tuple(tuple(np.flatnonzero(part).tolist()) for part in (calibrate, ~calibrate))


def _chunks(plan: Plan, rows: Rows, first: int = 0) -> dict[int, Rows]:
    """The rows of every chunk, which are of one shape; numbered from `first`."""
    sizes, found = [count for _, count in plan.buckets] if plan.buckets else [max(rows, default=-1) + 1], list[Rows]()
    for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
        own = rows[bisect_left(rows, start) : bisect_left(rows, start + size)]
        found += [own[part.start : part.stop] for part in cut(len(own), plan.chunk_size).values()]
    return dict(enumerate(found, first))


def _score_chunks(job: Job, folder: Folder, work: dict[tuple[int, int], list[Path]], todo: Sequence[tuple[int, int]], threads: int) -> None:
    """Scores `todo`, what is missing of the work."""
    with one_thread_each(), memory_message(job.plan.batch_size), torch.inference_mode():
        attacks = {k: _prepared(job, job.attacks[k]) for k in sorted({k for _, k in todo})}

    memory, open_files, counting = Memory() if len(job.attacks) > 1 else None, Counter(c for c, _ in todo), Lock()
    rows_of = {chunk: job.chunks[chunk] for chunk in open_files}
    rooms = {k: Room("images", partial(free_unused_memory, job.target.device)) for k in attacks}

    def score_one(pair: tuple[int, int], tick: Tick) -> None:
        c, k = pair
        kept = (memory, c) if memory else None
        loaded = ahead.take(c, partial(tick, 0))
        _score_chunk(job, attacks[k], job.queries(k), job.chunks[c], loaded, job.file(folder.path, c, k), tick, kept, rooms[k])
        with counting:
            open_files[c] -= 1
            done = not open_files[c]
        if done:
            ahead.drop(c)
        if memory and done:
            memory.forget(c)

    cost = lambda pair: _queries(job, *pair)
    with job.inputs.chunks_ahead(folder, rows_of, 2 + threads // len(job.attacks)) as ahead:
        folder.run(work, score_one, cost, bar="scoring", unit="queries", batch_size=job.plan.batch_size, threads=threads)


def _score_chunk(
    job: Job,
    attack: Attack,
    declared: int,
    rows: Rows,
    loaded: Loaded,
    path: Path,
    tick: Tick,
    kept: tuple[Memory, int] | None,
    room: Room,
) -> None:
    started, labels = time.monotonic(), job.labels(attack)
    statistic, made, shared = np.empty((len(labels), len(rows), len(attack.columns))), 0, 0
    read, halved = 0, list[int]()
    size = max(1, job.plan.batch_size // (attack.width * job.target.denoiser.forwards))
    compute = partial(_score_batch, job, attack, rows, loaded, kept)
    with torch.inference_mode():
        for batch, scored in room.each(len(rows), size, compute, tick):
            statistic[:, batch] = scored.statistic
            made, shared, read = made + scored.made + scored.shared + scored.read, shared + scored.shared, read + scored.read
            halved += scored.halved
    if made != len(rows) * declared:
        said = f"{attack.label} declares {one_or_more(declared, 'query', 'queries')} per image and made {made / len(rows):g}"
        raise RuntimeError(said) if attack.code is None else UserError(f"{said}: its `queries` must be those of all its timesteps")
    halved += [] if room.most is None else [room.most]
    meta = ChunkMeta(plan_id(job.plan), made, attack.parameters())
    spent = Spent(time.monotonic() - started, shared, min(halved, default=None), read)
    write_chunk(path, job.ids(rows), labels, attack.columns, statistic, meta, spent)


class Scored(NamedTuple):
    """The statistics of a batch, the forwards that were made for them, those that another attack had made and those of kept drawings.

    `halved`: images in each forward that drew fewer than it should, since memory had no room for them.
    """

    statistic: Float64[np.ndarray, "m b k"]
    made: int
    shared: int
    read: int
    halved: tuple[int, ...]


def _score_batch(job: Job, attack: Attack, rows: Rows, loaded: Loaded, kept: tuple[Memory, int] | None, batch: slice, tick: Tick) -> Scored:
    images, influence = loaded
    labels, made, shared, read, halved = job.labels(attack), 0, 0, 0, list[int]()

    def count(n: int, t: int) -> None:
        nonlocal made
        made += n
        tick(n, attack.name)

    def count_shared(n: int, t: int) -> None:
        nonlocal shared
        shared += n
        tick(n, attack.name)

    def count_read(n: int) -> None:
        nonlocal read
        read += n
        tick(n, attack.name)

    def ask_of(subject: Subject, model: Denoiser, where: tuple[int, ...]) -> Subject:
        """The batch with a copy of the images, which the attack may write into, and what `model` has answered other attacks there."""
        counted, known = Counted(model, count), None
        if kept and attack.access == "grey-box":
            known = Answers(*kept, (*where, len(subject)), counted, subject.x0, subject.noise, subject.cond, count_shared)
        return replace(subject, denoiser=counted, x0=subject.x0.clone(), answers=known, on_kept=count_read, on_halved=halved.append)

    these, every = rows[batch], job.cohort.keys
    keys, x0 = tuple(every[row] for row in these), job.inputs.tensor(images[batch])
    masks = [None, *(job.inputs.keep(influence[batch], keys) if influence is not None and attack.takes_masks else ())]
    noise, found = job.inputs.noise(keys, x0.shape[1:]), []
    if kept and attack.access == "grey-box":
        memory, chunk = kept
        memory.draw_once(chunk, (batch.start, len(x0)), noise)
    for i, (inputs, label) in enumerate(zip(job.models, labels, strict=False)):  # without masks the second is the reference's
        subject = inputs.subject(inputs.target.denoiser, x0, noise, these)
        subject = replace(subject, reference=_beside(job, attack, x0, noise, these, count))
        asks = [ask_of(subject, model, (batch.start, i, j)) for j, model in enumerate(asked(inputs.target, attack))]
        each = torch.stack([_checked(attack, attack.masked_statistics(ask, masks), len(masks), len(x0)) for ask in asks])
        found.append(most_exposed(each, attack.direction).transpose(1, 2).cpu().numpy())
        _refuse_nan(found[-1][0], job.ids(these), attack, label, inputs.target)
    excess = [found[0] - found[1]] if job.reference else []
    return Scored(np.concatenate(found + excess), made, shared, read, tuple(halved))


def _beside(
    job: Job, attack: Attack, x0: Tensor, noise: Noise, rows: Sequence[int], count: Callable[[int, int], None] = lambda n, t: None
) -> Subject | None:
    """The batch as the reference sees it, whose forwards are counted, for an attack that asks it too."""
    if job.reference is None or not attack.needs_reference:
        return None
    model = asked(job.reference.target, attack)[0]
    return job.reference.subject(Counted(model, count), x0.clone(), noise, rows)


def _checked(attack: Attack, answer: Any, masks: int, images: int) -> Float64[Tensor, "m k b"]:
    """The statistics of an attack; raises `UserError` for anything but a float64 number per mask, column and image."""
    expected = (masks, len(attack.columns), images)
    if isinstance(answer, Tensor) and tuple(answer.shape) == expected and answer.dtype == torch.float64:
        return answer
    got = f"{tuple(answer.shape[1:])} {answer.dtype}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    raise UserError(f"{attack.label} must return float64 statistics of shape {expected[1:]}, columns by images; got {got}")


def most_exposed(statistics: Float64[Tensor, "e m k b"], direction: Direction) -> Float64[Tensor, "m k b"]:
    """What an attacker who can ask several models of one release goes by: per image and column, the most member-like one."""
    return statistics.amin(dim=0) if direction == "small" else statistics.amax(dim=0)


def _refuse_nan(values: Float64[np.ndarray, "b k"], ids: Sequence[str], attack: Attack, label: str, target: Target) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        where = f"image {shown(ids[bad[0][0]])}" + ("" if attack.rule else f" at timestep {attack.timesteps[bad[0][1]]}")
        if attack.code is not None:
            raise UserError(f"an attack must give finite numbers, and so must the model; {label} got {values[tuple(bad[0])]} for {where}")
        raise UserError(
            f"the model must return finite numbers; {label} got {values[tuple(bad[0])]} for {where}: "
            f"{advice(target.denoiser, target.codec)}; finished chunks are kept"
        )


def _prepared(job: Job, attack: Attack) -> Attack:
    """The attack with what it needs from images of the calibrate part, the same ones in every worker."""
    if not attack.needs_preparation:
        return attack
    alike = np.isin(np.arange(len(job.cohort)), job.inputs.alike)
    allowed = job.calibrate & alike if (job.calibrate & alike).any() else alike
    keys = tuple(key for key, use in zip(job.cohort.keys, allowed, strict=True) if use)
    chosen = set(keyed_order(keys, "prepare", job.plan.seed)[:PREPARATION_IMAGES])
    rows = [i for i, key in enumerate(job.cohort.keys) if key in chosen]
    x0 = job.inputs.tensor(job.inputs.encode(job.inputs.pixels(rows), rows))
    noise = job.inputs.noise([job.cohort.keys[i] for i in rows], x0.shape[1:])
    first = job.target.denoiser.exposed[0]  # what is settled is a scale, the same for models that are compared
    return attack.prepared(job.inputs.subject(first, x0, noise, rows))


def _round(job: Job, pace: Pace) -> float:
    """Seconds of the round that `_speed` times, with its warm-up."""
    rows = max(1, job.plan.batch_size // job.target.denoiser.forwards)
    return 2 * rows * pace.query * sum(inputs.target.denoiser.forwards for inputs in job.models)


def _speed(job: Job, threads: int) -> float:
    """Queries per second: one forward of every model in each of `threads` threads, timed after a warm-up."""
    rows = job.inputs.alike[: max(1, job.plan.batch_size // job.target.denoiser.forwards)]
    room = Room("images", partial(free_unused_memory, job.target.device))
    with memory_message(1):
        return room.fitting(len(rows), lambda count: _speed_of(job, rows[:count], threads))


def _speed_of(job: Job, rows: Sequence[int], threads: int) -> float:
    x0 = job.inputs.tensor(job.inputs.encode(job.inputs.pixels(rows), rows))
    models = [(inputs.target.denoiser, inputs.conditions(rows)) for inputs in job.models]

    def forward(_: int) -> float:
        with torch.inference_mode():
            return sum(denoiser(x0, 0, cond).sum().item() for denoiser, cond in models)

    with one_thread_each(), pool(threads) as executor:
        forward(0)
        started = time.monotonic()
        list(executor.map(forward, range(threads)))
    return threads * len(rows) * sum(denoiser.forwards for denoiser, _ in models) / max(time.monotonic() - started, 1e-9)


def _measuring_seconds(job: Job, kinds: Sequence[str]) -> float:
    """Seconds to encode an image, and to measure these kinds of it."""
    rows = job.inputs.alike[: 1 if job.inputs.top else TIMED_IMAGES]
    with one_thread_each():
        started = time.monotonic()
        job.inputs.measure(rows, kinds)
    return (time.monotonic() - started) / len(rows)


def _readable(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
