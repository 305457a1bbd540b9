"""plan → score (chunks, workers, resume) → evaluate → record.

A run folder belongs to one plan (plan.json). Its chunks are independent files, so the same command resumes, several
workers share the work without talking to each other, and the one that finds everything done writes the results.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float64

from diffleak import hub
from diffleak.attacks import ATTACKS
from diffleak.attacks.base import NO_SOURCE, Attack
from diffleak.attacks.spec import readable, spec_of
from diffleak.auditing import score as scoring
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.evaluating import evaluated
from diffleak.auditing.evidence import evidence_of
from diffleak.auditing.groups import groups_found
from diffleak.auditing.inputs import clear, lend, write_complexity, write_geometry
from diffleak.auditing.maps import maps_of
from diffleak.auditing.phases import in_phases, swept
from diffleak.auditing.plan import Prepared, prepare
from diffleak.auditing.results import write_results
from diffleak.auditing.shared import Shared
from diffleak.auditing.warnings import about_equal_scores, about_memory, about_names, about_release, about_sides, captions_line, warnings_of
from diffleak.config import IN_PYTHON, build, command_line, names_of
from diffleak.data.cohort import IN_MEMORY, Cohort, cohort, sort_key
from diffleak.data.duplicates import clusters_of_several
from diffleak.data.membership import draw_of, promise_of
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.environment import environment
from diffleak.diffusion.target import Target
from diffleak.errors import GateFailed, InvalidAudit, UserError, one_or_more
from diffleak.gating.limits import LIMITS, gates
from diffleak.records.audit import AuditRecord, Draw, Result
from diffleak.records.base import now
from diffleak.records.chosen import chosen_by, write_chosen
from diffleak.records.maps import Maps
from diffleak.records.plan import Costs, Plan
from diffleak.records.run_folder import read_plan
from diffleak.records.scores import Samples, Scores
from diffleak.report.judgement import with_validity
from diffleak.report.results import rows
from diffleak.report.sections.audit.gates import sentence
from diffleak.stats import evaluation
from diffleak.stats.by_distortion import analyse
from diffleak.stats.reasons import in_given_images
from diffleak.work.files import checked_folder
from diffleak.work.folder import PLAN, UNKNOWN, Change, Folder, spelled
from diffleak.work.progress import doing, say

C = TypeVar("C", bound=AuditConfig)
Model = Target | Denoiser | str | Path
Attacks = str | Attack | type[Attack] | Sequence[str | Attack | type[Attack]]

SAVE_IT = "write its class into a module, so that its code can be compared"
SIDES = ("members", "nonmembers", "data", "split")  # settings that name the images
OF_SIDES = ("limit", "seed", "exif", "alpha", "white")  # and those beside them that `cohort` takes


@dataclass(frozen=True, eq=False)
class Audit:
    """A finished audit. `audit["sima"]` is the result of an attack.

    Args:
        record: Everything in audit.json.
        samples: The table of samples.csv: id, side, part, and a score for each attack.
        scores: The statistics of every attack at every timestep that was scored.
        cohort: The images, or None where they are not at hand.
        maps: Where in the images the model answers differently (see `auditing.maps`), or None.
    """

    record: AuditRecord
    samples: Samples
    scores: tuple[Scores, ...]
    cohort: Cohort | None = None
    maps: Maps | None = None

    def __getitem__(self, attack: str) -> Result:
        """The result of an attack by its label, such as "sima_mc(m=10)", or by its name where that is one attack's alone."""
        labels = [result.attack for result in self.results]
        plain = [result for result in self.results if result.plain and result.attack.partition("(")[0] == attack]
        if attack in labels or len(plain) != 1:
            return self.record.result(attack)
        return plain[0]

    def __iter__(self) -> Iterator[Result]:
        """The results, as `results` has them."""
        return iter(self.results)

    @property
    def results(self) -> tuple[Result, ...]:
        """One result per attack, in the order they were given."""
        return self.record.results

    def to_frame(self) -> pd.DataFrame:
        """The scores as a table: id, attack, timestep, statistic (the paper's own), member (bool).

        Of an attack that stores components, `timestep` counts them from 0.

        Returns:
            One row for each image, attack and timestep.
        """
        frames = [
            pd.DataFrame(
                {
                    "id": np.repeat(s.ids, len(s.timesteps)),
                    "attack": s.attack,
                    "timestep": np.tile(s.timesteps, len(s.ids)).astype(np.int32),
                    "statistic": s.statistic.ravel(),
                    "member": np.repeat(self.samples.member, len(s.timesteps)),
                }
            )
            for s in self.scores
        ]
        whole = pd.concat(frames, ignore_index=True)
        return whole[whole["statistic"].notna()].reset_index(drop=True)  # the test part is not scored at every timestep

    def results_frame(self) -> pd.DataFrame:
        """The results as a table: attack, variant, auc, auc_low, auc_high, tpr_at_1pct, ..., queries.

        Returns:
            One row for each result, with the columns of `diffleak.report.results.rows`; what cannot be estimated is missing (NaN or None).
        """
        return pd.DataFrame(rows(self.record))

    def save(self, folder: str | Path, thumbnails: bool = False) -> Path:
        """Writes audit.json, samples.csv, report.html and, where they are not there yet, the scores.

        Args:
            folder: The run folder.
            thumbnails: Show the members that score highest; their maps, kept in maps.npy, need an audit with thumbnails=True.

        Returns:
            The folder.

        Raises:
            UserError: For the folder of another audit, and for a folder that cannot be written.
        """
        folder = Path(folder)
        again, calibrate = _unnamed(Folder(folder), self.record.plan), ~self.samples.test
        if not _claim(Folder(folder), self.record.plan) and again and not scoring.holds(folder, self.record, self.scores, calibrate):
            raise again
        scoring.save_scores(folder, self.record, self.scores, calibrate)
        if (timesteps := self.record.costs.test_timesteps) is not None:
            write_chosen(folder, chosen_by(self.record.plan, self.record.split, timesteps))
        write_results(folder, self.record, self.samples, self.cohort if thumbnails else None, self.maps)
        return folder


