"""The folder of a model: where its parts are, how one is read safely, and a hash of all of them."""

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from diffleak.config import LONGEST_PATH, is_hub_id, no_model
from diffleak.errors import WHY, UserError, first_lines, refusing, shown
from diffleak.hub.configs import check_settings, read_json
from diffleak.hub.weights import (
    AVERAGE,
    DIFFUSERS,
    EMA,
    SAFE,
    TRANSFORMERS,
    Weights,
    chosen,
    copies,
    find,
    header,
    refuse_quantised,
    said_of,
    viewed,
    wanted,
)
from diffleak.work.progress import retrying_quietly
from diffleak.work.reading import PICKLES, STATE_DICTS, found_at
from diffleak.work.remembered import hash_weights

NETWORKS = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"),
    "transformer": (
        "DiTTransformer2DModel",
        "PixArtTransformer2DModel",
        "SD3Transformer2DModel",
        "FluxTransformer2DModel",
        "Flux2Transformer2DModel",
        "ZImageTransformer2DModel",
        "QwenImageTransformer2DModel",
        "ChromaTransformer2DModel",
        "Lumina2Transformer2DModel",
        "SanaTransformer2DModel",
    ),
}
IN_UNIT_RANGE = "ScoreSdeVePipeline"  # whose images lie in [0, 1]
CONVERTED = "ResearchUNet"  # our own network, of what `convert` writes
AUTOENCODER_FOLDERS = ("vae", "vqvae")
SECOND = "_2"  # what the folder of a second network is called after the first
TEXT_PARTS = tuple(name + number for name in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
PARTS = (*NETWORKS, *(name + SECOND for name in NETWORKS), *AUTOENCODER_FOLDERS, "scheduler", *TEXT_PARTS)
WEIGHTS = tuple(f"*{ending}" for ending in (SAFE, *STATE_DICTS))
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")  # vocabularies, and templates of chats
LAYERS = r"layers|^num_\w*blocks$"  # in the keys of a config that say how deep a network is
DUAL = "dual.json"
INDEX = "model_index.json"
LONGEST = 400  # characters of a warning
LIBRARIES = ("diffusers", "transformers", "peft", "accelerate", "safetensors")  # whose loggers `heard` listens to
CHATTER = (  # beginnings of warnings that are not about weights, each with the reason why it is left out
    r"Pipelines loaded with `dtype=\S+` cannot run with `\w+` device",  # of speed; an operation that is missing raises
    r"`\w+Processor` requires torchvision \(not installed\)",  # images are prepared here, with Pillow
    r"You have disabled the safety checker for ",  # which is never run: it works on drawn images, and would hide some
    r"\w+ LOAD REPORT from",  # `output_loading_info` says the same, and every caller reads it
    r"The config attributes .* were passed to \w+Scheduler, but are not expected",  # the schedule is read and checked by `loading`
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def located(model: str | Path, weights: str | None = None) -> Path:
    path = Path(model)
    if os.path.isdir(path):  # which is false, and no error, for a name that no path can have
        return path
    if not is_hub_id(model):
        raise no_model(model)
    endings = ("*.json", "*.txt", "*.model", "*.jinja", *WEIGHTS)
    parts = [f"{part}/{ending}" for part in PARTS for ending in endings]
    averages = [f"{part}{AVERAGE}/{ending}" for part in NETWORKS for ending in (endings if weights == EMA else ("config.json",))]
    return downloaded(str(model), ["*.json", *parts, *averages], weights=weights)


def folder_of(model: str | Path, what: str, patterns: list[str], form: str = "") -> Path:
    """The folder of another kind of model (`what`, "the encoder" for example), downloaded if it is a hub id.

    form: how a local folder is given, "clip:FOLDER" for example, where a path alone is not enough.
    """
    if os.path.isdir(model):
        return Path(model)
    if not is_hub_id(model):
        raise UserError(f"{what} must be a folder or a hub id (owner/name); found nothing at {shown(model, LONGEST_PATH)}")
    return downloaded(str(model), patterns, f"{what}, {form}" if form else what)


def file_of(given: str | Path, option: str, what: str, names: Sequence[Sequence[str]], beside: Sequence[str] = ()) -> Path:
    """The file of weights that an option such as --lora names: a file, or one in a folder or hub id.

    names: groups of names that it may have in a folder; the first group with a file there counts, and it must have only one. beside: files
    to download with it. Raises `UserError` for a file of another kind, a folder with none of these or with two of a group, and a path that
    does not exist.
    """
    path = Path(given)
    if os.path.isfile(path):
        if path.suffix not in (SAFE, *PICKLES):
            raise UserError(f"{what} must be a {SAFE} file, or a state dict ({', '.join(PICKLES)}); got {shown(path, LONGEST_PATH)}")
        return path
    if not os.path.isdir(path):
        if not is_hub_id(given):
            raise UserError(f"{option} must be a file, a folder or a hub id (owner/name); found nothing at {shown(given, LONGEST_PATH)}")
        path = downloaded(str(given), [*(name for group in names for name in group), *beside], option)
    where = shown(given, LONGEST_PATH)
    for group in names:
        found = [path / name for name in group if (path / name).is_file()]
        if len(found) > 1:
            raise UserError(f"the folder of {what} must hold one of {' and '.join(group)}; {where} has both: name the file itself")
        if found:
            return found[0]
    known = " or ".join(name for group in names for name in group)
    raise UserError(f"the folder of {what} must hold {known}; {where} has none: name the file itself")


def downloaded(name: str, patterns: list[str], what: str = "", weights: str | None = None) -> Path:
    """Downloads the matching files of a hub id into the cache; raises `UserError` if there are none.

    what: what it is used as, "the encoder" for example, if it is not the model itself. weights: ema or non_ema, if one is chosen.
    Of several copies of the same weights only one is downloaded, the one that `find` takes.
    """
    instead = "pass a local folder" + (f" as {what}" if what else "")
    import huggingface_hub

    left_out = ["*.fp16.*", "*.non_ema.*", *(f"*{ending}" for ending in STATE_DICTS)]
    with retrying_quietly(), suppress(Exception):  # the download says what is wrong, or takes what is in the cache
        patterns, left_out = wanted(huggingface_hub.list_repo_files(name), patterns, weights) or patterns, []
    try:
        with retrying_quietly():
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, ignore_patterns=left_out))
    except Exception as error:  # network, gating and naming errors differ by version; all mean the id gave nothing
        reason = first_lines(error).partition(". ")[0] or type(error).__name__
        if _is_closed(error):
            raise UserError(
                f"the hub id {name} does not exist, or needs a login ({reason}): accept its terms on its page and log in with "
                f"`hf auth login` or HF_TOKEN, or {instead}"
            ) from None
        raise UserError(f"no folder at {name}, and the hub gave no such model ({reason}); {instead}") from None


