"""The settings of `diffleak audit`, and the images they name. No torch."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from diffleak.config import AS_NAME, BASE, Flag, ModelConfig, Name, Seed
from diffleak.data.cohort import Cohort, images_alone, one_source, two_sources
from diffleak.data.config import (
    Anonymous,
    AnonymousKey,
    DataConfig,
    IgnoreModelSplit,
    KeptDrawings,
    Resize,
    SkipUnreadable,
    Split,
    refuse_one_side,
)
from diffleak.data.enough import Sides, since
from diffleak.data.scan import FEWEST
from diffleak.data.sources import open_source
from diffleak.errors import UserError
from diffleak.gating.config import MaxAUC, MaxExcessAUC, MaxTPR
from diffleak.records.evidence import Release
from diffleak.records.variants import Sweep

Note = Annotated[str, Field(max_length=2000), AS_NAME]


class AuditConfig(ModelConfig, DataConfig):
    """Everything that decides an audit; the keys of `-C FILE` and, with dashes, the flags of `diffleak audit`."""

    FOLLOW = ["split output"]
    PANELS = {
        "Model": "guidance_scale reference sweep_models steps",
        "Attacks": "attacks timesteps sweep mask probes calibration calibrate_fraction complexity drawings",
        "Release check and report": "max_auc max_tpr max_excess_auc release allow_shift ignore_model_split title auditor note thumbnails "
        "anonymous anonymous_key",
    }
    MODELS = "model reference"
    INPUTS = {"captions": "captions"}
    PLANNED = {
        "model": "MODEL",
        "members": "set of members",
        "nonmembers": "set of held-out images",
        "n_members": "number of members",
        "n_nonmembers": "number of held-out images",
        "masks": "--mask",
        "classes": "number of classes",
        "captions_found": "number of images with a caption",
        "captions_truncated": "number of captions that are cut",
        "reference_fingerprint": "reference model",
        "anonymous": "key of the ids",
        "labels": "source of the classes",
        "label_names": "names of the classes",
        "model_code": "code of --model-from",
        "units": "choice of images that count together",
        "coarse_step": "step of --sweep coarse (none stands for 2)",
        "estimator": "estimator of influence",
        "singular_values": "method of singular values",
        "faster": "choice of --exact and --compile",
    }
    COMMAND: ClassVar[str] = "audit"
    RECORD: ClassVar[str] = "audit.json"

    guidance_scale: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Classifier-free guidance of the predictions that attacks read ({default}: none)."
    )
    reference: Name | None = Field(
        None, description="Also report what leaks beyond this model. 'base' is MODEL without its --lora and --embedding."
    )
    sweep_models: tuple[str, ...] = Field(
        (), description="More checkpoints of MODEL to audit: their folders, or a quoted pattern. --lora and --network take a pattern too."
    )
    steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="The training step of each checkpoint, in the order given; default from their headers or names."
    )
    output: Annotated[Path | None, Flag("-o")] = Field(None, description="The run folder.")
    members: Name | None = Field(None, description="DATA that the model was trained on.")
    nonmembers: Name | None = Field(None, description="Held-out DATA from the same source.")
    data: Name | None = Field(None, description="One DATA for both sides, with --split.")
    split: Split = None
    group: str | None = Field(
        None, min_length=1, description="A column of the metadata, such as person. AUC, rates and limits then count groups, not images."
    )
    attacks: tuple[str, ...] = Field(
        ("all",),
        description="all (default: every attack but gradient, noise_probe and black_box), or names such as 'sima,sima_mc(m=10)'.",
    )
    timesteps: Name | None = Field(None, description="start:stop:step, stop included; default 10:300:10, for flow matching 50:950:50.")
    sweep: Sweep = Field(
        "calibrate",
        description="calibrate (default): with 200 images or more on each side, score the test part at the chosen timesteps only. coarse: "
        "the same, but the calibrate part at every third timestep, then at those beside the best ones. all: score every image at every "
        "timestep.",
    )
    mask: tuple[str, ...] = Field(
        (),
        description="Latent models: run each attack also without the latent coordinates of a mask: influence[:0.4] leaves out those that "
        "change the image least, auto chooses the share; controls are random[:0.4] and reverse[:0.4].",
    )
    captions: Name | None = Field(
        None,
        description="Text-to-image models: the caption that the attacker uses: own (default), empty, fixed:TEXT, swapped, or a .json, "
        ".jsonl or .csv file.",
    )
    probes: int = Field(8, ge=1, description="Random probes per image that estimate the influence of latent coordinates ({default}).")
    calibration: Annotated[bool, Flag("--no-calibration")] = Field(
        True, description="Choose the settings of attacks on a calibrate part (default), or use fixed settings and test on every image."
    )
    calibrate_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of each side to choose settings on, the calibrate part ({default})."
    )
    complexity: Annotated[bool, Flag("--no-complexity")] = Field(
        True, description="Also report each attack corrected for how simple each image is, as NAME\\[calibrated] (default)."
    )
    seed: Seed = 0
    batch_size: Literal["auto"] | int = Field("auto", description="Images per forward, or auto (default).")
    chunk_size: int = Field(128, ge=1, description="Images per score file ({default}).")
    shard: str | None = Field(None, description="i/n: score the i-th of n parts of the images, to share the work between machines.")
    limit: int | None = Field(None, ge=1, description="At most this many images per side.")
    resize: Resize = False
    buckets: Name | None = Field(
        None, description="Text-to-image models: sort images of mixed sizes into kohya's aspect-ratio buckets, 512 (SD 1) or 1024 (SDXL)."
    )
    skip_unreadable: SkipUnreadable = False
    threads: int | None = Field(
        None, ge=1, description="Chunks to score in parallel, with one CPU thread each; default this worker's share of the cores."
    )
    drawings: KeptDrawings = None
    dry_run: bool = Field(
        False,
        description="Check the settings and images, run the model briefly, and print the plan and the time it will take; score nothing.",
    )
    thumbnails: bool = Field(False, description="Show pictures of the most exposed images in the report (private).")
    max_auc: MaxAUC = None
    max_tpr: MaxTPR = None
    max_excess_auc: MaxExcessAUC = None
    release: Release | None = Field(
        None, description="What outsiders will get: weights (default, the most cautious), api or images. The answer is for this form."
    )
    title: Note | None = Field(None, description="Title or reference number, for the report.")
    auditor: Note | None = Field(None, description="Name of the auditor, for the report.")
    note: Note | None = Field(None, description="A note, for the report.")
    allow_shift: bool = Field(
        False, description="Show results even if the two sides can be told apart without the model; exit 0 then, not 4."
    )
    ignore_model_split: IgnoreModelSplit = False
    anonymous: Anonymous = False
    anonymous_key: AnonymousKey = None

    @field_validator("attacks", "sweep_models", mode="before")
    @classmethod
    def _split_attacks(cls, value: Any) -> Any:
        if isinstance(value, str):
            return _outside_brackets(value)
        return tuple(part for item in value for part in _outside_brackets(str(item))) if isinstance(value, list | tuple) else value

    @field_validator("mask", "steps", mode="before")
    @classmethod
    def _split_masks(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else (value,) if type(value) is int else value

    @field_validator("batch_size", mode="before")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and not (str(value).isdecimal() and int(value) >= 1):
            raise ValueError("must be 'auto' or a whole number of at least 1")
        return value

    @property
    def two_sided(self) -> bool:
        """True where members and held-out images are given, and not just images."""
        return bool(self.members or self.split)

    @property
    def known(self) -> bool:
        """True where it is said which images were trained on."""
        return self.two_sided

    @property
    def fewest_groups(self) -> dict[str, int]:
        """How many groups of either side there must be, by what messages call them."""
        return {"groups of members": FEWEST, "held-out groups": FEWEST}

    @property
    def fewest(self) -> Sides:
        """How many images of either side there must be, near-duplicates counted once."""
        return FEWEST, FEWEST

    @property
    def across(self) -> bool:
        """True where an image counts although it is a near-duplicate of one on the other side."""
        return True

    def refuse_few(self, left: Sides, files: Sides) -> None:
        """Raises `UserError` where a side has too few images; left: how many count, files: how many there are."""
        if min(left) < FEWEST:
            raise UserError(
                f"an audit needs at least {FEWEST} members and {FEWEST} held-out images; got {left[0]:,} and {left[1]:,}"
                f"{since(left, files)}: add more"
            )

    def default_captions(self, images: Cohort) -> str:
        """The choice of captions for a text-to-image model where none is made."""
        return "own"

    @model_validator(mode="after")
    def _one_way_of_sizing(self) -> "AuditConfig":
        if self.buckets is not None and (self.resize or self.anonymous):
            what = "--resize brings all to one size" if self.resize else "--anonymous must not show the sizes of images by their order"
            raise ValueError(f"{what}, and --buckets sorts images by theirs: leave out one of them")
        return self

    @model_validator(mode="after")
    def _models_alone(self) -> "AuditConfig":
        if self.reference == BASE and self.lora is None and self.embedding is None:
            raise ValueError(f"--reference {BASE} is the model without its LoRA, so it needs --lora or --embedding; otherwise name a model")
        if self.reference is not None and self.mask:
            raise ValueError("a reference is not compared under masks: leave out --reference, or --mask")
        if self.max_excess_auc is not None and self.reference is None:
            raise ValueError("--max-excess-auc limits what leaks beyond a reference, and none is given: add --reference")
        return self

    @model_validator(mode="after")
    def _no_names(self) -> "AuditConfig":
        self.check_anonymous()
        return self

    @model_validator(mode="after")
    def _two_sides(self) -> "AuditConfig":
        refuse_one_side(self.members, self.nonmembers, self.data, self.split)
        return self


class GeometryConfig(AuditConfig):
    """The settings of `diffleak geometry`: those of an audit, but images alone will do, and attacks run under many masks."""

    COMMAND = "geometry"
    FAST = False  # small singular values need all digits
    NO_FLAG = {
        *("buckets", "sweep_models", "steps", "group", "sweep", "drawings"),
        *("guidance_scale", "reference", "calibration", "calibrate_fraction", "complexity", "max_auc", "max_tpr", "max_excess_auc"),
    }
    FOLLOW = ["embedding data split members nonmembers output", "probes top attacks mask timesteps"]
    HELP = {
        "model": "A latent model: a diffusers folder, a hub id, or one file.",
        "fast": "On NVIDIA GPUs use TF32 and channels last: faster, right to three digits. Default: neither (--exact).",
        "data": "The images. --split says which of them are members.",
        "output": "The output folder.",
        "chunk_size": "Images per file ({default}).",
        "shard": "i/n: do the i-th of n parts of the work.",
        "limit": "At most this many images (per side).",
        "threads": "Chunks to work on in parallel, with one CPU thread each.",
        "thumbnails": "Show images in the report.",
    }

    attacks: tuple[str, ...] = Field(
        ("sima", "secmi", "pia", "loss", "loss_frequency", "pia_frequency"), description="Attacks to relate to the geometry."
    )
    mask: tuple[str, ...] = Field(
        (*(f"influence:0.{i}" for i in range(1, 10)), "random:0.4", "reverse:0.4", "reverse:0.9"),
        description="Masks to run the attacks under.",
    )
    complexity: bool = False
    sweep: Literal["all"] = "all"  # its curves are of the test part
    top: int = Field(20, ge=1, description="Number of singular values that make up the distortion ({default}).")

    @model_validator(mode="before")
    @classmethod
    def _images_alone(cls, given: Any) -> Any:
        """Without two sides nothing is attacked, and nothing is measured of groups."""
        if given.get("group") is not None:
            raise ValueError("the geometry is of images, and group counts groups of them: leave it out, or run audit --group COLUMN")
        alone = given.get("data") and not any(given.get(key) for key in ("split", "members", "nonmembers"))
        of_attacks = ("attacks", "mask", "captions", "reference", "lora", "lora_scale", "network", "weights", "embedding")
        useless = [key for key in of_attacks if given.get(key)] if alone else []
        if useless:
            raise ValueError(
                f"without --split or --nonmembers nothing is attacked; leave out --{useless[0].replace('_', '-')}, or say who is a member"
            )
        return {**given, "attacks": (), "mask": (), "calibration": False} if alone else given

    @model_validator(mode="after")
    def _two_sides(self) -> "GeometryConfig":
        if not (self.data or self.split or self.members or self.nonmembers):
            raise ValueError("the geometry is of images: give --data DATA, or two sides as --members and --nonmembers")
        if not self.data or self.split or self.members or self.nonmembers:
            refuse_one_side(self.members, self.nonmembers, self.data, self.split)
        return self


def read_cohort(config: AuditConfig) -> Cohort:
    """The images of a config: a pair of sources, one with a split file, or for their geometry one alone."""
    if config.data and not config.two_sided:
        return images_alone(open_source(config.data, config.decoding), config.limit, config.seed)
    if config.data and config.split:
        return one_source(open_source(config.data, config.decoding), config.split, config.limit, config.seed)
    members, nonmembers = (open_source(data or "", config.decoding) for data in (config.members, config.nonmembers))
    return two_sources(members, nonmembers, config.limit, config.seed)


def _outside_brackets(text: str) -> tuple[str, ...]:
    """Splits at the commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part.strip() for part in parts if part.strip())
