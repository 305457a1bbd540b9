"""Settings of a command: a YAML file first, flags on top, every key checked.

Each command has one pydantic model. Its field names are the config keys and, with dashes, the long flags; its descriptions are
what `--help` says (`diffleak.options`).
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from diffleak.errors import WHY, SettingError, UserError, refuse_other_bytes, refusing, shown, unknown
from diffleak.work.listed import join_named
from diffleak.work.reading import PICKLES, Unreadable, load_yaml

BASE = "base"  # as a reference: the audited model without its LoRAs and embeddings
IN_PYTHON = "denoiser"  # what a model in memory is called
NO_SETTINGS = ("json", "config")  # flags that no config file holds: how a call prints, and which file that is

PATTERN = re.compile(r"[*?[]")  # in the name of several models, of which each is looked for later
LONGEST_PATH = 200  # characters of a name in the message that nothing is there

# pydantic's words, and ours
PLAINER = (
    *(("Input should ", "must "), ("String should ", "must "), ("Input is not a valid path for <class 'pathlib.Path'>", "must be a path")),
    *(("greater than or equal to", "at least"), ("less than or equal to", "at most")),
    ("a valid integer, unable to parse string as an integer", "a whole number"),
    ("a valid number, unable to parse string as a number", "a number"),
)

SEED = "Seed of the random draws ({default}): the same seed gives the same result."

Seed = Annotated[int, Field(ge=0, lt=2**32, description=SEED)]
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]  # which Python may give as a path
AS_NAME = BeforeValidator(lambda value: str(value) if isinstance(value, Path | int) and not isinstance(value, bool) else value)
Name = Annotated[str, AS_NAME]  # the same, and YAML as a whole number
Device = Annotated[str | None, Field(description="cpu, cuda, cuda:1, mps; default the first accelerator.")]


@dataclass(frozen=True)
class Flag:
    """The second name of a setting on the command line: its short flag, another long name, or the flag that switches it off."""

    name: str


class Config(BaseModel):
    """Base of all command settings: immutable, and an unknown key is an error.

    Where the command line does not follow from the fields and their descriptions, in which {default} is a field's default, a class says:
    ARGUMENT, the setting that is given without a flag, and INSTEAD, the one that may take its place; NO_FLAG, settings of the config file
    and of Python alone; HELP, other words for inherited settings; FOLLOW, settings that follow each other in `--help` though they are not
    declared one after the other; LEAST, the least values that `--help` shows; PANELS, the settings under each heading of `--help`;
    DATA and MODELS, the settings that must name images, and models, that are there; INPUTS, other settings that must name what is there,
    each with its form, and OUTPUTS, those that name a place to write: a "folder", a "file", or the file of a "key", which may be there
    (`diffleak.data.given`, and `merged`); PLANNED, what messages call what its plans have of their own.
    """

    ARGUMENT: ClassVar[str | None] = None
    INSTEAD: ClassVar[str | None] = None
    NO_FLAG: ClassVar[set[str]] = set()
    HELP: ClassVar[dict[str, str]] = {}
    FOLLOW: ClassVar[list[str]] = ["output config"]
    LEAST: ClassVar[dict[str, int]] = {}
    PANELS: ClassVar[dict[str, str]] = {}
    DATA: ClassVar[str] = ""
    MODELS: ClassVar[str] = ""
    INPUTS: ClassVar[dict[str, str]] = {}
    OUTPUTS: ClassVar[dict[str, str]] = {"output": "folder"}
    PLANNED: ClassVar[dict[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """The settings by the names that people type."""
        return super().model_dump(**{"by_alias": True, **how})


class ModelConfig(Config):
    """Settings of a command about one model that is there already, with or without a LoRA adapter on it."""

    ARGUMENT, INSTEAD = "model", "model_from"
    MODELS = "model"
    INPUTS = {"model_config": "hub", "network": "network", "lora": "listed", "embedding": "listed"}
    FOLLOW = ["skip_unreadable dtype device"]
    PANELS = {
        "Model": "model_config model_from network weights lora lora_scale embedding",
        "Machine": "dtype device offload fast compile batch_size threads chunk_size shard",
    }
    FAST: ClassVar[bool] = True  # what `fast` means where nothing is said

    model: Name = Field(IN_PYTHON, description="A diffusers folder, a hub id, or one file that holds a whole model.")
    model_config_: Name | None = Field(
        None,
        alias="model_config",
        description="Where MODEL is one file: a diffusers folder or hub id that has its settings. Default: those on the hub.",
    )
    model_from: str | None = Field(
        None, description="Your own function that makes the model (from MODEL, if given), as package.module:function. It runs that code."
    )
    network: Name | None = Field(
        None, description="Replace the denoiser of MODEL by this one: a folder (unet/, unet_ema/, checkpoint-N/) or a file of weights."
    )
    weights: Literal["ema", "non_ema"] | None = Field(
        None, description="Which weights to use where MODEL has both: ema (averaged) or non_ema."
    )
    lora: Name | None = Field(
        None, description="LoRAs or other adapters of a text-to-image MODEL: .safetensors files, folders or hub ids, as A or A@0.8,B."
    )
    lora_scale: float = Field(1.0, allow_inf_nan=False, description="The strength of the LoRA ({default}).")
    embedding: Text | None = Field(
        None, description="Textual inversions whose tokens the captions use: files, folders or hub ids, as FILE or FILE@TOKEN,..."
    )
    dtype: str = Field("float32", description="float32, float16, bfloat16 or float64.")
    device: Device = None
    offload: bool = Field(False, description="Keep only one layer of the denoiser in the accelerator's memory at a time; slower.")
    fast: Annotated[bool | None, Flag("--exact")] = Field(
        None,
        description="On NVIDIA GPUs use faster arithmetic (TF32, channels last; default): scores right to three digits. --exact: neither.",
    )
    compile: bool = Field(
        False, description="Compile the denoiser first (torch.compile). This takes minutes and makes its forwards faster."
    )

    @field_validator("lora", "embedding", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: Any) -> Any:
        return join_named(value, flag(str(info.field_name)))

    @property
    def in_memory(self) -> bool:
        """True where the model was made in Python, so that no command can name it."""
        return self.model == IN_PYTHON and self.model_from is None

    @model_validator(mode="after")
    def _made_by_a_function(self) -> "ModelConfig":
        of_loading = {name: getattr(self, name) for name in ("lora", "embedding", "network", "weights")}
        given = [name for name, value in (of_loading | {"model_config": self.model_config_}).items() if value is not None]
        given += ["offload"] if self.offload else []
        given += ["compile"] if self.compile else []
        given += [] if self.fast is None else ["fast"] if self.fast else ["exact"]
        if self.model_from and given:
            raise ValueError(f"{flag(given[0])} is for a model that diffleak loads, and --model-from makes one: leave out one of them")
        return self

    @model_validator(mode="after")
    def _scale_of_a_lora(self) -> "ModelConfig":
        if self.lora_scale != 1.0 and self.lora is None:
            raise ValueError("--lora-scale is the strength of a LoRA, and none is given: add --lora")
        return self

    def check_anonymous(self) -> None:
        """Raises `ValueError` for what contradicts the settings `anonymous` and `anonymous_key` of a command that names images."""
        get = lambda name: getattr(self, name, None)
        if get("anonymous_key") and not get("anonymous"):
            raise ValueError("--anonymous-key is the key of an anonymous run; add --anonymous, or leave it out")
        if get("anonymous") and get("thumbnails"):
            raise ValueError("--thumbnails shows the very images that --anonymous does not name; leave out one of them")
        if get("anonymous") and not (get("output") or get("anonymous_key") or get("dry_run")):
            raise ValueError("--anonymous needs a place for its key; give an output folder with -o, or a file with --anonymous-key FILE")


C = TypeVar("C", bound=Config)


def read_yaml(path: Path | None) -> dict[str, Any]:
    """The mapping in a YAML file, empty without a file; raises `UserError` for a missing file, bad YAML or anything but a mapping."""
    if path is None:
        return {}
    with refusing(Unreadable, f"the config file {path} cannot be read as YAML ({WHY})"):
        content = load_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values; got {type(content).__name__}")
    names = [str(key).replace("-", "_") for key in content]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"{path} must give each setting once; {shown(twice[0])} is there twice")
    return dict(zip(names, content.values(), strict=True))


def build(kind: type[C], *layers: dict[str, Any]) -> C:
    """A `kind` from layers of settings, later ones winning, None meaning "not given"; raises one-line `UserError`s."""
    merged: dict[str, Any] = {}
    names: dict[str, str] = {}  # by which the settings were given
    fields = settings_of(kind)
    again = {second[2:].replace("-", "_"): name for name in fields if (second := second_name(kind, name)) and _renames(kind, name)}
    for layer in layers:
        given = {key: value for key, value in layer.items() if value is not None}
        if twice := next((key for key in given if again.get(key) in given), None):
            raise UserError(f"{twice} and {again[twice]} are two names of one setting: give one of them")
        merged.update({again.get(key, key): value for key, value in given.items()})
        names.update({again.get(key, key): key for key in given})
    for key in merged:
        if key not in fields:
            raise _unknown_key(kind, key)
    for key, value in merged.items():
        annotation = fields[key].annotation
        if isinstance(value, bool) and annotation is not bool and bool not in get_args(annotation):  # pydantic reads true as 1
            said = f"must not be true or false; got {value}: put a text that YAML reads so, such as yes, in quotes"
            raise SettingError(key, said, names[key])
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, str | Path):
                refuse_other_bytes(str(each))
    try:
        return kind(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "missing":
            raise UserError(f"{key} must be given: add --{key.replace('_', '-')}, or the key {key} to the config file") from None
        got = "" if isinstance(first["input"], dict) else f"; got {shown(repr(first['input']))}"
        said = first["msg"].removeprefix("Value error, ")
        for theirs, ours in PLAINER:
            said = said.replace(theirs, ours, 1)
        said = f"{said if said.startswith('must ') or not key else f'is wrong: {said}'}{got}"
        raise (SettingError(key, said, names.get(key)) if key else UserError(said)) from None


def _unknown_key(kind: type[Config], key: str) -> UserError:
    if key in NO_SETTINGS:
        return UserError(f"{key} is no setting, since it does not change a result: give {flag(key)} on the command line")
    fields = settings_of(kind)
    on = next((name for name in fields if second_name(kind, name) == flag(key)), None)
    return (
        UserError(f"{flag(key)} switches a setting off, whose key is {on}: write {on}: false") if on else unknown("config key", key, fields)
    )


def is_hub_id(name: str | Path) -> bool:
    """True if a name may be a hub id: owner/name, and neither a path nor the name of a file of weights."""
    return not str(name).startswith((".", "/", "~")) and str(name).count("/") == 1 and not str(name).endswith((".safetensors", *PICKLES))


def no_model(model: str | Path, name: str = "MODEL") -> UserError:
    """The error for a model that is neither there nor a hub id; `name` is its argument."""
    must = f"{name} must be a diffusers folder, a hub id (owner/name), or a file with a whole model"
    return UserError(f"{must}; found nothing at {shown(model, LONGEST_PATH)}")


def settings_of(kind: type[Config]) -> dict[str, FieldInfo]:
    """Every setting by the name that people type, which is a field's alias where pydantic keeps its own meaning for the name."""
    return {field.alias or name: field for name, field in kind.model_fields.items()}


