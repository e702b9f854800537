"""A backbone with a head: what is trained, saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmtrain.data.batch import Batch
from llmtrain.model.cache import KVCache
from llmtrain.model.layers.position import Rotation
from llmtrain.model.plan import TensorPlan
from llmtrain.schema.model import Activation

Output = Callable[[Tensor, Batch], Tensor]
"""What to keep of a head's predictions for each row: scores, batch -> (B, W)."""


class Backbone(nn.Module, ABC):
    """Tokens -> hidden states. Plain single-device PyTorch; layouts are applied from outside.

    It works in three parts, so that a pipeline can give them to different processes: `embed`, the
    blocks, and the last norm.

    Attributes:
        causal: whether a position sees only what stands before it.
        embedding: token embedding, with the rows that pad the vocabulary.
        blocks: the repeated part, by number: what is compiled, sharded and cut between.
        norm: after the last block; may do nothing.
        vocab_size: real tokens; embedding rows from there on stay 0.
        dim: D, width of the hidden states.
        norm_eps: of its norms, for heads that have one too.
        activation: of its feed-forward layers, for heads that have one too.
        tie_embeddings: whether an output projection shares the weight of the embedding.
        dropout_rate: for heads.
        token_shares: processes that share out the tokens of a row (context parallel).
        recompute: forget what blocks compute, and compute it again in the backward pass.
    """

    causal: bool
    embedding: nn.Embedding
    blocks: nn.ModuleDict
    norm: nn.Module
    vocab_size: int
    dim: int
    norm_eps: float
    activation: Activation
    tie_embeddings: bool
    dropout_rate: float
    token_shares: int = 1
    recompute: bool = False

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """Hidden states after the last norm, (B, T, D).

        Args:
            batch: the tokens.
            cache: tokens that stand before them, where the model is causal; they become part of it. The
                batch is what `KVCache.read` made of the tokens.
        """
        hidden_BTD: Tensor = self.norm(self.run(self.embed(batch), batch, self.blocks, cache))
        return hidden_BTD

    def run(
        self, x_BTD: Tensor, batch: Batch, numbers: Iterable[str], cache: KVCache | None = None
    ) -> Tensor:
        """Some of the blocks, one after another.

        Args:
            x_BTD: the stream before the first of them.
            batch: the tokens it was made from.
            numbers: keys of the blocks.
            cache: see `forward`.
        """
        masks, rotation = self.masks(batch), self.rotation(batch)
        if cache is not None:
            assert self.causal, "only what looks back can go on from what it has read"
            mask = self.cache_mask(cache)
            for number in numbers:
                x_BTD = self.blocks[number](x_BTD, mask, rotation, cache.block(number))
            return x_BTD
        for number in numbers:
            block, arguments = self.blocks[number], (masks[number], rotation)
            if self.recompute and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, *arguments, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, *arguments)
        return x_BTD

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """The stream before the first block, (B, T, D).

        A family without segment embeddings does not look at the segments.
        """

    @abstractmethod
    def masks(self, batch: Batch) -> Mapping[str, Tensor | None]:
        """Where the queries of each block may look, (B or 1, 1, T, T) bool; see `attention`."""

    def cache_mask(self, cache: KVCache) -> Tensor | None:
        """Where the tokens that are being read may look; see `KVCache.mask`."""
        return cache.mask

    def row_length(self, batch: Batch) -> int:
        """Tokens of a whole row, also where a batch has a share of them: what attention works on."""
        return batch.ids.shape[1] * self.token_shares

    def rotation(self, batch: Batch) -> Rotation | None:
        """Rotation of queries and keys, where a family has rotary positions."""
        return None

    @abstractmethod
    def init_std(self, name: str) -> float:
        """Standard deviation of the weight matrix of this name at the start."""

    @abstractmethod
    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of forward and backward for one token."""

    def tensor_plan(self) -> TensorPlan | None:
        """How tensor parallelism splits it; None where it cannot."""
        return None


class Head(nn.Module, ABC):
    """Hidden states -> sums of losses, or predictions; selection, projection and loss in one module.

    Attributes:
        sum_names: keys of what `sums` returns.
    """

    sum_names: ClassVar[tuple[str, ...]] = ("loss",)

    def forward(
        self, hidden_BTD: Tensor, batch: Batch, output: Output | None = None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The sums for a batch, and what is asked for of the predictions."""
        sums = self.sums(hidden_BTD, batch)
        return sums, None if output is None else output(self.predict(hidden_BTD, batch), batch)

    @abstractmethod
    def sums(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over what carries labels in the batch, by name."""

    @abstractmethod
    def predict(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Scores; their shape is the head's."""

    @abstractmethod
    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one label."""

    def tensor_plan(self) -> TensorPlan | None:
        """How tensor parallelism splits it; None where it cannot."""
        return None


class Assembled(nn.Module):
    """Keys are `backbone.*` and `head.*` in every family; fine-tuning loads `backbone.*`."""

    backbone: Backbone
    head: Head

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch, output: Output | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """The head's sums for a batch, and what is asked for of its predictions."""
        result: tuple[dict[str, Tensor], Tensor | None] = self.head(self.backbone(batch), batch, output)
        return result

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """The head's sums for a batch."""
        sums: dict[str, Tensor] = self(batch)[0]
        return sums

    def predict(self, batch: Batch) -> Tensor:
        """The head's scores for a batch."""
        return self.head.predict(self.backbone(batch), batch)

    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, sequence_length: int, labelled_share: float) -> float:
        """Floating-point operations of a training step for one token.

        Args:
            sequence_length: of a row; attention looks so far.
            labelled_share: labels for each token.
        """
        return self.backbone.flops_per_token(sequence_length) + labelled_share * self.head.flops_per_label()
