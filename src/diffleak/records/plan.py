"""What an audit is made with: the plan that a run folder belongs to, the division, the environment and the costs. No torch."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from diffleak.records.base import SCHEMA_VERSION, Record, Version
from diffleak.records.images import Alpha, Exif
from diffleak.records.scores import Unit
from diffleak.records.variants import CoarseStep, Estimator, SingularValues, Sweep

FIXED = "fixed:"  # begins the choice of one caption for all images


def _with_label(attack: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(attack.get("attack"), str):
        raise ValueError("each attack must have its label, a text, as `attack`")
    return attack


class Adapter(Record):
    """One of the adapters that were merged into the model, in the order in which they were merged."""

    name: str
    """The adapter as the user named it: a file, a folder or a name on the Hub."""
    strength: float
    """Its own factor, to be multiplied with that of all adapters, `lora_scale`."""
    sha256: str
    """SHA-256 of its file."""


def one_for_all(captions: str) -> bool:
    """True for a choice of captions that gives every image the same one."""
    return captions == "empty" or captions.startswith(FIXED)


class Embedding(Record):
    """One of the textual inversions that were added to the model's text encoders."""

    name: str
    """The embedding as the user named it: a file, a folder or a name on the Hub."""
    token: str
    """The word in captions that stands for it."""
    vectors: int
    """Number of vectors, each of which takes the place of one token."""
    sha256: str
    """SHA-256 of its file."""


class OfDrawings(Record):
    """What a record of images that a model drew begins with."""

    schema_version: Literal[1] = 1
    """Version of these fields."""
    created: str
    """Time in UTC at which the record was written, as ISO 8601."""
    command: str
    """Command line that repeats it; that of `extract` draws image N again with `--only N`."""
    model: str
    """The model as the user named it: a folder, a name on the Hub, or `denoiser` for one in memory."""
    model_fingerprint: str
    """Hash of the model's weights and settings."""
    lora: str | None = None
    """The LoRA adapter, or several, as the user named them; null without one."""
    lora_scale: float | None = None
    """Factor of the adapter's weights; null without one."""
    adapters: tuple[Adapter, ...] = ()
    """Each adapter in `lora` with its strength and hash, in the order of merging; empty without one."""
    embedding: str | None = None
    """The textual inversions as the user named them; null without one."""
    embeddings: tuple[Embedding, ...] = ()
    """Each textual inversion in `embedding` with its token and hash; empty without one."""
    network: str | None = None
    """The denoiser in the place of the model's own, as the user named it; null without one."""
    weights: str | None = None
    """Choice between averaged weights, `ema`, and the others, `non_ema`; null where none was made."""


class Environment(Record):
    """Where the numbers come from."""

    diffleak: Version
    """Version of this package."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor, as Python names them."""
    packages: dict[str, str]
    """Version of each package that decides numbers, by its name; packages that are not installed are left out."""
    device: str
    """Device that the model ran on, such as `cpu` or `cuda:0`."""
    device_name: str
    """Name of the processor or accelerator, as it gives it."""
    dtype: str
    """Precision of the model's weights, such as `float32`."""
    threads: int
    """Number of chunks, or batches of images, computed side by side."""
    seed: int
    """Seed of every random draw."""
    model_fingerprint: str
    """Hash of the model's weights and settings."""
    data_fingerprint: str
    """Hash of the ids and pixels of the images."""
    faster: tuple[str, ...] | None = None
    """Ways by which forwards are faster and right to some digits only, such as `tf32`, `channels_last` and `compiled`; null for none."""


class Split(Record):
    """How the images were divided into a calibrate and a test part."""

    calibrate_fraction: float
    """Share of each side in the calibrate part, in [0, 1); 0 without calibration."""
    seed: int
    """Seed of the division, which goes by id."""
    repeats: int
    """Number of divisions; above 1 every number is the median over them."""
    members: int
    """Number of members in both parts."""
    nonmembers: int
    """Number of held-out images in both parts."""
    calibrate_members: int
    """Number of members in the calibrate part of the first division."""
    calibrate_nonmembers: int
    """Number of held-out images in the calibrate part of the first division."""
    unit: Unit = "image"
    """What all of these numbers count: images, clusters of near-duplicate images, or groups of images."""


class Costs(Record):
    """What the scoring took, all workers together."""

    queries: int
    """Denoiser forwards of one image each that were made."""
    queries_saved: int = 0
    """Forwards of one image each that were not made, since another attack had made the same."""
    queries_read: int = 0
    """Forwards of one image each that were not made, since what they draw was read from a folder of drawings."""
    seconds: float
    """Wall-clock seconds of each chunk, which may have run side by side, and of the evaluation, summed."""
    chunks: int
    """Number of score files: chunks of images times attacks."""
    sweep: Sweep = "all"
    """What was scored at every timestep: "calibrate" the calibrate part alone, "all" all images; "coarse" is the calibrate part at
    some timesteps and beside the best."""
    between_timesteps: dict[str, tuple[int, ...]] | None = None
    """Timesteps, in [0, T), beside the best ones, that the calibrate part was scored at in a job of its own, by the label of each attack
    where that saves forwards; null unless `sweep` is "coarse"."""
    test_timesteps: dict[str, tuple[int, ...]] | None = None
    """Timesteps, in [0, T), that the test part was scored at, by the label of each attack that sweeps; null where all of them were."""
    halved_to: int | None = None
    """Fewest images that were scored, or drawn for a score, at once after memory ran out; null where it never did."""


