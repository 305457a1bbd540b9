"""A look at all images of a cohort that refuses none: which can be read, their sizes, and who is a copy of whom."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from diffleak.data.cohort import Cohort
from diffleak.data.decoding import SKIP_HINT, UnreadableImage
from diffleak.data.duplicates import SIDE, Duplicates, find_duplicates, sketch
from diffleak.data.pixels import ImageShape, pixel_hash, shape_of, without_alpha
from diffleak.records.images import NO_IMAGES, Tally
from diffleak.work.progress import progress


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found. `cohort` holds the readable images, and everything else is in their order.

    Hashes are of colours without alpha, which next to no model takes, as those of an audit's scan are.
    """

    cohort: Cohort
    shapes: tuple[ImageShape, ...]
    hashes: UInt8[np.ndarray, "n 32"]
    duplicates: Duplicates
    unreadable: tuple[str, ...]
    """One line for each image that cannot be read: its id and the reason."""
    tally: Tally
    """What was done to the images, and what was left out of their folders."""


def survey(cohort: Cohort) -> Survey:
    """Reads every image once."""
    n, tally, unreadable, shapes = len(cohort), NO_IMAGES, list[str](), list[ImageShape]()
    readable = np.ones(n, dtype=bool)
    hashes, sketches = np.zeros((n, 32), dtype=np.uint8), np.zeros((n, SIDE, SIDE), dtype=np.uint8)
    with progress("reading images", n, "images") as advance:
        for row, image_id in enumerate(cohort.ids):
            advance(1)
            try:
                pixels, notes = cohort.decoded(row)
            except UnreadableImage as error:
                unreadable.append(f"{image_id}: {str(error).removesuffix(SKIP_HINT)}")
                readable[row] = False
                continue
            place, tally = len(shapes), tally.plus(notes)
            shapes.append(shape_of(pixels))
            hashes[place], sketches[place] = np.frombuffer(pixel_hash(without_alpha(pixels, 3)), dtype=np.uint8), sketch(pixels)
    kept = cohort.only(readable)
    hashes = hashes[: len(kept)]
    found = find_duplicates(sketches[: len(kept)], hashes)
    return Survey(kept, tuple(shapes), hashes, found, tuple(unreadable), tally.with_left_out(cohort.left_out))
