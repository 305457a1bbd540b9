"""The grammar of `--attacks`: a name, or package.module:Class for one's own, with parameters in brackets; and grids of timesteps."""

import inspect
import json
import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, get_args

from diffleak.attacks.base import SWEEP, Attack, Direction, written
from diffleak.diffusion.own_code import imported
from diffleak.diffusion.schedule import Schedule
from diffleak.errors import WHY, SettingError, UserError, refusing, shown, unknown

FLOW_SWEEP = tuple(range(50, 951, 50))  # of 1000 timesteps: the twentieths of the path of flow matching
MOST_TIMESTEPS = 100_000  # a longer grid is a slip of the keyboard
RESERVED = ("id", "member", "part", "all", "combined")  # columns of samples.csv, and what stands for several attacks
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse(text: str, attacks: Mapping[str, type[Attack]], timesteps: tuple[int, ...] | None) -> Attack:
    """The attack that a spec such as `sima`, `sima_mc(m=10,timesteps=50:150:50)` or `package.module:MyAttack(k=3)` stands for.

    `timesteps` is the sweep of attacks that sweep and whose spec has none.
    Raises `UserError` for an unknown attack or parameter (naming the nearest) and for a value of the wrong kind.
    """
    name, _, rest = text.strip().partition("(")
    kind = attacks.get(name) or (_imported(name) if ":" in name else None)
    if kind is None and ("." in name or "/" in name):
        raise UserError(f"an attack of your own is named package.module:Class, as in mine:MyAttack; got {name}")
    if kind is None:
        raise unknown("attack", name, attacks)
    if "(" in text and not rest.endswith(")"):
        raise UserError(f"attack parameters are written {name}(key=value,key=value); got {text}")
    swept = {} if timesteps is None or kind.rule else {"timesteps": timesteps}
    given: dict[str, Any] = {}
    known = {f.name: f for f in fields(kind) if f.compare}
    for part in filter(None, re.split(r",(?![^(]*\))", rest.removesuffix(")"))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"attack parameters are written {name}(key=value,key=value); got {text}")
        if key not in known:
            raise unknown(f"parameter of {name}", key, known)
        if key in given:
            raise UserError(f"{name}: {key} is given twice")
        with refusing(SettingError, f"{name}: {WHY}"):
            given[key] = parse_timesteps(value) if key == "timesteps" else _convert(name, key, value, known[key].default)
    with refusing(TypeError, f"{name} cannot be made ({WHY})"):  # an abstract class, or a parameter without a default
        return kind(**{**swept, **given})


def spec_of(attack: Attack) -> str:
    """The spec that stands for an attack; where its class was typed in and cannot be imported, one for people to read only."""
    kind, default = type(attack), lambda field: getattr(attack, field.name) == field.default
    changed = [f.name for f in fields(attack) if f.compare and f.name in (*attack.parameters(), "timesteps") and not default(f)]
    given = ",".join(f"{name}={written(name, getattr(attack, name))}" for name in changed if getattr(attack, name) != ())
    name = attack.name if attack.code is None else f"{kind.__module__}:{kind.__qualname__}"
    return f"{name}({given})" if given else name


def readable(spec: str, attacks: Mapping[str, type[Attack]]) -> bool:
    """True if a command line can take the spec."""
    try:
        return bool(parse(spec, attacks, None))
    except UserError:
        return False


