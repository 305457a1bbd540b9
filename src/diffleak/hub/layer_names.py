"""Finds the layers of a model that the names in an adapter's file stand for: names of diffusers, peft, kohya, LyCORIS and ComfyUI."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from diffleak.records.headers import PEFT_PREFIX

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
PREFIXES = {  # of kohya's names and of ComfyUI's; "" is the denoiser
    "lora_unet_": "",
    "lora_transformer_": "",
    "lycoris_": "",
    "diffusion_model.": "",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
FLUX = {"double": "transformer_blocks", "single": "single_transformer_blocks"}  # blocks of the first Flux code, and of diffusers
FUSED = {  # what is in such a block, and the layers of diffusers that a projection became, in order
    "img_attn_qkv": ("attn_to_q", "attn_to_k", "attn_to_v"),
    "txt_attn_qkv": ("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"),
    "img_attn_proj": ("attn_to_out_0",),
    "txt_attn_proj": ("attn_to_add_out",),
    "img_mlp_0": ("ff_net_0_proj",),
    "img_mlp_2": ("ff_net_2",),
    "txt_mlp_0": ("ff_context_net_0_proj",),
    "txt_mlp_2": ("ff_context_net_2",),
    "img_mod_lin": ("norm1_linear",),
    "txt_mod_lin": ("norm1_context_linear",),
    "linear1": ("attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm_linear",),
}
SGM = {  # names of the first Stable Diffusion code, within a residual block and outside of all blocks
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}
OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # of text encoders in old diffusers files


def place(stem: str, networks: Mapping[str, Any], names: Mapping[str, Mapping[str, str]]) -> tuple[str, list[str]]:
    """The network and the layers that a name in the file stands for; an empty list if there are none."""
    denoiser = next(iter(networks))
    if stem.startswith(PEFT_PREFIX):
        network, rest = denoiser, stem.removeprefix(PEFT_PREFIX)
    else:
        prefix = next((prefix for prefix in PREFIXES if stem.startswith(prefix)), None)
        first, _, after = stem.partition(".")
        network, rest = (first, after) if prefix is None else (PREFIXES[prefix] or denoiser, stem.removeprefix(prefix))
    if network == "text_encoder_3" and network not in networks:
        network = "text_encoder_2"  # of Flux, whose T5 kohya's trainer numbers as that of SD3
    if network not in networks:
        return network, []
    flat = rest.replace(".processor.", ".").replace(".", "_")
    if network != denoiser:
        flat = flat.removeprefix("text_model_")
        old = next((old for old in OLD_TEXT if flat.endswith(f"self_attn_{old}")), None)
        flat = flat if old is None else flat.removesuffix(old) + OLD_TEXT[old]
    match = re.fullmatch(r"(double|single)_blocks_(\d+)_(\w+)", flat)
    if match and match[3] in FUSED:
        found = [names[network].get(f"{FLUX[match[1]]}_{match[2]}_{layer}") for layer in FUSED[match[3]]]
        return network, [layer for layer in found if layer] if all(found) else []
    options = (flat, f"{flat}_0", _from_sgm(flat, getattr(networks[network], "config", None)))
    return network, next(([names[network][option]] for option in options if option in names[network]), [])


def _from_sgm(flat: str, config: Any) -> str:
    """The name that a layer of the first Stable Diffusion code has in a UNet of diffusers; empty if there is none."""
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


def flat_names(network: Any) -> dict[str, str]:
    """The layers of a network by their names with underscores for dots, as kohya writes them."""
    weighted = [name for name, module in network.named_modules() if isinstance(getattr(module, "weight", None), torch.nn.Parameter)]
    return {name.removeprefix("text_model.").replace(".", "_"): name for name in weighted}
