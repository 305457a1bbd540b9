"""The record of an audit: audit.json. No torch here.

Field names are the keys of audit.json; changing one needs a step of SCHEMA_VERSION and a line in the changelog. What
cannot be estimated is null, with the reason beside it.
"""

from math import isclose
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from diffleak.errors import UserError
from diffleak.records.base import MOST_OFTEN, SCHEMA_VERSION, Estimate, Record
from diffleak.records.evidence import Evidence
from diffleak.records.groups import Groups
from diffleak.records.headers import GivenAway
from diffleak.records.images import Tally
from diffleak.records.plan import Adapter, Costs, Embedding, Environment, Plan, Split
from diffleak.records.scores import Direction
from diffleak.records.variants import CALIBRATED, COMBINED, Variant, base_label, may_lead

R = TypeVar("R", bound=Estimate)

RATES = (0.1, 0.01, 0.001)  # false-positive, and false-negative, rates that a result has, the largest first
NOT_RECORDED = "not in the record"

EARLIER_RATES = (
    "the rates at a false-positive rate are those of version 0.1, which allowed one false alarm too few: they are too low, or equal; "
    "audit again for the right ones"
)


class RateAtFPR(Estimate):
    """The true-positive rate (TPR), a fraction in [0, 1], at one false-positive rate."""

    fpr: float
    """False-positive rate that the TPR is at, a fraction in (0, 1)."""
    support: Literal["ok", "low", "none"]
    """How many false positives decide it: "ok", "low" (fewer than 10 of them) or "none" (too few images to estimate it)."""


class RateAtFNR(Estimate):
    """The true-negative rate (TNR), a fraction in [0, 1], at one false-negative rate: the mirror of `RateAtFPR`."""

    fnr: float
    """False-negative rate that the TNR is at, a fraction in (0, 1)."""
    support: Literal["ok", "low", "none"]
    """How many false negatives decide it: "ok", "low" (fewer than 10 of them) or "none" (too few images to estimate it)."""


class Accuracy(Estimate):
    """Attack success rate: the accuracy at the calibrated threshold, a fraction in [0, 1]."""

    baseline: float | None = None
    """Accuracy of always naming the larger side, a fraction in [0.5, 1]; null without a calibrate part."""
    threshold: float | None = None
    """Membership score above which the attack says member, chosen on the calibrate part; null without one."""


class AchievedFPR(Estimate):
    """The false-positive rate on the test part, a fraction in [0, 1], of the threshold that met `target` on the calibrate part."""

    target: float | None = None
    """False-positive rate that the threshold was chosen for, a fraction in (0, 1); null without a calibrate part."""
    threshold: float | None = None
    """Membership score above which the attack says member; null without a calibrate part."""


class Oracle(Record):
    """The best on the test part over thresholds and timesteps, each number picked separately: what papers print, optimistic."""

    timestep: Annotated[int | None, MOST_OFTEN] = None
    """Timestep of the largest AUC, in [0, T); null where the attack has a rule."""
    setting: Annotated[str | None, MOST_OFTEN] = None
    """Setting of the rule with the largest AUC; null where there is none."""
    auc: float | None = None
    """Largest AUC of any timestep or setting, in [0, 1]; null where it is not estimable."""
    asr: float | None = None
    """Largest accuracy of any threshold, timestep or setting, a fraction in [0, 1]; null where it is not estimable."""
    tpr_at_1pct: float | None = None
    """Largest TPR at 1 % false positives, a fraction in [0, 1]; null with fewer than 100 held-out images in the test part."""
    reason: str | None = None
    """Why a number is null, in words; null where all are there."""


class AUCAt(Record):
    """The AUC at one timestep, or at one setting."""

    timestep: int | None = None
    """Timestep of the AUC, in [0, T); null where a setting stands in its place."""
    setting: str | None = None
    """Setting of a rule that the AUC is at; null where a timestep stands in its place."""
    auc: float
    """AUC in [0, 1]: of the calibrate part in a result, of the test part in a quartile."""


