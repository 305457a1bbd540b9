"""Every command of the README and of the site has options that exist and settings that fit together."""

import pkgutil
import re
import shlex
import tomllib
from importlib import import_module
from typing import Any

import pytest
import typer
from fixtures.site import PAGES, ROOT, blocks, everywhere
from test_options import CONFIGS

import diffleak
from diffleak import cli
from diffleak.config import build
from diffleak.training.config import train_config

MORE = {"lora": "lora.config:LoraConfig", "split": "splitting.config:SplitConfig", "check": "checking.config:CheckConfig"}
OTHERS = [  # lines of blocks that are commands of other programs, or comments
    (page, line.partition(" #")[0].strip())
    for page, text in PAGES.items()
    for block in blocks(text, "", "text", "console")
    for line in block.splitlines()
    if line and not re.match(r"diffleak [a-z]|#", line)
]
SHELL = {"git clone https://github.com/OWNER/diffleak", "cd diffleak", "python3 -m venv .venv", ". .venv/bin/activate"}
COMMANDS = list(dict.fromkeys(line for text in PAGES.values() for line in everywhere(text)))


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


@pytest.mark.parametrize("page", PAGES)
def test_every_public_name_of_a_page_exists(page: str) -> None:
    named = set(re.findall(r"(?<![\w/-])diffleak\.([A-Za-z]\w*)", PAGES[page]))
    modules = {module.name for module in pkgutil.iter_modules(diffleak.__path__)}
    assert named <= {*diffleak.__all__, *modules}


@pytest.mark.parametrize(("page", "line"), OTHERS)
def test_a_command_that_no_test_of_the_site_runs_names_what_is_there(page: str, line: str) -> None:
    """They install, build containers, or take minutes: the parts that they name exist. `make dist` installs the wheel and tries it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for command in line.split(" && "):
        if command in SHELL:  # needs a network or changes the shell; the Makefile sets up the same environment
            continue
        program, *words = shlex.split(command)
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        elif program == "pip" and words[0] == "install":
            files = [word for word, before in zip(words, [None, *words], strict=False) if before in ("-r", "-c")]
            own = [re.fullmatch(r"(?:\.|diffleak)(?:\[(.*)\])?", word) for word in words[1:]]
            assert all((ROOT / name).is_file() for name in files)
            assert {part for found in own if found and found[1] for part in found[1].split(",")} <= set(project["optional-dependencies"])
            assert files or any(own)
        elif program == "docker" and words[0] == "run":
            name, *arguments = words[words.index("diffleak") + 1 :]
            assert typer.main.get_command(cli.app).commands[name].make_context(name, arguments)
        elif program == "docker":
            assert words[0] == "build" and (ROOT / "Dockerfile").is_file()
        else:
            options = {flag for each in typer.main.get_command(cli.app).params for flag in each.opts}
            assert program == "diffleak" and words and set(words) <= options
