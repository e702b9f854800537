"""Stop requests: a signal sets a flag, and every loop of ours polls it."""

from __future__ import annotations

import os
import signal
from types import FrameType

from llmtrain.utils.errors import ExitCode, Stopped

EXIT_CODE_OF_SIGNAL: dict[int, int] = {
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGINT: ExitCode.INTERRUPT,
    signal.SIGUSR1: ExitCode.REQUEUE,
}
"""Signals that ask a run to save and stop, and the exit code that answers each."""


def hold_signals() -> None:
    """Keep stop requests back until `release_signals`, also in programs that this process starts.

    A signal that arrives while torch is being imported would abort the process.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODE_OF_SIGNAL)


def release_signals() -> None:
    """Let stop requests in, those that were held back first."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_CODE_OF_SIGNAL)


def end_at_signals() -> None:
    """Let stop requests end this process at once: for the time in which there is nothing to save yet."""
    for number in EXIT_CODE_OF_SIGNAL:
        signal.signal(number, signal.SIG_DFL)
    release_signals()


class StopFlag:
    """Set by SIGTERM, SIGINT and SIGUSR1. A second Ctrl-C leaves at once; other repetitions change nothing.

    Attributes:
        exit_code: 0 until a stop is asked for, then the exit code of the first signal.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def install(self) -> None:
        """Handle the signals in this process from now on."""
        for number in EXIT_CODE_OF_SIGNAL:
            signal.signal(number, self._handle)
        release_signals()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.exit_code == ExitCode.INTERRUPT:
            os._exit(ExitCode.INTERRUPT)
        self.exit_code = self.exit_code or EXIT_CODE_OF_SIGNAL[number]

    def poll(self) -> None:
        """Raise `Stopped` if a stop was asked for; for work that needs no saving (preparation)."""
        if self.exit_code:
            raise Stopped(self.exit_code)