class Gain(Record):
    """One attack minus another on the same test images, each at its own settings."""

    auc: Estimate
    """Difference of the AUCs, in [-1, 1]; above 0 the first attack is the stronger one."""
    asr: Estimate
    """Difference of the accuracies at the calibrated thresholds, in [-1, 1]; null without a calibrate part."""
    tpr_at_1pct: Estimate
    """Difference of the TPRs at 1 % false positives, in [-1, 1]; null with too few held-out images."""


class Result(Record):
    """What one attack, or one variant of it, achieves on the test part. Members are the positive class."""

    attack: str
    """Label of the attack or of its variant, such as `sima`, `sima[influence:0.4]` or `sima[excess]`."""
    mask: str | None = None
    """Mask of the latents, such as `influence:0.4`; null for other variants."""
    mask_ratio: Annotated[float | None, MOST_OFTEN] = None
    """Share of the latent coordinates that the mask drops, in [0, 1); null without a mask."""
    variant: Variant | None = None
    """"reference" for the attack on the reference, "excess" for the model's statistics minus the reference's; null for others."""
    complexity: Annotated[str | None, MOST_OFTEN] = None
    """Complexity that is taken out: "png", "bytes" or "full" of the image, "reconstruction" of what a decoder makes of its latents, or
    "plain", which is none; null where that was not tried."""
    gain: Gain | None = None
    """What the variant adds to the plain attack, of the reference what the model adds to it, of `combined` what it adds to the best of
    its attacks by the calibrate part; null for a plain attack."""
    access: str = "grey-box"
    """What the attacker needs: "grey-box" denoises given images, "black-box" generates images alone, "white-box" has the weights."""
    parameters: dict[str, Any] = {}
    """The attack's parameters by name, with what it settled on when it was prepared.

    Of `combined`: `attacks`, the labels that it is made of; `complexity`, whether the complexity of images is in it too; `compared_with`,
    the best of these attacks by the calibrate part; `clearly_better`, false where it is that attack itself.
    """
    queries: int | None = None
    """Denoiser forwards per image over all timesteps that the calibrate part is scored at; a mask shares those of its attack. Null for
    scores of other programs."""
    queries_at_timestep: int | None = None
    """Denoiser forwards per image at the chosen timestep alone; null where no timestep is chosen."""
    timestep: Annotated[int | None, MOST_OFTEN] = None
    """Timestep that the calibrate part chose, in [0, T); null where the attack has a rule."""
    setting: Annotated[str | None, MOST_OFTEN] = None
    """Setting of the rule that the calibrate part chose; null where there is nothing to choose."""
    rule: str | None = None
    """Name of the rule by which the attack makes one score of several numbers; null where it chooses one timestep."""
    direction: Direction = "large"
    """End of the statistic that speaks for a member, "small" or "large"."""
    auc: Estimate
    """AUC in [0, 1]: how often a member scores above a held-out image; 0.5 is guessing."""
    tpr_at_fpr: tuple[RateAtFPR, ...]
    """TPR at each recorded false-positive rate, the largest rate first; `tpr(0.01)` picks one."""
    tnr_at_fnr: tuple[RateAtFNR, ...]
    """TNR at each recorded false-negative rate, the largest rate first; `tnr(0.01)` picks one."""
    asr: Accuracy
    """Attack success rate: accuracy on the test part at the threshold of the calibrate part."""
    achieved_fpr: AchievedFPR
    """False-positive rate on the test part at a threshold of the calibrate part."""
    oracle: Oracle
    """The best that could be picked on the test part itself; optimistic."""
    n_members: int
    """Number of members in the test part."""
    n_nonmembers: int
    """Number of held-out images in the test part."""
    per_timestep: tuple[AUCAt, ...] = ()
    """AUC of the calibrate part at every timestep or setting that it is scored at; empty without a calibrate part."""
    convention: str = "member-exact"
    """How the numbers were computed: "member-exact", or the convention of a paper that `diffleak metrics` was given."""

    def tpr(self, fpr: float) -> RateAtFPR:
        """The true-positive rate at a false-positive rate.

        Args:
            fpr: The false-positive rate, such as 0.01.

        Returns:
            The rate with its interval; null with a reason where the record lacks one of `RATES`.

        Raises:
            UserError: For any other rate that is not recorded.
        """
        found = self._recorded(fpr, "false-positive", {rate.fpr: rate for rate in self.tpr_at_fpr})
        return found or RateAtFPR(fpr=fpr, support="none", reason=NOT_RECORDED)

    def tnr(self, fnr: float) -> RateAtFNR:
        """The true-negative rate at a false-negative rate, such as 0.01; the mirror of `tpr`."""
        found = self._recorded(fnr, "false-negative", {rate.fnr: rate for rate in self.tnr_at_fnr})
        return found or RateAtFNR(fnr=fnr, support="none", reason=NOT_RECORDED)

    def _recorded(self, rate: float, kind: str, found: dict[float, R]) -> R | None:
        near = next((at for at in found if isclose(at, rate)), None)
        if near is None and not any(isclose(rate, at) for at in RATES):
            raise UserError(f"the {kind} rate must be one that {self.attack} has, {', '.join(map(str, found)) or 'none'}; got {rate:g}")
        return None if near is None else found[near]

    @property
    def plain(self) -> bool:
        """True for an attack itself, on the audited model, under no mask, without calibration, and not with others."""
        return self.mask is None and self.variant is None and self.complexity is None and self.attack != COMBINED

    @property
    def base(self) -> str:
        """The label of the attack itself: `sima` for `sima[influence:0.4]` and `sima[excess][calibrated]`."""
        return base_label(self.attack, self.mask or self.variant, CALIBRATED if self.complexity else None)

    @property
    def leads(self) -> bool:
        """True where the result may speak for the audit: controls of masks, and what is found in another model, never do."""
        return may_lead(self.mask) and self.variant != "reference"


