"""The settings of `diffleak defend`: those of `diffleak train`, and what a defence adds. No torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from diffleak.config import Flag, Text, build
from diffleak.data.config import SPLIT_FILES
from diffleak.diffusion import Choice
from diffleak.training.config import TrainConfig, train_settings

Method = Literal["dual", "distill", "one-teacher"]


class DefendConfig(TrainConfig):
    """Everything that decides a defence: the settings of `diffleak train`, which all its models share, and these.

    `steps` holds for teachers and student alike unless `teacher_steps` or `student_steps` say otherwise. `teachers` are
    folders that are trained already; `halves` then says what on, where their own split.json does not.
    """

    ARGUMENT = "method"
    INPUTS = {"teachers": "folder", "halves": "file"}
    NO_FLAG = TrainConfig.NO_FLAG | {
        *("lora_rank", "kl_weight", "max_grad_norm", "validation", "patience"),
        *("dp_epsilon", "dp_delta", "dp_noise_multiplier", "dp_max_grad_norm"),
    }
    FOLLOW = ["config teachers halves near_duplicates group choice", "steps teacher_steps student_steps side_by_side"]
    HELP = {
        "output": "Folder of the teachers, and of the student or the dual model.",
        "autoencoder": "Train on the latents of this folder's vae/ or vqvae/.",
        "train_size": "Train on this many images; the rest is held out.",
        "split": f"Train on the members of this split file: {SPLIT_FILES}.",
        "steps": "Training steps of every model.",
        "ema_decay": "Save exponential moving averages of the weights.",
        "threads": "CPU threads of each training process.",
    }

    method: Method = Field(description="dual, distill, or the control one-teacher.")
    teachers: tuple[Path, ...] = Field(
        (), description="Teachers that are trained already: their folders, as A,B (one-teacher: A). The student gets their architecture."
    )
    halves: Path | None = Field(
        None,
        description='What the --teachers were trained on, if their split.json does not say it: JSON {"halves": [[ID, ...], [ID, ...]]}.',
    )
    near_duplicates: float = Field(
        0.03,
        ge=0,
        le=1,
        description="Images whose thumbnails differ by less than this, as an RMS in [0, 1], stay together in one half ({default}).",
    )
    group: Text | None = Field(
        None,
        description="Column of the metadata, such as person: keep images of one value in one half, for audits and compare with --group.",
    )
    teacher_steps: int | None = Field(None, ge=1, description="Training steps of each teacher; default --steps.")
    student_steps: int | None = Field(None, ge=1, description="Training steps of the student; default --steps.")
    choice: Choice = Field("alternate", description="How the two models of DualMD take turns: {default} (default) or random.")
    side_by_side: Annotated[bool | None, Flag("--one-by-one")] = Field(
        None, description="Train both teachers at once (default, if there are cores or devices for both), or one by one."
    )

    @field_validator("teachers", mode="before")
    @classmethod
    def _split_teachers(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _no_yardsticks(self) -> "DefendConfig":
        if self.validation or self.private:
            which = "--validation" if self.validation else "DP-SGD"
            raise ValueError(f"{which} is another defence to compare with, not a part of this one; train it by diffleak train")
        if self.lora_rank:
            raise ValueError("teachers and students are whole models: leave out lora_rank, and the preset lora")
        if self.teachers and self.group is not None:
            raise ValueError("--group draws the halves, and --teachers were trained on theirs: leave out --group")
        if self.kind == "text-to-image" and not self.base:
            raise ValueError("the models of a text-to-image defence must start from one model, as --base MODEL; train that first")
        return self


def defend_config(method: str, preset: str | None = None, file: Path | None = None, **flags: Any) -> DefendConfig:
    """The settings of a preset, then of a YAML file, then of the flags; with given teachers, a model like theirs.

    Args:
        method: "dual", "distill" or "one-teacher".
        preset: "digits", "small", "ddpm" or "latent"; None for "small".
        file: A YAML file with any of the settings.
        **flags: Settings of `DefendConfig`, which win.

    Returns:
        The settings for `defend`.

    Raises:
        UserError: For a setting that does not exist or does not fit the others.
    """
    layers = train_settings(preset, file, {**flags, "method": method})
    if flags.get("teachers") and preset is None and file is None:
        layers = ({key: value for key, value in layers[0].items() if key not in ("model", "scheduler")}, *layers[1:])
    return build(DefendConfig, *layers)
