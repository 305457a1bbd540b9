"""What an audit will do: attacks, images, captions, masks and chunks, all checked before anything is scored."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffleak import hub
from diffleak.attacks import ATTACKS
from diffleak.attacks.base import SWEEP, Attack
from diffleak.attacks.black_box import BlackBox
from diffleak.attacks.spec import (
    at_some,
    default_sweep,
    fit_to_schedule,
    gives_timesteps,
    parse,
    parse_timesteps,
    refuse_outside,
    with_timesteps,
)
from diffleak.auditing import score as scoring
from diffleak.auditing.config import AuditConfig, GeometryConfig, read_cohort
from diffleak.auditing.inputs import Inputs
from diffleak.auditing.reference import load_reference, refuse_incompatible
from diffleak.auditing.shared import Shared
from diffleak.data.anonymity import Key, choose_key
from diffleak.data.buckets import SMALLEST, UNSAID, Buckets, parse_buckets
from diffleak.data.cohort import Cohort
from diffleak.data.draw import calibrate_size
from diffleak.data.enough import counted, counted_before, images_of
from diffleak.data.groups import groups_of, refuse_both_sides
from diffleak.data.membership import check_membership
from diffleak.data.scan import Scan, scan
from diffleak.diffusion.codec import Autoencoder
from diffleak.diffusion.denoiser import Guided
from diffleak.diffusion.devices import free_memory
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import Target, drawn_at_once
from diffleak.errors import SettingError, UserError, one_or_more, shown, unknown, visible
from diffleak.gating.limits import refuse_unreachable
from diffleak.generation import Drawings, drawings_of
from diffleak.geometry.masks import MaskChoice, parse_mask
from diffleak.geometry.masks import distinct as distinct_masks
from diffleak.records.audit import Blind, Membership
from diffleak.records.images import refuse_other_reading
from diffleak.records.plan import Plan, one_for_all
from diffleak.records.run_folder import read_plan, refuse_other_command
from diffleak.records.variants import CoarseStep, Sweep
from diffleak.report.wording import adapter, labels_from
from diffleak.stats import evaluation
from diffleak.stats.calibration import FEWEST
from diffleak.stats.rules import LOGISTIC, RULES, needs_calibration
from diffleak.stats.units import Units, units_of
from diffleak.work.files import checked_folder
from diffleak.work.folder import Folder
from diffleak.work.progress import doing, say

COARSE_STEP: CoarseStep = 3  # every timestep is beside one that is scored first


@dataclass(frozen=True, eq=False)
class Prepared:
    """An audit whose plan is known: everything checked but the model itself, nothing written but the key of an anonymous run."""

    config: AuditConfig
    target: Target
    reference: Target | None
    scan: Scan
    inputs: Inputs
    attacks: tuple[Attack, ...]
    masks: tuple[MaskChoice, ...]
    plan: Plan
    split: evaluation.Divisions
    units: Units
    worker: scoring.Worker
    truncated: tuple[str, ...] = ()
    membership: Membership | None = None
    key: Key | None = None
    pace: scoring.Pace = scoring.UNKNOWN_PACE
    said: bool = False  # the line of `describe`

    @property
    def queries_per_image(self) -> int:
        """Denoiser forwards per image; of the calibrate part where the test part takes fewer, and with --sweep coarse about as many."""
        *calibrate, test = self.jobs()
        return sum(job.queries_per_image for job in calibrate) if calibrate else test.queries_per_image

    @property
    def queries(self) -> int:
        """Denoiser forwards in all; where a job waits for what is chosen, about as many."""
        return sum(job.images * job.queries_per_image for job in self.jobs())

    def summary(self) -> dict[str, Any]:
        """The plan with what it will take, for `--dry-run --json`."""
        per_image = self.queries_per_image
        made = {"queries_per_image": per_image, "queries": self.queries, "images": asdict(self.scan.tally)}
        said = {"membership": self.membership.model_dump(mode="json")} if self.membership else {}
        return {**self.plan.model_dump(mode="json"), **made, **said}

    @property
    def images(self) -> tuple[str, ...]:
        """What was done to the images and what was left out, in words; nothing where there is nothing to say."""
        return self.scan.tally.described(self.scan.cohort.decoding, self.scan.shape.channels == 4)

    @property
    def calibrates(self) -> bool:
        """True if there are enough held-out images to take out of the scores what the complexity of images explains."""
        return _calibrates(self.config, self.split, self.units)

    @cached_property
    def blind(self) -> Blind:
        """What tells the sides apart without the model. Its folds draw rows by their number, so another order gives other numbers."""
        units, seed = self.units, self.config.seed
        found = units.blind(self.scan.features, self.scan.complexity, seed)
        if labels := self.scan.labels:
            found = found.model_copy(update={"labels_p_value": units.classes_p_value(labels.numbers, seed)})
        return found

    @cached_property
    def by_key(self) -> "Prepared":
        """The same audit in the order of the file names, which is that of the same audit without keyed ids."""
        order = self.scan.cohort.by_key
        return replace(
            self,
            scan=self.scan.taken(order),
            units=self.units.taken(order),
            inputs=replace(self.inputs, cohort=self.scan.cohort.taken(order)),
            split=replace(self.split, calibrate=self.split.calibrate[:, order]),
        )

    @property
    def drawings(self) -> tuple[Drawings, ...]:
        """Where drawings are kept of every model that draws, the audited one first; nowhere without --drawings."""
        own = self.inputs.drawings
        if own is None or self.reference is None:
            return () if own is None else (own,)
        return own, own.of_reference(self.reference)

    @property
    def job(self) -> scoring.Job:
        """What the workers are given."""
        kept = self.drawings[-1] if self.drawings else None
        reference = replace(self.inputs, target=self.reference, drawings=kept) if self.reference else None
        return scoring.Job(self.inputs, self.attacks, self.plan, self.split.calibrate[0], reference)

    def jobs(self) -> tuple[scoring.Job, ...]:
        """What is scored, one job after the other; where a job waits for what is chosen, one of about as many forwards, mid-sweep."""
        if self.plan.sweep == "all":
            return (self.job,)
        middle = {attack.label: len(attack.timesteps) // 2 for attack in self.attacks}
        chosen = {attack.label: attack.timesteps[middle[attack.label] - 1 : middle[attack.label] + 2] for attack in self.attacks}
        between = {attack.label: _beside_middle(attack) for attack in self.attacks if self.coarse(attack)}
        return self.calibrating, *([self.refining(between)] if between else ()), self.testing(chosen)

    @property
    def calibrating(self) -> scoring.Job:
        """The job of the calibrate part: at every timestep or, with --sweep coarse, at every third one."""
        attacks = tuple(at_some(each, _every_third(each)) if self.coarse(each) else each for each in self.attacks)
        return replace(self.job, rows=self._parts[0], attacks=attacks)

    def refining(self, between: Mapping[str, tuple[int, ...]]) -> scoring.Job:
        """The job of the calibrate part at more timesteps, by the label of the attack."""
        attacks = tuple(at_some(each, between[each.label]) for each in self.attacks if between.get(each.label))
        return replace(self.job, rows=self._parts[0], attacks=attacks, first_attack=len(self.attacks))

    def testing(self, chosen: Mapping[str, tuple[int, ...]]) -> scoring.Job:
        """The job of the test part at the chosen timesteps, by the label of the attack."""
        attacks = tuple(at_some(each, chosen[each.label]) if sweeps(each) else each for each in self.attacks)
        return replace(self.job, rows=self._parts[1], attacks=attacks, first=len(self.calibrating.chunks))

    @property
    def _parts(self) -> tuple[tuple[int, ...], ...]:
        return scoring.parts_of(self.plan, self.split.calibrate[0])

    def coarse(self, attack: Attack) -> bool:
        """True for an attack that the calibrate part is scored by at every third timestep first, since that saves forwards."""
        return self.plan.sweep == "coarse" and _coarsens(attack)

    def at(self, timesteps: Mapping[str, tuple[int, ...]]) -> "Prepared":
        """The same audit where attacks that sweep do it over these timesteps, by their labels."""
        attacks = tuple(at_some(each, timesteps[each.label]) if each.label in timesteps else each for each in self.attacks)
        return replace(self, attacks=attacks)

    def tried(self, log: Callable[[str], None] | None = None) -> "Prepared":
        """The same audit after the model has answered for two images, and how long that took; with `log` the plan is said there first.

        Raises `UserError` for an answer that is not finite, or not like the images.
        """
        if log:
            log(self.describe())
        with doing(f"trying {self.target.name} on two images"):
            return replace(self, pace=scoring.probe(self.job), said=log is not None)

    @property
    def _masked(self) -> str:
        masked = [attack.name for attack in self.attacks if attack.takes_masks]
        return "all" if len(masked) == len(self.attacks) else ", ".join(masked)

    @property
    def _counted(self) -> str:
        """How many units the images are, where some count together."""
        if self.units.alone:
            return ""
        of = f"groups by {shown(str(self.config.group))}" if self.units.kind == "group" else "where near-duplicates count as one image"
        return f"counted as {int(self.units.member.sum()):,} and {int((~self.units.member).sum()):,} {of}, "

    @property
    def _swept(self) -> str:
        """Which timesteps of flow matching are swept, since they are scaled to the schedule and others than those of diffusion."""
        schedule = self.target.denoiser.schedule
        swept = sorted({t for attack in self.attacks if attack.rule is None for t in attack.timesteps})
        if not schedule.is_flow or len(swept) < 2:
            return ""
        return f"{len(swept)} timesteps from {swept[0]} to {swept[-1]} of {len(schedule):,} (flow matching), "

    def estimate(self, folder: Path | None = None) -> str:
        """About how long it takes, or what is left of it beside the finished chunks of `folder`, from one timed round of forwards.

        Of a model whose forwards take seconds, from those that it was tried with: nothing runs for long only to say how long it takes.
        """
        with doing("estimating the time"):
            return scoring.estimate(self.jobs(), Folder(folder) if folder else None, self.worker, self.pace)

    def describe(self) -> str:
        """The plan in one line; the model is not run."""
        plan, lost, called = self.plan, len(self.scan.omitted), self.scan.cohort.calls
        omitted = "".join(f", {words}" for words in ((f"{lost} unreadable left out",) if lost else ()) + self.images)
        faster = "".join(f", {way.replace('_', ' ')}" for way in plan.faster or ())
        where = f"on {plan.device} ({plan.dtype}{faster}, batches of {plan.batch_size}){omitted}"
        if not self.attacks:
            values, probes = one_or_more(plan.top or 0, "singular value"), one_or_more(plan.probes or 0, "probe")
            measured = f"distortion from {values}, influence from {probes}"
            return f"plan: {one_or_more(plan.n_nonmembers, 'image')} ({plan.image_shape}), {measured}, {where}"
        masks = f" ({self._masked} also under {', '.join(plan.masks)})" if plan.masks and self._masked else ""
        masks += f" (also on the reference {visible(plan.reference)})" if plan.reference else ""
        cut = f", {plan.captions_truncated:,} truncated" if plan.captions_truncated else ""
        given = "for every image" if plan.captions and one_for_all(plan.captions) else f"{plan.captions_found or 0:,} found"
        captions = f"captions {visible(plan.captions)} ({given}{cut}), " if plan.captions else ""
        captions += f"labels from {labels_from(plan.labels, plan.label_names)}, " if plan.labels else ""
        attacks = one_or_more(len(self.attacks), "attack")
        guidance = f"guidance {plan.guidance_scale:g}, " if plan.guidance_scale is not None else ""
        return (
            f"plan: {plan.n_members:,} {called[0]} and {plan.n_nonmembers:,} {called[1]} ({plan.image_shape}), {self._counted}"
            f"{adapter(plan.lora, plan.lora_scale, plan.embedding)}{attacks}{masks}, {self._swept}{captions}{guidance}"
            f"{self._queries}, {where}"
        )

    @property
    def _queries(self) -> str:
        """The number of queries of the model, in words."""
        jobs, queries = self.jobs(), ("denoiser query", "denoiser queries")
        if len(jobs) == 1:
            return f"{one_or_more(self.queries_per_image, *queries)} per image, {self.queries:,} in all"
        first, *refining, test = jobs
        later = f" and about {refining[0].queries_per_image:,} more beside the best timesteps" if refining else ""
        return (
            f"{one_or_more(first.queries_per_image, *queries)} per image of the calibrate part ({first.images:,} images){later}, then "
            f"about {test.queries_per_image:,} per image of the test part ({test.images:,} images) at the chosen settings, about "
            f"{self.queries:,} in all"
        )


def prepare(
    config: AuditConfig,
    target: Target | None = None,
    cohort: Cohort | None = None,
    reference: Target | None = None,
    made: Mapping[str, Attack] = MappingProxyType({}),
    shared: Shared | None = None,
    log: Callable[[str], None] | None = None,
) -> Prepared:
    """Checks attacks, model, data and their fit, and tries the model; raises `UserError` for the first thing that is wrong.

    Arguments as of `checked`. With `log` the line of the plan is said there before the model is tried.
    """
    return checked(config, target, cohort, reference, made, shared).tried(log)


def checked(
    config: AuditConfig,
    target: Target | None = None,
    cohort: Cohort | None = None,
    reference: Target | None = None,
    made: Mapping[str, Attack] = MappingProxyType({}),
    shared: Shared | None = None,
) -> Prepared:
    """An audit whose plan is known, and whose model has not been run; raises `UserError` for the first thing that is wrong.

    `target`, `cohort` and `reference` are loaded as the config says unless they are given; `made` are attacks by their specs.
    `shared` keeps what the audits of a sweep have in common.
    """
    if config.sweep_models or config.steps:
        raise UserError(
            "--sweep-models and --steps are for several checkpoints, which `diffleak audit` takes; this is an audit of one model"
        )
    refuse_other_command(config.output, config.RECORD)
    choose_attacks(config, made)  # to refuse at once what no model allows
    masks = choose_masks(config)
    if cohort is None:
        with doing("listing the images"):
            cohort = read_cohort(config)
    if shared is None:
        refuse_too_few(config, cohort)
    target = hub.target_of(config, target, config.guidance_scale)
    if shared:
        shared.join(target)
    if reference is None and (reference := load_reference(config, target)) and shared:
        shared.join(reference)
    if reference:
        refuse_incompatible(target, reference)
    attacks = _fitting(choose_attacks(config, made, target.denoiser.schedule), config, target, reference is not None)
    top = config.top if isinstance(config, GeometryConfig) else None
    if (masks or top) and not target.latent:
        what = "geometry is that" if top else "--mask ranks the latent coordinates"
        raise UserError(f"{what} of a decoder, and {target.name} works on pixels" + ("" if top else "; leave it out"))
    images, key = cohort, _key(config)
    told, classes = (_told(config, target, images), target.classes) if attacks else (None, None)
    if key:
        images = images.renamed(key)
        images = images.taken(images.by_id)
    membership = _membership(config, target, images)
    with images.pointing_to_names("--dry-run without --anonymous"):
        groups = None if config.group is None else _groups(images, config.group, config.fewest_groups)
        sizes, own = _buckets(config, target), _own_buckets(config, target)
        told_of = (target.shape, config.resize, config.skip_unreadable, classes, told, config.seed, target.class_names, sizes, own)
        found = shared.scanned(images, told_of) if shared else scan(images, *told_of)
    if found.shapes and own:
        shapes = "not all images have the shape that the model takes" if target.shape else "the images have several shapes"
        say(f"note: {shapes}; they are sorted as by --buckets {own.side} (or give --resize)")
        config = config.model_copy(update={"buckets": f"{own.side}"})
    if isinstance(target.codec, Autoencoder):
        for shape in dict.fromkeys(found.shapes or ()):
            hub.latent_shape(target.codec, shape)  # refuses sides that are no multiples of its factor
    for trained in target.trained:
        refuse_other_reading(trained, found.cohort.decoding, found.tally, found.shape.channels == 4)
    captions = found.captions
    truncated = tuple(found.cohort.ids[row] for row in target.text.truncated(captions.texts)) if captions and target.text else ()
    if masks and not top and not any(attack.takes_masks for attack in attacks):
        given = ", ".join(attack.name for attack in attacks)
        raise UserError(f"no attack that is given takes a mask ({given}); leave out --mask, or add an attack that does, such as sima")
    units = _units(found, groups, key)
    if found.cohort.member.any() and units.kind != "group":
        config.refuse_few(counted(found.clusters, found.cohort.member, config.across), images_of(found.cohort.member))
    if config.two_sided or not config.data:
        _check_halves(units, config)
    split = units.divided(config.calibrate_fraction, config.seed, config.calibration)
    first = config.sweep != "all" and config.calibration and split.record.repeats == 1 and any(map(sweeps, attacks))
    if first:
        split = units.divided(config.calibrate_fraction, config.seed, config.calibration, evaluation.MOST)
    inputs = Inputs(
        target,
        found.cohort,
        found.shape,
        config.resize,
        config.seed,
        found.labels.numbers if found.labels else None,
        distinct_masks(masks),
        config.probes,
        top,
        bool(attacks),
        captions.texts if captions else None,
        found.complexity if target.latent and _calibrates(config, split, units) else None,
        found.shapes,
        None if config.batch_size == "auto" else config.batch_size,
        may_skip_complexity="complexity" not in config.NO_FLAG,
    )
    alone = inputs.alone()
    if reference:
        alone = replace(alone, reference=replace(inputs, target=reference).alone())
    attacks = tuple(attack.opened(alone) for attack in attacks)
    inputs = replace(inputs, drawings=_drawings(config, inputs, attacks, key))
    _refuse_too_large(attacks, target, scoring.worker(config.shard, config.threads, target).threads)
    batch_size = inputs.auto_batch_size() if config.batch_size == "auto" else config.batch_size
    batch_size = min(batch_size, config.chunk_size)
    if found.cohort.member.any():
        _refuse_few(attacks, units, split)
        refuse_unreachable(config, split.record)
    plan = Plan(
        diffleak=version("diffleak"),
        **target.named,
        members=found.cohort.names[0],
        nonmembers=found.cohort.names[1],
        data_fingerprint=found.fingerprint,
        n_members=int(found.cohort.member.sum()),
        n_nonmembers=int((~found.cohort.member).sum()),
        image_shape=str(found.shape) if found.shapes is None else f"{len(set(found.shapes))} buckets, most {found.shape}",
        buckets=tuple((str(shape), count) for shape, count in Counter(found.shapes).items()) if found.shapes else None,
        resize=config.resize,
        attacks=tuple(_written(attack) for attack in attacks),
        calibration=config.calibration,
        calibrate_fraction=config.calibrate_fraction,
        seed=config.seed,
        batch_size=batch_size,
        chunk_size=config.chunk_size - config.chunk_size % batch_size,
        dtype=target.dtype,
        device=target.device.split(":")[0],
        masks=tuple(choice.label for choice in masks),
        probes=config.probes if masks or top else None,
        estimator="filtered" if masks or top else None,
        singular_values="krylov" if top else None,
        top=top,
        classes=target.classes,
        captions=captions.choice if captions else None,
        captions_found=captions.found if captions else None,
        captions_truncated=len(truncated) if captions else None,
        guidance_scale=target.denoiser.scale if isinstance(target.denoiser, Guided) else None,
        reference=config.reference if reference else None,
        reference_fingerprint=reference.fingerprint if reference else None,
        anonymous=key.name if key else None,
        labels=found.labels.origin if found.labels else None,
        label_names=found.labels.names if found.labels and not key else None,  # names of folders may name people
        **asdict(found.cohort.decoding),
        model_from=target.made_by,
        model_code=target.code,
        group=config.group,
        units=units.digest,
        sweep=(sweep := _sweep(config, attacks) if first else "all"),
        coarse_step=COARSE_STEP if sweep == "coarse" else None,
        faster=target.faster or None,
    )
    if config.sweep == "coarse" and plan.sweep != "coarse":
        say(f"note: --sweep coarse has no effect here: {_why_not_coarse(config, split, attacks)}")
    worker = scoring.worker(config.shard, config.threads, target)
    return Prepared(config, target, reference, found, inputs, attacks, masks, plan, split, units, worker, truncated, membership, key)


def refuse_too_few(config: AuditConfig, cohort: Cohort) -> None:
    """Raises `UserError` where the images are too few once near-duplicates count once: before a model is loaded, where they are not many.

    A command with several models calls it itself, before the first of them, and gives `checked` what they share.
    """
    if cohort.member.any() and not config.group:
        found = counted_before(cohort, config.fewest, config.skip_unreadable, config.across)
        if found:
            config.refuse_few(*found)


def sweeps(attack: Attack) -> bool:
    """True for an attack that can be scored at some of its timesteps alone, to the same statistics.

    One by a rule makes one score of all; one from outside of this package may take its noise by the place in the sweep.
    """
    return attack.rule is None and attack.code is None and len(attack.timesteps) > 1


def _every_third(attack: Attack) -> tuple[int, ...]:
    """Timesteps of which one is beside every other timestep of the sweep."""
    last = len(attack.timesteps) - 1
    return tuple(attack.timesteps[min(place, last)] for place in range(1, last + 2, COARSE_STEP))


def _beside_middle(attack: Attack) -> tuple[int, ...]:
    """The timesteps beside one that is among every third one, in the middle of the sweep."""
    first = _every_third(attack)
    place = attack.timesteps.index(first[(len(first) - 1) // 2])
    return tuple(t for t in attack.timesteps[max(place - 1, 0) : place + 2] if t not in first)


def _coarsens(attack: Attack) -> bool:
    """True if an attack makes fewer forwards at every third timestep and beside one than at all of them; one that walks there does not."""
    if not sweeps(attack):
        return False
    parts = (_every_third(attack), _beside_middle(attack))
    return sum(replace(attack, timesteps=part).queries for part in parts) < attack.queries


def _sweep(config: AuditConfig, attacks: Sequence[Attack]) -> Sweep:
    """What is scored where one division is enough: as the config says, and over the whole sweep where "coarse" saves nothing."""
    return "calibrate" if config.sweep == "coarse" and not any(map(_coarsens, attacks)) else config.sweep


def _why_not_coarse(config: AuditConfig, split: evaluation.Divisions, attacks: Sequence[Attack]) -> str:
    if not config.calibration:
        return "without a calibrate part every image is scored at one timestep"
    if split.record.repeats > 1:
        what = "groups" if split.record.unit == "group" else "images"
        return f"with fewer than {evaluation.SMALL_SIDE} {what} on a side every image is scored at every timestep"
    if not any(map(sweeps, attacks)):
        return "no attack can be scored at a part of its timesteps, so every image is scored at all of them"
    return "it would make no fewer forwards, so the calibrate part is scored at every timestep"


def _buckets(config: AuditConfig, target: Target) -> Buckets | None:
    """The buckets of a config; raises `UserError` for a model, or results, that need images of one shape."""
    if config.buckets is None:
        return None
    found = parse_buckets(config.buckets)
    if target.text is None or not target.latent:
        raise UserError(
            f"--buckets is for text-to-image models that work on latents; {target.name} takes images of one shape: give --resize"
        )
    if isinstance(config, GeometryConfig) or (config.thumbnails and config.reference):
        what = "the geometry compares coordinates" if isinstance(config, GeometryConfig) else "maps beside thumbnails are drawn"
        raise UserError(f"{what} of images of one shape, and --buckets leaves them several: give --resize instead")
    return found


def _own_buckets(config: AuditConfig, target: Target) -> Buckets | None:
    """The buckets of the model's own side, which sort images of mixed sizes where nothing was said; None where they must have one shape."""
    sized = config.resize or config.buckets or config.anonymous
    if sized or isinstance(config, GeometryConfig) or (config.thumbnails and config.reference) or target.text is None or not target.latent:
        return None
    side = min(target.shape.height, target.shape.width) if target.shape else UNSAID
    return Buckets(side, largest=2 * side) if side >= SMALLEST else None


