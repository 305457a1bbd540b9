"""plan → score (chunks, workers, resume) → evaluate → record.

A run folder belongs to one plan (plan.json). Its chunks are independent files, so the same command resumes, several
workers share the work without talking to each other, and the one that finds everything done writes the results.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from diffleak import hub
from diffleak.attacks.base import Attack
from diffleak.attacks.black_box import BlackBox
from diffleak.attacks.clid import CLiD
from diffleak.auditing import score as scoring
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.auditing.gate import LIMITS, gates
from diffleak.auditing.inputs import clear, write_geometry
from diffleak.auditing.plan import Prepared, prepare
from diffleak.auditing.results import write_results
from diffleak.config import build
from diffleak.data.captions import FIXED, Captions
from diffleak.data.cohort import Cohort, two_sources
from diffleak.data.sources import open_source
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.environment import environment
from diffleak.diffusion.target import Target
from diffleak.errors import GateFailed, InvalidAudit, UserError, visible
from diffleak.records.audit import AuditRecord, Blind, Costs, Plan, Result
from diffleak.records.run_folder import read_plan
from diffleak.records.scores import Samples, Scores
from diffleak.report.judgement import with_validity
from diffleak.report.sections.audit.gates import sentence
from diffleak.stats import evaluation
from diffleak.stats.blind import blind_auc, finding, labels_p_value
from diffleak.stats.by_distortion import analyse
from diffleak.stats.reasons import in_given_images
from diffleak.work.files import checked_folder, open_to_others, write_new
from diffleak.work.folder import UNKNOWN


@dataclass(frozen=True, eq=False)
class Audit:
    """A finished audit: `results`, the full `record`, the `samples` table and every attack's `scores`."""

    record: AuditRecord
    samples: Samples
    scores: tuple[Scores, ...]
    cohort: Cohort | None = None

    @property
    def results(self) -> tuple[Result, ...]:
        """One result per attack, in the order they were asked for."""
        return self.record.results

    def to_frame(self) -> pd.DataFrame:
        """The scores as a table: id, attack, timestep, statistic (the paper's own), member (bool).

        Of an attack that stores components, `timestep` counts them from 0.
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
        return pd.concat(frames, ignore_index=True)

    def save(self, folder: str | Path, thumbnails: bool = False) -> Path:
        """Writes audit.json, samples.csv, report.html and, where they are not there yet, the scores; returns the folder."""
        folder = checked_folder(Path(folder))
        _claim(folder, self.record.plan)
        scoring.save_scores(folder, self.record, self.scores)
        write_results(folder, self.record, self.samples, self.cohort if thumbnails else None)
        return folder


def audit(
    target: Target | Denoiser | str | Path,
    members: Any = None,
    nonmembers: Any = None,
    attacks: str | Sequence[str] = "all",
    output: str | Path | None = None,
    reference: Target | Denoiser | str | Path | None = None,
    **settings: Any,
) -> Audit:
    """Audits a model on images that were, and images that were not, in its training set.

    target: a diffusers folder or hub id, a loaded `Target`, or a `Denoiser` of your own.
    members, nonmembers: DATA as on the command line, or uint8 arrays (N, H, W[, C]).
    attacks: names or specs such as "sima_mc(m=10)". settings: any key of `AuditConfig`, such as timesteps="10:300:10".
    reference: a model as `target`, or "base" for the target without its LoRA: what leaks beyond what it knows is reported too.
    output: a run folder; an interrupted call with the same arguments resumes there. Without it nothing is left on disk.
    Raises `UserError` for input that cannot be audited.
    """
    names = {key: None if value is None else value if isinstance(value, str) else str(value) if isinstance(value, Path) else "array"
             for key, value in (("members", members), ("nonmembers", nonmembers))}  # fmt: skip
    named = None if reference is None else _name(reference)
    config = build(AuditConfig, {**names, "model": _name(target), "reference": named, "attacks": attacks, "output": output, **settings})
    one, other = (_in_memory(model, config) for model in (target, reference))
    opened = partial(open_source, decoding=config.decoding)
    cohort = None if config.data else two_sources(opened(members), opened(nonmembers), config.limit, config.seed)
    with TemporaryDirectory() as scratch:
        folder = Path(output) if output else Path(scratch)
        finished = run(prepare(config, one, cohort, other), folder)
        if finished is None:
            raise UserError("other shards have not finished; run them, then this call again")
        if output:
            finished.save(folder, config.thumbnails)
    return finished


def _name(model: Target | Denoiser | str | Path) -> str:
    return str(model) if isinstance(model, str | Path) else getattr(model, "name", "denoiser")


def _in_memory(model: Target | Denoiser | str | Path | None, config: AuditConfig) -> Target | None:
    """A model that is loaded already; None for one that a config names."""
    if not isinstance(model, Denoiser):
        return model if isinstance(model, Target) else None
    device = str(hub.checked_device(config.device)) if config.device else "cpu"
    return Target(model, dtype=config.dtype, device=device)


def run(prepared: Prepared, folder: Path, log: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> Audit | None:
    """Scores what is missing in `folder` and evaluates; None when other workers still have chunks to do.

    Raises `UserError` when the folder belongs to another plan, cannot be written, or the model returns NaN.
    """
    if not _all_done(prepared, folder, log):
        return None
    measured, collected = _measured(prepared, folder), scoring.collect(prepared.job, folder)
    audit = _finish_by_key(prepared, collected, measured) if prepared.key else _finish(prepared, collected, measured)
    clear(folder)
    return audit


def measure(prepared: Prepared, folder: Path, log: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> bool:
    """Leaves geometry.parquet and influence.npy of images alone; False when other workers still have chunks to do."""
    if not _all_done(prepared, folder, log):
        return False
    _measured(prepared, folder)
    clear(folder)
    return True


def _all_done(prepared: Prepared, folder: Path, log: Callable[[str], None]) -> bool:
    """Does what is missing of this worker's share; whether every share is done then."""
    checked_folder(folder)
    first = _claim(folder, prepared.plan)
    unknown = UNKNOWN in (prepared.plan.model_fingerprint, prepared.plan.reference_fingerprint)
    if not first and unknown and any(folder.glob("*/chunk-*")):
        raise UserError(
            f"{folder} holds scores, and nothing says that they are of this model; choose another folder, "
            "or give diffleak.Target(denoiser, fingerprint=...)"
        )
    log(prepared.describe(folder))
    if prepared.membership:
        log(f"membership: {visible(prepared.membership.sentence)}")
    for line in _about_names(prepared, folder):
        log(line)
    if prepared.scan.captions:
        log(_captions_line(prepared.scan.captions, len(prepared.scan.cohort)))
    missing = scoring.score(prepared.job, folder, prepared.worker)
    if missing:
        log(f"{missing} chunks belong to other shards and are not finished; the last shard writes the results (or run this again later)")
    return not missing


