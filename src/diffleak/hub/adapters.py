"""Adapters: finds them and merges them into the weights of a text-to-image pipeline, one after the other.

    W' = W + scale alpha / r dW          for every adapted layer; dW of a LoRA is B A, those of other kinds are in `deltas`

Two layouts are read, as safetensors or state dicts: a file with the names of diffusers, kohya, LyCORIS or ComfyUI, and the folder that
peft saves (`adapter_model.safetensors` beside `adapter_config.json`), which adapts the denoiser only. If every layer is a plain LoRA
whose name diffusers knows, diffusers converts the names and peft merges; everything else is merged by the formula. `effect` checks against
the raw file that every layer got its own strength and that no other layer changed. After merging, the networks are plain modules again:
an adapter costs nothing per forward.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffleak.diffusion.denoiser import LowRank
from diffleak.diffusion.devices import without_tf32
from diffleak.errors import WHY, UserError, first_lines, pip_install, refusing, shown
from diffleak.hub import effect
from diffleak.hub.configs import read_json
from diffleak.hub.folders import LONGEST_PATH, PICKLES, file_of
from diffleak.hub.layer_names import TEXT_ENCODERS
from diffleak.hub.states import is_eighth, is_state, load_state
from diffleak.hub.updates import LONGEST_NAME, header_settings, refuse_other_kinds, updates
from diffleak.records.headers import ADAPTER_FILES, ADAPTER_STEMS, PEFT_CONFIG, PEFT_PREFIX, peft_config
from diffleak.records.plan import Adapter
from diffleak.work.files import hash_file
from diffleak.work.listed import split_named, strength_of
from diffleak.work.reading import Unreadable, load_json
from diffleak.work.remembered import hash_weights

STATES = tuple(f"{stem}.bin" for stem in ADAPTER_STEMS)  # which are read where there are no ADAPTER_FILES
NAME = "diffleak"  # of the adapter, while it is loaded
SETTINGS = ("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora")  # of peft, which decide the strength of a layer
SECOND = (".lora_B.", ".lora_up.", ".lora.up.", "_lora.up.")  # B of B A, which is zero until it is trained


@dataclass(frozen=True)
class Applied:
    """An adapter to apply: its name and strength as the user gave them, its file, and `scale`, its strength times --lora-scale."""

    record: Adapter
    file: Path
    scale: float


def named_adapters(lora: str, scale: float = 1.0) -> tuple[Applied, ...]:
    """The adapters in a list like `A@0.8,B`, each at its own strength times `scale`.

    Raises `UserError` as `adapter_file` does, for a strength that is 0 or not finite, and for an adapter that is given twice.
    """
    found: list[Applied] = []
    for name, value in split_named(lora, "--lora"):
        strength = 1.0 if value is None else strength_of(value)
        if strength is None and not os.path.exists(name):
            name, strength = f"{name}@{value}", 1.0  # a name with an @ in it, of what is not there or of no path
        if strength is None or not isfinite(strength * scale):
            said = f"{shown(name, LONGEST_PATH)} has {shown(value)}, times --lora-scale {scale:g}"
            raise UserError(f"the strength of a LoRA, after its @, must be a finite number; {said}")
        if strength * scale == 0:
            raise UserError(f"strength 0 removes the LoRA {shown(name, LONGEST_PATH)}; leave it out, or give another strength")
        file = adapter_file(name)
        made = Applied(Adapter(name=name, strength=strength, sha256=_hash(file)), file, scale if strength == 1 else strength * scale)
        same = next((other for other in found if other.record.sha256 == made.record.sha256), None)
        if same:
            raise UserError(
                f"each LoRA must be given once; {shown(name, LONGEST_PATH // 2)} and {shown(same.record.name, LONGEST_PATH // 2)} are the "
                "same file: give it once, at the sum of the strengths"
            )
        found.append(made)
    return tuple(found)


def _hash(file: Path) -> str:
    with refusing(Unreadable, f"the LoRA {file} cannot be read: {WHY}"):
        return hash_file(file)


def adapter_file(lora: str | Path) -> Path:
    """The file of an adapter that is given as a file, a folder or a hub id.

    Raises `UserError` if peft is not installed, for a folder with none of ADAPTER_FILES and STATES, and for a path that does not exist.
    """
    with refusing(ImportError, f"a LoRA needs peft: {pip_install('lora')}"):
        import peft  # noqa: F401
    return file_of(lora, "--lora", "a LoRA", (ADAPTER_FILES, STATES), (PEFT_CONFIG,))


def adapter_fingerprint(file: Path, scale: float) -> str:
    """A hash of an adapter's files and of the scale at which it is applied."""
    config = peft_config(file)
    files = [file, config] if config else [file]
    return hashlib.sha256(f"{hash_weights(files)} {scale!r}".encode()).hexdigest()


