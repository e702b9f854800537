"""Whether the processes of all nodes are alike: code, libraries, command line and file system. No torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.utils.errors import ConfigError, DataError, UserError

WORDS = "LLMTRAIN_WORDS"
"""Environment variable in which the command hands its words, quoted for a shell, to the worker."""

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Member:
    """One process, as far as it has to be like the others; plain data, to be exchanged as JSON.

    Attributes:
        host: name of its machine.
        code: hash of the source files of this package.
        torch: version.
        words: its command line; empty where nobody told.
        sees_run: whether it finds the run's config in the run directory.
    """

    host: str
    code: str
    torch: str
    words: str
    sees_run: bool

    @classmethod
    def here(cls, words: str, config: Path) -> Member:
        """This process."""
        torch = importlib.metadata.version("torch")
        return cls(platform.node(), code_hash(PACKAGE), torch, words, config.is_file())


def code_hash(package: Path) -> str:
    """Twelve hex digits that change with every source file of a package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def compare(members: Sequence[Member]) -> UserError | None:
    """What is wrong where one process is unlike rank 0; the same answer for everybody.

    Args:
        members: by rank.
    """
    first = members[0]
    for rank, other in enumerate(members):
        where = f"rank {rank} on {other.host}, compared with rank 0 on {first.host}"
        if not other.sees_run:
            return DataError(
                f"{other.host} does not see the run directory that rank 0 has made",
                where,
                "give a run.dir on a file system that all nodes share",
            )
        if other.code != first.code:
            what = f"the nodes run different code of llmtrain: {other.code} on {other.host}, not {first.code}"
            return DataError(what, where, "install the same version on all nodes")
        if other.torch != first.torch:
            what = f"the nodes have different versions of torch: {other.torch} on {other.host}"
            return DataError(f"{what}, not {first.torch}", where, "install the same version on all nodes")
        if other.words != first.words:
            theirs, ours = difference(other.words, first.words), difference(first.words, other.words)
            what = f"the nodes were started with different words: {theirs} on {other.host}"
            return ConfigError(
                f"{what}, {ours} on {first.host}", where, "start the same command on all nodes"
            )
    return None


def difference(one: str, other: str) -> str:
    """Words of one command line that the other lacks."""
    extra = Counter(shlex.split(one)) - Counter(shlex.split(other))
    return shlex.join(extra.elements()) or "nothing more"
