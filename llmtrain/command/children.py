"""Child processes, one after the other: what sweeps and `verify` are made of."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO, Any

from llmtrain.utils.signals import EXIT_CODE_OF_SIGNAL

POLL_INTERVAL = 0.2
"""Seconds between looks at a child that is watched."""


class Children:
    """Runs commands; a signal that asks to stop is passed on to the one at hand.

    A context manager: inside it the signals are handled. No command is started after one came.

    Attributes:
        stopped_by: number of the first signal; 0 before.
    """

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.stopped_by = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Children:
        self._previous = {number: signal.signal(number, self._stop) for number in EXIT_CODE_OF_SIGNAL}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """That of the signal which came, else 0."""
        return EXIT_CODE_OF_SIGNAL.get(self.stopped_by, 0)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or number
        # Ctrl-C on a terminal reaches the child by itself; a second SIGINT would make it leave at once
        by_terminal = number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()
        if self.child is not None and not by_terminal:
            self.child.send_signal(number)

    def run(
        self,
        command: Sequence[str],
        output: IO[bytes] | None = None,
        errors: IO[bytes] | None = None,
        watch: Callable[[], None] | None = None,
    ) -> tuple[int, float]:
        """Run one command to its end.

        Args:
            command: program and arguments.
            output: where its standard output goes; default: where ours goes.
            errors: the same for its standard error.
            watch: called a few times a second while it runs.

        Returns:
            exit code (of one that a signal has killed 128 + the signal, as shells say it), and seconds.
        """
        started = time.monotonic()
        self.child = subprocess.Popen(command, stdout=output, stderr=errors)
        while watch is not None and self.child.poll() is None:
            watch()
            time.sleep(POLL_INTERVAL)
        code = self.child.wait()
        self.child = None
        return (128 - code if code < 0 else code), time.monotonic() - started
