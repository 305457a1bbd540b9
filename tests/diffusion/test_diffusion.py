"""Schedules, prediction conversions and keyed noise against diffusers and scipy; the analytic models against brute force."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from oracles.formulas import LINEAR
from scipy import integrate, stats
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from diffleak.attacks import ATTACKS
from diffleak.attacks.spec import parse
from diffleak.attacks.subject import Subject
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.denoiser import Counted, Denoiser, NetworkDenoiser, PredictionType, to_noise
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError

BETAS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
]
betas = pytest.mark.parametrize("config", BETAS, ids=lambda c: c["beta_schedule"])


def in_float64(scheduler):
    """diffusers keeps its table in float32; in float64 the comparisons below can be tight."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def normal(seed: int, shape: tuple[int, ...] = (3, 1, 4, 4)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# --- schedule -----------------------------------------------------------------------------------------------------------


@betas
def test_schedule_is_the_scheduler_table_in_float64(config: dict) -> None:
    table = DDPMScheduler(**config).alphas_cumprod
    schedule = Schedule(table)
    assert len(schedule) == 1000
    assert schedule.alphas_cumprod.dtype == np.float64
    np.testing.assert_array_equal(schedule.alphas_cumprod, table.numpy().astype(np.float64))


@betas
def test_signal_and_noise_shares_are_the_roots_of_the_table(config: dict) -> None:
    schedule = Schedule(DDPMScheduler(**config).alphas_cumprod)
    for t in (0, 1, 90, 500, 998):
        assert schedule.a(t) ** 2 == pytest.approx(schedule.alphas_cumprod[t], rel=1e-12)
        assert schedule.a(t) ** 2 + schedule.s(t) ** 2 == pytest.approx(1, rel=1e-12)


def test_linear_schedule_is_that_of_diffusers() -> None:
    np.testing.assert_allclose(linear_schedule().alphas_cumprod, DDPMScheduler().alphas_cumprod.numpy(), rtol=1e-4)
    np.testing.assert_allclose(linear_schedule().alphas_cumprod, LINEAR, rtol=1e-12)


@betas
def test_add_noise_equals_diffusers(config: dict) -> None:
    scheduler = in_float64(DDPMScheduler(**config))
    x0, e = normal(0), normal(1)
    for t in (0, 10, 400, 990):
        expected = scheduler.add_noise(x0, e, torch.full((3,), t))
        torch.testing.assert_close(Schedule(scheduler.alphas_cumprod).add_noise(x0, t, e), expected, rtol=1e-12, atol=1e-12)


@betas
def test_ddim_chain_equals_diffusers_going_down(config: dict) -> None:
    scheduler = in_float64(DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"))
    scheduler.set_timesteps(100)
    schedule = Schedule(scheduler.alphas_cumprod)
    ours = theirs = normal(2)
    for t in (200, 190, 180, 170, 160):
        eps = torch.tanh(theirs * 2 + t / 100)
        theirs = scheduler.step(eps, t, theirs, eta=0.0).prev_sample
        ours = schedule.ddim(ours, eps, t, t - 10)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@betas
def test_ddim_chain_equals_diffusers_inversion_going_up(config: dict) -> None:
    scheduler = in_float64(DDIMInverseScheduler(**config, clip_sample=False))
    scheduler.set_timesteps(100)
    schedule = Schedule(scheduler.alphas_cumprod)
    ours = theirs = normal(3)
    for t in (0, 10, 20, 30, 40):
        eps = torch.tanh(theirs * 2 + t / 100)
        theirs = scheduler.step(eps, t + 10, theirs).prev_sample  # diffusers names the timestep that is reached
        ours = schedule.ddim(ours, eps, t, t + 10)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_ddim_there_and_back_with_one_prediction_is_the_identity() -> None:
    schedule, x, eps = linear_schedule(), normal(4), normal(5)
    back = schedule.ddim(schedule.ddim(x, eps, 90, 300), eps, 300, 90)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)


def test_ddim_with_the_true_noise_lands_on_the_noised_image() -> None:
    schedule, x0, e = linear_schedule(), normal(6), normal(7)
    for t, u in ((100, 400), (400, 100)):
        landed = schedule.ddim(schedule.add_noise(x0, t, e), e, t, u)
        torch.testing.assert_close(landed, schedule.add_noise(x0, u, e), rtol=1e-12, atol=1e-12)


