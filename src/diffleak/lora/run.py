"""Every checkpoint of an adapter measured, by audits beyond the base or by drawings beside the base's, and one answer.

    with held-out pictures    a sweep of audits with the base as reference, in OUT/audits
    without                   `extract` of every checkpoint and of the base for the same captions and seeds, in OUT/drawings

Nothing is measured here: both are the commands of that name, so that each folder can be reported on, resumed and repeated alone.
"""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffleak.auditing.config import AuditConfig
from diffleak.config import LONGEST_PATH, build, command_line
from diffleak.data.captions import own_if_any
from diffleak.data.cohort import two_sources
from diffleak.data.enough import counted_before, since
from diffleak.data.image_source import ImageSource
from diffleak.errors import SettingError, UserError, one_or_more, shown
from diffleak.extraction.config import ExtractConfig
from diffleak.extraction.extract import search
from diffleak.gating.limits import gates
from diffleak.hub import located
from diffleak.hub.adapters import adapter_file
from diffleak.hub.folders import INDEX, NETWORKS, SECOND
from diffleak.hub.pipelines import pipeline_of
from diffleak.lora import judge
from diffleak.lora.config import LoraConfig
from diffleak.lora.inputs import BASE, Inputs, read_inputs
from diffleak.records.base import written
from diffleak.records.digests import AUDIT, refuse_edited, write_recorded
from diffleak.records.extraction import FILE as EXTRACT
from diffleak.records.extraction import PAGE as EXTRACT_PAGE
from diffleak.records.extraction import ExtractionRecord
from diffleak.records.headers import adapter_weight, given_away
from diffleak.records.lora import AUDITS, FILE, PAGE, Checkpoint, Excess, LoraRecord, Redrawn
from diffleak.records.run_folder import read_audit
from diffleak.records.sweep import FILE as SWEEP
from diffleak.report import to_html
from diffleak.report.pages.lora import page
from diffleak.sweep.checkpoints import WEIGHTS, Checkpoints
from diffleak.sweep.checkpoints import Checkpoint as Found
from diffleak.sweep.run import sweep
from diffleak.work.files import checked_folder
from diffleak.work.progress import say
from diffleak.work.reading import Unreadable, load_header
from diffleak.work.shares import Share

DRAWINGS = "drawings"
READ = ("exif", "alpha", "white", "skip_unreadable", "ignore_model_split")
SHARED = ("model_config", "seed", "dtype", "device", "offload", "batch_size", "threads", *READ)  # settings of both commands
NO_CAPTION = (
    "the pictures have no captions, so the empty one was given; if the adapter was trained with one text for all (DreamBooth), repeat with "
    '--captions "fixed:TEXT": with the caption that it was trained with, more may show'
)
REPEATED = re.compile(r"(\d+)_(.+)")  # kohya's folders: repeats in an epoch, and the words for images without a caption


class _Audit(AuditConfig):
    """The settings of the audits, whose messages name no flag that `diffleak lora` lacks."""

    NO_FLAG = {"allow_shift", "complexity"}


def lora(config: LoraConfig, inputs: Inputs | None = None, log: Callable[[str], None] = say) -> LoraRecord:
    """Measures every checkpoint and leaves lora.json and lora.html in the output folder; the same call resumes.

    inputs: those of the config, where they are read already. Raises `UserError` for adapters, pictures or settings that do not fit, and
    `InvalidAudit` where pictures and held-out pictures differ without the model.
    """
    found, source, beside = inputs or read_inputs(config)
    _refuse_other_base(config.base)
    repeats = _repeats(config.pictures, source)
    captions = config.captions or _captions(source, repeats)
    folder = checked_folder(config.output)
    log(f"pictures: {source.found}" + "".join(f"; {name}: {one_or_more(n, 'repeat')} in an epoch" for name, n in repeats.items()))
    guessed = (NO_CAPTION,) if captions == "empty" and config.captions is None else ()
    log(f"captions: {shown(captions)}" + ("" if config.captions else " (chosen by what was found; --captions chooses another)"))
    for line in guessed:
        log(f"note: {line}")
    few, held_out = None, None
    if beside is not None:
        few, held_out = _too_few(config, source, beside), len(beside)
        if few:
            log(f"note: {few}")
    rows, warnings = (_audited if config.held_out else _drawn)(config, found, captions)
    record = LoraRecord(
        **written(_command(config)),
        settings=config.model_dump(mode="json"),
        base=config.base,
        pictures=len(source),
        found=source.found,
        repeats=repeats,
        captions=captions,
        held_out=held_out,
        max_excess_auc=config.max_excess_auc if config.held_out else None,
        step_source=found.source or None,
        checkpoints=rows,
        answer=judge.answer(rows, len(source), held_out, few),
        warnings=(*guessed, *warnings),
    )
    measured = AUDIT if config.held_out else EXTRACT
    also = [f"{each.run}/{measured}" for each in rows]
    also += [f"{AUDITS}/{SWEEP}" if config.held_out else f"{DRAWINGS}/{BASE}/{EXTRACT}"]
    write_recorded(folder, {PAGE: to_html(page(record)), FILE: record.model_dump_json(indent=2)}, also)
    return record


