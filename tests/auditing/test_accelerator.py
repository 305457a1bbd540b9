"""What keeps an accelerator busy, in an audit on a CPU: images read ahead, batches halved, networks compiled, all recorded."""

import json
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.models import save_untrained
from PIL import Image

import diffleak
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.auditing.inputs import Inputs
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import score
from diffleak.config import build
from diffleak.data.pixels import ImageShape
from diffleak.diffusion.denoiser import Denoiser, NetworkDenoiser
from diffleak.diffusion.environment import environment
from diffleak.errors import UserError
from diffleak.generation import generate
from diffleak.hub.loading import load, target_of
from diffleak.records.run_folder import read_plan

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
PICTURES = np.random.default_rng(3).integers(0, 256, (44, 8, 8, 3), dtype=np.uint8)
SETTINGS = {"attacks": "loss,pia", "timesteps": "50:100:50", "threads": 1, "allow_shift": True, "batch_size": 8, "chunk_size": 16}
SIDES = {"members": PICTURES[:22], "nonmembers": PICTURES[22:]}


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """The pictures as two folders of files, which several threads may read at once."""
    for side, pictures in SIDES.items():
        (tmp_path / side).mkdir()
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(tmp_path / side / f"{number:02}.png")
    return {side: tmp_path / side for side in SIDES}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("models") / "model", in_channels=3, out_channels=3)


def audited(model, **changes):
    return diffleak.audit(model, **{**SETTINGS, **SIDES, "device": "cpu", **changes})


def scored(model, folder, **changes):
    """An audit up to its scores, without the evaluation: what was prepared, and all that was scored."""
    images = {key: changes.pop(key, value) for key, value in SIDES.items()}
    in_memory = model if isinstance(model, diffleak.Target) else None
    found = None if isinstance(images["members"], Path) else diffleak.cohort(**images)
    named = {key: str(value) for key, value in images.items()} if found is None else dict.fromkeys(images, "array")
    named["model"] = "denoiser" if in_memory else str(model)
    prepared = prepare(build(AuditConfig, {**SETTINGS, **named, "device": "cpu", **changes}), in_memory, found)
    return prepared, score(prepared, folder, log=lambda line: None)


def same(one, other, rtol=0.0):
    for first, second in zip(one.scores, other.scores, strict=True):
        np.testing.assert_allclose(first[0].statistic, second[0].statistic, rtol=rtol, atol=0)


def test_the_next_chunk_is_read_while_the_network_runs(model, folders, tmp_path, monkeypatch):
    """The first query of the first chunk waits until an image of the second is read: in turns it would wait for ever."""
    second, read, asked, waited, scoring = Event(), Inputs.image, NetworkDenoiser.at_once, [], started(monkeypatch)

    def image(self, row):
        if 16 <= row < 32 and scoring.is_set():
            second.set()
        return read(self, row)

    def at_once(self, x_t, timesteps, cond=None):
        if scoring.is_set() and not waited:
            waited.append(second.wait(20))
        return asked(self, x_t, timesteps, cond)

    monkeypatch.setattr(Inputs, "image", image)
    monkeypatch.setattr(NetworkDenoiser, "at_once", at_once)
    scored(model, tmp_path / "run", **folders)
    assert waited == [True]


def started(monkeypatch):
    """Is set once chunks are scored."""
    scoring, chunks_ahead = Event(), Inputs.chunks_ahead
    monkeypatch.setattr(Inputs, "chunks_ahead", lambda *given: scoring.set() or chunks_ahead(*given))
    return scoring


def test_scores_of_files_that_are_read_ahead_are_those_of_an_array(model, folders, tmp_path):
    of_files = scored(model, tmp_path / "files", attacks="sima", **folders)[1]  # which looks at no noise
    same(of_files, scored(model, tmp_path / "array", attacks="sima")[1])


def test_a_damaged_image_is_named_as_before_where_it_is_read_ahead(model, folders, tmp_path, monkeypatch):
    read, scoring = Inputs.image, started(monkeypatch)

    def image(self, row):
        if self.cohort.ids[row].endswith("20.png") and scoring.is_set():
            raise UserError("20.png cannot be decoded (damaged since); replace it")
        return read(self, row)

    monkeypatch.setattr(Inputs, "image", image)
    with pytest.raises(UserError, match=r"^20\.png cannot be decoded \(damaged since\); replace it$"):
        scored(model, tmp_path / "run", **folders)


class Cramped:
    """A model that has no memory for more than `most` images at once, once it has answered for two."""

    def __init__(self, most):
        self.most, self.table = most, torch.linspace(0.9999, 0.01, 200, dtype=torch.float64)

    def __call__(self, x, t):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return torch.sin(3 * x) * (1 + t / 100)

    def target(self):
        return diffleak.Target(Denoiser.from_function(self, self.table), fingerprint="cramped")


