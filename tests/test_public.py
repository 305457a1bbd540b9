"""What `import diffleak` gives: names that resolve, with the types that editors and mypy see."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffleak

ROOT = Path(__file__).parents[1]
SCRIPT = """
import diffleak

images = diffleak.cohort(members="train", nonmembers="heldout", limit=10)
reveal_type(images)
audit = diffleak.audit("model", images, attacks=["sima", diffleak.SecMI(k=5)], reference="base", output="run")
reveal_type(audit["sima"].auc.low)
reveal_type(audit["sima"].tpr(0.01).value)
reveal_type(diffleak.load("model").denoiser)
reveal_type(diffleak.SecMI(k=5).queries)
audit["sima"].nothing
diffleak.audit("model", images, attacks=3)
"""


def test_public_names_resolve() -> None:
    for name in diffleak.__all__:
        assert getattr(diffleak, name) is not None
    assert callable(diffleak.audit) and callable(diffleak.cohort), "a submodule must not shadow a function"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diffleak.nothing  # noqa: B018


def test_the_names_that_editors_see_are_those_that_are_imported() -> None:
    tree = ast.parse(Path(diffleak.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert typed == {name: f"diffleak.{home}" for name, home in diffleak._HOMES.items()}


def test_a_users_file_is_checked_with_real_types(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "user.py"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert re.findall(r'Revealed type is "([^"]*)"', said) == [
        "diffleak.data.cohort.Cohort",
        "float | None",
        "float | None",
        "diffleak.diffusion.denoiser.Denoiser",
        "int",
    ]
    assert re.findall(r"error: (.*)", said) == [
        '"Result" has no attribute "nothing"  [attr-defined]',
        'Argument "attacks" to "audit" has incompatible type "int"; expected '
        '"str | Attack | type[Attack] | Sequence[str | Attack | type[Attack]]"  [arg-type]',
    ]
