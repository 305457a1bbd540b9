"""Chooses the weights of a model's denoiser: its own, their average, or those of `--network`.

    MODEL/unet/, MODEL/unet_ema/                       the folders of diffusers' training scripts
    unet/x.safetensors, unet/x.non_ema.safetensors     two copies in one folder, where the plain one is the average

`--network` takes a folder of a denoiser with its config.json, a folder that contains such a folder, a folder that accelerate's save_state
wrote (model.safetensors or pytorch_model.bin), or one file of weights. Without a config.json the one of MODEL is used.
"""

import os
import shlex
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from diffleak.errors import UserError, shown
from diffleak.hub.configs import read_json
from diffleak.hub.folders import CONVERTED, LONGEST_PATH, NETWORKS, PICKLES, SECOND, check_files, pickle_message
from diffleak.hub.weights import AVERAGE, EMA, NON_EMA, SAFE, Copy, Weights, chosen, copies, find, header
from diffleak.records.headers import ADAPTER_STEMS, adapter_weight
from diffleak.work.reading import STATE_DICTS

WHOLE_KEYS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")  # of all of a model in one file
ORIGINAL_KEYS = ("input_blocks.", "double_blocks.", "joint_blocks.", "single_blocks.")  # of a denoiser in the layout of its first code
TO_FP32 = "zero_to_fp32.py"  # DeepSpeed leaves it in a checkpoint
DEEPSPEED = (TO_FP32, "*mp_rank_*_model_states.pt", "*/*mp_rank_*_model_states.pt", "*zero_pp_rank_*", "*/*zero_pp_rank_*")
FSDP = ("*.distcp", "*/*.distcp")
CLASS = "_class_name"
SAME = (CLASS, "in_channels", "cross_attention_dim", "joint_attention_dim", "caption_channels", "addition_embed_type")
OF_MODEL = "for MODEL and --network"  # a reference, a teacher and a model to fine-tune have no --weights
LEGACY = "Transformer2DModel"  # the first name of several classes
SAVED_TOO = ("model_*", "pytorch_model_*")  # the other networks that accelerate saved


def denoiser_weights(own: Path, network: str | Path | None = None, want: str | None = None) -> tuple[Weights | None, list[str]]:
    """The weights for the denoiser of a model, whose own folder is `own`, and notes on the choice.

    The weights are None if nothing was chosen, so that the folder's own are used. Raises `UserError` if `network` is no denoiser that
    fits, or if the wanted weights, ema or non_ema, are missing.
    """
    if network is not None:
        return _other(Path(network), own, want)
    if want is None or not own.is_dir():
        return None, _not_opened(own)
    return _wanted(own, want), []


def place_of(network: str | Path) -> Path:
    """The folder that holds a network's train.json and split.json."""
    folder = Path(network).parent if os.path.isfile(network) else Path(network)
    return folder.parent if folder.name.removesuffix(AVERAGE) in NETWORKS else folder


def _wanted(own: Path, want: str | None) -> Weights:
    """The weights in the folder of a denoiser, or in the folder of its average beside it."""
    average = own.with_name(own.name + AVERAGE)
    if want is None or not (average / "config.json").is_file():
        return find(own, want)
    return replace(find(average if want == EMA else own), asked=True)


def _not_opened(own: Path) -> list[str]:
    """A note if a folder has both averaged and other weights, which says which of them are measured."""
    average = own.with_name(own.name + AVERAGE)
    if (average / "config.json").is_file() and own.is_dir():
        return [f"{own.name}/ is read, and not the averaged weights (EMA) in {average.name}/; {OF_MODEL}, --weights {EMA} reads those"]
    files = {copy.variant: copy.files[0] for copy in reversed(copies(path.name for path in own.iterdir()))} if own.is_dir() else {}
    other = next((variant for variant in (NON_EMA, EMA) if variant in files and "" in files), None)
    if other is None:
        return []
    kind = "the average (EMA)" if other == NON_EMA else "not the average (EMA)"
    return [f"{own.name}/ holds two copies; {files['']} is read ({kind}); {OF_MODEL}, --weights {other} reads {files[other]}"]


