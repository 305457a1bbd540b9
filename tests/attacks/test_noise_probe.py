"""Noise as a probe: against a straight-line loop and closed forms, what it finds, and what it asks of whom."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.captions import caption_vector, toy_encode
from fixtures.commands import refused
from fixtures.text import text_folder
from oracles import formulas

from diffleak import hub
from diffleak.attacks import ATTACKS
from diffleak.attacks.noise_probe import NoiseProbe
from diffleak.attacks.spec import parse
from diffleak.attacks.subject import Subject
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.auditing.plan import _allowed, prepare
from diffleak.auditing.run import Audit, run
from diffleak.auditing.score import Worker, collect, score
from diffleak.config import build
from diffleak.data.cohort import Cohort, two_sources
from diffleak.data.pixels import ImageShape, to_model
from diffleak.data.sources import ImageSource
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.denoiser import Counted, Denoiser, Guided
from diffleak.diffusion.dual import Dual
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import FlowSampler
from diffleak.diffusion.schedule import Schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.work.folder import Folder

SCHEDULE = linear_schedule()
SIDE = 4
SHAPE = ImageShape(1, SIDE, SIDE)
N = 24
FAST = "noise_probe(steps=10)"


def pixels(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 1), dtype=np.uint8)


def x0_of(seed: int, n: int) -> torch.Tensor:
    return torch.from_numpy(to_model(pixels(seed, n))).double()


def subject(denoiser: Denoiser, reference: Denoiser, x0: torch.Tensor, texts: Sequence[str], **means) -> Subject:
    noise = Noise(0, tuple(map(str, range(len(x0)))), x0.shape[1:], torch.float64)
    sampler = lambda steps: hub.new_sampler("ddim", denoiser.schedule, steps, clip=False)
    made = Subject(denoiser, x0, noise, toy_encode(texts), **{"sampler": sampler, **means})
    return replace(made, reference=replace(made, denoiser=reference))


def moved(strength: float, scale: float = 1.0) -> Denoiser:
    """A nonlinear denoiser that the caption moves."""

    def predict(x: torch.Tensor, t: int, cond: Prompts) -> torch.Tensor:
        shift = torch.tanh(cond.vectors.sum(dim=1) / 8).reshape(-1, 1, 1, 1)
        return scale * torch.tanh(x + strength * shift + t / 2000)

    return Denoiser.from_function(predict, SCHEDULE.alphas_cumprod)


def told(denoiser: Denoiser) -> Denoiser:
    """A model that ignores its captions."""
    return Denoiser.from_function(lambda x, t, cond=None: denoiser(x, t), denoiser.schedule.alphas_cumprod)


# what it computes


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_scores_are_those_of_a_straight_line_loop_up_and_down(guidance_scale: float) -> None:
    texts, x0 = ("two boats", "", "lighthouse"), x0_of(3, 3)
    model, reference = moved(0.3), moved(0.1, 0.9)
    decode, seen = lambda z: torch.tanh(2 * z), torch.linspace(-1, 1, 3 * SIDE * SIDE, dtype=torch.float64).reshape(x0.shape)
    asked = subject(model, reference, x0, texts, decode=decode, images=lambda: seen)
    found = NoiseProbe(steps=4, guidance_scale=guidance_scale).statistics(asked)

    def eps(denoiser: Denoiser, scale: float):
        def predicted(z: np.ndarray, t: int) -> np.ndarray:
            each = [denoiser(torch.from_numpy(z), t, toy_encode(given)).numpy() for given in (texts, [""] * 3)]
            return each[1] + scale * (each[0] - each[1])

        return predicted

    expected = formulas.noise_probe(
        eps(reference, 1.0),
        eps(model, guidance_scale),
        SCHEDULE.alphas_cumprod,
        x0.numpy(),
        (0, 250, 500, 750),
        seen.numpy(),
        lambda z: np.tanh(2 * z),
    )
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("steps", [10, 50])
def test_the_round_trip_of_a_linear_model_with_itself_has_the_error_of_its_steps(steps: int) -> None:
    """Each prediction of this model is a number k_t times x, so the whole trip is one number times x, found here by scalars."""
    variance, x0 = 0.3, x0_of(1, 5)
    found = NoiseProbe(steps=steps).statistics(subject(told(model := Gaussian(0.0, variance, SCHEDULE)), told(model), x0, [""] * 5))
    gain, a, s = 1.0, 1.0, 0.0
    for t in range(0, 1000, 1000 // steps):
        b, r = SCHEDULE.a(t), SCHEDULE.s(t)
        k = r / (b**2 * variance + r**2)
        gain *= (b * (1 - s * k) / a + r * k) * (a * (1 - r * k) / b + s * k)
        a, s = b, r
    error = (gain - 1) ** 2 * x0.square().flatten(1).mean(dim=1)
    torch.testing.assert_close(found[0], -torch.log(error + 1e-12), rtol=1e-9, atol=0)
    assert error.max() < {10: 0.05, 50: 0.002}[steps]


def test_on_a_path_of_flow_matching_a_linear_model_gives_the_image_back() -> None:
    schedule = Schedule.flow(np.arange(1, 1001) / 1000)
    gaussian = Gaussian(0.0, 0.3, schedule)

    class Told(Denoiser):
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t, t, cond=None):
            return gaussian(x_t, t)

    asked = subject(Told(), Told(), x0_of(1, 5), [""] * 5, sampler=lambda steps: FlowSampler(schedule, steps))
    errors = [torch.exp(-NoiseProbe(steps=steps).statistics(asked)).max() for steps in (10, 50, 200)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


# what it finds, and of whom


class Text:
    """Captions as the sums of their words' vectors, and a constant that tells models apart."""

    def __init__(self, mark: float = 0.0) -> None:
        self.mark = mark

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        vectors = np.stack([caption_vector(t) + self.mark for t in texts])
        return Prompts(tuple(texts), {"prompt_embeds": torch.from_numpy(vectors)[:, None]}, self)

    def truncated(self, texts: Sequence[str]) -> list[int]:
        return []


