"""The geometry of latents against the loop anybody would write first: one image, one vector, one call of autograd at a time.

influence    8 probes: torch.autograd.functional.vjp for each probe
  frugal       the same loop, but one forward per image, torch.autograd.grad for each probe
distortion   K = 20, p = 30, q = 2: torch.autograd.functional.jvp and vjp for each column

Both sides use the same decoder, dtype, vectors and torch.linalg calls; seconds per image, best of the rounds. On one core both
run on one thread. On all cores the loop has torch's threads within each operation, as it has unless told otherwise, and ours
the chunks of images side by side that an audit has.
"""

import os
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from leakscope.diffusion.codec import Autoencoder
from leakscope.diffusion.noise import Noise
from leakscope.geometry import distortion, influence
from leakscope.geometry.operators import record
from leakscope.memory import keep_freed_memory
from leakscope.threads import one_thread_each, pool

CHANNELS = (32, 48, 64)  # those of the preset vae
LATENT = (4, 8, 8)
PROBES = 8
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


def loop_influence(codec: Autoencoder, z: Tensor, noise: Noise, frugal: bool = False) -> Tensor:
    rows = []
    for i in range(len(z)):
        z_i = z[i : i + 1].clone().requires_grad_(True)
        if frugal:
            x = codec.decode(z_i)
            products = [torch.autograd.grad(x, z_i, noise(j)[i : i + 1], retain_graph=True)[0] for j in range(PROBES)]
        else:
            products = [torch.autograd.functional.vjp(codec.decode, z_i, noise(j)[i : i + 1])[1] for j in range(PROBES)]
        rows.append(0.5 * torch.log(torch.stack(products).square().mean(dim=0) + 1e-12))
    return torch.cat(rows)


def side_by_side(codec: Autoencoder, z: Tensor, threads: int) -> Tensor:
    """Influence as an audit computes it: chunks of images in a pool of threads, freed memory kept."""
    keep_freed_memory()
    size = -(-len(z) // threads)

    def chunk(start: int) -> Tensor:
        rows = range(start, min(start + size, len(z)))
        return influence(codec, z[rows.start : rows.stop], PROBES, noise=Noise(0, tuple(map(str, rows)), ()))

    with one_thread_each(), pool(threads) as executor:
        return torch.cat(list(executor.map(chunk, range(0, len(z), size))))


def loop_distortion(codec: Autoencoder, z: Tensor, noise: Noise) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def jacobian(z_i: Tensor, V: Tensor) -> Tensor:
        return torch.stack([torch.autograd.functional.jvp(codec.decode, z_i, v.reshape(z_i.shape).float())[1].flatten() for v in V.T], 1)

    def transposed(z_i: Tensor, U: Tensor) -> Tensor:
        return torch.stack([torch.autograd.functional.vjp(codec.decode, z_i, u.reshape(1, 3, 32, 32).float())[1].flatten() for u in U.T], 1)

    sums = []
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(len(z)):
            z_i = z[i : i + 1]
            V = torch.linalg.qr(torch.stack([noise(j)[i].flatten() for j in range(TOP + OVERSAMPLING)], 1).double()).Q
            for _ in range(POWER):
                V = torch.linalg.qr(transposed(z_i, jacobian(z_i, V).double()).double()).Q
            Q = torch.linalg.qr(jacobian(z_i, V).double()).Q
            sums.append(torch.linalg.svdvals(transposed(z_i, Q).double())[:TOP].log().sum())
    return torch.stack(sums)


def seconds(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def compare(name: str, ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], counts: tuple[int, int], rounds: int) -> float:
    """Prints and returns seconds per image of the loop ÷ ours, rounds of the two taking turns."""
    n, few = counts
    z = torch.randn(n, *LATENT, generator=torch.Generator().manual_seed(1))
    fast, slow = [], []
    for _ in range(rounds):
        t, found = seconds(lambda: ours(z))
        fast.append(t / n)
        t, expected = seconds(lambda: theirs(z[:few]))
        slow.append(t / few)
    gap = float((found[:few] - expected).abs().max())
    ratio = min(slow) / min(fast)
    print(
        f"geometry  {name:<18} loop ÷ ours: {ratio:.2f}   ({1e3 * min(slow):.0f} and {1e3 * min(fast):.0f} ms an image; "
        f"{n} images against {few}; largest difference {gap:.1e}; aim >= 5)",
        flush=True,
    )
    return ratio


def bound(codec: Autoencoder) -> float:
    """Milliseconds an image that our forward and PROBES backwards take one core, were they nothing but fast convolutions."""
    with FlopCounterMode(display=False) as forward:
        graph = record(codec.decode, torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(1)))
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(graph.x, graph.z, torch.ones_like(graph.x))
    work = forward.get_total_flops() + PROBES * backward.get_total_flops()
    u, w = torch.randn(16, 48, 32, 32), torch.randn(48, 48, 3, 3)  # the layer with most of the work, 16 images at a time
    u = u.contiguous(memory_format=torch.channels_last)
    convolution = lambda: torch.nn.functional.conv2d(u, w, padding=1)
    with FlopCounterMode(display=False) as one:
        convolution()
    rate = one.get_total_flops() / min(seconds(convolution)[0] for _ in range(50))
    most = f"at most {rate / 1e9:.0f} GFLOP/s on one core"
    print(f"geometry  influence takes {work / 1e9:.2f} GFLOP an image, {most}: {1e3 * work / rate:.1f} ms", flush=True)
    return 1e3 * work / rate


def main(threads: int = 1) -> dict[str, float]:
    """All ratios, the last on all cores where there are several; about two minutes."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    codec, cores = make_codec(), len(os.sched_getaffinity(0))
    ids = tuple(map(str, range(64)))
    keyed = lambda n, shape, stream: Noise(0, ids[:n], shape, stream=stream)
    loop = lambda frugal: lambda z: loop_influence(codec, z, keyed(len(z), (3, 32, 32), "influence"), frugal)
    found = {}
    for n in (threads, cores) if cores > threads else (threads,):
        torch.set_num_threads(n)
        on = "" if n == threads else f", {n} cores"
        for name, theirs in ((f"influence{on}", loop(False)), (f"  frugal{on}", loop(True))):
            found[name.strip()] = compare(name, lambda z, n=n: side_by_side(codec, z, n), theirs, (64, 64), rounds=3)
    torch.set_num_threads(threads)
    bound(codec)
    found["distortion"] = compare(
        "distortion",
        lambda z: distortion(codec, z, TOP, OVERSAMPLING, POWER, noise=keyed(len(z), (), "")),
        lambda z: loop_distortion(codec, z, keyed(len(z), LATENT, "distortion")),
        (16, 1),
        rounds=1,
    )
    return found


if __name__ == "__main__":
    main()
