"""Each attack against its straight-line reference, and how attacks are written, parsed and refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.captions import Captioned, caption_vector, captions, toy_encode
from oracles import formulas
from oracles.formulas import LINEAR

from diffleak.attacks import ATTACKS
from diffleak.attacks.base import SWEEP
from diffleak.attacks.clid import CLiD, by_importance, shortened
from diffleak.attacks.noise_aggregation import NoiseAggregation
from diffleak.attacks.pfami import PFAMI
from diffleak.attacks.secmi import SecMI
from diffleak.attacks.spec import fit_to_schedule, parse, parse_timesteps
from diffleak.attacks.subject import Subject
from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.denoiser import Counted, Denoiser
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import UserError

SHAPES = [(1, 8, 8), (3, 6, 6)]
TIMESTEPS = (40, 90, 200)
IDS = tuple("abcd")


class Setting:
    """A smooth nonlinear denoiser of two layers in numpy and in torch, images, noise and a mask."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        d = int(np.prod(shape))
        first, second = rng.normal(size=(d, 24)) / np.sqrt(d), rng.normal(size=(24, d)) / np.sqrt(24)
        shift, drift = rng.normal(size=24), rng.normal(size=24)
        torch_first, torch_second, torch_shift, torch_drift = (torch.from_numpy(w) for w in (first, second, shift, drift))

        def in_numpy(x: np.ndarray, t: int) -> np.ndarray:
            hidden = np.tanh(x.reshape(len(x), d) @ first + shift + drift * t / 100)
            return 0.3 * x + (hidden @ second).reshape(x.shape)

        def in_torch(x: torch.Tensor, t: int) -> torch.Tensor:
            hidden = torch.tanh(x.flatten(1) @ torch_first + torch_shift + torch_drift * (t / 100))
            return 0.3 * x + (hidden @ torch_second).reshape(x.shape)

        self.eps = in_numpy
        self.denoiser = Denoiser.from_function(in_torch, LINEAR)
        self.images = rng.uniform(-1, 1, (len(IDS), *shape))
        self.keep = (rng.uniform(size=self.images.shape) < 0.6).astype(np.float64)
        self.x0, self.mask = torch.from_numpy(self.images), torch.from_numpy(self.keep)
        self.noise = Noise(3, IDS, shape, torch.float64)

    def draws(self, m: int) -> list[np.ndarray]:
        return [self.noise(j).numpy() for j in range(m)]

    def statistics(self, spec: str, masked: bool, timesteps: tuple[int, ...] = TIMESTEPS) -> np.ndarray:
        attack = parse(spec, ATTACKS, timesteps)
        return attack.statistics(Subject(self.denoiser, self.x0, self.noise), mask=self.mask if masked else None).numpy()


@pytest.fixture(params=SHAPES, ids=str)
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


@pytest.fixture(params=[False, True], ids=["whole", "masked"])
def masked(request: pytest.FixtureRequest) -> bool:
    return request.param


def same(value: np.ndarray, expected: np.ndarray, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=0)


# --- formulas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "draws", "p"), [("loss", 1, 2), ("loss(draws=3)", 3, 2), ("loss(draws=2,p=3)", 2, 3)])
def test_loss_is_the_mean_over_draws_of_the_noise_error(setting: Setting, masked: bool, spec: str, draws: int, p: float) -> None:
    mask = setting.keep if masked else None
    expected = formulas.loss(setting.eps, LINEAR, setting.images, setting.draws(draws), TIMESTEPS, p, mask)
    same(setting.statistics(spec, masked), expected)


@pytest.mark.parametrize(
    ("spec", "crops", "timesteps"), [("pfami", 10, tuple(range(0, 451, 50))), ("pfami(crops=3,timesteps=20+90)", 3, (20, 90))]
)
def test_pfami_is_the_mean_relative_excess_of_the_crops_losses(setting: Setting, spec: str, crops: int, timesteps: tuple[int, ...]) -> None:
    expected = formulas.pfami(setting.eps, LINEAR, setting.images, setting.draws(len(timesteps)), timesteps, crops)
    same(setting.statistics(spec, False), expected[None])


def test_pfami_of_a_latent_model_takes_the_latents_of_the_cropped_pixels(setting: Setting) -> None:
    """An encoder that is not linear: cropping latents gives something else."""
    pixels, attack = torch.from_numpy(np.random.default_rng(8).uniform(-1, 1, setting.images.shape)), PFAMI(timesteps=(50, 100))
    encode, encode_numpy = lambda x: torch.tanh(2 * x), lambda x: np.tanh(2 * x)
    found = attack.statistics(Subject(setting.denoiser, encode(pixels), setting.noise, encode=encode, images=lambda: pixels))
    draws, latents = setting.draws(2), encode_numpy(pixels.numpy())
    same(found.numpy(), formulas.pfami(setting.eps, LINEAR, latents, draws, (50, 100), 10, encode_numpy, pixels.numpy())[None])
    assert not np.allclose(found, attack.statistics(Subject(setting.denoiser, encode(pixels), setting.noise)), rtol=1e-3)


