"""The settings of `diffleak defend`: those of `diffleak train`, and what a defence adds."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from diffleak.config import build, read_yaml
from diffleak.diffusion.dual import Choice
from diffleak.training.config import TrainConfig, train_settings

Method = Literal["dual", "distill", "one-teacher"]


class DefendConfig(TrainConfig):
    """Everything that decides a defence: the settings of `diffleak train`, which all its models share, and these.

    `steps` holds for teachers and student alike unless `teacher_steps` or `student_steps` say otherwise. `teachers` are
    folders that are trained already; `halves` then says what on, where their own split.json does not.
    """

    method: Method
    teachers: tuple[Path, ...] = ()
    halves: Path | None = None
    near_duplicates: float = Field(0.03, ge=0, le=1)
    teacher_steps: int | None = Field(None, ge=1)
    student_steps: int | None = Field(None, ge=1)
    choice: Choice = "alternate"
    side_by_side: bool | None = None

    @model_validator(mode="after")
    def _no_yardsticks(self) -> "DefendConfig":
        if self.validation or self.private:
            which = "--validation" if self.validation else "DP-SGD"
            raise ValueError(f"{which} is another defence to compare with, not a part of this one; train it by diffleak train")
        if self.lora_rank:
            raise ValueError("teachers and students are whole models; leave out --lora-rank")
        if self.kind == "text-to-image" and not self.base:
            raise ValueError("the models of a text-to-image defence must start from one model, as --base MODEL; train that first")
        return self


def defend_config(method: str, preset: str | None = None, file: Path | None = None, **flags: Any) -> DefendConfig:
    """The settings of a preset, then of a YAML file, then of the flags; with given teachers, a model like theirs."""
    given = flags.get("teachers") or (read_yaml(file).get("teachers") if file else None)
    if isinstance(given, str):
        given = flags["teachers"] = tuple(Path(part.strip()) for part in given.split(",") if part.strip())
    layers = train_settings(preset, file, {**flags, "method": method})
    if given and preset is None and file is None:
        layers = ({key: value for key, value in layers[0].items() if key not in ("model", "scheduler")}, *layers[1:])
    return build(DefendConfig, *layers)
