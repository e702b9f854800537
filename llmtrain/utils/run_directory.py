"""Where everything of one run lies, and what becomes of it where nothing comes of the run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llmtrain.utils.errors import ExitCode
from llmtrain.utils.io import read_json

MISTAKES = (ExitCode.CONFIG, ExitCode.DATA, ExitCode.NO_CHECKPOINT)
"""Exit codes of a run that a user has to start otherwise."""


class RunDirectory:
    """The files of one run; creates nothing by itself.

    The lock file says who is at work in the directory, and (`made`) whether it was there before.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.requested = self.path / ".requested.yaml"
        """The config as it was asked for, before anything was decided: what a resume is compared with."""
        self.overrides = self.path / "overrides.txt"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.summary = self.path / "summary.json"
        self.predictions = self.path / "predictions.jsonl"
        self.scores = self.path / "scores.json"
        """Of fine-tuning: what the best evaluation said about each validation example, and its scores."""
        self.report = self.path / "report.html"
        self.picture = self.path / "loss.png"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        """What `log.profile` has measured, of each process."""
        self.lock = self.path / ".lock"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.launch = self.path / ".launch"
        """Of the processes that are running now: rendezvous files and the outcome of each rank."""

    def rank_log(self, rank: int) -> Path:
        """Log file of one process."""
        return self.logs / f"rank{rank}.log"

    def outcome(self, rank: int) -> Path:
        """How one process ended: `{"exit_code": ..., "message": ...}`, see `utils.outcome`."""
        return self.launch / f"outcome-{rank}.json"

    def discard(self, exit_code: int) -> bool:
        """Remove the directory of a start that a mistake of the user has ended before anything came of it.

        It is removed only if this start has made it, and if there is nothing in it but what a start writes:
        config and logs. To be called by the last process of the run, which holds the lock.

        Args:
            exit_code: of the run.

        Returns:
            whether it was removed.
        """
        written = {self.config, self.requested, self.overrides, self.environment, self.lock}
        try:
            fruitless = set(self.path.iterdir()) <= written | {self.logs, self.launch}
            if exit_code not in MISTAKES or not fruitless or not read_json(self.lock)["made"]:
                return False
            gone = self.path.with_name(f".{self.path.name}.{os.getpid()}.gone")
            self.path.rename(gone)  # at once: nobody else may find a part of it
        except (OSError, ValueError, KeyError, TypeError):
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True
