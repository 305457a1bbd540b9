"""Two numbers of a linear map that is known by its products only, a filter for the first, and two ways to the second.

    diagonal of G = J^T J    G_ii = E (J^T v)_i^2,  v ~ N(0, I)                      unbiased, variance 2 G_ii^2 / n
    its logarithm, filtered  log G_ii at neighbouring places is alike, and the variance of its noise is known
    singular values of J     V <- qr(V0);   q times V <- qr(J^T (J V));   Q = qr(J V);   T = J^T Q;   s = svdvals(T)
                             or from the Krylov space of one vector, which takes fewer products (docs/design/019e)

(Hutchinson's estimator and randomized SVD, as Rao, Qu and Moyer 2025 use them, arXiv 2511.20592, algorithms 2 and 1.)
"""

from collections.abc import Callable, Iterable
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy import fft
from scipy.special import digamma, polygamma
from torch import Tensor

from diffleak.diffusion.devices import float64
from diffleak.errors import UserError, one_or_more
from diffleak.geometry.operators import LinearMap


def hutchinson(J: LinearMap, probes: Iterable[Float[Tensor, "_ b *x"]]) -> Float64[Tensor, "b *z"]:
    """The diagonal of G = J^T J for each image: the mean over probes v of (J^T v)^2, never negative; high where J stretches.

    `probes` are standard normals in blocks of any sizes. Unbiased; with n of them in all the variance is 2 G_ii^2 / n.
    Raises `UserError` if the derivative is zero everywhere, or not finite, for some image.
    (Rao, Qu and Moyer 2025, arXiv 2511.20592, eq. 7 and algorithm 2.)
    """
    total: Tensor | None = None
    count = 0
    for block in probes:
        squares = float64(J.vjp(block)).square().sum(dim=0)
        total = squares if total is None else total + squares
        count += len(block)
    if total is None:
        raise UserError("the influence needs at least one probe; got none")
    return _derivative(total / count)


def filtered(logs: Float64[np.ndarray, "b c *grid"], probes: int) -> Float64[np.ndarray, "b c *grid"]:
    """log G_ii for each image, from the logs of its estimates by `hutchinson`, their noise filtered out over the places of a channel.

        y_i = log G_ii + noise,   noise of mean psi(n/2) - log(n/2) and variance psi'(n/2):  log of a chi-squared mean of n probes
        c = DCT(y - mean);  in each ring of frequencies c <- max(0, 1 - (k - 2) psi'(n/2) / sum of c^2) c,   k its coefficients

    (James and Stein's estimator, which for Gaussian noise has a smaller expected squared error than c itself wherever k is 3 or more.
    A ring holds the frequencies of about one length, of all channels; what is smooth keeps its size, what looks like noise loses it.)
    The mean over places of each channel is not filtered, nor are latents without places.

    logs: natural logs, channels first.   probes: n, how many normals each estimate is the mean of.   Returns natural logs, in their shape.
    (James and Stein 1961; positive part: Baranchik 1964.)
    """
    y, variance = logs - (digamma(probes / 2) - np.log(probes / 2)), float(polygamma(1, probes / 2))
    grid = y.shape[2:]
    if not grid:
        return y
    axes = tuple(range(2, y.ndim))
    c, rings = fft.dctn(y, axes=axes, norm="ortho"), _rings(grid)
    for ring in range(1, rings.max() + 1):
        those = c[:, :, rings == ring]
        k, energy = those[0].size, np.square(those).sum(axis=(1, 2))
        gain = 1 - max(k - 2, 0) * variance / np.maximum(energy, np.finfo(np.float64).tiny)
        c[:, :, rings == ring] = those * np.maximum(gain, 0)[:, None, None]
    return np.asarray(fft.idctn(c, axes=axes, norm="ortho"))


def _rings(grid: tuple[int, ...]) -> np.ndarray:
    """The length of the frequency of each coefficient of a DCT, rounded, in half periods over the longest side; 0 for the mean alone."""
    frequencies = np.meshgrid(*(np.arange(n) * (max(grid) / n) for n in grid), indexing="ij")
    return np.ceil(np.sqrt(sum(f**2 for f in frequencies)) - 0.5).astype(int)


