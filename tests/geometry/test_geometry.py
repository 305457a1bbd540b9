"""The geometry of latents against dense Jacobians and closed forms."""

import gc
import math
import threading
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
import pytest
import torch
from scipy.special import digamma, polygamma
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the dense Jacobians

LATENT = (3, 4, 4)
IMAGE = (3, 8, 8)
D, M = math.prod(LATENT), math.prod(IMAGE)


@pytest.fixture(scope="module")
def kl():
    """A float64 AutoencoderKL codec with GroupNorm and attention, 3 x 4 x 4 to 3 x 8 x 8, its attention turned up."""
    return autoencoder("AutoencoderKL")


def autoencoder(kind: str, **keys: Any) -> Any:
    import diffusers

    from diffleak.diffusion.codec import Autoencoder

    torch.manual_seed(0)
    network = getattr(diffusers, kind)(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=LATENT[0],
        norm_num_groups=4,
        **keys,
    )
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):  # untrained ones have weights of one
            torch.nn.init.normal_(module.weight, 1, 0.3)
    network = network.double().eval().requires_grad_(False)
    return Autoencoder(network, torch.tensor([0.5]).double(), torch.tensor([0.1]).double())


def codec_of(decoder: Any, snapping: Any = None) -> Any:
    """A codec that decodes with a function."""
    from diffleak.diffusion.codec import Codec

    @final
    @dataclass(frozen=True)
    class Given(Codec):
        def encode(self, x: Tensor) -> Tensor:
            raise NotImplementedError

        def decode(self, z: Tensor) -> Tensor:
            return decoder(z)

        def snap(self, z: Tensor) -> Tensor:
            return z if snapping is None else snapping(z)

    return Given()


def linear(A: Tensor) -> Any:
    return codec_of(lambda z: (z.flatten(1) @ A.T.to(z)).reshape(len(z), *IMAGE))


def matrix(rank: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(M, D, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 3, D)
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    return U[:, :rank] * s[:rank] @ Vh[:rank]


def latents(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *LATENT, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def keyed(n: int, seed: int = 0, start: int = 0) -> Any:
    from diffleak.diffusion.noise import Noise

    return Noise(seed, tuple(f"image {i}" for i in range(start, start + n)), ())


def dense(codec: Any, z: Tensor) -> Tensor:
    """The Jacobians (b, M, D), by torch.func."""
    one = lambda z_i: codec.decode(z_i[None])[0]
    return torch.stack([torch.func.jacrev(one)(z_i).reshape(M, D) for z_i in z])


class Square(torch.autograd.Function):
    """z^2 whose backward cannot be differentiated, and which has no forward mode."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * u


class SilentSquare(torch.autograd.Function):
    """z^2 whose backward hides from autograd how it depends on the gradient: the second derivative would be wrong, not missing."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z**2

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * u.detach()


# products


@pytest.mark.parametrize("order", ["jvp first", "vjp first"])
def test_both_products_equal_the_dense_jacobian(kl, order):
    from diffleak.geometry.operators import LinearMap

    z = latents(3)
    J, expected = LinearMap(kl.decode, z), dense(kl, z)
    v, u = torch.randn(4, *z.shape).double(), torch.randn(4, 3, *IMAGE).double()
    first = J.vjp(u) if order == "vjp first" else None
    jv, jtu = J.jvp(v), J.vjp(u)
    assert J.mode == "autograd" and J.x_shape == (3, *IMAGE)
    torch.testing.assert_close(jv.flatten(2), torch.einsum("bmd,rbd->rbm", expected, v.flatten(2)), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(jtu.flatten(2), torch.einsum("bmd,rbm->rbd", expected, u.flatten(2)), rtol=1e-9, atol=1e-11)
    if first is not None:
        torch.testing.assert_close(first, jtu, rtol=1e-9, atol=1e-11)


LAYERS = {
    "strides": lambda nn: [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.SiLU(), nn.ConvTranspose2d(8, 3, 4, stride=4)],
    "dilation, groups": lambda nn: [
        nn.Conv2d(3, 6, (3, 2), padding=(2, 1), dilation=2, groups=3, bias=False),
        nn.Tanh(),
        nn.Upsample((8, 8)),
        nn.Conv2d(6, 3, 1),
    ],
    "paddings by name, GroupNorm without weights": lambda nn: [
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
        nn.GroupNorm(2, 4, affine=False),
        nn.SiLU(),
        nn.Upsample((8, 8)),
        nn.Conv2d(4, 3, 3, padding="same"),
    ],
    "a stride that leaves a rest": lambda nn: [nn.Conv2d(3, 4, 2, stride=3), nn.Flatten(), nn.Linear(4, M), nn.Unflatten(1, IMAGE)],
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_products_are_right_for_convolutions_of_every_kind(layers):
    from diffleak.geometry.operators import LinearMap

    torch.manual_seed(2)
    codec = codec_of(torch.nn.Sequential(*layers(torch.nn)).double())
    z = latents(2)
    J, expected = LinearMap(codec.decode, z, "autograd"), dense(codec, z)
    v, u = torch.randn(2, *z.shape).double(), torch.randn(2, 2, *IMAGE).double()
    torch.testing.assert_close(J.jvp(v).flatten(2), torch.einsum("bmd,rbd->rbm", expected, v.flatten(2)), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(J.vjp(u).flatten(2), torch.einsum("bmd,rbm->rbd", expected, u.flatten(2)), rtol=1e-9, atol=1e-11)


class Doubled(torch.nn.Module):
    """A convolution of a doubled image that something was done to."""

    def __init__(self, change: Any, gradients: bool = True) -> None:
        super().__init__()
        self.convolution, self.change, self.gradients = torch.nn.Conv2d(3, 3, 3, padding=1), change, gradients

    def forward(self, z: Tensor) -> Tensor:
        x = 2 * z
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            y = torch.nn.functional.interpolate(x, scale_factor=2)
        self.change(x, y)
        return self.convolution(y) + y + torch.nn.functional.interpolate(x, scale_factor=2)


class Odd(torch.nn.Module):
    """A convolution called with numbers that torch takes too."""

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, y: Tensor) -> Tensor:
        weight, bias = self.convolution.weight, self.convolution.bias
        return torch.nn.functional.conv2d(y, weight, bias, stride=np.int64(1), padding=(1,), dilation=[1])


class Reused(torch.nn.Module):
    """A doubled image that two convolutions and a sum take."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(3, 3, k, padding=k // 2) for k in (3, 1))

    def forward(self, z: Tensor) -> Tensor:
        y = torch.nn.functional.interpolate(z, size=(8, 8), mode="nearest-exact")
        return y + sum(convolution(y) for convolution in self.convolutions)


class Stretched(torch.nn.Module):
    """Twice the size by a factor of 2.1: some pixels are there once, others three times."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(z, scale_factor=2.1)


DOUBLED = {  # layers, and how many of the convolutions are taken with the doubling before them
    "doubled": (lambda nn: [nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 3, 3, padding=1)], 1),
    "two of them": (
        lambda nn: [
            nn.Conv2d(3, 3, 2, stride=2),
            nn.Upsample(scale_factor=(2, 2)),
            nn.Conv2d(3, 5, 3, padding=1, bias=False),
            nn.SiLU(),
            nn.Upsample((8, 8)),
            nn.Conv2d(5, 3, (3, 3), padding=(1, 1)),
        ],
        2,
    ),
    "reused": (lambda nn: [Reused()], 1),
    "not changed": (lambda nn: [Doubled(lambda x, y: None)], 1),
    "written to": (lambda nn: [Doubled(lambda x, y: y[..., 1].mul_(3))], 0),
    "its source written to": (lambda nn: [Doubled(lambda x, y: x.relu_())], 0),
    "cut off": (lambda nn: [Doubled(lambda x, y: y.detach_())], 0),
    "made without gradients": (lambda nn: [Doubled(lambda x, y: None, gradients=False)], 0),
    "stretched": (lambda nn: [Stretched(), nn.Conv2d(3, 3, 3, padding=1)], 0),
    "bilinear": (lambda nn: [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 3, 3, padding=1)], 0),
    "one side": (lambda nn: [nn.Upsample(scale_factor=(2, 1)), nn.Conv2d(3, 6, 3, padding=1), nn.Flatten(), nn.Unflatten(1, IMAGE)], 0),
    "groups": (lambda nn: [nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1, groups=3)], 0),
    "dilation": (lambda nn: [nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=2, dilation=2)], 0),
    "stride": (lambda nn: [nn.Upsample(scale_factor=2), nn.Conv2d(3, 12, 3, padding=1, stride=2), nn.PixelShuffle(2)], 0),
    "strides of numpy, pads of one": (
        lambda nn: [nn.Upsample(scale_factor=2.0), Odd(nn.Conv2d(3, 3, 3)), nn.Conv2d(3, 3, 3, padding=(1, 1))],
        1,
    ),
    "something between": (lambda nn: [nn.Upsample(scale_factor=2), nn.Tanh(), nn.Conv2d(3, 3, 3, padding=1)], 0),
}


