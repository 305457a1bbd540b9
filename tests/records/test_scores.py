"""The files under scores/: what they hold on disk, and that they are read back as they were written."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from diffleak.errors import UserError
from diffleak.records.base import Estimate
from diffleak.records.scores import ChunkMeta, chunk_file, plan_id, read_chunk, read_columns, write_chunk

PLAN = plan_id(Estimate(value=1.0))
META = ChunkMeta(PLAN, 12, 0.5, {"k": 2})
LABELS, TIMESTEPS = ("sima", "sima[excess]"), (10, 30, 20)


def written(folder: Path, chunk: int, ids: tuple[str, ...]) -> tuple[Path, np.ndarray]:
    statistic = np.random.default_rng(chunk).normal(size=(len(LABELS), len(ids), len(TIMESTEPS)))
    path = chunk_file(folder, chunk, 0, "sima")
    write_chunk(path, ids, LABELS, TIMESTEPS, statistic, META)
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
    assert json.loads(schema.metadata[b"diffleak"]) == {"plan": PLAN, "queries": 12, "seconds": 0.5, "parameters": {"k": 2}}
    rows = [(i, label, t) for label in LABELS for i in ("a", "b") for t in TIMESTEPS]
    assert list(frame[["id", "attack", "timestep"]].itertuples(index=False, name=None)) == rows
    assert frame["statistic"].tolist() == [statistic[LABELS.index(a), "ab".index(i), TIMESTEPS.index(t)] for i, a, t in rows]


def test_a_score_file_is_read_back_as_written_and_refused_where_it_is_of_another_plan_or_size_or_damaged(tmp_path):
    path, statistic = written(tmp_path, 0, ("a", "b"))
    found, meta = read_chunk(path, PLAN, (2, 2, 3))
    assert meta == META and np.array_equal(found, statistic)
    for plan, shape in ((PLAN[::-1], (2, 2, 3)), (PLAN, (2, 3, 3))):
        with pytest.raises(UserError, match=r"chunk-00000-00-sima.parquet belongs to another plan; delete it"):
            read_chunk(path, plan, shape)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"chunk-00000-00-sima.parquet is damaged; delete it"):
        read_chunk(path, PLAN, (2, 2, 3))


def test_the_columns_of_a_label_are_those_of_all_chunks_in_the_rows_asked_for_and_sorted_by_timestep(tmp_path):
    (_, first), (_, second) = written(tmp_path, 0, ("a", "b")), written(tmp_path, 1, ("c",))
    timesteps, statistic = read_columns(tmp_path, "sima[excess]", {"c": 0, "a": 1, "b": 2})
    assert timesteps == (10, 20, 30)
    np.testing.assert_array_equal(statistic, np.concatenate([second[1], first[1]])[:, [0, 2, 1]])
    assert read_columns(tmp_path, "loss", {"a": 0, "b": 1, "c": 2}) is None
    with pytest.raises(UserError, match="lacks scores of sima for some images; repeat its audit command"):
        read_columns(tmp_path, "sima", {"a": 0, "b": 1, "c": 2, "d": 3})
