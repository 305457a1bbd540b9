"""The settings of `diffleak inquire`, and the images they name. No torch."""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from diffleak.auditing.config import AuditConfig
from diffleak.config import Name
from diffleak.data.captions import own_if_all
from diffleak.data.cohort import Cohort, two_sources
from diffleak.data.enough import Sides, since
from diffleak.data.image_source import ImageSource
from diffleak.data.sources import open_source
from diffleak.errors import UserError
from diffleak.stats.inquiry import HALF

CALLS = ("images in question", "controls")
GROUPS = ("groups in question", "groups of controls")
FEWEST = (2 * HALF, 4 * HALF)  # a placebo cuts the controls into halves of halves
OF_AN_AUDIT = ("members", "nonmembers", "data", "split")


class InquireConfig(AuditConfig):
    """Everything that decides an inquiry; the keys of `-C FILE` and, with dashes, the flags of `diffleak inquire`."""

    COMMAND = "inquire"
    RECORD = "inquiry.json"
    DATA = "images control"
    PLANNED = {
        **AuditConfig.PLANNED,
        "members": "set of images in question",
        "nonmembers": "set of controls",
        "n_members": "number of images in question",
        "n_nonmembers": "number of controls",
    }
    NO_FLAG = {
        *OF_AN_AUDIT,
        *("mask", "probes", "calibration", "calibrate_fraction", "sweep", "sweep_models", "steps", "thumbnails"),
        *("max_auc", "max_tpr", "max_excess_auc", "allow_shift", "release", "title", "auditor", "note"),
    }
    FOLLOW = ["embedding images control output", "captions repeats"]
    HELP = {
        "group": "A column of the metadata, such as person: groups are tested then, not images.",
        "reference": "Also try the scores minus those of this model; 'base' is MODEL without its --lora and --embedding.",
        "captions": "Text-to-image models: own (default if all images on both sides have one), empty (default if not), fixed:TEXT, a file.",
        "complexity": "Also try the scores corrected for how simple each image is.",
        "ignore_model_split": "Go on although the split.json beside MODEL lists controls as trained on.",
    }

    images: Name | None = Field(None, description="DATA in question: was it trained on?")
    control: Name | None = Field(None, description="DATA of the same source that was certainly not trained on, such as later work.")
    repeats: int = Field(
        11,
        ge=1,
        le=1000,
        description="How often the images are cut into halves ({default}). The answer is twice the median of the p-values.",
    )
    calibrate_fraction: float = 0.5
    sweep: Literal["all"] = "all"  # every half chooses for the other

    @model_validator(mode="before")
    @classmethod
    def _no_settings_of_an_audit(cls, given: Any) -> Any:
        for key in sorted(cls.NO_FLAG):
            value, default = given.get(key), cls.model_fields[key].default
            if value is not None and (tuple(value) if isinstance(value, list) else value) != default:
                hint = "the two sides are --images and --control" if key in OF_AN_AUDIT else "leave it out"
                raise ValueError(f"{key} is a setting of an audit, and this is an inquiry: {hint}")
        return given

    @model_validator(mode="after")
    def _two_sides(self) -> "InquireConfig":
        if self.images is None or self.control is None:
            raise ValueError("an inquiry compares images in question with controls: give --images DATA and --control DATA")
        return self

    @property
    def two_sided(self) -> bool:
        """True: an inquiry always has two sides."""
        return True

    @property
    def known(self) -> bool:
        """False: nobody knows which of the images were trained on."""
        return False

    @property
    def fewest_groups(self) -> dict[str, int]:
        """How many groups of either side there must be, by what messages call them."""
        return dict(zip(GROUPS, FEWEST, strict=True))

    @property
    def fewest(self) -> Sides:
        """How many images of either side there must be, near-duplicates counted once."""
        return FEWEST

    @property
    def across(self) -> bool:
        """False: of near-duplicates on both sides none is tested."""
        return False

    def refuse_few(self, left: Sides, files: Sides) -> None:
        """Raises `UserError` where a side has too few images for halves; left: how many count, files: how many there are."""
        refuse_few(*left, left=since(left, files, self.across))

    def default_captions(self, images: Cohort) -> str:
        """Their own if every image has a caption, else the empty caption with every image."""
        return own_if_all(images.captions(), "empty")


def inquired(config: InquireConfig, images: ImageSource | None = None, control: ImageSource | None = None) -> Cohort:
    """The images in question, as members, and the controls; opened as the config says unless they are given.

    Raises `UserError` where there are too few for halves.
    """
    assert config.images is not None and config.control is not None, "the config has refused it"
    first, second = images or open_source(config.images, config.decoding), control or open_source(config.control, config.decoding)
    cohort = two_sources(first, second, config.limit, config.seed, CALLS, ("images/", "control/"))
    refuse_few(int(cohort.member.sum()), int((~cohort.member).sum()))
    return replace(cohort, names=(f"{first.name} [in question]", f"{second.name} [control]"))


def refuse_few(images: int, controls: int, calls: tuple[str, str] = CALLS, left: str = "") -> None:
    """Raises `UserError` where halves, or those of the placebo, would have fewer than `HALF` a side of what is counted.

    calls: what that is, on each side. left: why there are no more, in words.
    """
    for what, found, least in zip(calls, (images, controls), FEWEST, strict=True):
        if found < least:
            raise UserError(f"there must be at least {least} {what}, {HALF} in every half that is tested; got {found}{left}: add more")
