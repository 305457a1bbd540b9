"""`diffleak metrics` of files that people have: the right numbers, or what the file looks like and what is taken instead."""

import datetime
import gzip
import json
import os
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.commands import call, refused

from diffleak.auditing.score_file import evaluate_file
from diffleak.errors import UserError
from diffleak.stats.metrics import auc_estimate

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS = [(f"i{k}", k % 2, round(0.01 * k + 0.3 * (k % 2), 2)) for k in range(40)]
TEXT = "id,member,score\n" + "".join(f"{i},{m},{s}\n" for i, m, s in ROWS)
AUC = auc_estimate(np.array([s for _, m, s in ROWS if m]), np.array([s for _, m, s in ROWS if not m]))


def refusal(path, **options):
    with pytest.raises(UserError) as error:
        evaluate_file(path, **options)
    said = str(error.value)
    assert "\n" not in said and len(said.replace(str(path), "")) <= 400
    return said


def parquet(path, **columns):
    ids, members, scores = zip(*ROWS, strict=True)
    given = {"id": pa.array(ids), "member": pa.array(members), "score": pa.array(scores)} | columns
    pq.write_table(pa.table(given), path)
    return path


KINDS = {
    "a.jsonl": (b"{}", "got a .jsonl file"),
    "a.pth": (b"PK\x03\x04", "got a .pth file"),
    "a.csv.gz": (gzip.compress(TEXT.encode()), "got a .gz file"),
    "gz.csv": (gzip.compress(TEXT.encode()), "looks like a gzip archive: write the scores as CSV"),
    "zip.csv": (b"PK\x03\x04" + b"\0" * 50, "looks like a ZIP archive, as .npz, .pth and .xlsx files are"),
    "json.txt": (json.dumps([{"id": "a", "member": 1}]).encode(), "looks like JSON"),
    "pickle.csv": (b"\x80\x04\x95abcdefgh", "looks like pickled Python"),
    "utf16.csv": (TEXT.encode("utf-16"), "cannot be read (it is UTF-16: save it as UTF-8)"),
    "latin.csv": (TEXT.replace("i3", "é").encode("latin-1"), "cannot be read (it is not UTF-8 (byte 0xe9 at "),
    "no header.csv": (
        TEXT.partition("\n")[2].encode(),
        "must begin with the names of its columns, id,member,score; it begins with i0, 0, 0.0",
    ),
    "semicolons.csv": (TEXT.replace(",", ";").replace(".", ",").encode(), "must be separated by commas, with a point in decimals"),
    "quoted.csv": (TEXT.replace("0.01", '"0,01"').replace("0.31", '"0,31"').encode(), "score must hold numbers; got '0,31' in row 2"),
    "a note.csv": (b"# of yesterday\n" + TEXT.encode(), "its first line is a comment: '# of yesterday'"),
    "empty.csv": (b"", "cannot be read (it is empty)"),
    "empty.parquet": (b"", "cannot be read ("),
    "header.csv": (b"id,member,score\n", "must hold members and non-members; it has 0 and 0"),
    "no id.csv": (TEXT.replace("i3,", ",").encode(), "must have an id in every row; 1 has none (first: row 4)"),
    "twice.csv": (TEXT.replace("i3,", "i4,").encode(), "must name each id once; it repeats 1 (first: i4)"),
    "huge.csv": (b"x" * 10_000_000 + b"\n1\n", "cannot be read (field larger than field limit"),
    "wide.csv": (b"id," * 1_000_000 + b"x\n", "must have each column once; id is there twice"),
    "long id.csv": (TEXT.replace("i3,", f"{'y' * 5000},").replace("i4,", f"{'y' * 5000},").encode(), f"(first: {'y' * 59}…)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_or_form_is_one_line_that_says_what_it_looks_like(tmp_path, name):
    content, said = KINDS[name]
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def test_a_pipe_and_a_run_folder_are_named_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "p.csv")
    assert f"found a pipe at {tmp_path / 'p.csv'}" in refusal(tmp_path / "p.csv")
    (tmp_path / "samples.csv").write_text(TEXT)
    assert refusal(tmp_path).endswith(f"found a folder at {tmp_path}: give {tmp_path / 'samples.csv'}")


SAME = {
    "dictionary": {"id": pa.array([i for i, _, _ in ROWS]).dictionary_encode()},
    "large texts": {"id": pa.array([i for i, _, _ in ROWS], pa.large_string())},
    "times as ids": {"id": pa.array([datetime.datetime(2020, 1, 1) + datetime.timedelta(k) for k in range(40)])},
    "decimals": {"score": pa.array([Decimal(str(s)) for _, _, s in ROWS])},
    "texts": {"score": pa.array([str(s) for _, _, s in ROWS]), "member": pa.array([str(bool(m)) for _, m, _ in ROWS])},
    "truth values": {"member": pa.array([bool(m) for _, m, _ in ROWS])},
    "half precision of no matter": {"member": pa.array([float(m) for _, m, _ in ROWS], pa.float32())},
    "lists and structs in other columns": {"tags": pa.array([[1]] * 40), "box": pa.array([{"x": 1}] * 40), "empty": pa.nulls(40)},
}


@pytest.mark.parametrize("kind", SAME)
def test_a_parquet_file_gives_the_right_numbers_whatever_types_its_columns_have(tmp_path, kind):
    assert evaluate_file(parquet(tmp_path / "a.parquet", **SAME[kind])).auc == AUC
    (tmp_path / "a.parquet").rename(tmp_path / "a.pq")
    assert evaluate_file(tmp_path / "a.pq").auc == AUC


def test_scores_that_are_truth_values_count_as_one_and_zero_in_either_kind_of_file(tmp_path):
    guesses = [s > 0.3 for _, _, s in ROWS]
    (tmp_path / "a.csv").write_text("id,member,score\n" + "".join(f"{i},{m},{g}\n" for (i, m, _), g in zip(ROWS, guesses, strict=True)))
    expected = auc_estimate(*(np.array([float(g) for (_, m, _), g in zip(ROWS, guesses, strict=True) if m == side]) for side in (1, 0)))
    assert evaluate_file(tmp_path / "a.csv").auc == expected
    assert evaluate_file(parquet(tmp_path / "a.parquet", score=pa.array(guesses))).auc == expected


NOT_READ = {
    "lists": ({"score": pa.array([[1.0]] * 40)}, "must hold a text or a number in every row; score holds list<element: double>"),
    "structs": ({"id": pa.array([{"a": 1}] * 40)}, "id holds struct<a: int64>"),
    "NaN": ({"score": pa.array([float("nan")] * 40)}, "scores must be finite numbers; 20 of 20 member scores are not"),
    "no scores": ({"score": pa.nulls(40)}, "scores must be finite numbers; 20 of 20 member scores are not"),
    "times as scores": (
        {"score": pa.array([datetime.datetime(2020, 1, 1)] * 40)},
        "score must hold numbers; got '2020-01-01 00:00:00' in row 1",
    ),
    "null ids": ({"id": pa.array(["a", None] * 20)}, "must have an id in every row; 20 have none (first: row 2)"),
    "NaN ids": ({"id": pa.array([float("nan"), *map(float, range(39))])}, "must have an id in every row; 1 has none (first: row 1)"),
    "null members": ({"member": pa.array([1, 0, None] + [1] * 37)}, "member must be 0 or 1; got nothing in row 3"),
    "ids of other bytes": ({"id": pa.array([b"\xff"] * 40).view(pa.string())}, "the column id of"),
}


@pytest.mark.parametrize("kind", NOT_READ)
def test_a_parquet_column_that_holds_no_scores_is_one_line(tmp_path, kind):
    columns, said = NOT_READ[kind]
    assert said in refusal(parquet(tmp_path / "a.parquet", **columns))


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_scores_the_wrong_way_round_are_asked_about_on_stderr_in_either_form(capsys, tmp_path, form):
    (tmp_path / "s.csv").write_text("\n".join(["id,member,score", *(f"{i},{m},{-s}" for i, m, s in ROWS)]))
    code, out, err = call(capsys, "metrics", tmp_path / "s.csv", *form)
    assert code == 0 and out and "are lower scores those of members?" in err
    assert not form or json.loads(out)["auc"]["high"] < 0.5


def test_the_command_refuses_a_foreign_file_in_one_line(capsys, tmp_path):
    (tmp_path / "gz.csv").write_bytes(KINDS["gz.csv"][0])
    assert "looks like a gzip archive" in refused(capsys, "metrics", tmp_path / "gz.csv")
