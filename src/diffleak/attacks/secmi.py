"""SecMI: how far the model's deterministic path is from being reversible.

    x_{t+k} = ddim(x_t, eps_t, t -> t+k)  from x_0 = x0          r_t = ddim(x_{t+k}, eps_{t+k}, t+k -> t) - x_t

Both sides share x_t, so the residual collapses to a difference of two predictions (sign apart):

    r_t = c_t (eps_t - eps_{t+k}),   c_t = a_t s_{t+k} / a_{t+k} - s_t

Hence one inversion pass yields the statistic at every timestep of the chain 0, k, 2k, ...; the public code spends two
forwards for each. Its "t = 100" compares at 90 with the pair (90, 100), which is t = 90 here.

Duan, Kong, Wang, Shi and Xu 2023, "Are diffusion models vulnerable to membership inference attacks?", arXiv 2302.01316,
eq. 9 (t-error), statistic variant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from diffleak.attacks.base import ResidualAttack
from diffleak.attacks.subject import Subject
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError


@final
@dataclass(frozen=True, kw_only=True)
class SecMI(ResidualAttack):
    """How far the model's path from the image to noise and back misses the image. A small error means member.

    Formula: `|c_t (eps_t - eps_{t+k})|**p` along the model's deterministic path.

    The whole grid 0, k, ..., (N-1)k costs N + 1 forwards; a grid that leaves out its beginning costs as much, because the chain still walks
    there.

    Args:
        timesteps: A sweep of multiples of k, since the chain visits no others.
        p: The power of the norm.
        k: The stride, in timesteps.

    Source:
        Duan, Kong, Wang, Shi and Xu 2023, arXiv 2302.01316, eq. 9.
    """

    k: int = 10

    name: ClassVar[str] = "secmi"
    source: ClassVar[str] = "Duan et al. 2023, arXiv 2302.01316"
    published_timestep: ClassVar[int | None] = 90

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise UserError(f"secmi: k must be at least 1; got {self.k}")

    def usable(self, t: int, schedule: Schedule) -> bool:
        return t % self.k == 0 and t + self.k < len(schedule) and bool(schedule.alphas_cumprod[t + self.k] > 0)

    def why_unusable(self, t: int, schedule: Schedule) -> str:
        return f"secmi needs multiples of its stride k = {self.k} that leave room for one more stride below {len(schedule)}"

    @property
    def queries(self) -> int:
        return max(self.timesteps) // self.k + 2

    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *s"]]:
        schedule, wanted = subject.schedule, set(self.timesteps)
        x_t, eps_t = subject.x0, subject.eps(subject.x0, 0)
        for t in range(0, max(self.timesteps) + 1, self.k):
            u = t + self.k
            x_t = schedule.ddim(x_t, eps_t, t, u)
            eps_u = subject.eps(x_t, u)
            if t in wanted:
                yield (schedule.a(t) * schedule.s(u) / schedule.a(u) - schedule.s(t)) * (eps_t - eps_u)
            eps_t = eps_u