def singular_values(J: LinearMap, V0: Float[Tensor, "l b *z"], power: int = 2, vectors: int | None = None) -> Float64[Tensor, "b k"]:
    """The largest singular values of J for each image, descending; k = l, or the output dimension if that is smaller.

    `V0` are standard normals, l columns per image, l at most the latent dimension; the first l - p or so values are accurate,
    the more so the faster the spectrum falls and the more power passes are made. Products are taken for `vectors` columns at
    a time (None: all), in the dtype of z; everything else is in float64.
    Raises `UserError` if the derivative is zero everywhere, or not finite, for some image.
    (Rao, Qu and Moyer 2025, arXiv 2511.20592, algorithm 1; Halko, Martinsson and Tropp 2011.)
    """
    vectors = vectors or len(V0)
    forward = lambda V: _columns(J.jvp, V, tuple(J.z.shape), vectors, J.z)
    backward = lambda Y: _columns(J.vjp, Y, J.x_shape, vectors, J.z)
    V = _qr(float64(V0).flatten(start_dim=2).permute(1, 2, 0))
    for _ in range(power):
        V = _qr(backward(forward(V)))
    Q = _qr(forward(V))
    return torch.linalg.svdvals(_derivative(backward(Q)))


def krylov_values(J: LinearMap, V0: Float[Tensor, "l b *z"]) -> Float64[Tensor, "b k"]:
    """The largest singular values of J for each image, descending, after l products J v and l products J^T u; k = l, or d if smaller.

        u_j = J v_j, made orthogonal to u_1 ... u_{j-1};   z_j = J^T u_j;   v_{j+1} = z_j, made orthogonal to v_1 ... v_j;   s = svdvals(Z)

    (Golub and Kahan's bidiagonalisation, both sides made orthogonal twice, in float64; products in the dtype of z.) `V0` are standard
    normals, l columns per image, l at most the latent dimension d. The first one starts; each other one takes the place of a v that would
    be zero, as where J has equal singular values only. Every value is at most that of J, and with l = d they are those of J.
    Raises `UserError` if the derivative is zero everywhere, or not finite, for some image.
    (Golub and Kahan 1965; against randomized SVD at equal products: Musco and Musco 2015, arXiv 1504.05477.)
    """
    starts = float64(V0).flatten(start_dim=2)
    V, U, Z = (starts.new_zeros(len(J.z), len(starts), n) for n in (starts.shape[2], prod(J.x_shape[1:]), starts.shape[2]))
    lost = 100 * torch.finfo(J.z.dtype).eps
    for j, start in enumerate(starts):
        onward = _away(Z[:, j - 1], V[:, :j], lost) if j else torch.zeros_like(start)
        V[:, j] = torch.where(onward.any(dim=1, keepdim=True), onward, _away(start, V[:, :j], lost))
        U[:, j] = _away(_product(J.jvp, V[:, j], tuple(J.z.shape), J.z), U[:, :j], lost)
        Z[:, j] = _product(J.vjp, U[:, j], J.x_shape, J.z)
    return torch.linalg.svdvals(_derivative(Z))


def _product(
    product: Callable[[Tensor], Tensor], column: Float64[Tensor, "b n"], shape: tuple[int, ...], like: Tensor
) -> Float64[Tensor, "b m"]:
    return float64(product(column.to(like).reshape(1, *shape)))[0].flatten(start_dim=1)


def _away(column: Float64[Tensor, "b n"], basis: Float64[Tensor, "b k n"], lost: float) -> Float64[Tensor, "b n"]:
    """The part of each column that is orthogonal to the basis, of length 1; zero where no more than a share `lost` of it is left."""
    rest = column[:, :, None]
    for _ in range(2):
        rest = rest - torch.bmm(basis.transpose(1, 2), torch.bmm(basis, rest))
    nothing = rest.norm(dim=1) <= lost * column.norm(dim=1, keepdim=True)  # not so where it is NaN, which must be seen
    return torch.nn.functional.normalize(rest[:, :, 0].masked_fill(nothing, 0.0), dim=1, eps=torch.finfo(rest.dtype).tiny)


def _columns(
    product: Callable[[Tensor], Tensor], columns: Float64[Tensor, "b n l"], shape: tuple[int, ...], vectors: int, like: Tensor
) -> Float64[Tensor, "b m l"]:
    blocks = columns.permute(2, 0, 1).split(vectors)
    products = [float64(product(block.to(like).reshape(len(block), *shape))).flatten(start_dim=2) for block in blocks]
    return torch.cat(products).permute(1, 2, 0)


def _qr(columns: Float64[Tensor, "b n l"]) -> Float64[Tensor, "b n k"]:
    return torch.linalg.qr(columns).Q


def _derivative(values: Float64[Tensor, "b *s"]) -> Float64[Tensor, "b *s"]:
    """`values`, sums of squares or J^T Q, if none of its images shows a derivative that is zero or not finite."""
    size = values.abs().flatten(start_dim=1).sum(dim=1)
    for wrong, what in ((~size.isfinite(), "not finite"), (size == 0, "zero in every direction (rounding, or a choice of the largest)")):
        if wrong.any():
            raise UserError(
                f"the derivative of the decoder must be finite and not zero; got one that is {what} for {int(wrong.sum())} of "
                f"{one_or_more(len(size), 'image')}; check the latents and the decoder's weights, and use a codec whose decode is smooth"
            )
    return values
