"""SimA: the size of one noise prediction at the clean image.

    r_t = eps(x0, t)                                       the raw image: no scaling, no noise
    r_t = mean over m draws of eps(q(x0, t, e_j), t)       Monte Carlo variant

The optimal denoiser points from x0 to a kernel-weighted mean of the training images near it, so its norm is small where
a training image is close. The paper's text takes the norm of the mean prediction, its code the mean of the norms; both
are here, as `variant=mean` and `variant=norms`.

Rao, Qu and Moyer 2025, "Score-based membership inference on diffusion models", arXiv 2509.25003; the norm is p = 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from diffleak.attacks.base import ResidualAttack
from diffleak.attacks.subject import Subject
from diffleak.errors import UserError, unknown

SOURCE = "Rao et al. 2025, arXiv 2509.25003"
VARIANTS = ("mean", "norms")


@final
@dataclass(frozen=True, kw_only=True)
class SimA(ResidualAttack):
    """How large the noise is that the model predicts at the clean image. A small norm means member.

    Formula: `|eps(x0, t)|**p`.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        p: The power of the norm.

    Source:
        Rao, Qu and Moyer 2025, arXiv 2509.25003.
    """

    p: float = 4.0

    name: ClassVar[str] = "sima"
    source: ClassVar[str] = SOURCE

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *s"]]:
        for t in self.timesteps:
            yield subject.eps(subject.x0, t)


@final
@dataclass(frozen=True, kw_only=True)
class SimAMonteCarlo(ResidualAttack):
    """The same as sima, averaged over several noised copies of the image. A small norm means member.

    Formula: `|mean over m draws of eps(q(x0, t, e_j), t)|**p`.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        p: The power of the norm.
        m: Noised copies of the image, at least 1.
        variant: "mean", the norm of the mean prediction (the paper's text), or "norms", the mean of the norms (its code).

    Source:
        Rao, Qu and Moyer 2025, arXiv 2509.25003.
    """

    p: float = 4.0
    m: int = 30
    variant: str = "mean"

    name: ClassVar[str] = "sima_mc"
    source: ClassVar[str] = SOURCE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m < 1:
            raise UserError(f"sima_mc: m must be at least 1; got {self.m}")
        if self.variant not in VARIANTS:
            raise unknown("variant of sima_mc", self.variant, VARIANTS)

    @property
    def queries(self) -> int:
        return len(self.timesteps) * self.m

    @property
    def replicates(self) -> int:
        return self.m if self.variant == "norms" else 1

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *s"]]:
        for t in self.timesteps:
            predictions = (subject.eps(subject.schedule.add_noise(subject.x0, t, subject.noise(j)), t) for j in range(self.m))
            if self.variant == "norms":
                yield from predictions
            else:
                yield sum(predictions, start=subject.x0.new_zeros(())) / self.m
