"""LoRA adapters: what they change, that nothing is left of them, and that one of another model is refused."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from fixtures.loras import ALPHA, RANK, lora_folder, peft_folder
from fixtures.text import CAPTIONS, CHANNELS, LATENT, pipeline, text_folder
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import diffleak
from diffleak import hub
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.headers.inspect import inspect

pytestmark = pytest.mark.usefixtures("undrawn")

FILE = "pytorch_lora_weights.safetensors"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
T = 100


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")
    return lambda kind="sd": root / kind if (root / kind).exists() else text_folder(root / kind, kind)


def answer(target: Target) -> torch.Tensor:
    """What a model predicts for two captioned latents."""
    torch.manual_seed(3)
    x = torch.randn(2, CHANNELS, LATENT, LATENT, dtype=torch.float64).to(target.x_dtype)
    with torch.inference_mode():
        return target.denoiser(x, T, target.text(CAPTIONS[:2]))


def changed(folder: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of an adapter with other weights, and diffusers' own description of it left out."""
    weights = load_file(folder / FILE)
    out.mkdir()
    save_file(change(weights) or weights, out / FILE)
    return out


def refusal(model: Path, lora: Any, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        hub.load(model, device="cpu", lora=lora, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_adapter_changes_the_answers_and_the_model_without_it_stays_bit_identical(models, tmp_path):
    before = hub.load(models("sd"), device="cpu")
    adapted = hub.load(models("sd"), device="cpu", lora=lora_folder(tmp_path / "lora", text=True))
    after = hub.load(models("sd"), device="cpu")
    assert torch.equal(answer(before), answer(after))
    assert (answer(adapted) - answer(before)).abs().max() > 1e-2
    assert before.fingerprint == after.fingerprint != adapted.fingerprint
    assert not torch.equal(adapted.text(["moon"]).vectors, before.text(["moon"]).vectors), "its text encoder is adapted too"


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "pixart"])
def test_nothing_is_left_of_an_adapter_but_other_weights(models, tmp_path, kind):
    lora = peft_folder(tmp_path / "lora", kind) if kind == "pixart" else lora_folder(tmp_path / "lora", kind, text=True)
    plain, adapted = hub.load(models(kind), device="cpu"), hub.load(models(kind), device="cpu", lora=lora)
    networks = [(t.denoiser.network, t.text.pipeline) for t in (plain, adapted)]
    assert [type(m) for m in networks[0][0].modules()] == [type(m) for m in networks[1][0].modules()]
    assert not hasattr(networks[1][0], "peft_config")
    assert not any(p.requires_grad for p in networks[1][0].parameters()) and not networks[1][0].training
    encoders = [[n for n, _ in p.text_encoder.named_parameters()] for _, p in networks]
    assert encoders[0] == encoders[1]
    assert (answer(adapted) - answer(plain)).abs().max() > 1e-3


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-13), ("float32", 1e-5)])
def test_an_adapted_model_predicts_what_diffusers_predicts_with_the_adapter_loaded(models, tmp_path, dtype, most):
    lora = lora_folder(tmp_path / "lora", text=True)
    target = hub.load(models("sd"), dtype, "cpu", lora=lora)
    made = diffusers.StableDiffusionPipeline.from_pretrained(models("sd"), torch_dtype=getattr(torch, dtype), safety_checker=None)
    made.load_lora_weights(lora)
    torch.manual_seed(3)
    x = torch.randn(2, CHANNELS, LATENT, LATENT, dtype=torch.float64).to(target.x_dtype)
    with torch.inference_mode():
        embedding = torch.cat([made.encode_prompt(text, "cpu", 1, False)[0] for text in CAPTIONS[:2]])
        expected = made.unet(x, T, embedding).sample
    assert (answer(target) - expected).abs().max().item() < most


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_a_merged_layer_is_w_plus_scale_b_a(models, tmp_path, scale):
    lora = lora_folder(tmp_path / "lora")
    plain = hub.load(models("sd"), "float64", "cpu").denoiser.network.get_submodule(LAYER).weight
    found = hub.load(models("sd"), "float64", "cpu", lora=lora, lora_scale=scale).denoiser.network.get_submodule(LAYER).weight
    weights = {k: v.double() for k, v in load_file(lora / FILE).items()}
    product = weights[f"unet.{LAYER}.lora_B.weight"] @ weights[f"unet.{LAYER}.lora_A.weight"]
    torch.testing.assert_close(found, plain + scale * ALPHA / RANK * product, rtol=0, atol=1e-14)


