"""The fused projection and loss against plain operations."""

from functools import partial

import pytest
import torch

from llmtrain.data.batch import IGNORE
from llmtrain.model.kernels import linear_cross_entropy as kernel
from llmtrain.model.kernels import loops
from llmtrain.objective.causal import Causal
from tests.helpers.models import make_model, random_batch, small_config


def example(
    rows: int = 37,
    dim: int = 12,
    padded: int = 64,
    vocab: int = 50,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype, requires_grad=True)

    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[::5] = IGNORE
    return draw(rows, dim), draw(padded, dim), labels, vocab, draw(padded) if bias else None


def gradients(function, *arguments, scale: float = 0.37):
    loss, correct = function(*arguments, count_correct=True)
    inputs = [value for value in arguments if isinstance(value, torch.Tensor) and value.requires_grad]
    return loss.detach(), correct, *torch.autograd.grad(loss * scale, inputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
@pytest.mark.parametrize("cached_rows", [1, 3, 1000])
def test_equals_reference_whatever_the_chunks(monkeypatch, chunk_rows, cached_rows, bias):
    arguments = example(bias=bias)
    monkeypatch.setattr(kernel, "MAX_LOGITS", chunk_rows * 50)
    monkeypatch.setattr(loops, "CACHED_LOGITS", cached_rows * 50)
    expected = gradients(kernel.linear_cross_entropy_reference, *arguments)
    actual = gradients(kernel.linear_cross_entropy, *arguments)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "terms", [kernel.LossTerms(0.1), kernel.LossTerms(0.0, 1e-2), kernel.LossTerms(0.2, 1e-3)]
)
def test_smoothed_labels_and_z_loss_equal_the_reference(monkeypatch, terms):
    arguments = example()
    monkeypatch.setattr(kernel, "MAX_LOGITS", 7 * 50)
    expected = gradients(partial(kernel.linear_cross_entropy_reference, terms=terms), *arguments)
    actual = gradients(partial(kernel.linear_cross_entropy, terms=terms), *arguments)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert actual[0] > gradients(kernel.linear_cross_entropy, *arguments)[0] or terms.label_smoothing


def test_terms_of_the_loss_are_for_training_only():
    model = make_model(small_config(), build_head=Causal(False, kernel.LossTerms(0.1, 1e-2)).build_head)
    plain = make_model(small_config())
    batch = random_batch()
    assert model.train().sums(batch)["loss"] > 1.001 * plain.train().sums(batch)["loss"]
    assert model.eval().sums(batch)["loss"] == plain.eval().sums(batch)["loss"]


def test_gradcheck(monkeypatch):
    hidden, weight, labels, vocab, bias = example(rows=5, dim=3, padded=8, vocab=6)
    monkeypatch.setattr(kernel, "MAX_LOGITS", 2 * vocab)
    assert torch.autograd.gradcheck(
        lambda h, w, b: kernel.linear_cross_entropy(h, w, labels, vocab, b)[0], (hidden, weight, bias)
    )


def test_of_equal_logits_the_first_class_counts():
    hidden, weight = torch.ones(3, 1), torch.tensor([[1.0], [2.0], [2.0], [0.0]])
    correct = kernel.linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 2]), 4, count_correct=True)[1]
    assert correct == 1


def test_padded_rows_get_no_gradient():
    arguments = example()
    vocab = arguments[3]
    _, _, _, grad_weight, grad_bias = gradients(kernel.linear_cross_entropy, *arguments)
    for grad in (grad_weight, grad_bias):
        assert grad[vocab:].abs().max() == 0
        assert grad[:vocab].abs().sum() > 0


def test_no_label_gives_zero_loss_and_gradient():
    hidden, weight, labels, vocab, bias = example()
    labels.fill_(IGNORE)
    results = gradients(kernel.linear_cross_entropy, hidden, weight, labels, vocab, bias)
    assert all(result.abs().max() == 0 for result in results)


