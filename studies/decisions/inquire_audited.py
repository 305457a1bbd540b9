"""Inquiries on the scores of a finished audit, many times over: python studies/decisions/inquire_audited.py RUN [--draws 40]

Draws members as images in question, and held-out images as if they were members, against 200 other held-out images of a run that has
complexity.parquet, and prints how often the set is found at 0.05. Needs no model; held-out images must be found in at most 5 %.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from diffleak.data.complexity import NAMES
from diffleak.records.run_folder import read_audit, read_samples
from diffleak.records.scores import Scores, read_columns
from diffleak.stats.calibration import features
from diffleak.stats.choosing import chooser
from diffleak.stats.inquiry import cut_and_test

CONTROLS = 200

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=40)
    asked = parser.parse_args()
    samples, record = read_samples(asked.run), read_audit(asked.run)
    rows = {image_id: row for row, image_id in enumerate(samples.ids)}
    parts = []
    for result in (each for each in record.results if each.plain and each.rule is None):
        timesteps, statistic = read_columns(asked.run, result.attack, rows) or ((), np.empty((0, 0)))
        parts.append(Scores(result.attack, result.direction, timesteps, samples.ids, statistic))
    table = pq.read_table(asked.run / "complexity.parquet")
    complexity = np.column_stack([table.column(name).to_numpy() for name in NAMES])
    print(f"{'in question':>22}{'draws':>7}{'found':>7}{'smallest p':>12}{'median AUC':>12}")
    for size, side in ((200, False), (20, True), (50, True), (200, True)):
        p_values, aucs = [], []
        for draw in range(asked.draws):
            rng = np.random.default_rng(draw)
            members, heldout = (rng.permutation(np.flatnonzero(samples.member == each)) for each in (True, False))
            these = np.concatenate([(members if side else heldout[CONTROLS:])[:size], heldout[:CONTROLS]])
            question, keys = np.arange(len(these)) < size, tuple(f"{draw}/{row}" for row in these)
            choose = chooser([scores.taken(these) for scores in parts], features(complexity[these]), complexity[these])
            found = cut_and_test(keys, question, choose, draw, 11)
            p_values.append(found.p_value)
            aucs.append(found.auc.value)
        what = f"{size} {'members' if side else 'held out'}"
        print(
            f"{what:>22}{asked.draws:>7}{np.mean(np.array(p_values) <= 0.05):>7.2f}{min(p_values):>12.2g}{np.median(aucs):>12.3f}",
            flush=True,
        )
