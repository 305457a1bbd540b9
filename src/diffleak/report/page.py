"""The report as one HTML file that opens offline: no script, no request; the browser is told to refuse any (CSP)."""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from diffleak.records.audit import AuditRecord, Result
from diffleak.records.base import Estimate
from diffleak.records.scores import Samples
from diffleak.report import handling, wording
from diffleak.report.beyond import reference_table, sentences
from diffleak.report.gates import gates_title, sentence
from diffleak.report.judgement import Verdict, verdict
from diffleak.report.masked import masks_table, summaries
from diffleak.report.selection import masked, shown, unmasked
from diffleak.report.table import ORACLE_NOTE, table
from diffleak.stats.blind import INVALID_ABOVE, INVALID_P
from diffleak.stats.metrics import exposure

if TYPE_CHECKING:
    from jinja2 import Template

MOST_EXPOSED = 12
MOST_ROWS = 24  # longer tables of masks are folded away; their summary is not
LISTED = 20  # omitted files shown by name

GLOSSARY = (
    ("Member", "an image the model was trained on; a held-out image comes from the same source but was not used for training."),
    ("AUC", "how often an attack ranks a random member above a random held-out image; 0.5 is guessing, 1 is always right."),
    ("TPR at 1 % FPR", "share of members an attack catches when it may raise a false alarm for 1 % of the held-out images."),
    ("Timestep", "how much noise an image gets before the model is asked about it; each attack has one where it sees most."),
    (
        "Calibrate, test part",
        "settings are chosen on the one; every number in the verdict comes from the other.",
    ),
)


LATENT_GLOSSARY = (
    ("Latent", "the compressed form of an image that the diffusion model works on; its numbers are the latent coordinates."),
    ("Decoder", "the part of the model that turns a latent into a picture."),
    ("Influence", "how much the decoded picture changes when one latent coordinate changes a little."),
    ("Distortion", "how strongly the decoder stretches small steps around an image's latent; one number per image."),
    ("Mask", "leaves a share of the latent coordinates out of an attack, such as the 40 % of lowest influence (influence:0.4)."),
)


REFERENCE_GLOSSARY = (
    ("Reference", "a model without the training that is audited, such as the one that was fine-tuned; it says how hard each image is."),
    ("Excess", "an attack's score of an image less its score of the same image in the reference."),
)


# What the list of the members that score highest means, by the verdict.
EXPOSURE = {
    "leak": "These are the members that the leak exposes most.",
    "no-leak-found": "No leak was found, so this list does not show that these members are exposed: every ranking has a top.",
    "undecided": "Whether these members are exposed is undecided, as the verdict is: every ranking has a top.",
}


@dataclass(frozen=True)
class Exposed:
    """A member that scores high: how many held-out images score as high, in words, and its picture as a data URI."""

    id: str
    score: str
    words: str
    picture: str | None


@dataclass(frozen=True)
class Pictured:
    """An image of a gallery: its side in words, and its picture as a data URI."""

    id: str
    side: str
    picture: str | None


