"""The command and the settings behind the scores of prompts."""

from collections.abc import Iterator

from diffleak.errors import visible
from diffleak.records.prompts import PromptsRecord
from diffleak.report.section import Section, facts
from diffleak.report.sections import adapted, device, fingerprinted, reproduce, versions
from diffleak.report.wording import count, duration


def section(record: PromptsRecord) -> Section:
    """The command and the settings."""
    return reproduce(record.command, facts(_rows(record)))


def _rows(record: PromptsRecord) -> Iterator[tuple[str, str]]:
    plan = record.plan
    yield "Model", fingerprinted(visible(plan.model), plan.model_fingerprint)
    yield from adapted(plan.lora, plan.lora_scale)
    times = f"{count(plan.images)} {'time' if plan.images == 1 else 'times'}"
    yield "Prompts", fingerprinted(f"{count(plan.prompts)}, each drawn {times}", plan.prompts_fingerprint)
    how = f"guidance {plan.guidance_scale}, latents {visible(plan.latent_shape)}, seed {plan.seed}"
    yield "Drawing", f"DDIM in {plan.steps} steps, {how}"
    yield "t-error", f"SecMI at timestep {plan.timestep}, k = {plan.k}, without guidance"
    yield "Cost", f"{count(record.costs.forwards)} forwards of one image each; this call took {duration(record.costs.seconds)}"
    yield "Device", device(record.environment)
    yield "Versions", versions(record.environment)
    yield "Record", f"prompts.json, schema version {record.schema_version}"
