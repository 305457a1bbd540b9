"""What an attack is, and the one reduction that most attacks share.

An attack turns a `Subject`, one batch of images as the attacker sees it, into statistics of shape (timesteps, batch). It sees no
labels, files or codecs. A `ResidualAttack` only says which residuals it looks at; their masked p-norms are taken here, in float64.

An attack of one's own is a subclass: with parameters of its own a frozen dataclass, without any a plain class. Its name is that of the
class; how often it asks the model is `queries`, which is counted and compared.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import inf
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.attacks.subject import Subject
from diffleak.diffusion.devices import float64
from diffleak.diffusion.own_code import source_hash
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError

Access = Literal["black-box", "grey-box", "white-box"]
ACCESS: tuple[Access, ...] = get_args(Access)  # what needs the least first
Direction = Literal["small", "large"]
Masks = Sequence[Float[Tensor, "b *s"] | None]

SWEEP = tuple(range(10, 301, 10))
NO_SOURCE = "unknown"  # the code of a class that was typed in, which may be another one next time


def _code(kind: type) -> str | None:
    """A hash of the modules that a class from outside of this package is written in, its bases and mixins included."""
    top = lambda each: each.__module__.partition(".")[0]
    others = [each for each in kind.__mro__ if top(each) != "diffleak"]
    outside = [each for each in others if issubclass(each, Attack) or top(each) not in sys.stdlib_module_names]
    if not outside:
        return None
    return source_hash(outside) or NO_SOURCE


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A membership inference attack; its fields are the parameters that go into the record.

    `direction` says, by the attack's theory, which end of the statistic means "member"; it is never picked on data. An attack with a `rule`
    (of `diffleak.stats.rules`) has timesteps of its own, a parameter like any other, and `columns` of components that the rule makes a
    score of.
    `needs_text`: `cond` must be `Prompts`. `needs_reference`: the subject must have a `reference`. `in_all`: `--attacks all` means it too.
    `effort`: how long a query takes, in forwards. `logarithmic`: the statistics are logarithms already. `unlabelled`: the parameter
    that nobody chooses, since it is found when the attack is opened or prepared; it is recorded, and no part of the label. An attack that
    sweeps has one for each timestep.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
    """

    timesteps: tuple[int, ...] = SWEEP

    name: ClassVar[str]
    access: ClassVar[Access] = "grey-box"
    direction: ClassVar[Direction] = "small"
    source: ClassVar[str] = ""
    published_timestep: ClassVar[int | None] = None
    rule: ClassVar[str | None] = None
    needs_text: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    in_all: ClassVar[bool] = True
    effort: ClassVar[int] = 1
    logarithmic: ClassVar[bool] = False
    unlabelled: ClassVar[str] = ""
    code: ClassVar[str | None] = None  # of an attack from outside: a hash of its modules, or NO_SOURCE

    def __init_subclass__(cls, **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.name = cls.__dict__.get("name", cls.__name__)
        cls.code = _code(cls)

    def __post_init__(self) -> None:
        self._plain_numbers()
        if not self.timesteps or any(u <= t for t, u in pairwise(self.timesteps)):
            raise UserError(f"{self.name}: timesteps must be strictly increasing and at least one; got {self.timesteps}")

    def _plain_numbers(self) -> None:
        """Makes numbers those of Python and of the kind of the default, so that p=2 and p=2.0 are one attack."""
        object.__setattr__(self, "timesteps", tuple(int(t) for t in self.timesteps))
        for field in fields(self):
            kind, value = type(field.default), getattr(self, field.name)
            if kind in (int, float, bool) and isinstance(value, int | float | np.number | np.bool_) and kind(value) == value:
                object.__setattr__(self, field.name, kind(value))

    @abstractmethod
    def statistics(self, subject: Subject, mask: Float[Tensor, "b *s"] | None = None) -> Float64[Tensor, "k b"]:
        """One number for each column and image.

        Args:
            subject: The batch.
            mask: 0 or 1, like x0: restricts the statistic to some coordinates.

        Returns:
            float64 of shape (columns, images); a column is a timestep, or a component of an attack with a `rule`.
        """

    def masked_statistics(self, subject: Subject, masks: Masks = (None,)) -> Float64[Tensor, "m k b"]:
        """`statistics` under every mask (None: all coordinates), for the forwards of one; raises `UserError` where there are none."""
        self._refuse_masks(*masks)
        found: list[Any] = [self.statistics(subject, mask) for mask in masks]
        if wrong := [each for each in found if not isinstance(each, Tensor)]:
            raise UserError(
                f"{self.name}.statistics must return a float64 tensor, columns by images; it returned a {type(wrong[0]).__name__}"
            )
        return torch.stack(found)

    @property
    def takes_masks(self) -> bool:
        """True if the statistic can be restricted to some coordinates of x0."""
        return False

    def _refuse_masks(self, *masks: Float[Tensor, "b *s"] | None) -> None:
        if not self.takes_masks and any(mask is not None for mask in masks):
            raise UserError(f"{self.label} takes no mask; leave out --mask, or this attack")

    @property
    def columns(self) -> tuple[int, ...]:
        """What the columns of the statistics are: the timesteps, or the numbers from 0 of the components of a `rule`."""
        return self.timesteps

    @property
    def settled_by(self) -> str | None:
        """The rule for these parameters, where it depends on them."""
        return self.rule

    @property
    def width(self) -> int:
        """Rows per image in one forward; batches of images are so much smaller."""
        return 1

    @property
    def memory(self) -> int:
        """Bytes that the attack takes in each thread beside the model and its batches."""
        return 0

    @property
    @abstractmethod
    def queries(self) -> int:
        """Denoiser forwards per image for all of `timesteps`."""

    def usable(self, t: int, schedule: Schedule) -> bool:
        """True if the attack is defined at timestep t of this schedule."""
        return 0 <= t < len(schedule)

    def why_unusable(self, t: int, schedule: Schedule) -> str:
        """The rule that timestep t breaks, for the message."""
        return f"timesteps must lie in [0, {len(schedule)})"

    def opened(self, subject: Subject) -> "Attack":
        """The attack with what it opens before it starts, as an encoder; `subject` has no images, and the model is not queried."""
        return self

    def prepared(self, subject: Subject) -> "Attack":
        """The attack with every parameter that it takes from unlabelled calibration images; most have none."""
        return self

    @property
    def needs_preparation(self) -> bool:
        """True if `prepared` must be called, with calibration images, before `statistics`."""
        return False

    def parameters(self) -> dict[str, Any]:
        """The recorded parameters; timesteps that are a sweep, and what does not apply (an empty tuple), are left out."""
        names = [f.name for f in fields(self) if f.compare and (f.name != "timesteps" or self.rule)]
        return {name: value for name in names if not isinstance(value := getattr(self, name), tuple) or value}

    @property
    def label(self) -> str:
        """The name with the parameters that differ from the defaults, as `--attacks` takes it: `sima_mc(m=10)`."""
        chosen = {k: v for k, v in self.parameters().items() if k != self.unlabelled}
        changed = [f"{k}={written(k, v)}" for k, v in chosen.items() if v != self.__dataclass_fields__[k].default]
        return f"{self.name}({','.join(changed)})" if changed else self.name


@dataclass(frozen=True, kw_only=True)
class ResidualAttack(Attack):
    """An attack whose statistic is sum of mask * |r|**p over a residual r; small means member.

    Formula: `sum of mask * |r|**p`.

    Args:
        timesteps: A sweep, from which the calibrate part picks one.
        p: The power of the norm.
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p < inf:
            raise UserError(f"{self.name}: p must be a positive number; got {self.p}")

    @abstractmethod
    def residuals(self, subject: Subject) -> Iterator[Float[Tensor, "b *s"]]:
        """The residuals in order: `replicates` of them for each timestep, timesteps in the order of the attack."""

    @property
    def takes_masks(self) -> bool:
        return True

    @property
    def replicates(self) -> int:
        """How many residuals are yielded per timestep; their norms are averaged."""
        return 1

    @property
    def queries(self) -> int:
        """One forward for each residual, unless a subclass says otherwise."""
        return len(self.timesteps) * self.replicates

    @final
    def statistics(self, subject: Subject, mask: Float[Tensor, "b *s"] | None = None) -> Float64[Tensor, "k b"]:
        return self.masked_statistics(subject, (mask,))[0]

    @final
    def masked_statistics(self, subject: Subject, masks: Masks = (None,)) -> Float64[Tensor, "m k b"]:
        self._refuse_masks(*masks)
        residuals: Any = self.residuals(subject)
        if not isinstance(residuals, Iterable):
            raise UserError(f"{self.name}.residuals must yield tensors; it returned a {type(residuals).__name__}")
        norms = [p_norms(self._checked(r, subject), self.p, masks) for r in residuals]
        if len(norms) != len(self.timesteps) * self.replicates:
            wanted = f"{self.replicates} for each of the {len(self.timesteps)} timesteps"
            raise UserError(f"{self.name}.residuals must yield {wanted}; it yielded {len(norms)}")
        return torch.stack(norms, dim=1).reshape(len(masks), len(self.timesteps), self.replicates, len(subject)).mean(dim=2)

    def _checked(self, residual: Any, subject: Subject) -> Float[Tensor, "b *s"]:
        if isinstance(residual, Tensor) and residual.is_floating_point() and residual.ndim > 1 and len(residual) == len(subject):
            return residual
        got = f"{tuple(residual.shape)} {residual.dtype}" if isinstance(residual, Tensor) else f"a {type(residual).__name__}"
        wanted = f"a floating-point tensor with a row for each of the {len(subject)} images"
        raise UserError(f"{self.name}.residuals must yield {wanted}; it yielded {got}")


def p_norms(residual: Float[Tensor, "b *s"], p: float, masks: Masks) -> Float64[Tensor, "m b"]:
    """sum of mask * |residual|**p for each mask and image, in float64; un-rooted."""
    powers = float64(residual).abs().pow(p)
    return torch.stack([(powers if mask is None else powers * mask.to(powers)).flatten(start_dim=1).sum(dim=1) for mask in masks])


def written(key: str, value: Any) -> str:
    """A parameter as a spec has it: timesteps as a grid."""
    if key != "timesteps":
        return str(value)
    steps = {u - t for t, u in pairwise(value)}
    return f"{value[0]}:{value[-1]}:{steps.pop()}" if len(value) > 2 and len(steps) == 1 else "+".join(map(str, value))
