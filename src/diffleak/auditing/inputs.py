"""What the attacks are given: images as tensors, or latents encoded once, with their influence where masks need it.

For a latent model each chunk's latents, if there are masks their influence, and if scores are calibrated the complexity of
the reconstructions are computed once and kept in the run folder until the audit is finished; every attack and a resumed run read
them there. They are removed at the end: a decoder turns latents back into the private images. `diffleak geometry` keeps
influence.npy, geometry.parquet and distortion/; a calibrated audit that names its images keeps complexity.parquet.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from diffleak import hub
from diffleak.attacks.subject import Encoder, Images, Make, Subject
from diffleak.data.cohort import Cohort
from diffleak.data.complexity import NAMES, complexity
from diffleak.data.pixels import ImageShape, fit, to_model, to_uint8
from diffleak.diffusion.codec import images_of, latents_of, refuse_broken
from diffleak.diffusion.conditions import Prompts, chosen, one_at_a_time
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.devices import free_unused_memory, on_device
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import AtOnce
from diffleak.diffusion.target import Target, auto_batch_size, drawn_at_once
from diffleak.errors import WHY, SettingError, UserError, refusing
from diffleak.generation import Drawings, decoded
from diffleak.geometry.frequencies import energies
from diffleak.geometry.masks import Mask
from diffleak.geometry.pullback import distortion, influence, keep_mask
from diffleak.hub.encoders import BATCH, Extractor, extract, open_extractor, probe
from diffleak.records.scores import write_parquet
from diffleak.work.ahead import READERS, Ahead
from diffleak.work.files import check_seal, seal, write_atomic
from diffleak.work.folder import Folder, damaged
from diffleak.work.memory import keep_freed_memory
from diffleak.work.reading import Unreadable, load_parquet
from diffleak.work.room import Room
from diffleak.work.threads import Tick, cores

INFLUENCE = "influence.npy"  # of all images, once their chunks are measured
COMPLEXITY = "complexity.parquet"  # of all images and of their reconstructions
OF_A_RUN = ("latents", "influence", "reconstruction")  # kinds that are removed when it is finished
Rows = Sequence[int]  # of the images of a chunk
TOGETHER = 8  # images that a thread reads before it looks whether to stop
RECONSTRUCTED = tuple(f"reconstruction_{name}" for name in NAMES)  # columns there


class Loaded(NamedTuple):
    """The inputs of one chunk: uint8 images or latents, and the influence of the latents where there are masks."""

    x0: np.ndarray
    influence: Float[np.ndarray, "n *z"] | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """Gives the inputs of `cohort` under `target`; results depend on the image, the seed and the sizes here alone."""

    target: Target
    cohort: Cohort
    shape: ImageShape
    resize: bool
    seed: int
    labels: Int64[np.ndarray, " n"] | None = None  # of a class-conditional model
    masks: tuple[Mask, ...] = ()
    probes: int = 8
    top: int | None = None  # measure distortion, with this many singular values
    scored: bool = True  # whether attacks will read the latents
    captions: tuple[str, ...] | None = None  # of each image, for a text-to-image model
    complexity: Float64[np.ndarray, "n 7"] | None = None  # of the images, where that of their reconstructions is measured too
    shapes: tuple[ImageShape, ...] | None = None  # of every image, sorted, where they are in buckets; `shape` is then the commonest
    most_drawn: int | None = None  # images in a forward that draws; None for as many as fit
    drawings: Drawings | None = None  # where drawings for captions are kept
    may_skip_complexity: bool = True  # whether the command has --no-complexity
    _encoders: dict[str, Encoder] = field(default_factory=dict, repr=False)  # by spec
    _opening: Any = field(default_factory=Lock, repr=False)
    _reading: Any = field(default_factory=Lock, repr=False)  # tables and archives are read by one thread at a time

    def auto_batch_size(self) -> int:
        """Images per forward of the denoiser."""
        return auto_batch_size(self.latent_shape, self.target.device)

    @cached_property
    def latent_shape(self) -> ImageShape:
        """The shape of what the denoiser works on, of images of the commonest shape."""
        if not self.target.latent:
            return self.shape
        first = [self.alike.start]
        return ImageShape(*self.encode(self.pixels(first), first).shape[1:])

    def pixels(self, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w c"]:
        """Images in the model's shape, or in that of their one bucket; the scan has already shown that each fits or may be resized."""
        return np.stack([self.image(row) for row in rows])

    def image(self, row: int) -> UInt8[np.ndarray, "h w c"]:
        """One image as `pixels` gives it; of data that several threads must not read at once, they read one after another."""
        resize = self.resize or self.shapes is not None
        with nullcontext() if self.cohort.side_by_side else self._reading:
            pixels = self.cohort.read(row)
        return fit(pixels, self.shape_at(row), resize, self.cohort.ids[row])

    @property
    def readers(self) -> int:
        """Threads that read images ahead: on a CPU one, since the others are at work there."""
        return 1 if self.target.device == "cpu" or not self.cohort.side_by_side else min(READERS, cores())

    def shape_at(self, row: int) -> ImageShape:
        """The shape that the model is given an image in."""
        return self.shapes[row] if self.shapes else self.shape

    @property
    def alike(self) -> range:
        """The rows of images of one shape: of `shape`, which most have, and all where there are no buckets."""
        first = self.shapes.index(self.shape) if self.shapes else 0
        return range(first, first + (self.shapes.count(self.shape) if self.shapes else len(self.cohort)))

    def tensor(self, images: np.ndarray) -> Float[Tensor, "b *s"]:
        """uint8 images, or latents, on the device."""
        x = to_model(images) if images.dtype == np.uint8 else images
        return on_device(torch.from_numpy(x), self.target.device, self.target.x_dtype)

    def encode(self, images: UInt8[np.ndarray, "n h w c"], rows: Sequence[int]) -> np.ndarray:
        """The latents of the uint8 images of `rows` as numbers of the CPU; the images themselves for a pixel model."""
        if not self.target.latent:
            return images
        with torch.inference_mode():
            z = self.latents(images).cpu().numpy()
        refuse_broken(z, self.target.codec, [self.cohort.ids[row] for row in rows])
        return z

    def latents(self, images: UInt8[np.ndarray, "b h w c"] | Float[Tensor, "b *x"]) -> Float[Tensor, "b *z"]:
        """The latents of images, encoded on the device, as many at a time as images of their size allow."""
        size = auto_batch_size(self.shape, self.target.device)
        encoded = lambda x: latents_of(self.target.codec, x if isinstance(x, Tensor) else self.tensor(x))
        return torch.cat([z for _, z in self._encoding.each(len(images), size, lambda rows, tick: encoded(images[rows]))])

    @cached_property
    def _encoding(self) -> Room:
        return Room("images in the autoencoder", partial(free_unused_memory, self.target.device))

    @cached_property
    def _drawing(self) -> AtOnce:
        return AtOnce.on(self.target.device, 1)

    def alone(self) -> Subject:
        """The model without images, for what an attack opens before it starts."""
        return Subject(self.target.denoiser, torch.empty(0), Noise(0, (), ()), **self._means)

    def subject(self, denoiser: Denoiser, x0: Float[Tensor, "b *s"], noise: Noise, rows: Sequence[int]) -> Subject:
        """A batch of images as an attacker of `denoiser`, which is the model or one that it exposes, sees it."""
        images = (lambda: self.tensor(self.pixels(rows))) if self.target.latent else None
        shape, latent = self.shape_at(rows[0]), ImageShape(*x0.shape[1:])
        means = {**self._means, "decode": partial(decoded, self.target, shape)} if self.shapes else self._means
        kept = partial(self._drawn, self.drawings, shape) if self.drawings else None
        at_once = replace(self._drawing, size=drawn_at_once(latent, self.target.device, self.most_drawn))
        return Subject(denoiser, x0, noise, self.conditions(rows), images=images, at_once=at_once, kept=kept, **means)

    def _drawn(
        self, kept: Drawings, shape: ImageShape, make: Make, noise: Noise, cond: Any, steps: int, guidance_scale: float
    ) -> tuple[Images, int]:
        """Drawings for captions, as 8-bit images, and how many of them were kept already; an own attack's of other settings are made."""
        if not isinstance(cond, Prompts) or (steps, guidance_scale) != (kept.plan["steps"], kept.plan["guidance_scale"]):
            return make(noise, cond), 0

        def drawn(rows: list[int]) -> list[np.ndarray | None]:
            x = make(replace(noise, ids=tuple(noise.ids[row] for row in rows)), chosen(cond, rows)).float().cpu().numpy()
            return [to_uint8(image[None])[0] if np.isfinite(image).all() else None for image in x]

        images, read = kept.filled(noise.ids, cond.texts, shape, drawn)
        broken = np.full((shape.channels, shape.height, shape.width), np.nan, dtype=np.float32)
        return self.tensor(np.stack([broken if image is None else to_model(image[None])[0] for image in images])), read

    @cached_property
    def _means(self) -> dict[str, Any]:
        """What an attacker has beside the answers of the denoiser, as fields of a `Subject`."""
        codec = {"encode": self.latents, "decode": partial(decoded, self.target, self.shape)} if self.target.latent else {}
        return {**codec, "sampler": self._sampler, "open_encoder": self._encoder}

    def _sampler(self, steps: int) -> Any:
        with refusing(SettingError, f"of an attack that draws, {WHY}"):  # else its steps would be taken for those of the command
            return hub.new_sampler("ddim", self.target.denoiser.schedule, steps, clip=not self.target.latent)

    def _encoder(self, spec: str) -> Encoder:
        """An encoder of its spec, opened once for every model of the run."""
        with self._opening:
            if spec not in self._encoders:
                extractor = open_extractor(spec, self.target.device)
                probe(extractor, self.shape)
                self._encoders[spec] = Encoder(extractor.fingerprint, partial(_vectors, extractor))
            return self._encoders[spec]

    def noise(self, ids: Sequence[str], shape: Sequence[int], stream: str = "") -> Noise:
        """The keyed normals of a batch."""
        return Noise(self.seed, tuple(ids), tuple(shape), self.target.x_dtype, self.target.device, stream)

    def conditions(self, rows: Sequence[int]) -> Int64[Tensor, " b"] | Prompts | None:
        """The labels of images for a class-conditional model, their captions for a text-to-image model."""
        if self.captions is not None and self.target.text is not None:
            return self._embed(tuple(self.captions[row] for row in rows))
        return None if self.labels is None else torch.from_numpy(self.labels[list(rows)]).to(self.target.device)

    def embed_first(self, rows: Iterable[int], place: Path) -> None:
        """Embeds the captions of some images, and frees the memory of the text encoders (`hub.embed_first`)."""
        if self.captions is not None:
            hub.embed_first(self.target.text, [self.captions[row] for row in rows], place)

    @cached_property
    def _embed(self) -> Callable[..., Prompts]:
        assert self.target.text is not None, "captions are of text-to-image models"
        return one_at_a_time(self.target.text)

    def prepare(
        self, folder: Folder, chunks: Mapping[int, Rows], needed: Mapping[int, Sequence[str]], batch_size: int, threads: int
    ) -> None:
        """Computes what `x0`, `influence`, `distortion` and `reconstruction` read: the kinds that each chunk needs."""
        if self.masks or self.top:
            keep_freed_memory()

        def prepare_one(chunk: int, tick: Tick) -> None:
            missing = folder.missing({kind: self.files(chunk, [kind]) for kind in needed[chunk]})
            images = ahead.take(chunk, partial(tick, 0))
            for kind, array in self.measure(chunks[chunk], missing, images).items():
                folder.save(_file(kind, chunk), array)
            ahead.drop(chunk)
            tick(len(chunks[chunk]))

        more = [word for word, asked in (("influence", self.masks), ("decoding", self.complexity is not None)) if asked]
        bar = "geometry" if self.top else ", ".join(["encoding", *more]) if more else "encoding images"
        files, cost = {chunk: self.files(chunk, kinds) for chunk, kinds in needed.items()}, lambda chunk: len(chunks[chunk])
        with self.read_ahead({chunk: chunks[chunk] for chunk in folder.missing(files)}, threads + (self.target.device != "cpu")) as ahead:
            folder.run(files, prepare_one, cost, bar=bar, unit="images", batch_size=batch_size, threads=threads)

    def read_ahead(self, chunks: Mapping[int, Rows], most: int) -> Ahead[int, np.ndarray, UInt8[np.ndarray, "n h w c"]]:
        """The images of each chunk as `pixels` gives them, of `most` chunks at once, read while the network runs."""
        return Ahead(chunks, lambda chunk: self._pieces(chunks[chunk]), np.concatenate, threads=self.readers, most=most)

    def _pieces(self, rows: Rows) -> list[Callable[[], UInt8[np.ndarray, "n h w c"]]]:
        """Functions that read a few images each, one after the other all of `rows`."""
        return [partial(self.pixels, rows[start : start + TOGETHER]) for start in range(0, len(rows), TOGETHER)]

    def measure(self, rows: Rows, kinds: Sequence[str], images: UInt8[np.ndarray, "n h w c"] | None = None) -> dict[str, np.ndarray]:
        """Measures some images: "latents", "influence" of each coordinate, "distortion" beside the energies, complexity of the
        "reconstruction". `images` are theirs where they are read already."""
        images, found = self.pixels(rows) if images is None else images, dict[str, np.ndarray]()
        z = self.encode(images, rows)
        noise, codec = self.noise([self.cohort.keys[row] for row in rows], z.shape[1:]), self.target.codec
        if "distortion" in kinds and self.top:
            measured = distortion(codec, self.tensor(z), self.top, noise=noise).cpu().numpy()
            found["distortion"] = np.column_stack([measured, energies(images)])
        if "influence" in kinds:
            found["influence"] = influence(codec, self.tensor(z), self.probes, noise=noise).cpu().numpy()
        if "reconstruction" in kinds:
            found["reconstruction"] = self._reconstructed(z, rows)
        return found | ({"latents": z} if "latents" in kinds else {})

    def _reconstructed(self, z: np.ndarray, rows: Rows) -> Float64[np.ndarray, "n 7"]:
        """The complexity of the images that the decoder makes of the latents of `rows`, in pixels and at the size that it gives."""
        size, found, codec = auto_batch_size(self.shape, self.target.device), list[np.ndarray](), self.target.codec
        for start in range(0, len(z), size):
            with torch.inference_mode():
                x = images_of(codec, self.tensor(z[start : start + size])).float().cpu().numpy()
            ids = [self.cohort.ids[row] for row in rows[start : start + size]]
            skip = "use --no-complexity, which decodes nothing" if self.may_skip_complexity else None
            refuse_broken(x, codec, ids, "images", skip)
            if x.shape[1] != self.shape.channels:
                raise UserError(f"the codec's decode must give images of the shape ({self.shape.channels}, h, w); got {tuple(x.shape[1:])}")
            found += [complexity(image) for image in to_uint8(x)]
        return np.array(found)

    def files(self, chunk: int, kinds: Sequence[str] | None = None) -> list[str]:
        """The files of a chunk, by default of all that is computed for it."""
        return [_file(kind, chunk) for kind in (self.kinds if kinds is None else kinds)]

    def chunks_ahead(self, folder: Folder, chunks: Mapping[int, Rows], most: int) -> "Ahead[int, np.ndarray, Loaded]":
        """What attacks are given of each chunk, of `most` chunks at once, read while the network runs."""
        if not self.target.latent:
            pieces = lambda chunk: self._pieces(chunks[chunk])
            return Ahead(chunks, pieces, lambda images: Loaded(np.concatenate(images)), threads=self.readers, most=most)
        kinds = ["latents", "influence"] if self.masks else ["latents"]
        of_files = lambda chunk: [partial(folder.load, _file(kind, chunk)) for kind in kinds]
        return Ahead(chunks, of_files, lambda arrays: Loaded(*arrays), threads=1, most=most)

    def distortion(self, folder: Folder, chunk: int) -> Float64[np.ndarray, "n 3"]:
        """Distortion, low- and high-frequency energy of the images of one chunk."""
        return folder.load(_file("distortion", chunk))

    def reconstruction(self, folder: Folder, chunks: Mapping[int, Rows]) -> Float64[np.ndarray, "n 7"] | None:
        """The complexity of the reconstruction of every image of the chunks, in their order; None where it is not measured."""
        if self.complexity is None:
            return None
        kept, these = self._kept(folder.path), [row for rows in chunks.values() for row in rows]
        try:
            return np.concatenate([folder.load(_file("reconstruction", c)) for c in chunks]) if kept is None else kept[these]
        except UserError:
            kept = self._kept(folder.path)  # another worker was faster, and has removed the parts
            if kept is None:
                raise
            return kept[these]

    def _kept(self, folder: Path) -> Float64[np.ndarray, "n 7"] | None:
        """The reconstructions' complexity in complexity.parquet; None without it, and where the images' own is another one there.

        So numbers of another version of the encoders, which give other bytes, are measured again.
        """
        assert self.complexity is not None, "only these are kept"
        try:
            table = load_parquet(folder / COMPLEXITY) if (folder / COMPLEXITY).exists() else None
        except Unreadable:
            return None
        if table is None or not table.schema.equals(_schema((*NAMES, *RECONSTRUCTED))):
            return None
        own, found = (np.column_stack([table.column(name).to_numpy() for name in names]) for names in (NAMES, RECONSTRUCTED))
        same = table.column("id").to_pylist() == list(self.cohort.ids) and np.array_equal(own, self.complexity)
        return found if same and np.isfinite(found).all() else None

    def keep(self, influences: Float[np.ndarray, "b *z"], ids: Sequence[str]) -> list[Float[Tensor, "b *z"]]:
        """The masks of a batch, in the order of `masks`."""
        values = torch.from_numpy(influences).to(self.target.device)
        noise = self.noise(ids, influences.shape[1:], "mask")
        return [keep_mask(values, 1 - mask.ratio, mask.control, noise) for mask in self.masks]

    @property
    def kinds(self) -> list[str]:
        """What is computed for every image of a latent model."""
        wanted = {"latents": self.scored, "influence": self.masks or self.top, "distortion": self.top}
        return [kind for kind, want in {**wanted, "reconstruction": self.complexity is not None}.items() if want]

    def in_results(self, folder: Folder | None) -> set[str]:
        """The kinds that results are made of once all is scored, but for those that a folder has in one file of all images."""
        joined = folder is not None and (folder.path / INFLUENCE).exists()
        kept = folder is not None and self.complexity is not None and self._kept(folder.path) is not None
        return {"distortion", *(["influence"] if self.top and not joined else []), *([] if kept else ["reconstruction"])}


