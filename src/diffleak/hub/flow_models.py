"""The flow models of diffusers whose text encoder is a language model: how each embeds a caption and calls its network.

Templates, instructions and embeddings are the pipeline's own (`encode_prompt`). Embeddings are rows of one length, with a mask if the
network takes one; `ask` removes padding that the pipeline would not have, so that the network gets the batch that the pipeline would make.
All functions here return the velocity e - x0; for networks that predict x0 - e the sign is reversed.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffleak.diffusion.conditions import MASK
from diffleak.errors import UserError, shown
from diffleak.hub.folders import diffusers_library

WORDS = "encoder_hidden_states"
QWEN_TOKENS, CHAT_TOKENS, LUMINA_TOKENS = 512, 512, 256  # of a caption, as the pipelines take them when they are called
THINKING = {"Flux2KleinPipeline": False, "ZImagePipeline": True}  # `enable_thinking` of the chat template
Embedding = dict[str, Tensor]


def refuse_odd(name: str, pixels: int, x_t: Tensor) -> None:
    """Raises `UserError` for latents that cannot be cut into patches of 2 x 2."""
    h, w = x_t.shape[-2:]
    if h % 2 or w % 2:
        raise UserError(f"{name} takes images whose sides are multiples of {2 * pixels}; got {h * pixels} x {w * pixels}: resize them")


# --- FLUX.2 ---------------------------------------------------------------------------------------------------------------


def embed_flux2_klein(pipeline: Any, texts: list[str]) -> Embedding:
    return {WORDS: pipeline.encode_prompt(texts, device=pipeline.device)[0]}


def embed_flux2(pipeline: Any, texts: list[str]) -> Embedding:
    """The embedding by FLUX.2; raises `UserError` for a chat template without its bos_token, which only a processor would add."""
    begin = pipeline.tokenizer.bos_token
    if begin is not None and not written_flux2(pipeline, "")[0].startswith(begin):
        raise UserError(f"the tokenizer's chat template must begin with its bos_token, {shown(begin)}")
    return embed_flux2_klein(pipeline, texts)


def ask_flux2_klein(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return _ask_flux2(network, x_t, time, conditions[WORDS], None)


def ask_flux2(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return _ask_flux2(network, x_t, time, conditions[WORDS], torch.ones(len(x_t), dtype=torch.float32, device=x_t.device))


def _ask_flux2(network: Any, x_t: Tensor, time: Tensor, words: Tensor, guidance: Tensor | None) -> Tensor:
    pipeline = diffusers_library().Flux2KleinPipeline  # whose methods are copies of the larger one's
    found = network(
        pipeline._pack_latents(x_t),
        timestep=time / 1000,
        encoder_hidden_states=words,
        txt_ids=pipeline._prepare_text_ids(words[:1]).to(x_t.device),  # the network reads the positions of one image for all
        img_ids=pipeline._prepare_latent_ids(x_t[:1]).to(x_t.device),
        guidance=guidance,
    ).sample
    return found.transpose(1, 2).reshape(x_t.shape)  # type: ignore[no-any-return]


def written_flux2(pipeline: Any, text: str) -> tuple[str, int]:
    """The chat, and its limit plus the tokens that the tokenizer adds to every text, which a chat already has."""
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input

    messages = format_input([text], pipeline.system_message)[0]
    chat = pipeline.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    return chat, CHAT_TOKENS + len(pipeline.tokenizer("").input_ids)


# --- Z-Image --------------------------------------------------------------------------------------------------------------


def embed_z_image(pipeline: Any, texts: list[str]) -> Embedding:
    rows, _ = pipeline.encode_prompt(list(texts), device=pipeline.device, do_classifier_free_guidance=False)  # it writes into the list
    return _padded(rows, CHAT_TOKENS)


def ask_z_image(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    refuse_odd("Z-Image", pixels, x_t)
    words = [row[mask.bool()] for row, mask in zip(conditions[WORDS], conditions[MASK], strict=True)]
    found = network(list(x_t.unsqueeze(2)), (1000 - time) / 1000, words, return_dict=False)[0]
    return -torch.stack(list(found)).squeeze(2)


# --- Qwen-Image -----------------------------------------------------------------------------------------------------------


def embed_qwen(pipeline: Any, texts: list[str]) -> Embedding:
    words, mask = pipeline.encode_prompt(texts, pipeline.device, max_sequence_length=QWEN_TOKENS)
    lengths = [words.shape[1]] * len(words) if mask is None else mask.sum(dim=1).tolist()
    return _padded([row[:length] for row, length in zip(words, lengths, strict=True)], QWEN_TOKENS)


def ask_qwen(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    refuse_odd("Qwen-Image", pixels, x_t)
    pipeline = diffusers_library().QwenImagePipeline
    b, c, h, w = x_t.shape
    longest = int(conditions[MASK].sum(dim=1).max())
    words, mask = conditions[WORDS][:, :longest], conditions[MASK][:, :longest]
    found = network(
        pipeline._pack_latents(x_t, b, c, h, w),
        timestep=time / 1000,
        encoder_hidden_states=words,
        encoder_hidden_states_mask=None if mask.all() else mask,
        img_shapes=[[(1, h // 2, w // 2)]] * b,
        guidance=torch.ones(b, dtype=torch.float32, device=x_t.device) if network.config.guidance_embeds else None,
    ).sample
    return pipeline._unpack_latents(found, h, w, 1).squeeze(2)  # type: ignore[no-any-return]


def written_qwen(pipeline: Any, text: str) -> tuple[str, int]:
    return pipeline.prompt_template_encode.format(text), QWEN_TOKENS + pipeline.prompt_template_encode_start_idx


# --- Chroma ---------------------------------------------------------------------------------------------------------------


def embed_chroma(pipeline: Any, texts: list[str]) -> Embedding:
    words, _, mask, *_ = pipeline.encode_prompt(texts, device=pipeline.device, do_classifier_free_guidance=False)
    return {WORDS: words, MASK: mask}


def ask_chroma(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    refuse_odd("Chroma", pixels, x_t)
    pipeline = diffusers_library().ChromaPipeline
    b, c, h, w = x_t.shape
    words, mask = conditions[WORDS], conditions[MASK]
    packed = pipeline._pack_latents(x_t, b, c, h, w)
    found = network(
        packed,
        timestep=time / 1000,
        encoder_hidden_states=words,
        txt_ids=torch.zeros(words.shape[1], 3, dtype=x_t.dtype, device=x_t.device),
        img_ids=pipeline._prepare_latent_image_ids(b, h // 2, w // 2, x_t.device, x_t.dtype),
        attention_mask=torch.cat([mask, torch.ones(packed.shape[:2], dtype=torch.bool, device=x_t.device)], dim=1),
    ).sample
    return pipeline._unpack_latents(found, h, w, 1)  # type: ignore[no-any-return]


# --- Lumina 2 and Sana ----------------------------------------------------------------------------------------------------


def embed_lumina2(pipeline: Any, texts: list[str]) -> Embedding:
    return _without_instructions(texts, pipeline.encode_prompt(texts, "" in texts, device=pipeline.device))


def ask_lumina2(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    refuse_odd("Lumina 2", pixels, x_t)
    return -network(x_t, timestep=1 - time / 1000, **conditions).sample  # type: ignore[no-any-return]


def written_lumina2(pipeline: Any, text: str) -> tuple[str, int]:
    return f"{pipeline.system_prompt} <Prompt Start> {text}" if text else text, LUMINA_TOKENS


def embed_sana(pipeline: Any, texts: list[str]) -> Embedding:
    instruction = _usual(type(pipeline), "complex_human_instruction")
    found = pipeline.encode_prompt(texts, "" in texts, device=pipeline.device, complex_human_instruction=instruction)
    return _without_instructions(texts, found)


def ask_sana(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return network(x_t, timestep=time * network.config.timestep_scale, **conditions).sample  # type: ignore[no-any-return]


def written_sana(pipeline: Any, text: str) -> tuple[str, int]:
    instruction, most = "\n".join(_usual(type(pipeline), "complex_human_instruction")), _usual(type(pipeline), "max_sequence_length")
    if not text:
        return text, most
    return instruction + text, len(pipeline.tokenizer.encode(instruction)) + most - 2


def _without_instructions(texts: list[str], encoded: tuple[Any, ...]) -> Embedding:
    """The embeddings of a pipeline that puts instructions before captions, but not before the empty text of guidance."""
    words, mask, empty, empty_mask = encoded
    if empty is not None:
        none = torch.tensor([text == "" for text in texts], device=words.device)
        words, mask = torch.where(none[:, None, None], empty, words), torch.where(none[:, None], empty_mask, mask)
    return {WORDS: words, MASK: mask}


# --- what they share ------------------------------------------------------------------------------------------------------


def written_chat(pipeline: Any, text: str) -> tuple[str, int]:
    messages = [{"role": "user", "content": text}]
    thinking = THINKING[type(pipeline).__name__]
    chat = pipeline.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    return chat, CHAT_TOKENS


def _padded(rows: list[Tensor], length: int) -> Embedding:
    """Rows of tokens, padded with zeros to one length, and the mask of the tokens that are words."""
    words = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=words.device)
    return {WORDS: words, MASK: (torch.arange(length, device=words.device) < lengths[:, None]).long()}


def _usual(kind: type, name: str) -> Any:
    """The default of an argument of a pipeline's call."""
    return inspect.signature(kind.__call__).parameters[name].default
