"""What lies in a run folder besides the score chunks: plan.json, audit.json, samples.csv, report.html. No torch."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from diffleak.errors import UserError, one_or_more, shown
from diffleak.records.audit import EARLIER_RATES, AuditRecord, Result
from diffleak.records.base import read_json
from diffleak.records.digests import AUDIT, PLAN
from diffleak.records.inquiry import FILE as INQUIRY
from diffleak.records.plan import Plan
from diffleak.records.quality import DRAWN
from diffleak.records.scores import Samples, Scores, Unit, read_columns
from diffleak.work.files import write_text
from diffleak.work.reading import PICKLES, found_at, load_columns

GEOMETRY = "geometry.parquet"
TRAINED = "train.json"
BESIDE = {"quality.json": "a comparison with real images", "extract.json": "a search for copies", "prompts.json": "a search for prompts"}
ALONE = {
    "sweep.json": "an audit of several checkpoints",
    "compare.json": "a comparison of audits",
    "lora.json": "an answer of lora",
    TRAINED: "a trained model",
}
MAIN = {AUDIT: "an audit", INQUIRY: "an inquiry", PLAN: "a run"}
RUNS = {  # of a command whose folder has no plan of its own, the plans below it
    "prompts.json": (f"prompts/{PLAN}",),
    "sweep.json": (f"*/{PLAN}",),
    "lora.json": (f"*/*/{PLAN}", f"*/*/{DRAWN}/{PLAN}"),
}
WEIGHTS = (".safetensors", *PICKLES)  # by which a folder is a model's, or a part of it
MANY_KINDS = {".bin", ".pkl"}  # of these, which hold data and logs too, those that are named as weights
NAMED_AS_WEIGHTS = re.compile("model|weights|embeds", re.IGNORECASE)
PART = re.compile(r"(unet|transformer|vae|vqvae|text_encoder)(_\w+)?|checkpoint-\d+")  # folders that a model or its trainer has
COUNTED: tuple[Unit, ...] = ("group", "cluster")  # columns of samples.csv that say which images count together


def refuse_other_command(folder: Path | None, own: str) -> None:
    """Raises `UserError` for a folder that is of another command than the one that writes `own`, which reports and gates would mix up.

    Drawings and their comparisons may lie beside an audit or an inquiry; a sweep, a comparison, the answer of `lora` and a model have a
    folder of their own. A folder that the command has written to before is judged by its plan alone.
    """
    there = lambda name: folder is not None and found_at(Path(folder) / name) == "a file"
    if there(own):
        return
    if own in ALONE:
        others = {**BESIDE, **ALONE, **MAIN}
    else:
        others = {name: whose for name, whose in {**ALONE, **(MAIN if own in MAIN else {})}.items() if name not in (TRAINED, PLAN)}
    found = next((name for name in others if there(name)), None)
    if found:
        raise UserError(f"{folder} is the folder of {others[found]} ({found}); choose another -o")
    if own != TRAINED:
        refuse_model(folder, own)


def refuse_model(folder: Path | None, own: str) -> None:
    """Raises `UserError` for the folder of a model, which the record `own` would be released with.

    One that has such a record, or a plan, has been given results by an earlier version, and the command goes on with them.
    """
    there = lambda name: folder is not None and found_at(Path(folder) / name) == "a file"
    if folder is None or any(map(there, (own, PLAN, f"{DRAWN}/{PLAN}"))):
        return
    with suppress(OSError):  # a name that no system takes
        if any(any(Path(folder).glob(run)) for run in RUNS.get(own, ())):
            return
    if found := TRAINED if there(TRAINED) else next(_weights(Path(folder)), None):
        raise UserError(f"{folder} is the folder of a model ({found}); choose another -o")


def _weights(folder: Path) -> Iterator[str]:
    """The files of weights in a folder and in the parts of a model there; none of one that cannot be read."""
    with suppress(OSError):
        inside = sorted(folder.iterdir())
        yield from (file.name for file in inside if _is_weights(file))
        for part in (each for each in inside if PART.fullmatch(each.name)):
            with suppress(OSError):
                yield from (str(file.relative_to(folder)) for file in sorted(part.iterdir()) if _is_weights(file))


def _is_weights(file: Path) -> bool:
    ending = file.suffix.lower()
    return ending in WEIGHTS and (ending not in MANY_KINDS or NAMED_AS_WEIGHTS.search(file.stem) is not None)


def read_plan(folder: Path, *, to_read: bool = False) -> Plan | None:
    """The plan that a run folder belongs to, or None for a fresh folder; to_read: the command writes no run there."""
    path = folder / PLAN
    advice = "put the file back" if to_read else "choose another -o, or delete the folder to begin again"
    return read_json(path, Plan, advice=advice) if path.exists() else None


def unfinished(folder: Path) -> bool:
    """True for a folder that an audit, an inquiry or the geometry of images alone has begun and not ended.

    An audit with masks has a geometry.parquet before it is evaluated, so that file ends nothing but a plan without attacks.
    """
    if not (folder / PLAN).is_file() or any((folder / name).is_file() for name in (AUDIT, INQUIRY)):
        return False
    plan = read_plan(folder, to_read=True) if (folder / GEOMETRY).is_file() else None
    return plan is None or bool(plan.attacks)


def read_audit(folder: Path) -> AuditRecord:
    """The record of a finished run as it was written, with a warning where its rates are those of an earlier definition.

    Raises `UserError` for a folder without one, or of an unknown schema version.
    """
    path = folder / AUDIT
    if not path.is_file():
        raise UserError(f"RUN must be the folder of a finished audit; {folder} has no audit.json")
    record = read_json(path, AuditRecord, advice="repeat its audit command, which writes it again")
    return record if record.schema_version > 1 else record.model_copy(update={"warnings": (*record.warnings, EARLIER_RATES)})


def write_samples(path: Path, samples: Samples) -> None:
    """samples.csv: id, member, part, the group or cluster of each image where images count together, then the scores of each attack."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "member", "part", *([samples.unit] if samples.units else []), *samples.scores])
    for i, image_id in enumerate(samples.ids):
        part, unit = "test" if samples.test[i] else "calibrate", [samples.units[i]] if samples.units else []
        scores = [repr(float(column[i])) for column in samples.scores.values()]
        writer.writerow([image_id, int(samples.member[i]), part, *unit, *scores])
    write_text(path, text.getvalue(), private=True)


