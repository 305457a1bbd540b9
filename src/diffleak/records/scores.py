"""The scores of a run: `Scores` of one attack, `Samples` of all of them, and the files under scores/. numpy only.

`Scores` holds the package's only sign flip: statistic -> "higher = more likely a member".

A file under scores/ holds the statistics of one chunk of images under one attack and its variants, a row per number:

    id          string     the image
    attack      string     the label of the attack or of its variant, as in audit.json
    timestep    int32      the timestep, or the number of the component from 0 where the attack has a rule
    statistic   float64    in the paper's own units

in the order of labels, images and timesteps. Its metadata holds one `ChunkMeta` as JSON. Every page has a checksum, and the metadata
one over itself and the statistics; the same work gives the same bytes. How long it took is in seconds/, a text file for each.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffleak.errors import NAME, UserError
from diffleak.records.base import Record
from diffleak.work.files import write_atomic, write_text
from diffleak.work.reading import Unreadable, load_parquet, load_text, parsing

if TYPE_CHECKING:
    import pyarrow as pa

Direction = Literal["small", "large"]
Unit = Literal["image", "cluster", "group"]
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
    logarithmic: bool = False
    """True if the statistics are logarithms or differences already, so that calibration takes none of them."""
    complexity: Float64[np.ndarray, "n f"] | None = None
    """What is regressed out of the scores (`diffleak.stats.calibration`), a row per image; null: nothing."""
    unit: Int64[np.ndarray, " n"] | None = None
    """Number of the unit (`diffleak.stats.units`) that each image counts in, from 0 without gaps; null: each image counts alone."""

    @property
    def membership(self) -> Float64[np.ndarray, "n k"]:
        """Higher = more likely a member, component by component where there is a rule. The only sign flip of the package."""
        return self.statistic if self.direction == "large" else -self.statistic

    def taken(self, rows: Int64[np.ndarray, " m"]) -> "Scores":
        """The scores of the images in some rows, in the order of `rows`."""
        given = lambda array: None if array is None else array[rows]
        unit = None if self.unit is None else numbered(self.unit[rows])
        ids = tuple(self.ids[row] for row in rows)
        return replace(self, ids=ids, statistic=self.statistic[rows], complexity=given(self.complexity), unit=unit)


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
    units: tuple[str, ...] | None = None
    """Name of the unit (`diffleak.stats.units`) that each image counts in: its group, keyed in an anonymous run, or of its cluster of
    near-duplicates the image whose file name comes first; null: each image counts alone."""
    unit: Unit = "image"
    """What a row counts, or with `units` what those are: the column of the units has this name."""

    @property
    def counted(self) -> "Samples":
        """A row for each unit, in the order of their first images, with the mean of its images' scores; the samples themselves without."""
        of = self.number
        if self.units is None or of is None:
            return self
        first = np.unique(of, return_index=True)[1]
        scores = {attack: means(column, of) for attack, column in self.scores.items()}
        return Samples(tuple(dict.fromkeys(self.units)), self.member[first], self.test[first], scores, None, self.unit)

    @property
    def number(self) -> Int64[np.ndarray, " n"] | None:
        """The number of each image's unit, from 0 in the order of their first images; None where each counts alone."""
        if self.units is None:
            return None
        known = {name: i for i, name in enumerate(dict.fromkeys(self.units))}
        return np.array([known[name] for name in self.units], dtype=np.int64)

    def sides(self, attack: str, test: bool | None = True) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " n"]]:
        """The attack's (members, nonmembers) of the test part, of the calibrate part, or of both (`test=None`)."""
        rows = np.ones(len(self.ids), dtype=bool) if test is None else self.test == test
        return self.scores[attack][rows & self.member], self.scores[attack][rows & ~self.member]

    def taken(self, rows: Int64[np.ndarray, " m"]) -> "Samples":
        """The images in some rows, in the order of `rows`."""
        scores = {attack: column[rows] for attack, column in self.scores.items()}
        units = None if self.units is None else tuple(self.units[row] for row in rows)
        return Samples(tuple(self.ids[row] for row in rows), self.member[rows], self.test[rows], scores, units, self.unit)