def test_ddim_does_not_clip() -> None:
    schedule, x0, e = linear_schedule(), 7 * normal(8), normal(9)
    torch.testing.assert_close(schedule.predict_x0(schedule.add_noise(x0, 50, e), 50, e), x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_schedule_arithmetic_keeps_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    schedule, x, e = linear_schedule(), normal(0).to(dtype), normal(1).to(dtype)
    assert schedule.add_noise(x, 10, e).dtype == schedule.ddim(x, e, 10, 20).dtype == schedule.predict_x0(x, 10, e).dtype == dtype


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ([0.5, 0.6], "a table that rises at t = 1"),
        ([1.2, 0.5], "1.2 at t = 0"),
        ([0.5, -0.1], "-0.1 at t = 1"),
        ([0.9, float("nan")], "nan at t = 1"),
        ([[0.9, 0.5]], r"shape \(1, 2\)"),
        ([], r"shape \(0,\)"),
    ],
)
def test_a_table_that_is_no_schedule_is_refused(table: list, found: str) -> None:
    with pytest.raises(UserError, match=rf"alphas_cumprod must be a non-increasing table of numbers in \[0, 1\].*; got {found}"):
        Schedule(np.array(table))


def test_a_schedule_cannot_be_changed_by_its_source() -> None:
    source = np.array([0.9, 0.5])
    schedule = Schedule(source)
    source[0] = 0.1
    assert schedule.alphas_cumprod[0] == 0.9
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.1


def test_schedule_takes_lists_arrays_and_tensors() -> None:
    tables = ([0.9, 0.5], np.array([0.9, 0.5]), torch.tensor([0.9, 0.5], dtype=torch.float64))
    assert all(Schedule(t).alphas_cumprod.tolist() == [0.9, 0.5] for t in tables)


@pytest.mark.parametrize("timesteps", [[2], [0, 1, 5], [-1]])
def test_check_refuses_timesteps_outside_the_table(timesteps: list[int]) -> None:
    with pytest.raises(UserError, match=rf"timesteps must lie in \[0, 2\), the model's schedule; got {timesteps[-1]}"):
        Schedule([0.9, 0.5]).check(timesteps)


def test_check_refuses_timesteps_without_signal_and_passes_the_rest() -> None:
    schedule = Schedule([0.9, 0.5, 0.0])
    schedule.check([0, 1])
    with pytest.raises(UserError, match="alphas_cumprod is 0 at timestep 2: no signal is left there; choose smaller timesteps"):
        schedule.check([0, 2])


# --- what networks predict ----------------------------------------------------------------------------------------------


