"""The results of an audit for other programs: rows, a data frame, CSV and LaTeX that compiles whatever the names are."""

import csv
import io
import re
import shutil
import subprocess

import pytest
from fixtures.reports import audit_of

from diffleak.auditing.run import Audit
from diffleak.records.audit import RateAtFPR
from diffleak.report.media.latex import escape, results_latex, tabular
from diffleak.report.media.results_csv import results_csv
from diffleak.report.results import rows, variant

NAMES = (r"a_b & 50% $x$ #1 {y} ~z ^w \end{table}", "[h] first", '<a|b> "c"', "naïve ß", "猫\N{CAT FACE}\n\x07é", "%", "\\")


@pytest.fixture(scope="module")
def made():
    return audit_of({"sima": 1.0, "loss": 0.3}, 300)


def test_a_row_a_result_with_the_numbers_of_the_record(made):
    record, samples = made
    frame = Audit(record, samples, ()).results_frame()
    assert list(frame.attack) == [r.attack for r in record.results]
    assert list(frame.columns) == list(rows(record)[0])
    assert {"attack", "variant", "auc", "auc_low", "auc_high", "tpr_at_1pct", "queries"} <= set(frame.columns)
    for row, result in zip(rows(record), record.results, strict=True):
        assert (row["auc"], row["auc_low"], row["tpr_at_1pct_high"]) == (result.auc.value, result.auc.low, result.tpr(0.01).high)
        assert (row["members"], row["oracle_auc"], row["variant"]) == (result.n_members, result.oracle.auc, "plain")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mask": "influence:0.4"}, "influence:0.4"),
        ({"variant": "excess"}, "excess"),
        ({"variant": "excess", "complexity": "png"}, "excess calibrated"),
        ({"complexity": "png"}, "calibrated"),
        ({"attack": "combined"}, "combined"),
    ],
)
def test_variants_have_names(made, changes, name):
    assert variant(made[0].results[0].model_copy(update=changes)) == name


def test_csv_reads_back_as_the_rows(made):
    found = list(csv.DictReader(io.StringIO(results_csv(made[0]))))
    expected = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows(made[0])]
    assert found == expected


def nested(text: str) -> bool:
    """True where every group and environment is closed in the order that it was opened, and no special character is bare."""
    plain = re.sub(r"(?m)^%.*\n", "", text).replace(r"\\", "")
    depth = 0
    for sign in re.sub(r"\\[{}]", "", plain):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return False
    bare = re.sub(r"\\[&%$#_]", "", plain)
    begun, ended = re.findall(r"\\begin\{(\w+)\}", plain), re.findall(r"\\end\{(\w+)\}", plain)
    return depth == 0 and begun == ended[::-1] and not re.search(r"[%$#_^~]", bare)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind_are_escaped(name):
    text = tabular(("Attack", "AUC"), [(name, "0.5"), ("[x]", "0.6")], name)
    assert nested(text)
    assert all(ord(c) < 0x180 for c in text) and text[-12:] == r"\end{table}" + "\n"
    body = [line.strip() for line in text.splitlines() if line.rstrip().endswith(r"\\")]
    assert all(line.startswith("{} ") and len(re.findall(r"(?<!\\)&", line)) == 1 for line in body), "two cells each"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tables_compile_whatever_the_names_are(made, tmp_path):
    tables = [results_latex(made[0]), *(tabular(("Attack", "AUC"), [(name, "0.5"), ("[x]", "0.6")], name) for name in NAMES)]
    begin = "\\documentclass{article}\\usepackage{booktabs}\\usepackage[T1]{fontenc}\n\\begin{document}\n"
    (tmp_path / "tables.tex").write_text(begin + "\n".join(tables) + "\\end{document}\n", encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0 and "Output written" in done.stdout, done.stdout[-2000:]


def test_every_row_of_the_table_of_an_audit_has_as_many_cells_as_there_are_columns_and_the_caption_has_no_path(made):
    record = made[0].model_copy(update={"plan": made[0].plan.model_copy(update={"model": "/home/me/secret/ddpm"})})
    text = results_latex(record)
    (columns,) = re.findall(r"\\begin\{tabular\}\{(l+)\}", text)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    assert "inference on ddpm:" in text and "secret" not in text


def test_escaping_keeps_what_needs_none():
    assert (
        escape("sima_mc(m=10)") == r"sima\_mc(m=10)"
        and escape("50 %") == r"50 \%"
        and escape("é") == "é"
        and escape("猫") == r"\textbackslash{}u732b"
    )


def test_the_table_of_an_audit_has_a_row_a_result_and_says_what_is_not_estimable(made):
    record = made[0]
    text = results_latex(record)
    first = record.results[0]
    assert nested(text) and text.count(r"\\") == 1 + len(record.results)
    assert f"{first.auc.value:.3f} [{first.auc.low:.3f}, {first.auc.high:.3f}]" in text
    lost = first.model_copy(update={"tpr_at_fpr": (RateAtFPR(fpr=0.01, support="none", reason="few"),)})
    assert "n/e" in results_latex(record.model_copy(update={"results": (lost,)}))
