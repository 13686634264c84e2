"""Work in threads whose results come in order."""

from __future__ import annotations

import threading
import time

import pytest

from pipelines.threads import in_order


def test_results_come_in_order_whatever_takes_long():
    def work(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0.0)
        return item * item

    assert list(in_order(work, range(20), threads=3)) == [item * item for item in range(20)]


def test_calls_run_side_by_side():
    both = threading.Barrier(2, timeout=30)  # broken unless two calls wait at once
    list(in_order(lambda item: both.wait(), range(4), threads=2))


def test_items_are_drawn_only_a_few_ahead():
    drawn = []

    def items():
        for item in range(100):
            drawn.append(item)
            yield item

    results = in_order(lambda item: item, items(), threads=2)
    next(results)
    assert len(drawn) == 4
    results.close()
    assert len(drawn) == 4


def test_an_error_comes_in_the_place_of_its_result():
    results = in_order(lambda item: 1 // (3 - item), range(10), threads=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_an_error_of_the_items_ends_the_work():
    def items():
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(in_order(lambda item: item, items(), threads=2))
