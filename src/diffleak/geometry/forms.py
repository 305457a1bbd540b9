"""Operations in forms that autograd transposes cheaply.

Once, for J^T u: a convolution of a doubled image reads every pixel four times. As one transposed convolution it does so once,
and takes 4/9 of the work. With 3 x 3 taps w, and x doubled by nearest neighbours,

    conv(doubled(x), w, padding 1) = conv_transpose(x, k, stride 2, padding 1),   k = w flipped, convolved with 2 x 2 ones

Twice, for J v: what a reverse pass over u -> J^T u would meet otherwise is that torch's fused attentions have no second derivative;
that of a convolution computes one with respect to the weights as well, which nobody needs and which more than doubles its time;
that of GroupNorm takes a dozen passes over memory where two do. Every other operation is left as it is.

    convolution    J^T u = conv_transpose(u, w)
    GroupNorm      y = w n(x) + c;   the Jacobian P of n is symmetric, so J^T u = P (w u) and J v = w (P v)
    SiLU           J = diag(s + x s (1 - s)),   s = sigmoid(x)

Values and derivatives with respect to images are torch's, up to rounding. Not there are derivatives with respect to weights, and not
seen is what a decoder does to tensors behind autograd's back, or by hooks: callers try the forms first (`operators`).
"""

import weakref
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

Forms = Literal["all", "attention", "none"]
HOST = "cpu"  # the one device whose GroupNorm takes channels that lie last


class _Doubling(NamedTuple):
    """That y is x with every pixel as 2 x 2 of them, as long as neither is written to."""

    x: Tensor
    y: "weakref.ref[Tensor]"
    versions: tuple[int, int]


@final
class CheapDerivatives(TorchFunctionMode):
    """The context in which these forms are used; for this thread only, unlike torch's own choice of attention kernels.

    forms: "all", "attention" for that one alone, or "none".   twice: whether the second derivative is wanted too.
    """

    def __init__(self, forms: Forms, twice: bool) -> None:
        super().__init__()
        swapped: dict[Forms, dict[Any, Any]] = {"all": _TWICE, "attention": _ATTENTION, "none": {}}
        self._forms = swapped[forms] if twice else {}
        self._doublings = forms == "all"
        self._last: _Doubling | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.interpolate and self._doublings:
            y = func(*args, **kwargs)
            self._last = _doubling(y, *args, **kwargs)
            return y
        if func is nn.functional.conv2d and self._last is not None:
            z = _convolution_of_doubled(self._last, *args, **kwargs)
            if z is not None:
                return z
        return self._forms.get(func, func)(*args, **kwargs)


def _doubling(
    y: Tensor, input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **__: Any
) -> _Doubling | None:
    scales = scale_factor if isinstance(scale_factor, Sequence) else [scale_factor]
    doubled = (
        mode in ("nearest", "nearest-exact")
        and input.ndim == 4
        and tuple(y.shape[2:]) == (2 * input.shape[2], 2 * input.shape[3])
        and all(scale in (None, 2) for scale in scales)  # 2.1 gives the same size where sides are short, and other pixels
    )
    return _Doubling(input, weakref.ref(y), (input._version, y._version)) if doubled else None


def _convolution_of_doubled(
    doubling: _Doubling,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """conv2d of the doubled image, if it is one of 3 x 3 that keeps the size; else None."""
    x = doubling.x
    if input is not doubling.y() or not input.requires_grad:  # it was cut off from x, or nobody asks
        return None
    if (x._version, input._version) != doubling.versions:
        return None
    if groups != 1 or tuple(weight.shape[2:]) != (3, 3) or any(_pair(given) != (1, 1) for given in (stride, padding, dilation)):
        return None
    pad = nn.functional.pad
    k = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).flip(2, 3).transpose(0, 1)
    k = pad(k, (0, 1)) + pad(k, (1, 0))
    k = pad(k, (0, 0, 0, 1)) + pad(k, (0, 0, 1, 0))
    return _DoubledConvolution.apply(x, k.to(weight.dtype), bias)  # type: ignore[no-any-return]


def _pair(given: Any) -> tuple[Any, ...]:
    values = tuple(given) if isinstance(given, Sequence) else (int(given),)
    return 2 * values if len(values) == 1 else values


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    return torch.ops.aten._scaled_dot_product_attention_math(query, key, value, attn_mask, *args, **kwargs)[0]  # type: ignore[no-any-return]


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    if isinstance(padding, str) or not input.requires_grad:
        return nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _Convolution.apply(input, weight, bias, *map(_pair, (stride, padding, dilation)), groups)  # type: ignore[no-any-return]


def _group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    if not input.requires_grad:
        return nn.functional.group_norm(input, num_groups, weight, bias, eps)
    return _GroupNorm.apply(input, num_groups, weight, bias, eps)  # type: ignore[no-any-return]


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    return nn.functional.silu(input, inplace) if inplace or not input.requires_grad else _SiLU.apply(input)


_ATTENTION: dict[Any, Any] = {nn.functional.scaled_dot_product_attention: _attention}
_TWICE = {
    **_ATTENTION,
    nn.functional.conv2d: _conv2d,
    nn.functional.group_norm: _group_norm,
    nn.functional.silu: _silu,
}


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.settings = (tuple(x.shape[-2:]), stride, padding, dilation, groups)
        return nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        size, stride, padding, dilation, groups = ctx.settings
        ends = zip(size, u.shape[-2:], stride, padding, dilation, weight.shape[-2:], strict=True)
        rest = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, d, k in ends]
        return nn.functional.conv_transpose2d(u, weight.detach(), None, stride, padding, rest, groups, dilation), *[None] * 6


class _DoubledConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(k)
        return nn.functional.conv_transpose2d(x, k, bias, stride=2, padding=1)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        (k,) = ctx.saved_tensors
        return nn.functional.conv2d(u, k, stride=2, padding=1), None, None


class _GroupNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        x = _dense(x)
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *_sizes(x), groups, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.groups = groups
        return y

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        x, mean, rstd, weight = (None if saved is None else saved.detach() for saved in ctx.saved_tensors)
        return _GroupNormTransposed.apply(u, x, mean, rstd, weight, ctx.groups), None, None, None, None


class _GroupNormTransposed(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, groups: int) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.groups = groups
        return _project(u, x, mean, rstd, weight, groups)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, mean, rstd, weight = ctx.saved_tensors
        jv = _project(v, x, mean, rstd, None, ctx.groups)
        return jv if weight is None else jv * weight.reshape(-1, *[1] * (x.ndim - 2)), *[None] * 5


def _project(u: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, groups: int) -> Tensor:
    """P (w u), the gradient with respect to its input that torch's own GroupNorm gives."""
    only_x = [True, False, False]
    backward = torch.ops.aten.native_group_norm_backward
    return backward(_like(u, x), x, mean, rstd, weight, *_sizes(x), groups, only_x)[0]  # type: ignore[no-any-return]


def _dense(x: Tensor) -> Tensor:
    """`x` without gaps in memory; on a CPU, whose GroupNorm takes both layouts, with its channels last if they are so already."""
    last = x.device.type == HOST and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


def _like(u: Tensor, x: Tensor) -> Tensor:
    """`u` in the layout of `x`, which the backward of GroupNorm takes for granted."""
    return u.contiguous() if x.is_contiguous() else u.contiguous(memory_format=torch.channels_last)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x[0, 0].numel()


class _SiLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        y = x * s
        ctx.save_for_backward(torch.addcmul(s, y, 1 - s))
        return y

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return u * slope