def test_pfami_of_an_image_without_any_loss_is_finite_and_large(setting: Setting) -> None:
    x0, e = setting.x0, setting.noise(0)

    def knows_the_images(x: torch.Tensor, t: int) -> torch.Tensor:
        repeats = len(x) // len(x0)
        member = (x - denoiser.schedule.add_noise(x0, t, e).repeat(repeats, 1, 1, 1)).abs().flatten(1).amax(dim=1) == 0
        return torch.where(member[:, None, None, None], e.repeat(repeats, 1, 1, 1), torch.zeros_like(x))

    denoiser = Denoiser.from_function(knows_the_images, LINEAR)
    value = PFAMI(timesteps=(100,)).statistics(Subject(denoiser, x0, setting.noise))
    assert torch.isfinite(value).all() and (value > 1e6).all()


def test_clid_components_are_the_loss_and_what_other_captions_add_to_it(setting: Setting) -> None:
    cond = toy_encode(("a red fox in the snow", "two boats", "a a dog", ""))
    shift = lambda texts: np.tanh(np.array([caption_vector(text).sum() for text in texts]) / 8)
    moved = lambda x, texts: x + 0.1 * shift(texts).reshape(-1, 1, 1, 1) * np.cos(x)
    eps = lambda x, t, texts: setting.eps(moved(x, texts), t)
    for timesteps in ((440, 450, 460), (20,)):
        found = CLiD(timesteps=timesteps).statistics(Subject(Captioned(setting.denoiser), setting.x0, setting.noise, cond))
        expected = formulas.clid(eps, LINEAR, setting.images, setting.draws(len(timesteps)), timesteps, cond.texts, caption_vector)
        same(found.numpy(), expected, rtol=1e-8)  # differences of losses that are nearly equal
    assert found[1, 3] == 0, "an empty caption has nothing to lose"


def test_clid_asks_for_all_its_conditions_and_timesteps_in_one_batch(setting: Setting) -> None:
    asked: list[tuple[int, tuple[int, ...]]] = []

    class Once(Denoiser):
        schedule = setting.denoiser.schedule

        def __call__(self, x_t, t, cond=None):
            raise AssertionError("one forward each")

        def at_once(self, x_t, timesteps, cond=None):
            asked.append((len(x_t), tuple(timesteps)))
            assert len(cond) == len(x_t)
            return torch.zeros_like(x_t)

    CLiD().statistics(Subject(Once(), setting.x0, setting.noise, captions(IDS)))
    assert asked == [(15 * len(IDS), (440,) * 5 + (450,) * 5 + (460,) * 5)]


def test_clid_without_captions_says_what_it_needs(setting: Setting) -> None:
    with pytest.raises(UserError, match="clid needs the captions of the images as cond, a Prompts; got NoneType"):
        CLiD().statistics(Subject(setting.denoiser, setting.x0, setting.noise))


def test_captions_are_compared_by_their_pooled_embedding_or_by_the_mean_of_their_words() -> None:
    tokens, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    vectors = lambda **tensors: Prompts(("a", "b"), {"encoder_hidden_states": tokens, **tensors}, lambda texts: None).vectors  # type: ignore
    torch.testing.assert_close(vectors(), tokens.mean(dim=1).double())
    words = torch.stack([tokens[0, :2].mean(dim=0), tokens[1].mean(dim=0)]).double()
    torch.testing.assert_close(vectors(encoder_attention_mask=mask), words)
    torch.testing.assert_close(vectors(text_embeds=torch.ones(2, 4)), torch.ones(2, 4).double())
    moved = Prompts(("a", "b"), {"encoder_hidden_states": tokens[:, [1, 2, 3, 4, 0]]}, lambda texts: None)  # type: ignore
    torch.testing.assert_close(moved.vectors, vectors(), msg="the place of a word is not its meaning")


@pytest.mark.parametrize(
    ("text", "percent", "expected"),
    [
        ("dog", 30, "dog"),
        ("dog", 70, "dog"),
        ("", 50, ""),
        ("one two", 30, "two"),  # a word at least
        ("one two", 50, "two"),
        ("one two three four five", 30, "four five"),  # 1.5 words, rounded up
        ("one two three four five", 50, "three four five"),
        ("one two three four five", 70, "two three four five"),
        ("five one four", 70, "five four"),  # in their own order
        ("dog one", 50, "dog"),  # of equal ones the earlier
        ("one dog", 50, "one"),
    ],
)
def test_a_reduced_caption_keeps_its_most_important_words_in_order(text: str, percent: int, expected: str) -> None:
    """An encoder where a word's direction is its own and its weight what the word says."""
    weights = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "dog": 1}

    def encode(texts, together=False) -> Prompts:
        assert together or len(texts) == 1, "the variants of a caption are embedded as one batch"
        vectors = torch.zeros(len(texts), 7, dtype=torch.float64)
        vectors[:, 0] = 20.0
        for row, caption in enumerate(texts):
            for word in set(caption.split()):
                vectors[row, list(weights).index(word) + 1] = weights[word]
        return Prompts(tuple(texts), {"embeds": vectors[:, None]}, encode)

    assert shortened(text, by_importance(encode([text]), text), percent) == expected


