"""What a decoder's pullback metric G = J^T J says about an image: how much, and along which latent coordinates, it stretches.

    influence     I_i = 1/2 log(G_ii + 1e-12)                     per coordinate; G_ii by Hutchinson's estimator, filtered
    distortion    S_K = sum of log s_k over the K largest         per image; s_k the singular values of J, from a Krylov space
    mask          1 where I_i is above the image's own (1 - keep) quantile

The finding this serves: images of high distortion leak more, and attacks get better when they leave out the coordinates of
low influence. (Rao, Qu and Moyer 2025, arXiv 2511.20592, eq. 4, 6 and 8, algorithms 1 and 2.)

All derivatives are taken at `codec.snap(z)`. Images and vectors are worked off in pieces of a stated size in memory, which
does not change the result beyond rounding; all randomness is keyed, so that of an image does not depend on its batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import floor
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from diffleak.diffusion.codec import Codec
from diffleak.diffusion.noise import Noise
from diffleak.errors import SettingError, UserError, one_or_more, unknown
from diffleak.geometry.estimators import filtered, hutchinson, krylov_values, singular_values
from diffleak.geometry.forms import Forms
from diffleak.geometry.operators import LinearMap, Mode, record, recording
from diffleak.records.variants import CONTROLS, Control, Estimator, SingularValues

BUDGET = 2**30
CPU_BUDGET = {"influence": 2**27, "distortion": 2**28}  # as measured: both less and more were slower
FLOOR = 1e-12
RESIDENT: dict[SingularValues, int] = {"krylov": 2, "randomized": 3}  # float64 copies of the columns that a step holds
OVERSAMPLING: dict[SingularValues, int] = {"krylov": 60, "randomized": 30}


def influence(
    codec: Codec,
    z: Float[Tensor, "b *z"],
    probes: int = 8,
    *,
    noise: Noise,
    budget: int | None = None,
    estimator: Estimator = "filtered",
) -> Float32[Tensor, "b *z"]:
    """The influence of every latent coordinate on the decoded image: ½ log(mean over probes of (Jᵀv)_i² + 1e-12), filtered.

    High where a small change of the coordinate changes the image much: the log of the length of dx/dz_i.
    estimator: "filtered" takes noise out of the logs, over the places of each channel (`estimators.filtered`); its error is that of
    1.5 to 3 times as many probes (docs/design/019d). "hutchinson" is the paper's: the mean before the log is unbiased with a relative
    variance of 2/probes.

    z: latents of b images, as `codec.encode` returns them; snapped here.   probes: standard normals v in image space, >= 1.
    noise: keyed for these images; its shape is not used, its stream becomes "influence".   budget: memory in bytes, see `blocks`;
    None: 128 MiB on a CPU, else 1 GiB.
    Returns natural logs, float32, shaped like z. Raises `UserError` for a decoder without a derivative, or other counts.
    (Rao, Qu and Moyer 2025, arXiv 2511.20592, eq. 8 and algorithm 2.)
    """
    _at_least(1, probes=probes)
    z = _snapped(codec, z, noise)
    first = LinearMap(codec.decode, z[:1])
    images, vectors = blocks(codec, z, probes, forms=first.forms, budget=_budget(budget, z, "influence"))
    found = []
    for part in _parts(len(z), images):
        J = first.at(z[part])
        starts = range(0, probes, vectors)
        draws = (_normals(noise, part, J.x_shape[1:], z, "influence", range(s, min(s + vectors, probes))) for s in starts)
        found.append(hutchinson(J, draws))
    logs = torch.log(torch.cat(found) + FLOOR)
    if estimator == "filtered":
        logs = torch.from_numpy(filtered(logs.cpu().numpy(), probes))
    return (0.5 * logs).float().to(z.device)


def distortion(
    codec: Codec,
    z: Float[Tensor, "b *z"],
    top: int = 20,
    oversampling: int | None = None,
    power: int = 2,
    *,
    noise: Noise,
    budget: int | None = None,
    mode: Mode | None = None,
    estimator: SingularValues = "krylov",
) -> Float64[Tensor, " b"]:
    """The local distortion of each image: the sum of the logs of the `top` largest singular values of the decoder's Jacobian.

    log sqrt(det G), truncated: high where the decoder stretches volumes, images of fine detail. Scaling the decoder by c adds
    top * log c.

    z: latents of b images, as `codec.encode` returns them; snapped here.   top: K in [1, min(latent, image dimension)].
    estimator: "krylov" takes K + oversampling products J v and as many J^T u, each from the one before (`estimators.krylov_values`).
    "randomized" is the paper's: power + 1 times as many. At its 150 of each kind it is less exact than the other at 60
    (docs/design/019e).   oversampling: vectors beyond K, >= 0; None: 60 of "krylov", 30 of "randomized".   power: passes of
    "randomized", >= 0.   noise: keyed for these images; its shape is not used, its stream becomes "distortion".   budget: memory in bytes,
    see `blocks`; None: 256 MiB on a CPU, else 1 GiB.   mode: how J v is taken, see `LinearMap`.
    Returns natural logs. Raises `UserError` for K out of range or beyond the rank, and for a decoder without a derivative.
    (Rao, Qu and Moyer 2025, arXiv 2511.20592, eq. 4 and algorithm 1.)
    """
    _at_least(1, top=top)
    extra = OVERSAMPLING[estimator] if oversampling is None else oversampling
    _at_least(0, oversampling=extra, power=power)
    z = _snapped(codec, z, noise)
    columns = min(top + extra, z[0].numel())
    first = LinearMap(codec.decode, z[:1], mode)
    cost = _cost(codec, z[:1], first.mode == "autograd", first.forms)
    if top > min(z[0].numel(), cost.outputs):
        raise SettingError("top", f"must be at most {min(z[0].numel(), cost.outputs)}, the most singular values there are; got {top}")
    at_once = 1 if estimator == "krylov" else columns
    images, vectors = _fit(cost, len(z), at_once, columns * RESIDENT[estimator], _budget(budget, z, "distortion"))
    found = []
    for part in _parts(len(z), images):
        V0 = _normals(noise, part, tuple(z.shape[1:]), z, "distortion", range(columns))
        J = first.at(z[part])
        values = (krylov_values(J, V0) if estimator == "krylov" else singular_values(J, V0, power, vectors))[:, :top]
        _full_rank(values, z.dtype, cost.outputs)
        found.append(values.log().sum(dim=1))
    return torch.cat(found)


def keep_mask(
    influence: Float[Tensor, "b *z"], keep: float = 0.6, control: Control = "influence", noise: Noise | None = None
) -> Float[Tensor, "b *z"]:
    """1 for the coordinates that an attack keeps, 0 for those it drops: the same number for every image.

    "influence" keeps what lies above the image's own (1 - keep) quantile (linear interpolation; of equal values the later ones
    are kept). "random" drops as many at random, "reverse" drops as many of the most influential: the two controls.

    influence: finite numbers.   keep: share in (0, 1]; 1 keeps all.   noise: keyed for these images, for "random" only;
    its shape is not used, its stream becomes "mask".
    Returns a tensor like `influence`. Raises `UserError` for other values.   (Rao, Qu and Moyer 2025, arXiv 2511.20592, eq. 6.)
    """
    if control not in CONTROLS:
        raise unknown("mask control", control, CONTROLS)
    if not 0 < keep <= 1:
        raise UserError(f"keep must be a share of coordinates in (0, 1]; got {keep}")
    if not influence.isfinite().all():
        raise UserError("influence must be finite; got nan or inf; compute it again from finite latents")
    flat = influence.flatten(start_dim=1)
    if control == "random":
        if noise is None:
            raise UserError("control 'random' needs noise keyed for these images; got None")
        _same_images(noise, influence)
        flat = _normals(noise, slice(None), tuple(influence.shape[1:]), influence, "mask", range(1))[0].flatten(start_dim=1)
    ranks = flat.argsort(dim=1, stable=True).argsort(dim=1)
    d = flat.shape[1]
    drop = 0 if keep == 1 else min(floor((d - 1) * (1 - keep) + 1e-9) + 1, d - 1)  # 1e-9: 0.4 * 255 is 102, not a hair less
    kept = ranks < d - drop if control == "reverse" else ranks >= drop
    return kept.to(influence.dtype).reshape(influence.shape)


class Blocks(NamedTuple):
    """How many images, and how many vectors for each of them, are worked on at a time."""

    images: int
    vectors: int


class _Cost(NamedTuple):
    graph: int  # bytes that the graph of one image saves
    outputs: int  # numbers in one decoded image
    pair: int  # bytes of one vector of each side, in the dtype of z
    pair64: int  # the same in float64


def blocks(codec: Codec, z: Float[Tensor, "b *z"], vectors: int, *, both: bool = False, forms: Forms = "all", budget: int) -> Blocks:
    """How many of the images z and the vectors to work on at a time so that graphs and vectors stay within `budget` bytes.

    At least one of each. Measured on the first image: what its graph saves for J^T u (with `both`, for J v too) and the size of a vector.
    Images have the first claim, since larger batches are faster and more vectors at a time are not. The same model, shape and
    budget always give the same answer. What torch needs within one operation comes on top, and so do the weights and sums of them.
    """
    return _fit(_cost(codec, z[:1], both, forms), len(z), vectors, 0, budget)


def _budget(given: int | None, z: Tensor, what: str) -> int:
    return given if given is not None else CPU_BUDGET[what] if z.device.type == "cpu" else BUDGET


def _fit(cost: _Cost, images: int, vectors: int, resident: int, budget: int) -> Blocks:
    _at_least(1, budget=budget)
    image = cost.graph + resident * cost.pair64
    vector = 2 * cost.pair + cost.pair64  # as drawn, in one block, and its products in float64
    images = max(1, min(images, budget // (image + vector)))
    return Blocks(images, min(vectors, max(1, (budget - images * image) // (images * vector))))


def _cost(codec: Codec, z: Float[Tensor, "1 *z"], twice: bool, forms: Forms) -> _Cost:
    """Of two images less that of one: what belongs to the weights, whatever the number of images, is not counted."""
    (one, _), (two, outputs) = (_saved(codec.decode, torch.cat([z] * n), twice, forms) for n in (1, 2))
    numbers = z.numel() + outputs // 2
    return _Cost(max(two - one, 0), outputs // 2, numbers * z.element_size(), numbers * 8)


def _saved(decode: Callable[[Tensor], Tensor], z: Float[Tensor, "b *z"], twice: bool, forms: Forms) -> tuple[int, int]:
    """The bytes that the graph at z saves, every storage counted once, and the numbers in the output."""
    sizes: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return saved.detach()  # with its graph it would keep itself alive

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        graph = record(decode, z, twice, forms)
    return sum(sizes.values()), graph.x.numel()


def _snapped(codec: Codec, z: Float[Tensor, "b *z"], noise: Noise) -> Float[Tensor, "b *z"]:
    _same_images(noise, z)
    with recording(), torch.no_grad():
        return codec.snap(z.detach().clone())


def _same_images(noise: Noise, z: Float[Tensor, "b *z"]) -> None:
    if len(noise.ids) != len(z) or not len(z):
        got = f"{one_or_more(len(noise.ids), 'id')} for {one_or_more(len(z), 'image')}"
        raise UserError(f"noise must be keyed for the images given, at least one; got {got}")


def _parts(images: int, at_a_time: int) -> Iterator[slice]:
    """As few slices as allowed, of nearly equal length."""
    size = -(-images // -(-images // at_a_time))
    return (slice(start, start + size) for start in range(0, images, size))


def _normals(noise: Noise, part: slice, shape: tuple[int, ...], like: Tensor, stream: str, draws: range) -> Float[Tensor, "r b *s"]:
    keyed = replace(noise, ids=noise.ids[part], shape=shape, dtype=like.dtype, device=like.device, stream=stream)
    return torch.stack([keyed(draw) for draw in draws])


def _full_rank(values: Float64[Tensor, "b k"], dtype: torch.dtype, outputs: int) -> None:
    lost = values < torch.finfo(dtype).eps * outputs**0.5 * values[:, :1]
    if lost.any():
        rank = int((~lost).sum(dim=1).min())
        said = f"must be at most the rank of the decoder's Jacobian; got {values.shape[1]} where the rank is {rank}; lower it"
        raise SettingError("top", said)


def _at_least(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise SettingError(name, f"must be an integer of at least {least}; got {count}")