def captioned(denoiser: Denoiser, mark: float = 0.0) -> Target:
    return Target(denoiser, SHAPE, fingerprint=f"f{mark}", text=Text(mark), dtype="float64")


def source(name: str, seed: int) -> ImageSource:
    images, ids = pixels(seed), tuple(f"{name}-{i}" for i in range(N))
    return ImageSource(name, ids, images.__getitem__, captions=lambda: tuple((f"picture {i}",) for i in ids))


def cohort() -> Cohort:
    return two_sources(source("in", 1), source("out", 2))


def memoriser() -> Memoriser:
    return Memoriser(x0_of(1, N), SCHEDULE, tuple(f"picture in-{i}" for i in range(N)))


def ignorant() -> Denoiser:
    return told(Gaussian(0.0, 1 / 3, SCHEDULE))


def prepared(target: Target, reference: Target | None, attacks: str = FAST, **settings):
    named = {"reference": "reference"} if reference else {}
    config = build(AuditConfig, {"members": "in", "nonmembers": "out", "attacks": attacks, **named, **settings})
    return prepare(config, target, cohort(), reference)


def audited(target: Target, reference: Target, folder: Path, **settings) -> Audit:
    audit = run(prepared(target, reference, **settings), folder, lambda line: None)
    assert audit is not None
    return audit


def test_a_memoriser_gives_its_members_back_and_beyond_its_reference_too(tmp_path: Path) -> None:
    audit = audited(captioned(memoriser()), captioned(ignorant()), tmp_path)
    plain, reference, excess = (audit[f"{FAST}{variant}"].auc.value for variant in ("", "[reference]", "[excess]"))
    assert (plain, excess) == (1.0, 1.0)
    assert abs(reference - 0.5) < 0.3
    scores = {s.attack: s.statistic[:, 0] for s in audit.scores}
    member = np.array([i.startswith("in") for i in audit.scores[0].ids])
    assert (np.exp(-scores[FAST][member]) < 1e-9).all() and (np.exp(-scores[FAST][~member]) > 0.005).all()


