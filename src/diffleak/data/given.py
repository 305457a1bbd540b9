"""What the settings of a command name: inputs that must be there, and places that must be writable. No torch, which takes seconds to load.

A Config says which of its settings these are (`diffleak.config`): DATA, MODELS, INPUTS by their form, and OUTPUTS. Nothing is read or
written here.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from diffleak.config import BASE, LONGEST_PATH, PATTERN, Config, flag, is_hub_id, merged, no_model, second_name
from diffleak.data.captions import refuse_no_captions
from diffleak.data.sources import refuse_no_data
from diffleak.errors import UserError, shown
from diffleak.work.files import refuse_unwritable
from diffleak.work.listed import MARK, split_named, strength_of
from diffleak.work.reading import found_at

FILE, FOLDER = "a file", "a folder"  # as `found_at` says it
SCRIPTS = (".pt", ".ts", ".torchscript", ".jit")  # a file of one of these is an encoder by itself


class Form(NamedTuple):
    """How a setting names inputs: what it must be, in words, what may be there, if a hub id will do, and the names in a value."""

    must: str
    there: tuple[str, ...] = (FILE, FOLDER)
    hub: bool = False
    names: Callable[[str, str], Iterator[str]] = lambda value, option: iter((value,))


def _listed(value: str, option: str) -> Iterator[str]:
    """The names in a list like `A@0.8,B`, whose last @ may belong to the name; patterns are matched elsewhere."""
    for name, mark in split_named(value, option):
        whole = name if mark is None or strength_of(mark) is not None or os.path.exists(name) else f"{name}{MARK}{mark}"
        if not PATTERN.search(whole):
            yield whole if option == "--lora" else name


def _of_encoder(kinds: tuple[str, ...]) -> Callable[[str, str], Iterator[str]]:
    def names(value: str, option: str) -> Iterator[str]:
        kind, _, where = value.partition(":")
        if kind in kinds and where:
            yield where
        elif "torchscript" in kinds and ":" not in value and value.endswith(SCRIPTS):
            yield value

    return names


HUB_ID = "a hub id (owner/name)"
FORMS: dict[str, tuple[Form, ...]] = {
    "file": (Form("a file", (FILE,)),),
    "folder": (Form("a folder", (FOLDER,)),),
    "network": (Form("a folder or a file of weights", names=lambda value, option: iter(() if PATTERN.search(value) else (value,))),),
    "own or a file": (Form("own, or a file", (FILE,), names=lambda value, option: iter(() if value == "own" else (value,))),),
    "hub": (Form(f"a folder or {HUB_ID}", (FOLDER,), hub=True),),
    "listed": (Form(f"a file, a folder or {HUB_ID}", hub=True, names=_listed),),
    "encoder": (
        Form("a TorchScript file", (FILE,), names=_of_encoder(("sscd", "torchscript", "inception"))),
        Form(f"a folder or {HUB_ID}", (FOLDER,), hub=True, names=_of_encoder(("dinov2", "clip", "deit"))),
    ),
}


def refuse_paths(settings: Config) -> None:
    """Raises `UserError` for images, models and other inputs that are not there, and for places that cannot be written."""
    kind = type(settings)
    for key in settings.DATA.split():
        if (data := getattr(settings, key, None)) is not None:
            refuse_no_data(str(data))
    for key in settings.MODELS.split():
        model, named = getattr(settings, key, None), key == settings.ARGUMENT
        if model in (None, BASE) or (named and getattr(settings, "model_from", None) is not None) or PATTERN.search(str(model)):
            continue
        if not os.path.exists(model) and not is_hub_id(model):
            raise no_model(model, key.upper() if named else flag(key))
    for key, form in merged(kind, "INPUTS").items():
        value = _given(settings, key)
        if value is not None and form == "captions":
            refuse_no_captions(str(value))
        elif value is not None:
            for each in value if isinstance(value, tuple) else (value,):
                _refuse_missing(str(each), key.upper() if key == settings.ARGUMENT else flag(key), FORMS[form])
    for key, form in merged(kind, "OUTPUTS").items():
        if (place := _given(settings, key)) is not None and not (form == "key" and found_at(place) == FILE):
            short = second_name(kind, key)
            option = short if short and not short.startswith("--") else flag(key)
            refuse_unwritable(place, option, folder=form == "folder")
            _refuse_images(settings, Path(place), option)


def _given(settings: Config, key: str) -> Any:
    fields = type(settings).model_fields
    return next((getattr(settings, name) for name in (key, f"{key}_") if name in fields), None)


def _refuse_images(settings: Config, place: Path, option: str) -> None:
    """Raises `UserError` for a place that is the folder of the images, which later calls would read with what was written."""
    for key in settings.DATA.split():
        data = getattr(settings, key, None)
        if data is not None and place.is_dir() and os.path.isdir(str(data)) and os.path.samefile(place, str(data)):
            named = key.upper() if key == settings.ARGUMENT else flag(key)
            raise UserError(f"{place} is the folder of the images that {named} names; choose another {option}")


def _refuse_missing(value: str, option: str, forms: tuple[Form, ...]) -> None:
    for form in forms:
        for name in form.names(value, option):
            found = found_at(Path(name))
            if found not in form.there and not (form.hub and is_hub_id(name)):
                raise UserError(f"{option} must be {form.must}; found {found} at {shown(name, LONGEST_PATH)}")
