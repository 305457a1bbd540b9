"""Do images show what their captions say: the CLIP score, by both towers of one CLIP.

    score = mean over images of max(100 cos(E_I(image), E_C(caption)), 0)

Hessel, Holtzman, Forbes, Le Bras and Choi 2021, arXiv 2104.08718, eq. 1, with w = 100 in place of 2.5 as later papers have
it. Captions are cut to what CLIP reads, 77 tokens. Scores of different CLIPs do not compare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffleak.diffusion.finite import advice
from diffleak.errors import WHY, UserError, first_lines, pip_install, refusing
from diffleak.hub import heard
from diffleak.hub.encoders import BATCH, HUB, encoder_folder, preprocessing
from diffleak.hub.folders import check_weights, from_transformers, hashed_weights
from diffleak.records.base import Estimate
from diffleak.stats.images import clip_score
from diffleak.work.memory import out_of_memory
from diffleak.work.progress import progress
from diffleak.work.remembered import hash_weights

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


@dataclass(frozen=True, eq=False)
class Clip:
    """Both towers: uint8 images (b, h, w, c) and texts to vectors of one space.

    `name` and `fingerprint` say which CLIP it is, `warnings` what was said of its weights, which are those of `network`.
    """

    name: str
    fingerprint: str
    image: Callable[[UInt8[np.ndarray, "b h w c"]], Float[Tensor, "b d"]]
    text: Callable[[Sequence[str]], Float[Tensor, "b d"]]
    warnings: tuple[str, ...] = ()
    network: Any = None


@dataclass(frozen=True)
class NoClip:
    """Why there is none."""

    reason: str


def find_clip(model: str | None, device: str) -> Clip | NoClip:
    """The CLIP that was named, or the usual one where it can be had; raises `UserError` when the named one cannot."""
    if model is not None:
        return open_clip(model, device)
    try:
        return open_clip(HUB["clip"], device)
    except UserError as error:
        return NoClip(f"{error}; give --clip FOLDER" if find_spec("transformers") else f"{error}")  # a folder needs the package too


def open_clip(model: str, device: str) -> Clip:
    """The CLIP of a folder or hub id; raises `UserError` where there is none that transformers reads, with its tokenizer."""
    with refusing(ImportError, f"the CLIP score needs transformers: {pip_install('encoders')}"):
        import transformers
    folder = encoder_folder(model, TOKENIZER)
    preprocess = preprocessing(folder, "a CLIP")
    check_weights(folder)
    # transformers and tokenizers each raise their own; all mean an unusable folder
    with refusing(Exception, f"{model} cannot be used as a CLIP ({WHY})", first_lines):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        kind: Any = transformers.CLIPModel
        with heard() as said:
            network, info = from_transformers(kind, folder)
    if info["missing_keys"]:
        raise UserError(f"{model} must hold a CLIP of images and texts; its weights lack {sorted(info['missing_keys'])[0]}")
    network = network.to(device).eval()
    files = [*hashed_weights(folder), folder / "config.json", folder / "preprocessor_config.json"]
    files += [folder / name for name in TOKENIZER if (folder / name).is_file()]
    warnings = tuple(f"while {model} was loaded: {line}" for line in said)
    see, read = lambda images: _seen(network, preprocess(images)), lambda texts: _read(network, tokenizer, texts)
    return Clip(model, hash_weights(files), see, read, warnings, network)


def alignment(clip: Clip | NoClip, images: UInt8[np.ndarray, "n h w c"], texts: Sequence[str], seed: int) -> Estimate:
    """The CLIP score of images and their captions with its interval; None with the reason where there is no CLIP."""
    if isinstance(clip, NoClip):
        return Estimate(reason=clip.reason)
    return clip_score(cosines(clip, images, texts), seed)


def cosines(clip: Clip, images: UInt8[np.ndarray, "n h w c"], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Of each image with its caption."""
    found = []
    with torch.inference_mode(), progress("CLIP score", len(images), "images") as advance:
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            try:
                pair = torch.cosine_similarity(clip.image(images[rows]).double(), clip.text(texts[rows]).double())
            except (RuntimeError, ValueError, TypeError, IndexError) as error:  # of towers, preprocessing and tokenizer that do not fit
                if out_of_memory(error):
                    raise
                said = f"the CLIP {clip.name} must take images of shape {images.shape[1:]} and their captions; it fails"
                raise UserError(f"{said}: {first_lines(error)[:200]}; fetch its files again, or give another with --clip") from None
            if not bool(pair.isfinite().all()):
                raise UserError(f"the CLIP {clip.name} must give finite vectors; got NaN or infinity: {advice(clip.network)}")
            found.append(pair.cpu().numpy())
            advance(len(pair))
    return np.concatenate(found)


def _seen(network: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    return network.visual_projection(network.vision_model(pixels.to(network.device)).pooler_output)  # type: ignore[no-any-return]


def _read(network: Any, tokenizer: Any, texts: Sequence[str]) -> Float[Tensor, "b d"]:
    length = network.config.text_config.max_position_embeddings
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt").to(network.device)
    return network.text_projection(network.text_model(tokens.input_ids, tokens.attention_mask).pooler_output)  # type: ignore[no-any-return]
