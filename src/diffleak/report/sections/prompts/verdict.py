"""The verdict on memorised prompts, in words."""

from typing import NamedTuple

from diffleak.errors import visible
from diffleak.records.audit import Result
from diffleak.records.prompts import PromptsRecord, Statistic
from diffleak.report.judgement import Verdict
from diffleak.report.wording import count, percent, spoken


class Wording(NamedTuple):
    """A statistic's name and what it says."""

    title: str
    meaning: str


STATISTICS: dict[Statistic, Wording] = {
    "magnitude": Wording("Magnitude", "how far the prompt moves the model's prediction while it draws; larger = memorised"),
    "t_error": Wording("t-error", "how far the model is from finding its way back to what it drew; smaller = memorised"),
}


def verdict(record: PromptsRecord) -> Verdict:
    """States whether the statistics tell the two lists apart; never that nothing is memorised."""
    if not record.results:
        title = "The prompts were scored; how well the scores tell memorised from ordinary ones was not measured."
        return Verdict("invalid", title, (f"{_sentence(record.reason or 'not estimable')}.",))
    sentences = tuple(_measured(result) for result in record.results)
    if any(r.auc.low is not None and r.auc.low > 0.5 for r in record.results):
        return Verdict("leak", "Memorised prompts stand out from ordinary ones.", sentences)
    bound = max((r.auc.high for r in record.results if r.auc.high is not None), default=1.0)
    said = f"That a memorised prompt ranks first in more than {percent(bound)} of pairs can be excluded, less cannot."
    return Verdict("no-leak-found", "No difference between memorised and ordinary prompts was found.", (*sentences, said))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _measured(result: Result) -> str:
    title = STATISTICS[statistic(result)].title
    if result.auc.value is None or result.auc.low is None or result.auc.high is None:
        return f"{title}: {visible(result.auc.reason or 'not estimable')}."
    value, ends = spoken(result.auc)
    return (
        f"{title}: ranks a memorised prompt above an ordinary one in {value} of pairs (95 % interval {ends}; "
        f"{count(result.n_members)} and {count(result.n_nonmembers)} prompts)."
    )


def statistic(result: Result) -> Statistic:
    """The statistic that a result is of."""
    return "magnitude" if result.attack == "magnitude" else "t_error"
