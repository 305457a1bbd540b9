"""Adapters of all kinds against dense float64 formulas, written out as loops; their names in the wild; and state dicts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from fixtures.loras import lora_folder
from fixtures.text import pipeline, text_folder
from safetensors.torch import load_file, save_file

from diffleak import hub
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.hub import adapters, effect
from diffleak.hub.updates import updates

Weights = dict[str, torch.Tensor]
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
R = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def before(model: Path) -> Weights:
    return weights(hub.load(model, "float64", "cpu"))


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {"unet": pipeline("sd").unet}


def weights(target: Target) -> Weights:
    made: Any = target.text
    networks = {name: getattr(made.pipeline, name) for name in ("unet", "text_encoder")}
    return {f"{name}.{key}": value.clone() for name, network in networks.items() for key, value in network.state_dict().items()}


def assert_merged(found: Weights, right: Weights, most: float = 1e-12) -> None:
    assert found.keys() == right.keys()
    for key, value in right.items():
        assert (found[key].double() - value.double()).abs().max().item() <= most * max(1.0, value.double().abs().max().item()), key


def refusal(model: Path, lora: Any, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        hub.load(model, device="cpu", lora=lora, **given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def kohya(layer: str, prefix: str = "lora_unet_") -> str:
    return prefix + layer.replace(".", "_")


# The formulas of LyCORIS, one number or one block after the other.


def product(b: torch.Tensor, a: torch.Tensor) -> np.ndarray:
    b, a = (value.double().numpy() for value in (b, a))
    return sum(np.outer(b[:, r].ravel(), a[r].ravel()) for r in range(len(a)))


def tucker(core: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> np.ndarray:
    """b (r, out) and a (r, in)."""
    core, b, a = (value.double().numpy() for value in (core, b, a))
    made = np.zeros((b.shape[1], a.shape[1], *core.shape[2:]))
    for o in range(b.shape[1]):
        for i in range(a.shape[1]):
            for p in range(len(b)):
                for q in range(len(a)):
                    made[o, i] += core[p, q] * b[p, o] * a[q, i]
    return made


def kronecker(w1: np.ndarray, w2: np.ndarray) -> np.ndarray:
    """w2 (rows, columns, *kernel): block (i, j) of the result is w1[i, j] w2."""
    rows, columns = w2.shape[:2]
    made = np.zeros((w1.shape[0] * rows, w1.shape[1] * columns, *w2.shape[2:]))
    for i in range(w1.shape[0]):
        for j in range(w1.shape[1]):
            made[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = w1[i, j] * w2
    return made


def decomposed(w: np.ndarray, change: np.ndarray, m: np.ndarray, scale: float) -> np.ndarray:
    """DoRA of LyCORIS, one output (m of shape (out, 1 ...)) or input (1, in, 1 ...) at a time; strengths as A1111 applies them."""
    v = w + change
    for k in range(m.size):
        part = (k,) if len(m) == m.size else (slice(None), k)
        v[part] *= m.ravel()[k] / np.sqrt((v[part] ** 2).sum())
    return w + scale * (v - w)


DRAW = torch.Generator().manual_seed(7)


def draw(*shape: int) -> torch.Tensor:
    return 0.5 * torch.randn(*shape, generator=DRAW)


def every_kind(before: Weights) -> tuple[Weights, Callable[[float], Weights]]:
    """A file in which every layer is of another kind, under kohya's names, and the weights that it makes at a scale."""
    content: Weights = {}
    changes: dict[str, np.ndarray] = {}
    doras: dict[str, np.ndarray] = {}

    def add(layer: str, parts: Weights, change: Any, alpha: float | None = None, of: str = "weight") -> None:
        content.update({f"{kohya(layer)}.{name}": value for name, value in parts.items()})
        if alpha is not None:
            content[f"{kohya(layer)}.alpha"] = torch.tensor(alpha)
        changes[f"unet.{layer}.{of}"] = np.asarray(change).reshape(before[f"unet.{layer}.{of}"].shape)

    # LoHa of a matrix, and of a convolution with cores and without
    p = {"hada_w1_a": draw(8, R), "hada_w1_b": draw(R, 8), "hada_w2_a": draw(8, R), "hada_w2_b": draw(R, 8)}
    loha = lambda p: product(p["hada_w1_a"], p["hada_w1_b"]) * product(p["hada_w2_a"], p["hada_w2_b"])
    add(f"{BLOCK}.attn1.to_q", p, 2 / R * loha(p), 2.0)
    p = {"hada_w1_a": draw(8, R), "hada_w1_b": draw(R, 72), "hada_w2_a": draw(8, R), "hada_w2_b": draw(R, 72)}
    add("down_blocks.0.resnets.0.conv1", p, loha(p))
    p = {name: draw(R, 8) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")} | {
        f"hada_t{i}": draw(R, R, 3, 3) for i in (1, 2)
    }
    both = [tucker(p[f"hada_t{i}"], p[f"hada_w{i}_a"], p[f"hada_w{i}_b"]) for i in (1, 2)]
    add("down_blocks.0.resnets.0.conv2", p, 4 / R * both[0] * both[1], 4.0)
    # LoKr: whole factors, of which alpha says nothing; one or both decomposed; a convolution whole, decomposed, and with a core
    w1, w2 = draw(2, 4), draw(4, 2)
    add(f"{BLOCK}.attn1.to_k", {"lokr_w1": w1, "lokr_w2": w2}, kronecker(w1.double().numpy(), w2.double().numpy()), 5.0)
    a, b = draw(4, R), draw(R, 2)
    add(f"{BLOCK}.attn1.to_v", {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, 5 / R * kronecker(w1.double().numpy(), product(a, b)), 5.0)
    c, d = draw(2, 2), draw(2, 4)
    p = {"lokr_w1_a": c, "lokr_w1_b": d, "lokr_w2": w2}
    add(f"{BLOCK}.attn1.to_out.0", p, 5 / 2 * kronecker(product(c, d), w2.double().numpy()), 5.0)
    w2 = draw(4, 2, 3, 3)
    add("mid_block.resnets.0.conv1", {"lokr_w1": w1, "lokr_w2": w2}, kronecker(w1.double().numpy(), w2.double().numpy()))
    a, b = draw(4, R), draw(R, 2 * 9)
    inner = product(a, b).reshape(4, 2, 3, 3)
    add("mid_block.resnets.0.conv2", {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, 2 / R * kronecker(w1.double().numpy(), inner), 2.0)
    core, a, b = draw(R, R, 3, 3), draw(R, 4), draw(R, 2)
    p = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
    add("mid_block.resnets.1.conv1", p, 2 / R * kronecker(w1.double().numpy(), tucker(core, a, b)), 2.0)
    # LoCon with a core
    up, mid, down = draw(8, R, 1, 1), draw(R, R, 3, 3), draw(R, 8, 1, 1)
    p = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}
    add("mid_block.resnets.1.conv2", p, 2 / R * tucker(mid, up.flatten(1).T, down.flatten(1)), 2.0)
    # whole differences, of a weight with its bias, of a norm, and of a bias beside a LoRA; early files have a scalar
    layer = f"{BLOCK}.ff.net.2"
    diff, bias = draw(*before[f"unet.{layer}.weight"].shape), draw(8)
    add(layer, {"diff": diff}, diff)
    add(layer, {"diff_b": bias}, bias, of="bias")
    w, b = draw(8), draw(8)
    add(f"{BLOCK}.norm1", {"w_norm": w}, w)
    add(f"{BLOCK}.norm1", {"b_norm": b}, b, of="bias")
    up, down, bias = draw(8, R), draw(R, 16), draw(8)
    add("mid_block.resnets.0.time_emb_proj", {"diff_b": bias}, bias, of="bias")
    down = draw(R, before["unet.mid_block.resnets.0.time_emb_proj.weight"].shape[1])
    p = {"lora_up.weight": up, "lora_down.weight": down, "scalar": torch.tensor(0.25)}
    add("mid_block.resnets.0.time_emb_proj", p, 0.25 * 6 / R * product(up, down), 6.0)
    # DoRA of a LoRA by output and by input, and of a LoHa
    for layer, shape, m in ((f"{BLOCK}.attn2.to_q", (8, 8), (8, 1)), (f"{BLOCK}.attn2.to_k", (8, 16), (1, 16))):
        up, down = draw(8, R), draw(R, shape[1])
        m = draw(*m).abs() + 0.5
        add(layer, {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": m}, 2 / R * product(up, down), 2.0)
        doras[f"unet.{layer}.weight"] = m.double().numpy()
    layer = "down_blocks.1.resnets.0.conv1"
    p = {"hada_w1_a": draw(8, R), "hada_w1_b": draw(R, 72), "hada_w2_a": draw(8, R), "hada_w2_b": draw(R, 72)}
    m = draw(1, 8, 1, 1).abs() + 0.5
    add(layer, {**p, "dora_scale": m}, loha(p))
    doras[f"unet.{layer}.weight"] = m.double().numpy()

    def at(scale: float) -> Weights:
        made = dict(before)
        for name, change in changes.items():
            w = before[name].double().numpy()
            now = decomposed(w, change, doras[name], scale) if name in doras else w + scale * change
            made[name] = torch.from_numpy(now)
        return made

    return content, at


@pytest.fixture(scope="module")
def mixed(before: Weights, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[float], Weights]]:
    content, at = every_kind(before)
    file = tmp_path_factory.mktemp("mixed") / "lycoris.safetensors"
    save_file({key: value.clone() for key, value in content.items()}, file)
    return file, at


@pytest.mark.parametrize(("scale", "dtype", "most"), [(1.0, "float64", 1e-12), (-0.5, "float64", 1e-12), (0.7, "float32", 1e-5)])
def test_every_kind_of_adapter_is_merged_by_its_formula(model, mixed, scale, dtype, most):
    file, at = mixed
    target = hub.load(model, dtype, "cpu", lora=file, lora_scale=scale)
    assert_merged(weights(target), at(scale), most)
    assert target.denoiser.adapted == {}, "the gradient attack looks at the network's own tensors"
    assert target.warnings == ()


def test_a_merge_by_formula_is_checked_and_what_rounding_takes_is_said(model, mixed, monkeypatch):
    file, _ = mixed
    right = effect.merge
    skipping = lambda changes: [update for update in changes if not update.layer.endswith("attn1.to_q")]
    monkeypatch.setattr(effect, "merge", lambda changes, networks, scale: right(skipping(changes), networks, scale))
    said = refusal(model, file)
    assert "attn1.to_q must be merged at strength 0.666667 as a LoHa (alpha 2, rank 3, scale 1); it has 0" in said

    def and_another(changes: Any, networks: Any, scale: float) -> None:
        right(changes, networks, scale)
        networks["unet"].conv_in.bias[0] += 1e-3

    monkeypatch.setattr(effect, "merge", and_another)
    assert refusal(model, file).endswith("it must change only the layers that it adapts; unet.conv_in.bias changed too")
    monkeypatch.setattr(effect, "merge", right)
    tiny = {key: value * 1e-3 if ".diff" in key else value for key, value in load_file(file).items() if ".diff" in key}
    save_file(tiny, file.with_name("tiny.safetensors"))
    (said, *_) = hub.load(model, "bfloat16", "cpu", lora=file.with_name("tiny.safetensors")).warnings
    assert said.startswith("the LoRA's update of unet.") and said.endswith("use --dtype float32 to audit all of it")


STEM = kohya(f"{BLOCK}.attn1.to_q")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(f"{STEM}.hada_w2_b"), f"it lacks {BLOCK}.attn1.to_q.hada_w2_b"),
        (
            lambda w: w.update({f"{STEM}.lokr_w1": torch.ones(2, 2)}),
            "must be of one kind of adapter; it has hada_w1_a, hada_w1_b, hada_w2_a",
        ),
        (lambda w: w.update({f"{STEM}.hada_w1_a": torch.ones(4, R)}), f"does not fit unet.{BLOCK}.attn1.to_q of shape (8, 8): it has "),
        (lambda w: w.update({f"{STEM}.hada_w1_a": torch.ones(8, R + 1)}), f"does not fit unet.{BLOCK}.attn1.to_q of shape (8, 8): it has "),
        (lambda w: w.update({f"{kohya('conv_in')}.lokr_w1": torch.ones(2, 2)}), "it lacks conv_in.lokr_w2_a"),
        (lambda w: w.update({f"{STEM}.diff_b": torch.ones(8)}), f"changes the bias of unet.{BLOCK}.attn1.to_q, which has none"),
        (lambda w: w.update({f"{STEM}.dora_scale": torch.ones(8)}), "must have shape (8, 1) or (1, 8); got (8,)"),
        (lambda w: w.update({f"{STEM}.alpha": torch.ones(4)}), "attn1.to_q must be one number; it has the shape (4,)"),
        (lambda w: w.update({"lora_unet_nowhere.diff": torch.ones(8)}), "its lora_unet_nowhere.diff fits no layer"),
    ],
)
def test_a_layer_that_is_not_whole_or_does_not_fit_is_refused_in_one_line(networks, change, said):
    parts = {"hada_w1_a": (8, R), "hada_w1_b": (R, 8), "hada_w2_a": (8, R), "hada_w2_b": (R, 8)}
    content = {f"{STEM}.{name}": torch.ones(shape) for name, shape in parts.items()}
    change(content)
    with pytest.raises(UserError) as caught:
        updates(content, {}, networks)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_of_any_kind_that_was_never_trained_is_refused(model, tmp_path):
    save_file({f"{STEM}.lokr_w1": torch.ones(2, 2), f"{STEM}.lokr_w2": torch.zeros(4, 4)}, tmp_path / "a.safetensors")
    assert refusal(model, tmp_path / "a.safetensors").endswith("changes nothing: all its changes are zero, as they are before training")