@pytest.mark.parametrize(("spec", "k"), [("secmi", 10), ("secmi(k=5)", 5)])
def test_secmi_statistic_equals_the_direct_definition(setting: Setting, masked: bool, spec: str, k: int) -> None:
    expected = formulas.secmi(setting.eps, LINEAR, setting.images, TIMESTEPS, k, mask=setting.keep if masked else None)
    same(setting.statistics(spec, masked), expected, rtol=1e-9)  # the definition subtracts nearly equal images


def test_secmi_definition_collapses_to_a_difference_of_two_predictions(setting: Setting) -> None:
    direct = formulas.secmi(setting.eps, LINEAR, setting.images, TIMESTEPS)
    same(formulas.secmi_identity(setting.eps, LINEAR, setting.images, TIMESTEPS), direct, rtol=1e-9)


def test_secmi_at_timestep_0_compares_with_the_image_itself(setting: Setting) -> None:
    same(setting.statistics("secmi", False, (0,)), formulas.secmi(setting.eps, LINEAR, setting.images, (0,)), rtol=1e-9)


def test_secmi_constant_at_90_is_the_published_one() -> None:
    def rises_by_one_per_timestep(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.full_like(x, float(t))

    x0 = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    denoiser = Denoiser.from_function(rises_by_one_per_timestep, LINEAR)
    value = SecMI(timesteps=(90,)).statistics(Subject(denoiser, x0, Noise(0, ("a", "b"), (1, 8, 8), torch.float64)))
    c_squared = value.numpy() / (10**2 * 64)  # |eps_90 - eps_100| = 10 at each of 64 pixels
    np.testing.assert_allclose(c_squared, 1.0608764e-3, rtol=5e-8)


@pytest.mark.parametrize("n", [1, 10, 31])
def test_secmi_walks_a_whole_grid_of_n_timesteps_in_n_plus_one_forwards(n: int) -> None:
    setting, visited = Setting((1, 8, 8)), []
    attack = SecMI(timesteps=tuple(range(0, 10 * n, 10)))
    attack.statistics(Subject(Counted(setting.denoiser, lambda images, t: visited.append((images, t))), setting.x0, setting.noise))
    assert visited == [(len(IDS), t) for t in range(0, 10 * n + 1, 10)]
    assert attack.queries == n + 1


def test_secmi_gives_the_same_number_whatever_else_is_in_the_grid() -> None:
    setting = Setting((1, 8, 8))
    whole = setting.statistics("secmi", False, tuple(range(0, 210, 10)))
    same(setting.statistics("secmi", False, (40, 90, 200)), whole[[4, 9, 20]], rtol=1e-14)


def test_pia_is_the_distance_from_the_fixed_point(setting: Setting, masked: bool) -> None:
    expected = formulas.pia(setting.eps, LINEAR, setting.images, TIMESTEPS, mask=setting.keep if masked else None)
    same(setting.statistics("pia", masked), expected)


def test_pian_normalises_the_first_prediction_image_by_image(setting: Setting, masked: bool) -> None:
    expected = formulas.pian(setting.eps, LINEAR, setting.images, TIMESTEPS, mask=setting.keep if masked else None)
    same(setting.statistics("pian", masked), expected)


@pytest.mark.parametrize(("spec", "p"), [("sima", 4), ("sima(p=2)", 2), ("sima(p=1.5)", 1.5)])
def test_sima_is_the_norm_of_the_prediction_at_the_raw_image(setting: Setting, masked: bool, spec: str, p: float) -> None:
    expected = formulas.sima(setting.eps, LINEAR, setting.images, TIMESTEPS, p, setting.keep if masked else None)
    same(setting.statistics(spec, masked), expected)


@pytest.mark.parametrize("variant", ["mean", "norms"])
@pytest.mark.parametrize("m", [1, 7])
def test_sima_mc_averages_predictions_or_norms(setting: Setting, masked: bool, variant: str, m: int) -> None:
    mask = setting.keep if masked else None
    expected = formulas.sima_mc(setting.eps, LINEAR, setting.images, setting.draws(m), TIMESTEPS, variant, mask=mask)
    same(setting.statistics(f"sima_mc(m={m},variant={variant})", masked), expected)


def test_sima_mc_variants_differ_and_the_mean_of_norms_is_the_larger() -> None:
    setting = Setting((1, 8, 8))
    norms, mean = (setting.statistics(f"sima_mc(m=7,variant={v})", False) for v in ("norms", "mean"))
    assert (norms > mean).all()  # Jensen: |.|^4 is convex


@pytest.mark.parametrize("scale", ["fixed", "relative", "schedule"])
@pytest.mark.parametrize("metric", ["l2", "l1", "centroid", "hull"])
def test_noise_aggregation_scores_how_tightly_the_predictions_cluster(setting: Setting, masked: bool, metric: str, scale: str) -> None:
    expected = formulas.noise_aggregation(
        setting.eps,
        LINEAR,
        setting.images,
        setting.draws(1)[0],
        TIMESTEPS,
        metric,
        mask=setting.keep if masked else None,
        sigma_scale=scale,
    )
    same(setting.statistics(f"noise_aggregation(metric={metric},sigma_scale={scale})", masked), expected, rtol=1e-8)


@pytest.mark.parametrize("scale", ["fixed", "schedule"])
def test_noise_aggregation_density_is_the_mean_kernel_of_the_pairs(setting: Setting, masked: bool, scale: str) -> None:
    bandwidths = (0.3, 0.7, 1.1)
    expected = formulas.noise_aggregation(
        setting.eps,
        LINEAR,
        setting.images,
        setting.draws(1)[0],
        TIMESTEPS,
        "density",
        bandwidths,
        setting.keep if masked else None,
        sigma_scale=scale,
    )
    attack = NoiseAggregation(timesteps=TIMESTEPS, metric="density", sigma_scale=scale, bandwidth=bandwidths)
    value = attack.statistics(Subject(setting.denoiser, setting.x0, setting.noise), mask=setting.mask if masked else None)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-8, atol=1e-10)  # the log of a kernel near 1 is near 0


