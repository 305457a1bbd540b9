"""The record of a comparison of audits: compare.json. Field names are its keys. No torch here.

Differences are an entry's minus the reference's: below 0 the entry leaks less. What cannot be estimated is null, with
the reason beside it.
"""

from typing import Literal

from diffleak.records.audit import Blind, RateAtFPR
from diffleak.records.base import Estimate, Record, Version
from diffleak.records.quality import ImageSet, Metric, QualityRecord

COMPARISON_SCHEMA_VERSION: Literal[2] = 2  # 1: rates as in schema version 1 of audit.json

LOWER_IS_BETTER = ("kid", "frechet")  # the metrics that a scatter can have on its axis, the preferred one first


class Difference(Record):
    """An attack on one run minus an attack on a run of the reference, on the images that are in the test part of both.

    members, nonmembers: how many images that are; with repeated divisions those of the first.
    """

    against_run: str
    against_attack: str
    auc: Estimate
    tpr_at_10pct: Estimate
    tpr_at_1pct: Estimate
    members: int
    nonmembers: int


class ComparedResult(Record):
    """What one attack achieves on one run, and its difference to the same attack on the reference (null for the reference).

    `calibrate_auc` is the AUC of the chosen timestep or setting on the calibrate part, which the worst attack is chosen by.
    """

    run: str
    attack: str
    mask: str | None
    access: str
    timestep: int | None
    setting: str | None = None
    calibrate_auc: float | None
    auc: Estimate
    tpr_at_10pct: RateAtFPR
    tpr_at_1pct: RateAtFPR
    n_members: int
    n_nonmembers: int
    difference: Difference | None


class Worst(Record):
    """An entry's number: the run and attack with the highest AUC on the calibrate part, controls of masks aside.

    `chosen_on` is "repeated" where small sets have several divisions, whose calibrate parts together are nearly all images, and
    "test" where a run has no calibrate part: then the largest AUC was picked, which is optimistic for the
    attacker. `difference` is to the reference's own worst. `not_excluded` is the upper end of the AUC's interval.
    """

    run: str
    attack: str
    chosen_on: Literal["calibrate", "repeated", "test"]
    not_excluded: float | None
    difference: Difference | None


class Quality(Record):
    """The part of an entry's quality.json that a comparison shows: see `diffleak.records.quality.QualityRecord`."""

    schema_version: Literal[1] = 1
    model: str
    model_fingerprint: str
    extractor: str
    extractor_fingerprint: str
    images: int
    sampler: str
    steps: int
    rounds: int
    reference: ImageSet
    metrics: tuple[Metric, ...]

    @classmethod
    def of(cls, record: QualityRecord) -> "Quality":
        """That part of a record."""
        return cls(**{name: getattr(record, name) for name in cls.model_fields})

    @property
    def setting(self) -> tuple[str, int, str, str]:
        """What two measurements must share to be compared."""
        return self.extractor_fingerprint or self.extractor, self.images, self.drawn, self.reference.fingerprint

    @property
    def drawn(self) -> str:
        """How the images were drawn."""
        return f"{self.sampler} of {self.steps} steps"

    def metric(self, name: str) -> Metric | None:
        """One metric by its name; None where it was not computed."""
        return next((m for m in self.metrics if m.name == name and m.value is not None), None)


class ComparedRun(Record):
    """One run folder of an entry. `repeats` > 1: numbers are medians over that many calibrate/test divisions."""

    run: str
    command: str
    model: str
    model_fingerprint: str
    data_fingerprint: str
    members: int
    nonmembers: int
    repeats: int
    blind: Blind
    allow_shift: bool = False


class Entry(Record):
    """One thing that is compared: a name and the run or runs on all artefacts that it would release."""

    name: str
    runs: tuple[ComparedRun, ...]
    results: tuple[ComparedResult, ...]
    worst: Worst
    quality: Quality | None
    quality_file: str | None

    @property
    def worst_result(self) -> ComparedResult:
        """The result that `worst` names."""
        return next(r for r in self.results if (r.run, r.attack) == (self.worst.run, self.worst.attack))


class SwapResult(Record):
    """One attack in the swap audit.

    `auc` tells the members of the first half from those of the second by the difference of their two scores, at
    `timestep` or `setting`. `own` is what the attack achieves on each teacher alone: members of its half against held-out images.
    """

    attack: str
    timestep: int | None
    setting: str | None = None
    calibrate_auc: float | None
    auc: Estimate
    own: tuple[Estimate, Estimate]
    own_timesteps: tuple[int | None, int | None]


class SwapAudit(Record):
    """Two teachers trained on disjoint halves, each image a member of one and held out from the other.

    members: of each half in the audit; tested: of these in the test part; nonmembers: in the test part of each teacher's
    own audit. `best` is the attack of the highest AUC on the calibrate part.
    """

    halves: str
    runs: tuple[str, str]
    members: tuple[int, int]
    tested: tuple[int, int]
    nonmembers: tuple[int, int]
    repeats: int
    results: tuple[SwapResult, ...]
    best: str
    omitted: tuple[str, ...] = ()


class Comparison(Record):
    """compare.json. The first of `entries` is the reference; `attacks` are those that every run has.

    `differences` counts the AUC differences that were looked at. `quality_metric` is what the scatter plots, or null with
    a `quality_reason`; `swap` likewise. Where `valid` is false some run's numbers do not measure membership (`invalid_reason`).
    `verdict` is lowers, not-shown, undecided or invalid: the level of the headline.
    """

    schema_version: Literal[1, 2] = COMPARISON_SCHEMA_VERSION
    diffleak: Version
    created: str
    command: str
    seed: int
    attacks: tuple[str, ...]
    entries: tuple[Entry, ...]
    differences: int
    quality_metric: Literal["kid", "frechet"] | None
    quality_reason: str | None
    swap: SwapAudit | None
    swap_reason: str | None
    warnings: tuple[str, ...]
    valid: bool | None = None
    invalid_reason: str | None = None
    verdict: str | None = None

    @property
    def reference(self) -> Entry:
        return self.entries[0]
