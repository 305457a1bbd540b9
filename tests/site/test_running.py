"""Every command of the README and of the site runs, small, on models and images of its kind."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fixtures.commands import call
from fixtures.models import MODELS, WIDER
from fixtures.site import PAGES, blocks, listed
from fixtures.worlds import Latents, Pixels, Texts

import diffleak
from diffleak.training import config

ELSEWHERE = {  # commands that take long or need what is not here: parsed only, and why
    "diffleak demo -o demo": "trains for minutes; no test runs it, `make demo` does",
    "diffleak selfcheck": "half a minute; tests/test_cli.py runs it",
    "diffleak caption": "needs BLIP; tests/training/test_captioning.py has a small one",
    "diffleak convert": "tests/hub/test_research.py has small checkpoints of these code bases",
}
ONE = "--timesteps 100:200:100 --device cpu --threads 1"
SHORT = {  # options that make a command short, where it does not choose them itself
    "audit": f"--attacks loss {ONE}",
    "geometry": f"--attacks loss --probes 1 --limit 40 {ONE}",
    "geometry alone": "--probes 1 --limit 40 --device cpu --threads 1",
    "inquire": f"--attacks loss --repeats 3 {ONE}",
    "lora": f"--attacks loss --draws 1 --draw-steps 2 {ONE}",
    "train": "--steps 2 --batch-size 4 --device cpu --threads 1",
    "defend": "--steps 2 --batch-size 4 --device cpu --threads 1 --one-by-one",
    "quality": "--images 24 --steps 2 --device cpu --threads 1",
    "extract": "--steps 2 --limit 20 --false-copies 0.2 --device cpu --threads 1",
    "prompts": "--steps 2 --device cpu",
}
SMALLER = {"--train-size": "60", "--images": "24", "--draws": "1", "--resize": "16", "--limit": "90", "--batch-size": "8"}  # numbers
HERE = {  # for what is not here: weights of encoders, and names that a table of the page puts others in the place of
    "dinov2": "torchscript:net.pt",
    "black_box(encoder=clip)": "black_box(encoder=torchscript:net.pt,steps=2)",
    "all,gradient,noise_probe,black_box(encoder=clip)": "all,gradient,noise_probe,black_box(encoder=torchscript:net.pt,steps=2)",
    "ADAPTERS": "out/dog*.safetensors",
    "FILE": "out/dog.safetensors",
}
FOR_CAPTIONS = {"MODEL": "TEXT_MODEL", "MINE": "TRAIN"}  # in a command of a page on pixel models that draws for captions
FOLLOWED = ("README.md", "docs/recipes/")  # pages whose commands are one way, from the first to the last
TEXT = re.compile(r"\b(TEXT_MODEL|BASE|PICTURES|ADAPTER|PEFT|out/)|--draws")


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
    AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=8, **blocks_
    ).save_pretrained(at / "vae")
    new_network({**TINY, "sample_size": 4, "in_channels": 4, "out_channels": 4}).save_pretrained(at / "unet")
    DDPMScheduler().save_pretrained(at / "scheduler")


@pytest.fixture(scope="module")
def tiny_presets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The presets with networks of two narrow levels."""
    folder = tmp_path_factory.mktemp("presets")
    for preset in config.PRESETS.glob("*.yaml"):
        settings = yaml.safe_load(preset.read_text())
        kind = settings.get("kind", "denoiser")
        if "model" in settings:
            settings["model"] = MODELS.get(kind, WIDER)
        (folder / preset.name).write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config, "PRESETS", folder)
        yield


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals and p-values from few resamples: what they are worth is tested in tests/stats."""
    from diffleak.stats import images, metrics

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "BOOTSTRAPS", 500)
        patched.setattr(metrics, "PAIRED_BOOTSTRAPS", 100)
        patched.setattr(images, "RESAMPLES", 50)
        yield


@pytest.mark.usefixtures("few_divisions", "few_resamples", "tiny_presets")
@pytest.mark.commands
@pytest.mark.parametrize("unit", UNITS)
def test_every_command_runs(
    unit: str, worlds: Callable[[str, str], Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made: dict[Path, str] = {}
    for line in UNITS[unit]:
        words = shlex.split(line, comments=True)
        kind = "text" if TEXT.search(line) else "latent" if "latents" in unit else "pixels"
        place = tmp_path / ("followed" if unit.startswith(FOLLOWED) else kind)
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        output = words[words.index("-o") + 1] if "-o" in words else None
        at = place / (output or "")
        if output and made.get(at) == words[1] and "SHARDED" not in words:
            shutil.rmtree(at) if at.is_dir() else at.unlink()
        words = small([FOR_CAPTIONS.get(word, word) for word in words] if "--draws" in words else words)
        for word in words[2:]:
            for name in re.split(r"[=,:@/()]", word):
                for each in (name, f"{name}.py"):
                    lay(each, place, worlds(kind, each) if each != output else None)
        monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
        code, _, err = call(capsys, *words[1:])
        allowed = (0, 3) if "max" in line else (0,)
        assert code in allowed, (line, err)
        if output:
            assert at.exists() or "--dry-run" in words, line
        if output and at.exists():
            made[at] = words[1]
    for module in ("mine", "mymodel"):
        sys.modules.pop(module, None)


def small(words: list[str]) -> list[str]:
    """A command with smaller numbers, encoders that are here, and the options that make it short."""
    before = dict(zip(words, [None, *words], strict=False))
    words = ["DATA" if word == "digits" and before != "--preset" else word for word, before in zip(words, [None, *words], strict=False)]
    numbers = [SMALLER.get(before[word] or "", word) if word.isdigit() else HERE.get(word, word) for word in words]
    each = words[1] == "extract" and "--images" not in words  # a model that draws for captions
    alone = " alone" if words[1] == "geometry" and "--split" not in words else ""
    few = words[1] == "audit" and not {"--max-auc", "--sweep", "--group"} & {*words}  # these need more images
    extra = " --limit 40" * few + " --draws 1" * each + " --probes 1" * ("--mask" in words)
    more = f" {SHORT.get(words[1] + alone, '')}{extra}".split(" --")[1:]
    return numbers + [part for flag, *value in (f"--{option}".split() for option in more) if flag not in words for part in (flag, *value)]


def lay(name: str, place: Path, source: Path | None) -> None:
    """A copy of what a command names, unless it is there."""
    at = place / name
    if source is None or at.exists():
        return
    shutil.copytree(source, at) if source.is_dir() else shutil.copy(source, at)


SNIPPETS = [(page, i) for page, text in PAGES.items() for i, _ in enumerate(blocks(text, "python"))]


@pytest.mark.usefixtures("few_divisions", "few_resamples")
@pytest.mark.parametrize(("page", "i"), SNIPPETS)
def test_every_snippet_of_python_runs(
    page: str, i: int, worlds: Callable[[str, str], Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = list(blocks(PAGES[page], "python"))[i]
    for name in ("MODEL", "TRAIN", "HELDOUT"):
        if f'"{name}"' in code:
            lay(name, tmp_path, worlds("pixels", name))
    made: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(code, f"{page}:{i}", "exec"), made)
    for kind in [each for each in made.values() if isinstance(each, type) and issubclass(each, diffleak.Attack)]:
        rng = np.random.default_rng(0)
        images = diffleak.cohort(*rng.integers(0, 256, (2, 24, 8, 8), dtype=np.uint8))
        model = diffleak.Denoiser.from_function(lambda x_t, t: 0.9 * x_t, np.linspace(0.999, 0.01, 1000))
        assert diffleak.audit(model, images, attacks=[kind(timesteps=(100, 200))], threads=1).results