class Blind(Estimate):
    """The AUC in [0, 1] at which pixels alone, without the model, tell the two sides apart; 0.5 is no difference.

    A classifier gives it, or for few images the most telling of several pixel statistics in a permutation test.
    """

    labels_p_value: float | None = None
    """Share of random divisions whose classes differ as much between the sides, in (0, 1]; null without classes."""
    p_value: float | None = None
    """Share of random divisions whose most telling statistic is as telling, in (0, 1]; null for a classifier."""
    detectable_auc: float | None = None
    """Smallest AUC that the permutation test calls a difference with probability 0.8, in [0.5, 1]; null for a classifier."""
    statistic: str | None = None
    """Name of the most telling pixel statistic; null for a classifier."""


class Gate(Record):
    """A limit that the user set, and whether it is kept by an attack, by what a model draws, or by the bound on epsilon."""

    limit: Literal["max_auc", "max_tpr", "max_excess_auc", "max_copies", "max_epsilon"]
    """Setting that the limit comes from."""
    attack: str
    """Label of the result that is judged, or the file that it is from; in a comparison after the name of its entry."""
    quantity: str
    """What is limited, in words."""
    at_most: float
    """The limit, in [0, 1]; of epsilon at least 0."""
    reach: float | None
    """Largest value that the 95 % interval of the quantity does not exclude, in [0, 1]; of epsilon its lower bound, at least 0, since
    there is no upper one. Null where it is not estimable."""
    passed: bool
    """True where `reach` is at or below the limit; false also where it is null."""
    reason: str | None = None
    """Why `reach` is null, in words; null where it is there."""


class Quartile(Record):
    """The images whose distortion lies in one quarter of all."""

    quartile: int
    """Number of the quarter, from 1 for the least distortion to 4."""
    low: float
    """Smallest distortion of the quarter, a sum of log singular values."""
    high: float
    """Largest distortion of the quarter, a sum of log singular values."""
    n_members: int
    """Number of members of the quarter in the test part."""
    n_nonmembers: int
    """Number of held-out images of the quarter in the test part."""
    per_timestep: tuple[AUCAt, ...]
    """AUC of the test part at every timestep; empty where a side has no image."""
    auc: Estimate
    """AUC of the test part at the chosen timestep, in [0, 1]."""


