"""Calibrate first with what else an audit can have: masks and reconstructions of latents, a reference, groups and keyed ids."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffleak
from diffleak.auditing.inputs import Inputs
from diffleak.records.chosen import Chosen
from diffleak.stats import evaluation

pytestmark = pytest.mark.usefixtures("undrawn")

SIDE, OF = 60, 2  # images a side, and in each group
GIVEN = {"attacks": "sima,loss", "timesteps": "40:200:40", "calibrate_fraction": 0.6, "seed": 3}
SIZES = {"device": "cpu", "threads": 1, "batch_size": 8, "chunk_size": 16}


@pytest.fixture
def sides(tmp_path: Path, digits: np.ndarray) -> dict[str, str]:
    """Two folders of digits, two images of each person."""
    for number, side in enumerate(("members", "nonmembers")):
        rows, root = [], tmp_path / side
        root.mkdir()
        for i, image in enumerate(digits[number * SIDE : (number + 1) * SIDE]):
            name = f"{side}-{(7 * i) % SIDE:02}.png"  # two of a person are not beside each other
            Image.fromarray(image[..., 0]).save(root / name)
            rows.append({"file_name": name, "person": f"{side}-{i // OF}"})
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {side: str(tmp_path / side) for side in ("members", "nonmembers")}


KINDS = ("masks and reconstructions", "reference", "groups", "keyed ids")


def of_kind(kind: str, latent_folder, model_folder, folder: Path) -> tuple[Path, dict[str, object]]:
    """A model, and the settings of an audit of this kind."""
    (folder / "key").write_text("ab" * 32 + "\n")
    (folder / "key").chmod(0o600)
    model = latent_folder("latent", kind="vae") if kind.startswith("masks") else model_folder("pixels")
    return model, {
        "masks and reconstructions": {"mask": "auto", "probes": 1},
        "reference": {"reference": str(model_folder("other", in_channels=1, layers_per_block=2))},
        "groups": {"group": "person"},
        "keyed ids": {"anonymous": True, "anonymous_key": str(folder / "key")},
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_chosen_and_found_is_what_all_scores_give(kind, sides, latent_folder, model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "SMALL_SIDE", 20)  # so few are divided once
    model, changes = of_kind(kind, latent_folder, model_folder, tmp_path)
    run = lambda sweep: diffleak.audit(model, **sides, **GIVEN, **SIZES, **changes, sweep=sweep, output=tmp_path / sweep)
    first, whole = run("calibrate"), run("all")
    chosen = Chosen.model_validate_json((tmp_path / "calibrate" / "chosen.json").read_text())
    assert first.record.costs.sweep == "calibrate" and chosen.unit == ("group" if kind == "groups" else "image")
    assert first.record.costs.queries < whole.record.costs.queries
    compared = [result for result in first.results if result.attack != "combined"]
    assert len(compared) >= (2 if kind == "groups" else 4)  # 18 held-out groups calibrate: too few to take complexity out
    for one in compared:
        other = whole[one.attack]
        assert (one.timestep, one.mask_ratio, one.complexity) == (other.timestep, other.mask_ratio, other.complexity)
        assert one.timestep in chosen.timesteps[one.base] and one.oracle.reason == evaluation.NEEDS_ALL
        assert one.auc.value == pytest.approx(other.auc.value, abs=5e-3), "batches are others, so last bits are"
        np.testing.assert_allclose(first.samples.scores[one.attack], whole.samples.scores[one.attack], rtol=1e-3, atol=1e-4)
    assert first.record.split == whole.record.split and first.samples.ids == whole.samples.ids
    assert first.samples.test.tolist() == whole.samples.test.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_coarse_sweep_has_the_scores_of_an_audit_of_everything(kind, sides, latent_folder, model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "SMALL_SIDE", 20)
    model, changes = of_kind(kind, latent_folder, model_folder, tmp_path)
    given = {**GIVEN, "timesteps": "40:200:20"}
    encoded, latents = list[int](), Inputs.latents
    monkeypatch.setattr(Inputs, "latents", lambda self, images: encoded.append(len(images)) or latents(self, images))
    run = lambda sweep: diffleak.audit(model, **sides, **given, **SIZES, **changes, sweep=sweep, output=tmp_path / sweep)
    coarse, counted = run("coarse"), sum(encoded)
    everything = run("all")
    again = int((~coarse.samples.test).sum())
    assert counted < 2 * SIDE + again, "no image is encoded once more for the timesteps beside the best; a few are, to estimate the time"
    assert coarse.record.costs.queries < 0.85 * everything.record.costs.queries and coarse.record.split == everything.record.split
    whole = {scores.attack: scores for scores in everything.scores}
    for scores in coarse.scores:
        every, scored = whole[scores.attack], np.isfinite(scores.statistic)
        assert scored[~coarse.samples.test].all() and 3 < len(scores.timesteps) <= len(every.timesteps)
        shared = every.statistic[:, [every.timesteps.index(t) for t in scores.timesteps]]
        np.testing.assert_allclose(scores.statistic[scored], shared[scored], rtol=1e-3, atol=1e-4)  # other batches, so other last bits
    for result in coarse.results:
        if result.attack != "combined":
            assert result.timestep in coarse.record.costs.test_timesteps[result.base] and result.auc.value is not None
