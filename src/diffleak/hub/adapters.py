"""LoRA adapters: found, applied to a text-to-image pipeline, and merged into its weights.

    W' = W + scale alpha / r  B A          for every adapted layer (Hu et al. 2021, arXiv 2106.09685, section 4.1)

Two layouts are read, both safetensors: the file that diffusers saves (`pytorch_lora_weights.safetensors`, or any file that
`load_lora_weights` takes), and the folder that peft saves (`adapter_model.safetensors` beside `adapter_config.json`), which
is for the denoiser alone. After merging the networks are plain modules again: an adapter costs nothing per forward.
Both libraries only warn of weights that fit nowhere; here every one must end up in a layer.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffleak.errors import UserError, first_lines, pip_install
from diffleak.files import hash_files
from diffleak.hub.folders import PICKLES, diffusers_library, downloaded, pickle_message

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
CONFIG = "adapter_config.json"  # of peft
NAME = "diffleak"  # of the adapter, while it is loaded
PEFT_PREFIX = "base_model.model."
SECOND = (".lora_B.", ".lora_up.", ".lora.up.", "_lora.up.")  # B of B A, which is zero until it is trained
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def adapter_file(lora: str | Path) -> Path:
    """The safetensors file of an adapter: a file, in a folder, or of a hub id.

    Raises `UserError` when peft is missing, for pickles, for a folder with none of FILES, and for what is not there.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError(f"--lora needs peft: {pip_install('lora')}") from None
    path = Path(lora)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(pickle_message(path) if path.suffix in PICKLES else f"a LoRA must be a .safetensors file; got {path}")
        return path
    if not path.is_dir():
        if str(lora).startswith((".", "/", "~")) or str(lora).count("/") != 1:
            raise UserError(f"--lora must be a .safetensors file, a folder, or a hub id (owner/name); found nothing at {lora}")
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
        base = json.loads(record.read_text(encoding="utf-8")).get("base_fingerprint")
    except (OSError, ValueError, AttributeError):
        return  # from elsewhere, or nothing that can be read
    if base not in (None, model):
        raise UserError(f"the LoRA {file} was trained on another model than this one, as its {record.name} says; give that one")


def apply(pipeline: Any, part: str, file: Path, scale: float) -> None:
    """Merges an adapter into the networks of a pipeline, in place; `part` is its denoiser's name, unet or transformer.

    Raises `UserError` unless every weight of the adapter fits a layer and every layer gets all of its own.
    """
    raw = _read(file)
    parts = {name: getattr(pipeline, name) for name in (part, *TEXT_ENCODERS) if getattr(pipeline, name, None) is not None}
    with _quiet():
        try:
            if all(key.startswith(PEFT_PREFIX) for key in raw):
                _merge_peft(parts[part], file, raw, scale)
            else:
                _merge_diffusers(pipeline, parts, file, raw, scale)
        except UserError as error:
            raise UserError(f"the LoRA {file} does not match the model: {error}") from None
        except Exception as error:  # peft, diffusers and torch each raise their own; all mean an adapter of another model
            odd = _misfit(raw, parts, part)
            raise UserError(f"the LoRA {file} does not match the model (first: {odd}): {first_lines(error)}") from None


def _merge_diffusers(pipeline: Any, parts: Mapping[str, Any], file: Path, raw: Mapping[str, Tensor], scale: float) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(
            f"diffusers reads no LoRA file for a {type(pipeline).__name__}; give a folder of peft, with {FILES[1]} and {CONFIG}"
        )
    part = next(iter(parts))  # the denoiser
    config = {"unet_config": parts[part].config} if part == "unet" else {}
    made = pipeline.lora_state_dict(file.parent, weight_name=file.name, **config)
    converted = made[0] if isinstance(made, tuple) else made
    dropped = [key for key in raw if key not in converted and not key.endswith("alpha")]
    if dropped and (set(raw) & set(converted) or "dora_scale" in "".join(dropped)):  # else it is another naming, converted as a whole
        raise UserError(f"diffusers takes no {dropped[0]}")
    shapes = {name: _shapes(module) for name, module in parts.items()}
    pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=NAME)
    _check_all_used({k: v for k, v in converted.items() if not k.endswith("alpha")}, parts.values())
    pipeline.fuse_lora(components=[name for name in parts if name in pipeline._lora_loadable_modules], lora_scale=scale, safe_fusing=True)
    pipeline.unload_lora_weights()
    if {name: _shapes(module) for name, module in parts.items()} != shapes:
        raise UserError("it changes the layers of the network and not only their weights, which is another model")


