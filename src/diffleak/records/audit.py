"""The numbers after the wall: `Scores` and the versioned record of an audit. No torch here.

Field names are the keys of audit.json; changing one needs a step of SCHEMA_VERSION and a line in the changelog. What
cannot be estimated is null, with the reason beside it.
"""

from math import isclose
from typing import Annotated, Any, Literal, TypeVar

from diffleak.errors import UserError
from diffleak.records.base import MOST_OFTEN, SCHEMA_VERSION, Estimate, Record, Version
from diffleak.records.images import Alpha, Exif, Tally
from diffleak.records.scores import Direction
from diffleak.records.variants import Variant, may_lead, unmasked_label

R = TypeVar("R", bound=Record)

EARLIER_RATES = (
    "the rates at a false-positive rate are those of version 0.1, which allowed one false alarm too few: they are too low, or equal; "
    "audit again for the right ones"
)


class RateAtFPR(Estimate):
    """TPR at a false-positive rate; support is "ok", "low" (fewer than 10 false positives) or "none"."""

    fpr: float
    support: Literal["ok", "low", "none"]


class RateAtFNR(Estimate):
    """TNR at a false-negative rate: the mirror of `RateAtFPR`."""

    fnr: float
    support: Literal["ok", "low", "none"]


class Accuracy(Estimate):
    """Attack success rate: accuracy at the calibrated threshold. `baseline` is what always naming the larger side gets."""

    baseline: float | None = None
    threshold: float | None = None


class AchievedFPR(Estimate):
    """The false-positive rate on test of the threshold that met `target` on calibrate."""

    target: float | None = None
    threshold: float | None = None


class Oracle(Record):
    """The best on the test part over thresholds and timesteps, each picked separately: what papers print, optimistic."""

    timestep: Annotated[int | None, MOST_OFTEN] = None
    setting: Annotated[str | None, MOST_OFTEN] = None
    auc: float | None = None
    asr: float | None = None
    tpr_at_1pct: float | None = None
    reason: str | None = None


class AUCAt(Record):
    """The AUC at one timestep, or at one setting: of the calibrate part in a result, of the test part in a quartile."""

    timestep: int | None = None
    setting: str | None = None
    auc: float


class Gain(Record):
    """What a mask or a filter adds to an attack: with it minus without, on the same test images, each at its own settings.

    Of the attack on a reference model it is what the audited model adds: the audited model minus its reference.
    """

    auc: Estimate
    asr: Estimate
    tpr_at_1pct: Estimate


