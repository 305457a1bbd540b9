"""The predicted noise eps(x_t, t, cond), whatever the network itself predicts.

    epsilon         eps = f
    v_prediction    eps = a_t f + s_t x_t              (Salimans and Ho 2022, arXiv 2202.00512, appendix D)
    sample          eps = (x_t - a_t f) / s_t
    flow            eps = x_t + a_t f                  f = e - x0, a_t = 1 - sigma_t (Esser et al. 2024, arXiv 2403.03206)

This is the only place where predictions are converted. Wrappers are denoisers too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffleak.diffusion.prompts import Prompts, chosen, joined
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
Ask = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]  # of (network, x_t, time per image, text conditions): its prediction


class Denoiser(ABC):
    """A model that predicts the noise in an image, with the `schedule` it was trained on."""

    schedule: Schedule

    @abstractmethod
    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        """The predicted noise at timestep t in [0, T), in the shape, dtype and device of x_t."""

    def at_once(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        """The predicted noise of k equal parts of a batch one after another, each at a timestep of its own; `cond` is of all rows."""
        size = len(x_t) // len(timesteps)
        parts = [slice(start, start + size) for start in range(0, len(x_t), size)]
        return torch.cat([self(x_t[rows], t, chosen(cond, rows)) for rows, t in zip(parts, timesteps, strict=True)])

    @property
    def exposed(self) -> "tuple[Denoiser, ...]":
        """The models that whoever is given this denoiser can ask on their own; several only for `Dual`."""
        return (self,)

    @property
    def forwards(self) -> int:
        """Network forwards per image and call."""
        return 1

    def over(self, timesteps: tuple[int, ...]) -> "Denoiser":
        """The denoiser for a sampler that visits these timesteps in this order."""
        return self

    @staticmethod
    def from_function(predict_noise: Callable[..., Tensor], alphas_cumprod: Any) -> "Denoiser":
        """A denoiser from `predict_noise(x_t, t)` (or `(x_t, t, cond)` when conditioned) and the T values of alpha_bar.

        `predict_noise` gets x_t of shape (b, *s) and t as an int, and returns the noise in the shape of x_t.
        """
        return FunctionDenoiser(predict_noise, Schedule(alphas_cumprod))


@final
@dataclass(frozen=True, eq=False)
class FunctionDenoiser(Denoiser):
    """A plain function as a denoiser; see `Denoiser.from_function`."""

    predict_noise: Callable[..., Tensor]
    schedule: Schedule

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        return self.predict_noise(x_t, t) if cond is None else self.predict_noise(x_t, t, cond)


@final
@dataclass(frozen=True, eq=False)
class NetworkDenoiser(Denoiser):
    """A diffusers network as a denoiser: runs in its own dtype, answers in that of x_t.

    With `classes` it is conditioned on labels in [0, classes): `cond` is then an integer per image. With `ask`, which knows
    how a text-to-image network is called, `cond` is the `Prompts` of the images.
    """

    network: torch.nn.Module
    schedule: Schedule
    prediction_type: PredictionType = "epsilon"
    classes: int | None = None
    ask: Ask | None = None

    def __call__(self, x_t: Float[Tensor, "b *s"], t: int, cond: Any = None) -> Float[Tensor, "b *s"]:
        return self.at_once(x_t, (t,), cond)

    def at_once(self, x_t: Float[Tensor, "kb *s"], timesteps: Sequence[int], cond: Any = None) -> Float[Tensor, "kb *s"]:
        kind = torch.float32 if self.schedule.is_flow else torch.int64
        times = torch.tensor([self.schedule.times[t] for t in timesteps], device=x_t.device, dtype=kind)
        prediction = self._prediction(x_t, times.repeat_interleave(len(x_t) // len(timesteps)), cond)
        parts = zip(prediction.chunk(len(timesteps)), x_t.chunk(len(timesteps)), timesteps, strict=True)
        return torch.cat([to_noise(part, x, t, self.schedule, self.prediction_type) for part, x, t in parts])

    def _prediction(self, x_t: Float[Tensor, "b *s"], times: Float[Tensor, " b"] | Int64[Tensor, " b"], cond: Any) -> Float[Tensor, "b *s"]:
        """What the network predicts, whatever that is, each image at a time of its own."""
        dtype = next(self.network.parameters()).dtype
        if isinstance(cond, Prompts) and self.ask:
            conditions = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.tensors.items()}
            prediction = self.ask(self.network, x_t.to(dtype), times, conditions)
        elif cond is None and self.classes is None and not self.ask:
            prediction = self.network(x_t.to(dtype), times).sample
        elif isinstance(cond, Tensor) and self.classes is not None:
            prediction = self.network(x_t.to(dtype), times, class_labels=cond).sample
        else:
            labels = "no condition" if self.classes is None else f"labels of {self.classes} classes as its condition"
            expected = "captions as its condition" if self.ask else labels
            raise UserError(f"this model takes {expected}; got {'none' if cond is None else 'one'}")
        return prediction[:, : x_t.shape[1]].to(x_t.dtype)  # learned-variance models append their variance


@final
@dataclass(frozen=True, eq=False)
class Guided(Denoiser):
    """Classifier-free guidance: eps(empty) + scale (eps(caption) - eps(empty)), two forwards in one batch.

    `on_difference` is told eps(caption) - eps(empty). Ho and Salimans 2022, arXiv 2207.12598, eq. 6 with scale = 1 + w.
    """

    denoiser: Denoiser
    scale: float
    on_difference: Callable[[Tensor], object] = lambda difference: None

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        return self.denoiser.schedule

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
            raise UserError("guidance is between a caption and none, so the model must take captions; leave out --guidance-scale")
        both = joined([cond.encode([""] * len(cond)), cond])
        empty, text = self.denoiser(torch.cat([x_t, x_t]), t, both).chunk(2)
        self.on_difference(text - empty)
        return empty + self.scale * (text - empty)


def unguided(denoiser: Denoiser) -> Denoiser:
    """The denoiser without classifier-free guidance, where it has any."""
    return denoiser.denoiser if isinstance(denoiser, Guided) else denoiser


def guided(denoiser: Denoiser, scale: float) -> Denoiser:
    """The denoiser under classifier-free guidance of this scale in place of any other; 1 is none, for half the forwards."""
    return unguided(denoiser) if scale == 1 else Guided(unguided(denoiser), scale)


@final
@dataclass(frozen=True, eq=False)
class Counted(Denoiser):
    """Reports every forward of `denoiser` to `on_call(images, timestep)`; changes nothing."""

    denoiser: Denoiser
    on_call: Callable[[int, int], None]

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        return self.denoiser.schedule

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
        eps = self.denoiser.at_once(x_t, timesteps, cond)
        for t in timesteps:
            self.on_call(len(x_t) // len(timesteps) * self.denoiser.forwards, t)
        return eps


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
