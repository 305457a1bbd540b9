"""State dicts of PyTorch (.bin, .pt, .pth, .ckpt), opened without running the code that a pickle may hold."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from diffleak.work.reading import Unreadable, opened, parsing


def load_state(file: Path) -> Any:
    """What a file of torch.save holds: tensors, numbers and texts, in dicts and lists.

    Raises `Unreadable` for a file that asks for anything else, such as a function to call, and for one that is damaged.
    """
    with opened(file, None) as stream, parsing():
        try:
            return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL ([\w.]+)", str(error))
            holds = f"it holds {asked[1]}" if asked else "it holds more than tensors, or is damaged"
            raise Unreadable(f"{holds}, and only tensors are opened: save it as .safetensors where you trust it") from None
