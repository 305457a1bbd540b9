"""The settings of `diffleak train`: presets, a YAML file, flags; and those of `diffleak caption`. No torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from diffleak.config import SEED, Device, Flag, Seed, build, flag, read_yaml
from diffleak.data.config import SPLIT_FILES, Data, DataConfig
from diffleak.errors import UserError, unknown

TEXT_ONLY = ("base", "model_config_", "lora_rank", "captions", "diversify", "caption_dropout", "random_crops", "text_encoder")
KINDS = {"denoiser": "denoiser", "vae": "β-VAE", "vq": "VQ autoencoder", "text-to-image": "text-to-image model"}  # for messages
PRESETS = Path(__file__).parent / "presets"


class TrainConfig(DataConfig):
    """Everything that decides a training run; the keys of `-C FILE` and, with dashes, the flags of `diffleak train`.

    `kind` is what is trained: a denoiser (of pixels, or with `autoencoder` of its latents), a β-VAE, a VQ autoencoder, or a
    text-to-image model, which `base` is (all of its denoiser, or adapters of `lora_rank`) or which is made for the latents of
    `autoencoder`. `captions` is own (those of the data) or a file; with `diversify` every step draws one of the texts that
    an image has, else its first is used; `caption_dropout` is the share of steps without any. `random_crops` is how many crops
    of every image there are instead of the central one.
    `validation` is the share of the members that is set aside and chooses which weights are saved; training stops when their
    loss has not fallen for `patience` checks, one every `checkpoint_every` steps. The settings with dp_ make it DP-SGD.
    """

    MODELS = "base"
    INPUTS = {"autoencoder": "folder", "captions": "own or a file", "model_config": "hub"}
    PLANNED = {
        "model": "model of the config file",
        "kind": "kind of model",
        "members": "set of members",
        "halves": "division into halves",
        "teachers": "pair of teachers",
        "privacy": "DP-SGD",
        "texts": "set of captions",
        "classes": "list of classes",
        "autoencoder_fingerprint": "autoencoder",
        "base_fingerprint": "--base",
        "base_file_fingerprint": "--base",
    }
    NO_FLAG = {"kind", "model", "text_encoder", "scheduler"}
    FOLLOW = [
        "output preset",
        "kl_weight config",
        "train_size split_coin split",
        "flip resize",
        "resize mixed_precision checkpoint_every seed",
    ]

    data: Data
    output: Annotated[Path, Flag("-o")] = Field(description="The model folder.")
    kind: Literal["denoiser", "vae", "vq", "text-to-image"] = "denoiser"
    autoencoder: Path | None = Field(
        None,
        description="Train on the latents of this folder's vae/ or vqvae/, and on its split if neither --split nor --train-size is given.",
    )
    base: str | None = Field(None, description="A text-to-image model to fine-tune: a diffusers folder, a hub id, or one file.")
    model_config_: str | None = Field(
        None,
        alias="model_config",
        description="Where --base is one file: a diffusers folder or hub id that has its settings. Default: those on the hub.",
    )
    lora_rank: int | None = Field(None, ge=1, description="Train a LoRA of this rank in place of the whole model.")
    captions: str | None = Field(None, description="The captions: own (default), or a file with one or more for every image.")
    diversify: Annotated[bool, Flag("--no-diversify")] = Field(
        False, description="Pick one of an image's captions at random in every step."
    )
    caption_dropout: float = Field(0.0, ge=0, lt=1, description="Share of images that are trained without their caption.")
    random_crops: int | None = Field(None, ge=1, description="Train on this many random crops of each image instead of the central one.")
    timesteps: Literal["uniform", "u-shaped"] = Field(
        "uniform", description="Flow matching: how timesteps are drawn: uniform (default), or u-shaped, the middle less often."
    )
    kl_weight: float = Field(1e-2, ge=0, description="Autoencoders: the weight β of the KL term of a β-VAE.")
    split: Path | None = Field(None, description=f"Train on the members of this split file: {SPLIT_FILES}.")
    train_size: int | None = Field(None, ge=1, description="Train on this many images drawn at random; the rest is held out.")
    split_coin: bool = Field(
        False, description="Decide by a fair coin for each image if it is trained on; only `diffleak epsilon` needs this."
    )
    resize: int | None = Field(None, ge=4, description="Resize (antialiased) and centre-crop images to this many pixels per side.")
    steps: int = Field(5000, ge=1, description="Training steps; a larger number extends a finished run.")
    batch_size: int = Field(64, ge=1, description="Images in a training step; default by the preset.")
    learning_rate: float = Field(2e-4, gt=0, description="Learning rate of the optimiser (AdamW); default by the preset.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the optimiser; default by the preset.")
    warmup_steps: int = Field(100, ge=0, description="Steps over which the learning rate rises to its value; default by the preset.")
    max_grad_norm: float = Field(1.0, gt=0, description="Norm to which the gradient of a step is clipped; default by the preset.")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="Save an exponential moving average of the weights, with this decay.")
    flip: Annotated[bool, Flag("--no-flip")] = Field(False, description="Flip images at random, left to right.")
    validation: float | None = Field(
        None, gt=0, lt=1, description="Set aside this share of the members; save the weights with the lowest loss on them."
    )
    patience: int | None = Field(None, ge=1, description="Stop when the loss on --validation has not fallen for this many checkpoints.")
    dp_epsilon: float | None = Field(None, gt=0, description="DP-SGD: the epsilon that all steps together may spend; it sets the noise.")
    dp_delta: float | None = Field(None, gt=0, lt=1, description="DP-SGD: the delta, well below one over the number of images.")
    dp_noise_multiplier: float | None = Field(
        None, gt=0, description="DP-SGD: the standard deviation of the noise in clipping norms, in place of --dp-epsilon."
    )
    dp_max_grad_norm: float | None = Field(None, gt=0, description="DP-SGD: the norm to which the gradient of each image is clipped (1.0).")
    mixed_precision: Literal["no", "fp16", "bf16", "auto"] = Field(
        "no", description="no (default), fp16, bf16, or auto: bf16 if the device has it."
    )
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    seed: Seed = 0
    threads: int | None = Field(None, ge=1, description="CPU threads of this process.")
    device: Literal["cpu", "auto"] = Field("auto", description="auto or cpu.")
    model: dict[str, Any] = {}
    text_encoder: dict[str, Any] = {}
    scheduler: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _fine_tunes_its_base(cls, given: Any) -> Any:
        return {"kind": "text-to-image", **given} if isinstance(given, dict) and given.get("base") else given

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "TrainConfig":
        if self.split and self.train_size:
            raise ValueError("--split names the images to train on, and --train-size draws them: give one of the two")
        if self.split_coin and (self.split or self.train_size):
            other = "--split names the images to train on" if self.split else "--train-size says how many"
            raise ValueError(f"--split-coin throws a coin for each image, and {other}; give one of them")
        if self.split_coin and self.validation:
            raise ValueError(
                "--validation takes images out of those that the coins chose, so they are no fair coins; leave out one of them"
            )
        if self.kl_weight != type(self).model_fields["kl_weight"].default and self.kind not in ("vae", "vq"):
            raise ValueError(f"--kl-weight belongs to autoencoders, and this trains a {KINDS[self.kind]}; leave it out")
        if self.timesteps != "uniform" and self.kind in ("vae", "vq"):
            raise ValueError(f"--timesteps is for denoisers of flow matching, and this trains a {KINDS[self.kind]}; leave it out")
        if self.autoencoder and self.kind in ("vae", "vq"):
            raise ValueError(f"--autoencoder is for a denoiser of latents, and this trains a {KINDS[self.kind]}; leave it out")
        if self.kind == "text-to-image":
            return self._text_fits()
        if self.base:
            raise ValueError(
                f"--base is a text-to-image model to fine-tune, and this trains a {KINDS[self.kind]}: leave it out, or give another "
                "--preset"
            )
        given = [key for key in TEXT_ONLY if getattr(self, key) != type(self).model_fields[key].default]
        if given == ["text_encoder"]:
            raise ValueError("text_encoder is for a new text-to-image model: give --preset text, or leave it out")
        if given:
            raise ValueError(f"{flag(given[0].rstrip('_'))} belongs to text-to-image models; give --base MODEL too, or leave it out")
        if self.autoencoder and self.flip:
            raise ValueError("latents cannot be flipped like pixels; leave out --flip, or flip the images themselves")
        return self

    def _text_fits(self) -> "TrainConfig":
        if bool(self.base) == bool(self.autoencoder):
            what = "has both" if self.base else "has neither"
            raise ValueError(f"a text-to-image model is a --base MODEL that exists, or new for an --autoencoder FOLDER; this {what}")
        if self.base and (self.model or self.text_encoder or self.scheduler):
            key = "model" if self.model else "text_encoder" if self.text_encoder else "scheduler"
            preset = "lora" if self.lora_rank else "fine-tune"
            raise ValueError(
                f"{key}, a key of a preset or of -C FILE, is for a new model, and {self.base} has its own: leave it out, or give "
                f"--preset {preset}"
            )
        if self.model_config_ and not self.base:
            raise ValueError("--model-config has the settings of a --base in one file; give --base FILE too, or leave it out")
        if self.random_crops and not self.resize:
            raise ValueError("--random-crops cuts images that are resized; give --resize SIDE too")
        if self.lora_rank and not self.base:
            raise ValueError("--lora-rank adapts a model that exists; give --base MODEL too")
        return self

    @property
    def private(self) -> bool:
        """True where this is DP-SGD."""
        return self.dp_epsilon is not None or self.dp_noise_multiplier is not None

    @model_validator(mode="after")
    def _early_stopping_fits(self) -> "TrainConfig":
        if self.validation and self.kind in ("vae", "vq"):
            raise ValueError(f"--validation is for denoisers, and this trains a {KINDS[self.kind]}; leave it out")
        if self.patience and not self.validation:
            raise ValueError("--patience counts checks of the validation loss; give --validation FRACTION too")
        return self

    @model_validator(mode="after")
    def _privacy_fits(self) -> "TrainConfig":
        given = [name for name in ("dp_delta", "dp_max_grad_norm") if getattr(self, name) is not None]
        if given and not self.private:
            raise ValueError(f"--{given[0].replace('_', '-')} belongs to DP-SGD; give --dp-epsilon or --dp-noise-multiplier too")
        if not self.private:
            return self
        if self.dp_epsilon is not None and self.dp_noise_multiplier is not None:
            raise ValueError("--dp-epsilon chooses the noise, and --dp-noise-multiplier states it; give one of them")
        if self.dp_delta is None:
            raise ValueError("DP-SGD promises (epsilon, delta); give --dp-delta, well below one over the number of images")
        if self.kind != "denoiser":
            raise ValueError(
                f"DP-SGD is for denoisers, whose loss is a sum over images; this trains a {KINDS[self.kind]}: leave out --dp-*"
            )
        if self.mixed_precision != "no":
            raise ValueError(f"DP-SGD clips gradients in full precision; leave out --mixed-precision {self.mixed_precision}")
        if self.validation:
            raise ValueError("DP-SGD does not protect the images that --validation sets aside; leave one of them out")
        return self


class CaptionConfig(DataConfig):
    """Everything that decides `diffleak caption`; the keys of `-C FILE` and, with dashes, its flags."""

    ARGUMENT = "data"
    INPUTS = {"captioner": "hub"}
    OUTPUTS = {"output": "file"}
    PLANNED = {"data": "DATA", "fingerprint": "captioner", "tokens": "length of the captions"}
    FOLLOW = ["limit exif"]
    LEAST = {"seed": 0}

    data: Data
    output: Annotated[Path, Flag("-o")] = Field(Path("captions.jsonl"), description=r"The captions file, a .jsonl. \[default: {default}]")
    captioner: str = Field(
        "Salesforce/blip-image-captioning-base", description=r"A BLIP of transformers: a folder or hub id. \[default: {default}]"
    )
    n: Annotated[int, Flag("-n")] = Field(5, ge=1, description=r"Captions per image, beside its own. \[default: {default}]")
    seed: int = Field(0, ge=LEAST["seed"], description=SEED)
    batch_size: int = Field(8, ge=1, description=r"Images captioned at once; captions do not depend on it. \[default: {default}]")
    split: Path | None = Field(None, description=f"Caption the members of this split file only: {SPLIT_FILES}.")
    limit: int | None = Field(None, ge=1, description="Caption only this many images, the first ones.")
    device: Device = None

    @model_validator(mode="after")
    def _writes_captions(self) -> "CaptionConfig":
        if self.output.suffix != ".jsonl":
            raise ValueError(f"captions are written as a .jsonl file; got {self.output}")
        return self


def train_config(preset: str | None = None, file: Path | None = None, **flags: Any) -> TrainConfig:
    """The settings of a preset, then of a YAML file, then of the flags, later ones winning.

    Args:
        preset: digits, small (default), ddpm, vae, vq, latent, text, fine-tune or lora.
        file: A YAML file with any of the settings.
        **flags: Settings of `TrainConfig`, such as data="digits" and output="MODEL".

    Returns:
        The settings for `train`.

    Raises:
        UserError: For a setting that does not exist or does not fit the others.
    """
    return build(TrainConfig, *train_settings(preset, file, flags))


def train_settings(preset: str | None, file: Path | None, flags: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The layers that settings are built from: preset, YAML file, flags. The file may name the preset, which `preset` is in place of."""
    presets, given = {p.stem: p for p in PRESETS.glob("*.yaml")}, read_yaml(file)
    named = given.pop("preset", None)
    preset = str(named) if preset is None and named is not None else preset
    if preset is not None and preset not in presets:
        raise unknown("preset", preset, presets)
    if preset in ("latent", "text") and not flags.get("autoencoder") and not given.get("autoencoder"):
        raise UserError(f"the preset {preset} trains on the latents of an autoencoder: give --autoencoder FOLDER")
    if preset is None and file is None:
        preset = ("lora" if flags.get("lora_rank") else "fine-tune") if flags.get("base") else "small"
    return read_yaml(presets[preset] if preset else None), given, flags
