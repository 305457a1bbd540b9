"""DP-SGD: training that is (epsilon, delta)-differentially private in each single image.

    g = 1/B (Σ_{i in batch} g_i min(1, C / |g_i|) + σ C N(0, I)),   every image in the batch independently with q = B / n

Abadi et al. 2016, arXiv 1607.00133, algorithm 1, with per-sample gradients, clipping, noise and the Rényi accountant of
Opacus (Yousefpour et al. 2021, arXiv 2109.12298; Mironov, Talwar and Zhang 2019, arXiv 1908.10530). epsilon is a function
of (q, σ, steps) and delta, so a resumed run goes on accounting by itself. Where coins chose the images, n is half of those that coins were
thrown for: q must not depend on how one of them fell.

What is promised, and what not: the unit is one image with its label, so of an image that is there k times, or nearly so, only
k epsilon is promised. An autoencoder that was trained on the same images is outside. The seed decides batches and noise: who
knows it can take the noise out again, so it and train.json, which holds it, stay secret, as do losses.csv and the checkpoint.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf, nan
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffleak.errors import UserError, one_or_more, pip_install, refusing
from diffleak.training.config import TrainConfig
from diffleak.training.task import Rows, Task, batch, keyed, mix, refuse_divergence

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 128, 256, 512)  # of the Rényi divergences
GRADIENT_BYTES = 2**31  # of per-sample gradients at once; a larger batch is clipped in parts and added up
NOISE_OF_OPACUS = (  # warnings that say nothing of the result
    "Full backward hook is firing when gradients are computed with respect to module outputs",  # images need no gradient
    "Using a non-full backward hook when the forward contains multiple",  # gradients are compared with autograd's own
    "Optimal order is the (largest|smallest) alpha",  # epsilon of any order is an upper bound: a finer grid could only lower it
)
POISSON, NOISE = 0x706F69, 0x6E6F69  # keys of these draws, which no other has


@dataclass(frozen=True)
class Privacy:
    """The mechanism: σ, C, q, and the delta that epsilon is stated for."""

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    delta: float

    def epsilon(self, steps: int) -> float:
        """What `steps` steps have spent."""
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(self.noise_multiplier, self.sample_rate, steps)]
        with _quiet():
            return float(accountant.get_epsilon(self.delta, alphas=list(ORDERS))) if self.noise_multiplier else inf

    def record(self) -> dict[str, Any]:
        """What train.json says about the mechanism."""
        return {"noise_multiplier": self.noise_multiplier, "sample_rate": self.sample_rate, "unit": "one image", "accountant": "rdp"}


def plan_privacy(config: TrainConfig, n: int | float, processes: int) -> Privacy:
    """The mechanism for `n` images, which anyone may know (`TrainingData.public_size`); raises `UserError` where DP-SGD cannot be had."""
    with refusing(ImportError, f"DP-SGD needs Opacus, which is not installed: {pip_install('dp')}"):
        import opacus  # noqa: F401
    if processes > 1:
        raise UserError(f"DP-SGD runs in one process, which draws each batch and its noise once; got {processes}")
    of = f"{n:.10g}, {'half of the images that coins were thrown for' if isinstance(n, float) else 'the number of images'}"
    if config.batch_size > n:
        raise UserError(f"--batch-size of DP-SGD must be at most {of}; got {config.batch_size}")
    assert config.dp_delta is not None
    if config.dp_delta >= 1 / n:
        raise UserError(f"--dp-delta must be below one over {of}, to mean anything; got {config.dp_delta:g}")
    rate = config.batch_size / n
    sigma = config.dp_noise_multiplier or _noise_multiplier(config, rate)
    return Privacy(sigma, config.dp_max_grad_norm or 1.0, rate, config.dp_delta)


def _noise_multiplier(config: TrainConfig, rate: float) -> float:
    """The least noise with which all steps spend at most dp_epsilon, rounded up so that it is the same on every machine."""
    from opacus.accountants.utils import get_noise_multiplier

    assert config.dp_epsilon is not None and config.dp_delta is not None
    budget = {"target_epsilon": config.dp_epsilon, "target_delta": config.dp_delta, "epsilon_tolerance": config.dp_epsilon / 1000}
    advice = "raise --dp-epsilon, or lower --steps or --batch-size"
    message = f"no noise is enough for --dp-epsilon {config.dp_epsilon:g} at {one_or_more(config.steps, 'step')}: {advice}"
    with refusing(ValueError, message), _quiet():
        sigma = get_noise_multiplier(**budget, sample_rate=rate, steps=config.steps, accountant="rdp", alphas=list(ORDERS))
    return ceil(sigma * 1e4) / 1e4


def poisson(n: int, public: int | float | None = None) -> Rows:
    """Batches in which each of n images is with probability size / public, independently of the others and of other steps.

    public: the number of images that the rate is taken of, n unless n itself is random.
    """
    of = n if public is None else public

    def rows(step: int, size: int, seed: int) -> Int[np.ndarray, " b"]:
        return np.flatnonzero(np.random.default_rng((seed, step, POISSON)).random(n) < size / of)

    return rows


class PrivateTraining:
    """How a loop takes the steps of `privacy`; holds the optimiser whose noise it keys."""

    def __init__(self, privacy: Privacy, config: TrainConfig) -> None:
        self.privacy, self.config = privacy, config

    def wrap(self, task: Task, optimizer: torch.optim.Optimizer) -> tuple[torch.nn.Module, Any]:
        """The module with per-sample gradients and the optimiser that clips them and adds noise.

        Raises `UserError` for a network whose per-sample gradients Opacus cannot compute, or computes wrongly.
        """
        from opacus.optimizers import DPOptimizer

        module = per_sample(task.module)
        _refuse_wrong_gradients(module, task)
        self.optimizer: Any = DPOptimizer(
            optimizer,
            noise_multiplier=self.privacy.noise_multiplier,
            max_grad_norm=self.privacy.max_grad_norm,
            expected_batch_size=self.config.batch_size,
        )
        return module, self.optimizer

    def gradients(self, module: torch.nn.Module, arguments: tuple[Tensor | None, ...], step: int) -> float:
        """Leaves what the optimiser's step needs, keyed noise included; returns the mean loss, nan for an empty batch."""
        parameters = list(module.parameters())
        self.optimizer.generator = torch.Generator(parameters[0].device).manual_seed(mix(self.config.seed, step, NOISE))
        n, at_once = len(arguments[0]), max(1, GRADIENT_BYTES // (4 * sum(p.numel() for p in parameters)))  # type: ignore[arg-type]
        if n == 0:
            for parameter in parameters:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
            return nan
        total = 0.0
        for start in range(0, n, at_once):
            if start:
                self.optimizer.signal_skip_step()
                self.optimizer.step()  # clips the part before and adds it up
                self.optimizer.zero_grad(set_to_none=True)
            part = [None if whole is None else whole[start : start + at_once] for whole in arguments]
            loss = module(*part)
            value = float(loss.detach())
            refuse_divergence(value, step, self.config.learning_rate, module)
            with _quiet():
                loss.backward()
            total += value * len(part[0])  # type: ignore[arg-type]
        return total / n


def per_sample(module: torch.nn.Module) -> torch.nn.Module:
    """`module`, whose loss is a mean over images, with hooks that leave each image's gradient in `grad_sample`."""
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    errors = [str(error) for error in ModuleValidator.validate(module, strict=False)]
    errors += [str(error) for error in GradSampleModule.validate(module, strict=False)]
    if errors:
        raise UserError(f"DP-SGD needs a network that treats each image alone; Opacus refuses this one: {errors[0].splitlines()[0]}")
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):  # Opacus 1.6 reads the memory of other layouts, which attention leaves, in the wrong order
            layer.register_forward_pre_hook(lambda _, inputs: tuple(x.contiguous() for x in inputs))
    return GradSampleModule(module, loss_reduction="mean")


