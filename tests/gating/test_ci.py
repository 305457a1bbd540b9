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
from diffleak.gating.limits import _room, images_needed

pytestmark = pytest.mark.usefixtures("undrawn")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "ci-gate.md"


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


@pytest.mark.parametrize(
    ("page", "said", "limit", "at_most", "passes"),
    [
        ("ci-gate.md", r"false alarms\. 0\.03 takes about ([\d,]+) images", "max_tpr", 0.03, False),
        ("ci-gate.md", r"0\.1 takes about ([\d,]+)", "max_tpr", 0.1, False),
        ("audit.md", r"0\.03 takes about ([\d,]+) images", "max_tpr", 0.03, False),
        ("audit.md", r"0\.6 takes ([\d,]+) images on each side", "max_auc", 0.6, False),
        ("audit.md", r"with about ([\d,]+) on each side, one attack that finds nothing passes", "max_auc", 0.6, True),
        ("../README.md", r"from ([\d,]+) images on each side", "max_auc", 0.6, False),
        ("../README.md", r"[Ww]ith about ([\d,]+), a model that leaks nothing passes", "max_auc", 0.6, True),
        ("before.md", r"with about ([\d,]+), one attack that finds nothing meets it", "max_auc", 0.6, True),
        ("fine-tunes.md", r"[Ww]ith about ([\d,]+), one attack that finds nothing stays", "max_excess_auc", 0.6, True),
        ("recipes/lora.md", r"[Ww]ith about ([\d,]+), one attack that finds nothing stays", "max_excess_auc", 0.6, True),
    ],
)
def test_pages_name_as_many_images_as_a_limit_takes(page, said, limit, at_most, passes):
    (number,) = re.findall(said, " ".join((DOCS / page).read_text(encoding="utf-8").split()))
    needed = images_needed(limit, at_most, 10, 10, 0.2, _room(limit) if passes else 0.0)
    assert int(number.replace(",", "")) == pytest.approx(needed, rel=0.03)
