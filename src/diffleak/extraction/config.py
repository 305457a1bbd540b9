"""The settings of `diffleak extract`, and the images they name. No torch."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from diffleak.config import Flag, ModelConfig, Seed, Text, command_line
from diffleak.data.cohort import IN_MEMORY, Cohort, images_alone, one_source, two_sources
from diffleak.data.config import Anonymous, AnonymousKey, DataConfig, IgnoreModelSplit, KeptDrawings, Resize, Shard, SkipUnreadable, Split
from diffleak.data.sources import open_source

DRAWS = 10  # for each caption
IMAGES = 2048  # in all


class ExtractConfig(ModelConfig, DataConfig):
    """Everything that decides `diffleak extract`; the keys of `-C FILE` and, with dashes, its flags."""

    INPUTS = {"captions": "captions", "extractor": "encoder"}
    FOLLOW = ["seed batch_size"]
    LEAST = {"draws": 1, "images": 1, "steps": 1}

    members: Text | None = Field(None, description="DATA that the model was trained on: look for copies of it.")
    nonmembers: Text | None = Field(None, description="Held-out DATA of the same kind: shows how close drawings come by chance.")
    data: Text | None = Field(None, description="One DATA for both, with --split.")
    split: Split = None
    output: Annotated[Path | None, Flag("-o")] = Field(None, description="extract.json, extract.html and the drawings.")
    draws: Annotated[int | None, Flag("-n")] = Field(
        None, ge=1, description=f"Text-to-image models: images to draw for each caption ({DRAWS})."
    )
    images: int | None = Field(None, ge=1, description=f"Other models: images to draw in all, or of each class ({IMAGES}).")
    extractor: Text | None = Field(
        None,
        description="Compare images by an encoder, as in quality: dinov2[:MODEL], clip[:MODEL], sscd:FILE, torchscript:FILE, "
        "inception[:FILE] or pixels. Default: the tiled pixel distance.",
    )
    false_copies: float = Field(
        0.01,
        gt=0,
        le=0.5,
        allow_inf_nan=False,
        description="The share of held-out images that may be called copies, which sets the threshold ({default}).",
    )
    steps: int = Field(50, ge=1, description="Sampler steps per drawing ({default}).")
    sampler: Literal["ddim", "ddpm", "dpm"] = Field("ddim", description="The sampler: {default} (default), ddpm or dpm.")
    guidance_scale: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Classifier-free guidance while drawing (7.5); 1 is none."
    )
    captions: Text | None = Field(
        None, description="Text-to-image models: the captions to draw: own (default), empty, fixed:TEXT or a file."
    )
    seed: Seed = 0
    only: int | None = Field(None, ge=0, description="Only draw one image again, by its number in extract.json.")
    thumbnails: bool = Field(False, description="Write the pairs as images and show them in the report (private).")
    batch_size: int | None = Field(None, ge=1, description="Most images per forward; default by their size.")
    limit: int | None = Field(None, ge=1, description="At most this many images per side.")
    resize: Resize = False
    skip_unreadable: SkipUnreadable = False
    drawings: KeptDrawings = None
    shard: Shard = None
    threads: int | None = Field(None, ge=1, description="Chunks to draw in parallel, with one CPU thread each.")
    ignore_model_split: IgnoreModelSplit = False
    anonymous: Anonymous = False
    anonymous_key: AnonymousKey = None

    @model_validator(mode="after")
    def _one_way_to_name_members(self) -> "ExtractConfig":
        if bool(self.data) != bool(self.split):
            raise ValueError("--data and --split belong together: the split says which images of the data were trained on")
        if self.split and (self.members or self.nonmembers):
            raise ValueError("--split already says who is a member; leave out --members and --nonmembers")
        if not (self.split or self.members):
            raise ValueError("the training images must be given: --members DATA, or --data DATA with --split FILE")
        if self.output is None and (self.thumbnails or self.only is not None):
            raise ValueError("--thumbnails and --only write images: give -o DIR")
        if self.output is None and self.shard:
            raise ValueError("--shard draws a share into a folder that all shares have: give -o DIR")
        self.check_anonymous()
        return self

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        if self.in_memory or IN_MEMORY in (self.members, self.nonmembers, self.data):
            return "diffleak.extract(...) from Python, with the settings recorded in extract.json"
        return command_line(self, "extract", ("threads", "only", "shard"))


def read_cohort(config: ExtractConfig) -> Cohort:
    """The images under their own ids: the members of a config, with the held-out images where it names any."""
    opened = lambda name: open_source(name, config.decoding)
    if config.data and config.split:
        return one_source(opened(config.data), config.split, config.limit, config.seed)
    if config.nonmembers:
        return two_sources(opened(config.members or ""), opened(config.nonmembers), config.limit, config.seed)
    alone = images_alone(opened(config.members or ""), config.limit, config.seed)
    return replace(alone, member=np.ones(len(alone), dtype=bool))
