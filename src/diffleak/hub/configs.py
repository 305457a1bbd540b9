"""Reads the JSON files of models and adapters, and checks the type of every known key before anything uses it."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from diffleak.errors import WHY, UserError, refusing, shown
from diffleak.work.reading import load_json

LARGEST = 1e30  # a number in a config must be below this
KEYS: dict[str, tuple[type, ...]] = {  # the keys that are read from JSON files of models and adapters, and the types they may have
    **dict.fromkeys(("_class_name", "model_type", "prediction_type", "peft_type"), (str,)),
    **dict.fromkeys(("norm_type", "class_embed_type", "variance_type"), (str, NoneType)),
    **dict.fromkeys(("in_channels", "latent_channels", "z_dim", "seed", "max_position_embeddings"), (int,)),
    **dict.fromkeys(("out_channels", "num_class_embeds", "num_embeds_ada_norm", "num_train_timesteps", "resample"), (int, NoneType)),
    **dict.fromkeys(("lookup_from_codebook", "do_center_crop", "use_rslora", "use_dora"), (bool, NoneType)),
    **dict.fromkeys(("force_zeros_for_empty_prompt", "requires_safety_checker", "is_distilled", "use_flow_sigmas"), (bool,)),
    **dict.fromkeys(("lora_alpha", "shift_factor"), (int, float, NoneType)),
    **dict.fromkeys(("alpha_pattern", "rank_pattern"), (dict, NoneType)),
    **dict.fromkeys(("image_mean", "image_std"), (list, NoneType)),
    **dict.fromkeys(("size", "crop_size"), (int, dict, NoneType)),
    "sample_size": (int, list, NoneType),
    "init_lora_weights": (bool, str, NoneType),
}
SPELLED = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def read_json(path: Path, must: str) -> dict[str, Any]:
    """The object in a JSON file of a model or adapter; raises `UserError` for anything else, and for a key of another type than in KEYS.

    must: the beginning of the message if the file is missing.
    """
    if not path.is_file():
        raise UserError(f"{must}; {path.parent.name}/{path.name} is missing")
    content = load_object(path)
    check_keys(content, str(path))
    return content


def load_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, its keys not checked; raises `UserError` for anything but an object."""
    with refusing((OSError, ValueError), f"{path} must be JSON ({WHY})"):
        content = load_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; got {type(content).__name__}")
    return content


def check_keys(content: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for a key whose value has none of its types in KEYS; "unet.lora_alpha" is checked as lora_alpha."""
    for key, value in content.items():
        kinds = KEYS.get(key.rpartition(".")[2])
        if kinds and type(value) not in kinds:
            must = " or ".join(SPELLED[kind] for kind in kinds if kind is not int or float not in kinds)
            raise UserError(f"{key} of {where} must be {must}; got {shown(json.dumps(value))}: correct it, or fetch the file again")


def check_settings(kind: Any, config: Mapping[str, Any], path: Path) -> None:
    """Raises `UserError` for a setting of another type than its default in a class of diffusers; null counts as not given."""
    for key, parameter in inspect.signature(kind.__init__).parameters.items():
        value, usual = config.get(key), parameter.default
        if value is not None and key not in KEYS and not _of_kind(value, usual, str(parameter.annotation)):
            found = shown(json.dumps(value))
            raise UserError(f"{key} of {path} must be a value like {usual!r}; got {found}: correct it, or fetch the file again")


def _of_kind(value: Any, usual: Any, annotation: str) -> bool:
    if isinstance(usual, tuple | list):
        return isinstance(value, list)
    if isinstance(value, list) and isinstance(usual, bool | int | float | str):  # of one for every block, where the class says so
        several = any(mark in annotation for mark in ("uple", "ist", "equence"))
        return several and all(_of_kind(inner, usual, annotation) for inner in value)
    if isinstance(usual, bool):
        return value in (0, 1)
    if isinstance(usual, int | float):
        return type(value) is float or (type(value) is int and abs(value) < LARGEST)
    return isinstance(value, str) or not isinstance(usual, str)


def are_numbers(values: object, count: int, positive: bool = False) -> bool:
    """True if a value in a JSON file is a list of `count` numbers below LARGEST, none of them NaN."""
    if not isinstance(values, list) or len(values) != count or not all(type(value) in (int, float) for value in values):
        return False
    return all((0 if positive else -LARGEST) < value < LARGEST for value in values)
