"""Read ahead in a background thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """An iterator whose next items are made in a thread while the caller works on the present one.

    Args:
        items: what to read; an exception in it reaches the caller at its place in the order.
        depth: items that are kept ready at most.
        poll: called a few times a second while waiting; may raise to give up (a stop signal).

    Attributes:
        wait_seconds: time that the caller has waited for items; may be set back to 0.
    """

    def __init__(self, items: Iterator[Item], depth: int, poll: Callable[[], None] = lambda: None) -> None:
        self.wait_seconds = 0.0
        self._queue: queue.Queue[tuple[str, Item | BaseException | None]] = queue.Queue(depth)
        self._poll = poll
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(items,), name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                self._put("item", item)
                if self._stopped.is_set():
                    break
            else:
                self._put("end", None)
        except BaseException as error:
            self._put("error", error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _put(self, kind: str, value: Item | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put((kind, value), timeout=0.2)
            except queue.Full:
                continue

    def __iter__(self) -> ReadAhead[Item]:
        return self

    def __next__(self) -> Item:
        if self._ended:
            raise StopIteration
        start = time.perf_counter()
        while True:
            try:
                kind, value = self._queue.get(timeout=0.2)
                break
            except queue.Empty:
                self._poll()
        self.wait_seconds += time.perf_counter() - start
        if kind == "item":
            return value  # type: ignore[return-value]
        self._ended = True
        if kind == "error":
            assert isinstance(value, BaseException)
            raise value
        raise StopIteration

    def close(self) -> None:
        """End the thread; whatever it has ready is thrown away."""
        self._ended = True
        self._stopped.set()
        self._thread.join(timeout=10)
