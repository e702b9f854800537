"""Room on the disk, and what is written surviving a power cut."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from llmtrain.checkpoint.manifest import FileEntry
from llmtrain.utils.errors import DiskFullError
from llmtrain.utils.io import file_sha256, fsync_directory

SPACE_MARGIN = 1.05
"""Headers, the other files and the file system's own needs, as a factor on the tensors' bytes."""

FULL_DISK_ERRNO = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK_TEXT = ("No space left", "Disk quota exceeded", "unexpected pos", "os error 28", "os error 122")
"""How a full disk reads where a library has turned the operating system's error into text."""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that may be read by whom any new file may be read by; the library itself gives
    it to its owner only."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata)
    path.chmod(mode)


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


@contextmanager
def new_directory(path: Path, needed: int) -> Iterator[Path]:
    """A directory that comes to be whole or not at all: filled under another name, made durable, renamed.

    Args:
        path: nothing is there yet.
        needed: bytes that will be written, about.

    Yields:
        where to put the files for now.

    Raises:
        DiskFullError: there is no room for it; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, needed)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            durable_entry(file)
        fsync_directory(temporary)
        os.rename(temporary, path)
        fsync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise disk_full(path, needed) from error
        raise
