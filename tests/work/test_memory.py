"""What becomes of freed memory, and what is said when there is too little."""

import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from diffleak.errors import UserError
from diffleak.work import memory
from diffleak.work.memory import memory_message


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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the device has too little memory for batches of 8; lower --batch-size"),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
            "the device has too little memory for batches of 8; lower --batch-size",
        ),
        (MemoryError(), "this machine has too little memory for batches of 8; lower --batch-size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "this machine has too little memory for batches of 8; lower --batch-size",
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
