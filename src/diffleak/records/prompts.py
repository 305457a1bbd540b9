"""prompts.json and prompts.csv: what each prompt scored, and how well the scores tell two lists apart. No torch.

Field names are the keys of prompts.json; changing one needs a step of SCHEMA_VERSION and a line in the changelog. What
cannot be estimated is null, with the reason beside it.
"""

import csv
import io
from typing import Literal

from diffleak.records.audit import Result
from diffleak.records.base import Record
from diffleak.records.plan import Environment
from diffleak.records.scores import Direction

SCHEMA_VERSION: Literal[2] = 2  # 1: rates as in schema version 1 of audit.json
FILE, TABLE, PAGE = "prompts.json", "prompts.csv", "prompts.html"

Statistic = Literal["t_error", "magnitude"]
DIRECTIONS: dict[Statistic, Direction] = {"magnitude": "large", "t_error": "small"}  # which end means memorised


class PromptScore(Record):
    """What one prompt scored, averaged over its images."""

    prompt: str
    """The text of the prompt."""
    memorised: bool | None
    """True on the list of memorised prompts, false on that of ordinary ones; null where there are no two lists."""
    t_error: float
    """SecMI's t-error of the images that the prompt draws, a squared distance of at least 0; small for memorised prompts."""
    magnitude: float
    """Norm of the difference that the text makes to the noise prediction, at least 0; large for memorised prompts."""


class PromptsPlan(Record):
    """All that decides the scores. A folder belongs to one plan."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    """Version of these fields; 1 is read too."""
    model: str
    """The model as the user named it: a folder, a name on the Hub, or `denoiser` for one in memory."""
    model_fingerprint: str
    """Hash of the model's weights and settings."""
    lora: str | None = None
    """The LoRA adapter as the user named it; null without one."""
    lora_scale: float | None = None
    """Factor of the adapter's weights; null without one."""
    prompts: int
    """Number of prompts."""
    prompts_fingerprint: str
    """Hash of the prompts in their order."""
    images: int
    """Number of images drawn per prompt."""
    steps: int
    """Sampling steps of an image."""
    guidance_scale: float
    """Scale of classifier-free guidance in drawing."""
    timestep: int
    """Timestep at which drawn images are scored, in [0, T)."""
    k: int
    """Number of timesteps of the DDIM step of the t-error."""
    seed: int
    """Seed of every random draw."""
    latent_shape: str
    """Channels x height x width of the latents."""
    dtype: str
    """Precision of the model's weights, such as `float32`."""
    device: str
    """Kind of device that the model runs on, such as `cpu` or `cuda`."""


class PromptsCosts(Record):
    """What the scoring took."""

    forwards: int
    """Denoiser forwards of one image each, for all prompts."""
    seconds: float
    """Wall-clock seconds of this call; what earlier calls did is not in it."""


class PromptsRecord(Record):
    """prompts.json."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    """Version of these fields; 1 is read too."""
    created: str
    """Time in UTC at which the record was written, as ISO 8601."""
    command: str
    """Command line that repeats the scoring."""
    plan: PromptsPlan
    """All that decides the scores."""
    results: tuple[Result, ...]
    """What each statistic achieves, named in `attack`; memorised prompts are the members. Empty without two lists long enough."""
    reason: str | None
    """Why there are no results, in words; null where there are."""
    prompts: tuple[PromptScore, ...]
    """The score of each prompt, the largest magnitude first."""
    warnings: tuple[str, ...]
    """What a reader must know of the numbers, a sentence each."""
    environment: Environment
    """Where the numbers come from."""
    costs: PromptsCosts
    """What the scoring took."""


def to_csv(record: PromptsRecord) -> str:
    """prompts.csv: prompt, memorised (1, 0 or empty), t_error, magnitude."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["prompt", "memorised", "t_error", "magnitude"])
    for row in record.prompts:
        writer.writerow([row.prompt, "" if row.memorised is None else int(row.memorised), repr(row.t_error), repr(row.magnitude)])
    return out.getvalue()
