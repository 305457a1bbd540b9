"""What a command is about: a denoiser, the images it takes and where it runs; and how much of it runs at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffleak.data.labels import UNNAMED, ClassNames
from diffleak.data.pixels import ImageShape
from diffleak.diffusion.codec import Codec, Identity
from diffleak.diffusion.conditions import TextEncoder
from diffleak.diffusion.denoiser import Denoiser, NetworkDenoiser, unguided
from diffleak.diffusion.devices import by_device
from diffleak.records.headers import GivenAway
from diffleak.records.plan import Adapter, Embedding
from diffleak.work.folder import UNKNOWN
from diffleak.work.threads import cores

PIXELS = Identity()


@dataclass(frozen=True, eq=False)
class Target:
    """What is audited: a denoiser, the images it takes, and where it runs.

    `load` makes one of a folder; of a denoiser of your own, `Target(denoiser, fingerprint="...")` says which model it is, so that a run
    folder can be resumed.

    Args:
        denoiser: The model.
        shape: The images it takes, or None for a model that takes images of any one size.
        name: What reports call it.
        fingerprint: Says which model this is, adapter included; without one a run folder cannot be resumed, since nothing shows that it is
            the same model.
        dtype: Of the network.
        device: The torch device.
        codec: Takes images to what the denoiser works on.
        classes: The number of classes of a class-conditional model; None for others.
        text: Embeds the captions of a text-to-image model; no model has both.
        lora: The adapters that were merged into the weights.
        lora_scale: Times the strength of each in `adapters`.
        split_file: The split.json that training left beside the model, or beside the LoRA.
        trained: The train.json files that say how training read its images.
        class_names: The names of the classes, where the model's folder states them.
        warnings: Those of the libraries that read the weights, and of how far rounding changed an adapter.
        adapters: Each adapter with its strength.
        embedding: The textual inversions that the text encoders know.
        embeddings: Each of them.
        network: The denoiser that took the place of the model's own; the fingerprint covers it.
        weights: "ema" or "non_ema", where there were both; the fingerprint covers it.
        headers: What the files of the adapter and of a model in one file give away beside their weights.
        made_by: The function of your own that made the model, as package.module:function.
        code: A hash of its module.
        faster: The ways of `devices.faster_ways`, and "compiled", by which its forwards are faster and right to some digits only.

    `x_dtype` is the dtype of images, latents and noise: at least float32, so that a half-precision network does not round the attack's own
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
    lora: str | None = None
    lora_scale: float | None = None
    split_file: Path | None = None
    trained: tuple[Path, ...] = ()
    class_names: ClassNames = UNNAMED
    warnings: tuple[str, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    embedding: str | None = None
    embeddings: tuple[Embedding, ...] = ()
    network: str | None = None
    weights: str | None = None
    headers: tuple[GivenAway, ...] = ()
    made_by: str | None = None
    code: str | None = None
    faster: tuple[str, ...] = ()

    @property
    def x_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def named(self) -> dict[str, Any]:
        """Which model it is, by the names that plans and records have for that."""
        chosen = {key: getattr(self, key) for key in ("lora", "lora_scale", "embedding", "network", "weights")}
        return {"model": self.name, "model_fingerprint": self.fingerprint, **chosen}

    def unnamed(self, captions: Sequence[str]) -> list[str]:
        """What is to be said of embeddings whose token none of the captions has, so that they change nothing."""
        lower = [text.lower() for text in captions]
        return [
            f"no caption has the token '{each.token}' of the embedding {each.name}, so it changes nothing"
            for each in self.embeddings
            if not any(each.token.lower() in text for text in lower)
        ]

    @property
    def latent(self) -> bool:
        """True if the denoiser works on latents."""
        return not isinstance(self.codec, Identity)


BATCH_ELEMENTS = {"cpu": 2**17, "accelerator": 2**21}
MAX_BATCH = 256
AT_ONCE = {"cpu": 8, "accelerator": 64}  # images


def auto_batch_size(shape: ImageShape, device: str) -> int:
    """Images per forward: a power of two that depends on the image and the kind of device only, so that runs repeat."""
    fitting = by_device(BATCH_ELEMENTS, device) // (shape.channels * shape.height * shape.width)
    return int(min(MAX_BATCH, 2 ** max(0, int(np.log2(max(1, fitting))))))


def drawn_at_once(latent: ImageShape, device: str, most: int | None = None) -> int:
    """Images per forward where drawings are keyed by image and draw: a number of its own, since the last digits follow from it.

    Small, so that few forwards are filled up, and for the two rows an image that guidance takes. most: where memory allows no more.
    """
    fitting = max(1, auto_batch_size(latent, device) // 2)
    return min(by_device(AT_ONCE, device), fitting, fitting if most is None else most)


def side_by_side(target: Target) -> int:
    """How many chunks of work this process does at once by default.

    Processes that a launcher started on one machine share its cores. An accelerator takes one chunk at a time, and so
    does a function, which may not be made for several threads.
    """
    networks = all(isinstance(unguided(exposed), NetworkDenoiser) for exposed in target.denoiser.exposed)
    return cores() if target.device == "cpu" and networks else 1
