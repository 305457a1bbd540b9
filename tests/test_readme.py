"""The README: its first screen names the command for each question, its links lead somewhere, and its commands are ones that run."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from fixtures.commands import call
from fixtures.loras import lora_folder
from fixtures.text import CAPTIONS, SIDE, text_folder
from PIL import Image
from test_options import CONFIGS

from diffleak import cli
from diffleak.config import build
from diffleak.training.config import train_config

ROOT = Path(__file__).parents[1]
PAGES = {
    page.name: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", ROOT / "docs" / "ci-gate.md", ROOT / "docs" / "install.md")
}
README = PAGES["README.md"]
FIRST_SCREEN = README.partition("## Two commands")[0]
MORE = {"lora": "lora.config:LoraConfig", "split": "splitting.config:SplitConfig", "check": "checking.config:CheckConfig"}


def blocks(text: str) -> list[str]:
    """The commands in a page: lines of its blocks without a language or of bash and YAML steps, and calls in running text."""
    fenced = re.findall(r"^```(?:bash|sh|yaml)?\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line.strip().removeprefix("- ").removeprefix("run: ") for block in fenced for line in block.splitlines()]
    plain = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    inline = [call for call in re.findall(r"`(diffleak [a-z]+ [^`\n]+)`", plain) if "..." not in call]
    return [line for line in (*lines, *inline) if re.match("diffleak [a-z]", line)]


COMMANDS = [line for text in PAGES.values() for line in blocks(text)]


def section(title: str) -> str:
    return re.split(r"^#{2,3} ", README.partition(f" {title}\n")[2], maxsplit=1, flags=re.M)[0]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_has_options_that_exist_and_settings_that_fit_together(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
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


def test_the_commands_of_the_readme_are_found() -> None:
    assert len(COMMANDS) > 50
    named = {shlex.split(line, comments=True)[1] for line in COMMANDS}
    assert set(typer.main.get_command(cli.app).commands) - named <= {"reveal"}, "every command is shown once"
    assert "`diffleak reveal RUN`" in README


def test_the_first_screen_names_the_command_for_each_question() -> None:
    rows = [line for line in FIRST_SCREEN.splitlines() if line.startswith("| ")]
    for name in (
        *("split", "check", "audit", "lora", "inquire", "extract", "epsilon", "gate", "verify"),
        *("defend", "quality", "compare", "prompts", "metadata"),
    ):
        assert any(f"`{name}" in row for row in rows), name
    for flag in ("--group", "--lora", "--sweep-models"):
        assert any(flag in row for row in rows), flag
    assert "held nothing out" in FIRST_SCREEN
    order = [FIRST_SCREEN.index(f"`{name}") for name in ("split", "check", "audit", "gate")]
    assert order == sorted(order), "in the order of use"
    assert len(FIRST_SCREEN.splitlines()) <= 30


def test_every_link_inside_the_readme_has_its_heading_and_every_file_is_there() -> None:
    anchors = {slug(heading) for heading in re.findall(r"^#+ (.+)$", README, flags=re.M)}
    linked = re.findall(r"\]\(([^)\s]+)\)", README)
    assert {link[1:] for link in linked if link.startswith("#")} <= anchors
    files = [link for link in linked if not link.startswith(("#", "http"))]
    assert files and [link for link in files if not (ROOT / link).exists()] == []


def test_paragraphs_begin_with_a_capital_and_headings_stand_alone() -> None:
    plain = re.sub(r"^```.*?^```", "```", README, flags=re.M | re.S)
    paragraphs = [part for part in re.split(r"\n\s*\n|^```$", plain, flags=re.M) if part.strip()]
    assert [part[:60] for part in paragraphs if re.match(r"\s*[a-z]", part)] == []
    assert re.findall(r"[^\n]\n#{2,3} .*", plain) == []


def test_with_nothing_held_out_the_recipe_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Thirty captioned pictures and a LoRA of a tiny Stable Diffusion, the README's own lines."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder, number in (("PICTURES", 30), ("LATER", 20)):
        Path(folder).mkdir()
        for i in range(number):
            Image.fromarray(rng.integers(0, 256, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)).save(f"{folder}/{i}.png")
            Path(f"{folder}/{i}.txt").write_text(CAPTIONS[i % len(CAPTIONS)])
    text_folder(Path("BASE"))
    weights = lora_folder(Path("made")) / "pytorch_lora_weights.safetensors"
    for name in ("half", "out"):
        Path(f"{name}.safetensors").write_bytes(weights.read_bytes())
    split, audit, inquire = (
        line for line in blocks(section("Nothing was held out")) if not line.startswith(("diffleak lora", "diffleak check"))
    )
    short = " --attacks loss --timesteps 100:100:10 --device cpu"
    for line in (split, audit + short, inquire + short + " --repeats 3"):
        code, _, err = call(capsys, *shlex.split(line, comments=True)[1:])
        assert code == 0, (line, err)
    assert Path("RUN/report.html").is_file() and Path("INQUIRY/inquiry.html").is_file()
    assert len(list(Path("HALVES/members").glob("*.png"))) == len(list(Path("HALVES/members").glob("*.txt"))) == 15
