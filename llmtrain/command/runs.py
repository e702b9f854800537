"""`llmtrain runs ls | show | compare | report`: what the run directories tell; no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llmtrain.command.runs_compared import best_text, cells, compare, titled, value_text
from llmtrain.command.style import Style
from llmtrain.metrics.chart import Series
from llmtrain.metrics.history import (
    STATE_MEANING,
    VALIDATION,
    History,
    RunState,
    read_history,
)
from llmtrain.metrics.report import write_report
from llmtrain.metrics.summary import summary_rows, typed_path
from llmtrain.metrics.text_plot import text_plot
from llmtrain.schema.load import flatten, suggest
from llmtrain.utils.errors import ConfigError, DataError

ACTIONS = ("ls", "show", "compare", "report")

FOLDER = "runs"
"""Where runs are looked for, below the current directory, unless `dir=` says otherwise."""

SORT_KEYS: dict[str, Callable[[History], Any]] = {
    "name": lambda run: run.name,
    "state": lambda run: run.state.value,
    "steps": lambda run: run.step,
    "best": lambda run: (
        None if run.best is None else run.best.value * (1 if "loss" in run.best.metric else -1)
    ),
    "speed": lambda run: run.tokens_per_second,
    "when": lambda run: run.changed,
}
"""What `sort=` takes; `best` puts the best first."""

USAGE = {
    "ls": "[dir=DIR] [sort=KEY] [last=N] [key=value ...]",
    "show": "RUN",
    "compare": "RUN RUN [...] [picture=FILE.svg|FILE.png]",
    "report": "RUN [...]",
}


def runs(words: Sequence[str], style: Style) -> str:
    """Do what `llmtrain runs WORDS` asks for.

    Returns:
        what is to be printed.

    Raises:
        ConfigError: wrong words.
        DataError: there is no such run, or a file cannot be written.
    """
    action, rest = (words[0], list(words[1:])) if words and "=" not in words[0] else ("ls", list(words))
    if action not in ACTIONS:
        raise ConfigError(f"there is no `runs {action}`", "command line", suggest(action, ACTIONS))
    names = [word for word in rest if "=" not in word]
    options = dict(word.partition("=")[::2] for word in rest if "=" in word)
    folder = Path(options.pop("dir", FOLDER)).expanduser()
    least, most = {"ls": (0, 0), "show": (1, 1), "compare": (2, 9), "report": (1, 999)}[action]
    known = {"ls": None, "compare": {"picture"}}.get(action, set())
    if not least <= len(names) <= most or (known is not None and options.keys() - known):
        raise ConfigError(
            f"wrong words after `runs {action}`", "command line", f"write runs {action} {USAGE[action]}"
        )
    if action == "ls":
        return listing(folder, options, style)
    paths = [find_run(name, folder) for name in names]
    if action == "show":
        return show(read_history(paths[0]), style)
    if action == "report":
        return report(paths)
    return compare([read_history(path) for path in paths], options.get("picture"), style)


def complete_runs(before: Sequence[str]) -> list[str]:
    """Words that may follow after `runs` and these."""
    action = next((word for word in before if word in ACTIONS), None)
    if action is None:
        return list(ACTIONS)
    folder = next((word.removeprefix("dir=") for word in before if word.startswith("dir=")), FOLDER)
    found = run_directories(Path(folder).expanduser())
    if action == "ls":
        states = [f"state={state.value}" for state in RunState]
        return [*(f"sort={key}" for key in SORT_KEYS), *states, "dir=", "last=", "name=", "verb="]
    names = [path.name for path in found if path.name not in before]
    return [*names, "dir=", *(["picture="] if action == "compare" else [])]


def run_directories(folder: Path) -> list[Path]:
    """Directories below a folder that are runs, or once were to become one."""
    try:
        entries = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
    found: list[Path] = []
    for entry in entries:
        if _is_run(entry):
            found.append(entry)
        else:  # of a sweep with run.dir=...: a folder of runs
            found += [path for path in sorted(entry.glob("*")) if path.is_dir() and _is_run(path)]
    return found


def _is_run(path: Path) -> bool:
    names = ("config.yaml", ".requested.yaml", ".lock", "metrics.jsonl")
    return any((path / name).exists() for name in names)


def find_run(name: str, folder: Path) -> Path:
    """The directory of a run: a path, a name below the folder, or the start of only one name.

    Raises:
        DataError: there is none.
    """
    for path in (folder / name, Path(name).expanduser()):
        if path.is_dir() and _is_run(path):
            return path
    known = [path.name for path in run_directories(folder)]
    begun = [one for one in known if one.startswith(name)]
    if len(begun) == 1:
        return folder / begun[0]
    fix = suggest(name, begun or known) if known else f"give its path, or dir=DIR (now {folder})"
    raise DataError(f"there is no run {name!r}", str(folder), fix)


def listing(folder: Path, options: dict[str, str], style: Style) -> str:
    """A table of all runs below a folder.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.
    """
    sort, last = options.pop("sort", "when"), options.pop("last", "0")
    if sort not in SORT_KEYS:
        raise ConfigError(f"runs cannot be sorted by {sort!r}", "sort", suggest(sort, SORT_KEYS))
    if not last.isdigit():
        raise ConfigError(f"last must be a whole number, not {last!r}", "last", "write last=10")
    found = [read_history(path) for path in run_directories(folder)]
    if not found:
        return f"there is no run in {folder}"
    kept = [run for run in found if all(_matches(run, key, value) for key, value in options.items())]
    for key in options:
        if not any(key in _facts(run) for run in found):
            known = sorted({key for run in found for key in _facts(run)})
            raise ConfigError(f"no run has a key {key!r}", "command line", suggest(key, known))
    kept.sort(key=lambda run: _ordered(SORT_KEYS[sort](run)))
    rows = [cells(run) for run in kept[-int(last) :]]  # of 0: all
    table = style.table(("name", "state", "steps", "best", "tok/s", "time", "last change"), rows)
    return table if rows else f"none of {len(found)} runs is like that"


def _ordered(value: Any) -> tuple[bool, Any]:
    """What is not known comes first."""
    return (False, 0) if value is None else (True, value)


def _facts(run: History) -> dict[str, Any]:
    """What a run can be chosen by: its config, and a few words about it."""
    facts = {"name": run.name, "state": run.state.value, "verb": run.verb, "metric": run.metric}
    return flatten(run.config) | facts


def _matches(run: History, key: str, wanted: str) -> bool:
    """Whether a fact is as wanted: the same text or number, or like a pattern with `*`."""
    facts = _facts(run)
    if key not in facts:
        return False
    told = value_text(facts[key])
    try:
        return float(told) == float(wanted)
    except ValueError:
        return fnmatch.fnmatchcase(told, wanted)


def show(run: History, style: Style) -> str:
    """One run in detail."""
    blocks = [f"{style.bold(run.name)}: {run.state.value} {style.dim(f'({STATE_MEANING[run.state]})')}"]
    blocks[0] += f"\n  {typed_path(run.path)}"
    rows = _summary(run)
    blocks.append(style.entries(rows))
    if run.config:
        blocks.append(titled("config", style.entries(config_rows(run.config)), style))
    if run.records:
        curves = [Series("train", run.curve("loss"))]
        curves.append(Series("validation", run.curve("validation_loss", VALIDATION)))
        plot = "\n".join(f"  {line}" for line in text_plot(curves, "·o"))
        blocks.append(titled("loss  (· training, o validation)", plot, style))
    if run.checkpoints():
        lines = [
            (one.name, f"{one.size / 1e6:,.1f} MB", "best" if one.best else "") for one in run.checkpoints()
        ]
        blocks.append(titled("checkpoints", style.table(("name", "size", ""), lines), style))
    if run.samples:
        newest = run.samples[-3:]
        texts = [f"  step {one.get('step')}: {one.get('prompt') or ''}{one['sample']}" for one in newest]
        blocks.append(titled("samples", "\n".join(texts), style))
    if run.commands:
        blocks.append(titled("started by", f"  {run.commands[-1]}", style))
    return "\n\n".join(blocks)


def _summary(run: History) -> list[tuple[str, str]]:
    """What was reached: from the summary, or as far as the records tell."""
    try:
        if run.summary:
            return summary_rows(run.summary)
    except (KeyError, TypeError, ValueError):
        pass
    rows = [("steps", f"{run.step:,}"), ("best", best_text(run.best))]
    if run.tokens_per_second is not None:
        rows.append(("speed", f"{run.tokens_per_second:,.0f} tokens/s"))
    return rows


def config_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """A config in a line for each section; what is empty or off is left out."""
    rows: list[tuple[str, str]] = []
    plain: list[str] = []
    for section, values in config.items():
        flat = flatten(values) if isinstance(values, dict) else {"": values}
        words = [
            f"{key}={value_text(value)}".removeprefix("=")
            for key, value in flat.items()
            if value not in (None, False, "", [], {})
        ]
        if isinstance(values, dict) and words:
            rows.append((section, " ".join(words)))
        elif words:
            plain.append(f"{section}={words[0]}")
    return [*rows, ("other", " ".join(plain))] if plain else rows


def report(paths: Iterable[Path]) -> str:
    """Write the reports of runs anew.

    Raises:
        DataError: one cannot be written.
    """
    lines = []
    hints = set()
    for path in paths:
        try:
            hint = write_report(path)
        except OSError as error:
            raise DataError(
                f"cannot write the report: {error.strerror}", str(path), "free or unlock the folder"
            ) from error
        lines.append(typed_path(path / "report.html"))
        hints |= {hint} if hint else set()
    return "\n".join([*lines, *sorted(hints)])
