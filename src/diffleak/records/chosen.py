"""chosen.json: the timesteps that the calibrate part of an audit chose, at which alone its test part is scored. No torch."""

from pathlib import Path
from typing import Literal

from diffleak.records.base import Record
from diffleak.records.plan import Plan, Split
from diffleak.records.scores import Unit, plan_id
from diffleak.work.files import write_text

FILE = "chosen.json"


class Chosen(Record):
    """What the calibrate part chose for the test part; it follows from the scores of the calibrate part."""

    schema_version: Literal[1] = 1
    """Version of these fields."""
    plan: str
    """SHA-256 of the plan of the run (see `diffleak.records.scores.plan_id`)."""
    members: int
    """Number of members that chose."""
    nonmembers: int
    """Number of held-out images that chose."""
    unit: Unit = "image"
    """What these numbers count: images, clusters of near-duplicate images, or groups of images."""
    timesteps: dict[str, tuple[int, ...]]
    """Timesteps, in [0, T), at which the test part is scored, by the label of each attack that sweeps."""


def chosen_by(plan: Plan, split: Split, timesteps: dict[str, tuple[int, ...]]) -> Chosen:
    """The record of the timesteps that the calibrate part of a plan's audit chose."""
    return Chosen(
        plan=plan_id(plan), members=split.calibrate_members, nonmembers=split.calibrate_nonmembers, unit=split.unit, timesteps=timesteps
    )


def write_chosen(folder: Path, chosen: Chosen) -> None:
    """Writes chosen.json into the folder of an audit."""
    write_text(folder / FILE, chosen.model_dump_json(indent=2))