class BandAt(Record):
    """The AUC of random subsets as large as a quartile, at one timestep."""

    timestep: int
    """Timestep of the AUCs, in [0, T)."""
    mean: float
    """Mean AUC of the subsets, in [0, 1]."""
    sd: float
    """Standard deviation of the AUC over the subsets, in [0, 1]."""


class FilterGain(Record):
    """What the frequency filter adds to an attack."""

    attack: str
    """Label of the attack without the filter."""
    filtered: str
    """Label of the attack with the filter."""
    gain: Gain
    """With the filter minus without; below 0 the filter weakens the attack."""


class Geometry(Record):
    """How leakage follows the decoder's geometry. Distortion is the sum of the `top` largest log singular values of its Jacobian."""

    top: int
    """Number of singular values in the distortion of an image."""
    probes: int
    """Number of random probes that estimate the influence of each latent coordinate."""
    attack: str | None
    """Label of the attack whose curves the quartiles have; null where no attack chooses among timesteps."""
    quartiles: tuple[Quartile, ...]
    """Four quarters of the images by distortion, the lowest first; empty without an attack."""
    band: tuple[BandAt, ...]
    """AUC of random subsets as large as a quartile, at every timestep; empty without an attack."""
    high_minus_low: Estimate
    """AUC of the highest quartile minus that of the lowest at the chosen timestep, in [-1, 1]."""
    distortion_auc: Estimate
    """AUC in [0, 1] of distortion alone, higher for members."""
    radius: float
    """Frequency between low and high, in cycles per image."""
    low_frequency: Estimate
    """Pearson correlation of distortion with an image's energy below `radius`, in [-1, 1]."""
    high_frequency: Estimate
    """Pearson correlation of distortion with an image's energy above `radius`, in [-1, 1]."""
    highest: tuple[str, ...]
    """Ids of the images of the largest distortion, the largest first."""
    lowest: tuple[str, ...]
    """Ids of the images of the smallest distortion, the smallest first."""
    filters: tuple[FilterGain, ...]
    """What the frequency filter adds to each attack that was run with and without it."""


class Membership(Record):
    """Which images are members, by the user and by the model's own split.json (see `diffleak.data.membership`)."""

    source: str
    """What the user's two sides come from, in words."""
    status: Literal["confirmed", "taken on trust", "contradicted, ignored"]
    """What the model's own split.json says of the two sides."""
    model_split: str | None = None
    """Path of the model's own split.json; null where there is none."""
    reason: str | None = None
    """Why the sides are not confirmed, or what else is to be known, in words; null where there is nothing to say."""
    same_names: bool = False
    """True where that file lists the same names on the same sides, and nothing but names could be compared."""

    @property
    def sentence(self) -> str:
        """The same for a reader."""
        if self.status == "confirmed":
            also = f"; {self.reason}" if self.reason else ""
            if self._from_it:
                return f"The members are those listed in {self.model_split}, which the model's own training wrote{also}."
            return f"The members are those of {self.source}; the model's own {self.model_split} agrees{also}."
        if self.status == "taken on trust":
            if self.same_names and self._from_it:
                return f"The list of members is taken on trust, as given in {self.model_split}: {self.reason}."
            if self.same_names:
                lists = f"{self.model_split} lists the same names on the same sides"
                return f"The list of members is taken on trust from {self.source}. {lists}; {self.reason}."
            of = f", and {self.model_split} does not confirm it" if self.model_split else ""
            return f"The list of members is taken on trust from {self.source}{of}: {self.reason}."
        return (
            f"The members are those of {self.source}, although {self.model_split} contradicts it (--ignore-model-split): by "
            f"{self.model_split}, {self.reason}. If {self.model_split} is right, the numbers do not measure membership."
        )

    @property
    def _from_it(self) -> bool:
        """True where the user's sides are read from the model's own split.json."""
        given = self.source.removeprefix("the split file ")
        return given != self.source and Path(given) == Path(self.model_split or "")


