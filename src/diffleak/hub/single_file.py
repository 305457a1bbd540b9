"""A whole model in one file, as A1111, ComfyUI and kohya store it: Stable Diffusion 1, 2, XL, 3 and Flux.

    model.diffusion_model.*                                the denoiser; a file of the denoiser alone may leave this prefix out
    first_stage_model.* or vae.*                           the autoencoder
    cond_stage_model.*, conditioner.embedders.N.*          the text encoders of Stable Diffusion 1 and 2, and of XL
    text_encoders.NAME.transformer.*                       those of Stable Diffusion 3 and Flux
    v_pred, ztsnr, modelspec.prediction_type               what the network predicts, if the file states it

Such a file holds weights and no settings. The settings, the scheduler and the tokenizers come from the same model in diffusers' layout: a
folder that the user gives, or the hub. diffusers renames the weights of denoiser and autoencoder. Text encoders are renamed here, by
their prefixes, because diffusers goes by their width and would confuse two of the same width. Every weight must have a place in the
network, and every place a weight. Nothing is written to disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffleak.errors import WHY, UserError, first_lines, refusing, shown
from diffleak.hub.configs import check_settings, read_json
from diffleak.hub.folders import (
    INDEX,
    PICKLES,
    TEXT_PARTS,
    TOKENIZER_FILES,
    count_weights,
    diffusers_library,
    downloaded,
    folder_of,
    refuse_depth,
)
from diffleak.hub.states import MoreThanTensors, load_state
from diffleak.records.headers import adapter_weight
from diffleak.work.reading import Unreadable, parsing
from diffleak.work.remembered import hash_weights

State = Mapping[str, Tensor]

DENOISER = "model.diffusion_model."
AUTOENCODER = ("first_stage_model.", "vae.")
IN_AUTOENCODER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # what else is there was of its training
CONFIGS = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]
WEIGHTS = (".safetensors", *PICKLES)
FAMILIES = {  # the pipeline of each in diffusers
    "Stable Diffusion 1": "StableDiffusionPipeline",
    "Stable Diffusion 2": "StableDiffusionPipeline",
    "Stable Diffusion XL": "StableDiffusionXLPipeline",
    "Stable Diffusion 3": "StableDiffusion3Pipeline",
    "Flux": "FluxPipeline",
}
FLOWS = ("Stable Diffusion 3", "Flux")
OPENED = "Stable Diffusion 1, 2, XL, 3 and Flux open as one file"
WRAPPED = 2  # times that a state_dict may lie in another
WIDE = 1024  # text tokens of Stable Diffusion 2
OPEN_CLIP, AS_IT_IS = True, False  # how a text encoder is stored: with the names of open_clip, or with its own
CLIP = (  # where the first and the second CLIP of a pipeline may lie
    (
        ("cond_stage_model.transformer.", AS_IT_IS),
        ("cond_stage_model.model.", OPEN_CLIP),
        ("conditioner.embedders.0.transformer.", AS_IT_IS),
        ("text_encoders.clip_l.transformer.", AS_IT_IS),
    ),
    (("conditioner.embedders.1.model.", OPEN_CLIP), ("text_encoders.clip_g.transformer.", AS_IT_IS)),
)
T5 = (("text_encoders.t5xxl.transformer.", AS_IT_IS),)
STATED = ("v_pred", "ztsnr")  # names that hold nothing, and say what the network predicts
TEXT = ("cond_stage_model.", "conditioner.", "text_encoders.")
UNUSED = ("position_ids", "logit_scale")  # ends of names of what no network reads
OTHER_INPUTS = {9: "an inpainting model", 8: "an InstructPix2Pix model", 7: "an upscaler", 5: "a depth-to-image model"}  # by channels in
SCALED = (".scale_weight", ".weight_scale", ".scale_input", "scaled_fp8")
QUANTISED = (".absmax", ".quant_map", ".qweight", ".SCB")
KINDS = (  # of files that hold something else: the beginnings of their names, what they are and what to do
    (("control_model.", "input_hint_block.", "controlnet_"), "a ControlNet", "give the model that it steers"),
    (
        ("emb_params", "clip_l", "clip_g", "string_to_param"),
        "a textual inversion",
        "give the model that it was made for, and this with --embedding",
    ),
    (("down_blocks.", "conv_in.", "transformer_blocks."), "one network of a diffusers folder", "give the folder that it belongs to"),
    (("encoder.block.", "shared."), "a T5 text encoder alone", "give the model that it belongs to"),
    (("text_model.", "vision_model.", *TEXT), "a text encoder alone", "give the model that it belongs to"),
    (("encoder.", "decoder.", *AUTOENCODER), "an autoencoder alone", "give the model that works on its latents"),
)


@dataclass(frozen=True, eq=False)
class SingleFile:
    """A model in one file: its weights, and the folder with the settings, tokenizers and parts that it lacks.

    `scheduler` has the settings of the schedule that the file states, and `warnings` what the user should know.
    """

    path: Path
    folder: Path
    family: str
    weights: State
    scheduler: Mapping[str, Any]
    warnings: tuple[str, ...]

    def holds(self, part: str) -> bool:
        """True if the weights of a part come from the file. Raises `UserError` if neither the file nor the folder has them."""
        if self._of(part):
            return True
        if not any(file.suffix in WEIGHTS for file in (self.folder / part).glob("*")):
            raise UserError(
                f"{self.path} holds no {part}, and {self.folder} has no weights for one; "
                f"give a --model-config folder of this {self.family} with the weights in {part}/"
            )
        return False

    def network(self, part: str, name: str, dtype: torch.dtype) -> torch.nn.Module:
        """The denoiser or autoencoder, a diffusers class of this `name`, with the file's weights.

        Raises `UserError` for weights that do not fit its config.json, and if some are missing, left over or quantised.
        """
        path = self.folder / part / "config.json"
        kind, config = getattr(diffusers_library(), name), read_json(path, f"{self.folder} must hold the settings of its {part}")
        check_settings(kind, config, path)
        given = self._of(part)
        refuse_depth(path, len(given))
        state = self._renamed(part, name, config, given)
        from accelerate import init_empty_weights

        # diffusers and torch each raise their own; all mean settings of another network
        with refusing(Exception, f"{self.path}: the {part} cannot be made from {path} ({WHY})", first_lines):
            with init_empty_weights():
                network = kind.from_config(config)
            self._refuse_unfit(part, state, network.state_dict())
            stored = {key: value.to(dtype, copy=True, memory_format=torch.contiguous_format) for key, value in state.items()}
            network.load_state_dict(stored, assign=True)
        torch.nn.Module.to(network, dtype)  # of buffers; that of diffusers warns where nothing is to be warned of
        return network.eval().requires_grad_(False)  # type: ignore[no-any-return]

    def text_encoder(self, part: str) -> dict[str, Tensor] | None:
        """The weights of a text encoder under the names of transformers; None if they are in the folder."""
        if not self.holds(part):
            return None
        start, stored = self._place(part)
        given = {key: value for key, value in self.weights.items() if key.startswith(start) and not key.endswith(UNUSED)}
        if bad := next((key for key, value in given.items() if not value.is_floating_point()), None):
            raise UserError(f"{self.path}: {_quantised(bad, given[bad])}")
        if stored == OPEN_CLIP:
            return self._from_open_clip(part, start)
        state = {key.removeprefix(start): value for key, value in given.items()}
        if "shared.weight" in state:
            state.setdefault("encoder.embed_tokens.weight", state["shared.weight"])
        elif not any(key.startswith("text_model.") for key in state):  # files of 2022
            state = {f"text_model.{key}": value for key, value in state.items()}
        if start.startswith("text_encoders.clip_l.") and self.family == "Stable Diffusion 3":  # files leave out what changes nothing
            width = len(state["text_model.final_layer_norm.weight"])
            state.setdefault("text_projection.weight", torch.eye(width, dtype=state["text_model.final_layer_norm.weight"].dtype))
        return state

    @property
    def fingerprint(self) -> str:
        """A hash of the file, of the settings that it is loaded with, and of the weights that come from their folder."""
        index, files = self._index, [self.path, self.folder / INDEX, self.folder / "scheduler" / "scheduler_config.json"]
        for part in sorted(index):
            own = self.folder / part
            if isinstance(index[part], list) and own.is_dir() and part != "scheduler":
                patterns = [*TOKENIZER_FILES] if part.startswith("tokenizer") else ["config.json"]
                patterns += [] if part not in ("vae", *TEXT_PARTS) or self._of(part) else [f"*{ending}" for ending in WEIGHTS]
                files += sorted(file for pattern in patterns for file in own.glob(pattern))
        return hash_weights(files)

    @property
    def _index(self) -> dict[str, Any]:
        return read_json(self.folder / INDEX, f"{self.folder} must have a model_index.json that names its pipeline")

    def _of(self, part: str) -> State:
        """The file's weights of a part, under their names in the file."""
        if part == "vae":
            starts = tuple(start + inner for start in AUTOENCODER for inner in IN_AUTOENCODER)
        else:
            starts = (self._place(part)[0],) if part in TEXT_PARTS else (DENOISER,)
        return {key: value for key, value in self.weights.items() if key.startswith(starts)}

    def _place(self, part: str) -> tuple[str, bool]:
        """The prefix of a text encoder's names in the file, and how it is stored; a prefix that no name has if it is not in the file."""
        named = {key: value[1] for key, value in sorted(self._index.items()) if key.startswith("text_encoder") and isinstance(value, list)}
        kind = str(named.get(part))
        number = [key for key, name in named.items() if str(name).startswith("CLIP")].index(part) if kind.startswith("CLIP") else 0
        places = T5 if kind.startswith("T5") else CLIP[number] if kind.startswith("CLIP") and number < len(CLIP) else ()
        found = (place for place in places if any(key.startswith(place[0]) for key in self.weights))
        return next(found, ("\0", AS_IT_IS))

    def _renamed(self, part: str, name: str, config: dict[str, Any], given: State) -> State:
        from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

        classes: Mapping[str, Any] = SINGLE_FILE_LOADABLE_CLASSES
        rename = classes.get(name, {}).get("checkpoint_mapping_fn")
        if rename is None:
            raise UserError(f"{OPENED}; {self.folder} describes a {name}, which diffusers reads only from a folder: give the model as one")
        try:
            state: State = rename(checkpoint=dict(given), config=config)
        except Exception as error:  # of names that are not there, or weights of other shapes
            said = f"{type(error).__name__}: {first_lines(error)}"
            raise UserError(
                f"{self.path}: the {part} is not stored as in other files of {self.family} ({shown(said)}); fetch the file again"
            ) from None
        if name == "UNet2DConditionModel":  # whose weights keep what they are, so that one without a place can be told
            used = {id(value) for value in state.values()}
            left = next((key for key, value in given.items() if id(value) not in used), None)
            if left:
                raise UserError(f"{self.path}: every weight must have a place in {self.folder / part}; {shown(left)} has none")
        return state

    def _from_open_clip(self, part: str, start: str) -> dict[str, Tensor]:
        import transformers
        from accelerate import init_empty_weights
        from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

        kind = getattr(transformers, str(self._index[part][1]))
        # transformers and torch each raise their own
        with refusing(Exception, f"{self.path}: the {part} cannot be read ({WHY})", first_lines):
            with init_empty_weights():
                model = kind(kind.config_class.from_pretrained(self.folder / part, local_files_only=True))
            return dict(convert_open_clip_checkpoint(model, dict(self.weights), prefix=start))

    def _refuse_unfit(self, part: str, state: State, places: State) -> None:
        odd = next((key for key in places if key not in state), None) or next((key for key in state if key not in places), None)
        config = f"{self.folder / part}/config.json"
        if odd:
            said = "is not in the file" if odd in places else "has no place"
            raise UserError(f"{self.path}: the {part} does not match {config} ({shown(odd)} {said}); give the --model-config of this model")
        for key, value in state.items():
            if value.shape != places[key].shape:
                said = f"{shown(key)} has shape {tuple(value.shape)}, where {tuple(places[key].shape)} is expected"
                raise UserError(f"{self.path}: the {part} does not match {config} ({said}); give the --model-config of this model")
            if not value.is_floating_point():
                raise UserError(f"{self.path}: {_quantised(key, value)}")


