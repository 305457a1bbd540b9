"""prompts.json and prompts.csv: what each prompt scored, and how well the scores tell two lists apart. No torch.

Field names are the keys of prompts.json; changing one needs a step of SCHEMA_VERSION and a line in the changelog. What
cannot be estimated is null, with the reason beside it.
"""

import csv
import io
from pathlib import Path
from typing import Literal

from diffleak.records.audit import Result
from diffleak.records.base import Record, read_json
from diffleak.records.plan import Adapter, Embedding, Environment
from diffleak.records.scores import Direction

SCHEMA_VERSION: Literal[3] = 3  # 1: rates as in schema version 1 of audit.json; 2: no noise_norm and no alignment, images always drawn
FILE, TABLE, PAGE = "prompts.json", "prompts.csv", "prompts.html"
PICTURES = "pictures"  # folder of what the page shows

Statistic = Literal["magnitude", "t_error", "noise_norm", "alignment"]
DIRECTIONS: dict[Statistic, Direction] = {  # which end means memorised
    "magnitude": "large",  # at least 0
    "t_error": "small",  # at least 0
    "noise_norm": "large",  # at least 0
    "alignment": "large",  # in [-1, 1]
}
NOISE_SUM = "noise_sum"  # noise_norm and alignment, weighted as labelled prompts have it; large means memorised


class PromptScore(Record):
    """What one prompt scored, averaged over its images."""

    prompt: str
    """The text of the prompt."""
    memorised: bool | None
    """True on the list of memorised prompts, false on that of ordinary ones; null where there are no two lists."""
    t_error: float | None
    """SecMI's t-error of the images that the prompt draws, a squared distance of at least 0; small for memorised prompts.
    Null where nothing was drawn."""
    magnitude: float | None
    """Norm of the difference that the text makes to the noise prediction while an image is drawn, at least 0; large for memorised prompts.
    Null where nothing was drawn."""
    noise_norm: float | None = None
    """The same norm for pure noise at the sampler's first timestep, at least 0; large for memorised prompts. Null before version 3."""
    alignment: float | None = None
    """Mean cosine of that difference with the prediction without text, for pure noise at the sampler's third last timestep, in [-1, 1];
    large for memorised prompts. Null before version 3."""


class PromptsPlan(Record):
    """All that decides the scores. A folder belongs to one plan."""

    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    """Version of these fields; 1 and 2 are read too."""
    model: str
    """The model as the user named it: a folder, a name on the Hub, or `denoiser` for one in memory."""
    model_fingerprint: str
    """Hash of the model's weights and settings."""
    lora: str | None = None
    """The LoRA adapter, or several, as the user named them; null without one."""
    lora_scale: float | None = None
    """Factor of the adapter's weights; null without one."""
    embedding: str | None = None
    """The textual inversions as the user named them; null without one."""
    network: str | None = None
    """The denoiser in the place of the model's own, as the user named it; null without one."""
    weights: str | None = None
    """Choice between averaged weights, `ema`, and the others, `non_ema`; null where none was made."""
    prompts: int
    """Number of prompts."""
    prompts_fingerprint: str
    """Hash of the prompts in their order."""
    draw: bool = True
    """True if images are drawn; without, prompts are scored from noise alone."""
    images: int
    """Number of images drawn per prompt, or of noises where none is drawn."""
    steps: int
    """Sampling steps of an image, which also decide the timesteps at which noise is denoised."""
    guidance_scale: float | None
    """Scale of classifier-free guidance in drawing; null where nothing is drawn."""
    timestep: int | None
    """Timestep at which drawn images are scored, in [0, T); null where nothing is drawn."""
    k: int | None
    """Number of timesteps of the DDIM step of the t-error; null where nothing is drawn."""
    noise_norm_timestep: int | None = None
    """Timestep of the noise norm, in [0, T); null before version 3."""
    alignment_timestep: int | None = None
    """Timestep of the alignment, in [0, T); null before version 3."""
    seed: int
    """Seed of every random draw."""
    latent_shape: str
    """Channels x height x width of the latents."""
    dtype: str
    """Precision of the model's weights, such as `float32`."""
    device: str
    """Kind of device that the model runs on, such as `cpu` or `cuda`."""
    faster: tuple[str, ...] | None = None
    """Ways by which forwards are faster and right to some digits only, such as `tf32`, `channels_last` and `compiled`; null for none."""


class PromptsCosts(Record):
    """What the scoring took."""

    forwards: int
    """Denoiser forwards of one image each, for all prompts."""
    seconds: float
    """Wall-clock seconds of this call; what earlier calls did is not in it."""


class PromptsRecord(Record):
    """prompts.json."""

    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    """Version of these fields; 1 and 2 are read too."""
    created: str
    """Time in UTC at which the record was written, as ISO 8601."""
    command: str
    """Command line that repeats the scoring."""
    plan: PromptsPlan
    """All that decides the scores."""
    adapters: tuple[Adapter, ...] = ()
    """Each adapter with its strength and hash, in the order of merging; empty without one."""
    embeddings: tuple[Embedding, ...] = ()
    """Each textual inversion with its token and hash; empty without one."""
    results: tuple[Result, ...]
    """What each statistic achieves, named in `attack`; memorised prompts are the members. Empty without two lists long enough."""
    reason: str | None
    """Why there are no results, in words; null where there are."""
    prompts: tuple[PromptScore, ...]
    """The scores of each prompt, the largest magnitude first; the largest noise norm where nothing was drawn."""
    warnings: tuple[str, ...]
    """What a reader must know of the numbers, a sentence each."""
    environment: Environment
    """Where the numbers come from."""
    costs: PromptsCosts
    """What the scoring took."""


def to_csv(record: PromptsRecord) -> str:
    """prompts.csv: prompt, memorised (1, 0 or empty) and the statistics; what is null is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns: tuple[Statistic, ...] = ("t_error", "magnitude", "noise_norm", "alignment")
    writer.writerow(["prompt", "memorised", *columns])
    for row in record.prompts:
        numbers = (getattr(row, name) for name in columns)
        writer.writerow([row.prompt, "" if row.memorised is None else int(row.memorised), *("" if x is None else repr(x) for x in numbers)])
    return out.getvalue()


def read_prompts(folder: Path) -> PromptsRecord:
    """The record of a folder; raises `UserError` for a file that holds none."""
    return read_json(
        folder / FILE, PromptsRecord, must="must be a prompts.json as `diffleak prompts` writes it", advice="repeat that command"
    )
