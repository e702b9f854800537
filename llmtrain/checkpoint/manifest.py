"""What a checkpoint directory says about itself, and whether it is true.

`MANIFEST.json` is written last, names every other file with its size and SHA-256, and carries a digest of
itself: a directory with a manifest that holds is complete and unchanged. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llmtrain
from llmtrain.utils.io import file_sha256

FORMAT = 1
"""Version of the directory's layout; readers refuse others."""

MANIFEST = "MANIFEST.json"
TENSOR_SUFFIX = ".safetensors"


class InvalidCheckpoint(Exception):
    """A checkpoint directory is not what it says it is; the text is the reason."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str


def step_name(step: int) -> str:
    """Directory name of the checkpoint after `step` optimizer steps."""
    return f"step-{step:08d}"


def parse_step(name: str) -> int | None:
    """The step that a directory name stands for, or None if it names no checkpoint."""
    match = re.fullmatch(r"step-(\d{8,})", name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def published(directory: Path) -> list[Path]:
    """The checkpoints of a run by name only (nothing is verified), newest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if parse_step(path.name) is not None]
    return sorted(found, key=lambda path: parse_step(path.name) or 0, reverse=True)


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own digest, in one canonical spelling."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def build_manifest(step: int, layout: dict[str, Any], files: dict[str, FileEntry]) -> str:
    """The text of `MANIFEST.json`.

    Args:
        step: optimizer steps done.
        layout: processes and mesh that wrote it; for people, loading does not depend on it.
        files: every other file of the directory.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "layout": layout,
        "versions": {
            "llmtrain": llmtrain.__version__,
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
            "safetensors": importlib.metadata.version("safetensors"),
        },
        "files": {name: asdict(files[name]) for name in sorted(files)},
    }
    content["digest"] = _digest(content)
    return json.dumps(content, indent=2) + "\n"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a directory, after a check of its digest, format and names.

    Raises:
        InvalidCheckpoint: it is missing, damaged, of another format, or of another step than the name.
    """
    try:
        content = json.loads((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{MANIFEST} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("digest") != _digest(content):
        raise InvalidCheckpoint(f"{MANIFEST} does not match its own digest")
    if content.get("format") != FORMAT:
        raise InvalidCheckpoint(
            f"{MANIFEST} has format {content.get('format')}, this llmtrain reads {FORMAT}"
        )
    # Of the real directory: `checkpoints/best` is a link to one.
    if content["step"] != parse_step(checkpoint.resolve().name):
        raise InvalidCheckpoint(
            f"the directory is called {checkpoint.name}, but holds step {content['step']}"
        )
    for name in content["files"]:
        if Path(name).name != name or name == MANIFEST:
            raise InvalidCheckpoint(f"{MANIFEST} names a file outside the directory: {name!r}")
    return content


def verify_file(path: Path, entry: dict[str, Any]) -> None:
    """Check size, then digest, of one file.

    Raises:
        InvalidCheckpoint: it is missing, or not as the manifest says.
    """
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            raise InvalidCheckpoint(f"{path.name} has {size} bytes instead of {entry['size']}")
        digest = file_sha256(path)
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path.name} is missing") from None
    except OSError as error:
        raise InvalidCheckpoint(f"{path.name} cannot be read: {error}") from None
    if digest != entry["sha256"]:
        raise InvalidCheckpoint(f"{path.name} has changed: its SHA-256 does not match {MANIFEST}")


def verify(checkpoint: Path) -> dict[str, Any]:
    """Check every byte of a checkpoint; costs about a second per gigabyte and core.

    Returns:
        the manifest.

    Raises:
        InvalidCheckpoint: with the first reason found.
    """
    manifest = read_manifest(checkpoint)
    entries: dict[str, Any] = manifest["files"]
    # The reader takes every tensor file that it finds in the directory, so none may be added.
    for path in sorted(checkpoint.glob(f"*{TENSOR_SUFFIX}")):
        if path.name not in entries:
            raise InvalidCheckpoint(f"{path.name} is not listed in {MANIFEST}")
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda name: verify_file(checkpoint / name, entries[name]), entries):
            pass
    return manifest
