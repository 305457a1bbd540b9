"""How much signal and noise an image carries at the integer timestep t.

    q(x0, t, e)        = a_t x0 + s_t e                      a_t = sqrt(alpha_bar_t), s_t = sqrt(1 - alpha_bar_t)
    ddim(x, e, t -> u) = a_u (x - s_t e) / a_t + s_u e       eta = 0, nothing clipped

The table is the model scheduler's own `alphas_cumprod`, in float64; time stays discrete because attacks quote integer
timesteps. (Ho et al. 2020, arXiv 2006.11239, eq. 4; Song et al. 2021, arXiv 2010.02502, eq. 12.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from leakscope.errors import UserError


@dataclass(frozen=True, eq=False)
class Schedule:
    """The discrete noise schedule of a model: `alphas_cumprod[t]` in [0, 1], not increasing, for t in [0, T)."""

    alphas_cumprod: Float64[np.ndarray, "T"]

    def __init__(self, alphas_cumprod: "Sequence[float] | np.ndarray | Tensor") -> None:
        table = np.array(alphas_cumprod.cpu() if isinstance(alphas_cumprod, Tensor) else alphas_cumprod, dtype=np.float64)
        if table.ndim != 1 or len(table) == 0 or not ((table >= 0) & (table <= 1)).all() or (np.diff(table) > 0).any():
            raise UserError(f"alphas_cumprod must be a non-increasing table of numbers in [0, 1]; got shape {table.shape}")
        table.setflags(write=False)
        object.__setattr__(self, "alphas_cumprod", table)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def a(self, t: int) -> float:
        """sqrt(alpha_bar_t), the share of signal."""
        return float(np.sqrt(self.alphas_cumprod[t]))

    def s(self, t: int) -> float:
        """sqrt(1 - alpha_bar_t), the share of noise."""
        return float(np.sqrt(1.0 - self.alphas_cumprod[t]))

    def add_noise(self, x0: Float[Tensor, "b *s"], t: int, noise: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """q(x0, t, e): the image at timestep t when the noise drawn is `noise`."""
        return self.a(t) * x0 + self.s(t) * noise

    def predict_x0(self, x_t: Float[Tensor, "b *s"], t: int, eps: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """The clean image that x_t and a predicted noise imply."""
        return (x_t - self.s(t) * eps) / self.a(t)

    def ddim(self, x_t: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], t: int, u: int) -> Float[Tensor, "b *s"]:
        """One deterministic DDIM step from timestep t to u, in either direction."""
        return self.a(u) * self.predict_x0(x_t, t, eps) + self.s(u) * eps

    def check(self, timesteps: Sequence[int]) -> None:
        """Raises `UserError` unless every timestep lies in [0, T) and keeps some signal (alpha_bar > 0)."""
        outside = [t for t in timesteps if not 0 <= t < len(self)]
        if outside:
            raise UserError(f"timesteps must lie in [0, {len(self)}), the model's schedule; got {outside[0]}")
        silent = [t for t in timesteps if self.alphas_cumprod[t] == 0]
        if silent:
            raise UserError(f"alphas_cumprod is 0 at timestep {silent[0]}: no signal is left there; choose smaller timesteps")
