"""A record as an audit writes it, from scores with a known answer: normal draws with AUC = Phi(d / sqrt 2)."""

import io
from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from diffleak import metrics
from diffleak.evaluation import Divisions
from diffleak.geometry_analyses import analyse
from diffleak.record import AUCAt, AuditRecord, Blind, Costs, Environment, Gain, Geometry, Oracle, Plan, Result, Samples, Scores, Split

EVIL = "<script>alert('x')</script>&\"|`é画\x1b[2J\u202e\udcff.png"
MONTE_CARLO = "sima_mc(m=10,variant=norms)"
SHIFTS = {"sima": 1.75, "pia": 1.2, "pian": 0.9, "secmi": 1.4, "loss": 0.55, MONTE_CARLO: 1.6, "noise_aggregation": 0.15}
TIMESTEPS = range(10, 301, 10)


def samples_of(shifts: dict[str, float], n: int, seed: int = 0) -> Samples:
    """n members and n held-out images, a fifth of each for calibration; one member has an id that tries to break out."""
    rng = np.random.default_rng(seed)
    ids = tuple(EVIL if i == 1 else f"train/{i:05d}.png" for i in range(2 * n))
    member = np.arange(2 * n) < n
    test = np.arange(2 * n) % 5 != 0
    shared = rng.normal(size=2 * n)
    scores = {attack: d * member + 0.8 * shared + 0.6 * rng.normal(size=2 * n) for attack, d in shifts.items()}
    if scores:
        scores[next(iter(scores))][1] = 9.0
    return Samples(ids, member, test, scores)


def result_of(samples: Samples, attack: str, d: float, chosen: int = 100) -> Result:
    """One attack's numbers through diffleak.metrics; the sweep is a hill around the chosen timestep."""
    members, nonmembers = samples.sides(attack)
    calibrate = samples.sides(attack, test=False)
    threshold, _ = metrics.best_accuracy(*calibrate)
    hill = lambda t: d * np.exp(-(((t - chosen) / 110) ** 2))
    area = metrics.auc_estimate(members, nonmembers)
    sweep = tuple(AUCAt(timestep=t, auc=NormalDist().cdf(hill(t) / 2**0.5)) for t in TIMESTEPS)
    return Result(
        attack=attack,
        parameters={"p": 2.0, "note": "a < b"},
        queries=30 * (10 if "mc" in attack else 1),
        queries_at_timestep=10 if "mc" in attack else 1,
        timestep=chosen,
        auc=area,
        tpr_at_fpr=tuple(metrics.tpr_at_fpr(members, nonmembers, a) for a in metrics.RATES),
        tnr_at_fnr=tuple(metrics.tnr_at_fnr(members, nonmembers, a) for a in metrics.RATES),
        asr=metrics.accuracy_at(threshold, members, nonmembers),
        achieved_fpr=metrics.achieved_fpr(calibrate[1], nonmembers),
        oracle=Oracle(timestep=chosen + 10, auc=min(1.0, (area.value or 0.5) + 0.004), asr=0.8, tpr_at_1pct=0.3),
        n_members=len(members),
        n_nonmembers=len(nonmembers),
        per_timestep=sweep,
    )


def record_of(samples: Samples, shifts: dict[str, float], **changes: Any) -> AuditRecord:
    """The record of these samples; `changes` replace its fields."""
    sides = [int(samples.member.sum()), int((~samples.member).sum())]
    halves = [int((samples.member & ~samples.test).sum()), int((~samples.member & ~samples.test).sum())]
    fingerprint = "sha256:" + "0123456789abcdef" * 4
    fields = {
        "created": "2025-01-31T12:00:00Z",
        "command": "diffleak audit runs/ddpm --members data/train --nonmembers data/held-out --attacks all --seed 0 -o runs/a",
        "settings": {"attacks": "all", "seed": 0},
        "plan": Plan(
            diffleak="0.1.0",
            model="runs/ddpm",
            model_fingerprint=fingerprint,
            members="data/train",
            nonmembers="data/held-out",
            data_fingerprint=fingerprint,
            n_members=sides[0],
            n_nonmembers=sides[1],
            image_shape="32 x 32 RGB",
            resize=False,
            attacks=({"attack": "sima"},),
            calibration=True,
            calibrate_fraction=0.2,
            seed=0,
            batch_size=64,
            chunk_size=256,
            dtype="float32",
            device="cuda",
        ),
        "environment": Environment(
            diffleak="0.1.0",
            python="3.11.9",
            platform="Linux-6.1-x86_64",
            packages={"torch": "2.6.0", "diffusers": "0.31.0", "numpy": "2.1.0"},
            device="cuda",
            device_name="NVIDIA A100",
            dtype="float32",
            threads=8,
            seed=0,
            model_fingerprint=fingerprint,
            data_fingerprint=fingerprint,
        ),
        "split": Split(
            calibrate_fraction=0.2,
            seed=0,
            repeats=1,
            members=sides[0],
            nonmembers=sides[1],
            calibrate_members=halves[0],
            calibrate_nonmembers=halves[1],
        ),
        "headline": next(iter(shifts), None),
        "results": tuple(result_of(samples, attack, d, 60 + 20 * i) for i, (attack, d) in enumerate(shifts.items())),
        "blind": Blind(value=0.507, low=0.478, high=0.536, method="DeLong"),
        "warnings": (f"2 images are near-duplicates across the sides (first: {EVIL})",),
        "omitted": ("train/broken.png: not an image",),
        "costs": Costs(queries=1_920_000, seconds=754.2, chunks=16),
    }
    return AuditRecord(**{**fields, **changes})


