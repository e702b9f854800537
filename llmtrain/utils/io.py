"""Files: atomic and durable writes, JSON, JSON lines, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmtrain.utils.errors import DiskFullError

HASH_BLOCK = 1 << 20
"""Bytes that are read and hashed at once."""


def cache_directory() -> Path:
    """Where things are kept that can be made anew: `$LLMTRAIN_CACHE`, else `~/.cache/llmtrain`."""
    return Path(os.environ.get("LLMTRAIN_CACHE") or "~/.cache/llmtrain").expanduser().absolute()


def fsync_directory(path: Path) -> None:
    """Make a creation or a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" into a `DiskFullError` that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            "the disk is full",
            str(path),
            "free some space, or choose another place with run.dir=... "
            "(caches: LLMTRAIN_CACHE), then run the same command again",
        ) from error


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    Raises:
        DiskFullError: there is no space left.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_full_disk(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSON Lines file; a line cut short by a crash is left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex.

    In larger blocks than `hashlib.file_digest` reads: each costs two changes between threads of Python.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(HASH_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def lock_descriptor(path: Path) -> int | None:
    """Take an exclusive lock on `path` without waiting.

    Returns:
        the open descriptor that holds the lock until it is closed or its processes end, or None
        where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return descriptor


@contextmanager
def file_lock(path: Path, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on `path`, waiting for it as long as it takes.

    Args:
        path: the lock file; it is created and stays.
        poll: called a few times a second while waiting; may raise to give up (a stop signal).
    """
    while (descriptor := lock_descriptor(path)) is None:
        poll()
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(descriptor)
