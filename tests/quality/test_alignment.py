"""The CLIP score and the captions that images are drawn of: `diffleak quality` for text-to-image models."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.commands import call, refused
from fixtures.text import CAPTIONS, clip_config, text_folder, tokenizers
from PIL import Image
from safetensors.torch import load_file, save_file

from diffleak.config import build
from diffleak.data.cohort import images_alone
from diffleak.data.sources import open_source
from diffleak.errors import UserError
from diffleak.quality.alignment import Clip, NoClip, alignment, cosines, find_clip, open_clip
from diffleak.quality.config import QualityConfig
from diffleak.quality.prompts import choose_prompts
from diffleak.stats.images import clip_score

SIDE = 16


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of both towers, untrained, saved with its tokenizer and preprocessing."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    folder, tokenizer = tmp_path_factory.mktemp("clip"), tokenizers()[0]
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    vision = CLIPVisionConfig(**size, intermediate_size=16)
    config = CLIPConfig(text_config=clip_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=6)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"size": {"shortest_edge": SIDE}, "crop_size": SIDE, "do_center_crop": True, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**side, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("model") / "sd")


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Twelve images with captions of their own."""
    folder = tmp_path / "reference"
    folder.mkdir()
    rows = []
    for i, image in enumerate(images(12)):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
        rows.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"{CAPTIONS[i % len(CAPTIONS)]} {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def chosen(reference: Path, takes_text: bool = True, **settings):
    config = build(QualityConfig, {"reference": str(reference), "images": 12, **settings})
    return choose_prompts(config, takes_text, images_alone(open_source(str(reference))))


# the score


