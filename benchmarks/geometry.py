"""The geometry of latents against the loop anybody would write first: one image, one vector, one call of autograd at a time.

influence    8 probes: torch.autograd.functional.vjp for each probe
distortion   the paper's randomized SVD, K = 20, p = 30, q = 2: torch.autograd.functional.jvp and vjp for each column
frugal       the same loops, but one forward per image, and torch.autograd.grad for each vector; J v through the graph of u -> J^T u
agreement    the loop takes as many probes as its plain mean needs to keep as many of the coordinates that a mask should keep, by the dense
             Jacobian of 8 images, as our filtered influence from 8 probes does

Both sides use the same decoder, dtype, layout, torch.linalg calls and threads: torch's own, one or as many as there are cores; and the same
vectors, but for `krylov`, our distortion from fewer products. Seconds per image, best of the rounds, after one round that does not count.
`python benchmarks/geometry.py AUTOENCODER IMAGES.npy` measures a decoder of yours, with images of 32 x 32.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffleak.diffusion.codec import Autoencoder, Codec
from diffleak.diffusion.noise import Noise
from diffleak.geometry.estimators import filtered
from diffleak.geometry.forms import Forms
from diffleak.geometry.operators import LinearMap, record
from diffleak.geometry.pullback import distortion, influence, keep_mask
from diffleak.work.memory import keep_freed_memory

CHANNELS = (32, 48, 64)  # those of the preset vae
LATENT = (4, 8, 8)
PROBES = 8
MOST = 64  # probes that the plain mean may need
TOP, OVERSAMPLING, POWER = 20, 30, 2


def make_codec() -> Autoencoder:
    """An untrained AutoencoderKL, latents of 4 x 8 x 8 to images of 3 x 32 x 32, attention in its middle block."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT[0],
        norm_num_groups=8,
    )
    return Autoencoder(network.eval().requires_grad_(False), torch.ones(1), torch.zeros(1))


def loop_influence(codec: Codec, z: Tensor, noise: Noise, frugal: bool = False, probes: int = PROBES) -> Tensor:
    rows = []
    for i in range(len(z)):
        z_i = z[i : i + 1].clone().requires_grad_(True)
        if frugal:
            x = codec.decode(z_i)
            products = [torch.autograd.grad(x, z_i, noise(j)[i : i + 1], retain_graph=True)[0] for j in range(probes)]
        else:
            products = [torch.autograd.functional.vjp(codec.decode, z_i, noise(j)[i : i + 1])[1] for j in range(probes)]
        rows.append(0.5 * torch.log(torch.stack(products).square().mean(dim=0) + 1e-12))
    return torch.cat(rows)


def loop_distortion(codec: Codec, z: Tensor, noise: Noise, frugal: bool = False) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    sums, image = [], (1, 3, 32, 32)
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(len(z)):
            z_i = z[i : i + 1].clone().requires_grad_(True)
            jacobian, transposed = products(codec, z_i) if frugal else calls(codec, z_i.detach())
            V = torch.linalg.qr(torch.stack([noise(j)[i].flatten() for j in range(TOP + OVERSAMPLING)], 1).double()).Q
            for _ in range(POWER):
                V = torch.linalg.qr(by_column(transposed, by_column(jacobian, V, z_i.shape), image)).Q
            Q = torch.linalg.qr(by_column(jacobian, V, z_i.shape)).Q
            sums.append(torch.linalg.svdvals(by_column(transposed, Q, image))[:TOP].log().sum())
    return torch.stack(sums)


Product = Callable[[Tensor], Tensor]


