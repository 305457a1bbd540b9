"""The record of a comparison of audits: compare.json. Field names are its keys. No torch here.

Differences are an entry's minus the baseline's: below 0 the entry leaks less. What cannot be estimated is null, with
the reason beside it.
"""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from diffleak.errors import one_or_more
from diffleak.records.audit import Blind, RateAtFPR
from diffleak.records.base import Estimate, Record, Written, read_json
from diffleak.records.quality import ImageSet, Metric
from diffleak.records.quality import Unit as QualityUnit
from diffleak.records.scores import Unit

COMPARISON_SCHEMA_VERSION: Literal[2] = 2  # 1: rates as in schema version 1 of audit.json

LOWER_IS_BETTER = ("kid", "frechet")  # the metrics that a scatter can have on its axis, the preferred one first
FILE, PAGE = "compare.json", "compare.html"


class Difference(Record):
    """An attack on one run minus an attack on a run of the baseline, on the images in the test part of both."""

    against_run: str
    """Folder of the baseline's run."""
    against_attack: str
    """Label of the attack on that run."""
    auc: Estimate
    """Difference of the AUCs, in [-1, 1]; below 0 the entry leaks less."""
    tpr_at_10pct: Estimate
    """Difference of the TPRs at 10 % false positives, in [-1, 1]."""
    tpr_at_1pct: Estimate
    """Difference of the TPRs at 1 % false positives, in [-1, 1]."""
    members: int
    """Number of members in the test part of both runs, of the first division."""
    nonmembers: int
    """Number of held-out images in the test part of both runs, of the first division."""


class ComparedResult(Record):
    """What one attack achieves on one run."""

    run: str
    """Folder of the run."""
    attack: str
    """Label of the attack or of its variant."""
    mask: str | None
    """Mask of the latents; null without one."""
    access: str
    """What the attacker needs: "grey-box" denoises given images, "black-box" generates images alone."""
    timestep: int | None
    """Timestep that the calibrate part chose, in [0, T); null where the attack has a rule."""
    setting: str | None = None
    """Setting of the rule that the calibrate part chose; null where there is nothing to choose."""
    calibrate_auc: float | None
    """AUC of the chosen timestep or setting on the calibrate part, in [0, 1]; null without a calibrate part."""
    auc: Estimate
    """AUC of the test part, in [0, 1]; 0.5 is guessing."""
    tpr_at_10pct: RateAtFPR
    """TPR at 10 % false positives, a fraction in [0, 1]."""
    tpr_at_1pct: RateAtFPR
    """TPR at 1 % false positives, a fraction in [0, 1]."""
    n_members: int
    """Number of members in the test part."""
    n_nonmembers: int
    """Number of held-out images in the test part."""
    difference: Difference | None
    """This attack minus the same attack on the baseline; null for the baseline."""


class Worst(Record):
    """An entry's number: the run and attack with the highest AUC on the calibrate part, controls of masks aside."""

    run: str
    """Folder of the run."""
    attack: str
    """Label of the attack or of its variant."""
    chosen_on: Literal["calibrate", "repeated", "test"]
    """Part that it was chosen on.

    "repeated": the calibrate parts of several divisions, which together are nearly all images. "test": where a run has no calibrate
    part; that is optimistic for the attacker.
    """
    not_excluded: float | None
    """Upper end of the 95 % interval of the AUC, in [0, 1]; null where there is no interval."""
    difference: Difference | None
    """It minus the baseline's own worst; null for the baseline."""


class Quality(Record):
    """The part of an entry's quality.json that a comparison shows; other keys, also those of a later version, are ignored."""

    model_config = ConfigDict(extra="ignore")

    schema_version: Literal[1] = 1
    """Version of the fields of quality.json."""
    model: str
    """The model as the user named it: a folder, a name on the Hub, or `denoiser` for one in memory."""
    model_fingerprint: str
    """Hash of the model's weights and settings."""
    extractor: str
    """Name of the extractor of features."""
    extractor_fingerprint: str
    """Hash of the extractor's weights, or the size that its images are brought to."""
    images: int
    """Number of generated images."""
    sampler: str
    """Name of the sampler that drew the images."""
    steps: int
    """Sampling steps of an image."""
    rounds: int
    """Rounds of adaptive drawing of a pair of models that take turns; 1 for other models."""
    reference: ImageSet
    """Real images that the generated ones are compared with."""
    metrics: tuple[Metric, ...]
    """Each statistic with its interval."""
    unit: QualityUnit = "image"
    """What the copy rate and the KID difference count: "cluster", near-duplicates of real images once; "image", each of them, as in records
    of earlier versions."""

    @property
    def setting(self) -> tuple[str, int, str, str]:
        """What two measurements must share to be compared."""
        return self.extractor_fingerprint or self.extractor, self.images, self.drawn, self.reference.fingerprint

    @property
    def drawn(self) -> str:
        """How the images were drawn."""
        return f"{self.sampler} of {one_or_more(self.steps, 'step')}"

    def metric(self, name: str) -> Metric | None:
        """One metric by its name; None where it was not computed."""
        return next((m for m in self.metrics if m.name == name and m.value is not None), None)


class ComparedRun(Record):
    """One run folder of an entry."""

    run: str
    """Folder of the run."""
    command: str
    """Command line that repeats the audit."""
    model: str
    """The model as the user named it."""
    model_fingerprint: str
    """Hash of the model's weights and settings."""
    data_fingerprint: str
    """Hash of the ids and pixels of the images."""
    members: int
    """Number of members in the audit, or of groups of members."""
    nonmembers: int
    """Number of held-out images in the audit, or of held-out groups."""
    repeats: int
    """Number of calibrate/test divisions; above 1 every number is the median over them."""
    blind: Blind
    """What tells the two sides apart without the model."""
    allow_shift: bool = False
    """True where the user allows a difference of the sources of the two sides."""
    group: str | None = None
    """Column of the metadata whose groups are counted in the place of images; null where images are."""