def _too_few(config: LoraConfig, source: ImageSource, held_out: ImageSource) -> str | None:
    """Why no checkpoint can meet the limit with so few pictures, as an audit counts them: near-duplicates once."""
    given = len(source), len(held_out)
    found = counted_before(two_sources(source, held_out), given, config.skip_unreadable)
    left, files = found or (given, given)
    fraction = AuditConfig.model_fields["calibrate_fraction"].default
    return judge.too_few(config.max_excess_auc, *left, fraction, since(left, files))


def _refuse_other_base(base: str) -> None:
    """Raises `UserError` for a base that no adapter fits, before commands whose options this one lacks refuse it."""
    if os.path.isfile(base):
        with suppress(Unreadable):  # of a pickle, or damaged, which loading says
            if adapter_weight(load_header(Path(base)).tensors):
                raise UserError(
                    f"BASE must be a text-to-image model; {shown(base, LONGEST_PATH)} is an adapter: give the model that it was made for"
                )
        return
    folder = located(base)
    two = any((folder / f"{network}{SECOND}").is_dir() for network in NETWORKS)
    parts = (INDEX, "config.json", *NETWORKS)  # of a folder without any, loading says that it is no model
    if two or (any((folder / part).exists() for part in parts) and pipeline_of(folder) is None):
        other = "holds two networks" if two else "takes no captions"
        raise UserError(
            f"BASE must be a text-to-image model; {shown(base, LONGEST_PATH)} {other}: give the model that the adapters were made for"
        )


def _command(config: LoraConfig) -> str:
    """The command line that repeats this: the adapters stand behind the base, without a flag."""
    first, rest = shlex.join(["diffleak", "lora", config.base]), command_line(config, "lora", ("threads", "base", "adapters"))
    return f"{first} {shlex.quote(config.adapters)}{rest.removeprefix('diffleak lora')}"


def _repeats(name: str, source: ImageSource) -> dict[str, int]:
    """Repeats by folder, of folders that are named as kohya's trainer has them: 10_dog, or any of them below DIR."""
    below = {image_id.split("/")[0] for image_id in source.ids if "/" in image_id}
    matches = [match for folder in sorted(below or {Path(name).name}) if (match := REPEATED.fullmatch(folder))]
    return {match[0]: int(match[1]) for match in matches}


def _captions(source: ImageSource, repeats: dict[str, int]) -> str:
    """The captions that the trainer gave the pictures: their own, else the words in the name of kohya's folder, else none."""
    words = {match[2] for folder in repeats if (match := REPEATED.fullmatch(folder))}
    choice = own_if_any(source.captions(), f"fixed:{next(iter(words))}" if words else "empty")
    if len(words) > 1 and choice != "own":
        raise UserError(
            f"the pictures have no captions, and their folders are called {', '.join(sorted(words))}: give each a .txt file, or "
            "--captions fixed:TEXT for all"
        )
    return choice


