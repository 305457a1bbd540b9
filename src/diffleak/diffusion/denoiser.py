"""The predicted noise eps(x_t, t, cond), whatever the network itself predicts.

    epsilon         eps = f
    v_prediction    eps = a_t f + s_t x_t              (Salimans and Ho 2022, arXiv 2202.00512, appendix D)
    sample          eps = (x_t - a_t f) / s_t
    flow            eps = x_t + a_t f                  f = e - x0, a_t = 1 - sigma_t (Esser et al. 2024, arXiv 2403.03206)
    preconditioned  as `Preconditioning` says          of variance-exploding models (Song et al. 2021; Karras et al. 2022)

Predictions are converted only here, and answers are checked only here: every denoiser, also one of a user's own class,
must return a tensor like x_t, else the call raises `UserError`. The attacks' arithmetic would broadcast another shape into
numbers that look like scores. A model gets a copy of x_t, and its answer is copied, so it may write into its input or
return the same buffer again and again. Wrappers are denoisers too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffleak.diffusion.compiled import Compiled
from diffleak.diffusion.conditions import Prompts, chosen, joined
from diffleak.diffusion.own_code import called
from diffleak.diffusion.preconditioning import Preconditioning
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError, first_lines
from diffleak.work.memory import out_of_memory

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow", "preconditioned"]
Ask = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]  # of (network, x_t, time per image, text conditions): its prediction


class LowRank(NamedTuple):
    """What a LoRA added to a weight: factor times `up` (out, r) times `down` (r, in, ...)."""

    down: Tensor
    up: Tensor
    factor: float


class Denoiser(ABC):
    """A model that predicts the noise in an image, with the `schedule` it was trained on.

    Make one with `from_function`, or subclass it: `__call__(x_t, t, cond=None)` returns the noise, and `schedule` is a `Schedule`. The
    answers of every subclass are checked (see `noise_like`), except those of a `wrapper`, which passes on another denoiser's.
    """

    schedule: Schedule
    adapted: Mapping[str, LowRank] = MappingProxyType({})  # the low-rank changes that were merged into some of `weights`, by their names
    subject: ClassVar[str]  # what a message calls it

    def __init_subclass__(cls, wrapper: bool = False, subject: str | None = None, **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.subject = subject or f"the denoiser {cls.__name__}"
        for name in () if wrapper else ("__call__", "at_once"):
            method = getattr(cls, name)  # also one that another base brings, as torch.nn.Module its __call__
            unchecked = not getattr(method, "answers_checked", False) and not getattr(method, "__isabstractmethod__", False)
            if unchecked and method is not Denoiser.at_once:
                setattr(cls, name, _checked(method))

    @abstractmethod
    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        """The predicted noise at timestep t in [0, T), in the shape, dtype and device of x_t."""

    def at_once(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        """The predicted noise of a batch of k equal parts, part i at `timesteps[i]`; `cond` has a row for every row of x_t."""
        size = len(x_t) // len(timesteps)
        parts = [slice(start, start + size) for start in range(0, len(x_t), size)]
        return torch.cat([self(x_t[rows], t, chosen(cond, rows)) for rows, t in zip(parts, timesteps, strict=True)])

    def with_graph(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        """As `at_once`, but differentiable with respect to `weights`; raises `UserError` for a model without weights."""
        raise UserError(f"{self.subject} has no weights to differentiate by; give a model that diffleak loads from a folder")

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The network's trained tensors by name; empty for a function."""
        return {}

    @property
    def exposed(self) -> "tuple[Denoiser, ...]":
        """The models that a release of this denoiser exposes, each of which an attacker can query; several only for `Dual`."""
        return (self,)

    @property
    def forwards(self) -> int:
        """Network forwards per image and call."""
        return 1

    def over(self, timesteps: tuple[int, ...]) -> "Denoiser":
        """The denoiser for a sampler that visits these timesteps in this order."""
        return self

    @staticmethod
    def from_function(predict_noise: Callable[..., Any], alphas_cumprod: Any, learned_variance: bool = False) -> "Denoiser":
        """A denoiser from a function that predicts the noise, and its schedule.

        Args:
            predict_noise: `predict_noise(x_t, t)`, or `(x_t, t, cond)` when conditioned. It gets x_t of shape (b, *s) and t as an int, and
                returns the noise in the shape, dtype and device of x_t.
            alphas_cumprod: alpha_bar_t for t = 0 ... T - 1, falling from nearly 1 (almost no noise) to nearly 0.
            learned_variance: The function returns twice the channels of x_t, the noise first and then the variance, which is dropped
                (Nichol and Dhariwal 2021, arXiv 2102.09672).

        Returns:
            A denoiser that `audit` takes.

        Raises:
            UserError: For a table that is no schedule; and, when the denoiser is called, for an answer that is no tensor like x_t.
        """
        if not callable(predict_noise):
            raise UserError(f"predict_noise must be a function of (x_t, t); got {_spelled(predict_noise)}")
        return FunctionDenoiser(predict_noise, Schedule(alphas_cumprod), learned_variance)


