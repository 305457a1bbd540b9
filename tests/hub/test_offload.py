"""Weights that leave memory: text encoders once the captions are embedded, the denoiser with --offload. No number changes."""

import errno
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.text import CHANNELS, LATENT, captioned_sides, text_folder
from torch import Tensor

from diffleak import hub
from diffleak.attacks.gradient import Gradient
from diffleak.attacks.subject import Subject
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import prepare
from diffleak.auditing.score import Worker, score
from diffleak.config import build, command_line
from diffleak.diffusion.noise import Noise
from diffleak.errors import UserError
from diffleak.hub import loading, pipelines
from diffleak.hub.offload import offload
from diffleak.work.folder import Folder

KNOWN, OTHER = ("a house with a garden", "moon"), "a red moon"
GONE = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which says what is mapped")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("offload") / "model", "sd3")


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


def same(one: Any, two: Any) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


@GONE
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_released_text_encoders_lie_in_a_file_without_a_name_and_still_embed(kind, tmp_path):
    model, place = text_folder(tmp_path / "model", kind), tmp_path / "run"
    place.mkdir()
    fresh, text = (hub.load(model, device="cpu").text for _ in range(2))
    first, before = text(KNOWN), mapped_files().count(str(place))
    hub.embed_first(text, KNOWN, place)
    assert before == 0 and mapped_files().count(f"{place}/.weights-") >= len(text.networks)
    assert list(place.iterdir()) == []
    assert same(text(KNOWN), first) and same(text([OTHER]), fresh([OTHER])) and same(text([""]), fresh([""]))
    assert not any(value.requires_grad for network in text.networks for value in network.parameters())


def test_captions_are_embedded_first_and_once(folder, tmp_path, monkeypatch):
    text, made = hub.load(folder, device="cpu").text, list[str]()
    embed = text._embed
    monkeypatch.setattr(text, "_embed", lambda pipeline, texts: made.extend(texts) or embed(pipeline, texts))
    hub.embed_first(text, [*KNOWN, *KNOWN], tmp_path)
    text(KNOWN)
    assert made == [*KNOWN, ""]


def test_more_captions_than_are_kept_leave_the_encoders_in_memory(folder, tmp_path, monkeypatch):
    text = hub.load(folder, device="cpu").text
    monkeypatch.setattr(pipelines, "CACHE_BYTES", 2 * pipelines._size(text._embed(text.pipeline, ["moon"])))
    monkeypatch.setattr(pipelines, "map_weights", lambda *given: pytest.fail("released"))
    hub.embed_first(text, [*KNOWN, OTHER, "a blue moon"], tmp_path)
    assert len(text._kept.made) == 2


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_leaves_the_weights_in_memory_and_says_so(folder, tmp_path, monkeypatch, capsys, error):
    def refuse(*given: Any) -> None:
        raise error

    text = hub.load(folder, device="cpu").text
    monkeypatch.setattr(torch, "save", refuse)
    hub.embed_first(text, KNOWN, tmp_path)
    assert "stay in memory: they cannot be written to a file" in capsys.readouterr().err
    assert same(text([OTHER]), hub.load(folder, device="cpu").text([OTHER]))


def test_encoders_leave_an_accelerator_and_come_back_for_a_new_caption_alone(folder, tmp_path, monkeypatch):
    """With a stand-in: where the pipeline says it runs, and what its encoders are moved to."""
    text, moves = hub.load(folder, device="cpu").text, list[str]()
    monkeypatch.setattr(type(text.pipeline), "device", torch.device("cuda"))
    monkeypatch.setattr(text, "_embed", lambda pipeline, texts: moves.append("embed") or {"words": torch.zeros(len(texts), 1)})
    for network in text.networks[:1]:
        monkeypatch.setattr(network, "to", lambda device: moves.append(str(device)))
    for network in text.networks[1:]:
        monkeypatch.setattr(network, "to", lambda device: None)
    hub.embed_first(text, KNOWN, tmp_path)
    assert moves == ["embed"] * 3 + ["cpu"]
    text([*KNOWN, OTHER])
    assert moves[4:] == ["cuda", "embed", "cpu"]
    monkeypatch.setattr(text, "_embed", lambda pipeline, texts: 1 / 0)
    with pytest.raises(UserError, match="the text encoders of a StableDiffusion3Pipeline fail"):
        text(["a blue moon"])
    assert moves[7:] == ["cuda", "cpu"]


def predicted(target: Any) -> Tensor:
    x = torch.randn(2, CHANNELS, LATENT, LATENT, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return target.denoiser(x, 100, target.text(KNOWN))


def test_on_the_cpu_offload_changes_nothing_and_says_so(folder, capsys):
    plain, offloaded = hub.load(folder, device="cpu"), hub.load(folder, device="cpu", offload=True)
    assert "on the CPU it has no effect" in capsys.readouterr().err
    assert torch.equal(predicted(offloaded), predicted(plain)) and offloaded.fingerprint == plain.fingerprint


def test_load_offloads_the_denoiser_alone_and_to_the_device_that_it_runs_on(folder, monkeypatch):
    """With a stand-in for the accelerator: what is offloaded, and where every part lies before."""
    offloaded = []
    monkeypatch.setattr(loading, "checked_device", lambda device: torch.device("meta"))
    monkeypatch.setattr(loading, "offload_weights", lambda network, device: offloaded.append((network, device)))
    target = hub.load(folder, offload=True)
    assert offloaded == [(target.denoiser.network, torch.device("meta"))]
    assert {value.device.type for value in target.denoiser.network.parameters()} == {"cpu"}
    assert {value.device.type for network in target.text.networks for value in network.parameters()} == {"meta"}


def test_layers_come_one_after_the_other_and_gradient_is_refused(folder):
    plain, target = (hub.load(folder, device="cpu") for _ in range(2))
    offload(target.denoiser.network, torch.device("cpu"))
    assert all(value.is_meta for value in target.denoiser.network.parameters())
    assert torch.equal(predicted(target), predicted(plain))
    assert all(value.is_meta for value in target.denoiser.network.parameters())
    with pytest.raises(UserError, match="gradient needs the weights in the memory of the device; leave out --offload"):
        Gradient().opened(Subject(target.denoiser, torch.empty(0), Noise(0, (), ())))


def test_an_audit_with_offload_has_the_plan_of_one_without_so_either_resumes_the_other(tmp_path):
    members, nonmembers = captioned_sides(tmp_path)
    sides = {"model": text_folder(tmp_path / "model"), "members": members, "nonmembers": nonmembers, "attacks": ("sima",), "device": "cpu"}
    plain, offloaded = (prepare(build(AuditConfig, {**sides, "offload": offload})) for offload in (False, True))
    assert offloaded.plan == plain.plan
    assert "--offload" in command_line(offloaded.config, "audit") and "--offload" not in command_line(plain.config, "audit")


def test_scoring_embeds_the_captions_first_and_releases_the_encoders(tmp_path):
    members, nonmembers = captioned_sides(tmp_path)
    sides = {"members": members, "nonmembers": nonmembers, "attacks": ("sima",), "timesteps": "100", "device": "cpu"}
    prepared = prepare(build(AuditConfig, {**sides, "model": text_folder(tmp_path / "model")}))
    (tmp_path / "run").mkdir()
    assert score(prepared.job, Folder(tmp_path / "run"), Worker(0, 1, 1)) == 0
    assert prepared.job.target.text._released
    assert not list((tmp_path / "run").glob(".weights-*"))