def by_column(product: Product, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.stack([product(column.reshape(shape).float()).flatten() for column in columns.T], 1).double()


def calls(codec: Codec, z: Tensor) -> tuple[Product, Product]:
    """J v and J^T u, each a call of autograd that starts from the decoder."""
    functional = torch.autograd.functional
    return lambda v: functional.jvp(codec.decode, z, v)[1], lambda u: functional.vjp(codec.decode, z, u)[1]


def products(codec: Codec, z: Tensor) -> tuple[Product, Product]:
    """J v and J^T u over graphs that are recorded once."""
    x = codec.decode(z)
    u = torch.zeros_like(x, requires_grad=True)
    (jtu,) = torch.autograd.grad(x, z, u, create_graph=True)
    grad = torch.autograd.grad
    return lambda v: grad(jtu, u, v, retain_graph=True)[0], lambda u: grad(x, z, u, retain_graph=True)[0]


def seconds(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def compare(name: str, ours: Product, theirs: Product, counts: tuple[int, int], rounds: int) -> float:
    """Prints and returns seconds per image of the loop ÷ ours, rounds of the two taking turns."""
    n, few = counts
    z = torch.randn(n, *LATENT, generator=torch.Generator().manual_seed(1))
    fast, slow = [], []
    ours(z)
    for _ in range(rounds):
        t, found = seconds(lambda: ours(z))
        fast.append(t / n)
        t, expected = seconds(lambda: theirs(z[:few]))
        slow.append(t / few)
    gap = float((found[:few] - expected).abs().max())
    ratio = min(slow) / min(fast)
    print(
        f"geometry  {name:<42} loop ÷ ours: {ratio:.2f}   ({1e3 * min(slow):.0f} and {1e3 * min(fast):.1f} ms an image; "
        f"{n} images against {few}; largest difference {gap:.1e})",
        flush=True,
    )
    return ratio


def arithmetic(codec: Codec) -> None:
    """Prints how long our influence would take one core, were it nothing but its convolutions at the rate of the largest of them."""

    def operations(forms: Forms) -> int:
        with FlopCounterMode(display=False) as forward:
            graph = record(codec.decode, torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(1)), forms=forms)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(graph.x, graph.z, torch.ones_like(graph.x))
        return forward.get_total_flops() + PROBES * backward.get_total_flops()

    work, as_written = operations("all"), operations("none")
    u, w = torch.randn(16, 48, 32, 32), torch.randn(32, 48, 3, 3)
    u = u.contiguous(memory_format=torch.channels_last)
    convolution = lambda: torch.nn.functional.conv2d(u, w, padding=1)
    with FlopCounterMode(display=False) as one:
        convolution()
    rate = one.get_total_flops() / min(seconds(convolution)[0] for _ in range(50))
    print(
        f"geometry  influence takes {work / 1e9:.2f} GFLOP an image ({as_written / 1e9:.2f} as the decoder is written); "
        f"at the {rate / 1e9:.0f} GFLOP/s of its largest convolution on one core: {1e3 * work / rate:.1f} ms",
        flush=True,
    )


def choosing(codec: Codec) -> None:
    """Prints what the choice of forms costs a call of `influence`, whatever the number of its images."""
    z = torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(1))

    def choose() -> Tensor:
        assert LinearMap(codec.decode, z).forms == "all"
        return z

    print(f"geometry  choosing the forms takes {1e3 * min(seconds(choose)[0] for _ in range(20)):.1f} ms a call", flush=True)


def needed(codec: Codec, z: Tensor) -> int:
    """The probes that the plain mean needs to agree with the dense Jacobian as our influence from 8 does; prints both agreements."""
    import estimators

    decoder, rng = estimators.dense(codec, z), np.random.default_rng(0)
    exact = torch.log(decoder.J.double().square().sum(1)).reshape(len(z), *decoder.latent)
    kept, draws = keep_mask(exact), [torch.from_numpy(rng.normal(size=(len(z), decoder.J.shape[1], MOST))).float() for _ in range(6)]
    squares = [torch.bmm(decoder.J.mT, draw).square().double() for draw in draws]
    logs = lambda n: [each[:, :, :n].mean(2).log().reshape(len(z), *decoder.latent) for each in squares]
    agree = lambda found: float(np.mean([float((keep_mask(each) * kept).sum() / kept.sum()) for each in found]))
    ours = agree([torch.from_numpy(filtered(each.numpy(), PROBES)) for each in logs(PROBES)])
    n = next((n for n in range(2, MOST + 1) if agree(logs(n)) >= ours), MOST)
    print(
        f"geometry  filtered influence from {PROBES} probes keeps {ours:.3f}, as the plain mean of {n} does ({agree(logs(n)):.3f})",
        flush=True,
    )
    return n


def main(threads: int = 1, arguments: Sequence[str] = ()) -> dict[str, float]:
    """All ratios, on `threads` and on all cores; about five minutes."""
    from estimators import opened

    warnings.filterwarnings("ignore", category=FutureWarning)
    keep_freed_memory()
    cores, (codec, encoded) = len(os.sched_getaffinity(0)), opened([*arguments])
    alike = needed(codec, encoded)
    ids = tuple(map(str, range(64)))
    keyed = lambda n, shape=(), stream="": Noise(0, ids[:n], shape, stream=stream)
    probed = lambda frugal: lambda z: loop_influence(codec, z, keyed(len(z), (3, 32, 32), "influence"), frugal)
    stretched = lambda frugal: lambda z: loop_distortion(codec, z, keyed(len(z), LATENT, "distortion"), frugal)
    agreeing = lambda frugal: lambda z: loop_influence(codec, z, keyed(len(z), (3, 32, 32), "influence"), frugal, alike)
    ours = lambda estimator: lambda z: distortion(codec, z, TOP, noise=keyed(len(z)), estimator=estimator)
    measures = {
        "influence": (lambda z: influence(codec, z, PROBES, noise=keyed(len(z)), estimator="hutchinson"), probed, (64, 16), 3),
        "influence, equal agreement": (lambda z: influence(codec, z, PROBES, noise=keyed(len(z))), agreeing, (64, 16), 3),
        "distortion, randomized": (ours("randomized"), stretched, (16, 2), 2),
        "distortion, krylov": (ours("krylov"), stretched, (16, 2), 2),
    }
    found = {}
    for n in (cores, threads) if cores > threads else (threads,):
        torch.set_num_threads(n)
        on = "one core" if n == 1 else f"{n} cores"
        for what, (ours, loop, counts, rounds) in measures.items():
            for frugal in (False, True) if n == 1 else (False,):
                name = f"{what}, {on}" + ", frugal" * frugal
                found[name] = compare(name, ours, loop(frugal), counts, rounds)
    arithmetic(codec)
    choosing(codec)
    return found


if __name__ == "__main__":
    main(arguments=sys.argv[1:])