def noise_like(x_t: Tensor, answer: Any, subject: str, learned_variance: bool = False) -> Tensor:
    """The noise in a model's answer; raises `UserError` unless it is a tensor of the shape, dtype and device of x_t.

    With `learned_variance` the answer must have exactly twice the channels of x_t; the first half of them is the noise.
    """
    channels = x_t.shape[1] if x_t.ndim > 1 else 1
    twice = (len(x_t), 2 * channels, *x_t.shape[2:])
    expected = twice if learned_variance else tuple(x_t.shape)
    if isinstance(answer, Tensor) and tuple(answer.shape) == expected and (answer.dtype, answer.device) == (x_t.dtype, x_t.device):
        return answer[:, :channels] if learned_variance else answer
    kind, hint = str(x_t.dtype).removeprefix("torch."), "return the noise alone, as a tensor"
    if isinstance(answer, Tensor):
        hint = f"convert it with .to(x_t), which loses nothing if the model itself runs in {kind}"
        if tuple(answer.shape) != expected:
            hint = "another shape would be broadcast into wrong scores"
            hint = "if the second half is a learned variance, pass learned_variance=True" if tuple(answer.shape) == twice else hint
    elif isinstance(getattr(answer, "sample", None), Tensor):
        hint = "return its .sample"
    what = "the noise and a variance, with twice the channels of x_t" if learned_variance else "the noise as a tensor like x_t"
    raise UserError(f"{subject} must return {what}, {expected} {kind} on {x_t.device}; got {_spelled(answer)}: {hint}")


def _spelled(answer: Any) -> str:
    if isinstance(answer, Tensor):
        return f"{tuple(answer.shape)} {str(answer.dtype).removeprefix('torch.')} on {answer.device}"
    return "None" if answer is None else f"a {type(answer).__name__}"


