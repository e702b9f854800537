"""`-m`: every combination of the swept values, one child process after the other."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.command.children import Children
from llmtrain.command.start import run_path
from llmtrain.command.style import Style
from llmtrain.compose.compose import Composed
from llmtrain.schema.roots import TRAINING
from llmtrain.utils.errors import EXIT_MEANING, ConfigError
from llmtrain.utils.io import read_json


@dataclass
class Trial:
    """One run of a sweep.

    Attributes:
        words: its command line after the verb.
        swept: the overrides that make it differ from the others.
        directory: its run directory, or None for verbs without one.
        metric: name of the score.
        score: the best validation score of the run.
    """

    words: list[str]
    swept: list[str]
    directory: Path | None = None
    exit_code: int | None = None
    metric: str = "loss"
    score: float | None = None
    seconds: float = 0.0


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
        trials.append(Trial(words, swept, directory))
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
    """Runs the trials; a signal stops the trial at hand, which saves, and then the sweep."""

    def __init__(self, verb: str, trials: Sequence[Trial], options: Sequence[str], style: Style) -> None:
        self.verb = verb
        self.trials = trials
        self.options = list(options)
        self.style = style

    def run(self) -> int:
        """Run all trials.

        Returns:
            the exit code: that of the signal that stopped it, else the worst one of the trials.
        """
        with Children() as children:
            for index, trial in enumerate(self.trials):
                if children.stopped_by:
                    break
                self._run_trial(index, trial, children)
        print(self.report())
        return children.exit_code or max((trial.exit_code or 0 for trial in self.trials), default=0)

    def _run_trial(self, index: int, trial: Trial, children: Children) -> None:
        title = f"trial {index + 1} of {len(self.trials)}: {' '.join(trial.swept) or self.verb}"
        print(self.style.bold(title), flush=True)
        command = [sys.executable, "-m", "llmtrain", self.verb, *trial.words, *self.options]
        trial.exit_code, trial.seconds = children.run(command)
        trial.metric, trial.score = read_score(trial.directory)

    def report(self) -> str:
        """A table of all trials, the best one marked; where only seeds differ, their mean and deviation."""
        ranked = [trial for trial in self.trials if trial.exit_code == 0 and trial.score is not None]
        metric = ranked[0].metric if ranked else "loss"
        best = best_of([trial.score for trial in ranked if trial.score is not None], metric)
        rows = []
        for index, trial in enumerate(self.trials):
            code = trial.exit_code
            rows.append(
                (
                    str(index),
                    " ".join(trial.swept) or "-",
                    "not run" if code is None else f"{code} {EXIT_MEANING.get(code, '')}".strip(),
                    "-" if code is None else f"{trial.seconds:.1f} s",
                    "-" if trial.score is None else f"{trial.score:.4f}",
                    "best" if trial in ranked and trial.score == best else "",
                )
            )
        header = ("trial", "overrides", "exit code", "time", f"best {metric}", "")
        return "\n".join([self.style.table(header, rows), *over_seeds(ranked, metric)])


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
