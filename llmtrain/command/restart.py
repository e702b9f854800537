"""Starting the workers of a run again after one of them was lost."""

from __future__ import annotations

import json
import sys
import time

from llmtrain.checkpoint.manifest import parse_step, published
from llmtrain.utils.io import explain_full_disk
from llmtrain.utils.run_directory import RunDirectory


class Restarts:
    """Allows so many restarts in a row that bring nothing; a new checkpoint makes the count 0 again.

    A run that loses a worker once a day goes on for months so, and one that dies at the same step again
    and again ends soon.

    Args:
        run: whose checkpoints are looked at, and whose events are written.
        limit: restarts without a new checkpoint in between.
    """

    def __init__(self, run: RunDirectory, limit: int) -> None:
        self.run = run
        self.limit = limit
        self.fruitless = 0
        self.step = newest_step(run)

    def granted(self) -> bool:
        """Count one more restart, if there may be one."""
        step = newest_step(self.run)
        if step > self.step:
            self.step, self.fruitless = step, 0
        if self.fruitless >= self.limit:
            return False
        self.fruitless += 1
        return True

    def history(self) -> str:
        """The restarts that brought nothing, as the end of a sentence."""
        if not self.fruitless:
            return ""
        times = "1 restart" if self.fruitless == 1 else f"{self.fruitless} restarts"
        return f", also after {times} without a new checkpoint"

    def tell(self, rank: int, reason: str) -> None:
        """Say on the terminal and in the run's events that all workers start again.

        Args:
            rank: of the worker that was lost.
            reason: what happened to it.

        Raises:
            DiskFullError: there is no room for the event.
        """
        start = f"from the checkpoint of step {self.step:,}" if self.step else "from the beginning"
        count = f"restart {self.fruitless} of at most {self.limit} without a new checkpoint"
        text = f"warning: rank {rank} {reason}; all workers start again {start} ({count})"
        print(text, file=sys.stderr, flush=True)
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "event": "restarted",
            "text": text,
            "rank": rank,
            "reason": reason,
            "attempt": self.fruitless,
            "step": self.step,
        }
        path = self.run.events
        with explain_full_disk(path), open(path, "a+b") as file:
            file.seek(-1 if file.tell() else 0, 2)
            torn = file.read() not in (b"", b"\n")  # a kill cut the last line short
            file.write(b"\n" * torn + json.dumps(record).encode() + b"\n")


def newest_step(run: RunDirectory) -> int:
    """Step of the newest checkpoint, 0 where there is none."""
    return max((parse_step(path.name) or 0 for path in published(run.checkpoints)), default=0)