def test_the_clip_score_is_that_of_the_library_s_own_model(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    clip, texts, x = open_clip(str(clip_folder), "cpu"), CAPTIONS[:3], images(3)
    network, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    pixels = torch.from_numpy(((x / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        for i, text in enumerate(texts):
            answer = network(pixel_values=pixels[i : i + 1], **tokenizer([text], return_tensors="pt"))
            expected = float((answer.image_embeds @ answer.text_embeds.T).squeeze())
            assert cosines(clip, x[i : i + 1], [text])[0] == pytest.approx(expected, abs=1e-5)
    assert len(clip.fingerprint) == 64


def test_a_caption_counts_the_same_alone_as_beside_longer_ones_and_is_cut_where_clip_stops(clip_folder: Path) -> None:
    clip = open_clip(str(clip_folder), "cpu")
    texts = ["moon", "a house with a garden", "a house " * 40]
    together = cosines(clip, images(3), texts)
    np.testing.assert_allclose(together, [cosines(clip, images(3)[i : i + 1], texts[i : i + 1])[0] for i in range(3)], atol=1e-5)


def test_the_score_is_the_mean_of_a_hundred_cosines_floored_at_zero_with_its_interval() -> None:
    values = np.array([0.3, 0.1, -0.5, 0.2] * 50)
    found = clip_score(values)
    assert found.value == pytest.approx(15.0)
    half = 1.96 * np.maximum(100 * values, 0).std() / np.sqrt(200)
    assert found.low == pytest.approx(15 - half, abs=0.2) and found.high == pytest.approx(15 + half, abs=0.2)
    assert "200 images" in found.method
    assert clip_score(values) == found
    assert clip_score(np.array([0.3])).reason == "needs at least 2 images; got 1"


def test_images_that_are_what_their_captions_say_score_a_hundred() -> None:
    vectors = {"black": [1.0, 0.0], "white": [0.0, 1.0]}
    clip = Clip(
        "c",
        "f",
        lambda x: torch.tensor([vectors["white" if image.mean() > 127 else "black"] for image in x]),
        lambda texts: torch.tensor([vectors[text] for text in texts]),
    )
    x = np.stack([np.full((2, 2, 3), 255 * (i % 2), np.uint8) for i in range(130)])
    names = ["white" if i % 2 else "black" for i in range(130)]
    assert alignment(clip, x, names, 0).value == 100
    assert alignment(clip, x, names[::-1], 0).value == 0


def test_a_clip_that_gives_nan_is_named_with_its_weight_and_gives_no_score(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    state = load_file(folder / "model.safetensors")
    state["text_projection.weight"][0, 0] = torch.nan
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"must give finite vectors; got NaN or infinity: text_projection.weight of the CLIPModel holds NaN"
    ):
        alignment(find_clip(str(folder), "cpu"), images(3), CAPTIONS[:3], 0)


def test_a_clip_whose_preprocessing_does_not_fit_its_towers_is_one_line(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "size": 40, "do_center_crop": False}))
    with pytest.raises(UserError, match=r"the CLIP .* must take images of shape .* and their captions; it fails: .* doesn't match model"):
        cosines(open_clip(str(folder), "cpu"), images(3), CAPTIONS[:3])


def test_without_any_clip_there_is_a_reason_and_for_one_that_was_named_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("diffleak.quality.alignment.HUB", {"clip": "nobody/nothing"})
    missing = find_clip(None, "cpu")
    assert isinstance(missing, NoClip)
    estimate = alignment(missing, images(3), CAPTIONS[:3], 0)
    assert estimate.value is None and "no folder at nobody/nothing" in estimate.reason and "give --clip FOLDER" in estimate.reason
    with pytest.raises(UserError, match="the encoder must be a folder or a hub id"):
        find_clip("./nowhere", "cpu")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "transformers", None)
        estimate = alignment(find_clip(None, "cpu"), images(3), CAPTIONS[:3], 0)
    assert estimate.reason == "the CLIP score needs transformers: pip install 'diffleak[encoders]'", "which a folder would need too"
    with pytest.raises(UserError, match="cannot be used as a CLIP"):
        find_clip(str(tmp_path), "cpu")


# what is drawn


def test_captions_of_the_reference_are_taken_once_each_in_a_keyed_order(reference: Path) -> None:
    own = [f"{CAPTIONS[i % len(CAPTIONS)]} {i}" for i in range(12)]
    first = chosen(reference)
    assert sorted(first.texts) == sorted(own) and list(first.texts) != own
    assert chosen(reference).texts == first.texts != chosen(reference, seed=1).texts
    assert chosen(reference, images=5).texts == first.texts[:5]
    assert chosen(reference, images=30).texts == (first.texts * 3)[:30]
    assert chosen(reference, captions="fixed:a moon").distinct == ("a moon",)


def test_prompts_come_from_a_file_in_its_order(reference: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    (tmp_path / "p.json").write_text('{"a": "one", "b": ["two", "three"]}')
    for name in ("p.txt", "p.json"):
        assert chosen(reference, prompts=tmp_path / name, images=3).texts == ("one", "two", "one")
    (tmp_path / "none.txt").write_text("\n")
    missing = "FILE must be a text file with a prompt on each line.*; found nothing at"
    for path, message in (("none.txt", "must hold at least one prompt"), ("missing.txt", missing)):
        with pytest.raises(UserError, match=message):
            chosen(reference, prompts=tmp_path / path)
    with pytest.raises(UserError, match="--captions takes the texts from the real images and --prompts from a file"):
        chosen(reference, prompts=tmp_path / "p.txt", captions="own")


@pytest.mark.parametrize("given", [{"captions": "own"}, {"guidance_scale": 2.0}, {"clip": "a/b"}])
def test_a_model_without_captions_refuses_what_is_about_them(reference: Path, given: dict) -> None:
    with pytest.raises(UserError, match=f"takes no captions; leave out --{next(iter(given)).replace('_', '-')}"):
        chosen(reference, False, **given)
    assert chosen(reference, False) is None


def test_the_command_draws_the_captions_and_reports_the_score(capsys, model, clip_folder, reference, tmp_path):
    command = ["quality", model, "--reference", reference, "--images", 14, "--steps", 2, "--extractor", "pixels", "-o", tmp_path / "out"]
    code, out, err = call(capsys, *command, "--clip", clip_folder, "--guidance-scale", 3)
    assert code == 0, err
    assert "CLIP score" in out and "guidance 3" in err
    record = json.loads((tmp_path / "out" / "quality.json").read_text())
    metric = next(m for m in record["metrics"] if m["name"] == "clip_score")
    assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 100 and "14 images" in metric["method"]
    assert record["clip"] == str(clip_folder) and len(record["clip_fingerprint"]) == 64
    assert record["prompts"] == "captions of the reference (own)" and record["guidance_scale"] == 3.0
    assert record["costs"]["forwards"] == 14 * 2 * 2
    assert any("14 images were drawn of 12 different captions" in w for w in record["warnings"])
    page = (tmp_path / "out" / "quality.html").read_text()
    assert "CLIP score" in page and "drawn for captions of the reference (own), guidance 3.0" in page
    said = refused(capsys, *command, "--clip", clip_folder, "--guidance-scale", 4)
    assert "another guidance scale (3.0, now 4.0)" in said
    said = refused(capsys, *command, "--clip", clip_folder, "--guidance-scale", 3, "--captions", "fixed:moon")
    assert "images drawn with another list of prompts; choose" in said


def test_a_clip_that_cannot_be_had_leaves_the_rest_as_it_is(capsys, monkeypatch, model: Path, reference: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("diffleak.quality.alignment.HUB", {"clip": "nobody/nothing"})
    command = ["quality", model, "--reference", reference, "--images", 12, "--steps", 1, "--extractor", "pixels", "--json"]
    code, out, err = call(capsys, *command)
    assert code == 0, err
    record = json.loads(out)
    metrics = {m["name"]: m for m in record["metrics"]}
    assert metrics["clip_score"]["value"] is None and "no folder at nobody/nothing" in metrics["clip_score"]["reason"]
    assert metrics["copy_rate"]["reason"] and record["clip"] is None
