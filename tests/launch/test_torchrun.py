"""Under torchrun: one run directory, the same curve; and nothing of ours listens beyond loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.command import curve, environment, metrics, start, succeed, wait_until

SETTINGS = ["experiment=debug", "data=text", "precision=fp32", "launch.threads=1", "run.name=debug"]


@pytest.mark.slow
def test_one_run_directory_and_the_same_curve(tmp_path, sentences: Path):
    data = f"data.paths=[{sentences}]"
    (tmp_path / "alone").mkdir()
    (tmp_path / "torchrun").mkdir()
    succeed("pretrain", *SETTINGS, data, cwd=tmp_path / "alone")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "llmtrain", "pretrain", *SETTINGS, data],
        cwd=tmp_path / "torchrun",
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "torchrun" / "runs").iterdir()] == ["debug"]
    assert done.stdout.count("finished") == 1
    run, alone = (tmp_path / name / "runs" / "debug" for name in ("torchrun", "alone"))
    for ours, expected in zip(curve(run), curve(alone), strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)
    assert (run / "logs" / "rank1.log").exists()


@pytest.mark.slow
def test_a_config_error_under_torchrun_is_told_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "llmtrain", "pretrain", "optim.lrr=1"],
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("unknown key 'optim.lrr'") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_real_run_listens_on_loopback_only(tmp_path, sentences: Path):
    run = tmp_path / "runs" / "debug"
    more = [f"data.paths=[{sentences}]", "train.steps=100000", "launch.num_processes=2"]
    process = start("pretrain", *SETTINGS, *more, cwd=tmp_path)
    try:
        wait_until(lambda: bool(metrics(run)), process)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(family) >= 3
        addresses = [c.laddr.ip for member in family for c in member.net_connections(kind="inet")]
        assert addresses, "the workers talk to each other over sockets"
        assert {a for a in addresses if a not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")} == set()
    finally:
        os.killpg(process.pid, 9)
        process.communicate(timeout=20)
