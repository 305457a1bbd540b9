"""Every command of the README and of the site: its options exist and fit together, and it runs, small, on models and images of its kind."""

import re
import shlex
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from fixtures.commands import call
from fixtures.site import PAGES, blocks, everywhere, listed
from fixtures.worlds import Latents, Pixels, Texts
from test_options import CONFIGS

from diffleak import cli
from diffleak.config import build
from diffleak.training.config import train_config

MORE = {"lora": "lora.config:LoraConfig", "split": "splitting.config:SplitConfig", "check": "checking.config:CheckConfig"}
COMMANDS = list(dict.fromkeys(line for text in PAGES.values() for line in everywhere(text)))
ELSEWHERE = {  # commands that run in tests of their own, since they take long or need what is not here
    "diffleak demo -o demo": "tests/test_cli.py trains it small",
    "diffleak selfcheck": "tests/auditing/test_selfcheck.py",
    "diffleak caption": "needs BLIP; tests/training/test_captioning.py has a small one",
    "diffleak convert": "tests/hub has small checkpoints of these code bases",
}
ONE = "--timesteps 100:200:100 --device cpu --threads 1"
SHORT = {  # what makes a command short: later options win
    "audit": f"--attacks loss {ONE}",
    "geometry": f"--attacks loss --probes 1 {ONE}",
    "inquire": f"--attacks loss --repeats 3 {ONE}",
    "lora": "--timesteps 100:200:100 --device cpu --threads 1 --draws 1 --draw-steps 2",
    "train": "--steps 2 --device cpu",
    "defend": "--steps 2 --device cpu",
    "quality": "--images 24 --steps 2 --device cpu --threads 1",
    "extract": "--images 24 --steps 2 --device cpu --threads 1",
    "prompts": "--steps 2 --device cpu",
}
FOLLOWED = ("README.md", "docs/quick-start.md", "docs/recipes/")  # pages whose commands are one way, from the first to the last
TEXT = re.compile(r"\b(TEXT_MODEL|BASE|PICTURES|ADAPTER|out/)")


def name_of(line: str) -> str:
    return line.split()[1]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_has_options_that_exist_and_settings_that_fit_together(line: str) -> None:
    _, name, *arguments = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "1"), comments=True)
    context = typer.main.get_command(cli.app).commands[name].make_context(name, arguments)
    where = {**CONFIGS, **MORE}.get(name)
    if where is None:
        return
    given = {key: value for key, value in context.params.items() if key not in ("as_json", "preset", "config", "help")}
    if name in ("train", "defend"):
        given.pop("method", None)
        made: Any = train_config(context.params["preset"], None, **given) if name == "train" else None
        assert made is None or made.output
        return
    module, _, kind = where.partition(":")
    assert build(getattr(import_module(f"diffleak.{module}"), kind), given)


def units() -> dict[str, list[str]]:
    """Commands that run one after the other, by name: those of a page that is followed, and else those of a block."""
    found = {}
    for page, text in PAGES.items():
        if page.startswith(FOLLOWED):
            found[page] = listed(text)
        else:
            found |= {f"{page}:{i}": listed(f"```\n{block}```\n") for i, block in enumerate(blocks(text, ""))}
    return {name: kept for name, lines in found.items() if (kept := [line for line in lines if not line.startswith(tuple(ELSEWHERE))])}


UNITS = units()


@pytest.fixture(scope="module")
def worlds(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path | None]:
    """The file or folder of a name in the world of a kind, made when it is first needed."""
    root = tmp_path_factory.mktemp("worlds")
    kinds: dict[str, Any] = {"pixels": Pixels(digits), "text": Texts(), "latent": Latents(digits, latent_model)}

    def get(kind: str, name: str) -> Path | None:
        if name not in kinds[kind].makes:
            return None
        at = root / kind / name
        if not at.exists():
            at.parent.mkdir(exist_ok=True)
            kinds[kind].makes[name](at)
        return at

    return get


def latent_model(at: Path) -> None:
    """An autoencoder and a denoiser of its latents, untrained."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler
    from fixtures.models import TINY

    from diffleak.hub import new_network

    torch.manual_seed(0)
    blocks_ = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(in_channels=1, out_channels=1, latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=8, **blocks_).save_pretrained(
        at / "vae"
    )
    new_network({**TINY, "sample_size": 4, "in_channels": 4, "out_channels": 4}).save_pretrained(at / "unet")
    DDPMScheduler().save_pretrained(at / "scheduler")


@pytest.mark.usefixtures("few_divisions")
@pytest.mark.parametrize("unit", UNITS)
def test_every_command_runs(
    unit: str, worlds: Callable[[str, str], Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made: dict[str, str] = {}
    for line in UNITS[unit]:
        words = shlex.split(line, comments=True)
        kind = "text" if TEXT.search(line) else "latent" if "latents" in unit else "pixels"
        place = tmp_path / ("followed" if unit.startswith(FOLLOWED) else kind)
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        output = words[words.index("-o") + 1] if "-o" in words else None
        if output in made and made[output] == words[1] and "SHARDED" not in words:
            shutil.rmtree(output) if Path(output).is_dir() else Path(output).unlink()
        for word in words[2:]:
            for name in re.split(r"[=,:@/]", word):
                lay(name, place, worlds(kind, name) if name != output else None)
        code, _, err = call(capsys, *words[1:], *SHORT.get(words[1], "").split())
        allowed = (0, 3) if "max" in line else (0,)
        assert code in allowed, (line, err)
        if output:
            made[output] = words[1]
            assert Path(output).exists() or "--dry-run" in words, line


def lay(name: str, place: Path, source: Path | None) -> None:
    """A copy of what a command names, unless it is there."""
    at = place / name
    if source is None or at.exists():
        return
    shutil.copytree(source, at) if source.is_dir() else shutil.copy(source, at)
