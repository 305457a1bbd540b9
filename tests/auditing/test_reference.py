"""Audits beside a reference model: what is reported, that nothing but it is added, and which references are refused."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.interruptions import interrupted
from fixtures.loras import lora_folder
from fixtures.text import captioned_sides, text_folder

import diffleak
from diffleak import cli, hub
from diffleak.auditing import run as auditing
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.auditing.run import gate
from diffleak.config import build
from diffleak.data.pixels import ImageShape, to_model
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.target import Target
from diffleak.errors import GateFailed, UserError
from diffleak.stats import evaluation

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
SIZES = {"chunk_size": 16, "batch_size": 16, "timesteps": "40:80:40", "device": "cpu", "threads": 1, "seed": 3}
RESIDUAL = "sima,secmi,loss"


@pytest.fixture
def images(digits, tmp_path) -> tuple[Path, Path]:
    for name, part in (("members", digits[:40]), ("nonmembers", digits[40:90])):
        np.save(tmp_path / f"{name}.npy", part)
    return tmp_path / "members.npy", tmp_path / "nonmembers.npy"


def settings(model: Path, images: tuple[Path, Path], output: Path, **changes) -> dict:
    sides = {"members": str(images[0]), "nonmembers": str(images[1])}
    return {"model": str(model), "output": output, **sides, **SIZES, "attacks": RESIDUAL, **changes}


def run(save: bool = False, **given):
    config = build(AuditConfig, given)
    finished = auditing.run(auditing.prepare(config), config.output, log=lambda line: None)
    if save:
        finished.save(config.output)
    return finished


def by_name(audit) -> dict:
    return {s.attack: s for s in audit.scores}


@pytest.fixture
def pair(model_folder, tiny_network) -> tuple[Path, Path]:
    """A model, and a reference of the same schedule with other weights."""
    model, reference = model_folder("model"), model_folder("reference")
    network = tiny_network()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.9)
    network.save_pretrained(reference / "unet")
    return model, reference


def test_the_verdict_says_what_is_left_of_the_leak_beyond_the_reference(pair, images, digits, tmp_path, monkeypatch):
    from diffleak.report.judgement import verdict

    model, reference = pair
    monkeypatch.setattr(evaluation, "REPEATS", 25)
    for name, part in zip(("members", "nonmembers"), (digits[:60], digits[60:130]), strict=True):  # where the two numbers differ
        np.save(tmp_path / f"{name}.npy", part)
    alone = run(**settings(model, images, tmp_path / "alone")).record
    assert not any("Beyond its reference" in said for said in verdict(alone).sentences)
    record = run(**settings(model, images, tmp_path / "run", reference=str(reference))).record
    judged = verdict(record)
    excess = record.result(f"{judged.attack}[excess]").auc
    begins = f"Beyond its reference, {reference}, the attack picks the member "
    said = next(sentence for sentence in judged.sentences if sentence.startswith(begins))
    value, low, high = map(float, re.search(r"picks the member ([\d.]+) % of the time \(([\d.]+) to ([\d.]+) %\)", said).groups())
    assert [value, low, high] == pytest.approx([100 * rate for rate in (excess.value, excess.low, excess.high)], abs=0.5)
    assert record.result(judged.attack).auc.value != pytest.approx(excess.value, abs=0.01), "the attack's own number is another"
    assert said.endswith(": a leak of this model's own is shown.") == (excess.low > 0.5)


def test_a_reference_that_is_not_there_is_named_as_the_reference(pair, images, tmp_path):
    with pytest.raises(UserError, match=r"^--reference must be a diffusers folder, .*; found nothing at nowhere$"):
        run(**settings(pair[0], images, tmp_path / "run", reference="nowhere"))


def test_every_attack_is_reported_alone_on_the_reference_and_on_the_excess(pair, images, tmp_path):
    model, reference = pair
    audit = run(save=True, **settings(model, images, tmp_path / "run", attacks=f"{RESIDUAL},loss_frequency", reference=str(reference)))
    names = [f"{a}{v}" for a in ("sima", "secmi", "loss", "loss_frequency") for v in ("", "[reference]", "[excess]")]
    assert [r.attack for r in audit.results] == names
    assert [r.variant for r in audit.results[:3]] == [None, "reference", "excess"]
    for k in range(0, len(names), 3):
        plain, other, left = audit.results[k : k + 3]
        assert plain.gain is None and left.queries == plain.queries + other.queries
        for gain in (other.gain, left.gain):
            assert gain.auc.low <= gain.auc.value <= gain.auc.high
    costs = audit.record.costs
    assert costs.queries + costs.queries_saved == 90 * sum(r.queries for r in audit.results if r.variant == "excess")
    assert (audit.record.plan.reference, audit.record.plan.reference_fingerprint) == (str(reference), hub.fingerprint(reference))
    assert set(names) <= set(pd.read_csv(tmp_path / "run" / "samples.csv").columns)
    rows = pd.concat(pq.read_table(f).to_pandas() for f in (tmp_path / "run" / "scores").glob("*.parquet"))
    assert set(rows.attack) == set(names) and len(rows) == 90 * 2 * len(names)
    assert f"--reference {reference}" in audit.record.command


def test_the_audited_model_scores_as_it_does_without_a_reference_and_the_reference_as_it_does_alone(pair, images, tmp_path):
    model, reference = pair
    attacks = f"{RESIDUAL},pfami(timesteps=50+100,crops=2)"  # which by its paper is the excess of f over that of a reference
    both = by_name(run(**settings(model, images, tmp_path / "both", attacks=attacks, reference=str(reference))))
    one, other = (by_name(run(**settings(m, images, tmp_path / f"run-{m.name}", attacks=attacks))) for m in pair)
    assert len(one) == 4 and len(both) == 12
    for attack in one:
        assert np.array_equal(both[attack].statistic, one[attack].statistic)
        assert np.array_equal(both[f"{attack}[reference]"].statistic, other[attack].statistic)
        assert np.array_equal(both[f"{attack}[excess]"].statistic, one[attack].statistic - other[attack].statistic)


def test_a_model_has_no_excess_over_itself(pair, images, tmp_path):
    audit = run(**settings(pair[0], images, tmp_path / "run", reference=str(pair[0])))
    for scores in audit.scores:
        if scores.attack.endswith("[excess]"):
            assert not scores.statistic.any()
    for result in audit.results:
        if result.variant == "reference":
            assert result.gain.auc.value == result.gain.asr.value == 0.0
        if result.variant == "excess":
            assert result.auc.value == 0.5
    assert "the reference is the model itself: there is no excess over it" in audit.record.warnings


def of_difficulties(n: int, seed: int) -> np.ndarray:
    """Images from flat grey to full contrast: to any model the flat ones are easy."""
    rng = np.random.default_rng(seed)
    contrast = rng.uniform(0.02, 1.0, (n, 1, 1, 1))
    return np.clip(np.rint(127.5 + 127.5 * contrast * rng.uniform(-1, 1, (n, 8, 8, 1))), 0, 255).astype(np.uint8)


class HalfRemembering(Denoiser):
    """The mean of what a model that knows nothing and an exact memoriser of some images predict."""

    def __init__(self, members: torch.Tensor, share: float) -> None:
        self.schedule, self.share = linear_schedule(), share
        self.parts = (Gaussian(0.0, 0.15, self.schedule), Memoriser(members, self.schedule))

    def __call__(self, x_t, t, cond=None):
        ignorant, exact = (part(x_t, t) for part in self.parts)
        return (1 - self.share) * ignorant + self.share * exact


def test_the_excess_finds_members_where_the_difficulty_of_images_hides_them():
    members, others = of_difficulties(250, 1), of_difficulties(250, 2)
    model = HalfRemembering(torch.from_numpy(to_model(members)), 0.02)
    audit = diffleak.audit(
        model,
        members=members,
        nonmembers=others,
        attacks="loss",
        reference=Gaussian(0.0, 0.15, linear_schedule()),
        timesteps="100",
        allow_shift=True,
        complexity=False,
        threads=1,
    )
    plain, reference, excess = audit.results
    assert plain.auc.value < 0.75 and abs(reference.auc.value - 0.5) < 0.1
    assert excess.auc.value > 0.95 and excess.gain.auc.low > 0.15
    assert audit.record.headline == "loss[excess]"


def test_a_reference_that_leaks_more_never_leads_and_never_fails_a_gate():
    members, others = of_difficulties(60, 1), of_difficulties(60, 2)
    leaky = Memoriser(torch.from_numpy(to_model(members)), linear_schedule())
    audit = diffleak.audit(
        Gaussian(0.0, 0.15, linear_schedule()),
        members=members,
        nonmembers=others,
        attacks="loss",
        reference=leaky,
        timesteps="100",
        threads=1,
    )
    assert audit.record.result("loss[reference]").auc.value > 0.95
    assert audit.record.headline != "loss[reference]" and not audit.record.result("loss[reference]").leads
    gate(audit.record, AuditConfig(members="a", nonmembers="b", max_auc=0.7, allow_shift=True))
    with pytest.raises(GateFailed, match=r"loss: AUC .*may reach"):
        gate(audit.record, AuditConfig(members="a", nonmembers="b", max_auc=0.5, allow_shift=True))


def test_the_gate_on_the_excess_is_about_what_the_model_leaks_beyond_its_reference():
    members, others = of_difficulties(60, 1), of_difficulties(60, 2)
    leaky, plain = Memoriser(torch.from_numpy(to_model(members)), linear_schedule()), Gaussian(0.0, 0.15, linear_schedule())
    limit = {"members": "a", "nonmembers": "b", "reference": "r", "allow_shift": True, "max_excess_auc": 0.7}
    for model, reference in ((leaky, plain), (leaky, leaky)):
        record = diffleak.audit(
            model, members=members, nonmembers=others, attacks="loss", reference=reference, timesteps="100", threads=1
        ).record
        assert record.result("loss").auc.value > 0.95
        if model is reference:
            gate(record, AuditConfig(**limit))
        else:
            with pytest.raises(GateFailed, match=r"loss\[excess\]: AUC may reach 0.99., above the limit of 0.7"):
                gate(record, AuditConfig(**limit))
        with pytest.raises(GateFailed, match=r"loss: AUC may reach"):
            gate(record, AuditConfig(**limit, max_auc=0.7))
    with pytest.raises(ValueError, match="--max-excess-auc limits what leaks beyond a reference, and none is given"):
        AuditConfig(members="a", nonmembers="b", max_excess_auc=0.6)


def test_an_interrupted_audit_with_a_reference_resumes_to_the_same_scores(pair, images, tmp_path):
    given = {"reference": str(pair[1])}
    whole = run(save=True, **settings(pair[0], images, tmp_path / "whole", **given))
    interrupted(3, lambda: run(**settings(pair[0], images, tmp_path / "killed", **given)))
    resumed = run(**settings(pair[0], images, tmp_path / "killed", **given))
    for one, two in zip(whole.scores, resumed.scores, strict=True):
        assert one.attack == two.attack and np.array_equal(one.statistic, two.statistic)
    asked_for = [run.record.costs.queries + run.record.costs.queries_saved for run in (resumed, whole)]
    assert asked_for[0] == asked_for[1]
    again = whole.save(tmp_path / "saved")
    for file in (tmp_path / "whole" / "scores").iterdir():
        assert pq.read_table(file).equals(pq.read_table(again / "scores" / file.name))


def test_another_reference_is_another_plan(pair, images, tmp_path):
    run(**settings(pair[0], images, tmp_path / "run", reference=str(pair[1])))
    with pytest.raises(UserError, match=r"belongs to another plan .*reference was .*now none"):
        run(**settings(pair[0], images, tmp_path / "run"))


def refusal(model: Target | Denoiser, reference: Target | Denoiser) -> str:
    with pytest.raises(UserError) as caught:
        diffleak.audit(
            model, members=of_difficulties(20, 1), nonmembers=of_difficulties(20, 2), attacks="loss", reference=reference, timesteps="100"
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_reference_of_other_inputs_is_refused_in_one_line(latent_folder):
    plain = Gaussian(0.0, 0.15, linear_schedule())
    target = Target(plain, ImageShape(1, 8, 8))
    assert "the same images as the model; they take" in refusal(target, Target(plain, ImageShape(3, 8, 8)))
    assert "must share one noise schedule" in refusal(plain, Gaussian(0.0, 0.15, linear_schedule(last=1e-2)))
    assert "must share one noise schedule" in refusal(plain, Gaussian(0.0, 0.15, linear_schedule(steps=500)))
    assert "they take 10 classes and no classes" in refusal(target, Target(plain, ImageShape(1, 8, 8), classes=10))
    assert "they run in float64 on cpu and in float32 on cpu" in refusal(target, Target(plain, ImageShape(1, 8, 8), dtype="float64"))
    assert "must share one autoencoder; these two differ" in refusal(target, diffleak.load(latent_folder(), device="cpu"))


def test_a_reference_with_another_autoencoder_is_refused_and_with_a_copy_it_is_not(latent_folder, images, tmp_path):
    one, same, other = (diffleak.load(latent_folder(name), device="cpu") for name in ("one", "same", "other"))
    assert hub.same_codec(one.codec, same.codec)
    with torch.no_grad():
        next(other.codec.network.parameters()).add_(1e-3)
    assert not hub.same_codec(one.codec, other.codec)
    assert "must share one autoencoder; these two differ" in refusal(one, other)
    audit = run(**settings(tmp_path / "one", images, tmp_path / "run", attacks="sima", reference=str(tmp_path / "same")))
    assert not by_name(audit)["sima[excess]"].statistic.any()


def test_the_settings_of_a_reference_in_one_file_may_be_given_beside_a_model_in_a_folder(pair, images, tmp_path):
    (tmp_path / "sd.safetensors").touch()
    given = settings(pair[0], images, tmp_path / "run", model_config=str(tmp_path))
    config = build(AuditConfig, {**given, "reference": str(tmp_path / "sd.safetensors")})
    target = hub.target_of(config)
    assert target.name == str(pair[0]) and hub.target_of(config, target) is target
    with pytest.raises(UserError, match=r"and .* is a folder or hub id; leave it out"):
        hub.target_of(build(AuditConfig, {**given, "reference": str(pair[1])}))


def test_settings_that_contradict_a_reference_or_a_lora_are_refused(pair, images, tmp_path):
    cases = [
        ({"reference": "base"}, "--reference base is the model without its LoRA, so it needs --lora"),
        ({"lora_scale": 0.5}, "--lora-scale is the strength of a LoRA, and none is given: add --lora"),
        ({"reference": str(pair[1]), "mask": "influence"}, "a reference is not compared under masks: leave out --reference, or --mask"),
        (
            {"lora": "x.safetensors"},
            "text-to-image model with one network, and .* takes no captions; leave out --lora",
        ),
        ({"reference": str(tmp_path / "nowhere")}, "found nothing at"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            run(**settings(pair[0], images, tmp_path / "run", **change))
    with pytest.raises(UserError, match="without --split or --nonmembers nothing is attacked; leave out --reference"):
        build(GeometryConfig, {"model": "m", "data": "d", "reference": "r"})
    with pytest.raises(UserError, match="a LoRA is applied when a model is loaded"):
        diffleak.audit(Gaussian(0.0, 0.15, linear_schedule()), members=images[0], nonmembers=images[1], attacks="loss", lora="x")


def test_scores_of_an_unnamed_reference_are_not_resumed(images, tmp_path):
    model = Target(Gaussian(0.0, 0.15, linear_schedule()), fingerprint="known")
    given = {"members": images[0], "nonmembers": images[1], "attacks": "loss", "output": tmp_path / "run", "timesteps": "100"}
    diffleak.audit(model, **given, reference=Gaussian(0.0, 0.2, linear_schedule()))
    with pytest.raises(UserError, match="holds scores, and nothing says that they are of this model"):
        diffleak.audit(model, **given, reference=Gaussian(0.0, 0.3, linear_schedule()))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A tiny Stable Diffusion, and captioned images of its size on two sides."""
    root = tmp_path_factory.mktemp("captioned")
    return text_folder(root / "sd"), *captioned_sides(root)