def _other(path: Path, own: Path, want: str | None) -> tuple[Weights, list[str]]:
    """The weights that `--network` names."""
    if os.path.isfile(path):
        if want:
            raise UserError(f"--weights chooses between two copies in a folder, and --network is the file {path}; leave out --weights")
        return _file(path, own), []
    if not os.path.isdir(path):
        raise UserError(f"--network must be a folder or a file of weights; found nothing at {shown(path, LONGEST_PATH)}")
    check_files(path)
    said = list[str]()
    names = [entry.name for entry in path.iterdir()]
    inside = [name for name in (own.name, own.name + AVERAGE) if (path / name).is_dir()]
    other_part = next((part for part in NETWORKS if part != own.name and (path / part).is_dir()), None)
    if (path / (own.name + SECOND)).is_dir():
        raise UserError(f"--network must be one denoiser, and {path} holds two: name the folder of one, {path / own.name}")
    if inside:
        taken = _wanted(path / own.name, want) if inside[0] == own.name else find(path / inside[0], want)
        said = [] if want else _not_opened(path / own.name)
    elif other_part:
        raise UserError(
            f"--network must hold a denoiser of MODEL's kind, a {own.name}/; {path} holds a {other_part}/: "
            "give the model that it was made for"
        )
    elif any(Path(name).stem in ADAPTER_STEMS for name in names):
        raise UserError(f"--network must be a whole denoiser; {path} is a LoRA: use --lora {shlex.quote(str(path))}")
    elif chosen(copies(name for name in names if not any(fnmatch(name, each) for each in DEEPSPEED))) is None and (
        layout := _sharded_by_trainer(path)
    ):
        raise UserError(f"--network must be a whole denoiser; {path} is {layout}, and give OUT")
    elif (path / "config.json").is_file():
        taken = _wanted(path, want)
    else:
        if want:
            raise UserError(f"--weights chooses between {own.name}/ and {own.name}{AVERAGE}/; {path} has neither: leave it out")
        taken = find(path, config=own / "config.json")
        more = sorted(entry.name for each in SAVED_TOO for entry in path.glob(each) if entry.suffix in (SAFE, *STATE_DICTS))
        said = (
            [
                f"{path.name}/ holds {taken.files[0].name} and {more[0]}; the first is measured: to measure the other, give its file as "
                "--network"
            ]
            if more
            else []
        )
    _refuse_others(taken, own)
    return taken, said


def _file(path: Path, own: Path) -> Weights:
    """One file of weights, for the network that MODEL's config.json describes."""
    if path.suffix not in (SAFE, *STATE_DICTS):
        known = ", ".join((SAFE, *STATE_DICTS))
        raise UserError(pickle_message(path) if path.suffix in PICKLES else f"--network must be a folder or a file of {known}; got {path}")
    taken = Weights((path,), own / "config.json", Copy(path.stem, "", path.suffix, (path.name,), None), path, asked=True)
    _refuse_others(taken, own)
    return taken


def _refuse_others(taken: Weights, own: Path) -> None:
    """Raises `UserError` for weights that are no denoiser in diffusers' layout, or one of another kind than MODEL's."""
    names = [*header(taken.files[0])]
    if adapter_weight(names):
        raise UserError(f"--network must be a whole denoiser; {taken.place} is a LoRA: use --lora {shlex.quote(str(taken.place))}")
    if _begins(names, WHOLE_KEYS):
        raise UserError(f"--network must be a denoiser alone; {taken.place} is a whole model in one file: give it as MODEL")
    converted = (
        taken.config.is_file() and read_json(taken.config, "").get("_class_name") == CONVERTED
    )  # whose names are the original code's
    if not converted and _begins(names, ORIGINAL_KEYS):
        raise UserError(
            f"--network must be in diffusers' layout; {taken.place} is in that of the original code (as for ComfyUI): open it with "
            "diffusers' from_single_file, save it with save_pretrained, and give that folder"
        )
    base = own / "config.json"
    if taken.config == base or not base.is_file():
        return
    one, other = read_json(taken.config, f"{taken.place} must have a config.json that describes its network"), read_json(base, "")
    if CLASS in other and CLASS not in one:  # of a text encoder, or of no network at all
        raise UserError(f"--network must be a denoiser of diffusers; {taken.config} names no {CLASS}: give the model that it was made for")
    for key in SAME:
        if key in one and key in other and one[key] != other[key] and LEGACY not in (one[key], other[key]):
            said = f"{key} is {shown(one[key])} in {taken.config} and {shown(other[key])} in MODEL"
            raise UserError(f"--network must be a denoiser of MODEL's kind; {said}: give the model that it was made for")


def _begins(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _sharded_by_trainer(path: Path) -> str | None:
    """The kind of sharded checkpoint in a folder that only its trainer can merge, with the command for that; None for others."""
    if any(any(path.glob(each)) for each in DEEPSPEED):
        whole = next((each for each in (path, path.parent) if (each / TO_FP32).is_file()), path)
        return f"a DeepSpeed checkpoint: merge it with `python {_typed(whole / TO_FP32)} {_typed(whole)} OUT`"
    if any(any(path.glob(each)) for each in FSDP):
        return f"an FSDP checkpoint: merge it with `accelerate merge-weights {_typed(path)} OUT`"
    return None


def _typed(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(shown(path, LONGEST_PATH))