def test_noise_aggregation_takes_its_own_k_stride_and_sigma(setting: Setting) -> None:
    expected = formulas.noise_aggregation(setting.eps, LINEAR, setting.images, setting.draws(1)[0], TIMESTEPS, k=3, stride=20, sigma=0.25)
    same(setting.statistics("noise_aggregation(k=3,stride=20,sigma=0.25)", False), expected, rtol=1e-9)


def test_noise_aggregation_l2_equals_a_residual_attack_around_the_mean_prediction(setting: Setting, masked: bool) -> None:
    k, mask, e = 5, setting.keep if masked else None, setting.draws(1)[0]
    rows = []
    for t in TIMESTEPS:
        vectors = formulas.walked_predictions(setting.eps, LINEAR, setting.images, e, t).reshape(k, *setting.images.shape)
        around = [formulas.norm_p(v - vectors.mean(axis=0), 2, mask) for v in vectors]
        rows.append(2 / (k - 1) * sum(around))
    same(np.exp(-setting.statistics("noise_aggregation", masked)) - 1e-12, np.array(rows), rtol=1e-9)


@pytest.mark.parametrize("metric", ["l2", "l1", "centroid", "hull"])
def test_noise_aggregation_of_identical_predictions_stops_at_the_floor(metric: str) -> None:
    constant = Denoiser.from_function(lambda x, t: torch.ones_like(x), LINEAR)
    attack = NoiseAggregation(timesteps=(80,), metric=metric)
    value = attack.statistics(Subject(constant, torch.zeros(1, 1, 8, 8, dtype=torch.float64), Noise(0, ("a",), (1, 8, 8), torch.float64)))
    assert value.item() == pytest.approx(-np.log(1e-12))


@pytest.mark.parametrize("metric", ["l2", "l1", "centroid", "density", "hull"])
def test_noise_aggregation_rises_when_the_predictions_move_together(metric: str) -> None:
    setting = Setting((1, 8, 8))

    def calmer(x: torch.Tensor, t: int) -> torch.Tensor:
        return setting.denoiser(x, 100) + 0.2 * (setting.denoiser(x, t) - setting.denoiser(x, 100))

    attack = NoiseAggregation(timesteps=(100,), metric=metric, bandwidth=(0.5,) if metric == "density" else ())
    tight = attack.statistics(Subject(Denoiser.from_function(calmer, LINEAR), setting.x0, setting.noise))
    loose = attack.statistics(Subject(setting.denoiser, setting.x0, setting.noise))
    assert (tight > loose).all()


FILTERS = [("", {}), ("radius=2,gain=0", {"radius": 2.0, "gain": 0.0}), ("radius=0,gain=0.5,p=1", {"radius": 0.0, "gain": 0.5, "p": 1.0})]
filters = pytest.mark.parametrize(("given", "values"), FILTERS, ids=lambda v: v or "default" if isinstance(v, str) else "")
frequency_attacks = pytest.mark.parametrize("name", ["loss_frequency", "pia_frequency"])


def to_pixels(z: np.ndarray) -> np.ndarray:
    """A nonlinear decoder that doubles height and width and turns c channels into two."""
    large = np.tanh(1.5 * z).repeat(2, axis=2).repeat(2, axis=3)
    return np.stack([large.sum(axis=1), (large**2).sum(axis=1) - large[:, 0]], axis=1)


