"""Sets of images to features, each image read once, with a hash of what was read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from diffleak.data.cohort import Cohort
from diffleak.data.distinct import Looked
from diffleak.data.fitted import FittedImages
from diffleak.data.pixels import ImageShape
from diffleak.errors import UserError, one_or_more
from diffleak.hub.encoders import BATCH, Extractor, Features, extract
from diffleak.quality.config import QualityConfig, source_name
from diffleak.records.images import Tally
from diffleak.records.quality import ImageSet
from diffleak.work.progress import progress


class Both(NamedTuple):
    """The features of a set: of the extractor, and those that copies are found with, which are the same without --copy-encoder."""

    plain: Features
    for_copies: Float[np.ndarray, "n d"]


@dataclass(frozen=True, eq=False)
class RealSet:
    """One set of real images, read once; `omitted` could not be read, `resized` had another shape."""

    cohort: Cohort
    fingerprint: str
    looked: Looked
    features: Both
    omitted: int
    tally: Tally
    resized: int = 0

    @property
    def hashes(self) -> frozenset[bytes]:
        """Those of the pixels, each once."""
        return frozenset(map(bytes, self.looked.hashes))

    @property
    def described(self) -> ImageSet:
        return ImageSet(source=source_name(self.cohort), n=len(self.cohort), fingerprint=self.fingerprint)


def read_set(role: str, cohort: Cohort, shape: ImageShape, config: QualityConfig, encoders: tuple[Extractor, Extractor]) -> RealSet:
    """Reads every image once, for its hash and its features. Raises `UserError` where nothing says which value is white."""
    images = FittedImages(cohort, shape, config.decoding, config.resize, config.skip_unreadable)
    with cohort.pointing_to_names("the same without --anonymous, --scores and -o"):
        features = features_of(role, len(cohort), images.batches(BATCH), encoders)
    images.tally.refuse(source_name(cohort), config.decoding)
    kept = cohort.only(images.readable)
    return RealSet(kept, images.fingerprint, images.looked, features, len(cohort) - len(kept), images.tally, images.resized)


def features_of(role: str, n: int, batches: Iterator[UInt8[np.ndarray, "b h w c"]], encoders: tuple[Extractor, Extractor]) -> Both:
    """The features of a set under the extractor, and under the encoder that looks for copies."""
    first, second = encoders
    others: list[np.ndarray] = []

    def seen_by_both() -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        for images in batches:
            if second is not first:
                others.append(extract(second, [images]).features)
            yield images

    with progress(f"features, {role}", n, "images") as advance:
        plain = extract(first, seen_by_both(), advance)
    return Both(plain, np.concatenate(others) if others else plain.features)


def cut(images: UInt8[np.ndarray, "n h w c"]) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    yield from (images[start : start + BATCH] for start in range(0, len(images), BATCH))


def refuse_shared(reference: RealSet, training: RealSet | None, split: bool) -> None:
    """The threshold of the copy rate comes from images that the model has not seen; split: --split says which are which."""
    shared = len(reference.hashes & training.hashes) if training else 0
    if shared:
        them = "it" if shared == 1 else "them"
        way = f"remove {them} from one side of --split" if split else f"remove {them} from the reference, or leave out --training"
        raise UserError(
            f"reference and training must not share an image; {one_or_more(shared, 'is', 'are')} in both, "
            f"{tally_of(reference, training).alike}: {way}"
        )


def tally_of(reference: RealSet, training: RealSet | None) -> Tally:
    """What was found in all the real images, and left out of their folders."""
    if training is None:
        return reference.tally.with_left_out(reference.cohort.left_out[:1])
    sources = {id(each.cohort.sources[0]): each.cohort.sources[0].left_out for each in (reference, training)}
    return reference.tally.with_set(training.tally).with_left_out(sources.values())
