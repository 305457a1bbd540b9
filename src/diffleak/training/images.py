"""The images of a training run: which ones, in what shape, all in memory as uint8."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from diffleak.data.captions import read_captions
from diffleak.data.decoding import WITHOUT_HINT, UnreadableImage
from diffleak.data.draw import choose_members, keyed_order, toss
from diffleak.data.image_source import ImageSource, Texts
from diffleak.data.labels import ClassNames, Side, names_of, number
from diffleak.data.names import Names, by_id, say_strays
from diffleak.data.pixels import ImageShape, fit, shape_of
from diffleak.data.sources import open_source
from diffleak.data.split import FILE, Drawn, read_drawn, read_split
from diffleak.errors import WHY, SettingError, UserError, of_them, refusing, shown
from diffleak.hub import AUTOENCODER_FOLDERS
from diffleak.records.images import NO_IMAGES, Tally
from diffleak.training.config import TrainConfig
from diffleak.work.progress import progress, say


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The images of the members, then those set aside for validation; their labels where a model needs them; what split.json will say."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int64[np.ndarray, " n"] | None
    members: tuple[str, ...]
    nonmembers: tuple[str, ...]
    validation: tuple[str, ...] = ()
    captions: tuple[Texts, ...] = ()  # of a text-to-image model
    classes: dict[str, int] | None = None  # the number of every class, where the data names them
    tally: Tally = NO_IMAGES
    drawn: Drawn | None = None  # how the sides were drawn, where that is known

    @property
    def public_size(self) -> int | float:
        """The number of images that the sampling rate of DP-SGD is taken of, which must not depend on who is a member.

        Where coins chose the members their number is random, so it is half of all images, the number to be expected.
        """
        tossed = self.drawn is not None and self.drawn.how == "coin"
        return (len(self.members) + len(self.nonmembers)) / 2 if tossed else len(self.images)


def read_training_data(config: TrainConfig, shape: ImageShape | None = None) -> TrainingData:
    """Reads the members of the data; `shape` is what a given autoencoder takes, else the first image decides.

    With `random_crops` there are that many crops of each image, one after the other, drawn by id and seed.

    Raises `UserError` for data that cannot be read or whose white is not known, or images of different shapes without `--resize`.
    """
    source = open_source(config.data, config.decoding)
    say(source.found)
    shape = training_shape(source, config) if shape is None else shape
    chosen, nonmembers, drawn = _sides(source, config)
    members, validation = set_aside(chosen, config.validation, config.seed) if config.validation else (chosen, ())
    read = (*members, *validation)
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    captions = _captions(source, read, config) if config.kind == "text-to-image" else ()
    config.decoding.refuse(shape.channels)
    crops, tally = config.random_crops or 1, NO_IMAGES
    images = np.empty((len(read) * crops, shape.height, shape.width, shape.channels), dtype=np.uint8)
    with progress("reading images", len(read), "images") as advance:
        for row, image_id in enumerate(read):
            with refusing(UnreadableImage, WHY, WITHOUT_HINT):
                pixels, notes = source.decoded(position[image_id])
            tally = tally.plus(notes)
            for crop in range(crops):
                place = crop_place(config.seed, image_id, crop) if config.random_crops else None
                images[row * crops + crop] = fit(pixels, shape, config.resize is not None, f"{source.name}: {image_id}", place)
            advance(1)
    tally = tally.with_left_out([source.left_out])
    tally.refuse(source.name, config.decoding)
    labels, classes = _labels(source, [position[i] for i in read], config)
    return TrainingData(images, labels, members, nonmembers, validation, captions, classes, tally, drawn)


def _labels(source: ImageSource, rows: list[int], config: TrainConfig) -> tuple[Int64[np.ndarray, " n"] | None, dict[str, int] | None]:
    """The class of every image for a class-conditional model, and the numbers of the classes that the data names.

    All of the data names them, members or not, so that models of parts of it number them alike.
    """
    count = config.model.get("num_class_embeds")
    found = source.labels() if count else None
    if found is None or not count:
        return None, None
    own = ClassNames(names_of(found, count), "the data", closed=True)
    (numbers,), _, _ = number([Side("training images", found, source.ids, rows)], count, own)
    say_strays([found.names] if found.names else [], source.ids[0])
    return np.array([numbers[row] for row in rows], dtype=np.int64), dict(own.numbers) or None


def _captions(source: ImageSource, ids: tuple[str, ...], config: TrainConfig) -> tuple[Texts, ...]:
    """The texts of every image, all of them or its first; raises `UserError` for an image without any."""
    found, own = captions_of(source, config), config.captions in (None, "own")
    names = source.names() if own else Names.of(str(config.captions), found, source.ids)
    missing = [i for i in ids if not found.get(i)]
    if missing:
        where, hint = (source.name, "add a `text` to metadata.jsonl, or give --captions FILE") if own else (config.captions, "add them")
        first = names.beside(missing[0], None if own else "it") if names else shown(missing[0])
        without = of_them(len(missing), f"{len(ids):,}", "has", "have")
        raise UserError(f"{where} must have a caption for every image; {without} none (first: {first}): {hint}")
    say_strays([names] if names else [], source.ids[0])
    if config.diversify and all(len(texts) <= 1 for texts in found.values()):  # of all images: the halves of a defence are judged alike
        raise UserError(
            "--diversify draws one of the texts that an image has, and no image has more than one: give a --captions FILE with several "
            "(`diffleak caption` writes one), or leave it out"
        )
    return tuple(found[i] if config.diversify else found[i][:1] for i in ids)


def captions_of(source: ImageSource, config: TrainConfig) -> dict[str, Texts]:
    """The texts of every image by its id, of the data or of a file, which may hold texts of no image; none where the data has none."""
    if config.captions in (None, "own"):
        return dict(zip(source.ids, source.captions() or (), strict=False))
    file = Path(str(config.captions))
    return by_id(file, read_captions(file), source.ids, [(source.name, "")])


def crop_place(seed: int, image_id: str, number: int) -> tuple[float, float]:
    """Where a random crop lies, from (0, 0) for the top left to nearly (1, 1) for the bottom right."""
    top, left = np.random.default_rng((seed, number, *image_id.encode())).random(2)
    return float(top), float(left)


def training_shape(source: ImageSource, config: TrainConfig, channels: int | None = None) -> ImageShape:
    """The shape of the training images: of the first one, or as `--resize` says."""
    with refusing(UnreadableImage, WHY, WITHOUT_HINT):
        first = shape_of(source.read(0))
    side = config.resize
    return ImageShape(channels or int(config.model.get("in_channels", min(first.channels, 3))), side or first.height, side or first.width)


def set_aside(ids: tuple[str, ...], fraction: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The images to train on and those kept for validation, by a hash of id and seed; raises `UserError` when either is empty."""
    count = round(fraction * len(ids))
    if not 0 < count < len(ids):
        raise SettingError("validation", f"must set aside some images and leave some; got {fraction:g} of {len(ids)}, which is {count}")
    aside = set(keyed_order(ids, "validation", seed)[:count])
    return tuple(i for i in ids if i not in aside), tuple(i for i in ids if i in aside)


def _sides(source: ImageSource, config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...], Drawn | None]:
    """The members, the held-out images, and how they were drawn; of members that are fewer than were drawn, nothing is said."""
    if config.split_coin:
        return *toss(source.ids, config.seed), Drawn("coin", config.seed, 0.5)
    split = config.split or (None if config.train_size else _split_of(config.autoencoder))
    if split is None:
        return *choose_members(source.ids, config.train_size, config.seed), None
    return *read_split(split, source), None if config.validation else read_drawn(split, source)


def _split_of(autoencoder: Path | None) -> Path | None:
    """The split that an autoencoder was trained with: a denoiser of its latents is meant for the same members."""
    if autoencoder is None:
        return None
    folders = (autoencoder, *([autoencoder.parent] if autoencoder.name in AUTOENCODER_FOLDERS else []))
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
