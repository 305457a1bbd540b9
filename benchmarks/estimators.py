"""Estimators of influence and of distortion at equal time, against the dense Jacobian of a decoder.

    python benchmarks/estimators.py [AUTOENCODER IMAGES.npy | AUTOENCODER --large | --sd]

Without arguments: an untrained autoencoder of the preset vae, and 32 x 32 pieces of the two photographs of scikit-learn. --sd: two random
latents of 4 x 8 x 8 in a decoder of the size of Stable Diffusion's, untrained; ten minutes and more. --large: distortion alone, of 128 x
128 pixels of each photograph, against 240 products of each kind, since so many latents have no dense Jacobian here.

Influence

time      CPU seconds of the products that it takes ÷ those of the plain mean of 8 probes, one core, batches of images
kept      share of the 60 % of coordinates that a mask should keep that it does keep (0.6 by chance), with its error over images
error     root mean square of the error of log G_ii, constant left out: a mask does not see one
like      probes that the plain mean takes for the same error: 2 / n is the variance of the log for many probes

gaussian      the mean over n normal probes v of (J^T v)_i^2              rademacher   the same with signs
orthogonal    n normal probes made orthogonal, and of length sqrt(m)
paired        n normal probes; those of a pair share their values, with opposite signs on a checkerboard of 2 x 2 pixels
filtered      the mean over n normal probes, the noise of its log filtered out over places (`geometry.estimators.filtered`)
deflated      k columns U = qr(J W) exactly, |J^T U|^2, and n probes on what they leave: the correction of XDiag and Hutch++
              (Meyer, Musco, Musco and Woodruff 2021; Epperly, Tropp and Webber 2024, arXiv 2301.07825)
windows       J w for signs w at coordinates of one channel that are s apart; each G_ii is read in the window of its own 4 s pixels

Distortion, the sum of the logs of the 20 largest singular values

time      CPU seconds of the products ÷ those of the randomized SVD of 50 columns and 2 power passes; sums and factors of columns left out
error     root mean square of the error of the sum, in nats, over images and draws
order     the same about the mean error, which no quarter of the images and no correlation sees, ÷ the spread of the sum over images

randomized l, q   `geometry.estimators.singular_values`: l columns, q power passes
krylov l          `geometry.estimators.krylov_values`: l products of each kind, one vector after the other
blocks w x n      the same, n blocks of w vectors
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from diffleak.diffusion.codec import Autoencoder, Codec
from diffleak.geometry.estimators import filtered, krylov_values, singular_values
from diffleak.geometry.operators import LinearMap
from diffleak.geometry.pullback import FLOOR, keep_mask

IMAGES = 8
DRAWS = 6
PROBES = 8
TOP = 20
COLUMNS, POWER = 50, 2  # of the randomized SVD, as the paper has it
SD = {  # the decoder of Stable Diffusion
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


class Decoder(NamedTuple):
    """Dense Jacobians (b, m, d) of a decoder at some images, and the shapes of a latent and an image."""

    J: Tensor
    latent: tuple[int, ...]
    image: tuple[int, ...]


class Dense:
    """The Jacobians of a `Decoder` as `LinearMap` has them, in float64."""

    def __init__(self, decoder: Decoder) -> None:
        self.J = decoder.J.double()
        self.z, self.x_shape = self.J.new_zeros(len(self.J), self.J.shape[2]), tuple(self.J.shape[:2])

    def jvp(self, v: Tensor) -> Tensor:
        return torch.einsum("bmd,rbd->rbm", self.J, v)

    def vjp(self, u: Tensor) -> Tensor:
        return torch.einsum("bmd,rbm->rbd", self.J, u)


class Seconds(NamedTuple):
    """CPU seconds an image, in a batch: of recording the graphs, and of a product with one vector."""

    forward: float
    vjp: float
    twice: float  # of recording the graph that J v needs too
    jvp: float

    def of(self, vjps: int, jvps: int) -> float:
        return (self.twice if jvps else self.forward) + vjps * self.vjp + jvps * self.jvp


class Row(NamedTuple):
    name: str
    vjps: int
    jvps: int
    logs: Callable[[], ndarray]  # log G_ii, (b, *latent)


class Sum(NamedTuple):
    name: str
    products: int  # of each kind
    values: Callable[[], Tensor]  # singular values, (b, k), descending


def photographs() -> ndarray:
    from sklearn.datasets import load_sample_images

    rng, pieces = np.random.default_rng(0), list[ndarray]()
    for photo in load_sample_images().images:
        small = photo[::4, ::4]
        starts = (rng.integers(0, n - 32, IMAGES // 2) for n in small.shape[:2])
        pieces += [small[y : y + 32, x : x + 32] for y, x in zip(*starts, strict=True)]
    return np.stack(pieces)


def opened(arguments: list[str]) -> tuple[Codec, Tensor]:
    """The codec, and the latents of some images."""
    if arguments == ["--sd"]:
        return large(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    if arguments:
        from diffleak import hub

        codec, images = hub.load_codec(Path(arguments[0])), np.load(arguments[1], mmap_mode="r")
        images = images[np.sort(np.random.default_rng(0).choice(len(images), IMAGES, replace=False))]
    else:
        from geometry import make_codec

        codec, images = make_codec(), photographs()
    with torch.no_grad():
        return codec, codec.encode(torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1)


def large() -> Codec:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return Autoencoder(AutoencoderKL(**SD).eval().requires_grad_(False), torch.ones(1), torch.zeros(1))


def dense(codec: Codec, z: Tensor) -> Decoder:
    """By J v for every unit vector."""
    J, latent = LinearMap(codec.decode, z), tuple(z.shape[1:])
    units = torch.eye(z[0].numel()).reshape(-1, 1, 1, *latent)
    columns = [J.jvp(unit.expand(1, len(z), *latent))[0].flatten(1).detach() for unit in units]
    return Decoder(torch.stack(columns, 2), latent, J.x_shape[1:])


def timed(codec: Codec, z: Tensor) -> Seconds:
    """The fastest of some rounds, one core."""
    best = np.full(4, np.inf)
    forms = LinearMap(codec.decode, z[:1])
    assert forms.forms
    both = LinearMap(codec.decode, z[:1])
    assert both.mode
    u, v = torch.randn(1, *LinearMap(codec.decode, z).x_shape), torch.randn(1, *z.shape)
    for _ in range(4):
        plain, twice = forms.at(z), both.at(z)
        steps = (lambda J=plain: J.x_shape, lambda J=plain: J.vjp(u), lambda J=twice: J.x_shape, lambda J=twice: J.jvp(v))
        for i, step in enumerate(steps):
            started = time.process_time()
            step()
            best[i] = min(best[i], (time.process_time() - started) / len(z))
    return Seconds(*best)


def rows(decoder: Decoder, rng: np.random.Generator) -> Iterator[Row]:
    J, b, m = decoder.J, len(decoder.J), decoder.J.shape[1]
    normals = lambda n: torch.from_numpy(rng.normal(size=(b, m, n)).astype(np.float32))
    logs = lambda G: np.log(np.asarray(G, np.float64) + FLOOR).reshape(b, *decoder.latent)
    mean = lambda v: torch.bmm(J.transpose(1, 2), v).square().mean(2)
    for n in (2, 4, 8, 12, 16, 24, 32):
        yield Row(f"gaussian {n}", n, 0, lambda n=n: logs(mean(normals(n))))
    yield Row(f"rademacher {PROBES}", PROBES, 0, lambda: logs(mean(normals(PROBES).sign())))
    yield Row(f"orthogonal {PROBES}", PROBES, 0, lambda: logs(mean(torch.linalg.qr(normals(PROBES)).Q * m**0.5)))
    yield Row(f"paired {PROBES}", PROBES, 0, lambda: logs(mean(paired(normals(PROBES // 2), decoder.image))))
    for n in (2, 4, 8, 16):
        yield Row(f"filtered {n}", n, 0, lambda n=n: filtered(logs(mean(normals(n))), n))
    for k, n in ((1, 5), (2, 2), (20, 0), (50, 0)):
        yield Row(f"deflated {k} + {n}", k + n, k, lambda k=k, n=n: logs(deflated(J, k, normals(n), rng)))
    for s in (1, 2, 4):
        yield Row(f"windows {s} apart", 0, decoder.latent[0] * s * s, lambda s=s: logs(windows(decoder, s, rng)))


def paired(v: Tensor, image: tuple[int, ...]) -> Tensor:
    y, x = np.indices(image[1:]) // 2
    signs = torch.from_numpy(np.broadcast_to(1.0 - 2 * ((y + x) % 2), image).astype(np.float32).reshape(-1, 1))
    return torch.cat([v, v * signs], 2)


def deflated(J: Tensor, k: int, probes: Tensor, rng: np.random.Generator) -> Tensor:
    W = torch.from_numpy(rng.normal(size=(len(J), J.shape[2], k)).astype(np.float32))
    U = torch.linalg.qr(torch.bmm(J, W)).Q
    G = torch.bmm(J.transpose(1, 2), U).square().sum(2)
    rest = probes - torch.bmm(U, torch.bmm(U.transpose(1, 2), probes))
    return G + torch.bmm(J.transpose(1, 2), rest).square().mean(2) if probes.shape[2] else G


def windows(decoder: Decoder, s: int, rng: np.random.Generator) -> Tensor:
    (c, h, w), b = decoder.latent, len(decoder.J)
    factor = decoder.image[1] // h
    J, G = decoder.J.reshape(b, *decoder.image, c, h, w), torch.zeros(b, c, h, w)
    for channel, a, d in ((channel, a, d) for channel in range(c) for a in range(s) for d in range(s)):
        signs = torch.zeros(h, w)
        signs[a::s, d::s] = torch.from_numpy(rng.choice([-1.0, 1.0], signs[a::s, d::s].shape).astype(np.float32))
        power = (J[:, :, :, :, channel] * signs).sum((-2, -1)).square().sum(1)
        for i, j in ((i, j) for i in range(a, h, s) for j in range(d, w, s)):
            top, left = (int(factor * (n + 0.5 - s / 2)) for n in (i, j))
            box = power[:, max(0, top) : top + factor * s, max(0, left) : left + factor * s]
            G[:, channel, i, j] = box.sum((1, 2))
    return G


def sums(decoder: Decoder, rng: np.random.Generator) -> Iterator[Sum]:
    J, (b, _, d) = Dense(decoder), decoder.J.shape
    normals = lambda n: torch.from_numpy(rng.normal(size=(n, b, d)))
    for columns, power in ((COLUMNS, 0), (COLUMNS, 1), (COLUMNS, POWER), (25, 2), (25, 4)):
        yield Sum(
            f"randomized {columns}, {power}",
            columns * (power + 1),
            lambda columns=columns, power=power: singular_values(J, normals(columns), power),
        )
    for n in (25, 30, 40, 50, 60, 80, 100):
        yield Sum(f"krylov {n}", n, lambda n=n: krylov_values(J, normals(n)))
    for width, n in ((2, 25), (2, 30), (5, 10), (10, 5), (10, 10)):
        yield Sum(f"blocks {width} x {n}", width * n, lambda width=width, n=n: blocks(J, normals(width), n))


def blocks(J: Dense, start: Tensor, n: int) -> Tensor:
    orthogonal = lambda columns: torch.linalg.qr(columns).Q
    away = lambda columns, basis: columns - torch.bmm(basis, torch.bmm(basis.mT, columns))
    V, Us, Zs = orthogonal(start.permute(1, 2, 0)), list[Tensor](), list[Tensor]()
    Vs = [V]
    for _ in range(n):
        U = torch.bmm(J.J, Vs[-1])
        Us.append(orthogonal(away(away(U, torch.cat(Us, 2)), torch.cat(Us, 2)) if Us else U))
        Zs.append(torch.bmm(J.J.mT, Us[-1]))
        basis = torch.cat(Vs, 2)
        Vs.append(orthogonal(away(away(Zs[-1], basis), basis)))
    return torch.linalg.svdvals(torch.cat(Zs, 2))


def influence_table(decoder: Decoder, seconds: Seconds, rng: np.random.Generator, name: str) -> None:
    exact = torch.log(decoder.J.double().square().sum(1) + FLOOR).reshape(-1, *decoder.latent)
    spread = exact.flatten(2)
    between, within, ms = spread.mean(2).std(1).mean(), spread.std(2).mean(), [f"{1e3 * each:.1f}" for each in seconds]
    print(f"{name}: {len(exact)} images, {exact[0].numel()} coordinates")
    print(f"log G_ii spreads by {between:.2f} between channels, {within:.2f} within")
    print(f"ms of CPU an image: forward {ms[0]}, J^T u {ms[1]}; forward where J v is wanted too {ms[2]}, J v {ms[3]}\n")
    print("| estimator | J^T u | J v | time | kept | error | like |\n|---|--:|--:|--:|--:|--:|--:|", flush=True)
    kept, plain = keep_mask(exact), seconds.of(PROBES, 0)
    for row in rows(decoder, rng):
        right, errors = list[Tensor](), list[Tensor]()
        for _ in range(DRAWS):
            logs = torch.from_numpy(row.logs())
            right.append((keep_mask(logs) * kept).flatten(1).sum(1) / kept.flatten(1).sum(1))
            gap = (logs - exact).flatten(1)
            errors.append((gap - gap.mean(1, keepdim=True)).square().mean(1))
        share, variance = torch.stack(right).mean(0), float(torch.stack(errors).mean())
        print(
            f"| {row.name} | {row.vjps} | {row.jvps} | {seconds.of(row.vjps, row.jvps) / plain:.2f} | "
            f"{share.mean():.3f} ± {share.std() / len(share) ** 0.5:.3f} | {variance**0.5:.2f} | {2 / variance:.0f} |",
            flush=True,
        )
    print()


def distortion_table(decoder: Decoder, seconds: Seconds, rng: np.random.Generator) -> None:
    exact = torch.linalg.svdvals(decoder.J.double())[:, :TOP].log().sum(1)
    plain, spread = seconds.of(COLUMNS * (POWER + 1), COLUMNS * (POWER + 1)), float(exact.std())
    print(f"the sum of {TOP} log singular values is {exact.mean():.2f}, and spreads by {spread:.2f} over images\n")
    print("| estimator | J v | J^T u | time | error | order |\n|---|--:|--:|--:|--:|--:|", flush=True)
    for row in sums(decoder, rng):
        gap = torch.stack([row.values()[:, :TOP].log().sum(1) - exact for _ in range(DRAWS)])
        print(
            f"| {row.name} | {row.products} | {row.products} | {seconds.of(row.products, row.products) / plain:.2f} | "
            f"{gap.square().mean() ** 0.5:.2g} | {float((gap - gap.mean()).square().mean() ** 0.5) / spread:.2g} |",
            flush=True,
        )
    print()


def large_table(codec: Codec) -> None:
    from sklearn.datasets import load_sample_images

    images = np.stack([photo[::3, ::3][:128, :128] for photo in load_sample_images().images])
    with torch.no_grad():
        z = codec.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    J, generator = LinearMap(codec.decode, z), torch.Generator().manual_seed(0)
    assert J.mode
    normals = lambda n: torch.randn(n, *z.shape, generator=generator)
    total = lambda values: values[:, :TOP].log().sum(1)
    exact = total(krylov_values(J, normals(240)))
    print(f"{z[0].numel():,} coordinates; by 240 products: {', '.join(f'{each:.4f}' for each in exact)}\n")
    print("| estimator | J v | J^T u | s of CPU | error |\n|---|--:|--:|--:|--:|", flush=True)
    rows = [Sum(f"krylov {n}", n, lambda n=n: krylov_values(J, normals(n))) for n in (60, 80, 120)]
    rows.append(Sum(f"randomized {COLUMNS}, {POWER}", COLUMNS * (POWER + 1), lambda: singular_values(J, normals(COLUMNS), POWER)))
    for row in rows:
        started = time.process_time()
        gap = total(row.values()) - exact
        took = time.process_time() - started
        print(f"| {row.name} | {row.products} | {row.products} | {took:.1f} | {gap.square().mean() ** 0.5:.2g} |", flush=True)


def main(arguments: list[str]) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    if arguments[1:] == ["--large"]:
        from diffleak import hub

        return large_table(hub.load_codec(Path(arguments[0])))
    codec, z = opened(arguments)
    seconds, decoder, rng = timed(codec, z), dense(codec, z), np.random.default_rng(0)
    influence_table(decoder, seconds, rng, Path(arguments[0]).name.removeprefix("--") if arguments else "untrained")
    distortion_table(decoder, seconds, rng)


if __name__ == "__main__":
    main(sys.argv[1:])
