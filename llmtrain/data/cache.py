"""Where prepared data lies, and the memory of hashes of big files."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from llmtrain.utils.errors import DataError
from llmtrain.utils.io import atomic_write, explain_full_disk, file_sha256

SMALL = 1 << 20
"""Bytes; smaller files are hashed each time, which costs less than a millisecond."""

SETTLED = 2.0
"""Seconds since its last change before a file's hash is remembered: time stamps are coarse."""


class HashMemo:
    """SHA-256 of files; that of a big file is computed once for each (path, size, time of change).

    Args:
        cache: the cache directory; the memory lies in its folder `hashes`.
    """

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "hashes"

    def __call__(self, path: Path) -> str:
        """SHA-256 of a file's content, as hex.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            return self._hash(path)
        except OSError as error:
            raise DataError(
                f"the file cannot be read: {error.strerror}", str(path), "check its name and rights"
            ) from error

    def _hash(self, path: Path) -> str:
        stat = path.stat()
        if stat.st_size < SMALL:
            return file_sha256(path)
        state = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        note = self.folder / name
        try:
            known, digest = note.read_text(encoding="utf-8").split("\n")
            if known == state:
                return digest
        except (OSError, ValueError):
            pass
        digest = file_sha256(path)
        if time.time() - stat.st_mtime > SETTLED:
            with explain_full_disk(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(note, f"{state}\n{digest}")
        return digest
