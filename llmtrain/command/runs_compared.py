"""Runs side by side: what differs in their configs, their scores and their curves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmtrain.command.style import Style
from llmtrain.metrics.chart import Chart, Series
from llmtrain.metrics.history import VALIDATION, Best, History
from llmtrain.metrics.picture import PNG_HINT, can_draw_png, svg_sheet, write_png
from llmtrain.metrics.summary import format_duration, typed_path
from llmtrain.metrics.text_plot import text_plot
from llmtrain.schema.load import flatten
from llmtrain.utils.errors import ConfigError, DataError
from llmtrain.utils.io import atomic_write

QUIET = ("run.name", "run.dir", "run.plugins", "launch.", "log.", "extra.", "resume")
"""Keys whose difference between two runs says nothing about what was learned."""


def value_text(value: Any) -> str:
    """A value as one would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    return str(value)


def best_text(best: Best | None) -> str:
    """The best score in a few characters."""
    return "-" if best is None else f"{best.metric} {best.value:.4f}"


def cells(run: History) -> tuple[str, ...]:
    """A line of the table."""
    total = f"/{run.total_steps:,}" if run.total_steps else ""
    seconds = run.summary.get("seconds")
    return (
        run.name,
        run.state.value,
        f"{run.step:,}{total}" if run.records or run.summary else "-",
        best_text(run.best),
        "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
        format_duration(seconds) if isinstance(seconds, int | float) else "-",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)) if run.changed else "-",
    )


def titled(title: str, text: str, style: Style) -> str:
    """A block of text with a heading."""
    return f"{style.bold(title)}\n{text}"


def compare(found: Sequence[History], picture: str | None, style: Style) -> str:
    """Config differences, scores and curves of some runs, side by side.

    Raises:
        ConfigError: the picture is of another kind.
        DataError: it cannot be written.
    """
    marks = "abcdefghi"[: len(found)]
    header = ("", *(f"{mark}: {run.name}" for mark, run in zip(marks, found, strict=True)))
    rows = [(name, *values) for name, values in _scores(found)]
    parts = [style.table(header, rows)]
    different, quiet = differences(found)
    if different:
        parts.append(titled("config", style.table(header, different), style))
    else:
        parts.append("their configs are the same" + (f", but for {', '.join(quiet)}" if quiet else ""))
    if different and quiet:
        parts[-1] += f"\n  {style.dim('and ' + ', '.join(quiet))}"
    for title, curve in _curves(found):
        if any(one.points for one in curve):
            lines = "\n".join(f"  {line}" for line in text_plot(curve, marks))
            parts.append(titled(f"{title}  ({', '.join(header[1:])})", lines, style))
            parts.append(style.table(("step", *marks), _table_of(curve)))
    if picture is not None:
        parts.append(draw_picture(found, Path(picture).expanduser()))
    return "\n\n".join(parts)


def _curves(found: Sequence[History]) -> list[tuple[str, list[Series]]]:
    return [
        ("training loss", [Series(run.name, run.curve("loss")) for run in found]),
        (
            "validation loss",
            [Series(run.name, run.curve("validation_loss", VALIDATION), True) for run in found],
        ),
    ]


def _scores(found: Sequence[History]) -> Iterable[tuple[str, list[str]]]:
    """What was reached by each."""
    yield "state", [run.state.value for run in found]
    columns = [cells(run) for run in found]
    for name, place in (("steps", 2), ("best", 3), ("tokens/s", 4), ("time", 5)):
        yield name, [column[place] for column in columns]
    parameters = [run.summary.get("parameters") for run in found]
    if any(parameters):
        yield "parameters", [f"{one:,}" if isinstance(one, int) else "-" for one in parameters]


def differences(found: Sequence[History]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Keys of the config that are not the same in all runs, with their values; and those among them that
    say nothing about what was learned. A section that only some of the runs have takes one row."""
    told = [flatten(_common_sections(run.config, found)) for run in found]
    rows: list[tuple[str, ...]] = []
    quiet = []
    for key in sorted({key for config in told for key in config}):
        texts = [value_text(config[key]) if key in config else "-" for config in told]
        if len(set(texts)) > 1:
            if key.startswith(QUIET):
                quiet.append(key)
            else:
                rows.append((key, *(shorten(text) for text in texts)))
    return rows, quiet


def _common_sections(config: dict[str, Any], found: Sequence[History]) -> dict[str, Any]:
    """A config in which sections that some of the runs lack are told by their kind."""
    return {
        name: value.get("kind", "given")
        if isinstance(value, dict) and not all(isinstance(run.config.get(name), dict) for run in found)
        else value
        for name, value in config.items()
    }


def shorten(text: str, most: int = 48) -> str:
    """A text without its middle where it is long."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"


def _table_of(curves: Sequence[Series], most: int = 10) -> list[tuple[str, ...]]:
    """Values of all curves at some of the steps that they share; the last of each where they share none."""
    values = [dict(one.points) for one in curves]
    steps = sorted(set.intersection(*(set(one) for one in values if one)))
    if len(steps) > most:
        steps = [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
    steps = steps or sorted({max(one) for one in values if one})
    return [(f"{step:,g}", *(f"{one[step]:.4f}" if step in one else "-" for one in values)) for step in steps]


def draw_picture(found: Sequence[History], path: Path) -> str:
    """Write the curves of some runs in common axes, as SVG or PNG.

    Raises:
        ConfigError: another kind of file is asked for, or Pillow is missing.
        DataError: it cannot be written.
    """
    charts = [Chart(title, curve) for title, curve in _curves(found)]
    charts.append(Chart("gradient norm", [Series(r.name, r.curve("gradient_norm")) for r in found], True))
    speeds = [Series(run.name, run.curve("tokens_per_second")) for run in found]
    charts.append(Chart("tokens per second", speeds))
    charts = [chart for chart in charts if chart.drawn]
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"a picture is .svg or .png, not {path.suffix!r}", "picture", "write picture=a.svg")
    if path.suffix == ".png" and not can_draw_png():
        raise ConfigError("a PNG file needs Pillow", "picture", f"{PNG_HINT}, or write picture=FILE.svg")
    try:
        if path.suffix == ".svg":
            atomic_write(path, svg_sheet(charts))
        else:
            write_png(path, charts, columns=2)
    except OSError as error:
        raise DataError(
            f"cannot write the picture: {error.strerror}", str(path), "give another picture="
        ) from error
    return f"picture: {typed_path(path)}"
