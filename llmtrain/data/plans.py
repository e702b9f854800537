"""Plans of epochs: arrays that are functions of (seed, epoch) and equal in all processes.

Small ones are made by every process for itself; big ones lie in memory-mapped files beside the store, made
by whoever needs them first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmtrain.data.store import View
from llmtrain.utils.io import file_lock, read_json, write_json

PLAN_FILE_ENTRIES = 1 << 18
"""From so many entries on, a plan is a file that the processes share."""


VERSION = 1
"""Of the ways in which plans are made; a file of another one is not used."""


class PlanFiles:
    """Where the plans of a stream of rows lie.

    Args:
        view: what is planned.
        key: what else a plan depends upon but the epoch.
        entries: size of a plan, roughly; small ones are not written.
    """

    def __init__(self, view: View, key: str, entries: int) -> None:
        self._folder = view.store.path / "plans"
        self._name = hashlib.sha256(f"{VERSION} {view.key} {key}".encode()).hexdigest()[:16]
        self._lock = self._folder / f"{self._name}.lock"
        self._big = entries >= PLAN_FILE_ENTRIES

    def load(self, epoch: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
        """The plan of an epoch; `make` gives it where there is no file yet."""
        path = self._folder / f"{self._name}-{epoch}.npy"
        if not self._big:
            return make(epoch)
        try:
            self._folder.mkdir(exist_ok=True)
            with file_lock(self._lock):
                if not path.exists():
                    _save(path, make(epoch))
                    self._remove_older(epoch)
                # a plain array over the mapped file: the class np.memmap makes every small read slow
                return np.load(path, mmap_mode="r").view(np.ndarray)
        except OSError:  # a read-only or full disk: the plan fits into memory all the same
            return make(epoch)

    def recall(self, epoch: int, count: Callable[[int], int]) -> int:
        """A number about an epoch that is kept when its plan is not; `count` gives it the first time."""
        path = self._folder / f"{self._name}.json"
        if not self._big:
            return count(epoch)
        try:
            known: dict[str, int] = read_json(path)
            return known[str(epoch)]
        except (OSError, ValueError, KeyError):
            number = count(epoch)
        try:
            with file_lock(self._lock):
                known = read_json(path) if path.exists() else {}
                write_json(path, {**known, str(epoch): number})
        except (OSError, ValueError):  # as above: it is counted again next time
            pass
        return number

    def _remove_older(self, epoch: int) -> None:
        """Remove plans of epochs before the last one; who still reads one keeps it until it is closed."""
        for file in self._folder.glob(f"{self._name}-*.npy"):
            if int(file.stem.rsplit("-", 1)[1]) < epoch - 1:
                file.unlink(missing_ok=True)


def _save(path: Path, plan: np.ndarray) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.save(file, plan)
    temporary.replace(path)
