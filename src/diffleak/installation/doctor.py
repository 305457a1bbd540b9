"""What is installed, on which machine, and if it computes correctly."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any, final

from diffleak.errors import NAME, install
from diffleak.installation import selftest
from diffleak.installation.machine import Device, Machine, devices, machine, why_not
from diffleak.installation.requirements import Extra, Package, extras, required

MODELS = ("torch", "diffusers")  # without one of them no model runs
LIGHT = "metrics, check, split, report, compare, gate, verify, epsilon and metadata do (docs/install.md)."


@final
@dataclass(frozen=True)
class Diagnosis:
    """Everything that `diffleak doctor` finds.

    diffleak: the installed version. packages: those that are required. extras: the optional parts. machine, devices: where commands
    run. tests: the parts of the self-test. seconds: how long that took, in seconds.
    """

    diffleak: str
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    machine: Machine
    devices: tuple[Device, ...]
    tests: tuple[selftest.Tested, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """True where every part of the self-test holds."""
        return all(test.passed for test in self.tests)

    def as_json(self) -> dict[str, Any]:
        """The fields, with `present` of each extra and `passed`."""
        found = asdict(self)
        for value, extra in zip(found["extras"], self.extras, strict=True):
            value["present"] = extra.present
        return {**found, "passed": self.passed}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def doctor() -> Diagnosis:
    """Looks at the installation and runs the self-test."""
    packages = required()
    places = devices()
    began = perf_counter()
    tests = [selftest.statistics()]
    if _runs_models(packages):
        tests += [selftest.Tested(name, f"cannot be imported: {why}", False) for name in MODELS if (why := why_not(name))]
    if _runs_models(packages) and all(test.passed for test in tests):
        tests.append(selftest.attacks())
        tests += [selftest.device(place.name) for place in places if place.name != "cpu"]
    return Diagnosis(version(NAME), packages, extras(), machine(), places, tuple(tests), perf_counter() - began)


def _runs_models(packages: tuple[Package, ...]) -> bool:
    return {package.name for package in packages if package.version} >= set(MODELS)


def _lines(found: Diagnosis) -> Iterator[str]:
    here = found.machine
    yield f"diffleak {found.diffleak}, Python {here.python} ({here.executable}), {here.platform}"
    yield ""
    yield "packages"
    for package in found.packages:
        needed = "" if package.suits else f"   needs {package.needed or 'any version'}: {install()}"
        yield f"  {package.name:<18} {package.version or 'not installed'}{needed}"
    if not _runs_models(found.packages):
        yield "  Without torch and diffusers no model runs; " + LIGHT
    yield ""
    yield "optional parts"
    for extra in found.extras:
        yield f"  {extra.name:<18} {'present' if extra.present else f'missing: {extra.install}':<42} {extra.purpose}"
    yield f"  {'browser':<18} {here.browser or 'missing: install Chromium, Chrome or Edge':<42} report --format pdf"
    yield ""
    yield "machine"
    threads = "not set" if here.threads is None else here.threads
    yield f"  {'cores':<18} {here.cores} (OMP_NUM_THREADS {threads}; diffleak gives each forward one thread and runs forwards side by side)"
    for place in found.devices:
        free = "" if place.free is None else f", {_size(place.free)} free"
        yield f"  {place.name:<18} {place.what}{free}"
    if here.cache:
        state = "is there" if here.cached else "not there yet: made when a model is loaded from the hub"
        disk = "" if here.free_disk is None else f"; {_size(here.free_disk)} free on its disk"
        yield f"  {'cache of the hub':<18} {here.cache} ({state}{disk})"
    yield ""
    yield f"self-test ({found.seconds:.1f} s)"
    for test in found.tests:
        yield f"  {test.name:<18} {'ok' if test.passed else 'FAILED'}: {test.found}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
