"""Room on the disk, and what is written surviving a power cut."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from llmtrain.checkpoint.manifest import FileEntry
from llmtrain.utils.errors import DiskFullError
from llmtrain.utils.io import fsync_directory

SPACE_MARGIN = 1.05
"""Headers, the other files and the file system's own needs, as a factor on the tensors' bytes."""

FULL_DISK_ERRNO = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK_TEXT = ("No space left", "Disk quota exceeded", "unexpected pos", "os error 28", "os error 122")
"""How a full disk reads where a library has turned the operating system's error into text."""


DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the headers of safetensors files."""


PIECE_BYTES = 64 << 20
"""What is written at once, before it is sent to the disk."""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> FileEntry:
    """Write a safetensors file (https://huggingface.co/docs/safetensors, "Format"), durably.

    The library's own function keeps Python's lock until all is written, and leaves it in the cache of files.

    Args:
        path: of the file.
        tensors: dense and on the host, by name.
        metadata: of the header.

    Returns:
        What a manifest says of the file.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # all numbers aligned
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        dtype, shape = DTYPE_NAMES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    numbers = (tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for _, tensor in ordered)
    return write_durably(path, chain([len(text).to_bytes(8, "little"), text], numbers))


def write_durably(path: Path, parts: Iterable[Any]) -> FileEntry:
    """Write a file that survives a power cut: buffers, one after another, and each piece before the next.

    The memory that a piece takes in the cache of files is free for the next one. A cache that grows by
    gigabytes, which nobody reads soon, takes seconds of a core from the training beside it.
    """
    digest, size, durable = hashlib.sha256(), 0, 0
    with open(path, "wb") as file:
        for part in parts:
            buffer = memoryview(part)
            for start in range(0, buffer.nbytes, PIECE_BYTES):
                piece = buffer[start : start + PIECE_BYTES]
                digest.update(piece)
                size += file.write(piece)
                if size - durable >= PIECE_BYTES:
                    to_disk(file)
                    durable = size
        to_disk(file)
    return FileEntry(size, digest.hexdigest())


def to_disk(file: BinaryIO) -> None:
    """Send what was written to the disk, and no longer hold it in memory."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
        for path_of_file in temporary.iterdir():
            with open(path_of_file, "rb") as file:
                os.fsync(file.fileno())
        fsync_directory(temporary)
        os.rename(temporary, path)
        fsync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise disk_full(path, needed) from error
        raise
