"""Finished run folders with known answers, written by the code that audits write theirs with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report_fixtures import audit_of

from diffleak import evaluation
from diffleak.record import AuditRecord, Blind, Scores
from diffleak.run_folder import write_samples

TIMESTEPS = (50, 100, 150)
HILL = np.array([0.6, 1.0, 0.8])  # of the effect at each timestep
BLANK, _ = audit_of({"sima": 1.0}, 20)  # a record whose numbers are replaced

Signal = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # (member, rng) -> (n, timesteps) membership scores


def ids_of(members: int, nonmembers: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Ids and who is a member."""
    ids = tuple(f"{i:05d}.png" for i in range(members + nonmembers))
    return ids, np.arange(members + nonmembers) < members


def gaussian(d: float, difficulty: float = 1.0) -> Signal:
    """Members shifted by d; a part of every image's score is its own difficulty, the same in every run."""

    def signal(member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shared = np.random.default_rng(99).normal(size=(len(member), 1))
        return d * member[:, None] * HILL + difficulty * shared + 0.6 * rng.normal(size=(len(member), len(HILL)))

    return signal


def make_run(
    folder: Path,
    attacks: dict[str, Signal],
    ids: Sequence[str] | None = None,
    member: np.ndarray | None = None,
    seed: int = 0,
    fingerprint: str = "sha256:" + "ab" * 32,
    data: str | None = None,
    blind: float = 0.5,
    calibration: bool = True,
    keep: np.ndarray | None = None,
    model: str = "runs/ddpm",
    masks: dict[str, str] | None = None,
) -> Path:
    """A finished audit of these signals; `keep` (bool per image) restricts it to a part, `masks` names those of labels."""
    if ids is None or member is None:
        ids, member = ids_of(400, 400)
    timesteps = TIMESTEPS if calibration else TIMESTEPS[1:2]
    keep = np.ones(len(ids), dtype=bool) if keep is None else keep
    kept, side = tuple(i for i, k in zip(ids, keep, strict=True) if k), member[keep]
    split = evaluation.divided(kept, side, 0.2, 0, calibration)
    scores, results = [], []
    for k, (attack, signal) in enumerate(attacks.items()):
        drawn = signal(member, np.random.default_rng((seed, k)))[keep]
        scores.append(Scores(attack, "small", timesteps, kept, -drawn[:, : len(timesteps)]))
        results.append(evaluation.evaluate_scores(scores[-1], side, split).model_copy(update={"mask": (masks or {}).get(attack)}))
    changes: dict[str, Any] = {"results": tuple(results), "split": split.record, "headline": evaluation.headline(results)}
    changes["blind"] = Blind(value=blind, low=blind - 0.03, high=blind + 0.03, method="DeLong")
    changes["plan"] = BLANK.plan.model_copy(
        update={
            "model": model,
            "model_fingerprint": fingerprint,
            "data_fingerprint": data or f"sha256:{len(kept):064x}",
            "calibration": calibration,
            "n_members": int(side.sum()),
            "n_nonmembers": int((~side).sum()),
        }
    )
    changes |= {"warnings": (), "omitted": (), "settings": {"model": model}}
    _write(folder, BLANK.model_copy(update=changes), scores, evaluation.samples(scores, results, side, split))
    return folder


def _write(folder: Path, record: AuditRecord, scores: Sequence[Scores], samples: Any) -> None:
    (folder / "scores").mkdir(parents=True)
    (folder / "plan.json").write_text(record.plan.model_dump_json())
    (folder / "audit.json").write_text(record.model_dump_json())
    write_samples(folder / "samples.csv", samples)
    for k, s in enumerate(scores):
        columns = {
            "id": pa.array(np.repeat(s.ids, len(s.timesteps))),
            "attack": pa.array([s.attack] * s.statistic.size),
            "timestep": pa.array(np.tile(s.timesteps, len(s.ids)).astype(np.int32)),
            "statistic": pa.array(s.statistic.ravel()),
        }
        pq.write_table(pa.table(columns), folder / "scores" / f"chunk-00000-{k:02d}-{s.attack.partition('(')[0].partition('[')[0]}.parquet")


def write_quality(folder: Path, kid: float | None = 0.012, frechet: float = 14.1, extractor: str = "inception", images: int = 5000) -> Path:
    """quality.json as `diffleak quality` writes it."""
    ends = {"low": None, "high": None, "reason": "too few images"} if kid is None else {"low": 0.9 * kid, "high": 1.1 * kid}
    metrics = [
        {"name": "kid", "value": kid, **ends},
        {"name": "frechet", "value": frechet, "low": None, "high": None, "reason": "no interval"},
        {"name": "copy_rate", "value": 0.02, "low": 0.01, "high": 0.03, "reason": None},
    ]
    content = {"schema_version": 1, "model": "runs/x", "extractor": extractor, "images": images, "metrics": metrics}
    (folder / "quality.json").write_text(json.dumps(content))
    return folder / "quality.json"


def swap_runs(folder: Path, d: float, difficulty: float, n: int = 400, nonmembers: int = 400) -> tuple[Path, Path, Path]:
    """Two teachers audited on all members, each shifted by d on its own half only, and their split.json."""
    ids, member = ids_of(n, nonmembers)
    first = np.arange(len(ids)) < n // 2
    runs = []
    for number, own in ((1, first), (2, member & ~first)):
        teacher = lambda _, rng, own=own: gaussian(d, difficulty)(own, rng)
        name, fingerprint = f"teacher-{number}", f"sha256:{number:064x}"
        attacks = {"sima": teacher, "loss": teacher}
        runs.append(make_run(folder / f"run-{name}", attacks, ids, member, number, fingerprint, model=str(folder / "dual" / name)))
    (folder / "dual").mkdir()
    halves = [list(ids[: n // 2]), list(ids[n // 2 : n])]
    split = {"members": list(ids[:n]), "nonmembers": list(ids[n:]), "halves": halves, "teachers": [f"sha256:{i:064x}" for i in (1, 2)]}
    (folder / "dual" / "split.json").write_text(json.dumps(split))
    return runs[0], runs[1], folder / "dual" / "split.json"