@betas
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_predictions_are_converted_as_diffusers_does(config: dict, prediction_type: str) -> None:
    scheduler = in_float64(DDIMScheduler(**config, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False))
    scheduler.set_timesteps(100)
    schedule, x_t, prediction = Schedule(scheduler.alphas_cumprod), normal(0), normal(1)
    for t in (10, 250, 900):
        theirs = scheduler.step(prediction, t, x_t, eta=0.0)
        eps = to_noise(prediction, x_t, t, schedule, prediction_type)
        torch.testing.assert_close(schedule.predict_x0(x_t, t, eps), theirs.pred_original_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(schedule.ddim(x_t, eps, t, t - 10), theirs.prev_sample, rtol=1e-9, atol=1e-9)


@betas
def test_a_perfect_network_of_any_kind_gives_back_the_noise(config: dict) -> None:
    scheduler = in_float64(DDPMScheduler(**config))
    schedule, x0, e = Schedule(scheduler.alphas_cumprod), normal(0), normal(1)
    for t in (10, 250, 900):
        x_t, at = scheduler.add_noise(x0, e, torch.full((3,), t)), torch.full((3,), t)
        predictions = {"epsilon": e, "v_prediction": scheduler.get_velocity(x0, e, at), "sample": x0}
        for kind, prediction in predictions.items():
            torch.testing.assert_close(to_noise(prediction, x_t, t, schedule, kind), e, rtol=1e-9, atol=1e-9)


class Echo(torch.nn.Module):
    """A network that remembers how it was called and predicts `channels` channels of ones."""

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.channels, self.calls = channels, []

    def forward(self, x: torch.Tensor, t: torch.Tensor):
        self.calls.append((x.dtype, t.unique().item()))
        sample = self.weight * torch.arange(self.channels, dtype=x.dtype)[None, :, None, None].expand(len(x), -1, *x.shape[2:])
        return type("Output", (), {"sample": sample})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_network_runs_in_its_own_dtype_and_answers_in_that_of_the_images(dtype: torch.dtype) -> None:
    network = Echo(2, dtype)
    eps = NetworkDenoiser(network, linear_schedule())(torch.zeros(3, 2, 4, 4), 17)
    assert network.calls == [(dtype, 17)]
    assert eps.dtype == torch.float32


def test_the_variance_channels_of_a_network_are_dropped() -> None:
    eps = NetworkDenoiser(Echo(6, torch.float32), linear_schedule(), learned_variance=True)(torch.zeros(2, 3, 4, 4), 5)
    assert eps.shape == (2, 3, 4, 4)
    assert eps[0, :, 0, 0].tolist() == [0, 1, 2]


def test_an_unconditional_network_refuses_a_condition() -> None:
    with pytest.raises(UserError, match="this model takes no condition; got one"):
        NetworkDenoiser(Echo(1, torch.float32), linear_schedule())(torch.zeros(1, 1, 4, 4), 5, cond="a cat")


def test_a_function_becomes_a_denoiser_and_gets_the_condition_only_when_there_is_one() -> None:
    denoiser = Denoiser.from_function(lambda x, t, *cond: x * t + len(cond), [0.9, 0.5])
    x = torch.ones(1, 1, 2, 2)
    assert denoiser(x, 3).unique().item() == 3
    assert denoiser(x, 3, "a cat").unique().item() == 4
    assert len(denoiser.schedule) == 2


def test_counting_changes_no_prediction() -> None:
    denoiser, calls = Gaussian(0.0, 1.0, linear_schedule()), []
    counted = Counted(denoiser, lambda n, t: calls.append((n, t)))
    assert torch.equal(counted(normal(0), 7), denoiser(normal(0), 7))
    assert calls == [(3, 7)]
    assert counted.schedule is denoiser.schedule


# --- noise --------------------------------------------------------------------------------------------------------------

SHAPE = (1, 8, 8)


@pytest.mark.parametrize(("stream", "draw"), [("", 0), ("", 7), ("sample", 2)])
def test_noise_is_that_of_a_philox_generator_for_each_image(stream: str, draw: int) -> None:
    ids, shape = ("a.png", "b/ä.png", ""), (2, 3, 3)
    found = Noise(5, ids, shape, torch.float64, stream=stream)(draw)
    for normals, image_id in zip(found, ids, strict=True):
        named = f"5\0{image_id}" + (f"\0{stream}" if stream else "")
        key = np.frombuffer(hashlib.blake2b(named.encode(), digest_size=16).digest(), dtype=np.uint64)
        alone = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, draw]))
        assert normals.numpy().tobytes() == alone.standard_normal(shape).tobytes()


def test_noise_does_not_depend_on_the_batch_or_its_order() -> None:
    whole = Noise(1, ("a", "b", "c"), SHAPE)(0)
    assert torch.equal(Noise(1, ("c", "a"), SHAPE)(0), whole[[2, 0]])
    assert torch.equal(Noise(1, ("b",), SHAPE)(0), whole[1:2])