def default_sweep(schedule: Schedule | None = None) -> tuple[int, ...]:
    """The timesteps of a sweep that nobody chose: 10:300:10, or for flow matching every twentieth of the path, 50:950:50 of 1000.

    A model of flow matching leaks most around the middle of the path from image to noise, not near the image (Rao and Moyer 2026,
    arXiv 2603.13421; Sesmat, Meseguer-Brocal and Peeters 2026, arXiv 2606.07271). Raises `UserError` for one with too few timesteps.
    """
    if schedule is None or not schedule.is_flow:
        return SWEEP
    total, parts = len(schedule), len(FLOW_SWEEP) + 1
    if total <= parts:
        raise UserError(
            f"a model of flow matching is swept at every twentieth of its path, which needs more than {parts} timesteps; "
            f"its schedule has {total}: give --timesteps, as in 0:{max(total - 2, 0)}"
        )
    return tuple(i * total // parts for i in range(1, parts))


def gives_timesteps(spec: str) -> bool:
    """True if a spec has timesteps of its own."""
    return re.search(r"[(,]\s*timesteps\s*=", spec) is not None


def with_timesteps(attack: Attack, timesteps: tuple[int, ...] | None) -> Attack:
    """An attack that sweeps, on these timesteps unless it was made with others than its default."""
    own = attack.rule is not None or attack.timesteps != attack.__dataclass_fields__["timesteps"].default
    return attack if own or timesteps is None else replace(attack, timesteps=timesteps)


def at_some(attack: Attack, timesteps: tuple[int, ...]) -> Attack:
    """An attack that sweeps, at some of its timesteps, with what it has been given or has settled for each of them."""
    name = attack.unlabelled
    own = getattr(attack, name) if name else ()
    kept = {name: tuple(own[attack.timesteps.index(t)] for t in timesteps)} if name and len(own) == len(attack.timesteps) else {}
    return replace(attack, timesteps=timesteps, **kept)


def refuse_outside(chosen: Sequence[Attack], attacks: Mapping[str, type[Attack]]) -> None:
    """Raises `UserError` for an attack listed twice, and for a class from outside that could not be recorded, or is unfinished."""
    for attack in (attack for attack in chosen if attack.code is not None):
        kind, name = type(attack), attack.name
        declared = {f.name for f in fields(kind)} | inspect.get_annotations(Attack).keys()
        lost = [key for key, of in inspect.get_annotations(kind).items() if key not in declared and "ClassVar" not in str(of)]
        if name in attacks or name in RESERVED:
            taken = "an attack of diffleak" if name in attacks else "a column of samples.csv, or several of them"
            raise UserError(f"{kind.__qualname__} must have a name of its own; {name} is {taken}")
        if not name.isidentifier() or not name.isascii():
            raise UserError(f"the name of an attack must be of letters, digits and _; got {shown(repr(name))}")
        if attack.direction not in get_args(Direction):
            raise UserError(
                f"{name}: direction must be small or large, the end of the statistic that means member; got {shown(repr(attack.direction))}"
            )
        if not isinstance(attack.queries, int) or attack.queries < 0:
            raise UserError(f"{name}: queries must be a whole number, under @property; got {shown(repr(attack.queries))}")
        if lost:
            raise UserError(f"{name}: {lost[0]} is no parameter; write @dataclass(frozen=True, kw_only=True) above the class")
        texts = [str(value) for value in attack.parameters().values() if isinstance(value, str)]
        if any(set(text) & set("(),=") or text != text.strip() for text in texts):
            raise UserError(f"{name}: a parameter that is a text must have no comma, bracket, = or outer space; got {shown(texts)}")
        with refusing(TypeError, f"{name}: parameters are recorded as JSON ({WHY}); give field(compare=False) to what is none"):
            json.dumps(attack.parameters())
    labels = [attack.label for attack in chosen]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"each attack must be listed once; {twice[0]} is there twice")


def _imported(name: str) -> type[Attack]:
    """The class at `package.module:Class`; modules in the current folder are found too."""
    found = imported(name, "an attack of your own is named package.module:Class")
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise UserError(f"{name} must be a subclass of diffleak.Attack; got {shown(repr(found))}")
    return found


def _convert(attack: str, key: str, value: str, default: Any) -> Any:
    kind = type(default)
    if kind is tuple and ":" not in attack:
        raise UserError(f"{attack}: {key} is measured on calibration images and cannot be set")
    message = f"{attack}: {key} must be of the kind {kind.__name__}; got {shown(repr(value))}"
    with refusing((ValueError, KeyError, SyntaxError, MemoryError, RecursionError), message):  # the last two of brackets in brackets
        if kind is bool:
            return TRUTH[value.lower()]
        return kind(value) if kind in (int, float, str) else literal_eval(value)


def parse_timesteps(text: str | int) -> tuple[int, ...]:
    """A grid `start:stop:step` with stop included, `start:stop` (step 1), one integer, or several joined by '+'."""
    message = f"must be start:stop:step (stop included), or one number; got {shown(repr(text))}"
    with refusing((ValueError, TypeError, OverflowError), message, raises=partial(SettingError, "timesteps")):
        numbers = [[int(n) for n in part.split(":")] for part in str(text).split("+")]
        ranges = [range(n[0], n[0] + 1) if len(n) == 1 else range(n[0], n[1] + 1, *n[2:]) for n in numbers]
        if any(r.step < 0 for r in ranges) or sum(map(len, ranges)) > MOST_TIMESTEPS:
            raise ValueError
        grid = [t for r in ranges for t in r]
    if not grid or any(t < 0 for t in grid):
        raise SettingError("timesteps", f"must be a non-empty grid of non-negative integers; got {shown(repr(text))}")
    return tuple(sorted(set(grid)))


def fit_to_schedule(attack: Attack, schedule: Schedule) -> Attack:
    """The attack on those of its timesteps where it is defined; raises `UserError` outside the schedule or when none is left.

    A sweep that starts below what an attack needs (noise aggregation walks down 40 steps) loses those timesteps only.
    """
    if not attack.timesteps:
        return attack
    if attack.rule and attack.timesteps[-1] >= len(schedule):
        raise UserError(
            f"{attack.name} averages over timesteps up to {attack.timesteps[-1]}, and the model's schedule has {len(schedule)}; "
            f"give it others, as in {attack.name}(timesteps=0:{len(schedule) - 1}:10), or leave it out"
        )
    schedule.check(attack.timesteps)
    kept = tuple(t for t in attack.timesteps if attack.usable(t, schedule))
    if not kept:
        t = attack.timesteps[-1]
        raise UserError(f"{attack.name} is defined at none of the timesteps given; at {t}: {attack.why_unusable(t, schedule)}")
    return replace(attack, timesteps=kept)