@pytest.mark.parametrize(("layers", "taken"), DOUBLED.values(), ids=DOUBLED)
def test_convolutions_of_doubled_images_have_the_dense_jacobian(layers, taken, monkeypatch):
    from diffleak.geometry import forms
    from diffleak.geometry.operators import LinearMap, record

    torch.manual_seed(2)
    decode = torch.nn.Sequential(*layers(torch.nn)).double()
    z, apply, seen = latents(2), forms._DoubledConvolution.apply, []
    monkeypatch.setattr(forms._DoubledConvolution, "apply", lambda *given: seen.append(1) or apply(*given))
    expected = dense(codec_of(decode), z)
    assert not seen, "the dense Jacobian is torch's own"
    torch.testing.assert_close(record(decode, z).x, decode(z), rtol=1e-12, atol=1e-12)
    assert len(seen) == taken
    v, u = torch.randn(2, *z.shape).double(), torch.randn(2, 2, *IMAGE).double()
    for first in ("vjp", "jvp"):  # once and twice differentiable
        J = LinearMap(decode, z, "autograd")
        jv = J.jvp(v) if first == "jvp" else None
        torch.testing.assert_close(J.vjp(u).flatten(2), torch.einsum("bmd,rbm->rbd", expected, u.flatten(2)), rtol=1e-9, atol=1e-11)
        if jv is not None:
            torch.testing.assert_close(jv.flatten(2), torch.einsum("bmd,rbd->rbm", expected, v.flatten(2)), rtol=1e-9, atol=1e-11)


def masked_attention(z: Tensor) -> Tensor:
    tokens = z.flatten(2).mT
    mask = torch.ones(16, 16, dtype=torch.bool).tril()
    return torch.nn.functional.scaled_dot_product_attention(tokens, 2 * tokens, tokens, attn_mask=mask)


def modulated(z: Tensor) -> Tensor:
    """A convolution whose weights come from the latents, of a doubled image."""
    weight = z.reshape(3, 1, 16)[:, :, :9].reshape(3, 1, 3, 3).expand(3, 3, 3, 3).contiguous()
    bias = z.sum(dim=(0, 2, 3))
    return torch.nn.functional.conv2d(torch.nn.functional.interpolate(z, scale_factor=2), weight, bias, padding=1)


def normalised(z: Tensor) -> Tensor:
    x = torch.nn.functional.conv2d(z, z.reshape(3, 1, 4, 4).expand(3, 3, 4, 4), padding=2)
    return torch.nn.functional.group_norm(x, 3, weight=z.sum(dim=(0, 2, 3)), bias=z[0, :, 0, 0])


