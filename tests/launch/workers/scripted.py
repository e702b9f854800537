"""A worker without torch: does what `RUN/script.json` says for its rank.

A list of actions is one for each start of the workers; the last one is repeated.
"""

from __future__ import annotations

import json
import os
import sys
import time

from llmtrain.utils.outcome import Outcome
from llmtrain.utils.processes import die_with_parent, redirect_output
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag


def end(run: RunDirectory, rank: int, code: int, message: str = "") -> None:
    """Leave an outcome and exit."""
    Outcome(code, message).write(run.outcome(rank))
    sys.exit(code)


def count_start(run: RunDirectory, rank: int) -> int:
    """Number of this start, from 0; leaves a trace for the peers, and the name of the store for the test."""
    attempt = len(list(run.path.glob(f"start-*-{rank}")))
    (run.path / f"start-{attempt}-{rank}").write_text(os.environ["LLMTRAIN_STORE"])
    return attempt


def wait_for_all(run: RunDirectory, attempt: int, world: int) -> None:
    """Until every worker has started."""
    while len(list(run.path.glob(f"start-{attempt}-*"))) < world:
        time.sleep(0.01)


def die(run: RunDirectory, number: int, step: int | None = None) -> None:
    """End by a signal, after a checkpoint if a step is given."""
    if step is not None:
        (run.checkpoints / f"step-{step:08}").mkdir(parents=True)
    os.kill(os.getpid(), number)


def main() -> None:
    stop = StopFlag()
    stop.install()
    die_with_parent(int(os.environ["LLMTRAIN_PARENT"]))
    run = RunDirectory(sys.argv[1])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank:
        redirect_output(run.rank_log(rank))
    print(f"hello from {rank}", flush=True)
    (run.path / f"environment-{rank}.json").write_text(json.dumps(dict(os.environ)))
    (run.path / f"pid-{rank}.tmp").write_text(str(os.getpid()))
    os.rename(run.path / f"pid-{rank}.tmp", run.path / f"pid-{rank}")
    attempt = count_start(run, rank)
    actions = json.loads((run.path / "script.json").read_text())[rank]
    action, *rest = actions if isinstance(actions[0], str) else actions[min(attempt, len(actions) - 1)]
    wait_for_all(run, attempt, world)
    if action == "die":
        die(run, *rest)
    if action == "end":
        end(run, rank, rest[0])
    if action == "fail":
        time.sleep(rest[2] if len(rest) > 2 else 0)
        end(run, rank, rest[0], rest[1])
    if action == "raise":
        raise RuntimeError("Connection closed by peer")
    while action == "stubborn" or not stop.exit_code:
        time.sleep(0.01)
    time.sleep(0.2)  # saving takes a while
    (run.path / f"saved-{rank}").touch()
    end(run, rank, stop.exit_code)


if __name__ == "__main__":
    main()
