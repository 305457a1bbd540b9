"""Black-box: against a straight-line loop, on models that memorised or ignore captions, and what it is counted and kept from."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.captions import caption_vector
from fixtures.commands import call, refused
from fixtures.text import text_folder

import diffleak
from diffleak import hub
from diffleak.attacks import ATTACKS
from diffleak.attacks.black_box import BlackBox, cosines
from diffleak.attacks.spec import parse
from diffleak.attacks.subject import Encoder, Subject
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.inputs import Inputs
from diffleak.auditing.plan import choose_attacks, prepare
from diffleak.auditing.run import run
from diffleak.auditing.score import Job, Worker, collect, score
from diffleak.config import build
from diffleak.data.cohort import two_sources
from diffleak.data.pixels import ImageShape, to_model, to_uint8
from diffleak.data.sources import ImageSource
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.conditions import Prompts
from diffleak.diffusion.denoiser import Counted, Denoiser, Guided
from diffleak.diffusion.dual import Dual
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import FlowSampler
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.stats.rules import settled
from diffleak.work.folder import Folder

pytestmark = pytest.mark.usefixtures("undrawn")

SCHEDULE = linear_schedule()
SIDE = 4
SHAPE = ImageShape(1, SIDE, SIDE)
FAST = "black_box(n=2,steps=3,guidance_scale=1.5,encoder=pixels)"


class Text:
    """Captions as the sums of their words' vectors."""

    def __call__(self, texts: Sequence[str], together: bool = False) -> Prompts:
        return Prompts(tuple(texts), {"prompt_embeds": torch.from_numpy(np.stack([caption_vector(t) for t in texts]))[:, None]}, self)

    def truncated(self, texts: Sequence[str]) -> list[int]:
        return []


def captioned(denoiser: Denoiser, **keys) -> Target:
    return Target(denoiser, SHAPE, fingerprint="f", text=Text(), **{"dtype": "float64", **keys})


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 1), dtype=np.uint8)


def source(name: str, n: int, seed: int) -> ImageSource:
    images = pixels(n, seed)
    ids = tuple(f"{name}-{i}" for i in range(n))
    return ImageSource(name, ids, lambda i: images[i], captions=lambda: tuple((f"picture {i}",) for i in ids))


def cohort(n: int = 40):
    return two_sources(source("in", n, 1), source("out", n, 2))


def memoriser(n: int = 40) -> Memoriser:
    """Knows the members of `cohort` by their captions, and nothing else."""
    return Memoriser(torch.from_numpy(to_model(pixels(n, 1))).double(), SCHEDULE, tuple(f"picture in-{i}" for i in range(n)))


def prepared(target: Target, attacks: str = FAST, n: int = 40, **settings):
    config = build(AuditConfig, {"members": "in", "nonmembers": "out", "attacks": attacks, **settings})
    return prepare(config, target, cohort(n))


def audited(target: Target, folder: Path, attacks: str = FAST, n: int = 40, **settings):
    audit = run(prepared(target, attacks, n, **settings), folder, lambda line: None)
    assert audit is not None
    return audit


# what it computes


def test_similarities_are_those_of_a_straight_line_loop() -> None:
    """DDIM by its formula, guidance by its formula, one image and one draw at a time."""
    text, n, steps, scale = Text(), 3, 4, 3.0
    denoiser = memoriser()
    x0 = torch.from_numpy(to_model(pixels(5, 3))).double()
    ids = ("a", "b", "c", "d", "e")
    texts = ("picture in-1", "two boats", "", "picture in-3", "picture in-1")
    attack = BlackBox(n=n, steps=steps, guidance_scale=scale, encoder="pixels")
    alone = Inputs(captioned(denoiser), cohort(2), SHAPE, False, 0).alone()
    found = attack.statistics(replace(alone, x0=x0, noise=Noise(7, ids, x0.shape[1:], torch.float64), cond=text(texts)))
    timesteps = [750, 500, 250, 0]
    alphas = SCHEDULE.alphas_cumprod
    for i, (image_id, caption) in enumerate(zip(ids, texts, strict=True)):
        expected = []
        for j in range(n):
            x = Noise(7, (f"{image_id}\0{j}",), x0.shape[1:], torch.float64, stream="black-box")(0)
            for t, u in zip(timesteps, [*timesteps[1:], None], strict=True):
                empty, told = denoiser(x, t, text([""])), denoiser(x, t, text([caption]))
                eps = empty + scale * (told - empty)
                clean = ((x - np.sqrt(1 - alphas[t]) * eps) / np.sqrt(alphas[t])).clamp(-1, 1)
                x = clean if u is None else np.sqrt(alphas[u]) * clean + np.sqrt(1 - alphas[u]) * eps
            seen = [small(to_uint8(image.float().numpy())) for image in (x, x0[i : i + 1])]
            expected.append(np.dot(*seen) / np.linalg.norm(seen[0]) / np.linalg.norm(seen[1]))
        np.testing.assert_allclose(found[:, i], sorted(expected, reverse=True), rtol=1e-6, atol=1e-6)


