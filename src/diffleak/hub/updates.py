"""The update of every weight that an adapter's file describes, read from its raw tensors and the settings beside them."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffleak.diffusion.denoiser import LowRank
from diffleak.errors import UserError, shown
from diffleak.hub import deltas
from diffleak.hub.configs import check_keys
from diffleak.hub.layer_names import flat_names, place

LONGEST_NAME = 120  # characters of a weight's name in a message
METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's settings in the header of a file
OTHER_KINDS = {  # what is in a key of adapters of kinds that are not applied here
    "oft_": "OFT or BOFT",
    "lokr_t1": "LoKr with a core of its first factor",
    ".lambda_layer": "T-LoRA",
    ".set_weight": "a weight that replaces the model's",
    "bundle_emb": "an embedding within a LoRA: save it as a file of its own, for --embedding",
    "custom_diffusion": "Custom Diffusion",
    "on_input": "IA3",
    "vera_": "VeRA",
    "lora_embedding": "LoRA of embeddings",
    "lora_E": "AdaLoRA",
    ".bias": "LoRA with biases",
    "glora": "GLoRA",
    "modules_to_save": "LoRA with whole layers beside it",
}
GLORA = re.compile(r"\.[ab][12m]\.weight$")  # how LyCORIS ends the keys of a GLoRA
KINDS = ("LORA", "LOHA", "LOKR")  # of peft, as its settings name them
RENAMED = {"lora_mid.weight": "mid", "w_norm": "diff", "b_norm": "diff_b"}
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that take the first B A out of W
ROLE = re.compile(
    r"^(?P<stem>.+?)(?:\.lora_(?P<letter>[AB])\.weight|(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<way>down|up)\.weight"
    r"|\.(?P<alpha>alpha)|\.(?P<magnitude>lora_magnitude_vector)(?:\.weight)?"
    rf"|\.(?P<part>{'|'.join(map(re.escape, deltas.PARTS))}))$"
)


@dataclass(frozen=True, eq=False)
class Update:
    """The update of one weight or bias, `network`.`layer`.`parameter`.

    Args:
        key: Its name in the file.
        network: The name of the denoiser or text encoder.
        layer: The name of the layer in that network.
        parts: The tensors that `deltas` computes dW from.
        alpha: The numerator of the strength.
        rank: r, the rank of the factors; None for an update that is stored whole.
        rank_stabilised: True if the strength is alpha / sqrt(r).
        magnitude: m of a DoRA as peft saves it.
        dora_scale: m of a DoRA as LyCORIS saves it.
        rows: The rows of dW that belong to this layer, if one layer of the file is several in the model.
        parameter: "weight" or "bias".
    """

    key: str
    network: str
    layer: str
    parts: deltas.Parts
    alpha: float = 1.0
    rank: int | None = None
    rank_stabilised: bool = False
    magnitude: Tensor | None = None
    dora_scale: Tensor | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    parameter: str = "weight"

    @property
    def name(self) -> str:
        return f"{self.network}.{self.layer}.{self.parameter}"

    @property
    def kind(self) -> str:
        """The kind of the update in words, as "a LoRA"."""
        kind = deltas.kind_of(self.parts)
        of = "a full difference" if kind == "full" else f"a {kind}" if "mid" not in self.parts else "a LoCon with a core"
        return of if self.magnitude is None and self.dora_scale is None else "a DoRA" if kind == "LoRA" else f"{of} with DoRA"

    @property
    def strength(self) -> float:
        """alpha / r, or alpha / sqrt(r); 1 for an update that is stored whole."""
        if self.rank is None:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    @property
    def plain(self) -> bool:
        """True if it is a LoRA, or a DoRA as peft saves it."""
        return self.parts.keys() == deltas.LORA and self.dora_scale is None

    @property
    def idle(self) -> bool:
        """True if it changes nothing because one of its factors is zero, as before training."""
        return self.magnitude is None and self.dora_scale is None and not all(value.any() for value in self.parts.values())

    def low_rank(self, scale: float) -> LowRank | None:
        """The change as a product of two matrices; None for kinds that are no such product."""
        if not self.plain or self.magnitude is not None:
            return None
        return LowRank(self.parts["down"], self.parts["up"], scale * self.strength)

    def product(self, weight: Tensor) -> Tensor:
        """dW as a change of `weight`, in float64."""
        parts = {name: value.to(weight.device, torch.float64) for name, value in self.parts.items()}
        return deltas.dense(parts)[self.rows].reshape(weight.shape)

    def merged(self, weight: Tensor, scale: float) -> Tensor:
        """W' of a float64 W."""
        if self.dora_scale is not None:
            changed = weight + self.strength * self.product(weight)
            return weight + scale * (_of_length(changed, self.dora_scale) - weight)
        changed = weight + scale * self.strength * self.product(weight)
        return changed if self.magnitude is None else _of_length(changed, self.magnitude.reshape(-1, *[1] * (changed.ndim - 1)))


