"""`diffleak prompts`: which prompts a text-to-image model has memorised, found from what it draws for them and from noise alone.

    t_error     || psi(phi(x_t, t), t) - x_t ||^2      SecMI's t-error, at t, of the image x0 that the prompt p itself draws
    magnitude, noise_norm, alignment                   see `statistics`
    noise_sum   (1 - w) S(noise_norm) + w S(alignment), the rule "clid" of `diffleak.stats.rules`

A small t-error means memorised: the model is sure of the way back to what it drew. Each image starts from noise keyed by seed, prompt
and number, which the statistics from noise use too, so that a prompt scores the same in every list and every batch. The
weight of noise_sum is chosen on a fifth of the labelled prompts and read on the rest. Beside its scores the first image of a prompt is
kept, with the map of where the prompt acted; the page shows those of the highest prompts.

t_error: Tran et al. 2024, arXiv 2410.16657, section 3.6 and appendix A.1 (eq. 8); Duan et al. 2023, arXiv 2302.01316.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from diffleak import hub
from diffleak.attacks.secmi import SecMI
from diffleak.attacks.spec import fit_to_schedule
from diffleak.attacks.subject import Subject
from diffleak.config import build
from diffleak.data.pixels import CHANNEL_NAMES, ImageShape, to_uint8
from diffleak.data.prompts import read_prompts
from diffleak.diffusion.codec import Autoencoder
from diffleak.diffusion.conditions import Prompts, one_at_a_time
from diffleak.diffusion.denoiser import Counted, Guided
from diffleak.diffusion.devices import by_device
from diffleak.diffusion.environment import environment
from diffleak.diffusion.finite import advice
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.target import Target, auto_batch_size, side_by_side
from diffleak.errors import UserError, of_them, one_or_more, shown
from diffleak.generation import decoded
from diffleak.prompts.config import Lists, PromptsConfig, one_list, read_lists, two_lists
from diffleak.prompts.statistics import FORWARDS, asked_at, draw, from_noise
from diffleak.records.audit import Result
from diffleak.records.base import now
from diffleak.records.digests import write_recorded
from diffleak.records.prompts import (
    DIRECTIONS,
    FILE,
    NOISE_SUM,
    PAGE,
    PICTURES,
    TABLE,
    PromptScore,
    PromptsCosts,
    PromptsPlan,
    PromptsRecord,
    Statistic,
    to_csv,
)
from diffleak.records.run_folder import refuse_other_command
from diffleak.records.scores import Scores
from diffleak.report import to_html
from diffleak.report.pages.prompts import page
from diffleak.report.prompt_pictures import as_files
from diffleak.report.sections.prompts import MOST_PICTURED, Picture
from diffleak.report.wording import adapter
from diffleak.stats.evaluation import divided, evaluate, evaluate_scores
from diffleak.work.folder import Folder, cut, in_chunks, row_on_disk
from diffleak.work.memory import memory_message
from diffleak.work.progress import say
from diffleak.work.threads import Tick

CHUNK = {"cpu": 8, "accelerator": 64}  # prompts per file
FEWEST = 10  # prompts a list below which no interval says anything
FRACTION = 0.2  # of the labelled prompts, on which weights are chosen
FEWEST_WEIGHED = 50  # prompts a list, of which FRACTION are FEWEST
FOLDER = "prompts"
OF_IMAGES: tuple[Statistic, ...] = ("magnitude", "t_error")  # the others are of noise
WHAT, LATENT, MAP = "scores", "latent", "map"  # the name of the files, and what is kept in them beside the statistics


@dataclass(frozen=True, eq=False)
class Memorised:
    """What was found, and how to keep it. `pictures` decodes what the highest prompts drew."""

    record: PromptsRecord
    pictures: Callable[[], tuple[Picture, ...]] = tuple

    def save(self, folder: Path) -> None:
        """Writes prompts.csv, prompts.html and prompts.json, and what the page shows as pictures/."""
        pictures = self.pictures()
        for stale in (folder / PICTURES).glob("[0-9][0-9][0-9]-*.npy"):
            stale.unlink()
        text = {TABLE: to_csv(self.record), PAGE: to_html(page(self.record, pictures)), FILE: self.record.model_dump_json(indent=2)}
        write_recorded(folder, {**as_files(pictures), **text}, replaces=f"{PICTURES}/")


@dataclass(frozen=True, eq=False)
class Asking:
    """What is queried: `texts`, from noise at two timesteps; where images are drawn, as latents of shape `latent`, `attack` of these."""

    target: Target
    texts: tuple[str, ...]
    shape: ImageShape
    latent: ImageShape
    timesteps: tuple[int, int]
    attack: SecMI | None
    config: PromptsConfig

    @cached_property
    def embed(self) -> Callable[..., Prompts]:
        """Turns prompts into conditions, for all threads."""
        assert self.target.text is not None, "checked before anything is computed"
        return one_at_a_time(self.target.text)

    @property
    def of_noise(self) -> int:
        """Denoiser forwards per prompt from noise, of every exposed model."""
        return self.config.images * FORWARDS * len(self.target.denoiser.exposed)

    @property
    def of_images(self) -> int:
        """Denoiser forwards per prompt for images: two a step, and the attack on every exposed model."""
        if self.attack is None:
            return 0
        return self.config.images * (2 * self.config.steps + self.attack.queries * len(self.target.denoiser.exposed))

    @property
    def forwards(self) -> int:
        """Denoiser forwards per prompt."""
        return self.of_images + self.of_noise

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The statistics that each prompt gets."""
        return tuple(name for name in DIRECTIONS if self.attack or name not in OF_IMAGES)

    @property
    def row(self) -> np.dtype:
        """What is kept of a prompt: its statistics, the latent of its first image, and the map of that."""
        latent = (self.latent.channels, self.latent.height, self.latent.width)
        kept = [(LATENT, np.float16, latent), (MAP, np.float32, latent[1:])] if self.attack else []
        return np.dtype([*((name, np.float64) for name in self.statistics), *kept])

    @property
    def chunks(self) -> dict[int, range]:
        """The prompts of every chunk."""
        return cut(len(self.texts), by_device(CHUNK, self.target.device))

    @property
    def plan(self) -> PromptsPlan:
        config, target = self.config, self.target
        return PromptsPlan(
            **target.named,
            prompts=len(self.texts),
            prompts_fingerprint=hashlib.sha256(json.dumps(self.texts).encode()).hexdigest(),
            draw=config.draw,
            images=config.images,
            steps=config.steps,
            guidance_scale=config.guidance_scale if self.attack else None,
            timestep=config.timestep if self.attack else None,
            k=self.attack.k if self.attack else None,
            noise_norm_timestep=self.timesteps[0],
            alignment_timestep=self.timesteps[1],
            seed=config.seed,
            latent_shape=f"{self.latent.channels} x {self.latent.height} x {self.latent.width}",
            dtype=target.dtype,
            device=target.device.partition(":")[0],
            faster=target.faster or None,
        )

    def describe(self) -> str:
        """The plan in one line."""
        config, first, low = self.config, *self.timesteps
        how = (
            f"{one_or_more(config.images, 'image')} each in {one_or_more(config.steps, 'step')} at guidance {config.guidance_scale:g}, "
            f"t-error at {config.timestep}"
            if config.draw
            else f"{one_or_more(config.images, 'noise')} each at timesteps {first} and {low}, nothing drawn"
        )
        total = len(self.texts) * self.forwards
        added = adapter(self.target.lora, self.target.lora_scale, self.target.embedding)
        return f"plan: {added}{one_or_more(len(self.texts), 'prompt')}, {how}; {total:,} forwards"


