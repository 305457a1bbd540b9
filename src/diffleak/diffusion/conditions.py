"""Captions as a denoiser is given them, and what may be done with the conditions of a batch without knowing their kind.

A condition is None, a tensor of class labels (b,), or the `Prompts` of b images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from diffleak.diffusion.finite import advice
from diffleak.errors import UserError

POOLED = ("text_embeds", "pooled_projections")  # of a whole caption, as pipelines name them
MASK = "encoder_attention_mask"  # which tokens are words


@final
@dataclass(frozen=True, eq=False)
class Prompts:
    """The captions of b images, embedded by the model's own text encoder.

    `tensors` is what the network takes besides x_t and t, by the names of its pipeline, each of b rows; the first is the
    text embedding that it attends to. `encode` embeds other texts in the same way, as a `TextEncoder` does.
    """

    texts: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    encode: "Callable[..., Prompts]"

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def vectors(self) -> Float64[Tensor, "b d"]:
        """One vector a caption, for similarities between captions: the pooled embedding where there is one, else the mean token.

        Not the tokens in a row: without one word all later ones would be compared with others.
        """
        pooled = next((self.tensors[name] for name in POOLED if name in self.tensors), None)
        if pooled is not None:
            return pooled.cpu().double()
        tokens = next(iter(self.tensors.values())).cpu().double()
        mask = self.tensors.get(MASK)
        weights = torch.ones(tokens.shape[:2], dtype=torch.float64) if mask is None else mask.cpu().double()
        return (tokens * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1)


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to `Prompts`, as the model was trained with them."""

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        """The prompts of a batch; each distinct text is embedded on its own, once per process.

        together: these texts are embedded as one batch, in whose last digits each may depend on the others.
        """

    def truncated(self, texts: Sequence[str]) -> list[int]:
        """Which of `texts` are longer than the tokenizer's limit, so that the model reads their beginning only."""


def one_at_a_time(encode: Callable[..., Prompts]) -> Callable[..., Prompts]:
    """The encoder for several threads, of which one is let in at a time; so are those that use its `Prompts` to embed more.

    Raises `UserError` when called, for an encoder that does not return `Prompts` with a finite row for every text.
    """
    entered = Lock()

    def embed(texts: Sequence[str], **how: bool) -> Prompts:
        with entered:
            made = encode(texts, **how)
            _refuse_other_rows(made, texts, encode)
            return replace(made, encode=embed)

    return embed


def _refuse_other_rows(made: Any, texts: Sequence[str], encode: Any) -> None:
    if not isinstance(made, Prompts) or not made.tensors or tuple(made.texts) != tuple(texts):
        got = f"those of {len(made.texts)}" if isinstance(made, Prompts) else f"a {type(made).__name__}"
        raise UserError(f"the text encoder must return the Prompts of the {len(texts)} texts it is given, in their order; got {got}")
    for name, tensor in made.tensors.items():
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != len(texts):
            got = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise UserError(f"the text encoder must return a row of {name} for each of the {len(texts)} texts; got {got}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"the text encoder must return finite numbers; {name} has NaN or infinity: {advice(encode)}")


def joined(conditions: Sequence[Any]) -> Any:
    """The conditions of several batches of one model as those of one batch."""
    first = conditions[0]
    if first is None or isinstance(first, Tensor):
        return first if first is None else torch.cat(list(conditions))
    texts = tuple(text for prompts in conditions for text in prompts.texts)
    tensors = {name: torch.cat([prompts.tensors[name] for prompts in conditions]) for name in first.tensors}
    return Prompts(texts, tensors, first.encode)


def chosen(condition: Any, rows: slice | list[int]) -> Any:
    """The conditions of some rows of a batch."""
    if condition is None or isinstance(condition, Tensor):
        return condition if condition is None else condition[rows]
    texts = condition.texts[rows] if isinstance(rows, slice) else tuple(condition.texts[row] for row in rows)
    return Prompts(texts, {name: tensor[rows] for name, tensor in condition.tensors.items()}, condition.encode)
