"""What is read with a cache is what is read at once."""

from __future__ import annotations

import pytest
import torch

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Assembled
from llmtrain.model.cache import KVCache
from llmtrain.schema.model import Activation, GPTConfig, Norm, Position
from tests.helpers.models import make_model, small_bert, small_config

LLAMA = {
    "position": Position.rotary,
    "norm": Norm.rmsnorm,
    "activation": Activation.swiglu,
    "bias": False,
    "num_kv_heads": 2,
}
CONFIGS = [
    small_config(),
    small_config(**LLAMA),
    small_config(**LLAMA | {"num_kv_heads": 1}),
    small_config(**LLAMA | {"window": 5}),
]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""fp32; products of other shapes round otherwise."""


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def model_of(config: GPTConfig) -> Assembled:
    model = make_model(config).eval()
    for parameter in model.parameters():  # weights of a size that tells tokens apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def read(
    model: Assembled, cache: KVCache, ids: torch.Tensor, counts: list[int] | None = None
) -> torch.Tensor:
    """Logits of the tokens that are read."""
    batch = cache.read(ids, counts)
    return model.head.predict(model.backbone(batch, cache), batch)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("cuts", [[5, 1, 1, 4, 1, 12], [24], [1] * 24, [1, 23]])
@torch.no_grad()
def test_logits_are_those_without_a_cache(config: GPTConfig, cuts: list[int]) -> None:
    model, ids = model_of(config), tokens(3, 24)
    whole = model.predict(Batch(ids))
    cache = KVCache(3)
    parts = [read(model, cache, part) for part in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **CLOSE)
    assert cache.lengths == [24, 24, 24]


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_rows_of_unequal_length_are_as_alone(config: GPTConfig) -> None:
    model, ids, lengths = model_of(config), tokens(4, 30), [3, 9, 1, 6]
    cache = KVCache(4)
    prompts = ids[:, :9].clone()
    for row, length in enumerate(lengths):
        prompts[row, length:] = 7  # whatever fills it up
    first = read(model, cache, prompts, lengths)
    steps = []
    for step in range(12):
        newest = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])[:, None]
        steps.append(read(model, cache, newest))
    several = torch.stack([ids[row, length + 12 : length + 15] for row, length in enumerate(lengths)])
    steps.append(read(model, cache, several))
    for row, length in enumerate(lengths):
        alone = model.predict(Batch(ids[row : row + 1, : length + 15]))[0]
        torch.testing.assert_close(first[row, :length], alone[:length], **CLOSE)
        torch.testing.assert_close(torch.cat([one[row] for one in steps]), alone[length:], **CLOSE)


@torch.no_grad()
def test_rows_can_be_chosen_forgotten_and_replaced() -> None:
    model, ids = model_of(CONFIGS[1]), tokens(2, 32)
    cache = KVCache(2)
    read(model, cache, ids[:, :6])
    cache.select([1, 1, 0])
    found = read(model, cache, ids[[1, 1, 0], 6:8])
    torch.testing.assert_close(found, model.predict(Batch(ids[[1, 1, 0], :8]))[:, 6:], **CLOSE)
    cache.forget(4)
    assert cache.lengths == [4, 4, 4]
    other = KVCache(1)
    read(model, other, ids[:1, 20:25])
    cache.replace(1, other)
    again = read(model, cache, torch.stack([ids[1, 4], ids[0, 25], ids[0, 4]])[:, None])[:, 0]
    texts = [ids[1, :5], ids[0, 20:26], ids[0, :5]]
    for row, text in enumerate(texts):
        torch.testing.assert_close(again[row], model.predict(Batch(text[None]))[0, -1], **CLOSE)


@torch.no_grad()
def test_a_cache_grows() -> None:
    config = small_config(**LLAMA | {"max_positions": 2000, "num_layers": 1})
    model, ids = model_of(config), tokens(2, 700)
    cache = KVCache(2)
    parts = [read(model, cache, part) for part in ids.split([250, 1, 300, 1, 1, 147], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.predict(Batch(ids)), rtol=1e-4, atol=1e-5)
    (block,) = cache.blocks.values()
    assert block.keys.shape == (2, 2, 768, 8)


def test_an_encoder_takes_no_cache() -> None:
    model = make_model(small_bert())
    with pytest.raises(AssertionError, match="looks back"):
        read(model, KVCache(1), tokens(1, 4))
