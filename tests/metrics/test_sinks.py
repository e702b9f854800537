"""Files and lines that reports end up in."""

import io
import json

import pytest
from rich.console import Console
from rich.live import Live

from llmtrain.metrics.sinks import ConsoleLines, JsonLines, LivePanel, sparkline
from llmtrain.metrics.summary import format_duration


def test_json_lines_cut_back_to_the_step_that_the_run_goes_on_from(tmp_path):
    path, events = tmp_path / "metrics.jsonl", tmp_path / "events.jsonl"
    sink = JsonLines(path, events, 0)
    for step in (1, 2, 3):
        sink.metrics({"kind": "train", "step": step, "loss": 1.0 / step})
    sink.event({"event": "started"})
    sink.close()
    with open(path, "a") as file:
        file.write('{"kind": "train", "st')  # what a kill leaves behind
    sink = JsonLines(path, events, 2)
    sink.metrics({"kind": "train", "step": 3, "loss": float("nan")})
    sink.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(record["step"], record["loss"]) for record in records] == [(1, 1.0), (2, 0.5), (3, None)]
    assert json.loads(events.read_text())["event"] == "started"


def test_console_lines_are_key_value_pairs(capsys):
    ConsoleLines().metrics(
        {
            "kind": "train",
            "step": 10,
            "total_steps": 20,
            "loss": 1.23456,
            "learning_rate": 1e-3,
            "mfu": 0.123,
            "tokens_per_second": 12345.6,
            "eta_seconds": 3725.0,
        }
    )
    assert capsys.readouterr().out == "step=10 loss=1.2346 lr=1.000e-03 mfu=12.3% tok/s=12,346 eta=1:02:05\n"


def test_the_panel_draws_every_number(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    panel = LivePanel("run")
    panel.latest = {
        "kind": "train",
        "step": 5,
        "total_steps": 10,
        "loss": 2.5,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "tokens_per_second": 1000.0,
        "mfu": 0.2,
        "memory_bytes": 2_000_000_000,
        "data_wait": 0.001,
        "eta_seconds": 61.0,
    }
    panel.losses = [3.0, 2.5]
    panel.validation = {"validation_loss": 2.7}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(panel._draw())
    text = console.export_text()
    for piece in ("5 / 10", "1:01", "2.5000", "2.7000", "1,000", "20.0%", "2.00GB", "0.1%", "█"):
        assert piece in text


def test_the_panel_survives_a_loss_that_is_not_finite():
    panel = LivePanel("run")
    panel.live = Live(console=Console(file=io.StringIO()))
    for step, loss in enumerate([2.0, float("nan"), 1.0]):
        panel.metrics({"kind": "train", "step": step, "total_steps": 3, "loss": loss})
    panel.close()
    assert panel.losses == [2.0, 1.0]


def test_a_panel_that_never_saw_a_number_can_be_closed():
    LivePanel("run").close()


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3600, "1:00:00")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_sparkline_shrinks_to_its_width():
    assert sparkline([1.0, 2.0, 3.0], 10) == "▁▅█"
    assert len(sparkline([float(i) for i in range(100)], 10)) == 10
    assert sparkline([], 10) == ""
    assert sparkline([1.0, 1.0], 10) == "▁▁"
