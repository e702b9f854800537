"""Drawing text from a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from llmtrain.data.batch import Batch
from llmtrain.generate.sampler import draw, next_token_probabilities
from llmtrain.model.assembled import Assembled
from llmtrain.schema.fields import SampleConfig
from llmtrain.utils.seed import derive_seed


@torch.inference_mode()
def generate_tokens(
    model: Assembled,
    prompt: list[int],
    config: SampleConfig,
    *,
    end_id: int,
    max_positions: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    poll: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Draw `num_samples` continuations of one prompt.

    Beyond `max_positions` the model sees the last tokens only.

    Args:
        model: in any mode; it is put into evaluation mode.
        prompt: token ids; empty means the start of a document.
        config: how tokens are drawn.
        end_id: ends a sample; not part of what is returned.
        max_positions: longest input of the model.
        device: of the model.
        autocast: context of the forward pass.
        poll: called before each token; may raise to stop.

    Returns:
        the new tokens of each sample, without the prompt.
    """
    model.eval()
    start = torch.tensor(prompt or [end_id], device=device)
    ids = start.expand(config.num_samples, -1)
    generators = [
        torch.Generator().manual_seed(derive_seed(config.seed, "sample", i))
        for i in range(config.num_samples)
    ]
    ended = torch.zeros(config.num_samples, dtype=torch.bool)
    for _ in range(config.max_new_tokens):
        poll()
        with autocast():
            batch = Batch(ids[:, -max_positions:])
            logits_BV = model.head.predict(model.backbone(batch)[:, -1:], batch)[:, 0]
        tokens = draw(next_token_probabilities(logits_BV, config), generators)
        ids = torch.cat([ids, tokens.to(device)[:, None]], dim=1)
        ended |= tokens == end_id
        if ended.all():
            break
    new = ids[:, len(start) :].tolist()
    return [sample[: sample.index(end_id)] if end_id in sample else sample for sample in new]
