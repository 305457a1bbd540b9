"""Images drawn from a model: seeded per image, in chunks that are written as they are finished and found again.

Image i depends on the model, the sampler, the seed, its label or prompt and i alone, so neither the batch it is drawn in
nor an interruption changes it (up to the last bits of a forward, which uint8 pixels round away almost always).
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from diffleak import hub
from diffleak.attacks.subject import STREAM
from diffleak.data.pixels import ImageShape, to_uint8
from diffleak.diffusion.codec import Autoencoder, images_of
from diffleak.diffusion.conditions import Prompts, one_at_a_time
from diffleak.diffusion.denoiser import Denoiser, Guided, guided
from diffleak.diffusion.devices import by_device, free_unused_memory
from diffleak.diffusion.finite import advice
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import sample
from diffleak.diffusion.target import Target, auto_batch_size, side_by_side
from diffleak.errors import UserError
from diffleak.work.folder import Folder, cut, in_chunks
from diffleak.work.room import Room
from diffleak.work.threads import Tick

CHUNK = {"cpu": 64, "accelerator": 256}  # images per file: several on a CPU at once, one full batch on an accelerator
FOLDER = "generated"
GUIDANCE = 7.5  # of diffusers' pipelines by default


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is drawn: `n` images of `shape` in pixels, whose denoiser works on `latent` (the same for a pixel model).

    `labels` are the classes of the images of a class-conditional model, `prompts` the texts of those of a text-to-image
    model, with their `guidance_scale`. `ids` are what the noise of each image is keyed by; None for its number.
    """

    target: Target
    n: int
    shape: ImageShape
    latent: ImageShape
    seed: int
    steps: int
    sampler: str
    rounds: int
    labels: Int64[np.ndarray, " n"] | None
    prompts: tuple[str, ...] | None
    guidance_scale: float | None
    ids: tuple[str, ...] | None = None

    @property
    def denoiser(self) -> Denoiser:
        """What the sampler asks: the model, under this guidance and no other."""
        return self.target.denoiser if self.guidance_scale is None else guided(self.target.denoiser, self.guidance_scale)

    @cached_property
    def embed(self) -> Callable[..., Prompts]:
        """What turns prompts into conditions, for all threads."""
        assert self.target.text is not None, "prompts are of text-to-image models"
        return one_at_a_time(self.target.text)

    @property
    def forwards(self) -> int:
        """Denoiser forwards per image: the first round visits every timestep, later ones all but the first."""
        return (self.steps + (self.rounds - 1) * (self.steps - 1)) * self.denoiser.forwards

    @property
    def chunks(self) -> dict[int, range]:
        """The images of every chunk."""
        return cut(self.n, by_device(CHUNK, self.target.device))

    def plan(self) -> dict[str, Any]:
        """All that decides the images; a folder belongs to one such plan."""
        labels = None if self.labels is None else hashlib.sha256(self.labels.tobytes()).hexdigest()
        return {
            "schema_version": 1,
            "model": self.target.name,
            "model_fingerprint": self.target.fingerprint,
            "images": self.n,
            "image_shape": str(self.shape),
            "sampler": self.sampler,
            "steps": self.steps,
            "rounds": self.rounds,
            "seed": self.seed,
            "labels": labels,
            "prompts": _hashed(self.prompts),
            "ids": _hashed(self.ids),  # no key of plans of earlier versions, which had none
            "guidance_scale": self.guidance_scale,
            "dtype": self.target.dtype,
            "device": self.target.device.partition(":")[0],
            "faster": list(self.target.faster) or None,
        }


def generate(
    target: Target,
    n: int,
    seed: int = 0,
    steps: int = 50,
    sampler: str = "ddim",
    rounds: int = 1,
    batch_size: int | None = None,
    folder: Path | None = None,
    threads: int | None = None,
    shape: ImageShape | None = None,
    labels: Int64[np.ndarray, " n"] | None = None,
    prompts: Sequence[str] | None = None,
    guidance_scale: float | None = None,
) -> UInt8[np.ndarray, "n h w c"]:
    """Draws `n` images of a model, always the same for the same arguments.

    Args:
        target: The model, as `load` opens it.
        n: How many images, at least 1.
        seed: Seed of the noise.
        steps: Timesteps of the sampler.
        sampler: "ddim", "ddpm" or "dpm".
        rounds: More than 1 draws as an attacker does who knows of `Dual` (see `sampling.sample`).
        batch_size: Images per forward, by default from their size.
        folder: Keeps finished chunks in folder/generated, so that the same call resumes; without one, nothing is kept.
        threads: Chunks that are drawn side by side.
        shape: For a model that takes images of any size.
        labels: The classes to draw of a class-conditional model, by default drawn evenly at random.
        prompts: For a text-to-image model, the text of each image, several times for several images of it.
        guidance_scale: Of classifier-free guidance, which doubles the forwards; 1 is none. The default is that of the target, else 7.5.

    Returns:
        The images, uint8 of shape (n, height, width, channels).

    Raises:
        UserError: For what the model or sampler cannot do, and when a folder holds images of another plan.
    """
    drawing = plan_drawing(target, n, seed, steps, sampler, rounds, shape, labels, prompts, guidance_scale)
    return draw(drawing, folder, batch_size, threads)


