"""Models as people have them: a diffusers folder or hub id in, a `Target` out, and back to a folder after training.

The only module that imports diffusers or knows its folder layout:

    MODEL/unet/ or transformer/        config.json and *.safetensors: the denoiser
    MODEL/scheduler/                   scheduler_config.json: its noise schedule
    MODEL/vae/ or vqvae/               the autoencoder of a latent model, if it is one
    MODEL/unet_2/ or transformer_2/    the second network of a `Dual`, with dual.json saying how the two take turns

model_index.json is not needed.
"""

import inspect
import json
import os
import shutil
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from leakscope.data.pixels import ImageShape
from leakscope.diffusion.codec import Autoencoder, Codec, Identity
from leakscope.diffusion.denoiser import Denoiser, NetworkDenoiser, PredictionType
from leakscope.diffusion.dual import Choice, Dual, refuse_strangers
from leakscope.diffusion.prompts import TextEncoder
from leakscope.diffusion.schedule import Schedule
from leakscope.errors import UserError, unknown
from leakscope.files import hash_files, write_text

UNKNOWN = "unknown"
NETWORKS = {"unet": ("UNet2DModel",), "transformer": ("DiTTransformer2DModel",)}
LEGACY = {"Transformer2DModel": "DiTTransformer2DModel"}  # the class name in the first DiT folders
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
AUTOENCODER_FOLDERS = ("vae", "vqvae")
SECOND = "_2"  # what the folder of a second network is called after the first
PARTS = (*NETWORKS, *(name + SECOND for name in NETWORKS), *AUTOENCODER_FOLDERS, "scheduler")
DUAL = "dual.json"
SAMPLERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm": "DPMSolverMultistepScheduler"}
OTHER_PARTS = ("vqmodel", "text_encoder", "text_encoder_2", "image_encoder", "movq")
PIXELS = Identity()
PROBE = 64  # pixels a side of the blank image that shows how far an autoencoder scales down
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Target:
    """What is audited: a denoiser, the images it takes, and where it runs.

    `shape` is None for a model that takes images of any one size; `codec` takes images to what the denoiser works on.
    `classes` is the number of classes of a class-conditional model, `text` embeds the captions of a text-to-image model; no
    model has both. `fingerprint` says which model this is; without one,
    a run folder cannot be resumed, since nobody could tell whether it is the same model. `x_dtype` is the dtype of
    images, latents and noise: at least float32, so that a half-precision network does not round the attack's own
    arithmetic.
    """

    denoiser: Denoiser
    shape: ImageShape | None = None
    name: str = "denoiser"
    fingerprint: str = UNKNOWN
    dtype: str = "float32"
    device: str = "cpu"
    codec: Codec = PIXELS
    classes: int | None = None
    text: TextEncoder | None = None

    @property
    def x_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def latent(self) -> bool:
        """Whether the denoiser works on latents."""
        return not isinstance(self.codec, Identity)


