"""Why a number could not be estimated, in the images that the user gave.

`diffleak.stats.metrics` counts the images it is handed, which in an audit are those of the test part, or of the calibrate part. The user
gives both parts together: where 100 held-out images must be tested and a fifth is set apart, 125 must be given.
"""

import re
from typing import Any, TypeVar

from diffleak.data.draw import images_for, side_with
from diffleak.records.audit import AuditRecord
from diffleak.records.base import Record
from diffleak.records.scores import Unit
from diffleak.stats.metrics import TOO_FEW

R = TypeVar("R", bound=Record)

TESTED = "needs at least 2 of each side in the test part"
COUNTED = re.compile(r"needs >= (\d+) (non-members|members)( to calibrate on)?, has \d+")


def in_given_images(record: AuditRecord) -> AuditRecord:
    """The record with every reason of its results counting all images of a side; a reason that already does stays."""
    split = record.split
    given = (split.members, split.nonmembers, split.calibrate_fraction, split.unit)
    return record.model_copy(update={"results": tuple(reworded(r, *given) for r in record.results)})


def reworded(record: R, members: int, nonmembers: int, fraction: float, unit: Unit = "image") -> R:
    """A record of any kind whose sides had so many images, or groups of them, of which `fraction` was set apart to calibrate on."""

    def walk(value: Any) -> Any:
        if isinstance(value, Record):
            return reworded(value, members, nonmembers, fraction, unit)
        return tuple(walk(item) for item in value) if isinstance(value, tuple) else value

    update = {name: walk(getattr(record, name)) for name in type(record).model_fields}
    reason = update.get("reason")
    if isinstance(reason, str):
        reason = COUNTED.sub(lambda found: _given(found, members, nonmembers, fraction, unit), reason)
        update["reason"] = TESTED if reason == TOO_FEW and fraction else reason
    return record.model_copy(update=update)


def _given(found: re.Match[str], members: int, nonmembers: int, fraction: float, unit: Unit) -> str:
    """needs 125 held-out images, since a fifth of them is set apart for calibration; this audit counts 100"""
    tested, side, calibrated = int(found[1]), found[2], found[3]
    names = ("groups of members", "held-out groups") if unit == "group" else ("members", "held-out images")
    name, has = (names[0], members) if side == "members" else (names[1], nonmembers)
    share = "a fifth" if fraction == 0.2 else f"{100 * fraction:g} %"
    if calibrated:
        return f"needs {side_with(tested, fraction):,} {name}, since settings are chosen on only {share} of them; this audit counts {has:,}"
    why = f", since {share} of them is set apart for calibration" if fraction else ""
    return f"needs {images_for(tested, fraction):,} {name}{why}; this audit counts {has:,}"
