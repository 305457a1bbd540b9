"""The numbers after the wall: `Scores` of one attack and the `Samples` of a run. numpy only.

`Scores` holds the package's only sign flip: statistic -> "higher = more likely a member".
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

Direction = Literal["small", "large"]


@dataclass(frozen=True, eq=False)
class Scores:
    """One attack's statistics for every image and timestep, in the paper's own units.

    With a `rule` (see `diffleak.stats.rules`) the columns are components, of which the calibrate part makes a score;
    `timesteps` then counts them from 0.
    """

    attack: str
    direction: Direction
    timesteps: tuple[int, ...]
    ids: tuple[str, ...]
    statistic: Float64[np.ndarray, "n k"]
    rule: str | None = None

    @property
    def membership(self) -> Float64[np.ndarray, "n k"]:
        """Higher = more likely a member, component by component where there is a rule. The only sign flip of the package."""
        return self.statistic if self.direction == "large" else -self.statistic

    def taken(self, rows: Int64[np.ndarray, " m"]) -> "Scores":
        """The scores of the images in some rows, in the order of `rows`."""
        return replace(self, ids=tuple(self.ids[row] for row in rows), statistic=self.statistic[rows])


@dataclass(frozen=True, eq=False)
class Samples:
    """samples.csv: per image its side, its part and each attack's membership score at the chosen timestep or setting."""

    ids: tuple[str, ...]
    member: Bool[np.ndarray, " n"]
    test: Bool[np.ndarray, " n"]
    scores: dict[str, Float64[np.ndarray, " n"]]

    def sides(self, attack: str, test: bool | None = True) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " n"]]:
        """The attack's (members, nonmembers) of the test part, of the calibrate part, or of both (`test=None`)."""
        rows = np.ones(len(self.ids), dtype=bool) if test is None else self.test == test
        return self.scores[attack][rows & self.member], self.scores[attack][rows & ~self.member]

    def taken(self, rows: Int64[np.ndarray, " m"]) -> "Samples":
        """The images in some rows, in the order of `rows`."""
        scores = {attack: column[rows] for attack, column in self.scores.items()}
        return Samples(tuple(self.ids[row] for row in rows), self.member[rows], self.test[rows], scores)
