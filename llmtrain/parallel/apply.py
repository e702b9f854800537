"""From a model on the meta device to the layout that the config asks for."""

from __future__ import annotations

from llmtrain.model.assembled import Assembled
from llmtrain.model.build import materialise
from llmtrain.parallel.layout import Layout, Replicated
from llmtrain.parallel.mesh import Mesh
from llmtrain.schema.parallel import ParallelConfig, Reshard


def lay_out(
    model: Assembled, mesh: Mesh, config: ParallelConfig, precision: str, head_share: float = 0.0
) -> Layout:
    """The part of the model that this process has, with memory that is not yet filled. Collective.

    Args:
        model: on the meta device; taken apart where processes have parts of it.
        mesh: the processes.
        config: how, besides the degrees.
        precision: of the training step.
        head_share: what the head costs, in blocks; balances a pipeline.
    """
    if mesh.degrees.replicates_only:
        materialise(model, mesh.device)
        return Replicated(model, mesh, precision)
    if mesh.degrees.pp == 1:
        # Their parts of torch take half a second to import, which one process is better off without.
        from llmtrain.parallel.sharded import Sharded

        return Sharded(model, mesh, precision, reshard=config.reshard is not Reshard.never)
    from llmtrain.parallel.pipeline import Pipelined

    return Pipelined(model, mesh, precision, config, head_share)
