"""The scores of a run: `Scores` of one attack, `Samples` of all of them, and the files under scores/. numpy only.

`Scores` holds the package's only sign flip: statistic -> "higher = more likely a member".

A file under scores/ holds the statistics of one chunk of images under one attack and its variants, a row per number:

    id          string     the image
    attack      string     the label of the attack or of its variant, as in audit.json
    timestep    int32      the timestep, or the number of the component from 0 where the attack has a rule
    statistic   float64    in the paper's own units

in the order of labels, images and timesteps. Its metadata holds one `ChunkMeta` as JSON.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.errors import NAME, UserError
from diffleak.records.base import Record
from diffleak.work.files import damaged, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

Direction = Literal["small", "large"]
FOLDER = "scores"
META = NAME.encode()


@dataclass(frozen=True, eq=False)
class Scores:
    """The statistics of one attack, or of a variant of it, for every image and timestep."""

    attack: str
    """Label of the attack or of its variant, such as `sima` or `sima[excess]`."""
    direction: Direction
    """End of the statistic that speaks for a member."""
    timesteps: tuple[int, ...]
    """Timestep of each column, in [0, T); with a rule the number of each component, counted from 0."""
    ids: tuple[str, ...]
    """Id of the image in each row."""
    statistic: Float64[np.ndarray, "n k"]
    """One number per image and column, finite, in the paper's own units."""
    rule: str | None = None
    """Name of the rule in `diffleak.stats.rules` by which the calibrate part makes one score of the columns; null: one column is chosen."""

    @property
    def membership(self) -> Float64[np.ndarray, "n k"]:
        """Higher = more likely a member, component by component where there is a rule. The only sign flip of the package."""
        return self.statistic if self.direction == "large" else -self.statistic

    def taken(self, rows: Int64[np.ndarray, " m"]) -> "Scores":
        """The scores of the images in some rows, in the order of `rows`."""
        return replace(self, ids=tuple(self.ids[row] for row in rows), statistic=self.statistic[rows])


@dataclass(frozen=True, eq=False)
class Samples:
    """samples.csv: the side, the part and the membership scores of every image, at the timestep or setting that each attack chose."""

    ids: tuple[str, ...]
    """Id of the image in each row; keyed in an anonymous run."""
    member: Bool[np.ndarray, " n"]
    """True for members, false for held-out images."""
    test: Bool[np.ndarray, " n"]
    """True in the test part, false in the calibrate part; of repeated splits, by the first one."""
    scores: dict[str, Float64[np.ndarray, " n"]]
    """Membership scores by the label of the attack: one number per image, higher = more likely a member."""

    def sides(self, attack: str, test: bool | None = True) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " n"]]:
        """The attack's (members, nonmembers) of the test part, of the calibrate part, or of both (`test=None`)."""
        rows = np.ones(len(self.ids), dtype=bool) if test is None else self.test == test
        return self.scores[attack][rows & self.member], self.scores[attack][rows & ~self.member]

    def taken(self, rows: Int64[np.ndarray, " m"]) -> "Samples":
        """The images in some rows, in the order of `rows`."""
        scores = {attack: column[rows] for attack, column in self.scores.items()}
        return Samples(tuple(self.ids[row] for row in rows), self.member[rows], self.test[rows], scores)


@dataclass(frozen=True)
class ChunkMeta:
    """What a file of scores says of itself."""

    plan: str
    """SHA-256 of the plan that the scores belong to (see `plan_id`)."""
    queries: int
    """Denoiser forwards that the scores took, summed over the images of the chunk."""
    seconds: float
    """Wall-clock seconds that the scores took."""
    parameters: dict[str, Any]
    """The attack's parameters by name, with what it settled on when it was prepared."""


def plan_id(plan: Record) -> str:
    """The SHA-256 of a plan, by which score files are known to belong to it."""
    return hashlib.sha256(plan.model_dump_json().encode()).hexdigest()


def chunk_file(folder: Path, chunk: int, k: int, name: str) -> Path:
    """The file of one chunk of images under the k-th attack."""
    return folder / FOLDER / f"chunk-{chunk:05d}-{k:02d}-{name}.parquet"


def chunk_files(folder: Path) -> list[Path]:
    """Every score file of a run folder, in the order of chunks and attacks."""
    return sorted((folder / FOLDER).glob("chunk-*.parquet"))


def write_chunk(
    path: Path,
    ids: Sequence[str],
    labels: Sequence[str],
    timesteps: Sequence[int],
    statistic: Float64[np.ndarray, "m n k"],
    meta: ChunkMeta,
) -> None:
    """Writes the statistics of n images under m labels at k timesteps."""
    write_parquet(path, _table(ids, labels, timesteps, statistic, meta))


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Writes a table as Parquet; the path is absolute, since pyarrow takes a relative one such as exp:1/run for a URI."""
    import pyarrow.parquet as pq

    write_atomic(path.absolute(), partial(pq.write_table, table))


def read_chunk(path: Path, plan: str, shape: tuple[int, int, int]) -> tuple[Float64[np.ndarray, "m n k"], ChunkMeta]:
    """The statistics of a file in the shape that they were written in; raises `UserError` for a damaged file, or one of another plan."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path.absolute())
        meta = ChunkMeta(**json.loads(table.schema.metadata[META]))
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError):
        raise damaged(path) from None
    if meta.plan != plan or len(table) != np.prod(shape):
        raise UserError(f"{path} belongs to another plan; delete it and run the same command again")
    return table.column("statistic").to_numpy().reshape(shape), meta


def read_columns(folder: Path, label: str, rows: Mapping[str, int]) -> tuple[tuple[int, ...], Float64[np.ndarray, "n k"]] | None:
    """The timesteps of one label in the files of a folder, and its statistics; None where no file has the label.

    rows: the row that each image is to have, by its id. Raises `UserError` for a damaged file, and where an image has no scores.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        tables = [pq.read_table(file.absolute(), filters=[("attack", "=", label)]) for file in chunk_files(folder)]
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"scores under {folder} cannot be read ({str(error).splitlines()[0]}); repeat its audit command") from None
    table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    if not len(table):
        return None
    timesteps = table.column("timestep").to_numpy()
    columns = np.unique(timesteps)
    statistic = np.full((len(rows), len(columns)), np.nan)
    statistic[[rows[i] for i in table.column("id").to_pylist()], np.searchsorted(columns, timesteps)] = table.column("statistic").to_numpy()
    if np.isnan(statistic).any():
        raise UserError(f"{folder} lacks scores of {label} for some images; repeat its audit command")
    return tuple(columns.tolist()), statistic


def _table(
    ids: Sequence[str], labels: Sequence[str], timesteps: Sequence[int], statistic: Float64[np.ndarray, "m n k"], meta: ChunkMeta
) -> "pa.Table":
    import pyarrow as pa

    schema = pa.schema([("id", pa.string()), ("attack", pa.string()), ("timestep", pa.int32()), ("statistic", pa.float64())])
    m, n, k = statistic.shape
    columns = [
        np.tile(np.repeat(np.array(ids, dtype=object), k), m),
        np.repeat(np.array(labels, dtype=object), n * k),
        np.tile(timesteps, m * n).astype(np.int32),
        statistic.ravel(),
    ]
    return pa.table([pa.array(c) for c in columns], schema=schema.with_metadata({META: json.dumps(asdict(meta))}))