def _drawings(config: AuditConfig, inputs: Inputs, attacks: Sequence[Attack], key: Key | None) -> Drawings | None:
    """Where the drawings of black_box are kept; raises `UserError` where no attack draws, and where two draw otherwise."""
    if config.drawings is None:
        return None
    drawn = {(attack.steps, attack.guidance_scale) for attack in attacks if isinstance(attack, BlackBox)}
    if not drawn:
        raise UserError(
            "--drawings keeps what black_box draws, and black_box is not among the attacks: leave it out, or add --attacks black_box"
        )
    if len(drawn) > 1:
        raise UserError("--drawings keeps drawings of one kind, and these attacks draw with other steps or guidance: give one of them")
    ((steps, guidance_scale),) = drawn
    at_once = drawn_at_once(inputs.latent_shape, inputs.target.device, inputs.most_drawn)
    shape = str(inputs.shape) if inputs.shapes is None else "buckets"
    return drawings_of(config.drawings, inputs.target, shape, config.seed, "ddim", steps, guidance_scale, at_once, key)


def _groups(cohort: Cohort, column: str, fewest: Mapping[str, int]) -> dict[str, str]:
    """The group of each image by its key; `fewest` groups of each side there must be.

    Raises `UserError` for a column that is not there or has gaps, a group on both sides, and too few groups.
    """
    groups = groups_of(cohort, column)
    refuse_both_sides(groups, cohort, column)
    found = [len({group for group, of in zip(groups, cohort.member, strict=True) if of == side}) for side in (True, False)]
    if any(number < least for number, least in zip(found, fewest.values(), strict=True)):
        needed = " and ".join(f"{least} {what}" for what, least in fewest.items())
        raise UserError(
            f"--group needs at least {needed}; the column {shown(column)} has {found[0]} and {found[1]}: leave out --group to count "
            "images, or give more groups"
        )
    return dict(zip(cohort.keys, groups, strict=True))


