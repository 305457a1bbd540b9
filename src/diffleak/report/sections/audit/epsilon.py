"""The lower bound on epsilon of a run, where `diffleak epsilon` has left one."""

from diffleak.errors import one_or_more, visible
from diffleak.records.epsilon import EpsilonRecord
from diffleak.report.section import Section, Sentences, prose
from diffleak.report.wording import count

MEANS = (
    "Training is (epsilon, delta)-private if adding or leaving out one image multiplies the probability of any trained model by at most "
    "e^epsilon, up to delta. Here fair coins decided which images were trained on. An attack that guesses more of the coins than an "
    "epsilon allows shows that the epsilon is larger. The bound is for this one training, and a stronger attack may raise it."
)


def section(record: EpsilonRecord | None) -> Section | None:
    """The bound, beside what the training promised."""
    if record is None:
        return None
    return Section("epsilon", "How much epsilon, at least?", (prose(MEANS), Sentences(lines(record))), "Epsilon", "Epsilon")


def lines(record: EpsilonRecord) -> tuple[str, ...]:
    """The bound in sentences, the answer first."""
    where = f"{visible(record.attack)}" + (f" at timestep {record.timestep}" if record.timestep is not None else "")
    where += f" with {visible(record.setting)}" if record.setting else ""
    of, called = ("", "image") if record.group is None else (f" of groups by {record.group}", "group")
    found = [
        f"epsilon is at least {record.epsilon:.3f} ({record.level * 100:g} %), delta {record.delta:g}, "
        f"{one_or_more(record.guesses, 'guess', 'guesses')}{of} "
        f"of which {count(record.right)} right"
    ]
    if record.promised is not None:
        verdict = "the bound is above it: the promise does not hold" if record.exceeds else "the bound does not contradict it"
        found.append(f"promised by DP-SGD: epsilon {record.promised:.3f} at delta {record.promised_delta:g}; {verdict}")
    found += [record.reason] if record.reason else []
    found.append(
        f"guessed by {where}: {one_or_more(record.top, called)} as members and {count(record.bottom)} as held out, of "
        f"{count(record.units)}; "
        f"the attack, its setting and the number of guesses were chosen on {count(record.calibrate_units)} others"
    )
    return (*map(visible, found), *(f"warning: {visible(line)}" for line in record.warnings))
