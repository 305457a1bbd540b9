"""The geometry of latents against the loop anybody would write first: one image, one vector, one call of autograd at a time.

influence    8 probes: one forward per image, torch.autograd.grad for each probe
distortion   K = 20, p = 30, q = 2: torch.autograd.functional.jvp and vjp for each column

Both sides use the same decoder, dtype, vectors, number of threads and torch.linalg calls; seconds per image, best of the rounds.
"""

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from leakscope.diffusion.codec import Autoencoder
from leakscope.diffusion.noise import Noise
from leakscope.geometry import distortion, influence

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


def loop_influence(codec: Autoencoder, z: Tensor, noise: Noise) -> Tensor:
    rows = []
    for i in range(len(z)):
        z_i = z[i : i + 1].clone().requires_grad_(True)
        x = codec.decode(z_i)
        squares = [torch.autograd.grad(x, z_i, noise(j)[i : i + 1], retain_graph=True)[0].square() for j in range(PROBES)]
        rows.append(0.5 * torch.log(torch.stack(squares).mean(dim=0) + 1e-12))
    return torch.cat(rows)


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
        f"geometry  {name:<11} loop ÷ ours: {ratio:.2f}   ({1e3 * min(slow):.0f} and {1e3 * min(fast):.0f} ms an image; "
        f"{n} images against {few}; largest difference {gap:.1e}; aim >= 5)",
        flush=True,
    )
    return ratio


def main(threads: int = 1) -> dict[str, float]:
    """Both ratios on `threads` intra-op threads; about a minute."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    codec = make_codec()
    ids = tuple(map(str, range(64)))
    keyed = lambda n, shape, stream: Noise(0, ids[:n], shape, stream=stream)
    return {
        "influence": compare(
            "influence",
            lambda z: influence(codec, z, PROBES, noise=keyed(len(z), (), "")),
            lambda z: loop_influence(codec, z, keyed(len(z), (3, 32, 32), "influence")),
            (64, 64),
            rounds=3,
        ),
        "distortion": compare(
            "distortion",
            lambda z: distortion(codec, z, TOP, OVERSAMPLING, POWER, noise=keyed(len(z), (), "")),
            lambda z: loop_distortion(codec, z, keyed(len(z), LATENT, "distortion")),
            (16, 1),
            rounds=1,
        ),
    }


if __name__ == "__main__":
    main()
