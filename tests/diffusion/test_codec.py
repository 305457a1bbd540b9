"""Codecs against diffusers' own autoencoders, in float64, with the formulas written out."""

import pytest
import torch
from fixtures.models import AUTOENCODERS

from diffleak.diffusion.codec import Identity
from diffleak.hub import load_codec

MEAN, STD = [0.1, -0.2, 0.3, 0.05], [0.5, 0.8, 1.2, 2.0]
SETTINGS = [
    ("vae", {}),
    ("vae", {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    ("vae", {"latents_mean": MEAN, "latents_std": STD}),
    ("vae", {"use_quant_conv": False, "use_post_quant_conv": False}),
    ("tiny", {}),
    ("tiny", {"shift_factor": 0.3}),
    ("vqvae", {}),
    ("vqvae", {"vq_embed_dim": 2}),
]
settings = pytest.mark.parametrize(("kind", "keys"), SETTINGS, ids=str)
kinds = pytest.mark.parametrize("kind", AUTOENCODERS)


@pytest.fixture
def pair(autoencoder, tmp_path):
    """An autoencoder of diffusers and the codec that is loaded from its folder, both in float64."""

    def make(kind: str, **keys):
        network = autoencoder(kind, **keys)
        network.save_pretrained(tmp_path / AUTOENCODERS[kind])
        return network.double(), load_codec(tmp_path, "float64")

    return make


def images(height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(5, 1, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def hidden(kind: str, network, x: torch.Tensor) -> torch.Tensor:
    """The encoder's output before any scaling: the posterior's mean, or what there is without one."""
    h = network.encoder(x)
    if kind == "vae":
        moments = network.quant_conv(h) if network.quant_conv is not None else h
        return moments[:, : moments.shape[1] // 2]
    return network.quant_conv(h) if kind == "vqvae" else h


def scale_and_shift(network) -> tuple[torch.Tensor, torch.Tensor]:
    config, per_channel = network.config, lambda values: torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
    if config.get("latents_mean"):
        return config.scaling_factor / per_channel(config.latents_std), per_channel(config.latents_mean)
    return per_channel(config.scaling_factor), per_channel(config.get("shift_factor") or 0.0)


@settings
def test_latents_are_the_encoder_output_less_the_shift_times_the_scale(pair, kind, keys):
    network, codec = pair(kind, **keys)
    scale, shift = scale_and_shift(network)
    expected = (hidden(kind, network, images()) - shift) * scale
    assert expected.std() > 1e-2
    torch.testing.assert_close(codec.encode(images()), expected, rtol=1e-6, atol=1e-9)


@settings
def test_decoding_gives_the_images_that_diffusers_decodes(pair, kind, keys):
    """As diffusers' pipelines do: decode(latents / scaling_factor + shift), a VQModel quantising on the way."""
    network, codec = pair(kind, **keys)
    scale, shift = scale_and_shift(network)
    z = codec.encode(images())
    expected = network.decode(z / scale + shift).sample
    assert expected.shape == images().shape and expected.std() > 1e-3
    torch.testing.assert_close(codec.decode(codec.snap(z)), expected, rtol=1e-6, atol=1e-8)


@kinds
def test_images_need_not_be_square(pair, kind):
    _, codec = pair(kind)
    z = codec.encode(images(8, 12))
    assert z.shape == (5, 4, 4, 6)
    assert codec.decode(codec.snap(z)).shape == (5, 1, 8, 12)


@kinds
def test_encoding_draws_nothing_at_random(pair, kind):
    _, codec = pair(kind)
    torch.manual_seed(1)
    first, state = codec.encode(images()), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, codec.encode(images()))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@kinds
def test_an_image_has_the_same_latents_alone_as_in_a_batch(pair, kind):
    _, codec = pair(kind)
    torch.testing.assert_close(codec.encode(images()[:1]), codec.encode(images())[:1], rtol=1e-9, atol=1e-12)


def test_snapping_takes_every_vector_to_its_nearest_code(pair):
    network, codec = pair("vqvae")
    z = codec.encode(images())
    codes = network.quantize.embedding.weight * network.config.scaling_factor
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = (vectors[:, None] - codes[None]).square().sum(-1).argmin(1)
    assert len(nearest.unique()) > 3, "the test must not pass with one code"
    snapped = codec.snap(z).permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(snapped, codes[nearest], rtol=1e-9, atol=1e-9)


def test_snapping_twice_is_snapping_once(pair):
    _, codec = pair("vqvae")
    once = codec.snap(codec.encode(images()))
    torch.testing.assert_close(codec.snap(once), once, rtol=1e-9, atol=1e-9)


def test_a_quantised_model_decodes_the_latents_it_is_given_and_quantises_in_snap_alone(pair):
    network, codec = pair("vqvae")
    z = codec.encode(images())
    torch.testing.assert_close(codec.decode(z), network.decode(z / 0.7, force_not_quantize=True).sample)
    assert not torch.allclose(codec.decode(z), codec.decode(codec.snap(z)), rtol=1e-3)


@pytest.mark.parametrize("kind", ["vae", "tiny"])
def test_a_model_without_codes_snaps_to_the_latents_themselves(pair, kind):
    _, codec = pair(kind)
    z = codec.encode(images())
    assert codec.snap(z) is z


@kinds
def test_decoding_has_the_derivative_of_a_finite_difference_where_the_decoder_is_used(pair, kind):
    _, codec = pair(kind)
    z = codec.snap(codec.encode(images())).detach().requires_grad_()
    assert z.is_leaf
    generator = torch.Generator().manual_seed(1)
    along, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (z.shape, images().shape))
    (gradient,) = torch.autograd.grad((codec.decode(z) * weight).sum(), z)
    step = 1e-6 * along
    difference = ((codec.decode(z + step) - codec.decode(z - step)) * weight).sum() / 2e-6
    assert difference.abs() > 1e-3
    torch.testing.assert_close((gradient * along).sum(), difference, rtol=1e-5, atol=1e-7)


def test_no_derivative_passes_through_the_choice_of_a_code(pair):
    _, codec = pair("vqvae")
    assert not codec.snap(codec.encode(images()).requires_grad_()).requires_grad


@kinds
def test_a_codec_is_frozen_and_in_eval_mode(pair, kind):
    network = pair(kind)[1].network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_pixels_are_their_own_latents():
    x = images()
    assert Identity().encode(x) is x and Identity().decode(x) is x and Identity().snap(x) is x
