"""The settings of `diffleak quality`, and the real images they name. No torch."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from diffleak.config import ModelConfig
from diffleak.data.anonymity import Key
from diffleak.data.cohort import Cohort, images_alone, one_source
from diffleak.data.config import DataConfig
from diffleak.data.sources import open_source
from diffleak.errors import UserError

FEWEST = 10  # reference images below which no statistic says anything


class QualityConfig(ModelConfig, DataConfig):
    """Everything that decides `diffleak quality`; the keys of `-C FILE` and, with dashes, its flags."""

    reference: str | None = None
    training: str | None = None
    data: str | None = None
    split: Path | None = None
    output: Path | None = None
    images: int = 2048
    steps: int = 50
    sampler: Literal["ddim", "ddpm", "dpm"] = "ddim"
    seed: int = Field(0, ge=0, lt=2**32)
    rounds: int = 1
    captions: str | None = None
    prompts: Path | None = None
    guidance_scale: float | None = Field(None, ge=0, allow_inf_nan=False)
    clip: str | None = None
    batch_size: int | None = Field(None, ge=1)
    extractor: str = "inception"
    copy_encoder: str | None = None
    scores: bool = False
    limit: int | None = Field(None, ge=1)
    resize: bool = False
    skip_unreadable: bool = False
    threads: int | None = Field(None, ge=1)
    thumbnails: bool = False
    ignore_model_split: bool = False
    anonymous: bool = False
    anonymous_key: Path | None = None

    @field_validator("reference", "training", "data", "extractor", "copy_encoder", "captions", "clip", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _one_reference(self) -> "QualityConfig":
        if bool(self.data) != bool(self.split):
            raise ValueError("--data and --split belong together: the split says which images of the data were trained on")
        if self.split and (self.reference or self.training):
            raise ValueError("--split already says what is reference and training; leave out --reference and --training")
        if not (self.split or self.reference):
            raise ValueError("real images are needed to compare with: give --reference DATA, or --data DATA with --split FILE")
        if self.captions and self.prompts:
            raise ValueError("--captions takes the texts from the reference and --prompts from a file; give one of them")
        if self.scores and not self.split:
            raise ValueError("--scores needs to know who is a member: give --data DATA and --split FILE")
        if self.scores and not self.output:
            raise ValueError("--scores writes a file: give -o DIR")
        self.check_anonymous()
        return self

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        given = self.model_dump(exclude_defaults=True, exclude={"threads"}, mode="json")
        model = given.pop("model", "denoiser")
        if model == "denoiser":
            return "diffleak.measure_quality(...) from Python, with the settings recorded in quality.json"
        parts = ["diffleak", "quality", model]
        for key, value in given.items():
            flag = "--" + key.replace("_", "-")
            parts += [flag] if value is True else [flag, str(value)]
        return shlex.join(parts)


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
        raise UserError(f"the reference must hold at least {FEWEST} images; got {len(real.reference)}")
    if key is None or config.split:
        return real
    return Real(real.reference.renamed(key), real.training.renamed(key) if real.training else None)


def source_name(cohort: Cohort) -> str:
    """Where the images of a cohort, all of one side, come from."""
    return cohort.names[0] if cohort.member.any() else cohort.names[1]
