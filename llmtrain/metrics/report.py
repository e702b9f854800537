"""`report.html` and `loss.png` of a run: everything about it on one page that needs nothing else.

The page has its curves as SVG and its style inside, no script, and forbids the browser to load anything.
Every text that comes from a file of the run is escaped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llmtrain import __version__
from llmtrain.metrics.chart import LIGHT, Chart, Series
from llmtrain.metrics.history import NORMS, VALIDATION, History, is_number, read_history
from llmtrain.metrics.picture import PNG_HINT, can_draw_png, svg, write_png
from llmtrain.metrics.summary import format_duration
from llmtrain.utils.io import atomic_write, read_json
from llmtrain.utils.run_directory import RunDirectory

MOST_SAMPLES = 60
"""Sample texts on the page: the newest."""

MOST_EVENTS = 200
"""Events on the page: the newest."""

MOST_BLOCKS = 8
"""Blocks whose norms are drawn, evenly chosen: more cannot be told apart."""

QUIET = ("checkpoint", "sample", "finished")
"""Events that the page tells in another place."""

DARK = ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#f778ba", "#d4b106", "#39c5cf", "#9ea7b3")

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f8fa; --axis: #57606a; --grid: #d8dee4;
  --text: #24292f; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --axis: #9ea7b3;
  --grid: #30363d; --text: #e6edf3; DARK } }
body { background: var(--page); color: var(--text); margin: 0 auto; max-width: 1120px; padding: 1.5rem;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.state { border-radius: 1em; padding: .1em .7em; font-size: .9rem; background: var(--card);
  border: 1px solid var(--grid); }
.numbers { display: flex; flex-wrap: wrap; gap: .6rem; }
.numbers div { background: var(--card); border-radius: .5rem; padding: .5rem .9rem; }
.numbers b { display: block; font-size: 1.15rem; }
.numbers span, .quiet { color: var(--axis); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1rem; }
.charts svg { width: 100%; height: auto; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem .9rem .25rem 0;
  border-bottom: 1px solid var(--grid); vertical-align: top; } td.number { text-align: right; }
td.when { white-space: nowrap; }
pre { background: var(--card); border-radius: .5rem; padding: .7rem; overflow-x: auto; margin: .3rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
summary { cursor: pointer; margin-top: .6rem; font-weight: 600; }
"""


def loss_chart(history: History) -> Chart:
    """Loss in training and in validation."""
    return Chart(
        "loss",
        [
            Series("training", history.curve("loss")),
            Series("validation", history.curve("validation_loss", VALIDATION), dots=True),
        ],
    )


def charts(history: History) -> list[Chart]:
    """The curves of a run that there are."""
    found = [loss_chart(history), *_parts_of_loss(history), *_scores(history)]
    for title, name, wide in (
        ("learning rate", "learning_rate", False),
        ("gradient norm", "gradient_norm", True),
        ("tokens per second", "tokens_per_second", False),
    ):
        found.append(Chart(title, [Series(title, history.curve(name))], wide, first_colour=2))
    return [chart for chart in [*found, *_norms(history)] if chart.drawn]


def _parts_of_loss(history: History) -> list[Chart]:
    """Where the loss is a sum, its parts; where there are several texts to validate on, the loss of each."""
    series = []
    own = {"validation_loss", *(f"validation_{name}" for name in history.names("train"))}
    texts = [
        Series(
            name.removeprefix("validation_").removesuffix("_loss"), history.curve(name, VALIDATION), dots=True
        )
        for name in history.names(VALIDATION)
        if name.endswith("_loss") and name not in own
    ]
    for name in history.names("train"):
        if name.endswith("_loss"):
            label = name.removesuffix("_loss")
            series += [
                Series(f"{label}, training", history.curve(name)),
                Series(f"{label}, validation", history.curve(f"validation_{name}", VALIDATION), dots=True),
            ]
    found = [Chart("parts of the loss", series), Chart("validation loss of each text", texts)]
    return [chart for chart in found if chart.series]


def _scores(history: History) -> list[Chart]:
    """Scores of the validation besides losses; whole numbers are counts of what was scored."""
    counts = {
        name
        for record in history.records
        if record["kind"] == VALIDATION
        for name, value in record.items()
        if isinstance(value, int)
    }
    names = [n for n in history.names(VALIDATION) if not n.endswith("loss") and n not in counts]
    series = [
        Series(name.removeprefix("validation_").replace("_", " "), history.curve(name, VALIDATION), True)
        for name in names[: len(LIGHT)]
    ]
    return [Chart("validation", series)] if series else []


def _norms(history: History) -> list[Chart]:
    """Norms of weights and gradients by block."""
    found = []
    names = history.names(NORMS)
    for title in ("gradient", "weight"):
        own = [name for name in names if name.startswith(f"{title}_norm/")]
        stride = math.ceil(len(own) / MOST_BLOCKS) or 1
        series = [Series(name.partition("/")[2], history.curve(name, NORMS)) for name in own[::stride]]
        found.append(Chart(f"{title} norm of each part", series, wide=True))
    return found


def write_report(path: Path, ended: bool = False) -> str | None:
    """Write `report.html` of a run directory and, where Pillow is installed, `loss.png`.

    Args:
        path: of the directory.
        ended: it is the run itself that writes it, at its end: it still holds its lock.

    Returns:
        what is to be told to the user about a picture that could not be drawn, or None.
    """
    run, history = RunDirectory(path), read_history(path, ended)
    atomic_write(run.report, page(history))
    if not can_draw_png():
        return f"loss.png needs Pillow: {PNG_HINT}"
    if history.records:
        write_png(run.picture, [loss_chart(history)])
    return None


