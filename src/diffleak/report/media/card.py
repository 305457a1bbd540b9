"""A section for a model card: YAML metadata by the conventions of the Hugging Face hub, and Markdown below it."""

import re
from typing import Any

import yaml

from diffleak.config import flag
from diffleak.errors import visible
from diffleak.records.audit import AuditRecord, Membership, Result
from diffleak.records.digests import Sealed
from diffleak.records.gate import Gated
from diffleak.report.counting import held_out, trained
from diffleak.report.judgement import verdict
from diffleak.report.media.markdown import to_markdown
from diffleak.report.pages.audit import on_card
from diffleak.report.section import Page
from diffleak.report.sections.public import public_value, without_files
from diffleak.report.wording import interval, last_part, last_parts

TAGS = ("membership-inference", "privacy-audit")
HOW_TO = (  # a comment, which no page shows
    "<!-- If your README.md already begins with YAML between lines of three dashes, move the {moved} above into it, and paste only what "
    "follows as a section.{rename} -->"
)
RENAME = " Change the name in the model-index to that of your model."
NAMES = ("model", "reference", "lora")  # fields of a plan that may be paths
TEXT, IMAGES = "text-to-image", "unconditional-image-generation"  # tasks by the names of the hub


def model_card(record: AuditRecord, sealed: Sealed | None = None, gated: Gated | None = None) -> str:
    """The metadata between lines of three dashes, then the answer and what belongs into the file, as Markdown one level lower.

    The metadata of an invalid audit has no numbers. Paths of folders are left out: a card is public.
    """
    record = without_files(record, (attack["attack"] for attack in record.plan.attacks))
    metadata = _metadata(record)
    moved, rename = ("tags and the model-index", RENAME) if "model-index" in metadata else ("tags", "")
    return _card(metadata, HOW_TO.format(moved=moved, rename=rename), _text(record, sealed, gated))


def page_card(page: Page) -> str:
    """The same of a page that is made for a card, with tags alone as metadata: other records have no metric that the hub compares."""
    return _card({"tags": list(TAGS)}, HOW_TO.format(moved="tags", rename=""), _lower(page))


def _card(metadata: dict[str, Any], how_to: str, text: str) -> str:
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)}---\n\n{how_to}\n\n{text}"


def _lower(page: Page) -> str:
    """The page as Markdown, one level lower."""
    return re.sub(r"^(#+ )", r"#\1", to_markdown(page), flags=re.MULTILINE)


def _metadata(record: AuditRecord) -> dict[str, Any]:
    found: dict[str, Any] = {"tags": list(TAGS)}
    judged = verdict(record)
    lead = next((r for r in record.results if r.attack == judged.attack), None)
    if judged.level == "invalid" or lead is None:
        return found
    task = TEXT if record.plan.captions is not None else IMAGES
    dataset = {"name": f"{trained(record)} and {held_out(record)}", "type": "private"}
    dataset["revision"] = record.plan.data_fingerprint
    result = {"task": {"type": task}, "dataset": dataset, "metrics": list(_metrics(lead))}
    lora = record.plan.lora  # of an adapter the audit is of it, and the base is another model
    name = last_parts(lora) if lora else last_part(record.plan.model)
    return found | {"model-index": [{"name": name, "results": [result]}]}


def _metrics(lead: Result) -> Any:
    rate = lead.tpr(0.01)
    for kind, name, estimate in (("auc", "AUC", lead.auc), ("tpr_at_1pct_fpr", "TPR at 1 % FPR", rate)):
        if estimate.value is not None:
            ends = interval(estimate, in_percent=False)
            yield {
                "type": f"membership_inference_{kind}",
                "name": f"Membership inference, {visible(lead.attack)}: {name}{f', 95 % interval {ends}' if ends else ''}",
                "value": round(estimate.value, 4),
                "verified": False,
            }


def _text(record: AuditRecord, sealed: Sealed | None, gated: Gated | None) -> str:
    adapters = tuple(each.model_copy(update={"name": last_part(each.name)}) for each in record.adapters)
    evidence = record.evidence.model_copy(update={"title": None}) if record.evidence else None
    plan = record.plan.model_copy(update=_without_paths(record))
    settings = {key: public_value(flag(key), value) if isinstance(value, str) else value for key, value in record.settings.items()}
    update = {"plan": plan, "membership": _contradiction(record), "adapters": adapters, "evidence": evidence, "settings": settings}
    return _lower(on_card(record.model_copy(update=update), sealed, gated))


def _contradiction(record: AuditRecord) -> Membership | None:
    """What the model's own split.json says where it contradicts the sides, which decides the answer, without a path and an image."""
    found = record.membership
    if found is None or found.status != "contradicted, ignored":
        return None
    words = {"source": "the auditor's two sides", "model_split": "split.json", "reason": "some of the images are on another side"}
    return found.model_copy(update=words)


def _without_paths(record: AuditRecord) -> dict[str, Any]:
    """The fields of a plan that may name folders of a person's machine, in words that name none."""
    plan = record.plan
    public = plan.captions is None or plan.captions in ("own", "empty", "swapped") or plan.captions.startswith("fixed:")
    named: dict[str, Any] = {"captions": plan.captions if public else "a captions file"}
    named |= {key: last_parts(value) if key == "lora" else last_part(value) for key in NAMES if (value := getattr(plan, key))}
    return named | {"members": "the auditor's training images", "nonmembers": "the auditor's held-out images"}