class Result(Record):
    """What one attack achieves. Rates are of the test part; member is the positive class.

    `queries` counts denoiser forwards per image over the whole sweep, `queries_at_timestep` those the chosen timestep
    needs alone; masked results share those of their attack. `mask_ratio` is the share of latent coordinates dropped.
    `variant` is "reference" for the attack on the reference model and "excess" for the attack on what is left of the audited
    model's statistics when the reference's are subtracted.
    An attack that averages over timesteps of its own has a `rule` in place of a timestep, and where the calibrate part chose
    something, the `setting` that it chose.
    """

    attack: str
    mask: str | None = None
    mask_ratio: Annotated[float | None, MOST_OFTEN] = None
    variant: Variant | None = None
    gain: Gain | None = None
    access: str = "grey-box"
    parameters: dict[str, Any] = {}
    queries: int | None = None
    queries_at_timestep: int | None = None
    timestep: Annotated[int | None, MOST_OFTEN] = None
    setting: Annotated[str | None, MOST_OFTEN] = None
    rule: str | None = None
    direction: Direction = "large"
    auc: Estimate
    tpr_at_fpr: tuple[RateAtFPR, ...]
    tnr_at_fnr: tuple[RateAtFNR, ...]
    asr: Accuracy
    achieved_fpr: AchievedFPR
    oracle: Oracle
    n_members: int
    n_nonmembers: int
    per_timestep: tuple[AUCAt, ...] = ()
    convention: str = "member-exact"

    def tpr(self, fpr: float) -> RateAtFPR:
        """The true-positive rate at a false-positive rate, such as 0.01; raises `UserError` for a rate that is not recorded."""
        return self._recorded(fpr, "false-positive", {rate.fpr: rate for rate in self.tpr_at_fpr})

    def tnr(self, fnr: float) -> RateAtFNR:
        """The true-negative rate at a false-negative rate, such as 0.01; raises `UserError` for a rate that is not recorded."""
        return self._recorded(fnr, "false-negative", {rate.fnr: rate for rate in self.tnr_at_fnr})

    def _recorded(self, rate: float, kind: str, found: dict[float, R]) -> R:
        near = next((at for at in found if isclose(at, rate)), None)
        if near is None:
            raise UserError(f"the {kind} rate must be one that {self.attack} has, {', '.join(map(str, found)) or 'none'}; got {rate:g}")
        return found[near]

    @property
    def plain(self) -> bool:
        """Whether this is the attack itself, on the audited model and under no mask."""
        return self.mask is None and self.variant is None

    @property
    def base(self) -> str:
        """The label of the attack itself: `sima` for `sima[influence:0.4]` and `sima[excess]`."""
        return unmasked_label(self.attack, self.mask or self.variant)

    @property
    def leads(self) -> bool:
        """Whether the result may speak for the audit: controls of masks, and what is found in another model, never do."""
        return may_lead(self.mask) and self.variant != "reference"


class Blind(Estimate):
    """What tells the two sides apart without the model: a classifier's AUC or, for few images, a permutation test.

    Of the test, `value` is the AUC of the most telling pixel `statistic`, and `detectable_auc` the smallest that the test would have
    called a difference of the sources with probability 0.8. `labels_p_value` is of the classes of a class-conditional model: how often a
    random division has classes that differ as much between the sides.
    """

    labels_p_value: float | None = None
    p_value: float | None = None
    detectable_auc: float | None = None
    statistic: str | None = None


class Gate(Record):
    """A limit that the user set, and whether an attack keeps it: `reach`, what its interval does not exclude, is at or below it.

    `limit` is the setting, as max_auc. Where the quantity could not be estimated `reach` is null, with the reason: not passed.
    """

    limit: Literal["max_auc", "max_tpr", "max_excess_auc"]
    attack: str
    quantity: str
    at_most: float
    reach: float | None
    passed: bool
    reason: str | None = None


class Quartile(Record):
    """The images whose distortion lies in one quarter, 1 the lowest: AUC of the test part by timestep, and at the chosen one."""

    quartile: int
    low: float
    high: float
    n_members: int
    n_nonmembers: int
    per_timestep: tuple[AUCAt, ...]
    auc: Estimate


class BandAt(Record):
    """Mean and standard deviation of the AUC of random subsets as large as a quartile."""

    timestep: int
    mean: float
    sd: float


class FilterGain(Record):
    """What the frequency filter adds to an attack (negative: it weakens it)."""

    attack: str
    filtered: str
    gain: Gain


class Geometry(Record):
    """How leakage follows the decoder's geometry. Distortion is the sum of the `top` largest log singular values.

    `attack` is the one whose curves are given by quartile. `high_minus_low` is the AUC of the highest quartile minus that
    of the lowest at the chosen timestep; `distortion_auc` what distortion alone, higher for members, tells of membership.
    """

    top: int
    probes: int
    attack: str | None
    quartiles: tuple[Quartile, ...]
    band: tuple[BandAt, ...]
    high_minus_low: Estimate
    distortion_auc: Estimate
    radius: float
    low_frequency: Estimate
    high_frequency: Estimate
    highest: tuple[str, ...]
    lowest: tuple[str, ...]
    filters: tuple[FilterGain, ...]


