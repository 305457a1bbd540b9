"""The sections of the report on memorised prompts."""

from collections.abc import Iterator
from typing import NamedTuple

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.records.audit import Result
from diffleak.records.prompts import PromptScore, PromptsRecord, Statistic
from diffleak.report.judgement import Verdict
from diffleak.report.section import Block, Section, Tabulated, drawn, facts
from diffleak.report.sections import adapted, device, fingerprinted, reproduce, versions
from diffleak.report.table import Cell, Column, Table, asr_cell, auc_cell, rate_cell, tabulate
from diffleak.report.wording import count, duration, percent, spoken


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


def statistics(record: PromptsRecord) -> Section:
    """A row per statistic where there are two lists, and a histogram of each."""
    content = table(record)
    caption = "In brackets: 95 % intervals over the choice of prompts. n/e: not estimable, with the reason below."
    found = (Tabulated(content, caption, "Statistic"),) if content.rows else ()
    return Section("statistics", "Both statistics", found, "Both statistics", later=lambda: _histograms(record))


def _histograms(record: PromptsRecord) -> tuple[Block, ...]:
    from diffleak.report.figures import keys
    from diffleak.report.figures.prompts import histogram

    key = drawn("key", entries=keys.sides("memorised prompts", "ordinary prompts"))
    figures = [(f"{said.title}: {said.meaning}", Markup(histogram(record, name))) for name, said in STATISTICS.items()]
    return *((key,) if labelled(record) else ()), drawn("multiples", figures=figures)


def labelled(record: PromptsRecord) -> bool:
    """True where the lists of the prompts are known."""
    return any(row.memorised is not None for row in record.prompts)


def table(record: PromptsRecord) -> Table:
    """The success of each statistic."""
    return tabulate(record.results, COLUMNS, lambda r: (STATISTICS[statistic(r)].title, "", False))


def _caught(result: Result) -> Cell:
    return rate_cell(result.tpr(0.01), "ordinary prompts")


COLUMNS = (
    Column(("AUC",), "How often a memorised prompt ranks above an ordinary one; 0.5 is guessing. In brackets: 95 % interval.", 1, auc_cell),
    Column(("TPR at", "1 % FPR"), "Share of memorised prompts found when 1 % of the ordinary ones raise a false alarm.", 2, _caught),
    Column(("Success",), "Share of right answers at a threshold chosen on other prompts.", 3, asr_cell),
)


MOST_ROWS = 200  # prompts in the page; prompts.csv has all
MOST_PRINTED = 10


def prompts(record: PromptsRecord) -> Section:
    """The prompts, the largest magnitude first."""
    scores = (
        Column(("Magnitude",), "", 1, lambda p: Cell(f"{p.magnitude:.4g}")),
        Column(("t-error",), "", 2, lambda p: Cell(f"{p.t_error:.4g}")),
    )
    on_list = Column(("List",), "", 3, lambda p: Cell(side(p)), width=10)
    name = lambda p: (p.prompt, "", False)
    shown = record.prompts[:MOST_ROWS]
    whole = "All prompts, as in prompts.csv."
    if len(shown) < len(record.prompts):
        whole = f"The first {count(len(shown))} of {count(len(record.prompts))} prompts; prompts.csv has all."
    listed = tabulate(shown, (*((on_list,) if labelled(record) else ()), *scores), name)
    printed = tabulate(record.prompts[:MOST_PRINTED], (*scores, on_list), name)
    blocks = (
        Tabulated(printed, first="Most memorised by magnitude", quoted=True, where="text"),
        Tabulated(listed, f"{whole} The page is as private as the prompts are.", "Prompt", look="prompts", quoted=True, where="page"),
    )
    return Section("prompts", "Prompts, the largest magnitude first", blocks, "Prompts")


def side(row: PromptScore) -> str:
    """The list that a prompt is on, in a word."""
    return {True: "memorised", False: "ordinary", None: ""}[row.memorised]


def made(record: PromptsRecord) -> Section:
    """The command and the settings."""
    return reproduce(record.command, facts(_rows(record)))


def _rows(record: PromptsRecord) -> Iterator[tuple[str, str]]:
    plan = record.plan
    yield "Model", fingerprinted(visible(plan.model), plan.model_fingerprint)
    yield from adapted(plan.lora, plan.lora_scale)
    times = f"{count(plan.images)} {'time' if plan.images == 1 else 'times'}"
    yield "Prompts", fingerprinted(f"{count(plan.prompts)}, each drawn {times}", plan.prompts_fingerprint)
    how = f"guidance {plan.guidance_scale}, latents {visible(plan.latent_shape)}, seed {plan.seed}"
    yield "Drawing", f"DDIM in {plan.steps} steps, {how}"
    yield "t-error", f"SecMI at timestep {plan.timestep}, k = {plan.k}, without guidance"
    yield "Cost", f"{count(record.costs.forwards)} forwards of one image each; this call took {duration(record.costs.seconds)}"
    yield "Device", device(record.environment)
    yield "Versions", versions(record.environment)
    yield "Record", f"prompts.json, schema version {record.schema_version}"
