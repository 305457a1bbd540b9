"""A self-test of about two seconds: statistics, an attack and each device, against results that are known.

`diffleak selfcheck` runs every attack and takes half a minute.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from diffleak.stats.evaluation import evaluate

SIDE = 64  # images on each side
TIMESTEP = 150
TOLERANCE = 1e-4  # of a convolution on an accelerator, relative to the CPU, both in float32


@final
@dataclass(frozen=True)
class Tested:
    """One part of the self-test: its name, what came out beside what must, and if it holds."""

    name: str
    found: str
    passed: bool


def statistics(seed: int = 0) -> Tested:
    """The AUC of random scores with ties must be the share of pairs that are ordered correctly, where a tie counts one half."""
    members, held_out = np.random.default_rng(seed).integers(0, 20, (2, SIDE))
    pairs = np.sign(members[:, None].astype(float) - held_out[None])
    by_hand = float((pairs.mean() + 1) / 2)
    found = evaluate(members, held_out).auc.value
    return Tested("statistics", f"AUC {found:.6f}, by counting pairs {by_hand:.6f}", found is not None and abs(found - by_hand) < 1e-12)


def attacks(seed: int = 0) -> Tested:
    """The loss attack must find every member in a model that memorised its images (AUC 1), and none in a model that knows no image."""
    import torch

    from diffleak.attacks.loss import Loss
    from diffleak.attacks.subject import Subject
    from diffleak.auditing.selfcheck import SHAPE, band
    from diffleak.data.pixels import to_model
    from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
    from diffleak.diffusion.noise import Noise

    images = np.random.default_rng(seed).integers(0, 256, (2 * SIDE, *SHAPE), dtype=np.uint8)
    x0, schedule = torch.from_numpy(to_model(images)).double(), linear_schedule()
    noise = Noise(seed, tuple(map(str, range(len(x0)))), tuple(x0.shape[1:]), x0.dtype)
    results = []
    for model in (Memoriser(x0[:SIDE], schedule), Gaussian(0.0, 1 / 3, schedule)):
        scores = -Loss(timesteps=(TIMESTEP,)).statistics(Subject(model, x0, noise))[0].numpy()
        results.append(evaluate(scores[:SIDE], scores[SIDE:]))
    known, blank = (result.auc.value or 0.0 for result in results)
    allowed = band(results[1])
    found = f"AUC {known:.3f} on a model that memorised (must be 1), {blank:.3f} on one that did not (0.5 ± {allowed:.3f})"
    return Tested("attacks", found, known == 1.0 and abs(blank - 0.5) <= allowed)


def device(name: str) -> Tested:
    """A convolution on an accelerator must give what the CPU gives, up to TOLERANCE of the largest value."""
    import torch

    from diffleak.diffusion.devices import without_tf32

    draw = torch.Generator().manual_seed(0)
    images, kernel = torch.randn(4, 8, 16, 16, generator=draw), torch.randn(8, 8, 3, 3, generator=draw)
    expected = torch.conv2d(images, kernel)
    with without_tf32():
        found = torch.conv2d(images.to(name), kernel.to(name)).cpu()
    apart = float((found - expected).abs().max() / expected.abs().max())
    return Tested(name, f"a convolution differs from the CPU's by {apart:.1e} of its largest value", apart <= TOLERANCE)
