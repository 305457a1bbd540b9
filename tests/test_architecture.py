"""The walls of the house, by reading the imports, and what importing the package costs."""

import ast
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import diffleak
from diffleak.errors import pip_install

SOURCE = Path(diffleak.__file__).parent
RUFF = [sys.executable, "-m", "ruff", "check", "--isolated"]
TORCH = {"torch", "diffusers", "accelerate", "transformers"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


FLOORS = (  # from the ground up: a room imports rooms of lower floors only, so those of one floor never import each other
    ("errors",),
    ("work",),
    ("config",),
    ("records",),
    ("data",),
    ("diffusion",),
    ("attacks", "geometry", "hub"),
    ("stats",),
    ("generation", "training"),
    ("defenses",),
    ("report",),
    ("gating",),
    ("auditing", "bounds", "checking", "comparison", "extraction", "headers", "prompts", "quality", "splitting"),
    ("inquiry", "sweep"),
    ("demo", "installation", "lora", "options", "reveal"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    """The rooms of the package that a file imports anything of, at its top or inside of functions."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("diffleak.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_room_imports_rooms_of_lower_floors_only(path):
    room = room_of(path)
    if room == "__init__":
        assert not any(name.startswith("diffleak.") for name in imports(path, top_level_only=True)), "not before they are used"
        return
    assert room in FLOOR, f"{room} stands on no floor"
    assert {other for other in rooms_imported(path) - {room} if FLOOR[other] >= FLOOR[room]} == set()


def test_at_most_nine_modules_stand_at_the_top():
    assert len(list(SOURCE.glob("*.py"))) <= 9


def test_no_import_is_relative():
    assert [path for path in FILES if any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(ast.parse(path.read_text())))] == []


def reached(module: str, seen: set[str]) -> set[str]:
    """All modules that importing `module` brings in by its top-level imports, the packages that hold it included."""
    path = SOURCE / Path(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not file.exists():
        return seen
    seen.add(module)
    if "." in module:
        reached(module.rpartition(".")[0], seen)
    for name in imports(file, top_level_only=True):
        seen.add(name)
        if name.startswith("diffleak"):
            reached(name, seen)
    return seen


WITHOUT_TORCH = (
    "errors",
    "config",
    "work",
    "records",
    "stats",
    "report",
    ("bounds", "checking"),
    "comparison",
    "gating",
    "headers",
    "splitting",
    "cli",
)  # rooms, whatever modules they have


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in WITHOUT_TORCH], ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_rooms_behind_the_wall_never_import_torch(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    module = ".".join(("diffleak", *(parts[:-1] if parts[-1] == "__init__" else parts)))
    assert not {name.split(".")[0] for name in reached(module, set())} & TORCH
    if room_of(path) in ("records", "stats", "report"):
        assert not {name.split(".")[0] for name in imports(path)} & TORCH, "not inside of functions either"


@pytest.mark.parametrize(
    "module",
    [
        *(
            "auditing.config",
            "defenses.config",
            "extraction.config",
            "inquiry.config",
            "prompts.config",
            "quality.config",
            "training.config",
        ),
        *("auditing.results", "auditing.score_file", "data.scan"),
    ],
)
def test_settings_and_written_results_of_a_command_need_no_torch(module):
    assert not {name.split(".")[0] for name in reached(f"diffleak.{module}", set())} & TORCH


def test_attacks_import_diffusion_attacks_and_errors_only():
    for path in (SOURCE / "attacks").glob("*.py"):
        assert rooms_imported(path) <= {"diffusion", "attacks", "errors"}, path.name
        assert "diffleak.diffusion.codec" not in imports(path), path.name


PARTS = ("model_index.json", "unet", "transformer", "scheduler_config.json", "tokenizer", "vqvae", "dual.json")


def test_only_the_hub_imports_diffusers_and_knows_its_folders():
    users = {room_of(path) for path in FILES if any(name.split(".")[0] == "diffusers" for name in imports(path))}
    assert users == {"hub"}
    for path in FILES:
        literals = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert room_of(path) == "hub" or not literals & set(PARTS), path.name


NAMED = re.compile(r"(cuda|mps|cudnn)(:\d+)?")  # devices, as code names them
OF_TORCH = {"cuda", "mps", "cudnn", "set_float32_matmul_precision"}


def test_one_module_knows_what_devices_there_are():
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        said = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        named = {text for text in said if NAMED.fullmatch(text) or text.startswith("CUDA")}
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} & OF_TORCH
        imported = {name for name in imports(path) if name.startswith(("torch.cuda", "torch.mps", "torch.backends"))}
        known = named | used | imported
        assert bool(known) == (path == SOURCE / "diffusion" / "devices.py"), (path.relative_to(SOURCE).as_posix(), known)


UNNEEDED = {"PIL", "pandas", "pyarrow", "matplotlib", "jinja2", "sklearn", "scipy", "numpy.f2py", "datasets"} | TORCH


@pytest.mark.parametrize("arguments", [["--help"], ["metrics", "scores.csv"], ["metrics", "scores.csv", "--json"]], ids=" ".join)
def test_help_and_metrics_load_only_what_they_use(tmp_path, arguments):
    rows = [f"{i},{i % 2},{i * 0.61 % 1}" for i in range(40)]
    (tmp_path / "scores.csv").write_text("\n".join(["id,member,score", *rows]))
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['diffleak', *{arguments}]\n"
        "try:\n    runpy.run_module('diffleak', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert "diffleak.cli" in loaded
    assert loaded.isdisjoint(UNNEEDED)
    assert "--json" not in arguments or "diffleak.report" not in loaded
    assert "--help" not in arguments or "pydantic" not in loaded, "a command's Config is loaded when the command is run"


def test_importing_the_package_reads_no_metadata_of_packages_until_asked_for_the_version():
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import diffleak\n"
        "assert 'importlib.metadata' not in set(sys.modules) - before\n"
        "print(diffleak.__version__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == version("diffleak")


def strings(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where every string of a file that is no f-string begins and ends: rows from 1, columns from 0."""
    with path.open("rb") as file:
        found = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.STRING]
    return [(token.start, token.end) for token in found if "f" not in re.split("[\"']", token.string, maxsplit=1)[0].lower()]


def undefined(*where: Path) -> tuple[list[tuple[str, tuple[int, int], str]], int]:
    """The names outside of strings that are defined nowhere, and how many there are in strings, where they are dimensions."""
    done = subprocess.run([*RUFF, "--select", "F821", "--output-format", "json", *map(str, where)], capture_output=True, text=True)
    found = [(Path(e["filename"]), (e["location"]["row"], e["location"]["column"] - 1), e["message"]) for e in json.loads(done.stdout)]
    places = {path: strings(path) for path, _, _ in found}
    outside = [(path.name, at, said) for path, at, said in found if not any(start <= at < end for start, end in places[path])]
    return outside, len(found) - len(outside)


def test_no_code_uses_a_name_that_is_defined_nowhere():
    """The linters let names pass, since those in jaxtyping's strings are dimensions; outside of strings none may."""
    outside, dimensions = undefined(SOURCE, Path(__file__).parent)
    assert outside == [] and dimensions > 100


def test_a_name_that_is_defined_nowhere_is_found_in_an_f_string_too(tmp_path):
    (tmp_path / "a.py").write_text('def said(x: "b") -> str:\n    return f"of {nowhere(x)} images"\n')
    assert undefined(tmp_path) == ([("a.py", (2, 17), "Undefined name `nowhere`")], 1)


def test_no_other_name_of_the_package_is_left():
    """The old name belongs to another package. It stays in the changelog, and in the one line that lets records of version 0.1 be read."""
    root = SOURCE.parents[1]
    former = "leak" + "scope"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True).stdout.split("\n")
    files = [root / name for name in listed if name] or [p for p in root.rglob("*.*") if ".venv" not in p.parts]
    texts = {p.relative_to(root).as_posix(): p.read_bytes().decode(errors="replace").lower() for p in files if p.is_file()}
    assert len(texts) > 100
    found = {name for name, text in texts.items() if former in text or former in name.lower()}
    assert found == {"CHANGELOG.md", "src/diffleak/records/base.py"}
    assert texts["src/diffleak/records/base.py"].count(former) == 1


def test_how_to_install_an_extra_is_said_in_one_place():
    holders = {p.name for p in SOURCE.rglob("*.py") if "pip install" in p.read_text(encoding="utf-8")}
    extras = set(tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert holders == {"errors.py"} and pip_install("text") == "pip install 'diffleak[text]'"
    named = set(re.findall(r"pip_install\([\"'](\w+)[\"']\)", "".join(p.read_text(encoding="utf-8") for p in SOURCE.rglob("*.py"))))
    assert named and named <= extras
