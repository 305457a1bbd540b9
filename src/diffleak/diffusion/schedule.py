"""How much signal and how much noise an image carries at the integer timestep t.

    q(x0, t, e)        = a_t x0 + s_t e
    ddim(x, e, t -> u) = a_u (x - s_t e) / a_t + s_u e       eta = 0, nothing clipped

    diffusion          a_t = sqrt(alpha_bar_t),   s_t = sqrt(1 - alpha_bar_t)
    flow matching      a_t = 1 - sigma_t,         s_t = sigma_t

The table is the model scheduler's own, in float64; time stays discrete because attacks quote integer timesteps. For flow
matching it is the grid that the model was trained on, sigma_0 being the least noisy. (Ho et al. 2020, arXiv 2006.11239,
eq. 4; Song et al. 2021, arXiv 2010.02502, eq. 12; Lipman et al. 2023, arXiv 2210.02747; Esser et al. 2024, arXiv 2403.03206.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from diffleak.errors import UserError, refusing

LEAST_SIGNAL = 0.5  # of alpha_bar at t = 0, which is above 0.99 in every published schedule
MOST_SIGNAL = 0.9  # of alpha_bar at the end, which is below 0.05 in every published schedule
NO_SIGNAL = 2**-24  # of alpha_bar: what the Euler and multistep schedulers of diffusers write at the end in place of 0
WHOLE = 10  # entries below which a table may be a piece of one


def _numbers(table: Any) -> Float64[np.ndarray, "..."]:
    with refusing((TypeError, ValueError), f"a noise schedule must be a table of numbers; got a {type(table).__name__} of other values"):
        return np.array(table.detach().cpu().double() if isinstance(table, Tensor) else table, dtype=np.float64)


def _wrong(table: Float64[np.ndarray, "..."]) -> str | None:
    """Why a table cannot be alpha_bar, and what to do; None where it can."""
    if table.ndim != 1 or len(table) == 0:
        return f"got shape {table.shape}"
    if not np.isfinite(table).all():
        return f"got {table[~np.isfinite(table)][0]} at t = {int(np.flatnonzero(~np.isfinite(table))[0])}"
    outside = np.flatnonzero((table < 0) | (table > 1))
    if len(outside):
        return f"got {table[outside[0]]:g} at t = {outside[0]}"
    if table[0] < LEAST_SIGNAL and table.max() < LEAST_SIGNAL:
        return f"got {table[0]:.4g} at t = 0, which leaves hardly any signal: if these are betas, give np.cumprod(1 - betas)"
    rises = np.flatnonzero((np.diff(table) > 0) & (table[1:] > NO_SIGNAL))
    if len(rises):
        backwards = (np.diff(table) >= 0).all()
        hint = ": reverse it if it runs backwards; if these are betas, give np.cumprod(1 - betas)" if backwards else ""
        return f"got a table that rises at t = {rises[0] + 1}{hint}"
    if len(table) >= WHOLE and table[-1] > MOST_SIGNAL:
        return f"got {table[-1]:.4g} at its end, which is hardly any noise: if these are alphas, give np.cumprod(alphas)"
    return None


@dataclass(frozen=True, eq=False)
class Schedule:
    """The discrete noise schedule of a model: `alphas_cumprod[t]` in [0, 1], not increasing, for t in [0, T).

    Below 2**-24 it may rise: some schedulers end a schedule that leaves no signal with that number, after smaller ones.

    `signal` and `noise` are a_t and s_t. `times` is the time that the network takes: t itself in diffusion, `unit * sigma_t` in flow
    matching (`is_flow`), and a function of sigma_t in a variance-exploding model. In flow matching `alphas_cumprod` is that of the
    diffusion with the same signal-to-noise ratio.

    Args:
        alphas_cumprod: The T values of alpha_bar.

    Raises:
        UserError: For other tables, such as the usual mistakes: betas, alphas instead of their cumulative product, a table that runs
            backwards.
    """

    alphas_cumprod: Float64[np.ndarray, "T"]
    signal: Float64[np.ndarray, "T"]
    noise: Float64[np.ndarray, "T"]
    times: Shaped[np.ndarray, "T"]
    is_flow: bool

    def __init__(self, alphas_cumprod: Any) -> None:
        table = _numbers(alphas_cumprod)
        wrong = _wrong(table)
        if wrong:
            raise UserError(f"alphas_cumprod must be a non-increasing table of numbers in [0, 1], from nearly 1 down; {wrong}")
        self._settle(table, np.sqrt(table), np.sqrt(1.0 - table), np.arange(len(table)))

    def _settle(self, *tables: np.ndarray, is_flow: bool = False) -> None:
        object.__setattr__(self, "is_flow", is_flow)
        for name, table in zip(("alphas_cumprod", "signal", "noise", "times"), tables, strict=True):
            table.setflags(write=False)
            object.__setattr__(self, name, table)

    @classmethod
    def flow(cls, sigmas: "Sequence[float] | np.ndarray | Tensor", unit: float | int = 1000) -> "Schedule":
        """The schedule of a flow-matching model from its sigmas; raises `UserError` unless they increase within [0, 1].

        unit: the time that the network takes for sigma = 1, which is its scheduler's num_train_timesteps.
        """
        s = _numbers(sigmas)
        if s.ndim != 1 or len(s) == 0 or not ((s >= 0) & (s <= 1)).all() or (np.diff(s) <= 0).any():
            raise UserError(f"the sigmas of flow matching must be an increasing table of numbers in [0, 1]; got shape {s.shape}")
        made = cls([1.0, 0.0])
        made._settle((1 - s) ** 2 / ((1 - s) ** 2 + s**2), 1 - s, s, unit * s, is_flow=True)
        return made

    @classmethod
    def exploding(cls, sigmas: Float64[np.ndarray, "T"], times: Float64[np.ndarray, "T"]) -> "Schedule":
        """The schedule of a variance-exploding model, x_ve = x0 + sigma e: alpha_bar = 1 / (1 + sigma^2).

        sigmas: increasing, for images in [-1, 1]. times: the time that the network takes for each sigma.
        """
        made = cls(1 / (1 + sigmas**2))
        made._settle(made.alphas_cumprod, 1 / np.sqrt(1 + sigmas**2), sigmas / np.sqrt(1 + sigmas**2), times)
        return made

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def a(self, t: int) -> float:
        """The share of signal: sqrt(alpha_bar_t), or 1 - sigma_t."""
        return float(self.signal[t])

    def s(self, t: int) -> float:
        """The share of noise: sqrt(1 - alpha_bar_t), or sigma_t."""
        return float(self.noise[t])

    def add_noise(self, x0: Float[Tensor, "b *s"], t: int, noise: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """The image at timestep t: `q(x0, t, e) = a_t x0 + s_t e`.

        Args:
            x0: Clean images.
            t: A timestep in [0, T).
            noise: The noise e, like x0.

        Returns:
            The noisy images, like x0.
        """
        return self.a(t) * x0 + self.s(t) * noise

    def predict_x0(self, x_t: Float[Tensor, "b *s"], t: int, eps: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """The clean image that x_t and a predicted noise imply: `(x_t - s_t eps) / a_t`."""
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
