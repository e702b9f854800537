"""The start of a run: its directory, its lock, and whether what is there already may be continued."""

from __future__ import annotations

import copy
import json
import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.command.environment import describe_environment
from llmtrain.compose.compose import Composed
from llmtrain.compose.resolve import set_key
from llmtrain.schema.frozen import changes, completed, defaults, frozen_hash, is_frozen
from llmtrain.schema.load import dump, flatten
from llmtrain.schema.stored import config_text, read_plain
from llmtrain.utils.errors import ConfigError, DataError, RunLockedError
from llmtrain.utils.io import atomic_write, explain_full_disk, lock_descriptor, read_json, write_json
from llmtrain.utils.run_directory import RunDirectory

DECIDED_ONCE = ("compile",)
"""Free keys whose decision is kept on resume, besides all frozen ones: it changes the last bits. Others
(processes, threads, micro batch) fit one machine and layout, and are decided again at each start."""

COMPARED_APART = ("run.name", "run.dir", "run.plugins", "resume", "extra")
"""Keys whose change is not worth a note."""


@dataclass(frozen=True)
class Start:
    """A run that may begin or go on.

    Attributes:
        directory: its files; `config.yaml` is written.
        descriptor: holds the lock; it is inherited by the program that this process turns into.
        finished: the summary of a run that is complete already, else None.
    """

    directory: RunDirectory
    descriptor: int
    finished: dict[str, Any] | None = None


def run_name(composed: Composed) -> str:
    """`run.name`, or verb, task or model and data, and the hash of the frozen keys."""
    if composed.config.run.name:
        return str(composed.config.run.name)
    parts = [
        composed.verb,
        *(composed.choices[g] for g in ("task", "model", "data") if g in composed.choices),
    ]
    return "-".join(part.replace("/", "-") for part in parts) + f"-{frozen_hash(composed.config)}"


def run_path(composed: Composed) -> Path:
    """Where the run's files go, as an absolute path."""
    if composed.config.run.dir:
        return Path(composed.config.run.dir)
    return Path.cwd() / "runs" / run_name(composed)


def open_run(composed: Composed, words: Sequence[str]) -> Start:
    """Make or take over the run directory and write its config.

    Args:
        composed: the configuration.
        words: the command line, for `overrides.txt`.

    Raises:
        RunLockedError: another process is at work in it.
        ConfigError: what is there does not go together with this configuration.
        DataError: the directory cannot be made or written.
        DiskFullError: there is no space.
    """
    directory = RunDirectory(run_path(composed))
    resume = "auto" if _is_restart(directory) else composed.config.resume.value
    if resume == "must" and not _has_checkpoint(directory):
        raise ConfigError(
            "resume=must, but there is no checkpoint to resume from",
            str(directory.checkpoints),
            "check run.name and run.dir, or give resume=auto to start anew",
        )
    try:
        descriptor = _lock(directory)
        try:
            finished = _prepare(composed, directory, words, resume)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise DataError(
            f"cannot write the run directory: {error.strerror}",
            str(error.filename or directory.path),
            "choose another place with run.dir=...",
        ) from error
    os.set_inheritable(descriptor, True)
    return Start(directory, descriptor, finished)


def _lock(directory: RunDirectory) -> int:
    """Take the lock of a run and say in it who has it, and whether the directory is new."""
    made = not directory.path.exists()
    with explain_full_disk(directory.path):
        directory.path.mkdir(parents=True, exist_ok=True)
        descriptor = lock_descriptor(directory.lock)
        if descriptor is None:
            raise RunLockedError(
                f"another process is at work in this run{_holder(directory.lock)}",
                str(directory.path),
                "wait until it ends, stop it, or give another run.name",
            )
        os.ftruncate(descriptor, 0)
        holder = {"pid": os.getpid(), "parent": os.getppid(), "host": platform.node(), "made": made}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    return descriptor


