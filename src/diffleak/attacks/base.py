"""What an attack is, and the one reduction that most attacks share.

An attack turns a denoiser and a batch of images into statistics of shape (timesteps, batch). It sees no labels, files or
codecs. A `ResidualAttack` only says which fields it looks at; their masked p-norms are taken here, in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from math import inf
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError, unknown

Access = Literal["black-box", "grey-box", "white-box"]
Direction = Literal["small", "large"]
Masks = Sequence[Float[Tensor, "b *s"] | None]
Draw = Callable[[Denoiser, Noise, Any], Float[Tensor, "b c h w"]]  # an image in [-1, 1] per id of the noise, for its condition
Embed = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b d"]]  # of images in [-1, 1]

SWEEP = tuple(range(10, 301, 10))
MOST_TIMESTEPS = 100_000  # a longer grid is a slip of the keyboard


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network that says which images look alike, with a hash of its weights."""

    fingerprint: str
    embed: Embed


@dataclass(frozen=True, eq=False)
class Service:
    """What whoever sees nothing but a model's images has: the drawing of them in so many steps, and encoders of their own.

    Both raise `UserError` for what there is not.
    """

    drawing: Callable[[int], Draw]
    encoder: Callable[[str], Encoder]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A membership inference attack; its fields are the parameters that go into the record.

    `direction` says, by the attack's theory, which end of the statistic means "member"; it is never picked on data.
    `timesteps` are a sweep, from which the calibrate part picks one. An attack with a `rule` (of `diffleak.stats.rules`)
    has timesteps of its own, a parameter like any other, and `columns` of components that the rule makes a score of.
    """

    timesteps: tuple[int, ...] = SWEEP

    name: ClassVar[str]
    access: ClassVar[Access] = "grey-box"
    direction: ClassVar[Direction] = "small"
    source: ClassVar[str]
    published_timestep: ClassVar[int | None] = None
    rule: ClassVar[str | None] = None
    needs_text: ClassVar[bool] = False  # whether `cond` must be `Prompts`
    in_all: ClassVar[bool] = True  # whether `--attacks all` means it too

    def __post_init__(self) -> None:
        if not self.timesteps or any(u <= t for t, u in pairwise(self.timesteps)):
            raise UserError(f"{self.name}: timesteps must be strictly increasing and at least one; got {self.timesteps}")

    @abstractmethod
    def statistics(
        self, denoiser: Denoiser, x0: Float[Tensor, "b *s"], noise: Noise, cond: Any = None, mask: Float[Tensor, "b *s"] | None = None
    ) -> Float64[Tensor, "k b"]:
        """One number per column and image. `mask` (0/1, like x0) restricts it to some coordinates."""

    def masked_statistics(
        self, denoiser: Denoiser, x0: Float[Tensor, "b *s"], noise: Noise, cond: Any = None, masks: Masks = (None,)
    ) -> Float64[Tensor, "m k b"]:
        """`statistics` under every mask (None: all coordinates), for the forwards of one; raises `UserError` where there are none."""
        self._refuse_masks(*masks)
        return torch.stack([self.statistics(denoiser, x0, noise, cond, mask) for mask in masks])

    @property
    def takes_masks(self) -> bool:
        """Whether the statistic can be restricted to some coordinates of x0."""
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

    def in_pixels(self, decode: Callable[[Tensor], Tensor]) -> "Attack":
        """The attack on a latent model with this decoder; only attacks that compare images need it."""
        return self

    def for_batch(self, pixels: Callable[[], Tensor], encode: Callable[[Tensor], Tensor]) -> "Attack":
        """The attack on one batch of a latent model, whose images in [-1, 1] `pixels` reads; only those that change images need it."""
        return self

    def served_by(self, service: Service) -> "Attack":
        """The attack on a model that draws images; only attacks that look at those need it."""
        return self

    @property
    @abstractmethod
    def queries(self) -> int:
        """Denoiser forwards per image for all of `timesteps`."""

    def usable(self, t: int, schedule: Schedule) -> bool:
        """Whether the attack is defined at timestep t of this schedule."""
        return 0 <= t < len(schedule)

    def why_unusable(self, t: int, schedule: Schedule) -> str:
        """The rule that timestep t breaks, for the message."""
        return f"timesteps must lie in [0, {len(schedule)})"

    def prepared(self, denoiser: Denoiser, x0: Float[Tensor, "b *s"], noise: Noise, cond: Any = None) -> "Attack":
        """The attack with every parameter settled that it takes from unlabelled calibration images; most have none."""
        return self

    @property
    def needs_preparation(self) -> bool:
        """Whether `prepared` must be called, with calibration images, before `statistics`."""
        return False

    def parameters(self) -> dict[str, Any]:
        """The recorded parameters; timesteps that are a sweep, and what does not apply (an empty tuple), are left out."""
        names = [f.name for f in fields(self) if f.compare and (f.name != "timesteps" or self.rule)]
        return {name: getattr(self, name) for name in names if getattr(self, name) != ()}

    @property
    def label(self) -> str:
        """The name with the parameters that differ from the defaults, as `--attacks` takes it: `sima_mc(m=10)`."""
        changed = [f"{k}={written(k, v)}" for k, v in self.parameters().items() if v != self.__dataclass_fields__[k].default]
        return f"{self.name}({','.join(changed)})" if changed else self.name


@dataclass(frozen=True, kw_only=True)
class ResidualAttack(Attack):
    """An attack whose statistic is sum of mask * |r|**p over a residual field r; small means member."""

    p: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p < inf:
            raise UserError(f"{self.name}: p must be a positive number; got {self.p}")

    @abstractmethod
    def residuals(self, denoiser: Denoiser, x0: Float[Tensor, "b *s"], noise: Noise, cond: Any = None) -> Iterator[Float[Tensor, "b *s"]]:
        """The fields in order: `replicates` of them for each timestep, timesteps in the order of the attack."""

    @property
    def replicates(self) -> int:
        """How many fields are yielded per timestep; their norms are averaged."""
        return 1

    @final
    def statistics(
        self, denoiser: Denoiser, x0: Float[Tensor, "b *s"], noise: Noise, cond: Any = None, mask: Float[Tensor, "b *s"] | None = None
    ) -> Float64[Tensor, "k b"]:
        return self.masked_statistics(denoiser, x0, noise, cond, (mask,))[0]

    @final
    def masked_statistics(
        self, denoiser: Denoiser, x0: Float[Tensor, "b *s"], noise: Noise, cond: Any = None, masks: Masks = (None,)
    ) -> Float64[Tensor, "m k b"]:
        self._refuse_masks(*masks)
        norms = [p_norms(r, self.p, masks) for r in self.residuals(denoiser, x0, noise, cond)]
        return torch.stack(norms, dim=1).reshape(len(masks), len(self.timesteps), self.replicates, len(x0)).mean(dim=2)

    @property
    def takes_masks(self) -> bool:
        return True


def p_norms(field: Float[Tensor, "b *s"], p: float, masks: Masks) -> Float64[Tensor, "m b"]:
    """sum of mask * |field|**p for each mask and image, in float64; un-rooted."""
    powers = float64(field).abs().pow(p)
    return torch.stack([(powers if mask is None else powers * mask.to(powers)).flatten(start_dim=1).sum(dim=1) for mask in masks])


def float64(x: Float[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
    """x in double precision, on the CPU where the device has none (Apple's)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def parse(text: str, attacks: Mapping[str, type[Attack]], timesteps: tuple[int, ...] | None) -> Attack:
    """The attack that a spec such as `sima` or `sima_mc(m=10,variant=norms,timesteps=50:150:50)` stands for.

    `timesteps` is the sweep of attacks that sweep and whose spec has none.
    Raises `UserError` for an unknown attack or parameter (naming the nearest) and for a value of the wrong kind.
    """
    name, _, rest = text.strip().partition("(")
    if name not in attacks:
        raise unknown("attack", name, attacks)
    if "(" in text and not rest.endswith(")"):
        raise UserError(f"attack parameters are written {name}(key=value,key=value); got {text}")
    given: dict[str, Any] = {} if timesteps is None or attacks[name].rule else {"timesteps": timesteps}
    known = {f.name: f for f in fields(attacks[name]) if f.compare}
    for part in filter(None, rest.removesuffix(")").split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"attack parameters are written {name}(key=value,key=value); got {text}")
        if key not in known:
            raise unknown(f"parameter of {name}", key, known)
        if key in given and key != "timesteps":
            raise UserError(f"{name}: {key} is given twice")
        given[key] = parse_timesteps(value) if key == "timesteps" else _convert(name, key, value, known[key].default)
    return attacks[name](**given)


def _convert(attack: str, key: str, value: str, default: Any) -> Any:
    kind = type(default)
    if kind is tuple:
        raise UserError(f"{attack}: {key} is measured on calibration images and cannot be set")
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{attack}: {key} must be of the kind {kind.__name__}; got {value!r}") from None


def parse_timesteps(text: str | int) -> tuple[int, ...]:
    """A grid `start:stop:step` with stop included, `start:stop` (step 1), one integer, or several joined by '+'."""
    try:
        numbers = [[int(n) for n in part.split(":")] for part in str(text).split("+")]
        ranges = [range(n[0], n[0] + 1) if len(n) == 1 else range(n[0], n[1] + 1, *n[2:]) for n in numbers]
        if any(r.step < 0 for r in ranges) or sum(map(len, ranges)) > MOST_TIMESTEPS:
            raise ValueError
        grid = [t for r in ranges for t in r]
    except (ValueError, TypeError):
        raise UserError(f"timesteps are written start:stop:step (stop included), or one number; got {text!r}") from None
    if not grid or any(t < 0 for t in grid):
        raise UserError(f"timesteps must be a non-empty grid of non-negative integers; got {text!r}")
    return tuple(sorted(set(grid)))


def written(key: str, value: Any) -> str:
    """A parameter as a spec has it: timesteps as a grid."""
    if key != "timesteps":
        return str(value)
    steps = {u - t for t, u in pairwise(value)}
    return f"{value[0]}:{value[-1]}:{steps.pop()}" if len(value) > 2 and len(steps) == 1 else "+".join(map(str, value))


def fit_to_schedule(attack: Attack, schedule: Schedule) -> Attack:
    """The attack on those of its timesteps where it is defined; raises `UserError` outside the schedule or when none is left.

    A sweep that starts below what an attack needs (noise aggregation walks down 40 steps) loses those timesteps only.
    """
    if not attack.timesteps:
        return attack
    if attack.rule and attack.timesteps[-1] >= len(schedule):
        raise UserError(
            f"{attack.name} averages over timesteps up to {attack.timesteps[-1]}, and the model's schedule has {len(schedule)}; "
            f"give it others, as in {attack.name}(timesteps=0:{len(schedule) - 1}:10), or leave it out"
        )
    schedule.check(attack.timesteps)
    kept = tuple(t for t in attack.timesteps if attack.usable(t, schedule))
    if not kept:
        t = attack.timesteps[-1]
        raise UserError(f"{attack.name} is defined at none of the timesteps given; at {t}: {attack.why_unusable(t, schedule)}")
    return replace(attack, timesteps=kept)