def test_the_references_own_score_is_that_of_a_model_with_itself(tmp_path: Path) -> None:
    both = audited(captioned(memoriser()), captioned(ignorant()), tmp_path / "a")
    itself = audited(captioned(ignorant()), captioned(ignorant()), tmp_path / "b")
    scores = [{s.attack: s.statistic for s in audit.scores} for audit in (both, itself)]
    np.testing.assert_array_equal(scores[0][f"{FAST}[reference]"], scores[1][FAST])
    assert not scores[1][f"{FAST}[excess]"].any()


def test_the_reference_is_asked_with_captions_of_its_own_text_encoder(tmp_path: Path) -> None:
    marks: dict[str, set[float]] = {"model": set(), "reference": set()}

    def witness(name: str) -> Denoiser:
        def predict(x: torch.Tensor, t: int, cond: Prompts) -> torch.Tensor:
            own = [caption_vector(text) for text in cond.texts]
            marks[name].update(np.round(cond.tensors["prompt_embeds"][:, 0].numpy() - own, 6)[:, 0].tolist())
            return 0.5 * x

        return Denoiser.from_function(predict, SCHEDULE.alphas_cumprod)

    audited(captioned(witness("model"), 1.0), captioned(witness("reference"), 2.0), tmp_path, attacks="noise_probe(steps=2)")
    assert marks == {"model": {1.0}, "reference": {2.0}}


@pytest.mark.parametrize(("scale", "drawn"), [(1.0, 3), (2.0, 6)])
def test_queries_are_counted_with_the_inversions_of_both_passes(tmp_path: Path, scale: float, drawn: int) -> None:
    asked: list[tuple[str, int]] = []
    counted = lambda denoiser, name: captioned(Counted(denoiser, lambda n, t: asked.append((name, n))))
    spec = f"noise_probe(steps=3,guidance_scale={scale})"
    ready = prepared(counted(memoriser(), "model"), counted(ignorant(), "reference"), spec)
    assert ready.queries_per_image == 2 * (3 + drawn)
    asked.clear()  # of what the plan asked to see whether the models answer
    score(ready.job, Folder(tmp_path), Worker(0, 1, 1))
    total = {name: sum(n for who, n in asked if who == name) for name in ("model", "reference")}
    assert total == {"model": 2 * N * drawn, "reference": 2 * N * (3 + 3 + drawn)}
    assert collect(ready.job, tmp_path).queries == sum(total.values())


def test_the_models_of_a_pair_draw_in_turns_and_guidance_of_the_audit_is_left_out(tmp_path: Path) -> None:
    pair = Dual((ignorant(), ignorant()))
    one, two = (audited(captioned(model), captioned(ignorant()), tmp_path / str(i)) for i, model in enumerate((ignorant(), pair)))
    np.testing.assert_array_equal(one.scores[0].statistic, two.scores[0].statistic)
    guided = audited(captioned(Guided(ignorant(), 3.0)), captioned(Guided(ignorant(), 3.0)), tmp_path / "guided")
    np.testing.assert_array_equal(one.scores[0].statistic, guided.scores[0].statistic)
    assert [w for w in guided.record.warnings if "draws under a guidance of its own, 1, and not under the audit's 3" in w]


# refusals, and the command line


def test_it_is_refused_without_a_reference_and_no_part_of_all() -> None:
    with pytest.raises(
        UserError, match=r"^noise_probe needs a reference model beside the audited one: give --reference MODEL, or leave it out$"
    ):
        prepared(captioned(memoriser()), None)
    with pytest.raises(UserError, match=r"^noise_probe needs a reference model beside the audited one: leave it out$"):
        _allowed(NoiseProbe(), build(GeometryConfig, {"model": "m", "data": "d"}), captioned(memoriser()), False)
    assert "noise_probe" not in [attack.name for attack in prepared(captioned(memoriser()), None, "all", timesteps="50").attacks]


