"""Activation checkpointing changes no bit of loss and gradients, and selective makes no product twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from llmtrain.model.assembled import Assembled
from llmtrain.model.compile import compile_blocks
from llmtrain.model.heads.vocabulary import LanguageModelHead, MaskedHead
from llmtrain.model.recompute import ATEN, ATTENTION, keep_products, policy
from llmtrain.schema.fields import ActivationCheckpointing
from llmtrain.schema.model import Activation, ModelConfig, Norm, Position
from tests.helpers.models import make_model, random_batch, small_bert, small_config

NONE, SELECTIVE, FULL = ActivationCheckpointing
LLAMA = {"position": Position.rotary, "norm": Norm.rmsnorm, "activation": Activation.swiglu, "bias": False}


def build(config: ModelConfig, how: ActivationCheckpointing) -> Assembled:
    head = LanguageModelHead if config.causal else MaskedHead
    model = make_model(config, build_head=head).train()
    model.backbone.recompute = how is FULL
    if how is SELECTIVE:
        keep_products(model)
    return model


def trained(model: Assembled, precision: str = "fp32") -> list[torch.Tensor]:
    """Loss and gradients, with the same dropout each time."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model.sums(random_batch())["loss"]
    loss.backward()
    return [loss, *(one.grad for one in model.parameters() if one.grad is not None)]


@pytest.mark.parametrize("how", [SELECTIVE, FULL])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "config",
    [small_config, lambda **more: small_config(**LLAMA, **more), small_bert],
    ids=["gpt", "llama", "bert"],
)
def test_no_bit_changes(config: Any, dropout: float, precision: str, how: ActivationCheckpointing) -> None:
    expected = trained(build(config(dropout=dropout), NONE), precision)
    found = trained(build(config(dropout=dropout), how), precision)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.equivalence
def test_no_bit_changes_where_blocks_are_compiled() -> None:
    found = []
    for how in (NONE, SELECTIVE):
        model = build(small_config(dropout=0.1), how)
        torch._dynamo.reset()
        compile_blocks(model)
        for block in model.backbone.blocks.values():
            block.compile(backend="aot_eager")
        found.append(trained(model))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Count(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


def backward_counts(how: ActivationCheckpointing) -> Counter[Any]:
    """Operations of a backward pass."""
    loss = build(small_config(), how).sums(random_batch())["loss"]
    with Count() as counter:
        loss.backward()
    return counter.counts


def test_products_and_attention_are_not_made_again() -> None:
    none, selective, full = map(backward_counts, (NONE, SELECTIVE, FULL))
    products = [
        sum(counts[one] for one in (ATEN.mm.default, ATEN.addmm.default))
        for counts in (none, selective, full)
    ]
    assert products[1] == products[0]
    assert products[2] == products[0] + 2 * 3  # of each block all but the last one, which nobody asks for
    flash = ATTENTION[0]
    assert (none[flash], selective[flash], full[flash]) == (0, 0, 2)
    norm = ATEN.native_layer_norm.default
    assert (none[norm], selective[norm], full[norm]) == (0, 4, 4)


def test_nothing_is_kept_without_gradients() -> None:
    model = build(small_config(), SELECTIVE)
    with torch.no_grad():
        assert not model.sums(random_batch())["loss"].requires_grad


def test_attention_with_dropout_is_made_again() -> None:
    """Its random numbers come before those of what follows."""
    q = torch.zeros(1, 1, 2, 8)
    for operation in ATTENTION[:2]:
        assert policy(None, operation, q, q, q, 0.0) is CheckpointPolicy.MUST_SAVE
        assert policy(None, operation, q, q, q, 0.1) is CheckpointPolicy.PREFER_RECOMPUTE
        assert policy(None, operation, q, q, q, dropout_p=0.1) is CheckpointPolicy.PREFER_RECOMPUTE
    assert policy(None, ATEN.bmm.default, q, q) is CheckpointPolicy.PREFER_RECOMPUTE
