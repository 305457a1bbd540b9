"""What every attack must do, whatever its idea: adding a line to ATTACKS adds it here."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, is_dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from fixtures.captions import Captioned, captions, toy_encode

from diffleak.attacks import ATTACKS, Attack, ResidualAttack
from diffleak.attacks.spec import parse
from diffleak.attacks.subject import Encoder, Subject
from diffleak.diffusion.analytic import linear_schedule
from diffleak.diffusion.denoiser import Around, Counted, Denoiser, NetworkDenoiser
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import FlowSampler
from diffleak.errors import UserError
from diffleak.stats.rules import RULES

VARIANTS = [
    "loss(draws=3)",
    "secmi(k=5)",
    "sima_mc(variant=norms)",
    *(f"noise_aggregation(metric={m})" for m in ("l1", "centroid", "density", "hull")),
    *(f"noise_aggregation(sigma_scale={s})" for s in ("fixed", "schedule")),
    "black_box(n=2,steps=3,guidance_scale=1,variant=classifier)",
    "noise_probe(steps=3,guidance_scale=2)",
]
TIMESTEPS = (50, 150)
SHAPE = (2, 6, 6)
N = 6
IDS = tuple(f"image-{i}" for i in range(N))


class Smooth(torch.nn.Module):
    """Two convolutions with a tanh between them, time entering as a shift; nonlinear, float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        drawn = lambda *shape: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64), requires_grad=False)
        self.first, self.second, self.shift = drawn(6, 2, 3, 3), drawn(2, 6, 3, 3), drawn(6, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        hidden = torch.nn.functional.conv2d(x, self.first / 4, padding=1) + self.shift * t[:, None, None, None] / 100
        return SimpleNamespace(sample=torch.nn.functional.conv2d(torch.tanh(hidden), self.second / 4, padding=1))


def smooth_denoiser() -> Denoiser:
    return NetworkDenoiser(Smooth(), linear_schedule())


def images(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, (N, *shape))).to(dtype)


def noise(ids: tuple[str, ...] = IDS, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> Noise:
    return Noise(5, ids, shape, dtype)


def ready(spec: str, denoiser: Denoiser, shape: tuple[int, ...] = SHAPE, timesteps: tuple[int, ...] = TIMESTEPS) -> Attack:
    """The attack with what it needs from calibration images, which are others than those it is tested on."""
    x0 = torch.from_numpy(np.random.default_rng(9).uniform(-1, 1, (N, *shape)))
    others = Noise(5, tuple(f"calibration-{i}" for i in range(N)), shape, torch.float64)
    subject = Subject(denoiser, x0, others, **MEANS)
    return parse(spec, ATTACKS, timesteps).opened(subject).prepared(subject)


class Fainter(Denoiser):
    """A reference model: predicts less noise than another, which it asks."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.schedule = inner, inner.schedule

    def __call__(self, x_t: torch.Tensor, t: int, cond: object = None) -> torch.Tensor:
        return 0.9 * self.inner(x_t, t, cond)


MEANS = {
    "sampler": lambda steps: FlowSampler(linear_schedule(), steps),
    "open_encoder": lambda spec: Encoder("hash", lambda x: x.flatten(start_dim=1)),
}


def asked(attack: Attack, denoiser: Denoiser, x0: torch.Tensor, e: Noise) -> Subject:
    """The batch under a caption for each image, and for an attack that asks it with a reference, whose forwards count too."""
    subject = Subject(denoiser, x0, e, captions(e.ids), **MEANS)
    return replace(subject, reference=replace(subject, denoiser=Fainter(denoiser))) if attack.needs_reference else subject


def statistics(attack: Attack, denoiser: Denoiser, x0: torch.Tensor, e: Noise, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What the attack says of such a batch."""
    return attack.statistics(asked(attack, denoiser, x0, e), mask)


SPECS = [*ATTACKS, *VARIANTS]
SWEPT = [s for s in SPECS if parse(s, ATTACKS, TIMESTEPS).rule is None]


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def denoiser() -> Denoiser:
    return Captioned(smooth_denoiser())


@pytest.fixture
def attack(spec: str, denoiser: Denoiser) -> Attack:
    return ready(spec, denoiser)


@pytest.fixture(params=[s for s in SWEPT if "_frequency" not in s])
def maskable(request: pytest.FixtureRequest, denoiser: Denoiser) -> Attack:
    return ready(request.param, denoiser)


@pytest.fixture(params=[s for s in SWEPT if "_frequency" not in s and issubclass(ATTACKS[s.partition("(")[0]], ResidualAttack)])
def residual(request: pytest.FixtureRequest, denoiser: Denoiser) -> Attack:
    return ready(request.param, denoiser)


def test_statistics_are_finite_float64_of_shape_timesteps_by_batch(attack: Attack, denoiser: Denoiser) -> None:
    value = statistics(attack, denoiser, images(), noise())
    assert value.shape == (len(attack.columns), N)
    assert attack.columns == (TIMESTEPS if attack.rule is None else tuple(range(len(attack.columns))))
    assert value.dtype == torch.float64
    assert torch.isfinite(value).all()
    assert len(value.unique()) == value.numel()  # every image and timestep has its own


def test_statistics_are_float64_for_float32_images(attack: Attack, denoiser: Denoiser) -> None:
    value = statistics(attack, denoiser, images(dtype=torch.float32), noise(dtype=torch.float32))
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, statistics(attack, denoiser, images(), noise()), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "spec",
    [
        "secmi(k=1)",
        "noise_aggregation(k=2,stride=1,sigma=0)",
        "pfami(crops=1)",
        "black_box(n=1,steps=1,guidance_scale=0)",
        "noise_probe(steps=1,guidance_scale=0)",
    ],
)
def test_the_smallest_parameters_that_are_allowed_give_a_finite_statistic(spec: str, denoiser: Denoiser) -> None:
    assert torch.isfinite(statistics(ready(spec, denoiser), denoiser, images(), noise())).all()


