"""`diffleak prompts`: which prompts a text-to-image model has memorised, told from what it draws for them.

    t_error     || psi(phi(x_t, t), t) - x_t ||^2      SecMI's t-error, at t, of the image x0 that the prompt p itself draws
    magnitude   mean over the sampler's steps t of || eps(x_t, t, p) - eps(x_t, t, "") ||

A small t-error means memorised: the model is sure of the way back to what it drew. A large magnitude means memorised: the
prompt, not the noise, decides the image. The magnitude is taken while the image is drawn with classifier-free guidance, which
computes both predictions anyway. Each image starts from noise keyed by seed, prompt and number, so that a prompt scores the same
in every list and every batch.

t_error: Tran et al. 2024, arXiv 2410.16657, section 3.6 and appendix A.1 (eq. 8); Duan et al. 2023, arXiv 2302.01316.
magnitude: Wen, Liu, Chen and Lyu 2024, "Detecting, explaining, and mitigating memorization in diffusion models", ICLR.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak import hub
from diffleak.attacks.base import float64
from diffleak.attacks.secmi import SecMI
from diffleak.attacks.spec import fit_to_schedule
from diffleak.attacks.subject import Subject
from diffleak.config import build
from diffleak.data.pixels import ImageShape
from diffleak.data.prompts import read_prompts
from diffleak.diffusion.codec import Autoencoder
from diffleak.diffusion.conditions import Prompts, one_at_a_time
from diffleak.diffusion.denoiser import Counted, Guided
from diffleak.diffusion.environment import environment
from diffleak.diffusion.finite import advice
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import sample
from diffleak.diffusion.target import Target, auto_batch_size, by_device, side_by_side
from diffleak.errors import UserError, shown
from diffleak.prompts.config import Lists, PromptsConfig, one_list, read_lists, two_lists
from diffleak.records.audit import Result
from diffleak.records.prompts import DIRECTIONS, FILE, PAGE, TABLE, PromptScore, PromptsCosts, PromptsPlan, PromptsRecord, to_csv
from diffleak.records.scores import Scores
from diffleak.report import to_html
from diffleak.report.pages.prompts import page
from diffleak.report.wording import adapter
from diffleak.stats.evaluation import evaluate
from diffleak.work.files import write_text
from diffleak.work.folder import Folder, cut, in_chunks
from diffleak.work.progress import say
from diffleak.work.threads import Tick

CHUNK = {"cpu": 8, "cuda": 64}  # prompts per file
FEWEST = 10  # prompts a list below which no interval says anything
FOLDER = "prompts"


@dataclass(frozen=True, eq=False)
class Memorised:
    """What was found, and how to keep it."""

    record: PromptsRecord

    def save(self, folder: Path) -> None:
        """Writes prompts.csv, prompts.html and prompts.json."""
        write_text(folder / TABLE, to_csv(self.record))
        write_text(folder / PAGE, to_html(page(self.record)))
        write_text(folder / FILE, self.record.model_dump_json(indent=2))


@dataclass(frozen=True, eq=False)
class Asking:
    """What is asked: `texts`, each drawn `images` times as latents of shape `latent`, then put to `attack`."""

    target: Target
    texts: tuple[str, ...]
    latent: ImageShape
    attack: SecMI
    config: PromptsConfig

    @cached_property
    def embed(self) -> Callable[..., Prompts]:
        """Turns prompts into conditions, for all threads."""
        assert self.target.text is not None, "checked before anything is asked"
        return one_at_a_time(self.target.text)

    @property
    def forwards(self) -> int:
        """Denoiser forwards per prompt: two a step, and the attack on every exposed model."""
        return self.config.images * (2 * self.config.steps + self.attack.queries * len(self.target.denoiser.exposed))

    @property
    def plan(self) -> PromptsPlan:
        config, target = self.config, self.target
        return PromptsPlan(
            model=target.name,
            model_fingerprint=target.fingerprint,
            lora=target.lora,
            lora_scale=target.lora_scale,
            prompts=len(self.texts),
            prompts_fingerprint=hashlib.sha256(json.dumps(self.texts).encode()).hexdigest(),
            images=config.images,
            steps=config.steps,
            guidance_scale=config.guidance_scale,
            timestep=config.timestep,
            k=self.attack.k,
            seed=config.seed,
            latent_shape=f"{self.latent.channels} x {self.latent.height} x {self.latent.width}",
            dtype=target.dtype,
            device=target.device.partition(":")[0],
        )

    def describe(self) -> str:
        """The plan in one line."""
        config = self.config
        return (
            f"plan: {adapter(self.target.lora, self.target.lora_scale)}"
            f"{len(self.texts):,} prompts, {config.images} image{'s' if config.images > 1 else ''} each in {config.steps} steps at "
            f"guidance {config.guidance_scale:g}, t-error at {config.timestep}; {len(self.texts) * self.forwards:,} forwards"
        )


def find_memorised(
    model: "str | Path | Target", memorised: Any = None, ordinary: Any = None, prompts: Any = None, **settings: Any
) -> Memorised:
    """Scores prompts by how memorised they look; the Python form of `diffleak prompts`.

    model: a diffusers folder, hub id or `Target` of a text-to-image model. memorised, ordinary: two lists of prompts, or their files;
    or prompts: one without sides. settings: as `PromptsConfig`; with `output` finished chunks are kept there. Raises `UserError` for
    what cannot be scored.
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
    started = time.monotonic()
    lists = lists or read_lists(config)
    target = hub.target_of(config, target)
    asking = prepare(config, target, lists)
    say(asking.describe())
    if config.output:
        scores = score(asking, config.output)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            scores = score(asking, Path(temporary))
    return Memorised(_record(asking, lists, scores, time.monotonic() - started))


