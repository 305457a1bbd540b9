"""The group of every image, such as a person, a patient or an artist: a column of the metadata that says which images count together.

The column is read where labels and captions are: metadata files of a folder, a column of a table, a key of the .json in a shard, an array
of a .npz. Its values are texts or whole numbers. A group stands on one side: an attack on a group that was half trained on has no answer.
"""

import json
from collections import Counter
from collections.abc import Sequence

from diffleak.data.cohort import Cohort
from diffleak.errors import UserError, is_text, listed, nearest, of_them, one_or_more, shown

NAMES_IT = "the same command without --anonymous names it"


def groups_of(cohort: Cohort, column: str) -> tuple[str, ...]:
    """The group of every image of a cohort by a column of its data, in the order of the images.

    Raises `UserError`, in one line, for data without this column, images without a group (with their number), and a value that is neither a
    text nor a whole number. `refuse_both_sides` is for sides that must not share a group.
    """
    with cohort.without_names():
        values = cohort.column(column)
    if values is None:
        known = [name for names in cohort.names_in_files() if names for name in names.columns]
        near = nearest(column, known)
        has = f"it has {listed(dict.fromkeys(known), 120)}" if known else "it has none"
        raise UserError(
            f"--group must name a column of the metadata; the data has no column {shown(column)}: {has}"
            + (f"; is {shown(near)} meant?" if near else "")
        )
    found: list[str] = []
    missing: list[int] = []
    for row, value in enumerate(values):
        try:
            group = group_name(value)
        except ValueError as error:
            has = NAMES_IT if cohort.anonymous else f"{shown(cohort.ids[row])} has {error}"
            raise UserError(f"the column {shown(column)} must hold texts or whole numbers; {has}: correct it, or name another") from None
        found.append(group or "")
        missing += [] if group else [row]
    if missing:
        raise UserError(
            f"every image needs a group; {of_them(len(missing), f'{len(cohort):,}', 'has', 'have')} none in the column {shown(column)} "
            f"(first: {shown(cohort.ids[missing[0]])}): add it, or leave these images out"
        )
    return tuple(found)


def group_name(value: object) -> str | None:
    """A value of the column as text, None where there is none; raises `ValueError` for what is neither a text nor a whole number."""
    if isinstance(value, str) and is_text(value):
        return value.strip() or None
    if value is None or value != value:  # NaN, which tables have where whole numbers are missing
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    raise ValueError(shown(json.dumps(value, default=str)))


def refuse_both_sides(groups: Sequence[str], cohort: Cohort, column: str) -> None:
    """Raises `UserError` where a group has images on both sides, naming the first of them."""
    sides = {True: set[str](), False: set[str]()}
    for group, member in zip(groups, cohort.member, strict=True):
        sides[bool(member)].add(group)
    both = sorted(sides[True] & sides[False])
    if both:
        of = Counter(group for group, member in zip(groups, cohort.member, strict=True) if member)
        held = Counter(groups)[both[0]] - of[both[0]]
        named = NAMES_IT if cohort.anonymous else shown(both[0])
        by = f"by {shown(column)}"
        raise UserError(
            f"a group must stand on one side; {one_or_more(len(both), f'group {by} is', f'groups {by} are')} on both (first: {named}, with "
            f"{cohort.calls[0]}: {of[both[0]]:,}, {cohort.calls[1]}: {held:,}): move each to one side, or leave it out"
        )
