"""Contenders in turns: each is a process of its own that trains a few steps when told to, and then waits.

So whatever else happens on the machine happens to all of them, while each has its own interpreter, number
format and allocator. The driver (`Contender`, `take_turns`) writes a number of steps to a process and reads
how long they took; the process (`Turn`) has a loop that asks for its turn before each step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from table import log

from llmtrain.utils.machine import available_memory

LEAST_MEMORY = 4 << 30
"""Bytes that must be free before another contender is started: all stay in memory to the end."""


class Turn:
    """The side of the process that trains: `before` each step waits for the turn, `after` it answers.

    Whatever else the process prints goes to standard error, since standard output is the answer.

    Args:
        about: what is told to the driver once, before the first step.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._left = 0
        self._steps = 0
        self._started = 0.0

    def ready(self, **about: Any) -> None:
        """Tell the driver that all is set up."""
        self._out.write(json.dumps(about) + "\n")

    def before(self) -> None:
        """Wait for the next turn, unless one is going on; ends the process where there are no more."""
        if self._left == 0:
            line = sys.stdin.readline()
            if not line.strip():
                sys.stderr.flush()
                os._exit(0)  # in whatever loop and thread this is
            self._left = self._steps = int(line)
            self._started = time.perf_counter()

    def after(self, **more: Any) -> None:
        """Count a step; after the last one of the turn say how long it took."""
        self._left -= 1
        if self._left == 0:
            seconds = (time.perf_counter() - self._started) / self._steps
            self._out.write(json.dumps({"seconds": seconds, **more}) + "\n")


ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF", "MALLOC_ARENA_MAX")


def without_allocator(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without anything that chooses or tunes the allocator."""
    return {name: value for name, value in environment.items() if name not in ALLOCATOR_VARIABLES}


@dataclass
class Contender:
    """A process that trains.

    Attributes:
        name: in the table.
        command: starts it.
        environment: besides what all have.
        allocator: said in the table.
        about: what the process tells of itself.
        seconds: for a step, one number for each round.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    allocator: str = "glibc"
    about: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    failed: str = ""

    def start(self, folder: Path, warm_up: int) -> None:
        """Start it and train a few steps, so that all is compiled and in memory."""
        if available_memory() < LEAST_MEMORY:
            self.failed = "there is too little memory left to start it"
            return log(f"  {self.name}: {self.failed}")
        errors = folder / f"{self.name.replace(' ', '_').replace(',', '')}.log"
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            text=True,
            env={**without_allocator(os.environ), **self.environment},
        )
        try:
            self.about = self._answer()
            self.take(warm_up)
        except RuntimeError as error:
            lines = errors.read_text(errors="replace").strip().splitlines()
            self.failed = f"{error}: {lines[-1] if lines else 'it printed nothing'} (see {errors})"
            log(f"  {self.name} failed: {self.failed}")

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def take(self, steps: int) -> float:
        """Train so many steps; returns seconds a step.

        Between its turns the process stands still, else threads that spin while they wait for work would
        take time from the others.
        """
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        seconds = float(self._answer()["seconds"])
        self.process.send_signal(signal.SIGSTOP)
        return seconds

    def end(self) -> None:
        """Let the process end."""
        if self.process is not None:
            assert self.process.stdin is not None
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)
                self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()


def take_turns(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    steps: int,
    warm_up: int,
    folder: Path,
) -> None:
    """Let contenders train in turns; their `seconds` are filled. One that fails is left out and says why.

    Raises:
        RuntimeError: the first one failed.
    """
    try:
        for one in contenders:
            log(f"  starting {one.name}")
            one.start(folder, warm_up)
            if one is contenders[0] and one.failed:
                raise RuntimeError(one.failed)  # there is nothing to compare the others with
        able = [one for one in contenders if not one.failed]
        for number in range(rounds):
            for one in able if number % 2 == 0 else able[::-1]:
                one.seconds.append(one.take(steps))
            log(f"  round {number + 1}: " + ", ".join(f"{one.name} {one.seconds[-1]:.3f} s" for one in able))
    finally:
        for one in contenders:
            one.end()


def serve(turn: Turn, one_step: Callable[[], Any]) -> None:
    """Train for ever, in turns."""
    while True:
        turn.before()
        one_step()
        turn.after()