def _captions_line(captions: Captions, images: int) -> str:
    if captions.choice == "empty" or captions.choice.startswith(FIXED):
        told = f"{captions.texts[0]!r} with every image" if captions.texts[0] else "nothing of any image"
        return f"captions: the model is told {told} ({visible(captions.choice)}; {captions.found}/{images} have one of their own)"
    return f"captions found: {captions.found}/{images} ({visible(captions.choice)})"


def _measured(prepared: Prepared, folder: Path) -> Float64[np.ndarray, "n 3"] | None:
    job = prepared.job
    return write_geometry(job.inputs, folder, {c: job.rows(c) for c in range(job.chunks)}) if job.inputs.top else None


def _about_names(prepared: Prepared, folder: Path) -> Iterator[str]:
    """Who can read the names of the images."""
    if prepared.key:
        yield f"anonymous: images go by keyed ids; keep their key {prepared.key.path}, and never pass it on with the run"
        if prepared.key.path and open_to_others(prepared.key.path):
            yield f"others on this machine may read the key: chmod 600 {prepared.key.path}"
    elif open_to_others(folder):
        yield f"others on this machine may read {folder}, which names images by file name: chmod 700 {folder}"


def _finish_by_key(prepared: Prepared, collected: scoring.Collected, measured: Float64[np.ndarray, "n 3"] | None) -> Audit:
    """An anonymous audit, evaluated in the order of the file names and returned in that of the keyed ids.

    Folds and bootstraps draw rows by their number, so in another order they would be other draws, and the numbers not those of
    the same audit without keyed ids.
    """
    cohort, scan = prepared.scan.cohort, prepared.scan
    order = cohort.by_key
    in_order = cohort.taken(order)
    prepared = replace(
        prepared,
        scan=replace(
            scan,
            cohort=in_order,
            features=scan.features[order],
            labels=replace(scan.labels, numbers=scan.labels.numbers[order]) if scan.labels else None,
        ),
        inputs=replace(prepared.inputs, cohort=in_order),
        split=replace(prepared.split, calibrate=prepared.split.calibrate[:, order]),
    )
    scores = tuple(tuple(variant.taken(order) for variant in group) for group in collected.scores)
    audit = _finish(prepared, replace(collected, scores=scores), None if measured is None else measured[order])
    back = np.argsort(order)
    return Audit(audit.record, audit.samples.taken(back), tuple(s.taken(back) for s in audit.scores), cohort)