def prepare(config: PromptsConfig, target: Target, lists: Lists) -> Asking:
    """Checks everything that can be checked before the first image is drawn."""
    if target.text is None:
        raise UserError(f"prompts can only be put to a model that takes captions; {target.name} takes none")
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
    hub.new_sampler("ddim", schedule, config.steps, clip=not target.latent)
    attack = fit_to_schedule(SecMI(timesteps=(config.timestep,)), schedule)
    assert isinstance(attack, SecMI)
    return Asking(target, lists.texts, latent, attack, config)


def score(asking: Asking, folder: Path) -> Float64[np.ndarray, "n 2"]:
    """t-error and magnitude of every prompt; chunks that folder/prompts has already are read, not asked again."""
    size = asking.config.batch_size or max(1, auto_batch_size(asking.latent, asking.target.device) // 2)  # guidance doubles a batch
    images = asking.config.images

    def compute(rows: range, tick: Tick) -> Float64[np.ndarray, "b 2"]:
        drawn = [(asking.texts[row], number) for row in rows for number in range(images)]
        batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        found = np.concatenate([_score_batch(asking, batch, lambda forwards, t: tick(forwards)) for batch in batches])
        return found.reshape(len(rows), images, 2).mean(axis=1)

    return in_chunks(
        Folder(folder / FOLDER),
        asking.plan.model_dump(),
        cut(len(asking.texts), by_device(CHUNK, asking.target.device)),
        compute,
        what="scores",
        made="of",
        bar="asking about prompts",
        forwards=asking.forwards,
        batch_size=size,
        threads=asking.config.threads or side_by_side(asking.target),
    )


def _score_batch(asking: Asking, batch: Sequence[tuple[str, int]], on_call: Callable[[int, int], None]) -> Float64[np.ndarray, "b 2"]:
    target, config, latent = asking.target, asking.config, asking.latent
    shape = (latent.channels, latent.height, latent.width)
    noise = Noise(config.seed, tuple(f"{number}\0{text}" for text, number in batch), shape, target.x_dtype, target.device, "prompts")
    sampler = hub.new_sampler("ddim", target.denoiser.schedule, config.steps, clip=not target.latent)
    denoiser, norms = Counted(target.denoiser, on_call), list[Tensor]()
    guided = Guided(denoiser, config.guidance_scale, lambda difference: norms.append(_norm(difference)))
    with torch.inference_mode():
        cond = asking.embed([text for text, _ in batch])
        x0 = sample(guided, sampler, noise, cond)
        errors = torch.stack([asking.attack.statistics(Subject(exposed, x0, noise, cond))[0] for exposed in denoiser.exposed])
    # of several models the one that is surest of the prompt counts
    scores = torch.stack([errors.min(dim=0).values.cpu(), torch.stack(norms).mean(dim=0).cpu()], dim=1).numpy()
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        prompt, what = shown(batch[broken[0]][0]), advice(target.denoiser)
        raise UserError(f"the scores must be finite numbers; the prompt '{prompt}' has NaN or infinity: {what}")
    return scores


def _norm(difference: Float[Tensor, "b *s"]) -> Float64[Tensor, " b"]:
    return float64(difference).flatten(start_dim=1).norm(dim=1)


def _record(asking: Asking, lists: Lists, scores: Float64[np.ndarray, "n 2"], seconds: float) -> PromptsRecord:
    config, target = asking.config, asking.target
    sides: Sequence[bool | None] = lists.memorised or [None] * len(lists.texts)
    rows = [
        PromptScore(prompt=text, memorised=side, t_error=float(error), magnitude=float(magnitude))
        for text, side, (error, magnitude) in zip(lists.texts, sides, scores, strict=True)
    ]
    results, reason = _results(rows, lists, asking)
    plan = asking.plan
    return PromptsRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=config.command,
        plan=plan,
        results=results,
        reason=reason,
        prompts=tuple(sorted(rows, key=lambda row: (-row.magnitude, row.prompt))),
        warnings=_warnings(asking, lists),
        environment=environment(target, config.threads or side_by_side(target), config.seed, plan.prompts_fingerprint),
        costs=PromptsCosts(forwards=len(lists.texts) * asking.forwards, seconds=round(seconds, 3)),
    )


