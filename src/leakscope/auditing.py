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
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from leakscope import evaluation, hub, scoring
from leakscope.attacks import ATTACKS
from leakscope.attacks.base import SWEEP, Attack, fit_to_schedule, parse, parse_timesteps
from leakscope.audit_config import AuditConfig, GeometryConfig, read_cohort
from leakscope.blind import INVALID_ABOVE, blind_auc
from leakscope.config import build
from leakscope.data.cohort import Cohort, two_sources
from leakscope.data.scan import Scan, scan
from leakscope.data.sources import open_source
from leakscope.diffusion.codec import Codec
from leakscope.diffusion.denoiser import Denoiser, Guided
from leakscope.environment import environment
from leakscope.errors import GateFailed, InvalidAudit, UserError
from leakscope.files import checked_folder, write_new
from leakscope.geometry_analyses import analyse
from leakscope.inputs import Inputs, auto_batch_size, clear, write_geometry
from leakscope.masks import MaskChoice, parse_mask
from leakscope.masks import distinct as distinct_masks
from leakscope.record import AuditRecord, Costs, Plan, Result, Samples, Scores
from leakscope.reference import load_reference, refuse_strangers
from leakscope.report.wording import visible
from leakscope.run_folder import read_plan, write_results
from leakscope.service import service
from leakscope.settling import needs_calibration


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
    target: hub.Target | Denoiser | str | Path,
    members: Any = None,
    nonmembers: Any = None,
    attacks: str | Sequence[str] = "all",
    output: str | Path | None = None,
    reference: hub.Target | Denoiser | str | Path | None = None,
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
    if config.lora is not None and not isinstance(target, str | Path):
        raise UserError("a LoRA is applied when a model is loaded: give leakscope.load(MODEL, lora=...) as the target, and no lora here")
    if config.guidance_scale != 1.0 and not isinstance(target, str | Path):
        raise UserError("guidance is put around a model when it is loaded: give leakscope.load(MODEL, guidance_scale=...), and none here")
    one, other = (_in_memory(model, config) for model in (target, reference))
    cohort = None if config.data else two_sources(open_source(members), open_source(nonmembers), config.limit, config.seed)
    with TemporaryDirectory() as scratch:
        folder = Path(output) if output else Path(scratch)
        finished = run(prepare(config, one, cohort, other), folder)
        if finished is None:
            raise UserError("other shards have not finished; run them, then this call again")
        if output:
            finished.save(folder, config.thumbnails)
    return finished


def _name(model: hub.Target | Denoiser | str | Path) -> str:
    return str(model) if isinstance(model, str | Path) else getattr(model, "name", "denoiser")


def _in_memory(model: hub.Target | Denoiser | str | Path | None, config: AuditConfig) -> hub.Target | None:
    """A model that is loaded already; None for one that a config names."""
    if not isinstance(model, Denoiser):
        return model if isinstance(model, hub.Target) else None
    device = str(hub.checked_device(config.device)) if config.device else "cpu"
    return hub.Target(model, dtype=config.dtype, device=device)