def audit(
    model: Target | Denoiser | str | Path,
    images: Cohort | None = None,
    *,
    attacks: "str | Attack | type[Attack] | Sequence[str | Attack | type[Attack]]" = "all",
    reference: Target | Denoiser | str | Path | None = None,
    output: str | Path | None = None,
    **settings: Any,
) -> Audit:
    """Audits a model on images that were, and images that were not, in its training set.

    The Python form of `diffleak audit`.

    Args:
        model: A diffusers folder or hub id, a loaded `Target`, or a `Denoiser` of your own.
        images: A `cohort`; or give members=DATA and nonmembers=DATA, or data=DATA and split=FILE among the settings.
        attacks: Names or specs such as "sima_mc(m=10)", and attacks of your own such as MyAttack(). An attack with the default timesteps
            gets those of flow matching if the model is one of flow matching.
        reference: A model as `model`, or "base" for the model without its LoRA: what leaks beyond what it knows is reported too.
        output: A run folder; an interrupted call with the same arguments resumes there. Without it nothing is left on disk.
        **settings: Any key of `AuditConfig`, such as timesteps="10:300:10".

    Returns:
        The finished audit: `audit["sima"].auc.low`, `audit.record`, `audit.results_frame()`.

    Raises:
        UserError: For input that cannot be audited.
    """
    images, settings = _images(images, settings)
    asked = called(AuditConfig, model, attacks, reference, {"output": output, **settings})
    with TemporaryDirectory() as scratch:
        folder = Path(output) if output else Path(scratch)
        finished = run(prepare(asked.config, asked.target, images, asked.reference, asked.made, log=say), folder)
        if finished is None:
            raise UserError("other shards have not finished; run them, then this call again")
        if output:
            finished.save(folder, asked.config.thumbnails)
    return finished


@dataclass(frozen=True, eq=False)
class Called(Generic[C]):
    """What a call from Python asks for: its settings, and the models and attacks among its arguments that are in memory already."""

    config: C
    target: Target | None
    reference: Target | None
    made: dict[str, Attack]


def called(
    kind: type[C],
    model: Model,
    attacks: "Attacks",
    reference: Model | None,
    settings: dict[str, Any],
) -> Called[C]:
    """The arguments of a call from Python, as settings of a `kind` and as what is in memory."""
    several = (attacks,) if isinstance(attacks, str | Attack | type) else attacks
    listed = [each() if isinstance(each, type) else each for each in several]  # a class stands for its defaults
    made = {spec_of(attack): attack for attack in listed if isinstance(attack, Attack)}
    specs = tuple(spec_of(attack) if isinstance(attack, Attack) else attack for attack in listed)
    named = None if reference is None else _name(reference)
    config = build(kind, {"model": _name(model), "reference": named, "attacks": specs, **settings})
    return Called(config, _in_memory(model, config), _in_memory(reference, config), made)


