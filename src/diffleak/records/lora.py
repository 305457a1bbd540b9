"""lora.json: which checkpoints of an adapter may be published. Field names are its keys. No torch here."""

from pathlib import Path
from typing import Literal

from diffleak.records.audit import Gate, RateAtFPR
from diffleak.records.base import Configured, Estimate, Record, read_json
from diffleak.records.headers import GivenAway
from diffleak.records.quality import ONE_BY_ONE

FILE = "lora.json"
PAGE = "lora.html"
AUDITS = "audits"  # the folder in that of `lora` where the audits of its checkpoints are

ALPHA = 0.05  # above which a number of pictures is no more than chance brings

Decision = Literal["publish", "do not publish", "undecided"]


class Excess(Record):
    """What an adapter leaks beyond its base, by the attack that the calibrate part chose among those on the excess."""

    attack: str
    """Label of the attack, such as sima[excess]."""
    auc: Estimate
    """AUC of the excess on the test part, in [0, 1]; 0.5 is guessing."""
    tpr_at_1pct: RateAtFPR
    """TPR of the excess at 1 % false positives, a fraction in [0, 1]."""
    gates: tuple[Gate, ...]
    """The limit against every attack on the excess."""


class Redrawn(Record):
    """How near an adapter's drawings come to the pictures, beside the base's drawings for the same captions, seeds and steps."""

    pictures: int | None = None
    """Number of pictures that were compared, near-duplicates counted once; null in records of earlier versions, where all were."""
    nearer: int
    """Number of pictures with a drawing nearer to them than any drawing of the base is to its picture."""
    p_value: float
    """Probability in (0, 1] of so many or more if the adapter drew no nearer than the base: 2 to the power of -nearer."""
    closest: float
    """Distance of the picture nearest to a drawing, in [0, 2]; 0 is equal."""
    closest_of_base: float
    """The same distance to the base's drawings, in [0, 2]."""
    nearest: tuple[str, ...]
    """Ids of the counted pictures, the nearest first."""

    @property
    def look_first(self) -> bool:
        """True where more pictures than chance brings are drawn nearer than the base ever draws."""
        return self.p_value < ALPHA


class Checkpoint(Record):
    """One adapter."""

    name: str
    """Name of the checkpoint, which its folder has too."""
    path: str
    """Path of the adapter."""
    step: int | None
    """Number of training steps, or of epochs, as `step_source` says; null for an adapter alone."""
    run: str
    """Folder of its audit, or of its drawings, relative to that of this record."""
    excess: Excess | None
    """Its leak beyond the base; null without held-out pictures."""
    redrawn: Redrawn | None
    """Its drawings beside those of the base; null with held-out pictures."""
    header: GivenAway | None
    """What the header of its file gives away; null for a file without one."""
    decision: Decision
    """Answer for this checkpoint, of what was measured; its header aside."""
    reason: str
    """Why, in words."""


class LoraRecord(Configured):
    """lora.json."""

    base: str
    """Model that the adapters were made for, as the user named it."""
    pictures: int
    """Number of pictures that the adapters were trained on."""
    found: str
    """Where captions and labels of the pictures were found, in words."""
    repeats: dict[str, int]
    """Number of repeats in an epoch by folder, as the names of kohya's folders say them; empty without such names."""
    captions: str
    """Choice of captions: "own", "fixed:TEXT", "empty" or a file."""
    held_out: int | None
    """Number of held-out pictures that were given, near-duplicates too; null without them."""
    max_excess_auc: float | None
    """Limit of the AUC of the excess, in [0, 1], for a checkpoint to be published; null without held-out pictures."""
    step_source: str | None
    """Where the steps are from, in words; null for an adapter alone."""
    checkpoints: tuple[Checkpoint, ...]
    """Each checkpoint, in the order of the steps."""
    answer: str
    """Which checkpoints may be published as they are, which not, and what is undecided, in words."""
    warnings: tuple[str, ...]
    """What a reader must know, a sentence each."""


def read_lora(folder: Path) -> LoraRecord:
    """The record in a folder, with a warning where an earlier version counted otherwise; raises `UserError` for a damaged one."""
    record = read_json(folder / FILE, LoraRecord, advice="repeat its command, which writes it again")
    if all(each.redrawn is None or each.redrawn.pictures is not None for each in record.checkpoints):
        return record
    said = f"the numbers under Drawn closer, and the answers that rest on them, are {ONE_BY_ONE}: repeat the command with another -o"
    return record.model_copy(update={"warnings": (*record.warnings, said)})