@dataclass(frozen=True, eq=False)
class Prepared:
    """An audit that is ready to score: everything checked, nothing written."""

    config: AuditConfig
    target: hub.Target
    reference: hub.Target | None
    scan: Scan
    inputs: Inputs
    attacks: tuple[Attack, ...]
    masks: tuple[MaskChoice, ...]
    plan: Plan
    split: evaluation.Halves
    worker: scoring.Worker
    truncated: tuple[str, ...] = ()

    @property
    def queries_per_image(self) -> int:
        """Denoiser forwards per image over all attacks and timesteps."""
        return sum(self.job.queries(k) for k in range(len(self.attacks)))

    def summary(self) -> dict[str, Any]:
        """The plan with what it will take, for `--dry-run --json`."""
        per_image = self.queries_per_image
        return {**self.plan.model_dump(mode="json"), "queries_per_image": per_image, "queries": per_image * len(self.scan.cohort)}

    @property
    def job(self) -> scoring.Job:
        """What the workers are given."""
        reference = replace(self.inputs, target=self.reference) if self.reference else None
        return scoring.Job(self.inputs, self.attacks, self.plan, self.split.calibrate[0], reference)

    def describe(self, folder: Path | None = None) -> str:
        """The plan in one line, with the time that is left when `folder` holds finished chunks."""
        plan, lost = self.plan, len(self.scan.omitted)
        omitted = f", {lost} unreadable left out" if lost else ""
        where = f"on {plan.device} ({plan.dtype}, batches of {plan.batch_size}){omitted}; {scoring.estimate(self.job, folder, self.worker)}"
        if not self.attacks:
            measured = f"distortion from {plan.top} singular values, influence from {plan.probes} probes"
            return f"plan: {plan.n_nonmembers:,} images ({plan.image_shape}), {measured}, {where}"
        masks = f" (also under {', '.join(plan.masks)})" if plan.masks else ""
        masks += f" (also on the reference {visible(plan.reference)})" if plan.reference else ""
        lora = f"the LoRA {visible(plan.lora)} at scale {plan.lora_scale:g}, " if plan.lora else ""
        cut = f", {plan.captions_truncated:,} truncated" if plan.captions_truncated else ""
        captions = f"captions {visible(plan.captions)} ({plan.captions_found:,} found{cut}), " if plan.captions else ""
        guidance = f"guidance {plan.guidance_scale:g}, " if plan.guidance_scale is not None else ""
        return (
            f"plan: {plan.n_members:,} members and {plan.n_nonmembers:,} held-out images ({plan.image_shape}), "
            f"{lora}{len(self.attacks)} attacks{masks}, {captions}{guidance}"
            f"{self.queries_per_image:,} denoiser queries per image, {self.queries_per_image * len(self.scan.cohort):,} in all, "
            f"{where}"
        )


def prepare(
    config: AuditConfig, target: hub.Target | None = None, cohort: Cohort | None = None, reference: hub.Target | None = None
) -> Prepared:
    """Checks attacks, model, data and their fit; raises `UserError` for the first thing that is wrong.

    `target`, `cohort` and `reference` are loaded as the config says unless they are given.
    """
    chosen, masks = choose_attacks(config), choose_masks(config)
    if target is None:
        target = hub.load(config.model, config.dtype, config.device, config.guidance_scale, config.lora, config.lora_scale)
    reference = reference or load_reference(config, target)
    if reference:
        refuse_strangers(target, reference)
    attacks = _fitting(chosen, config, target)
    top = config.top if isinstance(config, GeometryConfig) else None
    if (masks or top) and not target.latent:
        what = "geometry is that" if top else "--mask ranks the latent coordinates"
        raise UserError(f"{what} of a decoder, and {target.name} works on pixels" + ("" if top else "; leave it out"))
    found = scan(
        cohort or read_cohort(config),
        target.shape,
        config.resize,
        config.skip_unreadable,
        target.classes if attacks else None,
        _told(config, target) if attacks else None,
        config.seed,
    )
    captions = found.captions
    truncated = tuple(found.cohort.ids[row] for row in target.text.truncated(captions.texts)) if captions and target.text else ()
    if target.latent:
        codec = target.codec
        attacks = tuple(attack.in_pixels(partial(_decoded, codec, auto_batch_size(found.shape, target.device))) for attack in attacks)
    attacks = tuple(attack.served_by(service(target, found.shape)) for attack in attacks)
    if config.two_sided or not config.data:
        _check_halves(found.cohort, config)
    inputs = Inputs(
        target,
        found.cohort,
        found.shape,
        config.resize,
        config.seed,
        found.labels,
        distinct_masks(masks),
        config.probes,
        top,
        bool(attacks),
        captions.texts if captions else None,
    )
    batch_size = inputs.auto_batch_size() if config.batch_size == "auto" else config.batch_size
    batch_size = min(batch_size, config.chunk_size)
    split = evaluation.halves(found.cohort.ids, found.cohort.member, config.calibrate_fraction, config.seed, config.calibration)
    plan = Plan(
        leakscope=version("leakscope"),
        model=target.name,
        model_fingerprint=target.fingerprint,
        members=found.cohort.names[0],
        nonmembers=found.cohort.names[1],
        data_fingerprint=found.fingerprint,
        n_members=split.record.members,
        n_nonmembers=split.record.nonmembers,
        image_shape=str(found.shape),
        resize=config.resize,
        attacks=tuple({"attack": a.label, **a.parameters(), "timesteps": list(a.timesteps)} for a in attacks),
        calibration=config.calibration,
        calibrate_fraction=config.calibrate_fraction,
        seed=config.seed,
        batch_size=batch_size,
        chunk_size=config.chunk_size - config.chunk_size % batch_size,
        dtype=target.dtype,
        device=target.device.split(":")[0],
        masks=tuple(choice.label for choice in masks),
        probes=config.probes if masks or top else None,
        top=top,
        classes=target.classes,
        captions=captions.choice if captions else None,
        captions_found=captions.found if captions else None,
        captions_truncated=len(truncated) if captions else None,
        lora=target.lora,
        lora_scale=target.lora_scale if target.lora else None,
        guidance_scale=target.denoiser.scale if isinstance(target.denoiser, Guided) else None,
        reference=config.reference if reference else None,
        reference_fingerprint=reference.fingerprint if reference else None,
    )
    worker = scoring.worker(config.shard, config.threads, target)
    return Prepared(config, target, reference, found, inputs, attacks, masks, plan, split, worker, truncated)


