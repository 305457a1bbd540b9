"""Audits of images of mixed sizes in aspect-ratio buckets: every image is scored as in an audit of its bucket alone."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures.pictures import encoded, image
from fixtures.text import text_folder

import diffleak
from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.auditing.plan import _own_buckets, prepare
from diffleak.auditing.score import Pace, collect, score
from diffleak.auditing.warnings import about_reading
from diffleak.config import build
from diffleak.data.buckets import parse_buckets
from diffleak.data.pixels import ImageShape
from diffleak.errors import UserError
from diffleak.work.folder import Folder

pytestmark = pytest.mark.usefixtures("undrawn")

SIZES = ((32, 16), (16, 16), (8, 40))  # height x width
SHAPES = (ImageShape(3, 24, 8), ImageShape(3, 16, 16), ImageShape(3, 8, 32))  # of their buckets
BUCKETS = "16:8:8:32"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return diffleak.load(text_folder(tmp_path_factory.mktemp("sd") / "sd"))


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Ten images of the last size and two of each other a side, whose names are shuffled over the sizes, and folders of the last alone."""
    root, draw = tmp_path_factory.mktemp("sides"), np.random.default_rng(0)
    for side in ("members", "nonmembers"):
        for i, k in enumerate(draw.permutation([0, 0, 1, 1, *[2] * 10])):
            content = encoded(image(draw.integers(0, 256, (*SIZES[k], 3), dtype=np.uint8)))
            for folder in ("all", "last") if k == 2 else ("all",):
                (root / folder / side).mkdir(parents=True, exist_ok=True)
                (root / folder / side / f"{side[0]}-{i:02d}.png").write_bytes(content)
    return root


def prepared(target, folder, config=AuditConfig, **settings):
    given = {"members": folder / "members", "nonmembers": folder / "nonmembers", "timesteps": "100", "captions": "fixed:a photo"}
    given |= {"attacks": "loss", "chunk_size": 8, "calibration": False, "complexity": False, "mask": "influence:0.3"}
    return prepare(build(config, {**given, "model": "sd", **settings}), target)


def scored(ready, folder):
    """The scores of every image by its id, under each attack and mask."""
    assert score(ready.job, Folder(folder), ready.worker) == 0
    groups = collect(ready.job, folder).scores
    return {(s.attack, i): value for group in groups for s in group for i, value in zip(s.ids, s.statistic.ravel(), strict=True)}


def test_every_image_has_the_scores_of_an_audit_of_its_bucket_alone(target, sides, tmp_path):
    ready = prepared(target, sides / "all", buckets=BUCKETS)
    assert ready.plan.buckets == ((str(SHAPES[2]), 20), (str(SHAPES[1]), 4), (str(SHAPES[0]), 4))
    assert ready.plan.image_shape.startswith("3 buckets, most 8 x 32 RGB") and "3 buckets" in ready.describe()
    assert {len({ready.inputs.shape_at(row) for row in rows}) for rows in ready.job.chunks.values()} == {1}, "a chunk is of one shape"
    alone = prepared(replace(target, shape=SHAPES[2]), sides / "last", resize=True)
    found, oracle = scored(ready, tmp_path / "all"), scored(alone, tmp_path / "last")
    assert len(found) == 2 * 28 and len(oracle) == 2 * 20 and all(found[key] == value for key, value in oracle.items())


def test_what_needs_images_of_one_shape_is_refused(target, sides):
    pixels = replace(target, text=None)
    for settings, model, said in (
        ({"resize": True, "buckets": "512"}, target, "--resize brings all to one size, and --buckets sorts images by theirs"),
        ({"anonymous": True, "buckets": "512"}, target, "must not show the sizes of images by their order"),
        ({"buckets": "nearest"}, target, "--buckets must be SIDE, or SIDE:STEP:SMALLEST:LARGEST as in 512:64:256:1024; got 'nearest'"),
        ({"buckets": "17:1:3:30"}, target, "image sides must be multiples of 2 for this autoencoder"),
        ({"buckets": BUCKETS, "captions": None}, pixels, "is for text-to-image models that work on latents"),
        ({"buckets": BUCKETS, "config": GeometryConfig}, target, "the geometry compares coordinates of images of one shape"),
        ({}, target, "); --resize converts them (antialiased, recorded)"),
    ):
        with pytest.raises(UserError) as error:
            prepared(model, sides / "all", **{"mask": (), **settings})
        assert said in str(error.value) and "\n" not in str(error.value)
        assert settings or str(error.value).endswith(said), "a model that small has no buckets"


def test_images_of_mixed_sizes_are_sorted_by_themselves(target, tmp_path, capsys, monkeypatch):
    """Into the buckets of the model's own side, as `--buckets` with that side sorts them; the record says which."""
    monkeypatch.setattr("diffleak.auditing.score.probe", lambda job: Pace())  # a forward of so large images
    draw = np.random.default_rng(0)
    for folder in ("members", "nonmembers"):
        (tmp_path / folder).mkdir()
        for i in range(10):
            picture = image(draw.integers(0, 256, (*((20, 20), (20, 30), (30, 20))[i % 3], 3), dtype=np.uint8))
            (tmp_path / folder / f"{folder[0]}-{i:02d}.png").write_bytes(encoded(picture))
    own = replace(target, shape=ImageShape(3, 384, 384))
    ready, given = (prepared(own, tmp_path, mask=(), buckets=buckets) for buckets in (None, "384"))
    assert ready.plan == given.plan and len(ready.plan.buckets) == 3
    assert ready.plan.image_shape.startswith("3 buckets, most "), "as in plans of before, so that their runs resume"
    assert ready.config.buckets == "384" and "--buckets 384" in capsys.readouterr().err
    assert any("brought to 3 buckets of --buckets 384" in line for line in about_reading(ready))
    single = replace(ready, plan=ready.plan.model_copy(update={"buckets": ready.plan.buckets[:1]}))
    assert any("brought to 1 bucket of --buckets 384" in line for line in about_reading(single))
    for settings in ({"anonymous": True, "anonymous_key": tmp_path / "key"}, {"config": GeometryConfig}):
        with pytest.raises(UserError, match="do not have the shape the model takes") as refused:
            prepared(own, tmp_path, **{"mask": (), **settings})
        assert not ("anonymous" in settings and "--buckets" in str(refused.value)), "which --anonymous would refuse"


def test_a_model_without_a_side_sorts_as_large_ones_do_and_a_tiny_one_does_not(target):
    config = build(AuditConfig, {"model": "sd", "members": "a", "nonmembers": "b"})
    assert _own_buckets(config, replace(target, shape=None)) == parse_buckets("1024")
    assert _own_buckets(config, target) is None and _own_buckets(config, replace(target, shape=None, text=None)) is None
