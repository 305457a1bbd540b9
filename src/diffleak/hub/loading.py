"""Loads a folder, a hub id or a file as a `Target`; writes what is made of finished models."""

import hashlib
import inspect
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, get_args

import numpy as np
import torch

from diffleak.config import IN_PYTHON, ModelConfig
from diffleak.data.labels import UNNAMED
from diffleak.data.pixels import ImageShape
from diffleak.data.split import own_split
from diffleak.diffusion import Choice
from diffleak.diffusion.codec import Autoencoder, Codec
from diffleak.diffusion.compiled import Compiled
from diffleak.diffusion.denoiser import Ask, Denoiser, Guided, LowRank, NetworkDenoiser, PredictionType
from diffleak.diffusion.devices import checked_device, faster_ways, laid_out
from diffleak.diffusion.dual import Dual, refuse_incompatible
from diffleak.diffusion.preconditioning import ROUNDING, Preconditioning
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import PIXELS, Target
from diffleak.errors import WHY, UserError, first_lines, refusing, shown, unknown
from diffleak.hub.adapters import STATES, Applied, adapter_fingerprint, apply, named_adapters, refuse_other_base, together
from diffleak.hub.classes import KEY, class_names
from diffleak.hub.codecs import AUTOENCODERS, OF_PIPELINES, codec_fingerprint, image_shape, read_codec, scaling
from diffleak.hub.configs import check_settings, read_json
from diffleak.hub.embeddings import embed, embedding_fingerprint, named_embeddings
from diffleak.hub.exploding import exploding
from diffleak.hub.folders import (
    CONVERTED,
    DTYPES,
    DUAL,
    INDEX,
    NETWORKS,
    PARTS,
    SECOND,
    TEXT_PARTS,
    autoencoder_folder,
    check_weights,
    diffusers_library,
    fingerprint,
    heard,
    located,
    pretrained,
    text_fingerprint,
)
from diffleak.hub.headers import headers_of
from diffleak.hub.making import FLOW_PREDICTION, FLOW_SCHEDULER, flow_schedule
from diffleak.hub.networks import denoiser_weights, place_of
from diffleak.hub.offload import offload as offload_weights
from diffleak.hub.own_model import model_from
from diffleak.hub.pipelines import PIPELINES, PipelineText, asking, guidance_notes, load_text, pipeline_of, write_index
from diffleak.hub.single_file import SingleFile, open_single_file
from diffleak.hub.weights import Weights
from diffleak.records.conversion import conversion_caveats
from diffleak.records.headers import ADAPTER_FILES
from diffleak.work.files import write_text
from diffleak.work.listed import join_named
from diffleak.work.progress import doing, say
from diffleak.work.remembered import hash_weights

P = ParamSpec("P")
Named = str | Path | Sequence[str | Path | tuple[str | Path, str | float]] | None  # one or several, each with or without its value
OF_LOADING = {  # settings that decide what `load` gives
    "model_config_": "the settings of a model in one file are read",
    "network": "another denoiser is put in",
    "weights": "averaged weights are chosen",
    "lora": "a LoRA is applied",
    "embedding": "an embedding is added",
    "offload": "weights are offloaded",
    "compile": "its network is compiled",
}
LEGACY = {"Transformer2DModel": "DiTTransformer2DModel"}  # the class name in the first DiT folders
OTHER_PARTS = ("vqmodel", "movq")
WITHOUT_TEXT = ("UNet2DModel", "DiTTransformer2DModel", CONVERTED)
LEARNED_VARIANCE = ("learned", "learned_range")  # what diffusers' schedulers call it
WITH_VARIANCE = ("DiTTransformer2DModel", "PixArtTransformer2DModel")  # whose pipelines drop it by the channels alone
MOST_TIMESTEPS = 10**6  # a thousand times those of published schedules
AVERAGES = ("ema", "non_ema")
STABLE_DIFFUSION_FACTOR = 0.18215  # Rombach et al. 2022, arXiv 2112.10752


