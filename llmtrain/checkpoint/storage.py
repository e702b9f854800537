"""Torch's distributed checkpoint (DCP) with its Hugging Face storage, made safe to rely upon.

Tensors go to safetensors files, one per process; the plan is rebuilt from their headers, so that no
pickle is ever written. What is added here: tensors are written without a copy in memory, the free space
is checked against the exact plan before a byte is written, and errors come out as what they are.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as torch_dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    SAVED_OFFSETS_KEY,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from llmtrain.checkpoint.disk import (
    SPACE_MARGIN,
    check_space,
    disk_full,
    is_disk_full,
    write_tensors,
)
from llmtrain.checkpoint.manifest import TENSOR_SUFFIX, FileEntry
from llmtrain.utils.errors import DiskFullError


@dataclass(frozen=True)
class Part:
    """What one process writes of a checkpoint: one file of tensors.

    Attributes:
        needed: bytes that the whole checkpoint takes on the disk, about.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    needed: int

    def write(self) -> dict[str, FileEntry]:
        """Write the file, durably; what the manifest says of it, by name.

        Raises:
            DiskFullError: there is no room.
        """
        try:
            tensors = {name: _on_host(tensor) for name, tensor in self.tensors.items()}
            entry = write_tensors(self.path, tensors, self.metadata)
            with safe_open(self.path, framework="pt"):  # refuses a file that is shorter than its header says
                pass
            return {self.path.name: entry}
        except Exception as error:
            if is_disk_full(error):
                raise disk_full(self.path.parent, self.needed) from error
            raise


class PartWriter(dcp.HuggingFaceStorageWriter):
    """Finds what every process has to write into its one safetensors file; the writing is left to `Part`.

    DCP's own writer builds the bytes of each file in memory twice, and fsyncs a buffered stream without
    flushing it.

    Attributes:
        part: of this process; None where others write all that it has.
    """

    def __init__(self, path: Path, needed: int) -> None:
        super().__init__(str(path), save_distributed=True, enable_consolidation=False)
        self.needed = needed
        self.part: Part | None = None

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Called in rank 0 with what all ranks will write, doublets removed.

        Raises:
            DiskFullError: there is no room for it.
        """
        needed = 0
        for plan in plans:
            names = [item.index.fqn for item in plan.items]
            # The storage would let the second chunk of a name replace the first, silently.
            assert len(names) == len(set(names)), "one process holds two chunks of one tensor"
            needed += sum(
                item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
                for item in plan.items
                if item.tensor_data is not None
            )
        check_space(Path(self.path), int(needed * SPACE_MARGIN))
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Keep this process's part of the plan; the reader finds it by the offsets in the header."""
        if plan.items:
            tensors = {item.index.fqn: _tensor_of(planner, item) for item in plan.items}
            offsets = {
                item.index.fqn: {SAVED_OFFSETS_KEY: list(item.tensor_data.chunk.offsets)}
                for item in plan.items
                if item.tensor_data is not None
            }
            path = Path(self.path) / f"tensors-{plan.storage_data['shard_index']:05d}{TENSOR_SUFFIX}"
            metadata = {CUSTOM_METADATA_KEY: json.dumps(offsets), FORMAT_KEY: FORMAT_VALUE}
            self.part = Part(path, tensors, metadata, self.needed)
        future: Future[list[WriteResult]] = Future()
        future.set_result([])
        return future


def _tensor_of(planner: SavePlanner, item: WriteItem) -> Tensor:
    """What an item of a plan stands for: of a shared tensor the part that is here."""
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor), "only tensors can be stored"
    return tensor.detach()


def _on_host(tensor: Tensor) -> Tensor:
    """A dense CPU tensor with a storage of its own, as safetensors wants it; a copy only if needed."""
    tensor = tensor.cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _run_dcp(action: Callable[..., Any], path: Path, needed: int, **arguments: Any) -> None:
    """Run a collective of DCP and raise the cause of its failure instead of its wrapper.

    Raises:
        DiskFullError: a process could not write for want of space.
        RuntimeError: anything else, by its text.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            action(**arguments)
        except CheckpointException as failure:  # a BaseException: nothing else would catch it
            causes = [cause for cause, _ in failure.failures.values()]
            for cause in causes:
                if isinstance(cause, DiskFullError):
                    raise cause from None
            if any(is_disk_full(cause) for cause in causes):
                raise disk_full(path, needed) from causes[0]
            raise RuntimeError(str(failure)) from causes[0]
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(path, needed) from error
            raise


def plan_part(path: Path, tensors: dict[str, Tensor]) -> Part | None:
    """Share out the writing of tensors, each once, over the processes; nothing is written; collective.

    Args:
        path: directory that the files shall be in.
        tensors: of this process, by name; the part refers to them.

    Returns:
        what this process has to write.

    Raises:
        DiskFullError: in every process, if there is no room.
    """
    needed = int(sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()) * SPACE_MARGIN)
    writer = PartWriter(path, needed)
    _run_dcp(
        dcp.save,
        path,
        needed,
        state_dict=tensors,
        storage_writer=writer,
        no_dist=not torch_dist.is_initialized(),
    )
    return writer.part


def read_metadata(path: Path) -> Metadata:
    """Names, shapes and number formats of what a checkpoint holds; reads the headers only."""
    return dcp.HuggingFaceStorageReader(str(path)).read_metadata()


def load_tensors(path: Path, tensors: dict[str, Tensor], alone: bool = False) -> None:
    """Fill `tensors` in place from a checkpoint, whatever layout wrote it.

    Args:
        path: checkpoint directory.
        tensors: key -> plain tensor or DTensor of the right global shape.
        alone: do not wait for the other processes; otherwise collective.
    """
    no_dist = alone or not torch_dist.is_initialized()
    reader = dcp.HuggingFaceStorageReader(str(path))
    _run_dcp(dcp.load, path, 0, state_dict=tensors, storage_reader=reader, no_dist=no_dist)
