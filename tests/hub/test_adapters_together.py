"""Several adapters at once: merged one after the other, each at its own strength, recorded, and never the same one twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.text import text_folder
from safetensors.torch import save_file

from diffleak import hub
from diffleak.config import ModelConfig, build, command_line
from diffleak.errors import UserError
from diffleak.work.files import hash_file

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = LAYER.replace("to_q", "to_k")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRAs that share a layer, and a DoRA of that layer."""
    root, draw = tmp_path_factory.mktemp("adapters"), torch.Generator().manual_seed(4)
    pair = lambda layer, rank: {
        f"unet.{layer}.lora_A.weight": torch.randn(rank, 8, generator=draw),
        f"unet.{layer}.lora_B.weight": torch.randn(8, rank, generator=draw),
    }
    content = {"one": pair(LAYER, 2), "two": pair(LAYER, 3) | pair(OTHER, 1), "dora": pair(LAYER, 2)}
    content["dora"][f"unet.{LAYER}.dora_scale"] = torch.rand(8, 1, generator=draw) + 1
    for name, weights in content.items():
        save_file(weights, root / f"{name}.safetensors")
    return {name: root / f"{name}.safetensors" for name in content}


def layer(target: Any, name: str = LAYER) -> torch.Tensor:
    return target.denoiser.network.get_submodule(name).weight.detach()


def product(file: Path, name: str = LAYER) -> torch.Tensor:
    from safetensors.torch import load_file

    content = {key: value.double() for key, value in load_file(file).items()}
    return content[f"unet.{name}.lora_B.weight"] @ content[f"unet.{name}.lora_A.weight"]


def test_adapters_are_merged_at_their_own_strengths_times_the_common_one(model, files):
    one, two = files["one"], files["two"]
    plain = hub.load(model, "float64", "cpu")
    target = hub.load(model, "float64", "cpu", lora=f"{one}@0.8,{two}@-2", lora_scale=0.5)
    right = layer(plain) + 0.4 * product(one) - product(two)
    torch.testing.assert_close(layer(target), right, rtol=0, atol=1e-13)
    torch.testing.assert_close(layer(target, OTHER), layer(plain, OTHER) - product(two, OTHER), rtol=0, atol=1e-13)
    assert [(each.name, each.strength) for each in target.adapters] == [(str(one), 0.8), (str(two), -2.0)]
    assert [each.sha256 for each in target.adapters] == [hash_file(one), hash_file(two)]
    assert (target.lora, target.lora_scale) == (f"{one}@0.8,{two}@-2", 0.5)
    added = {name: each.factor * each.up.double() @ each.down.double() for name, each in target.denoiser.adapted.items()}
    torch.testing.assert_close(added[f"{LAYER}.weight"], right - layer(plain), rtol=0, atol=1e-6)
    assert added.keys() == {f"{LAYER}.weight", f"{OTHER}.weight"}


def test_lists_in_python_and_on_the_command_line_are_the_same_model(model, files):
    one, two = files["one"], files["two"]
    by_list = hub.load(model, device="cpu", lora=[one, (two, 0.5)])
    by_text = hub.load(model, device="cpu", lora=f"{one},{two}@0.5")
    assert by_list.fingerprint == by_text.fingerprint and torch.equal(layer(by_list), layer(by_text))
    assert by_list.lora == f"{one},{two}@0.5"
    config = build(ModelConfig, {"model": str(model), "lora": [str(one), (str(two), 0.5)]})
    assert config.lora == by_text.lora and f"--lora {one},{two}@0.5" in command_line(config, "audit")
    alone = hub.load(model, device="cpu", lora=one, lora_scale=0.5)
    assert alone.fingerprint == hub.load(model, device="cpu", lora=f"{one}@0.5").fingerprint != by_list.fingerprint


def test_a_dora_is_applied_to_what_those_before_it_made(model, files):
    plain = hub.load(model, "float64", "cpu")
    target = hub.load(model, "float64", "cpu", lora=[files["one"], files["dora"]])
    from safetensors.torch import load_file

    v = layer(plain) + product(files["one"]) + product(files["dora"])
    m = load_file(files["dora"])[f"unet.{LAYER}.dora_scale"].double()
    torch.testing.assert_close(layer(target), m * v / v.square().sum(dim=1, keepdim=True).sqrt(), rtol=0, atol=1e-12)
    assert target.denoiser.adapted == {}, "no product of two matrices"


def test_an_adapter_that_is_there_twice_or_of_no_strength_is_refused(model, files, tmp_path):
    one = files["one"]
    (tmp_path / "copy.safetensors").write_bytes(one.read_bytes())
    for lora, said in (
        (f"{one},{tmp_path / 'copy.safetensors'}@0.5", "are the same file: give it once, at the sum of the strengths"),
        (f"{one}@0,{files['two']}", "strength 0 removes the LoRA"),
        (f"{one}@strong", "must be a finite number; "),
        (f"{one}@inf", "must be a finite number; "),
        (f"{tmp_path}/me@home/no.safetensors", "found nothing at "),
        (f"{one},", "--lora must name something before and after each comma"),
    ):
        with pytest.raises(UserError) as caught:
            hub.load(model, device="cpu", lora=lora)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_of_two_adapters_with_a_split_of_their_own_neither_is_taken_for_the_model(model, files, tmp_path):
    homes = [tmp_path / name for name in ("one", "two")]
    for home, name in zip(homes, ("one", "two"), strict=True):
        home.mkdir()
        (home / "adapter.safetensors").write_bytes(files[name].read_bytes())
    loras = [home / "adapter.safetensors" for home in homes]
    (homes[1] / "split.json").write_text('{"members": ["a"], "nonmembers": ["b"]}')
    assert hub.load(model, device="cpu", lora=loras).split_file == homes[1] / "split.json"
    (homes[0] / "split.json").write_text('{"members": ["b"], "nonmembers": ["a"]}')
    assert hub.load(model, device="cpu", lora=loras).split_file is None