def _file(kind: str, chunk: int) -> str:
    return f"{kind}/chunk-{chunk:05d}.npy"


def clear(folder: Path) -> None:
    """Removes the latents, influences and reconstructions of a finished run, of which there is one file or none.

    Raises `UserError` when they cannot be removed: a decoder turns latents back into the private images.
    """
    for kind in OF_A_RUN:
        shutil.rmtree(folder / kind, ignore_errors=True)  # another worker may be removing them too
        if (folder / kind).exists():
            raise UserError(f"{folder / kind} cannot be removed; the results are written, remove it by hand: it may show private images")


def lend(source: Path, folder: Path) -> None:
    """Puts the latents, influences and reconstructions of one folder into another that lacks them: of a sweep, whose audits share them.

    What another worker removes meanwhile is left out.
    """
    for kind in OF_A_RUN:
        for file in sorted((source / kind).glob("chunk-*.npy")):
            with suppress(FileNotFoundError), file.open("rb") as content:
                if not (folder / kind / file.name).exists():
                    write_atomic(folder / kind / file.name, partial(_copy, content), private=True)


def _copy(content: BinaryIO, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)


def write_geometry(inputs: Inputs, path: Path, chunks: Mapping[int, Rows]) -> Float64[np.ndarray, "n 3"]:
    """Leaves influence.npy and geometry.parquet in a folder; returns distortion, low- and high-frequency energy of every image."""
    folder, whole = Folder(path), path / INFLUENCE
    measured = np.concatenate([inputs.distortion(folder, c) for c in chunks])
    if not whole.exists():
        try:
            write_atomic(whole, partial(_join, [partial(folder.load, _file("influence", c)) for c in chunks], len(measured)), private=True)
        except UserError:
            if not whole.exists():  # else another worker was faster, and has removed the parts
                raise
    try:
        check_seal(whole)
    except Unreadable as error:
        raise damaged(whole, error) from None
    table = pa.table({"id": pa.array(inputs.cohort.ids, pa.string()), "distortion": pa.array(measured[:, 0])})
    write_parquet(path / "geometry.parquet", table)
    return measured


