"""Audits of latent and class-conditional models, masked and unmasked, and `diffleak geometry`, end to end on tiny models."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import diffleak
from diffleak.auditing import run as auditing
from diffleak.auditing import score as scoring
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.config import build
from diffleak.data.complexity import complexity
from diffleak.data.pixels import to_model
from diffleak.diffusion.noise import Noise
from diffleak.errors import UserError
from diffleak.geometry.pullback import distortion, influence, keep_mask
from diffleak.records.plan import Plan
from diffleak.records.scores import plan_id

pytestmark = pytest.mark.usefixtures("few_divisions")
SEED = 3
ATTACKS = "sima,secmi,noise_aggregation,loss_frequency"
RESIDUAL = ("sima", "secmi", "noise_aggregation")


@pytest.fixture
def images(digits, tmp_path) -> tuple[Path, Path]:
    """40 members and 50 held-out digits: chunks of 16 and batches of 8 leave a partial chunk and a partial batch."""
    for name, part in (("members", digits[:40]), ("nonmembers", digits[40:90])):
        np.save(tmp_path / f"{name}.npy", part)
    return tmp_path / "members.npy", tmp_path / "nonmembers.npy"


def settings(model: Path, images: tuple[Path, Path] | None, output: Path, **changes) -> dict:
    sides = {"members": str(images[0]), "nonmembers": str(images[1])} if images else {}
    base = {"model": str(model), "output": output, **sides}
    sizes = {"chunk_size": 16, "batch_size": 8, "timesteps": "40:80:40", "seed": SEED, "device": "cpu", "threads": 1}
    return {**base, **sizes, "attacks": ATTACKS, **changes}


def run(kind=AuditConfig, save=False, **given):
    config = build(kind, given)
    finished = auditing.run(auditing.prepare(config), config.output, log=lambda line: None)
    if finished and save:
        finished.save(config.output)
    return finished


def by_name(audit) -> dict:
    return {s.attack: s for s in audit.scores}


@pytest.mark.parametrize("kind", ["vae", "tiny", "vqvae"])
def test_scores_of_a_latent_model_are_those_of_its_encoded_images(latent_folder, images, tmp_path, kind):
    folder = latent_folder(kind=kind)
    audit = run(**settings(folder, images, tmp_path / "run", attacks="sima"))
    target = diffleak.load(folder, device="cpu")
    ids = audit.scores[0].ids
    pixels = np.concatenate([np.load(side) for side in images])
    position = {
        f"{side}/{i}": n for n, (side, i) in enumerate([("members", i) for i in range(40)] + [("nonmembers", i) for i in range(50)])
    }
    x = torch.from_numpy(to_model(pixels[[position[i] for i in ids]]))
    with torch.inference_mode():
        z = target.codec.encode(x)
        expected = torch.stack([target.denoiser(z, t).double().pow(4).flatten(1).sum(1) for t in (40, 80)], dim=1)
    np.testing.assert_allclose(audit.scores[0].statistic, expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("part", "weight", "said"),
    [
        (
            "vae",
            "encoder.conv_in.weight",
            r"^the autoencoder must return finite latents; got nan for image (non)?members/\d+: WEIGHT of the Autoenc",
        ),
        (
            "unet",
            "conv_in.weight",
            r"^the model must return finite numbers; .* at timestep 40 for image (non)?members/\d+: WEIGHT of the UNet2DM",
        ),
    ],
)
def test_the_part_whose_weights_hold_nan_is_named_with_the_weight_and_no_other_dtype(latent_folder, images, tmp_path, part, weight, said):
    folder = latent_folder()
    file = folder / part / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state[weight].view(-1)[0] = torch.nan
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=said.replace("WEIGHT", weight)) as refusal:
        run(**settings(folder, images, tmp_path / "run", attacks="sima"))
    assert "dtype" not in str(refusal.value) and len(str(refusal.value)) <= 400


def test_masked_scores_are_those_of_the_masks_one_image_at_a_time(latent_folder, images, tmp_path):
    folder = latent_folder()
    audit = run(**settings(folder, images, tmp_path / "run", mask="influence:0.4,random:0.4,reverse:0.5"))
    scores, target = by_name(audit), diffleak.load(folder, device="cpu")
    for image_id in ("members/0", "members/39", "nonmembers/49"):  # the last batches are partial
        side, number = image_id.split("/")
        x = torch.from_numpy(to_model(np.load(images[side == "nonmembers"])[[int(number)]]))
        with torch.inference_mode():
            z = target.codec.encode(x)
            eps = target.denoiser(z, 40).double()
        noise = Noise(SEED, (image_id,), tuple(z.shape[1:]))
        ranked = influence(target.codec, z, 8, noise=noise)
        row = scores["sima"].ids.index(image_id)
        for control, ratio in (("influence", 0.4), ("random", 0.4), ("reverse", 0.5)):
            expected = (eps.pow(4) * keep_mask(ranked, 1 - ratio, control, noise)).sum().item()
            found = scores[f"sima[{control}:{ratio}]"].statistic[row, 0]
            np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_folder_whose_influence_was_estimated_otherwise_is_refused_and_one_without_masks_resumes(latent_folder, images, tmp_path):
    """plan.json as versions without `estimator` wrote it."""
    folder = latent_folder()
    for mask in ((), "influence:0.4"):
        output = tmp_path / f"run-{len(mask)}"
        given = settings(folder, images, output, attacks="sima", mask=mask)
        run(**given)
        plan = json.loads((output / "plan.json").read_text())
        assert plan.pop("estimator") == ("filtered" if mask else None)
        (output / "plan.json").write_text(json.dumps(plan))
        if mask:
            with pytest.raises(UserError, match=r"another plan \(estimator of influence was none, now filtered\); use another -o"):
                run(**given)
        else:
            assert run(**given).scores[0].statistic.shape == (90, 2)
    exact = Plan.model_validate(plan)
    dumped = exact.model_dump_json(exclude={"estimator", "singular_values", "sweep", "faster", "coarse_step"})
    assert exact.sweep == "all" and plan_id(exact) == hashlib.sha256(dumped.encode()).hexdigest(), "so its score files stay valid"


def test_a_folder_whose_distortion_was_found_otherwise_is_refused(latent_folder, digits, tmp_path):
    np.save(tmp_path / "all.npy", digits[:12])
    config = build(GeometryConfig, {**geometry_settings(latent_folder(), None, tmp_path / "out"), "data": str(tmp_path / "all.npy")})
    assert auditing.measure(auditing.prepare(config), tmp_path / "out", log=lambda line: None)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan.pop("singular_values") == "krylov"  # as versions without wrote it
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"belongs to another plan \(method of singular values was none, now krylov\); use another -o"):
        auditing.measure(auditing.prepare(config), tmp_path / "out", log=lambda line: None)


def test_every_residual_attack_is_reported_masked_beside_unmasked_with_paired_differences(latent_folder, images, tmp_path):
    audit = run(save=True, **settings(latent_folder(), images, tmp_path / "run", mask="influence"))
    assert [r.attack for r in audit.results] == [
        *(name for attack in RESIDUAL for name in (attack, f"{attack}[influence:0.4]")),
        "loss_frequency",
    ]
    masked = {r.attack: r for r in audit.results if r.mask}
    for attack in RESIDUAL:
        plain, result = audit.record.result(attack), masked[f"{attack}[influence:0.4]"]
        assert (result.mask, result.mask_ratio) == ("influence:0.4", 0.4)
        assert result.gain.auc.low <= result.gain.auc.value <= result.gain.auc.high
        assert result.queries == plain.queries, "a mask costs no query"
    frame = pd.read_csv(tmp_path / "run" / "samples.csv")
    assert {"sima", "sima[influence:0.4]"} <= set(frame.columns)
    rows = pd.concat(pq.read_table(f).to_pandas() for f in (tmp_path / "run" / "scores").glob("*.parquet"))
    assert len(rows) == 90 * 2 * 7 and set(rows.attack) == {r.attack for r in audit.results}


def test_the_paired_difference_is_that_of_the_two_results_where_there_is_one_split(latent_folder, digits, tmp_path):
    for name, part in (("m", digits[:250]), ("n", digits[250:500])):
        np.save(tmp_path / f"{name}.npy", part)
    sides = (tmp_path / "m.npy", tmp_path / "n.npy")
    audit = run(**settings(latent_folder(), sides, tmp_path / "run", attacks="sima", mask="influence", chunk_size=128, batch_size=64))
    plain, masked, *calibrated = audit.results
    assert [r.attack for r in calibrated] == ["sima[calibrated]", "sima[influence:0.4][calibrated]"]
    assert [(r.base, r.mask, r.plain) for r in calibrated] == [("sima", None, False), ("sima", "influence:0.4", False)]
    kept = pd.read_parquet(tmp_path / "run" / "complexity.parquet").set_index("id")
    images = audit.cohort
    np.testing.assert_allclose(kept.loc[images.ids[7]].to_numpy()[:7], complexity(images.read(7)))
    for before, after in zip((plain, masked), calibrated, strict=True):
        assert after.gain.auc.value == pytest.approx(after.auc.value - before.auc.value)
    assert masked.gain.auc.value == pytest.approx(masked.auc.value - plain.auc.value)
    assert masked.gain.asr.value == pytest.approx(masked.asr.value - plain.asr.value)
    rates = [result.tpr(0.01).value for result in (masked, plain)]
    assert masked.gain.tpr_at_1pct.value == pytest.approx(rates[0] - rates[1])


def test_mask_auto_chooses_among_ratios_that_include_no_mask(latent_folder, images, tmp_path):
    audit = run(**settings(latent_folder(), images, tmp_path / "run", attacks="sima", mask="auto"))
    result = audit.record.result("sima[influence:auto]")
    assert result.mask_ratio in [i / 10 for i in range(10)]
    names = {s.attack for s in audit.scores}
    assert names == {"sima", *(f"sima[influence:0.{i}]" for i in range(1, 10))}


def test_latents_and_influence_are_computed_once_reused_by_a_resumed_run_and_removed_at_the_end(
    latent_folder, images, tmp_path, monkeypatch
):
    from diffleak.auditing import inputs

    calls = []
    real = inputs.influence
    monkeypatch.setattr(inputs, "influence", lambda *a, **k: calls.append(len(a[1])) or real(*a, **k))
    given = settings(latent_folder(), images, tmp_path / "run", attacks="sima,secmi", mask="influence")
    prepared = auditing.prepare(build(AuditConfig, given))
    stop = RuntimeError("stopped")

    def interrupted(*arguments):
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_score_chunks", interrupted)
        with pytest.raises(RuntimeError, match="stopped"):
            auditing.run(prepared, tmp_path / "run", log=lambda line: None)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["influence", "latents", "plan.json"]
    calls.clear()
    damaged = tmp_path / "run" / "influence" / "chunk-00000.npy"
    broken = bytearray(damaged.read_bytes())
    broken[200] ^= 1
    damaged.write_bytes(broken)
    audit = run(**given)
    assert sum(calls) == 16, "the resumed run reads the influence that is there, but for what was damaged meanwhile"
    calls.clear()
    assert not (tmp_path / "run" / "latents").exists() and not (tmp_path / "run" / "influence").exists()
    again = run(**given)
    assert not calls and [r.auc for r in again.results] == [r.auc for r in audit.results]
    whole = run(**{**given, "output": tmp_path / "whole"})
    assert all(np.array_equal(a.statistic, b.statistic) for a, b in zip(audit.scores, whole.scores, strict=True))
    assert sum(calls) == 90 + scoring.TIMED_IMAGES, "each image once, and a few to estimate the time"


def test_shards_give_the_same_masked_scores_as_one_worker(latent_folder, images, tmp_path):
    given = settings(latent_folder(), images, tmp_path / "run", attacks="sima,noise_aggregation(metric=density)", mask="influence,random")
    assert run(**{**given, "shard": "1/2"}) is None
    shared, alone = run(**{**given, "shard": "2/2"}), run(**{**given, "output": tmp_path / "alone", "threads": 2})
    assert all(np.array_equal(a.statistic, b.statistic) for a, b in zip(shared.scores, alone.scores, strict=True))


@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_class_conditional_models_are_asked_with_the_labels_of_the_data(latent_folder, digits, tmp_path, network):
    labels = np.arange(130) % 10
    np.savez(tmp_path / "all.npz", images=digits[:130], labels=labels)
    split = {"members": [str(i) for i in range(60)], "nonmembers": [str(i) for i in range(60, 130)]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    folder = latent_folder(network=network, classes=10)
    given = settings(folder, None, tmp_path / "run", attacks="sima", data=f"{tmp_path / 'all.npz'}:images")
    audit = run(**{**given, "split": tmp_path / "split.json"})
    target = diffleak.load(folder, device="cpu")
    order = [int(i) for i in audit.scores[0].ids]
    with torch.inference_mode():
        z = target.codec.encode(torch.from_numpy(to_model(digits[:130][order])))
        expected = target.denoiser(z, 40, torch.from_numpy(labels[order])).double().pow(4).flatten(1).sum(1)
    np.testing.assert_allclose(audit.scores[0].statistic[:, 0], expected.numpy(), rtol=1e-4)
    assert audit.record.plan.classes == 10


def test_missing_labels_labels_out_of_range_and_unlike_class_folders_are_refused(latent_folder, images, digits, tmp_path):
    from PIL import Image

    folder = latent_folder(classes=3)
    with pytest.raises(UserError, match="conditioned on one of 3 classes, so every image needs a label; the data has none"):
        run(**settings(folder, images, tmp_path / "run"))
    for name, part in (("m", digits[:20]), ("n", digits[20:40])):
        np.savez(tmp_path / f"{name}.npz", images=part, labels=np.arange(20) % 4)
    with pytest.raises(UserError, match=r"labels must lie in \[0, 3\), the model's classes; 5 of the members do not \(first: .* has 3\)"):
        run(**settings(folder, (f"{tmp_path / 'm.npz'}:images", f"{tmp_path / 'n.npz'}:images"), tmp_path / "run"))
    for side, names in (("a", ("cat", "dog", "emu")), ("b", ("cat", "emu"))):
        for i, image in enumerate(digits[:24] if side == "a" else digits[24:48]):
            (tmp_path / side / names[i % len(names)]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(tmp_path / side / names[i % len(names)] / f"{i}.png")
    with pytest.raises(UserError, match=r"members have 2 folders \(cat, emu\), held-out images have 2 folders \(cat, emu\); folders count"):
        run(**settings(folder, (tmp_path / "b", tmp_path / "b"), tmp_path / "run"))
    assert run(**settings(folder, (tmp_path / "a", tmp_path / "b"), tmp_path / "named")).record.plan.label_names == {
        "cat": 0,
        "dog": 1,
        "emu": 2,
    }


def test_a_mask_on_a_pixel_model_and_bad_masks_are_refused(model_folder, latent_folder, images, tmp_path):
    with pytest.raises(UserError, match=r"--mask ranks the latent coordinates of a decoder, and .* works on pixels; leave it out"):
        run(**settings(model_folder(), images, tmp_path / "run", mask="influence"))
    with pytest.raises(UserError, match=r"geometry is that of a decoder, and .* works on pixels"):
        run(GeometryConfig, **settings(model_folder(), images, tmp_path / "run"))
    with pytest.raises(UserError, match=r"the geometry is of images: give --data DATA, or two sides as --members and --nonmembers"):
        build(GeometryConfig, {"model": "m"})
    with pytest.raises(UserError, match=r"the geometry is of images, and group counts groups .* or run audit --group COLUMN"):
        build(GeometryConfig, settings(model_folder(), images, tmp_path / "run", group="person"))
    folder = latent_folder()
    cases = [
        ({"mask": "influense"}, "unknown mask 'influense'; did you mean 'influence'"),
        ({"mask": "influence:1.2"}, "a mask's ratio is the share of coordinates dropped, above 0 and below 1"),
        ({"mask": "random:x"}, "a mask's ratio is the share"),
        ({"mask": "influence,influence:0.4"}, "each mask must be listed once"),
        ({"mask": "auto", "calibration": False, "timesteps": "40"}, "--mask auto chooses its ratio on the calibrate part"),
        (
            {"mask": "influence", "attacks": "loss_frequency,pia_frequency"},
            r"no attack that is given takes a mask \(loss_frequency, pia_frequency\); leave out --mask, or add an attack that does",
        ),
        ({"mask": "influence", "attacks": "loss_frequency"}, r"no attack that is given takes a mask \(loss_frequency\)"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            run(**settings(folder, images, tmp_path / "run", **change))


def geometry_settings(model: Path, images: tuple[Path, Path] | None, output: Path, **changes) -> dict:
    given = settings(model, images, output, top=4, chunk_size=64, **changes)
    return {k: v for k, v in given.items() if k != "attacks" or "attacks" in changes}


def test_geometry_of_images_alone_leaves_the_distortion_and_influence_of_each(latent_folder, digits, tmp_path):
    np.save(tmp_path / "all.npy", digits[:37])
    folder = latent_folder()
    config = build(GeometryConfig, {**geometry_settings(folder, None, tmp_path / "out"), "data": str(tmp_path / "all.npy")})
    assert auditing.measure(auditing.prepare(config), tmp_path / "out", log=lambda line: None)
    table, found = pq.read_table(tmp_path / "out" / "geometry.parquet"), np.load(tmp_path / "out" / "influence.npy")
    assert [str(f.type) for f in table.schema] == ["string", "double"] and table.column_names == ["id", "distortion"]
    assert found.shape == (37, 4, 4, 4) and found.dtype == np.float32
    target, ids = diffleak.load(folder, device="cpu"), tuple(table.column("id").to_pylist())
    z = target.codec.encode(torch.from_numpy(to_model(digits[[int(i) for i in ids]])))
    noise = Noise(SEED, ids, ())
    np.testing.assert_allclose(table.column("distortion").to_numpy(), distortion(target.codec, z, 4, noise=noise).numpy(), rtol=1e-4)
    np.testing.assert_allclose(found, influence(target.codec, z, 8, noise=noise).numpy(), rtol=1e-3, atol=1e-3)
    assert not (tmp_path / "out" / "latents").exists()
    assert auditing.measure(auditing.prepare(config), tmp_path / "out", log=lambda line: None), "again: nothing is left to do"
    whole = (tmp_path / "out" / "influence.npy").read_bytes()
    (tmp_path / "out" / "influence.npy").write_bytes(whole[:500])
    assert auditing.measure(auditing.prepare(config), tmp_path / "out", log=lambda line: None)
    assert (tmp_path / "out" / "influence.npy").read_bytes() == whole, "what was damaged is measured again"
    assert (tmp_path / "out" / "influence.npy.damaged").read_bytes() == whole[:500]


def test_the_plan_says_which_attacks_take_the_masks(latent_folder, images, tmp_path):
    folder = latent_folder()
    for attacks, said in (
        ("sima,loss", "2 attacks (all also under influence:0.4)"),
        ("sima,pfami", "2 attacks (sima also under influence:0.4)"),
    ):
        given = settings(folder, images, tmp_path / "run", attacks=attacks, mask="influence")
        assert said in auditing.prepare(build(AuditConfig, given)).describe()


@pytest.mark.slow
def test_geometry_with_members_gives_the_six_analyses(latent_folder, images, tmp_path):
    audit = run(GeometryConfig, **geometry_settings(latent_folder(), images, tmp_path / "out", attacks="sima,loss,loss_frequency"))
    found = audit.record.geometry
    assert (found.top, found.attack, len(found.quartiles), len(found.band)) == (4, "sima", 4, 2)
    table = pq.read_table(tmp_path / "out" / "geometry.parquet").to_pandas().set_index("id").distortion
    assert [q.quartile for q in found.quartiles] == [1, 2, 3, 4]
    assert found.quartiles[0].low == table.min() and found.quartiles[3].high == table.max()
    test = audit.samples.test
    assert sum(q.n_members for q in found.quartiles) == int((audit.samples.member & test).sum())
    assert found.highest[0] == table.idxmax() and found.lowest[0] == table.idxmin()
    assert found.high_minus_low.value == pytest.approx(found.quartiles[3].auc.value - found.quartiles[0].auc.value)
    assert -1 <= found.low_frequency.low <= found.low_frequency.value <= found.low_frequency.high <= 1
    assert [f.attack for f in found.filters] == ["loss"]
    masks = {r.mask for r in audit.results}
    assert masks == {None, *(f"influence:0.{i}" for i in range(1, 10)), "random:0.4", "reverse:0.4", "reverse:0.9"}
    assert np.load(tmp_path / "out" / "influence.npy").shape == (90, 4, 4, 4)
    assert "diffleak geometry" in audit.record.command
    again = run(
        GeometryConfig, **geometry_settings(Path(audit.record.plan.model), images, tmp_path / "out", attacks="sima,loss,loss_frequency")
    )
    assert again.record.geometry == found


def test_more_singular_values_than_the_decoder_has_are_refused(latent_folder, images, tmp_path):
    with pytest.raises(UserError, match="top must be at most 64, the most singular values there are; got 65"):
        run(GeometryConfig, **{**geometry_settings(latent_folder(), images, tmp_path / "out"), "top": 65})
