"""Real images in the shape of a model's own, each read once, with a hash of what was read."""

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from diffleak.data.cohort import Cohort
from diffleak.data.decoding import UnreadableImage
from diffleak.data.distinct import Looked
from diffleak.data.duplicates import SIDE, sketch
from diffleak.data.pixels import ImageShape, fit, pixel_hash, shape_of, without_alpha
from diffleak.records.images import Decoding, Notes, Tally
from diffleak.work.ahead import READERS, in_order
from diffleak.work.threads import cores

AHEAD = 64  # images that are read ahead, at most


class _Fitted(NamedTuple):
    """One image in the shape of the model's own, and what its file says."""

    pixels: UInt8[np.ndarray, "h w c"]
    hash: bytes
    sketch: UInt8[np.ndarray, "16 16"]
    notes: Notes
    resized: bool


class FittedImages:
    """The images of a cohort one after another; afterwards what is known of them.

    After the last image `readable` marks those that could be read, `hashes` and `sketches` are of the pixels of these as the model is given
    them, before they are resized, as those of an audit are; `tally` counts what was done to their files, and `resized` those of another
    shape that were resized.
    """

    def __init__(self, cohort: Cohort, shape: ImageShape, decoding: Decoding, resize: bool, skip_unreadable: bool) -> None:
        """Raises `UserError` for a choice of how transparency is read that the model does not allow."""
        decoding.refuse(shape.channels)
        self._cohort, self._shape, self._resize, self._skip = cohort, shape, resize, skip_unreadable
        self._digest = hashlib.sha256()
        self.readable: Bool[np.ndarray, " n"] = np.ones(len(cohort), dtype=bool)
        self.hashes: list[bytes] = []
        self.sketches: list[UInt8[np.ndarray, "16 16"]] = []
        self.tally = Tally()
        self.resized = 0

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Raises `UnreadableImage` for a damaged file that is not skipped, and `UserError` for an image of another shape."""
        threads = min(READERS, cores()) if self._cohort.side_by_side else 1
        reads = [partial(self._read, row) for row in range(len(self._cohort))]
        for row, found in enumerate(in_order(reads, threads, AHEAD)):
            if found is None:
                self.readable[row] = False
                continue
            self.tally = self.tally.plus(found.notes)
            self.hashes.append(found.hash)
            self.sketches.append(found.sketch)
            self._digest.update(f"{self._cohort.ids[row]}\0{found.hash.hex()}\n".encode())
            self.resized += found.resized
            yield found.pixels

    def _read(self, row: int) -> "_Fitted | None":
        """One image, of which nothing but the file counts; None for a damaged file that is skipped."""
        try:
            pixels, notes = self._cohort.decoded(row)
        except UnreadableImage:
            if not self._skip:
                raise
            return None
        pixels = without_alpha(pixels, self._shape.channels)
        fitted = fit(pixels, self._shape, self._resize, self._cohort.ids[row])
        return _Fitted(fitted, pixel_hash(pixels), sketch(pixels), notes, shape_of(pixels) != self._shape)

    def batches(self, size: int) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        """The images, `size` at a time."""
        one_by_one = iter(self)
        yield from (np.stack(batch) for batch in iter(lambda: list(islice(one_by_one, size)), []))

    @property
    def looked(self) -> Looked:
        """What near-duplicates of the images that were read are found by."""
        n = len(self.hashes)
        keys = tuple(key for key, read in zip(self._cohort.keys, self.readable, strict=True) if read)
        hashes = np.frombuffer(b"".join(self.hashes), dtype=np.uint8).reshape(n, 32)
        return Looked(keys, np.array(self.sketches, dtype=np.uint8).reshape(n, SIDE, SIDE), hashes)

    @property
    def fingerprint(self) -> str:
        """A hash of the ids and pixels of the images that were read."""
        return self._digest.hexdigest()
