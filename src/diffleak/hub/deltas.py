"""The change dW that an adapter's tensors make to a weight, by kind of adapter.

    LoRA   dW = B A                                        lora_up, lora_down
    LoCon  dW = C(M; B, A)                                 with a core M, `lora_mid`, of a convolution
    LoHa   dW = (A1 B1) * (A2 B2), entry by entry          hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b
           dW = C(T1; A1, B1) * C(T2; A2, B2)              with cores hada_t1, hada_t2
    LoKr   dW = W1 (x) W2, Kronecker's product             lokr_w1 or lokr_w1_a lokr_w1_b, lokr_w2 or lokr_w2_a lokr_w2_b
           W2 = C(T2; W2a, W2b)                            with a core lokr_t2
    full   dW = D                                          diff, diff_b (of a bias), w_norm and b_norm (of norm layers)

    C(M; B, A)[o, i, k] = sum over p, q of M[p, q, k] B[p, o] A[q, i]        (Tucker's product, which LyCORIS called CP at first)

The kernels of convolutions are flattened behind the input channels, so that W2 of LoKr is a matrix of (out, in * kernel). The strength is
alpha / r where there is a factor of rank r, and 1 for a change that is stored whole. Files of early LyCORIS have one more factor, `scalar`.
Yeh et al. 2023, arXiv 2309.14859 (LyCORIS, with LoCon, LoHa and LoKr); Hyeon-Woo et al. 2021, arXiv 2108.06098 (FedPara, which is LoHa).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]  # of one layer, by the ends of their names in a file; A of a LoRA is "down", B is "up", M is "mid"

PARTS = (
    *("lora_mid.weight", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("diff", "diff_b", "w_norm", "b_norm", "dora_scale", "scalar"),
)  # all but those of a plain LoRA
FACTORS = {"LoHa": "hada_", "LoKr": "lokr_"}
LORA = frozenset(("down", "up"))


def kind_of(parts: Parts) -> str:
    """LoRA, LoHa, LoKr or full; "" for tensors of no known kind, or of two kinds."""
    names = parts.keys() - {"scalar"}
    for kind, mark in FACTORS.items():
        if any(name.startswith(mark) for name in names):
            return kind if all(name.startswith(mark) for name in names) else ""
    return "full" if names == {"diff"} else "LoRA" if names and names <= LORA | {"mid"} else ""


def needed(parts: Parts) -> set[str]:
    """The tensors that a layer must have, judging by those that it has."""
    kind = kind_of(parts)
    if kind == "LoHa":
        cores = {"hada_t1", "hada_t2"} if {"hada_t1", "hada_t2"} & parts.keys() else set()
        return {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} | cores
    if kind == "LoKr":
        one = {"lokr_w1"} if "lokr_w1" in parts else {"lokr_w1_a", "lokr_w1_b"}
        other = {"lokr_w2"} if "lokr_w2" in parts else {"lokr_w2_a", "lokr_w2_b"} | ({"lokr_t2"} & parts.keys())
        return one | other
    return {"diff"} if kind == "full" else set(LORA) | ({"mid"} & parts.keys())


def rank(parts: Parts) -> int | None:
    """r, the rank of the factors; None for a change that is stored whole, to which alpha does not apply."""
    first = next((name for name in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts), None)
    return None if first is None else len(parts[first])


def dense(parts: Parts) -> Tensor:
    """dW times `scalar`, with as many rows as the weight; its kernels may be flattened."""
    kind, factor = kind_of(parts), parts.get("scalar", 1)
    if kind == "full":
        return parts["diff"] * factor
    if kind == "LoHa":
        one, other = (_pair(parts, f"hada_w{i}", f"hada_t{i}") for i in (1, 2))
        return one * other * factor
    if kind == "LoKr":
        w1, w2 = (parts[name] if name in parts else _pair(parts, name, f"lokr_t{name[-1]}") for name in ("lokr_w1", "lokr_w2"))
        return torch.kron(w1.flatten(1), w2.flatten(1)) * factor
    up, down = parts["up"].flatten(1), parts["down"].flatten(1)
    return (_tucker(parts["mid"], up.T, down) if "mid" in parts else up @ down) * factor


def _pair(parts: Parts, name: str, core: str) -> Tensor:
    first, second = parts[f"{name}_a"], parts[f"{name}_b"]
    return _tucker(parts[core], first, second) if core in parts else first.flatten(1) @ second.flatten(1)


def _tucker(core: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.einsum("pq...,po,qi->oi...", core, first, second).flatten(1)