def small(image: np.ndarray) -> np.ndarray:
    from diffleak.hub.encoders import extract, open_extractor

    return extract(open_extractor("pixels"), [image]).features[0].astype(np.float64)


def test_cosines_are_taken_draw_by_draw() -> None:
    x, y = torch.eye(2), torch.tensor([[2.0, 0], [1, 1], [0, 3], [0, -1]])
    torch.testing.assert_close(cosines(x, y), torch.tensor([[1, 0.5**0.5], [0, -1]], dtype=torch.float64))


@pytest.mark.parametrize(("scale", "forwards"), [(1.0, 1), (2.0, 2)])
def test_kept_drawings_are_taken_and_their_forwards_reported(scale: float, forwards: int) -> None:
    x0, ids, asked, saved = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.float64), ("a", "b"), [], []

    def kept(make, noise, cond, steps, guidance_scale):
        asked.append((noise.ids, cond.texts, steps, guidance_scale))
        return torch.ones(4, 1, SIDE, SIDE), 3

    subject = Subject(
        memoriser(),
        x0,
        Noise(0, ids, (1, SIDE, SIDE), torch.float64),
        Text()(["x", "y"]),
        sampler=lambda steps: FlowSampler(SCHEDULE, steps),
        kept=kept,
        on_kept=saved.append,
    )
    assert (subject.draw(5, scale, 2) == 1).all()
    assert asked == [(tuple(f"{i}\0{j}" for j in range(2) for i in ids), ("x", "y", "x", "y"), 5, scale)]
    assert saved == [3 * 5 * forwards]


def test_a_batch_does_not_change_what_is_drawn_for_an_image_and_draws_differ() -> None:
    seen: list[torch.Tensor] = []
    watched = Denoiser.from_function(lambda x, t, cond: (seen.append(x.clone()) if t == 998 else None) or x, SCHEDULE.alphas_cumprod)
    means = {"sampler": lambda steps: FlowSampler(SCHEDULE, steps), "open_encoder": lambda spec: Encoder("e", lambda x: x.flatten(1))}
    attack = BlackBox(n=2, steps=2, guidance_scale=1.0)
    x0 = torch.zeros(3, 1, SIDE, SIDE, dtype=torch.float64)
    for ids in (("a", "b", "c"), ("b",)):
        noise = Noise(0, ids, (1, SIDE, SIDE), torch.float64)
        attack.statistics(Subject(watched, x0[: len(ids)], noise, Text()(["a"] * len(ids)), **means))
    whole, alone = seen
    torch.testing.assert_close(alone, whole[[1, 4]], rtol=0, atol=0)
    assert len(torch.unique(whole.flatten(1), dim=0)) == 6


def test_scores_do_not_depend_on_batches_chunks_or_workers(tmp_path: Path) -> None:
    target = captioned(memoriser())
    once = audited(target, tmp_path / "a", threads=1).scores[0]
    other = audited(target, tmp_path / "b", batch_size=3, chunk_size=7, threads=2).scores[0]
    assert once.ids == other.ids
    np.testing.assert_allclose(once.statistic, other.statistic, rtol=1e-9)
    assert (np.diff(once.statistic, axis=1) <= 0).all(), "similarities are kept in falling order"


