"""Stop requests: a signal sets a flag, and every loop of ours polls it."""

from __future__ import annotations

import signal
from types import FrameType

from llmtrain.utils.errors import ExitCode, Stopped

EXIT_CODE_OF_SIGNAL: dict[int, int] = {
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGINT: ExitCode.INTERRUPT,
    signal.SIGUSR1: ExitCode.REQUEUE,
}
"""Signals that ask a run to save and stop, and the exit code that answers each."""


class StopFlag:
    """Set by SIGTERM, SIGINT and SIGUSR1; repeated signals change nothing.

    Attributes:
        exit_code: 0 until a stop is asked for, then the exit code of the first signal.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def install(self) -> None:
        """Handle the signals in this process from now on."""
        for number in EXIT_CODE_OF_SIGNAL:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = self.exit_code or EXIT_CODE_OF_SIGNAL[number]

    def poll(self) -> None:
        """Raise `Stopped` if a stop was asked for; for work that needs no saving (preparation)."""
        if self.exit_code:
            raise Stopped(self.exit_code)
