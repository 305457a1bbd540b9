"""What depends on the device, with stand-ins for devices that this machine has not."""

import pytest
import torch

from diffleak.diffusion.devices import (
    accelerators,
    broken_device,
    by_device,
    checked_device,
    faster_ways,
    float64,
    free_memory,
    free_unused_memory,
    laid_out,
    name_of,
    on_device,
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
    assert name_of("mps") == "Apple GPU" and name_of("cpu")


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


@pytest.fixture
def settings_of_torch():
    """torch's own settings of TF32, as they are without this package, and afterwards again."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32, cudnn.allow_tf32 = False, True
    yield lambda: (matmul.allow_tf32, cudnn.allow_tf32)
    matmul.allow_tf32, cudnn.allow_tf32 = False, True


@pytest.mark.parametrize(
    ("capability", "dtype", "wanted", "ways", "set_to"),
    [
        ((8, 0), "float32", True, ("tf32", "channels_last"), (True, True)),
        ((9, 0), "bfloat16", True, ("channels_last",), (True, True)),
        ((7, 5), "float32", True, ("channels_last",), (False, False)),
        ((8, 0), "float32", False, (), (False, False)),
        ((8, 0), "float32", None, ("tf32",), (False, True)),
    ],
)
def test_an_accelerator_is_as_fast_as_it_can_and_may(monkeypatch, settings_of_torch, capability, dtype, wanted, ways, set_to):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert faster_ways("cuda:0", dtype, wanted) == ways
    assert settings_of_torch() == set_to


def test_nothing_is_set_on_other_devices(settings_of_torch):
    before = settings_of_torch()
    assert [faster_ways(device, "float32", wanted) for device in ("cpu", "mps") for wanted in (True, False, None)] == [()] * 6
    assert settings_of_torch() == before


def test_convolutions_are_laid_out_channels_last_where_that_is_faster():
    plain, last = (laid_out(torch.nn.Conv2d(4, 8, 3), ways) for ways in ((), ("tf32", "channels_last")))
    of = lambda network: network.weight.is_contiguous(memory_format=torch.channels_last)
    assert (of(plain), of(last)) == (False, True)
    x = torch.randn(2, 4, 8, 8)
    last.load_state_dict(plain.state_dict())
    torch.testing.assert_close(plain(x), last(x), rtol=1e-5, atol=1e-6)


class Recorded(torch.Tensor):
    """A tensor that says what is done to it on its way to a device."""

    def to(self, *where, **how):
        steps.append(("to", *where, *how))
        return self

    def pin_memory(self):
        steps.append(("pin",))
        return self


steps: list = []


def test_an_accelerator_fetches_pinned_memory_without_being_waited_for():
    steps.clear()
    on_device(torch.zeros(2, dtype=torch.float64).as_subclass(Recorded), "cuda:1", torch.float32)
    assert steps == [("to", torch.float32), ("pin",), ("to", "cuda:1", "non_blocking")]
    steps.clear()
    on_device(torch.zeros(2).as_subclass(Recorded), "cpu", torch.float32)
    assert steps == [("to", "cpu", torch.float32)]


def test_memory_that_torch_keeps_is_given_back_on_its_device_alone(monkeypatch):
    emptied = []
    for library in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, library), "empty_cache", lambda library=library: emptied.append(library))
    for device in ("cpu", "cuda:1", "mps"):
        free_unused_memory(device)
    assert emptied == ["cuda", "mps"]