def test_names_in_the_wild_reach_the_same_layers(model, before, tmp_path):
    up, down, layer = draw(8, 2), draw(2, 8), f"{BLOCK}.attn1.to_out.0"
    right = {**before, f"unet.{layer}.weight": before[f"unet.{layer}.weight"] + torch.from_numpy(product(up, down))}
    old = f"{BLOCK}.attn1.processor.to_out_lora"
    named = {
        "2023": (f"{old}.up.weight", f"{old}.down.weight"),
        "2023-unet": (f"unet.{old}.up.weight", f"unet.{old}.down.weight"),
        "bare": (f"{layer}.lora_B.weight", f"{layer}.lora_A.weight"),
        "kohya": (f"{kohya(layer)}.lora_up.weight", f"{kohya(layer)}.lora_down.weight"),
        "lycoris": (f"{kohya(layer, 'lycoris_')}.lora_up.weight", f"{kohya(layer, 'lycoris_')}.lora_down.weight"),
        "comfyui": tuple(
            f"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.lora_{way}.weight" for way in ("up", "down")
        ),
    }
    for name, (b, a) in named.items():
        save_file({b: up, a: down}, tmp_path / f"{name}.safetensors")
        target = hub.load(model, "float64", "cpu", lora=tmp_path / f"{name}.safetensors")
        assert_merged(weights(target), right)
        assert list(target.denoiser.adapted) == [f"{layer}.weight"], name


