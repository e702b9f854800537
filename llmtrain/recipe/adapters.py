"""The model that adapters belong to: checkpoints of theirs do not hold it, but tell where it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtrain.checkpoint.manifest import MANIFEST, InvalidCheckpoint, read_manifest
from llmtrain.checkpoint.read import read_file
from llmtrain.checkpoint.weights import Weights
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.io import file_sha256

BASE = "base.json"
"""File of a checkpoint with adapters."""

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json")
"""Files of a model directory that decide what its weights are."""


@dataclass(frozen=True)
class BaseRecord:
    """What a checkpoint with adapters tells of the model that they were made for.

    Attributes:
        path: a checkpoint, a model directory or a file.
        digest: of its weights; see `weights_digest`.
        carried: names of the parameters that are its own start with one of these.
    """

    path: str
    digest: str
    carried: tuple[str, ...]

    def text(self) -> str:
        """Content of the file."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class Base:
    """The model that adapters learn for.

    Attributes:
        record: to be saved with them.
        weights: of it.
    """

    record: BaseRecord
    weights: Weights

    def names(self, names: Set[str]) -> set[str]:
        """Those of a model's parameters that are the base's, and so neither learn nor are saved."""
        carried = self.record.carried
        return {name for name in self.weights.shapes if name in names and name.startswith(carried)}


def read_base(checkpoint: Path) -> BaseRecord:
    """What a checkpoint tells of its base, which has to be there as it was.

    Raises:
        ConfigError: it is gone, or has changed.
    """
    told = json.loads(read_file(checkpoint, BASE))
    record = BaseRecord(str(told["path"]), str(told["digest"]), tuple(map(str, told["carried"])))
    fix = "bring it back: the checkpoint has what was learned only; `llmtrain convert` would have joined both"
    what = "the model that the adapters belong to"
    if not Path(record.path).exists():
        raise ConfigError(f"{what} is gone: {record.path}", str(checkpoint), fix)
    if weights_digest(Path(record.path)) != record.digest:
        raise ConfigError(f"{what} has changed: {record.path}", str(checkpoint), fix)
    return record


def weights_digest(path: Path) -> str:
    """A hash of what a model is: a checkpoint's own digest, else one over its files.

    Raises:
        ConfigError: a checkpoint's manifest cannot be trusted.
    """
    if path.is_file():
        return file_sha256(path)
    if (path / MANIFEST).is_file():
        try:
            return str(read_manifest(path)["digest"])
        except InvalidCheckpoint as reason:
            what = f"the checkpoint cannot be trusted: {reason}"
            raise ConfigError(what, str(path), "restore it from a backup") from None
    files = sorted({file for pattern in WEIGHT_FILES for file in path.glob(pattern)})
    told = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(told.encode()).hexdigest()