def test_both_layouts_of_an_adapter_are_the_same_adapter(models, tmp_path):
    diffusers_layout = hub.load(models("sd"), device="cpu", lora=lora_folder(tmp_path / "d"), lora_scale=0.7)
    peft_layout = hub.load(models("sd"), device="cpu", lora=peft_folder(tmp_path / "p"), lora_scale=0.7)
    by_file = hub.load(models("sd"), device="cpu", lora=tmp_path / "d" / FILE, lora_scale=0.7)
    assert torch.equal(answer(by_file), answer(diffusers_layout)) and by_file.fingerprint == diffusers_layout.fingerprint
    torch.testing.assert_close(answer(peft_layout), answer(diffusers_layout), rtol=0, atol=1e-6)


def test_the_fingerprint_follows_the_adapter_its_scale_and_its_peft_settings(models, tmp_path):
    one, other = lora_folder(tmp_path / "one"), lora_folder(tmp_path / "other", rank=3)
    prints = [
        hub.load(models("sd"), device="cpu", lora=lora, lora_scale=s).fingerprint for lora, s in ((one, 1.0), (one, 0.5), (other, 1.0))
    ]
    assert len(set(prints)) == 3
    peft = peft_folder(tmp_path / "peft")
    before = hub.load(models("sd"), device="cpu", lora=peft).fingerprint
    file = peft / "adapter_config.json"
    file.write_text(file.read_text().replace(f'"lora_alpha": {ALPHA}', '"lora_alpha": 1'))
    assert hub.load(models("sd"), device="cpu", lora=peft).fingerprint != before


def test_a_cleaned_adapter_of_peft_is_the_same_adapter_and_peft_loads_it_too(models, tmp_path):
    folder = peft_folder(tmp_path / "peft")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "/home/ada/models/sd"}))
    copy = tmp_path / "clean" / "adapter_model.safetensors"
    assert "base_model_name_or_path" in (inspect(folder, copy).taken_out or ())
    before, after = (hub.load(models("sd"), device="cpu", lora=lora) for lora in (folder, copy.parent))
    assert torch.equal(answer(before), answer(after))
    assert [(each.counts, each.config) for each in (*before.headers, *after.headers)] == [({"paths": 1, "users": 1}, True), ({}, True)]
    assert "The header of the adapter and its adapter_config.json give away: 1 path of the training" in before.headers[0].sentence
    assert "its adapter_config.json give away nothing private that is known." in after.headers[0].sentence
    wrapped = PeftModel.from_pretrained(pipeline("sd").unet, str(copy.parent))
    weights = get_peft_model_state_dict(wrapped)
    assert weights and all(torch.equal(value, weights[key]) for key, value in load_file(copy).items())


def test_the_fingerprint_follows_the_settings_of_peft_under_any_name(models, tmp_path):
    folder = peft_folder(tmp_path / "peft")
    file = (folder / "adapter_model.safetensors").rename(folder / "CLEAN.safetensors")
    before = hub.load(models("sd"), device="cpu", lora=file).fingerprint
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(f'"lora_alpha": {ALPHA}', '"lora_alpha": 1'))
    assert hub.load(models("sd"), device="cpu", lora=file).fingerprint != before


def test_an_adapter_of_another_model_is_refused_naming_its_first_key(models, tmp_path):
    lora = lora_folder(tmp_path / "lora")
    key = f"unet.{LAYER}.lora_A.weight"
    narrow = changed(lora, tmp_path / "narrow", lambda w: w.update({key: w[key][:, :3].contiguous()}))
    assert f"does not match the model: its {key} does not fit unet.{LAYER} of shape (8, 8)" in refusal(models("sd"), narrow)
    strange = changed(lora, tmp_path / "strange", lambda w: {k.replace("unet.", "unet.other."): v for k, v in w.items()})
    assert "does not match the model: its unet.other." in refusal(models("sd"), strange)
    assert "does not match the model: its unet.down_blocks" in refusal(models("sd3"), lora)
    assert "does not match the model: its transformer.transformer_blocks" in refusal(models("sd"), lora_folder(tmp_path / "sd3", "sd3"))


