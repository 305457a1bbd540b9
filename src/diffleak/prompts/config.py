"""The settings of `diffleak prompts`, and the lists of prompts they name. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from diffleak.config import Flag, ModelConfig, Seed, command_line, flag
from diffleak.data.prompts import read_prompts
from diffleak.errors import UserError, one_or_more, shown

FROM_PYTHON = "diffleak.find_memorised(...) from Python, with the settings recorded in prompts.json"


class PromptsConfig(ModelConfig):
    """Everything that decides `diffleak prompts`; the keys of `-C FILE` and, with dashes, its flags."""

    INPUTS = {"memorised": "file", "ordinary": "file", "prompts": "file"}
    FOLLOW = ["batch_size dtype"]
    HELP = {"model": "A text-to-image model: a diffusers folder, a hub id, or one file."}

    memorised: Path | None = Field(
        None, description="Prompts that you suspect, such as training captions: one per line, or the column 'text' of a .csv or .jsonl."
    )
    ordinary: Path | None = Field(None, description="Prompts of the same kind that were not trained on.")
    prompts: Path | None = Field(None, description="Where nothing is suspected: one list of prompts, which are scored only.")
    output: Annotated[Path | None, Flag("-o")] = Field(None, description="Folder of prompts.json, .csv and .html, and of finished chunks.")
    images: int = Field(1, ge=1, description="Images to draw for each prompt; their scores are averaged ({default}).")
    draw: Annotated[bool, Flag("--no-draw")] = Field(
        True, description="Draw images for each prompt (default). Without, each prompt takes only four forwards from noise."
    )
    steps: int = Field(50, ge=1, description="DDIM steps per drawing ({default}).")
    guidance_scale: float = Field(7.5, ge=0, allow_inf_nan=False, description="Classifier-free guidance while drawing ({default}).")
    timestep: int = Field(90, ge=0, description="Timestep of the t-error, SecMI's score of a drawn image ({default}).")
    size: int | None = Field(None, ge=1, description="Pixels per side of a drawing, for a model that draws any size.")
    seed: Seed = 0
    batch_size: int | None = Field(None, ge=1, description="Images at once; default by their size.")
    threads: int | None = Field(None, ge=1, description="Chunks to work on in parallel, with one CPU thread each.")

    @model_validator(mode="after")
    def _one_kind_of_list(self) -> "PromptsConfig":
        if bool(self.memorised) != bool(self.ordinary):
            raise ValueError("--memorised and --ordinary are compared with each other: give both, or one list as --prompts FILE")
        if self.memorised and self.prompts:
            raise ValueError("--prompts is one list without labels; leave it out, or --memorised and --ordinary")
        return self

    @model_validator(mode="after")
    def _of_drawn_images(self) -> "PromptsConfig":
        unused = [key for key in ("guidance_scale", "timestep") if not self.draw and key in self.model_fields_set]
        if unused:
            them = "it" if len(unused) == 1 else "them"
            raise ValueError(f"{' and '.join(map(flag, unused))} must be left out with --no-draw, which draws no image to use {them} on")
        return self

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        if self.in_memory or not (self.memorised or self.prompts):
            return FROM_PYTHON
        return command_line(self, "prompts")


@dataclass(frozen=True)
class Lists:
    """Distinct prompts in the order of their text, so that no score can know the side; `memorised` is None without sides.

    `repeated` counts prompts that a list named again.
    """

    texts: tuple[str, ...]
    memorised: tuple[bool, ...] | None
    repeated: int


def read_lists(config: PromptsConfig) -> Lists:
    """The prompts that a config names; raises `UserError` for files without any, and for a prompt on both lists."""
    if config.memorised and config.ordinary:
        return two_lists(read_prompts(config.memorised), read_prompts(config.ordinary))
    if config.prompts is None:
        raise UserError("there must be prompts: give --memorised FILE and --ordinary FILE, or --prompts FILE")
    return one_list(read_prompts(config.prompts))


def two_lists(memorised: Sequence[str], ordinary: Sequence[str]) -> Lists:
    """Prompts with known sides."""
    _refuse_empty(memorised, "the memorised prompts")
    _refuse_empty(ordinary, "the ordinary prompts")
    both = sorted({*memorised} & {*ordinary})
    if both:
        more = f" and {one_or_more(len(both) - 1, 'other')} are" if len(both) > 1 else " is"
        raise UserError(f"a prompt must be on one list; '{shown(both[0])}'{more} on both")
    texts = tuple(sorted({*memorised, *ordinary}))
    sides = {*memorised}
    return Lists(texts, tuple(text in sides for text in texts), len(memorised) + len(ordinary) - len(texts))


def one_list(prompts: Sequence[str]) -> Lists:
    """Prompts whose sides nobody knows."""
    _refuse_empty(prompts, "the prompts")
    texts = tuple(sorted({*prompts}))
    return Lists(texts, None, len(prompts) - len(texts))


def _refuse_empty(prompts: Sequence[str], what: str) -> None:
    if not prompts:
        raise UserError(f"{what} must be at least one; the list is empty")
    odd = [prompt for prompt in prompts if not isinstance(prompt, str) or not prompt.strip()]
    if odd:
        raise UserError(f"{what} must be texts that are not empty; got {shown(repr(odd[0]))}")