def test_noise_does_not_depend_on_the_order_of_draws_or_the_global_generators() -> None:
    forwards = Noise(1, ("a", "b"), SHAPE)
    first = [forwards(j) for j in range(3)]
    torch.manual_seed(99)
    np.random.seed(99)
    backwards = Noise(1, ("a", "b"), SHAPE)
    second = [backwards(j) for j in (2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(forwards(1), first[1])


def test_noise_differs_between_seeds_ids_and_draws() -> None:
    noises = [Noise(seed, (image,), SHAPE)(draw) for seed in (0, 1, -1) for image in ("a", "b", "1", "") for draw in (0, 1, 2)]
    assert len({n.numpy().tobytes() for n in noises}) == 3 * 4 * 3


def test_seed_and_id_cannot_be_mistaken_for_each_other() -> None:
    assert not torch.equal(Noise(1, ("2a",), SHAPE)(0), Noise(12, ("a",), SHAPE)(0))


def test_draws_of_one_image_do_not_overlap() -> None:
    noise = Noise(0, ("a",), (4096,), torch.float64)
    first, second = noise(0).numpy().ravel(), noise(1).numpy().ravel()
    assert not np.isin(second, first).any()


@pytest.mark.parametrize("many", ["ids", "draws", "seeds"])
def test_noise_is_standard_normal_over_ids_draws_and_seeds(many: str) -> None:
    if many == "ids":
        values = Noise(0, tuple(map(str, range(400))), SHAPE, torch.float64)(0).numpy()
    elif many == "draws":
        noise = Noise(0, ("a",), SHAPE, torch.float64)
        values = np.concatenate([noise(j).numpy() for j in range(400)])
    else:
        values = np.concatenate([Noise(s, ("a",), SHAPE, torch.float64)(0).numpy() for s in range(400)])
    n = values.size
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / n)
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(values[:, 0, 0, 0], "norm").pvalue > 1e-3  # one pixel across images, too


def test_noise_of_different_images_draws_and_seeds_is_uncorrelated() -> None:
    d = 4096
    rows = [*Noise(0, tuple(map(str, range(12))), (d,), torch.float64)(0).numpy()]
    rows += [Noise(0, ("0",), (d,), torch.float64)(j)[0].numpy() for j in range(1, 12)]
    rows += [Noise(s, ("0",), (d,), torch.float64)(0)[0].numpy() for s in range(1, 12)]
    correlation = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(d)
    assert correlation.std() == pytest.approx(1 / np.sqrt(d), rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_noise_in_another_dtype_is_the_float64_noise_rounded(dtype: torch.dtype) -> None:
    rounded = Noise(0, ("a", "b"), SHAPE, dtype)(3)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, Noise(0, ("a", "b"), SHAPE, torch.float64)(3).to(dtype))


# --- models with known answers ------------------------------------------------------------------------------------------


def test_memoriser_equals_the_kernel_weighted_mean_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    points, x = rng.uniform(-1, 1, (7, 2, 3, 3)), rng.uniform(-1, 1, (4, 2, 3, 3))
    memoriser = Memoriser(torch.from_numpy(points), linear_schedule())
    for t in (0, 20, 300, 999):
        a, s = np.sqrt(LINEAR[t]), np.sqrt(1 - LINEAR[t])
        expected = np.empty_like(x)
        for b, image in enumerate(x):
            exponents = np.array([-((image - a * y) ** 2).sum() / (2 * s**2) for y in points])
            weights = np.exp(exponents - logsumexp(exponents))
            x0_hat = sum(w * y for w, y in zip(weights, points, strict=True))
            expected[b] = (image - a * x0_hat) / s
        np.testing.assert_allclose(memoriser(torch.from_numpy(x), t).numpy(), expected, rtol=1e-9, atol=1e-10)


def test_memoriser_knows_the_noise_on_its_own_points_when_there_is_little() -> None:
    points = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (16, 1, 8, 8)))
    schedule = Schedule(1 - np.array([1e-10, 1e-8, 1e-4]))
    memoriser = Memoriser(points, schedule)
    e = normal(0, (16, 1, 8, 8))
    for t in range(3):
        torch.testing.assert_close(memoriser(schedule.add_noise(points, t, e), t), e, rtol=0, atol=1e-9)
        assert memoriser(schedule.a(t) * points, t).abs().max() < 1e-9


