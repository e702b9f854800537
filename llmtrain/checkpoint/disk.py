"""Room on the disk, and what is written surviving a power cut."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmtrain.checkpoint.manifest import FileEntry
from llmtrain.utils.errors import DiskFullError
from llmtrain.utils.io import file_sha256

FULL_DISK_ERRNO = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK_TEXT = ("No space left", "Disk quota exceeded", "unexpected pos", "os error 28", "os error 122")
"""How a full disk reads where a library has turned the operating system's error into text."""


def durable_entry(path: Path) -> FileEntry:
    """Make a file that was just written survive a power cut, and take its digest meanwhile."""
    with open(path, "rb") as file, ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(os.fsync, file.fileno())
        digest = file_sha256(path)
        syncing.result()
    return FileEntry(path.stat().st_size, digest)


def disk_full(path: Path, needed: int) -> DiskFullError:
    """The error for a user, with the numbers."""
    free = shutil.disk_usage(path if path.exists() else path.parent).free
    return DiskFullError(
        f"the disk is full: a checkpoint needs {needed:,} bytes, {free:,} are free",
        str(path.parent),
        "free some space, or lower checkpoint.keep, then run the same command again",
    )


def check_space(path: Path, needed: int) -> None:
    """Refuse to start writing what cannot fit.

    Raises:
        DiskFullError: fewer than `needed` bytes are free below `path`.
    """
    if shutil.disk_usage(path).free < needed:
        raise disk_full(path, needed)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error, whatever it looks like."""
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNO:
        return True
    return any(text in str(error) for text in FULL_DISK_TEXT)