def open_single_file(path: Path, model_config: str | Path | None = None) -> SingleFile:
    """A model in one file, with the settings of `model_config`, a folder or hub id of the same model in diffusers' layout.

    Without `model_config` the settings of the model that the file was trained from are downloaded. Raises `UserError` for a file that holds
    no whole model, and says what it holds; for a quantised file; and for settings that cannot be had or are of another model.
    """
    weights, stated = _opened(path)
    family = _family(path, weights)
    if not any(key.startswith(DENOISER) for key in weights):  # a file of the denoiser alone
        weights = {
            key if key in STATED or key.startswith((*AUTOENCODER, *TEXT)) else DENOISER + key: value for key, value in weights.items()
        }
    folder = _configs(path, family, weights) if model_config is None else folder_of(model_config, "--model-config", CONFIGS)
    index = read_json(folder / INDEX, f"--model-config must be a model's folder in diffusers' layout; got {folder}")
    if index.get("_class_name") != FAMILIES[family]:
        raise UserError(
            f"{path} is a {family}, which needs the settings of a {FAMILIES[family]}; {folder} has those of a "
            f"{shown(index.get('_class_name'))}: give another --model-config"
        )
    scheduler, warnings = _stated(path, weights, stated, family, folder, model_config is not None)
    eighths = sorted(
        {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.itemsize == 1 and value.is_floating_point()}
    )
    if eighths:
        warnings.append(f"{path.name} stores weights in 8 bits ({', '.join(eighths)}); the rounded weights are used")
    if any(key.startswith("model_ema.") for key in weights):
        warnings.append(f"{path.name} also holds a moving average of the weights (model_ema.*), which is not audited")
    return SingleFile(path, folder, family, weights, scheduler, tuple(warnings))