def test_memoriser_points_away_from_the_nearest_point_when_there_is_little_noise() -> None:
    points = torch.tensor([-0.5, 0.5], dtype=torch.float64).reshape(2, 1, 1, 1)
    schedule = Schedule([1 - 1e-4])
    eps = Memoriser(points, schedule)(torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64), 0)
    assert eps.item() == pytest.approx((0.3 - np.sqrt(1 - 1e-4) * 0.5) / 1e-2, rel=1e-9)


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1 / 3), (0.4, 0.05)])
def test_gaussian_equals_the_posterior_mean_by_numerical_integration(mean: float, variance: float) -> None:
    denoiser = Gaussian(mean, variance, linear_schedule())
    for t in (10, 150, 700):
        a, s = np.sqrt(LINEAR[t]), np.sqrt(1 - LINEAR[t])
        for x_t in (-0.8, 0.1, 1.3):
            joint = lambda x0, a=a, s=s, x_t=x_t: stats.norm.pdf(x0, mean, np.sqrt(variance)) * stats.norm.pdf(x_t, a * x0, s)
            grid = np.linspace(mean - 12 * np.sqrt(variance), mean + 12 * np.sqrt(variance), 20001)
            mass, first = integrate.simpson(joint(grid), x=grid), integrate.simpson(grid * joint(grid), x=grid)
            eps = denoiser(torch.full((1, 1, 1, 1), x_t, dtype=torch.float64), t).item()
            assert eps == pytest.approx((x_t - a * first / mass) / s, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("classes", [None, 5])
def test_parts_at_their_own_timesteps_in_one_forward_are_those_of_a_loop(
    tiny_network: Callable[..., torch.nn.Module], prediction_type: PredictionType, classes: int | None
) -> None:
    network, forwards = tiny_network(num_class_embeds=classes), list[int]()
    network.register_forward_hook(lambda *_: forwards.append(1))
    denoiser = NetworkDenoiser(network, linear_schedule(), prediction_type, classes)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    cond, timesteps = None if classes is None else torch.tensor([0, 4, 1, 1, 3, 2]), (10, 999, 440)
    together = denoiser.at_once(x, timesteps, cond)
    assert len(forwards) == 1
    torch.testing.assert_close(together, Denoiser.at_once(denoiser, x, timesteps, cond), rtol=1e-5, atol=1e-5)
    assert len(forwards) == 4
    alone = [denoiser(x[2 * i : 2 * i + 2], t, None if cond is None else cond[2 * i : 2 * i + 2]) for i, t in enumerate(timesteps)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_parts_asked_at_once_are_counted_with_their_timesteps() -> None:
    counted: list[tuple[int, int]] = []
    denoiser = Counted(Denoiser.from_function(lambda x, t: x * t, linear_schedule().alphas_cumprod), lambda n, t: counted.append((n, t)))
    found = denoiser.at_once(torch.ones(6, 1, 2, 2), (3, 5, 5))
    assert found.flatten(1).mean(1).tolist() == [3, 3, 5, 5, 5, 5]
    assert counted == [(2, 3), (2, 5), (2, 5)]


SIDE = 128
BAND = 3.3 * np.sqrt((2 * SIDE + 1) / (12 * SIDE**2))  # 3.3 standard errors of the AUC when there is no difference
UNCAPTIONED = [name for name, kind in ATTACKS.items() if kind.in_all and not kind.needs_text]
SPECS = [
    *UNCAPTIONED,
    "sima_mc(variant=norms)",
    "loss(draws=4)",
    *(f"noise_aggregation(metric={m})" for m in ("l1", "centroid", "density", "hull")),
]


def scores_at_150(model: Denoiser, spec: str, members: np.ndarray, nonmembers: np.ndarray) -> np.ndarray:
    """Members first; higher means member, by the direction that the attack declares."""
    images = torch.from_numpy(np.concatenate([members, nonmembers]))
    noise = Noise(0, tuple(map(str, range(len(images)))), (1, 8, 8), torch.float64)
    attack = parse(spec, ATTACKS, (150,)).prepared(Subject(model, images, noise))
    statistic = attack.statistics(Subject(model, images, noise))[0].numpy()
    return -statistic if attack.direction == "small" else statistic


def auc_at_150(model: Denoiser, spec: str, members: np.ndarray, nonmembers: np.ndarray) -> float:
    labels = [1] * len(members) + [0] * len(nonmembers)
    return float(roc_auc_score(labels, scores_at_150(model, spec, members, nonmembers)))


@pytest.fixture(scope="module")
def sides() -> tuple[np.ndarray, np.ndarray]:
    members, nonmembers = np.random.default_rng(0).uniform(-1, 1, (2, SIDE, 1, 8, 8))
    return members, nonmembers


@pytest.mark.parametrize("spec", [s for s in SPECS if "hull" not in s])
def test_every_attack_separates_a_memoriser_perfectly(spec: str, sides: tuple[np.ndarray, np.ndarray]) -> None:
    assert auc_at_150(Memoriser(torch.from_numpy(sides[0]), linear_schedule()), spec, *sides) == 1.0


def test_hull_separates_a_memoriser_up_to_its_floor(sides: tuple[np.ndarray, np.ndarray]) -> None:
    """A volume is a product of four lengths: it falls below the floor of 1e-12 for some non-members too, never the other way."""
    model = Memoriser(torch.from_numpy(sides[0]), linear_schedule())
    scores = scores_at_150(model, "noise_aggregation(metric=hull)", *sides)
    np.testing.assert_allclose(scores[:SIDE], -np.log(1e-12), rtol=1e-6)
    assert scores[SIDE:].max() <= scores[:SIDE].min() + 1e-4
    assert auc_at_150(model, "noise_aggregation(metric=hull)", *sides) > 0.5 + BAND


@pytest.mark.parametrize("spec", SPECS)
def test_every_attack_guesses_on_a_model_that_knows_nothing(spec: str, sides: tuple[np.ndarray, np.ndarray]) -> None:
    assert abs(auc_at_150(Gaussian(0.0, 1 / 3, linear_schedule()), spec, *sides) - 0.5) <= BAND


@pytest.mark.parametrize("spec", UNCAPTIONED)
def test_every_attack_tells_memorised_digits_from_others_like_them(spec: str, digits: np.ndarray) -> None:
    chosen = np.random.default_rng(0).permutation(np.unique(digits, axis=0))[: 2 * SIDE]
    pixels = chosen.transpose(0, 3, 1, 2) / 127.5 - 1.0
    members, nonmembers = pixels[:SIDE], pixels[SIDE:]
    assert auc_at_150(Memoriser(torch.from_numpy(members), linear_schedule()), spec, members, nonmembers) > 0.5 + BAND