def _finish(prepared: Prepared, collected: scoring.Collected, measured: Float64[np.ndarray, "n 3"] | None) -> Audit:
    cohort, split, config = prepared.scan.cohort, prepared.split, prepared.config
    started = time.monotonic()
    pairs = [
        pair
        for attack, scores, parameters in zip(prepared.attacks, collected.scores, collected.parameters, strict=True)
        for pair in _results(prepared, attack, scores, parameters)
    ]
    results, chosen = [result for result, _ in pairs], [scores for _, scores in pairs]
    every = tuple(scores for group in collected.scores for scores in group)
    geometry = None if measured is None else analyse(prepared.inputs, measured, results, chosen, cohort.member, split)
    blind, labels = blind_auc(prepared.scan.features, cohort.member, config.seed), prepared.scan.labels
    if labels:
        blind = blind.model_copy(update={"labels_p_value": labels_p_value(labels.numbers, cohort.member, config.seed)})
    record = AuditRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(config, prepared.plan),
        settings=config.model_dump(mode="json"),
        plan=prepared.plan,
        environment=environment(prepared.target, prepared.worker.threads, config.seed, prepared.plan.data_fingerprint),
        split=split.record,
        headline=evaluation.headline(results),
        results=tuple(results),
        blind=blind,
        warnings=(*_warnings(prepared, results, blind), *_about_equal_scores(chosen)),
        omitted=prepared.scan.omitted,
        truncated=prepared.truncated,
        costs=Costs(queries=collected.queries, seconds=round(collected.seconds + time.monotonic() - started, 2), chunks=collected.chunks),
        geometry=geometry,
        membership=prepared.membership,
        images=prepared.scan.tally,
    )
    record = with_validity(in_given_images(record))
    record = record.model_copy(update={"gates": gates(record.results, config) if record.valid else ()})
    return Audit(record, evaluation.samples(chosen, results, cohort.member, split), every, cohort)


def _results(prepared: Prepared, attack: Attack, scores: tuple[Scores, ...], parameters: dict[str, Any]) -> Iterator[tuple[Result, Scores]]:
    """An attack's result and those under each mask or beside the reference, with the scores each came from."""
    member, split, unmasked = prepared.scan.cohort.member, prepared.split, scores[0]
    base = evaluation.on_every_split(unmasked, member, split)
    found = [(evaluation.combined(base), unmasked)]
    if prepared.reference:
        found += evaluation.evaluate_reference(scores, base, member, split)
    under = dict(zip(prepared.inputs.masks, scores[1:], strict=False))
    for choice in prepared.masks if under else ():
        candidates = [evaluation.Candidate(mask.ratio, under.get(mask, unmasked)) for mask in choice.masks]
        found.append(evaluation.evaluate_masked(choice.label, candidates, unmasked, base, member, split))
    for result, source in found:
        models = [model for model in _asked(prepared, result) if model]
        cost = lambda part, models=models: sum(part.queries * scoring.forwards(model, part) for model in models)
        alone = None if result.timestep is None else cost(replace(attack, timesteps=(result.timestep,)))
        costs = {"queries": cost(attack), "queries_at_timestep": alone}
        yield result.model_copy(update={"access": attack.access, "parameters": parameters, **costs}), source


def _asked(prepared: Prepared, result: Result) -> tuple[Target | None, ...]:
    """The models that a result needs the answers of."""
    if result.variant is None:
        return (prepared.target,)
    return (prepared.reference,) if result.variant == "reference" else (prepared.target, prepared.reference)


def gate(record: AuditRecord, config: AuditConfig) -> None:
    """Raises `InvalidAudit` when the numbers do not measure membership, `GateFailed` with every limit that is not met.

    `diffleak.auditing.gate` says when a limit is met.
    """
    judged = with_validity(record.model_copy(update={"settings": {**record.settings, "allow_shift": config.allow_shift}}))
    if not judged.valid:
        limits = " No limit was checked." if any(getattr(config, limit) is not None for limit in LIMITS) else ""
        raise InvalidAudit(f"{judged.invalid_reason}{limits}")
    checked = gates(record.results, config)
    failed = [sentence(gate) for gate in checked if not gate.passed]
    if failed:
        raise GateFailed("\n".join((f"{len(failed)} of {len(checked)} {'check' if len(checked) == 1 else 'checks'} failed", *failed)))


def _claim(folder: Path, plan: Plan) -> bool:
    """Makes the folder the plan's own; True when it was free, False when it already belongs to this very plan.

    Raises `UserError` when it is another plan's. Shards that start together cannot both be first.
    """
    strangers = [name for name in ("audit.json", "samples.csv", "report.html") if (folder / name).exists()]
    if strangers and not (folder / "plan.json").exists():
        raise UserError(f"{folder} already holds a {strangers[0]} that no audit here has written; choose another -o")
    if write_new(folder / "plan.json", plan.model_dump_json(indent=2)):
        return True
    old, new = ({} if p is None else p.model_dump(mode="json") for p in (read_plan(folder), plan))
    changed = [key for key in new if old.get(key) != new[key]]
    if changed:
        short = lambda value: f"{str(value)[:60]}…" if len(str(value)) > 60 else str(value)
        differences = "; ".join(f"{key} was {short(old.get(key))}, now {short(new[key])}" for key in changed[:3])
        raise UserError(f"{folder} belongs to another plan ({differences}); use another -o, or the same settings to resume")
    return False


