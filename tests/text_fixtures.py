"""Tiny text-to-image pipelines assembled from configs, each saved as the folder that diffusers would make of a real one."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

CAPTIONS = ("sun with rays", "cloud", "umbrella with rain drops", "red heart", "black cat face", "a house", "a house with a garden", "moon")
SIDE, LATENT, CHANNELS, TOKENS = 16, 8, 4, 16
KINDS = ("sd", "sd-v", "sdxl", "pixart", "sd3", "flux")


def tokenizers() -> tuple[CLIPTokenizer, T5Tokenizer]:
    clip = CLIPTokenizer(model_max_length=TOKENS).train_new_from_iterator(CAPTIONS, 400)
    t5 = T5Tokenizer(extra_ids=0, model_max_length=TOKENS).train_new_from_iterator(CAPTIONS, 60)
    return clip, t5


def autoencoder(channels: int = CHANNELS, **keys: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=channels,
        sample_size=SIDE,
        **keys,
    )


def unet(**keys: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        **{"cross_attention_dim": 16, **keys},
    )


def clip_config(tokenizer: CLIPTokenizer, **keys: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=TOKENS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **keys,
    )


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def pipeline(kind: str) -> Any:
    """An untrained pipeline of one of KINDS, the same weights every time."""
    torch.manual_seed(0)
    clip, t5 = tokenizers()
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    linear = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    text = CLIPTextModel(clip_config(clip))
    if kind in ("sd", "sd-v"):
        prediction = "epsilon" if kind == "sd" else "v_prediction"
        scheduler = diffusers.PNDMScheduler(**linear, prediction_type=prediction, skip_prk_steps=True, steps_offset=1)
        return diffusers.StableDiffusionPipeline(autoencoder(), text, clip, unet(), scheduler, **nothing)
    if kind == "sdxl":
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 8}
        second = CLIPTextModelWithProjection(clip_config(clip, projection_dim=8))
        network = unet(cross_attention_dim=32, **added)
        scheduler = diffusers.EulerDiscreteScheduler(**linear)
        return diffusers.StableDiffusionXLPipeline(autoencoder(scaling_factor=0.13025), text, second, clip, clip, network, scheduler)
    if kind == "pixart":
        network = diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            out_channels=2 * CHANNELS,
            num_layers=2,
            norm_num_groups=4,
            cross_attention_dim=16,
            sample_size=LATENT,
            caption_channels=16,
            use_additional_conditions=False,
        )
        scheduler = diffusers.DPMSolverMultistepScheduler()
        return diffusers.PixArtAlphaPipeline(t5, t5_encoder(t5), autoencoder(), network, scheduler)
    if kind == "sd3":
        network = diffusers.SD3Transformer2DModel(
            sample_size=LATENT,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=LATENT,
        )
        encoders = [CLIPTextModelWithProjection(clip_config(clip, projection_dim=8)) for _ in range(2)]
        t5_model = T5EncoderModel(T5Config(vocab_size=len(t5), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
        codec = autoencoder(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        return diffusers.StableDiffusion3Pipeline(network, scheduler, codec, encoders[0], clip, encoders[1], clip, t5_model, t5)
    network = diffusers.FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    codec = autoencoder(scaling_factor=0.36, shift_factor=0.11)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.FluxPipeline(scheduler, codec, text, clip, t5_encoder(t5), t5, network)


def text_folder(folder: Path, kind: str = "sd") -> Path:
    """A tiny pipeline, saved."""
    pipeline(kind).save_pretrained(folder)
    return folder
