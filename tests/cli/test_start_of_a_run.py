"""Run directory, lock, and what may change when a run is resumed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.command.start import run_name
from llmtrain.compose.compose import compose
from llmtrain.utils.io import lock_descriptor

Cli = Callable[..., Any]


@pytest.fixture
def begun(cli: Cli, tmp_path: Path) -> Path:
    """A run with a checkpoint, whose open settings have been decided."""
    cli("pretrain", "experiment=debug", "run.name=r", "extra.note=first")
    run = tmp_path / "runs/r"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["vocab_size"] = 257
    config["precision"] = "bf16"
    config["compile"] = "never"
    config["launch"]["threads"] = 2
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (run / "checkpoints/step-00000010").mkdir(parents=True)
    return run


def stored(run: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((run / "config.yaml").read_text()))


def test_new_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_API_TOKEN", "hush")
    result = cli(
        "pretrain", "model=gpt/debug", "train.sequence_length=64", "train.steps=3", "launch.device=cpu"
    )
    (run,) = (tmp_path / "runs").iterdir()
    assert result.executed == ["llmtrain.worker", str(run)]
    assert run.name.startswith("pretrain-gpt-debug-python_prose-")
    text = (run / "config.yaml").read_text()
    assert text.startswith("verb: pretrain\n")
    assert stored(run)["train"]["steps"] == 3
    assert "llmtrain pretrain model=gpt/debug" in (run / "overrides.txt").read_text()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["variables"]["SLURM_JOB_ID"] == "77"
    assert "hush" not in (run / "environment.json").read_text()


def test_name_follows_the_frozen_keys(cli: Cli, tmp_path: Path) -> None:
    for words in (["train.steps=3"], ["train.steps=4", "log.every=1"], ["optim.lr=1e-4"]):
        cli("pretrain", *words)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_run_dir_and_name(cli: Cli, tmp_path: Path) -> None:
    assert cli("pretrain", "run.dir=deep/er").executed[1] == str(tmp_path / "deep/er")
    assert cli("pretrain", "run.name=n").executed[1] == str(tmp_path / "runs/n")


def test_lock(cli: Cli, tmp_path: Path) -> None:
    result = cli("pretrain", "run.name=r")
    assert result.executed
    lock = tmp_path / "runs/r/.lock"
    # the recorded exec keeps the lock's descriptor open in this process, as the real one would
    assert lock_descriptor(lock) is None
    held = [fd for fd in map(int, os.listdir("/proc/self/fd")) if _path_of(fd) == str(lock)]
    assert [os.get_inheritable(fd) for fd in held] == [True]
    second = cli("pretrain", "run.name=r")
    assert second.code == 7
    assert str(lock.parent) in second.err
    assert f"pid {os.getpid()}" in second.err
    for fd in held:
        os.close(fd)
    assert cli("pretrain", "run.name=r").executed


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


@pytest.fixture(autouse=True)
def release_locks(tmp_path: Path) -> Any:
    """Close the descriptors that a real exec would have carried on."""
    yield
    _release(tmp_path)


def _release(folder: Path) -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        if _path_of(fd).startswith(str(folder)) and _path_of(fd).endswith(".lock"):
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


def test_resume_keeps_what_was_decided(cli: Cli, begun: Path, tmp_path: Path) -> None:
    _release(tmp_path)
    assert cli("pretrain", "experiment=debug", "run.name=r", "train.steps=30").executed
    config = stored(begun)
    assert (config["model"]["vocab_size"], config["precision"], config["compile"]) == (257, "bf16", "never")
    assert config["launch"]["threads"] is None  # of the machine: decided anew
    assert config["train"]["steps"] == 30
    (event,) = [json.loads(line) for line in (begun / "events.jsonl").read_text().splitlines()]
    assert event["event"] == "config_changed"
    assert event["changes"] == {"train.steps": {"old": 20, "new": 30}}
    assert len((begun / "overrides.txt").read_text().splitlines()) == 4


def test_asking_for_what_was_decided_is_no_change(cli: Cli, begun: Path, tmp_path: Path) -> None:
    _release(tmp_path)
    words = ["experiment=debug", "run.name=r"]
    assert cli("pretrain", *words, "precision=bf16", "model.vocab_size=257").executed


def test_a_run_of_an_earlier_version_goes_on(cli: Cli, begun: Path, tmp_path: Path) -> None:
    """What it did not know yet is at its default."""
    for name in ("config.yaml", ".requested.yaml"):
        old = yaml.safe_load((begun / name).read_text())
        for section, key in (("model", "init_std"), ("objective", "z_loss"), ("data", "isolate_documents")):
            del old[section][key]
        (begun / name).write_text(yaml.safe_dump(old))
    words = ["experiment=debug", "run.name=r"]
    _release(tmp_path)
    result = cli("pretrain", *words, "objective.z_loss=1e-4", "model.init_std=0.03")
    assert result.code == 2
    for line in ("objective.z_loss: 0.0 -> 0.0001", "model.init_std: 0.02 -> 0.03"):
        assert line in result.err
    assert cli("pretrain", *words).executed
    assert not (begun / "events.jsonl").exists()  # nothing has changed


def test_keys_at_their_defaults_do_not_name_a_run() -> None:
    name = run_name(compose("pretrain", [])[0])
    assert run_name(compose("pretrain", ["model.init_std=0.02", "objective.z_loss=0"])[0]) == name
    for words in (["model.init_std=0.03"], ["objective=mlm", "model=bert/tiny"], ["optim=adam"]):
        assert run_name(compose("pretrain", words)[0]).rpartition("-")[2] != name.rpartition("-")[2]


def test_frozen_changes_are_refused_with_a_diff(cli: Cli, begun: Path, tmp_path: Path) -> None:
    _release(tmp_path)
    before = (begun / "config.yaml").read_text()
    result = cli(
        "pretrain",
        "experiment=debug",
        "run.name=r",
        "optim.lr=5e-4",
        "precision=fp32",
        "data.max_tokens=null",
    )
    assert result.code == 2
    for line in ("optim.lr: 0.001 -> 0.0005", "precision: auto -> fp32", "data.max_tokens: 200000 -> null"):
        assert line in result.err
    assert result.err.count("error:") == 1
    assert (begun / "config.yaml").read_text() == before
    assert cli("pretrain", "experiment=debug", "run.name=r").executed  # the lock was let go


def test_a_run_from_elsewhere_without_a_record_of_what_was_asked(
    cli: Cli, begun: Path, tmp_path: Path
) -> None:
    _release(tmp_path)
    (begun / ".requested.yaml").unlink()
    assert cli("pretrain", "experiment=debug", "run.name=r").executed
    assert stored(begun)["precision"] == "bf16"
    _release(tmp_path)
    assert cli("pretrain", "experiment=debug", "run.name=r", "model.dim=64").code == 2


def test_without_checkpoint_everything_may_change(cli: Cli, tmp_path: Path) -> None:
    cli("pretrain", "experiment=debug", "run.name=r")
    _release(tmp_path)
    assert cli("pretrain", "experiment=debug", "run.name=r", "optim.lr=5e-4").executed
    assert stored(tmp_path / "runs/r")["optim"]["lr"] == 5e-4


def test_never_and_must(cli: Cli, begun: Path, tmp_path: Path) -> None:
    _release(tmp_path)
    assert cli("pretrain", "experiment=debug", "run.name=r", "resume=never").code == 2
    assert cli("pretrain", "experiment=debug", "run.name=r", "resume=must").executed
    missing = cli("pretrain", "experiment=debug", "run.name=other", "resume=must")
    assert missing.code == 2
    assert not (tmp_path / "runs/other").exists()
    assert cli("pretrain", "experiment=debug", "run.name=new", "resume=never").executed


def test_finished_run_prints_its_summary(cli: Cli, begun: Path, tmp_path: Path) -> None:
    _release(tmp_path)
    summary = {"finished": True, "steps": 20, "validation_loss": 4.5}
    (begun / "summary.json").write_text(json.dumps(summary))
    result = cli("pretrain", "experiment=debug", "run.name=r")
    assert result.code == 0
    assert "validation loss  4.5" in result.out
    assert "llmtrain generate init_from=runs/r" in result.out
    assert not result.executed
    assert cli("pretrain", "experiment=debug", "run.name=r", "train.epochs=9").executed
    _release(tmp_path)
    assert cli("pretrain", "experiment=debug", "run.name=r", "train.steps=21").executed


def test_disk_full(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = cli("pretrain", "run.name=r")
    assert result.code == 6
    assert "the disk is full" in result.err


def test_directory_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = cli("pretrain", "run.dir=file/run")
    assert result.code == 3
    assert "cannot write the run directory" in result.err
    assert "run.dir=" in result.err
