"""Images drawn from a model: seeded per image, in chunks that are written as they are finished and found again.

Image i depends on the model, the sampler, the seed, its label or prompt and i alone, so neither the batch it is drawn in
nor an interruption changes it (up to the last bits of a forward, which uint8 pixels round away almost always). Images that are
keyed by ids are drawn in forwards of one size, and are the same to the last bit whatever else is drawn, unless memory runs out (see
`diffusion.sampling.AtOnce`). Those for captions can be kept in a folder of `Drawings`, in which `extract` and the attack `black_box` find
each other's.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from diffleak.data.anonymity import Key
from diffleak.data.pixels import ImageShape, to_uint8
from diffleak.diffusion.codec import Autoencoder, images_of
from diffleak.diffusion.conditions import Prompts, one_at_a_time
from diffleak.diffusion.denoiser import Denoiser, Guided, guided
from diffleak.diffusion.devices import by_device
from diffleak.diffusion.finite import advice
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import AtOnce, sample, sample_alike
from diffleak.diffusion.target import Target, auto_batch_size, drawn_at_once, side_by_side
from diffleak.errors import SettingError, UserError, one_or_more
from diffleak.records.quality import DRAWN as FOLDER
from diffleak.work.files import check_seal, write_text
from diffleak.work.folder import UNKNOWN, Change, Folder, another, chunk_file, cut, deal, in_chunks, set_aside
from diffleak.work.progress import say
from diffleak.work.reading import Unreadable, load_npy, load_text
from diffleak.work.shares import Share
from diffleak.work.threads import Tick

CHUNK = {"cpu": 64, "accelerator": 256}  # images per file: several on a CPU at once, one full batch on an accelerator
GUIDANCE = 7.5  # of diffusers' pipelines by default


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is drawn: `n` images of `shape` in pixels, whose denoiser works on `latent` (the same for a pixel model).

    `labels` are the classes of the images of a class-conditional model, `prompts` the texts of those of a text-to-image
    model, with their `guidance_scale`. `ids` are what the noise of each image is keyed by; None for its number. Images that are
    keyed by ids are drawn in forwards of `at_once`.
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
    at_once: int | None = None

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
            "at_once": self.at_once,  # neither
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
    batch_size: int | None = None,
) -> Drawing:
    """Checks everything that can be checked before the first image is drawn; see `generate`.

    ids: of the images, one each: noise keyed by them does not depend on how many other images are drawn, or in what order.
    batch_size: most images of a forward of images with ids.
    """
    shape = target.shape or shape
    if n < 1:
        raise SettingError("images", f"must be at least 1, so that there is something to measure; got {n}")
    if shape is None:
        raise UserError("this model takes images of any size, so the size to draw must be given: shape=ImageShape(channels, height, width)")
    if rounds < 1:
        raise SettingError("rounds", f"must be at least 1; got {rounds}")
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
    at_once = None if keyed is None else drawn_at_once(latent, target.device, batch_size)
    return Drawing(target, n, shape, latent, seed, steps, sampler, rounds, classes, texts, scale, keyed, at_once)


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
        raise UserError(
            f"prompts must be {one_or_more(n, 'text')}, one for each image; got {'one text' if isinstance(prompts, str) else len(prompts)}"
        )
    return tuple(prompts)


def _guidance(target: Target, scale: float | None) -> float | None:
    if target.text is None:
        if scale is not None:
            raise UserError(f"guidance is between a caption and none, and {target.name} takes no captions; leave out the guidance scale")
        return None
    if scale is None:
        return target.denoiser.scale if isinstance(target.denoiser, Guided) else GUIDANCE
    if not isfinite(scale) or scale < 0:
        raise SettingError("guidance_scale", f"must be a number of at least 0 (1 is no guidance); got {scale}")
    return float(scale)


def _labels(target: Target, n: int, seed: int, labels: Int64[np.ndarray, " n"] | None) -> Int64[np.ndarray, " n"] | None:
    if target.classes is None:
        if labels is not None:
            raise UserError("this model is not conditioned on classes; leave out the labels")
        return None
    if labels is None:
        return np.random.default_rng(seed).integers(target.classes, size=n)
    if len(labels) != n or labels.min() < 0 or labels.max() >= target.classes:
        between = f" from {labels.min()} to {labels.max()}" if len(labels) else ""
        raise UserError(f"labels must be {one_or_more(n, 'number')} in [0, {target.classes}); got {len(labels)}{between}")
    return labels.astype(np.int64)


def draw(
    drawing: Drawing,
    folder: Path | None,
    batch_size: int | None = None,
    threads: int | None = None,
    kept: "Drawings | None" = None,
    only: Sequence[int] | None = None,
) -> UInt8[np.ndarray, "n h w c"]:
    """The images of a drawing; chunks that folder/generated has already are read, not drawn. Without a folder nothing is kept.

    kept: drawings that are read in place of being drawn; those that are drawn are kept there too. only: some of the chunks.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return draw(drawing, Path(temporary), batch_size, threads, kept, only)
    size, chunks = _batch_size(drawing, batch_size), drawing.chunks
    at_once = AtOnce.on(drawing.target.device, size)

    def compute(rows: range, tick: Tick) -> UInt8[np.ndarray, "b h w c"]:
        made = partial(_draw_rows, drawing, at_once=at_once, tick=tick)
        if kept is None:
            _read_file(folder, rows).unlink(missing_ok=True)
            return made(rows)
        assert drawing.ids is not None and drawing.prompts is not None, "kept by image, draw and caption"
        ids, prompts = drawing.ids[rows.start : rows.stop], drawing.prompts[rows.start : rows.stop]
        images, read = kept.filled(ids, prompts, drawing.shape, lambda some: list(made([rows[row] for row in some])))
        write_text(_read_file(folder, rows), f"{read}\n")
        tick(read * drawing.forwards)
        return np.stack(images)  # type: ignore[arg-type]  # what is not finite was refused

    return in_chunks(
        Folder(folder / FOLDER),
        drawing.plan(),
        chunks if only is None else {chunk: chunks[chunk] for chunk in only},
        compute,
        what="images",
        made="drawn with",
        bar="drawing images",
        forwards=drawing.forwards,
        batch_size=size,
        threads=threads or side_by_side(drawing.target),
        first=lambda missing: hub.embed_first(drawing.target.text, _asked_for(drawing, missing), folder),
    )


