"""Room on the disk, and what is written surviving a power cut."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from llmtrain.checkpoint.manifest import FileEntry
from llmtrain.utils.errors import DiskFullError
from llmtrain.utils.io import file_sha256, fsync_directory

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


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file (https://huggingface.co/docs/safetensors, "Format").

    The library's own function keeps Python's lock until all is written: a training beside it stands still,
    for 4 s with the weights and moments of GPT-2 124M.

    Args:
        path: of the file.
        tensors: dense and on the host, by name.
        metadata: of the header.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # all numbers aligned
    offset = 0
    for name, tensor in ordered:
        place = [offset, offset + tensor.nbytes]
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": place,
        }
        offset = place[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        write_numbers(file, [tensor for _, tensor in ordered])


def write_numbers(file: BinaryIO, tensors: Sequence[Tensor]) -> None:
    """Append the bytes of tensors; other threads of Python run meanwhile."""
    for tensor in tensors:
        file.write(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))


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
