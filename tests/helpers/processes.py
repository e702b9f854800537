"""Real processes for tests: several ranks over gloo, and waiting for things to happen."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any


def _rank_main(
    connection: Connection,
    function: Callable[..., Any],
    rank: int,
    world: int,
    store: Path,
    args: tuple[Any, ...],
) -> None:
    """What each process runs: join the others, call the function, send back the result or the traceback."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world)
    )
    os.environ["LLMTRAIN_STORE"] = str(store)
    import torch

    from llmtrain.utils import dist

    torch.set_num_threads(1)
    try:
        dist.start()
        connection.send((True, function(rank, *args)))
        dist.stop()
    except BaseException:
        connection.send((False, traceback.format_exc()))
        os._exit(1)


def warm_context() -> ForkServerContext:
    """Children start from a server that has imported torch and our program, which is ten times quicker."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.checkpoint", "llmtrain.worker", "llmtrain.launch"])
    return context


def start_rank(function: Callable[..., Any], *args: Any) -> ForkServerProcess:
    """Start `function(0, *args)` in a process of its own, to be killed by the caller."""
    process = warm_context().Process(target=function, args=(0, *args))
    process.start()
    return process


def run_ranks(
    function: Callable[..., Any], world: int, directory: Path, *args: Any, timeout: float = 60
) -> list[Any]:
    """Call `function(rank, *args)` in `world` processes that form a gloo group.

    Args:
        function: at the top level of a test module.
        world: number of processes.
        directory: where they meet (a file of its own for each call).
        args: anything that can be pickled.
        timeout: seconds for all of it.

    Returns:
        the results by rank.

    Raises:
        AssertionError: a process failed or took too long; carries its traceback.
    """
    context = warm_context()
    store = directory / f"store-{time.monotonic_ns()}"
    processes, connections = [], []
    for rank in range(world):
        ours, theirs = context.Pipe()
        process = context.Process(target=_rank_main, args=(theirs, function, rank, world, store, args))
        process.start()
        theirs.close()
        processes.append(process)
        connections.append(ours)
    deadline = time.monotonic() + timeout
    results = []
    try:
        for rank, connection in enumerate(connections):
            assert connection.poll(max(0.0, deadline - time.monotonic())), (
                f"rank {rank}: no answer in {timeout} s"
            )
            good, value = connection.recv()
            assert good, f"rank {rank} failed:\n{value}"
            results.append(value)
        for process in processes:
            process.join(max(0.1, deadline - time.monotonic()))
        return results
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def wait_until(condition: Callable[[], Any], timeout: float = 30, what: str = "it") -> Any:
    """Poll until `condition()` is true and return its value; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {timeout} s")
