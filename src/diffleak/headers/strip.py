"""A copy of a .safetensors file with the same weights and only those texts in its header that somebody reads to load it.

    format                          transformers refuses a file without it
    lora_adapter_metadata           peft's settings (rank, alpha and where they differ), which diffusers and this package read
    ss_base_model_version, ss_v2    by these A1111 and Forge tell which base model an adapter is for
    ss_network_module, ss_network_dim, ss_network_alpha          of kohya's sd-scripts, for people and for merging
    modelspec: architecture, implementation, prediction_type, predict_key       of ComfyUI, SwarmUI, InvokeAI
    config                          ComfyUI reads the settings of LTX-Video's networks there
    _quantization_metadata, tensor_names    how quantised weights are stored: ComfyUI, torchao

Of these too a value with something private in it goes; of peft's settings the one that holds it, unless loading needs it. The
adapter_config.json that peft keeps beside an adapter is copied beside the copy, with null for the same settings.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from diffleak.errors import WHY, DiffleakError, UserError, refusing, shown
from diffleak.records.headers import PEFT_CONFIG, PEFT_WEIGHTS, findings, read_peft_config
from diffleak.work.files import BLOCK, write_atomic, write_new
from diffleak.work.reading import Header, Unreadable, load_header, opened

ADAPTER = "lora_adapter_metadata"
NEEDED = (
    *("format", ADAPTER, "ss_base_model_version", "ss_v2", "ss_network_module", "ss_network_dim", "ss_network_alpha"),
    *(f"modelspec.{key}" for key in ("sai_model_spec", "architecture", "implementation", "prediction_type", "predict_key")),
    *("config", "_quantization_metadata", "tensor_names"),
)
OF_THE_MACHINE = ("base_model_name_or_path", "revision", "auto_mapping", "parent_library")  # peft's settings that no loader needs
# without these, which decide the update, it is another one
OF_THE_UPDATE = ("r", "alpha", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "use_dora")


def needed(metadata: Mapping[str, str]) -> dict[str, str]:
    """The texts of a header that loading needs; raises `UserError` for a private one of what decides an adapter's update."""
    quantised = _json(metadata.get("tensor_names", ""))
    wanted = (*NEEDED, *(name for name in quantised if isinstance(name, str))) if isinstance(quantised, list) else NEEDED
    kept = {key: _pruned(key, text) for key, text in metadata.items() if key in wanted}
    return {key: text for key, text in kept.items() if text and not _private(key, text)}


class Stripped(NamedTuple):
    """What a copy has."""

    kept: tuple[str, ...]
    """Keys of its header."""
    config: Path | None
    """The copy of adapter_config.json beside it; None without one."""
    taken_out: tuple[str, ...]
    """Settings that are null in that copy and were not."""


def strip(file: Path, header: Header, out: Path, config: Path | None = None) -> Stripped:
    """Writes the copy and compares the bytes of its tensors with those of the file; `config` is peft's of the file.

    Raises `UserError` for a place where something is already, or that cannot be written, and as `needed` does.
    """
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"--strip OUT must end in .safetensors; got {shown(out, 150)}")
    if os.path.lexists(out):
        raise UserError(f"--strip writes a new file, and {shown(out, 150)} is there already: choose another name, or remove it")
    beside = out.with_name(PEFT_CONFIG)
    if config and os.path.lexists(beside):
        raise UserError(
            f"--strip also writes the {PEFT_CONFIG} of peft, beside OUT, and {shown(beside, 120)} is there already: name a file in a new "
            f"folder, such as --strip CLEAN/{PEFT_WEIGHTS}.safetensors"
        )
    settings = read_peft_config(config) if config else {}
    clean = _without_private(settings, PEFT_CONFIG)
    kept = needed(header.metadata)
    made = {**({"__metadata__": kept} if kept else {}), **header.tensors}
    text = json.dumps(made, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors stay aligned

    def write(temporary: Path) -> None:
        with opened(file, None) as source, temporary.open("wb") as copy:
            copy.write(len(text).to_bytes(8, "little") + text)
            source.seek(header.begins)
            given = _hash(source, copy)
        with opened(temporary, None) as copied:
            copied.seek(8 + len(text))
            same = _hash(copied) == given
        if not same or load_header(temporary).tensors != header.tensors:
            raise DiffleakError(f"the copy of {file} has other weights than it: the disk is damaged, or the file was changed meanwhile")

    with refusing(Unreadable, f"{file} cannot be copied ({WHY}); repeat the command"):
        write_atomic(out, write)
    if not config:
        return Stripped(tuple(kept), None, ())
    try:
        whole = {**dict.fromkeys(settings), **clean}  # null, and not left out, for readers that expect the key
        if not write_new(beside, json.dumps(whole, indent=2, sort_keys=True)):
            raise UserError(f"{beside} was written by another process meanwhile; choose another folder")
    except BaseException:
        out.unlink()
        raise
    return Stripped(tuple(kept), beside, tuple(name for name, value in settings.items() if whole[name] != value))


def _hash(source: BinaryIO, copy: BinaryIO | None = None) -> str:
    """The SHA-256 of the rest of a file, which is copied meanwhile."""
    digest = hashlib.sha256()
    while block := source.read(BLOCK):
        digest.update(block)
        if copy is not None:
            copy.write(block)
    return digest.hexdigest()


def _pruned(key: str, text: str) -> str:
    """A text without the parts that loading does not need; empty for settings of peft that are none."""
    if key != ADAPTER:
        return text
    settings = _json(text)
    if not isinstance(settings, dict):
        return ""
    return json.dumps(_without_private(settings, key), indent=2, sort_keys=True)


def _without_private(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Settings of peft without those of its trainer's machine and private ones; raises `UserError` for a private one of the update."""
    kept = {name: value for name, value in settings.items() if name.rpartition(".")[2] not in OF_THE_MACHINE}
    private = [name for name, value in kept.items() if _private(key, json.dumps({name: value}))]
    if needed := next((name for name in private if name.rpartition(".")[2] in OF_THE_UPDATE), None):
        raise UserError(
            f"--strip keeps the settings that decide what an adapter does, and {shown(needed)} of {key} holds something private: save the "
            "adapter again without it"
        )
    return {name: value for name, value in kept.items() if name not in private}


def _private(key: str, text: str) -> bool:
    """True if a text of a header gives something private away."""
    return any(found.private for found in findings({key: text}))


def _json(text: str) -> Any:
    """What a text holds as JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
