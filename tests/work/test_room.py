"""Where memory runs out, batches are halved: nothing is lost or counted twice, and it is said."""

import gc
import weakref

import pytest
import torch

from diffleak.work.room import Room


class Big:
    """What a batch holds in memory."""


def of_at_most(limit, error=torch.OutOfMemoryError, calls=None):
    """Work on numbers that finds no memory for more than `limit` rows, after it has counted half of them."""

    def compute(rows, tick):
        size = rows.stop - rows.start
        tick(size // 2)
        if calls is not None:
            calls.append(size)
        if size > limit:
            raise error("CUDA out of memory")
        tick(size - size // 2)
        return list(range(rows.start, rows.stop))

    return compute


@pytest.mark.parametrize(("limit", "sizes"), [(8, [8, 8, 4]), (5, [8, 4, 4, 4, 4, 4]), (1, [8, 4, 2] + [1] * 20)])
def test_every_row_is_done_once_in_order_whatever_fits(limit, sizes):
    calls, done = [], []
    parts = Room("images").each(20, 8, of_at_most(limit, calls=calls), done.append)
    assert [row for _, found in parts for row in found] == list(range(20))
    assert calls == sizes
    assert sum(done) == 20, "what was counted of a batch that did not fit is taken back"


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_all_ways_to_run_out_of_memory_are_known(error):
    assert [found for _, found in Room("images").each(2, 2, of_at_most(1, error))] == [[0], [1]]


def test_it_is_said_once_for_each_size_and_kept_for_the_work_that_follows(capsys):
    room = Room("images")
    for _ in range(3):
        list(room.each(8, 8, of_at_most(2)))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "the device has too little memory for 8 images: 4 at once from here on, which changes the last digits",
        "the device has too little memory for 4 images: 2 at once from here on, which changes the last digits",
    ]
    assert room.most == 2


def test_one_row_that_does_not_fit_raises_what_it_raises():
    with pytest.raises(torch.OutOfMemoryError):
        list(Room("images").each(3, 2, of_at_most(0)))


def test_other_errors_are_no_lack_of_memory():
    def fail(rows, tick):
        raise RuntimeError("a bug")

    room = Room("images")
    with pytest.raises(RuntimeError, match="a bug"):
        list(room.each(4, 4, fail))
    assert room.most is None


def test_what_the_failed_batch_held_is_free_before_memory_is_given_back():
    """An exception holds the frames that it came through, and they the tensors."""
    held, alive = [], []

    def compute(rows, tick):
        big = Big()
        held.append(weakref.ref(big))
        if rows.stop - rows.start > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        list(Room("images", lambda: alive.append(held[-1]() is not None)).each(2, 2, compute))
    finally:
        gc.enable()
    assert alive == [False]


def test_fitting_is_of_as_many_rows_as_fit():
    room = Room("images")

    def compute(count):
        if count > 3:
            raise MemoryError
        return count

    assert room.fitting(13, compute) == 3 and room.fitting(13, compute) == 3
