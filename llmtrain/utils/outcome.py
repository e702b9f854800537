"""How a worker process tells its launcher how it ended."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtrain.utils.io import read_json, write_json


@dataclass
class Outcome:
    """The end of one worker: exit code, the message for the user (may be empty), and when."""

    exit_code: int
    message: str = ""
    time: float = 0.0

    def write(self, path: Path) -> None:
        """Leave it for the launcher, atomically."""
        self.time = time.time()
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """The outcome that a worker left, or None where it was killed before it could."""
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError):
            return None
