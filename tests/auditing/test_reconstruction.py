"""Calibration by the complexity of reconstructions: what is measured of a latent model, what is kept of it, and a planted leak."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from fixtures.models import AUTOENCODERS
from safetensors.torch import load_file, save_file

import diffleak
from diffleak.auditing import inputs, plan, run, score
from diffleak.auditing.config import AuditConfig
from diffleak.config import build
from diffleak.data.complexity import NAMES, complexity
from diffleak.data.pixels import to_model, to_uint8
from diffleak.errors import UserError
from diffleak.lora.run import _Audit
from diffleak.report import to_html
from diffleak.report.pages.audit import page
from diffleak.work.folder import Folder

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
SIDE = 70  # 42 held-out images to calibrate on
OWN, RECONSTRUCTED = list(NAMES), [f"reconstruction_{name}" for name in NAMES]


@pytest.fixture
def prepared(latent_folder: Callable[..., Path], digits: np.ndarray, tmp_path: Path) -> Callable[..., plan.Prepared]:
    """An audit of a latent model, ready to score: `prepared("run", kind="vqvae", shard="1/2")`."""
    for name, part in (("members", digits[:SIDE]), ("held_out", digits[SIDE : 2 * SIDE])):
        np.save(tmp_path / f"{name}.npy", part)

    def make(name: str, kind: str = "vae", encoder: dict[str, Any] | None = None, **changes: Any) -> plan.Prepared:
        folder = tmp_path / f"model-{kind}"
        model = folder if folder.exists() else latent_folder(folder.name, kind=kind, encoder=encoder)
        sides = {"members": str(tmp_path / "members.npy"), "nonmembers": str(tmp_path / "held_out.npy")}
        sizes = {"chunk_size": 32, "batch_size": 8, "threads": 1, "device": "cpu", "calibrate_fraction": 0.6, "timesteps": "40"}
        given = {"model": str(model), "output": tmp_path / name, "attacks": "sima", **sides, **sizes, **changes}
        return plan.prepare(build(AuditConfig, given))

    return make


def scored(prepared: plan.Prepared) -> np.ndarray | None:
    """The complexity of the reconstructions once everything is scored, without an evaluation."""
    folder = prepared.config.output
    assert score.score(prepared.job, Folder(folder), prepared.worker) == 0
    return score.collect(prepared.job, folder).reconstruction


def written(prepared: plan.Prepared, found: np.ndarray) -> None:
    """Leaves what a finished run leaves of it."""
    inputs.write_complexity(prepared.config.output, prepared.scan.cohort.ids, prepared.scan.complexity, found)
    inputs.clear(prepared.config.output)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many latents were decoded, call by call."""
    seen, real = list[int](), inputs.images_of
    monkeypatch.setattr(inputs, "images_of", lambda codec, z: seen.append(len(z)) or real(codec, z))
    return seen


@pytest.mark.parametrize(("kind", "network"), [("vae", AutoencoderKL), ("vqvae", VQModel)])
def test_it_is_that_of_the_decoded_latents_of_each_image(prepared, kind, network):
    audited = prepared("run", kind)
    found, cohort = scored(audited), audited.scan.cohort
    model = network.from_pretrained(Path(audited.config.model) / AUTOENCODERS[kind]).eval()
    for row in (0, 77, 2 * SIDE - 1):
        with torch.no_grad():
            encoded = model.encode(torch.from_numpy(to_model(cohort.read(row)[None])))
            x = model.decode(encoded.latent_dist.mode() if kind == "vae" else encoded.latents).sample
        np.testing.assert_allclose(found[row], complexity(to_uint8(x.numpy())[0]), atol=0.05)


