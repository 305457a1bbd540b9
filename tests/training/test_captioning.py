"""Extra captions: the file, its independence of batches and interruptions, the draw itself, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.text import CAPTIONS
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

import diffleak
from diffleak.cli import main
from diffleak.data.captions import read_captions
from diffleak.errors import UserError
from diffleak.training import captioning
from diffleak.training.captioning import caption_images, load_captioner, nucleus
from diffleak.training.task import keyed

N = len(CAPTIONS)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *sorted({word for text in CAPTIONS for word in text.split()})]


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    """A BLIP of random weights whose words are those of CAPTIONS."""
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"]).save_pretrained(folder)
    torch.manual_seed(0)
    marks = {"bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "vocab_size": len(WORDS)}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, **marks, "encoder_hidden_size": 16, "max_position_embeddings": 64, "projection_dim": 16}
    config = BlipConfig(
        text_config=text, vision_config={**size, "image_size": 16, "patch_size": 8, "projection_dim": 16}, projection_dim=16
    )
    network = BlipForConditionalGeneration(config)
    torch.nn.init.normal_(network.vision_model.embeddings.patch_embedding.weight, std=0.5)
    network.save_pretrained(folder)
    normal = {"image_processor_type": "BlipImageProcessor", "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images of several sizes and colours; all but the last have a caption."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for i in range(N):
        mode = ("RGB", "L", "RGBA")[i % 3]
        shape = (16 + i, 20, {"RGB": 3, "L": 1, "RGBA": 4}[mode])
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{i}.png", "text": CAPTIONS[i]}) for i in range(N - 1)))
    return folder


def told(path: Path) -> dict[str, list[str]]:
    return {row["file_name"]: row["text"] for row in map(json.loads, path.read_text().splitlines())}


def caption(data, blip, output, **changes):
    return caption_images(data, output, str(blip), device="cpu", **{"n": 3, **changes})


def test_every_image_has_its_own_caption_first_and_then_n_others(data, blip, tmp_path):
    rows = told(caption(data, blip, tmp_path / "captions.jsonl"))
    assert list(rows) == [f"{i}.png" for i in range(N)]
    for i in range(N):
        own = [CAPTIONS[i]] if i < N - 1 else []
        assert rows[f"{i}.png"][: len(own)] == own and len(rows[f"{i}.png"]) == len(own) + 3
        assert len(set(rows[f"{i}.png"])) == len(rows[f"{i}.png"])
    assert all(word in WORDS[5:] for texts in rows.values() for text in texts for word in text.split()), "words alone, no marks"
    assert {name: list(texts) for name, texts in read_captions(tmp_path / "captions.jsonl").items()} == rows
    plan = json.loads((tmp_path / "captions.jsonl.plan.json").read_text())
    assert plan["n"] == 3 and plan["top_p"] == 0.9 and plan["temperature"] == 1.0 and plan["captioner"] == str(blip)


def test_the_file_depends_on_the_seed_and_not_on_batches_limits_or_interruptions(data, blip, tmp_path):
    whole = caption(data, blip, tmp_path / "whole.jsonl", batch_size=8).read_text()
    one = caption(data, blip, tmp_path / "one.jsonl", batch_size=1, limit=2).read_text()
    cut = caption(data, blip, tmp_path / "cut.jsonl", batch_size=3, limit=4)
    assert cut.read_text() == "".join(line + "\n" for line in whole.splitlines()[:4])
    assert cut.read_text().startswith(one) and len(one.splitlines()) == 2
    cut.write_text(cut.read_text()[:-10])  # killed while it wrote
    assert caption(data, blip, cut, batch_size=3).read_text() == whole
    assert not whole.startswith(caption(data, blip, tmp_path / "other.jsonl", seed=1, limit=2).read_text())


def test_finished_lines_are_kept_and_not_drawn_again(data, blip, tmp_path, monkeypatch):
    file = caption(data, blip, tmp_path / "c.jsonl")
    before = file.read_text()
    monkeypatch.setattr(captioning, "_others", None)
    assert caption(data, blip, file).read_text() == before


def test_only_the_members_of_a_split_are_captioned(data, blip, tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"members": ["5.png", "2.png"], "nonmembers": ["1.png"]}))
    assert set(told(caption(data, blip, tmp_path / "c.jsonl", split=tmp_path / "split.json"))) == {"2.png", "5.png"}


def test_an_image_of_which_there_is_little_to_say_ends_with_fewer_captions(data, blip, tmp_path, monkeypatch):
    monkeypatch.setattr(captioning, "_drawn", lambda model, seen, generators, n: [["moon", "a moon", ""][:n] for _ in generators])
    rows = told(caption(data, blip, tmp_path / "c.jsonl"))
    assert rows["0.png"] == [CAPTIONS[0], "moon", "a moon"]
    assert rows["7.png"] == ["moon", "a moon"], "it has none of its own"


def test_a_caption_that_the_image_has_already_is_drawn_again(data, blip, tmp_path, monkeypatch):
    rounds = iter([["moon", "moon", "moon"], ["sun with rays", "moon", "star"], ["a star", "b", "c"]])
    answers = {}

    def drawn(model, seen, generators, n):
        answers.setdefault(len(answers), next(rounds))
        return [answers[len(answers) - 1] for _ in generators]

    monkeypatch.setattr(captioning, "_drawn", drawn)
    assert told(caption(data, blip, tmp_path / "c.jsonl", limit=1))["0.png"] == ["sun with rays", "moon", "star", "a star"]


def test_the_nucleus_is_the_fewest_words_that_hold_the_share():
    p = torch.tensor([[0.05, 0.5, 0.15, 0.3], [0.95, 0.02, 0.02, 0.01]])
    assert torch.isfinite(nucleus(p.log(), 0.9)).tolist() == [[False, True, True, True], [True, False, False, False]]
    assert torch.equal(nucleus(p.log(), 0.9)[0, 1:], p.log()[0, 1:])


def test_words_are_drawn_with_the_probabilities_of_the_model(blip):
    """One word after the mark, many times: the frequencies are those of the network's own softmax within the nucleus."""
    model = load_captioner(str(blip), "cpu")
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = model.network.vision_model(pixel_values=pixels)[0]
        logits = model.network.text_decoder(input_ids=torch.tensor([[4]]), encoder_hidden_states=seen).logits[:, -1]
    p = nucleus(logits, captioning.TOP_P).softmax(-1)[0].numpy()
    model.tokenizer.batch_decode = lambda tokens, **_: [str(int(row[0])) for row in tokens]
    drawn = captioning._drawn(model, seen, [keyed(0, 0, *b"a")], 4000)[0]
    counts = np.bincount(np.array(drawn, dtype=int), minlength=len(WORDS))
    assert counts[p == 0].sum() == 0
    assert (np.abs(counts - 4000 * p) < 4.5 * np.sqrt(4000 * p * (1 - p)) + 1).all()