def _images(images: Any, settings: dict[str, Any]) -> tuple[Cohort | None, dict[str, Any]]:
    """The images of a call, None for those that a config names, and its settings with the names of the images."""
    given = {key: settings[key] for key in (*SIDES, *OF_SIDES) if settings.get(key) is not None}
    if images is None:
        if all(isinstance(given[key], str | Path) for key in given if key in SIDES):
            return None, settings
        made = cohort(**given)
        return made, {**settings, **made.given}
    if not isinstance(images, Cohort):
        what = f"{type(images).__name__} {images}" if isinstance(images, str | Path) else f"a {type(images).__name__}"
        raise UserError(f"images must be a cohort: diffleak.cohort(members=..., nonmembers=...); got {what}")
    twice = [key for key in given if key != "seed" or key in images.given]
    if twice:
        raise UserError(f"{twice[0]} is a setting of the images: give it to diffleak.cohort, and leave it out here")
    return images, {**(images.given or {"members": IN_MEMORY, "nonmembers": IN_MEMORY}), **settings}


def _name(model: Target | Denoiser | str | Path) -> str:
    return str(model) if isinstance(model, str | Path) else getattr(model, "name", "denoiser")


def _in_memory(model: Target | Denoiser | str | Path | None, config: AuditConfig) -> Target | None:
    """A model that is loaded already; None for one that a config names."""
    if not isinstance(model, Denoiser):
        return model if isinstance(model, Target) else None
    device = str(hub.checked_device(config.device)) if config.device else "cpu"
    return Target(model, dtype=config.dtype, device=device)


def run(
    prepared: Prepared, folder: Path, log: Callable[[str], None] = say, timed: bool = True, shared: Shared | None = None
) -> Audit | None:
    """Scores what is missing in `folder` and evaluates; None when other workers still have chunks to do.

    timed: times a forward first, to say about how long all will take. shared: what the audits of a sweep have in common.

    Raises `UserError` when the folder belongs to another plan, cannot be written, or the model returns NaN.
    """
    collected = _scored(prepared, folder, log, timed, shared)
    if collected is None:
        return None
    measured = _measured(prepared, folder)
    with doing("evaluating"):
        audit = _finish_by_key(prepared, collected, measured) if prepared.key else _finish(prepared, collected, measured)
    audit = replace(audit, record=with_validity(audit.record.model_copy(update={"evidence": evidence_of(prepared, folder)})))
    if prepared.calibrates and not prepared.key:  # who has an image finds its keyed id by these numbers
        write_complexity(folder, prepared.scan.cohort.ids, prepared.scan.complexity, collected.reconstruction)
    clear(folder)
    return audit


def measure(prepared: Prepared, folder: Path, log: Callable[[str], None] = say, timed: bool = True) -> bool:
    """Leaves geometry.parquet and influence.npy of images alone; False when other workers still have chunks to do."""
    if _scored(prepared, folder, log, timed) is None:
        return False
    _measured(prepared, folder)
    clear(folder)
    return True


def score(prepared: Prepared, folder: Path, log: Callable[[str], None] = say, timed: bool = True) -> scoring.Collected | None:
    """Scores what is missing in `folder` and returns all scores; None when other workers still have chunks to do.

    For what is no audit: nothing is evaluated or written but plan.json and the scores. Raises `UserError` as `run` does.
    """
    return _scored(prepared, folder, log, timed)


def _scored(
    prepared: Prepared, folder: Path, log: Callable[[str], None], timed: bool, shared: Shared | None = None
) -> scoring.Collected | None:
    """Does what is missing of this worker's share; all scores when every share is done then, else None."""
    for drawings in prepared.drawings:
        drawings.claim()
    _claim(Folder(folder), prepared.plan, _unnamed(Folder(folder), prepared.plan), type(prepared.config))
    if not prepared.said:
        log(prepared.describe())
    if timed:
        log(f"time: {prepared.estimate(folder)}")
    for line in (*about_release(prepared), *about_sides(prepared), *prepared.scan.cohort.found):
        log(line)
    if prepared.membership and prepared.config.known:
        log(f"membership: {prepared.membership.sentence}")
    for line in about_names(prepared, folder):
        log(line)
    if prepared.scan.captions:
        log(captions_line(prepared.scan.captions, len(prepared.scan.cohort)))
    kept = shared.latents(prepared.inputs, prepared.plan) if shared and not (folder / "audit.json").exists() else None
    if kept:
        lend(kept, folder)
    collected = in_phases(prepared, Folder(folder), log)
    if kept and not (folder / "audit.json").exists():  # else another worker has finished, and the latents are to go
        lend(folder, kept)
    return collected


