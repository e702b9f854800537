"""Where everything of one run lies."""

from __future__ import annotations

from pathlib import Path


class RunDirectory:
    """The files of one run; creates nothing by itself."""

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
