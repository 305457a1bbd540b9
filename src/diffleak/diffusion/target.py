"""The model that a command works on: a denoiser, the images it takes and where it runs; and how much of it runs at once."""

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

    `load` makes one from a folder. For a denoiser of your own, `Target(denoiser, fingerprint="...")` says which model it is, so that a
    run folder can be resumed.

    Args:
        denoiser: The model.
        shape: The images it takes, or None for a model that takes any size, the same for all images.
        name: What reports call it.
        fingerprint: Says which model this is, adapters included. Without one a run folder cannot be resumed, because nothing shows that
            the model is the same.
        dtype: The dtype of the network.
        device: The torch device.
        codec: Maps images to the latents that the denoiser works on.
        classes: The number of classes of a class-conditional model; None for others.
        text: Embeds the captions of a text-to-image model; None for others.
        lora: The adapters that were merged into the weights, as the user named them.
        lora_scale: A factor on the strength of every adapter.
        split_file: The split.json that training left beside the model, or beside the LoRA.
        trained: The train.json files that say how training read its images.
        class_names: The names of the classes, where the model's folder states them.
        warnings: Warnings of the libraries that read the weights, and of rounding that changed an adapter.
        adapters: Each adapter with its strength.
        embedding: The textual inversions that were added, as the user named them.
        embeddings: Each textual inversion with its token.
        network: The denoiser that replaced the model's own; the fingerprint covers it.
        weights: "ema" or "non_ema", where there were both; the fingerprint covers it.
        headers: What the headers of the released files give away, of adapters and of a model in one file.
        made_by: The function of your own that made the model, as package.module:function.
        code: A hash of the module of that function.
        faster: What makes its forwards faster but less exact: the ways of `devices.faster_ways`, and "compiled".

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
        """What names the model in plans and records, by field."""
        chosen = {key: getattr(self, key) for key in ("lora", "lora_scale", "embedding", "network", "weights")}
        return {"model": self.name, "model_fingerprint": self.fingerprint, **chosen}

    def unnamed(self, captions: Sequence[str]) -> list[str]:
        """A warning for each embedding whose token is in none of the captions, so that it changes nothing."""
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
    """Images per forward where drawings are keyed by image and draw; the last digits of a drawing depend on this number.

    It is small, because the last forward is filled up and guidance takes two rows per image. most: an upper limit, by memory.
    """
    fitting = max(1, auto_batch_size(latent, device) // 2)
    return min(by_device(AT_ONCE, device), fitting, fitting if most is None else most)


def side_by_side(target: Target) -> int:
    """The number of chunks that this process works on at once by default.

    Processes that a launcher started on one machine share its cores. An accelerator works on one chunk at a time, and so does a
    user's own function, which may not be safe to call from several threads.
    """
    networks = all(isinstance(unguided(exposed), NetworkDenoiser) for exposed in target.denoiser.exposed)
    return cores() if target.device == "cpu" and networks else 1
