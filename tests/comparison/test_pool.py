"""`compare --pool`: every attack over the seeds of an entry; and the tables for papers of a comparison."""

import csv
import json

import numpy as np
import pytest
from fixtures.commands import call, refused
from fixtures.runs import gaussian, ids_of, make_run

from diffleak.comparison.compare import compare
from diffleak.records.comparison import Comparison
from diffleak.stats.pooling import pooled

pytestmark = pytest.mark.usefixtures("undrawn")

ATTACKS = ("sima", "loss")


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """Three seeds of an undefended recipe, and of a defended one on which sima alone is weak."""
    folder, sides = tmp_path_factory.mktemp("seeds"), ids_of(250, 250)
    runs = {"plain": (1.2, 0.6), "defended_10%": (0.1, 0.6)}
    for name, (sima, loss) in runs.items():
        for seed in range(3):
            make_run(folder / f"{name}-{seed}", {"sima": gaussian(sima + 0.1 * seed), "loss": gaussian(loss)}, *sides, seed=seed)
    return [f"{name}={','.join(str(folder / f'{name}-{seed}') for seed in range(3))}" for name in runs]


def test_every_attack_is_pooled_by_itself_and_not_the_worst_against_the_worst(entries):
    record = compare(entries, pool=True)
    assert [(p.attack, p.entry, p.seeds) for p in record.pooled] == [(a, e.name, 3) for a in ATTACKS for e in record.entries]
    for p in record.pooled:
        entry = next(e for e in record.entries if e.name == p.entry)
        own = [r for r in entry.results if r.attack == p.attack]
        assert p.auc == pooled([r.auc for r in own]).mean and p.auc.value == pytest.approx(np.mean([r.auc.value for r in own]))
        assert p.auc_spread == pytest.approx(np.std([r.auc.value for r in own], ddof=1))
        assert p.auc.high - p.auc.low > np.mean([r.auc.high - r.auc.low for r in own]), "the seed is counted beside the images"
        assert (p.difference is None) == (p.entry == "plain")
    sima, loss = (next(p for p in record.pooled if (p.attack, p.entry) == (a, "defended_10%")) for a in ATTACKS)
    assert sima.difference.high < -0.1 and loss.difference.low < 0 < loss.difference.high
    assert "--pool" in record.command


def test_the_page_the_terminal_and_the_tables_have_the_means(entries, tmp_path, capsys):
    files = ["--latex", tmp_path / "a" / "t.tex", "--csv", tmp_path / "t.csv"]
    code, out, _ = call(capsys, "compare", *entries, "--pool", *files, "-o", tmp_path / "out")
    record = Comparison.model_validate_json((tmp_path / "out" / "compare.json").read_text())
    mean = f"{record.pooled[0].auc.value:.3f}"
    assert code == 0 and "Over seeds" in out and mean in out
    assert "Over seeds" in (tmp_path / "out" / "compare.html").read_text()
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [(row["attack"], row["entry"]) for row in rows] == [(p.attack, p.entry) for p in record.pooled]
    assert float(rows[1]["auc_difference_high"]) == record.pooled[1].difference.high and rows[0]["auc_difference"] == ""
    text = (tmp_path / "a" / "t.tex").read_text()
    assert r"defended\_10\%" in text and mean in text and text.count(r"\\") == 1 + len(rows)


def test_without_pooling_the_tables_have_a_row_a_run(entries, tmp_path, capsys):
    code, out, _ = call(capsys, "compare", *entries, "--latex", tmp_path / "t.tex", "--csv", tmp_path / "t.csv", "--json")
    assert code == 0 and json.loads(out)["pooled"] == []
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert len(rows) == 12 and rows[0]["run"].endswith("plain-0")
    assert (tmp_path / "t.tex").read_text().count(r"\\") == 13


def test_an_entry_of_one_run_has_no_seeds_to_pool(entries, capsys):
    alone = f"alone={entries[1].partition('=')[2].split(',')[0]}"
    assert "each entry needs at least two runs, NAME=RUN,RUN; alone has one" in refused(capsys, "compare", entries[0], alone, "--pool")
