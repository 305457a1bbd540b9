"""Gradients of weights: a closed form, autograd one image at a time, a LoRA's matrices, and what is asked and refused."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffleak.attacks.gradient import Gradient
from diffleak.attacks.subject import Subject
from diffleak.diffusion.analytic import linear_schedule
from diffleak.diffusion.denoiser import Counted, Denoiser, Guided, LowRank, NetworkDenoiser
from diffleak.diffusion.noise import Noise
from diffleak.errors import UserError

SCHEDULE = linear_schedule()
TIMES = (30, 200, 700)
N, D = 5, 6


class Linear(torch.nn.Module):
    """eps(x, t) = W x + b, which has a gradient in closed form."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(D, D).double().requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.layer.weight.copy_(torch.randn(D, D, generator=generator))
        self.layer.bias.copy_(torch.randn(D, generator=generator))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.layer(x))


def subject(denoiser: Denoiser, n: int = N) -> Subject:
    x0 = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (N, D)))[:n]
    return Subject(denoiser, x0, Noise(5, tuple(f"image-{i}" for i in range(n)), (D,), torch.float64))


def opened(denoiser: Denoiser) -> Gradient:
    return Gradient(timesteps=TIMES).opened(subject(denoiser))


def closed_form(network: Linear, asked: Subject) -> list[tuple[np.ndarray, np.ndarray]]:
    """dL/dW and dL/db of each image: 2/(kD) sum over t of r_t x_t^T and of r_t, with r_t = W x_t + b - e_t."""
    w, b, found = network.layer.weight.detach().numpy(), network.layer.bias.detach().numpy(), []
    for row in range(len(asked)):
        gw, gb = np.zeros((D, D)), np.zeros(D)
        for draw, t in enumerate(TIMES):
            e, alpha_bar = asked.noise(draw)[row].numpy(), SCHEDULE.alphas_cumprod[t]
            x_t = np.sqrt(alpha_bar) * asked.x0[row].numpy() + np.sqrt(1 - alpha_bar) * e
            r = w @ x_t + b - e
            gw, gb = gw + 2 / (len(TIMES) * D) * np.outer(r, x_t), gb + 2 / (len(TIMES) * D) * r
        found.append((gw, gb))
    return found


@pytest.mark.parametrize("n", [N, 2, 1], ids=["all timesteps at once", "two at a time", "one at a time"])
def test_components_are_the_closed_form_of_a_linear_denoiser_however_the_timesteps_are_cut(n):
    network = Linear()
    denoiser = NetworkDenoiser(network, SCHEDULE)
    with torch.inference_mode():
        found = opened(denoiser).statistics(subject(denoiser, n))
    assert opened(denoiser).memory == 2 * (D * D + D) * 8, "of float64: the sum so far, and the next"
    expected = [[-np.log((g**2).sum()) for g in pair] for pair in closed_form(network, subject(denoiser, n))]
    np.testing.assert_allclose(found.T.numpy(), expected, atol=1e-10)


def test_of_a_lora_the_gradients_are_those_of_its_two_matrices():
    network, rng = Linear(), np.random.default_rng(2)
    down, up, factor = rng.normal(size=(2, D)), rng.normal(size=(D, 2)), 0.7
    adapted = {"layer.weight": LowRank(torch.from_numpy(down), torch.from_numpy(up), factor)}
    denoiser = NetworkDenoiser(network, SCHEDULE, adapted=adapted)
    attack = opened(denoiser)
    assert attack.tensors == ("layer.weight",) and len(attack.columns) == 2
    assert attack.memory == D * D * 8, "of float64; the sums over two matrices of rank 2 are small"
    assert attack.of == "the LoRA's matrices in 1 layers" and attack.label == "gradient(timesteps=30+200+700)"
    found = attack.statistics(subject(denoiser))
    expected = [
        [-np.log(((factor * up.T @ gw) ** 2).sum()), -np.log(((factor * gw @ down.T) ** 2).sum())]
        for gw, _ in closed_form(network, subject(denoiser))
    ]
    np.testing.assert_allclose(found.T.numpy(), expected, atol=1e-10)
    reference = NetworkDenoiser(Linear(3), SCHEDULE)
    other = attack.statistics(subject(reference))  # in the directions of the audited model's LoRA, though it has none itself
    gw = closed_form(reference.network, subject(reference))[0][0]
    assert float(other[0, 0]) == pytest.approx(-np.log(((factor * up.T @ gw) ** 2).sum()), abs=1e-10)


