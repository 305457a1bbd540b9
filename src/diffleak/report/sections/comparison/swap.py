"""The swap audit of two teachers."""

from diffleak.errors import one_or_more, visible
from diffleak.records.comparison import Comparison, SwapAudit, SwapResult
from diffleak.report.section import Section, Sentences, Tabulated, prose
from diffleak.report.table import Column, Table, estimate_cell, setting_cell, tabulate
from diffleak.report.wording import count, percent, spoken


def section(record: Comparison) -> Section:
    """The leak of the two teachers of an entry together; or the reason that it was not looked at."""
    title, swap, menu = "Swap audit of two teachers", record.swap, "Swap audit"
    if swap is None:
        why = (
            "Where a defence trains two teachers on disjoint halves of the members, each image is a member of one and held out from the "
            "other, and the difference of its two scores shows more than either alone. It was not made here: "
            f"{visible(record.swap_reason or 'no reason is recorded')}."
        )
        short = f"No swap audit: {visible(record.swap_reason)}." if record.swap_reason else None
        said = (Sentences((short,), tone="small", where="text"),) if short else ()
        return Section("swap", title, (*said, prose(why)), menu)
    left_out = f"Without scores at every timestep on both teachers, and so left out: {visible(', '.join(swap.omitted))}."
    tabulated = Tabulated(swap_table(swap), _caption(swap), notes=(left_out,) if swap.omitted else ())
    return Section("swap", title, (Sentences(swap_sentences(swap), listed=False), tabulated), menu, "Swap audit of the two teachers")


def _caption(swap: SwapAudit) -> str:
    first, second = map(count, swap.nonmembers)
    an, of = ("a", "group") if swap.unit == "group" else ("an", "image")
    on = "calibrate" if any(result.calibrate_auc is not None for result in swap.results) else "test"
    return (
        f"Swap AUC: each {of} has a difference, its score on teacher 1 minus that on teacher 2. How often is it higher for {an} {of} of "
        f"the first half ({count(swap.tested[0])} tested) than for one of the second ({count(swap.tested[1])} tested)? Every image is a "
        "member of one teacher and held out from the other, so how simple the image is cancels out. Beside it, the ordinary "
        "AUC of each teacher on its own half, against "
        f"{first}{f' and {second}' if second != first else ''} held-out {of}s."
        f"{' Near-duplicates of a half count as one image.' if swap.unit == 'cluster' else ''}"
        f"{' A group has the mean of the scores of its images.' if swap.unit == 'group' else ''}"
        f"{f' Medians over {swap.repeats} random divisions.' if swap.repeats > 1 else ''} Marked: the attack with the highest swap AUC on "
        f"the {on} part."
    )


def swap_table(swap: SwapAudit) -> Table:
    """A row per attack: what both teachers together tell, beside what each tells alone."""
    own = lambda i: lambda r: estimate_cell(r.own[i])
    drawn = (
        Column(("Swap AUC",), "By the two scores of each {one}: first half against second.", 1, lambda r: estimate_cell(r.auc)),
        Column(("AUC of", "teacher 1"), "The {members} of its half against {all_held_out}.", 2, own(0)),
        Column(("AUC of", "teacher 2"), "The {members} of its half against {all_held_out}.", 3, own(1)),
        Column(("Timestep",), "Or setting, of the swap audit, chosen on its calibrate part.", 4, setting_cell),
    )
    return tabulate(swap.results, drawn, lambda r: (r.attack, "", r.attack == swap.best), swap.unit)


def swap_sentences(swap: SwapAudit) -> tuple[str, ...]:
    """Sums the swap audit up."""
    best: SwapResult = next(r for r in swap.results if r.attack == swap.best)
    if best.auc.value is None or best.auc.low is None or best.auc.high is None:
        return (f"The swap audit has no interval: {visible(best.auc.reason or 'no reason given')}.",)
    value, ends = spoken(best.auc)
    an, of, members = ("a", "group", "groups") if swap.unit == "group" else ("an", "image", "members")
    first = (
        f"By the difference of {an} {of}'s two scores, {visible(best.attack)} tells which of the two teachers was trained on it: given one "
        f"{of} of each half, it is right {value} of the time (95 % interval {ends}; 50 % is guessing)."
    )
    own = " and ".join("n/e" if e.value is None else percent(e.value) for e in best.own)
    beside = f"On one teacher alone the same attack tells {members} of its half from held-out {of}s {own} of the time."
    who = (
        "This needs access to both teachers, as after a release of both. It assumes that the members were divided into halves at random: a "
        "difference between the halves themselves counts as a leak as well."
    )
    clusters = one_or_more(swap.across, "cluster of near-duplicates has", "clusters of near-duplicates have")
    both = (
        f"{clusters} images in both halves: each teacher was trained on near-copies of images of the other, which hides a part of the leak."
    )
    return (first, beside, who, both) if swap.across else (first, beside, who)