def _command(config: AuditConfig, plan: Plan) -> str:
    """The command line that repeats the audit; for objects in memory, that it was a call from Python."""
    given = config.model_dump(exclude_defaults=True, exclude={"shard", "threads"}, mode="json")
    model = given.pop("model", "denoiser")
    loaded_with_more = plan.lora != config.lora or plan.guidance_scale not in (None, config.guidance_scale)
    if "array" in (config.members, config.nonmembers) or "denoiser" in (model, config.reference) or loaded_with_more:
        return "diffleak.audit(...) from Python, with the settings recorded in audit.json"
    parts = ["diffleak", "geometry" if isinstance(config, GeometryConfig) else "audit", model]
    for key, value in given.items():
        flag = "--" + key.replace("_", "-")
        if key in ("attacks", "mask"):
            value = ",".join(value)
        parts += [f"--no-{key}"] if value is False else [flag] if value is True else [flag, str(value)]
    return shlex.join(parts)


def _about_equal_scores(scores: Sequence[Scores]) -> tuple[str, ...]:
    """Which attacks give every image the same score."""
    return tuple(
        f"{each.attack} gives every image the same score, so it measured nothing: does the model's answer depend on the image?"
        for each in scores
        if not np.ptp(each.statistic, axis=0).any()
    )


def _warnings(prepared: Prepared, results: Sequence[Result], blind: Blind) -> tuple[str, ...]:
    found, split = list(prepared.target.warnings), prepared.split.record
    if prepared.reference:
        found += [f"of the reference: {line}" for line in prepared.reference.warnings]
    models = len(prepared.target.denoiser.exposed)
    if models > 1:
        found.append(
            f"the release holds {models} models, and whoever has it can ask each: every statistic is that of the model under which "
            "the image looks most like a member"
        )
    if split.repeats > 1:
        found.append(
            f"fewer than {evaluation.SMALL_SIDE} images on a side: every number is the median over {split.repeats} calibrate/test splits"
        )
    if prepared.membership and prepared.membership.status == "contradicted, ignored":
        found.append(prepared.membership.sentence)
    larger, smaller = max(split.members, split.nonmembers), min(split.members, split.nonmembers)
    if larger > 1.5 * smaller:
        found.append(
            f"the sides are unequal ({split.members} members, {split.nonmembers} held out): "
            "compare attack success with its baseline, not with 50 %"
        )
    if prepared.scan.repeated:
        found.append(f"{prepared.scan.repeated} images occur more than once on their side; intervals treat them as independent")
    if prepared.scan.omitted:
        found.append(f"{len(prepared.scan.omitted)} unreadable images were left out")
    if images := prepared.images:
        found.append(
            f"how the images were read: {', '.join(images)}; the scores are of the training images only if the training read them in the "
            "same way (--exif, --alpha and --white choose another)"
        )
    if prepared.truncated:
        found.append(
            f"{len(prepared.truncated)} captions are longer than the model's text encoder reads: it was told their beginning only "
            "(audit.json lists the images under truncated)"
        )
    told = prepared.scan.captions
    if told and not any(told.texts):
        found += [
            f"the model was told no captions, and {attack.label} measures what captions add: what is left of it is the loss"
            for attack in prepared.attacks
            if isinstance(attack, CLiD)
        ]
    guidance = prepared.plan.guidance_scale
    if guidance is not None:
        found += [
            f"{attack.label} draws under a guidance of its own, {attack.guidance_scale:g}, and not under the audit's {guidance:g}: "
            "its parameter guidance_scale changes it"
            for attack in prepared.attacks
            if isinstance(attack, BlackBox)
        ]
    if prepared.config.resize:
        found.append(f"images of another shape were resized to {prepared.plan.image_shape} (bicubic, antialiased, centre crop)")
    if finding(blind) == "perhaps":
        found.append("the two sides can be told apart without the model, better than by chance: part of every AUC may be that difference")
    if prepared.reference and prepared.plan.reference_fingerprint == prepared.plan.model_fingerprint != UNKNOWN:
        found.append("the reference is the model itself: there is no excess over it")
    for result in (r for r in results if r.plain):
        if result.auc.value is not None and result.auc.value < 0.4:
            found.append(
                f"{result.attack}: AUC {result.auc.value:.2f} is below 0.4, against the direction its theory gives "
                "(are the sides swapped?); it was not flipped"
            )
    return tuple(found)