# what it finds


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("variant", ["threshold", "classifier"])
def test_a_memoriser_of_captions_gives_its_members_away(tmp_path: Path, scale: float, variant: str) -> None:
    spec = f"black_box(n=2,steps=4,encoder=pixels,guidance_scale={scale},variant={variant})"
    result = audited(captioned(memoriser()), tmp_path, spec).results[0]
    assert result.auc.value == 1.0
    assert (result.access, result.timestep, result.setting is None) == ("black-box", None, variant == "threshold")
    assert result.rule == {"threshold": "mean", "classifier": "logistic"}[variant]


def test_a_model_that_ignores_captions_gives_one_half(tmp_path: Path) -> None:
    n = 100
    gaussian = Gaussian(0.0, 1 / 3, SCHEDULE)
    ignoring = Denoiser.from_function(lambda x, t, cond=None: gaussian(x, t), SCHEDULE.alphas_cumprod)
    result = audited(captioned(ignoring), tmp_path, FAST, n).results[0]
    assert abs(result.auc.value - 0.5) < 3.3 * np.sqrt((2 * n + 1) / (12 * n * n))


def test_another_images_caption_hides_the_member(tmp_path: Path) -> None:
    n = 40
    result = audited(captioned(memoriser()), tmp_path, captions="swapped").results[0]
    assert abs(result.auc.value - 0.5) < 0.3
    assert result.auc.value < audited(captioned(memoriser()), tmp_path / "own", n=n).results[0].auc.value


def test_the_classifier_is_trained_on_the_calibrate_part_alone(tmp_path: Path) -> None:
    ready = prepared(captioned(memoriser()), "black_box(n=3,steps=2,encoder=pixels,variant=classifier)")
    score(ready.job, Folder(tmp_path), Worker(0, 1, 1))
    (scores,) = collect(ready.job, tmp_path).scores[0]
    member, calibrate = ready.scan.cohort.member, ready.split.calibrate[0]
    first = settled(scores, member, calibrate).membership
    shuffled = member.copy()
    shuffled[~calibrate] = np.random.default_rng(0).permutation(member[~calibrate])
    np.testing.assert_array_equal(settled(scores, shuffled, calibrate).membership, first)
    assert not np.array_equal(settled(scores, ~member, calibrate).membership, first), "but it is trained"
    assert scores.rule == "logistic" and scores.statistic.shape == (80, 3)


# who is asked, and how often


def counting(denoiser: Denoiser, asked: list[tuple[str, int]], name: str) -> Denoiser:
    return Counted(denoiser, lambda n, t: asked.append((name, n)))


@pytest.mark.parametrize(("scale", "each"), [(7.5, 2), (1.0, 1)])
def test_queries_are_the_forwards_of_n_images_with_guidance_twice(tmp_path: Path, scale: float, each: int) -> None:
    asked: list[tuple[str, int]] = []
    target = captioned(counting(memoriser(), asked, "one"))
    ready = prepared(target, f"black_box(n=2,steps=3,encoder=pixels,guidance_scale={scale})", 10)
    assert ready.queries_per_image == 2 * 3 * each
    asked.clear()  # of what the plan asked to see whether the model answers
    score(ready.job, Folder(tmp_path), Worker(0, 1, 1))
    collected = collect(ready.job, tmp_path)
    assert sum(n for _, n in asked) == collected.queries == 20 * 2 * 3 * each