def draw_share(
    drawing: Drawing,
    folder: Path,
    share: Share,
    batch_size: int | None = None,
    threads: int | None = None,
    kept: "Drawings | None" = None,
) -> Callable[[], set[int]]:
    """Draws what is missing of one worker's share of the chunks; returns what says which chunks of all workers are missing."""
    if mine := deal([*drawing.chunks], share.rank, share.count):
        draw(drawing, folder, batch_size, threads, kept, mine)
    files = {chunk: [chunk_file("images", chunk)] for chunk in drawing.chunks}
    return lambda: {*Folder(folder / FOLDER).missing(files)}


def images_read(drawing: Drawing, folder: Path) -> int:
    """How many images of a drawing in `folder` were read from kept drawings and not drawn for it, in this call or before."""
    files = [_read_file(folder, rows) for rows in drawing.chunks.values()]
    return sum(int(load_text(file)) for file in files if file.exists())


def _read_file(folder: Path, rows: range) -> Path:
    return folder / FOLDER / f"read-{rows.start}.txt"


def draw_one(drawing: Drawing, image: int, batch_size: int | None = None) -> UInt8[np.ndarray, "h w c"]:
    """One image of a drawing; without ids with the others of its batch, since a forward of another size rounds its last bits otherwise."""
    if not 0 <= image < drawing.n:
        raise UserError(f"the images are numbered from 0 to {drawing.n - 1}; got {image}")
    size, rows = _batch_size(drawing, batch_size), range(image, image + 1)
    if drawing.ids is None:
        chunk = next(rows for rows in drawing.chunks.values() if image in rows)
        rows = next(rows for rows in _batches(chunk, size) if image in rows)
    return _draw_rows(drawing, rows, AtOnce.on(drawing.target.device, size))[image - rows.start]


