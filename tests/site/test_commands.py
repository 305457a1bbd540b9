"""Every command of the README and of the site has options that exist and settings that fit together."""

import pkgutil
import re
import shlex
from importlib import import_module
from typing import Any

import pytest
import typer
from fixtures.site import PAGES, everywhere
from test_options import CONFIGS

import diffleak
from diffleak import cli
from diffleak.config import build
from diffleak.training.config import train_config

MORE = {"lora": "lora.config:LoraConfig", "split": "splitting.config:SplitConfig", "check": "checking.config:CheckConfig"}
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