def filtered(name: str, setting: Setting, timesteps: tuple[int, ...] = TIMESTEPS, **values) -> np.ndarray:
    """The reference, whose timesteps the attack's statistics have to equal."""
    if name == "loss_frequency":
        return formulas.loss_frequency(setting.eps, LINEAR, setting.images, setting.draws(1)[0], timesteps, **values)
    return formulas.pia_frequency(setting.eps, LINEAR, setting.images, timesteps, **values)


@filters
@frequency_attacks
def test_frequency_attacks_compare_damped_images(setting: Setting, name: str, given: str, values: dict) -> None:
    same(setting.statistics(f"{name}({given})" if given else name, False), filtered(name, setting, **values), rtol=1e-8)


@filters
@frequency_attacks
def test_frequency_attacks_on_latents_damp_the_decoded_images(name: str, given: str, values: dict) -> None:
    setting = Setting((3, 5, 6))
    attack = parse(f"{name}({given})" if given else name, ATTACKS, TIMESTEPS)
    decode = lambda z: torch.from_numpy(to_pixels(z.numpy()))
    value = attack.statistics(Subject(setting.denoiser, setting.x0, setting.noise, decode=decode)).numpy()
    same(value, filtered(name, setting, decode=to_pixels, **values), rtol=1e-8)
    assert (np.abs(value / filtered(name, setting, **values) - 1) > 1e-3).all(), "the decoder is used"


@pytest.mark.parametrize("given", ["radius=1e9", "gain=1", "radius=0,gain=1"])
@pytest.mark.parametrize(("name", "plain"), [("loss_frequency", "loss"), ("pia_frequency", "pia")])
def test_without_a_filter_the_difference_of_images_is_the_error_of_the_noise_in_units_of_the_signal(
    setting: Setting, name: str, plain: str, given: str
) -> None:
    p = {"loss": 2, "pia": 4}[plain]
    scale = np.array([np.sqrt((1 - LINEAR[t]) / LINEAR[t]) ** p for t in TIMESTEPS])[:, None]
    same(setting.statistics(f"{name}({given})", False), scale * setting.statistics(plain, False), rtol=1e-9)


def test_a_filter_that_lets_nothing_but_the_mean_through_leaves_the_squared_mean_of_each_channel(setting: Setting) -> None:
    value = setting.statistics("loss_frequency(radius=0,gain=0)", False)
    e, size = setting.draws(1)[0], setting.images[0, 0].size
    for row, t in zip(value, TIMESTEPS, strict=True):
        error = np.sqrt((1 - LINEAR[t]) / LINEAR[t]) * (e - setting.eps(formulas.q(LINEAR, setting.images, t, e), t))
        same(row, (size * error.mean(axis=(2, 3)) ** 2).sum(axis=1), rtol=1e-8)


@frequency_attacks
def test_a_frequency_attack_refuses_masks(setting: Setting, name: str) -> None:
    attack = parse(f"{name}(gain=0.5)", ATTACKS, TIMESTEPS)
    assert not attack.takes_masks
    for masks in ((setting.mask,), (None, setting.mask)):
        with pytest.raises(UserError) as refusal:
            attack.masked_statistics(Subject(setting.denoiser, setting.x0, setting.noise), masks=masks)
        assert str(refusal.value) == f"{name}(gain=0.5) takes no mask; leave out --mask, or this attack"


@pytest.mark.parametrize("given", ["radius=-1", "radius=nan", "radius=inf", "gain=-0.1", "gain=1.1", "gain=nan"])
@frequency_attacks
def test_a_filter_that_gives_no_number_or_cannot_be_recorded_is_refused(name: str, given: str) -> None:
    with pytest.raises(UserError, match=rf"{name} needs a finite radius >= 0 and gain in \[0, 1\]; got"):
        parse(f"{name}({given})", ATTACKS, TIMESTEPS)


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
def test_norms_are_summed_in_float64_whatever_the_model_computes_in(model_dtype: torch.dtype) -> None:
    # 1 + 4095 times 2^-12: float32 and bfloat16 sums of fourth powers would lose most of the small terms
    values = torch.full((1, 1, 64, 64), 2.0**-9, dtype=model_dtype)
    values[0, 0, 0, 0] = 16.0
    denoiser = Denoiser.from_function(lambda x, t: values, LINEAR)
    x0, noise = torch.zeros(1, 1, 64, 64, dtype=model_dtype), Noise(0, ("a",), (1, 64, 64), model_dtype)
    value = parse("sima", ATTACKS, (100,)).statistics(Subject(denoiser, x0, noise))
    assert value.item() == 16.0**4 + 4095 * 2.0**-36


# --- preparation --------------------------------------------------------------------------------------------------------


def test_density_refuses_to_score_before_it_is_prepared() -> None:
    setting = Setting((1, 8, 8))
    attack = parse("noise_aggregation(metric=density)", ATTACKS, TIMESTEPS)
    assert attack.needs_preparation
    with pytest.raises(UserError, match=r"noise_aggregation\(metric=density\) needs its bandwidth: call prepared\(\)"):
        attack.statistics(Subject(setting.denoiser, setting.x0, setting.noise))