def refuse_other_base(file: Path, model: str) -> None:
    """Raises `UserError` if diffleak trained this adapter on another model than the one with the fingerprint `model`."""
    record = file.with_name("train.json")
    try:
        content = load_json(record)
        bases = [content.get(key) for key in ("base_fingerprint", "base_file_fingerprint")]
    except (OSError, ValueError, AttributeError):
        return  # from elsewhere, or nothing that can be read
    if any(bases) and model not in bases:
        raise UserError(f"the LoRA {file} was trained on another model, says the {record.name} beside it; give that model")


def apply(pipeline: Any, part: str, file: Path, scale: float) -> tuple[list[str], dict[str, LowRank] | None]:
    """Merges an adapter into the networks of a pipeline, in place; `part` is its denoiser's name, unet or transformer.

    Returns warnings about its strength, and what it added to the denoiser's weights by name, which is None if a change is no product of
    two matrices, as with a DoRA or a LoKr. Raises `UserError` unless every weight of the adapter fits a layer, every such layer changes
    as the adapter's kind says, and no other layer changes.
    """
    raw = _read(file)
    networks = {name: getattr(pipeline, name) for name in (part, *TEXT_ENCODERS) if getattr(pipeline, name, None) is not None}
    # peft, diffusers and torch each raise their own; all mean an adapter of another model
    with refusing((UserError, Exception), f"the LoRA {file} does not match the model: {WHY}", first_lines):
        raw = _with_prefix(raw, part, networks[part])
        of_peft = all(key.startswith(PEFT_PREFIX) for key in raw)
        header = {} if file.suffix in PICKLES else header_settings(file)
        needed = f"peft writes {PEFT_CONFIG} beside {file.name}, with the layers and their scale"
        settings = read_json(file.with_name(PEFT_CONFIG), needed) if of_peft else header
        refuse_other_kinds(raw, settings)
        changes = updates(raw, settings, networks)
        was = effect.before(changes, networks)
        with without_tf32():  # which would round what they add to three digits
            ways = _by_peft(pipeline, networks, raw, file, settings, of_peft) if all(update.plain for update in changes) else None
            if ways is None:
                effect.merge(changes, networks, scale)
            else:
                for name, (config, weights) in ways.items():
                    _merge(networks[name], config, weights, scale)
        said = effect.check(changes, was, networks, scale)
    silent = [update for update in changes if update.alpha == 0]
    if silent and len(silent) < len(changes):
        said.append(f"the LoRA has alpha 0 in {len(silent)} of its {len(changes)} layers, and changes nothing there")
    if len(silent) == len(changes):
        raise UserError(f"the LoRA {file} changes nothing: its alpha is 0 in every layer")
    if all(update.idle for update in changes):
        raise UserError(f"the LoRA {file} changes nothing: all its changes are zero, as they are before training")
    products = {f"{update.layer}.{update.parameter}": update.low_rank(scale) for update in changes if update.network == part}
    added = {name: product for name, product in products.items() if product is not None}
    return said, added if len(added) == len(products) else None


def together(first: Mapping[str, LowRank] | None, second: Mapping[str, LowRank] | None) -> dict[str, LowRank] | None:
    """What two adapters added to weights, their matrices side by side where both changed one weight; None if either is None."""
    if first is None or second is None:
        return None
    made = dict(first)
    for name, new in second.items():
        old = made.get(name)
        if old is not None:
            up = torch.cat([old.factor * old.up.flatten(1), new.factor * new.up.flatten(1)], dim=1)
            new = LowRank(torch.cat([old.down.flatten(1), new.down.flatten(1)]), up, 1.0)
        made[name] = new
    return made