def _measured(prepared: Prepared, folder: Path) -> Float64[np.ndarray, "n 3"] | None:
    job = prepared.job
    return write_geometry(job.inputs, folder, job.chunks) if job.inputs.top else None


def _finish_by_key(prepared: Prepared, collected: scoring.Collected, measured: Float64[np.ndarray, "n 3"] | None) -> Audit:
    """An anonymous audit, evaluated in the order of the file names and returned in that of the keyed ids.

    Folds and bootstraps draw rows by their number, so in another order they would be other draws, and the numbers not those of
    the same audit without keyed ids.
    """
    cohort = prepared.scan.cohort
    order, prepared = cohort.by_key, prepared.by_key
    scores = tuple(tuple(variant.taken(order) for variant in group) for group in collected.scores)
    given = lambda array: None if array is None else array[order]
    collected = replace(collected, scores=scores, reconstruction=given(collected.reconstruction))
    audit = _finish(prepared, collected, given(measured))
    back = np.argsort(order)
    return Audit(audit.record, audit.samples.taken(back), tuple(s.taken(back) for s in audit.scores), cohort)


def _finish(prepared: Prepared, collected: scoring.Collected, measured: Float64[np.ndarray, "n 3"] | None) -> Audit:
    blind = prepared.blind  # which `at` would compute again
    prepared = prepared.at(swept(collected))
    cohort, units, config = prepared.scan.cohort, prepared.units, prepared.config
    member, split = units.member, units.reduced(prepared.split)
    started = time.monotonic()
    pairs = evaluated(prepared, collected.scores, collected.parameters, collected.reconstruction)
    results, chosen = [result for result, _ in pairs], [scores for _, scores in pairs]
    every = tuple(scores for group in collected.scores for scores in group)
    by_image = [result for result in results if result.plain], [scores for scores, *_ in collected.scores]
    geometry = None if measured is None else analyse(prepared.inputs, measured, *by_image, units, split)
    record = AuditRecord(
        created=now(),
        command=command_of(config, prepared.plan),
        settings=config.model_dump(mode="json"),
        plan=prepared.plan,
        environment=environment(prepared.target, prepared.worker.threads, config.seed, prepared.plan.data_fingerprint),
        split=split.record,
        clusters=_clusters(prepared),
        headline=evaluation.headline(results),
        results=tuple(results),
        blind=blind,
        warnings=(
            *warnings_of(prepared, results, blind),
            *about_equal_scores(prepared, chosen),
            *about_memory(prepared, collected.halved_to),
        ),
        omitted=prepared.scan.omitted,
        truncated=prepared.truncated,
        costs=Costs(
            queries=collected.queries,
            queries_saved=collected.saved,
            queries_read=collected.read,
            seconds=round(collected.seconds + time.monotonic() - started, 2),
            chunks=collected.chunks,
            sweep=prepared.plan.sweep,
            test_timesteps=collected.test_timesteps,
            between_timesteps=collected.between_timesteps,
            halved_to=collected.halved_to,
        ),
        geometry=geometry,
        membership=prepared.membership,
        drawn=_drawn(prepared),
        promise=promise_of(prepared.target.split_file),
        images=prepared.scan.tally,
        adapters=prepared.target.adapters,
        embeddings=prepared.target.embeddings,
        headers=prepared.target.headers,
        latent=prepared.target.latent,
    )
    record = with_validity(in_given_images(record))
    record = record.model_copy(update={"gates": gates(record.results, config, split.record.unit) if record.valid else ()})
    samples = units.named(evaluation.samples(chosen, results, member, split))
    if config.group is not None:
        record = record.model_copy(update={"groups": groups_found(record, samples, config.group)})
    return Audit(record, samples, every, cohort, maps_of(prepared, record, samples))


