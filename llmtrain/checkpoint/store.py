"""The checkpoints of one run: written whole or not at all, verified before a weight is used.

A checkpoint is a directory `step-00001000` with safetensors files (tensors only), `state.json` (counters,
learning rates, data cursor, best score), plain text files and `MANIFEST.json`. It is written under another
name, made durable, and renamed; after that it is never written again. The only other names that a kill
can leave behind start with `.tmp-` and are removed at the next start.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.agree import on_rank_0, together
from llmtrain.checkpoint.disk import disk_full, durable_entry, is_disk_full
from llmtrain.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    InvalidCheckpoint,
    build_manifest,
    parse_step,
    published,
    step_name,
    verify,
)
from llmtrain.utils import dist
from llmtrain.utils.errors import ConfigError, NoCheckpointError
from llmtrain.utils.io import fsync_directory, read_json

STATE = "state.json"
BEST = "best"
TEMPORARY = ".tmp-"
BAD = "bad-"
MOST_TOLD = 30
"""Differences that one message lists."""


class CheckpointStore:
    """Saves, finds and loads the checkpoints below one directory.

    Every method is collective: all processes call it with the same arguments and all get the same
    answer or an error. Without a process group it works alone.

    Args:
        directory: `RUN/checkpoints`, on a file system that all processes share.
        keep: newest checkpoints that are kept; the best one is kept besides.
        report: called in rank 0 with the name and the details of an event worth telling.
    """

    def __init__(self, directory: Path, *, keep: int, report: Callable[[str, dict[str, Any]], None]) -> None:
        self.directory = Path(directory)
        self.keep = keep
        self.report = report

    # --- saving -------------------------------------------------------------------------------------

    def save(
        self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], files: dict[str, str]
    ) -> Path:
        """Publish a checkpoint; one that is there and valid is left as it is.

        Args:
            step: optimizer steps done; names the directory.
            tensors: key -> tensor (plain, equal on all processes, or DTensor). Tied weights: once.
            state: plain JSON values; `state["layout"]`, a dict, is copied into the manifest.
            files: name -> text of further files.

        Raises:
            DiskFullError: there is no room; nothing is left behind.
            TypeError: a value is not a tensor, or the state is not plain data.
        """
        path = self.directory / step_name(step)
        if on_rank_0(lambda: self._is_published(path)):
            return path
        temporary = self.directory / f"{TEMPORARY}{path.name}"
        try:
            together(lambda: check_arguments(tensors, state, files))
            on_rank_0(lambda: self._start(temporary))
            from llmtrain.checkpoint.storage import save_tensors

            written = save_tensors(temporary, tensors)
            entries = together(lambda: {name: asdict(entry) for name, entry in written.items()})
            merged = {name: FileEntry(**entry) for part in entries for name, entry in part.items()}
            on_rank_0(lambda: self._publish(temporary, path, merged, step, state, files))
        except BaseException:
            if dist.rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        on_rank_0(self._prune)
        return path

    def _is_published(self, path: Path) -> bool:
        """Rank 0: whether a valid checkpoint is there; an invalid one is set aside."""
        if not path.exists():
            return False
        try:
            verify(path)
            return True
        except InvalidCheckpoint as reason:
            self._set_aside(path, str(reason))
            return False

    def _start(self, temporary: Path) -> None:
        """Rank 0: an empty directory to write into."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        temporary.mkdir()

    def _publish(
        self,
        temporary: Path,
        path: Path,
        entries: dict[str, FileEntry],
        step: int,
        state: dict[str, Any],
        files: dict[str, str],
    ) -> None:
        """Rank 0: the small files, the manifest, and the new name, each durable before the next."""
        texts = {STATE: json.dumps(state, indent=2) + "\n", **files}
        layout = {"world_size": dist.world_size(), **state.get("layout", {})}
        try:
            for name, text in texts.items():
                entries[name] = write_durably(temporary / name, text)
            write_durably(temporary / MANIFEST, build_manifest(step, layout, entries))
            fsync_directory(temporary)
            os.rename(temporary, path)
            fsync_directory(self.directory)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(temporary, sum(entry.size for entry in entries.values())) from error
            raise

    def mark_best(self, step: int) -> None:
        """Point `checkpoints/best` at a published checkpoint, which itself is not touched."""
        on_rank_0(lambda: self._link_best(step_name(step)))

    def _link_best(self, name: str) -> None:
        assert (self.directory / name).is_dir(), f"{name} is not published"
        link = self.directory / f"{TEMPORARY}{BEST}"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        os.replace(link, self.directory / BEST)
        fsync_directory(self.directory)
        self._prune()

    def _prune(self) -> None:
        """Rank 0: remove all but the newest and the best; a half-removed one is never visible."""
        best = self.directory / BEST
        best_name = os.readlink(best) if best.is_symlink() else None
        for path in published(self.directory)[self.keep :]:
            if path.name != best_name:
                doomed = self.directory / f"{TEMPORARY}old-{path.name}"
                os.rename(path, doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    # --- finding and loading ------------------------------------------------------------------------

    def find(self) -> Path | None:
        """The newest checkpoint that is valid to the last byte, or None where there never was one.

        Leftovers of killed runs are removed; a bad checkpoint is renamed to `bad-step-...` and
        reported as `checkpoint_rejected`.

        Raises:
            NoCheckpointError: there were checkpoints, and none of them can be trusted.
        """
        name = on_rank_0(self._find)
        return self.directory / name if name is not None else None

    def _find(self) -> str | None:
        if not self.directory.is_dir():
            return None
        self._remove_leftovers()
        for path in published(self.directory):
            if self._is_published(path):
                return path.name
        rejected = sorted(path.name for path in self.directory.glob(f"{BAD}step-*"))
        if rejected:
            raise NoCheckpointError(
                f"none of the checkpoints can be trusted ({', '.join(rejected)})",
                str(self.directory),
                "start anew in another directory (run.dir=...), or restore a checkpoint from a backup",
            )
        return None

    def _remove_leftovers(self) -> None:
        for path in self.directory.glob(f"{TEMPORARY}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _set_aside(self, path: Path, reason: str) -> None:
        """Rank 0: rename a bad checkpoint, drop a `best` that pointed at it, and tell."""
        target, number = self.directory / f"{BAD}{path.name}", 1
        while target.exists():
            number += 1
            target = self.directory / f"{BAD}{path.name}-{number}"
        os.rename(path, target)
        best = self.directory / BEST
        if best.is_symlink() and not best.exists():
            best.unlink()
        fsync_directory(self.directory)
        details = {"step": parse_step(path.name), "reason": reason, "moved_to": str(target)}
        self.report("checkpoint_rejected", details)

    def load(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Fill `tensors` in place from a checkpoint that `find` or `save` returned.

        Returns:
            the state that was saved.

        Raises:
            ConfigError: keys, shapes or number formats differ; the differences are listed.
        """
        keys = together(lambda: list(tensors))
        together(lambda: check_match(path, tensors, {key for part in keys for key in part}))
        from llmtrain.checkpoint.storage import load_tensors

        load_tensors(path, tensors)
        state: dict[str, Any] = read_json(path / STATE)
        return state


def write_durably(path: Path, text: str) -> FileEntry:
    """Write a new text file and fsync it."""
    path.write_bytes(text.encode())
    return durable_entry(path)


def check_arguments(tensors: dict[str, Tensor], state: dict[str, Any], files: dict[str, str]) -> None:
    """Refuse what would be written wrongly without a word.

    Raises:
        TypeError: not tensors, not plain data.
        ValueError: a tensor under two keys, or a file name that is taken.
    """
    owners: dict[int, str] = {}
    for key, tensor in tensors.items():
        # One float among the tensors makes the storage write a file that cannot be read.
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{key} is a {type(tensor).__name__}, not a tensor; put it into the state")
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if local.numel() and (other := owners.setdefault(local.data_ptr(), key)) != key:
            raise ValueError(f"{key} and {other} are one tensor; save it once")
    check_plain(state, "state")
    for name in files:
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


def check_match(path: Path, tensors: dict[str, Tensor], all_keys: set[str]) -> None:
    """Compare a checkpoint with the tensors that are to be filled.

    Args:
        path: checkpoint directory.
        tensors: of this process.
        all_keys: of all processes together (with a pipeline each has some).

    Raises:
        ConfigError: with the differences.
    """
    from llmtrain.checkpoint.storage import read_metadata

    held: dict[str, Any] = read_metadata(path).state_dict_metadata
    problems = [f"{key} is missing in the checkpoint" for key in sorted(all_keys - held.keys())]
    problems += [f"{key} is in the checkpoint, but not in this run" for key in sorted(held.keys() - all_keys)]
    for key in sorted(tensors.keys() & held.keys()):
        saved = _describe(torch.Size(held[key].size), held[key].properties.dtype)
        wanted = _describe(tensors[key].shape, tensors[key].dtype)
        if saved != wanted:
            problems.append(f"{key} is {saved} in the checkpoint and {wanted} in this run")
    if problems:
        more = [f"... and {len(problems) - MOST_TOLD} more"] if len(problems) > MOST_TOLD else []
        raise ConfigError(
            "the checkpoint does not fit this run: " + "; ".join(problems[:MOST_TOLD] + more),
            str(path),
            "run with the configuration that wrote it, or start a new run (run.dir=...)",
        )


def _describe(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
