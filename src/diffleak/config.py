"""Settings of a command: a YAML file first, flags on top, every key checked.

Each command has one pydantic model; its field names are the config keys and, with dashes, the long flags.
"""

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from diffleak.errors import UserError, unknown

COLONLESS = {
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"^[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
}


class Config(BaseModel):
    """Base of all command settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelConfig(Config):
    """Settings of a command about one model that is there already, with or without a LoRA adapter on it."""

    model: str = "denoiser"
    lora: str | None = None
    lora_scale: float = Field(1.0, allow_inf_nan=False)
    dtype: str = "float32"
    device: str | None = None

    @field_validator("model", "lora", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path | int) and not isinstance(value, bool) else value

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


class _Loader(yaml.SafeLoader):
    """YAML without base-60 numbers, which would read the timesteps 10:50 as 650."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, COLONLESS.get(tag, pattern)) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises `UserError` for a missing file, bad YAML or anything but a mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config file {path} cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} must be YAML ({' '.join(str(error).split())})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values; got {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def build(kind: type[C], *layers: dict[str, Any]) -> C:
    """A `kind` from layers of settings, later ones winning, None meaning "not given"; raises one-line `UserError`s."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update({key: value for key, value in layer.items() if value is not None})
    for key in merged:
        if key not in kind.model_fields:
            raise unknown("config key", key, kind.model_fields)
    try:
        return kind(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "missing":
            raise UserError(f"{key} must be given: --{key.replace('_', '-')}, or the key in the config file") from None
        got = "" if isinstance(first["input"], dict) else f"; got {first['input']!r}"
        where = f"{key}: " if key else ""
        raise UserError(f"{where}{first['msg'].removeprefix('Value error, ')}{got}") from None