def load(model: str | Path, dtype: str = "float32", device: str | None = None) -> Target:
    """The model in a diffusers folder or of a hub id, ready to be audited.

    `dtype` is float32, float16, bfloat16 or float64; `device` a torch device, by default the first accelerator or the CPU.
    Raises `UserError` for a folder that is no diffusers model, pickle checkpoints, and networks that are not supported.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    folder = _folder(model)
    _refuse_other_kinds(folder)
    network_folder = folder / ("transformer" if (folder / "transformer").is_dir() else "unet")
    config = _read_json(network_folder / "config.json", f"{folder} must be a diffusers model folder")
    device = str(checked_device(device))
    denoiser: Denoiser = _denoiser(folder, network_folder, dtype, device)
    second = network_folder.with_name(network_folder.name + SECOND)
    if second.is_dir():
        turns = _read_json(folder / DUAL, f"{folder} has two networks, so it must say how they take turns")
        choice: Any = turns.get("choice")
        seed = turns.get("seed", 0)
        if choice not in get_args(Choice) or not isinstance(seed, int):
            raise UserError(f"{folder / DUAL} must give choice as alternate or random, and seed as a whole number; got {choice}, {seed}")
        denoiser = Dual((denoiser, _denoiser(folder, second, dtype, device)), choice, seed)
    classes = _classes(config, network_folder)
    shape = _shape(config, network_folder)
    codec: Codec = PIXELS
    if _autoencoder_folder(folder):
        codec = load_codec(folder, "float64" if dtype == "float64" else "float32", device)
        shape = _image_shape(codec, shape, config, folder)
    return Target(denoiser, shape, str(model), _fingerprint(folder), dtype, device, codec, classes)


def _denoiser(folder: Path, network_folder: Path, dtype: str, device: str) -> NetworkDenoiser:
    """The network in one part of a model's folder, on the model's schedule."""
    config = _read_json(network_folder / "config.json", f"{folder} must be a diffusers model folder")
    _refuse_pickles(network_folder)
    schedule, prediction_type = _schedule(folder)
    network = _network(network_folder, config, DTYPES[dtype]).to(device)
    return NetworkDenoiser(network, schedule, prediction_type, _classes(config, network_folder))


def load_pair(teachers: tuple[Path, Path]) -> tuple[Target, Target]:
    """Two models that are to take turns, or to teach one student; raises `UserError` when they cannot."""
    one, other = (load(teacher, device="cpu") for teacher in teachers)
    for path, target in zip(teachers, (one, other), strict=True):
        if len(target.denoiser.exposed) > 1:
            raise UserError(f"a teacher must be one network; {path} holds several")
    refuse_strangers(one.denoiser, other.denoiser)
    if one.shape != other.shape:
        raise UserError(f"the two teachers must take the same images; theirs are {one.shape} and {other.shape}")
    if one.latent != other.latent or (one.latent and codec_fingerprint(teachers[0]) != codec_fingerprint(teachers[1])):
        raise UserError("the two teachers must share one autoencoder; theirs differ: train both with the same --autoencoder")
    return one, other


def save_dual(folder: Path, teachers: tuple[Path, Path], choice: Choice = "alternate", seed: int = 0) -> None:
    """Writes two trained folders as one that `load` reads as a `Dual`; every part of it also loads with diffusers.

    Raises `UserError` when the two cannot take turns: other schedules, prediction types, classes, shapes or autoencoders.
    """
    one, other = load_pair(teachers)
    for part in PARTS:
        if (teachers[0] / part).is_dir():
            shutil.copytree(teachers[0] / part, folder / part, dirs_exist_ok=True)
    for part in NETWORKS:
        if (teachers[1] / part).is_dir():
            shutil.copytree(teachers[1] / part, folder / (part + SECOND), dirs_exist_ok=True)
    record = {"schema_version": 1, "choice": choice, "seed": seed, "teachers": [one.fingerprint, other.fingerprint]}
    write_text(folder / DUAL, json.dumps(record, indent=2))


def new_sampler(name: str, schedule: Schedule, steps: int, clip: bool) -> Any:
    """A diffusers scheduler over `steps` timesteps of `schedule`, to be driven by a `Denoiser` (prediction_type epsilon).

    name: ddim (deterministic), ddpm (ancestral) or dpm (DPM-Solver++, second order). clip: whether the predicted clean image is clipped to
    [-1, 1], which is right for pixels and wrong for latents. Raises `UserError` for an unknown name or too many steps.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if not 1 <= steps <= len(schedule):
        raise UserError(f"steps must lie in [1, {len(schedule)}], the model's schedule; got {steps}")
    kept = np.concatenate([[1.0], schedule.alphas_cumprod])
    with np.errstate(invalid="ignore", divide="ignore"):
        betas = np.nan_to_num(1 - kept[1:] / kept[:-1], nan=1.0)
    config = {"num_train_timesteps": len(schedule), "trained_betas": betas.tolist(), "prediction_type": "epsilon"}
    sampler = getattr(_diffusers(), SAMPLERS[name])(**config, **({} if name == "dpm" else {"clip_sample": clip}))
    sampler.set_timesteps(steps)
    return sampler


