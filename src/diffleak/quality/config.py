"""The settings of `diffleak quality`, and the real images they name. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffleak.config import Flag, ModelConfig, Seed, Text, command_line
from diffleak.data.anonymity import Key
from diffleak.data.cohort import Cohort, images_alone, one_source
from diffleak.data.config import Anonymous, AnonymousKey, DataConfig, IgnoreModelSplit, Resize, SkipUnreadable, Split
from diffleak.data.sources import open_source
from diffleak.errors import UserError

FEWEST = 10  # reference images below which no statistic says anything


class QualityConfig(ModelConfig, DataConfig):
    """Everything that decides `diffleak quality`; the keys of `-C FILE` and, with dashes, its flags."""

    DATA = "reference training data"
    INPUTS = {"captions": "captions", "prompts": "file", "clip": "hub", "extractor": "encoder", "copy_encoder": "encoder"}
    FOLLOW = ["scores seed batch_size"]

    reference: Annotated[Text | None, Flag("--real")] = Field(None, description="Real DATA to compare with, normally held out.")
    training: Text | None = Field(None, description="DATA that the model was trained on: look for copies of it.")
    data: Text | None = Field(None, description="One DATA for both, with --split.")
    split: Split = None
    output: Annotated[Path | None, Flag("-o")] = Field(
        None, description="Folder of quality.json, quality.html and the images; it may be that of an audit."
    )
    images: int = Field(2048, description="Images to draw ({default}).")
    steps: int = Field(50, description="Sampler steps per drawing ({default}).")
    sampler: Literal["ddim", "ddpm", "dpm"] = Field("ddim", description="The sampler: {default} (default), ddpm or dpm.")
    seed: Seed = 0
    rounds: int = Field(
        1,
        description="For DualMD: how often each image is drawn, with noise added in between, as an attacker who knows of the two models "
        "does ({default}: once).",
    )
    captions: Text | None = Field(
        None, description="Text-to-image models: the captions to draw: own (those of the real images, default), fixed:TEXT or a file."
    )
    prompts: Path | None = Field(
        None, description="Text-to-image models: draw these prompts instead, a file with one per line, or a .json, .jsonl or .csv."
    )
    guidance_scale: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Classifier-free guidance while drawing (7.5); 1 is none."
    )
    clip: Text | None = Field(None, description="The CLIP model of the CLIP score: a hub id or folder (openai/clip-vit-large-patch14).")
    batch_size: int | None = Field(None, ge=1, description="Images per forward; default by their size.")
    extractor: Text = Field(
        "inception",
        description="The encoder that compares images: {default}[:FILE] (default), dinov2[:MODEL], clip[:MODEL], torchscript:FILE, "
        "sscd:FILE or pixels.",
    )
    copy_encoder: Text | None = Field(None, description="The encoder that finds copies; default that of --extractor.")
    scores: bool = Field(False, description="Write nearest.csv: each image's similarity to its nearest drawing, which `metrics` can score.")
    limit: int | None = Field(None, ge=1, description="At most this many real images per side.")
    resize: Resize = False
    skip_unreadable: SkipUnreadable = False
    threads: int | None = Field(None, ge=1, description="Chunks to draw in parallel, with one CPU thread each.")
    thumbnails: bool = Field(False, description="Show the closest training images in the report (private).")
    ignore_model_split: IgnoreModelSplit = False
    anonymous: Anonymous = False
    anonymous_key: AnonymousKey = None

    @model_validator(mode="after")
    def _one_reference(self) -> "QualityConfig":
        if bool(self.data) != bool(self.split):
            raise ValueError("--data and --split belong together: the split says which images of the data were trained on")
        if self.split and (self.reference or self.training):
            raise ValueError(
                "--split already says which images are held out and which are training images: leave out --real and --training"
            )
        if not (self.split or self.reference):
            raise ValueError("real images are needed to compare with: give --real HELDOUT, or --data DATA with --split FILE")
        if self.captions and self.prompts:
            raise ValueError("--captions takes the texts from the real images and --prompts from a file: give one of them")
        if self.scores and not self.split:
            raise ValueError("--scores needs to know who is a member: give --data DATA and --split FILE")
        if self.scores and not self.output:
            raise ValueError("--scores writes a file: give -o DIR")
        self.check_anonymous()
        return self

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        if self.in_memory:
            return "diffleak.measure_quality(...) from Python, with the settings recorded in quality.json"
        return command_line(self, "quality")


@dataclass(frozen=True, eq=False)
class Real:
    """Real images to compare with, normally held out, and the training images where they are known."""

    reference: Cohort
    training: Cohort | None


def read_real(config: QualityConfig, key: Key | None = None) -> Real:
    """The images of a config, under the ids of a key where one is given; raises `UserError` for a reference too small for any statistic."""
    if config.data and config.split:
        both = one_source(open_source(config.data, config.decoding), config.split, config.limit, config.seed)
        both = both.renamed(key) if key else both
        real = Real(both.only(~both.member), both.only(both.member))
    else:
        training = images_alone(open_source(config.training, config.decoding), config.limit, config.seed) if config.training else None
        real = Real(images_alone(open_source(config.reference or "", config.decoding), config.limit, config.seed), training)
    if len(real.reference) < FEWEST:
        raise UserError(f"there must be at least {FEWEST} real images to compare with; got {len(real.reference)}: add more")
    if key is None or config.split:
        return real
    return Real(real.reference.renamed(key), real.training.renamed(key) if real.training else None)


def source_name(cohort: Cohort) -> str:
    """Where the images of a cohort, all of one side, come from."""
    return cohort.names[0] if cohort.member.any() else cohort.names[1]
