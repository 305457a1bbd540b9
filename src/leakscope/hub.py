"""Models as people have them: a diffusers folder or hub id in, a `Target` out, and back to a folder after training.

The only module that imports diffusers or knows its folder layout:

    MODEL/unet/config.json, unet/*.safetensors, scheduler/scheduler_config.json   (model_index.json is not needed)
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from leakscope.data.pixels import ImageShape
from leakscope.diffusion.denoiser import Denoiser, NetworkDenoiser, PredictionType
from leakscope.diffusion.schedule import Schedule
from leakscope.errors import UserError, unknown

UNKNOWN = "unknown"
NETWORKS = ("UNet2DModel",)
OTHER_PARTS = ("vae", "vqvae", "vqmodel", "text_encoder", "text_encoder_2", "transformer", "image_encoder", "movq")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Target:
    """What is audited: a denoiser, the images it takes, and where it runs.

    `shape` is None for a model that takes images of any one size. `fingerprint` says which model this is; without one,
    a run folder cannot be resumed, since nobody could tell whether it is the same model. `x_dtype` is the dtype of
    images and noise: at least float32, so that a half-precision network does not round the attack's own arithmetic.
    """

    denoiser: Denoiser
    shape: ImageShape | None = None
    name: str = "denoiser"
    fingerprint: str = UNKNOWN
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def x_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32


def load(model: str | Path, dtype: str = "float32", device: str | None = None) -> Target:
    """The model in a diffusers folder or of a hub id, ready to be audited.

    `dtype` is float32, float16, bfloat16 or float64; `device` a torch device, by default the first accelerator or the CPU.
    Raises `UserError` for a folder that is no diffusers model, pickle checkpoints, and networks that are not supported.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    folder = _folder(model)
    _refuse_other_kinds(folder)
    network_folder = folder / "unet"
    config = _read_json(network_folder / "config.json", f"{folder} must be a diffusers model folder")
    _refuse_pickles(network_folder)
    device = str(checked_device(device))
    shape = _shape(config, network_folder)
    schedule, prediction_type = _schedule(folder)
    network = _network(network_folder, config, DTYPES[dtype]).to(device).eval().requires_grad_(False)
    return Target(NetworkDenoiser(network, schedule, prediction_type), shape, str(model), _fingerprint(folder), dtype, device)


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
    diffusers = _diffusers()
    allowed = [k for k in diffusers.UNet2DModel.__init__.__annotations__ if k != "return"]
    for key in config:
        if key not in allowed:
            raise unknown("model key", key, allowed)
    try:
        return diffusers.UNet2DModel(**config)  # type: ignore[no-any-return]
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"diffusers refuses this UNet2DModel configuration: {str(error).splitlines()[0]}") from None


def new_scheduler(config: dict[str, Any]) -> Any:
    """A diffusers DDPMScheduler with `config`; raises `UserError` for what it does not know."""
    from diffusers import DDPMScheduler

    allowed = [k for k in DDPMScheduler.__init__.__annotations__ if k != "return"]
    for key in config:
        if key not in allowed:
            raise unknown("scheduler key", key, allowed)
    try:
        return DDPMScheduler(**config)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise UserError(f"diffusers refuses this DDPMScheduler configuration: {str(error).splitlines()[0]}") from None


def moving_average(network: torch.nn.Module, decay: float) -> Any:
    """diffusers' exponential moving average of the network's weights."""
    from diffusers.training_utils import EMAModel

    return EMAModel(network.parameters(), decay=decay)


def save(folder: Path, network: torch.nn.Module, scheduler: Any) -> None:
    """Writes a DDPMPipeline folder that diffusers and `load` read."""
    from diffusers import DDPMPipeline

    pipeline: Any = DDPMPipeline(unet=network, scheduler=scheduler)
    pipeline.save_pretrained(folder)


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
        return Path(snapshot_download(str(model), allow_patterns=["*.json", "unet/*.safetensors", "unet/*.json"]))
    except Exception as error:  # network, gating and naming errors differ by version; all mean the id gave no model
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no folder at {model}, and the hub gave no such model ({reason}); pass a local folder") from None


def _refuse_other_kinds(folder: Path) -> None:
    """A denoiser of latents or of captioned images must not be audited as if it took pixels alone."""
    for part in OTHER_PARTS:
        if (folder / part).is_dir():
            raise UserError(f"{folder} has a {part}/ folder: it is no plain pixel model, and this version audits only those")


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
    name = config.get("_class_name", "UNet2DModel")
    if name not in NETWORKS:
        raise UserError(f"networks must be one of {', '.join(NETWORKS)}; {folder} holds a {name}")
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise UserError(f"{folder} is class-conditional; this version audits unconditional models only")
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
    return network


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
    if config.get("out_channels", 3) not in (channels, 2 * channels):
        raise UserError(
            f"a denoiser predicts as many channels as it takes; {folder} has {channels} in and {config.get('out_channels', 3)} out"
        )
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"sample_size must be a number of pixels or a pair (height, width); {folder}/config.json says {size!r}")
    return ImageShape(channels, *sides)


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
    digest = hashlib.sha256()
    files = [
        folder / "scheduler" / "scheduler_config.json",
        *sorted((folder / "unet").glob("*.safetensors")),
        folder / "unet" / "config.json",
    ]
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
