"""What a command is about: a denoiser, the images it takes and where it runs; and how much of it runs at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

    `shape` is None for a model that takes images of any one size; `codec` takes images to what the denoiser works on.
    `classes` is the number of classes of a class-conditional model and `class_names` are their names where its folder states them;
    `text` embeds the captions of a text-to-image model; no model has both. `lora` names the adapters that were merged into its weights,
    at `lora_scale` times the strength of each in `adapters`; `embedding` names the textual inversions that its text encoders know, which
    are the `embeddings`. `fingerprint` says which model this is, adapter included; without one, a run folder cannot be resumed, since
    nothing shows that it is the same model. `x_dtype` is the dtype of images, latents and noise: at least float32, so that
    a half-precision network does not round the attack's own arithmetic. `split_file` is the split.json that training left beside
    the model, or beside the LoRA, and `trained` are the train.json files that say how it read its images. `warnings` are those of the
    libraries that read the weights, and of how far rounding changed an adapter. `network` is the denoiser that took the place of the
    model's own, and `weights` what was chosen where there were averaged ones and others, ema or non_ema; the fingerprint covers both.
    `headers` are what the files of the adapter and of a model in one file give away beside their weights. `made_by` is the function of
    the user's own that made the model, as package.module:function, and `code` a hash of its module. `faster` are the ways of
    `devices.faster_ways`, and "compiled", by which its forwards are faster and right to some digits only.
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


def auto_batch_size(shape: ImageShape, device: str) -> int:
    """Images per forward: a power of two that depends on the image and the kind of device only, so that runs repeat."""
    fitting = by_device(BATCH_ELEMENTS, device) // (shape.channels * shape.height * shape.width)
    return int(min(MAX_BATCH, 2 ** max(0, int(np.log2(max(1, fitting))))))


def side_by_side(target: Target) -> int:
    """How many chunks of work this process does at once by default.

    Processes that a launcher started on one machine share its cores. An accelerator takes one chunk at a time, and so
    does a function, which may not be made for several threads.
    """
    networks = all(isinstance(unguided(exposed), NetworkDenoiser) for exposed in target.denoiser.exposed)
    return cores() if target.device == "cpu" and networks else 1
