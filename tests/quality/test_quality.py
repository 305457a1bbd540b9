"""`diffleak quality` from images to report: extractors, copies, refusals, the command line."""

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from fixtures.blocks import blocks
from fixtures.commands import all_recorded, call, refused
from fixtures.runs import gaussian, make_run
from safetensors.torch import load_file, save_file

from diffleak import hub
from diffleak.data.pixels import ImageShape, to_model
from diffleak.diffusion.analytic import Memoriser, linear_schedule
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.hub.encoders import extract, open_extractor, preprocessing, probe
from diffleak.quality.copies import find_copies, membership_scores
from diffleak.quality.measure import measure_quality
from diffleak.records.quality import QualityRecord, read_quality

pytestmark = pytest.mark.usefixtures("undrawn")

SPLIT = {"members": [str(i) for i in range(40)], "nonmembers": [str(i) for i in range(40, 160)]}


class Small(torch.nn.Module):
    """A TorchScript extractor of grey images: 12 features and 10 classes."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(channels, 12, 3)
        self.classes = torch.nn.Linear(12, 10)

    def forward(self, x):
        features = self.convolution(x).relu().mean((2, 3))
        return features, self.classes(features)


class LikeInception(torch.nn.Module):
    """The calling convention of the published Inception file."""

    def forward(self, x, return_features: bool = False, no_output_bias: bool = False):
        assert x.dtype == torch.uint8
        flat = x.to(torch.float32).mean((2, 3))
        return flat if return_features else torch.softmax(flat, dim=1)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("extractor") / "net.pt"
    torch.jit.script(Small()).save(str(path))
    return path


@pytest.fixture
def split(tmp_path) -> Path:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(SPLIT))
    return path


@pytest.fixture
def command(model_folder, split, network, tmp_path) -> list[Any]:
    own = ["--data", "digits", "--split", split, "--extractor", network, "--images", "120", "--steps", "2", "--device", "cpu"]
    return ["quality", model_folder(), *own, "-o", tmp_path / "out"]


def test_the_command_writes_the_record_the_report_and_scores_that_metrics_reads(capsys, command, tmp_path):
    code, out, err = call(capsys, *command, "--scores")
    folder = tmp_path / "out"
    assert code == 0, err
    assert "plan: 120 images (8 x 8 grey) by ddim in 2 steps, 240 forwards; against 120 real images and 40 training images" in err
    assert "Fréchet distance" in out
    assert f"report: {folder / 'quality.html'}" in out
    record = json.loads((folder / "quality.json").read_text())
    assert record["schema_version"] == 1 and all_recorded(folder) and (folder / "nearest.csv").stat().st_mode & 0o777 == 0o600
    assert (record["images"], record["dimension"], record["sampler"], record["steps"], record["rounds"]) == (120, 12, "ddim", 2, 1)
    assert record["extractor"].startswith("torchscript:")
    assert len(record["extractor_fingerprint"]) == 64
    assert (record["reference"]["n"], record["training"]["n"], record["costs"]["forwards"]) == (120, 40, 240)
    names = [m["name"] for m in record["metrics"]]
    assert names == ["frechet", "kid", "inception_score", "precision", "recall", "copy_rate", "kid_difference"]
    assert all(m["low"] <= m["value"] <= m["high"] and m["method"] for m in record["metrics"])
    assert 8 <= len(record["copies"]["pairs"]) <= 12
    rows = list(csv.DictReader((folder / "nearest.csv").open()))
    assert [sum(r["member"] == side for r in rows) for side in "10"] == [40, 120]
    code, out, _ = call(capsys, "metrics", folder / "nearest.csv", "--json")
    assert code == 0
    assert json.loads(out)["n_members"] == 40


def test_the_plan_is_said_before_the_extractor_runs(capsys, command, monkeypatch):
    def run(extractor, shape):
        at.append(capsys.readouterr().err)
        raise UserError("run")

    at = []
    monkeypatch.setattr("diffleak.quality.measure.probe", run)
    assert call(capsys, *command)[0] == 2
    assert at[0].count("plan: 120 images (8 x 8 grey)") == 1


def test_the_report_shows_training_images_only_when_asked(capsys, command, tmp_path):
    assert call(capsys, *command)[0] == 0
    page = tmp_path / "out" / "quality.html"
    plain = page.read_text()
    assert plain.count("<img") == 64
    assert "--thumbnails" in plain
    assert call(capsys, *command, "--thumbnails", "--json")[0] == 0
    assert page.read_text().count("<img") == 64 + 2 * len(read_quality(tmp_path / "out" / "quality.json", QualityRecord).copies.pairs) > 64
    assert "http" not in plain.replace("http-equiv", "")


def test_without_training_images_there_is_no_copy_rate_and_without_o_nothing_is_left(capsys, model_folder, tmp_path):
    model = model_folder()
    before = set(tmp_path.rglob("*"))
    arguments = ["--reference", "digits", "--limit", "120", "--extractor", "pixels", "--images", "30", "--steps", "2", "--device", "cpu"]
    code, out, _ = call(capsys, "quality", model, *arguments, "--json")
    record = json.loads(out)
    assert code == 0
    assert set(tmp_path.rglob("*")) == before
    reasons = {m["name"]: m["reason"] for m in record["metrics"]}
    assert "the training images are not given" in reasons["copy_rate"] == reasons["kid_difference"]
    assert "needs at least 64 images a side, the dimension of the features; got 30 generated and 120 real" in reasons["frechet"]
    assert "gives no class probabilities" in reasons["inception_score"]
    assert "needs at least 50 images a side; got 30 generated and 120 real" in reasons["precision"]
    assert reasons["kid"] is None
    code, out, _ = call(capsys, "quality", model, *arguments)
    assert "whether training images are copied was not" in " ".join(out.split())
    assert "Fréchet distance: needs at least 64 images a side" in out


def test_a_memoriser_draws_copies_only_and_tells_who_was_a_member(digits, split, tmp_path):
    points = torch.from_numpy(to_model(digits[:40]))
    target = Target(Memoriser(points, linear_schedule()), ImageShape(1, 8, 8), fingerprint="memoriser")
    settings = {"data": "digits", "split": split, "images": 100, "output": tmp_path / "out", "scores": True}
    measured = measure_quality(target, "pixels", **settings)
    rate = measured.record.metric("copy_rate")
    difference = measured.record.metric("kid_difference")
    assert difference.high < 0 and difference.p_value == 1 / 1001, "a memoriser draws its training images"
    assert rate.value > 0.95
    assert measured.record.copies.pairs[0].similarity > 0.999
    measured.save(tmp_path / "out")
    assert "too close to its training images" in (tmp_path / "out" / "quality.html").read_text()
    assert read_quality(tmp_path / "out" / "quality.json", QualityRecord) == measured.record
    scores = {row["id"]: float(row["score"]) for row in csv.DictReader((tmp_path / "out" / "nearest.csv").open())}
    drawn = {pair.training_id for pair in measured.record.copies.pairs}
    assert min(scores[i] for i in drawn) > max(scores[i] for i in SPLIT["nonmembers"])


def test_fresh_real_images_are_copies_one_time_in_a_hundred_and_each_training_image_is_listed_once(digits):
    features = digits.reshape(len(digits), -1).astype(np.float64)
    order = np.random.default_rng(0).permutation(len(digits))
    training, reference, fresh = (features[part] for part in np.split(order[:1797], [597, 1197]))
    rate, copies = find_copies(("pixels", "f"), fresh, reference, training, tuple(map(str, range(597))))
    assert rate.value <= 0.03
    assert rate.low <= 0.01 <= rate.high
    assert len({p.training_id for p in copies.pairs}) == len(copies.pairs) == 12
    assert [p.similarity for p in copies.pairs] == sorted((p.similarity for p in copies.pairs), reverse=True)
    assert membership_scores(training, fresh).shape == (597,)


def test_the_same_command_draws_nothing_again_and_another_plan_is_refused(capsys, command, tmp_path, monkeypatch):
    assert call(capsys, *command)[0] == 0
    first = read_quality(tmp_path / "out" / "quality.json", QualityRecord)
    with monkeypatch.context() as patch:
        patch.setattr("diffleak.generation._draw_batch", None)  # nothing is left to draw
        assert call(capsys, *command)[0] == 0
    assert read_quality(tmp_path / "out" / "quality.json", QualityRecord).metrics == first.metrics
    assert "holds images drawn with another seed (0, now 3)" in refused(capsys, *command, "--seed", "3")
    said = refused(capsys, *command, "--extractor", "pixels")
    assert "was not measured with the same extractor; choose another folder, or delete quality.json: the drawn images are kept" in said
    assert "was not measured with the same copy encoder" in refused(capsys, *command, "--copy-encoder", "pixels")
    said = refused(capsys, *command, "--limit", "100")
    assert "was not measured with the same real images; choose another folder" in said and "are kept" not in said, (
        "classes are drawn by them"
    )
    (tmp_path / "out" / "quality.json").write_text("{}")
    assert "must be a quality.json as `diffleak quality` writes it" in refused(capsys, *command)


def test_copies_may_be_found_with_another_encoder(capsys, command):
    code, out, _ = call(capsys, *command, "--copy-encoder", "pixels", "--json")
    assert code == 0
    record = json.loads(out)
    assert (record["dimension"], record["copies"]["encoder"], record["copies"]["dimension"]) == (12, "pixels", 64)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--images must be at least 1, so that there is something to measure; got 0", ["--images", "0"]),
        ("there must be at least 10 real images to compare with; got 9: add more", ["--limit", "9"]),
        ("--steps must lie in [1, 1000], the model's schedule; got 2000", ["--steps", "2000"]),
        ("rounds are an attack on two models that take turns", ["--rounds", "2"]),
        ("--extractor must be a TorchScript file; found nothing at nowhere.pt", ["--extractor", "nowhere.pt"]),
        ("unknown extractor 'incepton'; did you mean 'inception'?", ["--extractor", "incepton"]),
        ("the extractor sscd needs its TorchScript file: sscd:FILE", ["--extractor", "sscd"]),
        ("--copy-encoder must be a folder or a hub id (owner/name); found nothing at ./nowhere", ["--copy-encoder", "clip:./nowhere"]),
        ("--split already says which images are held out and which are training images", ["--reference", "digits"]),
        ("--sampler must be 'ddim', 'ddpm' or 'dpm'; got 'heun'", ["--sampler", "heun"]),
    ],
)
def test_bad_input_is_one_line_before_anything_is_drawn(capsys, command, tmp_path, message, arguments):
    assert message in refused(capsys, *command, *arguments)
    assert not (tmp_path / "out" / "generated").exists()


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("real images are needed to compare with: give --real HELDOUT, or --data DATA with --split FILE", []),
        ("--data and --split belong together", ["--data", "digits"]),
        ("--scores needs to know who is a member: give --data DATA and --split FILE", ["--reference", "digits", "--scores"]),
        ("--scores writes a file: give -o DIR", ["--data", "digits", "--split", "split.json", "--scores"]),
        ("unknown extractor", ["--reference", "digits", "--extractor", "x", "--device", "cpu"]),
    ],
)
def test_what_must_be_given_is_named(capsys, model_folder, message, arguments):
    assert message in refused(capsys, "quality", model_folder(), *arguments)


def test_real_images_must_fit_and_be_on_one_side(capsys, model_folder, network, tmp_path):
    model, large = model_folder(), tmp_path / "large.npy"
    np.save(large, np.random.default_rng(0).integers(0, 256, (20, 10, 10, 1), dtype=np.uint8))
    base = ["quality", model, "--extractor", network, "--images", "12", "--steps", "1", "--device", "cpu"]
    assert "is 10 x 10 grey, the model takes 8 x 8 grey; --resize converts it" in refused(capsys, *base, "--reference", large)
    code, out, _ = call(capsys, *base, "--reference", large, "--resize", "--json")
    assert code == 0
    assert "resized to 8 x 8 grey" in " ".join(json.loads(out)["warnings"])
    said = refused(capsys, *base, "--reference", "digits", "--training", "digits", "--limit", "20")
    assert "must not share an image; 20 are in both, pixel for pixel: remove them from the reference, or leave out --training" in said
    twice = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    twice[23] = twice[0]
    np.save(tmp_path / "twice.npy", twice)
    sides = {"members": [str(i) for i in range(12)], "nonmembers": [str(i) for i in range(12, 24)]}
    (tmp_path / "split.json").write_text(json.dumps(sides))
    said = refused(capsys, *base, "--data", tmp_path / "twice.npy", "--split", tmp_path / "split.json")
    assert "1 is in both, pixel for pixel: remove it from one side of --split" in said, "no --training was given"


def test_unreadable_images_stop_it_unless_left_out(capsys, model_folder, network, digits, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(digits[i, ..., 0]).save(folder / f"{i:02d}.png")
    (folder / "03.png").write_bytes(b"no image")
    base = ["quality", model_folder(), "--extractor", network, "--images", "12", "--steps", "1", "--device", "cpu", "--reference", folder]
    assert "03.png is no image" in refused(capsys, *base)
    code, out, _ = call(capsys, *base, "--skip-unreadable", "--json")
    assert (code, json.loads(out)["reference"]["n"]) == (0, 11)


def test_classes_are_drawn_as_often_as_the_reference_has_them(capsys, latent_folder, network, tmp_path, digits):
    model = latent_folder(network="transformer")
    base = ["quality", model, "--extractor", network, "--images", "12", "--steps", "1", "--device", "cpu", "--json"]
    unlabelled = tmp_path / "unlabelled.npy"
    np.save(unlabelled, digits[:40])
    for reference, said in (("digits", "in the frequencies of the reference"), (unlabelled, "evenly over 10 classes, since the reference")):
        code, out, err = call(capsys, *base, "--reference", reference, "--limit", "40")
        assert code == 0, err
        assert said in json.loads(out)["classes"]
    outside = tmp_path / "outside.npz"
    np.savez(outside, images=digits[:40], labels=np.arange(40))
    assert "labels must lie in [0, 10), the model's classes; 30 of the images do not" in refused(capsys, *base, "--reference", outside)


def images(n: int = 5, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("message", "function"),
    [
        ("must return finite features; got NaN or infinity", lambda x: x.flatten(1) * float("nan")),
        (r"must return features of shape \(5, d\); got \(5, 1, 8, 8\)", lambda x: x),
        (r"must return features of shape \(5, d\); got \(1, 320\)", lambda x: x.reshape(1, -1)),
        (r"must return logits of shape \(5, d\); got \(5,\)", lambda x: (x.flatten(1), x.flatten(1)[:, 0])),
        ("must return features, or a pair of features and logits; got dict", lambda x: {"features": x}),
        (r"must take images of shape \(8, 8, 1\); it fails: no room", lambda x: (_ for _ in ()).throw(RuntimeError("no room"))),
        (r"must take images of shape \(8, 8, 1\); it fails: TypeError", lambda x: (_ for _ in ()).throw(TypeError())),
    ],
)
def test_an_extractor_that_misbehaves_is_named(message, function):
    with pytest.raises(UserError, match=message):
        extract(open_extractor(function), [images()])


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"must be a TorchScript file, as torch\.jit.save writes it"):
        open_extractor(f"torchscript:{path}")


def test_logits_become_probabilities_and_probabilities_stay():
    logits, p = torch.randn(5, 4), torch.softmax(torch.randn(5, 4), dim=1)
    np.testing.assert_allclose(
        extract(open_extractor(lambda x: (x.flatten(1), logits)), [images()]).probabilities, torch.softmax(logits, 1), rtol=1e-5
    )
    np.testing.assert_array_equal(extract(open_extractor(lambda x: (x.flatten(1), p)), [images()]).probabilities, p)


def test_grey_images_are_repeated_for_a_network_of_three_channels(tmp_path, network):
    torch.jit.script(Small(3)).save(str(tmp_path / "colour.pt"))
    for path in (network, tmp_path / "colour.pt"):
        assert probe(open_extractor(path), ImageShape(1, 8, 8)) == 12
    with pytest.raises(UserError, match=r"must take images of shape \(8, 8, 3\); it fails"):
        probe(open_extractor(network), ImageShape(3, 8, 8))


def test_the_published_inception_file_is_given_bytes_and_asked_for_both_answers(tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.script(LikeInception()).save(str(path))
    found = extract(open_extractor(f"inception:{path}"), [images()])
    np.testing.assert_allclose(found.features, images().mean((1, 2)).repeat(3, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_sscd_is_given_images_of_288_pixels_normalised_as_imagenet(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, x):
            assert x.shape[2:] == (288, 288)
            return x.mean((2, 3))

    torch.jit.script(Mean()).save(str(tmp_path / "sscd.pt"))
    white = np.full((2, 8, 8, 1), 255, dtype=np.uint8)
    expected = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(extract(open_extractor(f"sscd:{tmp_path / 'sscd.pt'}"), [white]).features[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "library", "extra"),
    [("inception", "torch_fidelity", "diffleak[inception]"), ("dinov2", "transformers", "diffleak[encoders]")],
)
def test_a_missing_library_is_named(monkeypatch, kind, library, extra):
    for name in [m for m in sys.modules if m.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"the extractor {kind} needs .*pip install '{extra}'".replace("[", r"\[")):
        open_extractor(kind)


@pytest.fixture(scope="module")
def encoder_folder() -> Callable[[str, Path], Path]:
    transformers = pytest.importorskip("transformers")

    def make(kind: str, folder: Path) -> Path:
        torch.manual_seed(0)
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
        if kind == "dinov2":
            network = transformers.Dinov2Model(transformers.Dinov2Config(**size))
        elif kind == "deit":
            config = transformers.DeiTConfig(**size, intermediate_size=16, num_labels=3)
            network = transformers.DeiTForImageClassificationWithTeacher(config)  # as its checkpoints are
        else:
            config = transformers.CLIPVisionConfig(**size, intermediate_size=16, projection_dim=6)
            network = transformers.CLIPVisionModelWithProjection(config)
        network.save_pretrained(folder)
        mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
        side = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True, "resample": 3}
        (folder / "preprocessor_config.json").write_text(json.dumps({**side, "image_mean": mean, "image_std": std}))
        return folder

    return make


@pytest.mark.parametrize(("kind", "dimension"), [("dinov2", 16), ("clip", 6), ("deit", 16)])
def test_encoders_of_transformers_are_read_from_a_folder(encoder_folder, tmp_path, kind, dimension):
    folder = encoder_folder(kind, tmp_path / kind)
    extractor = open_extractor(f"{kind}:{folder}")
    assert open_extractor(str(folder)).fingerprint == extractor.fingerprint, "its config.json says which kind it is"
    assert probe(extractor, ImageShape(1, 8, 8)) == dimension
    assert len(extractor.fingerprint) == 64
    first, again = (extract(extractor, [part]).features for part in (images(4, 3), images(4, 3)[:2]))
    np.testing.assert_allclose(first[:2], again, rtol=1e-4, atol=1e-6)
    assert (first[0] != first[1]).any()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=f"cannot be used as {kind}"):
        open_extractor(f"{kind}:{folder}")


def test_preprocessing_resizes_crops_and_normalises_as_its_config_says(tmp_path):
    config = {"size": {"shortest_edge": 8}, "crop_size": 4, "do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    x = images(2, 3)
    expected = (x[:, 2:6, 2:6].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(preprocessing(tmp_path, "an encoder")(x).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("size", "large", "must be a whole number or an object or null; got "),
        ("size", {"longest_edge": 9}, "must be height and width in pixels; got "),
        ("size", {"shortest_edge": 0}, "must be a number of pixels; got "),
        ("size", {"height": 8, "width": [8]}, "must be height and width in pixels; got "),
        ("crop_size", {"height": 10**12, "width": 8}, "must be height and width in pixels; got "),
        ("resample", 17, "must be the number of a Pillow filter, 0 to "),
        ("image_mean", [0.5], "must be three numbers; got "),
        ("image_mean", {"r": 0.5}, "must be a list or null; got "),
        ("image_std", [0.5, 0.5, 0], "must be three positive numbers; got "),
        ("image_std", [0.5, 0.5, float("nan")], "must be three positive numbers; got "),
    ],
)
def test_preprocessing_that_is_none_is_one_line(tmp_path, key, value, said):
    path = tmp_path / "preprocessor_config.json"
    config = {"size": {"shortest_edge": 8}, "crop_size": 4, "do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    path.write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError) as refusal:
        preprocessing(tmp_path, "an encoder")
    assert str(refusal.value).startswith(f"{key} of {path} {said}")


@pytest.mark.parametrize("kind", ["dinov2", "clip", "deit"])
def test_an_encoder_with_damaged_weights_or_nan_among_them_is_one_line(encoder_folder, tmp_path, kind):
    folder = encoder_folder(kind, tmp_path / kind)
    file = folder / "model.safetensors"
    state = load_file(file)
    name = next(key for key in sorted(state) if key.endswith("layernorm.weight") or "post_layernorm.weight" in key)
    state[name][0] = torch.nan
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"(?m)must return finite features; got NaN or infinity: .*weight of the \w+ holds NaN$"):
        extract(open_extractor(str(folder)), [images(2, 3)])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"^{file} must be a whole safetensors file"):
        open_extractor(str(folder))


def test_an_encoder_whose_config_transformers_refuses_is_one_line(encoder_folder, tmp_path):
    folder = encoder_folder("dinov2", tmp_path / "dinov2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": False}))
    with pytest.raises(UserError, match=r"cannot be used as dinov2 \(.*num_attention_heads"):
        open_extractor(str(folder))


def test_an_encoder_of_another_kind_is_refused(encoder_folder, tmp_path):
    folder = encoder_folder("dinov2", tmp_path / "dinov2")
    with pytest.raises(UserError, match=r"must hold a clip model; its weights lack|cannot be used as clip"):
        open_extractor(f"clip:{folder}")


def test_a_folder_must_say_which_known_encoder_it_holds(tmp_path):
    with pytest.raises(UserError, match=r"must be a folder of transformers, with model_type in its config\.json"):
        open_extractor(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"encoders in a folder must be one of dinov2, clip, deit; .* holds a bert"):
        open_extractor(str(tmp_path))


def test_the_shown_command_repeats_the_measurement():
    from diffleak.quality.config import QualityConfig

    config = QualityConfig(model="m", data="digits", split=Path("s.json"), images=20, thumbnails=True, threads=2)
    assert config.command == "diffleak quality m --data digits --split s.json --images 20 --thumbnails"


def test_two_models_that_take_turns_are_drawn_from_in_adaptive_rounds(capsys, model_folder, network, tmp_path):
    hub.save_dual(tmp_path / "dual", (model_folder("one"), model_folder("other")))
    base = [
        "quality",
        tmp_path / "dual",
        "--reference",
        "digits",
        "--limit",
        "20",
        "--extractor",
        network,
        "--images",
        "12",
        "--device",
        "cpu",
    ]
    code, out, err = call(capsys, *base, "--steps", "3", "--rounds", "2", "--json")
    record = json.loads(out)
    assert code == 0, err
    assert (record["rounds"], record["costs"]["forwards"]) == (2, 12 * (3 + 2))
    assert "two models take turns, one per step; each image was drawn 2 times, with noise added in between" in record["warnings"]


def test_an_encoder_that_is_not_there_is_refused_from_python_too():
    with pytest.raises(UserError, match=r"the extractor must be a TorchScript file; there is no file at nowhere\.pt"):
        open_extractor("nowhere.pt")
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"the encoder must be a folder or a hub id \(owner/name\); found nothing at \./nowhere"):
        open_extractor("clip:./nowhere")


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_an_encoder_that_the_hub_does_not_give_is_asked_for_in_its_form(monkeypatch, kind):
    pytest.importorskip("transformers")
    refused_by = lambda *given, **keys: (_ for _ in ()).throw(ConnectionError("no network"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused_by)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", refused_by)
    with pytest.raises(UserError, match=rf"\(no network\); pass a local folder as the encoder, {kind}:FOLDER$"):
        open_extractor(kind)


def test_near_duplicates_among_real_images_count_once_in_copies_and_in_the_kid_difference(tmp_path):
    """Both are those of the same images without them; the other metrics and their intervals are of all images, which is said."""
    training, reference = blocks(40, 0), blocks(110, 1)
    made = Target(Memoriser(torch.from_numpy(to_model(training)), linear_schedule()), ImageShape(1, 32, 32), "memoriser", "f")
    sets = {"t": training, "r": reference, "t2": np.r_[training, training[:9, :, ::-1]]}
    sets["r2"] = np.r_[reference, reference[:30, :, ::-1], training[20:25, :, ::-1]]
    for name, images in sets.items():
        np.save(tmp_path / f"{name}.npy", images)
    measured = [
        measure_quality(made, "pixels", training=tmp_path / f"t{k}.npy", reference=tmp_path / f"r{k}.npy", images=30, steps=2).record
        for k in ("", "2")
    ]
    once, again = measured
    for name in ("copy_rate", "kid_difference"):
        assert once.metric(name) == again.metric(name), name
    assert {each.unit for each in measured} == {"cluster"}
    assert once.copies.threshold == again.copies.threshold and once.copies.chance == again.copies.chance
    assert once.metric("kid") != again.metric("kid") and not any("near-duplicate" in line for line in once.warnings)
    said = " / ".join(again.warnings)
    assert (
        "30 reference images are near-duplicates of other reference images: copies and the KID difference count each cluster once" in said
    )
    assert "5 reference images are near-duplicates of training images: copies and the KID difference leave such images out" in said
    assert "9 training images are near-duplicates of others" in said
    np.save(tmp_path / "flipped.npy", training[:, :, ::-1])
    with pytest.raises(UserError, match=r"every image of the reference \(40 in all\) is a near-duplicate of a training image; give others"):
        measure_quality(made, "pixels", training=tmp_path / "t.npy", reference=tmp_path / "flipped.npy", images=12, steps=1)
    alone = measure_quality(made, "pixels", reference=tmp_path / "r2.npy", images=12, steps=1).record
    assert "30 reference images are near-duplicates of other reference images: the intervals of Fr\u00e9chet" in " / ".join(alone.warnings)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("training", [True, False])
def test_a_folder_that_others_may_read_is_said_to_name_images_only_where_it_does(capsys, command, model_folder, tmp_path, training):
    folder = tmp_path / "my out"
    folder.mkdir()
    folder.chmod(0o755)
    alone = ["quality", model_folder(), "--reference", "digits", "--limit", "60", "--extractor", "pixels", "--images", "60", "--steps", "2"]
    given = command[:-2] if training else [*alone, "--device", "cpu"]
    code, _, err = call(capsys, *given, "-o", folder)
    said = f"others on this machine may read {folder}, which names images by file name: chmod 700 '{folder}'"
    assert code == 0 and (said in err) is training


def test_what_lies_in_the_folder_of_another_models_run_is_not_called_an_audit(capsys, command, tmp_path):
    (make_run(tmp_path / "out", {"sima": gaussian(1.0)}) / "audit.json").unlink()
    assert "is the folder of a run on another model; choose another folder" in refused(capsys, *command)


def test_training_images_that_were_not_given_before_are_not_called_others(capsys, command, tmp_path, split):
    (tmp_path / "held.json").write_text(json.dumps({"members": SPLIT["nonmembers"], "nonmembers": SPLIT["members"]}))
    assert call(capsys, *command)[0] == 0
    path = tmp_path / "out" / "quality.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "training": None}))
    (tmp_path / "out" / "digests.json").unlink()
    line = refused(capsys, *command)
    assert "was not measured with the same training images; choose another folder, or delete quality.json" in line
