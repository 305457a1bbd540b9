"""Real images in the shape of a model's own, each read once, with a hash of what was read."""

import hashlib
from collections.abc import Iterator
from itertools import islice

import numpy as np
from jaxtyping import Bool, UInt8

from diffleak.data.cohort import Cohort
from diffleak.data.decoding import UnreadableImage
from diffleak.data.pixels import ImageShape, fit, pixel_hash, shape_of, without_alpha
from diffleak.records.images import Decoding, Tally


class FittedImages:
    """The images of a cohort one after another; afterwards what is known of them.

    After the last image `readable` marks those that could be read, `hashes` are of the pixels of these as the model is given them, before
    they are resized, `tally` counts what was done to their files, and `resized` those of another shape that were resized.
    """

    def __init__(self, cohort: Cohort, shape: ImageShape, decoding: Decoding, resize: bool, skip_unreadable: bool) -> None:
        """Raises `UserError` for a choice of how transparency is read that the model does not allow."""
        decoding.refuse(shape.channels)
        self._cohort, self._shape, self._resize, self._skip = cohort, shape, resize, skip_unreadable
        self._digest = hashlib.sha256()
        self.readable: Bool[np.ndarray, " n"] = np.ones(len(cohort), dtype=bool)
        self.hashes: list[bytes] = []
        self.tally = Tally()
        self.resized = 0

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Raises `UnreadableImage` for a damaged file that is not skipped, and `UserError` for an image of another shape."""
        for i, image_id in enumerate(self._cohort.ids):
            try:
                pixels, notes = self._cohort.decoded(i)
            except UnreadableImage:
                if not self._skip:
                    raise
                self.readable[i] = False
                continue
            self.tally = self.tally.plus(notes)
            pixels = without_alpha(pixels, self._shape.channels)
            self.hashes.append(pixel_hash(pixels))
            self._digest.update(f"{image_id}\0{self.hashes[-1].hex()}\n".encode())
            fitted = fit(pixels, self._shape, self._resize, image_id)
            self.resized += shape_of(pixels) != self._shape
            yield fitted

    def batches(self, size: int) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        """The images, `size` at a time."""
        one_by_one = iter(self)
        yield from (np.stack(batch) for batch in iter(lambda: list(islice(one_by_one, size)), []))

    @property
    def fingerprint(self) -> str:
        """A hash of the ids and pixels of the images that were read."""
        return self._digest.hexdigest()