@pytest.mark.parametrize(
    ("message", "spec"),
    [
        ("noise_probe draws whole images and has no timesteps; leave them out", "noise_probe(timesteps=10)"),
        ("noise_probe: steps must be at least 1; got 0", "noise_probe(steps=0)"),
        ("noise_probe: guidance_scale must be a number of at least 0", "noise_probe(guidance_scale=nan)"),
        ("noise_probe: guidance_scale must be a number of at least 0", "noise_probe(guidance_scale=-0.5)"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(message: str, spec: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(spec, ATTACKS, None)


def test_more_steps_than_the_schedule_has_and_a_step_without_signal_are_refused_before_the_first_image() -> None:
    with pytest.raises(UserError, match=r"steps must lie in \[1, 1000\]"):
        prepared(captioned(ignorant()), captioned(ignorant()), "noise_probe(steps=1001)")
    silent = told(Gaussian(0.0, 1 / 3, Schedule(np.append(np.linspace(0.999, 0.1, 9), 0.0))))
    with pytest.raises(UserError, match="alphas_cumprod is 0 at timestep 9: no signal is left there"):
        prepared(captioned(silent), captioned(silent), "noise_probe(steps=10)")


def test_a_subject_without_captions_or_a_reference_is_refused() -> None:
    asked = subject(ignorant(), ignorant(), x0_of(1, 2), ["", ""])
    with pytest.raises(UserError, match="noise_probe needs the captions of the images as cond, a Prompts; got NoneType"):
        NoiseProbe().statistics(replace(asked, cond=None))
    with pytest.raises(UserError, match=r"noise_probe needs a reference model to invert images under: give Subject\(..., reference=...\)"):
        NoiseProbe().statistics(replace(asked, reference=None))


def test_a_model_without_captions_is_refused(capsys, model_folder: Callable[..., Path], tmp_path: Path) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8))
    sides = ["--members", tmp_path / "a.npy", "--nonmembers", tmp_path / "b.npy"]
    said = refused(
        capsys, "audit", model_folder(), *sides, "--attacks", "noise_probe", "--reference", model_folder("base"), "-o", tmp_path / "run"
    )
    assert "noise_probe works with captions, and" in said and "takes none; leave it out" in said


def test_a_pipeline_is_probed_through_its_autoencoder(tmp_path: Path) -> None:
    """The reference is the model with other weights; of latents too the distance is that of images."""
    target = hub.load(text_folder(tmp_path / "model"), device="cpu")
    other = hub.load(tmp_path / "model", device="cpu")
    with torch.no_grad():
        for weight in other.denoiser.network.parameters():  # type: ignore[attr-defined]
            weight.mul_(0.9)
    images = np.random.default_rng(1).integers(0, 256, (2, N, 16, 16, 3), dtype=np.uint8)
    sides = [
        ImageSource(name, tuple(f"{name}{i}" for i in range(N)), part.__getitem__, captions=lambda: (("a house",),) * N)
        for name, part in zip("ab", images, strict=True)
    ]
    given = {"members": "a", "nonmembers": "b", "attacks": "noise_probe(steps=2)", "reference": "other", "limit": N, "threads": 1}
    audit = run(prepare(build(AuditConfig, given), target, two_sources(*sides), other), tmp_path / "run", lambda line: None)
    assert audit is not None
    plain, reference, _ = (s.statistic[:, 0] for s in audit.scores)
    floor = [((target.codec.decode(target.codec.encode(x)) - x) ** 2).mean() for x in torch.from_numpy(to_model(images[0][:2])).split(1)]
    assert np.isfinite(plain).all() and (plain != reference).all()
    assert np.exp(-plain[:2]).min() > 0.2 * float(min(floor)), "no nearer than the autoencoder gives images back"
