"""The prompts that a text-to-image model draws when its images are judged. No torch."""

from dataclasses import dataclass
from functools import cached_property

from diffleak.data.captions import choose_captions
from diffleak.data.cohort import Cohort
from diffleak.data.draw import keyed_order
from diffleak.data.names import say_strays
from diffleak.data.prompts import read_prompts
from diffleak.errors import UserError, one_or_more
from diffleak.quality.config import QualityConfig


@dataclass(frozen=True)
class Prompts:
    """The text of every image, and their source in words."""

    texts: tuple[str, ...]
    described: str

    @cached_property
    def distinct(self) -> tuple[str, ...]:
        """Every text once."""
        return tuple(dict.fromkeys(self.texts))


def choose_prompts(config: QualityConfig, takes_text: bool, reference: Cohort) -> Prompts | None:
    """The captions of the reference, one image each in a keyed order, or the texts of a file in its own; from the start where they end.

    None for a model without captions. Raises `UserError` for texts that are missing, and for a setting of texts where the model takes none.
    """
    if not takes_text:
        given = next((key for key in ("captions", "prompts", "guidance_scale", "clip") if getattr(config, key) is not None), None)
        if given:
            raise UserError(f"{config.model} takes no captions; leave out --{given.replace('_', '-')}")
        return None
    if config.prompts:
        texts = read_prompts(config.prompts)
        return Prompts(_repeated(texts, config.images), f"{one_or_more(len(texts), 'text')} of {config.prompts}")
    choice = config.captions or "own"
    chosen = choose_captions(reference, choice, config.seed)
    say_strays(chosen.names, reference.ids[0])
    caption_of = dict(zip(reference.keys, chosen.texts, strict=True))
    texts = [caption_of[key] for key in keyed_order(reference.keys, "prompts", config.seed)]
    return Prompts(_repeated(texts, config.images), f"captions of the reference ({choice})")


def _repeated(texts: list[str], n: int) -> tuple[str, ...]:
    return tuple(texts[i % len(texts)] for i in range(n))
