"""The command, settings, parameters and costs of an audit, and the files that it left out."""

from collections.abc import Iterator

from markupsafe import Markup

from diffleak.errors import of_them, one_or_more, visible
from diffleak.records.audit import AuditRecord, Blind
from diffleak.records.plan import one_for_all
from diffleak.report.audited import Audited
from diffleak.report.section import Block, Section, Sentences, breakable, drawn, facts, heading, prose
from diffleak.report.sections import device, fingerprinted, of_model, reproduce, versions
from diffleak.report.wording import IMAGES, count, counted, duration, labels_from
from diffleak.stats.blind import INVALID_ABOVE, INVALID_P

NTH = {None: "second", 3: "third"}  # by how many timesteps lie apart in a coarse sweep
LISTED = 20  # omitted files shown by name


def section(audit: Audited) -> Section:
    """The command, the settings and the parameters of the attacks."""
    record, blocks = audit.record, [facts(_rows(audit.record))]
    attacks = [r for r in record.results if r.plain]
    if attacks:
        named = lambda key: "p (power of the norm)" if key == "p" else visible(key)  # no p-value
        said = lambda r: ", ".join(f"{named(key)} = {visible(str(value))}" for key, value in sorted(r.parameters.items())) or "none"
        rows = [(breakable(visible(r.attack)), f"{said(r)}; {r.direction} values mean member") for r in attacks]
        blocks += [heading("Parameters of the attacks"), facts(rows)]
    if record.omitted and audit.verdict.level != "invalid":
        left, more = record.omitted[:LISTED], len(record.omitted) - LISTED
        and_more = f"and {count(more)} more, all in audit.json" if more > 0 else ""
        blocks += [heading("Files left out"), drawn("names", names=list(map(visible, left)), more=and_more)]
    return reproduce(record.command, *blocks)


def omitted(audit: Audited) -> Section | None:
    """The number of files that were left out, in text; a page lists them."""
    files = len(audit.record.omitted)
    if not files:
        return None
    said = one_or_more(files, "file was left out; audit.json names it.", "files were left out; audit.json names them.")
    blocks: tuple[Block, ...] = (Sentences((said,), tone="caution", where="text"),)
    return Section("omitted", "", blocks)