def numbered(unit: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The units of some images, numbered from 0 in the order of their first images."""
    _, first, of = np.unique(unit, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[of]


def means(values: Float64[np.ndarray, "n *k"], unit: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "u *k"]:
    """The mean over the images of each unit, whose numbers have no gaps; of a unit of one image that image's own numbers, to the bit."""
    order = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[order], np.arange(int(unit.max(initial=-1)) + 1))
    sizes = np.diff(np.append(starts, len(unit)))
    sums = np.add.reduceat(values[order], starts, axis=0)
    return sums / sizes.reshape(-1, *(1,) * (values.ndim - 1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ChunkMeta:
    """What a file of scores says of itself."""

    plan: str
    """SHA-256 of the plan that the scores belong to (see `plan_id`)."""
    queries: int
    """Denoiser forwards that the scores need, summed over the images of the chunk; some may be another attack's (`Spent.saved`)."""
    parameters: dict[str, Any]
    """The attack's parameters by name, with what it settled on when it was prepared."""
    sha256: str = ""
    """SHA-256 of the other fields as JSON and the statistics as little-endian float64, in the order of the rows."""


@dataclass(frozen=True)
class Spent:
    """What a file of scores took beside the forwards that its attack declares; it depends on the machine and on interruptions."""

    seconds: float = 0.0
    """Wall-clock time of the file, in seconds."""
    saved: int = 0
    """Denoiser forwards, summed over the images, that another attack had made already."""
    halved_to: int | None = None
    """Fewest images, scored or drawn at once, that memory had room for; null where it had room for those of the plan."""
    read: int = 0
    """Denoiser forwards, summed over the images, whose drawings were read from a folder."""

    def __add__(self, other: "Spent") -> "Spent":
        halved = [each.halved_to for each in (self, other) if each.halved_to is not None]
        least = min(halved, default=None)
        return Spent(self.seconds + other.seconds, self.saved + other.saved, least, self.read + other.read)


def plan_id(plan: Record) -> str:
    """The SHA-256 of a plan, by which score files are known to belong to it.

    A `sweep` of "all", `faster` without any way, no `estimator`, `singular_values` and `coarse_step` are left out: plans had no such fields
    when every audit was so, and their score files stay valid.
    """
    unsaid = {"sweep": "all", "faster": None, "estimator": None, "singular_values": None, "coarse_step": None}
    of_before = {key for key, value in unsaid.items() if getattr(plan, key, value) == value}
    return hashlib.sha256(plan.model_dump_json(exclude=of_before).encode()).hexdigest()


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
    spent: Spent,
) -> None:
    """Writes the statistics of n images under m labels at k timesteps, and what they took."""
    write_text(_seconds_file(path), f"{spent.seconds:.4f} {spent.saved} {spent.halved_to or 0} {spent.read}\n", lasting=False)
    write_parquet(path, _table(ids, labels, timesteps, statistic, meta))


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Writes a table as Parquet with a checksum for every page."""
    import pyarrow.parquet as pq

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a path would be read as a URI where it looks like one, as exp:1/run does
            pq.write_table(table, file, write_page_checksum=True)

    write_atomic(path, write, private=True)


def read_chunk(
    path: Path, plan: str, ids: Sequence[str], labels: Sequence[str], timesteps: Sequence[int]
) -> tuple[Float64[np.ndarray, "m n k"], ChunkMeta]:
    """The statistics of a file in the shape that they were written in; raises `Unreadable` unless it is whole and of this plan."""
    table = load_parquet(path)
    with parsing():
        meta = ChunkMeta(**json.loads(table.schema.metadata[META]))
        statistic = table.column("statistic").to_numpy().reshape(len(labels), len(ids), len(timesteps))
        if meta.plan != plan or not np.isfinite(statistic).all():
            raise Unreadable("it belongs to another plan" if meta.plan != plan else "its statistics are not finite")
        if not table.equals(_table(ids, labels, timesteps, statistic, meta), check_metadata=True):
            raise Unreadable("its images, labels, timesteps or checksum are not those of its plan")
    return statistic, meta


def read_spent(path: Path) -> Spent:
    """What a file of scores took; nothing where nothing says so, or no such thing. Earlier versions wrote the seconds alone."""
    try:
        seconds, *counts = load_text(_seconds_file(path)).split()
        saved, halved, read = (int(float(count)) for count in (*counts, "0", "0", "0")[:3])
        spent = Spent(float(seconds), saved, halved or None, read)
    except (ValueError, OverflowError):
        return Spent()
    known = 0 <= spent.seconds < inf and spent.saved >= 0 and spent.read >= 0 and (spent.halved_to is None or spent.halved_to >= 1)
    return spent if known else Spent()


def _seconds_file(path: Path) -> Path:
    return path.parent.with_name("seconds") / f"{path.stem}.txt"


def read_columns(folder: Path, label: str, rows: Mapping[str, int]) -> tuple[tuple[int, ...], Float64[np.ndarray, "n k"]] | None:
    """The timesteps of one label at which every image is scored, and its statistics; None where no file has the label.

    rows: the row that each image is to have, by its id. Raises `UserError` for a damaged file, and where an image has no scores.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    tables = []
    for file in chunk_files(folder):
        try:
            table = load_parquet(file)
            with parsing():
                if not table.schema.equals(_schema()):
                    raise Unreadable("its columns are not those of scores")
                _check_digest(table)
                tables.append(table.filter(pc.equal(table.column("attack"), label)).replace_schema_metadata(None))
        except Unreadable as error:
            raise UserError(f"{file} cannot be read ({error}); repeat the audit command of {folder}") from None
    table = pa.concat_tables(tables)
    if not len(table):
        return None
    timesteps = table.column("timestep").to_numpy()
    columns = np.unique(timesteps)
    statistic = np.full((len(rows), len(columns)), np.nan)
    images = [rows.get(image_id, -1) for image_id in table.column("id").to_pylist()]
    statistic[images, np.searchsorted(columns, timesteps)] = table.column("statistic").to_numpy()
    everywhere = np.isfinite(statistic).all(axis=0)  # the test part may be scored at the chosen timesteps alone
    columns, statistic = columns[everywhere], statistic[:, everywhere]
    if -1 in images or not everywhere.any():
        raise UserError(f"{folder} lacks scores of {label} for some images, or has some of other images; repeat its audit command")
    return tuple(columns.tolist()), statistic


def _check_digest(table: "pa.Table") -> None:
    """Raises `Unreadable` where a checksum is there and is another one; files of version 0.1 have none."""
    meta = json.loads((table.schema.metadata or {}).get(META, b"{}"))
    said = meta.pop("sha256", None)
    if said is not None and said != _digest(meta, table.column("statistic").to_numpy()):
        raise Unreadable("its checksum is not that of its content")


def _digest(meta: Mapping[str, Any], statistic: Float64[np.ndarray, "*shape"]) -> str:
    said = json.dumps({key: value for key, value in meta.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(said.encode() + statistic.astype("<f8").tobytes()).hexdigest()


def _table(
    ids: Sequence[str], labels: Sequence[str], timesteps: Sequence[int], statistic: Float64[np.ndarray, "m n k"], meta: ChunkMeta
) -> "pa.Table":
    import pyarrow as pa

    m, n, k = statistic.shape
    columns = [
        np.tile(np.repeat(np.array(ids, dtype=object), k), m),
        np.repeat(np.array(labels, dtype=object), n * k),
        np.tile(timesteps, m * n).astype(np.int32),
        statistic.ravel(),
    ]
    said = asdict(replace(meta, sha256=_digest(asdict(meta), statistic)))
    return pa.table([pa.array(c) for c in columns], schema=_schema().with_metadata({META: json.dumps(said)}))


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([("id", pa.string()), ("attack", pa.string()), ("timestep", pa.int32()), ("statistic", pa.float64())])
