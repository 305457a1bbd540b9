"""`diffleak reveal`: the file names behind the keyed ids of an anonymous run, for the owner of its key and its data. No torch."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from diffleak.auditing.config import AuditConfig, GeometryConfig, read_cohort
from diffleak.config import build
from diffleak.data.anonymity import FILE, read_key
from diffleak.data.cohort import Cohort, images_alone
from diffleak.data.groups import groups_of
from diffleak.data.sources import open_source
from diffleak.errors import WHY, UserError, refusing
from diffleak.extraction.config import ExtractConfig
from diffleak.extraction.config import read_cohort as extracted
from diffleak.inquiry.config import InquireConfig, inquired
from diffleak.quality.config import QualityConfig, read_real
from diffleak.records.digests import refuse_edited
from diffleak.records.extraction import FILE as EXTRACT
from diffleak.records.extraction import read_extraction
from diffleak.records.inquiry import FILE as INQUIRY
from diffleak.records.inquiry import read_inquiry
from diffleak.records.quality import FILE as QUALITY
from diffleak.records.quality import QualityRecord, read_quality
from diffleak.records.run_folder import read_plan
from diffleak.report.judgement import read_record
from diffleak.work.files import write_text

IDS = "ids.csv"


def reveal(folder: Path, key_file: Path | None = None, output: Path | None = None) -> Path:
    """Writes a table of keyed id and file name of every image of a run, readable by its owner only, and returns its path.

    Where images were counted by group, the names of the groups follow those of the images.

    folder: of an audit, a geometry, an inquiry, a quality measurement or an extraction. key_file: by default the one that
    the run was made with. The images are listed again from where the run read them. Raises `UserError` for a run that is not anonymous,
    another key, and data that is no longer there.
    """
    refuse_edited(folder)
    recorded = _recorded(folder)
    names = {name for name, _ in recorded.values()}
    if names in (set(), {None}):
        raise UserError(f"RUN must be the folder of an anonymous run; {folder} has no keyed ids")
    key = read_key(key_file or next((given for _, given in recorded.values() if given), folder / FILE))
    if names != {key.name}:
        raise UserError(f"{key.path} is not the key that {folder} was made with; give that one with --anonymous-key FILE")
    plan = read_plan(folder, to_read=True)
    if plan and plan.n_members and not any((folder / name).is_file() for name in ("audit.json", INQUIRY)):
        raise UserError(f"{folder} is not finished: repeat its command, it resumes")
    with refusing(UserError, f"the images of {folder} are not where the run read them ({WHY}); put them back"):
        cohorts = list(_cohorts(folder, set(recorded)))
        keys = sorted({image_id for cohort in cohorts for image_id in cohort.keys})
        column = plan.group if plan else None
        groups = sorted({group for cohort in cohorts for group in groups_of(cohort, column)}) if column is not None else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [*zip(key.ids(keys), keys, strict=True), *zip(key.groups(groups), groups, strict=True)]
    writer.writerows([("id", "name"), *named])
    path = output or folder / IDS
    write_text(path, text.getvalue(), private=True)
    return path


def _recorded(folder: Path) -> dict[str, tuple[str | None, Path | None]]:
    """Of what lies in a folder, "plan", "quality" and "extract", the name of the key and the file that was given for it."""
    found: dict[str, tuple[str | None, Path | None]] = {}
    file_of = lambda settings: Path(settings["anonymous_key"]) if settings.get("anonymous_key") else None
    plan = read_plan(folder, to_read=True)
    if plan:
        finished = read_record if (folder / "audit.json").is_file() else read_inquiry if (folder / INQUIRY).is_file() else None
        settings = finished(folder).settings if finished else {}
        found["plan"] = plan.anonymous, file_of(settings)
    if (folder / QUALITY).is_file():
        record = read_quality(folder / QUALITY, QualityRecord)
        found["quality"] = record.anonymous, file_of(record.settings)
    if (folder / EXTRACT).is_file():
        extraction = read_extraction(folder / EXTRACT)
        found["extract"] = extraction.anonymous, file_of(extraction.settings)
    return found


def _cohorts(folder: Path, parts: set[str]) -> Iterator[Cohort]:
    """The images of a run again, under their own ids."""
    if "quality" in parts:
        real = read_real(build(QualityConfig, read_quality(folder / QUALITY, QualityRecord).settings))
        yield from (images for images in (real.reference, real.training) if images)
    if "extract" in parts:
        yield extracted(build(ExtractConfig, read_extraction(folder / EXTRACT).settings))
    if (folder / "audit.json").is_file():
        record = read_record(folder)
        yield read_cohort(build(GeometryConfig if record.geometry else AuditConfig, record.settings))
    elif (folder / INQUIRY).is_file():
        yield inquired(build(InquireConfig, read_inquiry(folder).settings))
    elif plan := read_plan(folder, to_read=True):
        yield images_alone(open_source(plan.nonmembers))