def audit_of(shifts: dict[str, float] = SHIFTS, n: int = 2000, seed: int = 0, **changes: Any) -> tuple[AuditRecord, Samples]:
    """A record and its samples."""
    samples = samples_of(shifts, n, seed)
    return record_of(samples, shifts, **changes), samples


def without(samples: Samples, attack: str) -> Samples:
    """The samples with one attack's column missing."""
    return replace(samples, scores={a: s for a, s in samples.scores.items() if a != attack})


def thumbnail(image_id: str) -> bytes:
    """A small PNG whose colour depends on the id."""
    rng = np.random.default_rng(list(image_id.encode("utf-8", "backslashreplace")))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


MASKS = (*(f"influence:{i / 10:g}" for i in range(1, 10)), "random:0.4", "reverse:0.4", "reverse:0.9")
LATENT_SHIFTS = {"sima": 1.2, "pia": 0.9, "secmi": 1.0, "loss": 0.5}
SWEPT = (20, 60, 100, 140, 180, 240, 300)


def latent_audit(
    masks: tuple[str, ...] = MASKS,
    n: int = 400,
    geometry: bool = True,
    shifts: dict[str, float] = LATENT_SHIFTS,
    seed: int = 0,
    **changes: Any,
) -> tuple[AuditRecord, Samples]:
    """A record of a latent model with masked results and, if asked for, the analyses of geometry on synthetic distortions."""
    filtered = {f"{name}_frequency": shifts[name] * 0.7 for name in ("loss", "pia") if name in shifts and geometry}
    every = {**shifts, **filtered}
    labels = {a: [(a, None, d), *((f"{a}[{m}]", m, d * _effect(m)) for m in masks if a in shifts)] for a, d in every.items()}
    samples = samples_of({label: d for group in labels.values() for label, _, d in group}, n, seed)
    results = []
    for group in labels.values():
        plain = result_of(samples, group[0][0], group[0][2])
        results += [plain, *(_masked_result(samples, label, mask, d, plain) for label, mask, d in group[1:])]
    fields = {"results": tuple(results), **changes}
    if geometry:
        fields = {"geometry": geometry_of(samples, [r for r in results if r.mask is None], every), **fields}
    record = record_of(samples, every, **fields)
    plan = record.plan.model_copy(update={"masks": masks, "probes": 8, "top": 20 if geometry else None, "classes": 10})
    return record.model_copy(update={"plan": plan}), samples


def _effect(mask: str) -> float:
    control, _, ratio = mask.partition(":")
    share = 0.3 if ratio == "auto" else float(ratio)
    return {"influence": 1 + 0.9 * share * (1 - share * 1.3), "random": 1 - 0.3 * share, "reverse": 1 - 0.8 * share}[control]


def _masked_result(samples: Samples, label: str, mask: str, d: float, plain: Result) -> Result:
    found = result_of(samples, label, d)
    m, n = (np.stack(columns, axis=1) for columns in zip(samples.sides(label), samples.sides(plain.attack), strict=True))
    gain = Gain(
        auc=metrics.auc_difference(m, n),
        asr=metrics.accuracy_difference(m, n, np.array([found.asr.threshold, plain.asr.threshold])),
        tpr_at_1pct=metrics.tpr_difference(m, n, 0.01),
    )
    ratio = 0.3 if mask.endswith("auto") else float(mask.partition(":")[2])
    return found.model_copy(update={"mask": mask, "mask_ratio": ratio, "gain": gain})


def geometry_of(samples: Samples, results: list[Result], shifts: dict[str, float]) -> Geometry:
    """The analyses of diffleak.geometry_analyses, where members of higher distortion leak more."""
    rng = np.random.default_rng(1)
    size = len(samples.ids)
    distortion = 3 * rng.normal(size=size) - 20 + 0.3 * samples.member
    energies = np.exp(distortion / 9 + rng.normal(size=size)), np.exp(-distortion / 20 + rng.normal(size=size))
    more = 1 + (distortion + 20) / 8
    scores = []
    for attack, d in shifts.items():
        hill = np.array([np.exp(-(((t - 100) / 110) ** 2)) for t in SWEPT])
        statistic = (
            d * (samples.member * more)[:, None] * hill + samples.scores[attack][:, None] * 0.2 + rng.normal(size=(size, len(SWEPT)))
        )
        scores.append(Scores(attack, "large", SWEPT, samples.ids, statistic))
    split = Divisions(~samples.test[None], record_of(samples, {}, results=()).split)
    inputs = SimpleNamespace(cohort=samples, shape=SimpleNamespace(height=32, width=32), top=20, probes=8)
    return analyse(inputs, np.stack([distortion, *energies], axis=1), results, scores, samples.member, split)