def flag(key: str) -> str:
    """The long flag of a setting."""
    return "--" + key.replace("_", "-")


def merged(kind: type[Config], name: str) -> dict[str, str]:
    """What a class and its bases say of settings, as INPUTS; where they differ, the class decides."""
    return {key: value for each in reversed(kind.__mro__) for key, value in vars(each).get(name, {}).items()}


def names_of(kind: type[Config]) -> dict[str, str]:
    """What messages call the keys of a command's plan: the flags of its settings, and PLANNED."""
    return {key: flag(key) for key in settings_of(kind) if key not in kind.NO_FLAG} | kind.PLANNED


def second_name(kind: type[Config], key: str) -> str | None:
    """The short flag of a setting, its other long name, or the flag that switches it off, if it has one."""
    return next((item.name for item in settings_of(kind)[key].metadata if isinstance(item, Flag)), None)


def _renames(kind: type[Config], key: str) -> bool:
    """True if the second name of a setting is another long name, such as --real for --reference, and not a switch or a letter."""
    return settings_of(kind)[key].annotation not in (bool, bool | None) and (second_name(kind, key) or "").startswith("--")


def command_line(config: Config, command: str, exclude: Iterable[str] = ("threads",)) -> str:
    """The command line that repeats a command: every setting that is not its default, but for those in `exclude`."""
    given = config.model_dump(exclude_defaults=True, exclude={*exclude}, mode="json")
    parts = ["diffleak", command, *(str(given.pop(key)) for key in (config.ARGUMENT,) if key in given)]
    for key, value in given.items():
        if isinstance(value, bool):
            parts.append(flag(key) if value else second_name(type(config), key) or f"--no-{key}")
        else:
            parts += [flag(key), ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(parts)


class ConvertConfig(Config):
    """The settings of `diffleak convert`."""

    ARGUMENT = "checkpoint"
    INPUTS = {"checkpoint": "file", "settings": "file"}

    checkpoint: Path = Field(description="A checkpoint of pytorch-ddpm, guided-diffusion or improved-diffusion.")
    settings: Path | None = Field(None, description="JSON of the settings that the weights do not show, by the names of the original code.")
    weights: str | None = Field(None, description="Which network of the file, by its key: ema_model (default), net_model.")
    output: Annotated[Path, Flag("-o")] = Field(description="The new model folder.")