def test_statistics_are_deterministic(attack: Attack, denoiser: Denoiser) -> None:
    torch.manual_seed(0)
    first = statistics(attack, denoiser, images(), noise())
    torch.manual_seed(1)
    assert torch.equal(first, statistics(attack, denoiser, images(), noise()))


def test_statistics_leave_images_noise_and_the_global_generator_alone(attack: Attack, denoiser: Denoiser) -> None:
    x0, e = images(), noise()
    state = torch.get_rng_state()
    statistics(attack, denoiser, x0, e, mask=torch.ones_like(x0) if attack.takes_masks else None)
    assert torch.equal(x0, images())
    assert torch.equal(e(0), noise()(0))
    assert torch.equal(state, torch.get_rng_state())


def test_statistics_move_with_their_image_when_the_batch_is_permuted(attack: Attack, denoiser: Denoiser) -> None:
    order = [4, 0, 5, 2, 1, 3]
    whole = statistics(attack, denoiser, images(), noise())
    permuted = statistics(attack, denoiser, images()[order], noise(tuple(IDS[i] for i in order)))
    torch.testing.assert_close(permuted, whole[:, order], rtol=1e-10, atol=0)


@pytest.mark.parametrize("size", [1, 4])
def test_statistics_do_not_depend_on_the_batch_size(attack: Attack, denoiser: Denoiser, size: int) -> None:
    whole = statistics(attack, denoiser, images(), noise())
    parts = [statistics(attack, denoiser, images()[i : i + size], noise(IDS[i : i + size])) for i in range(0, N, size)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-10, atol=0)


def test_statistics_of_a_float32_network_do_not_depend_on_the_batch_size(spec: str, tiny_network: Callable[..., torch.nn.Module]) -> None:
    """Convolutions may sum in another order in another batch: within 1e-3 relative, after p = 4 and differences of predictions."""
    denoiser, shape, size = Captioned(NetworkDenoiser(tiny_network(), linear_schedule())), (1, 8, 8), 4
    attack, x0 = ready(spec, denoiser, shape), images(shape, torch.float32)
    whole = statistics(attack, denoiser, x0, noise(IDS, shape, torch.float32))
    parts = [statistics(attack, denoiser, x0[i : i + size], noise(IDS[i : i + size], shape, torch.float32)) for i in range(0, N, size)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-3, atol=0)


