"""Black-box: what the model draws for an image's own caption, and how much that resembles the image.

    g_1 ... g_n    images drawn for the caption by DDIM under guidance, each from noise of its own, keyed by the image's id
    s_j            cosine of the encoder's vectors of the image itself and of g_j
    components     s_1 >= ... >= s_n
    threshold      score = the mean of s
    classifier     score = the logit of a logistic regression on s that is trained on the calibrate part alone

The model gives nothing but images, so one that is several networks in turn is seen as a whole. The image goes into the
encoder as the pixels it is, never through the model's autoencoder.
Pang and Wang 2025, "Black-box membership inference attacks against fine-tuned diffusion models", arXiv 2312.08207.
"""

from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.attacks.base import Access, Attack, Direction
from diffleak.attacks.subject import Subject
from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.devices import float64
from diffleak.errors import UserError, unknown

RULES = {"threshold": "mean", "classifier": "logistic"}  # how each variant makes a score of the similarities


@final
@dataclass(frozen=True, kw_only=True)
class BlackBox(Attack):
    """How much the images that the model draws for the caption resemble the image. Similar images mean member.

    Formula: The mean over the drawings of `cos(encoder(drawn), encoder(image))`.

    Args:
        timesteps: None; the sampler has its own.
        n: Images drawn for each caption.
        steps: Of the sampler.
        guidance_scale: Of classifier-free guidance; 1 is none.
        encoder: One that `diffleak quality` takes: clip, dinov2 or a vision transformer by hub id or folder (`clip:FOLDER`), or
            `torchscript:FILE`.
        variant: "threshold" on the mean, or "classifier", a logistic regression on the similarities.
        encoder_weights: The hash of what was loaded; empty until then.

    Source:
        Pang and Wang 2025, arXiv 2312.08207.
    """

    timesteps: tuple[int, ...] = ()
    n: int = 3
    steps: int = 50
    guidance_scale: float = 7.5
    encoder: str = "clip"
    variant: str = "threshold"
    encoder_weights: tuple[str, ...] = ()

    name: ClassVar[str] = "black_box"
    access: ClassVar[Access] = "black-box"
    direction: ClassVar[Direction] = "large"
    source: ClassVar[str] = "Pang and Wang 2025, arXiv 2312.08207"
    rule: ClassVar[str | None] = "mean"
    needs_text: ClassVar[bool] = True
    in_all: ClassVar[bool] = False
    unlabelled: ClassVar[str] = "encoder_weights"

    def __post_init__(self) -> None:
        self._plain_numbers()
        if self.timesteps:
            raise UserError("black_box draws whole images and has no timesteps; leave them out")
        if self.n < 1 or self.steps < 1:
            raise UserError(f"black_box needs n >= 1 images of steps >= 1; got {self.n} and {self.steps}")
        if not isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError(f"black_box: guidance_scale must be a number of at least 0 (1 is no guidance); got {self.guidance_scale}")
        if self.variant not in RULES:
            raise unknown("variant of black_box", self.variant, RULES)

    @property
    def settled_by(self) -> str | None:
        return RULES[self.variant]

    @property
    def columns(self) -> tuple[int, ...]:
        return tuple(range(self.n))

    @property
    def _forwards(self) -> int:
        """Rows of a batch that one step of one image takes: under guidance two."""
        return 1 if self.guidance_scale == 1 else 2

    @property
    def queries(self) -> int:
        return self.n * self.steps * self._forwards

    def opened(self, subject: Subject) -> "BlackBox":
        subject.new_sampler(self.steps)  # to refuse at once what cannot be drawn
        return replace(self, encoder_weights=(subject.encoder(self.encoder).fingerprint,))

    def statistics(self, subject: Subject, mask: Float[Tensor, "b *s"] | None = None) -> Float64[Tensor, "n b"]:
        self._refuse_masks(mask)
        if not isinstance(subject.cond, Prompts):
            raise UserError(f"black_box needs the captions of the images as cond, a Prompts; got {type(subject.cond).__name__}")
        drawn, embed = subject.draw(self.steps, self.guidance_scale, self.n), subject.encoder(self.encoder).embed
        similarity = cosines(embed(subject.pixels()), embed(drawn))
        broken = ~torch.isfinite(drawn).flatten(start_dim=1).all(dim=1).reshape(self.n, -1)
        return similarity.masked_fill(broken.to(similarity.device), torch.nan).sort(dim=0, descending=True).values


def cosines(images: Float[Tensor, "b d"], drawn: Float[Tensor, "nb d"]) -> Float64[Tensor, "n b"]:
    """Of each image with each of the n batches of drawn ones, one after another."""
    x, y = (torch.nn.functional.normalize(float64(vectors), dim=1) for vectors in (images, drawn))
    return (y.reshape(-1, *x.shape) * x).sum(dim=2)