def _units(found: Scan, groups: Mapping[str, str] | None, key: Key | None) -> Units:
    """What the audit counts: images, clusters of near-duplicates, or with --group the groups of images."""
    cohort = found.cohort
    own = None if groups is None else [groups[image] for image in cohort.keys]
    return units_of(cohort.ids, cohort.keys, cohort.member, found.clusters, own, key.groups(own) if key and own else None)


def _calibrates(config: AuditConfig, split: evaluation.Divisions, units: Units) -> bool:
    """True if there are enough held-out units to take out of the scores what complexity explains."""
    return config.complexity and int((units.reduced(split).calibrate & ~units.member).sum(axis=1).min()) >= FEWEST


def _refuse_few(attacks: Sequence[Attack], units: Units, split: evaluation.Divisions) -> None:
    """Raises `UserError` for an attack whose classifier has too few units to be trained on, before anything is scored."""
    calibrate = units.reduced(split).calibrate
    fewest = min(int((calibrate & side).sum(axis=1).min()) for side in (units.member, ~units.member))
    trained = [attack.label for attack in attacks if attack.settled_by == LOGISTIC]
    if trained and fewest < 2:
        what = "groups" if units.kind == "group" else "images"
        raise UserError(
            f"{trained[0]} trains a classifier on the calibrate part, which needs two {what} of each side; it has {fewest}: "
            f"raise --calibrate-fraction, or leave out {trained[0]}"
        )


