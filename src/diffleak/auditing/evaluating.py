"""Scores of a prepared audit → results, and what of them the calibrate part alone chooses.

Choosing is evaluating the calibrate part without a test part, by the same code, so an audit that scores the test part at the chosen
timesteps alone chooses what it would have chosen with all scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffleak.attacks.base import ACCESS, Attack
from diffleak.auditing import score as scoring
from diffleak.auditing.plan import Prepared, sweeps
from diffleak.diffusion.target import Target
from diffleak.records.audit import Result
from diffleak.records.chosen import Chosen, chosen_by
from diffleak.records.scores import Scores
from diffleak.stats import evaluation
from diffleak.stats.calibration import FEWEST, Features, features

Evaluated = list[tuple[Result, Scores]]
Evaluate = Callable[[Prepared, Sequence[tuple[Scores, ...]], Sequence[dict[str, Any]], np.ndarray | None], Evaluated]


def chosen_of(prepared: Prepared, collected: scoring.Collected) -> Chosen:
    """What the calibrate part chooses; `collected` are its scores at every timestep of `prepared`, in the order of the images."""
    results = _on_calibrate(prepared, collected, evaluated)
    together = next((result for result in results if result.parameters.get("clearly_better")), None)
    timesteps = {}
    for attack in filter(sweeps, prepared.attacks):
        of_attack = _chosen_by_attack(attack, results)
        if together and attack.label in together.parameters["attacks"]:
            of_attack |= {*_with_neighbours(attack, results)}
        timesteps[attack.label] = tuple(sorted(of_attack))
    return chosen_by(prepared.plan, prepared.split.record, timesteps)


def beside_best(prepared: Prepared, collected: scoring.Collected, whole: Prepared) -> dict[str, tuple[int, ...]]:
    """The timesteps of the whole sweep beside those that an attack, or a variant of it, chooses among every third one, by its label."""
    results, found = _on_calibrate(prepared, collected, of_attacks), dict[str, tuple[int, ...]]()
    for attack, every in zip(prepared.attacks, whole.attacks, strict=True):
        if attack.timesteps != every.timesteps:
            places = {every.timesteps.index(t) + side for t in _chosen_by_attack(attack, results) for side in (-1, 1)}
            found[attack.label] = tuple(every.timesteps[i] for i in sorted(places) if 0 <= i < len(every.timesteps))
    return found


def _chosen_by_attack(attack: Attack, results: Sequence[Result]) -> set[int]:
    """The timesteps of all results of an attack: its own, and those of its variants."""
    return {result.timestep for result in results if result.base == attack.label and result.timestep is not None}


def _on_calibrate(prepared: Prepared, collected: scoring.Collected, evaluate: Evaluate) -> list[Result]:
    """The results of the calibrate part alone, which has no test part."""
    calibrate = prepared.split.calibrate[0]
    order = prepared.scan.cohort.by_key if prepared.key else np.arange(len(calibrate))
    rows = order[calibrate[order]]
    place = np.empty(len(calibrate), dtype=np.int64)
    place[calibrate] = np.arange(int(calibrate.sum()))
    own = replace(
        prepared,
        scan=prepared.scan.taken(rows),
        units=prepared.units.taken(rows),
        inputs=replace(prepared.inputs, cohort=prepared.scan.cohort.taken(rows)),
        split=evaluation.Divisions(np.ones((1, len(rows)), dtype=bool), prepared.split.record),
    )
    scores = [tuple(variant.taken(place[rows]) for variant in group) for group in collected.scores]
    reconstruction = None if collected.reconstruction is None else collected.reconstruction[place[rows]]
    return [result for result, _ in evaluate(own, scores, collected.parameters, reconstruction)]


def evaluated(
    prepared: Prepared, scores: Sequence[tuple[Scores, ...]], parameters: Sequence[dict[str, Any]], reconstruction: np.ndarray | None
) -> Evaluated:
    """Every result with the scores it came from: of each attack and its variants, and of all attacks together."""
    pairs = of_attacks(prepared, scores, parameters, reconstruction)
    return [*pairs, *combined_result(prepared, scores, pairs)]


def of_attacks(
    prepared: Prepared, scores: Sequence[tuple[Scores, ...]], parameters: Sequence[dict[str, Any]], reconstruction: np.ndarray | None
) -> Evaluated:
    """The results of each attack and its variants, with the scores each came from."""
    taken_out = features(prepared.scan.complexity, reconstruction) if prepared.calibrates else None
    return [
        pair
        for attack, group, settled in zip(prepared.attacks, scores, parameters, strict=True)
        for pair in results_of(prepared, attack, tuple(map(prepared.units.counting, group)), settled, taken_out)
    ]


def _with_neighbours(attack: Attack, results: Sequence[Result]) -> tuple[int, ...]:
    """The timestep that the attack alone chose, and those before and after it in its sweep."""
    chosen = next(result.timestep for result in results if result.attack == attack.label)
    at = attack.timesteps.index(chosen)
    return attack.timesteps[max(at - 1, 0) : at + 2]


def _of_settings(prepared: Prepared, attack: Attack, scores: Scores, alone: Sequence[tuple[Result, Scores]]) -> Scores:
    """What `combined` takes of the scores of an attack."""
    if prepared.plan.sweep == "all" or not sweeps(attack):
        return scores
    kept = _with_neighbours(attack, [result for result, _ in alone])
    columns = [scores.timesteps.index(t) for t in kept]
    return replace(scores, timesteps=kept, statistic=scores.statistic[:, columns])


def results_of(
    prepared: Prepared, attack: Attack, scores: tuple[Scores, ...], parameters: dict[str, Any], taken_out: Features | None
) -> Iterator[tuple[Result, Scores]]:
    """An attack's result and those of its variants, with the scores each came from."""
    member, split, unmasked = prepared.units.member, prepared.units.reduced(prepared.split), scores[0]
    base = evaluation.on_every_split(unmasked, member, split)
    found = [base]
    if prepared.reference:
        found += evaluation.evaluate_reference(scores[1:], base, member, split)
    under = dict(zip(prepared.inputs.masks, scores[1:], strict=False))
    for choice in prepared.masks if under else ():
        ratios = {mask.ratio: under.get(mask, unmasked) for mask in choice.masks}
        found.append(evaluation.evaluate_masked(choice.label, ratios, base, member, split))
    for variant in list(found):
        if taken_out and variant[0][0].leads:
            found.append(evaluation.evaluate_calibrated(variant, taken_out, member, split))
    for result, source in map(evaluation.whole, found):
        models = [model for model in _asked(prepared, result) if model]
        cost = lambda part, models=models: sum(part.queries * scoring.forwards(model, part) for model in models)
        alone = None if result.timestep is None else cost(replace(attack, timesteps=(result.timestep,)))
        costs = {"queries": cost(attack), "queries_at_timestep": alone}
        yield result.model_copy(update={"access": attack.access, "parameters": parameters, **costs}), source


