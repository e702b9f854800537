"""One save of a checkpoint: what it holds, and how far it has come."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from llmtrain.checkpoint.background import Buffers
from llmtrain.checkpoint.manifest import MANIFEST
from llmtrain.utils.shares import own_share

if TYPE_CHECKING:
    from llmtrain.checkpoint.storage import Part

STATE = "state.json"
"""File of the counters, learning rates, data cursor, best score."""


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds.

    Attributes:
        step: optimizer steps done; names the directory.
        tensors: key -> tensor (plain, equal on all processes, or DTensor). Tied weights: once.
        state: plain JSON values; `state["layout"]`, a dict, is copied into the manifest.
        files: name -> text of further files.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    files: dict[str, str]


@dataclass
class Saving:
    """One save, at work or done.

    Attributes:
        path: under which it is published.
        temporary: where it is written.
        content: of the checkpoint.
        best: whether it is the best so far.
        part: what this process writes.
        background: whether the training goes on meanwhile.
        pause_seconds: that the training stood still.
        write_seconds: to write and publish.
        written: set when this process has written its part, or failed to.
    """

    path: Path
    temporary: Path
    content: Content
    best: bool
    part: Part | None = None
    background: bool = False
    pause_seconds: float = 0.0
    write_seconds: float = 0.0
    written: threading.Event = field(default_factory=threading.Event)

    def copy_to(self, buffers: Buffers) -> bool:
        """Let go of the tensors of the training; False where there is no memory for copies."""
        if self.part is not None:
            copies = buffers.copy(self.part.tensors)
            if copies is None:
                return False
            self.part = replace(self.part, tensors=copies)
        return True

    def write(self) -> dict[str, dict[str, Any]]:
        """Write this process's part; what the manifest says of it, by name.

        Raises:
            DiskFullError: there is no room.
        """
        try:
            entries = self.part.write() if self.part is not None else {}
            return {name: asdict(entry) for name, entry in entries.items()}
        finally:
            self.written.set()


def check_content(content: Content) -> None:
    """Refuse what would be written wrongly without a word.

    Raises:
        TypeError: not tensors, not plain data.
        ValueError: a tensor under two keys, or a file name that is taken.
    """
    owners: dict[int, str] = {}
    for key, tensor in content.tensors.items():
        # One float among the tensors makes the storage write a file that cannot be read.
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{key} is a {type(tensor).__name__}, not a tensor; put it into the state")
        local = own_share(tensor)
        if local.numel() and (other := owners.setdefault(local.data_ptr(), key)) != key:
            raise ValueError(f"{key} and {other} are one tensor; save it once")
    check_plain(content.state, "state")
    for name in content.files:
        if Path(name).name != name or name.startswith(".") or name in (STATE, MANIFEST):
            raise ValueError(f"a checkpoint cannot hold a file called {name!r}")


def check_plain(value: Any, where: str) -> None:
    """Refuse a state that would not come back from JSON as it went.

    Raises:
        TypeError: something else than dict (with text keys), list, text, number, bool, None.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, which is not text")
            check_plain(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif value is not None and type(value) not in (str, bool, int, float):
        raise TypeError(f"{where} is a {type(value).__name__}, which is not plain data")