class Draw(Record):
    """How the sides of an audit were drawn, by the `drawn` of a split.json: that of the model, which confirms them, or that of --split."""

    how: Literal["share", "coin"]
    """"share" where a share of the images was held out, "coin" where an independent fair coin decided the side of each unit."""
    seed: int
    """Seed of the draw."""
    images: int
    """Number of images that were drawn, audited or not."""
    together: tuple[tuple[str, ...], ...] = ()
    """Units that stood or fell together, each with the ids of its images here; every other image was a unit of its own."""
    file: str
    """Path of the split.json that says it."""


class Promise(Record):
    """What DP-SGD promises of the model, by the train.json beside it."""

    epsilon: float
    """Factor, as its logarithm, by which one image changes any probability at most: the epsilon that all steps have spent."""
    delta: float
    """Probability, in (0, 1), that is allowed to escape that."""
    autoencoder: str | None = None
    """Autoencoder that the model works on and that the promise does not cover; null for a model of pixels."""


class AuditRecord(Record):
    """audit.json."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    """Version of these fields; 1 is read too."""
    created: str
    """Time in UTC at which the record was written, as ISO 8601."""
    command: str
    """Command line that repeats the audit."""
    settings: dict[str, Any]
    """Every setting of the audit by its name."""
    plan: Plan
    """All that decides the scores."""
    environment: Environment
    """Where the numbers come from."""
    split: Split
    """How the images were divided into calibrate and test."""
    clusters: tuple[tuple[str, ...], ...] | None = None
    """Clusters of two near-duplicates or more with the ids of their images, whatever their sides; null in records that do not say it."""
    headline: str | None
    """Label of the attack with the highest AUC on the calibrate part, controls of masks aside; null without a calibrate part."""
    results: tuple[Result, ...]
    """What each attack and each of its variants achieves, in the order of the plan."""
    blind: Blind
    """What tells the two sides apart without the model."""
    warnings: tuple[str, ...]
    """What a reader must know of the numbers, a sentence each."""
    omitted: tuple[str, ...]
    """Ids of images that could not be read and were left out."""
    truncated: tuple[str, ...] = ()
    """Ids of images whose captions are longer than the text encoder reads."""
    costs: Costs
    """What the scoring took."""
    geometry: Geometry | None = None
    """How leakage follows the decoder's geometry; null for `diffleak audit`."""
    membership: Membership | None = None
    """What the model's own split.json says of the two sides; null without two sides, and in records of version 0.1."""
    drawn: Draw | None = None
    """How the two sides were drawn; null where no split.json says it or the model's own contradicts them, and in earlier records."""
    promise: Promise | None = None
    """What DP-SGD promises of the model; null for other models, and in earlier records."""
    images: Tally = Tally()
    """What reading the image files changed, counted."""
    adapters: tuple[Adapter, ...] = ()
    """Each adapter with its strength and hash, in the order of merging; empty without one."""
    embeddings: tuple[Embedding, ...] = ()
    """Each textual inversion with its token and hash; empty without one."""
    headers: tuple[GivenAway, ...] = ()
    """What the headers of adapters, embeddings, and a model or network in one file give away; empty for folders, and where unknown."""
    latent: bool | None = None
    """True where the model works on the latents of an autoencoder; null in records of earlier versions."""
    gates: tuple[Gate, ...] = ()
    """Limits that the user set, one entry per limit and attack; empty without limits."""
    groups: Groups | None = None
    """Groups of images that are counted in the place of images; null where no column was named."""
    valid: bool | None = None
    """False where the numbers do not measure membership; null in records of version 0.1.

    A difference of the sources that the user allows leaves it true: the verdict then says that the numbers mix both.
    """
    invalid_reason: str | None = None
    """Why the numbers do not measure membership, in words; null where they do."""
    evidence: Evidence | None = None
    """Who made the audit, for which release, and which attacks were not run; null in records of earlier versions."""
    verdict: str | None = None
    """Level of the report's headline: leak, no-leak-found, undecided or invalid; null in records of version 0.1."""

    def result(self, attack: str) -> Result:
        """The result of one attack by its label."""
        for result in self.results:
            if result.attack == attack:
                return result
        raise KeyError(f"no attack '{attack}' in this record; it has {', '.join(r.attack for r in self.results)}")