class Plan(Record):
    """All that decides the scores of a run. A run folder belongs to one plan."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    """Version of these fields; 1 is read too."""
    diffleak: Version
    """Version of this package that made the plan."""
    model: str
    """The model as the user named it: a folder, a name on the Hub, or `denoiser` for one in memory."""
    model_fingerprint: str
    """Hash of the model's weights and settings."""
    members: str
    """Where the members come from, in words."""
    nonmembers: str
    """Where the held-out images come from, in words."""
    data_fingerprint: str
    """Hash of the ids and pixels of the images."""
    n_members: int
    """Number of members."""
    n_nonmembers: int
    """Number of held-out images."""
    image_shape: str
    """Height x width in pixels, and grey, RGB or RGBA."""
    resize: bool
    """True where images were resized and cropped to `image_shape`."""
    attacks: tuple[Annotated[dict[str, Any], AfterValidator(_with_label)], ...]
    """Label, parameters and timesteps (in [0, T)) of each attack."""
    calibration: bool
    """False where there is no calibrate part."""
    calibrate_fraction: float
    """Share of each side in the calibrate part, in (0, 1)."""
    seed: int
    """Seed of every random draw."""
    batch_size: int
    """Number of images in a forward."""
    chunk_size: int
    """Number of images in a score file, a multiple of `batch_size`."""
    dtype: str
    """Precision of the model's weights, such as `float32`."""
    device: str
    """Kind of device that the model runs on, such as `cpu` or `cuda`."""
    masks: tuple[str, ...] = ()
    """Labels of the masks of the latents; empty for none."""
    probes: int | None = None
    """Number of random probes that estimate influence; null without masks and without geometry."""
    top: int | None = None
    """Number of singular values in the distortion of an image; null without geometry."""
    classes: int | None = None
    """Number of classes of a class-conditional model; null for others."""
    captions: str | None = None
    """Choice of captions that a text-to-image model is given, such as `own`; null for others."""
    captions_found: int | None = None
    """Number of images that have a caption; null for other models."""
    captions_truncated: int | None = None
    """Number of captions longer than the text encoder reads; null for other models."""
    lora: str | None = None
    """The LoRA adapter, or several, as the user named them; null without one."""
    lora_scale: float | None = None
    """Factor of the adapter's weights; null without one."""
    embedding: str | None = None
    """The textual inversions as the user named them; null without one."""
    network: str | None = None
    """The denoiser in the place of the model's own, as the user named it; null without one."""
    weights: str | None = None
    """Choice between averaged weights, `ema`, and the others, `non_ema`; null where none was made."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance in the denoiser that attacks ask; null without guidance."""
    reference: str | None = None
    """The reference model as the user named it; null without one."""
    reference_fingerprint: str | None = None
    """Hash of the reference's weights and settings; null without one."""
    anonymous: str | None = None
    """Name of the key of the ids; null where ids are file names."""
    labels: str | None = None
    """Where the classes of the images come from, in words; null without classes."""
    label_names: dict[str, int] | None = None
    """Number of each class by its name; null where classes have no names, and in an anonymous run."""
    exif: Exif = "apply"
    """Orientation of photos: "apply" turns every image upright, "ignore" reads it as it is stored."""
    alpha: Alpha = "drop"
    """Transparent images: "drop" keeps their colours, "white" and "black" lay them on that colour."""
    model_from: str | None = None
    """Function of the user's own that made the model, as package.module:function; null for a model that was loaded."""
    model_code: str | None = None
    """Hash of the source of its module; null without one."""
    white: int | None = None
    """Value that is white in grey images of more than 8 bits; null for the largest that the file allows."""
    group: str | None = None
    """Column of the metadata whose values say which images count together; null where none was named."""
    units: str | None = None
    """Hash of which images count together as one group or cluster of near-duplicates; null where each counts alone."""
    sweep: Sweep = "all"
    """What is scored at every timestep: "calibrate" the calibrate part alone, "all" all images; "coarse" is the calibrate part at
    some timesteps and beside the best."""
    coarse_step: CoarseStep | None = None
    """With a `sweep` of "coarse": the calibrate part is scored at every so many timesteps first; null: at every second one, as in plans of
    before, or `sweep` is another."""
    estimator: Estimator | None = None
    """How influence is estimated from the probes: "filtered", the noise of their mean taken out over neighbouring coordinates; null:
    their mean alone, as in plans of before, or no influence is measured."""
    singular_values: SingularValues | None = None
    """How the singular values of distortion are found: "krylov", by products that build on one another; null: by randomized SVD, as in
    plans of before, or no distortion is measured."""
    buckets: tuple[tuple[str, int], ...] | None = None
    """Shape and number of images of every aspect-ratio bucket, in the order of the images; null where all have one shape."""
    faster: tuple[str, ...] | None = None
    """Ways by which forwards are faster and right to some digits only, such as `tf32`, `channels_last` and `compiled`; null for none."""
