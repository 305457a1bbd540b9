"""Hashes of a model's parts in memory, adapters included; two models share the results of parts with equal hashes."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffleak.diffusion.codec import Autoencoder, Codec
from diffleak.diffusion.conditions import TextEncoder
from diffleak.hub.pipelines import PipelineText

VERSIONS = ("transformers_version", "torch_dtype", "dtype")  # in a config, of what saved it


def codec_key(codec: Codec) -> str | None:
    """A hash of all that decides an autoencoder's latents: its class, settings, scale and weights; None for the user's own codec."""
    if type(codec) is not Autoencoder or not type(codec.network).__module__.startswith("diffusers."):
        return None
    return _hash([codec.network], {"scale": codec.scale, "shift": codec.shift})


def text_key(text: TextEncoder | None) -> str | None:
    """A hash of all that decides a text encoder's embeddings: its pipeline, tokenizers and weights.

    None for the user's own encoder, and for one whose weights are not in memory.
    """
    if not isinstance(text, PipelineText) or not text.networks:
        return None
    if any(value.is_meta for network in text.networks for value in network.state_dict().values()):
        return None
    tokenizers = [(type(tokenizer).__name__, limit, *_said(tokenizer)) for tokenizer, limit in text._tokenizers]
    named = json.dumps([type(text.pipeline).__name__, {k: str(v) for k, v in text.pipeline.config.items() if k[0] != "_"}, tokenizers])
    return hashlib.sha256(f"{named} {_hash(text.networks)}".encode()).hexdigest()


def _said(tokenizer: Any) -> tuple[Any, ...]:
    """What decides how a tokenizer reads a text: its vocabulary, chat template, merges and normaliser."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend is not None else [str(getattr(tokenizer, name, "")) for name in ("bpe_ranks", "init_kwargs")]
    return sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None), whole


def _hash(networks: Iterable[Any], more: Mapping[str, Tensor] | None = None) -> str:
    digest = hashlib.sha256()
    for network in networks:
        settings = network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)
        said = {key: str(value) for key, value in settings.items() if key[0] != "_" and key not in VERSIONS}
        digest.update(f"{type(network).__name__} {sorted(said.items())}".encode())
        for name, value in network.state_dict().items():
            _add(digest, name, value)
    for name, value in (more or {}).items():
        _add(digest, name, value)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
