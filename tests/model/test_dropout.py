"""Dropout with cheap randomness: rates, scales, gradients, repeatability."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.model.kernels.dropout import dropout, keep_mask
from llmtrain.model.layers.dropout import Dropout


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_share_of_zeros_is_the_rate(rate):
    torch.manual_seed(0)
    count = 400_000
    keep, scale = keep_mask((4, count // 4), rate)
    deviation = math.sqrt(rate * (1 - rate) / count)
    assert (1 - keep.float().mean().item()) == pytest.approx(rate, abs=4 * deviation + 1 / 65536)
    assert scale == pytest.approx(1 / (1 - rate), rel=1e-3)
    assert set(keep.unique().tolist()) == {0, 1}


def test_neighbours_are_independent():
    """Four elements share 64 random bits: none of them may tell about the others."""
    torch.manual_seed(0)
    kept = keep_mask((4 * 200_000,), 0.3)[0].float().view(-1, 4)
    correlation = torch.corrcoef(torch.cat([kept, kept.roll(1, 0)], dim=1).T)
    assert (correlation - torch.eye(8)).abs().max() < 4 / math.sqrt(200_000)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), min_size=0, max_size=3),
    rate=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
)
def test_an_element_is_zero_or_scaled_and_so_is_its_gradient(shape, rate, seed):
    torch.manual_seed(seed)
    x = torch.rand(shape, dtype=torch.float64).add_(1).requires_grad_()
    y = dropout(x, rate)
    (grad,) = torch.autograd.grad(y.sum(), x)
    scale = keep_mask((1,), rate)[1] if rate else 1.0
    kept = y != 0
    torch.testing.assert_close(y, (x * scale).where(kept, 0))
    torch.testing.assert_close(grad, torch.full_like(x, scale).where(kept, 0))


def test_the_same_seed_drops_the_same():
    x = torch.ones(1001)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(dropout(x, 0.2))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_bf16_keeps_the_mean():
    torch.manual_seed(0)
    y = dropout(torch.ones(2_000_000, dtype=torch.bfloat16), 0.1)
    assert y.dtype == torch.bfloat16
    assert y.float().mean().item() == pytest.approx(1, abs=3e-3)


def test_layer_does_nothing_in_evaluation():
    layer, x = Dropout(0.5), torch.ones(100)
    assert layer(x).eq(0).any()
    assert torch.equal(layer.eval()(x), x)


def test_switch_takes_pytorchs(monkeypatch):
    monkeypatch.setenv("LLMTRAIN_KERNELS", "0")
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, rate: ("pytorch", rate))
    assert dropout(torch.ones(3), 0.25) == ("pytorch", 0.25)


def test_compiled_masks_are_drawn_one_by_one():
    """A compiler may not make one mask of two, nor draw a mask again for the backward pass."""

    def twice(x):
        return dropout(x, 0.5), dropout(x + 1, 0.5)

    torch.manual_seed(0)
    x = torch.ones(100, 100, requires_grad=True)
    first, second = torch.compile(twice, backend="aot_eager")(x)
    assert not (first == 0).equal(second == 0)
    for y, scale in ((first, 2.0), (second, 4.0)):
        assert set(y.detach().unique().tolist()) == {0.0, scale}
        assert (y != 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
        (grad,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        assert grad.equal(torch.where(y == 0, 0.0, 2.0))
