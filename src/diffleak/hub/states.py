"""Files of weights, .safetensors and the state dicts of PyTorch (.bin, .pt, .pth, .ckpt): the one place that opens them whole, without
running the code that a pickle may hold; and what a state dict is."""

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
    """A pickle asks for code, `asked`, or is none of torch.save, for some reason; then `asked` is empty."""

    def __init__(self, asked: str, reason: str = "") -> None:
        holds = f"it holds {asked}" if asked else "it holds more than tensors, or is damaged"
        super().__init__(reason or f"{holds}, and only tensors are opened: save it as .safetensors where you trust it")
        self.asked = asked


def load_state(file: Path) -> Any:
    """What a .safetensors file or one of torch.save holds: tensors, numbers and texts, in dicts and lists.

    The tensors of the latter stay on the disk where the format allows it.

    Raises `MoreThanTensors` for a file that asks for anything else, such as a function to call, and `Unreadable` for one that is damaged.
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
    """True if something is a state dict: tensors by their names, one at least."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def wrapped_by(names: Iterable[str]) -> str:
    """What DistributedDataParallel and torch.compile put before all of these names."""
    left, prefix = [*names], ""
    while found := next((each for each in WRAPPED_BY if left and all(name.startswith(each) for name in left)), None):
        left, prefix = [name.removeprefix(found) for name in left], prefix + found
    return prefix
