"""What an audit says about geometry: does leakage follow distortion, and distortion the image's frequencies? No torch.

Everything counts units (`diffleak.stats.units`), with the mean of their images' distortion and scores; a gallery shows images.
Quartiles of distortion are those of members and held-out images together. Everything about attacks is of the test part, at
timesteps that the calibrate part chose; of repeated divisions the first alone is used. (Rao, Qu and Moyer 2025, arXiv
2511.20592, sections 4.2 to 4.4 and appendix F.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from diffleak.geometry.frequencies import radius
from diffleak.records.audit import AUCAt, BandAt, FilterGain, Geometry, Quartile, Result
from diffleak.records.base import Estimate
from diffleak.records.scores import Scores, means
from diffleak.stats import metrics
from diffleak.stats.evaluation import Divisions, gain, on_first_split
from diffleak.stats.units import Units

DRAWS = 10  # random subsets in the band
SHOWN = 12  # images in a gallery
PREFERRED = "sima"  # the attack whose curves the paper shows
FEW_IN_A_QUARTER = "needs at least 2 members and 2 held-out images in the highest and in the lowest quarter"
NOTHING_SWEPT: "ByQuartile" = (), (), Estimate(reason="no attack that sweeps timesteps was run")

ByQuartile = tuple[tuple[Quartile, ...], tuple[BandAt, ...], Estimate]
Sides = tuple[Float64[np.ndarray, "_ k"], Float64[np.ndarray, "_ k"]]


def analyse(
    inputs: Any,
    measured: Float64[np.ndarray, "n 3"],
    results: Sequence[Result],
    scores: Sequence[Scores],
    units: Units,
    split: Divisions,
) -> Geometry:
    """The analyses of one run: `measured` holds distortion, low- and high-frequency energy; `scores` those of each result, of the images.

    `inputs` names the images (`cohort.ids`), their shape and what was measured (`top`, `probes`); `split` is of the units.
    """
    distortion, low, high = units.mean(measured).T
    member, test = units.member, ~split.calibrate[0]
    by_name = {r.attack: units.counting(s) for r, s in zip(results, scores, strict=True) if r.plain}
    first = lambda name: (on_first_split(by_name[name], member, split), by_name[name])
    swept = [name for name, s in by_name.items() if s.rule is None]
    shown = PREFERRED if PREFERRED in swept else next(iter(swept), None)
    quartiles, band, gap = NOTHING_SWEPT if shown is None else _by_quartile(*first(shown), distortion, member, test)
    order = np.lexsort((np.arange(len(measured)), measured[:, 0]))
    ids = inputs.cohort.ids
    return Geometry(
        top=inputs.top,
        probes=inputs.probes,
        attack=shown,
        quartiles=quartiles,
        band=band,
        high_minus_low=gap,
        distortion_auc=metrics.auc_estimate(distortion[member], distortion[~member]),
        radius=radius(inputs.shape.height, inputs.shape.width),
        low_frequency=correlation(distortion, low),
        high_frequency=correlation(distortion, high),
        highest=tuple(ids[i] for i in order[::-1][:SHOWN]),
        lowest=tuple(ids[i] for i in order[:SHOWN]),
        filters=tuple(
            FilterGain(attack=name, filtered=other, gain=gain(first(other), first(name), member, test, split.record.seed))
            for name, other in ((name, f"{name}_frequency") for name in ("loss", "pia"))
            if name in by_name and other in by_name
        ),
    )


def correlation(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> Estimate:
    """Pearson's r with Fisher's interval."""
    from scipy.stats import pearsonr

    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Estimate(reason="needs at least 4 images that differ")
    found = pearsonr(x, y)
    interval = found.confidence_interval(metrics.LEVEL)
    return Estimate(value=float(found.statistic), low=float(interval.low), high=float(interval.high), method="Fisher z")


def _by_quartile(
    result: Result, scores: Scores, distortion: Float64[np.ndarray, " n"], member: Bool[np.ndarray, " n"], test: Bool[np.ndarray, " n"]
) -> ByQuartile:
    bounds = np.quantile(distortion, [0, 0.25, 0.5, 0.75, 1])
    group = np.searchsorted(bounds[1:4], distortion, side="right")
    chosen = scores.timesteps.index(result.timestep or 0)
    membership = scores.membership if scores.unit is None else means(scores.membership, scores.unit)
    sides = [_sides(membership, test & (group == q), member) for q in range(4)]
    quartiles = tuple(
        Quartile(
            quartile=q + 1,
            low=float(bounds[q]),
            high=float(bounds[q + 1]),
            n_members=len(m),
            n_nonmembers=len(n),
            per_timestep=_curve(scores.timesteps, (m, n)),
            auc=metrics.auc_estimate(m[:, chosen], n[:, chosen]),
        )
        for q, (m, n) in enumerate(sides)
    )
    gap = metrics.auc_gap(*((m[:, chosen], n[:, chosen]) for m, n in (sides[3], sides[0])))
    gap = Estimate(reason=FEW_IN_A_QUARTER) if gap.value is None else gap
    return quartiles, _band(scores, _sides(membership, test, member)), gap


def _sides(membership: Float64[np.ndarray, "n k"], rows: Bool[np.ndarray, " n"], member: Bool[np.ndarray, " n"]) -> Sides:
    return membership[rows & member], membership[rows & ~member]


def _curve(timesteps: Sequence[int], sides: Sides) -> tuple[AUCAt, ...]:
    m, n = sides
    if not len(m) or not len(n):
        return ()
    return tuple(AUCAt(timestep=t, auc=metrics.auc(m[:, i], n[:, i])) for i, t in enumerate(timesteps))


def _band(scores: Scores, sides: Sides) -> tuple[BandAt, ...]:
    """AUCs of DRAWS random quarters of each side."""
    rng, curves = np.random.default_rng(0), []
    for _ in range(DRAWS):
        m, n = (side[rng.choice(len(side), len(side) // 4, replace=False)] for side in sides)
        curves.append([point.auc for point in _curve(scores.timesteps, (m, n))])
    values = np.array(curves)
    if not values.size:
        return ()
    means, deviations = values.mean(axis=0), values.std(axis=0, ddof=1)
    return tuple(
        BandAt(timestep=t, mean=float(mean), sd=float(sd)) for t, mean, sd in zip(scores.timesteps, means, deviations, strict=True)
    )
