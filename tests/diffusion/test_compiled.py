"""A compiled network, with a stand-in for torch's compiler; what the real one makes is in docs/design/019b-accelerator.md."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

from diffleak.diffusion.compiled import Compiled
from diffleak.diffusion.denoiser import NetworkDenoiser
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError


class Doubling(torch.nn.Module):
    """Predicts its input times a weight, which is 2."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x, times):
        return SimpleNamespace(sample=self.weight * x)


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile as a stand-in that answers three times what the network does, so that its answers are known."""
    answer = lambda network, dynamic: lambda *inputs: SimpleNamespace(sample=3 * network(*inputs).sample)
    monkeypatch.setattr(torch, "compile", answer)


def denoiser(network):
    return NetworkDenoiser(network, Schedule(torch.linspace(0.999, 0.01, 10)), compiled=Compiled(network))


def test_forwards_are_those_of_the_compiled_network_and_derivatives_those_of_the_network(compiler):
    model, x = denoiser(Doubling()), torch.ones(2, 1, 2, 2)
    with torch.inference_mode():
        assert torch.equal(model(x, 5), 6 * x)
    answer = model.with_graph(x, (5,))
    assert torch.equal(answer, 2 * x)
    assert torch.autograd.grad(answer.sum(), model.weights["weight"])[0] == x.sum()


def test_the_first_forward_is_announced_once_with_the_time_it_took(compiler, capsys):
    model = denoiser(Doubling())
    with torch.inference_mode():
        for _ in range(3):
            model(torch.ones(1, 1, 2, 2), 5)
    said = capsys.readouterr().err.splitlines()
    assert said == ["compiling the network, which may take minutes and is repeated for each new batch size", "compiled in 0 s"]


def test_a_network_that_cannot_be_compiled_is_refused_in_one_line(monkeypatch):
    def fail(*inputs):
        raise TorchDynamoException("no C++ compiler is found\nand more")

    assert issubclass(BackendCompilerFailed, TorchDynamoException)
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: fail)
    said = r"^the network cannot be compiled \(TorchDynamoException: no C\+\+ compiler is found and more\); leave out --compile"
    with pytest.raises(UserError, match=said), torch.inference_mode():
        denoiser(Doubling())(torch.ones(1, 1, 2, 2), 5)


def test_memory_that_runs_out_while_compiling_is_no_failure_to_compile(monkeypatch):
    def fail(*inputs):
        raise TorchDynamoException("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda network, dynamic: fail)
    with pytest.raises(TorchDynamoException), torch.inference_mode():
        denoiser(Doubling())(torch.ones(1, 1, 2, 2), 5)


def test_each_size_of_a_batch_is_compiled_and_none_runs_as_it_is_for_being_the_ninth(monkeypatch):
    """Otherwise scores would depend on which sizes came before, as after an interruption."""
    from torch._dynamo import config as limits

    asked = []
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: asked.append(dynamic) or network)
    with torch.inference_mode():
        denoiser(Doubling())(torch.ones(1, 1, 2, 2), 5)
    assert asked == [False] and limits.recompile_limit >= 64


def test_everything_else_is_the_network_s_own(compiler):
    network = Doubling()
    assert Compiled(network).weight is network.weight