def _results(rows: Sequence[PromptScore], lists: Lists, asking: Asking) -> tuple[tuple[Result, ...], str | None]:
    if lists.memorised is None:
        return (), "one list without labels: there is nothing to compare it with"
    member = np.array(lists.memorised)
    m, n = int(member.sum()), int((~member).sum())
    if min(m, n) < FEWEST:
        return (), f"no AUC: at least {FEWEST} prompts a list are needed; got {m} memorised and {n} ordinary"
    results, names = [], np.array(lists.texts)
    for name, direction in DIRECTIONS.items():
        statistic = np.array([getattr(row, name) for row in rows])
        scores = Scores(name, direction, (0,), lists.texts, statistic[:, None]).membership[:, 0]
        ids = (names[member].tolist(), names[~member].tolist())
        found = evaluate(scores[member], scores[~member], ids=ids, seed=asking.config.seed)
        results.append(found.model_copy(update={"attack": name, "direction": direction, "queries": asking.forwards}))
    return tuple(results), None


def _warnings(asking: Asking, lists: Lists) -> tuple[str, ...]:
    assert asking.target.text is not None, "checked before anything is asked"
    found, lost = list(asking.target.warnings), len(asking.target.text.truncated(lists.texts))
    if lists.repeated:
        found.append(f"{lists.repeated} {'repetition' if lists.repeated == 1 else 'repetitions'} of a prompt left out: each counts once")
    if lost:
        found.append(f"{lost} of {len(lists.texts)} prompts longer than the text encoder takes: their ends were not read")
    if len(asking.target.denoiser.exposed) > 1:
        found.append("two models take turns, one per step; of their t-errors the smaller counts")
    return tuple(found)
