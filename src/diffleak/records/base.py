"""What every record is made of: the schema version, the base class and the estimate with its interval. No torch."""

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[2] = 2  # 1: rates at a false-positive rate that allowed one false alarm less than they may
FORMER_NAME = "leakscope"  # of this package: a key in files of version 0.1, which are still read
Version = Annotated[str, Field(validation_alias=AliasChoices("diffleak", FORMER_NAME))]  # of this package
MOST_OFTEN = "over repeated splits, the value chosen most often"  # marks a field that is no median then; every other number is


class Record(BaseModel):
    """Base of everything that is written: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Estimate(Record):
    """A number with its 95 % interval and the method of the interval; null with a `reason` where there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    method: str | None = None
    reason: str | None = None
