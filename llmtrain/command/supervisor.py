"""What becomes of a run whose workers end, one by one or all at once. Knows nothing of torch."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from llmtrain.utils.errors import ExitCode, Problem
from llmtrain.utils.outcome import Outcome
from llmtrain.utils.processes import signal_name
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import EXIT_CODE_OF_SIGNAL, release_signals

GRACE = 30 * 60.0
"""Seconds that workers have to save after a signal."""

PEER_GRACE = 1.0
"""Seconds that the others have to end by themselves when a worker is gone: they may tell more."""

ORDERLY = frozenset({ExitCode.OK, *EXIT_CODE_OF_SIGNAL.values()})
"""Exit codes of a worker that is done or has saved."""


class StopRequests:
    """The signals that reached the launcher.

    Attributes:
        first: number of the first signal that asks to stop, which alone is passed on; 0 before.
        interrupts: how often SIGINT (Ctrl-C) came; the second one means "at once".
    """

    def __init__(self) -> None:
        self.first = 0
        self.interrupts = 0

    def install(self) -> None:
        """Handle the signals in this process from now on."""
        for number in EXIT_CODE_OF_SIGNAL:
            signal.signal(number, self._handle)
        release_signals()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or number
        self.interrupts += number == signal.SIGINT


@dataclass(frozen=True)
class End:
    """How one worker ended.

    Attributes:
        code: what it told us, else its exit code; negative: killed by that signal.
    """

    rank: int
    code: int
    time: float
    message: str = ""

    @classmethod
    def of(cls, rank: int, return_code: int, outcome: Outcome | None) -> End:
        """Put together what the system says and what the worker left behind."""
        if outcome is None:
            return cls(rank, return_code, time.time())
        return cls(rank, outcome.exit_code, outcome.time, outcome.message)

    @property
    def explained(self) -> bool:
        """Whether the worker knew what was wrong, so that the user can do something about it."""
        return ExitCode.CONFIG <= self.code <= ExitCode.MEMORY

    @property
    def asked(self) -> bool:
        """Whether it ended, with or without saving, because a signal asked it to."""
        return self.code in EXIT_CODE_OF_SIGNAL.values() or -self.code in EXIT_CODE_OF_SIGNAL

    def blame(self) -> tuple[bool, float]:
        """Smaller is nearer to the cause: a lost peer makes the others end with exit code 1 or abort."""
        killed = self.code < 0 and self.code != -signal.SIGABRT
        return (not self.explained and not killed, self.time)

    def killed_by(self) -> str:
        """For one that a signal killed: that it did, and which."""
        return f"was killed by signal {-self.code} ({signal_name(-self.code)})"


class Supervisor:
    """Watches the workers, passes signals on, and decides how the run ended.

    Args:
        run: where outcomes and logs are.
        stop: signals that reached us.
        grace: seconds for saving after a signal.
    """

    def __init__(self, run: RunDirectory, stop: StopRequests, grace: float = GRACE) -> None:
        self.run = run
        self.stop = stop
        self.grace = grace
        self.ends: dict[int, End] = {}
        self.forwarded_at: float | None = None
        self.lost_at: float | None = None
        self.overdue = False

    def poll(self, workers: Mapping[int, subprocess.Popen[Any]]) -> bool:
        """One look at the workers (by rank); True when the run is over, whoever still lives."""
        now = time.monotonic()
        for rank, worker in workers.items():
            if rank not in self.ends and (code := worker.poll()) is not None:
                self.ends[rank] = End.of(rank, code, Outcome.read(self.run.outcome(rank)))
        if len(self.ends) == len(workers) or self.stop.interrupts > 1:
            return True
        if self.stop.first and self.forwarded_at is None:
            self.forwarded_at = now
            for rank, worker in workers.items():
                if rank not in self.ends:
                    worker.send_signal(self.stop.first)
        if self.lost_at is None and any(end.code not in ORDERLY for end in self.ends.values()):
            self.lost_at = now
        self.overdue = self.forwarded_at is not None and now - self.forwarded_at > self.grace
        return self.overdue or (self.lost_at is not None and now - self.lost_at > PEER_GRACE)

    def conclude(self, history: str = "") -> tuple[int, str]:
        """Exit code of the launcher, and what to tell the user (empty: nothing).

        Args:
            history: what went before, to be told along with the failure of a worker.
        """
        if self.stop.interrupts > 1:
            return ExitCode.INTERRUPT, ""
        first = self._first_failure()
        if first is not None:
            return (first.code if first.code > 0 else ExitCode.BUG), self._explain(first, history)
        if self.overdue:
            what = f"the workers did not save within {self.grace / 60:g} minutes and were killed"
            fix = "run the same command again: it goes on from the last checkpoint"
            return ExitCode.HANG, str(Problem(what, str(self.run.logs), fix))
        codes = [end.code for _, end in sorted(self.ends.items()) if end.code > 0]
        if codes:
            return codes[0], ""
        if not self.ends or any(end.code < 0 for end in self.ends.values()):
            return EXIT_CODE_OF_SIGNAL[self.stop.first], ""  # before there was anything to save
        return ExitCode.OK, ""

    def lost(self) -> End | None:
        """The worker whose loss ended the run, where starting again promises something.

        None where somebody was asked to stop, where a worker explained its end, and where the first one
        ended with exit code 1: that is a bug of ours, and its message would only come later.
        """
        first = self._first_failure()
        if first is None or first.code >= 0 or self.stop.first:
            return None
        final = any(end.explained or end.asked for end in self.ends.values())
        return None if final else first

    def _first_failure(self) -> End | None:
        """The end that brought about the others, or None where all ends are orderly."""
        failures = [end for end in self.ends.values() if not self._is_orderly(end)]
        return min(failures, key=End.blame, default=None)

    def _is_orderly(self, end: End) -> bool:
        """Done, saved, or killed by the signal that was passed on before it could handle it."""
        return end.code in ORDERLY or (self.stop.first != 0 and end.code == -self.stop.first)

    def _explain(self, end: End, history: str) -> str:
        """Three lines: what happened to which worker, where to look, what to do."""
        log = str(self.run.rank_log(end.rank))
        if end.code < 0:
            what = f"rank {end.rank} {end.killed_by()}{history}"
            fix = "read the end of its log"
            if -end.code == signal.SIGKILL:
                fix = (
                    "if nobody sent it, the kernel's out-of-memory killer did (see `dmesg`): "
                    "lower train.micro_batch_size or launch.num_processes"
                )
            return str(Problem(what, log, fix))
        problem, rest = _parse_problem(end.message)
        what = f"rank {end.rank} failed with exit code {end.code}"
        what += f": {problem.what}" if problem.what else ""
        where = f"{problem.where} (log: {log})" if problem.where else log
        return "\n".join([str(Problem(what, where, problem.fix or "read the end of its log")), *rest])


def _parse_problem(message: str) -> tuple[Problem, list[str]]:
    """The first problem of a message that `str(UserError)` made, and the lines after it."""
    parts = {"error": "", "where": "", "do": ""}
    lines = message.strip().splitlines()
    while lines:
        key, separator, value = lines[0].partition(": ")
        key = key.strip()
        if not separator or not parts.keys() & {key} or parts[key]:
            break
        parts[key] = value
        lines.pop(0)
    if not any(parts.values()) and lines:
        parts["error"] = lines.pop(0)
    return Problem(parts["error"], parts["where"], parts["do"]), lines