def test_no_weight_of_an_adapter_is_silently_ignored(models, tmp_path):
    lora, key = lora_folder(tmp_path / "lora"), f"unet.{LAYER}.lora_A.weight"
    extra = changed(lora, tmp_path / "extra", lambda w: w.update({"unet.nowhere.lora_A.weight": torch.ones(2, 8)}))
    assert refusal(models("sd"), extra).endswith("its unet.nowhere.lora_A.weight fits no layer")
    bare = changed(lora, tmp_path / "bare", lambda w: {k.removeprefix("unet.down_"): v for k, v in w.items()})
    assert "does not match the model" in refusal(models("sd"), bare) and "fits no layer" in refusal(models("sd"), bare)
    half = changed(lora, tmp_path / "half", lambda w: {k: v for k, v in w.items() if k != key})
    assert f"it lacks {LAYER}.lora_A.weight" in refusal(models("sd"), half)
    dora = changed(lora, tmp_path / "dora", lambda w: w.update({f"unet.{LAYER}.dora_scale": torch.ones(8)}))
    assert refusal(models("sd"), dora).endswith(f"its dora_scale of unet.{LAYER} must have shape (8, 1) or (1, 8); got (8,)")
    peft = peft_folder(tmp_path / "peft")
    weights = load_file(peft / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.nowhere.lora_A.weight": torch.ones(2, 8)}, peft / "adapter_model.safetensors")
    assert refusal(models("sd"), peft).endswith("its base_model.model.nowhere.lora_A.weight fits no layer")


def test_what_is_no_adapter_is_refused_in_one_line(models, tmp_path, monkeypatch):
    assert refusal(models("sd"), tmp_path / "no").startswith("--lora must be a file, a folder or a hub id (owner/name); found")
    for name in ("weights.bin", "weights.pt"):
        (tmp_path / name).write_bytes(b"x")
        assert f"{name} cannot be read: " in refusal(models("sd"), tmp_path / name)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert refusal(models("sd"), folder).endswith("has none: name the file itself")
    (folder / "pytorch_lora_weights.bin").write_bytes(b"x")
    assert "pytorch_lora_weights.bin cannot be read: " in refusal(models("sd"), folder)
    (tmp_path / "weights.safetensors").write_bytes(b"broken")
    assert "weights.safetensors cannot be read: " in refusal(models("sd"), tmp_path / "weights.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    assert refusal(models("sd"), tmp_path / "notes.txt").startswith("a LoRA must be a .safetensors file, or a state dict (.bin")
    lora = peft_folder(tmp_path / "peft")
    (lora / "adapter_config.json").unlink()
    assert "peft writes adapter_config.json beside adapter_model.safetensors" in refusal(models("sd"), lora)
    made = lora_folder(tmp_path / "lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refusal(models("sd"), made) == "a LoRA needs peft: pip install 'diffleak[lora]'"


def test_a_damaged_adapter_is_one_line_that_names_the_file(models, tmp_path):
    model, file = models("sd"), lora_folder(tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    whole = file.read_bytes()
    for content in (b"", b"text that is none", whole[: len(whole) // 2], b"\x00\xff" + whole[2:], b"\x08\x00" + whole[2:]):
        file.write_bytes(content)
        assert refusal(model, file).startswith(f"the LoRA {file} cannot be read: ")


def test_an_adapter_with_nan_is_refused_with_the_weight(models, tmp_path):
    broken = lambda weights: {key: value * (torch.nan if i == 1 else 1) for i, (key, value) in enumerate(sorted(weights.items()))}
    folder = changed(lora_folder(tmp_path / "lora"), tmp_path / "nan", broken)
    assert "must hold finite numbers; its unet." in refusal(models("sd"), folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lora_alpha", ["a"], "lora_alpha of .*adapter_config.json must be a number or null; got "),
        ("alpha_pattern", [1], "alpha_pattern of .*adapter_config.json must be an object or null; got "),
        ("peft_type", {"a": 1}, "peft_type of .*adapter_config.json must be a text; got "),
        ("use_dora", "yes", "use_dora of .*adapter_config.json must be true or false or null; got "),
        ("target_modules", 3, "does not match the model"),
        ("r", {"a": 1}, "does not match the model"),
    ],
)
def test_a_setting_of_an_adapter_of_another_kind_is_one_line(models, tmp_path, key, value, said):
    folder = peft_folder(tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    assert re.search(said, refusal(models("sd"), folder))


def test_settings_in_the_header_of_an_adapter_are_checked_alike(models, tmp_path):
    folder = lora_folder(tmp_path / "lora")
    file = folder / "pytorch_lora_weights.safetensors"
    weights = load_file(file)
    for metadata, said in (
        ("{", "as a JSON object; got {"),
        ("[1]", "as a JSON object; got [1]"),
        ('{"unet.lora_alpha": []}', "unet.lora_alpha of"),
    ):
        save_file(weights, file, {"format": "pt", "lora_adapter_metadata": metadata})
        assert said in refusal(models("sd"), folder)


def test_a_model_without_captions_takes_no_adapter(model_folder, latent_folder, tmp_path):
    for folder in (model_folder(), latent_folder(network="transformer")):
        message = refusal(folder, tmp_path)
        assert message == f"a LoRA needs a text-to-image model with one network, and {folder} takes no captions; leave out --lora"


def test_an_adapter_that_was_never_trained_is_refused(models, tmp_path):
    untrained = lambda weights: {key: value * (".lora_B." not in key) for key, value in weights.items()}
    message = refusal(models("sd"), changed(lora_folder(tmp_path / "lora"), tmp_path / "zero", untrained))
    assert message.endswith("changes nothing: all its B matrices are zero, as they are before training")


def test_an_adapter_that_diffleak_trained_on_another_base_is_refused(models, tmp_path):
    folder, model = lora_folder(tmp_path / "lora"), models("sd")
    record, own = folder / "train.json", hub.fingerprint(model)
    known = (f'"{own}"', f'"that of OUT/base", "base_file_fingerprint": "{own}"')  # the second of a base in one file
    for content in ("{", "[]", '{"base_fingerprint": null}', *(f'{{"base_fingerprint": {values}}}' for values in known)):
        record.write_text(content)
        hub.load(model, device="cpu", lora=folder)
    record.write_text('{"base_fingerprint": "another"}')
    assert refusal(model, folder).endswith("was trained on another model, says the train.json beside it; give that model")


def test_an_adapter_that_is_switched_off_or_given_as_the_model_is_refused(models, tmp_path):
    folder = lora_folder(tmp_path / "lora")
    assert refusal(models("sd"), folder, lora_scale=0.0).startswith("--lora-scale 0 removes the LoRA")
    assert refusal(folder, None).endswith("is a LoRA, not a model; give the model that it was made for, and this with --lora")


def test_an_adapter_has_no_path_to_other_models_in_the_process(models, tmp_path):
    level = diffusers.utils.logging.get_verbosity()
    first = hub.load(models("sd"), device="cpu")
    before = answer(first)
    hub.load(models("sd"), device="cpu", lora=lora_folder(tmp_path / "lora"))
    assert torch.equal(answer(first), before) and diffusers.utils.logging.get_verbosity() == level


@pytest.mark.parametrize("kind", ["GatedRepoError", "RepositoryNotFoundError", 401, 403, 500])
def test_a_hub_id_that_needs_a_login_says_how_to_log_in(models, monkeypatch, kind):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*args: Any, **keys: Any) -> str:
        name = getattr(errors, "HfHubHTTPError" if isinstance(kind, int) else kind)
        error = name.__new__(name)  # their arguments differ by version
        error.args = ("Access is restricted. Ask its authors.\n\nMore.",)
        error.response = SimpleNamespace(status_code=kind if isinstance(kind, int) else 401)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    loads = {"": lambda: diffleak.load("owner/name"), " as --lora": lambda: hub.load(models("sd"), device="cpu", lora="owner/name")}
    for part, call in loads.items():
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        if kind == 500:
            assert message.startswith("no folder at owner/name, and the hub gave no such model (Access is restricted")
        else:
            assert message.startswith("the hub id owner/name does not exist, or needs a login (Access is restricted")
            assert message.endswith("log in with `hf auth login` or HF_TOKEN, or pass a local folder" + part)


def test_quality_and_prompts_are_those_of_the_adapted_model(models, tmp_path, capsys):
    """As a model that is loaded with the adapter first; records and pages say which adapter it was."""
    import numpy as np

    lora = lora_folder(tmp_path / "lora")
    np.save(tmp_path / "real.npy", np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS[:3]))
    drawn = {"reference": str(tmp_path / "real.npy"), "prompts": tmp_path / "prompts.txt", "images": 12, "steps": 2, "extractor": "pixels"}
    asked = {"prompts": tmp_path / "prompts.txt", "steps": 2, "timestep": 20}
    for measure, given, which in ((diffleak.measure_quality, drawn, "images"), (diffleak.find_memorised, asked, "record")):
        plain, adapted, loaded = (
            measure(model, **given, **more)
            for model, more in (
                (models("sd"), {}),
                (models("sd"), {"lora": lora, "lora_scale": 0.5}),
                (hub.load(models("sd"), lora=lora, lora_scale=0.5), {}),
            )
        )
        plans = [getattr(found.record, "plan", found.record) for found in (plain, adapted, loaded)]
        assert capsys.readouterr().err.count(f"plan: the LoRA {lora} at scale 0.5, ") == 2
        assert [(plan.lora, plan.lora_scale) for plan in plans] == [(None, None), (str(lora), 0.5), (str(lora), 0.5)]
        assert plans[0].model_fingerprint != plans[1].model_fingerprint == plans[2].model_fingerprint
        results = [found.images if which == "images" else found.record.prompts for found in (plain, adapted, loaded)]
        assert np.array_equal(results[1], results[2]) and not np.array_equal(results[0], results[1])
        assert f"--lora {lora} --lora-scale 0.5" in adapted.record.command
        adapted.save(tmp_path / which)
        page = (tmp_path / which / ("quality.html" if which == "images" else "prompts.html")).read_text()
        assert f"with the LoRA {lora}" in page and "at scale 0.5; the fingerprint covers both" in page
        with pytest.raises(UserError, match="--lora-scale is the strength of a LoRA, and none is given"):
            measure(models("sd"), **given, lora_scale=0.5)
        with pytest.raises(UserError, match="a LoRA is applied when a model is loaded: give"):
            measure(hub.load(models("sd")), **given, lora=lora)


def test_images_drawn_without_an_adapter_are_not_those_of_the_adapted_model(models, tmp_path):
    import numpy as np

    np.save(tmp_path / "real.npy", np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS[:3]))
    given = {"reference": str(tmp_path / "real.npy"), "prompts": tmp_path / "prompts.txt", "images": 12, "steps": 2, "extractor": "pixels"}
    diffleak.measure_quality(models("sd"), **given, output=tmp_path / "out")
    with pytest.raises(UserError, match="holds images drawn with another model"):
        diffleak.measure_quality(models("sd"), **given, output=tmp_path / "out", lora=lora_folder(tmp_path / "lora"))


def test_geometry_takes_an_adapter_where_there_is_an_attack(models, tmp_path, capsys):
    import json

    import numpy as np
    from test_cli import call

    from diffleak.auditing.config import GeometryConfig
    from diffleak.config import build

    alone = {"model": models("sd"), "data": "images.npy"}
    with pytest.raises(UserError, match="without --split or --nonmembers nothing is attacked; leave out --lora"):
        build(GeometryConfig, {**alone, "lora": "adapter"})
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8))
    (tmp_path / "split.json").write_text(
        json.dumps({"members": [str(i) for i in range(12)], "nonmembers": [str(i) for i in range(12, 24)]})
    )
    lora = lora_folder(tmp_path / "lora")
    given = ["geometry", models("sd"), "--data", images, "--split", tmp_path / "split.json", "--captions", "empty", "--top", "3"]
    code, out, err = call(capsys, *given, "--lora", lora, "--lora-scale", "0.5", "-o", tmp_path / "out", "--dry-run")
    assert code == 0, err
    assert f"the LoRA {lora} at scale 0.5, " in out + err


def test_the_command_of_an_audit_of_a_model_loaded_with_an_adapter_does_not_leave_it_out(models, tmp_path):
    import numpy as np

    sides = [tmp_path / f"{name}.npy" for name in ("members", "nonmembers")]
    for i, side in enumerate(sides):
        np.save(side, np.random.default_rng(i).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    given = {"attacks": "loss", "captions": "empty", "timesteps": "100", "calibration": False, "allow_shift": True, "threads": 1}
    lora = lora_folder(tmp_path / "lora")
    loaded = diffleak.audit(hub.load(models("sd"), lora=lora), members=sides[0], nonmembers=sides[1], **given).record
    assert loaded.plan.lora == str(lora) and "from Python" in loaded.command
    assert f"--lora {lora}" in diffleak.audit(models("sd"), members=sides[0], nonmembers=sides[1], **given, lora=lora).record.command
    guided = diffleak.audit(hub.load(models("sd"), guidance_scale=2.0), members=sides[0], nonmembers=sides[1], **given).record
    assert guided.plan.guidance_scale == 2 and "from Python" in guided.command
    assert "from Python" not in diffleak.audit(models("sd"), members=sides[0], nonmembers=sides[1], **given).record.command
