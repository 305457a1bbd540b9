"""The input of a variance-exploding model's network, and the noise that its output implies.

Such a model adds noise without scaling the image down, x_ve = x0 + sigma e. With alpha_bar = 1 / (1 + sigma^2), x_ve = x_t / a_t, so the
rest of the package works on x_t as for any other model. Each kind of network has its own affine input and output:

    f = network(in_t x_t + shift, time_t),      eps = x_t from_x_t + f from_f_t

Song et al. 2021, arXiv 2011.13456 (variance exploding); Karras et al. 2022, arXiv 2206.00364, eq. 7 and table 1 (EDM).
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

Table = Float64[np.ndarray, "T"]
ROUNDING = 1e-6  # schedulers compute the same table in float32, each in its own order


@final
@dataclass(frozen=True, eq=False)
class Preconditioning:
    """The factors of the module's docstring for every timestep."""

    into: Table
    from_x: Table
    from_f: Table
    shift: float = 0.0

    @classmethod
    def score(cls, sigmas: Table, unit_range: bool) -> "Preconditioning":
        """A network that predicts the score of x_ve: eps = -sigma f.

        sigmas: for images in [-1, 1]. unit_range: the network's own images lie in [0, 1], so that its x_ve is (x_t / a_t + 1) / 2 and its
        sigma is sigma / 2.
        """
        half = 0.5 if unit_range else 1.0
        return cls(half * np.sqrt(1 + sigmas**2), np.zeros_like(sigmas), -half * sigmas, 1 - half)

    @classmethod
    def edm(cls, sigmas: Table, sigma_data: float, v_prediction: bool) -> "Preconditioning":
        """EDM: x0 = c_skip x_ve + c_out f(c_in x_ve); with `v_prediction` c_out has the other sign.

        c_skip = d^2 / (sigma^2 + d^2), c_out = sigma d / sqrt(sigma^2 + d^2), c_in = 1 / sqrt(sigma^2 + d^2), d = sigma_data.
        """
        total = sigmas**2 + sigma_data**2
        grown = np.sqrt(1 + sigmas**2)
        sign = 1.0 if v_prediction else -1.0
        return cls(grown / np.sqrt(total), grown * sigmas / total, sign * sigma_data / np.sqrt(total))

    @property
    def tables(self) -> tuple[np.ndarray, ...]:
        """All its factors."""
        return self.into, self.from_x, self.from_f, np.array(self.shift)

    def equals(self, other: "Preconditioning | None") -> bool:
        """True if the other has the same factors, up to the rounding of the sigmas."""
        pairs = [] if other is None else [*zip(self.tables, other.tables, strict=True)]
        return bool(pairs) and all(one.shape == two.shape and np.allclose(one, two, rtol=ROUNDING, atol=ROUNDING) for one, two in pairs)

    def given(self, x_t: Float[Tensor, "b *s"], t: int) -> Float[Tensor, "b *s"]:
        """The network's input for x_t: `in_t x_t + shift`."""
        return float(self.into[t]) * x_t + self.shift

    def noise(self, f: Float[Tensor, "b *s"], x_t: Float[Tensor, "b *s"], t: int) -> Float[Tensor, "b *s"]:
        """The noise that the network's output f implies: `x_t from_x_t + f from_f_t`."""
        return float(self.from_x[t]) * x_t + float(self.from_f[t]) * f
