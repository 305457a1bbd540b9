"""Why a model returns NaN or infinity, for error messages: a weight that is not finite, or half precision.

Reading all weights takes seconds for a large model, so this runs only once there is a message to write.
"""

from collections.abc import Iterator
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)
DEEP = 6  # attributes and places in tuples that may lie between what is given and a network


def advice(*parts: Any, otherwise: str | None = None) -> str:
    """Advice on NaN or infinity in an answer of `parts`, which are networks, or hold networks as denoisers and autoencoders do.

    otherwise: the advice for when all weights are finite; by default to look for weights that are far too large.
    """
    networks = [*_networks(parts)]
    half = any(value.dtype in HALF for network in networks for value in network.parameters())
    if said := broken_weight(*networks):
        return f"{said}; {'try --dtype float32, or ' if half else ''}export or download the weights again"
    if not networks:
        return "check what it computes" + (f", or {otherwise}" if otherwise else "")
    otherwise = otherwise or "look for weights that are far too large"
    return f"try --dtype float32, or {otherwise}" if half else f"its weights are finite, so {otherwise}"


def broken_weight(*parts: Any) -> str | None:
    """The first weight in `parts` that is not finite, as in "conv_in.weight of the UNet2DModel holds NaN"; None if all are finite."""
    for network in _networks(parts):
        for name, value in network.state_dict().items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                return f"{name} of the {type(network).__name__} holds {'NaN' if bool(value.isnan().any()) else 'infinity'}"
    return None


def _networks(part: Any, deep: int = DEEP, seen: frozenset[int] = frozenset()) -> Iterator[torch.nn.Module]:
    """The networks in a list, or among the attributes of an object and of what it holds; also those that a network holds aside.

    An object with an attribute `networks` says itself which ones they are.
    """
    if isinstance(part, torch.nn.Module):
        yield part
    if not deep or id(part) in seen or isinstance(part, type):
        return
    own = part if isinstance(part, tuple | list) else getattr(part, "networks", None)
    for inner in own if isinstance(own, tuple | list) else getattr(part, "__dict__", {}).values():
        yield from _networks(inner, deep - 1, seen | {id(part)})