def test_density_bandwidth_is_the_median_pair_distance_at_each_timestep() -> None:
    setting = Setting((1, 8, 8))
    x0, images = setting.x0[:3], setting.images[:3]  # k = 3 and three images: nine distances, so that the median is one of them
    noise = Noise(3, IDS[:3], (1, 8, 8), torch.float64)
    prepared = parse("noise_aggregation(metric=density,k=3)", ATTACKS, TIMESTEPS).prepared(Subject(setting.denoiser, x0, noise))
    expected = []
    for t in TIMESTEPS:
        vectors = formulas.walked_predictions(setting.eps, LINEAR, images, noise(0).numpy(), t, k=3)
        expected.append(np.median([d for b in range(3) for d in formulas.pair_distances(vectors[:, b])]))
    same(np.array(prepared.bandwidth), np.array(expected))
    assert not prepared.needs_preparation


def test_density_bandwidth_splits_an_even_number_of_pair_distances_in_halves() -> None:
    setting = Setting((1, 8, 8))
    attack = parse("noise_aggregation(metric=density)", ATTACKS, (80,)).prepared(Subject(setting.denoiser, setting.x0, setting.noise))
    vectors = formulas.walked_predictions(setting.eps, LINEAR, setting.images, setting.draws(1)[0], 80)
    distances = sorted(d for b in range(len(IDS)) for d in formulas.pair_distances(vectors[:, b]))
    assert attack.bandwidth[0] == pytest.approx((distances[19] + distances[20]) / 2, rel=1e-10)


def test_prepared_density_keeps_its_label_and_scores_any_batch() -> None:
    setting = Setting((1, 8, 8))
    attack = parse("noise_aggregation(metric=density)", ATTACKS, TIMESTEPS)
    prepared = attack.prepared(Subject(setting.denoiser, setting.x0, setting.noise))
    assert prepared.label == attack.label == "noise_aggregation(metric=density)"
    one = prepared.statistics(Subject(setting.denoiser, setting.x0[:1], Noise(3, IDS[:1], (1, 8, 8), torch.float64)))
    same(one.numpy(), prepared.statistics(Subject(setting.denoiser, setting.x0, setting.noise)).numpy()[:, :1])


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_with_default_parameters_need_no_preparation(name: str) -> None:
    setting, attack = Setting((1, 8, 8)), ATTACKS[name]()
    assert not attack.needs_preparation
    assert attack.prepared(Subject(setting.denoiser, setting.x0, setting.noise)) == attack


# --- where attacks are defined ------------------------------------------------------------------------------------------

SCHEDULE = Schedule(LINEAR)


def test_noise_aggregation_loses_only_the_timesteps_it_cannot_walk_down_from() -> None:
    assert fit_to_schedule(NoiseAggregation(timesteps=(10, 30, 39, 40, 50)), SCHEDULE).timesteps == (40, 50)
    assert fit_to_schedule(NoiseAggregation(timesteps=(10, 30, 39, 40, 50), k=3, stride=5), SCHEDULE).timesteps == (10, 30, 39, 40, 50)


def test_noise_aggregation_with_no_timestep_left_says_how_low_it_can_go() -> None:
    message = r"noise_aggregation is defined at none of the timesteps given; at 30: .*k - 1.* strides.*, so t must be at least 40"
    with pytest.raises(UserError, match=message):
        fit_to_schedule(NoiseAggregation(timesteps=(10, 30)), SCHEDULE)


def test_secmi_keeps_the_multiples_of_its_stride_that_leave_room_for_one_more() -> None:
    assert fit_to_schedule(SecMI(timesteps=(0, 5, 10, 980, 990)), SCHEDULE).timesteps == (0, 10, 980)
    with pytest.raises(
        UserError, match="secmi is defined at none of the timesteps given; at 95: secmi needs multiples of its stride k = 10"
    ):
        fit_to_schedule(SecMI(timesteps=(95,)), SCHEDULE)


def test_secmi_does_not_step_onto_a_timestep_without_signal() -> None:
    schedule = Schedule(np.append(np.linspace(0.99, 0.5, 20), 0.0))
    assert fit_to_schedule(SecMI(timesteps=(0, 10)), schedule).timesteps == (0,)


@pytest.mark.parametrize("name", [name for name, kind in ATTACKS.items() if kind.rule is None])
@pytest.mark.parametrize("t", [1000, 5000])
def test_timesteps_outside_the_schedule_are_refused(name: str, t: int) -> None:
    with pytest.raises(UserError, match=rf"timesteps must lie in \[0, 1000\), the model's schedule; got {t}"):
        fit_to_schedule(ATTACKS[name](timesteps=(100, t)), SCHEDULE)