def file_fingerprint(path: str | Path, model_config: str | Path | None = None) -> str:
    """The fingerprint of a model in one file, as `load` gives it; raises `UserError` as `open_single_file` does."""
    return open_single_file(Path(path), model_config).fingerprint


def _opened(path: Path) -> tuple[State, Mapping[str, str]]:
    """The weights in a file by name, and the texts in its header; never runs code that a file holds.

    Raises `UserError` for files of another kind, for damaged ones, and for pickles that hold more than weights.
    """
    if path.suffix == ".safetensors":
        count_weights(path)
        from safetensors import safe_open

        with refusing(Unreadable, f"{path} cannot be read ({WHY}); fetch it again"), parsing(), safe_open(path, "pt") as content:
            return {key: content.get_tensor(key) for key in content.keys()}, dict(content.metadata() or {})  # noqa: SIM118
    if path.suffix not in PICKLES:
        said = "is a GGUF file, which is quantised" if path.suffix == ".gguf" else "has another ending"
        raise UserError(f"MODEL must be a diffusers folder, a hub id, or a .safetensors or .ckpt file with a whole model; {path} {said}")
    try:
        found = load_state(path)
    except Unreadable as error:
        code = isinstance(error, MoreThanTensors) and error.asked
        why = f"it names {shown(code)}, which could run code" if code else shown(str(error))
        raise UserError(f"{path} must be an undamaged pickle of weights alone ({why}); give a .safetensors file of the model") from None
    for _ in range(WRAPPED):
        found = found["state_dict"] if isinstance(found, dict) and isinstance(found.get("state_dict"), dict) else found
    weights = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not weights:
        raise UserError(f"{path} must hold weights by their names, or a state_dict of them; it holds a {type(found).__name__} without any")
    return weights, {}


