"""Too few images once near-duplicates are counted as one: refused before a model is loaded, with both numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.commands import call, refused
from PIL import Image
from safetensors.torch import save_file

import diffleak
from diffleak.data.cohort import two_sources
from diffleak.data.enough import counted, counted_before, since
from diffleak.data.sources import open_source
from diffleak.errors import UserError

pytestmark = pytest.mark.usefixtures("undrawn")

NO_MODEL = str(Path(__file__).parent)  # a folder without a model, which would be said first if it were opened first


def smooth(n: int, seed: int) -> np.ndarray:
    """Images that differ, and are large enough to have near-duplicates."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC)) for each in coarse])


def folder(path: Path, images: np.ndarray, again: int) -> Path:
    """The images as files, the first `again` of them twice, the second time a little brighter."""
    path.mkdir()
    for i, each in enumerate([*images, *np.clip(images[:again].astype(int) + 3, 0, 255).astype(np.uint8)]):
        Image.fromarray(each).save(path / f"{path.name}-{i:02}.png")
    return path


def test_an_audit_counts_what_is_left_before_it_opens_the_model(tmp_path, capsys):
    members, held = folder(tmp_path / "in", smooth(14, 0), 4), folder(tmp_path / "out", smooth(9, 1), 3)
    line = refused(capsys, "audit", NO_MODEL, "--members", members, "--nonmembers", held, "-o", tmp_path / "run")
    assert line.endswith(
        "needs at least 10 members and 10 held-out images; got 14 and 9, since near-duplicates count once (18 and 12 files): add more"
    )
    assert NO_MODEL in refused(capsys, "audit", NO_MODEL, "--members", members, "--nonmembers", members, "-o", tmp_path / "run")


def test_a_sweep_an_adapter_and_a_call_from_python_count_before_a_model_is_opened_too(tmp_path, capsys):
    members, held = folder(tmp_path / "in", smooth(14, 0), 4), folder(tmp_path / "out", smooth(9, 1), 3)
    said = "got 14 and 9, since near-duplicates count once (18 and 12 files): add more"
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    for step in (1, 2):
        save_file({"unet.x.lora_down.weight": torch.zeros(1, 1)}, adapters / f"kay-{step}.safetensors")
    sides, run = ("--members", members, "--nonmembers", held), ("-o", tmp_path / "run")
    assert said in refused(capsys, "audit", NO_MODEL, "--lora", f"{adapters}/*.safetensors", *sides, *run)
    pictures = ("--pictures", members, "--held-out", held, "--captions", "empty")
    assert said in refused(capsys, "lora", NO_MODEL, f"{adapters}/*.safetensors", *pictures, *run)
    with pytest.raises(UserError, match="got 14 and 9, since near-duplicates count once"):
        diffleak.audit(NO_MODEL, diffleak.cohort(members=members, nonmembers=held))


def test_check_and_split_say_of_the_same_images_what_the_audit_refuses(tmp_path, capsys):
    members, held = folder(tmp_path / "in", smooth(14, 0), 4), folder(tmp_path / "out", smooth(9, 1), 3)
    code, out, err = call(capsys, "check", "--members", members, "--nonmembers", held, "-o", tmp_path / "check")
    assert code == 4 and "would be refused: an audit needs at least 10 images on each side; got 14 members and 9 held-out images" in err
    assert "Too few images" in out and "(18 and 12 files)" in err
    everything = folder(tmp_path / "all", smooth(16, 2), 8)
    _, _, err = call(capsys, "split", everything, "--held-out", "0.5", "-o", tmp_path / "split.json")
    assert "an audit needs at least 10 of each" in err and "(near-duplicates count once: " in err


def test_an_inquiry_counts_what_is_left_before_it_opens_the_model(tmp_path, capsys):
    images, control = folder(tmp_path / "mine", smooth(12, 0), 0), folder(tmp_path / "later", smooth(19, 1), 1)
    line = refused(capsys, "inquire", NO_MODEL, "--images", images, "--control", control, "-o", tmp_path / "run")
    assert "there must be at least 20 controls, 5 in every half that is tested; got 19, since near-duplicates count once" in line
    assert line.endswith("(12 and 20 files): add more")


def test_many_files_are_not_looked_through_and_a_damaged_one_is_left_to_the_audit(tmp_path):
    cohort = lambda m, n: two_sources(open_source(smooth(m, 0)), open_source(smooth(n, 1)))
    assert counted_before(cohort(50, 50), (10, 10), False) is None
    assert counted_before(cohort(50, 49), (10, 10), False) == ((50, 49), (50, 49))
    damaged = folder(tmp_path / "in", smooth(12, 0), 0)
    (damaged / "in-00.png").write_bytes(b"no picture")
    both = two_sources(open_source(damaged), open_source(smooth(12, 1)))
    assert counted_before(both, (10, 10), False) is None and counted_before(both, (10, 10), True) == ((11, 12), (11, 12))


def test_a_cluster_on_both_sides_counts_on_both_or_on_neither():
    clusters, member = np.array([0, 0, 1, 2, 2, 3]), np.array([True, True, True, False, False, False])
    assert counted(clusters, member) == counted(clusters, member, across=False) == (2, 2)
    clusters[3] = 0
    assert counted(clusters, member) == (2, 3) and counted(clusters, member, across=False) == (1, 2)
    assert since((2, 3), (2, 3)) == "" and "not at all where one is on the other side (3 and 3 files)" in since(
        (1, 2), (3, 3), across=False
    )
