"""The weights in folders: every way in which tools write them gives the same predictions, and what runs code is not opened."""

import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from fixtures.models import save_untrained
from safetensors.torch import load_file, save_file

from diffleak import hub
from diffleak.errors import UserError
from diffleak.hub import folders
from diffleak.hub.weights import chosen, copies, wanted
from diffleak.work.files import hash_files

PLAIN = "diffusion_pytorch_model.safetensors"
BINARY = "diffusion_pytorch_model.bin"
Write = Callable[[Path, dict[str, torch.Tensor]], object]


class Trap:
    """A pickle that makes a file when it is opened as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("weights") / "base")


@pytest.fixture(scope="module")
def state(base: Path) -> dict[str, torch.Tensor]:
    return load_file(base / "unet" / PLAIN)


@pytest.fixture(scope="module")
def predicted(base: Path) -> torch.Tensor:
    return answer(base)


@pytest.fixture
def written(base: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> Callable[[Write], Path]:
    """A copy of the model whose weights are written by the function given."""

    def make(write: Write) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(base, folder, dirs_exist_ok=True)
        (folder / "unet" / PLAIN).unlink()
        write(folder / "unet", state)
        return folder

    return make


def answer(folder: Path, **options: Any) -> torch.Tensor:
    x_t = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
    return hub.load(folder, device="cpu", **options).denoiser(x_t, 50)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        hub.load(folder, device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) <= 400 and caught.value.exit_code == 2
    return message


STATE_DICTS: dict[str, Write] = {
    "bin": lambda unet, state: torch.save(state, unet / BINARY),
    "the format before 1.6": lambda unet, state: torch.save(state, unet / BINARY, _use_new_zipfile_serialization=False),
    "pytorch_model": lambda unet, state: torch.save(state, unet / "pytorch_model.bin"),
    "pt of any name": lambda unet, state: torch.save(state, unet / "unet.pt"),
    "Lightning": lambda unet, state: torch.save({"state_dict": state, "epoch": 3}, unet / "last.ckpt"),
    "DistributedDataParallel": lambda unet, state: torch.save({f"module.{key}": state[key] for key in state}, unet / "model.pth"),
    "torch.compile": lambda unet, state: save_file({f"_orig_mod.{key}": state[key] for key in state}, unet / "model.safetensors"),
}


@pytest.mark.parametrize("how", STATE_DICTS)
def test_a_state_dict_predicts_what_the_safetensors_predict_whoever_wrote_it(
    written: Callable[[Write], Path], predicted: torch.Tensor, how: str
) -> None:
    assert torch.equal(answer(written(STATE_DICTS[how])), predicted)


@pytest.mark.parametrize("how", [{"safe_serialization": False}, {"variant": "fp16"}], ids=str)
def test_weights_in_pieces_predict_the_same_as_state_dicts_and_as_a_variant(
    base: Path, written: Callable[[Write], Path], predicted: torch.Tensor, how: dict[str, Any]
) -> None:
    whole = UNet2DModel.from_pretrained(base / "unet")
    folder = written(lambda unet, state: whole.save_pretrained(unet, max_shard_size="20KB", **how))
    assert len([*(folder / "unet").glob("*-of-*")]) > 2
    assert torch.equal(answer(folder), predicted)
    lost = sorted((folder / "unet").glob("*-of-*"))[0]
    lost.unlink()
    assert f"{lost.name} is missing: fetch the model again" in refusal(folder)


def test_a_variant_alone_is_opened_as_diffusers_opens_it_and_one_line_says_so(
    written: Callable[[Write], Path], predicted: torch.Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    half = "diffusion_pytorch_model.fp16.safetensors"
    folder = written(lambda unet, state: save_file({key: value.half() for key, value in state.items()}, unet / half))
    found, told = answer(folder), capfd.readouterr().err
    theirs = UNet2DModel.from_pretrained(folder / "unet", variant="fp16", torch_dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8), 50).sample
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found, predicted)
    said = f"while the model was loaded: unet/ holds no plain weights: {half} was opened, which is float16"
    assert told == f"warning: {said}\n" and hub.load(folder, device="cpu").warnings == (said,)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_weights_in_eight_bits_are_read_as_rounded_so_with_a_line(
    written: Callable[[Write], Path], state: dict[str, torch.Tensor], stored: torch.dtype
) -> None:
    rounded = {key: value.to(stored) for key, value in state.items()}
    folder = written(lambda unet, _: save_file(rounded, unet / PLAIN))
    target = hub.load(folder, device="cpu")
    kind = str(stored).removeprefix("torch.")
    assert target.warnings == (f"while the model was loaded: unet/{PLAIN} stores weights in 8 bits ({kind}); the rounded weights are used",)
    assert all(torch.equal(value, rounded[key].float()) for key, value in target.denoiser.network.state_dict().items())


@pytest.mark.parametrize("stored", [torch.int8, torch.uint8, torch.int32], ids=str)
@pytest.mark.parametrize("name", [PLAIN, BINARY])
def test_weights_of_whole_numbers_are_refused_and_not_taken_for_the_weights(
    base: Path, written: Callable[[Write], Path], state: dict[str, torch.Tensor], stored: torch.dtype, name: str
) -> None:
    quantised = {**state, "conv_in.weight": (state["conv_in.weight"] * 100).to(stored)}
    write = save_file if name == PLAIN else torch.save
    folder = written(lambda unet, _: write(quantised, unet / name))
    said = f"{folder / 'unet' / name}: weights must be floating point; conv_in.weight is quantised (stored as "
    for message in (refusal(folder), refusal(base, network=folder / "unet" / name)):
        assert message.startswith(said) and message.endswith("): give a copy in 16 or 32 bits")


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ([BINARY, PLAIN], PLAIN),
        (["diffusion_pytorch_model.fp16.safetensors", BINARY], BINARY),
        (["diffusion_pytorch_model.bf16.safetensors", "diffusion_pytorch_model.fp16.bin"], "diffusion_pytorch_model.fp16.bin"),
        (["diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.fp16.safetensors"], "diffusion_pytorch_model.fp16.safetensors"),
        (["optimizer.bin", "scheduler.bin", "random_states_0.pt", "training_args.bin", "ours.pt"], "ours.pt"),
        (["model-00001-of-00002.fp16.safetensors", "model.safetensors.index.fp16.json"], "model-00001-of-00002.fp16.safetensors"),
        (["scaler.pt", "config.json", "flax_model.msgpack"], None),
    ],
)
def test_of_several_copies_the_one_of_most_precision_is_taken_and_of_equals_the_safetensors(names: list[str], first: str | None) -> None:
    taken = chosen(copies(names))
    assert (taken and taken.files[0]) == first


STABLE_DIFFUSION = [  # as its repository on the hub holds them
    "model_index.json",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    *(f"unet/diffusion_pytorch_model{variant}{ending}" for variant in ("", ".fp16", ".non_ema") for ending in (".bin", ".safetensors")),
    "unet/config.json",
    *(f"text_encoder/{stem}" for stem in ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")),
]


def fetched(listed: list[str], monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[str]:
    """What is asked of the hub for a model of these files."""
    import huggingface_hub

    asked = list[str]()
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: listed)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns, ignore_patterns: asked.extend(allow_patterns) or "there"
    )
    assert folders.located("owner/name", **how) == Path("there")
    return asked


def test_of_a_hub_repository_one_copy_of_each_network_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ["model_index.json", "unet/config.json", "text_encoder/model.safetensors"]
    assert sorted(fetched(STABLE_DIFFUSION, monkeypatch)) == sorted([*usual, f"unet/{PLAIN}"])
    others = fetched(STABLE_DIFFUSION, monkeypatch, weights="non_ema")
    assert sorted(others) == sorted([*usual, "unet/diffusion_pytorch_model.non_ema.safetensors"])
    binaries = [name for name in STABLE_DIFFUSION if name.endswith((".json", ".bin"))]
    assert f"unet/{BINARY}" in fetched(binaries, monkeypatch) and "text_encoder/pytorch_model.bin" in fetched(binaries, monkeypatch)


def test_of_a_hub_repository_of_variants_alone_the_variant_is_fetched_with_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    stem = "unet/diffusion_pytorch_model"
    pieces = [f"{stem}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    listed = [*pieces, f"{stem}.safetensors.index.fp16.json", f"{stem}.fp16.bin", "unet_ema/config.json", f"unet_ema/{PLAIN}"]
    assert sorted(fetched(listed, monkeypatch)) == sorted([*pieces, listed[2], "unet_ema/config.json"])
    assert f"unet_ema/{PLAIN}" in fetched(listed, monkeypatch, weights="ema")


def test_a_hub_that_is_out_of_reach_is_one_line_however_often_it_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    its = logging.getLogger("huggingface_hub.utils._http")

    def tried(*args: Any, **how: Any) -> None:
        its.warning("Retrying in 4s [Retry 3/5].")
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", tried)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", tried)
    message = refusal(Path("owner/name"))
    assert message.startswith("no folder at owner/name, and the hub gave no such model (Name or service not known)")
    assert not caplog.messages
    its.warning("of another program")
    assert caplog.messages == ["of another program"]


def test_every_file_that_is_no_copy_of_weights_is_fetched_as_before() -> None:
    names = ["tokenizer/vocab.json", "tokenizer/spiece.model", "scheduler/scheduler_config.json", "a/pytorch_lora_weights.safetensors"]
    assert wanted([*names, "logo.png"], ["*.json", "*.model", "*.safetensors"]) == names


TRAPS: dict[str, Callable[[Path, Any], object]] = {
    "torch.save": lambda file, trap: torch.save(trap, file),
    "inside of a state dict": lambda file, trap: torch.save({"conv_in.weight": torch.zeros(1), "epoch": trap}, file),
    "the format before 1.6": lambda file, trap: torch.save({"a": trap}, file, _use_new_zipfile_serialization=False),
    "pickle": lambda file, trap: file.write_bytes(pickle.dumps(trap, protocol=2)),
}


@pytest.mark.parametrize("how", TRAPS)
def test_a_pickle_that_runs_code_is_not_opened(base: Path, tmp_path: Path, how: str) -> None:
    """In the denoiser's folder, in the autoencoder's, in a piece of weights, and as `--network`."""
    sprung, file = tmp_path / "sprung", tmp_path / "trap.bin"
    TRAPS[how](file, Trap(sprung))
    assert pickle.loads(pickle.dumps(Trap(tmp_path / "works"))) is None and (tmp_path / "works").exists(), "the trap is one"
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    told = [refusal(folder, network=file)]
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL", "scaling_factor": 1.0}')
    shutil.copy(file, folder / "vae" / BINARY)
    told.append(refusal(folder))
    shutil.rmtree(folder / "vae")
    (folder / "unet" / PLAIN).unlink()
    shutil.copy(file, folder / "unet" / "diffusion_pytorch_model-00001-of-00001.bin")
    (folder / "unet" / f"{BINARY}.index.json").write_text('{"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.bin"}}')
    told.append(refusal(folder))
    for message in told:
        assert ".mkdir), and only tensors are read; if you trust it" in message
    assert not sprung.exists()


BAD: dict[str, tuple[Write, str]] = {
    "truncated": (lambda unet, state: (torch.save(state, unet / BINARY), os.truncate(unet / BINARY, 1000)), "damaged or of another kind"),
    "text": (lambda unet, state: (unet / BINARY).write_text("never opened"), "must be a state dict as torch.save writes it; it is damaged"),
    "shapes": (lambda unet, state: torch.save({**state, "conv_in.weight": torch.zeros(3, 3)}, unet / BINARY), "size mismatch for conv_in"),
    "missing": (lambda unet, state: torch.save({k: state[k] for k in [*state][1:]}, unet / BINARY), "do not match config.json (first: "),
    "module": (lambda unet, state: torch.save(torch.nn.Linear(1, 1), unet / BINARY), "(torch.nn.modules.linear.Linear)"),
    "script": (lambda unet, state: torch.jit.script(torch.nn.ReLU()).save(str(unet / "model.pt")), "it is TorchScript, which is code"),
    "two": (lambda unet, state: torch.save({"model": state, "ema": state}, unet / "a.pt"), "one state dict; it holds model and ema: save"),
    "settings": (lambda unet, state: torch.save({"steps": 3, "name": "a"}, unet / "a.pt"), "tensors by name; got steps, name: "),
    "nothing": (lambda unet, state: torch.save({}, unet / "a.pt"), "must hold a state dict"),
    "flax": (lambda unet, state: (unet / "flax_model.msgpack").write_text(""), "found only flax_model.msgpack"),
    "two names": (lambda unet, state: [torch.save(state, unet / f"{name}.pt") for name in "ab"], "it has a.pt, b.pt: name the right one "),
    "no index": (lambda unet, state: torch.save(state, unet / "model-00001-of-00002.bin"), "the index that lists them is missing"),
    "index": (
        lambda unet, state: (torch.save(state, unet / BINARY), (unet / f"{BINARY}.index.json").write_text("{}")),
        "in weight_map",
    ),
    "outside": (
        lambda unet, state: (torch.save(state, unet / BINARY), (unet / f"{BINARY}.index.json").write_text('{"weight_map": {"a": "../a"}}')),
        "../a is missing",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_state_dict_that_cannot_be_used_is_refused_with_the_reason(written: Callable[[Write], Path], how: str) -> None:
    folder = written(BAD[how][0])
    message = refusal(folder)
    assert str(folder / "unet") in message and BAD[how][1] in message


def test_the_fingerprint_of_a_folder_with_safetensors_stays_and_covers_what_else_is_opened(
    base: Path, written: Callable[[Write], Path], state: dict[str, torch.Tensor]
) -> None:
    folder = written(lambda unet, state: save_file(state, unet / PLAIN))
    unet, schedule = folder / "unet", folder / "scheduler" / "scheduler_config.json"
    save_file(state, unet / "diffusion_pytorch_model.fp16.safetensors")
    before = hash_files([schedule, unet / "diffusion_pytorch_model.fp16.safetensors", unet / PLAIN, unet / "config.json"])
    assert hub.fingerprint(folder) == before
    torch.save({}, unet / BINARY)
    assert hub.fingerprint(folder) == before, "a state dict beside them is not opened"
    for file in unet.glob("*.safetensors"):
        file.unlink()
    torch.save(state, unet / BINARY)
    torch.save({}, unet / "optimizer.bin")
    assert (
        hub.fingerprint(folder) == hub.load(folder, device="cpu").fingerprint == hash_files([schedule, unet / BINARY, unet / "config.json"])
    )
