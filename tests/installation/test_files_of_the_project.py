"""What the project ships beside its code says what is so: citation, container, linters, pages for contributors."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from diffleak.attacks import ATTACKS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "SECURITY.md", "docs/install.md")}


def steps(page: str) -> set[str]:
    """The commands in the blocks of a page, without comments."""
    fenced = re.findall(r"^```\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    lines = {re.sub(r"\s+#.*", "", line).strip() for block in fenced for line in block.splitlines()}
    return {part.strip() for line in lines for part in line.split("&&") if part.strip()}


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments of each line of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line and not line.startswith("#")]


def test_the_container_is_built_by_the_steps_of_the_page_in_their_order():
    run = [rest for word, rest in instructions() if word == "RUN" and not rest.startswith("useradd")]
    assert run[1:] == ["pip install .", "pip install '.[text]'", "diffleak doctor"] and set(run) <= steps(INSTALL)
    assert run[0].startswith("pip install torch -c constraints.txt ")


def test_the_container_copies_what_a_build_needs_and_nothing_that_its_context_lacks():
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split(" ")[:-1]}
    assert copied >= {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


def test_the_container_runs_as_no_root_on_a_python_that_is_meant_to_work():
    found = instructions()
    assert (
        found[0][0] == "FROM"
        and f"Programming Language :: Python :: {found[0][1].split(':')[1].removesuffix('-slim')}" in PROJECT["classifiers"]
    )
    assert found.index(("USER", "diffleak")) < found.index(("ENTRYPOINT", '["diffleak"]'))


def test_the_citation_names_this_release_and_the_four_papers():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found), "what the format requires"
    assert found["version"] == PROJECT["version"] == version("diffleak") and found["license"] == PROJECT["license"]
    papers = {paper["url"].removeprefix("https://arxiv.org/abs/"): paper for paper in found["references"]}
    assert set(papers) == {"2509.25003", "2511.20592", "2510.21783", "2410.16657"}
    for paper in papers.values():
        assert {"type", "title", "authors", "year"} <= set(paper) and all(
            {"family-names", "given-names"} == set(a) for a in paper["authors"]
        )
    for name in ("sima", "sima_mc", "noise_aggregation"):
        (number,) = re.findall(r"arXiv (\d{4}\.\d{5})", ATTACKS[name].source)
        assert name in papers[number]["notes"]


def test_the_hooks_before_a_commit_run_the_linters_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = [hook["entry"].replace(" --force-exclude", "").replace(".venv/bin/", "") for hook in repository["hooks"]]
    lint = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert lint is not None
    makes = [line.strip().replace("$(BIN)/", "").removesuffix(" .") for line in lint[1].splitlines()]
    assert entries == makes


def test_the_versions_of_python_that_are_named_are_the_same_everywhere():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert re.search(r"need Python ([\d., or]+), on", INSTALL)[1].replace(" or ", ", ").split(", ") == named


def test_every_extra_is_described_and_all_has_what_it_says():
    rows = re.findall(r"^\| `(\w+)` \|", INSTALL, flags=re.MULTILINE)
    extras = PROJECT["optional-dependencies"]
    assert set(rows) == set(extras)
    assert extras["all"] == ["diffleak[dp,encoders,hf,text]"]
    assert extras["dev"][0] == "diffleak[all]"


@pytest.mark.parametrize("name", PAGES)
def test_files_and_targets_that_a_page_names_are_there(name):
    page, here = PAGES[name], (ROOT / name).parent
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page) if "://" not in link]
    assert [link for link in links if not (here / link).exists()] == []
    makes = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in re.findall(r"(?:^|`)make ([a-z-]+)", page, flags=re.MULTILINE) if f"\n{target}:" not in makes] == []
