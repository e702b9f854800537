"""Attention: the explicit kernel against plain operations, masks, and which route is taken."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from llmtrain.model.kernels import attention as kernel
from llmtrain.model.kernels.gelu import GELU, exact_gelu
from llmtrain.model.layers import attention as layer
from llmtrain.model.layers.attention import attention, document_mask, local_mask
from tests.helpers.models import make_model, small_bert, small_config

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1, 1, 1], [0] * 8])


def example(
    dtype: torch.dtype = torch.float64, rows: int = 3, heads: int = 2, length: int = 8, width: int = 4
):
    """Queries, keys, values as views of one product, as in the model."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, length, 3 * heads * width, generator=generator, dtype=dtype)
    parts = x.requires_grad_().split(heads * width, -1)
    return x, *(part.unflatten(-1, (heads, width)).transpose(1, 2) for part in parts)


def results(function, x, q, k, v, mask, rate=0.0):
    torch.manual_seed(1)
    y = function(q, k, v, mask, rate)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), grad


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("documents", [None, DOCUMENTS, DOCUMENTS[:1]])
@pytest.mark.parametrize("max_scores", [1, 300, 1 << 20])
def test_equals_plain_operations(monkeypatch, max_scores, documents, rate):
    """With the same seed the same weights are dropped, whatever the parts it is computed in."""
    monkeypatch.setattr(kernel, "MAX_SCORES", max_scores)
    mask = None if documents is None else document_mask(documents, causal=False)
    expected = results(kernel.attention_reference, *example(), mask, rate)
    for ours, theirs in zip(results(kernel.short_attention, *example(), mask, rate), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("documents", [None, DOCUMENTS, DOCUMENTS[:1]])
@pytest.mark.parametrize("block", [1, 3, 8])
def test_causal_blocks_equal_plain_operations(monkeypatch, block, documents, rate):
    """A block of queries is multiplied only with the keys that it may see."""
    monkeypatch.setattr(kernel, "BLOCK", block)
    mask = None if documents is None else document_mask(documents, causal=True)
    expected = results(partial(kernel.attention_reference, causal=True), *example(), mask, rate)
    found = results(partial(kernel.short_attention, causal=True), *example(), mask, rate)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_operators_are_what_they_say():
    """Shapes and formats for tracers, no hidden writes, and gradients that are registered right."""
    _, q, k, v = example(rows=2, heads=1, length=3, width=2)
    inputs = [part.detach().contiguous().requires_grad_() for part in (q, k, v)]
    mask = document_mask(torch.tensor([[0, 0, 1], [0, 1, 1]]), causal=True)
    keep = torch.ones(2, 3, 3, dtype=torch.uint8)
    torch.library.opcheck(kernel.attend, (*inputs, mask, keep, 1.25, True, True))
    torch.library.opcheck(exact_gelu, (torch.linspace(-3, 3, 7).requires_grad_(),))


@pytest.mark.parametrize("tanh", [True, False])
def test_gelu_of_compiled_code_is_the_same_function(monkeypatch, tanh):
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64, requires_grad=True)
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        y = GELU(tanh)(x)
        found.append((y.detach(), *torch.autograd.grad(y.sum(), x)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_gradcheck(rate):
    _, q, k, v = example(rows=2, heads=1, length=3, width=2)
    mask = document_mask(torch.tensor([[0, 0, 1], [0, 1, 1]]), causal=False)

    def attend(*inputs):
        torch.manual_seed(0)
        return kernel.short_attention(*inputs, mask, rate)

    inputs = [part.detach().contiguous().requires_grad_() for part in (q, k, v)]
    assert torch.autograd.gradcheck(attend, inputs)


def test_bf16_is_as_near_to_the_truth_as_pytorchs():
    mask = document_mask(torch.arange(64)[None] // 20, causal=False)
    exact = example(torch.float64, rows=2, heads=4, length=64, width=24)
    truth = results(kernel.attention_reference, *exact, mask)
    errors = {}
    for name, function in (
        ("ours", kernel.short_attention),
        ("pytorch", lambda q, k, v, mask, rate: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)),
    ):
        x = exact[0].detach().bfloat16().requires_grad_()
        parts = [p.unflatten(-1, (4, 24)).transpose(1, 2) for p in x.split(4 * 24, -1)]
        found = results(function, x, *parts, mask)
        errors[name] = [(a.double() - b).norm() / b.norm() for a, b in zip(found, truth, strict=True)]
    for ours, theirs in zip(errors["ours"], errors["pytorch"], strict=True):
        assert ours < max(1.5 * theirs, 0.01)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_both_routes_give_the_same(monkeypatch, causal, masked):
    _, q, k, v = example(torch.float32)
    mask = document_mask(DOCUMENTS, causal) if masked else None
    expected = attention(q, k, v, mask, causal=causal)
    monkeypatch.setattr(layer, "_explicit_is_faster", lambda *arguments: True)
    torch.testing.assert_close(attention(q, k, v, mask, causal=causal), expected, rtol=1e-5, atol=1e-6)


def test_grouped_queries_with_dropout_take_pytorchs_kernel():
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    torch.manual_seed(0)
    assert attention(q, k, k, None, dropout=0.1).shape == (1, 4, 6, 8)


def test_switch_takes_pytorchs_kernel(monkeypatch):
    monkeypatch.setenv("LLMTRAIN_KERNELS", "0")
    monkeypatch.setattr(layer, "short_attention", lambda *arguments: pytest.fail("took our kernel"))
    _, q, k, v = example(torch.float32)
    attention(q, k, v, None, dropout=0.1, causal=False)


def test_document_mask_shows_own_document_and_with_causal_what_stands_before():
    both = document_mask(DOCUMENTS, causal=False)
    back = document_mask(DOCUMENTS, causal=True)
    for row, documents in enumerate(DOCUMENTS.tolist()):
        for query in range(8):
            for key in range(8):
                same = documents[query] == documents[key]
                assert both[row, 0, query, key] == same
                assert back[row, 0, query, key] == (same and key <= query)


def test_local_mask_shows_half_a_window_to_each_side():
    mask = local_mask(9, 2, 2, torch.device("cpu"))[0, 0]
    assert mask[4].tolist() == [False, False, True, True, True, True, True, False, False]
    assert torch.equal(mask, mask.T)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_a_block_is_one_graph_for_a_compiler(name, dropout):
    """Our kernels must not break the graph, and the same numbers must come out."""
    config = small_bert(dropout=dropout) if name == "bert" else small_config(dropout=dropout)
    block = make_model(config).backbone.blocks["0"]
    mask = document_mask(DOCUMENTS[:2], causal=name == "gpt")
    x = torch.randn(2, 8, 32, requires_grad=True)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    found = []
    for function in (block, compiled):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.manual_seed(0)
            y = function(x, mask, None)
        (grad,) = torch.autograd.grad(y.float().square().sum(), x)
        found.append((y.float(), grad))
    if dropout == 0:
        torch.testing.assert_close(found[0], found[1], rtol=0.03, atol=0.03)
    assert found[1][0].shape == found[0][0].shape
