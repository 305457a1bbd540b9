"""The files under scores/: what they hold on disk, and that they are read back as they were written."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffleak.errors import UserError
from diffleak.records.base import FORMER_NAME, Estimate
from diffleak.records.scores import ChunkMeta, Spent, chunk_file, plan_id, read_chunk, read_columns, read_spent, write_chunk
from diffleak.work.reading import Unreadable

PLAN = plan_id(Estimate(value=1.0))
META = ChunkMeta(PLAN, 12, {"k": 2})
LABELS, TIMESTEPS = ("sima", "sima[excess]"), (10, 30, 20)


def written(folder: Path, chunk: int, ids: tuple[str, ...]) -> tuple[Path, np.ndarray]:
    statistic = np.random.default_rng(chunk).normal(size=(len(LABELS), len(ids), len(TIMESTEPS)))
    path = chunk_file(folder, chunk, 0, "sima")
    write_chunk(path, ids, LABELS, TIMESTEPS, statistic, META, Spent(0.5, 3))
    return path, statistic


def test_a_score_file_is_a_table_of_a_row_per_label_image_and_timestep_with_its_plan_in_the_metadata(tmp_path):
    path, statistic = written(tmp_path, 3, ("a", "b"))
    assert path == tmp_path / "scores" / "chunk-00003-00-sima.parquet"
    frame, schema = pd.read_parquet(path), pq.read_schema(path)
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "id": "string",
        "attack": "string",
        "timestep": "int32",
        "statistic": "double",
    }
    said = {"plan": PLAN, "queries": 12, "parameters": {"k": 2}}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode() + statistic.tobytes()).hexdigest()
    assert json.loads(schema.metadata[b"diffleak"]) == {**said, "sha256": digest}
    assert (tmp_path / "seconds" / "chunk-00003-00-sima.txt").read_text() == "0.5000 3 0 0\n" and read_spent(path) == Spent(0.5, 3)
    rows = [(i, label, t) for label in LABELS for i in ("a", "b") for t in TIMESTEPS]
    assert list(frame[["id", "attack", "timestep"]].itertuples(index=False, name=None)) == rows
    assert frame["statistic"].tolist() == [statistic[LABELS.index(a), "ab".index(i), TIMESTEPS.index(t)] for i, a, t in rows]


def test_a_score_file_is_read_back_as_written_and_refused_where_it_is_of_other_work(tmp_path):
    path, statistic = written(tmp_path, 0, ("a", "b"))
    found, meta = read_chunk(path, PLAN, ("a", "b"), LABELS, TIMESTEPS)
    assert replace(meta, sha256="") == META and np.array_equal(found, statistic)
    with pytest.raises(Unreadable, match="it belongs to another plan"):
        read_chunk(path, PLAN[::-1], ("a", "b"), LABELS, TIMESTEPS)
    for ids, labels, timesteps in (
        (("a", "c"), LABELS, TIMESTEPS),
        (("a", "b"), LABELS[::-1], TIMESTEPS),
        (("a", "b"), LABELS, (10, 30, 21)),
    ):
        with pytest.raises(Unreadable, match="its images, labels, timesteps or checksum are not those of its plan"):
            read_chunk(path, PLAN, ids, labels, timesteps)
    with pytest.raises(Unreadable, match="cannot reshape"):
        read_chunk(path, PLAN, ("a", "b", "c"), LABELS, TIMESTEPS)


def test_the_same_scores_are_the_same_bytes_however_long_they_took(tmp_path):
    first, second = (chunk_file(tmp_path / name, 0, 0, "sima") for name in "ab")
    for path, seconds in ((first, 0.5), (second, 7.0)):
        write_chunk(path, ("a",), ("sima",), (1, 2), np.ones((1, 1, 2)), META, Spent(seconds))
    assert first.read_bytes() == second.read_bytes() and read_spent(second) == Spent(7.0)


def test_no_flipped_bit_of_a_score_file_changes_what_is_read(tmp_path):
    """Every byte once; bits of what nothing reads, such as the name of the writer, may differ."""
    path, statistic = written(tmp_path, 0, ("a", "b"))
    content, meta = path.read_bytes(), read_chunk(path, PLAN, ("a", "b"), LABELS, TIMESTEPS)[1]
    refused = 0
    for place in range(len(content)):
        broken = bytearray(content)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        try:
            found, told = read_chunk(path, PLAN, ("a", "b"), LABELS, TIMESTEPS)
        except Unreadable:
            refused += 1
        else:
            assert told == meta and np.array_equal(found, statistic)
    assert refused > len(content) // 2


def test_scores_that_are_not_finite_are_damage(tmp_path):
    path = chunk_file(tmp_path, 0, 0, "sima")
    write_chunk(path, ("a",), ("sima",), (1, 2), np.array([[[1.0, np.nan]]]), META, Spent(0.5, 3))
    with pytest.raises(Unreadable, match="its statistics are not finite"):
        read_chunk(path, PLAN, ("a",), ("sima",), (1, 2))


def test_the_columns_of_a_label_are_those_of_all_chunks_in_the_rows_asked_for_and_sorted_by_timestep(tmp_path):
    (_, first), (_, second) = written(tmp_path, 0, ("a", "b")), written(tmp_path, 1, ("c",))
    timesteps, statistic = read_columns(tmp_path, "sima[excess]", {"c": 0, "a": 1, "b": 2})
    assert timesteps == (10, 20, 30)
    np.testing.assert_array_equal(statistic, np.concatenate([second[1], first[1]])[:, [0, 2, 1]])
    assert read_columns(tmp_path, "loss", {"a": 0, "b": 1, "c": 2}) is None
    with pytest.raises(UserError, match="lacks scores of sima for some images, or has some of other images; repeat its audit command"):
        read_columns(tmp_path, "sima", {"a": 0, "b": 1, "c": 2, "d": 3})
    with pytest.raises(UserError, match="lacks scores of sima for some images, or has some of other images; repeat its audit command"):
        read_columns(tmp_path, "sima", {"a": 0, "b": 1})


def test_a_flipped_number_among_the_scores_of_another_run_is_refused_and_files_of_0_1_have_no_checksum(tmp_path):
    path, statistic = written(tmp_path, 0, ("a", "b"))
    table = pq.read_table(path)
    changed = table.set_column(3, "statistic", pa.array(statistic.ravel() + 1e-9))
    pq.write_table(changed, path)
    with pytest.raises(UserError, match=r"chunk-00000-00-sima.parquet cannot be read \(its checksum is not that of its content\)"):
        read_columns(tmp_path, "sima", {"a": 0, "b": 1})
    pq.write_table(table.replace_schema_metadata({FORMER_NAME.encode(): b"{}"}), path)
    np.testing.assert_array_equal(read_columns(tmp_path, "sima", {"a": 0, "b": 1})[1], statistic[0][:, [0, 2, 1]])


@pytest.mark.parametrize("column", range(4))
def test_a_table_of_other_columns_among_the_scores_of_another_run_is_refused(tmp_path, column):
    written(tmp_path, 0, ("a", "b"))
    path, _ = written(tmp_path, 1, ("c",))
    table = pq.read_table(path)
    for other in (
        table.remove_column(column),
        table.set_column(column, table.column_names[column], pa.array(["x"] * len(table)).cast("binary")),
    ):
        pq.write_table(other, path)
        with pytest.raises(UserError, match=r"chunk-00001-00-sima.parquet cannot be read \(its columns are not those of scores\)"):
            read_columns(tmp_path, "sima", {"a": 0, "b": 1, "c": 2})


def test_seconds_of_an_earlier_version_are_read(tmp_path):
    path, _ = written(tmp_path, 0, ("a", "b"))
    (file,) = (tmp_path / "seconds").iterdir()
    file.write_text("2.5000\n")
    assert read_spent(path) == Spent(2.5)


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "1e999", "", "x", "1.0 -1", "1.0 inf", "1.0 x"])
def test_seconds_that_no_work_takes_count_as_none(tmp_path, text):
    path, _ = written(tmp_path, 0, ("a", "b"))
    (file,) = (tmp_path / "seconds").iterdir()
    file.write_text(text)
    assert read_spent(path) == Spent()