def find_memorised(
    model: "str | Path | Target", memorised: Any = None, ordinary: Any = None, prompts: Any = None, **settings: Any
) -> Memorised:
    """Scores prompts by how memorised they look; the Python form of `diffleak prompts`.

    Args:
        model: A diffusers folder, hub id or `Target` of a text-to-image model.
        memorised: A list of prompts that are memorised, or its file.
        ordinary: A list of prompts that are not, or its file.
        prompts: In place of both, one list without sides.
        **settings: As `PromptsConfig`; with `output` finished chunks are kept there.

    Returns:
        The record, as in prompts.json, and the images.

    Raises:
        UserError: For what cannot be scored.

    Source:
        Tran et al. 2024, arXiv 2410.16657, section 3.6; Wen et al. 2024; Asthana and Belagiannis 2026, arXiv 2601.20642.
    """
    given = {"memorised": memorised, "ordinary": ordinary, "prompts": prompts}
    files = {key: Path(value) for key, value in given.items() if isinstance(value, str | Path)}
    listed = {key: list(value) for key, value in given.items() if value is not None and key not in files}
    name = {} if isinstance(model, Target) else {"model": str(model)}
    config = build(PromptsConfig, settings, name, {} if listed else files)
    target = model if isinstance(model, Target) else None
    if not listed:
        return find(config, target)
    found = {**{key: read_prompts(path) for key, path in files.items()}, **listed}
    if set(found) == {"prompts"}:
        return find(config, target, one_list(found["prompts"]))
    if set(found) != {"memorised", "ordinary"}:
        raise UserError(f"there must be memorised and ordinary prompts, or prompts alone; got {', '.join(sorted(found))}")
    return find(config, target, two_lists(found["memorised"], found["ordinary"]))