def _told(config: AuditConfig, target: hub.Target) -> str | None:
    """Which captions a text-to-image model is given; raises `UserError` when they are chosen for another model."""
    if target.text is not None:
        return "own" if config.captions is None else config.captions
    if config.captions is not None:
        raise UserError(f"--captions says what a text-to-image model is told; {target.name} takes no text: leave it out")
    return None


def _decoded(codec: Codec, size: int, z: Tensor) -> Tensor:
    """The images of a batch of latents, as many at a time as images of their size allow."""
    return torch.cat([codec.decode(codec.snap(part)) for part in z.split(size)])


def run(prepared: Prepared, folder: Path, log: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> Audit | None:
    """Scores what is missing in `folder` and evaluates; None when other workers still have chunks to do.

    Raises `UserError` when the folder belongs to another plan, cannot be written, or the model returns NaN.
    """
    if not _all_done(prepared, folder, log):
        return None
    measured = _measured(prepared, folder)
    audit = _finish(prepared, scoring.collect(prepared.job, folder), measured)
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
    unknown = hub.UNKNOWN in (prepared.plan.model_fingerprint, prepared.plan.reference_fingerprint)
    if not first and unknown and any(folder.glob("*/chunk-*")):
        raise UserError(
            f"{folder} holds scores, and nothing says that they are of this model; choose another folder, "
            "or give leakscope.Target(denoiser, fingerprint=...)"
        )
    log(prepared.describe(folder))
    if prepared.scan.captions:
        log(f"captions found: {prepared.scan.captions.found}/{len(prepared.scan.cohort)} ({visible(prepared.scan.captions.choice)})")
    missing = scoring.score(prepared.job, folder, prepared.worker)
    if missing:
        log(f"{missing} chunks belong to other shards and are not finished; the last shard writes the results (or run this again later)")
    return not missing


def _measured(prepared: Prepared, folder: Path) -> Float64[np.ndarray, "n 3"] | None:
    job = prepared.job
    return write_geometry(job.inputs, folder, {c: job.rows(c) for c in range(job.chunks)}) if job.inputs.top else None


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
    blind = blind_auc(prepared.scan.features, cohort.member, config.seed)
    record = AuditRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(config),
        settings=config.model_dump(mode="json"),
        plan=prepared.plan,
        environment=environment(prepared.target, prepared.worker.threads, config.seed, prepared.plan.data_fingerprint),
        split=split.record,
        headline=evaluation.headline(results),
        results=tuple(results),
        blind=blind,
        warnings=_warnings(prepared, results, blind.low),
        omitted=prepared.scan.omitted,
        truncated=prepared.truncated,
        costs=Costs(queries=collected.queries, seconds=round(collected.seconds + time.monotonic() - started, 2), chunks=collected.chunks),
        geometry=geometry,
    )
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