def test_images_are_prepared_as_the_processor_of_transformers_does(data, blip):
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    model = load_captioner(str(blip), "cpu")
    pixels = np.asarray(Image.open(data / "0.png"))
    theirs = BlipImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    expected = np.asarray(theirs(Image.fromarray(pixels), return_tensors="pt").pixel_values[0])
    np.testing.assert_allclose(captioning._pixels(model, pixels).numpy(), expected, atol=1e-5)


def test_another_plan_and_a_file_from_elsewhere_are_refused(data, blip, tmp_path):
    file = caption(data, blip, tmp_path / "c.jsonl", limit=1)
    with pytest.raises(UserError, match=r"c.jsonl holds other captions \(--n was 3, now 2\); choose another -o"):
        caption(data, blip, file, n=2)
    (tmp_path / "mine.jsonl").write_text("")
    with pytest.raises(UserError, match=r"mine.jsonl was not written by this command; choose another -o"):
        caption(data, blip, tmp_path / "mine.jsonl")


def test_what_cannot_be_used_is_one_line(data, blip, tmp_path, model_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((blip / "config.json").read_text())
    cases = [
        ({"n": 0}, "n must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"captioner": str(tmp_path / "nowhere")}, "the captioner must be a folder or a hub id .*; found nothing at"),
        (
            {"captioner": "nobody/nothing-of-this-name"},
            "no folder at nobody/.*, and the hub gave no such model .*; pass a local folder",
        ),
        (
            {"captioner": str(tmp_path / "empty")},
            "must be a BLIP of transformers; .*empty cannot be used .*: pass the local folder",
        ),
        ({"captioner": str(tmp_path / "clip")}, "its config.json says model_type clip"),
        ({"captioner": str(tmp_path / "bare")}, "must be a BLIP of transformers; .*bare cannot be used"),
        ({"captioner": str(model_folder())}, "must be a BLIP of transformers"),
        ({"device": "moon"}, "device 'moon' cannot be used"),
    ]
    for change, message in cases:
        given = {"captioner": str(blip), **change}
        with pytest.raises(UserError, match=message) as caught:
            caption_images(data, tmp_path / "c.jsonl", **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"captions are written as a .jsonl file; got .*c.csv"):
        caption(data, blip, tmp_path / "c.csv")
    assert not list(tmp_path.glob("c.*")), "nothing is left by a refusal"


def test_a_damaged_image_is_refused_without_a_flag_that_the_command_does_not_have(data, blip, tmp_path):
    folder = Path(shutil.copytree(data, tmp_path / "damaged"))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"1.png .*; (remove|replace) it$"):
        caption(folder, blip, tmp_path / "captions.jsonl")


def test_a_captioner_runs_no_code_and_one_that_is_damaged_or_gives_nan_is_one_line(data, blip, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("nobody is asked whether to run code"))
    folder = Path(shutil.copytree(blip, tmp_path / "blip"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    spoilt = {**config, "auto_map": {"AutoTokenizer": ["code.Planted", None]}, "tokenizer_class": "Planted"}
    (folder / "code.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\nclass Planted: pass")
    (folder / "tokenizer_config.json").write_text(json.dumps(spoilt))
    caption(data, folder, tmp_path / "code.jsonl", limit=1)
    assert not (tmp_path / "sprung").exists()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    file = folder / "model.safetensors"
    state = load_file(file)
    state[next(key for key in sorted(state) if "text_decoder" in key and key.endswith("LayerNorm.weight"))][0] = torch.nan
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"the captioner must give numbers; got NaN: .* of the BlipForConditionalGeneration holds NaN"):
        caption(data, folder, tmp_path / "c.jsonl", limit=1)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"model\.safetensors must be a whole safetensors file"):
        caption(data, folder, tmp_path / "d.jsonl")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [1]}')
    shutil.copy(blip / "model.safetensors", file)
    with pytest.raises(UserError, match=r"image_mean of .* must be three numbers"):
        caption(data, folder, tmp_path / "d.jsonl")


def test_the_command_writes_the_file_and_says_where(data, blip, tmp_path, monkeypatch, capsys):
    (tmp_path / "two.yaml").write_text("n: 2\nlimit: 9")
    command = ["diffleak", "caption", str(data), "--captioner", str(blip), "--limit", "2", "--device", "cpu", "--json"]
    monkeypatch.setattr(sys, "argv", [*command, "-C", str(tmp_path / "two.yaml"), "-o", str(tmp_path / "c.jsonl")])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert json.loads(capsys.readouterr().out) == {"captions": str(tmp_path / "c.jsonl")}
    assert (tmp_path / "c.jsonl").stat().st_mode & 0o777 == 0o600, "it names images and says what they show"
    assert told(tmp_path / "c.jsonl") == told(diffleak.caption_images(data, tmp_path / "p.jsonl", str(blip), 2, limit=2, device="cpu"))
    monkeypatch.setattr(sys, "argv", [*command, "-n", "0", "-o", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.splitlines()[-1] == "diffleak: --n must be at least 1; got 0"
