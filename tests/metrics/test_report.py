"""What run directories tell, whole or broken, and the page that is made of them."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llmtrain.metrics import report
from llmtrain.metrics.history import RunState, is_at_work, read_history
from llmtrain.metrics.report import charts, page, write_report

NASTY = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


def make_run(path: Path, losses: list[float | None], **changes: Any) -> Path:
    """A run directory as a training leaves it."""
    (path / "checkpoints/step-00000002").mkdir(parents=True)
    (path / "checkpoints/step-00000002/tensors.safetensors").write_bytes(b"x" * 1000)
    (path / "checkpoints/best").symlink_to("step-00000002")
    (path / "config.yaml").write_text("verb: pretrain\nmodel:\n  kind: gpt\n  dim: 16\noptim:\n  lr: 0.1\n")
    records: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, start=1):
        numbers = {"loss": loss, "learning_rate": 0.1, "gradient_norm": 1.0, "tokens_per_second": 10.0 * step}
        records.append({"kind": "train", "step": step, "total_steps": 9, **numbers})
        records.append({"kind": "validation", "step": step, "validation_loss": loss, "validation_labels": 8})
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    events = [{"event": "started", "text": "data 1"}, *changes.pop("events", [{"event": "finished"}])]
    (path / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    summary = {"finished": True, "steps": len(losses), "total_steps": 9, "metric": "loss", **changes}
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "overrides.txt").write_text("# 2026-01-01 00:00:00\nllmtrain pretrain a=b\n")
    return path


def test_a_run_is_read(tmp_path: Path) -> None:
    run = read_history(make_run(tmp_path / "a", [3.0, 2.0, None, 2.5]))
    assert run.state is RunState.finished
    assert (run.step, run.total_steps, run.metric) == (4, 9, "loss")
    assert run.best is not None
    assert (run.best.value, run.best.step) == (2.0, 2)
    assert run.curve("loss") == [(1, 3.0), (2, 2.0), (4, 2.5)]
    assert run.tokens_per_second == 25.0
    (checkpoint,) = run.checkpoints()
    assert (checkpoint.step, checkpoint.size, checkpoint.best) == (2, 1000, True)
    assert run.commands == ["llmtrain pretrain a=b"]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([{"event": "finished"}], RunState.finished),
        ([{"event": "checkpoint"}], RunState.crashed),
        ([{"event": "stopped"}], RunState.stopped),
        ([{"event": "finished"}, {"event": "resumed"}, {"event": "checkpoint"}], RunState.crashed),
    ],
)
def test_the_last_start_or_end_tells_the_state(
    tmp_path: Path, events: list[dict[str, Any]], state: RunState
) -> None:
    assert read_history(make_run(tmp_path / "a", [1.0], events=events)).state is state


def test_a_run_is_at_work_while_its_lock_is_held(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", [1.0])
    lock = path / ".lock"
    lock.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
    assert not is_at_work(lock)
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_at_work(lock)
        assert read_history(path).state is RunState.running
        assert read_history(path, ended=True).state is RunState.finished
        lock.write_text(json.dumps({"pid": 2**22 + 1, "host": platform.node()}))
        assert not is_at_work(lock), "a process that is gone holds nothing; the lock is not even tried"
        lock.write_text('{"pid": ')
        assert not is_at_work(lock)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.yaml": "{"},
        {"config.yaml": "- 1\n- 2"},
        {
            "config.yaml": "verb: pretrain\nmodel: 3\ntask: [1]\n",
            "summary.json": '{"steps": "a", "metric": 3}',
        },
        {"metrics.jsonl": '{"kind":"train","step":1,"loss":2.0}\n[1]\n{"kind":"train"}\n{"st'},
        {"metrics.jsonl": '{"kind":"train","step":NaN,"loss":1e999}\n{"kind":3,"step":1}\n'},
        {"events.jsonl": '{"event":["a"]}\n"x"\n{"event":"sample","step":{},"sample":3,"prompt":[1]}\n'},
        {"summary.json": "[]", "environment.json": "{", "overrides.txt": "\xff"},
        {"config.yaml": "verb: pretrain\na: 1\n", "summary.json": '{"seconds": "x", "tokens": null}'},
        {"scores.json": '{"tables": [{"title": 1, "header": 2, "rows": 3}]}'},
    ],
)
def test_broken_files_only_tell_less(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    run = read_history(tmp_path)
    assert run.step >= 0
    assert "<!DOCTYPE html>" in page(run)
    write_report(tmp_path)


def test_directories_in_place_of_files_are_no_hindrance(tmp_path: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "events.jsonl", "summary.json", "overrides.txt"):
        (tmp_path / name).mkdir()
    assert read_history(tmp_path).state is RunState.broken


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_nothing_active(tmp_path: Path) -> None:
    events = [
        {"event": "sample", "step": 2, "prompt": NASTY, "sample": NASTY + "two"},
        {"event": "sample", "step": 1, "prompt": NASTY, "sample": "one"},
        {"event": "bad_step", "text": NASTY, "time": 1.0},
        {"event": NASTY},
    ]
    path = make_run(tmp_path / f"a{NASTY.replace('/', '')}", [3.0, 2.0], events=events, tokens=1234)
    (path / "config.yaml").write_text(f"verb: pretrain\nextra: {json.dumps(NASTY)}\n")
    (path / "overrides.txt").write_text(f"llmtrain {NASTY}\n")
    (path / "environment.json").write_text(json.dumps({"host": NASTY}))
    table = {"title": NASTY, "header": [NASTY, "n"], "rows": [[NASTY, 3]]}
    (path / "scores.json").write_text(json.dumps({"tables": [table]}))
    write_report(path)
    text = (path / "report.html").read_text()
    found = Page(text)
    assert not {"script", "img", "b" * 2, "link", "iframe", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "href")]
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)\w", text), "nothing to load"
    assert found.text.count(NASTY) >= 9
    assert found.tags.count("svg") == len(charts(read_history(path))) == 4
    for piece in ("2.0000", "1,234", "step-00000002", "best"):
        assert piece in found.text
    assert found.text.index(NASTY + "two") < found.text.index(NASTY + "one"), "the newest sample first"


def test_without_pillow_the_hint_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path / "a", [3.0, 2.0])
    monkeypatch.setattr(report, "can_draw_png", lambda: False)
    hint = write_report(path)
    assert hint is not None
    assert "llmtrain[report]" in hint
    assert not (path / "loss.png").exists()


def test_the_picture_of_the_loss(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    path = make_run(tmp_path / "a", [3.0, 2.0])
    assert write_report(path) is None
    assert (path / "loss.png").read_bytes().startswith(b"\x89PNG")
