"""gate.json: which limits a finished folder was checked against, and what came out. No torch.

Beside it the parts of other commands' files that a gate reads.
"""

from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ConfigDict

from diffleak.records.audit import Gate
from diffleak.records.base import Estimate, Record, Written, read_json
from diffleak.records.comparison import Quality
from diffleak.records.quality import ImageSet
from diffleak.work.files import hash_file
from diffleak.work.reading import Unreadable

FILE = "gate.json"
EPSILON = "epsilon.json"

R = TypeVar("R", bound=Record)


class CheckedFile(Record):
    """A file whose numbers were checked."""

    file: str
    """Path of the file below the folder."""
    sha256: str
    """SHA-256 of its bytes."""


class GateRecord(Written):
    """gate.json."""

    met: bool
    """True where every limit is met; of a sweep, by its last checkpoint."""
    limits: dict[str, float]
    """Each limit by its setting: rates and AUCs in [0, 1], epsilon at least 0."""
    checks: tuple[Gate, ...]
    """Each limit against each result, in the order of the limits."""
    last_passing: str | None = None
    """Of a sweep, name of the last checkpoint that meets every limit; null where none does, and for other folders."""
    files: tuple[CheckedFile, ...]
    """Files that were read, with their hashes."""
    warnings: tuple[str, ...] = ()
    """What a reader must know of the numbers in these files, a sentence each."""


class Gated(NamedTuple):
    """gate.json of a folder, and what it says of the folder as it is now."""

    record: GateRecord
    holds: bool
    """True where the files that were checked are still the same; else the numbers were measured again."""


class Share(Estimate):
    """A share in [0, 1] with its interval."""

    model_config = ConfigDict(extra="ignore")


class Measured(Quality):
    """The part of quality.json that a gate reads."""

    training: ImageSet | None = None
    """Training images that copies were looked for in; null without them."""


class Extracted(Record):
    """The part of extract.json that a gate reads."""

    model_config = ConfigDict(extra="ignore")

    copy_rate: Share
    """Share of the members that were given back, a fraction in [0, 1]."""
    model_fingerprint: str | None = None
    """Hash of the model's weights and settings; null where the file does not say it."""
    distinct_members: int | None = None
    """Number of members that the rate is of, near-duplicates counted once; null in files of earlier versions, where each counted."""


class Bound(Record):
    """The part of epsilon.json that a gate reads."""

    model_config = ConfigDict(extra="ignore")

    epsilon: float | None
    """Lower bound on epsilon, at least 0; null where there is none."""
    delta: float | None = None
    """Delta that the bound holds at, in (0, 1); null where the file does not say it."""
    reason: str | None = None
    """Why there is no bound, in words; null where there is one."""
    model_fingerprint: str | None = None
    """Hash of the model's weights and settings; null where the file does not say it."""


def read_part(path: Path, kind: type[R], command: str) -> R:
    """The part of another command's file that a gate reads; raises `UserError` for a file that does not hold it."""
    return read_json(path, kind, must=f"must be as `diffleak {command}` writes it", advice="repeat that command")


def read_gate(folder: Path) -> Gated | None:
    """The last check of a folder, None where there is none; raises `UserError` for a file that cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    record = read_json(path, GateRecord, advice="repeat diffleak gate, which writes it again")
    return Gated(record, all(_same(folder / each.file, each.sha256) for each in record.files))


def _same(path: Path, sha256: str) -> bool:
    try:
        return hash_file(path) == sha256
    except Unreadable:
        return False
