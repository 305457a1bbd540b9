"""The report of a comparison."""

from collections.abc import Callable

from diffleak.errors import visible
from diffleak.records.comparison import Comparison
from diffleak.records.gate import Gated
from diffleak.report.section import Page, Section, page_of
from diffleak.report.sections import glossary, limits, verdict, warnings
from diffleak.report.sections.audit.gates import checked
from diffleak.report.sections.comparison import attacks, figures, made, swap
from diffleak.report.sections.comparison.verdict import comparison_verdict, invalid_runs
from diffleak.report.wording import count, entries

GLOSSARY = entries("""
    Member | an image the model was trained on; a held-out image comes from the same source but was not used for training.
    AUC | how often an attack ranks a random member above a random held-out image; 0.5 is guessing, 1 is always right.
    Entry | one of the things that are compared: a name, and the audits that were given for it.
    Baseline | the first entry, which the others are compared with.
    AUC difference | the AUC on an entry minus that on the baseline, on the same images; below 0 the entry leaks less.
    Teacher | one of the two models that a defence trains, each on one half of the members.
    TPR at 1 % FPR | share of members an attack catches when it may raise a false alarm for 1 % of the held-out images.
    Strongest attack | the run and attack of an entry with the highest AUC on the calibrate part, or on the test part where there is
        no calibrate part: what a capable outsider would use.
    Calibrate, test part | settings are chosen on the calibrate part; every number comes from the test part.
    Paired | both models are judged on the same images, so that a difference cannot come from the images.
""")

LIMITS = entries("""
    A lower bound. | Only the attacks in the table were run. An attack made for a defence may find more on it; a small difference or
        an AUC near one half does not prove that nothing leaks.
    Many comparisons. | {differences} differences in AUC were looked at, and as many in each of two rates. The intervals are not
        widened for that: of 20 differences that are truly zero, about one interval leaves zero out. Where several entries are
        compared, the one that looks best looks a little better than it is.
    Only what was audited. | An entry's number is the highest of the runs that were given for it. A model that is to be released but
        was not audited is not in it.
    The same training? | Whether entries were trained on as many images and for as many steps is not checked here. Compare with a
        model that was trained on as many; otherwise a gain may come from the number of images.
    Teachers together. | The tables attack each run by itself. Where two teachers are released together, read the swap audit as well.
    Averages. | AUC is about a typical image. A few images can stay exposed; the rates at few false alarms look there.
""")
ONE_RUN = entries("""
    One training run each. | The intervals cover the random choice of images. They do not cover another training run or seed, and two
        runs of the same recipe differ as well.
""")
SEEDS = entries("""
    The training. | Only the intervals of the table Over seeds cover another seed. All others are of one training run each and cover the
        random choice of images alone.
""")

Make = Callable[[Comparison, Gated | None], Section | None]

SECTIONS: tuple[Make, ...] = (
    lambda record, gated: verdict(comparison_verdict(record)),
    lambda record, gated: warnings(record.warnings),
    lambda record, gated: checked(gated),
    lambda record, gated: attacks.pooled(record),
    lambda record, gated: attacks.worst(record),
    lambda record, gated: figures.differences(record),
    lambda record, gated: figures.quality(record),
    lambda record, gated: swap.section(record),
    lambda record, gated: attacks.section(record),
    lambda record, gated: _limits(record),
    lambda record, gated: glossary(GLOSSARY, of_attacks=True),
    lambda record, gated: made.section(record),
)
OF_INVALID = (SECTIONS[0], SECTIONS[-1])  # with an invalid run only why there are no numbers, and how it was made


def _limits(record: Comparison) -> Section:
    known = (*(SEEDS if record.pooled else ONE_RUN), *LIMITS)
    return limits(known, "What this does not show", differences=count(record.differences))


def page(record: Comparison, gated: Gated | None = None) -> Page:
    """The report; gated: what `diffleak gate` checked."""
    names = visible(", ".join(entry.name for entry in record.entries))
    return page_of(
        record,
        (make(record, gated) for make in (OF_INVALID if invalid_runs(record) else SECTIONS)),
        title=f"Comparison of {sum(len(entry.runs) for entry in record.entries)} audits",
        heading="Comparison of audits",
        meta=f"{names} · baseline {visible(record.baseline.name)}",
        style="comparison.css",
    )