def find(config: PromptsConfig, target: Target | None = None, lists: Lists | None = None) -> Memorised:
    """Everything that a config says; keeps finished chunks in its output folder, nothing without one."""
    refuse_other_command(config.output, FILE)
    started = time.monotonic()
    lists = lists or read_lists(config)
    target = hub.target_of(config, target)
    asking = prepare(config, target, lists)
    say(asking.describe())
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.output or Path(temporary)
        scores = score(asking, folder)
        record = _record(asking, lists, scores, time.monotonic() - started)
        return Memorised(record, _pictures(asking, record, folder)) if config.draw else Memorised(record)


def prepare(config: PromptsConfig, target: Target, lists: Lists) -> Asking:
    """Checks everything that can be checked before the first image is drawn."""
    if target.text is None:
        raise UserError(f"prompts need a model that takes captions; {target.name} takes none")
    if isinstance(target.denoiser, Guided):
        raise UserError("the model must be loaded without guidance_scale, which is a setting of find_memorised itself")
    shape = target.shape
    if config.size and shape:
        raise UserError(f"this model draws images of {shape}; leave out --size {config.size}")
    if shape is None:
        if config.size is None:
            raise UserError("this model draws images of any size: say which with --size, in pixels a side")
        shape = ImageShape(3, config.size, config.size)
    latent = hub.latent_shape(target.codec, shape) if isinstance(target.codec, Autoencoder) else shape
    schedule = target.denoiser.schedule
    timesteps = asked_at(hub.new_sampler("ddim", schedule, config.steps, clip=not target.latent))
    attack = fit_to_schedule(SecMI(timesteps=(config.timestep,)), schedule) if config.draw else None
    assert attack is None or isinstance(attack, SecMI)
    return Asking(target, lists.texts, shape, latent, timesteps, attack, config)