def load_codec(folder: str | Path, dtype: str = "float32", device: str = "cpu") -> Autoencoder:
    """The autoencoder in the vae/ or vqvae/ of a folder (or the folder of the autoencoder itself), frozen.

    Raises `UserError` for another kind of autoencoder, missing weights, and a config that does not say its scaling_factor.
    """
    own = _autoencoder_folder(Path(folder)) or Path(folder)
    config = _read_json(own / "config.json", f"{folder} must hold an autoencoder, as vae/ or vqvae/")
    name = config.get("_class_name", "")
    if name not in AUTOENCODERS:
        raise UserError(f"autoencoders must be one of {', '.join(AUTOENCODERS)}; {own} holds a {name or 'config.json without _class_name'}")
    if config.get("lookup_from_codebook"):
        raise UserError(f"{own} decodes code numbers (lookup_from_codebook); its latents are not what a diffusion model works on")
    factor = config.get("scaling_factor")
    if not isinstance(factor, int | float) or factor is True or not 0 < factor < inf:
        raise UserError(
            f"{own}/config.json must say scaling_factor, the positive number that latents were multiplied by when the denoiser was "
            f"trained (0.18215 for Stable Diffusion 1); got {factor}: set it there"
        )
    for key in ("latents_mean", "latents_std"):
        values, channels = config.get(key), config.get("latent_channels", 4)
        if values is not None and not (isinstance(values, list) and len(values) == channels):
            raise UserError(f"{own}/config.json must give {key} as {channels} numbers, one per latent channel, or null; got {values}")
    _refuse_pickles(own)
    network = _pretrained(name, own, DTYPES[dtype]).to(device)
    return _codec(network)


