"""What an adapter does to weights, by the straight-line formula W + scale alpha / r B A of its file; and what libraries warn of."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.loras import peft_folder
from fixtures.text import pipeline, text_folder
from safetensors.torch import load_file, save_file

from diffleak import hub
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.hub import adapters, effect, updates

pytestmark = pytest.mark.usefixtures("undrawn")

Weights = dict[str, torch.Tensor]
Layers = dict[str, dict[str, tuple[int, float | None]]]  # by network and layer: rank, alpha
RANKS, ALPHAS = (1, 2, 3), (4.0, 4.0, 1.0, 0.5)  # of layers in turn; the most common alpha is 4
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
DOWN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")
    return lambda kind="sd": root / kind if (root / kind).exists() else text_folder(root / kind, kind)


def networks(target: Target) -> dict[str, Any]:
    text: Any = target.text
    return {name: getattr(text.pipeline, name) for name in PARTS if getattr(text.pipeline, name, None) is not None}


def weights(target: Target) -> Weights:
    return {f"{n}.{key}": value for n, network in networks(target).items() for key, value in network.state_dict().items()}


def layers_of(kind: str, name: str, wanted: Callable[[str], bool] = lambda layer: True) -> dict[str, tuple[int, float | None]]:
    """Every layer of a network that has a name which is wanted, with a rank and an alpha of its own."""
    network = getattr(pipeline(kind), name)
    found = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d) and wanted(n)]
    return {layer: (RANKS[i % 3], ALPHAS[i % 4]) for i, layer in enumerate(found)}


def pairs(kind: str, layers: Layers) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """A and B of each layer, at random: 3 x 3 and 1 x 1 for a convolution of 3 x 3."""
    made, draw = pipeline(kind), torch.Generator().manual_seed(5)
    found = {}
    for name, own in layers.items():
        for layer, (rank, _) in own.items():
            weight = getattr(made, name).get_submodule(layer).weight
            ones = (1,) * (weight.ndim - 2)
            found[name, layer] = (
                torch.randn(rank, *weight.shape[1:], generator=draw),
                torch.randn(len(weight), rank, *ones, generator=draw),
            )
    return found


def kohya_name(name: str, layer: str, second: bool = False) -> str:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if second else "lora_te_", "text_encoder_2": "lora_te2_"}[name]
    body = layer if name == "unet" or layer.startswith("text") else f"text_model.{layer}"
    return prefix + body.replace(".", "_")


def kohya_file(file: Path, kind: str, layers: Layers, name: Callable[[str, str], str] = kohya_name) -> Path:
    """An adapter as kohya's trainer writes it: every layer with an alpha of its own, none where it is None."""
    content: Weights = {}
    for (network, layer), (down, up) in pairs(kind, layers).items():
        stem = name(network, layer)
        content |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        alpha = layers[network][layer][1]
        if alpha is not None:
            content[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(content, file)
    return file


def by_formula(kind: str, plain: Weights, layers: Layers, scale: float = 1.0) -> Weights:
    """W + scale alpha / r B A, one layer after the other, in float64; the products are written out as loops over ranks."""
    made = dict(plain)
    for (network, layer), (down, up) in pairs(kind, layers).items():
        rank, alpha = layers[network][layer]
        change = torch.zeros(plain[f"{network}.{layer}.weight"].shape, dtype=torch.float64)
        for r in range(rank):
            column = up[:, r].double().reshape(-1, *[1] * (down.ndim - 1))
            change += column * down[r].double()
        made[f"{network}.{layer}.weight"] = plain[f"{network}.{layer}.weight"] + scale * (rank if alpha is None else alpha) / rank * change
    return made


def assert_merged(found: Weights, right: Weights, most: float = 1e-12) -> None:
    assert found.keys() == right.keys()
    for key, value in right.items():
        most = max(most, 4 * torch.finfo(found[key].dtype).eps) if found[key].is_floating_point() else most
        assert (found[key].double() - value.double()).abs().max().item() <= most * max(1.0, value.double().abs().max().item()), key


def adapted(models: Callable[[str], Path], kind: str, lora: Path, **given: Any) -> Weights:
    return weights(hub.load(models(kind), **{"dtype": "float64", "device": "cpu", "lora": lora, **given}))


def plain(models: Callable[[str], Path], kind: str) -> Weights:
    return weights(hub.load(models(kind), "float64", "cpu"))


def refusal(model: Path, lora: Any, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        hub.load(model, device="cpu", lora=lora, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ATTENTION = lambda layer: "attn" in layer or "conv1" in layer or "proj_in" in layer or "ff.net" in layer


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_every_layer_of_a_kohya_file_is_merged_at_its_own_alpha(models, tmp_path, scale):
    layers = {"unet": layers_of("sd", "unet"), "text_encoder": layers_of("sd", "text_encoder")}
    assert len({alpha / rank for own in layers.values() for rank, alpha in own.values()}) > 5
    file = kohya_file(tmp_path / "a.safetensors", "sd", layers)
    right = by_formula("sd", plain(models, "sd"), layers, scale)
    assert_merged(adapted(models, "sd", file, lora_scale=scale), right)
    assert_merged(adapted(models, "sd", file, lora_scale=scale, dtype="float32"), right, 1e-5)


def test_the_case_that_was_wrong_differs_from_one_alpha_for_all(models, tmp_path):
    """diffusers gave the most common alpha to every layer."""
    layers = {"unet": layers_of("sd", "unet", lambda layer: "attn1.to_q" in layer)}
    common = {"unet": {layer: (rank, 4.0) for layer, (rank, _) in layers["unet"].items()}}
    wrong, right = (by_formula("sd", plain(models, "sd"), which) for which in (common, layers))
    found = adapted(models, "sd", kohya_file(tmp_path / "a.safetensors", "sd", layers))
    assert max((wrong[key] - right[key]).abs().max().item() for key in right) > 0.5
    assert_merged(found, right)


def test_both_text_encoders_of_an_sdxl_adapter_are_merged_at_their_own_alphas(models, tmp_path):
    layers = {name: layers_of("sdxl", name, ATTENTION) for name in ("unet", "text_encoder", "text_encoder_2")}
    file = kohya_file(tmp_path / "a.safetensors", "sdxl", layers, lambda name, layer: kohya_name(name, layer, True))
    assert_merged(adapted(models, "sdxl", file, lora_scale=0.7), by_formula("sdxl", plain(models, "sdxl"), layers, 0.7))


SGM = {  # what kohya's trainer, whose SDXL is the first code's, calls layers of a UNet with one residual block a level
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_2_0_op",
    "down_blocks.1.resnets.0.conv2": "input_blocks_3_0_out_layers_3",
    "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
    "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
    "up_blocks.0.resnets.1.conv_shortcut": "output_blocks_1_0_skip_connection",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_1_2_conv",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2": "output_blocks_3_1_transformer_blocks_0_ff_net_2",
}


def test_an_sdxl_adapter_with_the_names_of_the_first_code_reaches_the_same_layers(models, tmp_path):
    layers: Layers = {"unet": {layer: (RANKS[i % 3], ALPHAS[i % 4]) for i, layer in enumerate(SGM)}}
    file = kohya_file(tmp_path / "a.safetensors", "sdxl", layers, lambda name, layer: f"lora_unet_{SGM[layer]}")
    assert_merged(adapted(models, "sdxl", file), by_formula("sdxl", plain(models, "sdxl"), layers))


@pytest.mark.parametrize("projections", [("q_proj",), ("k_proj", "fc1"), ("out_proj",), ("fc2",)], ids="+".join)
@pytest.mark.parametrize("unet", [True, False], ids=["with a unet", "alone"])
def test_an_adapter_may_hold_some_projections_of_a_text_encoder_only(models, tmp_path, projections, unet):
    layers: Layers = {"text_encoder": layers_of("sd", "text_encoder", lambda layer: layer.endswith(projections))}
    if unet:
        layers["unet"] = layers_of("sd", "unet", lambda layer: layer.endswith("attn1.to_v"))
    file = kohya_file(tmp_path / "a.safetensors", "sd", layers)
    assert_merged(adapted(models, "sd", file), by_formula("sd", plain(models, "sd"), layers))


def test_without_an_alpha_a_layer_has_strength_1_and_with_alpha_0_it_stays_as_it_is(models, tmp_path):
    layers: Layers = {"unet": {f"{DOWN}.to_q": (3, None), f"{DOWN}.to_k": (2, 0.0), f"{DOWN}.to_v": (2, 4.0)}}
    file = kohya_file(tmp_path / "a.safetensors", "sd", layers)
    before = plain(models, "sd")
    target = hub.load(models("sd"), "float64", "cpu", lora=file)
    assert_merged(weights(target), by_formula("sd", before, layers))
    assert torch.equal(weights(target)[f"unet.{DOWN}.to_k.weight"], before[f"unet.{DOWN}.to_k.weight"])
    assert target.warnings == ("the LoRA has alpha 0 in 1 of its 3 layers, and changes nothing there",)
    nothing = {"unet": {f"{DOWN}.to_k": (2, 0.0)}}
    assert refusal(models("sd"), kohya_file(tmp_path / "b.safetensors", "sd", nothing)).endswith(
        "changes nothing: its alpha is 0 in every layer"
    )


def diffusers_file(file: Path, kind: str, layers: Layers, settings: dict[str, Any] | None = None, old: bool = False) -> Path:
    content: Weights = {}
    for (network, layer), (down, up) in pairs(kind, layers).items():
        if old:
            head, _, last = layer.removesuffix(".0").rpartition(".")
            names = [f"{network}.{head}.processor.{last}_lora.{way}.weight" for way in ("down", "up")]
        else:
            names = [f"{network}.{layer}.lora_{letter}.weight" for letter in "AB"]
        content |= dict(zip(names, (down, up), strict=True))
    save_file(content, file, {"lora_adapter_metadata": json.dumps(settings)} if settings else {"format": "pt"})
    return file


@pytest.mark.parametrize(
    ("kind", "name"), [("sd", "unet"), ("sdxl", "unet"), ("sd3", "transformer"), ("flux", "transformer"), ("pixart", "transformer")]
)
def test_a_file_of_diffusers_is_merged_at_the_alphas_in_its_header_or_at_strength_1(models, tmp_path, kind, name):
    layers = {name: layers_of(kind, name, lambda layer: layer.endswith(("to_q", "to_v", "proj_out")))}
    ranks = {layer: rank for layer, (rank, _) in layers[name].items()}
    whole: Layers = {name: {layer: (rank, None) for layer, rank in ranks.items()}}
    file = diffusers_file(tmp_path / "a.safetensors", kind, whole)
    assert_merged(adapted(models, kind, file), by_formula(kind, plain(models, kind), whole))
    most = {layer: alpha for layer, (_, alpha) in layers[name].items() if alpha != 4.0}
    settings = {f"{name}.r": 2, f"{name}.lora_alpha": 4, f"{name}.alpha_pattern": most, f"{name}.target_modules": list(ranks)}
    file = diffusers_file(tmp_path / "b.safetensors", kind, layers, settings | {f"{name}.rank_pattern": ranks})
    assert_merged(adapted(models, kind, file), by_formula(kind, plain(models, kind), layers))
    assert_merged(
        adapted(models, kind, diffusers_file(tmp_path / "c.safetensors", kind, layers, settings | {f"{name}.use_rslora": True})),
        by_formula(kind, plain(models, kind), {name: {layer: (r, a * r**0.5) for layer, (r, a) in layers[name].items()}}),
    )


def test_a_file_with_the_names_of_old_diffusers_is_merged_at_strength_1(models, tmp_path):
    layers: Layers = {"unet": {f"{DOWN}.{last}": (2, None) for last in ("to_q", "to_k", "to_out.0")}}
    file = diffusers_file(tmp_path / "a.safetensors", "sd", layers, old=True)
    assert_merged(adapted(models, "sd", file), by_formula("sd", plain(models, "sd"), layers))


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_alphas_beside_the_names_of_diffusers_count_too(models, tmp_path, kind):
    layers = {"transformer": layers_of(kind, "transformer", lambda layer: layer.endswith(("to_q", "to_v")))}
    file = diffusers_file(tmp_path / "a.safetensors", kind, layers)
    alphas = {f"transformer.{layer}.alpha": torch.tensor(alpha) for layer, (_, alpha) in layers["transformer"].items()}
    save_file(load_file(file) | alphas, file)
    assert_merged(adapted(models, kind, file), by_formula(kind, plain(models, kind), layers))


def test_a_kohya_file_of_flux_is_split_into_the_layers_that_its_projections_became(models, tmp_path):
    """q, k and v are one layer there: they share A and have the rows of B in that order."""
    torch.manual_seed(0)
    down, up, before = torch.randn(4, 32), torch.randn(96, 4), plain(models, "flux")
    out, back = torch.randn(2, 32), torch.randn(32, 2)
    content = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": down, "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": up}
    content |= {"lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(1.0)}
    content |= {
        "lora_unet_double_blocks_0_txt_attn_proj.lora_down.weight": out,
        "lora_unet_double_blocks_0_txt_attn_proj.lora_up.weight": back,
    }
    content |= {"lora_unet_double_blocks_0_txt_attn_proj.alpha": torch.tensor(8.0)}
    save_file(content, tmp_path / "a.safetensors")
    right = dict(before)
    for i, last in enumerate(("to_q", "to_k", "to_v")):
        key = f"transformer.transformer_blocks.0.attn.{last}.weight"
        right[key] = before[key] + 1 / 4 * up[32 * i : 32 * (i + 1)].double() @ down.double()
    key = "transformer.transformer_blocks.0.attn.to_add_out.weight"
    right[key] = before[key] + 8 / 2 * back.double() @ out.double()
    assert_merged(adapted(models, "flux", tmp_path / "a.safetensors"), right)


def peft_made(folder: Path, kind: str, layers: Layers, magnitudes: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """A folder as peft saves it, with these settings."""
    (name,) = layers
    content: Weights = {}
    for (_, layer), (down, up) in pairs(kind, layers).items():
        content |= {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
    content |= {f"base_model.model.{layer}.lora_magnitude_vector": value for layer, value in (magnitudes or {}).items()}
    folder.mkdir()
    save_file(content, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(layers[name]), **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_of_peft_is_merged_by_its_patterns_of_ranks_and_alphas(models, tmp_path):
    layers = {"unet": layers_of("sd", "unet", ATTENTION)}
    patterns = {
        "rank_pattern": {layer: rank for layer, (rank, _) in layers["unet"].items()},
        "alpha_pattern": {layer: alpha for layer, (_, alpha) in layers["unet"].items() if alpha != 4},
    }
    before = plain(models, "sd")
    assert_merged(adapted(models, "sd", peft_made(tmp_path / "a", "sd", layers, **patterns)), by_formula("sd", before, layers))
    stabilised = peft_made(tmp_path / "b", "sd", layers, **patterns, use_rslora=True)
    as_plain: Layers = {"unet": {layer: (rank, alpha * rank**0.5) for layer, (rank, alpha) in layers["unet"].items()}}
    assert_merged(adapted(models, "sd", stabilised, lora_scale=0.5), by_formula("sd", before, as_plain, 0.5))
    by_ending: Layers = {"unet": {f"{DOWN}.to_q": (2, 1.0), f"{DOWN}.to_k": (2, 4.0)}}
    assert_merged(
        adapted(models, "sd", peft_made(tmp_path / "c", "sd", by_ending, alpha_pattern={r"attn\d\.to_q": 1})),
        by_formula("sd", before, by_ending),
    )


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_dora_gives_every_output_the_length_of_its_magnitude(models, tmp_path, scale):
    layers: Layers = {"unet": {f"{DOWN}.to_q": (2, 4.0), "down_blocks.0.resnets.0.conv1": (2, 4.0)}}
    magnitudes = {f"{DOWN}.to_q": torch.linspace(0.5, 2, 8), "down_blocks.0.resnets.0.conv1": torch.linspace(1, 3, 8).reshape(1, 8, 1, 1)}
    before = plain(models, "sd")
    right = by_formula("sd", before, layers, scale)
    for layer, magnitude in magnitudes.items():
        value = right[f"unet.{layer}.weight"]
        for o in range(8):
            value[o] *= magnitude.flatten()[o].double() / value[o].square().sum().sqrt()
    folder = peft_made(tmp_path / "a", "sd", layers, magnitudes, use_dora=True)
    assert_merged(adapted(models, "sd", folder, lora_scale=scale), right)
    assert_merged(adapted(models, "sd", folder, lora_scale=scale, dtype="float32"), right, 1e-5)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("oft_blocks", "OFT or BOFT"),
        ("on_input", "IA3"),
        ("a1.weight", "GLoRA"),
        ("lokr_t1", "LoKr with a core of its first factor"),
        ("lambda_layer", "T-LoRA"),
        ("set_weight", "a weight that replaces the model's"),
        ("lora_up.bias", "LoRA with biases"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_its_name(models, tmp_path, key, kind):
    file = kohya_file(tmp_path / "a.safetensors", "sd", {"unet": {f"{DOWN}.to_q": (2, 1.0)}})
    odd = f"lora_unet_{DOWN.replace('.', '_')}_to_q.{key}"
    save_file(load_file(file) | {odd: torch.ones(2, 2)}, file)
    said = "it must be a LoRA, LoCon, LoHa, LoKr, DoRA or full difference"
    assert refusal(models("sd"), file).endswith(f"{said}; its {odd} is of a kind that is not supported: {kind}")


def test_folders_of_peft_that_are_no_plain_lora_are_refused_by_their_kind(models, tmp_path):
    layers: Layers = {"unet": {f"{DOWN}.to_q": (2, 4.0)}}
    assert refusal(models("sd"), peft_made(tmp_path / "a", "sd", layers, peft_type="OFT")).endswith(
        "it must be a LoRA, LoHa or LoKr; its settings give peft_type OFT"
    )
    assert "it was initialised by pissa_niter_4, which also changes the base" in refusal(
        models("sd"), peft_made(tmp_path / "b", "sd", layers, init_lora_weights="pissa_niter_4")
    )


def test_a_layer_that_is_there_twice_is_refused(models, tmp_path):
    file = kohya_file(tmp_path / "a.safetensors", "sd", {"unet": {f"{DOWN}.to_q": (2, 1.0)}})
    again = {key.replace("lora_unet_", "lora_transformer_"): value for key, value in load_file(file).items()}
    save_file(load_file(file) | again, file)
    assert f"it has two updates of unet.{DOWN}.to_q" in refusal(models("sd"), file)


def all_but_first(by_network: dict[str, Weights]) -> dict[str, Weights]:
    first = f"{DOWN}.to_q."
    return {name: {key: value for key, value in own.items() if not key.startswith(first)} for name, own in by_network.items()}


def wrong_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adapters._with_alphas_in_b
    monkeypatch.setattr(
        adapters, "_with_alphas_in_b", lambda raw: right({k: torch.tensor(4.0) if "alpha" in k else v for k, v in raw.items()})
    )


def skipped_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adapters._by_network
    monkeypatch.setattr(adapters, "_by_network", lambda *given: all_but_first(right(*given)))


def doubled_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adapters._merge

    def twice(network: Any, config: Any, own: Weights, scale: float) -> None:
        right(network, config, own, scale)
        layer = network.get_submodule(f"{DOWN}.to_q")
        layer.weight += scale * own[f"{DOWN}.to_q.lora_B.weight"].to(layer.weight) @ own[f"{DOWN}.to_q.lora_A.weight"].to(layer.weight)

    monkeypatch.setattr(adapters, "_merge", twice)


def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adapters._merge
    monkeypatch.setattr(adapters, "_merge", lambda network, config, own, scale: right(network, config, own, scale * 1.001))


def negative_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adapters._merge
    monkeypatch.setattr(adapters, "_merge", lambda network, config, own, scale: right(network, config, own, -scale))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("fault", "layer", "right", "seen"),
    [
        (wrong_alpha, "to_q", "0.25 (alpha 1", 1),
        (skipped_layer, "to_q", "0.25 (alpha 1", 0),
        (doubled_layer, "to_q", "0.25 (alpha 1", 0.5),
        (wrong_scale, "to_k", "1 (alpha 4", 1.001),
        (negative_scale, "to_k", "1 (alpha 4", -1),
    ],
)
def test_the_check_catches_a_merge_that_goes_wrong(models, tmp_path, monkeypatch, fault, layer, right, seen, dtype):
    layers: Layers = {"unet": {f"{DOWN}.to_q": (2, 1.0), f"{DOWN}.to_k": (2, 4.0), f"{DOWN}.to_v": (2, 4.0)}}
    file = kohya_file(tmp_path / "a.safetensors", "sd", layers)
    fault(monkeypatch)
    if (fault, dtype) == (wrong_scale, "bfloat16"):  # a thousandth is below its rounding
        return
    message = refusal(models("sd"), file, lora_scale=0.5, dtype=dtype)
    assert f"its update of unet.{DOWN}.{layer} must be merged at strength {right}, rank 2, scale 0.5); it has " in message
    assert float(message.rpartition("it has ")[2]) == pytest.approx(seen, abs=0.01 if dtype == "bfloat16" else 1e-5)


@pytest.mark.parametrize("where", ["unet.conv_in.weight", "unet.conv_in.bias", "text_encoder.encoder.layers.0.mlp.fc1.weight"])
def test_no_layer_outside_of_an_adapter_may_change(models, tmp_path, monkeypatch, where):
    file = kohya_file(tmp_path / "a.safetensors", "sd", {"unet": {f"{DOWN}.to_q": (2, 1.0)}})
    right = adapters._by_network

    def and_another(made: Any, own: dict[str, Any], raw: Weights) -> Any:
        name, _, key = where.partition(".")
        own[name].state_dict()[key].flatten()[0] += 1e-6
        return right(made, own, raw)

    monkeypatch.setattr(adapters, "_by_network", and_another)
    assert refusal(models("sd"), file).endswith(f"it must change only the layers that it adapts; {where} changed too")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_held_to_its_rounding_and_what_rounding_takes_is_said(models, tmp_path, dtype):
    layers = {"unet": layers_of("sd", "unet", ATTENTION)}
    file = kohya_file(tmp_path / "a.safetensors", "sd", layers)
    half = getattr(torch, dtype)
    before = {key: value.to(half).double() for key, value in plain(models, "sd").items() if value.is_floating_point()}
    right = by_formula("sd", before, layers)
    target = hub.load(models("sd"), dtype, "cpu", lora=file)
    for key, value in before.items():
        allowed = torch.finfo(half).eps * (value.abs() + (right[key] - value).abs()) + 1e-5
        assert ((weights(target)[key].double() - right[key]).abs() <= allowed).all(), key
    assert not target.warnings
    tiny = load_file(file)
    save_file({key: value * 1e-4 if "lora_up" in key else value for key, value in tiny.items()}, tmp_path / "tiny.safetensors")
    (said, *_) = hub.load(models("sd"), "bfloat16", "cpu", lora=tmp_path / "tiny.safetensors").warnings
    assert said.startswith("the LoRA's update of unet.") and said.endswith("use --dtype float32 to audit all of it")
    assert not hub.load(models("sd"), "float32", "cpu", lora=tmp_path / "tiny.safetensors").warnings


def edited_by_hand(model: Path, folder: Path, kind: str, layers: Layers) -> Path:
    """A copy of a model whose weight files hold W + alpha / r B A, in float32."""
    made = pipeline(kind)
    before = {f"{name}.{key}": v.double() for name in layers for key, v in getattr(made, name).state_dict().items()}
    right = by_formula(kind, before, layers)
    for name in layers:
        network = getattr(made, name)
        network.load_state_dict({key: right[f"{name}.{key}"].float() for key in network.state_dict()})
    made.save_pretrained(folder)
    return folder


def test_an_audit_ranks_images_as_that_of_a_model_whose_weights_were_edited_by_hand(models, tmp_path):
    import numpy as np
    from scipy.stats import spearmanr

    import diffleak

    sides = [tmp_path / f"{name}.npy" for name in ("members", "nonmembers")]
    for i, side in enumerate(sides):
        np.save(side, np.random.default_rng(i).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    layers = {"unet": layers_of("sd", "unet", lambda layer: "attn" in layer), "text_encoder": layers_of("sd", "text_encoder")}
    given = {"attacks": "loss,sima", "captions": "fixed:moon", "timesteps": "100", "calibration": False, "allow_shift": True, "threads": 1}
    file = kohya_file(tmp_path / "a.safetensors", "sd", layers)
    by_adapter = diffleak.audit(models("sd"), members=sides[0], nonmembers=sides[1], **given, lora=file)
    by_hand = diffleak.audit(edited_by_hand(models("sd"), tmp_path / "hand", "sd", layers), members=sides[0], nonmembers=sides[1], **given)
    without = diffleak.audit(models("sd"), members=sides[0], nonmembers=sides[1], **given)
    for attack in ("loss", "sima"):
        frames = [audit.to_frame() for audit in (by_adapter, by_hand, without)]
        one, same, other = (frame[frame.attack == attack].sort_values("id").statistic.to_numpy() for frame in frames)
        assert spearmanr(one, same).statistic == pytest.approx(1), attack
        np.testing.assert_allclose(one, same, rtol=1e-3)
        assert spearmanr(one, other).statistic < 0.999


def test_an_adapter_that_diffleak_trains_is_merged_as_it_was_trained(models, tmp_path):
    base = models("sd")
    network: Any = hub.load(base, device="cpu").denoiser.network
    hub.add_lora(base, network, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_B" in name:
                value.normal_()
    hub.save_lora(tmp_path / "lora", base, network)
    loaded = hub.load(base, device="cpu", lora=tmp_path / "lora").denoiser.network
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.inference_mode():
        trained = network.eval()(x, 10, text).sample
        torch.testing.assert_close(loaded(x, 10, text).sample, trained, rtol=0, atol=1e-4 * trained.abs().max().item())


def config_with(folder: Path, part: str, **more: Any) -> Path:
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return folder


def test_what_libraries_warn_of_while_weights_are_read_is_said_and_recorded(tmp_path, capsys):
    import numpy as np

    import diffleak

    folder = config_with(text_folder(tmp_path / "sd"), "unet", nonsense=3)
    file = folder / "text_encoder" / "model.safetensors"
    save_file(load_file(file) | {"something.else.weight": torch.ones(3)}, file, {"format": "pt"})
    sides = [tmp_path / f"{name}.npy" for name in ("members", "nonmembers")]
    for i, side in enumerate(sides):
        np.save(side, np.random.default_rng(i).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    given = {"attacks": "loss", "captions": "empty", "timesteps": "100", "calibration": False, "allow_shift": True, "threads": 1}
    record = diffleak.audit(folder, members=sides[0], nonmembers=sides[1], **given, reference=str(folder)).record
    said = [line for line in record.warnings if line.startswith("while the model was loaded: ")]
    assert len(said) == 2
    assert "text_encoder/ holds 1 weight that its config.json does not use (first: something.else.weight)" in said[1]
    assert "The config attributes {'nonsense': 3} were passed to UNet2DConditionModel" in said[0]
    assert [line for line in record.warnings if line.startswith("of the reference: while the model was loaded: ")]
    assert capsys.readouterr().err.count("warning: while the model was loaded: text_encoder/ holds 1 weight") == 2
    assert hub.load(text_folder(tmp_path / "whole"), "float16", "cpu").warnings == (), "chatter is not recorded"


def test_listening_leaves_no_trace_and_hears_each_line_once():
    import logging
    import warnings

    import diffusers
    import transformers

    levels = diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()
    hub.load  # noqa: B018
    with hub.heard() as said:
        for _ in range(2):
            logging.getLogger("peft.tuners").warning("a layer\n  is \x1b[1mmissing\x1b[0m")
            warnings.warn("weights were cast", stacklevel=1)
        warnings.warn("an argument has another name in v6", FutureWarning, stacklevel=1)
        logging.getLogger("diffusers.x").info("not a warning")
    assert said == ["a layer is missing", "weights were cast"]
    logging.getLogger("peft.tuners").warning("later")
    assert said == ["a layer is missing", "weights were cast"]
    assert levels[0] == diffusers.utils.logging.get_verbosity()


def unknown_layers(names: Iterable[str]) -> set[str]:
    return {name for name in names if "lora" in name}


def test_nothing_is_left_in_text_encoders_but_other_weights(models, tmp_path):
    layers: Layers = {"text_encoder": layers_of("sd", "text_encoder", lambda layer: layer.endswith("q_proj"))}
    target = hub.load(models("sd"), device="cpu", lora=kohya_file(tmp_path / "a.safetensors", "sd", layers))
    encoder = networks(target)["text_encoder"]
    assert not unknown_layers(n for n, _ in encoder.named_modules()) and not hasattr(encoder, "peft_config")
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.training


def test_peft_settings_of_layers_that_the_file_lacks_are_not_drawn_at_random(models, tmp_path):
    """peft puts random layers where the settings name more than the file holds."""
    folder = peft_folder(tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    content = load_file(file)
    save_file({key: value for key, value in content.items() if "conv1" not in key}, file)
    assert "it must change only the layers that it adapts" in refusal(models("sd"), folder)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "pixart"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_networks_have_the_dtype_that_is_recorded(models, kind, dtype):
    found = {value.dtype for value in hub.load(models(kind), dtype, "cpu").denoiser.network.parameters()}
    assert found == {getattr(torch, dtype)}


@pytest.mark.parametrize("largest", [1e-2, 1e-3, 3e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_layer_of_ordinary_size_is_not_refused_for_the_smallest_steps_of_its_dtype(dtype, largest):
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.ModuleDict({"to_q": torch.nn.Linear(320, 320, bias=False)})
    network["to_q"].weight.data = 0.03 * torch.randn(320, 320, generator=generator)
    network.to(dtype)
    a, b = torch.randn(8, 320, generator=generator) / 18, torch.randn(320, 8, generator=generator)
    b *= largest / (b @ a).abs().max()
    changes = updates.updates({"unet.to_q.lora_A.weight": a, "unet.to_q.lora_B.weight": b}, {}, {"unet": network})
    was = effect.before(changes, {"unet": network})
    network["to_q"].weight.data += (b.double() @ a.double()).to(dtype)
    effect.check(changes, was, {"unet": network}, 1.0)
    network["to_q"].weight.data += (b.double() @ a.double()).to(dtype)
    with pytest.raises(UserError, match="must be merged at strength 1 "):
        effect.check(changes, was, {"unet": network}, 1.0)