def _family(path: Path, weights: State) -> str:
    """The one of FAMILIES to which the denoiser in a file belongs; raises `UserError` for a file without one, or with another kind."""
    names = {key.removeprefix(DENOISER): value for key, value in weights.items()}
    first = names.get("input_blocks.0.0.weight")
    if bad := next((key for key in weights if key.endswith(SCALED)), None):
        raise UserError(f"{path} stores weights in 8 bits with scales ({shown(bad)}); give a file in 16 or 32 bits")
    if bad := next((key for key in weights if key.endswith(QUANTISED) or ".quant_state." in key), None):
        raise UserError(f"{path}: {_quantised(bad)}")
    if any(key.startswith(("edm_mean", "edm_vpred.")) for key in weights):
        raise UserError(f"{path} has the noise levels of EDM (Playground 2.5 or CosXL); {OPENED}: give it as a diffusers folder")
    control = any(key.startswith(KINDS[0][0]) for key in weights)
    if first is not None and first.ndim == 4 and not control:
        if what := OTHER_INPUTS.get(first.shape[1]):
            raise UserError(f"{path} is {what}: it takes {first.shape[1]} channels, not only latents; such models cannot be audited")
        if "label_emb.0.0.weight" in names:
            refiner = any(key.startswith("conditioner.embedders.0.model.") for key in weights)
            if refiner:
                raise UserError(f"{path} is the refiner of Stable Diffusion XL, which takes other conditions; give the base model")
            return "Stable Diffusion XL"
        context = next((value for key, value in names.items() if key.endswith("attn2.to_k.weight")), first)
        wide = any(key.startswith("cond_stage_model.model.") for key in weights) or context.shape[-1] == WIDE
        return "Stable Diffusion 2" if wide else "Stable Diffusion 1"
    if any(key.startswith("joint_blocks.") for key in names):
        return "Stable Diffusion 3"
    if "double_blocks.0.img_attn.norm.key_norm.scale" in names and not any(key.startswith("distilled_guidance_layer.") for key in names):
        return "Flux"
    if any(key.startswith(DENOISER) for key in weights):
        raise UserError(f"{OPENED}; {path} holds a denoiser of another layout: give it as a diffusers folder")
    if adapter_weight(weights):
        raise UserError(f"{path} is a LoRA, not a model; give the model that it was made for, and this with --lora")
    for starts, what, instead in KINDS:
        if any(key.startswith(starts) for key in weights):
            raise UserError(f"MODEL must be a whole model; {path} is {what}: {instead}")
    raise UserError(f"{OPENED}; {path} has another layout (first weight: {shown(next(iter(weights), 'none'))})")


