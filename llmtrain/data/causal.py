"""Batches for autoregressive language models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.rows import Row


def causal_batch(rows: Sequence[Row], isolate_documents: bool) -> Batch:
    """Rows as a batch in which every token is to be predicted from those before it.

    Args:
        rows: B rows of T tokens.
        isolate_documents: keep attention, positions and prediction inside each document.

    Returns:
        ids and labels (B, T); the label is IGNORE at padding, where nothing follows and, with isolated
        documents, where the next token belongs to another one. Isolated documents also give documents
        (B, T), and positions (B, T) that start at 0 with each document in the row.
    """
    ids = np.stack([row.ids for row in rows])
    has_label = np.stack([row.has_label(isolate_documents) for row in rows])
    batch = Batch(
        ids=torch.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        labels=torch.from_numpy(np.where(has_label, ids[:, 1:], IGNORE)),
    )
    if isolate_documents:
        documents = np.stack([row.documents[:-1] for row in rows])
        batch.documents = torch.from_numpy(documents)
        batch.positions = torch.from_numpy(_positions(documents))
    return batch


def _positions(documents: np.ndarray) -> np.ndarray:
    """Distance of each token to the start of its document in the row, (B, T) int64."""
    places = np.broadcast_to(np.arange(documents.shape[1], dtype=np.int64), documents.shape)
    starts = np.zeros_like(places)
    starts[:, 1:] = np.where(documents[:, 1:] != documents[:, :-1], places[:, 1:], 0)
    return places - np.maximum.accumulate(starts, axis=1)
