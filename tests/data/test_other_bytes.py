"""File names that are no UTF-8: an image of such a name works from end to end, and as DATA, split or output it is refused at once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import call, refused
from fixtures.models import save_untrained
from fixtures.pictures import encoded, image

import diffleak
from diffleak.data.captions import read_captions
from diffleak.data.labels import label_value
from diffleak.data.sources import open_source
from diffleak.data.split import read_split
from diffleak.errors import UserError

OTHER = os.fsdecode(b"caf\xe9")
SPELLED = "caf\\udce9"
FLAGS = ["--attacks", "loss", "--timesteps", "50", "--device", "cpu", "--no-calibration"]


@pytest.fixture
def sides(tmp_path):
    """Members of such names, in a folder of such a name below the data, and held-out images."""
    for side, folder, name in (("m", f"m/{OTHER}", OTHER), ("n", "n", "n")):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng((ord(side), i)).integers(0, 256, (8, 8, 1), dtype=np.uint8)
            (tmp_path / folder / f"{name}{i:02d}.png").write_bytes(encoded(image(pixels)))
    return ["--members", tmp_path / "m", "--nonmembers", tmp_path / "n"]


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_images_of_such_names_are_audited_reported_and_compared_under_escapes(capsys, sides, tmp_path):
    model, run = save_untrained(tmp_path / "model"), tmp_path / "run"
    assert call(capsys, "audit", model, *sides, *FLAGS, "-o", run, "--thumbnails")[0] == 0
    ids = [line.partition(",")[0] for line in (run / "samples.csv").read_text().splitlines()[1:]]
    assert sorted(ids)[0] == f"{SPELLED}/{SPELLED}00.png" and len(ids) == 24
    assert call(capsys, "report", run, "--thumbnails")[0] == call(capsys, "metrics", run / "samples.csv", "--score", "loss")[0] == 0
    assert json.loads((run / "audit.json").read_text())["plan"]["members"] == str(tmp_path / "m")


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_a_split_file_names_such_an_image_by_its_escapes_or_as_json_spells_its_bytes(sides, tmp_path):
    names = [f"{SPELLED}/{SPELLED}00.png", f"{OTHER}/{OTHER}01.png"]
    (tmp_path / "split.json").write_text(json.dumps({"members": names, "nonmembers": []}))
    assert read_split(tmp_path / "split.json", open_source(tmp_path / "m"))[0] == (names[0], f"{SPELLED}/{SPELLED}01.png")


COMMANDS = {
    "data": ["audit", "MODEL", "--members", "OTHER", "--nonmembers", "n", "-o", "run", "--dry-run"],
    "split": ["audit", "MODEL", "--data", "m", "--split", "OTHER.json", "-o", "run"],
    "output": ["audit", "MODEL", "--members", "m", "--nonmembers", "n", "-o", "OTHER/run"],
    "model": ["quality", "OTHER", "--real", "m"],
    "training": ["train", "--data", "digits", "-o", "OTHER"],
    "defence": ["defend", "dual", "--data", "OTHER", "-o", "run"],
    "captions": ["caption", "OTHER", "-o", "c.jsonl"],
    "prompts": ["prompts", "MODEL", "--prompts", "OTHER.txt"],
    "comparison": ["compare", "OTHER", "run", "-o", "cmp"],
    "report": ["report", "OTHER"],
    "reveal": ["reveal", "run", "-o", "OTHER.csv"],
    "demo": ["demo", "-o", "OTHER"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_of_other_bytes_is_refused_by_every_command_before_any_work(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, *(argument.replace("OTHER", OTHER) for argument in COMMANDS[command]))
    assert said.startswith(f"diffleak: the path of a file or folder must be UTF-8; {SPELLED}") and said.endswith(" is not: rename it")
    assert not [*tmp_path.iterdir()]


def test_such_a_path_is_refused_in_a_config_file_and_in_python_too(capsys, sides, tmp_path):
    (tmp_path / "c.yaml").write_text('output: "\\uDCE9"')
    message = "the path of a file or folder must be UTF-8"
    assert message in refused(capsys, "audit", "model", *sides, "-C", tmp_path / "c.yaml")
    with pytest.raises(UserError, match=message):
        diffleak.cohort(members=Path(OTHER), nonmembers=tmp_path / "n")
    images = diffleak.cohort(members=tmp_path / "m", nonmembers=tmp_path / "n")
    with pytest.raises(UserError, match=message):
        diffleak.audit("model", images, output=tmp_path / OTHER)


def test_half_a_character_of_json_is_no_text_of_a_caption_or_a_label(tmp_path):
    (tmp_path / "c.json").write_text('{"a.png": "\\ud800"}')
    with pytest.raises(UserError, match=r"c.json must hold an object .*got the text"):
        read_captions(tmp_path / "c.json")
    with pytest.raises(ValueError, match="got the label"):
        label_value("\ud800")
