"""extract.json: how near a model's drawings come to its training images, pair by pair, and which are copies. No torch.

Field names are the keys of extract.json; changing one needs a step of its version and a line in the changelog. What cannot be
estimated is null, with the reason beside it.
"""

from pathlib import Path
from typing import Any

from diffleak.records.audit import Membership
from diffleak.records.base import Estimate, Record, read_json
from diffleak.records.images import Alpha, Exif, Tally
from diffleak.records.plan import Environment, OfDrawings
from diffleak.records.quality import ONE_BY_ONE, ImageSet

FILE = "extract.json"
PAGE = "extract.html"
PAIRS = "pairs"
TILES = "tiles"  # the name of the tiled pixel distance


class CopyRates(Record):
    """Copies by one distance: an image has a copy if it is nearer to a drawing than `threshold`."""

    distance: str
    """Name of the distance: "tiles" of pixels, in [0, 1], or that of an encoder, 1 minus a cosine, in [0, 2]."""
    fingerprint: str
    """Hash of the encoder's weights, or the number of tiles."""
    threshold: float | None
    """Distance in [0, 2] below which an image has a copy, set by the calibrate part of the held-out images; null with too few."""
    copies: int | None
    """Number of members with a copy, near-duplicates counted once; null without a threshold."""
    copy_rate: Estimate
    """Share of the members with a copy, near-duplicates counted once, in [0, 1]."""
    held_out_rate: Estimate
    """Share of the other held-out images with what would count as a copy, in [0, 1]; these set no threshold."""
    chance: float | None
    """Probability of as many copies of members or more if members are like held-out images, in [0, 1]; null without a threshold."""
    closest: float
    """Distance of the member nearest to a drawing, in [0, 2]."""
    closest_held_out: float | None
    """Distance of the held-out image nearest to a drawing, of both parts, in [0, 2]; null without held-out images."""


class Pair(Record):
    """A member and the drawing that is nearest to it, by the distance that decides."""

    id: str
    """Id of the member; keyed in an anonymous run."""
    counted_as: str | None = None
    """Id of the near-duplicate that counts for this member; null for a member that counts itself."""
    image: int
    """Number of the drawing among all, from 0: `--only` draws it again."""
    draw: int
    """Number of the drawing among those for this caption, from 0; among all for a model without captions."""
    seed: int
    """Seed of the drawing."""
    prompt: str | None
    """Caption that the drawing was made for; null for a model without captions, and in an anonymous run."""
    label: int | None
    """Class that the drawing was made for, in [0, number of classes); null for a model without classes."""
    distances: dict[str, float]
    """Every distance of this member and this drawing by its name; 0 is equal, and the tiled one lies in [0, 1]."""
    p_value: float | None
    """Conformal p-value by the distance that decides, in (0, 1], small where few held-out images are as near; null without these."""
    is_copy: bool | None
    """True where the p-value is at most `false_copies`; null where the held-out images are too few for that, or none."""


class ExtractCosts(Record):
    """What the search took."""

    forwards: int
    """Denoiser forwards of one image each that were made for the drawings."""
    drawings_read: int = 0
    """Number of drawings that were read from a folder of drawings; no forwards were made for them."""
    seconds_drawing: float
    """Wall-clock seconds of drawing in this call; drawings of earlier calls are not in it."""
    seconds_comparing: float
    """Wall-clock seconds of everything else in this call."""


class ExtractionRecord(OfDrawings):
    """extract.json."""

    images: int
    """Number of drawings in all."""
    draws: int | None
    """Number of drawings for each caption, among which an image's nearest one is found; null where every image has all drawings."""
    image_shape: str
    """Height x width in pixels, and grey, RGB or RGBA."""
    sampler: str
    """Name of the sampler that drew the images."""
    steps: int
    """Sampling steps of an image."""
    seed: int
    """Seed of every random draw."""
    guidance_scale: float | None
    """Scale of classifier-free guidance in drawing; null without guidance."""
    captions: str | None
    """Choice of captions: "own", "empty", "fixed:TEXT" or a file; null for a model without captions."""
    classes: str | None
    """Which classes were drawn, in words; null for a model without classes."""
    members: ImageSet
    """Images that the model was trained on."""
    held_out: ImageSet | None
    """Images that it was not trained on; null without them."""
    distinct_members: int | None = None
    """Number of members that count: of near-duplicates one; null in records of earlier versions, where all count."""
    near_duplicates: int = 0
    """Number of held-out images that were left out, since each is a near-duplicate of a member."""
    near_duplicates_held_out: int = 0
    """Number of held-out images that were left out, since each is a near-duplicate of another one that counts."""
    calibrate: int
    """Number of held-out images that set the thresholds; the others are counted."""
    false_copies: float
    """Share of held-out images that may count as copies, in (0, 0.5]: thresholds are set for it."""
    decides: str
    """Name of the distance that says which drawing is nearest and which pair is a copy."""
    copy_rate: Estimate
    """Share of the members with a copy by the distance that decides, near-duplicates counted once, in [0, 1]."""
    held_out_rate: Estimate
    """The same share of the held-out images that set no threshold, in [0, 1]."""
    distances: tuple[CopyRates, ...]
    """Copies by every distance, each with a nearest drawing and a threshold of its own; the one that decides first."""
    pairs: tuple[Pair, ...]
    """Every member with its nearest drawing, the most similar pair first."""
    warnings: tuple[str, ...]
    """What a reader must know of the numbers, a sentence each."""
    environment: Environment
    """Where the numbers come from."""
    costs: ExtractCosts
    """What the search took."""
    membership: Membership
    """What the model's own split.json says of members and held-out images."""
    anonymous: str | None = None
    """Name of the key of the ids; null where ids are file names."""
    settings: dict[str, Any]
    """Every setting of the search by its name."""
    exif: Exif
    """Orientation of photos: "apply" turns every image upright, "ignore" reads it as it is stored."""
    alpha: Alpha
    """Transparent images: "drop" keeps their colours, "white" and "black" lay them on that colour."""
    white: int | None
    """Value that is white in grey images of more than 8 bits; null for the largest that the file allows."""
    real_images: Tally
    """What reading the real images' files changed, counted."""

    @property
    def decisive(self) -> CopyRates:
        """Copies by the distance that decides."""
        return self.distances[0]

    def reproduce(self, pair: Pair) -> str:
        """The command line that makes the drawing of a pair again, or the call in Python where no command names its images."""
        if not self.command.startswith("diffleak extract "):
            return f"{self.command}: drawing {pair.image} of its .drawings"
        return f"{self.command} --only {pair.image}"


def read_extraction(path: Path) -> ExtractionRecord:
    """The record in an extract.json, with a warning where an earlier version counted otherwise.

    Raises `UserError` for a file that holds none.
    """
    record = read_json(path, ExtractionRecord, must="must be an extract.json as `diffleak extract` writes it", advice="repeat that command")
    said = counted_one_by_one(record.distinct_members, record.copy_rate)
    return record.model_copy(update={"warnings": (*record.warnings, said)}) if said else record


def counted_one_by_one(distinct_members: int | None, copy_rate: Estimate) -> str | None:
    """Says that copies count each near-duplicate, and how to count them anew; None where they do not, or are not counted."""
    if distinct_members is not None or copy_rate.value is None:
        return None
    return f"copy rates and their probability by chance are {ONE_BY_ONE}: repeat the extract command with another -o"
