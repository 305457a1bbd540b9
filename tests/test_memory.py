"""What becomes of freed memory, and what is said when there is too little."""

import subprocess
import sys

import pytest
import torch

from leakscope.errors import UserError
from leakscope.memory import memory_message

FREE = """
import resource, sys, torch
from leakscope.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
graph = lambda: [torch.ones(2**21) for _ in range(10)]  # 80 MiB
graph()
before = pages()
for _ in range(20):
    graph()
print(pages() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone is told")
def test_memory_that_is_kept_is_not_mapped_again_for_the_next_tensor():
    run = lambda how: int(subprocess.run([sys.executable, "-c", FREE, how], capture_output=True, text=True, check=True).stdout)
    assert 4 * run("keep") < run("return")  # which is 20 times 20,480 pages of 4 KiB, fewer where pages are huge


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the device has too little memory for batches of 8; lower --batch-size"),
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
