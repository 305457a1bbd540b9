"""What lies in a run folder besides the score chunks: plan.json, audit.json, samples.csv, report.html. No torch."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from diffleak import report
from diffleak.audit_config import AuditConfig, GeometryConfig, read_cohort
from diffleak.config import build
from diffleak.data.cohort import Cohort
from diffleak.data.pixels import CHANNEL_NAMES, png, without_alpha
from diffleak.errors import UserError
from diffleak.files import write_text
from diffleak.reasons import in_given_images
from diffleak.record import EARLIER_RATES, SCHEMA_VERSION, AuditRecord, Plan, Record, Samples
from diffleak.report.judgement import with_validity

R = TypeVar("R", bound=Record)


def read_plan(folder: Path) -> Plan | None:
    """The plan that a run folder belongs to, or None for a fresh folder."""
    path = folder / "plan.json"
    return _read(path, Plan) if path.exists() else None


def read_record(folder: Path) -> AuditRecord:
    """The record of a finished run, with a warning where its rates are those of an earlier definition.

    Raises `UserError` for a folder without one, or of an unknown schema version.
    """
    path = folder / "audit.json"
    if not path.is_file():
        raise UserError(f"RUN must be the folder of a finished audit; {folder} has no audit.json")
    record = with_validity(in_given_images(_read(path, AuditRecord)))
    return record if record.schema_version > 1 else record.model_copy(update={"warnings": (*record.warnings, EARLIER_RATES)})


def write_results(folder: Path, record: AuditRecord, samples: Samples, cohort: Cohort | None) -> None:
    """Writes audit.json, samples.csv and report.html; with a cohort the report shows the members that score highest."""
    write_samples(folder / "samples.csv", samples)
    write_text(folder / "report.html", report.html(record, samples, _thumbnails(cohort, record) if cohort else None))
    write_text(folder / "audit.json", record.model_dump_json(indent=2))


def rewrite_report(folder: Path, thumbnails: bool) -> AuditRecord:
    """Renders report.html again from a run folder and returns the record.

    `thumbnails` reads the images again from where the audit found them; raises `UserError` when they are gone.
    """
    record = read_record(folder)
    if thumbnails and record.plan.anonymous:
        raise UserError(f"{folder} is an anonymous run, and its report shows no images; leave out --thumbnails")
    try:
        kind = GeometryConfig if record.geometry else AuditConfig
        cohort = read_cohort(build(kind, record.settings)) if thumbnails else None
    except UserError as error:
        raise UserError(
            f"the images of this audit are not where it read them ({error}); put them back, or leave out --thumbnails"
        ) from None
    samples = read_samples(folder)
    write_text(folder / "report.html", report.html(record, samples, _thumbnails(cohort, record) if cohort else None))
    return record


def _thumbnails(cohort: Cohort, record: AuditRecord) -> Callable[[str], bytes]:
    """The images as the model is given them: without alpha, unless it takes RGBA."""
    channels = 4 if record.plan.image_shape.endswith(CHANNEL_NAMES[4]) else 3
    return lambda image_id: png(without_alpha(cohort.of(image_id), channels))


def write_samples(path: Path, samples: Samples) -> None:
    """samples.csv: id, member, part, then a column of membership scores per attack."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "member", "part", *samples.scores])
    for i, image_id in enumerate(samples.ids):
        part = "test" if samples.test[i] else "calibrate"
        writer.writerow([image_id, int(samples.member[i]), part, *(repr(float(column[i])) for column in samples.scores.values())])
    write_text(path, text.getvalue())


def read_samples(folder: Path) -> Samples:
    """samples.csv of a run folder."""
    path = folder / "samples.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        scores = {name: np.array(columns[name], dtype=np.float64) for name in header[3:]}
        return Samples(tuple(columns["id"]), np.array(columns["member"]) == "1", np.array(columns["part"]) == "test", scores)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); run the audit again to rewrite it") from None


def _read(path: Path, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValidationError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} cannot be read as schema version {SCHEMA_VERSION} ({reason})") from None
