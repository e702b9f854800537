"""Reading checkpoints of other runs: one process, nothing is renamed, everything is verified first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.manifest import (
    MANIFEST,
    InvalidCheckpoint,
    published,
    read_manifest,
    verify,
    verify_file,
)
from llmtrain.checkpoint.store import BEST, STATE
from llmtrain.data.lines import suggest_path
from llmtrain.utils.errors import ConfigError, NoCheckpointError
from llmtrain.utils.io import read_json


def resolve(path: Path, key: str = "init_from", others: str = "") -> Path:
    """The checkpoint directory that a path given by the user means.

    Args:
        path: a run directory (its best checkpoint is taken, else its newest valid one), or a
            `checkpoints/step-...` directory.
        key: by which it was given, for messages.
        others: what else could have been given, for messages.

    Raises:
        ConfigError: it is neither.
        NoCheckpointError: the run has no checkpoint that can be trusted.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path.resolve()
    checkpoints = path if published(path) else path / "checkpoints"
    if not checkpoints.is_dir():
        fix = "give a run directory (with checkpoints/ in it) or one of its checkpoints/step-* directories"
        if not path.exists() and (guess := suggest_path(path)).startswith("did you mean"):
            fix = f"{guess} else {fix}"
        raise ConfigError(f"{path} holds no checkpoint: there is {_contents(path)}", key, fix + others)
    if (checkpoints / BEST / MANIFEST).is_file():
        return (checkpoints / BEST).resolve()
    reasons = []
    for candidate in published(checkpoints):
        try:
            verify(candidate)
            return candidate.resolve()
        except InvalidCheckpoint as reason:
            reasons.append(f"{candidate.name}: {reason}")
    raise NoCheckpointError(
        f"{path} has no checkpoint that can be trusted",
        "; ".join(reasons) or f"there is {_contents(checkpoints)}",
        "wait for its first checkpoint, or give another run",
    )


def _contents(path: Path) -> str:
    """What is at a path, for a message."""
    if not path.exists():
        return "nothing"
    if not path.is_dir():
        return "a file"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "an empty directory"
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


@contextmanager
def _rejecting(checkpoint: Path) -> Iterator[None]:
    """Turn the reason of a rejection into an error for the user."""
    try:
        yield
    except InvalidCheckpoint as reason:
        raise NoCheckpointError(
            f"the checkpoint cannot be trusted: {reason}",
            str(checkpoint),
            "give another checkpoint, or restore this one from a backup",
        ) from None


class SavedWeights:
    """The tensors of a checkpoint whose keys start with a prefix, by the rest of the key.

    Args:
        checkpoint: its directory; every byte of it is verified now.
        prefix: of the keys.
        preferred: where a name has a key with this prefix too, that is taken.

    Attributes:
        keys: of the tensors, by name.

    Raises:
        NoCheckpointError: a digest does not match, or no key starts so.
    """

    def __init__(self, checkpoint: Path, prefix: str, preferred: str | None = None) -> None:
        from llmtrain.checkpoint.storage import read_metadata

        self.checkpoint = checkpoint
        with _rejecting(checkpoint):
            verify(checkpoint)
        held: dict[str, Any] = read_metadata(checkpoint).state_dict_metadata
        self.keys = {key.removeprefix(prefix): key for key in sorted(held) if key.startswith(prefix)}
        if preferred is not None:
            better = {name: f"{preferred}{name}" for name in self.keys}
            self.keys |= {name: key for name, key in better.items() if key in held}
        self._held = {name: held[key] for name, key in self.keys.items()}
        if not self._held:
            raise NoCheckpointError(
                f"the checkpoint holds no tensor called {prefix}...",
                str(checkpoint),
                "give another checkpoint",
            )

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """See `Weights`."""
        return {name: torch.Size(one.size) for name, one in self._held.items()}

    def fill(self, parameters: Mapping[str, Tensor]) -> None:
        """See `Weights`; of each tensor only what belongs to this process is read."""
        from llmtrain.checkpoint.storage import load_tensors

        tensors = {self.keys[name]: one.detach() for name, one in parameters.items()}
        load_tensors(self.checkpoint, tensors, alone=True)

    def read(self) -> dict[str, Tensor]:
        """All of them, whole, on the CPU."""
        whole = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in self._held.items()}
        self.fill(whole)
        return whole


def read_file(checkpoint: Path, name: str) -> str:
    """The text of one file of a checkpoint, for example `config.yaml`, after a check of its digest.

    Raises:
        NoCheckpointError: it is not there, or has changed.
    """
    with _rejecting(checkpoint):
        entries = read_manifest(checkpoint)["files"]
        if name not in entries:
            raise InvalidCheckpoint(f"{name} is not listed in {MANIFEST}")
        verify_file(checkpoint / name, entries[name])
    return (checkpoint / name).read_text(encoding="utf-8")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state that was saved with a checkpoint."""
    read_file(checkpoint, STATE)
    state: dict[str, Any] = read_json(checkpoint / STATE)
    return state