def _refuse_wrong_gradients(module: Any, task: Task) -> None:
    """Compares Opacus' gradient of one image in a batch of two with autograd's gradient of that image alone."""
    arguments = batch(task, np.array([0, len(task.inputs) - 1]), keyed(0))
    named: list[tuple[str, Any]] = [(name, p) for name, p in task.module.named_parameters() if p.requires_grad]
    with _quiet(), _without_dropout(module):
        try:
            module(*arguments).backward()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                f"Opacus cannot follow this network, so DP-SGD cannot train it; choose other block types ({str(error).split('. ')[0]})"
            ) from None
        missing = [name for name, p in named if p.grad_sample is None]
        if missing:
            raise UserError(
                f"Opacus gives no per-sample gradient of {one_or_more(len(missing), 'weight')} of this network (first: {missing[0]}), so "
                "DP-SGD "
                "cannot train it; choose other block types"
            )
        ours = [p.grad_sample[0] for _, p in named]
        module.zero_grad(set_to_none=True)
        module.set_grad_sample_to_none()
        module.disable_hooks()
        theirs = torch.autograd.grad(task.module(*(None if whole is None else whole[:1] for whole in arguments)), [p for _, p in named])
        module.enable_hooks()
    size = float(torch.stack([gradient.norm() for gradient in theirs]).norm())
    wrong = [n for (n, _), a, b in zip(named, ours, theirs, strict=True) if float((a - b).norm()) > 1e-3 * float(b.norm()) + 1e-5 * size]
    if wrong:
        raise UserError(
            f"Opacus computes wrong gradients of this network ({wrong[0]}), so DP-SGD cannot train it; choose other block types"
        )


@contextmanager
def _without_dropout(module: torch.nn.Module) -> Iterator[None]:
    dropouts = [layer for layer in module.modules() if isinstance(layer, torch.nn.Dropout) and layer.training]
    for layer in dropouts:
        layer.eval()
    yield
    for layer in dropouts:
        layer.train()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without NOISE_OF_OPACUS."""
    with warnings.catch_warnings():
        for message in NOISE_OF_OPACUS:
            warnings.filterwarnings("ignore", message)
        yield
