"""What depends on the device, with stand-ins for devices that this machine has not."""

import pytest
import torch

from diffleak.diffusion.devices import (
    accelerators,
    broken_device,
    by_device,
    checked_device,
    float64,
    free_memory,
    name_of,
    one_accelerator_each,
    takes_bfloat16,
)
from diffleak.errors import UserError


@pytest.fixture
def two_accelerators(monkeypatch):
    """A machine with two devices of CUDA, of which nothing but their answers is there."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, answer in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "is_bf16_supported": lambda: True,
        "mem_get_info": lambda device: (3 * 2**30, 8 * 2**30),
        "get_device_name": lambda device: f"NVIDIA stand-in {device}",
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)


def test_the_first_accelerator_is_the_default_and_a_launcher_s_process_takes_its_own(two_accelerators, monkeypatch):
    assert checked_device(None) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert checked_device(None) == torch.device("cuda", 1)


def test_without_cuda_the_default_is_apple_s_device_and_else_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for there, kind in ((True, "mps"), (False, "cpu")):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        assert checked_device(None) == torch.device(kind)


def test_a_device_that_is_not_there_is_refused_in_one_line():
    with pytest.raises(UserError, match="device 'cuda:99' cannot be used"):
        checked_device("cuda:99")


def test_an_accelerator_says_its_name_and_its_free_memory(two_accelerators):
    assert (name_of("cuda:1"), free_memory("cuda:1")) == ("NVIDIA stand-in cuda:1", 3 * 2**30)
    assert free_memory("mps") is None
    assert name_of("cpu")


def test_every_accelerator_takes_the_sizes_of_accelerators():
    sizes = {"cpu": 1, "accelerator": 2}
    assert [by_device(sizes, device) for device in ("cpu", "cuda", "cuda:1", "mps")] == [1, 2, 2, 2]


def test_processes_side_by_side_see_one_accelerator_each(two_accelerators, monkeypatch):
    seen = lambda count: [each["CUDA_VISIBLE_DEVICES"] for each in one_accelerator_each(count)]
    assert accelerators() == 2 and seen(3) == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert seen(2) == ["GPU-a", "GPU-b"]


def test_without_accelerators_processes_see_what_this_one_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert one_accelerator_each(2) == [{}, {}]


def test_bfloat16_is_for_accelerators_that_are_there_and_wanted(two_accelerators, monkeypatch):
    assert takes_bfloat16() and not takes_bfloat16("cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert not takes_bfloat16()


class OnApple(torch.Tensor):
    """A tensor that says that it lies on Apple's device, which has no float64."""

    device = property(lambda self: torch.device("mps"))

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("no float64 there")


def test_float64_is_taken_on_the_cpu_where_the_device_has_none():
    x = torch.tensor([0.1, 2.0])
    with pytest.raises(TypeError):
        x.as_subclass(OnApple).double()
    assert torch.equal(float64(x.as_subclass(OnApple)), x.double()) and torch.equal(float64(x), x.double())


def test_an_error_of_the_device_s_library_is_known():
    assert broken_device(RuntimeError("CUDA error: device-side assert")) and not broken_device(RuntimeError("a bug"))
