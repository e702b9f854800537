"""What the transformers here have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Backbone
from llmtrain.model.layers.dropout import Dropout
from llmtrain.model.layers.embedding import build_embedding
from llmtrain.model.layers.position import Rotation, rotary_table
from llmtrain.model.plan import Split, TensorPlan
from llmtrain.schema.model import Position, TransformerConfig


class Transformer(Backbone):
    """Embeddings and positions; blocks and norms are the family's.

    Args:
        config: with `vocab_size` resolved.
        tie_embeddings: whether an output projection shares the weight of the embedding.
    """

    def __init__(self, config: TransformerConfig, tie_embeddings: bool) -> None:
        super().__init__()
        assert config.vocab_size is not None, "the vocabulary is not resolved"
        self.config = config
        self.causal, self.tie_embeddings = config.causal, tie_embeddings
        self.vocab_size, self.dim = config.vocab_size, config.dim
        self.norm_eps, self.dropout_rate = config.norm_eps, config.dropout
        self.activation = config.activation
        self.embedding = build_embedding(config.vocab_size, config.vocab_multiple, config.dim)
        learned = config.position is Position.learned
        self.position = nn.Embedding(config.max_positions, config.dim) if learned else None
        self.dropout = Dropout(config.dropout)

    def positions(self, batch: Batch) -> Tensor:
        """Position of each token, (B or 1, T)."""
        if batch.positions is not None:
            return batch.positions
        return torch.arange(batch.ids.shape[1], device=batch.ids.device)[None]

    def embed_tokens(self, batch: Batch) -> Tensor:
        """Embeddings of the tokens, and of learned positions, (B, T, D)."""
        x_BTD: Tensor = self.embedding(batch.ids)
        return x_BTD if self.position is None else x_BTD + self.position(self.positions(batch))

    def rotation(self, batch: Batch) -> Rotation | None:
        """Rotation of queries and keys, where positions are not learned."""
        if self.config.position is Position.learned:
            return None
        config = self.config
        return rotary_table(
            self.positions(batch), config.head_width, config.rotary_theta, config.rotary_scaling
        )

    def tensor_plan(self) -> TensorPlan:
        """Heads and hidden units are shared out; see `Split`."""
        return {
            "embedding": Split.lookup,
            "position": Split.own_lookup,
            "segment": Split.own_lookup,
            "embedding_norm": Split.own_tokens,
            "blocks.*.attention_norm": Split.own_tokens,
            "blocks.*.attention": Split.gather,
            "blocks.*.attention.query": Split.columns,
            "blocks.*.attention.key": Split.columns,
            "blocks.*.attention.value": Split.columns,
            "blocks.*.attention.query_norm": Split.own_heads,
            "blocks.*.attention.key_norm": Split.own_heads,
            "blocks.*.attention.out": Split.rows,
            "blocks.*.mlp_norm": Split.own_tokens,
            "blocks.*.mlp": Split.gather,
            "blocks.*.mlp.gate": Split.columns,
            "blocks.*.mlp.up": Split.columns,
            "blocks.*.mlp.down": Split.rows,
            "norm": Split.own_tokens,
        }
