"""Everything that depends on the device: which ones there are, what they can do, how tensors get there. No other module names a device.

A device is a torch device as text: "cpu", or an accelerator such as "cuda:0" or "mps". On a CPU nothing here changes a result.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.errors import WHY, first_lines, refusing
from diffleak.work.memory import free_on_the_cpu

T = TypeVar("T")

FIRST_WITH_TF32 = (8, 0)  # compute capability
SERIAL_NUMBERS = "CUDA_VISIBLE_DEVICES"  # in the environment: which devices a process sees


def checked_device(device: str | None) -> torch.device:
    """The device to run on; None means this process's accelerator, or the CPU without one. Raises `UserError` if it cannot be used."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    with refusing((RuntimeError, AssertionError, NotImplementedError), f"device '{device}' cannot be used ({WHY})", first_lines):
        torch.empty(1, device=device)
        return torch.device(device)


def by_device(sizes: Mapping[str, T], device: str) -> T:
    """The entry for the device: "cpu", or "accelerator" for every other device."""
    return sizes["cpu" if device == "cpu" else "accelerator"]


def accelerators() -> int:
    """The number of accelerators that this process can hand out to worker processes, one each."""
    return torch.cuda.device_count()


def names() -> tuple[str, ...]:
    """Every accelerator that torch sees, as a torch device."""
    return (*(f"cuda:{i}" for i in range(accelerators())), *(("mps",) if torch.backends.mps.is_available() else ()))


def one_accelerator_each(processes: int) -> list[dict[str, str]]:
    """The environment variables of each worker process that make it see one accelerator; empty where there are none."""
    visible = os.environ.get(SERIAL_NUMBERS, "")
    devices = [name for name in visible.split(",") if name] or [str(number) for number in range(accelerators())]
    return [{SERIAL_NUMBERS: devices[number % len(devices)]} if devices else {} for number in range(processes)]


def name_of(device: str) -> str:
    """The name that the accelerator or processor reports."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.startswith("mps") else platform.processor() or platform.machine()


def free_memory(device: str) -> int | None:
    """The free bytes of a device, on the CPU what can be allocated without swapping; None where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return free_on_the_cpu() if device == "cpu" else None


def takes_bfloat16(wanted: str = "auto") -> bool:
    """True if `wanted` allows an accelerator and there is one that computes in bfloat16."""
    return wanted != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def broken_device(error: BaseException) -> bool:
    """True for an error of the device's own library, which says nothing about the files that were read."""
    return "CUDA" in str(error)


def faster_ways(device: str, dtype: str, wanted: bool | None) -> tuple[str, ...]:
    """Sets how accelerators multiply in this process, and returns the ways in which forwards on `device` are faster but less exact.

    "tf32": float32 numbers are multiplied with a mantissa of 10 bits. "channels_last": convolutions read the channels of a pixel side by
    side, and sum in another order. wanted: True for both, as far as the device has them; False for neither; None leaves torch's own
    setting as it is. On a CPU nothing is set.
    """
    if not device.startswith("cuda"):
        return ()
    able = torch.cuda.get_device_capability(device) >= FIRST_WITH_TF32
    if wanted is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted and able
    rounds = able and dtype == "float32" and torch.backends.cudnn.allow_tf32
    return (*(("tf32",) if rounds else ()), *(("channels_last",) if wanted else ()))


def laid_out(network: torch.nn.Module, faster: Sequence[str]) -> torch.nn.Module:
    """The network with its weights in the memory layout that `faster` (of `faster_ways`) needs."""
    return network.to(memory_format=torch.channels_last) if "channels_last" in faster else network  # type: ignore[call-overload, no-any-return]


def on_device(x: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A tensor of the CPU, moved to a device; an accelerator copies it from pinned memory while this process goes on."""
    if torch.device(device).type != "cuda":
        return x.to(device, dtype)
    return x.to(dtype).pin_memory().to(device, non_blocking=True)


def free_unused_memory(device: str) -> None:
    """Returns the accelerator memory that torch holds in its cache."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device.startswith("mps"):
        torch.mps.empty_cache()


def without_tf32() -> AbstractContextManager[None]:
    """A context in which convolutions do not use TF32, which is exact to three digits only."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # type: ignore[no-any-return]


def float64(x: Float[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
    """x in double precision, on the CPU where the device has none (Apple's)."""
    return (x.cpu() if x.device.type == "mps" else x).double()
