"""The example of docs/ci-gate.md: valid YAML of the form that GitHub takes, and commands that this command line knows."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from diffleak import cli
from diffleak.config import build
from diffleak.gating.config import GateConfig

pytestmark = pytest.mark.usefixtures("undrawn")

PAGE = Path(__file__).parents[2] / "docs" / "ci-gate.md"


def workflow():
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(example)


def commands():
    steps = [step["run"] for step in workflow()["jobs"]["gate"]["steps"] if "run" in step]
    return [shlex.split(line) for step in steps for line in step.splitlines() if line.startswith("diffleak")]


def test_the_example_runs_for_pull_requests_with_no_more_rights_than_to_read():
    found = workflow()
    assert "pull_request" in found[True], "YAML 1.1 reads the key `on` as true, and GitHub knows"
    assert found["permissions"] == {"contents": "read"}
    for step in found["jobs"]["gate"]["steps"]:
        assert ("run" in step) != ("uses" in step)


def test_every_command_of_the_example_parses_and_the_last_one_is_the_gate():
    group = typer.main.get_command(cli.app)
    assert [command[1] for command in commands()] == ["audit", "quality", "gate"]
    for _, name, *arguments in commands():
        command = group.get_command(group.make_context("diffleak", [name], resilient_parsing=True), name)
        parsed = command.make_context(name, arguments).params
        assert any(value for value in parsed.values())
    limits = {flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(*[iter(commands()[-1][3:])] * 2, strict=True)}
    config = build(GateConfig, {"run": "run", **limits})
    assert (config.max_auc, config.max_tpr, config.max_copies) == (0.6, 0.03, 0.03)


@pytest.mark.parametrize("flag", ["--max-auc", "--max-tpr", "--max-excess-auc", "--max-copies", "--max-epsilon"])
def test_the_page_says_what_each_limit_reads(flag):
    assert f"| `{flag} " in PAGE.read_text(encoding="utf-8")
