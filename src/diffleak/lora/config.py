"""The settings of `diffleak lora`. No torch."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from diffleak.config import Device, Flag, Name, Seed, build, read_yaml
from diffleak.data.config import DataConfig, IgnoreModelSplit, SkipUnreadable

DRAWS, DRAW_STEPS = 4, 30


class LoraConfig(DataConfig):
    """Everything that decides `diffleak lora`; the keys of `-C FILE` and, with dashes, its flags."""

    ARGUMENT = "base"
    DATA, MODELS = "pictures held_out", "base"
    INPUTS = {"captions": "captions", "extractor": "encoder", "model_config": "hub"}
    FOLLOW = ["threads exif"]
    NO_FLAG = {"adapters"}
    LEAST = {"draws": 1, "draw_steps": 1}
    HELP = {"ignore_model_split": "Go on although the split.json beside an adapter contradicts --pictures or --held-out."}

    base: Name = Field(description="The text-to-image model that the adapters were made for: a folder, a hub id, or one file.")
    adapters: Name = Field(description="The adapters: one file or folder, or a quoted pattern such as 'out/*.safetensors'.")
    pictures: Name = Field(description="DATA that the adapters were trained on, with the captions as the trainer reads them.")
    held_out: Annotated[Name | None, Flag("--nonmembers")] = Field(
        None, description="Held-out DATA of the same kind, not trained on: measures what each adapter leaks."
    )
    output: Annotated[Path, Flag("-o")] = Field(description="Folder of lora.json, lora.html, and a folder for each checkpoint.")
    model_config_: str | None = Field(
        None, alias="model_config", description="Where BASE is one file: a diffusers folder or hub id that has its settings."
    )
    lora_scale: float = Field(1.0, allow_inf_nan=False, description="The strength of the adapters ({default}).")
    captions: str | None = Field(
        None, description="The captions: own, fixed:TEXT, empty or a file. Default: own, or the words in the name of kohya's folder."
    )
    attacks: str = Field("loss,sima,pia", description="Attacks with --held-out ({default}).")
    timesteps: str | None = Field(None, description="Timesteps of the attacks, start:stop:step; default as in audit.")
    max_excess_auc: float = Field(
        0.6,
        ge=0.5,
        le=1,
        allow_inf_nan=False,
        description="With --held-out: the limit for a checkpoint to be published, on the upper end of every AUC beyond BASE ({default}). "
        "With fewer than about 80 images on each side no checkpoint can meet 0.6, unless one side has many more.",
    )
    draws: Annotated[int, Flag("-n")] = Field(DRAWS, ge=1, description="Without --held-out: images to draw for each caption ({default}).")
    draw_steps: int = Field(DRAW_STEPS, ge=1, description="Without --held-out: sampler steps per drawing ({default}).")
    extractor: str | None = Field(None, description="Compare images by an encoder, as in extract; default by the tiled pixel distance.")
    thumbnails: bool = Field(False, description="Keep pictures and drawings side by side as images (private).")
    seed: Seed = 0
    buckets: Name | None = Field(
        None, description="With --held-out: sort pictures of mixed sizes into kohya's aspect-ratio buckets, 512 (SD 1) or 1024 (SDXL)."
    )
    skip_unreadable: SkipUnreadable = False
    ignore_model_split: IgnoreModelSplit = False
    dtype: str = Field("float32", description="float32, float16, bfloat16 or float64.")
    device: Device = None
    offload: bool = Field(False, description="Keep only one layer of the denoiser in the accelerator's memory at a time; slower.")
    batch_size: int | None = Field(None, ge=1, description="Most images per forward; default by their size.")
    threads: int | None = Field(None, ge=1, description="Chunks to work on in parallel, with one CPU thread each.")

    @model_validator(mode="after")
    def _what_is_measured(self) -> "LoraConfig":
        if self.held_out is None and self.buckets is not None:
            raise ValueError("--buckets is for the audit, which needs --held-out; without --held-out pictures are resized: leave it out")
        if self.lora_scale == 0:
            raise ValueError("--lora-scale 0 takes the adapters out of BASE, and nothing of them is measured: give another strength")
        return self


def lora_config(adapters: str, file: Path | None, **given: Any) -> LoraConfig:
    """The settings from a config file and from the command line."""
    return build(LoraConfig, read_yaml(file), given, {"adapters": adapters})
