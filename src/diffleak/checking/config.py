"""The settings of `diffleak check`. No torch."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from diffleak.config import Flag, Seed, command_line
from diffleak.data.config import DataConfig, Split


class CheckConfig(DataConfig):
    """Everything that decides `diffleak check`; the keys of `-C FILE` and, with dashes, its flags."""

    FOLLOW = ["split output"]

    output: Annotated[Path | None, Flag("-o")] = Field(None, description="Folder of check.json and check.html.")
    members: str | None = Field(None, description="DATA that the model was, or will be, trained on.")
    nonmembers: str | None = Field(None, description="Held-out DATA from the same source.")
    data: str | None = Field(None, description="One DATA for both sides, with --split.")
    split: Split = None
    calibrate_fraction: float = Field(0.2, gt=0, lt=1, description="Share of each side that the audit chooses settings on ({default}).")
    seed: Seed = 0
    limit: int | None = Field(None, ge=1, description="At most this many images a side.")

    @field_validator("members", "nonmembers", "data", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _two_sides(self) -> "CheckConfig":
        pair, single = (self.members, self.nonmembers), (self.data, self.split)
        if any(pair) and any(single):
            raise ValueError("give --members and --nonmembers, or --data and --split, not both")
        if not all(pair) and not all(single):
            raise ValueError("the two sides must be given as --members and --nonmembers, or as --data with --split")
        return self

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        return command_line(self, "check", ())