def _asked(prepared: Prepared, result: Result) -> tuple[hub.Target | None, ...]:
    """The models that a result needs the answers of."""
    if result.variant is None:
        return (prepared.target,)
    return (prepared.reference,) if result.variant == "reference" else (prepared.target, prepared.reference)


def gate(record: AuditRecord, config: AuditConfig) -> None:
    """Raises `InvalidAudit` when the sides differ without the model, `GateFailed` when a limit the user set is not met.

    A limit is met when the upper end of every attack's 95 % interval is at or below it: what cannot be excluded counts,
    and so does an attack that works with its direction reversed.
    """
    if record.blind.low is not None and record.blind.low > INVALID_ABOVE and not config.allow_shift:
        raise InvalidAudit(
            f"a classifier that never saw the model tells the two sides apart (AUC {record.blind.value:.2f}): they come from different "
            "sources, so the scores do not measure membership; use a matched held-out set, or --allow-shift to exit 0 all the same"
        )
    for result in (r for r in record.results if r.leads):
        rate = next(r for r in result.tpr_at_fpr if r.fpr == 0.01)
        reversed_auc = None if result.auc.low is None else 1 - result.auc.low
        if result.variant == "excess":  # reversed, it is the reference that leaks
            reversed_auc = result.auc.high
        checks = (
            ("AUC", result.auc, result.auc.high, config.max_auc),
            ("AUC with the direction reversed (are the sides swapped?)", result.auc, reversed_auc, config.max_auc),
            ("TPR at 1 % FPR", rate, rate.high, config.max_tpr),
        )
        for name, estimate, reach, limit in checks:
            if limit is not None and reach is None:
                raise GateFailed(f"{result.attack}: {name} is {estimate.reason}, so the limit of {limit} cannot be confirmed")
            if limit is not None and reach is not None and reach > limit:
                raise GateFailed(f"{result.attack}: {name} may reach {reach:.3f}, above the limit of {limit}")


def choose_attacks(config: AuditConfig) -> tuple[Attack, ...]:
    """The attacks of a config with their timesteps, before any model is known."""
    given = parse_timesteps(config.timesteps) if config.timesteps else None
    specs = [name for spec in config.attacks for name in (_all() if spec == "all" else [spec])]
    chosen = [parse(spec, ATTACKS, given or (SWEEP if config.calibration else _published(spec))) for spec in specs]
    labels = [a.label for a in chosen]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise UserError(f"each attack must be listed once; {sorted(twice)[0]} is there twice")
    if not chosen and config.two_sided:
        raise UserError("attacks must name at least one attack")
    if not config.calibration and any(len(a.timesteps) > 1 and a.rule is None for a in chosen):
        raise UserError("--no-calibration chooses nothing, so --timesteps must be one number")
    return tuple(chosen)


def _all() -> list[str]:
    """The attacks that need nothing but the model and its data."""
    return [name for name, kind in ATTACKS.items() if kind.in_all]


def _fitting(chosen: Sequence[Attack], config: AuditConfig, target: hub.Target) -> tuple[Attack, ...]:
    """The attacks as this model and these settings allow them; `all` leaves out those of a special kind that are not allowed.

    Raises `UserError` for one that was named itself.
    """
    specs = {spec.partition("(")[0].strip() for spec in config.attacks}
    fitting = []
    for attack in chosen:
        try:
            fitting.append(_allowed(attack, config, target))
        except UserError:
            if attack.name in specs or attack.rule is None:
                raise
    return tuple(fitting)