def _is_closed(error: Exception) -> bool:
    """True if the hub refused without a login: for a gated, private or missing repository, between which it does not distinguish."""
    from huggingface_hub.errors import RepositoryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, RepositoryNotFoundError) or status in (401, 403)


def pickle_message(path: Path) -> str:
    return (
        f"{path} is a pickle checkpoint, which runs code when it is opened; if you trust it, convert it: load it with "
        "diffusers' from_pretrained(..., use_safetensors=False) and save_pretrained(..., safe_serialization=True)"
    )


def check_files(folder: Path) -> None:
    """Raises `UserError` for a pipe, device or socket in a folder whose files libraries open by name, since reading it may never end."""
    odd = next((path for path in sorted(folder.iterdir()) if path.exists() and not (path.is_file() or path.is_dir())), None)
    if odd:
        raise UserError(f"{folder} must hold only files; {odd.name} is {found_at(odd)}: fetch the model again")


def check_weights(folder: Path, weights: Weights | None = None) -> None:
    """Raises `UserError` for a folder whose weights are missing, damaged, quantised, or in a pickle that runs code.

    Also for pipes, and for a config.json with more layers than there are weights, since a library would build those layers first.
    weights: weights to use with the folder's config.json instead of the folder's own.
    """
    check_files(folder)
    weights = weights or find(folder)
    kinds = {file: header(file) for file in weights.hashed}
    refuse_depth(weights.config, sum(map(len, kinds.values())))
    for file in weights.files:
        refuse_quantised(file, kinds[file])


