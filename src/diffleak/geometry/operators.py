"""The Jacobian of a decoder at a batch of latents, as products with vectors; it is never built.

    x = D(z)      J = dD/dz at z, block-diagonal over the batch      J v : (b, *z) -> (b, *x)      J^T u : (b, *x) -> (b, *z)

Images do not see each other in a decoder, so one product serves a whole batch. Both products run over graphs that one
forward records and all vectors share:

    J^T u     reverse mode
    J v       reverse mode over the graph of u -> J^T u, which is linear in u: its transpose is J   (Pearlmutter 1994)

Why not forward mode: torch's keeps its level in one variable for all threads, it refuses GroupNorm of tensors that are not
contiguous (those after attention), and it repeats the forward for every vector. Where a decoder cannot be differentiated
twice, J v is taken by central differences along v:

    J v = |v| (D(z + h v/|v|) - D(z - h v/|v|)) / 2h + O(h^2),      h = eps^(1/3) |z|

with eps the unit of the dtype, which balances the error of the formula against that of rounding: the result is good to about
eps^(2/3), 2e-5 in float32 and 4e-11 in float64, times the curvature of D.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from diffleak.errors import UserError
from diffleak.geometry.forms import CheapDerivatives, Forms
from diffleak.work.memory import out_of_memory

Mode = Literal["autograd", "central differences"]
AGREEMENT = 0.01  # of J^T u with and without forms: far above TensorFloat-32, with which GPUs convolve, and below any real difference
DIFFERENCES = 0.03  # of |J v|^2: those of single precision keep it, even where z = 0, and those of half precision do not


class _Graph(NamedTuple):
    """A recorded forward x = D(z) and, where J v is wanted, the recorded u -> J^T u."""

    z: Tensor
    x: Tensor
    u: Tensor | None = None
    jtu: Tensor | None = None


@final
class LinearMap:
    """The Jacobian J of `decode` at the points z, for blocks of r vectors at a time.

    `mode` says how J v is computed: "autograd", or "central differences" where the decoder cannot be differentiated twice, or
    its second derivative is not right. None chooses; naming one insists on it.
    Works inside torch.no_grad() and torch.inference_mode() and in threads; weights, gradients and random state stay as they are.
    Raises `UserError` from the first product if the output of `decode` does not depend on z as far as autograd can tell, and
    from the first J v if differences do not agree with the derivative.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], z: Float[Tensor, "b *z"], mode: Mode | None = None) -> None:
        self._decode = decode
        self._wanted = mode
        self._mode: Mode | None = None
        self._forms: Forms | None = None
        self._graph: _Graph | None = None
        with recording():
            self.z = z.detach().clone()

    def at(self, z: Float[Tensor, "b *z"]) -> "LinearMap":
        """The Jacobian at other points, by the mode and the forms that were chosen here."""
        other = LinearMap(self._decode, z, self._wanted)
        other._mode, other._forms = self._mode, self._forms
        return other

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape (b, *x) of the decoder's output."""
        return tuple(self._recorded().x.shape)

    @property
    def mode(self) -> Mode:
        """How `jvp` is computed; chosen at the first image."""
        if self._mode is None:
            self._choose_mode()
            assert self._mode is not None
        return self._mode

    @property
    def forms(self) -> Forms:
        """The operations that are swapped for forms that are cheaper to transpose; chosen at the first image."""
        if self._forms is None:
            self._forms = "all" if _right(self._decode, self.z[:1], "all", twice=False) else "none"
        return self._forms

    def vjp(self, u: Float[Tensor, "r b *x"]) -> Float[Tensor, "r b *z"]:
        """J^T u for every one of r vectors per image."""
        with recording():
            graph = self._recorded()
            return torch.stack([_transpose(graph.x, graph.z, u_) for u_ in u])

    def jvp(self, v: Float[Tensor, "r b *z"]) -> Float[Tensor, "r b *x"]:
        """J v for every one of r vectors per image."""
        central = self.mode == "central differences"
        with recording():
            return torch.stack([self._difference(v_) if central else self._second_transpose(v_) for v_ in v])

    def _recorded(self) -> _Graph:
        if self._graph is None:
            self._graph = record(self._decode, self.z, twice=self._mode == "autograd", forms=self.forms)
        return self._graph

    def _choose_mode(self) -> None:
        self._graph = None  # the graph of both products takes its place
        tried: tuple[Forms, ...] = () if self._wanted == "central differences" else ("all", "attention")
        for forms in tried:
            if _right(self._decode, self.z[:1], forms, twice=True):
                self._mode, self._forms = "autograd", forms
                return
        if self._wanted == "autograd":
            raise UserError("the decoder must be differentiable twice for J v by autograd; it is not; use central differences")
        self._mode = "central differences"
        self.at(self.z[:1])._check_differences()

    def _check_differences(self) -> None:
        """Raises `UserError` where |J v|^2, by differences, is not <J^T J v, v>: in a decoder that rounds more than its latents do."""
        v = _normals(self.z, 1)
        with recording():
            jv = self._difference(v)
        if (_asymmetry(jv, self.vjp(jv[None])[0], v) > DIFFERENCES).any():
            raise UserError(
                "the decoder's derivative must agree with its differences along a small step; they do not; let it compute in the "
                "dtype of its latents, and without steps that autograd does not see"
            )

    def _second_transpose(self, v: Float[Tensor, "b *z"]) -> Float[Tensor, "b *x"]:
        graph = self._recorded()
        assert graph.jtu is not None and graph.u is not None
        return _transpose(graph.jtu, graph.u, v)

    def _difference(self, v: Float[Tensor, "b *z"]) -> Float[Tensor, "b *x"]:
        b = len(v)
        length = _lengths(v)
        reach = _lengths(self.z)
        reach[reach == 0] = self.z[0].numel() ** 0.5
        h = torch.finfo(v.dtype).eps ** (1 / 3) * reach
        shift = v * (h / length.clamp_min(torch.finfo(v.dtype).tiny)).reshape(b, *[1] * (v.ndim - 1))
        with torch.no_grad():
            change = self._decode(self.z + shift) - self._decode(self.z - shift)
        return change * (length / (2 * h)).reshape(b, *[1] * (change.ndim - 1))


