"""Opens whole files of weights, .safetensors and PyTorch's state dicts (.bin, .pt, .pth, .ckpt), without running code in a pickle.

No other module opens such a file whole.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffleak.work.reading import Unreadable, opened, parsing

SAFE = ".safetensors"
WRAPPED_BY = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile, in the names of all weights


class MoreThanTensors(Unreadable):
    """A pickle asks for code, which `asked` names, or is not a file of torch.save; `asked` is then empty."""

    def __init__(self, asked: str, reason: str = "") -> None:
        holds = f"it holds {asked}" if asked else "it holds more than tensors, or is damaged"
        super().__init__(reason or f"{holds}, and only tensors are opened: if you trust it, save it as .safetensors")
        self.asked = asked


def load_state(file: Path) -> Any:
    """The content of a .safetensors file, or of one that torch.save wrote: tensors, numbers and texts, in dicts and lists.

    Tensors that torch.save wrote stay on the disk if the format allows it. Raises `MoreThanTensors` for a file that asks for anything else,
    such as a function to call, and `Unreadable` for a damaged file.
    """
    if file.suffix == SAFE:
        with opened(file, None), parsing():
            return load_file(file)
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


def is_eighth(value: Tensor) -> bool:
    """True for a tensor of floating-point numbers of 8 bits."""
    return value.is_floating_point() and value.itemsize == 1


def is_state(content: object) -> bool:
    """True for a state dict: a mapping of names to tensors that is not empty."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def wrapped_by(names: Iterable[str]) -> str:
    """The prefix that DistributedDataParallel and torch.compile put before all of these names."""
    left, prefix = [*names], ""
    while found := next((each for each in WRAPPED_BY if left and all(name.startswith(each) for name in left)), None):
        left, prefix = [name.removeprefix(found) for name in left], prefix + found
    return prefix
