"""The checkpoints of one run: written whole or not at all, verified before a weight is used.

A checkpoint is a directory `step-00001000` with safetensors files (tensors only), `state.json` (counters,
learning rates, data cursor, best score), plain text files and `MANIFEST.json`. It is written under another
name, made durable, and renamed; after that it is never written again. The only other names that a kill
can leave behind start with `.tmp-` and are removed at the next start.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmtrain.checkpoint.agree import on_rank_0, together
from llmtrain.checkpoint.background import Beside, Buffers
from llmtrain.checkpoint.disk import disk_full, is_disk_full, write_durably
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
from llmtrain.checkpoint.saving import STATE, Content, Saving, check_content
from llmtrain.utils import dist
from llmtrain.utils.errors import ConfigError, NoCheckpointError
from llmtrain.utils.io import fsync_directory, read_json

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BEST = "best"
TEMPORARY = ".tmp-"
BAD = "bad-"
MOST_TOLD = 30
"""Differences that one message lists."""


class CheckpointStore:
    """Saves, finds and loads the checkpoints below one directory.

    Every method is collective, where nothing else is said: all processes call it with the same arguments
    and all get the same answer or an error. Without a process group it works alone.

    Args:
        directory: `RUN/checkpoints`, on a file system that all processes share.
        keep: newest checkpoints that are kept; the best one is kept besides.
        report: called in rank 0 with the name and the details of an event worth telling.
    """

    def __init__(self, directory: Path, *, keep: int, report: Callable[[str, dict[str, Any]], None]) -> None:
        self.directory = Path(directory)
        self.keep = keep
        self.report = report
        self._buffers = Buffers()
        self._beside: Beside | None = None
        self._saved: Saving | None = None

    # --- saving -------------------------------------------------------------------------------------

    def save(
        self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], files: dict[str, str]
    ) -> Path:
        """Publish a checkpoint and return its directory; see `begin`."""
        self.begin(Content(step, tensors, state, files), background=False)
        self.wait()
        return self.directory / step_name(step)

    def begin(self, content: Content, *, best: bool = False, background: bool = True) -> None:
        """Publish a checkpoint; one that is there and valid is left as it is.

        In the background the tensors are copied and written while the training goes on; where the memory
        of a process is too short for the copy, it writes its part before this returns. The save before, if
        it is still at work, is waited for.

        Args:
            content: of the checkpoint.
            best: point `checkpoints/best` at it.
            background: return when the tensors may be changed again; else when all is done.

        Raises:
            DiskFullError: there is no room; nothing is left behind.
            TypeError: a value is not a tensor, or the state is not plain data.
        """
        started = time.perf_counter()
        self.wait()
        path = self.directory / step_name(content.step)
        if on_rank_0(lambda: self._is_published(path)):
            if best:
                self.mark_best(content.step)
            return
        if background and self._beside is None:
            self._beside = Beside(dist.companion())
        saving = Saving(path, self.directory / f"{TEMPORARY}{path.name}", content, best)
        with self._nothing_left_of(saving):
            together(lambda: check_content(content))
            on_rank_0(lambda: self._start(saving.temporary))
            from llmtrain.checkpoint.storage import plan_part

            saving.part = plan_part(saving.temporary, content.tensors)
        if background:
            assert self._beside is not None
            saving.background = saving.copy_to(self._buffers)
            self._beside.start(functools.partial(self._finish, saving, self._beside.group))
            if not saving.background:
                saving.written.wait()
        else:
            self._finish(saving, None)
        saving.pause_seconds = time.perf_counter() - started

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
            Exception: as `begin`.
        """
        if self._beside is not None:
            self._beside.wait()

    def failed(self) -> bool:
        """Whether a save in the background has failed, as far as this process knows; not collective."""
        return self._beside is not None and self._beside.failed()

    def take_saved(self) -> Saving | None:
        """The save that has ended well since this was asked last; not collective."""
        saved, self._saved = self._saved, None
        return saved

    def _finish(self, saving: Saving, group: ProcessGroup | None) -> None:
        """Write, publish, and remove what is too old; collective in its group."""
        started = time.perf_counter()
        with self._nothing_left_of(saving):
            entries = together(saving.write, group)
            merged = {name: FileEntry(**entry) for part in entries for name, entry in part.items()}
            on_rank_0(lambda: self._publish(saving, merged), group)
        on_rank_0(lambda: self._link_best(saving.path.name) if saving.best else self._prune(), group)
        saving.write_seconds = time.perf_counter() - started
        self._saved = saving

    @contextlib.contextmanager
    def _nothing_left_of(self, saving: Saving) -> Iterator[None]:
        """Have rank 0 remove what was written if it does not come to an end."""
        try:
            yield
        except BaseException:
            if dist.rank() == 0:
                shutil.rmtree(saving.temporary, ignore_errors=True)
            raise

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

    def _publish(self, saving: Saving, entries: dict[str, FileEntry]) -> None:
        """Rank 0: the small files, the manifest, and the new name, each durable before the next."""
        content, temporary = saving.content, saving.temporary
        texts = {STATE: json.dumps(content.state, indent=2) + "\n", **content.files}
        layout = {"world_size": dist.world_size(), **content.state.get("layout", {})}
        try:
            for name, text in texts.items():
                entries[name] = write_durably(temporary / name, [text.encode()])
            write_durably(temporary / MANIFEST, [build_manifest(content.step, layout, entries).encode()])
            fsync_directory(temporary)
            os.rename(temporary, saving.path)
            fsync_directory(self.directory)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(temporary, sum(entry.size for entry in entries.values())) from error
            raise

    def mark_best(self, step: int) -> None:
        """Point `checkpoints/best` at a published checkpoint, which itself is not touched."""
        self.wait()
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
