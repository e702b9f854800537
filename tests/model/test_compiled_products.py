"""The loss over the vocabulary, and the products of layers, when they are compiled."""

import shutil

import pytest
import torch
from torch import nn

from llmtrain.model.kernels import linear_cross_entropy as kernel
from llmtrain.model.kernels import products
from llmtrain.model.kernels.loops import EAGER, Loops, compiled_loops

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler on this machine"
)


@pytest.fixture(scope="module")
def compiled() -> Loops:
    return compiled_loops()


def results(loops: Loops, rows: int, dtype: torch.dtype, terms: kernel.LossTerms):
    generator = torch.Generator().manual_seed(rows)
    draw = lambda *shape: torch.randn(*shape, generator=generator).requires_grad_()  # noqa: E731
    hidden, weight, bias = draw(rows, 384), draw(128, 384), draw(128)
    labels = torch.randint(0, 100, (rows,), generator=generator)
    labels[::3] = kernel.IGNORE
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss, correct = kernel.linear_cross_entropy(
            hidden, weight, labels, 100, bias, True, terms=terms, loops=loops
        )
    return loss.detach(), correct, *torch.autograd.grad(loss / rows, (hidden, weight, bias))


@pytest.mark.parametrize("rows", [40, 401])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_loss_is_the_eager_one(monkeypatch, compiled, rows, dtype):
    """Blocks of rows, padding, smoothing; in bf16 the gradient of the weight is made turned round."""
    monkeypatch.setattr(kernel, "MAX_LOGITS", 200 * 128)
    terms = kernel.LossTerms(0.1, 1e-3)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for ours, theirs in zip(
        results(compiled, rows, dtype, terms), results(EAGER, rows, dtype, terms), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


def test_a_compiler_turns_the_narrower_factor_round():
    """Gradients of both orientations are those of plain PyTorch, made by our product; biases are sums."""
    from torch._inductor import config

    ours = {"post_grad_custom_post_pass": products.product_pass(), "compile_threads": 1}
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(384, 768), nn.Tanh(), nn.Linear(768, 384), nn.Linear(384, 64))
    x = torch.randn(400, 384)

    def gradients(model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().mean()
        return torch.autograd.grad(loss, list(layers.parameters()))

    expected = gradients(layers)
    compiled = torch.compile(layers)
    with config.patch(ours):
        gradients(compiled)  # compiling calls operators of every kind itself
    with torch.profiler.profile() as profile:
        found = gradients(compiled)
    operators = {event.key for event in profile.key_averages()}
    assert "llmtrain::product" in operators
    assert "aten::addmm" not in operators
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.is_contiguous()
        torch.testing.assert_close(mine, theirs, rtol=3e-2, atol=2e-2 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("sizes", "worth"), [((2048, 768, 3072), True), ((2048, 768, 768), False), ((2048, 256, 1024), False)]
)
def test_sizes_decide(sizes, worth):
    assert products.turns(*sizes) is worth
    assert products.turns(sizes[0], sizes[2], sizes[1]) is worth
