"""The whole grid of noise aggregation and SecMI: `python studies/sharper/grid.py GRID.csv.gz... [-o FILE.png]`, rows of walks.py --full.

Prints a table for each file: the median AUC over all other settings and, in brackets, the share of them below one half, by
each setting and by the timestep at which the walk ends; columns are readings of sigma. The same for every sigma and, of SecMI, by stride.
Nothing is chosen and no score is turned. The picture has the medians.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

READINGS = {("fixed", 0.02): "fixed 0.02", ("fixed", 0.1): "fixed 0.1", ("relative", 0.1): "relative 0.1", ("schedule", 1.0): "schedule 1"}
SETTINGS = ("t", "stride", "k", "metric", "end")
ENDS = {"0": -1, "5 to 20": 0, "25 to 60": 20, "above 60": 60}  # the timestep at which a walk ends: name, and what it is above


def grid(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of noise aggregation, with columns `reading` of sigma and `end` of the walk, and those of SecMI."""
    rows = pd.read_csv(path)
    aggregation = rows[rows.attack == "noise_aggregation"].copy()
    aggregation["reading"] = [f"{scale} {sigma:g}" for scale, sigma in zip(aggregation.sigma_scale, aggregation.sigma, strict=True)]
    aggregation[["stride", "k"]] = aggregation[["stride", "k"]].astype(int)
    end = aggregation.t - (aggregation.k - 1) * aggregation.stride
    aggregation["end"] = pd.cut(end, [*ENDS.values(), 1000], labels=list(ENDS))
    return aggregation, rows[rows.attack == "secmi"]


def table(path: Path) -> str:
    aggregation, secmi = grid(path)
    wide = aggregation[[key in READINGS for key in zip(aggregation.sigma_scale, aggregation.sigma, strict=True)]]
    columns = list(READINGS.values())
    lines = [f"| {aggregation.model.iloc[0]} | {' | '.join(columns)} |", f"| :-- |{' --: |' * len(columns)}"]
    for setting in SETTINGS:
        for value, part in wide.groupby(setting, observed=True):
            lines.append(_row(f"{setting} = {value}", [part[part.reading == name].auc for name in columns]))
    lines.append(_row("all", [wide[wide.reading == name].auc for name in columns]))
    of_sigma = [f"{name} {_cell(part.auc)}" for name, part in aggregation.groupby("reading")]
    of_stride = [f"stride {stride:.0f} {_cell(part.auc)}" for stride, part in secmi.groupby("stride")]
    return "\n".join([*lines, "", f"noise aggregation: {', '.join(of_sigma)}", f"secmi: {', '.join(of_stride)}"])


def _row(name: str, columns: list[pd.Series]) -> str:
    return f"| {name} | {' | '.join(map(_cell, columns))} |"


def _cell(auc: pd.Series) -> str:
    """The median, and the share of settings in which members look like held-out images or less so."""
    return f"{auc.median():.2f} ({100 * (auc < 0.5).mean():.0f} %)"


def draw(paths: list[Path], output: Path) -> None:
    figure, axes = plt.subplots(len(paths), len(SETTINGS), figsize=(14, 3 * len(paths)), layout="constrained", squeeze=False)
    for path, row in zip(paths, axes, strict=True):
        aggregation, _ = grid(path)
        for axis, setting in zip(row, SETTINGS, strict=True):
            for (scale, sigma), name in READINGS.items():
                part = aggregation[(aggregation.sigma_scale == scale) & (aggregation.sigma == sigma)]
                medians = part.groupby(setting, observed=True).auc.median()
                axis.plot(medians.index.astype(str), medians.values, marker="o", label=name)
            axis.axhline(0.5, color="grey", linewidth=0.8)
            axis.set(ylim=(0, 1.02), xlabel=setting)
        row[0].set_ylabel(f"{aggregation.model.iloc[0]}\nmedian AUC")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(output, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grids", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    for path in given.grids:
        print(table(path), end="\n\n")
    if given.output:
        draw(given.grids, given.output)


if __name__ == "__main__":
    main()
