"""The packages that diffleak needs, and those of its extras, as the installed distribution declares them. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import final

from packaging.requirements import Requirement

from diffleak.errors import NAME, pip_install

PURPOSES = {  # of the extras that add something to a command
    "dp": "training with DP-SGD (train --dp-epsilon)",
    "encoders": "DINOv2 and CLIP (quality, extract, the attack black_box), captioning",
    "hf": "data sets of the Hugging Face hub (--data hf:NAME)",
    "inception": "the Inception network of the FID literature (quality --extractor inception)",
    "lora": "LoRAs and other adapters (--lora, diffleak lora)",
    "text": "text-to-image models: their text encoders, tokenizers and adapters",
}


@final
@dataclass(frozen=True)
class Package:
    """One required package.

    name: of the distribution. needed: the versions that will do, such as ">=2.6"; "" for any. version: the installed one, None where
    there is none. suits: the installed version will do.
    """

    name: str
    needed: str
    version: str | None
    suits: bool


@final
@dataclass(frozen=True)
class Extra:
    """One optional part of the package.

    name: as in `diffleak[name]`. purpose: what it is for. missing: its packages that are not installed, or too old. install: the
    command that adds it.
    """

    name: str
    purpose: str
    missing: tuple[str, ...]
    install: str

    @property
    def present(self) -> bool:
        """True where all of its packages are installed."""
        return not self.missing


def required() -> tuple[Package, ...]:
    """The packages that are always needed, by name."""
    return tuple(_package(each) for each in _declared(""))


def extras() -> tuple[Extra, ...]:
    """The optional parts that the installed distribution declares, by name."""
    found = set(metadata(NAME).get_all("Provides-Extra") or []) & PURPOSES.keys()
    return tuple(Extra(name, PURPOSES[name], _missing(name), pip_install(name)) for name in sorted(found))


def _missing(extra: str) -> tuple[str, ...]:
    return tuple(package.name for package in map(_package, _declared(extra)) if not package.suits)


def _declared(extra: str) -> list[Requirement]:
    """The requirements of an extra alone, or without one those of the package, each once; an extra may name others of ours."""
    found: dict[str, Requirement] = {}
    for each in _lines(extra):
        inner = [other for name in each.extras for other in _declared(name)] if each.name == NAME else [each]
        found |= {other.name: other for other in inner}
    return [found[name] for name in sorted(found)]


def _lines(extra: str) -> Iterator[Requirement]:
    for line in requires(NAME) or []:
        requirement = Requirement(line)
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if always != bool(extra) and (requirement.marker is None or requirement.marker.evaluate({"extra": extra})):
            yield requirement


def _package(requirement: Requirement) -> Package:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Package(requirement.name, str(requirement.specifier), None, False)
    return Package(requirement.name, str(requirement.specifier), found, requirement.specifier.contains(found, prereleases=True))