def write_complexity(
    path: Path, ids: Sequence[str], images: Float64[np.ndarray, "n 7"], reconstructions: Float64[np.ndarray, "n 7"] | None
) -> None:
    """Leaves complexity.parquet: the id of each image, its `data.complexity`, and of a latent model that of its reconstruction."""
    names, parts = (NAMES, [images]) if reconstructions is None else ((*NAMES, *RECONSTRUCTED), [images, reconstructions])
    columns = [pa.array(ids, pa.string()), *(pa.array(column) for part in parts for column in part.T)]
    write_parquet(path / COMPLEXITY, pa.table(columns, schema=_schema(names)))


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([("id", pa.string()), *((name, pa.float64()) for name in columns)])


def _join(parts: Sequence[Callable[[], np.ndarray]], count: int, path: Path) -> None:
    """Writes the parts as one float32 .npy with a checksum at its end, a part at a time in memory."""
    with path.open("wb") as file:
        for i, part in enumerate(read().astype("<f4") for read in parts):
            if i == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, *part.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(part.tobytes())
    seal(path)


def _vectors(extractor: Extractor, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    images = to_uint8(torch.nan_to_num(x).float().cpu().numpy())
    return torch.from_numpy(extract(extractor, (images[start : start + BATCH] for start in range(0, len(images), BATCH))).features)
