"""`-m`: every combination of the swept values, in child processes: one after the other, or some at a time."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.command.children import POLL_INTERVAL, Children, Job
from llmtrain.command.start import finished_before, run_path
from llmtrain.command.style import Style
from llmtrain.compose.compose import Composed
from llmtrain.metrics.history import is_at_work
from llmtrain.schema.roots import TRAINING
from llmtrain.utils.errors import EXIT_MEANING, ConfigError
from llmtrain.utils.io import read_json
from llmtrain.utils.machine import num_cores, num_gpus
from llmtrain.utils.run_directory import RunDirectory

LOCK_SECONDS = 60.0
"""How long a trial is waited for that is still at work: it saves, since its sweep was killed."""


@dataclass
class Trial:
    """One run of a sweep.

    Attributes:
        words: its command line after the verb.
        swept: the overrides that make it differ from the others.
        directory: its run directory, or None for verbs without one.
        metric: name of the score.
        score: the best validation score of the run.
        done: it was complete before this sweep began, and is not run again.
    """

    words: list[str]
    swept: list[str]
    directory: Path | None = None
    exit_code: int | None = None
    metric: str = "loss"
    score: float | None = None
    seconds: float = 0.0
    done: bool = False


def plan(composed: Sequence[Composed], arguments: Sequence[str]) -> list[Trial]:
    """The trials of a sweep, each with a run directory of its own.

    Args:
        composed: the configuration of each.
        arguments: the words as they were typed, swept ones included.

    Raises:
        ConfigError: two trials would have the same directory.
    """
    trials: list[Trial] = []
    for index, one in enumerate(composed):
        swept = [word for word in one.overrides if word not in arguments]
        words = list(one.overrides)
        directory = None
        if one.verb in TRAINING:
            if one.config.run.dir:
                directory = Path(one.config.run.dir) / str(index)
                words = [*_without(words, "run.dir"), f"run.dir={_quoted(str(directory))}"]
            elif one.config.run.name:
                name = f"{one.config.run.name}-{index}"
                directory = Path.cwd() / "runs" / name
                words = [*_without(words, "run.name"), f"run.name={_quoted(name)}"]
            else:
                directory = run_path(one)
        done = directory is not None and finished_before(directory, one.config) is not None
        trials.append(Trial(words, swept, directory, done=done))
    directories = [trial.directory for trial in trials if trial.directory is not None]
    if len(set(directories)) < len(directories):
        raise ConfigError(
            "some trials would share a run directory, since they differ only in keys that do not name a run",
            "command line: -m",
            "give run.name=NAME: the trials become NAME-0, NAME-1, ...",
        )
    return trials


def _without(words: Sequence[str], key: str) -> list[str]:
    return [word for word in words if word.partition("=")[0] != key]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class Sweep:
    """Runs the trials; a signal stops those at hand, which save, and then the sweep.

    Args:
        verb: of each trial.
        trials: what `plan` made.
        options: words that every trial gets besides its own.
        style: of what is printed.
        at_once: trials that run beside each other.
    """

    def __init__(
        self, verb: str, trials: Sequence[Trial], options: Sequence[str], style: Style, at_once: int = 1
    ) -> None:
        self.verb = verb
        self.trials = trials
        self.options = list(options)
        self.style = style
        self.at_once = min(at_once, max(len(trials), 1))

    def run(self) -> int:
        """Run all trials that are not done; one that fails does not end the sweep.

        Returns:
            the exit code: that of the signal that stopped it, else the worst one of the trials.
        """
        for trial in self.trials:
            trial.done = trial.done and "--dry-run" not in self.options
            if trial.done:
                trial.exit_code = 0
                trial.metric, trial.score = read_score(trial.directory)
        left = [trial for trial in self.trials if not trial.done]
        with Children() as children:
            wait_for_locks(left, children)
            if self.at_once > 1:
                self._run_beside(left, children)
            else:
                for trial in left:
                    if not children.stopped_by:
                        self._announce(trial)
                        self._ended(trial, *children.run(self._command(trial)))
        print(self.report())
        if children.stopped_by:
            print("the same command goes on where this sweep stopped")
        return children.exit_code or max((trial.exit_code or 0 for trial in self.trials), default=0)

    def _run_beside(self, left: Sequence[Trial], children: Children) -> None:
        """Run several at a time; their lines carry the trial's number."""
        jobs = [Job(self._command(trial), f"{self.trials.index(trial)}| ") for trial in left]
        children.run_beside(jobs, self.at_once, lambda number: self._announce(left[number]), self._share)
        for trial, job in zip(left, jobs, strict=True):
            if job.exit_code is not None:
                self._ended(trial, job.exit_code, job.seconds)

    def _share(self, place: int) -> Mapping[str, str]:
        """Cores and GPUs for one of the places."""
        share = {}
        if "OMP_NUM_THREADS" not in os.environ:
            share["OMP_NUM_THREADS"] = str(max(1, num_cores() // self.at_once))
        if (gpus := num_gpus()) >= self.at_once:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            share["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[place :: self.at_once])
        return share

    def _command(self, trial: Trial) -> list[str]:
        return [sys.executable, "-m", "llmtrain", self.verb, *trial.words, *self.options]

    def _announce(self, trial: Trial) -> None:
        number = self.trials.index(trial) + 1
        title = f"trial {number} of {len(self.trials)}: {' '.join(trial.swept) or self.verb}"
        print(self.style.bold(title), flush=True)

    @staticmethod
    def _ended(trial: Trial, exit_code: int, seconds: float) -> None:
        trial.exit_code, trial.seconds = exit_code, seconds
        trial.metric, trial.score = read_score(trial.directory)

    def report(self) -> str:
        """A table of all trials, the best one marked; where only seeds differ, their mean and deviation."""
        ranked = [trial for trial in self.trials if trial.exit_code == 0 and trial.score is not None]
        metric = ranked[0].metric if ranked else "loss"
        best = best_of([trial.score for trial in ranked if trial.score is not None], metric)
        rows = []
        for index, trial in enumerate(self.trials):
            code = trial.exit_code
            time_text = "before" if trial.done else "-" if code is None else f"{trial.seconds:.1f} s"
            rows.append(
                (
                    str(index),
                    " ".join(trial.swept) or "-",
                    "not run" if code is None else f"{code} {EXIT_MEANING.get(code, '')}".strip(),
                    time_text,
                    "-" if trial.score is None else f"{trial.score:.4f}",
                    "best" if trial in ranked and trial.score == best else "",
                )
            )
        header = ("trial", "overrides", "exit code", "time", f"best {metric}", "")
        return "\n".join([self.style.table(header, rows), *over_seeds(ranked, metric)])


def wait_for_locks(trials: Sequence[Trial], children: Children) -> None:
    """Wait for trials that are still at work, since a sweep that was killed has asked them to stop."""
    end = time.monotonic() + LOCK_SECONDS
    busy = [
        trial.directory for trial in trials if trial.directory is not None and _is_locked(trial.directory)
    ]
    if busy:
        print(f"waiting for {', '.join(path.name for path in busy)} to stop", flush=True)
    while any(map(_is_locked, busy)) and not children.stopped_by and time.monotonic() < end:
        time.sleep(POLL_INTERVAL)


def _is_locked(directory: Path) -> bool:
    return is_at_work(RunDirectory(directory).lock)


def best_of(scores: Sequence[float], metric: str) -> float | None:
    """The lowest loss, or the highest of any other score."""
    return (min if metric == "loss" else max)(scores, default=None)


def over_seeds(trials: Sequence[Trial], metric: str) -> list[str]:
    """A line for each setting that was run with several seeds: mean and standard deviation (n - 1)."""
    groups: dict[str, list[float]] = {}
    for trial in trials:
        setting = " ".join(word for word in trial.swept if not word.startswith("run.seed="))
        if trial.score is not None:
            groups.setdefault(setting, []).append(trial.score)
    return [
        f"{setting or 'over seeds'}: {metric} {statistics.mean(scores):.4f} "
        f"(standard deviation {statistics.stdev(scores):.4f}, {len(scores)} seeds)"
        for setting, scores in groups.items()
        if len(scores) > 1
    ]


def read_score(directory: Path | None) -> tuple[str, float | None]:
    """Metric and best validation score of a run's summary."""
    if directory is None:
        return "loss", None
    try:
        summary: dict[str, Any] = read_json(directory / "summary.json")
        metric = str(summary["metric"])
        value = summary[f"best_validation_{metric}"]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return "loss", None
    return metric, float(value) if isinstance(value, int | float) and math.isfinite(value) else None
