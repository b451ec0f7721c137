"""The micro-batcher: who runs together, who waits, who is turned away."""

import threading

import pytest

from serving.microbatch import MicroBatcher, QueueFull


class Recorder:
    """A computation that can be held up and notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.entered.release()
        assert self.go.wait(10)
        if -1 in items:
            raise ValueError("bad item")
        return [item * 10 for item in items]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def batcher(recorder):
    made = MicroBatcher(recorder, max_cost=4, max_wait_s=0.0, queue_cost=8, name="test")
    yield made
    recorder.go.set()
    made.close()


def test_items_that_wait_run_together_in_order_up_to_the_cost(batcher, recorder):
    first = batcher.submit(0)
    recorder.entered.acquire()
    rest = [batcher.submit(item) for item in range(1, 7)]
    recorder.go.set()
    assert [future.result(10) for future in (first, *rest)] == [0, 10, 20, 30, 40, 50, 60]
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_dear_item_runs_alone(batcher, recorder):
    batcher.submit(0)
    recorder.entered.acquire()
    futures = [batcher.submit(1), batcher.submit(2, cost=6), batcher.submit(3)]
    recorder.go.set()
    assert [future.result(10) for future in futures] == [10, 20, 30]
    assert recorder.batches == [[0], [1], [2], [3]]


def test_a_full_queue_turns_away_and_takes_again(batcher, recorder):
    batcher.submit(0)
    recorder.entered.acquire()
    waiting = [batcher.submit(item) for item in range(8)]
    with pytest.raises(QueueFull):
        batcher.submit(9)
    recorder.go.set()
    assert [future.result(10) for future in waiting] == [item * 10 for item in range(8)]
    assert batcher.submit(9).result(10) == 90


def test_a_cancelled_item_is_not_computed(batcher, recorder):
    batcher.submit(0)
    recorder.entered.acquire()
    doomed, kept = batcher.submit(1), batcher.submit(2)
    assert doomed.cancel()
    recorder.go.set()
    assert kept.result(10) == 20
    assert recorder.batches == [[0], [2]]


def test_an_error_reaches_its_batch_and_the_next_batch_runs(batcher, recorder):
    recorder.go.set()
    with pytest.raises(ValueError, match="bad item"):
        batcher.submit(-1).result(10)
    assert batcher.submit(5).result(10) == 50


def test_items_wait_for_company(recorder):
    recorder.go.set()
    batcher = MicroBatcher(recorder, max_cost=2, max_wait_s=60.0, queue_cost=8, name="test")
    futures = [batcher.submit(1), batcher.submit(2)]
    assert [future.result(10) for future in futures] == [10, 20]
    assert recorder.batches == [[1, 2]]
    batcher.close()


def test_closing_cancels_what_waits(recorder):
    batcher = MicroBatcher(recorder, max_cost=1, max_wait_s=0.0, queue_cost=8, name="test")
    batcher.submit(0)
    recorder.entered.acquire()
    waiting = batcher.submit(1)
    recorder.go.set()
    batcher.close()
    assert waiting.cancelled() or waiting.result(10) == 10
    with pytest.raises(QueueFull):
        batcher.submit(2)