def page(history: History) -> str:
    """The whole page."""
    parts = [
        f'<h1>{escape(history.name)} <span class="state">{history.state.value}</span></h1>',
        _numbers(history),
        _section("Curves", f'<div class="charts">{"".join(svg(one) for one in charts(history))}</div>'),
        _section("Samples", _samples(history)),
        _section("Best scores", _best(history)),
        *_task_tables(history.path),
        _section("Checkpoints", _checkpoints(history)),
        _section("What happened", _events(history)),
        _section("Started by", "".join(f"<pre>{escape(command)}</pre>" for command in history.commands)),
        _section("Settings", _details(history)),
        f'<p class="quiet">Written by llmtrain {escape(__version__)}, {time.strftime("%Y-%m-%d %H:%M")}.</p>',
    ]
    colours = [";".join(f"--c{i}:{one}" for i, one in enumerate(group)) for group in (LIGHT, DARK)]
    style = STYLE.replace("LIGHT", colours[0]).replace("DARK", colours[1])
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(history.name)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    """A heading with what stands below it; nothing where there is nothing."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; empty where there are no rows."""
    body = [
        "<tr>"
        + "".join(
            f'<td class="number">{escape(cell)}</td>' if _is_numeric(cell) else f"<td>{escape(cell)}</td>"
            for cell in map(str, row)
        )
        + "</tr>"
        for row in rows
    ]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f"<table><tr>{head}</tr>{''.join(body)}</table>" if body else ""


def _is_numeric(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "", 1).isdigit()


def _numbers(history: History) -> str:
    """The few numbers that one looks at first."""
    summary, best = history.summary, history.best
    total = f" of {history.total_steps:,}" if history.total_steps > history.step else ""
    cells = [("steps", f"{history.step:,}{total}")]
    if best is not None:
        cells.append((f"best {best.metric}, step {best.step:,}", f"{best.value:.4f}"))
    for name, key, form in (
        ("tokens", "tokens", lambda value: f"{value:,}"),
        ("time in steps", "seconds", format_duration),
        ("parameters", "parameters", lambda value: f"{value:,}"),
        ("peak memory per process", "peak_memory_bytes", lambda value: f"{value / 1e9:.2f} GB"),
        ("processes", "processes", str),
    ):
        if is_number(summary.get(key)):
            cells.append((name, form(summary[key])))
    if history.tokens_per_second is not None:
        cells.insert(3, ("tokens per second", f"{history.tokens_per_second:,.0f}"))
    boxes = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in cells)
    return f'<div class="numbers">{boxes}</div>'


def _samples(history: History) -> str:
    """Texts that were drawn in training, the newest first."""
    parts = []
    for event in reversed(history.samples[-MOST_SAMPLES:]):
        prompt, text = str(event.get("prompt") or ""), event["sample"]
        title = f"step {event.get('step')}"
        parts.append(
            f'<div class="quiet">{escape(title)}</div><pre><b>{escape(prompt)}</b>{escape(text)}</pre>'
        )
    return "".join(parts)


def _best(history: History) -> str:
    """Best and last value of every score of the validation."""
    rows = []
    for name in history.names(VALIDATION):
        points = history.curve(name, VALIDATION)
        values = [value for _, value in points]
        if all(value == values[0] and value == int(value) for value in values):
            continue  # a count of what was scored
        step, value = (min if name.endswith("loss") else max)(points, key=lambda point: point[1])
        label = name.removeprefix("validation_").replace("_", " ")
        rows.append((label, f"{value:.4f}", f"{step:,}", f"{values[-1]:.4f}"))
    return table(("score", "best", "at step", "last"), rows)


def _task_tables(path: Path) -> list[str]:
    """Tables that a fine-tuned task has left in `scores.json`."""
    try:
        tables = read_json(RunDirectory(path).scores)["tables"]
        return [_section(str(one["title"]), table(one["header"], one["rows"])) for one in tables]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _checkpoints(history: History) -> str:
    rows = [
        (one.name, f"{one.step:,}", f"{one.size / 1e6:,.1f} MB", "best" if one.best else "")
        for one in history.checkpoints()
    ]
    return table(("name", "step", "size", ""), rows)


def _events(history: History) -> str:
    """Starts, stops, changes, bad steps."""
    rows = []
    for event in [event for event in history.events if event.get("event") not in QUIET][-MOST_EVENTS:]:
        when = event.get("time")
        if isinstance(when, int | float):
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(when))
        when = str(when or "")[:19].replace("T", " ")
        text = event.get("text") or json.dumps(
            {key: value for key, value in event.items() if key not in ("event", "time", "text")}
        )
        told = f"<pre>{escape(str(text))}</pre>"
        named = f'<td class="when">{escape(when)}</td><td>{escape(str(event.get("event", "")))}</td>'
        rows.append(f"<tr>{named}<td>{told}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _details(history: History) -> str:
    """Config and environment, folded."""
    parts = []
    for title, path in (
        ("Configuration", RunDirectory(history.path).config),
        ("Environment", RunDirectory(history.path).environment),
    ):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        parts.append(f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>")
    return "".join(parts)