def _of_length(changed: Tensor, magnitude: Tensor) -> Tensor:
    """m V / |V|, with norms over all dimensions in which m has size 1; 0 where V is 0."""
    m = magnitude.to(changed)
    kept = 0 if len(m) == len(changed) else 1
    lengths = torch.linalg.vector_norm(changed, dim=tuple(i for i in range(changed.ndim) if i != kept), keepdim=True)
    return changed * (m.reshape(lengths.shape) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny))


def refuse_other_kinds(keys: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raises `UserError` for an adapter of a kind that is not supported; the message names the kind."""
    kind = str(settings.get("peft_type", "LORA"))
    if kind not in KINDS:
        raise UserError(f"it must be a LoRA, LoHa or LoKr; its settings give peft_type {shown(kind)}")
    begun = str(settings.get("init_lora_weights", "")).lower()
    if begun.startswith(CHANGE_THE_BASE):
        raise UserError(f"it must be a plain LoRA; it was initialised by {begun}, which also changes the base: convert it to a plain LoRA")
    for key in keys:
        name = "GLoRA" if GLORA.search(key) else next((name for mark, name in OTHER_KINDS.items() if mark in key), None)
        if name:
            raise UserError(
                f"it must be a LoRA, LoCon, LoHa, LoKr, DoRA or full difference; its {shown(key, LONGEST_NAME)} is of a kind that is not "
                f"supported: {name}"
            )


def updates(raw: Mapping[str, Tensor], settings: Mapping[str, Any], networks: Mapping[str, Any]) -> list[Update]:
    """The updates that a file describes; `networks` are the denoiser, first, and text encoders, by name.

    settings: peft's, for all networks, or by network as in "unet.lora_alpha". Raises `UserError` for a weight that fits no layer, a missing
    tensor of a layer, and two updates of one layer.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in raw.items():
        match = ROLE.match(key)
        if match is None:
            raise UserError(f"its {shown(key, LONGEST_NAME)} fits no layer")
        part = RENAMED.get(match["part"], match["part"])
        role = {"A": "down", "B": "up"}.get(match["letter"] or "", match["way"] or match["alpha"] or part or "magnitude")
        group = groups.setdefault(match["stem"], {})
        if role in group:
            raise UserError(f"it has two tensors for the {role} of {shown(match['stem'], LONGEST_NAME)}")
        group[role] = value
    names = {name: flat_names(network) for name, network in networks.items()}
    found: dict[str, Update] = {}
    for stem, group in groups.items():
        for update in _of_group(stem, group, settings, networks, names, raw):
            if (same := found.setdefault(update.name, update)) is not update:
                raise UserError(f"it has two updates of {update.name.removesuffix('.weight')}: {same.key} and {stem}")
    return list(found.values())


def header_settings(file: Path) -> dict[str, Any]:
    """peft's settings in the header of a file that diffusers saved, by network; raises `UserError` if they cannot be read."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        found = (opened.metadata() or {}).get(METADATA)
    try:
        made = json.loads(found) if found else {}
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise UserError(f"its header must give {METADATA} as a JSON object; got {shown(found)}")
    check_keys(made, "its header")
    return made


def _of_group(
    stem: str,
    group: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    networks: Mapping[str, Any],
    names: Mapping[str, Mapping[str, str]],
    raw: Mapping[str, Tensor],
) -> Iterator[Update]:
    """The updates under one name of the file: several if one layer of the file is several in the model, or if a bias changes too."""
    key = next(key for key in raw if key.startswith(stem))
    network, layers = place(stem, networks, names)
    if not layers:
        raise UserError(f"its {shown(key, LONGEST_NAME)} fits no layer")
    own_settings = {name.removeprefix(f"{network}."): value for name, value in settings.items()}
    parts = {name: value for name, value in group.items() if name not in ("alpha", "magnitude", "dora_scale", "diff_b")}
    modules = [networks[network].get_submodule(layer) for layer in layers]
    if "diff_b" in group:
        if any(getattr(module, "bias", None) is None for module in modules):
            raise UserError(f"its {key} changes the bias of {network}.{layers[0]}, which has none")
        shapes = [tuple(module.bias.shape) for module in modules]
        bias = {"diff": group["diff_b"]}
        _refuse_shape(bias, shapes, key, f"{network}.{layers[0]}.bias")
        for layer, rows in zip(layers, _rows(shapes), strict=True):
            yield Update(stem, network, layer, bias, rows=rows, parameter="bias")
        if not parts and not group.keys() & {"magnitude", "dora_scale"}:
            return
    shapes = [tuple(module.weight.shape) for module in modules]
    kept = deltas.needed(parts)
    if (parts and not deltas.kind_of(parts)) or parts.keys() - kept - {"scalar"}:
        raise UserError(f"its {shown(key, LONGEST_NAME)} must be of one kind of adapter; it has {', '.join(sorted(parts))}")
    if lacking := sorted(kept - parts.keys()):
        end = {"down": "lora_A.weight", "up": "lora_B.weight"}.get(lacking[0], lacking[0])
        raise UserError(f"it lacks {layers[0]}.{end}")
    where = f"{network}.{layers[0]}"
    _refuse_shape(parts, shapes, key, where)
    magnitude, dora_scale = group.get("magnitude"), group.get("dora_scale")
    total = sum(shape[0] for shape in shapes)
    if magnitude is not None and magnitude.numel() != total:
        raise UserError(f"its magnitudes of {where} must be {total} numbers; got {magnitude.numel()}")
    if dora_scale is not None:
        across = (1, *shapes[0][1:2], *[1] * (len(shapes[0]) - 2))
        along = (total, *[1] * (len(shapes[0]) - 1))
        if tuple(dora_scale.shape) == across != along and len(layers) > 1:
            raise UserError(
                f"its dora_scale of {where} must have one number per output, since that layer is {len(layers)} layers in the model; "
                "it has one per input"
            )
        if tuple(dora_scale.shape) not in (along, across):
            raise UserError(f"its dora_scale of {where} must have shape {along} or {across}; got {tuple(dora_scale.shape)}")
    for layer, rows in zip(layers, _rows(shapes), strict=True):
        rank, alpha, stabilised = _strength(group, parts, own_settings, layer)
        plain = parts.keys() == deltas.LORA
        yield Update(
            stem,
            network,
            layer,
            {**parts, "up": parts["up"][rows]} if plain else parts,
            alpha,
            rank,
            stabilised,
            None if magnitude is None else magnitude.flatten()[rows],
            dora_scale[rows] if dora_scale is not None and len(dora_scale) == total else dora_scale,
            slice(None) if plain else rows,
        )


def _rows(shapes: Sequence[tuple[int, ...]]) -> list[slice]:
    """The rows that belong to each of several layers which are one layer in the file."""
    ends = list(accumulate(shape[0] for shape in shapes))
    return [slice(end - shape[0], end) for shape, end in zip(shapes, ends, strict=True)]


def _refuse_shape(parts: deltas.Parts, shapes: Sequence[tuple[int, ...]], key: str, where: str) -> None:
    """Raises `UserError` unless the dW of these tensors has the shape of the weights, stacked by rows."""
    rows, columns = sum(shape[0] for shape in shapes), math.prod(shapes[0][1:])
    up = parts.get("up")
    pointwise = up is None or (up.ndim >= 2 and math.prod(up.shape[2:]) == 1)
    try:
        made = deltas.dense({name: torch.empty(value.shape, device="meta") for name, value in parts.items()})
        fits = pointwise and len(made) == rows and math.prod(made.shape[1:]) == columns
    except (RuntimeError, IndexError, ValueError):  # of torch, each for tensors that do not go together
        fits = False
    if not fits:
        said = " and ".join(str(tuple(parts[name].shape)) for name in ("down", "up", "mid") if name in parts)
        rest = ", ".join(f"{name} {tuple(value.shape)}" for name, value in parts.items() if name not in ("down", "up", "mid"))
        got = f"A and B have shapes {said}" if "up" in parts else f"it has {rest}"
        raise UserError(f"its {shown(key, LONGEST_NAME)} does not fit {where} of shape {shapes[0]}: {got}")


def _strength(group: Mapping[str, Tensor], parts: deltas.Parts, settings: Mapping[str, Any], layer: str) -> tuple[int | None, float, bool]:
    """Rank, alpha, and True if rank-stabilised: from the file itself, else from the settings beside it, else alpha is the rank."""
    rank = deltas.rank(parts)
    if settings.get("peft_type") in ("LOHA", "LOKR"):  # whose scale is that of the settings even where there is no factor
        rank = int(_by_pattern(settings.get("rank_pattern"), layer, settings.get("r", 8)))
        return rank, _by_pattern(settings.get("alpha_pattern"), layer, settings.get("alpha", 8)), False
    if "alpha" in group and group["alpha"].numel() != 1:
        raise UserError(f"the alpha of {layer} must be one number; it has the shape {tuple(group['alpha'].shape)}")
    if "alpha" in group or rank is None:
        return rank, float(group["alpha"].item()) if rank is not None else 1.0, False
    return rank, _by_pattern(settings.get("alpha_pattern"), layer, settings.get("lora_alpha", rank)), bool(settings.get("use_rslora"))


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, otherwise: Any) -> float:
    """peft's setting of a layer: that of the first pattern that matches the end of its name, else `otherwise`."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer):
            return float(value)
    return float(otherwise)