def _refuse_too_large(attacks: Sequence[Attack], target: Target, threads: int) -> None:
    """Raises `UserError` for an attack that takes more memory than is free, before anything is scored."""
    free = free_memory(target.device)
    for attack in attacks:
        needed = threads * attack.memory
        if free is not None and needed > free:
            smaller = ["--threads 1"] if threads > 1 else []
            smaller += [] if target.dtype in ("bfloat16", "float16") else ["--dtype bfloat16"]
            lower = f"set {', '.join(smaller)}, or " if smaller else ""
            raise UserError(
                f"{attack.name} takes {needed / 2**30:.1f} GiB beside the model ({threads} at once), and {target.device} has "
                f"{free / 2**30:.1f} GiB free; {lower}audit a LoRA, whose gradients are small"
            )


def _membership(config: AuditConfig, target: Target, cohort: Cohort) -> Membership | None:
    """What the model's own split says of the two sides; None where there is one, or where nobody knows which images are members."""
    if not config.known:
        return None
    given = f"the split file {config.split}" if config.split else f"{cohort.names[0]} (members) and {cohort.names[1]} (held out)"
    return check_membership([cohort], given, target.split_file, config.split, config.ignore_model_split)


def _key(config: AuditConfig) -> Key | None:
    """The key of an anonymous run; the first call for its folder makes it, unless nothing is to be written."""
    folder, create = config.output, not config.dry_run
    before = read_plan(folder) if folder else None
    recorded = {folder: before.anonymous} if folder and before else {}
    if config.anonymous and folder and create:
        checked_folder(folder)
    return choose_key(config.anonymous, config.anonymous_key, folder, recorded, create)