def guided(z: Tensor) -> Tensor:
    """A decoder that takes a gradient itself."""
    (step,) = torch.autograd.grad(torch.nn.functional.silu(z).square().sum(), z, create_graph=True)
    return z - step


def guided_when_normalised(z: Tensor) -> Tensor:
    (step,) = torch.autograd.grad(torch.nn.functional.group_norm(z, 3).pow(3).sum(), z, create_graph=True)
    return z - step


def guided_when_doubled(z: Tensor) -> Tensor:
    y = torch.nn.functional.interpolate(z, scale_factor=2)
    weight = torch.linspace(-1, 1, 81, dtype=z.dtype).reshape(3, 3, 3, 3)
    (step,) = torch.autograd.grad(torch.nn.functional.conv2d(y, weight, padding=1).pow(3).sum(), y, create_graph=True)
    return y - step


def hooked(z: Tensor) -> Tensor:
    """A gradient that is not that of the values."""
    y = torch.tanh(z)
    if y.requires_grad:
        y.register_hook(lambda u: 3 * u)
    return y


def guided_where_it_may(z: Tensor) -> Tensor:
    """Leaves out the step, without a word, where the doubled image is not in the graph."""
    y = torch.nn.functional.interpolate(z, scale_factor=2)
    weight = torch.linspace(-1, 1, 81, dtype=z.dtype).reshape(3, 3, 3, 3)
    energy = torch.nn.functional.conv2d(y, weight, padding=1).pow(3).sum()
    (step,) = torch.autograd.grad(energy, y, create_graph=True, allow_unused=True)
    return y if step is None else y - step


def hooked_where_doubled(z: Tensor) -> Tensor:
    y = torch.nn.functional.interpolate(z, scale_factor=2)
    if y.requires_grad:
        y.register_hook(lambda u: 3 * u)
    return torch.nn.functional.conv2d(y, torch.linspace(-1, 1, 81, dtype=z.dtype).reshape(3, 3, 3, 3), padding=1)


UNUSUAL = [
    masked_attention,
    modulated,
    normalised,
    guided,
    guided_when_normalised,
    guided_when_doubled,
    guided_where_it_may,
    hooked_where_doubled,
]


@pytest.mark.parametrize("decode", UNUSUAL)
@pytest.mark.parametrize("first", ["vjp", "jvp"])
def test_unusual_decoders_have_the_derivative_that_torch_gives_them(decode, first):
    from diffleak.geometry.operators import LinearMap

    z = latents(1)
    expected = torch.autograd.functional.jacobian(decode, z)
    m = expected[0].numel() // D
    expected = expected.reshape(m, D)
    J = LinearMap(decode, z)
    v, u = torch.randn(2, *z.shape).double(), torch.randn(2, *decode(z.clone().requires_grad_(True)).shape).double()
    jv = J.jvp(v) if first == "jvp" else None
    torch.testing.assert_close(J.vjp(u).flatten(1), u.flatten(1) @ expected, rtol=1e-9, atol=1e-9)
    if jv is not None:
        torch.testing.assert_close(jv.flatten(1), v.flatten(1) @ expected.T, rtol=1e-9, atol=1e-9)
        assert J.mode == "autograd"


def test_a_choice_made_at_one_image_holds_at_others(kl):
    from diffleak.geometry.operators import LinearMap

    calls: list[int] = []
    first = LinearMap(lambda z: calls.append(len(z)) or kl.decode(z), latents(3))
    assert (first.mode, first.forms) == ("autograd", "all")
    chosen = len(calls)
    assert set(calls) == {1}, "one image is enough"
    other = first.at(latents(2))
    assert (other.mode, other.forms) == ("autograd", "all") and len(calls) == chosen
    other.jvp(latents(2)[None])
    assert calls[chosen:] == [2]


def test_a_derivative_that_is_not_that_of_the_values_is_refused_for_j_v():
    from diffleak.errors import UserError
    from diffleak.geometry.operators import LinearMap

    with pytest.raises(UserError, match="derivative must agree with its differences along a small step; they do not; let it compute in"):
        LinearMap(hooked, latents(1), "central differences").jvp(latents(1)[None])