def settings_of(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a trained UNet2DModel and of its scheduler, as `new_network` and `new_scheduler` take them."""
    kinds = {"unet/config.json": "UNet2DModel", "scheduler/scheduler_config.json": "DDPMScheduler"}
    found = []
    for path, name in kinds.items():
        config = _read_json(folder / path, f"{folder} must hold a UNet2DModel and its scheduler to be a teacher")
        known = inspect.signature(getattr(_diffusers(), name).__init__).parameters
        found.append({key: value for key, value in config.items() if key in known})
    return found[0], found[1]


def fingerprint(folder: str | Path) -> str:
    """Which model is in a folder: a hash of its weights, configs and schedule."""
    return _fingerprint(Path(folder))


def codec_fingerprint(folder: Path) -> str:
    """Which autoencoder is in a folder: a hash of its weights and config."""
    own = _autoencoder_folder(folder) or folder
    return hash_files([*sorted(own.glob("*.safetensors")), own / "config.json"])


def new_autoencoder(name: str, config: dict[str, Any]) -> torch.nn.Module:
    """An untrained AutoencoderKL or VQModel with `config`; raises `UserError` when diffusers refuses it."""
    if config.get("lookup_from_codebook"):
        raise UserError("lookup_from_codebook must be left out: its decoder takes code numbers, which no diffusion model predicts")
    return _new(name, config, "model key")


def codec_of(network: torch.nn.Module, scaling_factor: float) -> Autoencoder:
    """A trained autoencoder as a codec, with the scaling factor written into its config."""
    network.register_to_config(scaling_factor=scaling_factor)  # type: ignore[operator]
    return _codec(network)


def save_autoencoder(folder: Path, codec: Autoencoder) -> None:
    """Writes folder/vae/ (or vqvae/ for a VQModel), as diffusers' from_pretrained and `load_codec` read it."""
    name = "vqvae" if type(codec.network).__name__ == "VQModel" else "vae"
    codec.network.save_pretrained(folder / name)


def _codec(network: Any) -> Autoencoder:
    config, network = network.config, network.eval().requires_grad_(False)
    mean, std = (config.get(key) for key in ("latents_mean", "latents_std"))
    parameter = next(network.parameters())
    tensor = lambda values: torch.as_tensor(values, dtype=torch.float64).reshape(-1).to(parameter)
    shift = tensor(mean if mean is not None else config.get("shift_factor") or 0.0)
    return Autoencoder(network, tensor(config["scaling_factor"]) / tensor(std if std is not None else 1.0), shift)


def checked_device(device: str | None) -> torch.device:
    """The device to run on; None means the first accelerator, or the CPU. Raises `UserError` where it is not there."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device '{device}' cannot be used ({str(error).splitlines()[0]})") from None


def new_network(config: dict[str, Any]) -> torch.nn.Module:
    """An untrained UNet2DModel with `config`; raises `UserError` when diffusers refuses it."""
    return _new("UNet2DModel", config, "model key")


def _new(name: str, config: dict[str, Any], noun: str) -> Any:
    kind = getattr(_diffusers(), name)
    allowed = [k for k in inspect.signature(kind.__init__).parameters if k != "self"]  # not all of them have annotations
    for key in config:
        if key not in allowed:
            raise unknown(noun, key, allowed)
    try:
        return kind(**config)
    except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"diffusers refuses this {name} configuration: {str(error).splitlines()[0]}") from None


def new_scheduler(config: dict[str, Any]) -> Any:
    """A diffusers DDPMScheduler with `config`; raises `UserError` for what it does not know."""
    return _new("DDPMScheduler", config, "scheduler key")


def moving_average(network: torch.nn.Module, decay: float) -> Any:
    """diffusers' exponential moving average of the network's weights."""
    from diffusers.training_utils import EMAModel

    return EMAModel(network.parameters(), decay=decay)


def save(folder: Path, network: torch.nn.Module, scheduler: Any, codec: Codec | None = None) -> None:
    """Writes a folder that diffusers and `load` read: a DDPMPipeline, or with a codec the parts of a latent model.

    With a VQModel it is diffusers' LDMPipeline; for AutoencoderKL there is no unconditional pipeline, so the parts stand alone.
    """
    from diffusers import DDPMPipeline, LDMPipeline

    if not isinstance(codec, Autoencoder):
        pipeline: Any = DDPMPipeline(unet=network, scheduler=scheduler)
        return pipeline.save_pretrained(folder)  # type: ignore[no-any-return]
    if type(codec.network).__name__ == "VQModel":
        pipeline = LDMPipeline(vqvae=codec.network, unet=network, scheduler=scheduler)
        return pipeline.save_pretrained(folder)  # type: ignore[no-any-return]
    save_autoencoder(folder, codec)
    network.save_pretrained(folder / "unet")  # type: ignore[operator]
    scheduler.save_pretrained(folder / "scheduler")


def _folder(model: str | Path) -> Path:
    path = Path(model)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix in PICKLES:
            raise UserError(_pickle_message(path))
        raise UserError(f"MODEL must be a diffusers folder or a hub id; {path} is a file")
    if str(model).startswith((".", "/", "~")) or str(model).count("/") != 1:
        raise UserError(f"MODEL must be a diffusers folder or a hub id (owner/name); found nothing at {model}")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(model), allow_patterns=["*.json", *(f"{part}/*.{ending}" for part in PARTS for ending in ("json", "safetensors"))]
            )
        )
    except Exception as error:  # network, gating and naming errors differ by version; all mean the id gave no model
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no folder at {model}, and the hub gave no such model ({reason}); pass a local folder") from None


def _refuse_other_kinds(folder: Path) -> None:
    """A denoiser of captioned images must not be audited as if it took pixels alone."""
    for part in OTHER_PARTS:
        if (folder / part).is_dir():
            raise UserError(f"{folder} has a {part}/ folder: this version audits models without text or image prompts only")


def _pickle_message(path: Path) -> str:
    return (
        f"{path} is a pickle checkpoint, which runs code when it is opened; convert it where you trust it: load it with "
        "diffusers' from_pretrained(..., use_safetensors=False) and save_pretrained(..., safe_serialization=True)"
    )


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise UserError(_pickle_message(pickles[0]))
    raise UserError(f"{folder} must hold the weights as .safetensors; found none")


def _read_json(path: Path, must: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{must}; {path.parent.name}/{path.name} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; got {type(content).__name__}")
    return content


def _network(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    allowed = NETWORKS[folder.name.removesuffix(SECOND)]
    name = LEGACY.get(config.get("_class_name", ""), config.get("_class_name", allowed[0]))
    if name not in allowed:
        raise UserError(f"networks must be one of {', '.join(sum(NETWORKS.values(), ()))}; {folder} holds a {name}")
    return _pretrained(name, folder, dtype)


def _pretrained(name: str, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    try:
        network, info = getattr(_diffusers(), name).from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,
        )
    except Exception as error:  # safetensors, json and torch each raise their own; all mean unusable weights
        raise UserError(f"{folder} cannot be loaded: {_first_lines(error)}") from None
    if info["missing_keys"] or info["unexpected_keys"]:
        odd = (list(info["missing_keys"]) + list(info["unexpected_keys"]))[0]
        raise UserError(f"{folder}: the weights do not match config.json (first: {odd}); re-export the model")
    network.register_to_config(_name_or_path=None)  # else a saved copy would say where it came from, and differ by place
    return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _classes(config: dict[str, Any], folder: Path) -> int | None:
    """The number of classes a network is conditioned on; None for an unconditional one."""
    if config.get("class_embed_type"):
        raise UserError(f"class_embed_type must be null (labels by number); {folder} says '{config['class_embed_type']}'")
    return config.get("num_embeds_ada_norm" if folder.name.startswith("transformer") else "num_class_embeds")


def _schedule(folder: Path) -> tuple[Schedule, PredictionType]:
    """The model's own table, built by the scheduler class that its folder names."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = _read_json(path, f"{folder} must say its noise schedule")
    name, prediction_type = config.get("_class_name", "DDPMScheduler"), config.get("prediction_type", "epsilon")
    if prediction_type not in get_args(PredictionType):
        raise UserError(f"prediction_type must be epsilon, v_prediction or sample; {folder} says '{prediction_type}'")
    kind = getattr(_diffusers(), str(name), None)
    if kind is None or not hasattr(kind, "from_config"):
        raise UserError(f"{path} must name a scheduler of diffusers; got {name}")
    try:
        table = getattr(kind.from_config(config), "alphas_cumprod", None)
    except (ValueError, NotImplementedError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"{path} cannot be used: {_first_lines(error)}") from None
    if table is None:
        raise UserError(f"the scheduler must have a discrete table of alphas_cumprod, as DDPMScheduler does; {folder} uses {name}")
    return Schedule(table), prediction_type


def _shape(config: dict[str, Any], folder: Path) -> ImageShape | None:
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    out = config.get("out_channels", 3)  # null in a transformer's config means as many as it takes
    if out not in (channels, 2 * channels, None):
        raise UserError(f"a denoiser predicts as many channels as it takes; {folder} has {channels} in and {out} out")
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"sample_size must be a number of pixels or a pair (height, width); {folder}/config.json says {size!r}")
    return ImageShape(channels, *sides)


