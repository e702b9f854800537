"""Cleaning in several processes, in the order of the documents."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from llmtrain.data.clean.steps import Cleaned, Cleaner
from llmtrain.schema.load import dump

MOST = 32
"""Processes at most."""

ALONE = 1 << 22
"""Characters that are cleaned before other processes are started for the rest."""


def num_processes() -> int:
    """Cores that this process may use."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return min(cores, MOST)


def clean_batches(cleaner: Cleaner, batches: Iterable[list[str]]) -> Iterator[list[Cleaned]]:
    """Clean batches of texts, in their order; a short corpus here, a longer one in several processes."""
    iterator, done = iter(batches), 0
    for batch in iterator:
        yield [cleaner(text) for text in batch]
        done += sum(map(len, batch))
        if done >= ALONE and num_processes() > 1:
            yield from _in_processes(cleaner, iterator)


def _in_processes(cleaner: Cleaner, batches: Iterator[list[str]]) -> Iterator[list[Cleaned]]:
    num = num_processes()
    workers = [_Worker(cleaner) for _ in range(num)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(batch: list[str]) -> list[Cleaned]:
        worker = idle.get()
        try:
            return worker.ask(batch)
        finally:
            idle.put(worker)

    waiting: deque[Future[list[Cleaned]]] = deque()
    threads = ThreadPoolExecutor(num, "cleaning")
    try:
        for batch in batches:
            waiting.append(threads.submit(ask, batch))
            if len(waiting) > 2 * num:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for worker in workers:
            worker.close()
        threads.shutdown()


class _Worker:
    """A process that answers one request at a time."""

    def __init__(self, cleaner: Cleaner) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llmtrain.data.clean.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the master; this one ends with its input
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._write(dump(cleaner.config))

    def _write(self, value: object) -> None:
        self._requests.write(json.dumps(value).encode() + b"\n")
        self._requests.flush()

    def ask(self, texts: Sequence[str]) -> list[Cleaned]:
        """Clean texts."""
        self._write(list(texts))
        answer = self._answers.readline()
        if not answer:
            raise RuntimeError(f"a process that cleans has ended with code {self._process.wait()}")
        return [Cleaned(**values) for values in json.loads(answer)]

    def close(self) -> None:
        """End the process; what it is at is thrown away."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # what was not sent goes nowhere
                pipe.close()