def test_a_lora_is_audited_against_its_base_from_the_command_line(captioned, tmp_path, capsys, monkeypatch):
    model, members, nonmembers = captioned
    lora = lora_folder(tmp_path / "lora", text=True)
    common = ["--members", str(members), "--nonmembers", str(nonmembers), "--attacks", "sima,loss", "--timesteps", "100"]
    common += ["--no-calibration", "--allow-shift", "--threads", "1", "--device", "cpu", "--json"]

    def audit(name: str, *extra: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["diffleak", "audit", str(model), *common, "-o", str(tmp_path / name), *extra])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        return json.loads(capsys.readouterr().out)

    adapted = audit("adapted", "--lora", str(lora), "--lora-scale", "0.5", "--reference", "base")
    audit("base")
    plan = json.loads((tmp_path / "adapted" / "plan.json").read_text())
    assert (plan["lora"], plan["lora_scale"], plan["reference"]) == (str(lora), 0.5, "base")
    assert plan["reference_fingerprint"] == hub.fingerprint(model) != plan["model_fingerprint"]
    assert f"--lora {lora} --lora-scale 0.5 " in adapted["command"] and "--reference base" in adapted["command"]
    found, alone = (pd.read_csv(tmp_path / name / "samples.csv").set_index("id") for name in ("adapted", "base"))
    for attack in ("sima", "loss"):
        assert np.array_equal(found[f"{attack}[reference]"], alone[attack]), "the base is the model as it is without an adapter"
        np.testing.assert_allclose(found[f"{attack}[excess]"], found[attack] - found[f"{attack}[reference]"], rtol=1e-9, atol=1e-9)
        assert not np.allclose(found[attack], alone[attack])
    html = (tmp_path / "adapted" / "report.html").read_text()
    assert str(lora) in html and '<h2 id="reference-title">Beyond the reference' in html
    assert 'id="reference-title"' not in (tmp_path / "base" / "report.html").read_text()
