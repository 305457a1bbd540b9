"""`diffleak audit --guidance-scale`: attacks see guided predictions, and say so."""

import shutil
import sys

import numpy as np
import pytest
import torch
from fixtures.text import SIDE, text_folder

from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.run import audit
from diffleak.config import build
from diffleak.diffusion.denoiser import Guided
from diffleak.errors import UserError
from diffleak.hub import load

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
SETTINGS = {"attacks": "sima", "timesteps": "100", "calibration": False, "captions": "fixed:red heart", "device": "cpu", "threads": 1}


@pytest.fixture
def sides() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (2, 10, SIDE, SIDE, 3), dtype=np.uint8)
    return {"members": images[0], "nonmembers": images[1]}


def test_guidance_is_asked_for_recorded_and_costs_two_forwards(tmp_path, sides):
    folder = str(text_folder(tmp_path / "model"))
    plain, guided = (audit(folder, **sides, **SETTINGS, guidance_scale=scale) for scale in (1.0, 3.0))
    assert (plain.record.plan.guidance_scale, guided.record.plan.guidance_scale) == (None, 3.0)
    assert (plain.results[0].queries, guided.results[0].queries) == (1, 2)
    assert not np.allclose(plain.scores[0].statistic, guided.scores[0].statistic)
    target = load(folder, device="cpu")
    z = torch.randn(2, 4, SIDE // 2, SIDE // 2)
    cond, empty = target.text(["red heart"] * 2), target.text([""] * 2)
    eps = [target.denoiser(z, 100, c) for c in (empty, cond)]
    torch.testing.assert_close(Guided(target.denoiser, 3.0)(z, 100, cond), eps[0] + 3.0 * (eps[1] - eps[0]), rtol=1e-4, atol=1e-5)


def test_a_text_model_without_transformers_says_what_to_install(tmp_path, monkeypatch):
    folder = text_folder(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"need transformers for their text encoders: pip install 'diffleak\[text\]'"):
        load(folder, device="cpu")


def test_guidance_of_a_model_without_captions_is_refused(tmp_path, model_folder, sides):
    given = {"model": str(model_folder()), "members": "digits", "nonmembers": "digits", "guidance_scale": 2.0}
    with pytest.raises(UserError, match="takes no captions; leave out --guidance-scale"):
        prepare(build(AuditConfig, given))


def test_a_model_that_is_loaded_already_has_its_guidance(tmp_path, sides):
    target = load(text_folder(tmp_path / "model"), device="cpu", guidance_scale=3.0)
    assert audit(target, **sides, **SETTINGS).record.plan.guidance_scale == 3.0
    with pytest.raises(UserError, match=r"give diffleak.load\(MODEL, guidance_scale=...\), and no guidance_scale here"):
        audit(target, **sides, **SETTINGS, guidance_scale=2.0)
    plain = load(text_folder(tmp_path / "model"), device="cpu")
    with pytest.raises(UserError, match="the reference must be guided as the model is; their guidance scales are 1 and 3"):
        audit(target, **sides, **SETTINGS, reference=plain)


def test_an_attack_with_a_guidance_of_its_own_is_not_said_to_have_the_audits(tmp_path, sides):
    folder = text_folder(tmp_path / "model")
    given = {**SETTINGS, "attacks": ["black_box(n=1,steps=2,guidance_scale=2,encoder=pixels)"]}
    said = lambda model, **changes: [w for w in audit(model, **sides, **{**given, **changes}).record.warnings if " draws under " in w]
    expected = "draws under a guidance of its own, 2, and not under the audit's 3: its parameter guidance_scale changes it"
    for warned in (said(str(folder), guidance_scale=3.0), said(load(folder, device="cpu", guidance_scale=3.0))):
        assert len(warned) == 1 and warned[0].startswith("black_box(") and warned[0].endswith(expected)
    assert said(str(folder)) == said(str(folder), attacks=["sima"], guidance_scale=3.0) == []


def test_flux_refuses_images_that_it_cannot_pack(tmp_path):
    target = load(text_folder(tmp_path / "model", "flux"), device="cpu")
    with pytest.raises(UserError, match="Flux takes images whose sides are multiples of 4; got 10 x 16: resize them"):
        target.denoiser(torch.randn(1, 4, 5, 8), 100, target.text(["cloud"]))


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_a_pipeline_without_its_autoencoder_is_no_model_of_pixels(tmp_path, kind):
    folder = text_folder(tmp_path / "model", kind)
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match=r"must hold vae/, since a .*Pipeline works on latents; it is missing"):
        load(folder, device="cpu")
