"""Noise aggregation: add a little noise once, walk down with DDIM, and see how tightly the k predictions cluster.

    x_t = a_t x0 + sigma s_t e;   e_i = eps(x_{t-im}, t - im),  x_{t-(i+1)m} = ddim(x_{t-im}, e_i),   i = 0 ... k-1
    score = -log(D + 1e-12),  D the dispersion of e_0 ... e_{k-1}; high means member

The paper says "sigma = 0.1" and writes x_t = a_t x0 + s_t e. `sigma_scale` has the three readings of it:

    fixed       the noise that is added is 0.1 e
    relative    e has standard deviation 0.1, so it is 0.1 s_t e
    schedule    it is the schedule's own, s_t e, which at t = 80 is 0.265 e

Relative is the default: with the noise of fixed, several times as much at small t, a memorised image's predictions spread more than
others' (studies/README.md).

Li, Yu and Xu 2025, "Noise aggregation analysis driven by small-noise injection", arXiv 2510.21783.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, lgamma
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.attacks.base import Attack, Direction, Masks
from diffleak.attacks.subject import Subject
from diffleak.diffusion.devices import float64
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError, unknown

FLOOR = 1e-12
METRICS = ("l2", "l1", "centroid", "density", "hull")
SCALES = ("fixed", "relative", "schedule")

Predictions = Float64[Tensor, "k b d"]


@final
@dataclass(frozen=True, kw_only=True)
class NoiseAggregation(Attack):
    """How closely the noise predictions at neighbouring timesteps agree. Close agreement means member.

    Formula: `-log(D + 1e-12)`, D the dispersion of the predictions along DDIM.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        k: Predictions, at least 2.
        stride: Timesteps between two of them.
        sigma: How much noise is added once.
        sigma_scale: What sigma is relative to: "fixed" (sigma e), "relative" (sigma s_t e) or "schedule" (s_t e).
        metric: l2 (mean pairwise squared distance), l1 (mean pairwise L1 distance), centroid (mean distance to the mean), density (one over
            the mean Gaussian kernel of the pairs), hull (volume of the simplex that the k points span).
        bandwidth: Of the kernel: the median distance over unlabelled calibration images at each timestep; empty until `prepared` has
            measured it.

    Source:
        Li, Yu and Xu 2025, arXiv 2510.21783.
    """

    k: int = 5
    stride: int = 10
    sigma: float = 0.1
    sigma_scale: str = "relative"
    metric: str = "l2"
    bandwidth: tuple[float, ...] = ()

    name: ClassVar[str] = "noise_aggregation"
    direction: ClassVar[Direction] = "large"
    source: ClassVar[str] = "Li et al. 2025, arXiv 2510.21783"
    published_timestep: ClassVar[int | None] = 80
    logarithmic: ClassVar[bool] = True
    unlabelled: ClassVar[str] = "bandwidth"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 2 or self.stride < 1 or not 0 <= self.sigma < inf:
            raise UserError(f"noise_aggregation needs k >= 2, stride >= 1 and sigma >= 0; got {self.k}, {self.stride}, {self.sigma}")
        if self.metric not in METRICS:
            raise unknown("metric of noise_aggregation", self.metric, METRICS)
        if self.sigma_scale not in SCALES:
            raise unknown("sigma_scale of noise_aggregation", self.sigma_scale, SCALES)

    @property
    def queries(self) -> int:
        return len(self.timesteps) * self.k

    @property
    def needs_preparation(self) -> bool:
        return self.metric == "density" and len(self.bandwidth) != len(self.timesteps)

    def usable(self, t: int, schedule: Schedule) -> bool:
        return (self.k - 1) * self.stride <= t < len(schedule)

    def why_unusable(self, t: int, schedule: Schedule) -> str:
        depth = (self.k - 1) * self.stride
        return f"noise_aggregation walks down {depth} timesteps (k - 1 strides), so t must be at least {depth}"

    def prepared(self, subject: Subject) -> "NoiseAggregation":
        if not self.needs_preparation:
            return self
        medians = [_pair_distances(self._predictions(subject, t)).quantile(0.5) for t in self.timesteps]
        return replace(self, bandwidth=tuple(float(m) for m in medians))

    def statistics(self, subject: Subject, mask: Float[Tensor, "b *s"] | None = None) -> Float64[Tensor, "k b"]:
        return self.masked_statistics(subject, (mask,))[0]

    def masked_statistics(self, subject: Subject, masks: Masks = (None,)) -> Float64[Tensor, "m k b"]:
        if self.needs_preparation:
            raise UserError("noise_aggregation(metric=density) needs its bandwidth: call prepared() with calibration images first")
        lost = [t for t in self.timesteps if not self.usable(t, subject.schedule)]
        if lost:
            raise UserError(f"timestep {lost[0]} cannot be used: {self.why_unusable(lost[0], subject.schedule)}")
        scores = []
        for i, t in enumerate(self.timesteps):
            predictions = self._predictions(subject, t)
            bandwidth = self.bandwidth[i] if self.metric == "density" else 0.0
            kept = [predictions if mask is None else predictions * float64(mask).flatten(start_dim=1) for mask in masks]
            scores.append(torch.stack([-torch.log(_dispersion(self.metric, e, bandwidth) + FLOOR) for e in kept]))
        return torch.stack(scores, dim=1)

    @property
    def takes_masks(self) -> bool:
        return self.metric != "density"  # its bandwidth is that of whole predictions

    def _predictions(self, subject: Subject, start: int) -> Predictions:
        schedule = subject.schedule
        sigma = {"fixed": self.sigma, "relative": self.sigma * schedule.s(start), "schedule": schedule.s(start)}[self.sigma_scale]
        x_t = schedule.a(start) * subject.x0 + sigma * subject.noise(0)
        walk = [start - i * self.stride for i in range(self.k)]
        collected = []
        for t, u in zip(walk, [*walk[1:], None], strict=True):
            eps = subject.eps(x_t, t)
            collected.append(eps)
            if u is not None:
                x_t = schedule.ddim(x_t, eps, t, u)
        return float64(torch.stack(collected)).flatten(start_dim=2)


def _dispersion(metric: str, e: Predictions, bandwidth: float) -> Float64[Tensor, " b"]:
    measures: dict[str, Callable[[], Tensor]] = {
        "l2": lambda: _pairs(e, lambda d: d.square().sum(dim=-1)).mean(dim=0),
        "l1": lambda: _pairs(e, lambda d: d.abs().sum(dim=-1)).mean(dim=0),
        "centroid": lambda: (e - e.mean(dim=0)).norm(dim=-1).mean(dim=0),
        "density": lambda: 1 / torch.exp(-_pair_distances(e).square() / (2 * max(bandwidth, FLOOR) ** 2)).mean(dim=0).clamp_min(FLOOR),
        "hull": lambda: _simplex_volume(e),
    }
    return measures[metric]()


def _pairs(e: Predictions, distance: Callable[[Tensor], Tensor]) -> Float64[Tensor, "pairs b"]:
    return torch.stack([distance(e[i] - e[j]) for i, j in combinations(range(len(e)), 2)])


def _pair_distances(e: Predictions) -> Float64[Tensor, "pairs b"]:
    return _pairs(e, lambda d: d.norm(dim=-1))


def _simplex_volume(e: Predictions) -> Float64[Tensor, " b"]:
    """sqrt(det(edge Gram matrix)) / (k - 1)!, the volume of the simplex with corners e_0 ... e_{k-1}."""
    edges = (e[1:] - e[0]).transpose(0, 1)
    logdet = torch.linalg.slogdet(edges @ edges.transpose(1, 2)).logabsdet
    return torch.exp(0.5 * logdet - lgamma(len(e)))
