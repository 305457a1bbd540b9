"""The limits that a user may set, and the settings of `diffleak gate`. No torch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from diffleak.config import Config

MaxAUC = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="Exit 3 unless the 95 % interval of every attack's AUC lies between 1 minus this limit and the limit; "
        "of an excess only its upper end counts.",
    ),
]
MaxTPR = Annotated[float | None, Field(ge=0, le=1, description="Exit 3 if the 95 % interval of any TPR at 1 % FPR reaches above this.")]
MaxExcessAUC = Annotated[
    float | None,
    Field(ge=0, le=1, description="Exit 3 if the 95 % interval of any attack's AUC beyond the --reference reaches above this."),
]


class GateConfig(Config):
    """The settings of `diffleak gate`: a finished folder and its limits."""

    ARGUMENT = "run"

    run: Path = Field(description="The folder of a finished audit, audit of checkpoints, compare, quality or extract.")
    max_auc: MaxAUC = None
    max_tpr: MaxTPR = None
    max_excess_auc: MaxExcessAUC = None
    max_copies: float | None = Field(
        None, ge=0, le=1, description="Exit 3 if the 95 % interval of the copy rate in quality.json or extract.json reaches above this."
    )
    max_epsilon: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Exit 3 if the lower bound in epsilon.json is above this. The true epsilon can be above it even if the bound is not.",
    )

    @model_validator(mode="after")
    def _some_limit(self) -> "GateConfig":
        limits = [name for name in type(self).model_fields if name.startswith("max_")]
        if all(getattr(self, name) is None for name in limits):
            raise ValueError(f"a gate needs a limit: give {', '.join('--' + name.replace('_', '-') for name in limits)}, or several")
        return self
