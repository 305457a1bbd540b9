"""Textual inversion: the layouts in the wild against diffusers' own loading, what is recorded, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from fixtures.text import CHANNELS, LATENT, text_folder
from safetensors.torch import save_file

from diffleak import hub
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.hub.embeddings import named_embeddings
from diffleak.work.files import hash_file

DIM = 16  # of both tiny text encoders
CAPTIONS = ("a house", "a <cat-toy> in a garden", "<cat-toy>", "moon with <style> <cat-toy>")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def vectors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {name: torch.randn(n, DIM, generator=draw) for name, n in (("one", 1), ("three", 3), ("g", 3))}


def embedded(target: Target, captions: tuple[str, ...] = CAPTIONS) -> torch.Tensor:
    return target.text(captions).tensors["encoder_hidden_states"]


def refusal(model: Path, embedding: Any) -> str:
    with pytest.raises(UserError) as caught:
        hub.load(model, device="cpu", embedding=embedding)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def test_both_common_layouts_embed_captions_as_diffusers_does(model, vectors, tmp_path, capsys):
    torch.save({"<cat-toy>": vectors["one"][0]}, tmp_path / "learned_embeds.bin")
    a1111 = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors["three"]},
        "name": "<style>",
        "step": 10,
        "sd_checkpoint": None,
    }
    torch.save(a1111, tmp_path / "style.pt")
    made = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    made.load_textual_inversion({"<cat-toy>": vectors["one"][0]})
    made.load_textual_inversion({"<style>": vectors["three"]})
    plain = hub.load(model, device="cpu")
    target = hub.load(model, device="cpu", embedding=[tmp_path / "learned_embeds.bin", tmp_path / "style.pt"])
    with torch.inference_mode():
        right = torch.cat([made.encode_prompt(text, "cpu", 1, False)[0] for text in CAPTIONS])
        assert torch.equal(embedded(target), right)
        x = torch.randn(len(CAPTIONS), CHANNELS, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(target.denoiser(x, 100, target.text(CAPTIONS)), made.unet(x, 100, right).sample, rtol=0, atol=1e-6)
    assert torch.equal(embedded(target, ("a house",)), embedded(plain, ("a house",))), "other captions stay as they are"
    capital = hub.load(model, device="cpu", embedding=f"{tmp_path / 'style.pt'}@<Style>")
    right = embedded(target, ("a <style> moon",))
    assert all(torch.equal(embedded(each, ("a <STYLE> moon",)), right) for each in (target, capital)), "the tokenizer ignores case"
    assert [(each.token, each.vectors) for each in target.embeddings] == [("<cat-toy>", 1), ("<style>", 3)]
    assert target.embeddings[1].sha256 == hash_file(tmp_path / "style.pt") and target.embedding.count(",") == 1
    assert target.fingerprint != plain.fingerprint != hub.load(model, device="cpu", embedding=tmp_path / "style.pt").fingerprint
    assert f"embedding: '<style>' in captions stands for the 3 vectors of {tmp_path / 'style.pt'}" in capsys.readouterr().err
    assert target.unnamed(("a <CAT-TOY>",)) == [
        f"no caption has the token '<style>' of the embedding {tmp_path / 'style.pt'}, so it changes nothing"
    ]
    assert target.text.truncated(["a <style> house " * 4, "a house " * 4]) == [0], "a word takes as many places as it has vectors"


def test_a_folder_a_file_without_a_word_and_a_word_of_ones_own_are_the_same_vectors(model, vectors, tmp_path):
    save_file({"<cat-toy>": vectors["three"]}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": vectors["three"]}, tmp_path / "toy.safetensors", {"ss_training_comment": "for Ada"})
    by_folder = hub.load(model, device="cpu", embedding=tmp_path)
    named = hub.load(model, device="cpu", embedding=f"{tmp_path / 'toy.safetensors'}@<toy>")
    by_name = hub.load(model, device="cpu", embedding=tmp_path / "toy.safetensors")
    assert [target.embeddings[0].token for target in (by_folder, named, by_name)] == ["<cat-toy>", "<toy>", "toy"]
    right = embedded(by_folder, ("a <cat-toy> house",))
    assert torch.equal(embedded(named, ("a <toy> house",)), right) and torch.equal(embedded(by_name, ("a toy house",)), right)
    assert named.fingerprint != by_name.fingerprint
    assert [(each.what, each.file, each.counts) for each in named.headers] == [
        ("embedding", str(tmp_path / "toy.safetensors"), {"comments": 1})
    ]
    save_file({"toy2": vectors["one"]}, tmp_path / "toy2.safetensors")
    both = hub.load(model, device="cpu", embedding=[tmp_path / "toy.safetensors", tmp_path / "toy2.safetensors"])
    alone = hub.load(model, device="cpu", embedding=tmp_path / "toy2.safetensors")
    texts = ("a toy2 house", "a TOY2 house")
    assert torch.equal(embedded(both, texts), embedded(alone, texts)), "a word in another is not put in its place"


def test_vectors_in_eight_bits_are_those_that_they_round_to(model, vectors, tmp_path):
    rounded = vectors["three"].to(torch.float8_e5m2)
    save_file({"emb_params": rounded}, tmp_path / "eight.safetensors")
    save_file({"emb_params": rounded.float()}, tmp_path / "whole.safetensors")
    eight, whole = (hub.load(model, device="cpu", embedding=f"{tmp_path / name}.safetensors@<toy>") for name in ("eight", "whole"))
    assert torch.equal(embedded(eight, ("a <toy> house",)), embedded(whole, ("a <toy> house",)))


def test_an_sdxl_embedding_reaches_both_encoders_and_the_pooled_vector_stays_at_the_end(vectors, tmp_path):
    """As with a config that numbers the end rightly; with eos_token_id 2 transformers would pool at the new token."""
    folder = text_folder(tmp_path / "sdxl", "sdxl")
    save_file({"clip_l": vectors["three"], "clip_g": vectors["g"]}, tmp_path / "toy.safetensors")
    given = {"device": "cpu", "embedding": f"{tmp_path / 'toy.safetensors'}@<toy>"}
    right = hub.load(folder, **given).text(["a <toy> house"]).tensors
    made = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    for name, part in (("three", ""), ("g", "_2")):
        its = {"tokenizer": getattr(made, f"tokenizer{part}"), "text_encoder": getattr(made, f"text_encoder{part}")}
        made.load_textual_inversion({"<toy>": vectors[name]}, **its)
    expected = made.encode_prompt("a <toy> house", device="cpu", do_classifier_free_guidance=False)
    assert torch.equal(right["encoder_hidden_states"], expected[0]) and torch.equal(right["text_embeds"], expected[2])
    config = folder / "text_encoder_2" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 2}))
    legacy = hub.load(folder, **given).text(["a <toy> house"]).tensors
    assert torch.equal(legacy["text_embeds"], right["text_embeds"])
    save_file({"<one>": vectors["one"]}, tmp_path / "one.safetensors")
    assert "it has vectors for one encoder, and the model has two CLIP encoders, clip_l and clip_g" in refusal(
        folder, tmp_path / "one.safetensors"
    )


def test_what_is_no_embedding_of_the_model_is_refused_in_one_line(model, vectors, tmp_path, latent_folder):
    file = tmp_path / "a.safetensors"
    for content, at, said in (
        ({"<toy>": torch.ones(1, 8)}, "", "its vectors have 8 numbers, and the text_encoder takes vectors of 16 (SD 1 takes 768 numbers"),
        ({"<toy>": torch.ones(40, DIM)}, "", "it has 40 vectors, and a caption has at most 16 tokens"),
        ({"house": vectors["one"]}, "@a", "the text_encoder already knows the word a; choose another with FILE@WORD"),
        (
            {"clip_l": vectors["three"], "clip_g": vectors["g"]},
            "",
            "it has vectors for clip_g and clip_l, and the model has one CLIP encoder",
        ),
    ):
        save_file(content, file)
        assert refusal(model, f"{file}{at}").startswith(f"the embedding {file} does not match the model: ") and said in refusal(
            model, f"{file}{at}"
        )
    folder = latent_folder(network="transformer")
    assert refusal(folder, file) == f"an embedding is a word in captions, and {folder} takes no captions; leave out --embedding"


class Planted:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_file_of_another_layout_is_refused_before_any_model_is_read_and_none_of_its_code_is_run(vectors, tmp_path):
    file, witness = tmp_path / "a.pt", tmp_path / "witness"
    nan = torch.full((1, DIM), torch.nan)
    for content, said in (
        ({"<toy>": Planted(witness)}, "it holds posix.system, and only tensors are opened"),
        ({"string_to_param": {"*": Planted(witness)}, "name": "x"}, "it holds posix.system, and only tensors are opened"),
        ([1, 2], "it must hold one tensor by its word"),
        ({"lora_A": vectors["one"], "lora_B": vectors["one"]}, '"string_to_param"; it holds lora_A, lora_B'),
        ({"string_to_param": {}, "name": "x"}, 'its "string_to_param" must hold one tensor'),
        ({"<toy>": nan}, "its vectors must be finite numbers"),
        ({"<toy>": "text"}, "its vectors must be a tensor of shape (n, d)"),
        ({"<toy>": torch.ones(2, 2, 2)}, "its vectors must be a tensor of shape (n, d)"),
        ({"a toy": vectors["one"]}, "must have 1 to 100 characters and no spaces; that of "),
    ):
        torch.save(content, file)
        with pytest.raises(UserError) as caught:
            named_embeddings(str(file))
        assert said in str(caught.value) and "\n" not in str(caught.value) and not witness.exists()
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pt cannot be read: "):
            named_embeddings(str(file))
    for name, said in (
        (tmp_path / "no.pt", "found nothing at"),
        (tmp_path, "has none: name the file itself"),
        ("a.txt/b/c", "found nothing"),
    ):
        with pytest.raises(UserError, match=said):
            named_embeddings(str(name))
    save_file({"<toy>": vectors["one"]}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="each embedding must have a word of its own"):
        named_embeddings(f"{tmp_path / 'b.safetensors'},{tmp_path / 'b.safetensors'}@<TOY>")