def _rows(record: AuditRecord) -> Iterator[tuple[str, str]]:
    plan, environment, split = record.plan, record.environment, record.split
    yield from of_model(plan)
    if plan.reference is not None:
        base = " (the model without the LoRA)" if plan.reference == "base" and plan.lora is not None else ""
        yield "Reference", fingerprinted(visible(plan.reference) + base, plan.reference_fingerprint)
    if record.costs.test_timesteps is not None:
        at = "; ".join(f"{visible(name)} at {', '.join(map(str, kept))}" for name, kept in record.costs.test_timesteps.items())
        between = record.costs.between_timesteps
        others = ", ".join(visible(name) for name in record.costs.test_timesteps if name not in (between or ()))
        coarse = f"every {NTH[plan.coarse_step]} timestep, and those beside the best ones"
        swept = "every timestep" if between is None else coarse + (f" ({others} at every timestep)" if others else "")
        yield (
            "Scored",
            f"the calibrate part at {swept}; the test part at the chosen ones and, where combined needs them, those beside: {at}",
        )
    yield "Members", visible(plan.members)
    yield "Held-out images", visible(plan.nonmembers)
    yield "Data fingerprint", Markup("<code>{}</code>").format(visible(environment.data_fingerprint))
    yield "Image shape", visible(plan.image_shape) + (", resized to fit" if plan.resize else "")
    yield "Seeds", f"noise {environment.seed}, split {split.seed}"
    sides = counted(split.unit).sides
    if split.unit != "image":
        how = f"groups by {visible(str(plan.group))}" if split.unit == "group" else "near-duplicates on one side count as one image"
        yield "Counted", f"{sides(split.members, split.nonmembers)}, of {IMAGES.sides(plan.n_members, plan.n_nonmembers)}: {how}"
    yield "Calibrate part", sides(split.calibrate_members, split.calibrate_nonmembers)
    tested = sides(split.members - split.calibrate_members, split.nonmembers - split.calibrate_nonmembers)
    yield "Test part", tested + (f"; medians over {split.repeats} random divisions" if split.repeats > 1 else "")
    yield "Same-source check", _blind(record.blind)
    if plan.masks:
        yield "Masks", visible(", ".join(plan.masks))
    if plan.probes is not None:
        yield (
            "Probes",
            f"{count(plan.probes)} per image, for the influence of latent coordinates"
            + (", filtered" if plan.estimator == "filtered" else ""),
        )
    if plan.top is not None:
        yield "Singular values", f"the {'' if plan.top == 1 else f'{count(plan.top)} '}largest, for distortion"
    if plan.classes is not None:
        yield "Classes", f"{count(plan.classes)}; each image was scored with its own label"
    if plan.labels is not None:
        kept = "; all are in audit.json under plan, label_names" if plan.label_names else ""
        yield "Labels", f"from {labels_from(plan.labels, plan.label_names)}{kept}"
    if plan.guidance_scale is not None:
        yield "Guidance", f"classifier-free, scale {plan.guidance_scale:g}: attacks see the guided predictions, two forwards each"
    if plan.captions is not None:
        cut = f", {count(plan.captions_truncated)} truncated by the text encoder" if plan.captions_truncated else ""
        own, images = plan.captions_found or 0, f"{count(plan.n_members + plan.n_nonmembers)} images"
        have = of_them(own, images, "has one of its own", "have one of their own")
        found = f"the same for every image; {have}" if one_for_all(plan.captions) else f"found for {count(own)} of {images}"
        yield "Captions", f"{visible(plan.captions)}; {found}{cut}"
    yield "Device", f"{device(environment)}, {one_or_more(environment.threads, 'thread')}"
    yield "Platform", visible(environment.platform)
    yield "Versions", versions(environment)
    yield "Record", f"audit.json, schema version {record.schema_version}"


def _blind(blind: Blind) -> str:
    """The check for different sources."""
    if blind.p_value is not None:
        return f"p = {blind.p_value:.4f}, {visible(str(blind.method))}; invalid if p is at most {INVALID_P}"
    if blind.value is not None:
        ends = f" [{blind.low:.3f}, {blind.high:.3f}]" if blind.low is not None and blind.high is not None else ""
        sees = "a classifier that sees only pixel statistics"
        return f"AUC {blind.value:.3f}{ends} of {sees}; invalid if the interval is above {INVALID_ABOVE}"
    return "not made" + (f": {visible(blind.reason)}" if blind.reason else "")


def costs(audit: Audited) -> Section:
    """Forwards and time, and the price that an outsider pays."""
    costs, lead = audit.record.costs, audit.lead
    saved = f" ({count(costs.queries_saved)} more were saved because attacks share them)" if costs.queries_saved else ""
    saved += f" ({count(costs.queries_read)} more were saved because drawings were read from a folder)" if costs.queries_read else ""
    parallel = " The times of chunks that ran in parallel are added up." if costs.chunks > 1 else ""
    spent = (
        f"Scoring took {count(costs.queries)} forwards of one image each{saved} and {duration(costs.seconds)} of computing on "
        f"{visible(audit.record.environment.device_name)}, in {one_or_more(costs.chunks, 'chunk')}.{parallel}"
    )
    blocks = [prose(spent)]
    if lead and lead.timestep is not None and lead.queries_at_timestep not in (None, lead.queries):
        assert lead.queries_at_timestep is not None
        queries = one_or_more(lead.queries_at_timestep, "query", "queries")
        blocks += [
            prose(
                f"An outsider who already knows the timestep pays less: {visible(lead.attack)} needs {queries} per image at timestep "
                f"{lead.timestep}. The table has the queries of every attack."
            )
        ]
    return Section("costs", "What it cost", tuple(blocks), "Costs")
