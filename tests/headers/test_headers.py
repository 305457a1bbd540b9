"""`diffleak metadata`: what headers give away, copies without that, and files that are refused."""

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import call, refused
from fixtures.headers import AI_TOOLKIT, ALL, KOHYA, ONETRAINER
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from diffleak.headers.strip import NEEDED
from diffleak.records.headers import GivenAway, findings
from diffleak.work.reading import load_header

WEIGHTS = {"lora_unet_a.lora_down.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}


def saved(path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file(WEIGHTS, path, metadata=metadata)
    return path


def by_kind(metadata: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.values for finding in findings(metadata)}


def test_kohyas_header_gives_away_tags_folders_paths_comments_counts_and_the_thumbnail():
    found = by_kind(KOHYA)
    assert found["captions"] == ("sks dog", "garden", "night", "dog")
    assert found["names"] == ("10_sks dog", "1_dog")
    assert found["paths"] == ("/home/ada/models/v1-5 pruned.safetensors",)
    assert found["comments"] == ("for Ada \x1b[2J",)
    assert {"ss_num_train_images = 200", "ss_num_reg_images = 9", "10_sks dog.img_count = 20"} <= {*found["images"]}
    assert found["thumbnails"] == (f"data:image/jpeg;base64, {len(KOHYA['modelspec.thumbnail'])} characters",), "and no path within"
    assert "ss_session_id = 123" in found["ids"] and found["users"] == ("ada", "Ada") and "unknown" not in found


def test_paths_are_found_inside_of_json_in_texts_and_of_every_system():
    found = by_kind({**ONETRAINER, **AI_TOOLKIT})
    assert found["paths"] == ("D:\\runs\\My Dog", "C:/Users/Ada Love/dogs", "/workspace/dogs")
    assert (found["users"], found["names"], found["captions"]) == (("Ada Love",), ("portraits",), ("a dog", "sks"))
    assert [value.partition(" =")[0] for value in found["unknown"]][-1:] == ["job"], "which is listed as it is found"
    inside = json.dumps({"y": json.dumps(["ran in /srv/jobs/ada/run.sh, then ~/out/a.png"])})
    assert by_kind({"x": inside, "url": "https://host.org/a/b", "r": "1/2"})["paths"] == ("/srv/jobs/ada/run.sh", "~/out/a.png")


def test_settings_and_public_names_are_not_private():
    assert [finding for finding in findings({"format": "pt", "ss_learning_rate": "1e-4", "ss_v2": "True"}) if finding.private] == []
    assert findings({}) == ()
    named = json.dumps({"validate_prompts": ["a cat"], "caption_extension": ".txt", "prompt_source": "sample", "updated_at": "1"})
    assert by_kind({"ss_x": named})["captions"] == ("a cat",), "by the name of its key, and no other"


def test_a_stripped_copy_has_the_same_weights_byte_for_byte_and_nothing_private(capsys, tmp_path):
    private = {"unet.base_model_name_or_path": "/data/models/x", "unet.corda_config": {"cache_file": "/home/ada/x"}}
    settings = {"unet.r": 2, "unet.lora_alpha": 6, **private}
    file = saved(tmp_path / "a.safetensors", {**ALL, "lora_adapter_metadata": json.dumps(settings)})
    copy = tmp_path / "b.safetensors"
    code, out, _ = call(capsys, "metadata", file, "--strip", copy)
    assert code == 0 and f"stripped: {copy} (same weights, byte for byte; kept: " in out and "\x1b" not in out
    tails = [path.read_bytes()[load_header(path).begins :] for path in (file, copy)]
    assert tails[0] == tails[1] and load_header(copy).begins % 8 == 0
    assert all(np.array_equal(value, load_file(copy)[name]) for name, value in WEIGHTS.items())
    with safe_open(copy, "np") as opened:
        kept = opened.metadata()
    assert {*kept} <= {*NEEDED} and kept["format"] == "pt" and kept["ss_base_model_version"] == "sd_v1"
    assert json.loads(kept["lora_adapter_metadata"]) == {"unet.r": 2, "unet.lora_alpha": 6}
    assert call(capsys, "metadata", copy, "--fail-on", "private")[0] == 0


def test_a_copy_that_would_load_as_another_adapter_is_refused(capsys, tmp_path):
    settings = {"unet.r": 2, "unet.rank_pattern": {"/home/ada/x": 4}}
    file = saved(tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    said = "unet.rank_pattern of lora_adapter_metadata holds something private: save the adapter again"
    assert said in refused(capsys, "metadata", file, "--strip", tmp_path / "b.safetensors") and not (tmp_path / "b.safetensors").exists()


def test_fail_on_private_gives_exit_code_three_with_what_it_is(capsys, tmp_path):
    code, out, err = call(capsys, "metadata", saved(tmp_path / "a.safetensors", ALL), "--json", "--fail-on", "private")
    assert code == 3 and "gives away 6 captions and tags, 3 names of training folders and files, 4 paths" in err
    assert err.rstrip().endswith("; --strip OUT writes a copy without them")
    record = json.loads(out)
    assert record["private"] and record["tensors"] == 2 and "sks dog" in record["findings"][0]["values"]
    assert call(capsys, "metadata", saved(tmp_path / "b.safetensors"), "--fail-on", "private")[0] == 0
    assert "unknown value of --fail-on 'privat'" in refused(capsys, "metadata", tmp_path / "b.safetensors", "--fail-on", "privat")


def test_only_the_header_is_read(capsys, tmp_path):
    file, size = tmp_path / "large.safetensors", 7 * 2**30
    header = json.dumps({"__metadata__": KOHYA, "a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(file, 8 + len(header) + size)  # sparse: reading all of it would take a minute
    assert call(capsys, "metadata", file)[0] == 0


class Writes:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "code ran")


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.safetensors"])
def test_a_pickle_is_refused_by_name_or_by_its_first_bytes_and_never_opened(capsys, tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Writes(tmp_path / "ran")))
    line = refused(capsys, "metadata", tmp_path / name)
    assert "FILE must be a" in line and "a pickle" in line and not (tmp_path / "ran").exists()


def with_header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def test_a_header_whose_length_begins_as_a_pickle_does_is_read(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(with_header(b'{"__metadata__": {"ss_tag": "x"}}'.ljust(0x280)))
    assert file.read_bytes()[:2] == pickle.dumps(0, protocol=2)[:2] and load_header(file).metadata == {"ss_tag": "x"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gguf", b"GGUF", "is a GGUF file"),
        ("a.safetensors", b"GGUF\x03\0\0\0", "it is a GGUF file"),
        ("a.safetensors", b"PK\x03\x04 and so on", "it is a zip, as PyTorch pickles are"),
        ("a.safetensors", b"", "no whole safetensors file"),
        ("a.safetensors", struct.pack("<Q", 2**60) + b"{}", "no whole safetensors file"),
        ("a.safetensors", with_header(b"{no json"), "cannot be read"),
        ("a.safetensors", with_header(b"[]"), "its first 8 bytes are not the length of a header"),
        ("a.safetensors", with_header(b'{"__metadata__": {"a": 1}}'), "its __metadata__ must be texts by their names"),
        ("a.safetensors", with_header(b'{"__metadata__": {"a": "1", "a": "2"}}'), "the key 'a' is there twice"),
        ("a.safetensors", with_header(b'{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}', b"12"), "9 bytes, and it has 2"),
        ("a.safetensors", with_header(b'{"a": {"dtype": "U8"}}'), "cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_line_that_names_the_format(capsys, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refused(capsys, "metadata", tmp_path / name)


def test_a_folder_is_its_only_file_which_is_named_and_one_with_none_or_several_is_refused(capsys, tmp_path):
    folder = tmp_path / "checkpoint-500"  # as diffusers' trainer leaves it, and as `diffleak train` does
    folder.mkdir()
    for other in ("optimizer.bin", "scheduler.bin"):
        (folder / other).write_bytes(b"x")
    file = saved(folder / "pytorch_lora_weights.safetensors", KOHYA)
    code, out, _ = call(capsys, "metadata", folder, "--strip", tmp_path / "CLEAN.safetensors")
    assert code == 0 and out.startswith(f"{file}: 2 tensors") and "sks dog" in out
    assert load_file(tmp_path / "CLEAN.safetensors").keys() == WEIGHTS.keys()
    assert json.loads(call(capsys, "metadata", folder, "--json")[1])["file"] == str(file)
    saved(folder / "model.safetensors")
    said = refused(capsys, "metadata", folder)
    assert f"{folder} has 2: give one of them, such as {folder / 'model.safetensors'}" in said
    file.unlink()
    (folder / "model.safetensors").unlink()
    assert f"a .safetensors file, or a folder with one; {folder} has none" in refused(capsys, "metadata", folder)


def test_what_is_not_there_is_refused_and_a_copy_never_replaces_a_file(capsys, tmp_path):
    file = saved(tmp_path / "a.safetensors", KOHYA)
    assert "found nothing at" in refused(capsys, "metadata", tmp_path / "none.safetensors")
    before = file.read_bytes()
    assert "is there already" in refused(capsys, "metadata", file, "--strip", file) and file.read_bytes() == before
    assert "must end in .safetensors" in refused(capsys, "metadata", file, "--strip", tmp_path / "b.pt")


def test_json_that_is_nested_too_deeply_is_read_as_text():
    deep = "[" * 900 + '"/home/ada/x"' + "]" * 900
    assert by_kind({"ss_x": deep})["paths"] == ("/home/ada/x",)


OF_PEFT = {"base_model.model.a.lora_A.weight": WEIGHTS["lora_unet_a.lora_down.weight"]}
CONFIG = {
    "base_model_name_or_path": "/home/ada/models/x",
    "revision": None,
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 6,
    "init": "gaussian",
}


def of_peft(folder: Path, name: str = "adapter_model.safetensors", **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(OF_PEFT, folder / name)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **settings}))
    return folder / name


def test_the_config_of_peft_beside_an_adapter_is_looked_at_and_copied_without_what_is_private(capsys, tmp_path):
    file = of_peft(tmp_path / "a", loftq_config={"cache": "/srv/ada/cache"}, revision="main")
    for given in (file, file.parent):
        code, out, err = call(capsys, "metadata", given, "--fail-on", "private")
        assert code == 3 and "/home/ada/models/x" in out and "--strip CLEAN/adapter_model.safetensors" in out
        assert "and its adapter_config.json give away 2 paths of the training machine, 1 user name" in err
    copy = tmp_path / "clean" / file.name
    code, out, _ = call(capsys, "metadata", file, "--strip", copy)
    beside = copy.with_name("adapter_config.json")
    assert code == 0 and f"stripped: {beside} (taken out: base_model_name_or_path, revision, loftq_config)" in out
    assert json.loads(beside.read_text()) == {**CONFIG, "base_model_name_or_path": None, "loftq_config": None}
    code, out, _ = call(capsys, "metadata", copy, "--fail-on", "private", "--json")
    assert code == 0 and json.loads(out)["config"] == str(beside)


def test_a_copy_that_would_need_a_second_config_in_one_folder_is_refused_before_anything_is_written(capsys, tmp_path):
    file = of_peft(tmp_path / "a")
    copy = tmp_path / "a" / "CLEAN.safetensors"
    said = refused(capsys, "metadata", file, "--strip", copy)
    assert "adapter_config.json is there already: name a file in a new folder, such as --strip CLEAN/adapter_model.safetensors" in said
    file.with_name("adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": ["/home/ada/x"]}))
    copy = tmp_path / "b" / "CLEAN.safetensors"
    assert "target_modules of adapter_config.json holds something private" in refused(capsys, "metadata", file, "--strip", copy)
    file.with_name("adapter_config.json").write_text("[]")
    assert "adapter_config.json cannot be read (it holds a list" in refused(capsys, "metadata", file)
    assert not copy.parent.exists()


def test_a_config_belongs_to_an_adapter_of_peft_by_its_weights_or_its_name(capsys, tmp_path):
    renamed = of_peft(tmp_path / "a", "CLEAN.safetensors")
    assert "/home/ada/models/x" in call(capsys, "metadata", renamed)[1]
    other = saved(tmp_path / "a" / "kohya.safetensors")
    assert "/home/ada/models/x" not in call(capsys, "metadata", other)[1]


def test_a_base_that_is_no_hub_id_is_a_path_also_where_it_is_relative():
    key = "adapter_config.json"
    for path in ("./models/x", "out/my cat/final", "..\\x", "out\\x", "D:x", "~ada/x", "out/x/"):
        assert by_kind({key: json.dumps({"base_model_name_or_path": path})}) == {"paths": (path,)}
    for name in (
        "org/model-1.5",
        "model",
        None,
        "https://huggingface.co/org/model",
        "Stable Diffusion 1.5",
        "my org/a model",
        "s3://b/c/d",
    ):
        assert "paths" not in by_kind({key: json.dumps({"base_model_name_or_path": name})})


@pytest.mark.parametrize(
    ("file", "lists"),
    [
        ("user/lora", "diffleak metadata, on a downloaded copy of user/lora, lists them"),
        ("my out/a.safetensors", "diffleak metadata 'my out/a.safetensors' lists them"),
    ],
)
def test_a_command_that_is_named_takes_the_file(file, lists):
    assert lists in GivenAway(file=file, what="adapter", counts={"captions": 5}).sentence
