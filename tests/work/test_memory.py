"""What becomes of freed memory, and what is said when there is too little."""

import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from diffleak.errors import UserError
from diffleak.work import memory
from diffleak.work.memory import memory_message
from diffleak.work.room import Room


@pytest.mark.parametrize(
    ("platform", "library", "told"),
    [("linux", True, [(-1, 2**31 - 1), (-3, 2**25)]), ("linux", False, []), ("darwin", True, [])],
)
def test_glibc_and_nothing_else_is_told_to_keep_freed_memory(monkeypatch, platform, library, told):
    calls = []
    found = SimpleNamespace(mallopt=lambda *call: calls.append(call)) if library else SimpleNamespace()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: found)
    monkeypatch.setattr(memory.sys, "platform", platform)
    memory.keep_freed_memory()
    assert calls == told


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone is told")
def test_glibc_takes_both_settings():
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        pytest.skip("another C library")
    assert library.mallopt(memory.M_TRIM_THRESHOLD, 2**31 - 1) == 1 == library.mallopt(memory.M_MMAP_THRESHOLD, memory.LARGEST)


FOR_8 = "has too little memory for batches of 8; lower --batch-size, take --dtype float16 if it is float32 now"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), f"the device {FOR_8}, --offload if it is off, or a machine with more memory"),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
            f"the device {FOR_8}, --offload if it is off, or a machine with more memory",
        ),
        (MemoryError(), f"this machine {FOR_8}, or a machine with more memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            f"this machine {FOR_8}, or a machine with more memory",
        ),
    ],
)
def test_too_little_memory_is_one_line(error, said):
    with pytest.raises(UserError) as caught, memory_message(8):
        raise error
    assert str(caught.value) == said


def test_other_errors_are_not_called_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="a bug"), memory_message(8):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("halved", [False, True])
def test_a_batch_that_cannot_be_smaller_is_not_to_be_lowered(halved):
    def fail(rows, tick):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError) as caught, memory_message(8 if halved else 1):
        list(Room("images").each(8, 8, fail)) if halved else fail(None, None)
    assert str(caught.value) == (
        "the device has too little memory for a batch of one; take --dtype float16 if it is float32 now, --offload if it is off, "
        "or a machine with more memory"
    )