def _is_restart(directory: RunDirectory) -> bool:
    """Whether torchrun starts its workers again: what `resume` says was meant for the first time."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        holder = read_json(directory.lock)
        return bool(holder["parent"] == os.getppid() and holder["host"] == platform.node())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _holder(path: Path) -> str:
    """Who holds a lock, as far as the file tells."""
    try:
        holder = read_json(path)
        return f": pid {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _has_checkpoint(directory: RunDirectory) -> bool:
    """Whether there is a checkpoint, be it one that was set aside as bad: the run is not new then."""
    patterns = ("step-*", "bad-step-*")
    return any(path for pattern in patterns for path in directory.checkpoints.glob(pattern))


def _prepare(
    composed: Composed, directory: RunDirectory, words: Sequence[str], resume: str
) -> dict[str, Any] | None:
    """Compare with what is there, and write config, overrides and environment.

    Returns:
        the summary, where the run is complete already.
    """
    requested = dump(composed.config)
    resolved = requested
    earlier = read_earlier(directory, composed.config) if _has_checkpoint(directory) else None
    if earlier is not None:
        if resume == "never":
            raise ConfigError(
                "resume=never, but the run has checkpoints",
                str(directory.checkpoints),
                "give another run.name, or resume=auto to continue it",
            )
        changed = earlier.changed(requested)
        _refuse_frozen(changed, directory)
        if (summary := _finished(directory, changed, requested)) is not None:
            return summary
        _note_changes(changed, directory)
        resolved = earlier.carry_over(requested)
    directory.logs.mkdir(exist_ok=True)
    atomic_write(directory.requested, config_text(composed.verb, requested))
    atomic_write(directory.config, config_text(composed.verb, resolved))
    with explain_full_disk(directory.overrides), open(directory.overrides, "a", encoding="utf-8") as file:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"# {stamp}\n{shlex.join(['llmtrain', *words])}\n")
    write_json(directory.environment, describe_environment())
    return None


@dataclass(frozen=True)
class Earlier:
    """The configuration of the last start of a run, as plain data.

    Attributes:
        decided: what is in `config.yaml`: nothing is left open once the run has begun.
        requested: what was asked for, or None where there is no record of it.
    """

    decided: dict[str, Any]
    requested: dict[str, Any] | None

    def changed(self, now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Keys that are asked for otherwise than last time: key -> (old, new).

        Asking by name for what was decided before is no change.
        """
        if self.requested is None:
            return changes(self.decided, now)
        before, decided, after = flatten(self.requested), flatten(self.decided), flatten(now)
        return {
            key: (before.get(key), after.get(key))
            for key in sorted(before | after)
            if after.get(key) not in (before.get(key), decided.get(key, before.get(key)))
        }

    def carry_over(self, now: dict[str, Any]) -> dict[str, Any]:
        """What is asked for now, with what was decided before where it is left open again."""
        before, decided = flatten(self.requested or now), flatten(self.decided)
        result = copy.deepcopy(now)
        for key, value in flatten(now).items():
            left_open = value in (None, "auto") and before.get(key) == value
            if left_open and decided.get(key) is not None and (is_frozen(key) or key in DECIDED_ONCE):
                set_key(result, key, decided[key])
        return result


def read_earlier(directory: RunDirectory, config: Any) -> Earlier | None:
    """The configuration of the last start, or None where there was none.

    Args:
        directory: of the run.
        config: the one that it is compared with; it tells what keys mean that the last start did not know.

    Raises:
        ConfigError: it cannot be read.
    """
    if not directory.config.exists():
        return None
    _, decided = read_plain(directory.config.read_text(encoding="utf-8"), str(directory.config))
    requested = None
    if directory.requested.exists():
        text = directory.requested.read_text(encoding="utf-8")
        _, requested = read_plain(text, str(directory.requested))
    usual = defaults(config)
    return Earlier(completed(decided, usual), requested and completed(requested, usual))


def finished_before(directory: Path, config: Any) -> dict[str, Any] | None:
    """The summary of a run that is complete already and that this configuration asks for, else None.

    Nothing is written; where there is any doubt, it is None.
    """
    run = RunDirectory(directory)
    try:
        earlier = read_earlier(run, config) if _has_checkpoint(run) else None
    except (OSError, ConfigError):
        return None
    if earlier is None or config.resume == "never":
        return None
    requested = dump(config)
    changed = earlier.changed(requested)
    return None if any(map(is_frozen, changed)) else _finished(run, changed, requested)


def _refuse_frozen(changed: dict[str, tuple[Any, Any]], directory: RunDirectory) -> None:
    """Refuse changes of keys that make the run what it is.

    Raises:
        ConfigError: with a line for each.
    """
    lines = [
        f"    {key}: {_text(old)} -> {_text(new)}" for key, (old, new) in changed.items() if is_frozen(key)
    ]
    if lines:
        raise ConfigError(
            "\n".join(["the run was started with other settings, which may not change on resume", *lines]),
            str(directory.config),
            "give the old values to continue it, or another run.name for a new run",
        )


def _text(value: Any) -> str:
    return (
        "null"
        if value is None
        else json.dumps(value)
        if isinstance(value, list | dict | bool)
        else str(value)
    )


def _finished(
    directory: RunDirectory, changed: dict[str, tuple[Any, Any]], requested: dict[str, Any]
) -> dict[str, Any] | None:
    """The summary of a run that has reached the length that is asked for now."""
    try:
        summary = read_json(directory.summary)
    except (OSError, ValueError):
        return None
    if not isinstance(summary, dict) or summary.get("finished") is not True:
        return None
    steps = requested["train"]["steps"]
    if steps is not None and not summary.get("ended_early"):
        return summary if int(summary.get("steps", 0)) >= steps else None
    lengths = {"train.steps", "train.epochs", "train.tokens", "eval.patience"}
    return None if lengths & changed.keys() else summary


def _note_changes(changed: dict[str, tuple[Any, Any]], directory: RunDirectory) -> None:
    """Record free keys that change with this start in `events.jsonl`."""
    noted = {
        key: {"old": old, "new": new}
        for key, (old, new) in changed.items()
        if not key.startswith(COMPARED_APART)
    }
    if noted:
        event = {"event": "config_changed", "time": time.time(), "changes": noted}
        with explain_full_disk(directory.events), open(directory.events, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