def _with_prefix(raw: Mapping[str, Tensor], part: str, network: Any) -> dict[str, Tensor]:
    """The weights under full diffusers names: names of 2023 that begin with a layer get the denoiser's name in front."""
    layers = {name for name, _ in network.named_children()}
    return {f"{part}.{key}" if key.partition(".")[0] in layers else key: value for key, value in raw.items()}


def _by_peft(
    pipeline: Any, networks: Mapping[str, Any], raw: Mapping[str, Tensor], file: Path, settings: Mapping[str, Any], of_peft: bool
) -> dict[str, tuple[Any, dict[str, Tensor]]] | None:
    """peft's settings and weights for every network; None if diffusers cannot read the names."""
    part = next(iter(networks))
    if of_peft:
        from peft import LoraConfig

        config = LoraConfig.from_pretrained(str(file.parent))
        return {part: (config, {key.removeprefix(PEFT_PREFIX): value for key, value in raw.items()})}
    try:
        found = _by_network(pipeline, networks, raw)
    except Exception:  # each converter of diffusers raises its own for names that it does not know; `updates` has placed them all
        return None
    own = lambda name: {key: settings[f"{name}.{key}"] for key in SETTINGS if f"{name}.{key}" in settings and not _alphas(raw)}
    return {name: (_config(weights, own(name)), weights) for name, weights in found.items()}


def _by_network(pipeline: Any, networks: Mapping[str, Any], raw: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights for every network under peft's names, as diffusers converts them, with the alphas multiplied into B."""
    from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    part = next(iter(networks))  # the denoiser
    if not hasattr(pipeline, "lora_state_dict") and not all(key.partition(".")[0] in networks for key in raw):
        raise UserError(f"diffusers cannot read these names for a {type(pipeline).__name__}")
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
    """The same adapter with every B multiplied by its own alpha / r and alpha set to r, since diffusers uses one alpha for most layers."""
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
    """peft's settings for exactly these layers, each at its own rank, and at strength 1 unless `settings` have a lora_alpha."""
    from peft import LoraConfig

    ranks = {key.partition(".lora_B.")[0]: value.shape[1] for key, value in weights.items() if ".lora_B." in key}
    exactly = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items()}
    alphas = {} if "lora_alpha" in settings else {"lora_alpha": 1, "alpha_pattern": exactly}
    dora = any("lora_magnitude_vector" in key for key in weights)
    layers = "|".join(map(re.escape, ranks))
    return LoraConfig(**{"use_dora": dora, **settings, **alphas, "r": 1, "rank_pattern": exactly, "target_modules": layers})


def _merge(network: Any, config: Any, weights: Mapping[str, Tensor], scale: float) -> None:
    """Adds peft's layers to a network, merges them at `scale` and removes them again."""
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
    with refusing(Unreadable, f"the LoRA {file} cannot be read: {WHY}"):
        raw = load_state(file)
        if not is_state(raw) and not (isinstance(raw, dict) and not raw):
            raise Unreadable("it must be a dict of names and tensors, as torch.save writes the state dict of a LoRA")
    if not raw:
        raise UserError(f"the LoRA {file} holds no weights")
    whole = next((key for key, value in raw.items() if value.numel() > 1 and not value.is_floating_point()), None)
    if whole:
        kind = str(raw[whole].dtype).removeprefix("torch.")
        said = f"its {shown(whole, LONGEST_PATH)} is quantised (stored as {kind}): give a copy in 16 or 32 bits"
        raise UserError(f"the LoRA {file} must hold floating-point numbers; {said}")
    if eighths := sorted({str(value.dtype).removeprefix("torch.") for value in raw.values() if is_eighth(value)}):
        warnings.warn(f"{file.name} stores weights in 8 bits ({', '.join(eighths)}); the rounded weights are merged", stacklevel=2)
        raw = {key: value.float() if is_eighth(value) else value for key, value in raw.items()}  # torch hardly calculates with them
    broken = next((key for key, value in raw.items() if value.is_floating_point() and not bool(value.isfinite().all())), None)
    if broken:
        raise UserError(f"the LoRA {file} must hold finite numbers; its {shown(broken, LONGEST_PATH)} has NaN or infinity: export it again")
    second = [value for key, value in raw.items() if any(part in key for part in SECOND)]
    if second and not any(value.any() for value in second):
        raise UserError(f"the LoRA {file} changes nothing: all its B matrices are zero, as they are before training")
    return raw