def _told(config: AuditConfig, target: Target, images: Cohort) -> str | None:
    """The captions of a text-to-image model; raises `UserError` when they are chosen for another model."""
    if target.text is not None:
        return config.default_captions(images) if config.captions is None else config.captions
    if config.captions is not None:
        raise UserError(f"--captions chooses the captions of a text-to-image model; {target.name} takes no text: leave it out")
    return None


def _written(attack: Attack) -> dict[str, Any]:
    """An attack in plan.json: one from outside with a hash of its code, so that another version of it does not resume."""
    code = {} if attack.code is None else {"code": attack.code}
    return {"attack": attack.label, **attack.parameters(), "timesteps": list(attack.timesteps), **code}


def choose_attacks(
    config: AuditConfig, made: Mapping[str, Attack] = MappingProxyType({}), schedule: Schedule | None = None
) -> tuple[Attack, ...]:
    """The attacks of a config with their timesteps, those for the model's `schedule` where nobody chose any.

    `made` are attacks that exist already, by their specs. Without a schedule no model is known yet.
    """
    sweep = parse_timesteps(config.timesteps) if config.timesteps else None
    every = [name for name, kind in ATTACKS.items() if kind.in_all]  # that need nothing but the model and its data
    specs = [name for spec in config.attacks for name in (every if spec == "all" else [spec])]
    chosen = []
    for spec in specs:
        attack = with_timesteps(made[spec], sweep) if spec in made else parse(spec, ATTACKS, sweep)
        free = sweep is None and attack.rule is None and attack.timesteps == SWEEP and not gives_timesteps(spec)
        chosen.append(_by_default(attack, config.calibration, schedule) if free else attack)
    refuse_outside(chosen, ATTACKS)
    unruly = [attack for attack in chosen if attack.rule is not None and attack.rule not in RULES]
    if unruly:
        raise unknown(f"rule of {unruly[0].name}", str(unruly[0].rule), RULES)
    if not chosen and config.two_sided:
        raise SettingError("attacks", "must name at least one attack")
    if not config.calibration and any(len(a.timesteps) > 1 and a.rule is None for a in chosen):
        raise UserError("--no-calibration chooses no timestep, so --timesteps must be one number")
    return tuple(chosen)