def test_norms_with_the_names_of_the_first_code_and_the_t5_of_flux_by_kohyas_number_are_found(tmp_path):
    for kind, key, changed in (
        ("sdxl", "lora_unet_input_blocks_1_0_out_layers_0.w_norm", "unet.down_blocks.0.resnets.0.norm2.weight"),
        ("sdxl", "lora_unet_out_0.b_norm", "unet.conv_norm_out.bias"),
        ("flux", "lora_te3_encoder_block_0_layer_0_SelfAttention_q.diff", "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("flux", "lycoris_transformer_blocks_0_attn_to_k.diff", "transformer.transformer_blocks.0.attn.to_k.weight"),
    ):
        made = pipeline(kind)
        names = [name for name in ("unet", "transformer", "text_encoder", "text_encoder_2") if getattr(made, name, None) is not None]
        networks = {name: getattr(made, name) for name in names}
        network, _, rest = changed.partition(".")
        (found,) = updates({key: torch.ones_like(networks[network].get_parameter(rest))}, {}, networks)
        assert found.name == changed


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_a_folder_of_peft_of_another_kind_is_merged_as_peft_merges_it(model, before, tmp_path, kind):
    settings = {"r": 2, "alpha": 6, "target_modules": ["to_q", "conv1"], "alpha_pattern": {"conv1": 3}, "use_effective_conv2d": True}
    more = {"decompose_both": True, "decompose_factor": 2} if kind == "LoKr" else {}
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(pipeline("sd").unet.double(), getattr(peft, f"{kind}Config")(**settings, **more, init_weights=False))
    wrapped.save_pretrained(tmp_path / "a")
    right = {f"unet.{key}": value for key, value in wrapped.merge_and_unload().state_dict().items()}
    assert_merged(weights(hub.load(model, "float64", "cpu", lora=tmp_path / "a")), {**before, **right}, 1e-10)


class Planted:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_weights_in_eight_bits_are_merged_as_rounded_so_and_whole_numbers_are_refused(model, tmp_path):
    file = lora_folder(tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    content = load_file(file)
    rounded = {key: value.to(torch.float8_e4m3fn) for key, value in content.items()}
    save_file(rounded, tmp_path / "eight.safetensors")
    save_file({key: value.float() for key, value in rounded.items()}, tmp_path / "whole.safetensors")
    eight, whole = (hub.load(model, device="cpu", lora=tmp_path / f"{name}.safetensors") for name in ("eight", "whole"))
    assert all(torch.equal(weights(eight)[key], value) for key, value in weights(whole).items())
    said = "while the model was loaded: eight.safetensors stores weights in 8 bits (float8_e4m3fn); the rounded weights are merged"
    assert eight.warnings == (said,) and whole.warnings == ()
    first = min(content)
    save_file({**content, first: (content[first] * 100).to(torch.int8)}, tmp_path / "quantised.safetensors")
    assert f"its {first} is quantised (stored as int8): give a copy in" in refusal(model, tmp_path / "quantised.safetensors")


def test_a_state_dict_is_the_same_adapter_and_none_of_its_code_is_run(model, tmp_path):
    lora = lora_folder(tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    content = load_file(lora)
    save_file(content, lora)  # without diffusers' settings, which a state dict has not
    folder = tmp_path / "states"
    folder.mkdir()
    torch.save({key.removeprefix("unet."): value for key, value in content.items()}, folder / "pytorch_lora_weights.bin")
    same = [weights(hub.load(model, device="cpu", lora=path)) for path in (lora, folder)]
    assert all(torch.equal(same[1][key], value) for key, value in same[0].items())
    witness = tmp_path / "witness"
    torch.save({**content, "more": Planted(witness)}, folder / "pytorch_lora_weights.bin")
    said = refusal(model, folder)
    assert "pytorch_lora_weights.bin cannot be read: it holds posix.system, and only tensors are opened" in said and not witness.exists()
    torch.save(list(content.values()), folder / "pytorch_lora_weights.bin")
    file = folder / "pytorch_lora_weights.bin"
    with pytest.raises(UserError, match="it must be a dict of names and tensors"):
        adapters._read(file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"pytorch_lora_weights\.bin cannot be read: "):
            adapters._read(file)
