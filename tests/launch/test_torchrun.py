"""Under torchrun: one run directory, the same curve, restarts, several nodes; and on one machine nothing of
ours listens beyond loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

from tests.helpers.command import command, curve, environment, metrics, start, succeed, wait_until

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


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def two_nodes(cwd: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Two agents of one process each, as on two nodes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agent = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    agent += [f"--rdzv-endpoint=localhost:{port}", "--max-restarts=3", "-m", "llmtrain", "pretrain"]
    return [begin([*agent, *words], cwd) for _ in range(2)]


def begin(command: list[str], cwd: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(OMP_NUM_THREADS="1", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(agents: list[subprocess.Popen[str]], timeout: float = 60) -> list[str]:
    """Their outputs, once they have ended; what is left of them is killed."""
    try:
        return [agent.communicate(timeout=timeout)[0] for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, 9)
                agent.communicate()


@pytest.mark.slow
def test_two_nodes_lose_a_worker_and_go_on(tmp_path: Path, sentences: Path) -> None:
    run = tmp_path / "runs" / "debug"
    more = [f"data.paths=[{sentences}]", "train.steps=120", "checkpoint.every=10", "eval.every=0"]
    more.append("resume=never")  # is said of the first start, not of those that torchrun repeats
    agents = two_nodes(tmp_path, *SETTINGS, *more)
    try:
        wait_until(lambda: (run / "checkpoints" / "step-00000010").exists(), agents[0])
        workers = [child for agent in agents for child in psutil.Process(agent.pid).children()]
        [victim] = [worker for worker in workers if worker.environ()["RANK"] == "1"]
        victim.kill()
    finally:
        outputs = end(agents)
    assert [agent.returncode for agent in agents] == [0, 0], "".join(outputs)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    resumed = [event["step"] for event in events if event["event"] == "resumed"]
    assert len(resumed) == 1
    assert resumed[0] >= 10
    assert events[-1]["event"] == "finished"
    assert [step for step, *_ in curve(run)] == list(range(5, 125, 5))


def test_nodes_with_different_words(tmp_path: Path, sentences: Path) -> None:
    """What torchrun starts on two nodes, without torchrun."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    job |= {"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    words = command("pretrain", *SETTINGS, f"data.paths=[{sentences}]")
    both = [begin([*words, *([], ["optim.lr=7"])[rank]], tmp_path, **job, RANK=str(rank)) for rank in (0, 1)]
    told = "".join(end(both))
    assert [process.returncode for process in both] == [2, 2], told
    assert told.count("error:") == 1
    assert "different words: optim.lr=7 on" in told
    assert not (tmp_path / "runs" / "debug" / "metrics.jsonl").exists()
