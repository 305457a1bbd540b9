"""Which groups of images an attack is surest of, for the record of an audit by `--group`. No torch."""

from collections import Counter

import numpy as np

from diffleak.records.audit import AuditRecord
from diffleak.records.groups import LISTED, ExposedGroup, Groups
from diffleak.records.scores import Samples
from diffleak.report.judgement import verdict
from diffleak.stats.metrics import exposure


def groups_found(record: AuditRecord, samples: Samples, column: str) -> Groups:
    """The groups of `samples`, those of members in the test part with the highest scores listed, equal ones in the order of their names."""
    images, counted, attack = Counter(samples.units), samples.counted, verdict(record).attack
    scores = counted.scores.get(attack) if attack else None
    listed: list[ExposedGroup] = []
    if scores is not None:
        members, nonmembers = (np.flatnonzero(counted.test & side) for side in (counted.member, ~counted.member))
        first = sorted(members.tolist(), key=lambda row: (-scores[row], counted.ids[row]))[:LISTED]
        listed = [
            ExposedGroup(group=counted.ids[row], images=images[counted.ids[row]], score=float(scores[row]), exposure=float(share))
            for row, share in zip(first, exposure(scores[first], scores[nonmembers]), strict=True)
        ]
    sizes = sorted(images.values())
    return Groups(
        column=column,
        members=record.split.members,
        nonmembers=record.split.nonmembers,
        images=(sizes[0], sizes[(len(sizes) - 1) // 2], sizes[-1]),
        tested=(int((counted.test & counted.member).sum()), int((counted.test & ~counted.member).sum())),
        attack=attack if scores is not None else None,
        exposed=tuple(listed),
    )
