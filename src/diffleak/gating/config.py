"""The limits that a user may set, and the settings of `diffleak gate`. No torch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from diffleak.config import Config

MaxAUC = Annotated[float | None, Field(ge=0, le=1, description="Gate: exit 3 if any attack's AUC may exceed this.")]
MaxTPR = Annotated[float | None, Field(ge=0, le=1, description="Gate: exit 3 if any TPR at 1 % FPR may exceed this.")]
MaxExcessAUC = Annotated[
    float | None, Field(ge=0, le=1, description="Gate: exit 3 if any attack's AUC beyond the --reference may exceed this.")
]


class GateConfig(Config):
    """The settings of `diffleak gate`: a finished folder and its limits."""

    ARGUMENT = "run"

    run: Path = Field(description="The folder of a finished audit, sweep, comparison, quality measurement or extraction.")
    max_auc: MaxAUC = None
    max_tpr: MaxTPR = None
    max_excess_auc: MaxExcessAUC = None
    max_copies: float | None = Field(
        None, ge=0, le=1, description="Gate: exit 3 if the share of copies in quality.json or extract.json may exceed this."
    )
    max_epsilon: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Gate: exit 3 if the lower bound in epsilon.json exceeds this."
    )

    @model_validator(mode="after")
    def _some_limit(self) -> "GateConfig":
        limits = [name for name in type(self).model_fields if name.startswith("max_")]
        if all(getattr(self, name) is None for name in limits):
            raise ValueError(f"a gate needs a limit: give {', '.join('--' + name.replace('_', '-') for name in limits)}, or several")
        return self