def _fitting(chosen: Sequence[Attack], config: AuditConfig, target: Target, referred: bool) -> tuple[Attack, ...]:
    """The attacks as this model and these settings allow them; `all` leaves out those of a special kind that are not allowed.

    Raises `UserError` for one that was named itself.
    """
    specs = {spec.partition("(")[0].strip() for spec in config.attacks}
    fitting = []
    for attack in chosen:
        try:
            fitting.append(_allowed(attack, config, target, referred))
        except UserError:
            if attack.name in specs or attack.rule is None or attack.code is not None:
                raise
    return tuple(fitting)


def _allowed(attack: Attack, config: AuditConfig, target: Target, referred: bool) -> Attack:
    if attack.needs_text and getattr(target, "text", None) is None:
        raise UserError(f"{attack.name} works with captions, and {target.name} takes none; leave it out")
    if attack.needs_reference and not referred:
        give = "" if "reference" in config.NO_FLAG else "give --reference MODEL, or "
        raise UserError(f"{attack.name} needs a reference model beside the audited one: {give}leave it out")
    if needs_calibration(attack.settled_by) and not config.calibration:
        raise UserError(f"{attack.name} is fitted on the calibrate part: leave out --no-calibration, or this attack")
    return fit_to_schedule(attack, target.denoiser.schedule)