def read_samples(folder: Path) -> Samples:
    """samples.csv of a run folder; raises `UserError` for one that an audit cannot have written."""
    path = folder / "samples.csv"
    try:
        header, values, odd = load_columns(path)
        for name in ("id", "member", "part", *header):
            if header.count(name) != 1:
                raise ValueError(f"it has {header.count(name) or 'no'} column{'s' * (header.count(name) > 1)} {shown(name)}")
        if odd:
            raise ValueError(f"row {odd[0]} has {one_or_more(odd[1], 'field')}, not {len(header)}")
        columns = dict(zip(header, values, strict=True))
        unit: Unit = next((kind for kind in COUNTED if header[3:4] == [kind]), "image")
        number = lambda column: np.fromiter(map(float, column), np.float64, len(column))
        scores = {name: number(columns[name]) for name in header[3 + (unit != "image") :]}
        ids, member, part = (columns[name] for name in ("id", "member", "part"))
        for name, found, right in (("member", member, ("0", "1")), ("part", part, ("calibrate", "test"))):
            if {*found} - {*right}:
                other = next(value for value in found if value not in right)
                raise ValueError(f"{name} must be {' or '.join(right)}; got '{shown(other)}'")
        if len({*ids}) < len(ids):
            twice = next(image_id for image_id, times in Counter(ids).items() if times > 1)
            raise ValueError(f"the id '{shown(twice)}' is there twice")
        if broken := [name for name, column in scores.items() if not np.isfinite(column).all()]:
            raise ValueError(f"{shown(broken[0])} must be finite numbers")
        units = tuple(columns[unit]) if unit in columns else None
        is_member, is_test = (np.fromiter(map(is_in.__eq__, column), bool, len(ids)) for is_in, column in (("1", member), ("test", part)))
        return Samples(tuple(ids), is_member, is_test, scores, units, unit)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({shown(error, 120)}); run the audit again to rewrite it") from None


def read_scores(folder: Path, result: Result, rows: Mapping[str, int]) -> Scores | None:
    """The scores of a result at the timesteps at which every image is scored, from scores/; None where no file there has its label.

    rows: the row that each image is to have, by its id, from 0 in their order. Raises `UserError` as `read_columns` does.
    """
    found = read_columns(folder, result.attack, rows)
    if found is None:
        return None
    timesteps, statistic = found
    return Scores(result.attack, result.direction, timesteps, tuple(rows), statistic, result.rule)
