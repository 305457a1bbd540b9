"""A folder of long work: one plan owns it, chunks are dealt and done once, and an interruption changes nothing."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path

import numpy as np
import pytest

from diffleak.auditing.config import AuditConfig, GeometryConfig
from diffleak.config import names_of
from diffleak.errors import UserError
from diffleak.inquiry.config import InquireConfig
from diffleak.options import with_options
from diffleak.records.plan import Plan
from diffleak.training.config import CaptionConfig, TrainConfig
from diffleak.work.folder import PLAN, Change, Folder, cut, deal, in_chunks, named, refuse_changes, row_on_disk, spelled

SEED = {"seed": 0, "size": None}
WORK = {"bar": "working", "unit": "rows", "batch_size": 1}


def other(changed) -> str:
    return f"another plan: {spelled(changed)}"


# claiming


def test_a_folder_is_claimed_once_and_found_again_by_the_same_plan(tmp_path):
    folder = Folder(tmp_path / "new" / "run")
    assert not folder.path.exists(), "nothing is written before a claim"
    assert folder.claim(SEED, other)
    written = (folder.path / PLAN).read_bytes()
    assert written == json.dumps(SEED, indent=2).encode() and folder.path.stat().st_mode & 0o777 == 0o700
    assert not folder.claim(SEED, other)
    assert (folder.path / PLAN).read_bytes() == written


def test_another_plan_is_refused_with_what_differs_in_the_order_of_its_keys(tmp_path):
    before = {"a": 1, "b": "x" * 80, "c": [2], "model": "here", "gone": 5}
    Folder(tmp_path).claim(before, other)
    now = {"model": "there", "c": [3], "b": "y", "a": 1, "new": None, "d": 4}
    with pytest.raises(UserError) as caught:
        Folder(tmp_path).claim(now, other, free={"model"})
    assert str(caught.value) == f"another plan: c was 2, now 3; b was {'x' * 59}…, now y; d was none, now 4"
    assert not Folder(tmp_path).claim({**before, "model": "there"}, other, free={"model"})
    assert not Folder(tmp_path).claim({"a": 1, "new": None}, other), "a key that an earlier version did not write was null"
    assert json.loads((tmp_path / PLAN).read_text()) == before, "a refused claim changes nothing"
    refuse_changes({}, {"a": None}, other)


def test_every_key_of_a_plan_is_named_by_its_flag_or_in_words():
    plans = ((AuditConfig, Plan), (GeometryConfig, Plan), (InquireConfig, Plan), (TrainConfig, TrainConfig), (CaptionConfig, CaptionConfig))
    for kind, plan in plans:
        parameters = signature(with_options(lambda settings: None, kind)).parameters
        options = {f"--{key.replace('_', '-')}" for key in parameters}
        for key in (*plan.model_fields, *kind.PLANNED):
            name = named(key.removesuffix("_"), names_of(kind))
            assert name in options or not re.search("_|fingerprint|^--", name) or name in kind.PLANNED.values(), (kind.__name__, key, name)
    told = {key: named(key, names_of(AuditConfig)) for key in ("data_fingerprint", "n_members", "masks", "batch_size", "model")}
    assert [*told.values()] == ["set of images", "number of members", "--mask", "--batch-size", "MODEL"]
    assert named("sweep", names_of(InquireConfig)) == "sweep" and named("members", names_of(InquireConfig)) == "set of images in question"


def test_changes_are_told_in_a_persons_words():
    changed = [
        Change("resize", False, True),
        Change("attacks", {"sima_mc(m=4)": {"m": 4, "timesteps": [10, 20]}}, {"sima_mc(m=4)": {"m": 4, "timesteps": [10]}}),
        Change("data_fingerprint", f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"),
    ]
    said = spelled(changed, names_of(AuditConfig))
    assert said == "--resize was off, now on; timesteps of sima_mc(m=4) of --attacks was 10, 20, now 10; another set of images"
    assert spelled([Change("masks", [], ["auto"])], names_of(AuditConfig)) == "--mask was none, now auto"
    unsaid = Change("attacks", {"mine": {"m": 4}}, {"mine": {"m": 4, "new": None}})
    assert spelled([unsaid], names_of(AuditConfig)) == "another mine of --attacks", "no value tells an unset parameter from a missing one"


@pytest.mark.parametrize(("content", "why"), [("{", "Expecting"), ("[]", "it holds a list"), ("\udc80", "not UTF-8")])
def test_a_plan_that_cannot_be_read_is_one_line(tmp_path, content, why):
    (tmp_path / PLAN).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"plan.json cannot be read \(.*{why}.*\); delete {tmp_path} to begin again"):
        Folder(tmp_path).claim(SEED, other)


def test_of_workers_that_claim_together_one_is_first(tmp_path):
    def claim(number: int) -> bool:
        return Folder(tmp_path).claim({"seed": 0}, other, text=json.dumps({"seed": 0, "writer": number}))

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(16)))
    assert sum(won) == 1
    assert json.loads((tmp_path / PLAN).read_text()) == {"seed": 0, "writer": won.index(True)}
    assert [file.name for file in tmp_path.iterdir()] == [PLAN]


# cutting and dealing


@pytest.mark.parametrize(("n", "size"), [(0, 4), (1, 4), (4, 4), (9, 4), (9, 1)])
def test_chunks_hold_every_row_once_and_are_full_but_for_the_last(n, size):
    chunks = cut(n, size)
    assert [row for rows in chunks.values() for row in rows] == list(range(n))
    assert list(chunks) == list(range(len(chunks))) and all(len(rows) == size for rows in list(chunks.values())[:-1])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_dealing_is_a_partition_as_even_as_can_be(count):
    hands = [deal(range(17), rank, count) for rank in range(count)]
    assert sorted(chunk for hand in hands for chunk in hand) == list(range(17))
    assert max(map(len, hands)) - min(map(len, hands)) <= 1


# running


def test_only_chunks_with_a_missing_file_are_run(tmp_path):
    folder, ran = Folder(tmp_path), list[str]()
    chunks = {"whole": ["a.npy", "b.npy"], "half": ["c.npy", "d.npy"], "none": ["sub/e.npy"]}
    for file in ("a.npy", "b.npy", "c.npy"):
        folder.save(file, np.zeros(1))
    assert folder.missing(chunks) == ["half", "none"]
    folder.run(chunks, lambda chunk, tick: ran.append(chunk), lambda chunk: 1, **WORK, threads=1)
    assert ran == ["half", "none"]


def squares(rows: range, tick: Callable[..., None]) -> np.ndarray:
    tick(len(rows))
    return np.array([[row**2, -row] for row in rows])


def rows_of(path: Path, compute=squares, **plan) -> np.ndarray:
    plan = {"model": "m", "model_fingerprint": "f", **plan}
    words = {"what": "squares", "made": "of", "bar": "squaring"}
    return in_chunks(Folder(path), plan, cut(11, 3), compute, **words, forwards=1, batch_size=1, threads=2)


def test_of_rows_with_fields_some_are_returned_and_the_others_are_found_again_by_their_row(tmp_path):
    kind = np.dtype([("square", np.int64), ("large", np.float32, (100,))])

    def compute(rows: range, tick: Callable[..., None]) -> np.ndarray:
        return np.array([(row**2, np.full(100, row)) for row in rows], kind)

    words = {"what": "rows", "made": "of", "bar": "squaring", "forwards": 1, "batch_size": 1, "threads": 1}
    plan = {"model": "m", "model_fingerprint": "f"}
    found = in_chunks(Folder(tmp_path), plan, cut(11, 3), compute, **words, kind=kind, fields=["square"])
    assert found["square"].tolist() == [row**2 for row in range(11)] and found.dtype.itemsize == 8
    for row in range(11):
        whole = row_on_disk(Folder(tmp_path), "rows", cut(11, 3), row)
        assert whole["square"] == row**2 and (whole["large"] == row).all()
    with pytest.raises(UserError, match=r"must hold 3 rows; its array is \(3,\): delete it and run the same command again"):
        in_chunks(Folder(tmp_path), plan, cut(11, 3), compute, **words, kind=np.dtype([("square", np.int64)]))


@pytest.mark.parametrize("at", range(4))
def test_an_interrupted_run_goes_on_to_the_rows_of_an_uninterrupted_one(tmp_path, at):
    def interrupted(rows: range, tick: Callable[..., None]) -> np.ndarray:
        if rows.start == 3 * at:
            raise KeyboardInterrupt
        return squares(rows, tick)

    with pytest.raises(KeyboardInterrupt):
        rows_of(tmp_path, interrupted)
    kept, again = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npy")}, list[range]()
    found = rows_of(tmp_path, lambda rows, tick: (again.append(rows), squares(rows, tick))[1])
    np.testing.assert_array_equal(found, squares(range(11), lambda n: None))
    assert len(again) == 4 - len(kept) > 0, "what was finished is not computed again"
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert sorted(file.name for file in tmp_path.iterdir()) == [PLAN, *(f"squares-{chunk:05d}.npy" for chunk in range(4))]


def test_the_first_failure_stops_the_rest(tmp_path):
    begun, ended = list[int](), list[int]()

    def job(chunk: int, tick: Callable[..., None]) -> None:
        begun.append(chunk)
        if chunk == 0:
            raise UserError("failed")
        for _ in range(10**6):  # ends long before, at the first tick after the failure
            tick(1)
        ended.append(chunk)

    with pytest.raises(UserError, match="failed"):
        Folder(tmp_path).run({chunk: [f"{chunk}.npy"] for chunk in range(50)}, job, lambda chunk: 10**6, **WORK, threads=2)
    assert 0 in begun and len(begun) < 50 and not ended


# reading


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x93NUMPY\x01\x00", None])
def test_a_damaged_chunk_is_moved_aside_and_done_again(tmp_path, content, capsys):
    found, file = rows_of(tmp_path), tmp_path / "squares-00002.npy"
    whole, again = file.read_bytes(), list[range]()
    broken = bytearray(whole)
    broken[-80] ^= 1  # the last row, before the checksum
    file.write_bytes(broken if content is None else content)
    capsys.readouterr()
    np.testing.assert_array_equal(rows_of(tmp_path, lambda rows, tick: (again.append(rows), squares(rows, tick))[1]), found)
    assert again == [range(6, 9)] and file.read_bytes() == whole
    assert (tmp_path / "squares-00002.npy.damaged").read_bytes() == (bytes(broken) if content is None else content)
    said = f"{file} is damaged (its checksum is not that of its content): it is now squares-00002.npy.damaged, and its chunk is done again"
    assert capsys.readouterr().err == said + "\n"


def test_an_array_that_is_damaged_when_it_is_read_is_moved_aside(tmp_path):
    folder = Folder(tmp_path)
    folder.save("a.npy", np.arange(3))
    assert np.array_equal(folder.load("a.npy"), [0, 1, 2])
    (tmp_path / "a.npy").write_bytes(b"other")
    with pytest.raises(UserError, match=r"a.npy is damaged \(its .*\): it is now a.npy.damaged; run the same command again$"):
        folder.load("a.npy")
    with pytest.raises(UserError, match=r"a.npy is damaged \(No such file or directory\): run the same command again$"):
        folder.load("a.npy")
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy.damaged"]


@pytest.mark.parametrize("rows", [np.zeros((2, 2)), np.zeros((3, 1)), np.zeros(3), np.array(3)], ids=str)
def test_a_chunk_of_another_shape_is_named(tmp_path, rows):
    rows_of(tmp_path)
    Folder(tmp_path).save("squares-00001.npy", rows)
    with pytest.raises(UserError, match=r"squares-00001.npy must hold 3 squares; its array is \(.*\): delete it"):
        rows_of(tmp_path)


def test_rows_of_a_model_without_a_fingerprint_are_not_taken_for_those_of_another(tmp_path):
    def beside(rows: range, tick: Callable[..., None]) -> np.ndarray:
        with pytest.raises(UserError, match="holds squares, and nothing says that they are of this model"):
            rows_of(tmp_path, model_fingerprint="unknown")
        return squares(rows, tick)

    rows_of(tmp_path, beside, model_fingerprint="unknown")
    with pytest.raises(UserError, match="holds squares, and nothing says that they are of this model"):
        rows_of(tmp_path, model_fingerprint="unknown")
    with pytest.raises(UserError, match="holds squares of another model \(unknown, now f\); choose another folder"):
        rows_of(tmp_path)