def test_a_backward_whose_own_derivative_is_a_tenth_off_is_noticed_at_every_size():
    from diffleak.geometry.operators import LinearMap

    class TenthOff(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            ctx.save_for_backward(z)
            return torch.sin(z)

        @staticmethod
        def backward(ctx: Any, u: Tensor) -> Tensor:
            return ctx.saved_tensors[0].cos() * (0.9 * u + 0.1 * u.detach())

    for side in (4, 128):
        z = torch.randn(1, 3, side, side)
        assert LinearMap(TenthOff.apply, z).mode == "central differences"
        assert LinearMap(torch.sin, z).mode == "autograd"


class TensorFloat32(TorchDispatchMode):
    """Convolutions as GPUs take them: inputs rounded to 10 bits of mantissa."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            args = [self._rounded(a) if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _rounded(x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def test_convolutions_of_an_accelerators_precision_are_no_reason_to_leave_the_forms(kl):
    from diffleak.geometry.operators import LinearMap

    network = deepcopy(kl.network).float()
    codec = replace(kl, network=network, scale=kl.scale.float(), shift=kl.shift.float())
    z = latents(2, torch.float32)
    expected = LinearMap(codec.decode, z).jvp(z[None])
    with TensorFloat32():
        J = LinearMap(codec.decode, z)
        found = J.jvp(z[None])
    assert (J.mode, J.forms) == ("autograd", "all")
    assert 1e-5 < float((found - expected).norm() / expected.norm()) < 1e-2


class Checkpointed(torch.nn.Module):
    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, z: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self.layers, z, use_reentrant=False)


class Autocast(torch.nn.Module):
    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layers(z).to(z.dtype)


@pytest.mark.parametrize(("wrapper", "tolerance"), [(Checkpointed, 1e-3), (Autocast, 0.1)])
def test_decoders_that_do_more_than_compute_are_measured_as_they_are(wrapper, tolerance):
    """Gradient checkpointing computes parts again, in the backward; autocast convolves in half precision."""
    from diffleak.geometry.operators import LinearMap

    torch.manual_seed(2)
    nn = torch.nn
    layers = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1), nn.SiLU())
    z = latents(2, torch.float32)
    expected = dense(codec_of(layers), z).detach()
    v, u = torch.randn(2, *z.shape), torch.randn(2, 2, *IMAGE)
    for first in ("vjp", "jvp"):
        J = LinearMap(wrapper(layers), z)
        jv = J.jvp(v) if first == "jvp" else None
        close = {"rtol": tolerance, "atol": tolerance * float(expected.norm()) / 3}
        torch.testing.assert_close(J.vjp(u).flatten(2), torch.einsum("bmd,rbm->rbd", expected, u.flatten(2)), **close)
        if jv is not None:
            torch.testing.assert_close(jv.flatten(2), torch.einsum("bmd,rbd->rbm", expected, v.flatten(2)), **close)


@pytest.mark.parametrize("estimator", ["krylov", "randomized"])
@pytest.mark.parametrize("broken", ["one weight", "one image"])
def test_a_distortion_that_is_not_finite_is_one_line(kl, broken, estimator):
    from diffleak.errors import UserError
    from diffleak.geometry.pullback import distortion

    z, decode = latents(3), kl.decode
    if broken == "one image":
        z[1, 0, 0, 0] = torch.nan
    else:
        decode = lambda z: kl.decode(z) * torch.nan
    with pytest.raises(
        UserError, match=f"not finite for {1 if broken == 'one image' else 3} of 3 images; check the latents and the decoder"
    ):
        distortion(codec_of(decode), z, 2, 2, noise=keyed(3), estimator=estimator)
    if broken == "one image":
        z = z.roll(-1, dims=0)
        with pytest.raises(UserError, match="not finite for 1 of 3 images"):
            distortion(codec_of(decode), z, 2, 2, noise=keyed(3), mode="autograd", estimator=estimator)


def test_an_error_of_the_decoders_own_is_not_hidden_by_the_second_attempt():
    from diffleak.geometry.operators import LinearMap

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, u: Tensor) -> Tensor:
            raise RuntimeError("this decoder is broken")

    with pytest.raises(RuntimeError, match="this decoder is broken"):
        LinearMap(Broken.apply, latents(1)).vjp(torch.randn(1, 1, *LATENT).double())


def test_a_codec_need_not_be_hashable():
    from diffleak.diffusion.codec import Codec
    from diffleak.geometry.pullback import influence

    @dataclass
    class Mine(Codec):
        encode = snap = lambda self, z: z
        decode = lambda self, z: 3 * z

    torch.testing.assert_close(influence(Mine(), latents(1), 400, noise=keyed(1)).exp().mean(), torch.tensor(3.0), rtol=0.05, atol=0)


def test_a_decoder_of_diffusers_takes_less_work_than_as_it_is_written(kl):
    from torch.utils.flop_counter import FlopCounterMode

    from diffleak.geometry.operators import record

    def work(graph: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            x, z = graph()
            torch.autograd.grad(x, z, torch.ones_like(x))
        return counter.get_total_flops()

    def plain() -> tuple[Tensor, Tensor]:
        z = latents(1).requires_grad_(True)
        return kl.decode(z), z

    def ours() -> tuple[Tensor, Tensor]:
        graph = record(kl.decode, latents(1))
        return graph.x, graph.z

    channels, (height, width) = 8, IMAGE[1:]  # of the one convolution after a doubling, there and back
    assert work(plain) - work(ours) == 2 * (2 * height * width * channels**2 * (9 - 4))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_central_differences_agree_with_autograd(kl, dtype, tolerance):
    from diffleak.geometry.operators import LinearMap

    codec = replace(kl, network=autoencoder("AutoencoderKL").network.to(dtype))
    z = latents(3, dtype)
    z[2] *= 10
    v = torch.randn(2, *z.shape, dtype=dtype)
    v[1] *= 1e3
    exact = LinearMap(codec.decode, z, "autograd").jvp(v)
    near = LinearMap(codec.decode, z, "central differences")
    error = (near.jvp(v) - exact).flatten(2).norm(dim=2) / exact.flatten(2).norm(dim=2)
    assert near.mode == "central differences"
    assert error.max() < tolerance
    assert (near.jvp(torch.zeros_like(v)) == 0).all()
    assert LinearMap(codec.decode, torch.zeros_like(z), "central differences").jvp(v).isfinite().all()


@pytest.mark.parametrize("planted", [Square, SilentSquare])
def test_a_decoder_without_second_derivative_falls_back_to_central_differences(kl, planted):
    from diffleak.errors import UserError
    from diffleak.geometry.operators import LinearMap
    from diffleak.geometry.pullback import distortion

    codec = codec_of(lambda z: kl.decode(z + planted.apply(z)))
    z = latents(2)
    J = LinearMap(codec.decode, z)
    v = torch.randn(2, *z.shape).double()
    same = LinearMap(lambda z: kl.decode(z + z**2), z)
    torch.testing.assert_close(J.jvp(v), same.jvp(v), rtol=1e-5, atol=1e-6)
    assert (J.mode, same.mode) == ("central differences", "autograd")
    expected = torch.linalg.svdvals(dense(codec_of(lambda z: kl.decode(z + z**2)), z))[:, :5].log().sum(1)
    torch.testing.assert_close(distortion(codec, z, 5, noise=keyed(2)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="must be differentiable twice"):
        distortion(codec, z, 5, noise=keyed(2), mode="autograd")


@pytest.mark.parametrize(
    "cut", [lambda z: z.detach(), lambda z: z.round(), lambda z: (z.flatten(1).argmax(1)[:, None] * torch.ones(1, M)).double()]
)
def test_decoders_without_a_derivative_say_so(cut):
    from diffleak.errors import UserError
    from diffleak.geometry.pullback import distortion, influence

    A = matrix()
    codec = codec_of(lambda z: linear(A).decode(cut(z)) if cut(z).numel() == z.numel() else cut(z).reshape(len(z), *IMAGE))
    for call in (influence, distortion):
        with pytest.raises(UserError, match=r"cut off from them|zero in every direction") as caught:
            call(codec, latents(2), noise=keyed(2))
        assert "\n" not in str(caught.value)


def test_one_image_of_zero_or_infinite_derivative_is_counted():
    from diffleak.errors import UserError
    from diffleak.geometry.pullback import influence

    A, z = matrix(), latents(3)
    z[1] = -7
    codec = lambda f: codec_of(lambda z: linear(A).decode(f(z)))
    with pytest.raises(UserError, match=r"zero in every direction .* for 1 of 3 images"):
        influence(codec(lambda z: z.clamp(min=-6)), z.clamp(min=-7), noise=keyed(3))
    with pytest.raises(UserError, match="not finite for 1 of 3 images"):
        influence(codec(lambda z: (z + 7).sqrt()), z, noise=keyed(3))


# estimators


def test_a_linear_decoder_has_the_closed_form_distortion_and_influence():
    from diffleak.geometry.pullback import distortion, influence

    A, n = matrix(), 40
    z = latents(n)
    torch.testing.assert_close(
        distortion(linear(A), z[:3], top=D, noise=keyed(3)), torch.linalg.svdvals(A).log().sum().expand(3), rtol=1e-9, atol=0
    )
    probes = 32
    found = influence(linear(A), z, probes, noise=keyed(n), estimator="hutchinson").flatten(1).double()
    assert found.dtype == torch.float64
    ratios = (2 * found).exp() / A.square().sum(0)  # chi-squared(32) / 32, independent between images
    draws = ratios.mean(0)
    sd = math.sqrt(2 / (probes * n))
    assert (draws - 1).abs().max() < 5 * sd  # 48 coordinates at five sigma
    assert 0.7 < ratios.var(0).mean() / (2 / probes) < 1.3


def test_influence_is_unbiased_with_variance_two_over_n(kl):
    from diffleak.geometry.estimators import hutchinson
    from diffleak.geometry.operators import LinearMap

    copies, z = 200, latents(1)
    J, G = LinearMap(kl.decode, z.expand(copies, *LATENT)), dense(kl, z)[0].square().sum(0)
    probes = torch.randn(8, copies, *IMAGE, generator=torch.Generator().manual_seed(5)).double()
    for n in (2, 8):
        runs = hutchinson(J, probes[:n].split(3)).flatten(1) / G
        assert ((runs.mean(0) - 1).abs() < 5 * math.sqrt(2 / n / copies)).all()
        spread = math.sqrt((12 / n + 2) / copies)  # of a sample variance of chi-squared means, were all coordinates one
        assert abs(runs.var(0).mean() / (2 / n) - 1) < 4 * spread
    assert (runs >= 0).all()


def test_filtered_influence_is_nearer_to_the_dense_jacobian_than_unfiltered(kl):
    """By its error, and by how many of the coordinates that a mask keeps are right."""
    from diffleak.geometry.pullback import influence, keep_mask

    copies, images, probes = 30, 4, 8
    z = latents(images).repeat_interleave(copies, 0)
    exact = 0.5 * dense(kl, latents(images)).square().sum(1).log().reshape(images, *LATENT).repeat_interleave(copies, 0)
    found = [influence(kl, z, probes, noise=keyed(len(z)), estimator=name) for name in ("hutchinson", "filtered")]
    error = [(each - exact).square().flatten(1).mean(1) for each in found]
    right = [(keep_mask(each) * keep_mask(exact.float())).flatten(1).mean(1) for each in found]
    for gain in (error[0] - error[1], right[1] - right[0]):
        assert gain.mean() > 3 * gain.std() / math.sqrt(len(gain))


def drawn(logs: np.ndarray, probes: int, seed: int = 0) -> np.ndarray:
    """Logs of Hutchinson's estimates, were all coordinates independent."""
    return logs + np.log(np.random.default_rng(seed).chisquare(probes, logs.shape) / probes)


def test_the_filter_removes_nearly_all_noise_from_a_flat_map_and_its_logs_are_unbiased():
    from diffleak.geometry.estimators import filtered

    exact = np.broadcast_to(np.arange(4.0)[:, None, None], (200, 4, 8, 8))
    for probes in (2, 8):
        y = drawn(exact, probes)
        found = filtered(y, probes)
        sd = math.sqrt(float(polygamma(1, probes / 2)) / y.size)
        assert abs((found - exact).mean()) < 4 * sd
        assert np.square(found - exact).mean() < 0.15 * np.square(y - exact).mean()


@pytest.mark.parametrize("channels", [1, 4])
def test_where_nothing_is_smooth_the_filter_does_no_harm(channels):
    """Neighbours that have nothing in common: the error of the logs stays below that without a filter."""
    from diffleak.geometry.estimators import filtered

    probes, exact = 8, np.random.default_rng(1).normal(0, 2.0, (400, channels, 8, 8))
    y = drawn(exact, probes)
    unfiltered = y - (digamma(probes / 2) - math.log(probes / 2))
    gain = np.square(unfiltered - exact).mean((1, 2, 3)) - np.square(filtered(y, probes) - exact).mean((1, 2, 3))
    assert gain.mean() > -2 * gain.std() / math.sqrt(len(gain))


def test_an_image_is_filtered_alone_on_every_grid_and_without_one_not_at_all():
    from diffleak.geometry.estimators import filtered

    for shape in ((3, 4, 6), (2, 7), (1, 2, 2), (1, 1, 1)):
        y = np.random.default_rng(2).normal(size=(5, *shape))
        np.testing.assert_allclose(filtered(y, 8), np.concatenate([filtered(y[i : i + 1], 8) for i in range(5)]), rtol=1e-12)
    y = np.random.default_rng(2).normal(size=(5, 6))
    np.testing.assert_allclose(filtered(y, 8), y - (digamma(4) - math.log(4)), rtol=1e-12)


def test_singular_values_are_those_of_the_dense_jacobian(kl):
    from diffleak.geometry.estimators import singular_values
    from diffleak.geometry.operators import LinearMap

    z, top = latents(3), 10
    V0 = torch.randn(26, 3, *LATENT, generator=torch.Generator().manual_seed(7)).double()
    found = singular_values(LinearMap(kl.decode, z), V0)
    expected = torch.linalg.svdvals(dense(kl, z))
    torch.testing.assert_close(found[:, :top], expected[:, :top], rtol=1e-3, atol=0)
    assert (found <= expected[:, :26] * (1 + 1e-9)).all(), "a projection does not lengthen"
    unpowered = singular_values(LinearMap(kl.decode, z), V0, power=0)
    assert ((found - expected[:, :26]).abs().sum(1) < (unpowered - expected[:, :26]).abs().sum(1)).all()


def test_krylov_values_are_those_of_the_dense_jacobian_and_nearer_than_randomized_ones_of_as_many_products(kl):
    from diffleak.geometry.estimators import krylov_values, singular_values
    from diffleak.geometry.operators import LinearMap

    z, top = latents(3), 10
    V0 = torch.randn(D, 3, *LATENT, generator=torch.Generator().manual_seed(7)).double()
    expected, J = torch.linalg.svdvals(dense(kl, z)), LinearMap(kl.decode, z)
    torch.testing.assert_close(krylov_values(J, V0), expected, rtol=1e-9, atol=1e-9)
    some = krylov_values(J, V0[:30])
    assert (some <= expected[:, :30] * (1 + 1e-9)).all(), "a projection does not lengthen"
    error = lambda found: (found[:, :top] - expected[:, :top]).abs().sum(1)
    assert (error(some) < error(singular_values(J, V0[:15], power=1))).all(), "30 products of each kind"


@pytest.mark.parametrize("repeated", [1, 2, D // 3, D])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_singular_values_are_found_as_often_as_they_are_there(repeated, dtype):
    """A Krylov space holds one direction for all that are equal; the others come from the start vectors that take its place."""
    from diffleak.geometry.pullback import distortion

    U, _, Vh = torch.linalg.svd(matrix(), full_matrices=False)
    s = torch.linspace(3, 1, D // repeated, dtype=torch.float64).repeat_interleave(repeated)
    found = distortion(linear(U * s @ Vh), latents(2, dtype), top=D, noise=keyed(2))
    torch.testing.assert_close(found, s.log().sum().expand(2), rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=0)


@pytest.mark.parametrize("estimator", ["krylov", "randomized"])
def test_distortion_of_the_full_latent_space_is_the_log_volume(kl, estimator):
    from diffleak.geometry.pullback import distortion

    z = latents(2)
    expected = torch.linalg.svdvals(dense(kl, z)).log().sum(1)
    torch.testing.assert_close(distortion(kl, z, top=D, noise=keyed(2), estimator=estimator), expected, rtol=1e-6, atol=1e-6)


def test_scaling_the_decoder_shifts_the_distortion_by_k_log_c(kl):
    from diffleak.geometry.pullback import distortion, influence

    z, c = latents(2), 7.5
    scaled = codec_of(lambda z: c * kl.decode(z))
    gap = distortion(scaled, z, 6, 8, noise=keyed(2)) - distortion(kl, z, 6, 8, noise=keyed(2))
    torch.testing.assert_close(gap, torch.full((2,), 6 * math.log(c), dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(influence(scaled, z, noise=keyed(2)), influence(kl, z, noise=keyed(2)) + math.log(c), rtol=1e-5, atol=1e-5)


def test_fewer_outputs_than_columns_are_no_difficulty():
    from diffleak.geometry.pullback import distortion

    A = matrix()[:7]
    codec = codec_of(lambda z: z.flatten(1) @ A.T)
    expected = torch.linalg.svdvals(A).log().sum().expand(2)
    torch.testing.assert_close(distortion(codec, latents(2), top=7, noise=keyed(2)), expected, rtol=1e-9, atol=0)


# batches, budgets, surroundings


def test_results_per_image_depend_neither_on_the_batch_nor_on_the_pieces(kl):
    from diffleak.geometry.pullback import distortion, influence

    n, z = 3, latents(3)
    for call, sizes in ((influence, (5,)), (distortion, (3, 4)), (partial(distortion, estimator="randomized"), (3, 4))):
        whole = call(kl, z, *sizes, noise=keyed(n))
        single = torch.cat([call(kl, z[i : i + 1], *sizes, noise=keyed(1, start=i)) for i in range(n)])
        tolerance = {"rtol": 1e-9, "atol": 0} if whole.dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(whole, single, **tolerance)
        for budget in (1, 150_000, 250_000):
            torch.testing.assert_close(call(kl, z, *sizes, noise=keyed(n), budget=budget), whole, **tolerance)
        assert not torch.allclose(whole, call(kl, z, *sizes, noise=keyed(n, seed=1)), rtol=1e-6, atol=0)


def test_the_budget_limits_what_graphs_save(kl):
    from diffleak.geometry.pullback import blocks, distortion, influence

    z, most = latents(6), {}
    for budget in (150_000, 300_000, 2**30):
        images, vectors = blocks(kl, z, 8, budget=budget)
        assert blocks(kl, z, 8, budget=budget) == (images, vectors) and images <= 6 and vectors <= 8
        most[budget] = (images, _peak(lambda budget=budget: influence(kl, z, 2, noise=keyed(6), budget=budget)))
    weights = _peak(lambda: influence(kl, z[:1], noise=keyed(1))) * 2 - _peak(lambda: influence(kl, z[:2], noise=keyed(2)))
    assert most[2**30][0] == 6 and most[150_000][0] < most[300_000][0] < 6
    for budget, (_, peak) in most.items():
        assert peak <= max(budget, 0) + max(weights, 0)
    assert most[300_000][1] > 0.3 * 300_000, "the budget is used"
    for estimator in ("krylov", "randomized"):
        peak = _peak(lambda estimator=estimator: distortion(kl, z, 2, 2, noise=keyed(6), budget=400_000, estimator=estimator))
        assert peak <= 400_000 + max(weights, 0)


def test_accelerators_whose_group_norm_takes_one_layout_measure_the_same_distortion(kl, monkeypatch):
    """On a GPU group_norm refuses channels that lie last, as they do after attention; here a stand-in refuses them on the CPU."""
    from diffleak.geometry import forms
    from diffleak.geometry.pullback import distortion

    expected, plain, seen = distortion(kl, latents(2), 3, 4, noise=keyed(2)), torch.native_group_norm, []

    def strict(x: Tensor, *arguments: Any) -> Any:
        assert x.is_contiguous(), "Expected X.is_contiguous(memory_format) to be true"
        seen.append(x.ndim)
        return plain(x, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "native_group_norm", strict)
        patch.setattr(forms, "HOST", "another device")
        torch.testing.assert_close(distortion(kl, latents(2), 3, 4, noise=keyed(2)), expected, rtol=1e-9, atol=0)
    assert 4 in seen


def test_on_a_cpu_work_is_cut_into_pieces_of_the_stated_size_unless_a_budget_is_given(kl, monkeypatch):
    from diffleak.geometry import pullback

    calls: list[int] = []
    fit = pullback._fit
    monkeypatch.setattr(pullback, "_fit", lambda *arguments: calls.append(arguments[-1]) or fit(*arguments))
    for budget in (None, 2**20):
        pullback.influence(kl, latents(2), noise=keyed(2), budget=budget)
        pullback.distortion(kl, latents(2), 2, 2, noise=keyed(2), budget=budget)
    assert calls == [2**27, 2**28, 2**20, 2**20]


def test_only_latents_whose_derivatives_are_wanted_are_laid_out_for_speed_and_decode_alike(kl):
    z, seen = latents(2), []
    hook = kl.network.decoder.conv_in.register_forward_hook(lambda module, given, out: seen.append(given[0].stride()[1]))
    plain, laid_out = kl.decode(z), kl.decode(z.clone().requires_grad_(True))
    hook.remove()
    assert seen == [math.prod(LATENT[1:]), 1]
    torch.testing.assert_close(laid_out, plain, rtol=1e-6, atol=1e-8)


def test_measuring_leaves_nothing_behind(kl):
    from diffleak.geometry.pullback import blocks

    tensors = lambda: sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())
    blocks(kl, latents(1), 8, both=True, budget=2**30)
    gc.collect()
    before = tensors()
    for _ in range(3):
        blocks(kl, latents(1), 8, both=True, budget=2**30)
    gc.collect()
    assert tensors() <= before


def _peak(call: Any) -> int:
    """The most bytes that graphs hold at a time: every saved storage is counted until it is let go."""
    alive: dict[int, tuple[int, int]] = {}
    total = peak = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal total, peak
            self.tensor, self.key = tensor.detach(), tensor.untyped_storage().data_ptr()
            size, count = alive.get(self.key, (tensor.untyped_storage().nbytes(), 0))
            alive[self.key] = (size, count + 1)
            total += 0 if count else size
            peak = max(peak, total)

        def __del__(self) -> None:
            nonlocal total
            size, count = alive.pop(self.key)
            total -= 0 if count > 1 else size
            if count > 1:
                alive[self.key] = (size, count - 1)

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        call()
    gc.collect()
    assert not alive, "graphs are let go"
    return peak


def test_works_without_gradients_in_threads_and_in_single_precision(kl):
    from diffleak.geometry.pullback import distortion, influence

    z, found = latents(2), {}
    single = autoencoder("AutoencoderKL")
    single = replace(single, network=single.network.float())

    def both(codec: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        return influence(codec, z, noise=keyed(2)), distortion(codec, z, 3, 4, noise=keyed(2))

    def work(name: str) -> None:
        with torch.inference_mode():
            found[name] = both(kl, z.clone())

    threads = [threading.Thread(target=work, args=(f"thread {i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work("inference mode")
    with torch.no_grad():
        found["no grad"] = both(kl, z.requires_grad_(True))
    expected = both(kl, z.detach())
    assert len(found) == 4
    for name, (first, second) in found.items():
        assert torch.equal(first, expected[0]) and torch.equal(second, expected[1]), name
        assert not first.requires_grad and not second.requires_grad, name
    first, second = both(single, z.detach().float())
    assert (first.dtype, second.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(first, expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second, expected[1], rtol=1e-3, atol=1e-3)


def test_the_model_and_the_random_state_stay_as_they_are(kl):
    from diffleak.geometry.pullback import distortion, influence

    codec = autoencoder("AutoencoderKL")
    codec.network.requires_grad_(True).train()
    before = {k: v.clone() for k, v in codec.network.state_dict().items()}
    z, state = latents(2), torch.get_rng_state()
    original = z.clone()
    first = influence(codec, z, noise=keyed(2)), distortion(codec, z, 3, 4, noise=keyed(2))
    assert codec.network.training and all(p.grad is None and p.requires_grad for p in codec.network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in codec.network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(z, original) and not z.requires_grad
    assert torch.equal(first[0], influence(kl, z, noise=keyed(2)))


def test_a_quantised_decoder_is_differentiated_at_the_codes():
    from diffleak.geometry.pullback import distortion, influence

    codec = autoencoder("VQModel", num_vq_embeddings=16)
    z = latents(2)
    J = dense(codec, codec.snap(z))
    assert (codec.snap(z) - z).abs().max() > 0.1
    torch.testing.assert_close(
        distortion(codec, z, 6, 20, noise=keyed(2)), torch.linalg.svdvals(J)[:, :6].log().sum(1), rtol=1e-3, atol=1e-3
    )
    found = (2 * influence(codec, z, 400, noise=keyed(2)).flatten(1).double()).exp() / J.square().sum(1)
    assert (found - 1).abs().max() < 5 * math.sqrt(2 / 400)


def test_counts_out_of_range_are_refused(kl):
    from diffleak.errors import UserError
    from diffleak.geometry.estimators import hutchinson
    from diffleak.geometry.operators import LinearMap
    from diffleak.geometry.pullback import distortion, influence

    z = latents(2)
    narrow = codec_of(lambda z: z.flatten(1)[:, :5])
    cases = [
        (lambda: distortion(kl, z, top=D + 1, noise=keyed(2)), f"top must be at most {D}.*got {D + 1}"),
        (lambda: distortion(narrow, z, top=6, noise=keyed(2)), "top must be at most 5.*got 6"),
        (lambda: distortion(linear(matrix(rank=9)), z, top=10, noise=keyed(2)), "got 10 where the rank is 9"),
        (lambda: distortion(linear(matrix(rank=9)), z.float(), top=10, noise=keyed(2)), "got 10 where the rank is 9"),
        (lambda: distortion(kl, z, top=0, noise=keyed(2)), "top must be an integer of at least 1; got 0"),
        (lambda: distortion(kl, z, oversampling=-1, noise=keyed(2)), "oversampling must be an integer of at least 0; got -1"),
        (lambda: influence(kl, z, 0, noise=keyed(2)), "probes must be an integer of at least 1; got 0"),
        (lambda: influence(kl, z, noise=keyed(2), budget=0), "budget must be an integer of at least 1; got 0"),
        (lambda: influence(kl, z, noise=keyed(3)), "got 3 ids for 2 images"),
        (lambda: influence(kl, z[:0], noise=keyed(0)), "at least one; got 0 ids for 0 images"),
        (lambda: hutchinson(LinearMap(kl.decode, z), []), "at least one probe; got none"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()


# masks


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.3, 0.5, 0.6, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("d", [2, 47, 48, 256, 1001])
def test_a_mask_keeps_what_lies_above_the_images_own_quantile(keep, d):
    from diffleak.geometry.pullback import keep_mask

    values = torch.randn(3, d, generator=torch.Generator().manual_seed(d)) * torch.tensor([[1.0], [10], [0.1]]) + torch.tensor(
        [[0.0], [5], [-5]]
    )
    quantile = np.quantile(values.double().numpy(), 1 - keep, axis=1, keepdims=True)
    expected = values.double().numpy() > quantile + 1e-12
    mask = keep_mask(values, keep)
    if expected.any():
        assert np.array_equal(mask.numpy(), expected)
    assert (mask.sum(1) == mask[0].sum()).all() and mask.sum() >= 3
    assert abs(float(mask[0].sum()) - keep * d) <= 1


def test_controls_drop_the_same_share(kl):
    from diffleak.geometry.pullback import keep_mask

    values = torch.randn(4, *LATENT, generator=torch.Generator().manual_seed(0))
    kept = keep_mask(values, 0.6)
    random = keep_mask(values, 0.6, "random", keyed(4))
    reverse = keep_mask(values, 0.6, "reverse")
    assert kept.shape == values.shape and kept.dtype == values.dtype and set(kept.unique().tolist()) == {0, 1}
    assert (kept.flatten(1).sum(1) == random.flatten(1).sum(1)).all() and (kept.flatten(1).sum(1) == reverse.flatten(1).sum(1)).all()
    assert torch.equal(reverse, keep_mask(-values, 0.6)), "the most influential go instead of the least"
    assert ((1 - kept) * (1 - reverse)).sum() == 0, "nothing is dropped by both"
    assert torch.equal(random, keep_mask(values + 1, 0.6, "random", keyed(4)))
    assert torch.equal(random[2:3], keep_mask(values[2:3], 0.6, "random", keyed(1, start=2)))
    assert not torch.equal(random, kept) and not torch.equal(random[0], random[1])
    assert not torch.equal(random, keep_mask(values, 0.6, "random", keyed(4, seed=1)))
    for control in ("influence", "random", "reverse"):
        assert (keep_mask(values, 1.0, control, keyed(4)) == 1).all()


def test_ties_do_not_change_the_share_kept():
    from diffleak.geometry.pullback import keep_mask

    for control in ("influence", "reverse"):
        mask = keep_mask(torch.zeros(2, 10), 0.6, control)
        assert mask.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]] * 2 if control == "influence" else [[1] * 6 + [0] * 4] * 2


def test_masks_refuse_bad_settings():
    from diffleak.errors import UserError
    from diffleak.geometry.pullback import keep_mask

    values = torch.randn(2, 10)
    cases = [
        (lambda: keep_mask(values, 0.0), r"keep must be a share of coordinates in \(0, 1\]; got 0.0"),
        (lambda: keep_mask(values, 1.5), "got 1.5"),
        (lambda: keep_mask(values, math.nan), "got nan"),
        (lambda: keep_mask(values, 0.5, "random"), "needs noise keyed"),
        (lambda: keep_mask(values, 0.5, "random", keyed(3)), "got 3 ids for 2 images"),
        (lambda: keep_mask(values * math.nan), "influence must be finite"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