def _merge_peft(network: Any, file: Path, raw: Mapping[str, Tensor], scale: float) -> None:
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    if not file.with_name(CONFIG).is_file():
        raise UserError(f"peft writes {CONFIG} beside {file.name}, with the layers and their scale; it is missing")
    config = LoraConfig.from_pretrained(str(file.parent))
    wrapped = PeftModel(network, config, adapter_name=NAME)
    set_peft_model_state_dict(wrapped, dict(raw), adapter_name=NAME)
    _check_all_used(raw, [network])
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(scale)
    wrapped.merge_and_unload(safe_merge=True)
    if hasattr(network, "peft_config"):
        del network.peft_config
    network.eval().requires_grad_(False)


def _check_all_used(given: Mapping[str, Tensor], networks: Iterable[Any]) -> None:
    """Raises `UserError` unless the weights given are those that the adapted layers hold: told by content, since names are converted."""
    lacking = lambda name: UserError(f"it lacks {name.replace(f'.{NAME}', '')}")
    named = [pair for network in networks for pair in network.named_parameters()]
    dtype = min((p.dtype for _, p in named), key=lambda kind: torch.finfo(kind).bits)  # some layers stay in float32 in any model
    layers = {n: p for n, p in named if f".{NAME}" in n}
    for name, value in layers.items():
        if value.is_meta:
            raise lacking(name)
    held = Counter(_digest(p, dtype) for p in layers.values())
    for key, value in given.items():
        digest = _digest(value, dtype)
        if not held[digest]:
            raise UserError(f"its {key} fits no layer")
        held[digest] -= 1
    empty = next((n for n, p in layers.items() if held[_digest(p, dtype)]), None)
    if empty:
        raise lacking(empty)


def _digest(value: Tensor, dtype: torch.dtype) -> tuple[tuple[int, ...], str]:
    """A weight's shape, and its content at a precision."""
    plain = value.detach().to("cpu", dtype).contiguous()
    return tuple(value.shape), hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _misfit(raw: Mapping[str, Tensor], parts: Mapping[str, Any], part: str) -> str:
    """The first key whose layer is not in the model or has another shape, as far as names say; else the first of all."""
    for key, value in raw.items():
        name, _, rest = (f"{part}.{key.removeprefix(PEFT_PREFIX)}" if key.startswith(PEFT_PREFIX) else key).partition(".")
        layer = dict(parts[name].named_modules()).get(rest.partition(".lora")[0]) if name in parts else None
        weight = getattr(layer, "weight", None)
        if weight is None or (".lora_A." in key and value.shape[1] != weight.shape[1]) or (".lora_B." in key and len(value) != len(weight)):
            return key
    return next(iter(raw))


def _shapes(module: Any) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        raw = load_file(file)
    except Exception as error:  # safetensors has an exception of its own
        raise UserError(f"the LoRA {file} cannot be read: {first_lines(error)}") from None
    if not raw:
        raise UserError(f"the LoRA {file} holds no weights")
    second = [value for key, value in raw.items() if any(part in key for part in SECOND)]
    if second and not any(value.any() for value in second):
        raise UserError(f"the LoRA {file} changes nothing: all of its B matrices are zero, as they are before training")
    return raw


@contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers and peft warn of, an adapter that does not fit, is an error here."""
    logging = diffusers_library().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
