"""prompts.json and prompts.csv: what each prompt scored, and how well the scores tell two lists apart. No torch.

Field names are the keys of prompts.json; changing one needs a step of SCHEMA_VERSION and a line in the changelog. What
cannot be estimated is null, with the reason beside it.
"""

import csv
import io
from typing import Literal

from diffleak.records.audit import Environment, Result
from diffleak.records.base import Record
from diffleak.records.scores import Direction

SCHEMA_VERSION: Literal[2] = 2  # 1: rates as in schema version 1 of audit.json
FILE, TABLE, PAGE = "prompts.json", "prompts.csv", "prompts.html"

Statistic = Literal["t_error", "magnitude"]
DIRECTIONS: dict[Statistic, Direction] = {"magnitude": "large", "t_error": "small"}  # which end means memorised


class PromptScore(Record):
    """What one prompt scored, averaged over its images; `memorised` is null where nobody said."""

    prompt: str
    memorised: bool | None
    t_error: float
    magnitude: float


class PromptsPlan(Record):
    """All that decides the scores; a folder belongs to one such plan."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    model: str
    model_fingerprint: str
    lora: str | None = None
    lora_scale: float | None = None
    prompts: int
    prompts_fingerprint: str
    images: int
    steps: int
    guidance_scale: float
    timestep: int
    k: int
    seed: int
    latent_shape: str
    dtype: str
    device: str


class PromptsCosts(Record):
    """Forwards of the denoiser of one image each, for all prompts; seconds of this call, without what was done before it."""

    forwards: int
    seconds: float


class PromptsRecord(Record):
    """prompts.json. `results` has one entry per statistic, named in its `attack`; none, with a `reason`, without two lists.

    Memorised prompts are the members of a result, ordinary ones the non-members. `prompts` are sorted by magnitude, largest
    first.
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    created: str
    command: str
    plan: PromptsPlan
    results: tuple[Result, ...]
    reason: str | None
    prompts: tuple[PromptScore, ...]
    warnings: tuple[str, ...]
    environment: Environment
    costs: PromptsCosts


def to_csv(record: PromptsRecord) -> str:
    """prompts.csv: prompt, memorised (1, 0 or empty), t_error, magnitude."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["prompt", "memorised", "t_error", "magnitude"])
    for row in record.prompts:
        writer.writerow([row.prompt, "" if row.memorised is None else int(row.memorised), repr(row.t_error), repr(row.magnitude)])
    return out.getvalue()