def score(asking: Asking, folder: Path) -> np.ndarray:
    """The statistics of every prompt, by their names; chunks that folder/prompts has already are read, not computed again."""
    size = asking.config.batch_size or max(1, auto_batch_size(asking.latent, asking.target.device) // 2)  # guidance doubles a batch
    images = asking.config.images

    def compute(rows: range, tick: Tick) -> np.ndarray:
        asked = [(asking.texts[row], number) for row in rows for number in range(images)]
        batches = [asked[start : start + size] for start in range(0, len(asked), size)]
        found = np.concatenate([_ask(asking, batch, lambda forwards, t: tick(forwards)) for batch in batches]).reshape(len(rows), images)
        kept = found[:, 0].copy()
        for name in asking.statistics:
            kept[name] = found[name].mean(axis=1)
        return kept

    return in_chunks(
        Folder(folder / FOLDER),
        asking.plan.model_dump(),
        asking.chunks,
        compute,
        what=WHAT,
        made="of",
        bar="asking about prompts",
        forwards=asking.forwards,
        batch_size=size,
        threads=asking.config.threads or side_by_side(asking.target),
        kind=asking.row,
        fields=asking.statistics,
        first=lambda missing: hub.embed_first(asking.target.text, [asking.texts[row] for rows in missing for row in rows], folder),
    )


def _ask(asking: Asking, batch: Sequence[tuple[str, int]], on_call: Callable[[int, int], None]) -> np.ndarray:
    """A row for each text and number. Of several models the one that is surest of the prompt counts."""
    target, config, latent = asking.target, asking.config, asking.latent
    shape = (latent.channels, latent.height, latent.width)
    noise = Noise(config.seed, tuple(f"{number}\0{text}" for text, number in batch), shape, target.x_dtype, target.device, "prompts")
    denoiser, rows = Counted(target.denoiser, on_call), np.zeros(len(batch), asking.row)
    with torch.inference_mode():
        cond = asking.embed([text for text, _ in batch])
        of_noise = torch.stack([from_noise(exposed, noise(0), asking.timesteps, cond) for exposed in denoiser.exposed])
        rows["noise_norm"], rows["alignment"] = of_noise.amax(dim=0).cpu().numpy().T
        if asking.attack:
            sampler = hub.new_sampler("ddim", target.denoiser.schedule, config.steps, clip=not target.latent)
            drawn = draw(denoiser, config.guidance_scale, sampler, noise, cond)
            errors = torch.stack([asking.attack.statistics(Subject(exposed, drawn.x0, noise, cond))[0] for exposed in denoiser.exposed])
            kept = {"t_error": errors.amin(dim=0), "magnitude": drawn.magnitude, LATENT: drawn.x0, MAP: drawn.map}
            with np.errstate(over="ignore"):  # such a latent decodes to no image
                for name, value in kept.items():
                    rows[name] = value.cpu().numpy()
    broken = np.flatnonzero(~np.all([np.isfinite(rows[name]) for name in asking.statistics], axis=0))
    if len(broken):
        prompt, what = shown(batch[broken[0]][0]), advice(target.denoiser)
        raise UserError(f"the scores must be finite numbers; the prompt '{prompt}' has NaN or infinity: {what}")
    return rows


def _pictures(asking: Asking, record: PromptsRecord, folder: Path) -> Callable[[], tuple[Picture, ...]]:
    """Decodes the first images of the highest prompts; one that the autoencoder gives no finite numbers for has none."""
    highest = record.prompts[:MOST_PICTURED]
    places = [asking.texts.index(score.prompt) for score in highest]
    kept = np.array([row_on_disk(Folder(folder / FOLDER), WHAT, asking.chunks, place) for place in places], asking.row)

    def decode() -> tuple[Picture, ...]:
        target = asking.target
        z = torch.from_numpy(kept[LATENT].astype(np.float32)).to(target.device, target.x_dtype)
        with torch.inference_mode(), memory_message(1, "score without images, by --no-draw"):
            x = decoded(target, asking.shape, z).float().cpu().numpy()
        whole = np.isfinite(x).all(axis=(1, 2, 3)) & (asking.shape.channels in CHANNEL_NAMES)
        pixels = to_uint8(np.clip(np.nan_to_num(x), -1.0, 1.0))
        return tuple(Picture(row, pixels[i] if whole[i] else None, kept[MAP][i]) for i, row in enumerate(highest))

    return decode


def _record(asking: Asking, lists: Lists, scores: np.ndarray, seconds: float) -> PromptsRecord:
    config, target = asking.config, asking.target
    sides: Sequence[bool | None] = lists.memorised or [None] * len(lists.texts)
    rows = [
        PromptScore(prompt=text, memorised=side, **{name: float(row[name]) if name in asking.statistics else None for name in DIRECTIONS})
        for text, side, row in zip(lists.texts, sides, scores, strict=True)
    ]
    results, reason = _results(scores, lists, asking)
    first: Statistic = "magnitude" if config.draw else "noise_norm"
    plan = asking.plan
    return PromptsRecord(
        created=now(),
        command=config.command,
        plan=plan,
        adapters=target.adapters,
        embeddings=target.embeddings,
        results=results,
        reason=reason,
        prompts=tuple(sorted(rows, key=lambda row: (-getattr(row, first), row.prompt))),
        warnings=_warnings(asking, lists),
        environment=environment(target, config.threads or side_by_side(target), config.seed, plan.prompts_fingerprint),
        costs=PromptsCosts(forwards=len(lists.texts) * asking.forwards, seconds=round(seconds, 3)),
    )


def _results(scores: np.ndarray, lists: Lists, asking: Asking) -> tuple[tuple[Result, ...], str | None]:
    if lists.memorised is None:
        return (), "one list without labels: there is nothing to compare it with"
    member = np.array(lists.memorised)
    m, n = _sizes(member)
    if min(m, n) < FEWEST:
        return (), f"no AUC: at least {FEWEST} prompts a list are needed; got {m} memorised and {n} ordinary"
    results, names = [], np.array(lists.texts)
    for name in asking.statistics:
        statistic = Scores(name, DIRECTIONS[name], (0,), lists.texts, scores[name][:, None])
        oriented, ids = statistic.membership[:, 0], (names[member].tolist(), names[~member].tolist())
        found = evaluate(oriented[member], oriented[~member], ids=ids, seed=asking.config.seed)
        queries = asking.of_images if name in OF_IMAGES else asking.of_noise
        results.append(found.model_copy(update={"attack": name, "direction": DIRECTIONS[name], "queries": queries}))
    if min(m, n) >= FEWEST_WEIGHED:
        terms = Scores(NOISE_SUM, "large", (0, 1), lists.texts, np.stack([scores["noise_norm"], scores["alignment"]], axis=1), rule="clid")
        found = evaluate_scores(terms, member, divided(lists.texts, member, FRACTION, asking.config.seed))
        results.append(found.model_copy(update={"queries": asking.of_noise}))
    return tuple(results), None


def _sizes(member: Bool[np.ndarray, " n"]) -> tuple[int, int]:
    """The number of memorised prompts and of ordinary ones."""
    return int(member.sum()), int((~member).sum())


def _warnings(asking: Asking, lists: Lists) -> tuple[str, ...]:
    assert asking.target.text is not None, "checked before anything is computed"
    found, lost = [*asking.target.warnings, *asking.target.unnamed(lists.texts)], len(asking.target.text.truncated(lists.texts))
    if lists.repeated:
        found.append(f"{one_or_more(lists.repeated, 'repetition')} of a prompt left out: each counts once")
    if lost:
        found.append(f"{of_them(lost, one_or_more(len(lists.texts), 'prompt'))} longer than the text encoder takes: the rest was not read")
    if not asking.config.draw:
        found.append("nothing was drawn (--no-draw): there is no magnitude, no t-error, and no image to look at")
    m, n = _sizes(np.array(lists.memorised)) if lists.memorised else (0, 0)
    if FEWEST <= min(m, n) < FEWEST_WEIGHED:
        needed = f"their weights are chosen on a fifth of the prompts, for which each list must hold {FEWEST_WEIGHED}"
        found.append(f"noise norm and alignment were not summed: {needed}; got {m} memorised and {n} ordinary")
    if len(asking.target.denoiser.exposed) > 1:
        smaller = "of their t-errors the smaller counts, " if asking.config.draw else ""
        found.append(f"two models take turns, one per step; {smaller}of their noise norms and alignments the larger")
    return tuple(found)
