"""Draws the study of attacks that walk with DDIM: `python studies/sharper/figure.py WALKS.csv FILE.png`, rows of walks.py, of the model
with most steps.

Left, noise aggregation by its reading of sigma; middle, SecMI along its walk beside SimA and the loss; right, the mean norm of the
predictions, along SecMI's walk and at noised images that no walk has touched.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

READINGS = {("fixed", 0.02): "fixed 0.02", ("fixed", 0.1): "fixed 0.1", ("relative", 0.1): "relative 0.1", ("schedule", 1.0): "schedule"}


def main(walks: Path, output: Path) -> None:
    rows = pd.read_csv(walks)
    rows = rows[rows.steps == rows.steps.max()]
    figure, (readings, aucs, norms) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    aggregation = rows[(rows.attack == "noise_aggregation") & (rows.metric == "l2") & (rows.k == 5) & (rows.stride == 10)]
    for (scale, sigma), name in READINGS.items():
        part = aggregation[(aggregation.sigma_scale == scale) & (aggregation.sigma == sigma)].sort_values("t")
        readings.plot(part.t, part.auc, marker="o", label=name)
    readings.set(title="noise aggregation, l2", xlabel="t", ylabel="AUC")
    for attack in ("secmi", "sima", "loss"):
        part = rows[rows.attack == attack].sort_values("t")
        aucs.plot(part.t, part.auc, marker=".", label=attack)
    aucs.set(title="SecMI along its walk", xlabel="t", ylabel="AUC")
    for attack, name in (("secmi", "along the walk"), ("loss", "at noised images")):
        part = rows[rows.attack == attack].sort_values("t")
        for side, style in (("members", "-"), ("held_out", "--")):
            norms.plot(part.t, part[side], style, marker=".", label=f"{name}, {side.replace('_', ' ')}")
    norms.set(title="mean norm of the predicted noise", xlabel="t", ylim=(40, 56))
    for axis in (readings, aucs):
        axis.axhline(0.5, color="grey", linewidth=0.8)
        axis.set_ylim(0, 1.02)
    for axis in (readings, aucs, norms):
        axis.legend(fontsize=7)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