@pytest.mark.parametrize("name", [name for name, kind in ATTACKS.items() if kind.rule and kind().timesteps])
def test_a_grid_of_an_attack_s_own_must_lie_in_the_schedule_whole(name: str) -> None:
    message = (
        f"{name} averages over timesteps up to 1000, and the model's schedule has 1000; give it others, as in {name}(timesteps=0:999:10)"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        fit_to_schedule(ATTACKS[name](timesteps=(100, 1000)), SCHEDULE)
    assert fit_to_schedule(ATTACKS[name](timesteps=(100, 999)), SCHEDULE).timesteps == (100, 999)


@pytest.mark.parametrize("name", [name for name, kind in ATTACKS.items() if kind().timesteps])
def test_timesteps_without_signal_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="alphas_cumprod is 0 at timestep 2: no signal is left there; choose smaller timesteps"):
        fit_to_schedule(ATTACKS[name](timesteps=(0, 2)), Schedule([0.9, 0.5, 0.0]))


def test_fitting_changes_nothing_but_the_timesteps() -> None:
    attack = NoiseAggregation(timesteps=(10, 80), metric="l1", sigma=0.2)
    assert fit_to_schedule(attack, SCHEDULE) == replace(attack, timesteps=(80,))


@pytest.mark.parametrize("spec", ["secmi", "noise_aggregation"])
def test_statistics_at_an_undefined_timestep_are_an_error_and_never_a_number(spec: str) -> None:
    setting = Setting((1, 8, 8))
    with pytest.raises((UserError, RuntimeError, IndexError, ValueError)):
        setting.statistics(spec, False, (25,))


# --- what is written on the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        *ATTACKS,
        "loss(p=1.0,draws=4)",
        "secmi(k=5)",
        "pia(p=2.0)",
        "pian(p=2.5)",
        "sima(p=2.0)",
        "sima_mc(m=10)",
        "sima_mc(m=10,variant=norms)",
        "noise_aggregation(k=4,stride=20,sigma=1e-05,sigma_scale=schedule,metric=hull)",
        "noise_aggregation(metric=density)",
        "pfami(timesteps=10:30:10,crops=3)",
        "clid(timesteps=440+460)",
        "clid(timesteps=7)",
    ],
)
def test_a_label_is_what_parse_takes(spec: str) -> None:
    attack = parse(spec, ATTACKS, (50, 100))
    assert attack.label == spec
    assert parse(attack.label, ATTACKS, (50, 100)) == attack


def test_defaults_are_those_of_the_papers() -> None:
    parameters = {name: kind().parameters() for name, kind in ATTACKS.items()}
    assert parameters["loss"] == {"p": 2.0, "draws": 1}
    assert parameters["secmi"] == {"p": 2.0, "k": 10}
    assert parameters["pia"] == parameters["pian"] == parameters["sima"] == {"p": 4.0}
    assert parameters["sima_mc"] == {"p": 4.0, "m": 30, "variant": "mean"}
    published = {"k": 5, "stride": 10, "sigma": 0.1, "sigma_scale": "relative", "metric": "l2"}
    assert published.items() <= parameters["noise_aggregation"].items()
    assert parameters["pfami"] == {"timesteps": tuple(range(0, 451, 50)), "crops": 10}
    assert parameters["clid"] == {"timesteps": (440, 450, 460)}
    assert (ATTACKS["pfami"]().queries, ATTACKS["clid"]().queries) == (110, 15)
    assert {n: k.published_timestep for n, k in ATTACKS.items() if n in ("secmi", "pia", "pian", "noise_aggregation")} == {
        "secmi": 90,
        "pia": 200,
        "pian": 200,
        "noise_aggregation": 80,
    }


def test_parameters_that_equal_the_default_leave_the_label_bare() -> None:
    assert parse("sima_mc(m=30,p=4)", ATTACKS, None).label == "sima_mc"
    assert parse("sima()", ATTACKS, None).label == "sima"


def test_spaces_around_parameters_do_not_matter() -> None:
    assert parse(" sima_mc( m = 10 , variant = norms ) ", ATTACKS, None) == parse("sima_mc(m=10,variant=norms)", ATTACKS, None)


def test_timesteps_come_from_the_spec_then_the_caller_then_the_default_sweep() -> None:
    assert parse("sima", ATTACKS, None).timesteps == SWEEP == tuple(range(10, 301, 10))
    assert parse("sima", ATTACKS, (7,)).timesteps == (7,)
    assert parse("sima(timesteps=50:150:50)", ATTACKS, (7,)).timesteps == (50, 100, 150)