def test_statistics_leave_the_network_unchanged(spec: str, tiny_network: Callable[..., torch.nn.Module]) -> None:
    network, untouched = tiny_network(), tiny_network()
    denoiser = Captioned(NetworkDenoiser(network, linear_schedule()))
    attack = ready(spec, denoiser, (1, 8, 8))
    statistics(attack, denoiser, images((1, 8, 8)), noise(IDS, (1, 8, 8)))
    after, before = network.state_dict(), untouched.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert not network.training
    assert all(p.grad is None and (attack.access == "white-box" or not p.requires_grad) for p in network.parameters())


def test_a_mask_of_ones_changes_nothing(maskable: Attack, denoiser: Denoiser) -> None:
    ones = torch.ones_like(images())
    assert torch.equal(statistics(maskable, denoiser, images(), noise(), mask=ones), statistics(maskable, denoiser, images(), noise()))


def test_a_mask_keeps_what_lies_outside_it_out_of_the_statistic(maskable: Attack, denoiser: Denoiser) -> None:
    mask = torch.zeros_like(images())
    mask[:, 0, 0, 0] = 1
    masked = statistics(maskable, denoiser, images(), noise(), mask=mask)
    assert (masked != statistics(maskable, denoiser, images(), noise())).all()


def test_a_mask_of_zeros_makes_a_residual_statistic_zero(residual: Attack, denoiser: Denoiser) -> None:
    assert (statistics(residual, denoiser, images(), noise(), mask=torch.zeros_like(images())) == 0).all()