def _with_warnings(load: Callable[P, Target]) -> Callable[P, Target]:
    """Prints the warnings of the libraries while a model is loaded on stderr, and keeps them in the model's `warnings`."""

    @wraps(load)
    def loading(*args: P.args, **given: P.kwargs) -> Target:
        with heard() as said, doing(f"loading {shown(str(args[0] if args else given.get('model')), 120)}"):
            target = load(*args, **given)
        both = (*target.warnings, *(f"while the model was loaded: {line}" for line in said))
        for line in both:
            say(f"warning: {line}")
        return replace(target, warnings=both)

    return loading


@_with_warnings
def load(
    model: str | Path,
    dtype: str = "float32",
    device: str | None = None,
    guidance_scale: float = 1.0,
    lora: Named = None,
    lora_scale: float = 1.0,
    embedding: Named = None,
    network: str | Path | None = None,
    weights: str | None = None,
    model_config: str | Path | None = None,
    offload: bool = False,
    fast: bool | None = None,
    compile: bool = False,
) -> Target:
    """The model in a diffusers folder, of a hub id, or in one file, ready to be audited.

    Args:
        model: The folder, hub id or file.
        dtype: float32, float16, bfloat16 or float64.
        device: A torch device, by default the first accelerator or the CPU.
        guidance_scale: The scale of classifier-free guidance on every prediction of a text-to-image model; 1 means none.
        lora: A LoRA, or another adapter, of a text-to-image model: a safetensors file, a folder or a hub id. It is merged into the weights
            of the denoiser, and of the text encoders if it adapts those. Several are merged one after the other, each at its own
            strength: "A@0.8,B", or ["B", ("A", 0.8)].
        lora_scale: A factor on the strength of every adapter.
        embedding: A textual inversion, or several: each adds a token to the text encoders, named by its file or as "FILE@TOKEN".
        network: A denoiser that replaces the model's own: a folder with config.json and weights, a folder with such a unet/, unet_ema/ or
            transformer/ in it, one that accelerate saved, or one file of weights for the model's own config.json.
        weights: ema or non_ema, for a model with both: unet_ema/ beside unet/, or *.non_ema.* beside the plain file, which is the average.
        model_config: For a model in one file: the same model as a diffusers folder or hub id, from which the settings are read (see
            `single_file`); by default they are downloaded.
        offload: Keep the denoiser's weights out of the memory of an accelerator, except for the layer that runs (see `hub.offload`).
        fast: True allows, and False forbids, settings that make an accelerator faster but less exact (see `devices.faster_ways`), for this
            whole process; None leaves torch's own settings.
        compile: Have torch compile the denoiser at its first forward (see `compiled`).

    Returns:
        The model with the images it takes.

    Raises:
        UserError: For a folder that is no diffusers model, pickles that run code, networks that are not supported, and an adapter, an
            embedding or a network that does not match the model.
    """
    lora, embedding = join_named(lora, "--lora"), join_named(embedding, "--embedding")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if weights not in (None, *AVERAGES):
        raise unknown("weights", weights, AVERAGES)
    single = open_single_file(Path(model), model_config) if os.path.isfile(model) else None
    if model_config is not None and single is None:
        raise UserError(f"--model-config gives the settings of a MODEL in one file, and {model} is a folder or hub id; leave it out")
    if weights is not None and single is not None:
        raise UserError(f"--weights chooses between two copies in a folder, and {model} is one file; leave it out")
    folder = single.folder if single else located(model, weights)
    name = pipeline_of(folder)
    _refuse_other_kinds(folder)
    network_folder = folder / ("transformer" if (folder / "transformer").is_dir() else "unet")
    if not network_folder.is_dir() and any((folder / name).is_file() for name in (*ADAPTER_FILES, *STATES)):
        raise UserError(f"{folder} is a LoRA, not a model; give the model that it was made for, and this with --lora")
    if not network_folder.is_dir() and autoencoder_folder(folder):
        raise UserError(
            f"{folder} holds an autoencoder, but no denoiser (unet/ or transformer/); "
            f"train one: diffleak train --preset latent --autoencoder {shlex.quote(str(folder))} --data DATA -o OUT"
        )
    second = network_folder.with_name(network_folder.name + SECOND)
    if (network, weights) != (None, None) and second.is_dir():
        raise UserError(f"--network and --weights need a model with one denoiser, and {model} holds two; leave them out")
    chosen, said = denoiser_weights(network_folder, network, weights) if single is None or network is not None else (None, [])
    config = read_json(chosen.config if chosen else network_folder / "config.json", f"{folder} must be a diffusers model folder")
    unfit = "takes no captions" if name is None else "holds two networks" if second.is_dir() else None
    if lora is not None and unfit:
        raise UserError(f"a LoRA needs a text-to-image model with one network, and {model} {unfit}; leave out --lora")
    if lora is not None and lora_scale == 0:
        raise UserError("--lora-scale 0 removes the LoRA; leave out --lora, or give another scale")
    if embedding is not None and name is None:
        raise UserError(f"an embedding is a word in captions, and {model} takes no captions; leave out --embedding")
    adapters = () if lora is None else named_adapters(str(lora), lora_scale)
    embeddings = () if embedding is None else named_embeddings(str(embedding))
    device = str(checked_device(device))
    codec: Codec = PIXELS
    if name and not autoencoder_folder(folder):
        raise UserError(f"{folder} must hold vae/, since a {name} works on latents; it is missing: fetch the model again")
    if autoencoder_folder(folder):
        factor = STABLE_DIFFUSION_FACTOR if name == "StableDiffusionPipeline" else None
        kinds = OF_PIPELINES if name else AUTOENCODERS
        codec = read_codec(folder, "float64" if dtype == "float64" else "float32", device, factor, kinds, single)
    ask = asking(name, scaling(codec)[1] if isinstance(codec, Autoencoder) else 1) if name else None
    if offload and device == "cpu":
        say("note: --offload keeps weights out of the memory of an accelerator; on the CPU it has no effect")
    if offload and compile:
        raise UserError("--compile makes one program of the denoiser, and --offload loads it layer by layer; leave out one of them")
    home = "cpu" if offload else device
    faster = tuple(way for way in faster_ways(device, dtype, fast) if home == device or way == "tf32")
    first = _denoiser(folder, network_folder, dtype, home, ask, chosen, single)
    beside = place_of(network) if network is not None else single.path.parent if single else folder  # where training left its records
    if network is not None and (beside / "scheduler").is_dir():
        _refuse_other_schedule(beside, folder, first)
    denoiser: Denoiser = first
    if second.is_dir():
        denoiser = Dual((first, _denoiser(folder, second, dtype, home, ask)), *_turns(folder))
    packing = PIPELINES[name].packing if name else 1
    shape = _shape(config, network_folder, packing)
    if isinstance(codec, Autoencoder):
        shape = image_shape(codec, shape, int(config.get("in_channels", 0)) // packing, folder)
    pipeline = load_text(folder, name, network_folder.name, first.network, DTYPES[dtype], device, single) if name else None
    which = single.fingerprint if single else fingerprint(folder, network_folder.name, chosen)
    if single and chosen:
        which = hashlib.sha256(f"{which} {hash_weights([*chosen.hashed, chosen.config])}".encode()).hexdigest()
    said += single.warnings if single else ()
    said += [line for place in dict.fromkeys((folder, *([beside] if network is not None else []))) for line in conversion_caveats(place)]
    if adapters:
        lines, products = _merge(adapters, pipeline, network_folder.name, which)
        said, denoiser = said + lines, replace(first, adapted=products)
    for each in denoiser.exposed if home != device else ():
        offload_weights(each.network, torch.device(device))  # type: ignore[attr-defined]
    denoiser, faster = _made_faster(denoiser, faster, compile)
    embedded = embed(pipeline, embeddings)
    for added in (*(adapter_fingerprint(each.file, each.scale) for each in adapters), *map(embedding_fingerprint, embeddings)):
        which = hashlib.sha256(f"{which} {added}".encode()).hexdigest()
    text = None if pipeline is None else PipelineText(pipeline)
    guided = denoiser if guidance_scale == 1 else Guided(denoiser, guidance_scale)
    if text is None and guidance_scale != 1:
        raise UserError(f"guidance compares a caption with the empty one, and {model} takes no captions; leave out --guidance-scale")
    said += guidance_notes(pipeline) if guidance_scale != 1 else []
    applied = None if lora is None else str(lora)
    homes = [adapter.file.parent for adapter in adapters] or [beside]
    splits = list(filter(None, map(own_split, homes)))
    strength, split_file = lora_scale if applied else None, splits[0] if len(splits) == 1 else None  # of two, neither is of the model
    return Target(
        guided,
        shape,
        str(model),
        which,
        dtype,
        device,
        codec,
        first.classes,
        text,
        applied,
        strength,
        split_file,
        tuple(record for home in homes for record in training_records(home)),
        class_names(beside if (beside / "train.json").is_file() else folder, first.classes) if first.classes else UNNAMED,
        tuple(said),
        adapters=tuple(adapter.record for adapter in adapters),
        embedding=None if embedding is None else str(embedding),
        embeddings=embedded,
        network=None if network is None else str(network),
        weights=weights,
        headers=headers_of(
            model, network, [(adapter.record.name, adapter.file) for adapter in adapters], [(each.name, each.file) for each in embeddings]
        ),
        faster=faster,
    )


def _made_faster(denoiser: Any, faster: tuple[str, ...], compile: bool) -> tuple[Denoiser, tuple[str, ...]]:
    """The denoiser with its networks laid out and compiled, and the names of all the ways that make it faster."""
    for each in denoiser.exposed:
        laid_out(each.network, faster)
    if not compile:
        return denoiser, faster
    made = tuple(replace(each, compiled=Compiled(each.network)) for each in denoiser.exposed)
    return replace(denoiser, teachers=made) if len(made) > 1 else made[0], (*faster, "compiled")


def _turns(folder: Path) -> tuple[Choice, int]:
    """How the two networks in a folder take turns: the choice and the seed in dual.json."""
    turns = read_json(folder / DUAL, f"{folder} has two networks, so a dual.json must say how they take turns")
    choice: Any = turns.get("choice")
    seed = turns.get("seed", 0)
    if choice not in get_args(Choice) or seed < 0:
        got = f"{shown(choice)}, {shown(str(seed))}"
        raise UserError(f"{folder / DUAL} must give choice as alternate or random, and seed as a whole number of at least 0; got {got}")
    return choice, seed


def _merge(adapters: Sequence[Applied], pipeline: Any, part: str, model: str) -> tuple[list[str], dict[str, LowRank]]:
    """Merges adapters one after the other into a pipeline, in place; returns warnings, and what all of them added (see `apply`).

    model: the fingerprint without adapters. Raises `UserError` for an adapter of another model, before the first one is merged.
    """
    for each in adapters:
        refuse_other_base(each.file, model)
    said = list[str]()
    merged: dict[str, LowRank] | None = {}
    for each in adapters:
        lines, products = apply(pipeline, part, each.file, each.scale)
        said, merged = said + lines, together(merged, products)
    return said, merged or {}


def unpack(folder: Path, file: Path, model_config: str | Path | None = None) -> None:
    """Writes a model in one file as a folder of the same pipeline, in float32, with the settings that `load` gives it."""
    single = open_single_file(file, model_config)
    target: Any = load(file, device="cpu", model_config=model_config)
    network, pipeline = target.denoiser.network, target.text.pipeline
    parts = {name: value for name, value in pipeline.components.items() if value is not None and name.startswith("text_encoder")}
    parts |= {"transformer" if (single.folder / "transformer").is_dir() else "unet": network, "vae": target.codec.network}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    for name in ("scheduler", *(part for part in TEXT_PARTS if part.startswith("tokenizer") and (single.folder / part).is_dir())):
        shutil.copytree(single.folder / name, folder / name)
    path = folder / "scheduler" / "scheduler_config.json"
    write_text(path, json.dumps(_followed(path, single.scheduler), indent=2))
    write_index(folder, single.folder)


def training_records(folder: Path) -> tuple[Path, ...]:
    """The train.json files of the model or adapter in a folder: its own, and for a `Dual` those of its two teachers."""
    places = [folder, *(folder.parent / f"teacher-{i}" for i in (1, 2) if (folder / DUAL).is_file())]
    return tuple(place / "train.json" for place in places if (place / "train.json").is_file())


def target_of(config: ModelConfig, loaded: Target | None = None, guidance_scale: float = 1.0) -> Target:
    """The model that a command works on: `loaded` if there is one, else the one that the config names, with its LoRA.

    Raises `UserError` for a LoRA or guidance with a model that is already loaded, and as `load` does.
    """
    if loaded is None and config.model_from:
        if guidance_scale != 1.0:
            raise UserError("guidance is for models that diffleak loads, and --model-from makes one; leave out --guidance-scale")
        device = str(checked_device(config.device)) if config.device else None
        return model_from(config.model_from, None if config.model == IN_PYTHON else config.model, config.dtype, device)
    if loaded is None:
        settings = None if _of_reference(config) and not os.path.isfile(config.model) else config.model_config_
        given = (config.lora, config.lora_scale, config.embedding, config.network, config.weights, settings, config.offload)
        return load(
            config.model,
            config.dtype,
            config.device,
            guidance_scale,
            *given,
            config.FAST if config.fast is None else config.fast,
            config.compile,
        )
    for name, what in OF_LOADING.items():
        if getattr(config, name) not in (None, False) and not (name == "model_config_" and _of_reference(config)):
            key = name.rstrip("_")
            raise UserError(f"{what} when a model is loaded: give diffleak.load(MODEL, {key}=...) as the target, and no {key} here")
    if config.fast is not None:
        raise UserError("fast is for a model that is not loaded yet: give diffleak.load(MODEL, fast=...) as the target, and no fast here")

    if config.model_from is not None:
        raise UserError("model_from makes a model, and a loaded model is given too: leave out one of them")
    if guidance_scale != 1.0:
        raise UserError("guidance is set when a model is loaded: give diffleak.load(MODEL, guidance_scale=...), and no guidance_scale here")
    return loaded


def _of_reference(config: ModelConfig) -> bool:
    """True if --model-config gives the settings of a --reference in one file."""
    return os.path.isfile(getattr(config, "reference", None) or "")


def _denoiser(
    folder: Path,
    network_folder: Path,
    dtype: str,
    device: str,
    ask: Ask | None,
    chosen: Weights | None = None,
    single: SingleFile | None = None,
) -> NetworkDenoiser:
    """The network of a model's folder or file, with the chosen weights if there are any, on the model's schedule."""
    config = read_json(chosen.config if chosen else network_folder / "config.json", f"{folder} must be a diffusers model folder")
    if chosen or single is None:
        check_weights(network_folder, chosen)
    if not (folder / "scheduler").is_dir():
        way = f"if it is a denoiser alone, give the model it was trained from, and --network {folder}"
        raise UserError(f"{folder} must hold scheduler/, the noise schedule; it is missing: {way}")
    schedule, prediction_type, precondition = _schedule(folder, single.scheduler if single else {})
    network = _network(network_folder, config, DTYPES[dtype], chosen, single).to(device)
    classes = None if ask else _classes(config, network_folder)
    variance = _learned_variance(folder, network_folder, network)
    return NetworkDenoiser(network, schedule, prediction_type, classes, ask, variance, precondition=precondition)


def _learned_variance(folder: Path, network_folder: Path, network: Any) -> bool:
    """True if a network appends a variance: it has twice the channels, and its scheduler or class declares them as a variance.

    Raises `UserError` for twice the channels without such a declaration.
    """
    config = network.config
    if config.get("out_channels") != 2 * config.in_channels:
        return False
    path = folder / "scheduler" / "scheduler_config.json"
    said = read_json(path, f"{folder} must say its noise schedule").get("variance_type")
    if said not in LEARNED_VARIANCE and type(network).__name__ not in WITH_VARIANCE:
        raise UserError(
            f"a denoiser returns as many channels as it takes, or twice as many with a learned variance; {network_folder} has "
            f"{config.in_channels} in and {config.out_channels} out, and {path} has variance_type '{said}': "
            f"set it to learned_range or learned if the model was trained that way"
        )
    return True


def _refuse_other_schedule(other: Path, model: Path, denoiser: NetworkDenoiser) -> None:
    """Raises `UserError` for a network whose own folder has another noise schedule than the model, with which it would be queried."""
    schedule, prediction_type, precondition = _schedule(other)
    one, two = schedule.alphas_cumprod, denoiser.schedule.alphas_cumprod
    alike = len(one) == len(two) and np.allclose(one, two, rtol=0, atol=ROUNDING)
    asked = alike and np.allclose(schedule.times, denoiser.schedule.times, rtol=ROUNDING, atol=ROUNDING)
    ways = precondition.equals(denoiser.precondition) if precondition else denoiser.precondition is None
    if prediction_type != denoiser.prediction_type or not asked or not ways:
        raise UserError(
            f"--network must have MODEL's noise schedule and prediction_type; those of {other} and {model} differ: audit {other} as MODEL"
        )


def _network(
    folder: Path, config: dict[str, Any], dtype: torch.dtype, chosen: Weights | None = None, single: SingleFile | None = None
) -> torch.nn.Module:
    allowed = NETWORKS[folder.name.removesuffix(SECOND)]
    name = LEGACY.get(config.get("_class_name", ""), config.get("_class_name", allowed[0]))
    if config.get("norm_type") == "ada_norm_single":
        name = "PixArtTransformer2DModel"  # which the first PixArt folders call Transformer2DModel too
    if name not in (*allowed, CONVERTED):
        where = chosen.place if chosen else folder
        raise UserError(f"networks must be one of {', '.join(sum(NETWORKS.values(), ()))}; {where} holds a {shown(name)}")
    if (name not in WITHOUT_TEXT) != (pipeline_of(folder.parent) is not None):
        takes = "takes captions" if name not in WITHOUT_TEXT else "takes no captions"
        raise UserError(f"{folder} holds a {name}, which {takes}; model_index.json must name its pipeline, one of {', '.join(PIPELINES)}")
    return single.network(folder.name, name, dtype) if single and not chosen else pretrained(name, folder, dtype, chosen)


def _followed(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a scheduler with `changes`; a class without such a setting becomes DDPMScheduler, whose table is the same."""
    config = read_json(path, f"{path.parent.parent} must say its noise schedule") | dict(changes)
    kind = getattr(diffusers_library(), str(config.get("_class_name", "DDPMScheduler")), None)
    known = inspect.signature(kind.__init__).parameters if kind else changes
    if missing := next((key for key in changes if key not in known), None):
        if "beta_schedule" not in known:
            said = f"the {shown(config['_class_name'])} of {path} has no such setting"
            raise UserError(f"MODEL states {missing} {changes[missing]}, and {said}: give another --model-config")
        config["_class_name"] = "DDPMScheduler"
    return config


def _schedule(folder: Path, changes: Mapping[str, Any] = MappingProxyType({})) -> tuple[Schedule, PredictionType, Preconditioning | None]:
    """The model's schedule, by the scheduler class that its folder names, with `changes`; and what its network predicts."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = _followed(path, changes)
    name, prediction_type = config.get("_class_name", "DDPMScheduler"), config.get("prediction_type", "epsilon")
    flows = prediction_type == FLOW_PREDICTION and config.get("use_flow_sigmas") is True
    if not flows and prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"prediction_type must be epsilon, v_prediction or sample; {folder} says '{shown(prediction_type)}'")
    kind = getattr(diffusers_library(), str(name), None)
    if kind is None or not hasattr(kind, "from_config"):
        raise UserError(f"{path} must name a scheduler of diffusers; got {shown(name)}")
    if not 1 <= (steps := config.get("num_train_timesteps", 1) or 0) <= MOST_TIMESTEPS:
        raise UserError(f"num_train_timesteps of {path} must lie in [1, {MOST_TIMESTEPS}]; got {shown(steps)}")
    check_settings(kind, config, path)
    # diffusers, torch and numpy each raise their own; all mean settings that make no schedule
    with refusing(Exception, f"{path} cannot be used: {WHY}", first_lines):
        made = kind.from_config(config)
    if flow := flow_schedule(made):
        return flow, "flow", None
    if of_sigmas := exploding(made, folder):
        return of_sigmas.schedule, "preconditioned", of_sigmas.precondition
    table = getattr(made, "alphas_cumprod", None)
    if table is None:
        raise UserError(f"the scheduler must have a discrete table of alphas_cumprod, as DDPMScheduler has; {folder} uses {name}")
    return Schedule(table), prediction_type, None


def _classes(config: dict[str, Any], folder: Path) -> int | None:
    """The number of classes a network is conditioned on; None for an unconditional one."""
    if config.get("class_embed_type"):
        raise UserError(f"class_embed_type must be null (labels by number); {folder} says '{shown(config['class_embed_type'])}'")
    return config.get("num_embeds_ada_norm" if folder.name.startswith("transformer") else "num_class_embeds")


def _shape(config: dict[str, Any], folder: Path, packing: int = 1) -> ImageShape | None:
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    out = config.get("out_channels", 3 if folder.name.startswith("unet") else None)  # of a transformer null means as many as it takes
    if packing > 1 and out is not None:
        out *= config.get("patch_size", 1) ** 2  # Qwen-Image counts what it predicts of one latent pixel, and what it takes of a patch
    if out not in (channels, 2 * channels, None):
        raise UserError(f"a denoiser returns as many channels as it takes; {folder} has {channels} in and {out} out")
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"sample_size must be a number of pixels or a pair (height, width); {folder}/config.json says {shown(repr(size))}")
    return ImageShape(channels // packing, *sides)


def _refuse_other_kinds(folder: Path) -> None:
    """Raises `UserError` for a model that takes image prompts: it must not be audited as if it took only captions."""
    for part in OTHER_PARTS:
        if (folder / part).is_dir():
            raise UserError(f"{folder} has a folder {part}/, so it takes image prompts; such models cannot be audited")


def load_pair(teachers: tuple[Path, Path]) -> tuple[Target, Target]:
    """Loads two models that are to take turns, or to teach one student; raises `UserError` if they do not fit each other."""
    one, other = (load(teacher, device="cpu") for teacher in teachers)
    for path, target in zip(teachers, (one, other), strict=True):
        if len(target.denoiser.exposed) > 1:
            raise UserError(f"a teacher must be one network; {path} holds several: give another folder")
    refuse_incompatible(one.denoiser, other.denoiser)
    if (one.text is None) != (other.text is None) or (one.text and text_fingerprint(teachers[0]) != text_fingerprint(teachers[1])):
        raise UserError("the two teachers must share their text encoders; theirs differ: fine-tune both from the same model")
    if one.class_names.numbers != other.class_names.numbers:
        raise UserError("the two teachers must number their classes alike; theirs differ: train both on the same data set")
    if one.shape != other.shape:
        raise UserError(f"the two teachers must take images of one shape; theirs are {one.shape} and {other.shape}: train both alike")
    if one.latent != other.latent or (one.latent and codec_fingerprint(teachers[0]) != codec_fingerprint(teachers[1])):
        raise UserError("the two teachers must share one autoencoder; theirs differ: train both with the same --autoencoder")
    return one, other


def save_dual(folder: Path, teachers: tuple[Path, Path], choice: Choice = "alternate", seed: int = 0) -> None:
    """Writes two trained folders as one that `load` reads as a `Dual`; every part of it also loads with diffusers.

    Raises `UserError` if the two differ in schedule, prediction type, classes, shape, text encoders or autoencoder.
    """
    one, other = load_pair(teachers)
    for part in PARTS:
        if (teachers[0] / part).is_dir():
            shutil.copytree(teachers[0] / part, folder / part, dirs_exist_ok=True)
    if (teachers[0] / INDEX).is_file() and one.text:
        write_index(folder, teachers[0])
    for part in NETWORKS:
        if (teachers[1] / part).is_dir():
            shutil.copytree(teachers[1] / part, folder / (part + SECOND), dirs_exist_ok=True)
    record: dict[str, Any] = {"schema_version": 1, "choice": choice, "seed": seed, "teachers": [one.fingerprint, other.fingerprint]}
    if one.classes and not one.class_names.doubt:
        record[KEY] = dict(one.class_names.numbers) or None
    write_text(folder / DUAL, json.dumps(record, indent=2))


def settings_of(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a trained UNet2DModel and of its scheduler, as `new_network` and `new_scheduler` take them."""
    kinds = {"unet/config.json": "UNet2DModel", "scheduler/scheduler_config.json": "DDPMScheduler"}
    found = []
    for path, name in kinds.items():
        config = read_json(folder / path, f"{folder} must hold a UNet2DModel and its scheduler to be a teacher")
        flow = {"_class_name": FLOW_SCHEDULER} if config.get("_class_name") == FLOW_SCHEDULER else {}
        known = inspect.signature(getattr(diffusers_library(), flow.get("_class_name", name)).__init__).parameters
        found.append({key: value for key, value in config.items() if key in known} | flow)
    return found[0], found[1]
