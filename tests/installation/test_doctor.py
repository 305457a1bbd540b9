"""`diffleak doctor`: what it reports is what is installed, and a wrong number fails it."""

import json
import re
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from fixtures.commands import call

from diffleak.diffusion import analytic
from diffleak.installation import doctor as api
from diffleak.installation import requirements, selftest
from diffleak.installation.machine import Device, why_not

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_doctor_prints_packages_parts_machine_and_a_self_test_that_holds(capsys):
    code, out, err = call(capsys, "doctor")
    assert code == 0, err
    for package in ("numpy", "torch", "scikit-learn"):
        assert re.search(rf"^  {package} +{re.escape(version(package))}$", out, re.MULTILINE)
    assert re.search(r"^  attacks +ok: AUC 1.000 on a model that memorised", out, re.MULTILINE)
    assert re.search(r"^  cores +\d+ \(OMP_NUM_THREADS ", out, re.MULTILINE)


def test_the_json_has_what_the_page_has(capsys):
    code, out, _ = call(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["passed"] is True
    assert {package["name"]: package["version"] for package in found["packages"]}["numpy"] == version("numpy")
    assert {test["name"] for test in found["tests"]} >= {"statistics", "attacks"} and all(test["passed"] for test in found["tests"])
    assert found["machine"]["cores"] >= 1 and found["devices"][-1]["name"] == "cpu"
    assert all(set(extra) == {"name", "purpose", "missing", "install", "present"} for extra in found["extras"])


def test_a_wrong_statistic_fails_the_self_test_with_exit_code_one(capsys, monkeypatch):
    right = selftest.evaluate
    wrong = lambda members, held_out: right(members, held_out + 1)
    monkeypatch.setattr(selftest, "evaluate", wrong)
    code, out, err = call(capsys, "doctor")
    assert code == 1 and re.search(r"^  statistics +FAILED", out, re.MULTILINE)
    assert "diffleak: the self-test failed" in err


def test_an_attack_that_misses_what_a_model_memorised_fails(monkeypatch):
    blank = analytic.Gaussian(0.0, 1 / 3, analytic.linear_schedule())
    monkeypatch.setattr(analytic, "Memoriser", lambda points, schedule: blank)
    assert not selftest.attacks().passed


def test_the_cpu_computes_as_the_cpu():
    assert selftest.device("cpu") == selftest.Tested("cpu", "a convolution differs from the CPU's by 0.0e+00 of its largest value", True)


def test_every_extra_that_adds_to_a_command_says_what_it_is_for():
    of_developers = {"all", "dev", "docs"}
    assert set(PROJECT["optional-dependencies"]) - of_developers == set(requirements.PURPOSES)
    assert "compare" not in requirements.PURPOSES["encoders"], "a command that takes no encoder"


@pytest.fixture
def declared(monkeypatch):
    """An installed distribution with these lines."""

    def declare(*lines: str) -> None:
        monkeypatch.setattr(requirements, "requires", lambda name: list(lines))

    return declare


def test_packages_are_those_of_no_extra_and_a_missing_or_old_one_does_not_suit(declared):
    declared("numpy>=2.0", "packaging>=9999", "no-such-package>=1", "rich; extra == 'x'", "typer>=0; python_version < '3'")
    found = {package.name: (package.version, package.suits) for package in requirements.required()}
    assert found == {"numpy": (version("numpy"), True), "packaging": (version("packaging"), False), "no-such-package": (None, False)}


def test_an_extra_has_its_own_packages_and_those_of_the_extras_it_names(declared, monkeypatch):
    declared("numpy>=2.0", "no-such-package; extra == 'lora'", "diffleak[lora]; extra == 'text'", "rich; extra == 'text'")
    monkeypatch.setattr(requirements, "metadata", lambda name: type("Head", (), {"get_all": lambda self, key: ["lora", "text", "dev"]})())
    assert [(extra.name, extra.missing, extra.present) for extra in requirements.extras()] == [
        ("lora", ("no-such-package",), False),
        ("text", ("no-such-package",), False),
    ]


def test_without_torch_only_the_statistics_are_tested_and_the_page_says_so(monkeypatch):
    def absent(name: str) -> str:
        if name in ("torch", "diffusers"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(requirements, "version", absent)
    found = api.doctor()
    assert [test.name for test in found.tests] == ["statistics"] and found.passed
    assert "torch              not installed   needs >=2.6: pip install diffleak" in str(found)
    assert "Without torch and diffusers no model runs" in str(found)


def test_a_torch_that_is_installed_but_broken_fails_and_says_why(monkeypatch):
    monkeypatch.setattr(api, "why_not", lambda name: "libcudart.so.13: cannot open shared object file" if name == "torch" else None)
    found = api.doctor()
    assert not found.passed and [test.name for test in found.tests] == ["statistics", "torch"]
    assert "torch              FAILED: cannot be imported: libcudart.so.13: cannot open" in str(found)


def test_a_module_that_is_not_there_says_so():
    assert why_not("no_such_module") == "No module named 'no_such_module'" and why_not("json") is None


def test_an_accelerator_is_shown_with_its_free_memory_and_tested(monkeypatch):
    monkeypatch.setattr(api, "devices", lambda: (Device("cuda:0", "a card", 3 * 2**30), Device("cpu", "x86", None)))
    monkeypatch.setattr(selftest, "device", lambda name: selftest.Tested(name, "off by one", False))
    found = api.doctor()
    assert (
        not found.passed
        and "cuda:0             a card, 3.0 GiB free" in str(found)
        and "cuda:0             FAILED: off by one" in str(found)
    )
    assert replace(found, tests=found.tests[:2]).passed
