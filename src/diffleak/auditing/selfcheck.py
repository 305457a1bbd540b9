"""`diffleak selfcheck`: the installed attacks on two models whose leakage is known.

An exact memoriser must give AUC 1 for every attack; a model that knows nothing of the members must give one half within
the band that chance allows. Both go through the same audit as a real model. Attacks at one timestep need no calibrate part; those that
are a regression, `combined` and `gradient`, have one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffleak.auditing.run import Audit, audit
from diffleak.data.pixels import to_model
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.records.audit import Result
from diffleak.stats import evaluation

SIDE = 200  # images on each side, of which a regression has a fifth
SHAPE = (8, 8, 1)
TIMESTEP = 150
BAND = 3.3  # standard errors of the AUC under the null: 99.9 %


@dataclass(frozen=True)
class Check:
    """One attack's AUC on the memoriser (must be 1) and on the Gaussian (must be within `band` of one half)."""

    attack: str
    memoriser: float
    gaussian: float
    band: float

    @property
    def passed(self) -> bool:
        return self.memoriser == 1.0 and abs(self.gaussian - 0.5) <= self.band

    def __str__(self) -> str:
        both = f"memoriser {self.memoriser:.3f}  gaussian {self.gaussian:.3f} (0.5 ± {self.band:.3f})"
        return f"{self.attack:<18} {both}  {'ok' if self.passed else 'FAILED'}"


def selfcheck(seed: int = 0) -> tuple[Check, ...]:
    """Runs both models through `audit` and returns one check per attack."""
    rng = np.random.default_rng(seed)
    members, nonmembers = rng.integers(0, 256, (2, SIDE, *SHAPE), dtype=np.uint8)
    schedule = linear_schedule()
    memoriser = Memoriser(torch.from_numpy(to_model(members)).double(), schedule)
    gaussian = Gaussian(0.0, 1 / 3, schedule)
    sides: dict[str, Any] = {"members": members, "nonmembers": nonmembers, "seed": seed, "timesteps": str(TIMESTEP)}
    known, blank = (audit(model, attacks="all", calibration=False, **sides) for model in (memoriser, gaussian))
    pairs = [*zip(known.results, blank.results, strict=True)]
    known, blank = (audit(model, attacks=["loss", "sima", "gradient"], **sides) for model in (memoriser, gaussian))
    pairs += [(known["gradient"], blank["gradient"]), (_combined(known, seed), _combined(blank, seed))]
    return tuple(Check(k.attack, k.auc.value or 0.0, b.auc.value or 0.0, band(k)) for k, b in pairs)


def _combined(audited: Audit, seed: int) -> Result:
    """The regression on all attacks itself, also where an audit would prefer the best of them."""
    together = evaluation.combined([scores for scores in audited.scores if evaluation.may_be_combined(scores)], None)
    member = audited.samples.member
    return evaluation.evaluate_scores(
        together, member, evaluation.divided(together.ids, member, audited.record.split.calibrate_fraction, seed)
    )


def band(result: Result) -> float:
    """How far from one half an AUC may lie by chance: BAND standard errors under the null, by the numbers of images."""
    m, n = result.n_members, result.n_nonmembers
    return BAND * float(np.sqrt((m + n + 1) / (12 * m * n)))
