"""Other denoisers in the place of a model's own, and averaged weights beside others: which is measured, and what is said of the choice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from fixtures.models import IMAGES, save_untrained
from safetensors.torch import load_file, save_file

import diffleak
from diffleak import hub
from diffleak.auditing.config import AuditConfig
from diffleak.config import build, command_line
from diffleak.errors import UserError

PLAIN, OTHER = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.non_ema.safetensors"
X_T = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("networks") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path) -> UNet2DModel:
    """The base after some training."""
    network = UNet2DModel.from_pretrained(base / "unet").eval()
    with torch.no_grad():
        for i, weight in enumerate(network.parameters()):
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    return network


@pytest.fixture(scope="module")
def expected(base: Path, tuned: UNet2DModel) -> dict[str, torch.Tensor]:
    """The predictions of diffusers' own networks."""
    with torch.no_grad():
        return {"base": UNet2DModel.from_pretrained(base / "unet").eval()(X_T, 50).sample, "tuned": tuned(X_T, 50).sample}


@pytest.fixture(scope="module")
def made(base: Path, tuned: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What trainers leave, each as its tool writes it."""
    out = tmp_path_factory.mktemp("made")
    average = EMAModel(tuned.parameters(), model_cls=UNet2DModel, model_config=tuned.config)
    average.save_pretrained(out / "checkpoint-500" / "unet_ema")  # diffusers' training scripts
    UNet2DModel.from_pretrained(base / "unet").save_pretrained(out / "checkpoint-500" / "unet")
    shutil.copytree(out / "checkpoint-500" / "unet_ema", out / "average alone" / "unet_ema")
    state = tuned.state_dict()
    for folder, save in {
        "accelerate": lambda folder: save_file(state, folder / "model.safetensors"),
        "accelerate before 0.25": lambda folder: torch.save(state, folder / "pytorch_model.bin"),
        "deepspeed": lambda folder: (folder / "zero_to_fp32.py").write_text(""),
        "fsdp": lambda folder: (folder / "pytorch_model_fsdp_0").mkdir() or (folder / "pytorch_model_fsdp_0" / "__0_0.distcp").touch(),
        "lora": lambda folder: save_file({"unet.mid.lora_A.weight": torch.ones(1)}, folder / "pytorch_lora_weights.safetensors"),
        "transformer": lambda folder: (folder / "transformer").mkdir(),
        "nothing": lambda folder: (folder / "trainer_state.json").write_text("{}"),
    }.items():
        (out / folder).mkdir()
        save(out / folder)
        (out / folder / "optimizer.bin").write_bytes(b"never opened")
        (out / folder / "random_states_0.pkl").write_bytes(b"never opened")
    save_file({f"_orig_mod.{key}": value for key, value in state.items()}, out / "compiled.safetensors")
    torch.save({"state_dict": state}, out / "last.ckpt")
    save_file({"lora_unet_mid.lora_down.weight": torch.ones(1)}, out / "lora.safetensors")
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}, out / "whole.safetensors")
    save_file({"input_blocks.0.0.weight": torch.ones(1)}, out / "original.safetensors")
    save_untrained(out / "colour", in_channels=3, out_channels=3)
    shutil.copytree(base / "unet", out / "no network")
    (out / "no network" / "config.json").write_text('{"model_type": "clip_text_model"}')  # as transformers writes of a text encoder
    shutil.copytree(base / "unet", out / "dual" / "unet")
    shutil.copytree(base / "unet", out / "dual" / "unet_2")
    hub.save(out / "cosine", UNet2DModel.from_pretrained(base / "unet"), hub.new_scheduler({"beta_schedule": "squaredcos_cap_v2"}))
    return out


@pytest.fixture
def both(base: Path, made: Path, tuned: UNet2DModel, tmp_path: Path) -> Callable[[str], Path]:
    """A model with averaged weights and others: a unet_ema/ folder, or a non_ema or ema copy of the base's weights."""

    def make(how: str) -> Path:
        folder = Path(shutil.copytree(base, tmp_path / how))
        if how == "unet_ema":
            shutil.copytree(made / "checkpoint-500" / how, folder / how)
        else:
            tuned.save_pretrained(folder / "unet", variant=how)
        return folder

    return make


def refusal(model: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        hub.load(model, device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) <= 400
    return message


@pytest.mark.parametrize(
    ("name", "weights", "which", "said"),
    [
        ("checkpoint-500", None, "base", "unet/ is read, and not the averaged weights (EMA) in unet_ema/; for MODEL and --network,"),
        ("checkpoint-500", "ema", "tuned", ""),
        ("checkpoint-500", "non_ema", "base", ""),
        ("checkpoint-500/unet", "ema", "tuned", ""),
        ("checkpoint-500/unet_ema", None, "tuned", ""),
        ("average alone", None, "tuned", ""),
        ("accelerate", None, "tuned", ""),
        ("accelerate before 0.25", None, "tuned", ""),
        ("accelerate/model.safetensors", None, "tuned", ""),
        ("compiled.safetensors", None, "tuned", ""),
        ("last.ckpt", None, "tuned", ""),
    ],
)
def test_another_denoiser_predicts_what_diffusers_predicts_with_it_whatever_its_trainer_left(
    base: Path, made: Path, expected: dict[str, torch.Tensor], name: str, weights: str | None, which: str, said: str
) -> None:
    target = hub.load(base, device="cpu", network=made / name, weights=weights)
    torch.testing.assert_close(target.denoiser(X_T, 50), expected[which], rtol=1e-6, atol=1e-6)
    assert (target.network, target.weights) == (str(made / name), weights)
    assert [(each.what, each.file) for each in target.headers] == ([("network", target.network)] if name.endswith(".safetensors") else [])
    assert len(target.warnings) == bool(said) and "".join(target.warnings).startswith(said)


@pytest.mark.parametrize(
    ("how", "weights", "which", "said"),
    [
        (
            "unet_ema",
            None,
            "base",
            "unet/ is read, and not the averaged weights (EMA) in unet_ema/; for MODEL and --network, --weights ema reads those",
        ),
        ("unet_ema", "ema", "tuned", ""),
        ("unet_ema", "non_ema", "base", ""),
        ("non_ema", None, "base", f"{PLAIN} is read (the average (EMA)); for MODEL and --network, --weights non_ema reads {OTHER}"),
        ("non_ema", "ema", "base", ""),
        ("non_ema", "non_ema", "tuned", ""),
        ("ema", None, "base", f"{PLAIN} is read (not the average (EMA)); for MODEL and --network, --weights ema reads "),
        ("ema", "ema", "tuned", ""),
        ("ema", "non_ema", "base", ""),
    ],
)
def test_of_averaged_weights_and_others_those_that_were_chosen_are_measured_and_without_a_choice_it_is_said(
    both: Callable[[str], Path], expected: dict[str, torch.Tensor], how: str, weights: str | None, which: str, said: str
) -> None:
    target = hub.load(both(how), device="cpu", weights=weights)
    torch.testing.assert_close(target.denoiser(X_T, 50), expected[which], rtol=1e-6, atol=1e-6)
    assert len(target.warnings) == bool(said) and said in "".join(target.warnings)


def test_the_fingerprint_is_of_the_weights_that_are_loaded(base: Path, made: Path, both: Callable[[str], Path]) -> None:
    own, folder = hub.load(base, device="cpu").fingerprint, both("unet_ema")
    assert hub.load(base, device="cpu", network=base / "unet").fingerprint == own
    assert hub.load(folder, device="cpu").fingerprint == hub.load(folder, device="cpu", weights="non_ema").fingerprint == own
    others = [
        hub.load(base, device="cpu", network=made / "accelerate").fingerprint,
        hub.load(base, device="cpu", network=made / "last.ckpt").fingerprint,
        hub.load(folder, device="cpu", weights="ema").fingerprint,
    ]
    assert len({own, *others}) == 4
    assert hub.load(base, device="cpu", network=folder / "unet_ema").fingerprint == others[2]


REFUSED = {
    "lora": "is a LoRA: use --lora ",
    "lora.safetensors": "is a LoRA: use --lora ",
    "deepspeed": "/deepspeed/zero_to_fp32.py ",
    "fsdp": "is an FSDP checkpoint: merge it with `accelerate merge-weights ",
    "whole.safetensors": "is a whole model in one file: give it as MODEL",
    "original.safetensors": "is in that of the original code (as for ComfyUI): open it with diffusers' from_single_file",
    "transformer": "holds a transformer/",
    "nothing": "must hold the weights as .safetensors, or as a state dict (.bin, .pt, .pth, .ckpt); found only optimizer.bin, random",
    "nowhere": "--network must be a folder or a file of weights; found nothing at ",
    "cosine/unet/config.json": "--network must be a folder or a file of .safetensors, .bin, .pt, .pth, .ckpt; got ",
    "deepspeed/random_states_0.pkl": "is a pickle checkpoint, which runs code when it is opened",
    "no network": "--network must be a denoiser of diffusers; ",
    "colour": "in_channels is 3 in ",
    f"colour/unet/{PLAIN}": "size mismatch for conv_in.weight",
    "cosine": "--network must have MODEL's noise schedule and prediction_type",
    f"cosine/unet/{PLAIN}": "--network must have MODEL's noise schedule and prediction_type",
    "dual": "--network must be one denoiser, and ",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_denoiser_of_the_model_is_refused_by_name_with_the_way_on(base: Path, made: Path, name: str) -> None:
    message = refusal(base, network=made / name)
    assert str(made / name.partition("/")[0]) in message and REFUSED[name] in message


def test_a_checkpoint_given_as_the_model_is_refused_with_the_way_on(made: Path) -> None:
    folder = made / "checkpoint-500"
    assert refusal(folder).endswith(f"if it is a denoiser alone, give the model it was trained from, and --network {folder}")


def test_damaged_weights_of_another_denoiser_are_refused(base: Path, made: Path, tmp_path: Path) -> None:
    state = load_file(made / "accelerate" / "model.safetensors")
    short, cut = tmp_path / "short.safetensors", tmp_path / "cut.safetensors"
    save_file({key: state[key] for key in sorted(state)[1:]}, short)
    cut.write_bytes(short.read_bytes()[:1000])
    assert refusal(base, network=short) == f"{short}: the weights do not match config.json (first: {min(state)}); re-export the model"
    assert refusal(base, network=cut).startswith(f"{cut} must be a whole safetensors file (")


@pytest.mark.parametrize("weights", ["ema", "non_ema"])
def test_a_choice_where_there_is_one_kind_of_weights_is_refused(base: Path, made: Path, weights: str) -> None:
    assert f"--weights {weights} chooses between two copies: unet/ and unet_ema/, or *.non_ema.*" in refusal(base, weights=weights)
    assert "leave out --weights" in refusal(base, network=made / "last.ckpt", weights=weights)
    assert "has neither: leave it out" in refusal(base, network=made / "accelerate", weights=weights)


def test_commands_in_messages_are_as_a_shell_reads_them(base: Path, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "deepspeed", tmp_path / "my run"))
    merge = f"merge it with `python '{folder}/zero_to_fp32.py' '{folder}' OUT`, and give OUT"
    assert refusal(base, network=folder).endswith(f"is a DeepSpeed checkpoint: {merge}")
    (folder / "global_step5").mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (folder / "global_step5" / name).touch()
    assert refusal(base, network=folder / "global_step5").endswith(merge)
    for lora in (Path(shutil.copytree(made / "lora", tmp_path / "my lora")), tmp_path / "a b.safetensors"):
        if lora.suffix:
            shutil.copy(made / "lora.safetensors", lora)
        assert refusal(base, network=lora).endswith(f"is a LoRA: use --lora '{lora}'")


def test_a_second_network_that_accelerate_saved_is_not_left_out_in_silence(base: Path, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "accelerate", tmp_path / "checkpoint-7"))
    shutil.copy(folder / "model.safetensors", folder / "model_1.safetensors")
    said = "checkpoint-7/ holds model.safetensors and model_1.safetensors; the first is measured: "
    said += "to measure the other, give its file as --network"
    assert hub.load(base, device="cpu", network=folder).warnings == (said,)


def test_the_split_and_the_training_record_are_those_of_the_other_denoiser(base: Path, tuned: UNet2DModel, tmp_path: Path) -> None:
    """Else the members of the base would be taken for those of what was trained on."""
    model, other = Path(shutil.copytree(base, tmp_path / "model")), tmp_path / "other"
    tuned.save_pretrained(other / "unet")
    for folder in (model, other):
        (folder / "split.json").write_text(json.dumps({"members": ["a"], "nonmembers": ["b"]}))
        (folder / "train.json").write_text("{}")
    assert hub.load(model, device="cpu").trained == (model / "train.json",)
    for network in (other, other / "unet", other / "unet" / PLAIN):
        target = hub.load(model, device="cpu", network=network)
        assert (target.trained, target.split_file) == ((other / "train.json",), other / "split.json")


def test_an_audit_records_another_denoiser_in_its_plan_its_report_and_its_command(base: Path, made: Path, tmp_path: Path) -> None:
    given = {"members": IMAGES[:10], "nonmembers": IMAGES[10:20], "attacks": "loss", "timesteps": "100", "device": "cpu"}
    network = made / "checkpoint-500"
    audit = diffleak.audit(base, **given, calibration=False, complexity=False, network=network, weights="ema")
    assert (audit.record.plan.network, audit.record.plan.weights) == (str(network), "ema")
    report = (audit.save(tmp_path / "audit") / "report.html").read_text()
    assert f"{network}; the fingerprint covers it" in report and "averaged (EMA)" in report
    sides = {"model": str(base), "members": "a", "nonmembers": "b"}
    assert command_line(build(AuditConfig, sides), "audit") == f"diffleak audit {base} --members a --nonmembers b"
    named = build(AuditConfig, sides, {"network": Path("out/unet"), "weights": "ema"})
    assert "--network out/unet --weights ema" in command_line(named, "audit")


def test_a_loaded_model_takes_no_other_denoiser(base: Path) -> None:
    with pytest.raises(UserError, match=r"diffleak.load\(MODEL, network=...\)"):
        diffleak.audit(hub.load(base, device="cpu"), members=IMAGES[:10], nonmembers=IMAGES[10:20], network="unet")
