"""What walks with DDIM tell at every stage of a training: `python studies/sharper/walks.py DATA SPLIT MODEL... -o FILE [--full]`.

For each model folder a row per setting of noise aggregation, with its AUC (score = -log of the dispersion, as the paper has it: never
turned), one per timestep of SecMI's walk (small = member) with the mean norm of the predictions on either side, and some for SimA and the
loss, the latter with the norms of its own predictions. Nothing is chosen here: every setting is a row. MODEL names end in their steps.

--full: every t, sigma, stride and k of the study, and three strides of SecMI; else those that follow the training. Rows of a model that
FILE has are kept, so a call resumes. The walk is straight-line code, compared with the package's own attack for one setting of each model.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import diffleak
from diffleak.attacks.noise_aggregation import METRICS, NoiseAggregation, _dispersion, _pair_distances
from diffleak.attacks.subject import Subject
from diffleak.data.pixels import to_model
from diffleak.diffusion.noise import Noise

SIDE = 96  # members, and as many held-out images, drawn from the split
BATCH = 64
READINGS = (
    ("fixed", 0.01),
    ("fixed", 0.02),
    ("fixed", 0.05),
    ("fixed", 0.1),
    ("fixed", 0.2),
    ("fixed", 0.3),
    ("relative", 0.1),
    ("schedule", 1.0),
)
FEW = (("fixed", 0.02), ("fixed", 0.1), ("relative", 0.1), ("schedule", 1.0))
COLUMNS = ("model", "steps", "attack", "t", "sigma_scale", "sigma", "stride", "k", "metric", "auc", "members", "held_out")


def images(data: Path, split: Path) -> tuple[torch.Tensor, np.ndarray, tuple[str, ...]]:
    said, rng = json.loads(split.read_text()), np.random.default_rng(0)
    sides = [rng.choice(np.array(said[side], dtype=int), min(SIDE, len(said[side])), replace=False) for side in ("members", "nonmembers")]
    rows = np.concatenate(sides)
    member = np.repeat([True, False], list(map(len, sides)))
    return torch.from_numpy(to_model(np.load(data)[rows])), member, tuple(map(str, rows))


def walk(denoiser, schedule, x0, e, t, added, stride, k):
    """The predictions at t, t - stride, ...: float64 arithmetic around the network's float32."""
    x, found = schedule.a(t) * x0 + added * e, []
    for i in range(k):
        now = t - i * stride
        eps = torch.cat([denoiser(part, now) for part in x.split(BATCH)])
        found.append(eps)
        if i < k - 1:
            x = schedule.ddim(x, eps, now, now - stride)
    return torch.stack(found).double().flatten(start_dim=2)


def aggregation(target, x0, e, member, full):
    denoiser, schedule = target.denoiser, target.denoiser.schedule
    ts, strides, ks = ((10, 20, 40, 80, 120, 160, 200), (5, 10, 20), (2, 3, 5, 7, 9)) if full else ((40, 80, 120), (10,), (5,))
    for t in ts:
        for scale, sigma in READINGS if full else FEW:
            added = {"fixed": sigma, "relative": sigma * schedule.s(t), "schedule": schedule.s(t)}[scale]
            for stride in strides if (scale, sigma) in FEW else (10,):
                most = max((k for k in ks if (k - 1) * stride <= t), default=0)
                if most < 2:
                    continue
                predictions = walk(denoiser, schedule, x0, e, t, added, stride, most)
                for k in (k for k in ks if k <= most):
                    for metric in METRICS:
                        part = predictions[:k]
                        bandwidth = float(_pair_distances(part).quantile(0.5)) if metric == "density" else 0.0
                        score = -torch.log(_dispersion(metric, part, bandwidth) + 1e-12)
                        yield ("noise_aggregation", t, scale, sigma, stride, k, metric, roc_auc_score(member, score), "", "")


def secmi(target, x0, member, k):
    """SecMI's t-error along one walk of stride k, and the mean norm of the predictions on either side."""
    denoiser, schedule = target.denoiser, target.denoiser.schedule
    x, eps = x0, ask(denoiser, x0, 0)
    for t in range(0, 201, k):
        u = t + k
        x = schedule.ddim(x, eps, t, u)
        eps_u = ask(denoiser, x, u)
        c = schedule.a(t) * schedule.s(u) / schedule.a(u) - schedule.s(t)
        error = (c * (eps - eps_u)).double().square().flatten(start_dim=1).sum(dim=1)
        norm = eps.double().flatten(start_dim=1).norm(dim=1)
        yield ("secmi", t, "", "", k, "", "", roc_auc_score(member, -error), float(norm[member].mean()), float(norm[~member].mean()))
        eps = eps_u


def others(target, x0, e, member):
    """SimA and the loss, with the mean norm of the loss's own predictions, which no walk has touched."""
    denoiser, schedule = target.denoiser, target.denoiser.schedule
    for t in (40, 50, 60, 70, 80, 90, 100, 120, 160, 200):
        noised = ask(denoiser, schedule.add_noise(x0, t, e), t)
        norm = noised.double().flatten(start_dim=1).norm(dim=1)
        for name, field in (("sima", ask(denoiser, x0, t)), ("loss", noised - e)):
            power = 4 if name == "sima" else 2
            score = -field.double().abs().pow(power).flatten(start_dim=1).sum(dim=1)
            norms = (float(norm[member].mean()), float(norm[~member].mean())) if name == "loss" else ("", "")
            yield (name, t, "", "", "", "", "", roc_auc_score(member, score), *norms)


def ask(denoiser, x, t):
    return torch.cat([denoiser(part, t) for part in x.split(BATCH)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("split", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = {row["model"] for row in csv.DictReader(given.output.open())} if given.output.exists() else set()
    if not done:
        given.output.write_text(",".join(COLUMNS) + "\n")
    x0, member, ids = images(given.data, given.split)
    noise = Noise(0, ids, tuple(x0.shape[1:]), torch.float32)
    for folder in (folder for folder in given.models if folder.name not in done):
        target = diffleak.load(folder, device="cpu")
        with torch.inference_mode():
            e = noise(0)
            some = Subject(target.denoiser, x0[:BATCH], Noise(0, ids[:BATCH], tuple(x0.shape[1:]), torch.float32))
            path = walk(target.denoiser, target.denoiser.schedule, x0[:BATCH], e[:BATCH], 40, 0.1, 10, 5)
            for metric in METRICS:
                own = NoiseAggregation(timesteps=(40,), sigma_scale="fixed", metric=metric).prepared(some)
                again = -np.log(_dispersion(metric, path, float(_pair_distances(path).quantile(0.5))).numpy() + 1e-12)
                np.testing.assert_allclose(own.statistics(some)[0].numpy(), again, rtol=1e-4)
            walks = [row for k in ((5, 10, 20) if given.full else (10,)) for row in secmi(target, x0, member, k)]
            rows = [*walks, *others(target, x0, e, member), *aggregation(target, x0, e, member, given.full)]
        with given.output.open("a", newline="") as file:  # all rows of a model, or none
            csv.writer(file, lineterminator="\n").writerows(
                (folder.name, folder.name.rpartition("-")[2], *(f"{v:.4f}" if isinstance(v, float) else v for v in row)) for row in rows
            )
        print(folder.name, len(rows), "rows", flush=True)


if __name__ == "__main__":
    main()
