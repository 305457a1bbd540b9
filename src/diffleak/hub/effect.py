"""What the file of a LoRA says that it does to weights, and whether the networks got just that.

    W' = W + scale alpha_l / r_l  B_l A_l            in every layer l of the file (rsLoRA: alpha_l / sqrt(r_l))
    W' = m_l V / |V|,  V = W + scale alpha_l / r_l  B_l A_l          for DoRA, norms over all but the first dimension
    W' = W                                           everywhere else

r_l is the number of rows of A_l. alpha_l is the file's own `.alpha`, else what the settings beside it say of that layer, else r_l.
Hu et al. 2021, arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732; Liu et al. 2024, arXiv 2402.09353, eq. 5.

Names and strengths are read here from the raw file, in float64, and not by the code of diffusers and peft that merges: so the
check sees what they drop, rename or scale wrongly. A merged weight must be W' to 1e-5 of the layer's largest change and to the
rounding of its own dtype, which is one unit in the last place of W and of the change (four for DoRA).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffleak.errors import UserError, shown
from diffleak.hub.configs import check_keys

TOLERANCE = 1e-5  # of the largest change in a layer
KEPT = 0.01  # how far rounding may change a layer's strength without a word
PEFT_PREFIX = "base_model.model."
METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's settings in the header of a file
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
PREFIXES = {  # of kohya's names and of ComfyUI's; "" is the denoiser
    "lora_unet_": "",
    "lora_transformer_": "",
    "diffusion_model.": "",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
    "text_encoders.clip_l.transformer.": "text_encoder",
}
OTHER_KINDS = {  # what is in a key of adapters that are no plain LoRA
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a Tucker core",
    "oft_": "OFT or BOFT",
    "dora_scale": "DoRA in kohya's naming",
    "diff_b": "a difference of biases",
    ".diff": "a full difference of weights",
    "on_input": "IA3",
    "vera_": "VeRA",
    "lora_embedding": "LoRA of embeddings",
    "lora_E": "AdaLoRA",
    ".bias": "LoRA with biases",
    "glora": "GLoRA",
    "modules_to_save": "LoRA with whole layers beside it",
}
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that take the first B A out of W
ROLE = re.compile(
    r"^(?P<stem>.+?)(?:\.lora_(?P<letter>[AB])\.weight|(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<way>down|up)\.weight"
    r"|\.(?P<alpha>alpha)|\.(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)$"
)
FUSED = {  # names of the first Flux code: in one block, and the layers of diffusers that a projection became, in order
    r"double_blocks_(\d+)_img_attn_qkv": (
        "transformer_blocks_{}_attn_to_q",
        "transformer_blocks_{}_attn_to_k",
        "transformer_blocks_{}_attn_to_v",
    ),
    r"double_blocks_(\d+)_txt_attn_qkv": (
        "transformer_blocks_{}_attn_add_q_proj",
        "transformer_blocks_{}_attn_add_k_proj",
        "transformer_blocks_{}_attn_add_v_proj",
    ),
    r"double_blocks_(\d+)_img_attn_proj": ("transformer_blocks_{}_attn_to_out_0",),
    r"double_blocks_(\d+)_txt_attn_proj": ("transformer_blocks_{}_attn_to_add_out",),
    r"double_blocks_(\d+)_img_mlp_0": ("transformer_blocks_{}_ff_net_0_proj",),
    r"double_blocks_(\d+)_img_mlp_2": ("transformer_blocks_{}_ff_net_2",),
    r"double_blocks_(\d+)_txt_mlp_0": ("transformer_blocks_{}_ff_context_net_0_proj",),
    r"double_blocks_(\d+)_txt_mlp_2": ("transformer_blocks_{}_ff_context_net_2",),
    r"double_blocks_(\d+)_img_mod_lin": ("transformer_blocks_{}_norm1_linear",),
    r"double_blocks_(\d+)_txt_mod_lin": ("transformer_blocks_{}_norm1_context_linear",),
    r"single_blocks_(\d+)_linear1": (
        "single_transformer_blocks_{}_attn_to_q",
        "single_transformer_blocks_{}_attn_to_k",
        "single_transformer_blocks_{}_attn_to_v",
        "single_transformer_blocks_{}_proj_mlp",
    ),
    r"single_blocks_(\d+)_linear2": ("single_transformer_blocks_{}_proj_out",),
    r"single_blocks_(\d+)_modulation_lin": ("single_transformer_blocks_{}_norm_linear",),
}
SGM = {  # names of the first Stable Diffusion code, within a residual block and outside of all blocks
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_2": "conv_out",
}
OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # of text encoders in old diffusers files


@dataclass(frozen=True, eq=False)
class Update:
    """What a file says of one layer, `network`.`layer`; `key` is its name in the file.

    down is A (r, in, ...), up is B (out, r, ...); `magnitude` is m of a DoRA.
    """

    key: str
    network: str
    layer: str
    down: Tensor
    up: Tensor
    alpha: float
    rank_stabilised: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def strength(self) -> float:
        """alpha / r, or alpha / sqrt(r)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def product(self, weight: Tensor) -> Tensor:
        """B A as a change of `weight`, in float64."""
        down, up = (value.to(weight.device, torch.float64) for value in (self.down, self.up))
        return torch.einsum("or,ri->oi", up.reshape(len(up), -1), down.reshape(self.rank, -1)).reshape(weight.shape)

    def merged(self, weight: Tensor, scale: float) -> Tensor:
        """W' of a float64 W."""
        changed = weight + scale * self.strength * self.product(weight)
        if self.magnitude is None:
            return changed
        lengths = changed.flatten(1).norm(dim=1)
        return changed * (self.magnitude.to(lengths).flatten() / lengths).reshape(-1, *[1] * (changed.ndim - 1))


