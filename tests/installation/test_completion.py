"""Shell completion, as bash, zsh and fish call the command: options of every command, and choices where a setting has some."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, io, json, os, sys
from diffleak.cli import app

for shell, line in json.loads(sys.argv.pop()):
    fish = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    bash = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    os.environ.update({"_DIFFLEAK_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, **bash, **fish})
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app(prog_name="diffleak")
    print(json.dumps(out.getvalue()))
"""
OPTION = "diffleak audit --nonm"
LINES = [*((shell, OPTION) for shell in ("bash", "zsh", "fish"))]
LINES += [("bash", line) for line in ("diffleak do", "diffleak audit --release ", "diffleak audit --release w")]


@pytest.fixture(scope="module")
def offered() -> dict[tuple[str, str], str]:
    """What each shell gets for each line, which ends where the cursor is."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(LINES)], capture_output=True, text=True, check=True)
    return dict(zip(LINES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_options_of_a_command_are_offered(offered, shell):
    assert "--nonmembers" in offered[shell, OPTION] and "--members" not in offered[shell, OPTION]


def test_commands_and_choices_are_offered(offered):
    assert offered["bash", "diffleak do"].split() == ["doctor"]
    assert offered["bash", "diffleak audit --release "].split() == ["weights", "api", "images"]
    assert offered["bash", "diffleak audit --release w"].split() == ["weights"]