def test_an_interrupted_run_a_folder_of_latents_alone_and_two_shards_leave_the_same_bytes(prepared, tmp_path, decodings, monkeypatch):
    whole = scored(prepared("whole"))
    assert sum(decodings) == 2 * SIDE
    read = lambda name: {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.npy")}
    expected, resumed = read("whole"), prepared("resumed")
    assert len(expected) == 2 * 5, "latents and reconstruction of five chunks"
    with monkeypatch.context() as patch:
        patch.setattr(score, "_score_chunks", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            score.score(resumed.job, Folder(tmp_path / "resumed"), resumed.worker)
    for file in (tmp_path / "resumed" / "reconstruction").iterdir():
        file.unlink()  # as versions left it that did not measure reconstructions
    (tmp_path / "resumed" / "latents" / "chunk-00001.npy").unlink()
    latents = tmp_path / "resumed" / "latents" / "chunk-00000.npy"
    before = latents.stat().st_mtime_ns
    np.testing.assert_array_equal(scored(resumed), whole)
    assert read("resumed") == expected and latents.stat().st_mtime_ns == before

    first, second = (prepared("shared", shard=f"{i}/2") for i in (1, 2))
    assert score.score(first.job, Folder(tmp_path / "shared"), first.worker) > 0
    np.testing.assert_array_equal(scored(second), whole)
    assert read("shared") == expected


def test_a_finished_run_reads_it_from_complexity_parquet_and_measures_again_what_is_damaged_or_another_one(prepared, tmp_path, decodings):
    audited, file = prepared("run"), tmp_path / "run" / "complexity.parquet"
    found = scored(audited)
    written(audited, found)
    assert not (tmp_path / "run" / "reconstruction").exists()
    table, whole = pd.read_parquet(file), file.read_bytes()
    assert table.columns.tolist() == ["id", *OWN, *RECONSTRUCTED]
    np.testing.assert_array_equal(table[RECONSTRUCTED].to_numpy(), found)
    decodings.clear()
    assert audited.estimate(tmp_path / "run") == "all of it is done"
    np.testing.assert_array_equal(scored(audited), found)
    assert not decodings and not (tmp_path / "run" / "latents").exists()

    others = (table.assign(png=table.png + 1), table[["id", *OWN]], table[::-1], table.assign(**{RECONSTRUCTED[0]: np.nan}))
    for other in ("damaged", *others):
        decodings.clear()
        if isinstance(other, pd.DataFrame):
            other.to_parquet(file, index=False)
        else:
            file.write_bytes(whole[:300])
        np.testing.assert_array_equal(scored(audited), found)
        assert sum(decodings) == 2 * SIDE and not (tmp_path / "run" / "latents").exists(), "latents are for scores, which are there"
        written(audited, found)
        assert file.read_bytes() == whole
    assert file.with_name(f"{file.name}.damaged").read_bytes() == whole[:300]


def test_nothing_is_decoded_where_nothing_is_calibrated_and_the_time_of_it_is_counted(prepared, tmp_path, decodings):
    for name, changes in (("off", {"complexity": False}), ("few", {"calibrate_fraction": 0.2}), ("fixed", {"calibration": False})):
        assert scored(prepared(name, **changes)) is None and not (tmp_path / name / "reconstruction").exists()
    assert not decodings
    prepared("dry").estimate()
    assert decodings == [score.TIMED_IMAGES]


def test_an_anonymous_run_takes_out_the_same_numbers_of_each_image_and_keeps_none(prepared, tmp_path, monkeypatch):
    seen, bars, real = [], [], Folder.run
    monkeypatch.setattr(Folder, "run", lambda self, *given, **told: bars.append(told["bar"]) or real(self, *given, **told))
    monkeypatch.setattr(run.evaluation, "evaluate_calibrated", lambda base, features, *given: seen.append(features) or base)
    for name, anonymous in (("named", False), ("hidden", True)):
        audited = prepared(name, anonymous=anonymous)
        assert run.run(audited, tmp_path / name, timed=False)
    assert list(seen[0]) == ["png", "bytes", "full", "reconstruction"] == list(seen[1])
    for feature in seen[0]:
        np.testing.assert_allclose(seen[1][feature], seen[0][feature], atol=0.05)
    assert sorted(path.name for path in (tmp_path / "hidden").iterdir()) == ["anonymous.key", "plan.json", "scores", "seconds"]
    assert (tmp_path / "named" / "complexity.parquet").exists() and not (tmp_path / "named" / "reconstruction").exists()
    assert bars == ["encoding, decoding", "scoring"] * 2


def test_reconstructions_that_are_not_finite_are_refused_by_name_with_what_to_leave_out(prepared, monkeypatch):
    audited = prepared("run")
    weights = Path(audited.config.model) / AUTOENCODERS["vae"] / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["decoder.conv_out.weight"] *= 1e38
    state["decoder.conv_out.bias"] += 3e38
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(UserError) as refusal:
        scored(prepared("other"))
    said = str(refusal.value)
    assert said.startswith("the autoencoder must return finite images; got ") and " for image " in said
    assert said.endswith("its weights are finite, so use --no-complexity, which decodes nothing") and len(said) <= 400
    monkeypatch.setattr(AuditConfig, "NO_FLAG", _Audit.NO_FLAG)
    with pytest.raises(UserError) as refusal:
        scored(prepared("of lora"))
    assert "--no-complexity" not in str(refusal.value), "`diffleak lora` has no such flag"


def test_a_decoder_of_other_channels_is_refused(prepared):
    with pytest.raises(UserError) as refusal:
        scored(prepared("run", encoder={"out_channels": 3}))
    assert str(refusal.value) == "the codec's decode must give images of the shape (1, h, w); got (3, 8, 8)"


def test_in_half_precision_it_is_about_the_same(prepared):
    half, exact = scored(prepared("half", dtype="bfloat16")), scored(prepared("exact"))
    assert np.corrcoef(half[:, 5], exact[:, 5])[0, 1] > 0.95


class Simple(diffleak.Attack):
    """A statistic that is exp(noise + what the reconstruction's complexity explains - leak of members); a pixel says who is one."""

    @property
    def queries(self) -> int:
        return 0

    def statistics(self, subject: Any, mask: Any = None) -> torch.Tensor:
        pixels = to_uint8(subject.decode(subject.x0).numpy())
        explained = torch.tensor([[2 * complexity(image)[5] for image in pixels]], dtype=torch.float64)
        member = (subject.pixels()[:, 0, 0, 0] > -1).double()
        return (explained + subject.noise(0).flatten(1)[:, 0].double() - 1.5 * member).exp()


def test_a_leak_behind_the_complexity_of_reconstructions_is_found(latent_folder, digits):
    members, held_out = digits[:200].copy(), digits[200:400].copy()
    members[:, 0, 0], held_out[:, 0, 0] = 1, 0
    images = diffleak.cohort(members=members, nonmembers=held_out)
    audit = diffleak.audit(latent_folder(), images, attacks=Simple(timesteps=(40,)), allow_shift=True, threads=1, device="cpu")
    plain, calibrated = audit.results
    assert calibrated.complexity == "reconstruction" and calibrated.gain.auc.low > 0 and calibrated.auc.value > 0.8
    assert calibrated.gain.auc.value == pytest.approx(calibrated.auc.value - plain.auc.value)
    said = to_html(page(audit.record, audit.samples))
    assert "compressed sizes and frequencies of the reconstruction" in said
    assert "corrected for how simple the reconstruction of each image is: the score that its complexity predicts is subtracted" in said