@dataclass(frozen=True, eq=False)
class Before:
    """Networks as they were: the weights that are to change, and a sum of the bits of all others."""

    weights: Mapping[str, Tensor]
    others: Mapping[str, tuple[torch.Size, int]]


def refuse_other_kinds(keys: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raises `UserError` naming the kind of an adapter that is no LoRA, or more than one."""
    kind = str(settings.get("peft_type", "LORA"))
    if kind != "LORA":
        raise UserError(f"it must be a LoRA; its settings say that it is {kind}")
    begun = str(settings.get("init_lora_weights", "")).lower()
    if begun.startswith(CHANGE_THE_BASE):
        raise UserError(f"it must be a plain LoRA; it began as {begun}, which changes the base too: save it converted to LoRA")
    for key in keys:
        name = next((name for mark, name in OTHER_KINDS.items() if mark in key), None)
        if name:
            raise UserError(f"it must be a LoRA of weights; its {key} is {name}, which is not applied here")


def updates(raw: Mapping[str, Tensor], settings: Mapping[str, Any], networks: Mapping[str, Any]) -> list[Update]:
    """What a file says of every layer; `networks` are the denoiser, first, and text encoders, by their names.

    settings: of peft, for all networks, or by network as "unet.lora_alpha" and so on. Raises `UserError` for a weight that fits no layer,
    half of a pair, and a layer that is there twice.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in raw.items():
        match = ROLE.match(key)
        if match is None:
            raise UserError(f"its {key} fits no layer")
        role = {"A": "down", "B": "up"}.get(match["letter"] or "", match["way"] or match["alpha"] or "magnitude")
        groups.setdefault(match["stem"], {})[role] = value
    names = {name: _flat_names(network) for name, network in networks.items()}
    found: dict[str, Update] = {}
    for stem, group in groups.items():
        for update in _of_group(stem, group, settings, networks, names, raw):
            where = f"{update.network}.{update.layer}"
            if where in found:
                raise UserError(f"it has two updates of {where}: {found[where].key} and {stem}")
            found[where] = update
    return list(found.values())


def before(changes: Iterable[Update], networks: Mapping[str, Any]) -> Before:
    """Takes down the networks before a merge."""
    told = {f"{update.network}.{update.layer}.weight" for update in changes}
    values = _values(networks)
    weights = {name: values[name].detach().to("cpu", copy=True) for name in told}
    return Before(weights, {name: _bits(value) for name, value in values.items() if name not in told})


def check(changes: Iterable[Update], was: Before, networks: Mapping[str, Any], scale: float) -> list[str]:
    """Raises `UserError` unless the networks are what the updates make of them; returns what is to be said of rounding.

    The message names the first layer that differs, with the strength (scale alpha / r) that it should have and has.
    """
    values, least, most = _values(networks), ("", 1.0), ("", 1.0)
    if values.keys() != was.weights.keys() | was.others.keys():
        odd = min(values.keys() ^ (was.weights.keys() | was.others.keys()))
        raise UserError(f"it changes the layers of the network ({odd}) and not only their weights, which is another model")
    for update in changes:
        name = f"{update.network}.{update.layer}"
        now = values[f"{name}.weight"].detach()
        now = now.cpu() if now.device.type == "mps" else now  # which has no float64
        weight = was.weights[f"{name}.weight"].to(now.device, torch.float64)
        right, product = update.merged(weight, scale), update.product(weight)
        change, moved = right - weight, now.double() - weight
        kind_of, units = torch.finfo(now.dtype), 1 if update.magnitude is None else 4
        rounding = units * kind_of.eps * (weight.abs() + change.abs() + 2 * kind_of.smallest_normal)  # below that, steps stay as they are
        if not ((now.double() - right).abs() <= TOLERANCE * change.abs().max() + rounding).all():
            expected, size = scale * update.strength, float((product * product).sum())
            seen = float((moved * product).sum()) / size if size else math.nan
            of = f"alpha {update.alpha:g}, rank {update.rank}, scale {scale:g}" + (", rank-stabilised" if update.rank_stabilised else "")
            kind = "" if update.magnitude is None else " as a DoRA"
            raise UserError(f"its update of {name} must be merged at strength {expected:.6g}{kind} ({of}); it has {seen:.6g}")
        size = float((change * change).sum())
        kept = float((moved * change).sum()) / size if size else 1.0
        least, most = min(least, (name, kept), key=lambda pair: pair[1]), max(most, (name, kept), key=lambda pair: pair[1])
    for name, was_bits in was.others.items():
        if _bits(values[name]) != was_bits:
            raise UserError(f"it must change only the layers that it adapts; {name} changed too")
    said = []
    for name, kept in (least, most):
        if abs(kept - 1) > KEPT:
            said.append(
                f"the LoRA's update of {name} is merged at {kept:.0%} of its size, since the model's dtype rounds the rest away: "
                "use --dtype float32 to audit all of it"
            )
    return said


def _of_group(
    stem: str,
    group: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    networks: Mapping[str, Any],
    names: Mapping[str, Mapping[str, str]],
    raw: Mapping[str, Tensor],
) -> list[Update]:
    """The updates of the weights with one name: several where a layer of the file is several in the model."""
    key = next(key for key in raw if key.startswith(stem))
    network, layers = _place(stem, networks, names)
    if not layers:
        raise UserError(f"its {key} fits no layer")
    where = f"{network}.{layers[0]}"
    for role, letter in (("down", "lora_A"), ("up", "lora_B")):
        if role not in group:
            raise UserError(f"it lacks {layers[0]}.{letter}.weight")
    down, up = group["down"], group["up"]
    targets = [networks[network].get_submodule(layer).weight for layer in layers]
    shapes = [tuple(target.shape) for target in targets]
    rows, columns = sum(shape[0] for shape in shapes), math.prod(shapes[0][1:])
    pointwise = math.prod(up.shape[2:]) == 1 and up.ndim >= 2
    if down.ndim < 2 or not pointwise or len(down) != up.shape[1] or len(up) != rows or math.prod(down.shape[1:]) != columns:
        said = " and ".join(str(tuple(value.shape)) for value in (down, up))
        raise UserError(f"its {key} does not fit {where} of shape {shapes[0]}: A and B have shapes {said}")
    own_settings = {name.removeprefix(f"{network}."): value for name, value in settings.items()}
    magnitude = group.get("magnitude")
    if magnitude is not None and magnitude.numel() != rows:
        raise UserError(f"its magnitudes of {where} must be {rows} numbers; got {magnitude.numel()}")
    made, start = [], 0
    for layer, shape in zip(layers, shapes, strict=True):
        own = slice(start, start + shape[0])
        alpha = float(group["alpha"].item()) if "alpha" in group else _alpha(own_settings, layer, len(down))
        stabilised = bool(own_settings.get("use_rslora")) and "alpha" not in group
        part = None if magnitude is None else magnitude.flatten()[own]
        made.append(Update(stem, network, layer, down, up[own], alpha, stabilised, part))
        start += shape[0]
    return made


def _alpha(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Of a layer by peft's settings: the first pattern that is the end of its name, else the one for all; without settings its rank."""
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    for pattern, alpha in patterns.items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer):
            return float(alpha)
    return float(settings.get("lora_alpha", rank))


def _place(stem: str, networks: Mapping[str, Any], names: Mapping[str, Mapping[str, str]]) -> tuple[str, list[str]]:
    """The network and the layers that a name in the file stands for; no layers where there are none."""
    denoiser = next(iter(networks))
    if stem.startswith(PEFT_PREFIX):
        network, rest = denoiser, stem.removeprefix(PEFT_PREFIX)
    else:
        prefix = next((prefix for prefix in PREFIXES if stem.startswith(prefix)), None)
        first, _, after = stem.partition(".")
        network, rest = (first, after) if prefix is None else (PREFIXES[prefix] or denoiser, stem.removeprefix(prefix))
    if network not in networks:
        return network, []
    flat = rest.replace(".processor.", ".").replace(".", "_")
    if network != denoiser:
        flat = flat.removeprefix("text_model_")
        old = next((old for old in OLD_TEXT if flat.endswith(f"self_attn_{old}")), None)
        flat = flat if old is None else flat.removesuffix(old) + OLD_TEXT[old]
    for pattern, layers in FUSED.items():
        match = re.fullmatch(pattern, flat)
        if match:
            found = [names[network].get(layer.format(match[1])) for layer in layers]
            return network, [layer for layer in found if layer] if all(found) else []
    options = (flat, f"{flat}_0", _from_sgm(flat, getattr(networks[network], "config", None)))
    return network, next(([names[network][option]] for option in options if option in names[network]), [])


def _from_sgm(flat: str, config: Any) -> str:
    """The name in a UNet of diffusers of a layer that is named as in the first Stable Diffusion code."""
    if flat in SGM:
        return SGM[flat]
    match = re.fullmatch(r"(input|middle|output)_blocks?_(\d+)_(?:(\d+)_)?(.+)", flat)
    each = getattr(config, "layers_per_block", None)
    if match is None or not isinstance(each, int):
        return ""
    side, number, inner, rest = match[1], int(match[2]), match[3], match[4]
    rest = SGM.get(rest, rest)
    if side == "middle":  # residual, attention, residual
        whole = rest if inner is None else f"{inner}_{rest}"
        return f"mid_block_attentions_0_{whole}" if number == 1 else f"mid_block_resnets_{number // 2}_{whole}"
    block, place = divmod(number - (side == "input"), each + 1)
    name = f"{'down' if side == 'input' else 'up'}_blocks_{block}"
    if rest in ("op", "conv"):
        return f"{name}_{'downsamplers' if rest == 'op' else 'upsamplers'}_0_conv"
    return f"{name}_{'resnets' if inner == '0' else 'attentions'}_{place}_{rest}"


def _flat_names(network: Any) -> dict[str, str]:
    """Layers by their names with underscores for dots, as kohya writes them."""
    weighted = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    return {name.removeprefix("text_model.").replace(".", "_"): name for name in weighted}


def _values(networks: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def _bits(value: Tensor) -> tuple[torch.Size, int]:
    """The sum of a tensor's bits as whole numbers: another tensor has another one, but for chance and reordering."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    plain = value.detach().contiguous().reshape(-1)
    return value.shape, int(plain.view(kinds[value.element_size()]).sum(dtype=torch.int64))


def header_settings(file: Path) -> dict[str, Any]:
    """peft's settings in the header of a file that diffusers saved, by network; raises `UserError` where they cannot be read."""
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
