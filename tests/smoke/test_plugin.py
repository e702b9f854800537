"""A plugin from end to end: its schedule trains, and its numbers arrive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command import metrics, succeed

SCHEMA = '''
from dataclasses import dataclass

from llmtrain.schema.optim import ScheduleConfig


@dataclass
class TriangleSchedule(ScheduleConfig):
    """Up, then down."""

    kind: str = "triangle"
    """Shape of the learning rate over time."""

    peak: float = 0.5
    """Where the top is, as a share of the run."""


def register(registry):
    registry.register("schedule", TriangleSchedule)
'''

BUILD = """
from .schema import TriangleSchedule


def build_triangle(config):
    return lambda progress: min(progress / config.peak, (1 - progress) / (1 - config.peak))


def register(builders):
    builders[TriangleSchedule] = build_triangle
"""


@pytest.mark.slow
def test_a_plugin_schedule_trains(tmp_path, sentences: Path):
    plugin = tmp_path / "triangle"
    (plugin / "configs" / "schedule").mkdir(parents=True)
    (plugin / "schema.py").write_text(SCHEMA)
    (plugin / "build.py").write_text(BUILD)
    (plugin / "configs" / "schedule" / "triangle.yaml").write_text("kind: triangle\nwarmup: 0\n")
    succeed(
        "pretrain",
        f"run.plugins=[{plugin}]",
        "schedule=triangle",
        "experiment=debug",
        "data=text",
        f"data.paths=[{sentences}]",
        "train.steps=4",
        "log.every=1",
        "optim.lr=0.001",
        f"run.dir={tmp_path / 'run'}",
        cwd=tmp_path,
    )
    rates = [m["learning_rate"] for m in metrics(tmp_path / "run")]
    assert rates == pytest.approx([0.0, 0.0005, 0.001, 0.0005])