def _configs(path: Path, family: str, weights: State) -> Path:
    """The settings of the published model that diffusers recognises in a file, from the hub or its cache."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    # of weights whose sizes are none of the published models'
    with refusing(Exception, f"{path} is a {family} of an unpublished size; give a folder with its settings as --model-config"):
        name = str(fetch_diffusers_config(dict(weights))["pretrained_model_name_or_path"])
    said = f"{path.name} is a {family} in one file; give a folder with the settings of {name} as --model-config"
    with refusing(UserError, f"{said} ({WHY})", lambda error: shown(error, 230)):
        return downloaded(name, CONFIGS, "--model-config")


def _stated(
    path: Path, weights: State, stated: Mapping[str, str], family: str, folder: Path, chosen: bool
) -> tuple[dict[str, Any], list[str]]:
    """The settings of the schedule that a file states and the folder does not, and warnings about them."""
    if family in FLOWS:
        return {}, []
    config = read_json(folder / "scheduler" / "scheduler_config.json", f"{folder} must hold its noise schedule")
    usual = config.get("prediction_type", "epsilon")
    named = {"v": "v_prediction", "epsilon": "epsilon"}.get(str(stated.get("modelspec.prediction_type")))
    said = "v_prediction" if "v_pred" in weights else named
    changes: dict[str, Any] = {} if said in (None, usual) else {"prediction_type": said}
    if "ztsnr" in weights and not config.get("rescale_betas_zero_snr"):
        changes["rescale_betas_zero_snr"] = True
    warnings = [
        f"{path.name} states {key} {str(value).lower()}, and {folder} does not: the file's value is used" for key, value in changes.items()
    ]
    if family == "Stable Diffusion 2" and said is None and not chosen:
        warnings.append(
            f"{path.name} does not state its prediction type: {usual} is assumed; if it was trained from stable-diffusion-2-base, on "
            "images of 512 pixels, give that model's folder as --model-config"
        )
    return changes, warnings


def _quantised(key: str, value: Tensor | None = None) -> str:
    how = "" if value is None else f" (stored as {str(value.dtype).removeprefix('torch.')})"
    return f"weights must be floating point; {shown(key)} is quantised{how}: give a file in 16 or 32 bits"