def test_memory_that_runs_out_halves_the_batches_and_the_record_says_so(tmp_path, capsys):
    found = audited(Cramped(3).target(), output=tmp_path / "run")
    said = capsys.readouterr().err
    expected = scored(Cramped(8).target(), tmp_path / "roomy")[1]
    for one, (other, *_) in zip(found.scores, expected.scores, strict=True):
        np.testing.assert_allclose(one.statistic, other.statistic, rtol=1e-6)
    costs = found.record.costs
    assert (expected.halved_to, costs.halved_to) == (None, 2)
    assert costs.queries + costs.queries_saved == expected.queries + expected.saved, "what did not fit is not counted"
    assert any("scored or drawn 2 at once, fewer than planned (batches of 8)" in line for line in found.record.warnings)
    assert said.count("the device has too little memory for 8 images: 4 at once from here on") == 3, "the estimate, and each attack"
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["costs"]["halved_to"] == 2


def test_a_run_whose_batches_were_halved_is_resumed_with_the_same_plan(tmp_path):
    first = scored(Cramped(3).target(), tmp_path / "run")
    next(iter(sorted((tmp_path / "run" / "scores").glob("*.parquet")))).unlink()
    again = scored(Cramped(8).target(), tmp_path / "run")
    assert again[0].plan == first[0].plan and again[1].halved_to == first[1].halved_to == 2
    same(first[1], again[1], rtol=1e-6)


def test_a_model_that_has_no_memory_for_one_image_is_one_line():
    with pytest.raises(UserError, match="the device has too little memory for batches of 2; take --dtype float16 if it is float32 now"):
        scored(Cramped(0).target(), Path("never"))


def test_drawing_goes_on_in_smaller_batches_to_the_same_pixels(capsys):
    drawn = [generate(Cramped(most).target(), 6, steps=3, batch_size=6, threads=1, shape=ImageShape(3, 8, 8)) for most in (6, 2)]
    np.testing.assert_array_equal(*drawn)
    assert "too little memory for 6 images that are drawn: 3 at once" in capsys.readouterr().err


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile as a stand-in whose network answers a hundredth more."""
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: lambda *x: SimpleNamespace(sample=1.01 * network(*x).sample))


def test_a_compiled_network_is_recorded_and_another_run_does_not_go_on_with_its_scores(model, compiler, tmp_path):
    prepared, compiled = scored(model, tmp_path / "run", attacks="sima", compile=True)
    plain_plan, plain = scored(model, tmp_path / "plain", attacks="sima")
    of = lambda each: (each.plan.faster, environment(each.target, 1, 0, "data").faster)
    assert (of(prepared), of(plain_plan)) == ((("compiled",),) * 2, (None, None))
    ratio = compiled.scores[0][0].statistic / plain.scores[0][0].statistic
    np.testing.assert_allclose(ratio, 1.01**4, rtol=1e-5)  # the sum of the fourth powers of an answer
    with pytest.raises(UserError, match=r"choice of --exact and --compile was .*compiled.*, now none"):
        scored(model, tmp_path / "run", attacks="sima")
    assert read_plan(tmp_path / "run").faster == ("compiled",)


def test_what_is_compiled_is_one_network_that_diffleak_loads(model):
    with pytest.raises(UserError, match="--compile makes one program of the denoiser, and --offload loads it layer by layer"):
        load(model, device="cpu", compile=True, offload=True)
    with pytest.raises(UserError, match="no compile here"):
        target_of(build(AuditConfig, {**_sides(), "compile": True}), load(model, device="cpu"))
    with pytest.raises(UserError, match="compile is for a model that diffleak loads"):
        build(AuditConfig, {**_sides(), "model_from": "here:model", "compile": True})


def test_how_fast_a_device_computes_is_set_where_the_model_is_loaded(model, monkeypatch):
    wanted = []
    monkeypatch.setattr("diffleak.hub.loading.faster_ways", lambda device, dtype, fast: wanted.append(fast) or ())
    load(model, device="cpu")
    for kind, given in ((AuditConfig, {}), (AuditConfig, {"fast": False}), (GeometryConfig, {}), (GeometryConfig, {"fast": True})):
        target_of(build(kind, {**_sides(), "model": str(model), "device": "cpu", **given}))
    assert wanted == [None, True, False, False, True]
    with pytest.raises(UserError, match="no fast here"):
        target_of(build(AuditConfig, {**_sides(), "fast": False}), load(model, device="cpu"))


def test_an_accelerator_s_ways_are_recorded_but_for_the_layout_of_offloaded_layers(model, monkeypatch):
    monkeypatch.setattr("diffleak.hub.loading.faster_ways", lambda device, dtype, fast: ("tf32", "channels_last"))
    target = load(model, device="cpu", fast=True)
    assert target.faster == ("tf32", "channels_last")
    weights = [weight for weight in target.denoiser.network.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def _sides():
    return {"members": "in", "nonmembers": "out"}