def test_two_models_in_turn_are_asked_as_the_one_that_draws_and_grey_box_attacks_ask_both(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []
    pair = tuple(counting(Gaussian(m, 1.0, SCHEDULE), asked, name) for m, name in ((0.5, "one"), (-0.5, "other")))
    told = tuple(Denoiser.from_function(lambda x, t, cond=None, d=d: d(x, t), SCHEDULE.alphas_cumprod) for d in pair)
    ready = prepared(captioned(Dual(told)), f"{FAST},loss(timesteps=100)", 10)
    assert [ready.job.queries(k) for k in range(2)] == [12, 2]
    asked.clear()
    score(ready.job, Folder(tmp_path), Worker(0, 1, 1))
    drawn = [name for name, n in asked if n != 20]
    assert drawn == ["one", "other", "one"] * (len(drawn) // 3), "one turn each, over the steps that the sampler makes"
    audit = audited(captioned(Dual(told)), tmp_path / "run", f"{FAST},loss(timesteps=100)", 10)
    assert [r.queries for r in audit.results] == [12, 2]


def test_the_guidance_of_the_attack_takes_the_place_of_the_targets_own(tmp_path: Path) -> None:
    plain, guided = (audited(captioned(d), tmp_path / str(i), n=10) for i, d in enumerate((memoriser(), Guided(memoriser(), 3.0))))
    np.testing.assert_array_equal(plain.scores[0].statistic, guided.scores[0].statistic)
    assert plain.results[0].queries == guided.results[0].queries == 12


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = audited(captioned(memoriser()), tmp_path / "whole", chunk_size=8).scores[0]
    left = 100

    def stop(n: int, t: int) -> None:
        nonlocal left
        left -= n
        if left < 0:
            raise KeyboardInterrupt

    cut = prepared(captioned(Counted(memoriser(), stop)), chunk_size=8, threads=1)
    with pytest.raises(KeyboardInterrupt):
        score(cut.job, Folder(tmp_path), Worker(0, 1, 1))
    left = 10**9
    assert score(cut.job, Folder(tmp_path), Worker(0, 1, 1)) == 0
    np.testing.assert_array_equal(collect(cut.job, tmp_path).scores[0][0].statistic, whole.statistic)


# latent models, the command line, refusals


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_a_pipeline_is_audited_from_images_with_their_captions(capsys, tmp_path: Path, kind: str) -> None:
    from fixtures.text import CAPTIONS
    from PIL import Image

    model = text_folder(tmp_path / "model", kind)
    for side in ("in", "out"):
        (tmp_path / side).mkdir()
        rows = []
        for i, image in enumerate(np.random.default_rng(len(side)).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)):
            Image.fromarray(image).save(tmp_path / side / f"{side}{i}.png")
            rows.append(json.dumps({"file_name": f"{side}{i}.png", "text": CAPTIONS[i % len(CAPTIONS)]}))
        (tmp_path / side / "metadata.jsonl").write_text("\n".join(rows))
    run_folder = tmp_path / "run"
    sides = ["--members", str(tmp_path / "in"), "--nonmembers", str(tmp_path / "out")]
    spec = "black_box(n=2,steps=2,encoder=pixels,variant=classifier)"
    code, _, err = call(capsys, "audit", str(model), *sides, "--attacks", spec, "-o", str(run_folder))
    assert code == 0, err
    result = json.loads((run_folder / "audit.json").read_text())["results"][0]
    assert (result["attack"], result["queries"], result["access"]) == (spec, 8, "black-box")
    assert result["parameters"]["encoder_weights"] == ["8 x 8"]


def test_the_query_image_of_a_latent_model_is_embedded_as_its_own_pixels(tmp_path: Path) -> None:
    target = hub.load(text_folder(tmp_path / "model"), device="cpu")
    images = pixels(2, 5).repeat(3, axis=3).repeat(4, axis=1).repeat(4, axis=2)
    embedded: list[torch.Tensor] = []
    spy = Encoder("spy", lambda x: embedded.append(x) or x.flatten(1))
    x = torch.from_numpy(to_model(images))
    z = target.codec.encode(x)
    alone = replace(Inputs(target, cohort(2), target.shape, False, 0).alone(), images=lambda: x, open_encoder=lambda spec: spy)
    noise = Noise(0, ("a", "b"), z.shape[1:])
    value = BlackBox(n=2, steps=2).statistics(replace(alone, x0=z, noise=noise, cond=target.text(["a house", "moon"])))
    assert torch.equal(embedded[0], x)
    assert embedded[1].shape == (4, 3, 16, 16), "decoded, and not latents"
    assert value.shape == (2, 2) and value.dtype == torch.float64 and torch.isfinite(value).all()


def test_all_leaves_it_out_unless_it_is_named() -> None:
    chosen = lambda *specs: [a.label for a in choose_attacks(build(AuditConfig, {"members": "a", "nonmembers": "b", "attacks": specs}))]
    everything = chosen("all")
    assert everything == [name for name, kind in ATTACKS.items() if kind.in_all] and "black_box" not in everything
    assert chosen("all", "black_box(encoder=dinov2)") == [*everything, "black_box(encoder=dinov2)"]


@pytest.mark.parametrize(
    ("message", "spec"),
    [
        ("black_box draws whole images and has no timesteps; leave them out", "black_box(timesteps=10)"),
        ("black_box needs n >= 1 images of steps >= 1; got 0 and 50", "black_box(n=0)"),
        ("guidance_scale must be a number of at least 0", "black_box(guidance_scale=nan)"),
        ("guidance_scale must be a number of at least 0", "black_box(guidance_scale=-0.5)"),
        ("variant of black_box", "black_box(variant=tresholds)"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(message: str, spec: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(spec, ATTACKS, None)


@pytest.mark.parametrize(
    ("message", "spec"),
    [
        ("unknown extractor 'klip'", "black_box(encoder=klip)"),
        ("the encoder must be a folder or a hub id", "black_box(encoder=clip:./nowhere)"),
        ("must be a TorchScript file; there is no file at nowhere.pt", "black_box(encoder=torchscript:nowhere.pt)"),
        (r"steps must lie in \[1, 1000\]", "black_box(steps=1001,encoder=pixels)"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_drawn(message: str, spec: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(captioned(memoriser()), spec)


def test_a_model_without_captions_is_refused(capsys, model_folder: Callable[..., Path], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8))
    np.save(tmp_path / "b.npy", np.random.default_rng(1).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8))
    sides = ["--members", str(tmp_path / "a.npy"), "--nonmembers", str(tmp_path / "b.npy")]
    said = refused(capsys, "audit", str(model_folder()), *sides, "--attacks", "black_box", "-o", str(tmp_path / "run"))
    assert "black_box works with captions, and" in said and "takes none; leave it out" in said


def test_a_subject_without_a_sampler_an_encoder_or_captions_is_refused() -> None:
    x0, noise, attack = torch.zeros(1, 1, SIDE, SIDE), Noise(0, ("a",), (1, SIDE, SIDE)), BlackBox(n=1, steps=1)
    with pytest.raises(UserError, match="the attack draws images, and this subject has no sampler"):
        attack.statistics(Subject(memoriser(), x0, noise, Text()(["a"])))
    with pytest.raises(UserError, match="the attack compares images, and this subject has no encoder"):
        attack.opened(Subject(memoriser(), x0, noise, sampler=lambda steps: FlowSampler(SCHEDULE, steps)))
    with pytest.raises(UserError, match="black_box needs the captions of the images as cond, a Prompts; got NoneType"):
        attack.statistics(Subject(memoriser(), x0, noise))


def test_a_model_that_draws_nan_is_named(tmp_path: Path) -> None:
    broken = Denoiser.from_function(lambda x, t, cond=None: x * torch.nan if t else x, SCHEDULE.alphas_cumprod)
    with pytest.raises(UserError, match=r"must return finite numbers; black_box\(.*\) got nan for image"):
        audited(captioned(broken), tmp_path, n=10)


def test_without_calibration_a_threshold_works_and_a_classifier_does_not(tmp_path: Path) -> None:
    assert audited(captioned(memoriser()), tmp_path, calibration=False).results[0].auc.value == 1.0
    with pytest.raises(UserError, match="is fitted on the calibrate part"):
        prepared(captioned(memoriser()), "black_box(encoder=pixels,variant=classifier)", calibration=False)


def test_the_python_api_takes_a_captioned_target(tmp_path: Path) -> None:
    (result,) = diffleak.audit(
        captioned(memoriser(12)), members=source("in", 12, 1), nonmembers=source("out", 12, 2), attacks=FAST, output=tmp_path / "run"
    ).results
    assert result.parameters["encoder"] == "pixels"


def test_jobs_read_the_rule_of_the_variant(tmp_path: Path) -> None:
    for variant, rule in (("threshold", "mean"), ("classifier", "logistic")):
        job: Job = prepared(captioned(memoriser()), f"black_box(n=2,steps=2,encoder=pixels,variant={variant})").job
        assert job.attacks[0].settled_by == rule
