"""Textual inversion: adds a word, whose vectors a file gives, to the tokenizers and text encoders of a pipeline.

    E' = [E; v_1 ... v_n]          rows of the table of token embeddings; the word in a caption stands for the tokens of v_1 ... v_n

Layouts, as safetensors or state dicts: diffusers' {word: vectors}; A1111's {"string_to_param": {"*": vectors}, "name": word}; kohya's
{"emb_params": vectors}; and {"clip_l": vectors, "clip_g": vectors} for models with two CLIP encoders. The last two name no word: the word
is then the file's name, as in A1111, unless it is given as FILE@WORD. diffusers' `load_textual_inversion` is not used, for two reasons: it
takes "emb_params" for the word, and in models with an old config (`eos_token_id` 2) it makes the pooled embedding that of the new token.
Gal et al. 2022, arXiv 2208.01618.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffleak.errors import WHY, UserError, one_or_more, refusing, shown
from diffleak.hub.folders import LONGEST_PATH, diffusers_library, file_of
from diffleak.hub.states import is_eighth, load_state
from diffleak.records.plan import Embedding
from diffleak.work.files import hash_file
from diffleak.work.listed import split_named
from diffleak.work.progress import say
from diffleak.work.reading import Unreadable

FILES = (("learned_embeds.safetensors",), ("learned_embeds.bin",))  # the second where the first is not there
LONGEST_WORD = 100  # characters
ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # what files call the vectors of each
ANY = "vectors"  # of a file for models with one CLIP encoder
LEGACY_END = 2  # in old configs of CLIP, where transformers pools at the token with the highest number
SIZES = "SD 1 takes 768 numbers, SD 2 1024, SDXL 768 and 1280"


@dataclass(frozen=True, eq=False)
class Learned:
    """An embedding as its file gives it: the word, and vectors (n, d) by encoder, or ANY."""

    name: str
    file: Path
    word: str
    vectors: Mapping[str, Tensor]

    @property
    def record(self) -> Embedding:
        return Embedding(name=self.name, token=self.word, vectors=len(next(iter(self.vectors.values()))), sha256=hash_file(self.file))

    @property
    def tokens(self) -> tuple[str, ...]:
        return (self.word, *(f"{self.word}_{i}" for i in range(1, self.record.vectors)))


def named_embeddings(text: str) -> tuple[Learned, ...]:
    """The embeddings in a list like `FILE,FILE@WORD`; raises `UserError` for a file of another kind, and for a word that two have."""
    found: list[Learned] = []
    for name, word in split_named(text, "--embedding"):
        made = _read(name, word)
        same = next((other for other in found if other.word.casefold() == made.word.casefold()), None)
        if same:
            raise UserError(
                f"each embedding must have a word of its own; {shown(same.name)} and {shown(name)} are both {shown(made.word)}: "
                "choose another word with FILE@WORD"
            )
        found.append(made)
    return tuple(found)


def embedding_fingerprint(learned: Learned) -> str:
    """A hash of an embedding's file and its word."""
    return hashlib.sha256(f"{hash_file(learned.file)} {learned.word}".encode()).hexdigest()


def embed(pipeline: Any, embeddings: Sequence[Learned]) -> tuple[Embedding, ...]:
    """Adds words to the tokenizers and text encoders of a pipeline, in place.

    Raises `UserError` for a pipeline that takes no embeddings, for vectors of another model, and for a word already in the vocabulary.
    """
    for learned in embeddings:
        with refusing(UserError, f"the embedding {shown(learned.file, LONGEST_PATH)} does not match the model: {WHY}"):
            _add(pipeline, learned)
        several = one_or_more(len(learned.tokens), "vector")
        say(f"embedding: '{learned.word}' in captions stands for the {several} of {learned.file}")
    if any(len(learned.tokens) > 1 for learned in embeddings):
        alone = {token.lower(): token for learned in embeddings for token in learned.tokens}  # one that has another in it stays whole
        pipeline.maybe_convert_prompt = _expander(alone | {learned.word.lower(): " ".join(learned.tokens) for learned in embeddings})
    return tuple(learned.record for learned in embeddings)


def _add(pipeline: Any, learned: Learned) -> None:
    kinds = {part: type(getattr(pipeline, part.replace("text_encoder", "tokenizer"), None)).__name__ for part in ENCODERS}
    encoders = [part for part, kind in kinds.items() if kind.startswith("CLIP") and getattr(pipeline, part, None) is not None]
    if not isinstance(pipeline, diffusers_library().loaders.TextualInversionLoaderMixin) or not encoders:
        raise UserError(f"a {type(pipeline).__name__} takes no embeddings")
    names = {ENCODERS[part] for part in encoders} if len(encoders) > 1 else {ANY}
    vectors = learned.vectors
    if len(encoders) == 1 and vectors.keys() == {ENCODERS[encoders[0]]}:
        vectors = {ANY: vectors[ENCODERS[encoders[0]]]}
    if vectors.keys() != names:
        its = "one encoder" if ANY in vectors else " and ".join(sorted(vectors))
        wanted = "one CLIP encoder" if ANY in names else "two CLIP encoders, clip_l and clip_g"
        raise UserError(f"it has vectors for {its}, and the model has {wanted}: give an embedding made for this kind of model")
    for part in encoders:
        _extend(pipeline, part, learned, vectors[ANY if ANY in names else ENCODERS[part]])


