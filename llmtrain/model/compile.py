"""Compiling the blocks of a model."""

from __future__ import annotations

from llmtrain.model.assembled import Assembled


def compile_blocks(model: Assembled) -> None:
    """Compile each block in place; blocks of one shape share one compilation, and keys stay as they are."""
    import torch._inductor.config  # takes more than a second, and most runs on a CPU do not need it

    # Otherwise inductor starts helper processes, which outlive a killed worker for a while; with one shape
    # to compile they would have nothing to share.
    torch._inductor.config.compile_threads = 1
    for block in model.backbone.blocks.values():
        block.compile()