def _audited(config: LoraConfig, found: Checkpoints, captions: str) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """A row for each checkpoint by its audit beyond the base, and warnings."""
    given = (*SHARED, "lora_scale", "attacks", "timesteps", "buckets")
    settings = {key: value for key, value in config.model_dump().items() if key in given}
    sides = {"members": config.pictures, "nonmembers": config.held_out, "captions": captions, "resize": config.buckets is None}
    audit = {**settings, **sides, "model": config.base, "lora": config.adapters, "reference": "base", "output": config.output / AUDITS}
    record = sweep(build(_Audit, audit), found, timed=False)  # without the limit, which so few pictures may never meet: undecided
    assert record is not None, "one process scores all shards"
    limited = build(AuditConfig, audit, {"max_excess_auc": config.max_excess_auc})
    rows, of_each = [], dict[str, tuple[str, ...]]()
    for each in found.found:
        refuse_edited(config.output / AUDITS / each.name)
        run = read_audit(config.output / AUDITS / each.name)
        excess = judge.excess(run.results, gates(run.results, limited))
        judged = judge.of_audit(run, excess.attack)
        rows.append(_row(config, found, each, AUDITS, *judge.of_excess(excess, config.max_excess_auc, judged), excess=excess))
        of_each[each.name] = run.warnings
    return tuple(rows), _warnings(of_each)  # not those of the sweep, whose curve may be of other attacks


def _drawn(config: LoraConfig, found: Checkpoints, captions: str) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """A row for each checkpoint by its drawings beside those of the base, and warnings."""
    of_base = _extracted(config, captions, None, config.output / DRAWINGS / BASE)
    rows, of_each = [], {BASE: of_base.warnings}
    for each in found.found:
        record = _extracted(config, captions, each, config.output / DRAWINGS / each.name)
        page_of = f"{DRAWINGS}/{each.name}/{EXTRACT_PAGE}"
        redrawn = judge.redrawn(_distances(record), _distances(of_base))
        rows.append(_row(config, found, each, DRAWINGS, *judge.of_drawings(redrawn, page_of), redrawn=redrawn))
        of_each[each.name] = record.warnings
    return tuple(rows), _warnings(of_each)


def _warnings(of_each: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What holds for the base and every adapter once, and for some with their names."""
    lines = dict.fromkeys(line for warnings in of_each.values() for line in warnings)
    named = {line: [name for name, warnings in of_each.items() if line in warnings] for line in lines}
    return tuple(line if len(names) == len(of_each) else f"{', '.join(names)}: {line}" for line, names in named.items())


def _extracted(config: LoraConfig, captions: str, adapter: Found | None, folder: Path) -> ExtractionRecord:
    say(f"drawing: {adapter.name if adapter else 'the base alone'}")
    given = (*SHARED, "draws", "extractor", "thumbnails")
    settings = {key: value for key, value in config.model_dump().items() if key in given}
    of_adapter = {"lora": adapter.path, "lora_scale": config.lora_scale} if adapter else {}
    extract = {"model": config.base, "members": config.pictures, "captions": captions, "steps": config.draw_steps, "resize": True}
    try:
        made = search(build(ExtractConfig, settings, of_adapter, extract, {"output": folder}), share=Share(0, 1))
    except SettingError as error:
        raise SettingError("draw_steps" if error.key == "steps" else error.key, error.said) from None
    assert made is not None, "all of it is this worker's"
    made.save(folder, config.thumbnails)
    return made.record


def _distances(record: ExtractionRecord) -> dict[str, float]:
    """The distance of each picture to its nearest drawing, by its id; of near-duplicates the least, by that of the one which counts.

    They are drawn closely together or not at all, so each for itself would be no evidence of its own. Where adapter and base draw alike,
    the least of the one is exchangeable with the least of the other, whatever their number.
    """
    found: dict[str, float] = {}
    for pair in record.pairs:  # the nearest first
        found.setdefault(pair.counted_as or pair.id, pair.distances[record.decides])
    return found


def _row(
    config: LoraConfig,
    found: Checkpoints,
    each: Found,
    folder: str,
    decision: Any,
    reason: str,
    excess: Excess | None = None,
    redrawn: Redrawn | None = None,
) -> Checkpoint:
    file = adapter_file(each.path)
    return Checkpoint(
        name=each.name,
        path=each.path,
        step=each.step if found.source else None,
        run=f"{folder}/{each.name}",
        excess=excess,
        redrawn=redrawn,
        header=given_away(file, "adapter") if file.suffix == WEIGHTS else None,
        decision=decision,
        reason=reason,
    )
