"""How processes find each other under torchrun, and what is said when they cannot.

Under torchrun all starts of a job share one store, and what the processes of an earlier start wrote stays in
it: those of a restarted job would connect to addresses where nobody listens any more. Its count of restarts
cannot tell the starts apart, since each node counts only those that it asked for itself. So rank 0 numbers
them, and the others ask for the number.
"""

from __future__ import annotations

import datetime
import os
import platform
import socket
import time
import uuid
from collections.abc import Sequence

import torch.distributed as dist

from llmtrain.utils.errors import ConfigError, DataError

JOIN_TIMEOUT = 600.0
"""Seconds in which all processes have to meet: nodes of a cluster do not start at the same moment, and
reading the libraries from a shared disk takes a while."""

NAME_TIMEOUT = 30.0
"""Seconds after which a host name that cannot be resolved is taken for wrong."""

POLL = 0.02
"""Seconds between two looks at what has changed."""


def join_timeout() -> float:
    """Seconds in which all processes have to meet: `$LLMTRAIN_JOIN_TIMEOUT`, or the default.

    Raises:
        ConfigError: the variable is no positive number.
    """
    text = os.environ.get("LLMTRAIN_JOIN_TIMEOUT", str(JOIN_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        fix = f"give seconds, for example LLMTRAIN_JOIN_TIMEOUT={JOIN_TIMEOUT:.0f}"
        raise ConfigError(f"LLMTRAIN_JOIN_TIMEOUT={text} is no number of seconds", "environment", fix)
    return seconds


def this_process(rank: int) -> str:
    """Where a problem stands, for messages."""
    return f"rank {rank} on {platform.node()}"


def interfaces() -> list[str]:
    """Names of the network interfaces of this machine."""
    return sorted(name for _, name in socket.if_nameindex())


def missing_interfaces(variable: str, value: str, there: Sequence[str]) -> list[str]:
    """Names in an environment variable that no interface has.

    Args:
        variable: gloo takes exact names; NCCL takes prefixes, exact names after `=`, and after `^` what it
            shall not use (NCCL's manual, "NCCL_SOCKET_IFNAME").
        value: of the variable; names separated by commas.
        there: the interfaces that exist.
    """
    if not value or value.startswith("^"):
        return []
    exact = not variable.startswith("NCCL") or value.startswith("=")
    names = [name for name in value.removeprefix("=").split(",") if name]
    missing = [name for name in names if not any(i == name if exact else i.startswith(name) for i in there)]
    # NCCL uses those that it finds: a list may serve several kinds of nodes.
    return missing if not variable.startswith("NCCL") or len(missing) == len(names) else []


def check_interfaces(rank: int, nccl: bool) -> None:
    """Look whether the interfaces that the environment names exist.

    Args:
        rank: of this process, for the message.
        nccl: whether NCCL will be used.

    Raises:
        DataError: one does not.
    """
    there = interfaces()
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")[: 2 if nccl else 1]:
        value = os.environ.get(variable, "")
        if missing := missing_interfaces(variable, value, there):
            raise DataError(
                f"{variable}={value}: this machine has no network interface {missing[0]}",
                this_process(rank),
                f"take one of {', '.join(there)}, or unset {variable}",
            )


def meet(rank: int, world: int, seconds: float) -> dist.Store:
    """A store that only the processes of this start use, on top of the one that torchrun gives.

    Args:
        rank: of this process.
        world: number of processes.
        seconds: how long to wait for all of them.

    Raises:
        DataError: the master cannot be reached, or somebody did not come.
    """
    deadline = time.monotonic() + seconds
    shared = connect(rank, world, deadline)
    store = dist.PrefixStore(f"llmtrain/{os.environ.get('TORCHELASTIC_RUN_ID', '')}", shared)
    try:
        number = number_start(store, world, deadline) if rank == 0 else ask_number(store, rank, deadline)
    except dist.DistError as error:
        raise DataError(
            f"rank 0 did not answer at {master()}: {first_line(error)}",
            this_process(rank),
            "see what rank 0 says: it may have ended with an error of its own, or hang",
        ) from error
    return dist.PrefixStore(number, store)


def master() -> str:
    """Address where the processes meet."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def connect(rank: int, world: int, deadline: float) -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT, which the agent of the first node (or rank 0) serves.

    Raises:
        DataError: it cannot be reached.
    """
    reason: Exception | None = None
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if serves or (reason := unreachable(deadline)) is None:
        left = datetime.timedelta(seconds=max(1.0, deadline - time.monotonic()))
        try:
            store: dist.Store = next(dist.rendezvous("env://", rank, world, timeout=left))[0]
            return store
        except (RuntimeError, ValueError) as error:
            reason = error
    raise DataError(
        f"cannot reach the master at {master()}: {first_line(reason)}",
        f"{this_process(rank)} (MASTER_ADDR and MASTER_PORT, set by torchrun)",
        "check that this node can resolve the name (on the first node, torchrun --local-addr=ADDRESS gives "
        "another) and that no firewall between the nodes closes the port; LLMTRAIN_JOIN_TIMEOUT sets how "
        "many seconds to wait",
    )


def unreachable(deadline: float) -> Exception | None:
    """Wait until somebody listens at the master's address; what stands in the way if nobody does in time.

    Torch would try as well, but fill the terminal with traces of its C++ code.
    """
    began = time.monotonic()
    while True:
        try:
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())).close()
            return None
        except (KeyError, ValueError) as error:
            return error
        except OSError as error:
            now = time.monotonic()
            unknown = isinstance(error, socket.gaierror) and now - began > NAME_TIMEOUT
            if unknown or now > deadline:
                return error
        time.sleep(0.2)