def test_residual_statistics_add_up_over_disjoint_masks(residual: Attack, denoiser: Denoiser) -> None:
    left = (torch.rand(images().shape, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    halves = [statistics(residual, denoiser, images(), noise(), mask=m) for m in (left, 1 - left)]
    assert all((h > 0).all() for h in halves)
    torch.testing.assert_close(halves[0] + halves[1], statistics(residual, denoiser, images(), noise()), rtol=1e-12, atol=0)


def test_many_masks_give_what_each_gives_alone_for_the_forwards_of_one(maskable: Attack, denoiser: Denoiser) -> None:
    generator = torch.Generator().manual_seed(3)
    masks = [None, *((torch.rand(images().shape, generator=generator) < keep).double() for keep in (0.3, 0.6)), torch.ones_like(images())]
    forwards: list[int] = []
    counted = Counted(denoiser, lambda n, t: forwards.append(n))
    together = maskable.masked_statistics(asked(maskable, counted, images(), noise()), masks=masks)
    assert sum(forwards) == N * maskable.queries
    assert together.dtype == torch.float64 and together.shape == (len(masks), len(TIMESTEPS), N)
    alone = [statistics(maskable, denoiser, images(), noise(), mask=mask) for mask in masks]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=0)
    assert not torch.equal(together[0], together[1]) and torch.equal(together[0], together[3])


@pytest.mark.parametrize("timesteps", [(100,), (50, 100, 150), tuple(range(40, 130, 10))])
def test_declared_queries_are_the_forwards_made_for_each_image(spec: str, denoiser: Denoiser, timesteps: tuple[int, ...]) -> None:
    attack, forwards = ready(spec, denoiser, timesteps=timesteps), list[int]()
    statistics(attack, Counted(denoiser, lambda n, t: forwards.append(n)), images(), noise())
    assert sum(forwards) == N * attack.queries


class Watched(Around, wrapper=True):
    """Writes down the rows of each forward."""

    rows: ClassVar[list[int]] = []

    def __call__(self, x_t, t, cond=None):
        self.rows.append(len(x_t))
        return self.denoiser(x_t, t, cond)

    def at_once(self, x_t, timesteps, cond=None):
        self.rows.append(len(x_t))
        return self.denoiser.at_once(x_t, timesteps, cond)

    def with_graph(self, x_t, timesteps, cond=None):
        self.rows.append(len(x_t))
        return self.denoiser.with_graph(x_t, timesteps, cond)


@pytest.mark.parametrize("spec", [s for s in SPECS if not s.startswith("black_box")])  # which draws at most `at_once` images at once
def test_the_largest_forward_has_as_many_rows_for_each_image_as_the_attack_declares(spec: str, denoiser: Denoiser) -> None:
    attack = ready(spec, denoiser, timesteps=tuple(range(50, 50 * (N + 1), 50)))
    Watched.rows.clear()
    statistics(attack, Watched(denoiser), images(), noise())
    assert max(Watched.rows) == N * attack.width


@pytest.mark.parametrize("spec", SWEPT)
def test_a_timestep_gives_the_same_number_alone_as_in_a_grid(spec: str, denoiser: Denoiser) -> None:
    whole = statistics(ready(spec, denoiser), denoiser, images(), noise())
    alone = [statistics(ready(spec, denoiser, timesteps=(t,)), denoiser, images(), noise()) for t in TIMESTEPS]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("spec", SWEPT)
def test_row_i_belongs_to_timestep_i_whatever_timesteps_lie_between(spec: str, denoiser: Denoiser) -> None:
    among = statistics(ready(spec, denoiser, timesteps=(50, 100, 150, 200)), denoiser, images(), noise())
    torch.testing.assert_close(among[[0, 2]], statistics(ready(spec, denoiser), denoiser, images(), noise()), rtol=1e-12, atol=0)
    assert not torch.isclose(among[0], among[2], rtol=1e-6, atol=0).any(), "the rows of other timesteps are other numbers"


@pytest.mark.parametrize("spec", SWEPT)
def test_timesteps_that_do_not_rise_are_refused(spec: str, denoiser: Denoiser) -> None:
    for timesteps in (TIMESTEPS[::-1], (50, 50)):
        with pytest.raises(UserError, match="timesteps must be strictly increasing"):
            ready(spec, denoiser, timesteps=timesteps)


def test_statistics_depend_on_the_image(attack: Attack, denoiser: Denoiser) -> None:
    value = statistics(attack, denoiser, images(), noise())
    assert (statistics(attack, denoiser, -images(), noise()) != value).all()


def test_statistics_depend_on_the_caption(attack: Attack, denoiser: Denoiser) -> None:
    subject = asked(attack, denoiser, images(), noise())
    others = replace(subject, cond=toy_encode(["seven green bicycles"] * N))
    assert (attack.statistics(others) != attack.statistics(subject)).all()


def test_attacks_are_frozen_dataclasses_that_compare_by_value(attack: Attack) -> None:
    assert is_dataclass(attack)
    with pytest.raises(FrozenInstanceError):
        attack.timesteps = (1,)
    assert replace(attack) == attack
    assert hash(replace(attack)) == hash(attack)
    another = {"timesteps": (60,)} if attack.timesteps else {"steps": 7}
    assert replace(attack, **another) != attack


def test_recorded_parameters_survive_json_and_rebuild_the_attack(attack: Attack) -> None:
    recorded = json.loads(json.dumps(attack.parameters(), allow_nan=False))
    assert ("timesteps" in recorded) == (attack.rule is not None and attack.timesteps != ())
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}
    assert type(attack)(**{"timesteps": attack.timesteps, **values}) == attack


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_declares_its_name_source_access_and_direction(name: str) -> None:
    kind = ATTACKS[name]
    assert kind.name == name
    assert kind.access in ("black-box", "grey-box", "white-box")
    assert kind.direction in ("small", "large")
    assert "arXiv" in kind.source
    assert kind.__doc__
    assert kind.rule is None or kind.rule in RULES
    if kind.rule:
        assert kind.direction == "large", "components must be high for members, so that several models can be compared"
    if issubclass(kind, ResidualAttack):
        assert kind.direction == "small"


@pytest.mark.parametrize("spec", [s for s in SPECS if s not in SWEPT or "_frequency" in s])
def test_an_attack_that_takes_no_mask_refuses_one(spec: str, denoiser: Denoiser) -> None:
    with pytest.raises(UserError, match="takes no mask; leave out --mask, or this attack"):
        statistics(ready(spec, denoiser), denoiser, images(), noise(), mask=torch.ones_like(images()))
