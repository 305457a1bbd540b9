"""Captions as a denoiser takes them, and operations on the conditions of a batch that work for every kind.

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

    `tensors` is what the network takes besides x_t and t, by the names that its pipeline uses, each with b rows; the first is the
    text embedding that the network attends to. `encode` embeds other texts in the same way, as a `TextEncoder` does.
    """

    texts: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    encode: "Callable[..., Prompts]"

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def vectors(self) -> Float64[Tensor, "b d"]:
        """One vector per caption, for similarities between captions: the pooled embedding if there is one, else the mean of the tokens.

        The tokens are not concatenated: leaving out one word would shift all later ones.
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
    """Embeds captions as `Prompts`, in the way that the model was trained with."""

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        """The prompts of a batch; each distinct text is embedded on its own, once per process.

        together: embeds these texts as one batch. That is faster, but the last digits of an embedding may depend on the other texts.
        """

    def truncated(self, texts: Sequence[str]) -> list[int]:
        """The positions of the texts that are longer than the tokenizer's limit, so that the model reads only their beginning."""


def one_at_a_time(encode: Callable[..., Prompts]) -> Callable[..., Prompts]:
    """The encoder behind a lock, so that one thread at a time embeds; the `encode` of its `Prompts` takes the same lock.

    A call raises `UserError` if the encoder does not return `Prompts` with a finite row for every text.
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
