"""Compiling a model."""

from __future__ import annotations

from llmtrain.model.assembled import Assembled
from llmtrain.model.heads.vocabulary import VocabularyProjection
from llmtrain.model.kernels.loops import compiled_loops
from llmtrain.model.kernels.products import product_pass


def compile_blocks(model: Assembled) -> None:
    """Compile each block in place, and the loops of the loss over the vocabulary.

    Blocks of one shape share one compilation, and keys stay as they are.
    """
    import torch._inductor.config  # takes more than a second, and most runs on a CPU do not need it

    # Otherwise inductor starts helper processes, which outlive a killed worker for a while; with one shape
    # to compile they would have nothing to share.
    torch._inductor.config.compile_threads = 1
    torch._inductor.config.post_grad_custom_post_pass = product_pass()
    loops = compiled_loops()
    for module in model.head.modules():
        if isinstance(module, VocabularyProjection):
            module.loops = loops
    for block in model.backbone.blocks.values():
        block.compile()
