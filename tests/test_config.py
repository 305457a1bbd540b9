"""Config files: each setting once, and one line for whatever else a file holds."""

import os

import pytest

from diffleak.auditing.config import AuditConfig
from diffleak.config import build, read_yaml
from diffleak.errors import UserError

YAML = {
    "tabs": ("a:\n\tb: 1", "(line 2: found character '\\t' that cannot start any token)"),
    "a key twice": ("seed: 1\nlimit: 2\nseed: 3", "(the key 'seed' is there twice)"),
    "a key twice inside": ("model:\n  layers: 1\n  layers: 2", "(the key 'layers' is there twice)"),
    "a key in two spellings": ("batch-size: 1\nbatch_size: 2", "must give each setting once; batch_size is there twice"),
    "a number and a text as keys": ('1: a\n"1": b', "(the key '1' is there twice)"),
    "merge keys": ("<<: {seed: 1}\nlimit: 2", "(the merge key << is not read; write its keys out)"),
    "several documents": ("seed: 1\n---\nseed: 2", "(line 2: expected a single document in the stream but found another document)"),
    "UTF-16": ("seed: 1".encode("utf-16"), "(it is UTF-16: save it as UTF-8)"),
    "another encoding": ("model: caf\u00e9".encode("latin-1"), "(it is not UTF-8 (byte 0xe9 at 10))"),
    "deep": ("a: " + "[" * 5000, "(it is nested too deeply)"),
    "deep mappings": ("".join(" " * k + "a:\n" for k in range(1500)), "(it is nested too deeply)"),
    "a list": ("- seed", "must hold keys and values; got list"),
    "a text": ("x" * 5000, "must hold keys and values; got str"),
    "control codes": ("a: \x00", "(unacceptable character #x0000: special characters are not allowed in"),
    "no end": ("a: [1", "(line 1: expected ',' or ']', but got '<stream end>')"),
    "a key that cannot be one": ("? [a]\n: 1", "(line 1: found unhashable key)"),
}


@pytest.mark.parametrize("kind", YAML)
def test_a_config_file_that_does_not_say_each_setting_once_is_one_line(tmp_path, kind):
    content, said = YAML[kind]
    (tmp_path / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refusal:
        read_yaml(tmp_path / "c.yaml")
    message = str(refusal.value)
    assert said in message and str(tmp_path / "c.yaml") in message and "\n" not in message


def test_a_config_file_that_is_none_is_named_for_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "it is a pipe"), (".", "it is a folder"), ("none", "No such file or directory")):
        with pytest.raises(UserError, match=rf"the config file .* cannot be read as YAML \({said}\)"):
            read_yaml(tmp_path / name)


def test_a_mark_at_the_beginning_and_keys_of_other_kinds_are_read_as_texts(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfbatch-size: 4\n")
    assert read_yaml(tmp_path / "c.yaml") == {"batch_size": 4}
    (tmp_path / "c.yaml").write_text("true: 1")
    with pytest.raises(UserError, match="unknown config key 'True'"):
        build(AuditConfig, read_yaml(tmp_path / "c.yaml"))


def test_a_long_value_of_a_config_is_cut_in_the_message():
    for given, said in (
        ({"seed": "x" * 5000}, "seed must be a whole number; got "),
        ({"x" * 5000: 1}, "unknown config key"),
        ({"exif": ["y"] * 5000}, "exif must be "),
    ):
        with pytest.raises(UserError) as refusal:
            build(AuditConfig, given)
        assert said in str(refusal.value) and len(str(refusal.value)) <= 400


@pytest.mark.parametrize("key", ["seed", "limit", "max_auc", "members", "timesteps", "model", "output", "exif", "batch_size"])
def test_a_truth_value_is_no_number_text_or_path(key):
    sides = {"members": "a", "nonmembers": "b"}
    for value in (True, False):
        with pytest.raises(
            UserError, match=f"^{key} must not be true or false; got {value}: put a text that YAML reads so, such as yes, in quotes"
        ):
            build(AuditConfig, {**sides, key: value})
    assert build(AuditConfig, {**sides, "resize": True, "calibration": True}).resize
