"""GPT: decoder-only transformer.

With the defaults it is GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each
sub-layer, tanh GELU, biases, tied head. Rotary positions, RMSNorm, SwiGLU, grouped-query heads and no
biases make it Llama-like (Touvron et al. 2023).

Deviations from GPT-2: the vocabulary is padded to a multiple; padded rows stay 0 and outside the
softmax. Queries, keys and values have separate weights (GPT-2 stores them joined).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from llmtrain.data.batch import Batch
from llmtrain.model.block import PreNormBlock
from llmtrain.model.cache import KVCache
from llmtrain.model.layers.attention import document_mask, local_mask
from llmtrain.model.layers.norm import build_norm
from llmtrain.model.transformer import Transformer
from llmtrain.schema.model import GPTConfig


class GPT(Transformer):
    """The backbone: tokens -> hidden states.

    Args:
        config: with `vocab_size` resolved.
    """

    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, config.tie_embeddings)
        self.blocks = nn.ModuleDict(
            {str(number): PreNormBlock(config, config.num_kv_heads) for number in range(config.num_layers)}
        )
        self.norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)

    def embed(self, batch: Batch) -> Tensor:
        """Sum of the embeddings of token and position, (B, T, D)."""
        x_BTD: Tensor = self.dropout(self.embed_tokens(batch))
        return x_BTD

    def masks(self, batch: Batch) -> Mapping[str, Tensor | None]:
        """The same for all blocks: back to the start of the document, if documents are told apart, and not
        beyond the window, if there is one (Jiang et al. 2023, "Mistral 7B")."""
        mask = None if batch.documents is None else document_mask(batch.documents, causal=True)
        length, window = self.row_length(batch), self.config.window
        if window is not None and window < length:
            near = local_mask(length, window - 1, 0, batch.ids.device)
            mask = near if mask is None else mask & near
        return dict.fromkeys(self.blocks, mask)

    def cache_mask(self, cache: KVCache) -> Tensor | None:
        """See `Backbone`."""
        return cache.mask if self.config.window is None else cache.mask_within(self.config.window)

    def init_std(self, name: str) -> float:
        """Standard deviation of a weight matrix at the start.

        Projections that end a residual branch get it divided by sqrt(2L), since L blocks add two
        branches each to the stream (GPT-2, section 2.3); or they start at 0, and every block passes on what
        it gets (Zhang et al. 2019, "Fixup").
        """
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            if self.config.zero_init:
                return 0.0
            return self.config.init_std / math.sqrt(2 * self.config.num_layers)
        return self.config.init_std

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of forward and backward for one token, without the head.

        6 per weight of a matrix and 12 L H K T for attention (Chowdhery et al. 2022, "PaLM", appendix B), T
        being no more than the window; the embeddings are look-ups and count nothing.
        """
        weights = sum(parameter.numel() for parameter in self.blocks.parameters())
        width = self.config.num_heads * self.config.head_width
        seen = min(sequence_length, self.config.window or sequence_length)
        return 6 * weights + 12 * self.config.num_layers * width * seen
