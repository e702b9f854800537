"""What the files of a run tell about it; a file that is missing or half written only tells less."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from llmtrain.utils.io import read_json, read_json_lines
from llmtrain.utils.run_directory import RunDirectory

Record = dict[str, Any]
Points = list[tuple[int, float]]
"""(step, value), in the order of the steps."""

TRAIN, VALIDATION, NORMS = "train", "validation", "norms"
"""Kinds of the records in `metrics.jsonl`."""


class RunState(str, Enum):
    """What has become of a run."""

    running = "running"
    finished = "finished"
    stopped = "stopped"
    crashed = "crashed"
    broken = "broken"


STATE_MEANING = {
    RunState.running: "a process is at work in it",
    RunState.finished: "it has reached its last step",
    RunState.stopped: "it was asked to stop, and has saved",
    RunState.crashed: "its process ended without a word, or with an error",
    RunState.broken: "it has no config that can be read",
}


@dataclass(frozen=True)
class Checkpoint:
    """A saved state.

    Attributes:
        size: bytes on the disk.
        best: whether `checkpoints/best` points at it.
    """

    name: str
    step: int
    size: int
    best: bool


@dataclass(frozen=True)
class Best:
    """The best score of a run: of `loss` the lowest, of others the highest."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class History:
    """One run as its files tell it.

    Attributes:
        path: of its directory.
        config: as it was decided, without the verb; empty where it cannot be read.
        summary: of its last end, or empty.
        environment: what it ran on last, or empty.
        records: numbers of steps, as in `metrics.jsonl`.
        events: as in `events.jsonl`.
        commands: what was typed to start it, the oldest first.
    """

    path: Path
    verb: str = ""
    state: RunState = RunState.broken
    config: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    environment: Record = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    changed: float = 0.0
    """When a file of it was written last, in seconds since 1970."""

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.path.name

    def curve(self, name: str, kind: str = TRAIN) -> Points:
        """A number over the steps, where it is one and finite."""
        return [
            (record["step"], float(record[name]))
            for record in self.records
            if record["kind"] == kind and is_number(record.get(name))
        ]

    def names(self, kind: str) -> list[str]:
        """Names of the numbers of a kind, in the order in which they came up."""
        found = {
            name: None
            for record in self.records
            if record["kind"] == kind
            for name, value in record.items()
            if name not in ("kind", "step") and is_number(value)
        }
        return list(found)

    @cached_property
    def metric(self) -> str:
        """By which the best checkpoint is chosen."""
        task = self.config.get("task")
        metric = self.summary.get("metric") or (task.get("metric") if isinstance(task, dict) else None)
        return metric if isinstance(metric, str) else "loss"

    @cached_property
    def best(self) -> Best | None:
        """The best score of its validations; of a run without any, its last training loss."""
        points = self.curve(f"validation_{self.metric}", VALIDATION)
        if not points:
            losses = self.curve("loss")
            return Best("train loss", losses[-1][1], losses[-1][0]) if losses else None
        choose = min if self.metric == "loss" else max
        step, value = choose(points, key=lambda point: point[1])
        return Best(self.metric, value, step)

    @cached_property
    def step(self) -> int:
        """The last step that it tells of."""
        steps = [record["step"] for record in self.records if record["kind"] == TRAIN]
        return max([*steps, _whole(self.summary.get("steps"))])

    @cached_property
    def total_steps(self) -> int:
        """Length that it was to have at last, 0 where that is not known."""
        last = next((record for record in reversed(self.records) if "total_steps" in record), {})
        return _whole(last.get("total_steps")) or _whole(self.summary.get("total_steps"))

    @cached_property
    def tokens_per_second(self) -> float | None:
        """Median over its reports: the first of them may hold compilation."""
        speeds = [value for _, value in self.curve("tokens_per_second")]
        return statistics.median(speeds) if speeds else None

    @property
    def samples(self) -> list[Record]:
        """Texts that were drawn in training, each step and prompt once."""
        return [event for event in latest(self.events, "sample") if isinstance(event.get("sample"), str)]

    def checkpoints(self) -> list[Checkpoint]:
        """Its checkpoints, the oldest first."""
        folder = RunDirectory(self.path).checkpoints
        best = folder / "best"
        target = os.path.basename(os.readlink(best)) if best.is_symlink() else ""
        found = []
        for path in folder.glob("step-*"):
            number = path.name.removeprefix("step-")
            if path.is_dir() and number.isdigit():
                size = sum(_size(file) for file in path.iterdir())
                found.append(Checkpoint(path.name, int(number), size, path.name == target))
        return sorted(found, key=lambda one: one.step)


def latest(events: Iterable[Record], kind: str) -> list[Record]:
    """Events of a kind, the last one for each step and prompt: a restart may have repeated steps."""
    found = {(_whole(e.get("step")), str(e.get("prompt"))): e for e in events if e.get("event") == kind}
    return sorted(found.values(), key=lambda event: _whole(event.get("step")))


def is_number(value: Any) -> bool:
    """Whether it is a finite number (booleans are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> int:
    return int(value) if is_number(value) else 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_history(path: Path, ended: bool = False) -> History:
    """Read what there is of a run.

    Args:
        path: of its directory.
        ended: nobody is at work in it any more, whatever its lock says.
    """
    run = RunDirectory(path)
    config = _section(run.config, _read_yaml)
    verb = config.pop("verb", None)
    summary = _section(run.summary, read_json)
    events = [event for event in _lines(run.events) if isinstance(event.get("event"), str)]
    known = isinstance(verb, str) and bool(config)
    return History(
        path=run.path,
        verb=verb if isinstance(verb, str) else "",
        state=find_state(run, summary, events, ended) if known else RunState.broken,
        config=config,
        summary=summary,
        environment=_section(run.environment, read_json),
        records=[
            r for r in _lines(run.metrics) if is_number(r.get("step")) and isinstance(r.get("kind"), str)
        ],
        events=events,
        commands=_commands(run.overrides),
        changed=max(_changed(file) for file in (run.config, run.metrics, run.events, run.summary)),
    )


def find_state(
    run: RunDirectory, summary: Mapping[str, Any], events: Iterable[Record], ended: bool = False
) -> RunState:
    """What has become of a run, from its lock, its last event of start or end, and its summary."""
    if not ended and is_at_work(run.lock):
        return RunState.running
    ends = {"finished": RunState.finished, "stopped": RunState.stopped}
    ends |= {"started": RunState.crashed, "resumed": RunState.crashed}
    told = [ends[event["event"]] for event in events if event.get("event") in ends]
    if told:
        return told[-1]
    return RunState.finished if summary.get("finished") is True else RunState.crashed


def is_at_work(lock: Path) -> bool:
    """Whether a process holds the lock of a run.

    The lock is tried only where the process that is named in it still lives here (or may live on another
    machine): so nobody who is just starting is disturbed.
    """
    try:
        holder = read_json(lock)
        pid, here = int(holder["pid"]), holder["host"] == platform.node()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if here and not _lives(pid):
        return False
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _section(path: Path, read: Any) -> Record:
    """A file that holds one section, else an empty one."""
    try:
        data = read(path)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return dict(data) if isinstance(data, dict) else {}


def _lines(path: Path) -> list[Record]:
    try:
        return [record for record in read_json_lines(path) if isinstance(record, dict)]
    except (OSError, RecursionError):
        return []


def _commands(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line and not line.startswith("# ")]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
