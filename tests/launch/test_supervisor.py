"""What the launcher makes of the ends of its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmtrain.command.restart import Restarts
from llmtrain.command.supervisor import End, StopRequests, Supervisor
from llmtrain.launch import read_launch, worker_environment
from llmtrain.schema.fields import LaunchConfig
from llmtrain.utils.machine import num_cores
from llmtrain.utils.processes import parent_alive, signal_name
from llmtrain.utils.run_directory import RunDirectory


def supervise(ends: list[tuple[int, str]], stopped_by: int = 0) -> tuple[int, str]:
    """What is concluded where the workers ended in this order with these codes and messages."""
    stop = StopRequests()
    stop.first = stopped_by
    supervisor = Supervisor(RunDirectory("run"), stop)
    for rank, (code, message) in enumerate(ends):
        supervisor.ends[rank] = End(rank, code, float(rank), message)
    return supervisor.conclude()


@pytest.mark.parametrize(
    ("codes", "stopped_by", "expected"),
    [
        ([0, 0], 0, 0),
        ([143, 143], signal.SIGTERM, 143),
        ([143, 143], 0, 143),  # the batch system told the workers, not us
        ([130, 130], signal.SIGINT, 130),
        ([75, 75], signal.SIGUSR1, 75),
        ([-15, -15], signal.SIGTERM, 143),  # before they could handle it
        ([-10, -10], signal.SIGUSR1, 75),
        ([], signal.SIGINT, 130),
        ([0, 0], signal.SIGTERM, 0),  # done just before
        ([1, -9], 0, 1),
        ([1, 3], 0, 3),
        ([1, 3, 2], 0, 3),
        ([-6, 9], 0, 9),
        ([-11, 1], 0, 1),
        ([143, 6], signal.SIGTERM, 6),
    ],
)
def test_exit_codes(codes: list[int], stopped_by: int, expected: int) -> None:
    exit_code, message = supervise([(code, "") for code in codes], stopped_by)
    assert exit_code == expected
    assert bool(message) == (expected not in (0, 75, 130, 143))


@pytest.mark.parametrize(
    ("codes", "blamed"),
    [
        ([1, -9], "rank 1 was killed by signal 9 (SIGKILL)"),
        ([-6, 1, 4], "rank 2 failed with exit code 4"),
        ([-6, 1], "rank 0 was killed by signal 6 (SIGABRT)"),
        ([1, -6], "rank 0 failed with exit code 1"),
        ([1, 1], "rank 0 failed with exit code 1"),
        ([0, -11, -9], "rank 1 was killed by signal 11 (SIGSEGV)"),
        ([-15, 0], "rank 0 was killed by signal 15 (SIGTERM)"),
    ],
)
def test_the_cause_is_blamed_and_not_its_victims(codes: list[int], blamed: str) -> None:
    _, message = supervise([(code, "") for code in codes])
    assert message.splitlines()[0] == f"error: {blamed}"
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("codes", "stopped_by", "lost"),
    [
        ([0, -9], 0, 1),
        ([1, -9], 0, 1),
        ([-6, 1], 0, 0),
        ([1, -6], 0, None),  # the first one has a bug, the other lost its peer
        ([1, 1], 0, None),
        ([3, -9], 0, None),
        ([-9, 9], 0, None),
        ([-9, 143], 0, None),  # the batch system told the workers, not us
        ([-15, -9], 0, None),
        ([-9, 143], signal.SIGTERM, None),
        ([0, 0], 0, None),
    ],
)
def test_what_is_worth_a_restart(codes: list[int], stopped_by: int, lost: int | None) -> None:
    stop = StopRequests()
    stop.first = stopped_by
    supervisor = Supervisor(RunDirectory("run"), stop)
    for rank, code in enumerate(codes):
        supervisor.ends[rank] = End(rank, code, float(rank))
    found = supervisor.lost()
    assert (found.rank if found else None) == lost


def test_only_restarts_without_a_new_checkpoint_count(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    restarts = Restarts(run, limit=2)
    assert restarts.history() == ""
    for step in (5, 10, 15):
        assert restarts.granted()
        assert restarts.granted()
        (run.checkpoints / f"step-{step:08}").mkdir(parents=True)
    (run.checkpoints / "step-00000015").rename(run.checkpoints / "bad-step-00000015")
    assert not restarts.granted(), "the checkpoint of step 10 was counted already"
    assert "after 2 restarts without" in restarts.history()
    assert not Restarts(run, limit=0).granted()


def test_messages_of_all_shapes() -> None:
    plain = supervise([(1, "ValueError: odd\nmore")])[1].splitlines()
    assert plain == [
        "error: rank 0 failed with exit code 1: ValueError: odd",
        "  where: run/logs/rank0.log",
        "  do: read the end of its log",
        "more",
    ]
    two = "error: a\n  where: x\nerror: b\n  do: c"
    assert supervise([(2, two)])[1].splitlines() == [
        "error: rank 0 failed with exit code 2: a",
        "  where: x (log: run/logs/rank0.log)",
        "  do: read the end of its log",
        "error: b",
        "  do: c",
    ]


def child(code: str) -> subprocess.Popen[Any]:
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def test_the_others_get_a_moment_and_no_signal(tmp_path: Path) -> None:
    supervisor = Supervisor(RunDirectory(tmp_path), StopRequests())
    workers = {0: child("import time; time.sleep(60)"), 1: child("raise SystemExit(5)")}
    since = time.monotonic()
    while not supervisor.poll(workers):
        time.sleep(0.01)
    assert 1 < time.monotonic() - since < 3
    assert workers[0].poll() is None
    assert supervisor.conclude()[0] == 5
    workers[0].kill()
    workers[0].wait()


@pytest.mark.parametrize(
    ("config", "processes"),
    [
        ("launch: {num_processes: 3, device: cpu}", 3),
        ("launch: {device: cpu}", 1),
        ("launch: {device: cpu}\nparallel: {tp: 2, pp: 3, dp_shard: -1}", 6),
    ],
)
def test_how_many_processes(tmp_path: Path, config: str, processes: int) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text(f"verb: pretrain\n{config}\n")
    assert read_launch(run)[1] == processes


def test_the_environment_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory("/some/run")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_environment(run, 1, LaunchConfig())["OMP_NUM_THREADS"] == str(num_cores())
    assert worker_environment(run, 1000, LaunchConfig())["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert worker_environment(run, 2, LaunchConfig())["OMP_NUM_THREADS"] == "7"
    assert worker_environment(run, 2, LaunchConfig(threads=3))["OMP_NUM_THREADS"] == "3"
    first, second = (worker_environment(run, 2, LaunchConfig())["LLMTRAIN_STORE"] for _ in range(2))
    assert first != second


def test_small_helpers_of_processes() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(63) == "63"
    assert parent_alive(None)
    assert parent_alive(os.getppid())
    assert not parent_alive(os.getpid())


def test_a_worker_whose_parent_is_gone_already_ends() -> None:
    code = "from llmtrain.utils.processes import die_with_parent; die_with_parent(1 << 22); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""