def plan_drawing(
    target: Target,
    n: int,
    seed: int = 0,
    steps: int = 50,
    sampler: str = "ddim",
    rounds: int = 1,
    shape: ImageShape | None = None,
    labels: Int64[np.ndarray, " n"] | None = None,
    prompts: Sequence[str] | None = None,
    guidance_scale: float | None = None,
    ids: Sequence[str] | None = None,
) -> Drawing:
    """Checks everything that can be checked before the first image is drawn; see `generate`.

    ids: of the images, one each: noise keyed by them does not depend on how many other images are drawn, or in what order.
    """
    shape = target.shape or shape
    if n < 1:
        raise UserError(f"images must be at least 1, so that there is something to measure; got {n}")
    if shape is None:
        raise UserError("this model takes images of any size, so the size to draw must be given: shape=ImageShape(channels, height, width)")
    if rounds < 1:
        raise UserError(f"rounds must be at least 1; got {rounds}")
    if rounds > 1 and len(target.denoiser.exposed) == 1:
        raise UserError(f"rounds are an attack on two models that take turns; this is one model: leave out --rounds {rounds}")
    if rounds > 1 and sampler == "dpm":
        raise UserError("more than one round needs a sampler without memory, ddim or ddpm; got dpm")
    hub.new_sampler(sampler, target.denoiser.schedule, steps, clip=not target.latent)
    if rounds > 1 and steps < 2:
        raise UserError(f"more than one round needs at least 2 steps, since rounds start at the second; got {steps}")
    latent = hub.latent_shape(target.codec, shape) if isinstance(target.codec, Autoencoder) else shape
    texts, scale = _prompts(target, n, prompts), _guidance(target, guidance_scale)
    classes, keyed = _labels(target, n, seed, labels), None if ids is None else tuple(ids)
    return Drawing(target, n, shape, latent, seed, steps, sampler, rounds, classes, texts, scale, keyed)


def _hashed(texts: tuple[str, ...] | None) -> str | None:
    return None if texts is None else hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _prompts(target: Target, n: int, prompts: Sequence[str] | None) -> tuple[str, ...] | None:
    if target.text is None:
        if prompts is not None:
            raise UserError(f"prompts are what a text-to-image model draws; {target.name} takes no text: leave them out")
        return None
    if prompts is None:
        raise UserError(f"{target.name} draws from prompts: give prompts, a text for each image")
    if isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts) or len(prompts) != n:
        raise UserError(f"prompts must be {n} texts, one for each image; got {'one text' if isinstance(prompts, str) else len(prompts)}")
    return tuple(prompts)


def _guidance(target: Target, scale: float | None) -> float | None:
    if target.text is None:
        if scale is not None:
            raise UserError(f"guidance is between a caption and none, and {target.name} takes no captions; leave out the guidance scale")
        return None
    if scale is None:
        return target.denoiser.scale if isinstance(target.denoiser, Guided) else GUIDANCE
    if not isfinite(scale) or scale < 0:
        raise UserError(f"the guidance scale must be a number of at least 0 (1 is no guidance); got {scale}")
    return float(scale)


