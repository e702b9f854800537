"""The fused projection and loss against plain operations."""

import pytest
import torch

from llmtrain.data.batch import IGNORE
from llmtrain.model.kernels import linear_cross_entropy as kernel


def example(
    rows: int = 37, dim: int = 12, padded: int = 64, vocab: int = 50, dtype: torch.dtype = torch.float64
):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, dim, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(padded, dim, generator=generator, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[::5] = IGNORE
    return hidden, weight, labels, vocab


def gradients(function, hidden, weight, labels, vocab, scale: float = 0.37):
    loss = function(hidden, weight, labels, vocab)
    return loss.detach(), *torch.autograd.grad(loss * scale, (hidden, weight))


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_equals_reference_whatever_the_chunks(monkeypatch, chunk_rows):
    arguments = example()
    monkeypatch.setattr(kernel, "MAX_LOGITS", chunk_rows * arguments[-1])
    expected = gradients(kernel.linear_cross_entropy_reference, *arguments)
    actual = gradients(kernel.linear_cross_entropy, *arguments)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradcheck(monkeypatch):
    hidden, weight, labels, vocab = example(rows=5, dim=3, padded=8, vocab=6)
    monkeypatch.setattr(kernel, "MAX_LOGITS", 2 * vocab)
    assert torch.autograd.gradcheck(
        lambda h, w: kernel.linear_cross_entropy(h, w, labels, vocab), (hidden, weight)
    )


def test_padded_rows_get_no_gradient():
    hidden, weight, labels, vocab = example()
    _, _, grad_weight = gradients(kernel.linear_cross_entropy, hidden, weight, labels, vocab)
    assert grad_weight[vocab:].abs().max() == 0
    assert grad_weight[:vocab].abs().sum() > 0


def test_no_label_gives_zero_loss_and_gradient():
    hidden, weight, labels, vocab = example()
    loss, *grads = gradients(kernel.linear_cross_entropy, hidden, weight, labels.fill_(IGNORE), vocab)
    assert loss == 0
    assert all(grad.abs().max() == 0 for grad in grads)


def test_bf16_autocast_sums_in_fp32():
    hidden, weight, labels, vocab = example(rows=4096, dtype=torch.float32)
    exact = kernel.linear_cross_entropy_reference(hidden, weight, labels, vocab)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kernel.linear_cross_entropy(hidden, weight, labels, vocab)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-3, atol=0)


def test_switch_takes_the_reference(monkeypatch):
    called = []
    monkeypatch.setattr(kernel, "linear_cross_entropy_reference", lambda *args: called.append(args))
    monkeypatch.setenv("LLMTRAIN_KERNELS", "0")
    kernel.linear_cross_entropy(*example())
    assert len(called) == 1


def test_frozen_weight_gets_no_gradient():
    hidden, weight, labels, vocab = example()
    loss = kernel.linear_cross_entropy(hidden, weight.detach(), labels, vocab)
    (grad,) = torch.autograd.grad(loss, (hidden,))
    expected = torch.autograd.grad(
        kernel.linear_cross_entropy_reference(hidden, weight.detach(), labels, vocab), (hidden,)
    )[0]
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_evaluation_makes_no_gradients(monkeypatch, context):
    """Whether inputs could have gradients is not the question where none are recorded."""
    hidden, weight, labels, vocab = example()
    expected = kernel.linear_cross_entropy(hidden, weight, labels, vocab)
    with context():
        monkeypatch.setattr(torch, "zeros_like", lambda *args, **kwargs: pytest.fail("made a gradient"))
        loss = kernel.linear_cross_entropy(hidden, weight, labels, vocab)
    assert loss == expected
