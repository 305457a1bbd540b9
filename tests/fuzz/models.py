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

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
PREPROCESSING = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True, "resample": 3}
PREPROCESSING |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
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
    (folder / "train.json").write_text(
        json.dumps({"schema_version": 1, "classes": {"a": 0, "b": 1, "c": 2}, "data": "digits", "images": {}})
    )
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
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))

    def known(case: Path) -> Known:
        from diffleak.hub.encoders import extract, open_extractor

        extractor = open_extractor(str(case))
        return Known(extractor.fingerprint, (extract(extractor, [PIXELS]).features.astype(np.float32).tobytes(),))

    whole = known(folder)
    return lambda case: (known(case), whole)


def clip(folder: Path) -> Read:
    """The CLIP of the CLIP score, with its tokenizer."""
    from fixtures.text import TOKENS, tokenizers
    from transformers import CLIPConfig, CLIPModel

    tokenizer = tokenizers()[0]
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**size, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**size, "image_size": 28, "patch_size": 14}, projection_dim=8)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))

    def known(case: Path) -> Known:
        from diffleak.quality.alignment import cosines, open_clip

        found = open_clip(str(case), "cpu")
        return Known(found.fingerprint, (cosines(found, PIXELS, ["a house", "moon"]).astype(np.float32).tobytes(),))

    whole = known(folder)
    return lambda case: (known(case), whole)


def torchscript(folder: Path) -> Read:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 8)).eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, 20, 24)), folder / "network.pt")

    def known(case: Path) -> Known:
        from diffleak.hub.encoders import extract, open_extractor

        extractor = open_extractor(f"torchscript:{case / 'network.pt'}")
        return Known(extractor.fingerprint, (extract(extractor, [PIXELS]).features.astype(np.float32).tobytes(),))

    whole = known(folder)
    return lambda case: (known(case), whole)


def class_names(folder: Path) -> Read:
    """The names of classes in train.json; without one, in model_index.json."""
    (folder / "trained").mkdir()
    (folder / "trained" / "train.json").write_text(json.dumps({"schema_version": 1, "classes": {"a": 0, "b": 1, "c": 2}}))
    (folder / "model_index.json").write_text(json.dumps({"id2label": {"0": "a, aa", "1": "b", "2": "c"}}))

    def read(case: Path) -> Any:
        from diffleak.hub import class_names

        return [dict(class_names(place, 3).numbers) for place in (case / "trained", case)]

    return read


def right_names(folder: Path, answer: Any) -> None:
    """The names are those of the files, each once."""
    trained = _object(folder / "trained" / "train.json")
    assert answer[0] == (trained.get("classes") or {}) and set(answer[0].values()) <= {0, 1, 2}
    index = _object(folder / "model_index.json").get("id2label") or {}
    parts = [(part.strip(), int(key)) for key, text in index.items() for part in {text.strip(), *text.split(",")} if part.strip()]
    assert all((name, number) in parts for name, number in answer[1].items())


def _object(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8-sig"))) if path.is_file() and not path.is_char_device() else {}


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
    Kind("clip", clip, ("*",), right_model, 2),
    Kind("torchscript", torchscript, ("network.pt",), right_model, 1),
    Kind("names of classes", class_names, ("trained/train.json", "model_index.json"), right_names, 2),
)