def test_no_rows_give_zero_loss_and_gradient():
    hidden, weight, labels, vocab, bias = example()
    loss, correct, grad_hidden, grad_weight, _ = gradients(
        kernel.linear_cross_entropy, hidden[:0], weight, labels[:0], vocab, bias
    )
    assert loss == correct == 0
    assert grad_hidden.shape == (0, 12)
    assert grad_weight.abs().max() == 0


def test_correct_predictions_are_counted_where_there_is_a_label():
    weight = torch.eye(4)
    hidden = torch.tensor([[9.0, 0, 0, 0], [0, 0, 9.0, 0], [0, 9.0, 0, 0], [0, 0, 0, 9.0]])
    labels = torch.tensor([0, 1, 1, IGNORE])
    _, correct = kernel.linear_cross_entropy(hidden, weight, labels, 4, count_correct=True)
    assert correct == 2
    assert kernel.linear_cross_entropy(hidden, weight, labels, 4)[1] is None


def test_a_bias_can_decide():
    labels = torch.tensor([1])
    hidden, weight = torch.zeros(1, 3), torch.zeros(4, 3)
    for bias, expected in ((torch.tensor([0.0, 1, 0, 0]), 1), (torch.tensor([0.0, 1, 2, 0]), 0)):
        _, correct = kernel.linear_cross_entropy(hidden, weight, labels, 3, bias, count_correct=True)
        assert correct == expected


def test_huge_logits_stay_finite():
    hidden, weight, labels, vocab, bias = example(dtype=torch.float32)
    loss, _, *grads = gradients(kernel.linear_cross_entropy, hidden * 1e4, weight, labels, vocab, bias)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


def test_bf16_autocast_sums_in_fp32():
    hidden, weight, labels, vocab, bias = example(rows=4096, dtype=torch.float32)
    exact, _ = kernel.linear_cross_entropy_reference(hidden, weight, labels, vocab, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, correct = kernel.linear_cross_entropy(hidden, weight, labels, vocab, bias, count_correct=True)
    assert loss.dtype == correct.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_formats_have_the_gradients_of_fp32(dtype):
    """70,000 classes are beyond the range of fp16; one row is as good as certain, the others know nothing."""
    hidden, weight, labels, vocab, bias = example(6, 16, 70_016, 70_000, torch.float32)
    with torch.no_grad():
        hidden.mul_(0.1)
        bias.mul_(0.1)[labels[1]] += 18.0
        hidden[1] = 0.0
    arguments = hidden, weight, labels, vocab, bias
    terms = kernel.LossTerms(0.0, 1e-4)
    expected = gradients(partial(kernel.linear_cross_entropy_reference, terms=terms), *arguments)
    with torch.autocast("cpu", dtype):
        found = gradients(partial(kernel.linear_cross_entropy, terms=terms), *arguments)
    for ours, theirs in zip(found[2:], expected[2:], strict=True):
        assert ours.isfinite().all()
        error = (ours - theirs).norm() / theirs.norm()
        assert error < 8e-3


def test_switch_takes_the_reference(monkeypatch):
    called = []
    monkeypatch.setattr(kernel, "linear_cross_entropy_reference", lambda *args: called.append(args))
    monkeypatch.setenv("LLMTRAIN_KERNELS", "0")
    kernel.linear_cross_entropy(*example())
    assert len(called) == 1


def test_frozen_weight_gets_no_gradient():
    hidden, weight, labels, vocab, bias = example()
    frozen = hidden, weight.detach(), labels, vocab, bias.detach()
    (grad,) = torch.autograd.grad(kernel.linear_cross_entropy(*frozen)[0], (hidden,))
    (expected,) = torch.autograd.grad(kernel.linear_cross_entropy_reference(*frozen)[0], (hidden,))
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_evaluation_makes_no_gradients(monkeypatch, context):
    """Whether inputs could have gradients is not the question where none are recorded."""
    arguments = example()
    expected, _ = kernel.linear_cross_entropy(*arguments)
    with context():
        monkeypatch.setattr(torch, "zeros_like", lambda *args, **kwargs: pytest.fail("made a gradient"))
        loss, _ = kernel.linear_cross_entropy(*arguments)
    assert loss == expected