def number_start(store: dist.Store, world: int, deadline: float) -> str:
    """Rank 0: give this start a number and tell it to the others, until all of them have it.

    What processes of earlier starts wrote may still be there. None of them runs any more: torchrun ends
    all of them, on all nodes, before it starts new ones.

    Raises:
        DataError: somebody did not ask in time.
    """
    number = str(store.add("starts", 1))
    absent = list(range(1, world))
    while True:
        absent = [rank for rank in absent if not store.check([f"{number}/has/{rank}"])]
        for rank in absent:
            if store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", number)
        if not absent:
            return number
        if time.monotonic() > deadline:
            raise DataError(
                f"{len(absent)} of {world} processes did not come: rank {', '.join(map(str, absent[:20]))}",
                f"{this_process(0)}, {master()}",
                "see what they say; LLMTRAIN_JOIN_TIMEOUT sets how many seconds to wait for them",
            )
        time.sleep(POLL)


def ask_number(store: dist.Store, rank: int, deadline: float) -> str:
    """Other ranks: ask rank 0 for the number of this start, with a question that nobody asked before.

    Raises:
        dist.DistError: no answer in time, or the store is gone.
    """
    question = uuid.uuid4().hex
    store.set(f"asks/{rank}", question)
    left = datetime.timedelta(seconds=max(1.0, deadline - time.monotonic()))
    store.wait([f"answer/{question}"], left)
    number = store.get(f"answer/{question}").decode()
    store.set(f"{number}/has/{rank}", "")
    return number


def not_connected(rank: int, error: Exception) -> DataError:
    """Everybody is there, but the connections between the processes themselves fail."""
    return DataError(
        f"the processes cannot connect to each other: {first_line(error)}",
        this_process(rank),
        "name the network interface that joins the nodes: GLOO_SOCKET_IFNAME=... (and NCCL_SOCKET_IFNAME); "
        f"here there are {', '.join(interfaces())}",
    )


def first_line(error: BaseException) -> str:
    """What an error says, without gloo's guesses at causes."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(" This is typically")[0]


def lost_peer(error: BaseException) -> bool:
    """Whether an error looks like that of a process whose peer has gone: the cause is elsewhere then."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)