def _extend(pipeline: Any, part: str, learned: Learned, vectors: Tensor) -> None:
    """Adds a word to one encoder and its tokenizer."""
    encoder, tokenizer = getattr(pipeline, part), getattr(pipeline, part.replace("text_encoder", "tokenizer"))
    table, words = encoder.get_input_embeddings(), list(learned.tokens)
    if vectors.shape[1] != table.weight.shape[1]:
        raise UserError(f"its vectors have {vectors.shape[1]} numbers, and the {part} takes vectors of {table.weight.shape[1]} ({SIZES})")
    if len(vectors) > tokenizer.model_max_length - 2:
        raise UserError(f"it has {len(vectors)} vectors, and a caption has at most {tokenizer.model_max_length} tokens")
    vocabulary = tokenizer.get_vocab()
    if known := next((word for word in words if {word, word.lower()} & vocabulary.keys()), None):
        raise UserError(f"the {part} already knows the word {shown(known)}; choose another with FILE@WORD, and write that in the captions")
    tokenizer.add_tokens(words)
    numbers = tokenizer.convert_tokens_to_ids(words)
    if tokenizer(" ".join(words), add_special_tokens=False).input_ids != numbers or len(set(numbers)) < len(words):
        raise UserError(f"the tokenizer does not read {shown(learned.word)} as one word; choose another with FILE@WORD")
    old = table.weight.detach()
    new = torch.zeros(max(len(old), max(numbers) + 1), old.shape[1], dtype=old.dtype, device=old.device)
    new[: len(old)] = old
    new[numbers] = vectors.to(new)
    if not new[numbers].isfinite().all():
        raise UserError(f"its vectors are too large for {str(old.dtype).removeprefix('torch.')}; use --dtype float32")
    table.weight, table.num_embeddings = torch.nn.Parameter(new, requires_grad=False), len(new)
    encoder.config.vocab_size = len(new)
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == LEGACY_END:
            module.eos_token_id = tokenizer.eos_token_id


def _expander(tokens: Mapping[str, str]) -> Callable[[Any, Any], Any]:
    """Replaces a word by all its tokens, in upper or lower case: CLIP's tokenizers ignore case, and diffusers would insert the first
    token only.
    """
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))), re.IGNORECASE)

    def convert(prompt: Any, tokenizer: Any) -> Any:
        if not isinstance(prompt, str):
            return [convert(text, tokenizer) for text in prompt]
        if not any(token in tokenizer.get_added_vocab() for all_of in tokens.values() for token in all_of.split()[:1]):
            return prompt  # of an encoder that is no CLIP
        return pattern.sub(lambda found: tokens.get(found[0].lower(), found[0]), prompt)

    return convert


def _read(name: str, word: str | None) -> Learned:
    file = file_of(name, "--embedding", "an embedding", FILES)
    with refusing(Unreadable, f"the embedding {shown(file, LONGEST_PATH)} cannot be read: {WHY}"):
        word_of_file, vectors = _layout(load_state(file))
        hash_file(file)
    word = (word or word_of_file or file.stem).strip()
    if not word or len(word) > LONGEST_WORD or re.search(r"\s", word):
        raise UserError(
            f"the word of an embedding must have 1 to {LONGEST_WORD} characters and no spaces; that of {shown(file, LONGEST_PATH)} is "
            f"{shown(repr(word))}: choose another with FILE@WORD"
        )
    return Learned(name, file, word, vectors)


def _layout(content: Any) -> tuple[str | None, dict[str, Tensor]]:
    """The word that a file names, or None, and the vectors by encoder; raises `Unreadable` for other layouts."""
    known = 'one tensor by its word, "emb_params", "clip_l" and "clip_g", or "string_to_param"'
    if not isinstance(content, dict) or not content:
        raise Unreadable(f"it must hold {known}; it holds {type(content).__name__}")
    word, found = None, content
    if "string_to_param" in content:
        inner, named = content["string_to_param"], content.get("name")
        if not isinstance(inner, dict) or len(inner) != 1:
            raise Unreadable('its "string_to_param" must hold one tensor')
        word, found = named if isinstance(named, str) and named else None, {ANY: next(iter(inner.values()))}
    elif len(content) == 1 and not content.keys() & {"clip_l", "clip_g", "emb_params"}:
        word, found = str(next(iter(content))), {ANY: next(iter(content.values()))}
    elif content.keys() == {"emb_params"}:
        found = {ANY: content["emb_params"]}
    elif not content.keys() <= {"clip_l", "clip_g"}:
        raise Unreadable(f"it must hold {known}; it holds {', '.join(shown(str(key), 20) for key in list(content)[:3])}")
    vectors = {}
    for key, value in found.items():
        if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.numel() or not value.is_floating_point():
            raise Unreadable("its vectors must be a tensor of shape (n, d)")
        value = value.float() if is_eighth(value) else value
        if not bool(value.isfinite().all()):
            raise Unreadable("its vectors must be finite numbers: export the file again")
        vectors[key] = value.detach().reshape(-1, value.shape[-1])
    if len({len(value) for value in vectors.values()}) > 1:
        raise Unreadable('its "clip_l" and "clip_g" must have the same number of vectors')
    return word, vectors
