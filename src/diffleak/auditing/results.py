"""What a finished audit leaves: audit.json, samples.csv, report.html and, where images are shown, maps.npy. No torch."""

from collections.abc import Callable
from pathlib import Path

from diffleak.auditing.config import AuditConfig, GeometryConfig, read_cohort
from diffleak.config import build
from diffleak.data.cohort import Cohort
from diffleak.data.pixels import CHANNEL_NAMES, png, without_alpha
from diffleak.errors import WHY, UserError, refusing
from diffleak.records import digests
from diffleak.records.audit import AuditRecord
from diffleak.records.maps import FILE as MAPS
from diffleak.records.maps import Maps, read_maps, write_maps
from diffleak.records.run_folder import read_samples, write_samples
from diffleak.records.scores import Samples
from diffleak.report.judgement import read_record
from diffleak.report.written import write_report
from diffleak.work.files import write_text


def write_results(folder: Path, record: AuditRecord, samples: Samples, cohort: Cohort | None, maps: Maps | None = None) -> None:
    """Writes audit.json, samples.csv, report.html and digests.json; with a cohort the report shows the highest members, and their maps."""
    write_samples(folder / "samples.csv", samples)
    if cohort and maps:
        write_maps(folder, maps)
    else:
        (folder / MAPS).unlink(missing_ok=True)  # those of an earlier call may be at another timestep
    text = record.model_dump_json(indent=2)
    _write_report(folder, record, samples, cohort, digests.sealed(folder, text))
    write_text(folder / digests.AUDIT, text, private=True)
    digests.write_audit_digests(folder)


def read_unedited(folder: Path) -> AuditRecord:
    """The record of a finished run; raises `RecordEdited` for one that was edited, and says where nothing can be compared."""
    record = read_record(folder)
    digests.refuse_edited_or_say(folder, but=(MAPS,))  # has a checksum of its own, and may be deleted: it shows training images
    return record


def rewrite_report(folder: Path, thumbnails: bool) -> AuditRecord:
    """Renders report.html again from a run folder and returns the record.

    `thumbnails` reads the images again from where the audit found them; raises `UserError` when they are gone, and `RecordEdited` for a
    record that was edited.
    """
    record = read_unedited(folder)
    if thumbnails and record.plan.anonymous:
        raise UserError(f"{folder} is an anonymous run, and its report shows no images; leave out --thumbnails")
    with refusing(UserError, f"the images of this audit are not where it read them ({WHY}); put them back, or leave out --thumbnails"):
        kind = GeometryConfig if record.geometry else AuditConfig
        cohort = read_cohort(build(kind, record.settings)) if thumbnails else None
    _write_report(folder, record, read_samples(folder), cohort, digests.sealed(folder))
    digests.update_report(folder)
    return record


def _write_report(folder: Path, record: AuditRecord, samples: Samples, cohort: Cohort | None, sealed: digests.Sealed) -> None:
    thumbnail, maps = (_thumbnails(cohort, record), read_maps(folder)) if cohort else (None, None)
    write_report(folder, record, samples, thumbnail, maps, sealed)


def _thumbnails(cohort: Cohort, record: AuditRecord) -> Callable[[str], bytes]:
    """The images as the model is given them: without alpha, unless it takes RGBA."""
    channels = 4 if record.plan.image_shape.endswith(CHANNEL_NAMES[4]) else 3
    return lambda image_id: png(without_alpha(cohort.of(image_id), channels))