def test_a_sweep_does_not_touch_the_timesteps_that_an_attack_averages_over() -> None:
    assert parse("clid", ATTACKS, (7,)).timesteps == (440, 450, 460)
    assert parse("pfami(timesteps=0:20:10)", ATTACKS, (7,)).timesteps == (0, 10, 20)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("simo", "unknown attack 'simo'; did you mean 'sima'?"),
        ("PIA", f"unknown attack 'PIA'; known: {', '.join(sorted(ATTACKS))}"),
        ("xyzzy", f"unknown attack 'xyzzy'; known: {', '.join(sorted(ATTACKS))}"),
        ("", "unknown attack ''; known: black_box, clid, gradient"),
        ("loss(draw=3)", "unknown parameter of loss 'draw'; did you mean 'draws'?"),
        ("noise_aggregation(strid=3)", "unknown parameter of noise_aggregation 'strid'; did you mean 'stride'?"),
        ("sima(zz=3)", "unknown parameter of sima 'zz'; known: p, timesteps"),
        ("sima_mc(variant=norm)", "unknown variant of sima_mc 'norm'; did you mean 'norms'?"),
        ("noise_aggregation(metric=hul)", "unknown metric of noise_aggregation 'hul'; did you mean 'hull'?"),
        ("noise_aggregation(sigma_scale=fix)", "unknown sigma_scale of noise_aggregation 'fix'; did you mean 'fixed'?"),
        ("sima_mc(m)", "attack parameters are written sima_mc(key=value,key=value); got sima_mc(m)"),
        ("sima_mc(m=3", "attack parameters are written sima_mc(key=value,key=value); got sima_mc(m=3"),
        ("sima_mc(", "attack parameters are written sima_mc(key=value,key=value); got sima_mc("),
        ("sima_mc(m=3,m=4)", "sima_mc: m is given twice"),
        ("sima(timesteps=10,timesteps=20)", "sima: timesteps is given twice"),
        ("sima_mc(m=many)", "sima_mc: m must be of the kind int; got 'many'"),
        ("sima_mc(m=2.5)", "sima_mc: m must be of the kind int; got '2.5'"),
        ("sima(p=four)", "sima: p must be of the kind float; got 'four'"),
        ("sima_mc(m=0)", "sima_mc: m must be at least 1; got 0"),
        ("pfami(crops=0)", "pfami: crops must be at least 1; got 0"),
        ("loss(draws=0)", "loss: draws must be at least 1; got 0"),
        ("secmi(k=0)", "secmi: k must be at least 1; got 0"),
        ("noise_aggregation(k=1)", "noise_aggregation needs k >= 2, stride >= 1 and sigma >= 0; got 1, 10, 0.1"),
        ("noise_aggregation(stride=0)", "noise_aggregation needs k >= 2, stride >= 1 and sigma >= 0; got 5, 0, 0.1"),
        ("noise_aggregation(sigma=-1)", "noise_aggregation needs k >= 2, stride >= 1 and sigma >= 0; got 5, 10, -1.0"),
        ("sima(timesteps=ten)", "timesteps must be start:stop:step (stop included), or one number; got 'ten'"),
    ],
)
def test_a_wrong_spec_says_what_must_hold(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(spec, ATTACKS, None)


@pytest.mark.parametrize(
    "spec", ["loss(p=0)", "sima(p=-1)", "pia(p=nan)", "secmi(p=inf)", *(f"noise_aggregation(sigma={x})" for x in ("nan", "inf"))]
)
def test_a_norm_or_scale_that_gives_no_number_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"\bp\b|\bsigma\b"):
        parse(spec, ATTACKS, None)


def test_the_bandwidth_is_measured_and_cannot_be_written_in_a_spec() -> None:
    with pytest.raises(UserError, match="bandwidth"):
        parse("noise_aggregation(metric=density,bandwidth=0.5)", ATTACKS, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10:50:10", (10, 20, 30, 40, 50)),
        ("10:55:10", (10, 20, 30, 40, 50)),
        ("3:6", (3, 4, 5, 6)),
        ("0", (0,)),
        ("90", (90,)),
        (90, (90,)),
        ("100+50", (50, 100)),
        ("10:30:10+200", (10, 20, 30, 200)),
        ("10:30:10+20", (10, 20, 30)),
        (" 10 : 30 : 10 ", (10, 20, 30)),
        ("50:50:10", (50,)),
    ],
)
def test_timestep_grids_include_their_stop(text: str | int, expected: tuple[int, ...]) -> None:
    assert parse_timesteps(text) == expected


@pytest.mark.parametrize("text", ["", "a:b", "10:300:ten", "10:300:0", "1:2:3:4", "1.5", "10,20", "10+", "50:10:-10", f"0:{10**25}"])
def test_timesteps_that_are_no_grid_are_refused(text: str) -> None:
    message = f"timesteps must be start:stop:step (stop included), or one number; got {text!r}"
    with pytest.raises(UserError, match=re.escape(message)):
        parse_timesteps(text)


def test_a_grid_has_at_most_a_hundred_thousand_timesteps() -> None:
    assert len(parse_timesteps("0:49999+50000:99999")) == 100_000
    with pytest.raises(UserError, match="timesteps must be start:stop:step"):
        parse_timesteps("0:50000+50001:100000")


@pytest.mark.parametrize("text", ["30:10:10", "-5", "-10:10:10"])
def test_empty_and_negative_grids_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"timesteps must be a non-empty grid of non-negative integers; got {text!r}")):
        parse_timesteps(text)
