"""What `diffleak lora` is given: the adapters and the pictures, found and refused without torch, which takes seconds to load."""

from typing import NamedTuple

from diffleak.data.image_source import ImageSource
from diffleak.data.sources import open_source
from diffleak.errors import UserError
from diffleak.lora.config import LoraConfig
from diffleak.records.lora import FILE
from diffleak.records.run_folder import refuse_other_command
from diffleak.sweep.checkpoints import Checkpoints, adapters

BASE = "base"  # the folder of the base's drawings


class Inputs(NamedTuple):
    """The checkpoints, the pictures, and the held-out ones where there are any."""

    found: Checkpoints
    pictures: ImageSource
    held_out: ImageSource | None


def read_inputs(config: LoraConfig) -> Inputs:
    """Opens them; raises `UserError` for adapters and pictures that are not there, or are something else, and for the
    folder of another command.
    """
    refuse_other_command(config.output, FILE)
    found = adapters(config.adapters)
    if wrong := next((each.path for each in found.found if each.name == BASE), None):
        raise UserError(f"an adapter must not be called {BASE}, as the folder of the base's drawings is; rename {wrong}")
    opened = lambda data: open_source(data, config.decoding)
    return Inputs(found, opened(config.pictures), opened(config.held_out) if config.held_out else None)
