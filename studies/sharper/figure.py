"""Draws the study of attacks that walk with DDIM: `python studies/sharper/figure.py WALKS.csv FULL.csv OUT`, rows of walks.py.

OUT gets stages.png (what each attack finds as the training goes on), sigma.png (noise aggregation by its reading of sigma, its timestep,
k, stride and metric) and norms.png (the predictions along SecMI's walk), and prints the tables of the study.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

READINGS = {("fixed", 0.02): "fixed 0.02", ("fixed", 0.1): "fixed 0.1", ("relative", 0.1): "relative 0.1", ("schedule", 1.0): "schedule"}
DEFAULT = {"k": 5, "stride": 10, "metric": "l2"}


def at(rows: pd.DataFrame, **fixed: object) -> pd.DataFrame:
    for name, value in fixed.items():
        rows = rows[rows[name] == value]
    return rows


def stages(rows: pd.DataFrame, output: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
    for axis, t in zip(axes, (40, 80, 120), strict=True):
        for attack in ("sima", "loss", "secmi"):
            part = at(rows, attack=attack, t=t).sort_values("steps")
            axis.plot(part.steps, part.auc, marker="o", markersize=3, label=attack)
        for (scale, sigma), name in READINGS.items():
            part = at(rows, attack="noise_aggregation", t=t, sigma_scale=scale, sigma=sigma, **DEFAULT).sort_values("steps")
            axis.plot(part.steps, part.auc, linestyle="--", marker=".", label=f"noise aggregation, {name}")
        axis.axhline(0.5, color="grey", linewidth=0.8)
        axis.set(title=f"t = {t}", xlabel="steps of training")
    axes[0].set_ylabel("AUC")
    axes[-1].legend(fontsize=7)
    figure.savefig(output / "stages.png", dpi=110)


def sigma(rows: pd.DataFrame, output: Path) -> None:
    rows = at(rows, attack="noise_aggregation")
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
    fixed = at(rows, sigma_scale="fixed", **DEFAULT)
    for t, part in fixed.groupby("t"):
        part = part.sort_values("sigma")
        axes[0].plot(part.sigma, part.auc, marker="o", markersize=3, label=f"t = {t}")
    axes[0].set(xlabel="sigma (fixed)", xscale="log", ylabel="AUC")
    axes[0].legend(fontsize=7)
    for (scale, value), name in READINGS.items():
        part = at(rows, t=80, sigma_scale=scale, sigma=value, stride=10, metric="l2").sort_values("k")
        axes[1].plot(part.k, part.auc, marker="o", markersize=3, label=name)
        part = at(rows, t=80, sigma_scale=scale, sigma=value, k=3, metric="l2").sort_values("stride")
        axes[2].plot(part.stride, part.auc, marker="o", markersize=3, label=name)
    axes[1].set(xlabel="k (t = 80, stride 10)")
    axes[2].set(xlabel="stride (t = 80, k = 3)")
    axes[1].legend(fontsize=7)
    for axis in axes:
        axis.axhline(0.5, color="grey", linewidth=0.8)
    figure.savefig(output / "sigma.png", dpi=110)


def norms(rows: pd.DataFrame, output: Path) -> None:
    rows = at(rows, attack="secmi", stride=10)
    models = list(dict.fromkeys(rows.model))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for i, model in enumerate(models):
        part, colour = at(rows, model=model).sort_values("t"), f"C{i}"
        axes[0].plot(part.t, part.members / part.held_out, color=colour, label=f"{part.steps.iloc[0]} steps")
        axes[1].plot(part.t, part.auc, color=colour)
    axes[0].set(xlabel="t along SecMI's walk", ylabel="mean |eps|: members ÷ held out")
    axes[1].set(xlabel="t", ylabel="AUC of SecMI's t-error")
    axes[0].axhline(1, color="grey", linewidth=0.8)
    axes[1].axhline(0.5, color="grey", linewidth=0.8)
    axes[0].legend(fontsize=7)
    figure.savefig(output / "norms.png", dpi=110)


def markdown(table: pd.DataFrame) -> str:
    """A table of AUCs as GitHub Markdown."""
    named = lambda key: " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
    lines = ["| | " + " | ".join(map(named, table.columns)) + " |", "| :-- |" + " --: |" * len(table.columns)]
    rows = [
        [named(key), *("" if value != value else f"{value:.3f}" for value in row)]
        for key, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def tables(followed: pd.DataFrame, full: pd.DataFrame) -> None:
    columns = {}
    for attack in ("sima", "loss", "secmi"):
        columns[attack] = at(followed, attack=attack, t=80).set_index("steps").auc
    for (scale, value), name in READINGS.items():
        columns[name] = at(followed, attack="noise_aggregation", t=80, sigma_scale=scale, sigma=value, **DEFAULT).set_index("steps").auc
    print(markdown(pd.DataFrame(columns).sort_index()))
    print()
    part = at(full, attack="noise_aggregation", **DEFAULT)
    print(markdown(part.pivot_table(index=["sigma_scale", "sigma"], columns="t", values="auc")))
    print()
    part = at(full, attack="noise_aggregation", t=80, k=5, stride=10)
    print(markdown(part.pivot_table(index=["sigma_scale", "sigma"], columns="metric", values="auc")))


def main(walks: Path, full: Path, output: Path) -> None:
    followed, whole = (pd.read_csv(path) for path in (walks, full))
    stages(followed, output)
    sigma(whole, output)
    norms(followed, output)
    tables(followed, whole)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