def _checked(ask: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a denoiser, called with a copy of x_t, its answer checked and copied: see the module."""

    @wraps(ask)
    def answered(self: Denoiser, x_t: Tensor, *how: Any, **named: Any) -> Tensor:
        return noise_like(x_t, ask(self, x_t.clone(), *how, **named), self.subject).detach().clone()

    answered.answers_checked = True  # type: ignore[attr-defined]
    return answered


@final
@dataclass(frozen=True, eq=False)
class FunctionDenoiser(Denoiser, subject="predict_noise"):
    """A plain function as a denoiser; see `Denoiser.from_function`."""

    predict_noise: Callable[..., Any]
    schedule: Schedule
    learned_variance: bool = False

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Any:
        with called("predict_noise", "(x_t, t)" if cond is None else "(x_t, t, cond)", f" for x_t of {_spelled(x_t)} and t = {t} (an int)"):
            answer = self.predict_noise(x_t, t) if cond is None else self.predict_noise(x_t, t, cond)
        return noise_like(x_t, answer, self.subject, True) if self.learned_variance else answer


@final
@dataclass(frozen=True, eq=False)
class NetworkDenoiser(Denoiser, subject="the network"):
    """A diffusers network as a denoiser: runs in its own dtype, answers in that of x_t.

    With `classes` it is conditioned on labels in [0, classes): `cond` is then an integer per image. With `ask`, which knows
    how a text-to-image network is called, `cond` is the `Prompts` of the images. With `learned_variance` the network appends
    as many channels of variance, which are dropped. `adapted` is what a LoRA added to its weights. `precondition` converts the input
    and output of a variance-exploding model, whose prediction type is "preconditioned". `compiled` replaces the network wherever no
    derivative is needed.
    """

    network: torch.nn.Module
    schedule: Schedule
    prediction_type: PredictionType = "epsilon"
    classes: int | None = None
    ask: Ask | None = None
    learned_variance: bool = False
    adapted: Mapping[str, LowRank] = field(default_factory=dict)
    precondition: Preconditioning | None = None
    compiled: Compiled | None = None

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        return self.at_once(x_t, (t,), cond)

    def at_once(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        return self.with_graph(x_t, timesteps, cond)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return {name: weight if weight.is_meta else weight.requires_grad_() for name, weight in self.network.named_parameters()}

    def with_graph(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        kind = torch.float32 if self.schedule.times.dtype.kind == "f" else torch.int64
        times = torch.tensor([self.schedule.times[t] for t in timesteps], device=x_t.device, dtype=kind)
        inputs = x_t.chunk(len(timesteps))
        given = torch.cat([p.given(x, t) for x, t in zip(inputs, timesteps, strict=True)]) if (p := self.precondition) else x_t
        prediction = self._prediction(given, times.repeat_interleave(len(x_t) // len(timesteps)), cond)
        parts = zip(prediction.chunk(len(timesteps)), inputs, timesteps, strict=True)
        if p:
            return torch.cat([p.noise(part, x, t) for part, x, t in parts])
        return torch.cat([to_noise(part, x, t, self.schedule, self.prediction_type) for part, x, t in parts])

    def _prediction(self, x_t: Float[Tensor, "b *s"], times: Float[Tensor, " b"] | Int64[Tensor, " b"], cond: Any) -> Float[Tensor, "b *s"]:
        """The network's own prediction before any conversion, each image at its own time."""
        dtype = next(self.network.parameters()).dtype
        network = self.network if self.compiled is None or torch.is_grad_enabled() else self.compiled
        try:
            if isinstance(cond, Prompts) and self.ask:
                conditions = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.tensors.items()}
                prediction = self.ask(network, x_t.to(dtype), times, conditions)
            elif cond is None and self.classes is None and not self.ask:
                prediction = network(x_t.to(dtype), times).sample
            elif isinstance(cond, Tensor) and self.classes is not None:
                prediction = network(x_t.to(dtype), times, class_labels=cond).sample
            else:
                labels = "no condition" if self.classes is None else f"labels of {self.classes} classes as its condition"
                expected = "captions as its condition" if self.ask else labels
                raise UserError(f"this model takes {expected}; got {'none' if cond is None else 'one'}")
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # of images or a config.json that the weights are not made for
            if out_of_memory(error):
                raise
            given = f"inputs of {_spelled(x_t)}, with {type(error).__name__}: {first_lines(error)}"
            raise UserError(
                f"{self.subject} fails for {given}; give images of the size it was made for, or check its config.json"
            ) from error
        return noise_like(x_t, prediction.to(x_t.dtype), self.subject, self.learned_variance)