def _clusters(prepared: Prepared) -> tuple[tuple[str, ...], ...]:
    """The clusters of several images in the order of their ids: that of the file names would say which keyed id is whose."""
    ids = prepared.scan.cohort.ids
    named = (tuple(sorted((ids[row] for row in rows), key=sort_key)) for rows in clusters_of_several(prepared.scan.clusters))
    return tuple(sorted(named, key=lambda cluster: sort_key(cluster[0])))


def _drawn(prepared: Prepared) -> Draw | None:
    """How the two sides were drawn."""
    scan, config = prepared.scan, prepared.config
    return draw_of(scan.cohort, prepared.membership, prepared.target.split_file, config.split, len(scan.omitted))


def gate(record: AuditRecord, config: AuditConfig) -> None:
    """Raises `InvalidAudit` when the numbers do not measure membership, `GateFailed` with every limit that is not met.

    `diffleak.gating.limits` says when a limit is met.
    """
    judged = with_validity(record.model_copy(update={"settings": {**record.settings, "allow_shift": config.allow_shift}}))
    if not judged.valid:
        limits = " No limit was checked." if any(getattr(config, limit) is not None for limit in LIMITS) else ""
        raise InvalidAudit(f"{judged.invalid_reason}{limits}")
    checked = gates(record.results, config, record.split.unit)
    failed = [sentence(gate) for gate in checked if not gate.passed]
    if failed:
        raise GateFailed("\n".join((f"{len(failed)} of {one_or_more(len(checked), 'check')} failed", *failed)))


def _unnamed(folder: Folder, plan: Plan) -> UserError | None:
    """The error for a second claim of a plan that does not name its model, its reference or the code of an attack."""
    if UNKNOWN in (plan.model_fingerprint, plan.reference_fingerprint):
        return folder.unnamed("scores")
    typed = any(attack.get("code") == NO_SOURCE for attack in plan.attacks)
    return folder.unnamed("scores", "of this attack", SAVE_IT) if typed else None


def _claim(folder: Folder, plan: Plan, again: UserError | None = None, kind: type[AuditConfig] = AuditConfig) -> bool:
    """Makes the folder the plan's own; True when it was free, False when it already belongs to this very plan.

    kind: of the command, whose settings messages name.
    Raises `UserError` when it is another plan's, or holds results without a plan, and `again` when it is this plan's already.
    """
    path = checked_folder(folder.path)
    foreign = [name for name in ("audit.json", "samples.csv", "report.html") if (path / name).exists()]
    if foreign and not (path / PLAN).exists():
        raise UserError(f"{path} already holds {foreign[0]}, which no audit here has written; choose another -o")
    dumped = lambda plan: plan.model_dump(mode="json") if plan else {}
    return folder.claim(
        dumped(plan),
        lambda changed: (
            f"{path} belongs to another plan ({spelled([_narrowed(each) for each in changed], names_of(kind))}); "
            "use another -o, or the same settings to resume"
        ),
        text=plan.model_dump_json(indent=2),
        read=lambda: dumped(read_plan(path)),
        again=again,
    )


def _narrowed(change: Change) -> Change:
    """Of changed attacks their labels, or the first one whose label is the same and that differs."""
    if change.key != "attacks":
        return change
    before, now = (list(listed or ()) for listed in (change.before, change.now))
    labels = [[attack["attack"] for attack in listed] for listed in (before, now)]
    if labels[0] != labels[1]:
        return Change(change.key, *labels)
    old, new = next((old, new) for old, new in zip(before, now, strict=True) if old != new)
    return Change(change.key, {new["attack"]: old}, {new["attack"]: new})


def command_of(config: AuditConfig, plan: Plan, images: Sequence[str | None] = ()) -> str:
    """The command line that repeats the audit; for objects in memory, that it was a call from Python.

    images: DATA beside those of an audit.
    """
    given = ("lora", "embedding", "network", "weights", "model_from")
    loaded = [getattr(plan, name) for name in given] != [getattr(config, name) for name in given]
    loaded_with_more = loaded or plan.guidance_scale not in (None, config.guidance_scale)
    typed = any(spec.startswith("__main__:") or not readable(spec, ATTACKS) for spec in config.attacks if spec != "all")
    in_memory = IN_MEMORY in (config.data, config.members, config.nonmembers, *images) or config.in_memory or config.reference == IN_PYTHON
    if in_memory or loaded_with_more or typed:
        return f"diffleak.{config.COMMAND}(...) from Python, with the settings recorded in {config.RECORD}"
    return command_line(config, config.COMMAND, ("shard", "threads"))
