"""Child processes, one after the other or several at a time: what sweeps and `verify` are made of."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Any

from llmtrain.utils.processes import PR_SET_PDEATHSIG
from llmtrain.utils.signals import EXIT_CODE_OF_SIGNAL

POLL_INTERVAL = 0.2
"""Seconds between looks at children that are watched."""


@dataclass
class Job:
    """A command that runs beside others; what it prints appears line by line, with a mark before each.

    Attributes:
        command: program and arguments.
        mark: before its lines.
        environment: variables that are set for it besides ours.
        exit_code: None before it has ended.
        seconds: it took.
    """

    command: Sequence[str]
    mark: str
    environment: Mapping[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    seconds: float = 0.0


@dataclass
class _Running:
    """A job that runs, in one of the places that there are."""

    job: Job
    place: int
    process: subprocess.Popen[bytes]
    started: float
    rest: bytes = b""

    def forward(self, last: bool = False) -> None:
        """Print the whole lines that it has printed; `last`: what remains too."""
        assert self.process.stdout is not None
        while chunk := _read(self.process.stdout):
            self.rest += chunk
        *lines, self.rest = self.rest.split(b"\n")
        if last and self.rest:
            lines, self.rest = [*lines, self.rest], b""
        for line in lines:
            print(f"{self.job.mark}{line.decode(errors='replace')}", flush=True)


class Children:
    """Runs commands; a signal that asks to stop is passed on to those at hand.

    A context manager: inside it the signals are handled. No command is started after one came. Where this
    process is killed, the kernel asks the children to stop (on Linux).

    Attributes:
        stopped_by: number of the first signal; 0 before.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped_by = 0
        self._told: set[tuple[int, int]] = set()
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
        for process in self.processes:
            self._tell(process, number)

    def _tell(self, process: subprocess.Popen[bytes], number: int) -> None:
        # Ctrl-C on a terminal reaches the children by itself; a second SIGINT would make them leave at once
        by_terminal = number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()
        if not by_terminal and (process.pid, number) not in self._told:
            self._told.add((process.pid, number))
            process.send_signal(number)

    def _start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, preexec_fn=_stop_with_parent(), **options)
        self.processes.append(process)
        if self.stopped_by:  # while it was being started
            self._tell(process, self.stopped_by)
        return process

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
        process = self._start(command, stdout=output, stderr=errors)
        while watch is not None and process.poll() is None:
            watch()
            time.sleep(POLL_INTERVAL)
        code = process.wait()
        self.processes.remove(process)
        return shell_code(code), time.monotonic() - started

    def run_beside(
        self,
        jobs: Sequence[Job],
        at_once: int,
        begin: Callable[[int], None] = lambda number: None,
        environment_of: Callable[[int], Mapping[str, str]] = lambda place: {},
    ) -> None:
        """Run commands, so many at a time; each leaves its exit code in its job.

        Args:
            jobs: in this order.
            at_once: how many run beside each other.
            begin: called with the number of each, from 0, before it is started.
            environment_of: further variables for a job that runs in a place, from 0 to `at_once` - 1.
        """
        waiting, running = list(range(len(jobs))), list[_Running]()
        while running or (waiting and not self.stopped_by):
            taken = {one.place for one in running}
            for place in sorted(set(range(at_once)) - taken):
                if waiting and not self.stopped_by:
                    number = waiting.pop(0)
                    begin(number)
                    running.append(self._begin(jobs[number], place, environment_of(place)))
            time.sleep(POLL_INTERVAL)
            for one in list(running):
                code = one.process.poll()
                one.forward(last=code is not None)
                if code is not None:
                    one.job.exit_code = shell_code(code)
                    one.job.seconds = time.monotonic() - one.started
                    self.processes.remove(one.process)
                    running.remove(one)

    def _begin(self, job: Job, place: int, environment: Mapping[str, str]) -> _Running:
        process = self._start(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env={**os.environ, **environment, **job.environment},
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return _Running(job, place, process, time.monotonic())


def shell_code(code: int) -> int:
    """An exit code as shells say it: 128 + the signal for a process that one has killed."""
    return 128 - code if code < 0 else code


def _read(stream: IO[bytes]) -> bytes:
    """What a pipe has to give at once; nothing at its end too."""
    try:
        return os.read(stream.fileno(), 1 << 16)
    except BlockingIOError:
        return b""


def _stop_with_parent() -> Callable[[], object] | None:
    """What has the kernel ask a child to stop when we are killed; to be run between fork and exec, so that
    it only makes a system call."""
    if sys.platform != "linux":
        return None
    return functools.partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
