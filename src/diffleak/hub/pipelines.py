"""The text-to-image pipelines of diffusers that are supported: how each embeds a caption and calls its network.

Text encoders, tokenizers and the embedding itself are the pipeline's own (`encode_prompt`), so a caption is embedded as it
was when the model was trained. Safety checkers and image encoders are never loaded.
"""

import inspect
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from diffleak.diffusion.conditions import Prompts, TextEncoder
from diffleak.errors import WHY, UserError, first_lines, one_or_more, pip_install, refusing, shown
from diffleak.hub import flow_models
from diffleak.hub.configs import load_object, read_json
from diffleak.hub.folders import (
    INDEX,
    TEXT_PARTS,
    check_files,
    check_weights,
    diffusers_library,
    from_transformers,
    transformers_library,
    unfit,
)
from diffleak.hub.offload import map_weights
from diffleak.hub.single_file import SingleFile
from diffleak.work.files import write_text
from diffleak.work.memory import out_of_memory
from diffleak.work.progress import progress

CACHE_BYTES = 2**30  # of text embeddings
TOGETHER = 16  # texts in one forward of the encoders, at most
NOT_LOADED = ("vae", "safety_checker", "feature_extractor", "image_encoder")
CLEANERS = {"bs4": "beautifulsoup4", "ftfy": "ftfy"}  # without which diffusers leaves captions as they are, and does not say so aloud
CLEANING = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")  # which call them; Sana's does not, unless it is asked to
NOTHING = [None, None]  # how a folder's index says that it has no such part
NO_LIMIT = int(1e30)  # what transformers takes for the longest text of a tokenizer that says none
MOST_TOKENS = 10**6  # of a vocabulary whose text encoder does not say how many it knows
PROCESSORS = ("PixtralProcessor",)  # of texts and images: only the tokenizer in it is loaded
PLENTY = 2048  # tokens, more than any pipeline reads of a caption
RESCALED = "rescales the guided prediction to the norm of the prediction for the caption"
SHORTEST = 3  # tokens of a text: a beginning, a word, an end
VOCABULARIES = (("tokenizer.json",), ("*.model",), ("vocab.json", "merges.txt"))  # each is one in full

Embedding = dict[str, Tensor]


