"""Where a process stands among the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from llmtrain.schema.parallel import AXES, Degrees
from llmtrain.utils import dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

SHARDED = "dp_shard_cp"
"""Axis along which FSDP shards: processes that share out rows, and those that share out tokens of a row."""


@dataclass(frozen=True)
class Mesh:
    """The processes of a run in a grid, and this one's place in it.

    Attributes:
        degrees: size of the grid along each axis; the last axis (tp) has neighbouring ranks.
        rank: of this process.
        device: kind of the devices.
    """

    degrees: Degrees
    rank: int
    device: torch.device

    @classmethod
    def here(cls, degrees: Degrees, device: torch.device) -> Mesh:
        """The mesh as seen from this process."""
        assert degrees.world == dist.world_size(), (degrees, dist.world_size())
        return cls(degrees, dist.rank(), device)

    @cached_property
    def coordinate(self) -> dict[str, int]:
        """Place of this process along each axis."""
        return coordinate(self.degrees, self.rank)

    @property
    def data_rank(self) -> int:
        """Number of the share of the global batch that this process sees."""
        return self.coordinate["dp_replicate"] * self.degrees.dp_shard + self.coordinate["dp_shard"]

    @property
    def num_alike(self) -> int:
        """Processes that see the same rows as this one, itself included."""
        return self.degrees.pp * self.degrees.cp * self.degrees.tp

    @property
    def num_same_sums(self) -> int:
        """Processes that find the same sums of losses. Along cp they find parts, and in a pipeline only the
        last stage finds any."""
        return self.degrees.tp

    @cached_property
    def leaders(self) -> list[int]:
        """One rank for each share of the batch, in the order of the shares: it has the head's predictions."""
        found = {}
        for rank in range(self.degrees.world):
            place = coordinate(self.degrees, rank)
            if place["cp"] == place["tp"] == 0 and place["pp"] == self.degrees.pp - 1:
                found[place["dp_replicate"] * self.degrees.dp_shard + place["dp_shard"]] = rank
        return [found[number] for number in sorted(found)]

    @cached_property
    def devices(self) -> DeviceMesh:
        """Torch's mesh of the same processes, over whose axes tensors are shared out: dp_shard and cp are one
        axis. Made once, collectively."""
        sizes = self.degrees
        shape = {
            "pp": sizes.pp,
            "dp_replicate": sizes.dp_replicate,
            SHARDED: sizes.dp_shard * sizes.cp,
            "tp": sizes.tp,
        }
        mesh = self._make(shape)
        if sizes.tp > 1:
            mesh[SHARDED, "tp"]._flatten()  # norms are then summed over both in one message
        return mesh

    @cached_property
    def context_group(self) -> ProcessGroup:
        """Processes that share the tokens of the same rows; made once, collectively."""
        return self._make(asdict(self.degrees))["cp"].get_group()

    def _make(self, shape: dict[str, int]) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))


def coordinate(degrees: Degrees, rank: int) -> dict[str, int]:
    """Place of a rank along each axis."""
    place = {}
    for axis in reversed(AXES):
        rank, place[axis] = divmod(rank, asdict(degrees)[axis])
    return place
