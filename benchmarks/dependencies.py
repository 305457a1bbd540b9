"""What each requirement of pyproject.toml costs and gives: the table of docs/design/002-dependencies.md.

    python benchmarks/dependencies.py [--releases FILE]

size: megabytes of the installed files. with others: of all packages that no other requirement of its part needs. files: those of
src that import it. FILE: a table by tabs with the columns name, version and month of the newest release, such as an index publishes.
"""

import argparse
import ast
import csv
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "diffleak"
DIFFLEAK = "diffleak"


def plain(name: str) -> str:
    """A name of a distribution in its one spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """The installed packages that a package needs here, itself among them."""
    found: dict[tuple[str, frozenset[str]], None] = {}
    waiting = [(plain(name), extras)]
    while waiting:
        each, parts = waiting.pop()
        if (each, parts) in found:
            continue
        try:
            lines = distribution(each).requires or []
        except PackageNotFoundError:
            continue
        found[each, parts] = None
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": part}) for part in {"", *parts}):
                waiting.append((plain(requirement.name), frozenset(requirement.extras)))
    return {each for each, _ in found}


def size(name: str) -> float:
    """Megabytes of the files of an installed package."""
    files = distribution(name).files or []
    paths = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def imported() -> dict[str, int]:
    """How many files of src import something of each distribution."""
    owners = packages_distributions()
    counts: dict[str, int] = {}
    for path in SOURCE.rglob("*.py"):
        nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        for owner in {plain(owner) for name in names for owner in owners.get(name.split(".")[0], ())}:
            counts[owner] = counts.get(owner, 0) + 1
    return counts


def releases(file: Path | None) -> dict[str, tuple[str, str]]:
    """Version and month of the newest release by name."""
    if file is None:
        return {}
    with file.open(encoding="utf-8", newline="") as opened:
        rows = csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {plain(row["name"]): (row["version"], row["month"]) for row in rows}


def table(part: str, lines: list[str], newest: dict[str, tuple[str, str]]) -> None:
    """Prints a row for each requirement of a part of the project, the largest first."""
    requirements = {plain(each.name): each for each in map(Requirement, lines) if each.name != DIFFLEAK}
    here = {name for name in requirements if needs(name)}
    closures = {name: needs(name, frozenset(requirements[name].extras)) for name in here}
    uses, sizes = imported(), {name: size(name) for name in set().union(*closures.values(), ())}
    print(f"\n{part}: {sum(sizes.values()):.0f} MB in {len(sizes)} packages\n")
    print("| package | needed | installed | newest | size, MB | with others, MB | files |\n|---|---|---|---|---|---|---|")
    for name in sorted(requirements, key=lambda name: (-sizes.get(name, 0), name)):
        latest = " of ".join(newest.get(name, ("?",)))
        if name not in here:
            print(f"| {name} | {requirements[name].specifier} | none | {latest} | | | {uses.get(name, 0)} |")
            continue
        alone = closures[name] - set().union(*(closure for other, closure in closures.items() if other != name))
        megabytes = f"{sizes[name]:.1f} | {sum(sizes[each] for each in alone | {name}):.1f}"
        print(f"| {name} | {requirements[name].specifier} | {distribution(name).version} | {latest} | {megabytes} | {uses.get(name, 0)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=Path)
    newest = releases(parser.parse_args().releases)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table("required", project["dependencies"], newest)
    for extra, lines in project["optional-dependencies"].items():
        if any(not line.startswith(f"{DIFFLEAK}[") for line in lines):
            table(extra, lines, newest)


if __name__ == "__main__":
    main()