def choose_masks(config: AuditConfig) -> tuple[MaskChoice, ...]:
    """The masks of a config; raises `UserError` for one that is not known, or twice there."""
    choices = tuple(parse_mask(text) for text in config.mask)
    labels = [choice.label for choice in choices]
    if len(set(labels)) < len(labels):
        raise UserError(f"each mask must be listed once; got {', '.join(labels)}")
    if not config.calibration and any(len(choice.masks) > 1 for choice in choices):
        raise UserError("--mask auto chooses its ratio on the calibrate part; with --no-calibration give a ratio, as in influence:0.4")
    return choices


def _by_default(attack: Attack, calibration: bool, schedule: Schedule | None) -> Attack:
    """An attack whose timesteps nobody chose: a sweep from which the calibrate part chooses, else the published timestep alone."""
    if calibration:
        return replace(attack, timesteps=default_sweep(schedule))
    if attack.published_timestep is None:
        raise UserError(f"{attack.name} has no published single timestep; with --no-calibration give --timesteps T")
    return replace(attack, timesteps=(attack.published_timestep,))


def _check_halves(units: Units, config: AuditConfig) -> None:
    smallest = int(min(units.member.sum(), (~units.member).sum()))
    calibrate = calibrate_size(smallest, config.calibrate_fraction)
    if config.calibration and not 0 < calibrate < smallest:
        what = "groups" if units.kind == "group" else "images"
        raise SettingError(
            "calibrate_fraction",
            f"must leave {what} in both parts; {config.calibrate_fraction} of {smallest} {what} calibrates on {calibrate}",
        )