class Entry(Record):
    """One thing that is compared: a name and the runs on all artefacts that it would release."""

    name: str
    """Name of the entry, by which it is shown."""
    runs: tuple[ComparedRun, ...]
    """The entry's runs, in the order that they were given."""
    results: tuple[ComparedResult, ...]
    """Each attack on each run."""
    worst: Worst
    """The run and attack that stand for the entry."""
    quality: Quality | None
    """How close its generated images are to real ones; null without a quality.json."""
    quality_file: str | None
    """Path of that quality.json; null without one."""

    @property
    def worst_result(self) -> ComparedResult:
        """The result that `worst` names."""
        return next(r for r in self.results if (r.run, r.attack) == (self.worst.run, self.worst.attack))


class PooledResult(Record):
    """One attack on one entry over the runs of its seeds, with --pool."""

    entry: str
    """Name of the entry."""
    attack: str
    """Label of the attack or of its variant."""
    seeds: int
    """Number of runs that the means are over."""
    auc: Estimate
    """Mean AUC over the runs, in [0, 1]; its interval counts the seed and the images (`diffleak.stats.pooling`)."""
    auc_spread: float | None
    """Standard deviation of the AUC over the runs, in [0, 1]; null where a run has none."""
    tpr_at_1pct: Estimate
    """Mean TPR at 1 % false positives over the runs, in [0, 1]."""
    tpr_spread: float | None
    """Standard deviation of that TPR over the runs, in [0, 1]; null where a run has none."""
    difference: Estimate | None
    """Mean AUC minus that of the same attack on the baseline, in [-1, 1]; null for the baseline."""


class SwapResult(Record):
    """One attack in the swap audit."""

    attack: str
    """Label of the attack."""
    timestep: int | None
    """Timestep that the calibrate part chose, in [0, T); null where the attack has a rule."""
    setting: str | None = None
    """Setting of the rule that the calibrate part chose; null where there is nothing to choose."""
    calibrate_auc: float | None
    """AUC of the chosen timestep or setting on the calibrate part, in [0, 1]; null without a calibrate part."""
    auc: Estimate
    """AUC in [0, 1] at which the difference of the teachers' scores tells the first half's members from the second's."""
    own: tuple[Estimate, Estimate]
    """AUC of the attack on either teacher alone, in [0, 1]: members of its half against held-out images."""
    own_timesteps: tuple[int | None, int | None]
    """Timestep that each of those was chosen at, in [0, T); null where the attack has a rule."""


class SwapAudit(Record):
    """Two teachers trained on disjoint halves: each image is a member of one and held out from the other."""

    halves: str
    """Path of the split.json of the defence."""
    runs: tuple[str, str]
    """Folder of each teacher's run."""
    members: tuple[int, int]
    """Number of members of each half in the audit; near-duplicates of a half count as one image, here and below."""
    tested: tuple[int, int]
    """Number of members of each half in the test part."""
    nonmembers: tuple[int, int]
    """Number of held-out images in the test part of each teacher's own audit."""
    unit: Unit = "image"
    """What is counted: "image", "cluster" where near-duplicates of a half count as one image, or "group"."""
    across: int = 0
    """Number of clusters of near-duplicates with images in both halves; each is one image of either."""
    repeats: int
    """Number of calibrate/test divisions; above 1 every number is the median over them."""
    results: tuple[SwapResult, ...]
    """What each attack achieves."""
    best: str
    """Label of the attack with the highest AUC on the calibrate part."""
    omitted: tuple[str, ...] = ()
    """Labels of attacks whose scores do not allow a difference."""


class Comparison(Written):
    """compare.json."""

    schema_version: Literal[1, 2] = COMPARISON_SCHEMA_VERSION  # type: ignore[assignment]
    """Version of these fields; 1 is read too."""
    seed: int
    """Seed of the bootstrap."""
    attacks: tuple[str, ...]
    """Labels of the attacks that every run has."""
    entries: tuple[Entry, ...]
    """What is compared; the first one is the baseline."""
    differences: int
    """Number of AUC differences that were looked at."""
    quality_metric: Literal["kid", "frechet"] | None
    """Metric of quality.json that the scatter has on its axis; null where there is none to compare."""
    quality_reason: str | None
    """Why there is no such metric, in words; null where there is one."""
    swap: SwapAudit | None
    """The swap audit of two teachers; null where it was not made."""
    swap_reason: str | None
    """Why the swap audit was not made, in words; null where it was."""
    pooled: tuple[PooledResult, ...] = ()
    """Every attack on every entry over the runs of its seeds, attack by attack; empty without --pool."""
    warnings: tuple[str, ...]
    """What a reader must know of the numbers, a sentence each."""
    valid: bool | None = None
    """False where the numbers of some run do not measure membership; null in records of version 0.1."""
    invalid_reason: str | None = None
    """Why they do not measure membership, in words; null where they do."""
    verdict: str | None = None
    """Level of the headline: lowers, not-shown, undecided or invalid; null in records of version 0.1."""

    @property
    def unit(self) -> Unit:
        """What every number counts: groups of images, or images."""
        return "group" if self.baseline.runs[0].group is not None else "image"

    @property
    def baseline(self) -> Entry:
        return self.entries[0]


def read_comparison(path: Path) -> Comparison:
    """The record of a finished comparison; raises `UserError` for a damaged one."""
    return read_json(path, Comparison, advice="repeat its compare command, which writes it again")
