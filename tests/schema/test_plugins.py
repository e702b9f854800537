"""A plugin folder brings a schema, its YAML and its builder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.compose.compose import compose
from llmtrain.schema.load import dump
from llmtrain.schema.plugins import config_dirs, load_builders, registry_with
from llmtrain.utils.errors import ConfigError

SCHEMA = '''
from dataclasses import dataclass

from llmtrain.schema.optim import ScheduleConfig


@dataclass
class StepSchedule(ScheduleConfig):
    """Halved every so many steps."""

    kind: str = "step"
    """Shape of the learning rate over time."""

    every: int = 100
    """Steps between halvings."""


def register(registry):
    registry.register("schedule", StepSchedule)
'''

BUILD = """
from .schema import StepSchedule


def step_schedule(config):
    return lambda step: 0.5 ** (step // config.every)


def register(builders):
    builders[StepSchedule] = step_schedule
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    folder = tmp_path / "my-plugin"
    (folder / "configs/schedule").mkdir(parents=True)
    (folder / "schema.py").write_text(SCHEMA)
    (folder / "build.py").write_text(BUILD)
    (folder / "configs/schedule/halving.yaml").write_text("# Halved\nkind: step\nevery: 10\n")
    return folder


def test_schema_config_and_builder_agree(plugin: Path) -> None:
    (composed,) = compose("pretrain", [f"run.plugins=[{plugin}]", "schedule=halving", "schedule.every=20"])
    schedule = composed.config.schedule
    assert (schedule.kind, schedule.every, schedule.warmup) == ("step", 20, 0.02)
    builders = load_builders([plugin])
    assert builders[type(schedule)](schedule)(40) == 0.25
    assert composed.config.run.plugins == [str(plugin)]


def test_its_keys_are_checked(plugin: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("pretrain", [f"run.plugins=[{plugin}]", "schedule=halving", "schedule.evry=20"])
    assert "schedule.every" in caught.value.problems[0].fix
    with pytest.raises(ConfigError, match="halving"):
        compose("pretrain", ["schedule=halving"])


def test_named_by_the_user_s_own_yaml(plugin: Path, tmp_path: Path) -> None:
    own = tmp_path / "own/experiment"
    own.mkdir(parents=True)
    (own / "halve.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /schedule: halving\nrun:\n  plugins: [{plugin}]\n"
    )
    (composed,) = compose("pretrain", ["experiment=halve"], str(tmp_path / "own"))
    assert composed.config.schedule.every == 10


def test_config_dirs(plugin: Path) -> None:
    assert config_dirs([plugin]) == (plugin / "configs",)
    (plugin / "configs").rename(plugin / "other")
    assert config_dirs([plugin]) == ()


def test_another_process_builds_the_same(plugin: Path) -> None:
    (composed,) = compose("pretrain", [f"run.plugins=[{plugin}]", "schedule=halving"])
    code = (
        "import json, sys; from llmtrain.schema.plugins import *; from llmtrain.schema.load import build;"
        "from llmtrain.schema.roots import ROOTS; data = json.loads(sys.argv[1]);"
        "folders = data['run']['plugins']; config = build(ROOTS['pretrain'], data, registry_with(folders));"
        "print(load_builders(folders)[type(config.schedule)](config.schedule)(10))"
    )
    text = json.dumps(dump(composed.config))
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, cwd=root)
    assert result.stdout == "0.5\n", result.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("schema.py", "import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("schema.py", "x = 1\n", "AttributeError"),
        ("schema.py", SCHEMA.replace('"step"', '"cosine"'), "has a kind 'cosine' already"),
    ],
)
def test_broken_plugins_are_explained(plugin: Path, name: str, text: str, message: str) -> None:
    (plugin / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        registry_with([plugin])
    (problem,) = caught.value.problems
    assert message in problem.what
    assert name in problem.where


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        compose("pretrain", [f"run.plugins=[{tmp_path}/nowhere]"])
    with pytest.raises(ConfigError, match="has no schema"):
        registry_with([tmp_path])


def test_installed_plugin(plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    plugin.rename(site / "halving_plugin" if site.mkdir() is None else site)
    (site / "halving_plugin/__init__.py").write_text("")
    (site / "halving_plugin-1.dist-info").mkdir()
    (site / "halving_plugin-1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: halving_plugin\nVersion: 1\n"
    )
    (site / "halving_plugin-1.dist-info/entry_points.txt").write_text(
        "[llmtrain.plugins]\nhalving = halving_plugin\n"
    )
    monkeypatch.syspath_prepend(str(site))
    (composed,) = compose("pretrain", ["schedule=halving"])
    assert composed.config.schedule.every == 10
    assert type(composed.config.schedule) in load_builders([])