def combined_result(
    prepared: Prepared, scores: Sequence[tuple[Scores, ...]], alone: Sequence[tuple[Result, Scores]]
) -> Iterator[tuple[Result, Scores]]:
    """The result of all attacks together, on the audited model; where the test part is not scored at every timestep, of each the chosen
    one and its two neighbours.

    Nothing for fewer than two attacks, for sides that are too small for one division, and for a small calibrate part: the regression takes
    many images. Complexity is the images' own there, of latent models too: seven weights of reconstructions more would be fitted with
    nothing to choose them.
    """
    member, split = prepared.units.member, prepared.units.reduced(prepared.split)
    used = [
        (attack, prepared.units.counting(_of_settings(prepared, attack, group[0], alone)))
        for attack, group in zip(prepared.attacks, scores, strict=True)
        if evaluation.may_be_combined(group[0])
    ]
    fitted = min(int((split.calibrate[0] & side).sum()) for side in (member, ~member))
    if len(used) < 2 or split.record.repeats > 1 or fitted < FEWEST:
        return
    complexity = prepared.scan.complexity if prepared.calibrates else None
    labels, together = [attack.label for attack, _ in used], evaluation.combined([plain for _, plain in used], complexity)
    best = evaluation.headline([result for result, _ in alone if result.plain and result.attack in labels])
    base = next(pair for pair in alone if pair[0].attack == best)
    result, chosen = evaluation.evaluate_combined(together, [base], member, split)[0]
    better = chosen.statistic is together.statistic
    parameters = {"attacks": labels, "complexity": complexity is not None, "compared_with": base[0].attack, "clearly_better": better}
    asked = {
        "access": max((attack.access for attack, _ in used), key=ACCESS.index),
        "queries": sum(attack.queries * scoring.forwards(prepared.target, attack) for attack, _ in used),
    }
    if not better:
        asked = {name: getattr(base[0], name) for name in ("access", "queries", "queries_at_timestep")}
    yield result.model_copy(update={"parameters": parameters, **asked}), chosen


def _asked(prepared: Prepared, result: Result) -> tuple[Target | None, ...]:
    """The models that a result needs the answers of."""
    if result.variant is None:
        return (prepared.target,)
    return (prepared.reference,) if result.variant == "reference" else (prepared.target, prepared.reference)
