"""The pass over all images before anything is scored: can each be read, does it fit, is it on one side only?"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from diffleak.data.buckets import Buckets
from diffleak.data.captions import Captions, choose_captions
from diffleak.data.cohort import Cohort
from diffleak.data.complexity import NAMES, complexity
from diffleak.data.decoding import UnreadableImage
from diffleak.data.duplicates import SIDE, Pairs, find_duplicates, sketch
from diffleak.data.features import FEATURES, image_features
from diffleak.data.labels import UNNAMED, ClassNames, Numbered
from diffleak.data.names import say_strays
from diffleak.data.pixels import ImageShape, fit, pixel_hash, shape_of, without_alpha
from diffleak.errors import UserError, of_them, one_or_more, shown
from diffleak.records.images import NO_IMAGES, Tally
from diffleak.work.progress import progress

LISTED = 5  # examples named in an error
FEWEST = 10  # images a side below which nothing can be said
HASH = 32  # bytes of a pixel hash

Hashes = UInt8[np.ndarray, "n 32"]


@dataclass(frozen=True, eq=False)
class Scan:
    """What the pass found. `cohort` holds the readable images, `shape` is what they have (or are resized to).

    `clusters` numbers the cluster of near-duplicates that each image is in, from 0 without gaps; as a rule an image is alone in its own.
    `pairs` are those that make the clusters (`diffleak.data.duplicates`).
    With buckets, images are sorted by that of each, which `shapes` says; `shape` is then the one that most images have.
    `resized` counts images of another shape than the model takes.
    """

    cohort: Cohort
    shape: ImageShape
    fingerprint: str
    features: Float64[np.ndarray, "n f"]
    complexity: Float64[np.ndarray, "n 7"]
    omitted: tuple[str, ...]
    repeated: int
    clusters: Int64[np.ndarray, " n"]
    pairs: Pairs
    labels: Numbered | None = None
    captions: Captions | None = None
    tally: Tally = NO_IMAGES
    shapes: tuple[ImageShape, ...] | None = None
    resized: int = 0

    def taken(self, rows: Int64[np.ndarray, " m"]) -> "Scan":
        """The images of some rows, all or fewer, in the order of `rows`; the clusters keep their numbers."""
        return replace(
            self,
            cohort=self.cohort.taken(rows),
            features=self.features[rows],
            complexity=self.complexity[rows],
            clusters=self.clusters[rows],
            pairs=self.pairs.taken(rows, len(self.cohort)),
            labels=replace(self.labels, numbers=self.labels.numbers[rows]) if self.labels else None,
            captions=replace(self.captions, texts=tuple(self.captions.texts[row] for row in rows)) if self.captions else None,
            shapes=tuple(self.shapes[row] for row in rows) if self.shapes else None,
        )

    def by_bucket(self, shapes: Sequence[ImageShape]) -> "Scan":
        """The same images sorted by their buckets, `shapes` in the order of the images here."""
        order = np.array(sorted(range(len(shapes)), key=lambda row: (shapes[row].height, shapes[row].width)), dtype=np.int64)
        most, sorted_shapes = Counter(shapes).most_common(1)[0][0], tuple(shapes[row] for row in order)
        return replace(self.taken(order), shape=most, shapes=sorted_shapes)


def scan(
    cohort: Cohort,
    shape: ImageShape | None,
    resize: bool,
    skip_unreadable: bool,
    classes: int | None = None,
    captions: str | None = None,
    seed: int = 0,
    names: ClassNames = UNNAMED,
    buckets: Buckets | None = None,
    otherwise: Buckets | None = None,
) -> Scan:
    """Reads every image once; raises `UserError` for what cannot be audited.

    Hashes are of the pixels that the model is given, before they are resized.

    `shape` None means that the model takes any one size; the first readable image then sets it. With `buckets` every image is brought to
    the size of its own; `otherwise` are the buckets where not all images have the shape. With `classes` every image must have a label in
    [0, classes), by the class `names` of the model; with `captions`, a choice of `choose_captions`, a caption.
    """
    takes_any = shape is None
    labels = None if classes is None else _labels(cohort, classes, names)
    told = None if captions is None else choose_captions(cohort, captions, seed)
    say_strays((labels.files if labels else ()) + (told.names if told else ()), cohort.ids[0])
    tallies = [NO_IMAGES, NO_IMAGES]  # of non-members and members
    misfits, omitted, shapes, resized = [], [], list[ImageShape](), 0
    first_error: UnreadableImage | None = None
    readable = np.ones(len(cohort), dtype=bool)
    hashes, features = np.zeros((len(cohort), HASH), dtype=np.uint8), np.zeros((len(cohort), FEATURES))
    complexities, sketches = np.zeros((len(cohort), len(NAMES))), np.zeros((len(cohort), SIDE, SIDE), dtype=np.uint8)
    with progress("checking images", len(cohort), "images") as advance:
        for i, image_id in enumerate(cohort.ids):
            advance(1)
            try:
                pixels, notes = cohort.decoded(i)
            except UnreadableImage as error:
                first_error = first_error or error
                omitted.append(f"{image_id}: {error}")
                readable[i] = False
                continue
            shape = shape or shape_of(pixels)
            side = int(cohort.member[i])
            tallies[side] = tallies[side].plus(notes)
            pixels = without_alpha(pixels, shape.channels)
            fitting = (
                replace(shape, **dict(zip(("height", "width"), buckets.size_of(*pixels.shape[:2]), strict=True))) if buckets else shape
            )
            if shape_of(pixels) != shape and not resize and not buckets:
                if otherwise is not None:
                    return scan(cohort, shape, resize, skip_unreadable, classes, captions, seed, names, otherwise)
                misfits.append(f"{shown(image_id)} is {shape_of(pixels)}")
                continue
            row = i - len(omitted)
            hashes[row] = np.frombuffer(pixel_hash(pixels), dtype=np.uint8)
            shapes.append(fitting)
            resized += shape_of(pixels) != fitting
            fitted = fit(pixels, fitting, resize or buckets is not None, image_id)
            features[row], complexities[row], sketches[row] = image_features(fitted), complexity(fitted), sketch(pixels)
    if first_error and not skip_unreadable:
        raise UserError(f"{len(omitted)} of {len(cohort)} images cannot be read (first: {first_error})")
    if shape:
        cohort.decoding.refuse(shape.channels)
    for tally, name in zip(tallies, reversed(cohort.names), strict=True):
        tally.refuse(name, cohort.decoding)
    if misfits:
        of = f"{len(cohort):,} images"
        other = (
            f"all images must have one shape; {of_them(len(misfits), of)} not {shape} as the first image is"
            if takes_any
            else f"{of_them(len(misfits), of, 'does', 'do')} not have the shape the model takes, {shape}"
        )
        raise UserError(f"{other} (first: {misfits[0]}); --resize converts them (antialiased, recorded)")
    kept = cohort.only(readable)
    hashes, features, complexities = hashes[: len(kept)], features[: len(kept)], complexities[: len(kept)]
    if cohort.member.any():
        _refuse_too_few(kept)
    tally = tallies[0].with_set(tallies[1]).with_left_out(cohort.left_out)
    tally.refuse_white(cohort.decoding)
    refuse_shared(kept, hashes, tally.alike)
    assert shape is not None
    repeated = len(hashes) - len(np.unique(_keys(hashes)))
    labels = replace(labels, numbers=labels.numbers[readable]) if labels else None
    if omitted and captions is not None:
        told = choose_captions(kept, captions, seed)
    data = fingerprint(kept, hashes, labels.numbers if labels else None, told)
    pairs, clusters = find_duplicates(sketches[: len(kept)], hashes)
    found = Scan(kept, shape, data, features, complexities, tuple(omitted), repeated, clusters, pairs, labels, told, tally, resized=resized)
    return found.by_bucket(shapes) if buckets else found


def _labels(cohort: Cohort, classes: int, names: ClassNames) -> Numbered:
    labels = cohort.labels(classes, names)
    if labels is None:
        raise UserError(
            f"the model is conditioned on one of {classes} classes, so every image needs a label; the data has none{cohort.columns()}: use "
            "a folder per class, a `label` in metadata.jsonl or a column, or an array of labels in the .npz"
        )
    return labels


def _refuse_too_few(cohort: Cohort) -> None:
    members, nonmembers = int(cohort.member.sum()), int((~cohort.member).sum())
    if min(members, nonmembers) < FEWEST:
        raise UserError(
            f"an audit needs at least {FEWEST} {cohort.calls[0]} and {FEWEST} {cohort.calls[1]}; got {members} and {nonmembers}"
        )


def refuse_shared(cohort: Cohort, hashes: Hashes, alike: str) -> None:
    """Raises `UserError` where an image is on both sides; `hashes` are of its pixels, `alike` says in words which images are equal."""
    keys = _keys(hashes)
    shared = np.flatnonzero(~cohort.member & np.isin(keys, keys[cohort.member]))
    if len(shared):
        twins = [np.flatnonzero(cohort.member & (keys == keys[row]))[-1] for row in shared[:LISTED]]
        pairs = [f"{shown(cohort.ids[twin])} = {shown(cohort.ids[row])}" for twin, row in zip(twins, shared, strict=False)]
        more = f" and {len(shared) - LISTED} more" if len(shared) > LISTED else ""
        both = one_or_more(len(shared), "image is", "images are")
        raise UserError(
            f"{' and '.join(cohort.calls)} must not share an image; {both} on both sides, {alike}: "
            f"{'; '.join(pairs)}{more}: remove {'it' if len(shared) == 1 else 'them'} from one side"
        )


def _keys(hashes: Hashes) -> np.ndarray:
    """The hashes as text of a fixed width, which compares and sorts as a whole."""
    return hashes.view(f"S{HASH}")[:, 0]


def fingerprint(cohort: Cohort, hashes: Hashes, labels: Int64[np.ndarray, " n"] | None, captions: Captions | None) -> str:
    """A hash of the ids, sides and pixels of images, and of their classes and captions where a model is given them."""
    digest = hashlib.sha256()
    for image_id, is_member, pixels in zip(cohort.ids, cohort.member, hashes, strict=True):
        digest.update(f"{image_id}\0{int(is_member)}\0{pixels.tobytes().hex()}\n".encode())
    if labels is not None:
        digest.update(labels.tobytes())
    if captions is not None:
        digest.update(json.dumps(captions.texts).encode())
    return digest.hexdigest()
