"""State dicts of PyTorch (.bin, .pt, .pth, .ckpt): the one place that opens them, without running the code that a pickle may hold."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from diffleak.work.reading import Unreadable, opened, parsing


class MoreThanTensors(Unreadable):
    """A pickle asks for code, `asked`, or is none of torch.save, for some reason; then `asked` is empty."""

    def __init__(self, asked: str, reason: str = "") -> None:
        holds = f"it holds {asked}" if asked else "it holds more than tensors, or is damaged"
        super().__init__(reason or f"{holds}, and only tensors are opened: save it as .safetensors where you trust it")
        self.asked = asked


def load_state(file: Path) -> Any:
    """What a file of torch.save holds: tensors, numbers and texts, in dicts and lists. Tensors stay on the disk where the format allows it.

    Raises `MoreThanTensors` for a file that asks for anything else, such as a function to call, and `Unreadable` for one that is damaged.
    """
    with opened(file, None) as stream, parsing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles that torch did not write, which are refused
        is_zip = zipfile.is_zipfile(stream)
        stream.seek(0)
        try:
            return torch.load(str(file) if is_zip else stream, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL ([\w.]+)", str(error))
            inner = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
            raise MoreThanTensors(asked[1]) if asked else MoreThanTensors("", inner[1] if inner else "") from None
