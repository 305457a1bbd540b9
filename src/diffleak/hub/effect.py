"""Checks that merging an adapter changed the weights exactly as its file says.

    W' = W + scale alpha_l / r_l dW_l                                in every layer l of the file (rsLoRA: alpha_l / sqrt(r_l))
    W' = m_l V / |V|,  V = W + scale alpha_l / r_l dW_l              for DoRA as peft saves it
    W' = W + scale (m_l V / |V| - W),  V = W + alpha_l / r_l dW_l    for DoRA as LyCORIS saves it (`dora_scale`)
    W' = W                                                           everywhere else

Norms are over all dimensions but that of m, which in peft is the first one. The two forms of DoRA agree at scale 1; at other scales A1111
and ComfyUI use the second one.

r_l is the rank of the factors. alpha_l is the file's own `.alpha`, else the value of that layer in the settings beside it, else r_l.
The dW of every kind is in `deltas`; a change that is stored whole has strength 1, and may also apply to a bias.
Hu et al. 2021, arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732; Liu et al. 2024, arXiv 2402.09353, eq. 5.

Names and strengths are read here from the raw file, in float64, independently of the diffusers and peft code that merges: so
the check sees what they drop, rename or scale wrongly. A merged weight must equal W' to 1e-5 of the layer's largest change plus
the rounding of its own dtype, which is one unit in the last place of W and of the change (four for DoRA).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffleak.diffusion.devices import float64
from diffleak.errors import UserError
from diffleak.hub.updates import Update

TOLERANCE = 1e-5  # of the largest change in a layer
KEPT = 0.01  # how far rounding may change a layer's strength without a word


@dataclass(frozen=True, eq=False)
class Before:
    """Networks before a merge: the weights that are to change, and a sum of the bits of every other weight."""

    weights: Mapping[str, Tensor]
    others: Mapping[str, tuple[torch.Size, int]]


def before(changes: Iterable[Update], networks: Mapping[str, Any]) -> Before:
    """Records the networks before a merge."""
    told = {update.name for update in changes}
    values = _values(networks)
    weights = {name: values[name].detach().to("cpu", copy=True) for name in told}
    return Before(weights, {name: _bits(value) for name, value in values.items() if name not in told})


def merge(changes: Iterable[Update], networks: Mapping[str, Any], scale: float) -> None:
    """Replaces every weight that the updates change by W', computed in float64 and rounded once."""
    for update in changes:
        weight = networks[update.network].get_submodule(update.layer).get_parameter(update.parameter)
        with torch.no_grad():
            weight.copy_(update.merged(weight.detach().cpu().double(), scale))


def check(changes: Iterable[Update], was: Before, networks: Mapping[str, Any], scale: float) -> list[str]:
    """Raises `UserError` unless the updates, and nothing else, changed the networks; returns warnings about rounding.

    The message names the first layer that differs, with the expected and the actual strength (scale alpha / r).
    """
    values, least, most = _values(networks), ("", 1.0), ("", 1.0)
    if values.keys() != was.weights.keys() | was.others.keys():
        odd = min(values.keys() ^ (was.weights.keys() | was.others.keys()))
        raise UserError(f"it adds or removes layers of the network ({odd}); an adapter may change weights only")
    for update in changes:
        name = update.name.removesuffix(".weight")
        stored = values[update.name].detach()
        now = float64(stored)
        weight = was.weights[update.name].to(now.device, torch.float64)
        right, product = update.merged(weight, scale), update.product(weight)
        change, moved = right - weight, now - weight
        kind_of, units = torch.finfo(stored.dtype), 4 if update.kind.endswith("DoRA") else 1
        rounding = units * kind_of.eps * (weight.abs() + change.abs() + 2 * kind_of.smallest_normal)  # below that, steps stay as they are
        if not ((now - right).abs() <= TOLERANCE * change.abs().max() + rounding).all():
            expected, size = scale * update.strength, float((product * product).sum())
            seen = float((moved * product).sum()) / size if size else math.nan
            factors = "" if update.rank is None else f"alpha {update.alpha:g}, rank {update.rank}, "
            of = f"{factors}scale {scale:g}" + (", rank-stabilised" if update.rank_stabilised else "")
            kind = "" if update.kind == "a LoRA" else f" as {update.kind}"
            raise UserError(f"its update of {name} must be merged at strength {expected:.6g}{kind} ({of}); it has {seen:.6g}")
        size = float((change * change).sum())
        kept = float((moved * change).sum()) / size if size else 1.0
        least, most = min(least, (name, kept), key=lambda pair: pair[1]), max(most, (name, kept), key=lambda pair: pair[1])
    for name, was_bits in was.others.items():
        if _bits(values[name]) != was_bits:
            raise UserError(f"it must change only the layers that it adapts; {name} changed too")
    said = []
    for name, kept in (least, most):
        if abs(kept - 1) > KEPT:
            said.append(
                f"the LoRA's update of {name} is merged at {kept:.0%} of its size, because the model's dtype rounds it: "
                "use --dtype float32 to audit all of it"
            )
    return said


def _values(networks: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def _bits(value: Tensor) -> tuple[torch.Size, int]:
    """The shape of a tensor and the sum of its bits as whole numbers, which differs for nearly every other tensor."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    plain = value.detach().contiguous().reshape(-1)
    return value.shape, int(plain.view(kinds[value.element_size()]).sum(dtype=torch.int64))
