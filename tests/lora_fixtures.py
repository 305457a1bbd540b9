"""Small random LoRA adapters of the tiny pipelines, made with peft and saved as diffusers or peft save them."""

from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from text_fixtures import pipeline

RANK, ALPHA = 2, 6
LAYERS = {"sd": ["to_q", "to_k", "conv1"], "sdxl": ["to_q"], "pixart": ["to_q"], "sd3": ["to_q", "to_v"], "flux": ["to_q", "to_v"]}


def config(targets: list[str], rank: int = RANK) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False)


def denoiser_of(made: Any) -> tuple[str, Any]:
    part = "unet" if hasattr(made, "unet") else "transformer"
    return part, getattr(made, part)


def lora_folder(folder: Path, kind: str = "sd", text: bool = False, rank: int = RANK) -> Path:
    """An adapter for a kind of tiny pipeline, in diffusers' layout."""
    made = pipeline(kind)
    part, network = denoiser_of(made)
    torch.manual_seed(1)
    network.add_adapter(config(LAYERS[kind], rank))
    layers, networks = {f"{part}_lora_layers": get_peft_model_state_dict(network)}, {part: network}
    if text:
        inject_adapter_in_model(
            config(["q_proj"], rank), made.text_encoder
        )  # not add_adapter: transformers may want a newer peft than there is
        layers["text_encoder_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(made.text_encoder))
        networks["text_encoder"] = made.text_encoder
    made.save_lora_weights(folder, **layers, **_collate_lora_metadata(networks))
    return folder


def peft_folder(folder: Path, kind: str = "sd") -> Path:
    """The same adapter of the denoiser, in peft's layout."""
    network = denoiser_of(pipeline(kind))[1]
    torch.manual_seed(1)
    get_peft_model(network, config(LAYERS[kind])).save_pretrained(folder)
    return folder