def _allowed(attack: Attack, config: AuditConfig, target: hub.Target) -> Attack:
    if attack.needs_text and getattr(target, "text", None) is None:
        raise UserError(f"{attack.name} works with captions, and {target.name} takes none; leave it out")
    if needs_calibration(attack.settled_by) and not config.calibration:
        raise UserError(f"{attack.name} settles its score on the calibrate half; leave out --no-calibration, or this attack")
    return fit_to_schedule(attack, target.denoiser.schedule)


def choose_masks(config: AuditConfig) -> tuple[MaskChoice, ...]:
    """The masks of a config; raises `UserError` for one that is not known, or twice there."""
    choices = tuple(parse_mask(text) for text in config.mask)
    labels = [choice.label for choice in choices]
    if len(set(labels)) < len(labels):
        raise UserError(f"each mask must be listed once; got {', '.join(labels)}")
    if not config.calibration and any(len(choice.masks) > 1 for choice in choices):
        raise UserError("--mask auto chooses its ratio on the calibrate half; with --no-calibration give a ratio, as in influence:0.4")
    return choices


def _published(spec: str) -> tuple[int, ...] | None:
    attack = parse(spec, ATTACKS, None)
    if attack.timesteps != SWEEP or attack.rule:
        return None
    if attack.published_timestep is None:
        raise UserError(f"{attack.name} has no published single timestep; with --no-calibration give --timesteps T")
    return (attack.published_timestep,)


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


def _check_halves(cohort: Cohort, config: AuditConfig) -> None:
    smallest = int(min(cohort.member.sum(), (~cohort.member).sum()))
    calibrate = round(config.calibrate_fraction * smallest)
    if config.calibration and not 0 < calibrate < smallest:
        raise UserError(
            f"calibrate_fraction must leave images on both halves; {config.calibrate_fraction} of {smallest} images "
            f"calibrates on {calibrate}"
        )


def _command(config: AuditConfig) -> str:
    """The command line that repeats the audit; for objects in memory, that it was a call from Python."""
    given = config.model_dump(exclude_defaults=True, exclude={"shard", "threads"}, mode="json")
    model = given.pop("model", "denoiser")
    if "array" in (config.members, config.nonmembers) or "denoiser" in (model, config.reference):
        return "leakscope.audit(...) from Python, with the settings recorded in audit.json"
    parts = ["leakscope", "geometry" if isinstance(config, GeometryConfig) else "audit", model]
    for key, value in given.items():
        flag = "--" + key.replace("_", "-")
        if key in ("attacks", "mask"):
            value = ",".join(value)
        parts += [f"--no-{key}"] if value is False else [flag] if value is True else [flag, str(value)]
    return shlex.join(parts)


def _warnings(prepared: Prepared, results: Sequence[Result], blind_low: float | None) -> tuple[str, ...]:
    found, split = [], prepared.split.record
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
    if prepared.truncated:
        found.append(
            f"{len(prepared.truncated)} captions are longer than the model's text encoder reads: it was told their beginning only "
            "(audit.json lists the images under truncated)"
        )
    told = prepared.scan.captions
    asking = ", ".join(attack.label for attack in prepared.attacks if attack.needs_text)
    if told and asking and not any(told.texts):
        found.append(f"the model was told no captions, and {asking} measures what captions add: what is left is not that attack")
    if prepared.config.resize:
        found.append(f"images of another shape were resized to {prepared.plan.image_shape} (bicubic, antialiased, centre crop)")
    if blind_low is not None and blind_low > 0.5:
        found.append(
            "a classifier that never saw the model tells the two sides apart better than chance: part of every AUC may be that difference"
        )
    if prepared.reference and prepared.plan.reference_fingerprint == prepared.plan.model_fingerprint != hub.UNKNOWN:
        found.append("the reference is the model itself: there is no excess over it")
    for result in (r for r in results if r.plain):
        if result.auc.value is not None and result.auc.value < 0.4:
            found.append(
                f"{result.attack}: AUC {result.auc.value:.2f} is below 0.4, against the direction its theory gives "
                "(are the sides swapped?); it was not flipped"
            )
    return tuple(found)
