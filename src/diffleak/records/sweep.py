"""The record of a sweep over the checkpoints of a training: sweep.json. Field names are its keys. No torch here."""

from pathlib import Path
from typing import Literal

from diffleak.records.audit import Gate, RateAtFPR
from diffleak.records.base import Configured, Estimate, Record, read_json
from diffleak.records.comparison import Difference

FILE = "sweep.json"


class Point(Record):
    """One checkpoint, by the attack that its calibrate part chose."""

    name: str
    """Name of the checkpoint, which its run folder has too."""
    run: str
    """Folder of its run, relative to that of the sweep."""
    checkpoint: str
    """Path of the adapter, of the network or of the model."""
    step: int
    """Number of training steps, or of epochs, as `step_source` says."""
    attack: str
    """Label of the attack with the highest AUC on the calibrate part, or on the test part where there is no calibrate part."""
    timestep: int | None
    """Timestep that the calibrate part chose, in [0, T); null where the attack has a rule."""
    auc: Estimate
    """AUC of that attack on the test part, in [0, 1]; 0.5 is guessing."""
    tpr_at_1pct: RateAtFPR
    """TPR of that attack at 1 % false positives, a fraction in [0, 1]."""
    wrong_way: str | None = None
    """Label of an attack whose scores clearly separate the sides against its direction; null where there is none.

    Records of earlier versions lack it, though there may be one.
    """
    difference: Difference | None
    """That attack minus the one of the checkpoint before, on the same images; null for the first checkpoint."""
    gates: tuple[Gate, ...]
    """Limits that the user set, one entry per limit and attack; empty without limits."""
    passed: bool | None
    """True where every limit is met; null without limits."""


class SweepRecord(Configured):
    """sweep.json."""

    swept: Literal["lora", "network", "model"]
    """Setting that differs between the checkpoints."""
    step_source: str
    """Where the steps are from, in words."""
    members: int
    """Number of members in each audit, or of groups of members."""
    nonmembers: int
    """Number of held-out images in each audit, or of held-out groups."""
    chosen_on: Literal["calibrate", "test"]
    """Part that each checkpoint's attack was chosen on; "test" flatters the attacker."""
    points: tuple[Point, ...]
    """Each checkpoint, in the order of the steps."""
    last_passing: str | None
    """Name of the last checkpoint that meets every limit; null without limits, and where none does."""
    warnings: tuple[str, ...]
    """What a reader must know of the numbers, a sentence each."""

    @property
    def limited(self) -> bool:
        """True where limits were set."""
        return self.points[0].passed is not None


def read_sweep(folder: Path) -> SweepRecord:
    """The record of a finished sweep; raises `UserError` for a damaged one."""
    return read_json(folder / FILE, SweepRecord, advice="repeat its audit command, which writes it again")
