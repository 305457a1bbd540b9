"""Kinds of files in folders of models: configs, weights, schedules, tokenizers, adapters, encoders, and the records that training left.

Whose file it is nobody can say, so a changed one may be another model; then its fingerprint is another one too, by which run folders and
comparisons know it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixtures.models import LEVELS, TINY
from fuzz.trial import Kind, Read

MEMBERS, NONMEMBERS = np.random.default_rng(0).integers(0, 256, (2, 10, 8, 8), dtype=np.uint8)
T = 50


@dataclass(frozen=True)
class Known:
    """What a model answers, and the fingerprint that it is known by; alike where both are."""

    fingerprint: str
    answers: tuple[bytes, ...]


def right_model(folder: Path, answer: Any) -> None:
    """Another answer has another fingerprint, and is finite."""
    model, whole = answer
    assert model.fingerprint != whole.fingerprint or model.answers == whole.answers, "other answers under one fingerprint"
    assert all(np.isfinite(np.frombuffer(part, dtype=np.float32)).all() for part in model.answers), "it is not finite"


def _model(load: Callable[[Path], Any], case: Path, shape: tuple[int, ...]) -> Known:
    """The answers of a model about two images, as an audit asks it."""
    target = load(case)
    torch.manual_seed(0)
    x = torch.randn(2, *shape)
    cond = target.text(["a house", "moon"]) if target.text else torch.tensor([0, 1]) if target.classes else None
    with torch.inference_mode():
        answers = [denoiser(x, T, cond) for denoiser in target.denoiser.exposed]
        answers += [target.codec.encode(torch.ones(1, 1, 8, 8) / 2)] if target.latent and not target.text else []
    _refuse_broken(answers)
    return Known(target.fingerprint, tuple(part.float().numpy().tobytes() for part in answers))


def _refuse_broken(answers: list[torch.Tensor]) -> None:
    """What `scoring.probe` does for every model before it is used."""
    from diffleak.errors import UserError

    if not all(bool(torch.isfinite(part).all()) for part in answers):
        raise UserError("the model must return finite numbers")


def _read(load: Callable[[Path], Any], shape: tuple[int, ...]) -> Callable[[Path], Read]:
    """Reads a case beside what was read from the example."""

    def reading(folder: Path) -> Read:
        whole = _model(load, folder, shape)
        return lambda case: (_model(load, case, shape), whole)

    return reading


def _load(case: Path) -> Any:
    from diffleak import hub

    return hub.load(case, device="cpu")


def pixel_model(folder: Path) -> Read:
    from diffleak import hub

    torch.manual_seed(0)
    hub.save(folder, hub.new_network({**TINY, "num_class_embeds": 3}), hub.new_scheduler({}))
    (folder / "train.json").write_text(json.dumps({"schema_version": 1, "classes": {"a": 0, "b": 1, "c": 2}, "data": "digits", "images": {}}))
    return _read(_load, (1, 8, 8))(folder)


def latent_model(folder: Path) -> Read:
    from diffleak import hub

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"in_channels": 1, "out_channels": 1, "latent_channels": 2, "sample_size": 8}
    codec = hub.codec_of(hub.new_autoencoder("AutoencoderKL", {**LEVELS, **blocks, **sizes}), 0.5)
    hub.save(folder, hub.new_network({**TINY, "in_channels": 2, "out_channels": 2, "sample_size": 4}), hub.new_scheduler({}), codec)
    return _read(_load, (2, 4, 4))(folder)


def dual_model(folder: Path) -> Read:
    from diffleak import hub

    teachers = tuple(folder.with_name(f"teacher-{i}") for i in (1, 2))
    for i, teacher in enumerate(teachers):
        torch.manual_seed(i)
        hub.save(teacher, hub.new_network({**TINY, "num_class_embeds": 3}), hub.new_scheduler({}))
    hub.save_dual(folder, (teachers[0], teachers[1]), "random", 1)
    return _read(_load, (1, 8, 8))(folder)


def text_model(folder: Path) -> Read:
    from fixtures.text import CHANNELS, LATENT, text_folder

    text_folder(folder)
    return _read(_load, (CHANNELS, LATENT, LATENT))(folder)


def _lora(write: Callable[[Path], Path]) -> Callable[[Path], Read]:
    def example(folder: Path) -> Read:
        from fixtures.text import CHANNELS, LATENT, text_folder

        from diffleak import hub

        base = text_folder(folder.with_name("base"))
        write(folder)
        return _read(lambda case: hub.load(base, device="cpu", lora=case), (CHANNELS, LATENT, LATENT))(folder)

    return example


def lora(folder: Path) -> Read:
    from fixtures.loras import lora_folder

    return _lora(lambda folder: lora_folder(folder, text=True))(folder)


def peft(folder: Path) -> Read:
    from fixtures.loras import peft_folder

    return _lora(peft_folder)(folder)


def encoder(folder: Path) -> Read:
    """A DINOv2 with its preprocessing, as `quality` and black-box attacks open it."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**size)).save_pretrained(folder)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    settings = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": mean, "image_std": std}))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)

    def known(case: Path) -> Known:
        from diffleak.hub.encoders import extract, open_extractor

        extractor = open_extractor(str(case))
        return Known(extractor.fingerprint, (extract(extractor, [pixels]).features.astype(np.float32).tobytes(),))

    whole = known(folder)
    return lambda case: (known(case), whole)


WEIGHTS = "*/*.safetensors"
KINDS = (
    Kind("pixel model", pixel_model, ("unet/config.json", "scheduler/*.json", "train.json", WEIGHTS, "model_index.json"), right_model, 6),
    Kind("latent model", latent_model, ("vae/config.json", "unet/config.json", "scheduler/*.json", WEIGHTS), right_model, 3),
    Kind("dual model", dual_model, ("dual.json", "dual.json", "unet_2/config.json"), right_model, 2),
    Kind(
        "text model",
        text_model,
        ("model_index.json", "tokenizer/*", "tokenizer/*", "text_encoder/*", "unet/config.json", "scheduler/*.json", "vae/config.json"),
        right_model,
        3,
    ),
    Kind("lora", lora, ("*.safetensors",), right_model, 2),
    Kind("lora of peft", peft, ("adapter_config.json", "adapter_config.json", "*.safetensors"), right_model, 2),
    Kind("encoder", encoder, ("*.json", "*.safetensors"), right_model, 3),
)