def _labels(target: Target, n: int, seed: int, labels: Int64[np.ndarray, " n"] | None) -> Int64[np.ndarray, " n"] | None:
    if target.classes is None:
        if labels is not None:
            raise UserError("this model is not conditioned on classes; leave out the labels")
        return None
    if labels is None:
        return np.random.default_rng(seed).integers(target.classes, size=n)
    if len(labels) != n or labels.min() < 0 or labels.max() >= target.classes:
        raise UserError(f"labels must be {n} numbers in [0, {target.classes}); got {len(labels)} from {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def draw(drawing: Drawing, folder: Path | None, batch_size: int | None = None, threads: int | None = None) -> UInt8[np.ndarray, "n h w c"]:
    """The images of a drawing; chunks that folder/generated has already are read, not drawn. Without a folder nothing is kept."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return draw(drawing, Path(temporary), batch_size, threads)
    size, room = _batch_size(drawing, batch_size), Room("images", partial(free_unused_memory, drawing.target.device))

    def compute(rows: range, tick: Tick) -> UInt8[np.ndarray, "b h w c"]:
        def drawn(batch: slice, count: Tick) -> UInt8[np.ndarray, "b h w c"]:
            return _draw_batch(drawing, rows[batch], lambda images: count(images * drawing.denoiser.forwards))

        return np.concatenate([images for _, images in room.each(len(rows), size, drawn, tick)])

    return in_chunks(
        Folder(folder / FOLDER),
        drawing.plan(),
        drawing.chunks,
        compute,
        what="images",
        made="drawn with",
        bar="drawing images",
        forwards=drawing.forwards,
        batch_size=size,
        threads=threads or side_by_side(drawing.target),
        first=lambda missing: hub.embed_first(drawing.target.text, _asked_for(drawing, missing), folder),
    )


def draw_one(drawing: Drawing, image: int, batch_size: int | None = None) -> UInt8[np.ndarray, "h w c"]:
    """One image of a drawing, drawn with the others of its batch: a forward of another size rounds its last bits otherwise."""
    if not 0 <= image < drawing.n:
        raise UserError(f"the images are numbered from 0 to {drawing.n - 1}; got {image}")
    chunk = next(rows for rows in drawing.chunks.values() if image in rows)
    batch = next(rows for rows in _batches(chunk, _batch_size(drawing, batch_size)) if image in rows)
    return _draw_batch(drawing, batch, lambda images: None)[image - batch.start]


def _batch_size(drawing: Drawing, given: int | None) -> int:
    """Images per forward; raises `UserError` for fewer than 1."""
    if given is not None and given < 1:
        raise UserError(f"batch_size must be at least 1; got {given}")
    return given or max(1, auto_batch_size(drawing.latent, drawing.target.device) // drawing.denoiser.forwards)


def _batches(rows: range, size: int) -> list[range]:
    return [range(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def _draw_batch(drawing: Drawing, rows: range, on_step: Callable[[int], None]) -> UInt8[np.ndarray, "b h w c"]:
    target, latent = drawing.target, drawing.latent
    shape = (latent.channels, latent.height, latent.width)
    ids, stream = (tuple(map(str, rows)), "sample") if drawing.ids is None else (drawing.ids[rows.start : rows.stop], STREAM)
    noise = Noise(drawing.seed, ids, shape, target.x_dtype, target.device, stream)
    sampler = hub.new_sampler(drawing.sampler, target.denoiser.schedule, drawing.steps, clip=not target.latent)
    with torch.inference_mode():
        z = sample(drawing.denoiser, sampler, noise, _conditions(drawing, rows), drawing.rounds, on_step)
        x = decoded(target, drawing.shape, z)
    blamed = ("model must draw", drawing.denoiser, "use another sampler"), ("autoencoder must decode to", target.codec, None)
    for made, (must, part, otherwise) in zip((z, x), blamed, strict=True):
        broken = torch.flatten(~torch.isfinite(made), 1).any(dim=1).nonzero()
        if len(broken):
            raise UserError(
                f"the {must} finite numbers; image {rows[int(broken[0])]} of seed {drawing.seed} has NaN or infinity: "
                f"{advice(part, otherwise=otherwise)}"
            )
    return to_uint8(x.float().cpu().numpy())


def _conditions(drawing: Drawing, rows: range) -> Int64[Tensor, " b"] | Prompts | None:
    if drawing.prompts is not None:
        return drawing.embed(drawing.prompts[rows.start : rows.stop])
    return None if drawing.labels is None else torch.from_numpy(drawing.labels[rows.start : rows.stop]).to(drawing.target.device)


def _asked_for(drawing: Drawing, missing: Sequence[range]) -> list[str]:
    """The prompts of some rows."""
    return [] if drawing.prompts is None else [drawing.prompts[row] for rows in missing for row in rows]


def decoded(target: Target, shape: ImageShape, z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *x"]:
    """Latents as images of `shape`, as many at once as images of that size allow."""
    expected = (shape.channels, shape.height, shape.width)
    return torch.cat([images_of(target.codec, piece, expected) for piece in z.split(auto_batch_size(shape, target.device))])
