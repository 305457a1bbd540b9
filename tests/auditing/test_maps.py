"""Maps of where a text model and its reference differ: what they are, who gets them, and the pages that show them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.prompts import Strengths
from PIL import Image

from diffleak.auditing import run as auditing
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.maps import maps_of
from diffleak.auditing.plan import Prepared, prepare
from diffleak.auditing.results import rewrite_report
from diffleak.config import build
from diffleak.data.anonymity import Key
from diffleak.data.pixels import ImageShape
from diffleak.diffusion.analytic import linear_schedule
from diffleak.diffusion.codec import Codec, Identity
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.records.maps import Maps, read_maps, write_maps
from diffleak.report.judgement import verdict

SCHEDULE = linear_schedule()
N, SEED, T = 14, 3, 60
PIXELS = np.random.default_rng(0).integers(0, 256, (2, N, 8, 8), dtype=np.uint8)
SETTINGS = {"attacks": "loss", "timesteps": str(T), "calibration": False, "allow_shift": True, "seed": SEED, "batch_size": 5}


class Packed(Codec):
    """Latents of four channels and half the sides, without loss."""

    def encode(self, x):
        return torch.nn.functional.pixel_unshuffle(x, 2)

    def decode(self, z):
        return torch.nn.functional.pixel_shuffle(z, 2)


def target(corner: float, text=True, codec: Codec = Packed(), **keys) -> Target:  # noqa: B008
    """A model that predicts noise from x_t and its caption, and `corner` times x_t^2 more in the right lower corner."""

    def predict(x, t, cond=None):
        where = torch.zeros_like(x)
        where[..., x.shape[-2] // 2 :, x.shape[-1] // 2 :] = corner
        pull = cond.tensors["pull"].to(x)[:, :, None, None] if text else 1.0
        return 0.1 * x + 0.3 * pull + where * x.square() * pull

    denoiser = Denoiser.from_function(predict, SCHEDULE.alphas_cumprod)
    keys = {"dtype": "float64", "fingerprint": f"corner {corner}", **keys}
    return Target(denoiser, ImageShape(1, 8, 8), text=Strengths() if text else None, codec=codec, **keys)


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("captioned")
    for side, pixels in zip(("members", "nonmembers"), PIXELS, strict=True):
        (root / side).mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(root / side / f"{i:02d}.png")
        lines = [json.dumps({"file_name": f"{i:02d}.png", "text": f"secret{'!' * i}"}) for i in range(N)]
        (root / side / "metadata.jsonl").write_text("\n".join(lines))
    return {side: str(root / side) for side in ("members", "nonmembers")}


def prepared(sides, model: Target, reference: Target | None, **changes) -> Prepared:
    given = {"model": "m", "reference": reference and "r", **sides, **SETTINGS, "thumbnails": True, **changes}
    return prepare(build(AuditConfig, given), model, reference=reference)


def run(folder: Path, ready: Prepared):
    finished = auditing.run(ready, folder, lambda line: None, timed=False)
    return finished, finished.save(folder, ready.config.thumbnails)


@pytest.fixture(scope="module")
def planted(sides, tmp_path_factory):
    """What was prepared, the finished audit and its folder."""
    ready = prepared(sides, target(0.5), target(0.0))
    return ready, *run(tmp_path_factory.mktemp("run"), ready)


def oracle(image_id: str, timestep: int) -> np.ndarray:
    """The map of the planted pair by the formula, in float64: the models differ by corner x_t^2 pull."""
    i = int(Path(image_id).stem)
    x = PIXELS[0, i].astype(np.float64) / 127.5 - 1.0
    z = np.stack([x[a::2, b::2] for a in (0, 1) for b in (0, 1)])
    kept = float(SCHEDULE.alphas_cumprod[timestep])
    e = Noise(SEED, (image_id,), z.shape, torch.float64)(0).numpy()[0]
    x_t = np.sqrt(kept) * z + np.sqrt(1 - kept) * e
    squares = ((0.5 * x_t**2 * (1.0 + (6 + i) % 3)) ** 2).sum(axis=0)
    squares[:2], squares[:, :2] = 0.0, 0.0
    return squares


def test_a_map_is_the_squared_difference_of_the_two_predictions_and_lies_where_they_were_made_to_differ(planted):
    _, audit, _ = planted
    assert audit.maps.timestep == T and len(audit.maps.of) == 12
    scores = audit.samples.scores[verdict(audit.record).attack]
    listed = sorted(range(N), key=lambda i: (-scores[i], audit.samples.ids[i]))[:12]
    assert list(audit.maps.of) == [audit.samples.ids[i] for i in listed], "those of the report, in its order"
    for image_id, found in audit.maps.of.items():
        assert (found[2:, 2:] > 0).all() and not found[:2].any() and not found[:, :2].any()
        np.testing.assert_allclose(found, oracle(image_id, T), rtol=1e-6, atol=1e-9)


def test_where_the_attack_has_no_timestep_maps_are_at_a_tenth_of_the_schedule(planted):
    ready, audit, _ = planted
    ruled = tuple(result.model_copy(update={"timestep": None}) for result in audit.results)
    record = audit.record.model_copy(update={"results": ruled})
    maps = maps_of(ready, record, audit.samples)
    assert maps.timestep == 100
    for image_id, found in maps.of.items():
        np.testing.assert_allclose(found, oracle(image_id, 100), rtol=1e-6, atol=1e-9)


def test_maps_are_asked_with_one_query_of_each_model_an_image_and_only_with_captions_latents_a_reference_and_images_to_show(planted, sides):
    ready, audit, _ = planted
    asked = []
    counting = lambda one: replace(one, denoiser=Counts(one.denoiser, asked))
    both = replace(ready, target=counting(ready.target), reference=counting(ready.reference))
    both = replace(both, inputs=replace(ready.inputs, target=both.target))
    given = audit.record, audit.samples
    assert np.array_equal(list(maps_of(both, *given).of.values()), list(audit.maps.of.values())) and sum(asked) == 2 * 12
    asked.clear()
    bare = lambda **keys: replace(both, inputs=replace(both.inputs, target=replace(both.target, **keys)))
    unseen = replace(both, config=both.config.model_copy(update={"thumbnails": False}))
    for none in (unseen, replace(both, reference=None), replace(both, key=Key(b"k" * 32)), bare(codec=Identity()), bare(text=None)):
        assert maps_of(none, *given) is None
    assert asked == []


class Counts(Denoiser):
    def __init__(self, inner: Denoiser, asked: list[int]) -> None:
        self.inner, self.asked, self.schedule = inner, asked, inner.schedule

    def __call__(self, x_t, t, cond=None):
        self.asked.append(len(x_t))
        return self.inner(x_t, t, cond)


def test_a_resumed_run_and_a_page_rendered_again_show_the_same_maps(planted, sides, tmp_path):
    _, _, folder = planted
    page = (folder / "report.html").read_text()
    assert page.count('<img class="map"') == 12
    rewrite_report(folder, True)
    assert (folder / "report.html").read_text() == page
    assert auditing.run(prepared(sides, target(0.5), target(0.0), thumbnails=False), tmp_path, lambda line: None, timed=False).maps is None
    run(tmp_path, prepared(sides, target(0.5), target(0.0)))
    assert (tmp_path / "maps.npy").read_bytes() == (folder / "maps.npy").read_bytes()
    listed = lambda html: html[html.index('<section id="exposed"') :].partition("</section>")[0]
    assert listed((tmp_path / "report.html").read_text()) == listed(page)


def test_a_run_without_maps_shows_the_list_without_them_and_says_so_and_damaged_ones_are_refused(planted, tmp_path):
    _, _, folder = planted
    whole = (folder / "maps.npy").read_bytes()
    page = (folder / "report.html").read_text()
    try:
        (folder / "maps.npy").unlink()
        rewrite_report(folder, True)
        without = (folder / "report.html").read_text()
        assert without.count('alt="Member ') == 12 and 'class="map' not in without and ".maps" not in without
        assert "an audit of a latent model with --thumbnails makes them" in without
        (folder / "maps.npy").write_bytes(whole[:300] + b"\x01" + whole[301:])
        with pytest.raises(
            UserError, match=r"maps.npy is damaged \(its checksum .*\): it is now maps.npy.damaged; run the same command again"
        ):
            rewrite_report(folder, True)
    finally:
        (folder / "maps.npy").write_bytes(whole)
        (folder / "report.html").write_text(page)


def test_maps_are_read_as_they_were_written_and_other_arrays_are_refused(tmp_path):
    from diffleak.work.folder import Folder

    maps = Maps(40, {"members/ä.png": np.array([[0, 1.5], [np.nan, 2]], np.float32), "b": np.zeros((2, 2), np.float32)})
    write_maps(tmp_path, maps)
    read = read_maps(tmp_path)
    assert read.timestep == 40 and list(read.of) == list(maps.of)
    for image_id, squares in maps.of.items():
        np.testing.assert_array_equal(read.of[image_id], squares)
    negative = np.full(1, -1, [("id", "U1"), ("timestep", "i4"), ("map", "f4", (2, 2))])
    for other in (
        negative,
        np.zeros(3),
        np.zeros(0, [("id", "U1"), ("timestep", "i4"), ("map", "f4", (2, 2))]),
        np.zeros(2, [("id", "U1")]),
    ):
        Folder(tmp_path).save("maps.npy", other)
        with pytest.raises(UserError, match=r"maps.npy is damaged \(it holds no maps\)"):
            read_maps(tmp_path)
