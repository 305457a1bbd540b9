"""The sections: a function from a record to a `Section` each, in a file or folder per page; here those that every page has."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from markupsafe import Markup

from diffleak.errors import one_or_more, visible
from diffleak.records.audit import Environment
from diffleak.records.quality import ImageSet
from diffleak.report.glossary import terms_in
from diffleak.report.judgement import Verdict
from diffleak.report.section import Block, Facts, Section, Sentences, drawn, facts
from diffleak.report.wording import at_scale

UNSHOWN, FOR_THE_FILE = "What this does not show", "For the file"
LINE = "_" * 18  # to write on


def verdict(judged: Verdict, question: str = "") -> Section:
    """The meaning of a record, at the top of its page, and the question that it answers."""
    folded, shown = judged.sentences[: judged.folded], judged.sentences[judged.folded :]
    hidden = (Sentences(folded, where="text"), drawn("folded", title="What the check found", said=folded)) if folded else ()
    blocks = (*hidden[:1], Sentences(shown), *hidden[1:])
    return Section("verdict", judged.title, blocks, brief=judged.title, kind="verdict", level=judged.level, question=question)


def warnings(found: Sequence[str], word: str = "Warning") -> Section | None:
    """The warnings of a record, or its notes."""
    said = Sentences(tuple(map(visible, found)), tone="caution")
    title = word if len(found) == 1 else f"{word}s"
    return Section("warnings", title, (said,), brief=f"{word}s", kind="warnings") if found else None


def limits(known: Iterable[tuple[str, str]], menu: str = "Limits", **numbers: str) -> Section:
    """The limits of the numbers of a page: a name and sentences each, filled in with `numbers`. They are our own words, so HTML."""
    items = tuple((Markup(name).format(**numbers), Markup(said).format(**numbers)) for name, said in known)
    return Section("limits", UNSHOWN, (Facts(items, "limits"),), menu, UNSHOWN)


def glossary(terms: Iterable[tuple[str, str]] = (), of_attacks: bool = False) -> Section:
    """The words of a page: these, and every other term that it prints; of_attacks: the page measures attacks, as an audit does."""
    own = tuple(terms)

    def explained(said: str) -> tuple[Block, ...]:
        known = {word for name, _ in own for word in _words(name)}
        return (facts((*own, *(entry for entry in terms_in(said, of_attacks) if not known & _words(entry[0])))),)

    return Section("glossary", "Glossary", (), "Glossary", explains=explained)


def _words(name: str) -> set[str]:
    """The words that an entry explains: "p-value (p)" both p-value and p."""
    return {word.strip().casefold() for word in re.split(r"[,()]", name)} - {""}


def reproduce(command: str, *blocks: Block) -> Section:
    """The command that repeats the record, and its settings."""
    return Section("reproduce", "How to reproduce", (drawn("code", text=visible(command)), *blocks), "How to reproduce")


def fingerprinted(text: str, fingerprint: str | None) -> Markup:
    """A source and its fingerprint."""
    return Markup("{}<br><code>{}</code>").format(text, visible(fingerprint or ""))


def of_model(named: Any) -> Iterator[tuple[str, str]]:
    """The rows of a model, and of what was put into it or in the place of its parts; named: a plan or a record with these fields."""
    yield "Model", fingerprinted(visible(named.model), named.model_fingerprint)
    if named.network is not None:
        yield "Denoiser", f"{visible(named.network)}; the fingerprint covers it"
    if named.weights is not None:
        yield "Weights", {"ema": "averaged (EMA)", "non_ema": "not averaged (non-EMA)"}.get(named.weights, visible(named.weights))
    if named.lora is not None:
        yield "LoRA", f"{visible(named.lora)}, {at_scale(named.lora_scale)}; the fingerprint covers both"
    if named.embedding is not None:
        yield "Embedding", f"{visible(named.embedding)}; the fingerprint covers it"


def of_images(images: ImageSet) -> str:
    """A set of images, their number and their fingerprint."""
    return fingerprinted(f"{visible(images.source)}, {one_or_more(images.n, 'image')}", images.fingerprint)


def model(name: str, lora: str | None) -> str:
    """A model in the line under the title."""
    return f"Model {visible(name)}" + ("" if lora is None else f" with the LoRA {visible(lora)}")


def device(environment: Environment) -> str:
    return f"{visible(environment.device_name)} ({visible(environment.device)}), {visible(environment.dtype)}"


def versions(environment: Environment) -> str:
    packages = "".join(
        f", {visible(name)} {visible(version)}" for name, version in sorted(environment.packages.items(), key=lambda item: item[0].lower())
    )
    return f"diffleak {visible(environment.diffleak)}, Python {visible(environment.python)}{packages}"
