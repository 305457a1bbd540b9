"""What an audit's record says for the file: auditor, form of release, training size, and the attacks that were not run."""

from datetime import UTC, datetime
from pathlib import Path

from diffleak.attacks import ATTACKS
from diffleak.attacks.base import Attack
from diffleak.auditing.plan import Prepared
from diffleak.data.split import ModelSplit, read_model_split
from diffleak.errors import WHY, refusing, shown
from diffleak.records.evidence import Evidence, KnownAttack
from diffleak.work.files import hash_file
from diffleak.work.folder import PLAN
from diffleak.work.reading import Unreadable


def evidence_of(prepared: Prepared, folder: Path) -> Evidence:
    """The evidence of an audit in a run folder; raises `UserError` for a split file that is gone."""
    config, split = prepared.config, prepared.target.split_file
    own = _believed(read_model_split(split, config.split) if split else None, prepared)
    plan = folder / PLAN  # which is written once, when the folder is claimed, and never again
    started = datetime.fromtimestamp(plan.stat().st_mtime, UTC).isoformat(timespec="seconds") if plan.is_file() else None
    return Evidence(
        title=config.title,
        auditor=config.auditor,
        note=config.note,
        release=config.release,
        started=started,
        training_images=_listed(own) if own else None,
        training_from=str(split) if own else None,
        split_digest=_digest(config.split) if config.split else None,
        attacks=known(prepared.attacks, takes_text=prepared.target.text is not None),
    )


def _believed(own: ModelSplit | None, prepared: Prepared) -> ModelSplit | None:
    """The model's own split, unless nothing shows that it is of its training: one that training wrote, or that lists the same names.

    Nor one that lists fewer members than the audit has.
    """
    of_training = own and (own.trained or (prepared.membership and prepared.membership.same_names))
    return own if own and of_training and _listed(own) >= prepared.plan.n_members else None


def _listed(own: ModelSplit) -> int:
    """How many images a split says that the model was trained on."""
    return sum(role == "member" for role in own.roles.values())


def known(run: tuple[Attack, ...], takes_text: bool) -> tuple[KnownAttack, ...]:
    """Each attack of this version, then those of the user's own among the ones that were run."""
    kinds = {**ATTACKS, **{attack.name: type(attack) for attack in run if attack.code is not None}}
    names = {attack.name for attack in run}
    return tuple(
        KnownAttack(
            attack=name,
            access=kind.access,
            about=(kind.__doc__ or "an attack of the user's own").strip().split("\n")[0],
            run=name in names,
            unfit="works with captions, and this model takes none" if kind.needs_text and not takes_text else None,
        )
        for name, kind in kinds.items()
    )


def _digest(path: Path) -> str:
    with refusing(Unreadable, f"the split file {path} cannot be read ({WHY}); put it back and run the same command again", shown):
        return hash_file(path)
