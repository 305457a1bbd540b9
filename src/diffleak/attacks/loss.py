"""The naive loss attack: how well the model denoises the image.

    r_t = eps(q(x0, t, e), t) - e          statistic: mean over draws of |r_t|_2^2

Matsumoto, Miura and Yanai 2023, "Membership inference attacks against diffusion models", arXiv 2302.03262, section 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from diffleak.attacks.base import ResidualAttack
from diffleak.attacks.subject import Subject
from diffleak.errors import UserError


@final
@dataclass(frozen=True, kw_only=True)
class Loss(ResidualAttack):
    """How well the model predicts noise that was added to the image. A small loss means member.

    Formula: `mean over draws of |eps(q(x0, t, e), t) - e|**p`.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        p: The power of the norm.
        draws: Noises that are averaged, at least 1.

    Source:
        Matsumoto, Miura and Yanai 2023, arXiv 2302.03262, section 4.
    """

    draws: int = 1

    name: ClassVar[str] = "loss"
    source: ClassVar[str] = "Matsumoto et al. 2023, arXiv 2302.03262"
    published_timestep: ClassVar[int | None] = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise UserError(f"loss: draws must be at least 1; got {self.draws}")

    @property
    def replicates(self) -> int:
        return self.draws

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *s"]]:
        for t in self.timesteps:
            for draw in range(self.draws):
                e = subject.noise(draw)
                yield subject.eps(subject.schedule.add_noise(subject.x0, t, e), t) - e