def record(decode: Callable[[Tensor], Tensor], z: Float[Tensor, "b *z"], twice: bool = False, forms: Forms = "all") -> _Graph:
    """One forward with its graph and, if `twice`, the graph of u -> J^T u, left out where autograd has none.

    forms: which operations are swapped for forms that are cheaper to transpose.
    Raises `UserError` for an output that does not depend on z as far as autograd can tell.
    """
    with recording():
        z = z.detach().clone().requires_grad_(True)
        with CheapDerivatives(forms, twice):
            x = _depending(decode(z))
        if not twice:
            return _Graph(z, x)
        u = torch.zeros_like(x, requires_grad=True)
        try:
            (jtu,) = torch.autograd.grad(x, z, u, create_graph=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):
            return _Graph(z, x)
        return _Graph(z, x, u, jtu) if jtu.requires_grad else _Graph(z, x)


def _right(decode: Callable[[Tensor], Tensor], z: Float[Tensor, "1 *z"], forms: Forms, twice: bool) -> bool:
    """True if a decoder's products are right with these forms, tried with one vector.

    J^T u must be that of the decoder as it is written and, if `twice`, |J v|^2 = <J^T J v, v>. They are not where a decoder does something
    that the forms do not know, or where the backward of an operation has a wrong derivative itself.
    """
    agreement = max(AGREEMENT, 10 * torch.finfo(z.dtype).eps)
    with recording():
        plain = record(decode, z, forms="none")
        u, v = _normals(plain.x, 0), _normals(plain.z, 1)
        expected = _transpose(plain.x, plain.z, u)
        try:
            graph = record(decode, z, twice, forms)
            if twice and (graph.u is None or graph.jtu is None):
                return False
            if not expected.isfinite().all():
                return True  # whatever comes of it is said of the result
            right = _lengths(_transpose(graph.x, graph.z, u) - expected) <= agreement * _lengths(expected)
            if graph.u is not None and graph.jtu is not None:
                jv = _transpose(graph.jtu, graph.u, v)
                right &= _asymmetry(jv, _transpose(graph.x, graph.z, jv), v) <= agreement
        except Exception as error:  # a decoder may make anything of tensors that are not quite what it expects
            if out_of_memory(error):
                raise
            return False
    return bool(right.all())


def _asymmetry(jv: Float[Tensor, "b *x"], jtjv: Float[Tensor, "b *z"], v: Float[Tensor, "b *z"]) -> Float[Tensor, " b"]:
    """| |J v|^2 - <J^T J v, v> | / |J v|^2: an error of a share s of J v, in no particular direction, makes about s^2 of it."""
    length = _products(jv, jv)
    return (length - _products(jtjv, v)).abs() / length.clamp_min(torch.finfo(v.dtype).tiny)


@contextmanager
def recording() -> Iterator[None]:
    """Gradients on, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _transpose(output: Tensor, wrt: Tensor, vector: Tensor) -> Tensor:
    return torch.autograd.grad(output, wrt, vector.detach(), retain_graph=True)[0]


def _depending(x: Tensor) -> Tensor:
    if not x.requires_grad:
        raise UserError(
            "the decoder must be differentiable with respect to its latents; got an output that is cut off from them "
            "(detached, or computed without gradients); use a codec whose decode keeps the graph"
        )
    return x


def _normals(like: Float[Tensor, "b *s"], seed: int) -> Float[Tensor, "b *s"]:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _products(v: Float[Tensor, "b *s"], w: Float[Tensor, "b *s"]) -> Float[Tensor, " b"]:
    return (v * w).flatten(start_dim=1).sum(dim=1)


def _lengths(v: Float[Tensor, "b *s"]) -> Float[Tensor, " b"]:
    return v.flatten(start_dim=1).norm(dim=1)