def _batch_size(drawing: Drawing, given: int | None) -> int:
    """Images per forward; raises `UserError` for fewer than 1."""
    if given is not None and given < 1:
        raise SettingError("batch_size", f"must be at least 1; got {given}")
    if drawing.at_once:
        return drawing.at_once
    return given or max(1, auto_batch_size(drawing.latent, drawing.target.device) // drawing.denoiser.forwards)


def _batches(rows: range, size: int) -> list[range]:
    return [range(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def _draw_rows(drawing: Drawing, rows: Sequence[int], at_once: AtOnce, tick: Tick = lambda *done: None) -> UInt8[np.ndarray, "b h w c"]:
    """Some images, as many at once as memory has room for; `tick` is called with the forwards of one image each."""
    step = lambda count: lambda images: count(images * drawing.denoiser.forwards)
    if drawing.ids is not None:
        batches = (rows[start : start + at_once.size] for start in range(0, len(rows), at_once.size))
        return np.concatenate([_draw_batch(drawing, batch, step(tick), at_once) for batch in batches])
    parts = at_once.room.each(len(rows), at_once.size, lambda batch, count: _draw_batch(drawing, rows[batch], step(count), None), tick)
    return np.concatenate([images for _, images in parts])


def _draw_batch(
    drawing: Drawing, rows: Sequence[int], on_step: Callable[[int], None], at_once: AtOnce | None
) -> UInt8[np.ndarray, "b h w c"]:
    """Some images, in one forward, or in forwards that are alike."""
    target, latent = drawing.target, drawing.latent
    shape = (latent.channels, latent.height, latent.width)
    ids, stream = (tuple(map(str, rows)), "sample") if drawing.ids is None else (tuple(drawing.ids[row] for row in rows), STREAM)
    noise, cond = Noise(drawing.seed, ids, shape, target.x_dtype, target.device, stream), _conditions(drawing, rows)
    new_sampler = lambda: hub.new_sampler(drawing.sampler, target.denoiser.schedule, drawing.steps, clip=not target.latent)

    def decode(z: Float[Tensor, "b *z"], numbers: Sequence[int]) -> Float[Tensor, "b *x"]:
        x = decoded(target, drawing.shape, z)
        another = None if target.denoiser.schedule.is_flow else "use another sampler"  # flow matching has one alone
        blamed = ("model must draw", drawing.denoiser, another), ("autoencoder must decode to", target.codec, None)
        for made, (must, part, otherwise) in zip((z, x), blamed, strict=True):
            broken = torch.flatten(~torch.isfinite(made), 1).any(dim=1).nonzero()
            if len(broken):
                raise UserError(
                    f"the {must} finite numbers; image {rows[numbers[int(broken[0])]]} of seed {drawing.seed} has NaN or infinity: "
                    f"{advice(part, otherwise=otherwise)}"
                )
        return x

    with torch.inference_mode():
        if at_once:
            x = sample_alike(drawing.denoiser, new_sampler, noise, cond, at_once, decode, on_step)
        else:
            x = decode(sample(drawing.denoiser, new_sampler(), noise, cond, drawing.rounds, on_step), range(len(rows)))
    return to_uint8(x.float().cpu().numpy())


def _conditions(drawing: Drawing, rows: Sequence[int]) -> Int64[Tensor, " b"] | Prompts | None:
    if drawing.prompts is not None:
        return drawing.embed([drawing.prompts[row] for row in rows])
    return None if drawing.labels is None else torch.from_numpy(drawing.labels[list(rows)]).to(drawing.target.device)


def _asked_for(drawing: Drawing, missing: Sequence[range]) -> list[str]:
    """The prompts of some rows."""
    return [] if drawing.prompts is None else [drawing.prompts[row] for rows in missing for row in rows]


def decoded(target: Target, shape: ImageShape, z: Float[Tensor, "b *z"]) -> Float[Tensor, "b *x"]:
    """Latents as images of `shape`, as many at once as images of that size allow."""
    expected = (shape.channels, shape.height, shape.width)
    return torch.cat([images_of(target.codec, piece, expected) for piece in z.split(auto_batch_size(shape, target.device))])


@dataclass(frozen=True, eq=False)
class Drawings:
    """Drawings for captions that several commands share, in a folder of one `plan`.

        plan.json        what all of them have in common: the model, seed, sampler, steps, guidance, size and precision
        ab/abcdef.npy    one drawing, named by a hash of its image's id, its number and its caption, with the key of an anonymous run

    A drawing is the same to the last bit whichever command made it, so neither what is there nor who came first changes a result. Where
    memory ran out its forward was smaller, which changes a last digit that 8 bits round away almost always.
    """

    path: Path
    plan: Mapping[str, Any]
    key: Key | None = None

    def of_reference(self, target: Target) -> "Drawings":
        """The same of a reference model, in a folder inside."""
        plan = {**self.plan, "model": target.name, "model_fingerprint": target.fingerprint, "dtype": target.dtype}
        return replace(self, path=self.path / "reference", plan=plan)

    def claim(self) -> None:
        """Makes the folder that of these drawings; raises `UserError` for one of other drawings, or of something else."""

        def refusal(changed: Sequence[Change]) -> str:
            key, before, _ = changed[0]
            if key == "holds":
                return f"{self.path} must be a folder of drawings, and its plan.json is another command's; choose another --drawings"
            if key == "anonymous":
                whose = f"an anonymous run with the key {before}" if before else "a run that is not anonymous"
                return (
                    f"{self.path} holds drawings of {whose}; "
                    "choose another --drawings, or give both commands --anonymous and one --anonymous-key FILE"
                )
            return f"{self.path} holds drawings made with {another(changed[0])}; choose another --drawings"

        unnamed = None
        if self.plan["model_fingerprint"] == UNKNOWN:
            unnamed = Folder(self.path).unnamed("drawings")
        Folder(self.path).claim(self.plan, refusal, free={"model"}, again=unnamed)

    def filled(
        self,
        ids: Sequence[str],
        captions: Sequence[str],
        shape: ImageShape,
        make: Callable[[list[int]], Sequence[UInt8[np.ndarray, "h w c"] | None]],
    ) -> tuple[list[UInt8[np.ndarray, "h w c"] | None], int]:
        """The drawings of image and draw `ids` for their captions, and how many of them were there.

        make: draws those in some rows, None for one that is not finite; it is called for as many as one forward takes, and they are kept.
        """
        files = [self._file(*each) for each in zip(ids, captions, strict=True)]
        found = [self._load(file, shape) for file in files]
        missing, size = [row for row, image in enumerate(found) if image is None], self.plan["at_once"]
        for start in range(0, len(missing), size):
            rows = missing[start : start + size]
            for row, image in zip(rows, make(rows), strict=True):
                found[row] = image
                if image is not None:
                    Folder(self.path).save(files[row], image)
        return found, len(ids) - len(missing)

    def _file(self, of: str, caption: str) -> str:
        text = f"{of}\0{caption}"
        name = self.key.drawing(text) if self.key else hashlib.sha256(text.encode()).hexdigest()[:32]
        return f"{name[:2]}/{name}.npy"

    def _load(self, file: str, shape: ImageShape) -> UInt8[np.ndarray, "h w c"] | None:
        path = self.path / file
        if not path.exists():
            return None
        try:
            check_seal(path)
            image = load_npy(path)
            if image.dtype == np.uint8 and image.shape == (shape.height, shape.width, shape.channels):
                return image
            raise Unreadable(f"it holds {image.dtype} numbers of the shape {image.shape}")
        except Unreadable as error:
            say(f"{path} is damaged ({error}): it is now {set_aside(path).name}, and it is drawn again", every=True)
            return None


def drawings_of(
    path: Path, target: Target, shape: str, seed: int, sampler: str, steps: int, guidance_scale: float, at_once: int, key: Key | None
) -> Drawings:
    """A folder of drawings of one model. shape: of the images, in words."""
    plan = {
        "holds": "drawings",
        "schema_version": 1,
        "model": target.name,
        "model_fingerprint": target.fingerprint,
        "image_shape": shape,
        "sampler": sampler,
        "steps": steps,
        "seed": seed,
        "guidance_scale": float(guidance_scale),
        "at_once": at_once,
        "dtype": target.dtype,
        "device": target.device.partition(":")[0],
        "anonymous": key.name if key else None,
    }
    return Drawings(path, plan, key)
