"""What is said of NaN and infinity: the weight at fault, half precision where there is any, and never a dtype that is there already."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fixtures.text import pipeline

from diffleak.diffusion.codec import Autoencoder
from diffleak.diffusion.denoiser import Counted, Denoiser, Guided, NetworkDenoiser
from diffleak.diffusion.dual import Dual
from diffleak.diffusion.finite import advice, broken_weight
from diffleak.diffusion.schedule import Schedule
from diffleak.hub.pipelines import PipelineText

SCHEDULE = Schedule([0.9, 0.5, 0.1])
Make = Callable[..., torch.nn.Module]


def spoilt(network: torch.nn.Module, value: float = torch.nan, name: str = "conv_in.weight") -> torch.nn.Module:
    network.get_parameter(name).view(-1)[-1] = value
    return network


def denoiser(network: torch.nn.Module) -> Denoiser:
    return NetworkDenoiser(network, SCHEDULE)


@pytest.mark.parametrize(("value", "said"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")])
def test_the_first_weight_that_is_not_finite_is_named_and_no_dtype_for_a_network_in_float32(
    tiny_network: Make, value: float, said: str
) -> None:
    expected = f"conv_in.weight of the UNet2DModel holds {said}"
    network = spoilt(tiny_network(), value)
    assert broken_weight(network) == expected
    for kind in (torch.float32, torch.float64):
        assert advice(network.to(kind)) == f"{expected}; export or download the weights again"
    assert advice(network.half()) == f"{expected}; try --dtype float32, or export or download the weights again"


def test_finite_weights_are_said_to_be_so_and_only_half_precision_is_blamed(tiny_network: Make) -> None:
    for kind in (torch.float32, torch.float64):
        assert advice(tiny_network().to(kind)) == "its weights are finite, so look for weights that are far too large"
    for kind in (torch.float16, torch.bfloat16):
        assert advice(tiny_network().to(kind)) == "try --dtype float32, or look for weights that are far too large"
        assert advice(tiny_network().to(kind), otherwise="use another sampler") == "try --dtype float32, or use another sampler"
    assert advice(Denoiser.from_function(lambda x, t: x, [0.9, 0.1])) == "check what it computes", "there are no weights to look at"


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda network, other: Guided(denoiser(network), 3.0),
        lambda network, other: Counted(Guided(Dual((denoiser(other), denoiser(network))), 3.0), lambda n, t: None),
        lambda network, other: Denoiser.from_function(network, [0.9, 0.1]),
        lambda network, other: [other, (network,)],
    ],
    ids=["guided", "counted, guided and in turns", "a function that is a network", "a list"],
)
def test_a_network_is_found_in_what_holds_it(tiny_network: Make, wrapped: Callable[[Any, Any], Any]) -> None:
    assert broken_weight(wrapped(tiny_network(), tiny_network())) is None
    assert broken_weight(wrapped(spoilt(tiny_network()), tiny_network())) == "conv_in.weight of the UNet2DModel holds NaN"


def test_a_codec_is_its_autoencoder_and_a_text_encoder_is_not_blamed_for_the_denoiser_of_its_pipeline(autoencoder: Make) -> None:
    codec = Autoencoder(spoilt(autoencoder("vae"), name="encoder.conv_in.bias"), torch.ones(1), torch.zeros(1))
    assert broken_weight(codec) == "encoder.conv_in.bias of the AutoencoderKL holds NaN"
    made = pipeline("sd")
    spoilt(made.unet.requires_grad_(False))
    text = PipelineText(made)
    assert broken_weight(text) is None
    name = next(name for name, _ in made.text_encoder.named_parameters())
    spoilt(made.text_encoder.requires_grad_(False), name=name)
    assert broken_weight(text) == f"{name} of the CLIPTextModel holds NaN"