@dataclass(frozen=True, eq=False)
class Around(Denoiser, wrapper=True):
    """A wrapper of another denoiser, with that one's schedule and weights."""

    denoiser: Denoiser

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        return self.denoiser.schedule

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.denoiser.weights

    @property
    def adapted(self) -> Mapping[str, LowRank]:  # type: ignore[override]
        return self.denoiser.adapted

    def with_graph(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        return self.denoiser.with_graph(x_t, timesteps, cond)


@final
@dataclass(frozen=True, eq=False)
class Guided(Around, wrapper=True):
    """Classifier-free guidance: eps(empty) + scale (eps(caption) - eps(empty)), two forwards in one batch.

    `on_difference` is called with eps(caption) - eps(empty). Ho and Salimans 2022, arXiv 2207.12598, eq. 6 with scale = 1 + w.
    `with_graph` leaves guidance out, as training does.
    """

    scale: float
    on_difference: Callable[[Tensor], object] = lambda difference: None

    @property
    def exposed(self) -> tuple[Denoiser, ...]:
        return tuple(replace(self, denoiser=denoiser) for denoiser in self.denoiser.exposed)

    @property
    def forwards(self) -> int:
        return 2 * self.denoiser.forwards

    def over(self, timesteps: tuple[int, ...]) -> "Guided":
        return replace(self, denoiser=self.denoiser.over(timesteps))

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        if not isinstance(cond, Prompts):
            raise UserError("guidance compares a caption with the empty one, so it needs a model with captions; leave out --guidance-scale")
        empty, text = without_and_with(self.denoiser, x_t, t, cond)
        self.on_difference(text - empty)
        return empty + self.scale * (text - empty)


def without_and_with(denoiser: Denoiser, x_t: Float[Tensor, "b *s"], t: int, cond: Prompts) -> tuple[Tensor, Tensor]:
    """eps(x_t, t, empty) and eps(x_t, t, caption), two forwards in one batch."""
    both = joined([cond.encode([""] * len(cond)), cond])
    empty, text = denoiser(torch.cat([x_t, x_t]), t, both).chunk(2)
    return empty, text


def unguided(denoiser: Denoiser) -> Denoiser:
    """The denoiser without classifier-free guidance; a `Counted` one stays counted."""
    if isinstance(denoiser, Counted):
        return Counted(unguided(denoiser.denoiser), denoiser.on_call)
    return denoiser.denoiser if isinstance(denoiser, Guided) else denoiser


def guided(denoiser: Denoiser, scale: float) -> Denoiser:
    """The denoiser with classifier-free guidance of this scale, which replaces any that it has; 1 means none, for half the forwards."""
    return unguided(denoiser) if scale == 1 else Guided(unguided(denoiser), scale)


@final
@dataclass(frozen=True, eq=False)
class Counted(Around, wrapper=True):
    """Reports every forward of `denoiser` to `on_call(images, timestep)`; changes nothing."""

    on_call: Callable[[int, int], None]

    @property
    def exposed(self) -> tuple[Denoiser, ...]:
        return tuple(Counted(denoiser, self.on_call) for denoiser in self.denoiser.exposed)

    def over(self, timesteps: tuple[int, ...]) -> "Counted":
        return Counted(self.denoiser.over(timesteps), self.on_call)

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        eps = self.denoiser(x_t, t, cond)
        self.on_call(len(x_t) * self.denoiser.forwards, t)
        return eps

    def at_once(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        return self._counted(self.denoiser.at_once(x_t, timesteps, cond), timesteps, self.denoiser.forwards)

    def with_graph(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        return self._counted(self.denoiser.with_graph(x_t, timesteps, cond), timesteps, 1)

    def _counted(self, eps: Float[Tensor, "kb *s"], timesteps: Sequence[int], forwards: int) -> Float[Tensor, "kb *s"]:
        for t in timesteps:
            self.on_call(len(eps) // len(timesteps) * forwards, t)
        return eps


def counting(denoiser: Denoiser, images: int, of: int, taken_back: list[Callable[[], object]]) -> Denoiser:
    """The denoiser with `images` of every `of` rows counted; the other rows only fill up the forward.

    taken_back: gets a function for every count, which undoes it.
    """
    if isinstance(denoiser, Counted):

        def count(n: int, t: int) -> None:
            made = n * images // of
            taken_back.append(lambda: denoiser.on_call(-made, t))
            denoiser.on_call(made, t)

        return Counted(counting(denoiser.denoiser, images, of, taken_back), count)
    return replace(denoiser, denoiser=counting(denoiser.denoiser, images, of, taken_back)) if isinstance(denoiser, Guided) else denoiser


def to_noise(
    prediction: Float[Tensor, "b *s"], x_t: Float[Tensor, "b *s"], t: int, schedule: Schedule, prediction_type: PredictionType
) -> Float[Tensor, "b *s"]:
    """The noise that a network's prediction at (x_t, t) stands for; raises `UserError` for an unknown prediction type."""
    match prediction_type:
        case "epsilon":
            return prediction
        case "v_prediction":
            return schedule.a(t) * prediction + schedule.s(t) * x_t
        case "sample":
            return (x_t - schedule.a(t) * prediction) / schedule.s(t)
        case "flow":
            return x_t + schedule.a(t) * prediction
    raise UserError(f"prediction_type must be epsilon, v_prediction or sample; the scheduler says '{prediction_type}'")
