"""What every record is made of: the schema version, the base class and the estimate with its interval. No torch."""

from datetime import UTC, datetime
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from diffleak.errors import UserError, shown
from diffleak.work.reading import Unreadable, load_json, parsing

SCHEMA_VERSION: Literal[2] = 2  # 1: rates at a false-positive rate that allowed one false alarm less than they may
FORMER_NAME = "leakscope"  # of this package: a key in files of version 0.1, which are still read
Version = Annotated[str, Field(validation_alias=AliasChoices("diffleak", FORMER_NAME))]  # of this package
MOST_OFTEN = "over repeated splits, the value chosen most often"  # marks a field that is no median then; every other number is


class Record(BaseModel):
    """Base of everything that is written: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Estimate(Record):
    """A number with its interval."""

    value: float | None = None
    """Point estimate, in the unit of the field that holds it; null where it cannot be estimated."""
    low: float | None = None
    """Lower end of the 95 % interval; null where there is no interval."""
    high: float | None = None
    """Upper end of the 95 % interval; null where there is no interval."""
    method: str | None = None
    """Method of the interval, in words; null where there is no interval."""
    reason: str | None = None
    """Why there is no value or no interval, in words; null where both are there."""


class Written(Record):
    """What most records of a command begin with."""

    schema_version: Literal[1] = 1
    """Version of these fields."""
    diffleak: Version
    """Version of this package."""
    created: str
    """Time in UTC at which the record was written, as ISO 8601."""
    command: str
    """Command line that repeats it."""


class Configured(Written):
    """The same of a command whose settings are recorded."""

    settings: dict[str, Any]
    """Every setting of the command by its name."""


def now() -> str:
    """The time in UTC as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def written(command: str) -> dict[str, Any]:
    """The fields of `Written` in a record that is made now."""
    return {"diffleak": version("diffleak"), "created": now(), "command": command}


R = TypeVar("R", bound=Record)


def read_json(path: Path, kind: type[R], what: str = "", must: str = "", advice: str = "") -> R:
    """The record in a JSON file; raises `UserError` for a file that cannot be read, or that holds no such record.

    what: words before the path in the first message. must: what the file must be, in the second one. advice: what to do, in both.
    """
    then = f"; {advice}" if advice else ""
    try:
        record = kind.model_validate(load_json(path))
        with parsing():
            if flaw := _flaw(record):
                raise Unreadable(f"it holds {flaw}")
        return record
    except Unreadable as error:
        raise UserError(f"{what}{path} cannot be read ({error}){then}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{shown(where)}: {shown(first['msg'], 120)}" if where else shown(first["msg"], 120)
        must = must or f"cannot be read as schema version {kind.model_fields['schema_version'].default}"
        raise UserError(f"{path} {must} ({reason}){then}") from None


def _flaw(value: Any) -> str | None:
    """What no record holds, though its types allow it, in a record and all that is in it; None where there is no such thing."""
    if isinstance(value, Estimate) and value.value is None and (value.low, value.high) != (None, None):
        return "an interval without its value"
    if isinstance(value, BaseModel | dict | list | tuple):
        inner = vars(value).values() if isinstance(value, BaseModel) else value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_flaw, inner)), None)
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a number of more than 64 bits"
    return "NaN or infinity, for which a record has null" if isinstance(value, float) and not isfinite(value) else None
