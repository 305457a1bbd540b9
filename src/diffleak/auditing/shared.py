"""What the audits of a sweep over checkpoints have in common, computed once: the scan of the images, latents and text embeddings.

Noise needs no sharing: it follows from the seed and the image. An audit gives the same numbers with and without.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffleak.auditing.inputs import Inputs
from diffleak.data.cohort import Cohort
from diffleak.data.scan import Scan, scan
from diffleak.diffusion.target import Target
from diffleak.hub.pipelines import Kept
from diffleak.hub.sharing import codec_key, text_key
from diffleak.records.plan import Plan


@dataclass(frozen=True, eq=False)
class Shared:
    """Keeps these for audits of the same images; `folder` holds the latents until the sweep is finished."""

    folder: Path
    _scans: list[tuple[Any, Scan]] = field(default_factory=list)
    _embeddings: dict[str, Kept] = field(default_factory=dict)

    def join(self, target: Target) -> None:
        """Lets a model take the embeddings of captions that an earlier one with the same text encoders has made."""
        key = text_key(target.text)
        if key is not None:
            target.text.share(self._embeddings.setdefault(key, Kept()))  # type: ignore[union-attr]

    def scanned(self, images: Cohort, told: Sequence[Any]) -> Scan:
        """The scan of the images for a model that takes them as an earlier one does, or else a new one."""
        key = (images.keys, tuple(told))
        found = next((made for other, made in self._scans if other == key), None)
        if found is None:
            found = scan(images, *told)
            self._scans.append((key, found))
        return found

    def latents(self, inputs: Inputs, plan: Plan) -> Path | None:
        """Where the latents of these images by this codec are; None for a model of pixels, and for a codec of the user's own."""
        key = codec_key(inputs.target.codec) if inputs.target.latent else None
        if key is None:
            return None
        cut = [
            plan.data_fingerprint,
            plan.image_shape,
            plan.resize,
            plan.chunk_size,
            plan.seed,
            plan.probes,
            plan.estimator,
            plan.dtype,
            plan.device,
            plan.buckets,
            *((plan.sweep, plan.calibrate_fraction, plan.units) if plan.sweep != "all" else ()),
        ]
        return self.folder / hashlib.sha256(json.dumps([key, *cut]).encode()).hexdigest()[:16]
