"""A micro-batcher: a bounded queue and one worker thread. Imports no torch.

kserve runs a model's methods on its event loop, so batching and computing need a thread of their own.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFull(Exception):
    """The queue holds as much as it may."""


@dataclass
class _Waiting(Generic[Item, Result]):
    item: Item
    cost: int
    future: "Future[Result]" = field(default_factory=Future)


class MicroBatcher(Generic[Item, Result]):
    """Collects items until their cost reaches ``max_cost`` or the first has waited ``max_wait_s``, then runs them.

    Args:
        run: computes a batch on the worker thread; gives one result per item, in order.
        max_cost: cost of a batch; a dearer item runs alone.
        max_wait_s: longest wait of an item for company, in seconds.
        queue_cost: cost of all items that may wait.
        name: of the thread.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]],
        *,
        max_cost: int,
        max_wait_s: float,
        queue_cost: int,
        name: str,
    ) -> None:
        self._run, self._max_cost, self._max_wait_s, self._queue_cost = run, max_cost, max_wait_s, queue_cost
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._waiting_cost = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting_cost(self) -> int:
        """Cost of the items that wait now."""
        return self._waiting_cost

    def submit(self, item: Item, cost: int = 1) -> "Future[Result]":
        """Queue ``item``; cancelling the future before its batch starts takes the item out.

        Raises:
            QueueFull: the queue is full, or the batcher closed.
        """
        with self._changed:
            if self._closed or (self._waiting and self._waiting_cost + cost > self._queue_cost):
                raise QueueFull
            entry: _Waiting[Item, Result] = _Waiting(item, cost)
            self._waiting.append(entry)
            self._waiting_cost += cost
            self._changed.notify()
        return entry.future

    def close(self) -> None:
        """Cancel what waits, let the running batch end, stop the thread."""
        with self._changed:
            self._closed = True
            for entry in self._waiting:
                entry.future.cancel()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._collect():
            live = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
            if not live:
                continue
            try:
                results = list(zip(live, self._run([entry.item for entry in live]), strict=True))
            except Exception as error:  # noqa: BLE001 -- handed to whoever waits for the result
                for entry in live:
                    entry.future.set_exception(error)
            else:
                for entry, result in results:
                    entry.future.set_result(result)

    def _collect(self) -> list[_Waiting[Item, Result]]:
        """The next batch; empty when the batcher is closed and nothing waits."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            until = time.monotonic() + self._max_wait_s
            while self._waiting_cost < self._max_cost and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            batch: list[_Waiting[Item, Result]] = []
            cost = 0
            while self._waiting and (not batch or cost + self._waiting[0].cost <= self._max_cost):
                entry = self._waiting.popleft()
                cost += entry.cost
                self._waiting_cost -= entry.cost
                batch.append(entry)
            return batch
