"""Processes that meet under torchrun: the numbering of starts, and words for what goes wrong."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as torch_dist

from llmtrain.utils import dist, meeting
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.processes import start_rank


@pytest.fixture
def agent_store() -> torch_dist.TCPStore:
    """What torchrun's agent serves to all starts of a job."""
    return torch_dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(store: torch_dist.TCPStore) -> torch_dist.TCPStore:
    return torch_dist.TCPStore("127.0.0.1", store.port, is_master=False)


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("variable", "value", "missing"),
    [
        ("GLOO_SOCKET_IFNAME", "", []),
        ("GLOO_SOCKET_IFNAME", "lo", []),
        ("GLOO_SOCKET_IFNAME", "eth", ["eth"]),
        ("GLOO_SOCKET_IFNAME", "eth0,ib1", ["ib1"]),
        ("NCCL_SOCKET_IFNAME", "eth", []),
        ("NCCL_SOCKET_IFNAME", "ib,eth", []),
        ("NCCL_SOCKET_IFNAME", "ib", ["ib"]),
        ("NCCL_SOCKET_IFNAME", "=eth", ["eth"]),
        ("NCCL_SOCKET_IFNAME", "=eth0", []),
        ("NCCL_SOCKET_IFNAME", "^docker,lo", []),
    ],
)
def test_interfaces_that_do_not_exist(variable: str, value: str, missing: list[str]) -> None:
    assert meeting.missing_interfaces(variable, value, ["eth0", "lo"]) == missing


def test_a_wrong_interface_is_told_with_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nowhere9")
    meeting.check_interfaces(3, nccl=False)
    with pytest.raises(DataError, match="NCCL_SOCKET_IFNAME=nowhere9") as caught:
        meeting.check_interfaces(3, nccl=True)
    assert "rank 3 on " in str(caught.value)
    assert all(name in str(caught.value) for _, name in socket.if_nameindex())


def test_a_master_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(DataError, match=f"cannot reach the master at 127.0.0.1:{port}") as caught:
        meeting.meet(1, 2, 0.3)
    assert "refused" in str(caught.value)
    assert "firewall" in str(caught.value)
    monkeypatch.setattr(meeting, "NAME_TIMEOUT", 0.1)
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    since = time.monotonic()
    with pytest.raises(DataError, match=r"at no-such-host\.invalid:"):
        meeting.meet(1, 2, 60)
    assert time.monotonic() - since < 30
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(DataError, match="MASTER_ADDR"):
        meeting.meet(1, 2, 60)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", ""])
def test_a_join_timeout_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_JOIN_TIMEOUT", text)
    with pytest.raises(ConfigError, match="LLMTRAIN_JOIN_TIMEOUT"):
        meeting.join_timeout()


def test_each_start_gets_a_number_of_its_own(agent_store: torch_dist.TCPStore) -> None:
    """Rank 1 comes first and finds the traces of an earlier start that got stuck half way."""
    deadline = time.monotonic() + 20
    agent_store.set("asks/1", "of a process that is dead")
    assert agent_store.add("starts", 1) == 1
    for number in ("2", "3"):
        answers: dict[int, str] = {}

        def ask(rank: int, answers: dict[int, str] = answers) -> None:
            answers[rank] = meeting.ask_number(client(agent_store), rank, deadline)

        threads = [threading.Thread(target=ask, args=(rank,)) for rank in (1, 2)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert not answers
        assert meeting.number_start(client(agent_store), 3, deadline) == number
        for thread in threads:
            thread.join()
        assert answers == {1: number, 2: number}


def test_somebody_does_not_come(agent_store: torch_dist.TCPStore) -> None:
    with pytest.raises(DataError, match="2 of 3 processes did not come: rank 1, 2"):
        meeting.number_start(client(agent_store), 3, time.monotonic() + 0.1)
    with pytest.raises(torch_dist.DistStoreError):
        meeting.ask_number(client(agent_store), 1, time.monotonic())


def join_and_die(_: int, rank: int, port: int, results: Path) -> None:
    """A process of one start under torchrun, which ends as by `kill -9`."""
    os.environ.pop("LLMTRAIN_STORE", None)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    # As after a loss on one node: only the agent there counts it as a restart.
    os.environ.update(TORCHELASTIC_RUN_ID="job", TORCHELASTIC_RESTART_COUNT=str(rank))
    dist.start()
    total = dist.sum_over_ranks([rank + 1.0])[0]
    (results / str(rank)).write_text(str(total))
    os._exit(9)


def test_a_second_start_finds_the_store_of_the_first(
    agent_store: torch_dist.TCPStore, tmp_path: Path
) -> None:
    for attempt in range(2):
        results = tmp_path / str(attempt)
        results.mkdir()
        processes = []
        for rank in (1, 0):  # rank 1 first: it would connect to the address of the dead rank 0
            processes.append(start_rank(join_and_die, rank, agent_store.port, results))
            time.sleep(0.3)
        for process in processes:
            process.join(30)
            assert process.exitcode == 9
        assert [(results / str(rank)).read_text() for rank in range(2)] == ["3.0", "3.0"]


def test_errors_of_lost_peers() -> None:
    gloo = RuntimeError(
        "[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: reset. This is typically"
    )
    assert meeting.lost_peer(gloo)
    assert meeting.first_line(gloo).endswith("Read error: reset.")
    assert meeting.lost_peer(torch_dist.DistBackendError("NCCL error"))
    assert not meeting.lost_peer(RuntimeError("shapes differ"))
    assert meeting.first_line(ValueError()) == "ValueError"