def test_a_network_of_diffusers_has_the_gradients_of_its_own_backward_pass(tiny_network):
    network = tiny_network().requires_grad_(False)
    denoiser = NetworkDenoiser(network, SCHEDULE)
    x0 = torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, (2, 1, 8, 8))).float()
    asked = Subject(denoiser, x0, Noise(5, ("a", "b"), (1, 8, 8), torch.float32))
    attack = Gradient(timesteps=TIMES).opened(asked)
    with torch.inference_mode():
        found = attack.statistics(asked)
    weights = dict(network.named_parameters())
    assert attack.tensors == tuple(weights)
    for row in range(2):
        loss = 0.0
        for draw, t in enumerate(TIMES):
            e, alpha_bar = asked.noise(draw)[row : row + 1], float(SCHEDULE.alphas_cumprod[t])
            x_t = alpha_bar**0.5 * x0[row : row + 1] + (1 - alpha_bar) ** 0.5 * e
            loss = loss + torch.nn.functional.mse_loss(network(x_t, torch.tensor([t])).sample, e) / len(TIMES)
        network.zero_grad()
        loss.backward()
        squares = torch.stack([weight.grad.double().square().sum() for weight in weights.values()])
        expected = torch.maximum(squares, torch.finfo(torch.float32).eps ** 2 * squares.sum()).log().neg()
        torch.testing.assert_close(found[:, row], expected, rtol=1e-3, atol=1e-3)


def test_every_forward_is_counted_and_guidance_is_left_out():
    calls = []
    network = NetworkDenoiser(Linear(), SCHEDULE)
    counted = Counted(Guided(network, 3.0), lambda n, t: calls.append((n, t)))
    attack = opened(network)
    found = attack.statistics(subject(counted))
    assert sorted(calls) == sorted((1, t) for t in TIMES for _ in range(N)) and attack.queries == len(TIMES)
    torch.testing.assert_close(found, attack.statistics(subject(network)))


def test_a_weight_that_the_loss_does_not_reach_has_the_rounding_of_the_whole_gradient_and_no_infinity():
    network = Linear()
    network.unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    denoiser = NetworkDenoiser(network, SCHEDULE)
    found = dict(zip(opened(denoiser).tensors, opened(denoiser).statistics(subject(denoiser)), strict=True))
    whole = (found["layer.weight"].neg().exp() + found["layer.bias"].neg().exp()).log()
    torch.testing.assert_close(found["unused"], -whole - 2 * np.log(torch.finfo(torch.float64).eps))


def test_functions_and_references_of_other_weights_are_refused():
    function = Denoiser.from_function(lambda x, t: x, SCHEDULE.alphas_cumprod)
    with pytest.raises(UserError, match="gradient is of a network's weights, and predict_noise has none"):
        opened(function)
    other = Linear()
    other.layer = torch.nn.Linear(D, D + 1)
    for reference in (function, NetworkDenoiser(other, SCHEDULE)):
        with pytest.raises(UserError, match=r"its reference, which has no such layer\.weight; leave out gradient, or give another"):
            Gradient().opened(replace(subject(NetworkDenoiser(Linear(), SCHEDULE)), reference=subject(reference)))
    with pytest.raises(UserError, match="gradient needs the weights in the memory of the device; leave out --offload, or gradient"):
        opened(NetworkDenoiser(Linear().to("meta"), SCHEDULE))
    with pytest.raises(UserError, match="takes no mask"):
        opened(NetworkDenoiser(Linear(), SCHEDULE)).statistics(subject(NetworkDenoiser(Linear(), SCHEDULE)), torch.ones(N, D))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_tensor_to_zero(tiny_network, half):
    x0 = torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, (2, 1, 8, 8))).float()
    found = []
    for dtype in (torch.float32, half):
        denoiser = NetworkDenoiser(tiny_network().to(dtype), SCHEDULE)
        asked = Subject(denoiser, x0, Noise(5, ("a", "b"), (1, 8, 8), torch.float32))
        found.append(Gradient(timesteps=TIMES).opened(asked).statistics(asked))
    whole = found[0].neg().exp().sum(dim=0)
    large = found[0].neg().exp() > 1e-6 * whole
    assert (found[1] - found[0]).abs()[large].median() < 0.2, "in the scale of float32"