def _autoencoder_folder(folder: Path) -> Path | None:
    found = [folder / name for name in AUTOENCODER_FOLDERS if (folder / name).is_dir()]
    if len(found) > 1:
        raise UserError(f"{folder} must hold one autoencoder; it has {' and '.join(f.name + '/' for f in found)}")
    return found[0] if found else None


def latent_shape(codec: Autoencoder, shape: ImageShape) -> ImageShape:
    """The latents of images of `shape`: as many channels as the autoencoder makes, sides that many times smaller."""
    channels, factor = _scaling(codec)
    if shape.height % factor or shape.width % factor:
        raise UserError(f"image sides must be multiples of {factor} for this autoencoder; got {shape}: use --resize")
    return ImageShape(channels, shape.height // factor, shape.width // factor)


def _scaling(codec: Autoencoder) -> tuple[int, int]:
    """How many latent channels, and by how much smaller than the image: read off a blank image."""
    channels = int(codec.network.config.in_channels)
    with torch.inference_mode():
        z = codec.encode(torch.zeros(1, channels, PROBE, PROBE, dtype=codec.scale.dtype, device=codec.scale.device))
    return z.shape[1], PROBE // z.shape[2]


def _image_shape(codec: Autoencoder, latent: ImageShape | None, config: dict[str, Any], folder: Path) -> ImageShape | None:
    """The images of a latent model, from the shape of its latents; raises `UserError` when the two parts do not fit."""
    channels, factor = _scaling(codec)
    if channels != config.get("in_channels"):
        raise UserError(
            f"the autoencoder and the denoiser must belong together; {folder} makes latents of {channels} channels, "
            f"and its denoiser takes {config.get('in_channels')}"
        )
    size = (latent.height * factor, latent.width * factor) if latent else None
    return ImageShape(int(codec.network.config.in_channels), *size) if size else None


def _first_lines(error: Exception) -> str:
    """Enough of a library's message to act on, on one line."""
    return " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])


def _diffusers() -> Any:
    """diffusers, told to keep its own warnings and bars off our one line."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


def _fingerprint(folder: Path) -> str:
    files = [folder / "scheduler" / "scheduler_config.json"]
    if (folder / DUAL).is_file():
        files.append(folder / DUAL)
    for part in PARTS:
        if part != "scheduler" and (folder / part).is_dir():
            files += [*sorted((folder / part).glob("*.safetensors")), folder / part / "config.json"]
    return hash_files(files)
