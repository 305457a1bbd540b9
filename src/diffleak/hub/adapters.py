"""LoRA adapters: found, applied to a text-to-image pipeline, and merged into its weights.

    W' = W + scale alpha / r  B A          for every adapted layer (Hu et al. 2021, arXiv 2106.09685, section 4.1)

Two layouts are read, both safetensors: a file with the names of diffusers, kohya or ComfyUI, and the folder that peft saves
(`adapter_model.safetensors` beside `adapter_config.json`), which is for the denoiser alone. diffusers gives the names, peft
merges, and `effect` checks against the raw file that every layer got its own strength, and no other layer changed. After
merging the networks are plain modules again: an adapter costs nothing per forward.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffleak.diffusion.denoiser import LowRank
from diffleak.errors import UserError, first_lines, pip_install, shown
from diffleak.hub import effect
from diffleak.hub.configs import read_json
from diffleak.hub.effect import LONGEST_NAME, PEFT_PREFIX, TEXT_ENCODERS
from diffleak.hub.folders import LONGEST_PATH, PICKLES, downloaded, pickle_message
from diffleak.work.files import hash_files
from diffleak.work.reading import Unreadable, load_json, opened, parsing

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
CONFIG = "adapter_config.json"  # of peft
NAME = "diffleak"  # of the adapter, while it is loaded
SETTINGS = ("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora")  # of peft, which decide the strength of a layer
SECOND = (".lora_B.", ".lora_up.", ".lora.up.", "_lora.up.")  # B of B A, which is zero until it is trained


def adapter_file(lora: str | Path) -> Path:
    """The safetensors file of an adapter: a file, in a folder, or of a hub id.

    Raises `UserError` when peft is missing, for pickles, for a folder with none of FILES, and for what is not there.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError(f"--lora needs peft: {pip_install('lora')}") from None
    path = Path(lora)
    if os.path.isfile(path):
        if path.suffix != ".safetensors":
            raise UserError(pickle_message(path) if path.suffix in PICKLES else f"a LoRA must be a .safetensors file; got {path}")
        return path
    if not os.path.isdir(path):
        if str(lora).startswith((".", "/", "~")) or str(lora).count("/") != 1:
            raise UserError(
                f"--lora must be a .safetensors file, a folder, or a hub id (owner/name); found nothing at {shown(lora, LONGEST_PATH)}"
            )
        path = downloaded(str(lora), [*FILES, CONFIG])
    found = [path / name for name in FILES if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
    if pickles and not found:
        raise UserError(pickle_message(pickles[0]))
    raise UserError(f"a LoRA's folder must hold {' or '.join(FILES)}; {lora} has {'both' if found else 'neither'}: name the file itself")


def adapter_fingerprint(file: Path, scale: float) -> str:
    """Which adapter this is and how strongly it is applied."""
    config = file.with_name(CONFIG)
    files = [file, config] if file.name == FILES[1] and config.is_file() else [file]
    return hashlib.sha256(f"{hash_files(files)} {scale!r}".encode()).hexdigest()


def refuse_other_base(file: Path, model: str) -> None:
    """Raises `UserError` if diffleak trained this adapter, and on another model than that with the fingerprint `model`."""
    record = file.with_name("train.json")
    try:
        base = load_json(record).get("base_fingerprint")
    except (OSError, ValueError, AttributeError):
        return  # from elsewhere, or nothing that can be read
    if base not in (None, model):
        raise UserError(f"the LoRA {file} was trained on another model than this one, as its {record.name} says; give that one")


def apply(pipeline: Any, part: str, file: Path, scale: float) -> tuple[list[str], dict[str, LowRank]]:
    """Merges an adapter into the networks of a pipeline, in place; `part` is its denoiser's name, unet or transformer.

    Returns what is to be said about its strength, and what it added to the denoiser's weights, by their names; of a DoRA, whose change
    is no product of two matrices, nothing. Raises `UserError` unless every weight of the adapter fits a layer, every layer is
    changed by scale alpha / r B A, and no other is changed.
    """
    raw = _read(file)
    networks = {name: getattr(pipeline, name) for name in (part, *TEXT_ENCODERS) if getattr(pipeline, name, None) is not None}
    try:
        of_peft = all(key.startswith(PEFT_PREFIX) for key in raw)
        settings = _peft_settings(file) if of_peft else effect.header_settings(file)
        effect.refuse_other_kinds(raw, settings)
        changes = effect.updates(raw, settings, networks)
        was = effect.before(changes, networks)
        with _exact():
            if of_peft:
                _merge(networks[part], _peft_config(file), {k.removeprefix(PEFT_PREFIX): v for k, v in raw.items()}, scale)
            else:
                for name, weights in _by_network(pipeline, networks, raw).items():
                    own = {key: settings[f"{name}.{key}"] for key in SETTINGS if f"{name}.{key}" in settings and not _alphas(raw)}
                    _merge(networks[name], _config(weights, own), weights, scale)
        said = effect.check(changes, was, networks, scale)
    except UserError as error:
        raise UserError(f"the LoRA {file} does not match the model: {error}") from None
    except Exception as error:  # peft, diffusers and torch each raise their own; all mean an adapter of another model
        raise UserError(f"the LoRA {file} does not match the model: {first_lines(error)}") from None
    silent = [update for update in changes if update.alpha == 0]
    if silent and len(silent) < len(changes):
        said.append(f"the LoRA has alpha 0 in {len(silent)} of its {len(changes)} layers, which it leaves as they are")
    if len(silent) == len(changes):
        raise UserError(f"the LoRA {file} changes nothing: its alpha is 0 in every layer")
    added = {
        f"{update.layer}.weight": LowRank(update.down, update.up, scale * update.strength)
        for update in changes
        if update.network == part and update.magnitude is None
    }
    return said, added


def _by_network(pipeline: Any, networks: Mapping[str, Any], raw: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights for every network under peft's names, alphas multiplied into B. The names are as diffusers converts them."""
    from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    part = next(iter(networks))  # the denoiser
    if not hasattr(pipeline, "lora_state_dict") and not all(key.partition(".")[0] in networks for key in raw):
        raise UserError(
            f"diffusers reads no such names for a {type(pipeline).__name__}; give a folder of peft, with {FILES[1]} and {CONFIG}"
        )
    config = {"unet_config": networks[part].config} if part == "unet" else {}
    given = _with_alphas_in_b(raw)
    made = pipeline.lora_state_dict(given, **config) if hasattr(pipeline, "lora_state_dict") else given
    converted = made[0] if isinstance(made, tuple) else made
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in converted.items():
        if key.endswith(".alpha"):
            continue  # in B by now
        name, _, rest = key.partition(".")
        if name not in networks:
            raise UserError(f"its {shown(key, LONGEST_NAME)} fits no layer")
        found.setdefault(name, {})[rest] = value
    for name, weights in found.items():
        if name == part:
            found[name] = convert_unet_state_dict_to_peft(weights)
            continue
        for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):  # named, since diffusers guesses wrong for some of the layers
            weights = convert_state_dict_to_peft(weights, kind)
        flat = not hasattr(networks[name], "text_model")  # which newer versions of transformers have no more
        found[name] = {key.removeprefix("text_model.") if flat else key: value for key, value in weights.items()}
    return found


def _alphas(raw: Mapping[str, Tensor]) -> list[str]:
    return [key for key in raw if key.endswith(".alpha")]


def _with_alphas_in_b(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same adapter with every B times its own alpha / r and every alpha r: diffusers has one alpha for most layers."""
    made = dict(raw)
    for key in _alphas(raw):
        stem = key.removesuffix(".alpha")
        second = next((stem + middle + "weight" for middle in SECOND if stem + middle + "weight" in raw), None)
        if second is not None:
            rank = raw[second].shape[1]
            made[second] = raw[second].double() * (raw[key].double() / rank)
            made[key] = torch.tensor(float(rank))
    return made


def _config(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Any:
    """peft's settings for just these layers, each at its own rank; without a lora_alpha in `settings` each at strength 1."""
    from peft import LoraConfig

    ranks = {key.partition(".lora_B.")[0]: value.shape[1] for key, value in weights.items() if ".lora_B." in key}
    exactly = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items()}
    alphas = {} if "lora_alpha" in settings else {"lora_alpha": 1, "alpha_pattern": exactly}
    dora = any("lora_magnitude_vector" in key for key in weights)
    layers = "|".join(map(re.escape, ranks))
    return LoraConfig(**{"use_dora": dora, **settings, **alphas, "r": 1, "rank_pattern": exactly, "target_modules": layers})


def _peft_settings(file: Path) -> dict[str, Any]:
    return read_json(file.with_name(CONFIG), f"peft writes {CONFIG} beside {file.name}, with the layers and their scale")


def _peft_config(file: Path) -> Any:
    from peft import LoraConfig

    return LoraConfig.from_pretrained(str(file.parent))


def _merge(network: Any, config: Any, weights: Mapping[str, Tensor], scale: float) -> None:
    """Puts peft's layers into a network, merges them at `scale` and takes them out again."""
    from peft import PeftModel, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    wrapped = PeftModel(network, config, adapter_name=NAME)
    set_peft_model_state_dict(wrapped, {PEFT_PREFIX + key: value for key, value in weights.items()}, adapter_name=NAME)
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(scale)
    wrapped.merge_and_unload(safe_merge=True)
    if hasattr(network, "peft_config"):
        del network.peft_config
    network.eval().requires_grad_(False)


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        with opened(file, None), parsing():
            raw = load_file(file)
    except Unreadable as error:
        raise UserError(f"the LoRA {file} cannot be read: {error}") from None
    if not raw:
        raise UserError(f"the LoRA {file} holds no weights")
    broken = next((key for key, value in raw.items() if value.is_floating_point() and not bool(value.isfinite().all())), None)
    if broken:
        raise UserError(f"the LoRA {file} must hold finite numbers; its {shown(broken, LONGEST_PATH)} has NaN or infinity: export it again")
    second = [value for key, value in raw.items() if any(part in key for part in SECOND)]
    if second and not any(value.any() for value in second):
        raise UserError(f"the LoRA {file} changes nothing: all of its B matrices are zero, as they are before training")
    return raw


@contextmanager
def _exact() -> Iterator[None]:
    """Without TF32, in which accelerators multiply convolutions unless they are kept from it, to three digits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
