"""Models that a function of the user's own makes: --model-from."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.commands import call, refused

from diffleak.auditing.config import AuditConfig
from diffleak.config import build, command_line
from diffleak.errors import LONGEST, UserError
from diffleak.hub.own_model import model_from
from diffleak.work.folder import UNKNOWN

SOURCE = """
import numpy as np
import torch
import diffleak
from diffleak.diffusion.codec import Autoencoder, Identity
from diffleak.diffusion.denoiser import NetworkDenoiser
from diffleak.diffusion.dual import Dual
from diffleak.diffusion.schedule import Schedule

ALPHAS = np.linspace(0.999, 0.01, 400)


class Answer(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x, t):
        return type("Said", (), {"sample": self.factor * x})


def denoiser():
    return diffleak.Denoiser.from_function(lambda x, t: 0.5 * x, ALPHAS)

def pair():
    return denoiser(), Identity()

def behind_an_autoencoder(scale="1"):
    codec = Autoencoder(Answer(1), torch.tensor([float(scale)]), torch.zeros(1))
    return denoiser(), codec

def beside_a_network():
    return Dual((network(), denoiser()))

def seen(scale="1"):
    return network(), behind_an_autoencoder(scale)[1]

def target():
    return diffleak.Target(denoiser(), fingerprint="mine")

def network(factor="2"):
    return NetworkDenoiser(Answer(factor), Schedule(ALPHAS))

def from_file(path):
    scale = float(open(path).read())
    return diffleak.Denoiser.from_function(lambda x, t: scale * x, ALPHAS)

def fails():
    raise KeyError("unet")

def odd():
    return 3

NUMBER = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_function_may_return_a_denoiser_a_pair_or_a_target(mine: Path) -> None:
    x = torch.ones(1, 1, 2, 2)
    for name in ("denoiser", "pair", "target"):
        made = model_from(f"mine:{name}")
        assert torch.equal(made.denoiser(x, 3), 0.5 * x)
        assert (made.name, made.made_by, len(str(made.code))) == (f"mine:{name}", f"mine:{name}", 64)
    (mine / "scale.txt").write_text("4")
    made = model_from("mine:from_file", "scale.txt")
    assert torch.equal(made.denoiser(x, 3), 4 * x)
    assert (made.name, made.made_by) == ("scale.txt", "mine:from_file")


def test_the_fingerprint_is_of_the_source_the_weights_and_the_file(mine: Path) -> None:
    first = model_from("mine:network", "2").fingerprint
    assert model_from("mine:network").fingerprint == first
    assert model_from("mine:network", "3").fingerprint != first
    unseen = ("denoiser", "behind_an_autoencoder", "beside_a_network")  # of which a function's weights are a part
    assert [model_from(f"mine:{name}").fingerprint for name in unseen] == [UNKNOWN] * 3
    assert UNKNOWN != model_from("mine:seen").fingerprint != model_from("mine:seen", "2").fingerprint
    (mine / "scale.txt").write_text("4")
    of_file, of_target = model_from("mine:from_file", "scale.txt").fingerprint, model_from("mine:target").fingerprint
    (mine / "scale.txt").write_text("5")
    assert model_from("mine:from_file", "scale.txt").fingerprint not in (of_file, UNKNOWN)
    (mine / "mine.py").write_text(SOURCE + "\n# another version\n")
    sys.modules.pop("mine")
    assert model_from("mine:network").fingerprint != first
    assert model_from("mine:target").fingerprint not in (of_target, "mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine", "a function that makes the model is named package.module:function, as in mine:load_model; got mine"),
        ("nowhere:f", "nowhere:f cannot be imported (No module named 'nowhere')"),
        ("mine:none", "mine:none cannot be imported (module 'mine' has no attribute 'none')"),
        ("mine:NUMBER", "mine:NUMBER must be a function that returns a diffleak.Denoiser"),
        ("mine:fails", "mine:fails fails with KeyError: 'unet'"),
        ("mine:from_file", "mine:from_file must take no argument, as no MODEL is given; mine:from_file fails with TypeError"),
        ("mine:odd", "mine:odd must return a diffleak.Denoiser, a pair (Denoiser, Codec), or a diffleak.Target; got 3"),
    ],
)
def test_what_makes_no_model_is_one_line(mine: Path, name: str, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        model_from(name)
    assert said in str(refusal.value)
    assert len(str(refusal.value)) <= LONGEST


def test_the_plan_of_an_audit_has_the_function_and_a_hash_of_its_code(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    np.save("a.npy", images[:10])
    np.save("b.npy", images[10:])
    command = [
        "audit",
        "--model-from",
        "mine:network",
        "--members",
        "a.npy",
        "--nonmembers",
        "b.npy",
        "--attacks",
        "loss",
        "--dry-run",
        "--json",
    ]
    plans = []
    for source in (SOURCE, SOURCE + "\n# another version\n"):
        (mine / "mine.py").write_text(source)
        sys.modules.pop("mine", None)
        code, out, err = call(capsys, *command)
        assert code == 0, err
        plans.append(json.loads(out))
    assert [(plan["model"], plan["model_from"]) for plan in plans] == [("mine:network", "mine:network")] * 2
    assert all(plans[0][key] != plans[1][key] for key in ("model_code", "model_fingerprint"))


def test_a_command_needs_a_model_or_a_function_that_makes_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert refused(capsys, "audit", "--members", "a", "--nonmembers", "b") == "diffleak: MODEL must be given, or --model-from"
    (tmp_path / "c.yaml").write_text("model: ./nothing")
    said = refused(capsys, "audit", "-C", tmp_path / "c.yaml", "--members", "a", "--nonmembers", "b")
    assert "found nothing at" in said, "the config file names the model"


def test_what_diffleak_does_to_models_that_it_loads_is_refused_beside_a_function() -> None:
    sides = {"members": "a", "nonmembers": "b", "model_from": "mine:f"}
    for key in ("lora", "model_config"):
        with pytest.raises(UserError, match=f"--{key.replace('_', '-')} is for a model that diffleak loads, and --model-from makes one"):
            build(AuditConfig, {**sides, key: "x"})
    for fast, typed in ((True, "--fast"), (False, "--exact")):
        with pytest.raises(UserError, match=f"^{typed} is for a model that diffleak loads"):
            build(AuditConfig, {**sides, "fast": fast})
    config = build(AuditConfig, {**sides, "model": "epoch-3.pt"})
    assert command_line(config, "audit") == "diffleak audit epoch-3.pt --model-from mine:f --members a --nonmembers b"