def html(record: AuditRecord, samples: Samples, thumbnail: Callable[[str], bytes] | None = None) -> str:
    """The whole report; `thumbnail` gives an image's PNG by its id, and without it no image is shown.

    Of an invalid audit: why it is, what to do, and how it was made. The same record and samples give the same bytes.
    """
    judged = verdict(record)
    results = {"results": False} if judged.level == "invalid" else _results(record, samples, judged, thumbnail)
    page = template("template.html.j2").render(
        record=record,
        verdict=judged,
        attacks=unmasked(record),
        handling=results["results"] and handling.on_page(record.plan.anonymous is not None, thumbnail is not None and results["results"]),
        blind_limit=INVALID_ABOVE,
        blind_p=INVALID_P,
        listed=LISTED,
        **results,
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _results(record: AuditRecord, samples: Samples, judged: Verdict, thumbnail: Callable[[str], bytes] | None) -> dict[str, Any]:
    """Everything on the page that comes from the results."""
    from diffleak.report import figures
    from diffleak.report.geometry_section import section

    lead = next((r for r in record.results if r.attack == judged.attack), None)
    results = shown(record)
    others = [r for r in results if r is not lead]
    ordered = ([lead] if lead else []) + others
    drawn = figures.styles(results, judged.attack)
    return {
        "results": True,
        "lead": lead,
        "tiles": _tiles(lead) if lead else [],
        "gates": [(gate, sentence(gate)) for gate in record.gates],
        "gates_title": gates_title(record.gates),
        "table": table(record),
        "oracle_note": ORACLE_NOTE,
        "conventions": sorted({r.convention for r in record.results} - {"member-exact"}),
        "hidden": any(r.mask is not None for r in record.results if r not in results),
        "masks": _masks(record),
        "reference": _reference(record),
        "styles": [(r.attack, drawn[r.attack]) for r in ordered],
        "swept_styles": [(r.attack, drawn[r.attack]) for r in ordered if r.timestep is not None],
        "roc": figures.roc(results, samples, judged.attack),
        "timesteps": figures.timesteps(results, judged.attack),
        "histogram": figures.histogram(samples, lead, "scores", small=False) if lead else None,
        "histograms": [(r.attack, figures.histogram(samples, r, f"scores-{i}", small=True)) for i, r in enumerate(others)],
        "geometry": section(record, judged.attack, _gallery(samples, thumbnail)) if record.geometry else None,
        "exposed": _most_exposed(samples, judged.attack, thumbnail),
        "exposure": EXPOSURE[judged.level],
        "pictures": thumbnail is not None,
        "glossary": GLOSSARY
        + (LATENT_GLOSSARY if record.geometry or masked(record) else ())
        + (REFERENCE_GLOSSARY if record.plan.reference else ()),
    }


def _masks(record: AuditRecord) -> dict[str, Any] | None:
    """The section on masks; None for a record without masked results."""
    table = masks_table(record)
    return {"table": table, "summaries": summaries(record), "folded": len(table.rows) > MOST_ROWS} if table else None


def _reference(record: AuditRecord) -> dict[str, Any] | None:
    """The section on the reference model; None for a record without one."""
    table = reference_table(record)
    return {"table": table, "sentences": sentences(record)} if table else None


def _tiles(result: Result) -> list[dict[str, Any]]:
    """The two rates that matter, each with what guessing gives."""
    caught = result.tpr(0.01)
    candidates = (("picks the member out of a pair", result.auc, 0.5), ("of members caught at 1 % false alarms", caught, 0.01))
    return [_tile(title, e, guess) for title, e, guess in candidates if None not in (e.value, e.low, e.high)]


def _tile(title: str, estimate: Estimate, guess: float) -> dict[str, Any]:
    value, ends = wording.spoken(estimate)
    return {"title": title, "value": value, "ends": ends, "guess": wording.percent(guess, 0), "at": guess, "estimate": estimate}


def _most_exposed(samples: Samples, attack: str | None, thumbnail: Callable[[str], bytes] | None) -> list[Exposed]:
    """The members of the test part that the attack is surest of; equal scores in the order of their ids."""
    if attack not in samples.scores:
        return []
    scores = samples.scores[attack]
    usable = np.isfinite(scores) & samples.test
    nonmembers = scores[usable & ~samples.member]
    top = sorted(np.flatnonzero(usable & samples.member).tolist(), key=lambda i: (-scores[i], samples.ids[i]))[:MOST_EXPOSED]
    if not len(nonmembers) or not top:
        return []
    words = [wording.exposed(float(share), len(nonmembers)) for share in exposure(scores[top], nonmembers)]
    return [
        Exposed(wording.visible(samples.ids[i]), f"{scores[i]:.4g}", said, _picture(samples.ids[i], thumbnail))
        for i, said in zip(top, words, strict=True)
    ]


def _gallery(samples: Samples, thumbnail: Callable[[str], bytes] | None) -> Callable[[Sequence[str]], list[Pictured]]:
    """Ids to what is shown of them."""
    member = dict(zip(samples.ids, samples.member.tolist(), strict=True))
    side = lambda i: ("member" if member[i] else "held-out image") if i in member else "unknown side"
    return lambda ids: [Pictured(wording.visible(i), side(i), _picture(i, thumbnail)) for i in ids[:MOST_EXPOSED]]


def _picture(image_id: str, thumbnail: Callable[[str], bytes] | None) -> str | None:
    return None if thumbnail is None else "data:image/png;base64," + base64.b64encode(thumbnail(image_id)).decode("ascii")


@cache
def template(name: str) -> "Template":
    """A page of this package, with the filters that all of them use."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    loader = PackageLoader("diffleak.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "visible": wording.visible,
        "count": wording.count,
        "labels_from": wording.labels_from,
        "percent": wording.percent,
        "duration": wording.duration,
        # A number and its percent sign must not be torn apart at the end of a line.
        "prose": lambda text: Markup(str(escape(text)).replace(" %", "&nbsp;%")),
        # A long name breaks after its separators, not in the middle of a word.
        "breakable": lambda text: Markup(re.sub(r"([_,/(\[])", r"\1<wbr>", str(escape(text)))),
        "moment": wording.moment,
        "svg": Markup,
    }
    return environment.get_template(name)