@dataclass(frozen=True)
class Pipeline:
    """One class of diffusers' pipelines.

    Args:
        embed: `embed(pipeline, texts)` returns the tensors that the network takes for captions, with one row per caption.
        ask: `ask(pixels, network, x_t, time, conditions)` returns the network's prediction; a latent pixel is `pixels` image pixels wide.
        packing: The number of latent pixels that the transformer takes as one.
        needs: Parts without which diffusers' `encode_prompt` fails with a bug.
        written: `written(pipeline, text)` returns a caption in its template, as the tokenizer gets it, and how many of its tokens are read;
            None for a pipeline without a template.
        chat: True if that template is the tokenizer's chat template.
        guides: `guides(pipeline)` says how the pipeline's own guidance differs from the one here; None if it does not.
    """

    embed: Callable[[Any, list[str]], Embedding]
    ask: Callable[[int, Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    packing: int = 1
    needs: tuple[str, ...] = ("text_encoder", "tokenizer")
    written: Callable[[Any, str], tuple[str, int]] | None = None
    chat: bool = False
    guides: Callable[[Any], str | None] = lambda pipeline: None


def _embed_sd(pipeline: Any, texts: list[str]) -> Embedding:
    return {"encoder_hidden_states": pipeline.encode_prompt(texts, pipeline.device, 1, False)[0]}


def _ask_sd(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return network(x_t, time, **conditions).sample  # type: ignore[no-any-return]


def _embed_sdxl(pipeline: Any, texts: list[str]) -> Embedding:
    embedding, _, pooled, _ = pipeline.encode_prompt(texts, device=pipeline.device, do_classifier_free_guidance=False)
    zeros = pipeline.config.force_zeros_for_empty_prompt  # what the model was trained to take for no caption
    told = torch.tensor([[not (zeros and text == "")] for text in texts], device=pooled.device)
    return {"encoder_hidden_states": embedding * told[..., None], "text_embeds": pooled * told}


def _ask_sdxl(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    height, width = (side * pixels for side in x_t.shape[-2:])
    ids = torch.tensor([height, width, 0, 0, height, width], dtype=x_t.dtype, device=x_t.device).expand(len(x_t), 6)
    added = {"text_embeds": conditions["text_embeds"], "time_ids": ids}  # an uncropped image of its own size
    return network(x_t, time, conditions["encoder_hidden_states"], added_cond_kwargs=added).sample  # type: ignore[no-any-return]


def _embed_pixart(pipeline: Any, texts: list[str]) -> Embedding:
    embedding, mask, _, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False, device=pipeline.device, clean_caption=True)
    return {"encoder_hidden_states": embedding, "encoder_attention_mask": mask}


def _ask_pixart(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.config.sample_size == 128:  # the one size whose networks are told the resolution, as in the pipeline itself
        height, width = (side * pixels for side in x_t.shape[-2:])
        rows = lambda *values: torch.tensor([values], dtype=x_t.dtype, device=x_t.device).expand(len(x_t), -1)
        added = {"resolution": rows(height, width), "aspect_ratio": rows(height / width)}
    return network(x_t, timestep=time, added_cond_kwargs=added, **conditions).sample  # type: ignore[no-any-return]


def _embed_sd3(pipeline: Any, texts: list[str]) -> Embedding:
    embedding, _, pooled, _ = pipeline.encode_prompt(texts, None, None, device=pipeline.device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embedding, "pooled_projections": pooled}


def _ask_sd3(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return network(x_t, timestep=time, **conditions).sample  # type: ignore[no-any-return]


def _embed_flux(pipeline: Any, texts: list[str]) -> Embedding:
    embedding, pooled, _ = pipeline.encode_prompt(texts, None, device=pipeline.device)
    return {"encoder_hidden_states": embedding, "pooled_projections": pooled}


def _ask_flux(pixels: int, network: Any, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    pipeline = diffusers_library().FluxPipeline
    b, c, h, w = x_t.shape
    flow_models.refuse_odd("Flux", pixels, x_t)
    positions = pipeline._prepare_latent_image_ids(b, h // 2, w // 2, x_t.device, x_t.dtype)
    words = torch.zeros(conditions["encoder_hidden_states"].shape[1], 3, dtype=x_t.dtype, device=x_t.device)
    guidance = torch.ones(b, dtype=torch.float32, device=x_t.device) if network.config.guidance_embeds else None
    packed = pipeline._pack_latents(x_t, b, c, h, w)
    found = network(packed, timestep=time / 1000, img_ids=positions, txt_ids=words, guidance=guidance, **conditions).sample
    return pipeline._unpack_latents(found, h, w, 1)  # type: ignore[no-any-return]


PIPELINES = {
    "StableDiffusionPipeline": Pipeline(_embed_sd, _ask_sd),
    "StableDiffusionXLPipeline": Pipeline(_embed_sdxl, _ask_sdxl, needs=("text_encoder_2", "tokenizer_2")),
    "PixArtAlphaPipeline": Pipeline(_embed_pixart, _ask_pixart),
    "PixArtSigmaPipeline": Pipeline(_embed_pixart, _ask_pixart),
    "StableDiffusion3Pipeline": Pipeline(_embed_sd3, _ask_sd3),
    "FluxPipeline": Pipeline(_embed_flux, _ask_flux, packing=4),
    "Flux2Pipeline": Pipeline(flow_models.embed_flux2, flow_models.ask_flux2, written=flow_models.written_flux2, chat=True),
    "Flux2KleinPipeline": Pipeline(
        flow_models.embed_flux2_klein,
        flow_models.ask_flux2_klein,
        written=flow_models.written_chat,
        chat=True,
        guides=lambda pipeline: (
            "ignores the guidance scale, because the model is distilled (is_distilled)" if pipeline.config.is_distilled else None
        ),
    ),
    "ZImagePipeline": Pipeline(
        flow_models.embed_z_image,
        flow_models.ask_z_image,
        written=flow_models.written_chat,
        chat=True,
        guides=lambda pipeline: "counts guidance from 0, so its guidance_scale is 1 less than the one here",
    ),
    "QwenImagePipeline": Pipeline(
        flow_models.embed_qwen, flow_models.ask_qwen, packing=4, written=flow_models.written_qwen, guides=lambda pipeline: RESCALED
    ),
    "ChromaPipeline": Pipeline(flow_models.embed_chroma, flow_models.ask_chroma, packing=4),
    "Lumina2Pipeline": Pipeline(
        flow_models.embed_lumina2, flow_models.ask_lumina2, written=flow_models.written_lumina2, guides=lambda pipeline: RESCALED
    ),
    "SanaPipeline": Pipeline(flow_models.embed_sana, flow_models.ask_sana, written=flow_models.written_sana),
}


class Kept:
    """A cache of embeddings by caption, up to CACHE_BYTES, the most recently used at the end; hold `lock` to use it."""

    def __init__(self) -> None:
        self.made: OrderedDict[str, Embedding] = OrderedDict()
        self.bytes, self.lock = 0, Lock()

    def get(self, text: str) -> Embedding | None:
        """The embedding of a caption, or None if it is not kept."""
        if text in self.made:
            self.made.move_to_end(text)
        return self.made.get(text)

    def add(self, text: str, embedding: Embedding) -> None:
        """Keeps a new embedding, and drops the least recently used ones if there is no room."""
        self.made[text] = embedding
        self.bytes += _size(embedding)
        while self.bytes > CACHE_BYTES and len(self.made) > 1:
            self.bytes -= _size(self.made.popitem(last=False)[1])

    @property
    def full(self) -> bool:
        """True once another embedding of the same size would push out one that is kept."""
        return bool(self.made) and self.bytes * (len(self.made) + 1) > CACHE_BYTES * len(self.made)


class PipelineText:
    """Embeds captions with the text encoders of a pipeline, each distinct caption once and on its own.

    Captions are embedded one at a time, so that an embedding does not depend on the rest of the batch; up to 1 GiB of them is kept. Texts
    that always come in the same group may be embedded `together`, TOGETHER at a time, which is faster; those are not kept. `embed_first`
    embeds the captions of a whole job and frees the encoders' memory; the encoders are loaded again for a text that is not kept.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self._embed = pipeline, PIPELINES[type(pipeline).__name__].embed
        self._kept = Kept()
        self._released = False
        self._works_on: torch.device | None = None  # an accelerator that the encoders have left

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        """The captions of a batch as its conditions."""
        with self._kept.lock:
            pieces = [list(texts[start : start + TOGETHER]) for start in range(0, len(texts), TOGETHER)]
            rows = [self._made(piece) for piece in pieces] if together else [self._embedded(text) for text in texts]
        return Prompts(tuple(texts), {name: torch.cat([row[name] for row in rows]) for name in rows[0]}, self)

    def embed_first(self, texts: Iterable[str], place: Path) -> None:
        """Embeds these captions and the empty one, and frees the memory of the text encoders if all of the embeddings can be kept.

        place: a folder for the file that then holds the encoders' weights (see `hub.offload`).
        """
        with self._kept.lock:
            if self._released:
                return
            missing = [text for text in dict.fromkeys([*texts, ""]) if self._kept.get(text) is None]
            with progress("embedding captions", len(missing), "captions") as advance:
                for text in missing:
                    self._embedded(text)
                    advance(1)
                    if self._kept.full:
                        return  # the others are embedded when they are needed, so the encoders stay
            self._release(place)

    def _release(self, place: Path) -> None:
        self._released, device = True, self.pipeline.device
        if device.type == "cpu":
            map_weights(self.networks, place)
            return
        self._works_on = device
        for network in self.networks:
            network.to("cpu")

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Moves the text encoders back to the accelerator that they have left, if they have, for the time of the context."""
        if self._works_on is None:
            yield
            return
        for network in self.networks:
            network.to(self._works_on)
        try:
            yield
        finally:
            for network in self.networks:
                network.to("cpu")

    def truncated(self, texts: Sequence[str]) -> list[int]:
        """The positions of the texts that are too long for every tokenizer of the pipeline, so that their end is lost."""
        kind = PIPELINES[type(self.pipeline).__name__]
        texts = getattr(self.pipeline, "_text_preprocessing", list)(list(texts))  # PixArt's and Sana's put captions in small letters
        if kind.written:
            read = [kind.written(self.pipeline, text) for text in texts]
            return [i for i, (text, limit) in enumerate(read) if len(self.pipeline.tokenizer(text).input_ids) > limit]
        limits = self._tokenizers
        expanded = vars(self.pipeline).get("maybe_convert_prompt", lambda text, tokenizer: text)  # of embeddings with several vectors
        length = lambda text, tokenizer: len(tokenizer(expanded(text, tokenizer)).input_ids)
        return [i for i, text in enumerate(texts) if all(length(text, tokenizer) > limit for tokenizer, limit in limits)]

    def share(self, kept: Kept) -> None:
        """Uses `kept` as its cache, shared with other models of the same pipeline, text encoders and tokenizers.

        Embeddings that it has already are added to it. Call it before threads embed.
        """
        with kept.lock:
            for text, made in self._kept.made.items():
                if kept.get(text) is None:
                    kept.add(text, made)
        self._kept = kept

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """The text encoders."""
        return text_encoders(self.pipeline)

    @property
    def _tokenizers(self) -> list[tuple[Any, int]]:
        """Every tokenizer with its limit on the tokens of a caption."""
        asked = inspect.signature(self.pipeline.encode_prompt).parameters.get("max_sequence_length")
        names = [name for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if getattr(self.pipeline, name, None) is not None]
        limits = {name: getattr(self.pipeline, name).model_max_length for name in names}
        return [
            (getattr(self.pipeline, name), asked.default if asked and "T5" in type(getattr(self.pipeline, name)).__name__ else limit)
            for name, limit in limits.items()
        ]

    def _embedded(self, text: str) -> Embedding:
        made = self._kept.get(text)
        if made is None:
            made = self._made([text])
            self._kept.add(text, made)
        return made

    def _made(self, texts: list[str]) -> Embedding:
        try:
            with torch.inference_mode(), self._at_work():
                return self._embed(self.pipeline, texts)
        except Exception as error:  # of a config.json or a vocabulary that the weights were not trained with
            if out_of_memory(error):
                raise
            failed = f"the text encoders of a {type(self.pipeline).__name__} fail for {shown(repr(texts[0]))}"
            raise UserError(f"{failed} ({first_lines(error)}); check the tokenizer and config.json beside them") from error


def embed_first(text: TextEncoder | None, texts: Iterable[str], place: Path) -> None:
    """Embeds the captions of a job before anything else runs, and frees the memory of the text encoders (see `PipelineText`).

    The user's own encoders stay as they are. place: a folder for a file of weights.
    """
    if isinstance(text, PipelineText):
        text.embed_first(texts, place)


def text_encoders(pipeline: Any) -> tuple[torch.nn.Module, ...]:
    """The text encoders of a pipeline, which has up to three."""
    found = (getattr(pipeline, name, None) for name in TEXT_PARTS if name.startswith("text_encoder"))
    return tuple(network for network in found if network is not None)


def _size(embedding: Embedding) -> int:
    return sum(value.nbytes for value in embedding.values())


def pipeline_of(folder: Path) -> str | None:
    """The text-to-image pipeline that the model_index.json of a folder names; None for a model without captions.

    Raises `UserError` for a model with a text or image encoder whose pipeline is not named or not supported.
    """
    index = folder / INDEX
    named = str(read_json(index, "").get("_class_name")) if index.is_file() else None
    if named in PIPELINES:
        return named
    if any(folder.glob("text_encoder*")) or any(folder.glob("image_encoder")):
        raise UserError(
            f"text-to-image models must be one of {', '.join(PIPELINES)}, named in {INDEX}; {folder} "
            f"{f'is a {named}' if named else 'has no such file'}"
        )
    return None


def write_index(folder: Path, base: Path) -> None:
    """Writes the model_index.json of `base` for a copy; parts that were not copied, as a safety checker, are listed as absent."""
    index = read_json(base / INDEX, f"{base} must have a model_index.json that names its pipeline")
    absent = [key for key, value in index.items() if isinstance(value, list) and not (folder / key).is_dir()]
    index |= {key: [None, None] for key in absent}
    if "safety_checker" in absent:
        index["requires_safety_checker"] = False
    write_text(folder / INDEX, json.dumps(index, indent=2))


def load_text(
    folder: Path, name: str, part: str, network: torch.nn.Module, dtype: torch.dtype, device: str, single: SingleFile | None = None
) -> Any:
    """The pipeline of a folder with the loaded `network` as its `part`, with its text encoders and without an autoencoder.

    single: the file with the weights, if the folder has only their settings. The library's `from_pretrained` is not used, because it
    imports and loads whatever the folder's index names.
    """
    quiet()
    library, index = diffusers_library(), read_json(folder / INDEX, "")
    kind = getattr(library, name)
    taken = inspect.signature(kind.__init__).parameters
    settings = {key: value for key, value in index.items() if key in taken and not isinstance(value, list)}
    lacking = [part for part in PIPELINES[name].needs if index.get(part, NOTHING) == NOTHING]
    if lacking:
        raise UserError(f"a {name} must have a {lacking[0]}; {folder} has none: check that its {INDEX} belongs to this model")
    none = dict.fromkeys(key for key in (*NOT_LOADED, *TEXT_PARTS) if key in taken)
    unused = library.DDPMScheduler(clip_sample=False, steps_offset=1)  # no pipeline is made without one; nothing is drawn by it
    parts = {**none, **_text_parts(folder, index, dtype, single), part: network, "scheduler": unused}
    # of parts and settings that do not fit together
    with refusing(Exception, f"the text encoders of {folder} cannot be used in a {name}: {WHY}", first_lines):
        pipeline = kind(**{**settings, **parts})
    if PIPELINES[name].chat and not pipeline.tokenizer.chat_template:
        said = f"a {name} puts captions into its tokenizer's chat template, and {folder / 'tokenizer'} has none"
        raise UserError(f"{said}: fetch chat_template.jinja or tokenizer_config.json again")
    absent = [project for module, project in CLEANERS.items() if find_spec(module) is None]
    if absent and name in CLEANING:
        why = f"a {name} cleans captions with {' and '.join(CLEANERS.values())}, and {absent[0]} is not installed"
        warnings.warn(f"{why}: captions are only made lower-case; install {' and '.join(absent)}", stacklevel=2)
    pipeline.set_progress_bar_config(disable=True)
    for encoder in text_encoders(pipeline):
        encoder.to(device)
    return pipeline


def _text_parts(folder: Path, index: Mapping[str, Any], dtype: torch.dtype, single: SingleFile | None) -> dict[str, Any]:
    """The text encoders and tokenizers that the folder's index names, by part.

    Raises `UserError` if one is incomplete or of another kind. transformers itself would initialise missing weights at random and make an
    empty tokenizer from an empty folder, without an error; and some of its class names run code that lies in the folder.
    """
    named = {part: value for part, value in index.items() if part in TEXT_PARTS and value != NOTHING}
    found: dict[str, Any] = {}
    for part, value in sorted(named.items()):  # an encoder before its tokenizer
        if not isinstance(value, list) or len(value) != 2 or value[0] != "transformers" or not isinstance(value[1], str):
            raise UserError(f'{folder / INDEX} must give {part} as ["transformers", NAME OF A CLASS]; got {shown(json.dumps(value))}')
        own = folder / part
        if not own.is_dir():
            raise UserError(f"{folder} must hold {part}/, which its {INDEX} names; it is missing: fetch the model again")
        if part.startswith("tokenizer"):
            found[part] = _tokenizer(own, value[1], found.get(part.replace("tokenizer", "text_encoder")))
        else:
            state = single.text_encoder(part) if single else None
            found[part] = _encoder(own, value[1], dtype, state, f"{single.path}, {part}" if single and state else "")
    return found


def _class(name: str, base: str, folder: Path) -> Any:
    """The class of transformers with this name; raises `UserError` unless it is a `base`, since others may run code in the folder."""
    import transformers

    kind = getattr(transformers, name, None)
    if isinstance(kind, type) and (issubclass(kind, getattr(transformers, base)) or hasattr(kind, "_backends")):  # it says what to install
        return kind
    raise UserError(f"{folder.parent / INDEX} must name a {base} of transformers as {folder.name}; got {shown(name)}")


def _tokenizer(folder: Path, name: str, encoder: torch.nn.Module | None) -> Any:
    """A tokenizer, with the limit of its encoder if its own limit is missing or cannot be used."""
    check_files(folder)
    if not any(all(any(folder.glob(file)) for file in files) for files in VOCABULARIES):
        raise UserError(
            f"{folder} must hold a vocabulary (tokenizer.json, a .model file, or vocab.json with merges.txt); found none: "
            "fetch the model again"
        )
    named = transformers_library().AutoTokenizer if name in PROCESSORS else _class(name, "PreTrainedTokenizerBase", folder)
    config = getattr(encoder, "config", None)
    config = getattr(config, "text_config", config)  # of a model that sees images too
    known = getattr(config, "vocab_size", MOST_TOKENS)
    for file in sorted(folder.glob("*.json")):  # the library does not say which file it cannot read
        extra = load_object(file).get("extra_ids", 0)
        if type(extra) is not int or not 0 <= extra <= known:  # which it would make one by one
            raise UserError(f"extra_ids of {file} must be a whole number in [0, {known}]; got {shown(json.dumps(extra))}")
    # transformers, tokenizers and json each raise their own; all mean an unusable folder
    with refusing(Exception, f"{folder} cannot be loaded: {WHY}", first_lines):
        tokenizer = named.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if len(tokenizer) > known:
        said = f"{folder} has {len(tokenizer):,} tokens, and the text encoder beside it knows {known:,}"
        raise UserError(f"a tokenizer and its text encoder must belong together; {said}: fetch both again")
    given, most = tokenizer.model_max_length, getattr(config, "max_position_embeddings", NO_LIMIT)
    if type(given) is not int or not SHORTEST <= given <= most:
        if NO_LIMIT not in (given, most) and most < PLENTY:
            said = f"{folder.name}/ gives model_max_length {shown(given)}, which its text encoder cannot take: {most} tokens are read"
            warnings.warn(said, stacklevel=2)
        tokenizer.model_max_length = most
    return tokenizer


def _encoder(folder: Path, name: str, dtype: torch.dtype, state: Mapping[str, Tensor] | None = None, where: str = "") -> torch.nn.Module:
    """A text encoder, with the weights of its folder or with `state`, which messages call `where`."""
    if state is None:
        check_weights(folder)
    config = read_json(folder / "config.json", f"{folder} must be a text encoder")
    named = (part.get(key) for part in _nested(config) for key in ("attn_implementation", "_attn_implementation"))
    if attention := next((name for name in named if name not in (None, "eager", "sdpa")), None):
        raise UserError(f"{folder / 'config.json'} must leave out attn_implementation, which may name code to run; got {shown(attention)}")
    kind = _class(name, "PreTrainedModel", folder)
    with refusing(Exception, f"{where or folder} cannot be loaded: {WHY}", first_lines):  # as in `_tokenizer`
        made = {} if state is None else {"config": kind.config_class.from_pretrained(folder, local_files_only=True), "state_dict": state}
        encoder, info = from_transformers(kind, folder, where, torch_dtype=dtype, **made)
    if info["missing_keys"]:
        raise UserError(unfit(where or f"{folder}", f"first: {min(info['missing_keys'])}", not where))
    unused = info["unexpected_keys"]  # harmless, unless config.json is that of a smaller encoder
    if unused:
        weights = one_or_more(len(unused), "weight")
        warnings.warn(f"{folder.name}/ holds {weights} that its config.json does not use (first: {min(unused)})", stacklevel=2)
    return encoder.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _nested(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A config and the configs nested in it, as that of the language model in a model that also sees images."""
    return [config, *(part for value in config.values() if isinstance(value, dict) for part in _nested(value))]


def quiet() -> None:
    """Turns off the warnings and progress bars of transformers; raises `UserError` if it is not installed."""
    with refusing(ImportError, f"text-to-image models need transformers for their text encoders: {pip_install('text')}"):
        transformers_library()


def guidance_notes(pipeline: Any) -> list[str]:
    """A warning if the pipeline's own guidance differs from the one here."""
    own = PIPELINES[type(pipeline).__name__].guides(pipeline)
    name = type(pipeline).__name__
    return [f"with guidance, diffusers' {name} {own}; diffleak uses eps(empty) + scale (eps(caption) - eps(empty))"] if own else []


def asking(name: str, pixels: int) -> Callable[..., Tensor]:
    """The function that calls the network of a pipeline, in the form that `NetworkDenoiser` takes."""
    return partial(PIPELINES[name].ask, pixels)