class Environment(Record):
    """Where the numbers come from."""

    diffleak: Version
    python: str
    platform: str
    packages: dict[str, str]
    device: str
    device_name: str
    dtype: str
    threads: int
    seed: int
    model_fingerprint: str
    data_fingerprint: str


class Split(Record):
    """How the images were divided. `repeats` > 1 means that medians over that many calibrate/test splits are reported."""

    calibrate_fraction: float
    seed: int
    repeats: int
    members: int
    nonmembers: int
    calibrate_members: int
    calibrate_nonmembers: int


class Costs(Record):
    """What the scoring took: forwards of one image each, and seconds summed over what was computed side by side."""

    queries: int
    seconds: float
    chunks: int


class Plan(Record):
    """All that decides the scores of a run. A run folder belongs to one plan.

    `anonymous` is the name of the key of its ids. `labels` says where the classes of the images came from, `label_names` the number
    of every name where they are names (null in an anonymous run).
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    diffleak: Version
    model: str
    model_fingerprint: str
    members: str
    nonmembers: str
    data_fingerprint: str
    n_members: int
    n_nonmembers: int
    image_shape: str
    resize: bool
    attacks: tuple[dict[str, Any], ...]
    calibration: bool
    calibrate_fraction: float
    seed: int
    batch_size: int
    chunk_size: int
    dtype: str
    device: str
    masks: tuple[str, ...] = ()
    probes: int | None = None
    top: int | None = None
    classes: int | None = None
    captions: str | None = None
    captions_found: int | None = None
    captions_truncated: int | None = None
    lora: str | None = None
    lora_scale: float | None = None
    guidance_scale: float | None = None
    reference: str | None = None
    reference_fingerprint: str | None = None
    anonymous: str | None = None
    labels: str | None = None
    label_names: dict[str, int] | None = None
    exif: Exif = "apply"
    alpha: Alpha = "drop"
    white: int | None = None


class Membership(Record):
    """Who said which images are members (`source`), and what the model's own split.json says of that (see `diffleak.data.membership`)."""

    source: str
    status: Literal["confirmed", "taken on trust", "contradicted, ignored"]
    model_split: str | None = None
    reason: str | None = None

    @property
    def sentence(self) -> str:
        """The same for a reader."""
        if self.status == "confirmed":
            also = f"; {self.reason}" if self.reason else ""
            return f"Which images are members was said by {self.source}, and the model's own {self.model_split} confirms it{also}."
        if self.status == "taken on trust":
            of = f", which was not confirmed by {self.model_split}" if self.model_split else ""
            return f"Which images are members was taken on trust from {self.source}{of}: {self.reason}."
        return (
            f"Which images are members was taken from {self.source} although {self.model_split} contradicts it (--ignore-model-split): by "
            f"{self.model_split}, {self.reason}. If {self.model_split} is right, the numbers do not measure membership."
        )


class AuditRecord(Record):
    """audit.json.

    `gates` are the limits that were set. Where `valid` is false the numbers do not measure membership, and `invalid_reason` says why;
    an audit whose user allows a difference of the sources stays valid, and its verdict says that the numbers mix both. `verdict` is
    leak, no-leak-found, undecided or invalid: the level of the headline of the report.
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    created: str
    command: str
    settings: dict[str, Any]
    plan: Plan
    environment: Environment
    split: Split
    headline: str | None
    results: tuple[Result, ...]
    blind: Blind
    warnings: tuple[str, ...]
    omitted: tuple[str, ...]
    truncated: tuple[str, ...] = ()
    costs: Costs
    geometry: Geometry | None = None
    membership: Membership | None = None
    images: Tally = Tally()
    gates: tuple[Gate, ...] = ()
    valid: bool | None = None
    invalid_reason: str | None = None
    verdict: str | None = None

    def result(self, attack: str) -> Result:
        """The result of one attack by its label."""
        for result in self.results:
            if result.attack == attack:
                return result
        raise KeyError(f"no attack '{attack}' in this record; it has {', '.join(r.attack for r in self.results)}")
