"""Members and held-out images, each read once: their pixels, and their features where an encoder compares them."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from diffleak.data.cohort import Cohort
from diffleak.data.distinct import Distinct, Looked, distinct
from diffleak.data.fitted import FittedImages
from diffleak.data.pixels import ImageShape
from diffleak.data.scan import refuse_shared
from diffleak.errors import UserError
from diffleak.extraction.config import ExtractConfig
from diffleak.hub.encoders import BATCH, Extractor, extract
from diffleak.records.images import Tally
from diffleak.records.quality import ImageSet
from diffleak.work.progress import progress


@dataclass(frozen=True, eq=False)
class Side:
    """The images of one side in the shape that the model draws; `resized` had another one, and `omitted` could not be read."""

    cohort: Cohort
    pixels: UInt8[np.ndarray, "n h w c"]
    features: Float[np.ndarray, "n d"] | None
    looked: Looked
    described: ImageSet
    omitted: int
    tally: Tally
    resized: int

    def __len__(self) -> int:
        return len(self.cohort)


def read_sides(cohort: Cohort, shape: ImageShape, config: ExtractConfig, encoder: Extractor | None) -> tuple[Side, Side | None]:
    """Members, and held-out images where there are any.

    Raises `UserError` for an image of another shape, a damaged file that is not skipped, and an image that is on both sides.
    """
    held_out = cohort.only(~cohort.member)
    members = _read("members", cohort.names[0], cohort.only(cohort.member), shape, config, encoder)
    if not len(held_out):
        return members, None
    others = _read("held-out images", cohort.names[1], held_out, shape, config, encoder)
    both = cohort.taken(np.concatenate([_rows(cohort, side.cohort) for side in (members, others)]))
    hashes = np.concatenate([members.looked.hashes, others.looked.hashes])
    refuse_shared(both, hashes, tally_of(members, others).alike)
    return members, others


def counted_once(members: Side, held_out: Side | None) -> tuple[Distinct, Side | None]:
    """Which images count, and the held-out images that do: no drawing is made for the others.

    Raises `UserError` where none is left.
    """
    found = distinct(members.looked, held_out.looked if held_out else None)
    keep = found.counted
    if held_out is None or keep.all():
        return found, held_out
    if not keep.any():
        raise UserError(f"every held-out image ({len(held_out):,} in all) is a near-duplicate of a member; give others")
    left = replace(
        held_out,
        cohort=held_out.cohort.only(keep),
        pixels=held_out.pixels[keep],
        features=None if held_out.features is None else held_out.features[keep],
        looked=held_out.looked.only(keep),
        described=held_out.described.model_copy(update={"n": int(keep.sum())}),
    )
    return found, left


def tally_of(members: Side, held_out: Side | None) -> Tally:
    """What was found in all the real images, and left out of their folders."""
    if held_out is None:
        return members.tally.with_left_out(members.cohort.left_out[:1])
    sources = {id(source): source.left_out for source in members.cohort.sources}
    return members.tally.with_set(held_out.tally).with_left_out(sources.values())


def features_of(what: str, images: UInt8[np.ndarray, "n h w c"], encoder: Extractor) -> Float[np.ndarray, "n d"]:
    """The features of images, a batch at a time."""
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    with progress(f"features, {what}", len(images), "images") as advance:
        return extract(encoder, batches, advance).features


def _read(what: str, source: str, cohort: Cohort, shape: ImageShape, config: ExtractConfig, encoder: Extractor | None) -> Side:
    images = FittedImages(cohort, shape, config.decoding, config.resize, config.skip_unreadable)
    found = list(images)
    images.tally.refuse(source, config.decoding)
    if not found:
        raise UserError(f"there must be {what} that can be read; none of {len(cohort)} in {source} can")
    pixels, kept = np.stack(found), cohort.only(images.readable)
    features = features_of(what, pixels, encoder) if encoder else None
    described = ImageSet(source=source, n=len(kept), fingerprint=images.fingerprint)
    return Side(kept, pixels, features, images.looked, described, len(cohort) - len(kept), images.tally, images.resized)


def _rows(cohort: Cohort, part: Cohort) -> np.ndarray:
    position = {image_id: row for row, image_id in enumerate(cohort.ids)}
    return np.array([position[image_id] for image_id in part.ids], dtype=np.int64)
