"""Reading ahead: the same items, errors and order as reading on the spot, a bounded number of them, and no thread left."""

import threading
from functools import partial
from threading import Event, Lock

import pytest

from diffleak.errors import UserError
from diffleak.work.ahead import Ahead, in_order


def ahead_of(read, count, threads=2, most=3):
    """Items of two pieces each."""
    return Ahead(range(count), lambda i: [partial(read, i, 0), partial(read, i, 1)], list, threads=threads, most=most)


def test_items_are_those_that_reading_on_the_spot_gives_in_any_order():
    with ahead_of(lambda i, j: (i, j), 7) as ahead:
        for i in (0, 1, 5, 2, 2, 6, 3, 4):
            assert ahead.take(i) == [(i, 0), (i, 1)]
    with ahead_of(lambda i, j: (i, j), 7, most=1) as ahead:
        for i in range(7):
            assert ahead.take(i) == [(i, 0), (i, 1)]
            ahead.drop(i)


def test_the_next_item_is_read_while_this_one_is_in_use():
    reached = Event()
    read = lambda i, j: reached.set() if i == 1 else None
    with ahead_of(read, 3, threads=1, most=2) as ahead:
        ahead.take(0)
        assert reached.wait(10)


def test_no_more_items_are_begun_than_may_be_in_memory():
    begun, guard = set(), Lock()

    def read(i, j):
        with guard:
            begun.add(i)

    with ahead_of(read, 9, threads=4, most=3) as ahead:
        for i in range(9):
            ahead.take(i)
            assert len(begun) <= i + 3 and not begun - set(range(i + 3))
            ahead.drop(i)
    assert begun == set(range(9))


def test_an_error_is_raised_where_its_item_is_taken_as_often_as_it_is_taken():
    def read(i, j):
        if (i, j) == (1, 1):
            raise UserError("image b.png cannot be decoded")

    with ahead_of(read, 3) as ahead:
        ahead.take(0)
        for _ in range(2):
            with pytest.raises(UserError, match=r"b\.png"):
                ahead.take(1)
        ahead.take(2)


def test_an_interruption_leaves_what_is_not_read_unread_and_no_thread():
    read, before = [], threading.active_count()
    stopping = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), ahead_of(lambda i, j: read.append(i), 1000, threads=1, most=1000) as ahead:
        ahead.take(0, stopping)
    assert len(read) < 2000 and threading.active_count() == before


def test_a_pause_between_two_pieces_may_stop_the_wait_for_the_rest():
    reached, seen = Event(), []

    def read(i, j):
        seen.append((i, j))
        assert j == 0 or reached.wait(10)

    def stop():
        raise ZeroDivisionError

    with ahead_of(read, 1, threads=1) as ahead:
        with pytest.raises(ZeroDivisionError):
            ahead.take(0, stop)
        reached.set()


def test_in_order_gives_what_functions_return_and_raises_in_its_place():
    def fail():
        raise UserError("the third")

    items = in_order([lambda: 1, lambda: 2, fail, lambda: 4], threads=3, most=4)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(UserError, match="the third"):
        next(items)


def test_in_order_that_is_left_early_ends_its_threads():
    before = threading.active_count()
    numbers = in_order([lambda: 1] * 50, threads=2, most=4)
    assert next(numbers) == 1
    numbers.close()
    assert threading.active_count() == before