def refuse_depth(path: Path, weights: int) -> None:
    parts = [read_json(path, f"{path.parent} must have a config.json that describes its network")]
    while parts:
        for key, value in parts.pop().items():
            numbers = value if isinstance(value, list) else [value]
            if re.search(LAYERS, key) and any(type(number) is int and number > weights for number in numbers):
                raise UserError(f"{key} of {path} must fit its weights ({weights} tensors); got {shown(json.dumps(value))}")
            parts += [value] if isinstance(value, dict) else []


def count_weights(file: Path) -> int:
    """The number of tensors in a file of weights; raises `UserError` for a file of another kind, or one that is cut off."""
    return len(header(file))


def pretrained(name: str, folder: Path, dtype: torch.dtype, weights: Weights | None = None) -> torch.nn.Module:
    """A diffusers network with the weights in a folder, or with `weights`; raises `UserError` if they do not fit its config.json."""
    kind, weights = _kind(name), weights or find(folder)
    folder = weights.place
    check_settings(kind, read_json(weights.config, ""), weights.config)
    _say(weights)
    # safetensors, json and torch each raise their own; all mean unusable weights
    with refusing(Exception, f"{folder} cannot be loaded: {WHY}", first_lines), viewed(weights, DIFFUSERS) as view:
        network, info = kind.from_pretrained(
            view,
            torch_dtype=dtype,
            use_safetensors=weights.safe,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,
        )
    if info["missing_keys"] or info["unexpected_keys"]:
        odd = (list(info["missing_keys"]) + list(info["unexpected_keys"]))[0]
        raise UserError(f"{folder}: the weights do not match config.json (first: {odd}); re-export the model")
    network.register_to_config(_name_or_path=None)  # else a saved copy would say where it came from, and differ by place
    if next(network.parameters()).dtype != dtype:  # SD3 comes as float32 whatever is wanted, without a word
        torch.nn.Module.to(network, dtype)
    return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _kind(name: str) -> Any:
    """The class of a network, from diffusers or, for what `convert` wrote, from here."""
    if name == CONVERTED:
        from diffleak.hub.research.network import ResearchUNet

        return ResearchUNet
    return getattr(diffusers_library(), name)


def from_transformers(kind: Any, folder: Path, where: str = "", **how: Any) -> tuple[Any, dict[str, Any]]:
    """A transformers network and its loading report; raises `UserError` for weights whose shapes do not fit config.json.

    where: what messages call the weights, if they are not the folder's. Other errors of the library pass unchanged.
    """
    how |= {"local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if "state_dict" in how:  # the weights themselves, of a model in one file
        network, info = kind.from_pretrained(None, use_safetensors=True, **how)
    else:
        weights = find(folder)
        _say(weights)
        with viewed(weights, TRANSFORMERS) as view:
            network, info = kind.from_pretrained(view, use_safetensors=weights.safe, **how)
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        said = f"{key} has shape {tuple(found)}, where {tuple(expected)} is expected"
        raise UserError(unfit(where or f"{folder}", said, not where))
    return network, info


def unfit(where: str, said: str, of_folder: bool = True) -> str:
    """The message for weights, of a folder or of a model in one file, that do not fit their config.json."""
    way = "re-export the model" if of_folder else "give the --model-config of this model, or fetch the file again"
    return f"{where}: the weights do not match config.json ({said}); {way}"


def _say(weights: Weights) -> None:
    """Warns which copy was opened; every caller collects it with `heard`."""
    if said := said_of(weights):
        warnings.warn(said, stacklevel=2)


def autoencoder_folder(folder: Path) -> Path | None:
    found = [folder / name for name in AUTOENCODER_FOLDERS if (folder / name).is_dir()]
    if len(found) > 1:
        raise UserError(f"{folder} must hold one autoencoder; it has {' and '.join(f.name + '/' for f in found)}")
    return found[0] if found else None


def hashed_weights(folder: Path) -> list[Path]:
    """The files of weights that the fingerprint of a folder covers: those that are opened, or none."""
    return find(folder).hashed if chosen(copies(path.name for path in folder.iterdir())) else []


def fingerprint(model: str | Path, part: str = "", weights: Weights | None = None) -> str:
    """A hash of the weights, configs and schedule of the model in a folder.

    weights: the weights that replace those of its denoiser, whose folder is `part`.
    """
    folder = Path(model)
    files = [folder / "scheduler" / "scheduler_config.json"]
    if (folder / INDEX).is_file() and any((folder / part).is_dir() for part in TEXT_PARTS):
        files.append(folder / INDEX)  # says how captions are embedded: the pipeline, and what no caption means to it
    if (folder / INDEX).is_file() and read_json(folder / INDEX, "").get("_class_name") == IN_UNIT_RANGE:
        files.append(folder / INDEX)  # says in which units its sigmas are
    if (folder / DUAL).is_file():
        files.append(folder / DUAL)
    for name in PARTS:
        if name != "scheduler" and (folder / name).is_dir():
            own = weights if weights and name == part else None
            files += own.hashed if own else hashed_weights(folder / name)
            config = own.config if own else folder / name / "config.json"
            files += [config] if config.is_file() else []
            files += sorted(file for ending in TOKENIZER_FILES for file in (folder / name).glob(ending) if name.startswith("tokenizer"))
    return hash_weights(files)


def text_fingerprint(folder: Path) -> str:
    """A hash of the weights, configs and vocabularies of the text encoders in a folder."""
    parts = [folder / part for part in TEXT_PARTS if (folder / part).is_dir()]
    vocabularies = [file for part in parts for ending in TOKENIZER_FILES for file in part.glob(ending)]
    return hash_weights(sorted([*vocabularies, *(file for part in parts for file in hashed_weights(part))]))


def diffusers_library() -> Any:
    """diffusers without its own warnings and progress bars; `heard` collects its warnings while weights are read."""
    import diffusers

    _silence(diffusers.utils.logging)
    return diffusers


def transformers_library() -> Any:
    """transformers, silenced in the same way; raises ImportError if it is not installed."""
    import transformers

    _silence(transformers.utils.logging)
    return transformers


@cache
def _silence(logging_of: Any) -> None:
    """Silences a library once, so that `heard` can raise the level again later."""
    warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)  # the older name, which every version knows
    logging_of.set_verbosity_error()
    logging_of.disable_progress_bar()


@contextmanager
def heard() -> Iterator[list[str]]:
    """Yields a list that collects the warnings of diffusers, transformers, peft and torch, each once and on one line.

    CHATTER and deprecations are left out. Nothing reaches stderr.
    """
    diffusers_library()
    with suppress(ImportError):
        transformers_library()
    found: list[str] = []

    def hear(message: str) -> None:
        line = " ".join(re.sub(r"\x1b\[\d*m", "", message).split())[:LONGEST]
        if line not in found and not any(re.match(known, line) for known in CHATTER):
            found.append(line)

    ear = logging.Handler(logging.WARNING)
    ear.emit = lambda record: hear(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for logger in loggers:
                logger.handlers, logger.propagate = [ear], False
                logger.setLevel(logging.WARNING)
            yield found
        finally:
            for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
                logger.setLevel(level)
                logger.handlers, logger.propagate = handlers, propagate
            for warning in caught:
                if not issubclass(warning.category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
                    hear(str(warning.message))
