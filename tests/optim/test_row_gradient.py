"""Gradients of embeddings that are kept from step to step: the same bits as those that are made anew."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.data.batch import Batch
from llmtrain.engine.step import Step
from llmtrain.model.kernels.lookup import sparse_lookup
from llmtrain.objective.causal import Causal
from llmtrain.optim.clip import clip_gradients
from llmtrain.optim.optimizer import build_optimizer, freeze
from llmtrain.optim.row_gradient import RowGradient
from llmtrain.parallel.layout import Replicated, keep_row_gradients
from llmtrain.parallel.mesh import Mesh
from llmtrain.schema.optim import AdamWConfig
from llmtrain.schema.parallel import Degrees
from tests.helpers.models import make_model, random_batch, small_config


def backward(weight: Tensor, lookup, seed: int) -> None:
    """A backward pass through some rows of 50, most of them more than once."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (4, 15), generator=generator)
    lookup(ids, weight).backward(torch.randn(4, 15, 8, generator=generator))


def test_rows_and_their_gradient_are_those_of_pytorch():
    ids = torch.tensor([[3, 1, 3], [0, 1, 3]])
    weight = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert sparse_lookup(ids, weight).equal(F.embedding(ids, weight))
    (gradient,) = torch.autograd.grad(sparse_lookup(ids, weight).square().sum(), weight)
    (expected,) = torch.autograd.grad(F.embedding(ids, weight).square().sum(), weight)
    assert gradient.is_sparse
    assert gradient.indices().tolist() == [[0, 1, 3]]
    assert gradient.to_dense().equal(expected)


@pytest.mark.parametrize("passes", [1, 3])
def test_a_kept_gradient_has_the_bits_of_a_new_one_step_after_step(passes):
    kept, plain = (torch.nn.Parameter(torch.zeros(50, 8)) for _ in range(2))
    gradient = RowGradient(kept)
    for step in range(4):
        kept.grad = plain.grad = None
        gradient.attach()
        for number in range(passes):
            backward(kept, sparse_lookup, 10 * step + number)
            backward(plain, F.embedding, 10 * step + number)
        assert kept.grad.equal(plain.grad)
        assert gradient.rows().tolist() == plain.grad.any(dim=1).nonzero()[:, 0].tolist()
        for limit in (0.0, 1.0):
            norms = clip_gradients([kept], limit, [gradient]), clip_gradients([plain], limit)
            torch.testing.assert_close(*norms, rtol=1e-7, atol=0)
        torch.testing.assert_close(kept.grad, plain.grad, rtol=1e-6, atol=0)


def test_what_is_not_finite_is_gone_in_the_next_step():
    parameter, other = torch.nn.Parameter(torch.zeros(50, 8)), torch.nn.Parameter(torch.zeros(1))
    gradient = RowGradient(parameter)
    gradient.attach()
    sparse_lookup(torch.tensor([3, 7]), parameter).backward(torch.full((2, 8), torch.nan))
    other.grad = torch.ones(1)
    assert not clip_gradients([parameter, other], 1.0, [gradient]).isfinite()
    assert parameter.grad[[3, 7]].isnan().all()
    assert other.grad.isfinite().all()
    parameter.grad = None
    gradient.attach()
    assert not parameter.grad.any()


def train(keep: bool, microbatches: int, clip_norm: float) -> tuple[dict[str, Tensor], list[float]]:
    """Weights after some steps on other tokens each time, and the norms."""
    model = make_model(small_config(tie_embeddings=False))
    layout = Replicated(model, Mesh.here(Degrees(), torch.device("cpu")), "fp32")
    step = Step(
        layout, build_optimizer(AdamWConfig(lr=1e-2), model), Causal(False), clip_norm=clip_norm, seed=0
    )
    if keep:
        layout.start()
    norms = []
    for number in range(4):
        batches = [random_batch(vocab=10 + 10 * number, seed=number + 9 * i) for i in range(microbatches)]
        counts = {"labels": float(sum(batch.labels.numel() for batch in batches))}
        norms.append(step(batches, counts, number).norm.item())
        step.clear_gradients()
    return {name: value.detach() for name, value in model.named_parameters()}, norms


@pytest.mark.parametrize("microbatches", [1, 2])
def test_training_is_the_same_bit_by_bit(microbatches):
    (weights, norms), (expected, expected_norms) = (train(keep, microbatches, 0.0) for keep in (True, False))
    assert norms == pytest.approx(expected_norms, rel=1e-6)
    for name, weight in weights.items():
        assert weight.equal(expected[name]), name


def test_clipped_training_is_the_same_but_for_the_last_bit_of_the_norm():
    (weights, norms), (expected, expected_norms) = (train(keep, 1, 0.1) for keep in (True, False))
    assert norms == pytest.approx(expected_norms, rel=1e-6)
    for name, weight in weights.items():
        if not name.endswith("key.bias"):  # whose true gradient is 0: Adam makes steps of its roundings
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5)


def kept_weights(model) -> list[Tensor]:
    return [one.parameter for one in keep_row_gradients(model)]


def test_only_weights_that_learn_and_are_not_shared_are_kept():
    untied = make_model(small_config(tie_embeddings=False))
    assert [one is untied.backbone.embedding.weight for one in kept_weights(untied)] == [True]
    assert kept_weights(make_model(small_config(tie_embeddings=True))) == []
    frozen = make_model(small_config(tie_embeddings=False))
    freeze(frozen, ["backbone.embedding.weight"])
    assert kept_weights(frozen) == []


@pytest.mark.parametrize("switch", ["0", "1"])
def test_the_switch(switch, monkeypatch):
    monkeypatch.setenv("LLMTRAIN_KERNELS", switch)
    model = make_model(small_config(tie_embeddings=False))
    layout = Replicated(model, Mesh.here(Degrees(), torch.device("cpu")), "fp32")
    layout.start()
    assert model.backbone.embedding.sparse_gradient == (switch == "1")
    batch: Batch = random_batch()
    layout.accumulate([batch], lambda sums: (sums["loss"], {"loss": sums["loss"].detach()}), lambda _: None)
    gradient = model.backbone.embedding.weight.grad
    assert gradient.layout is torch.strided
    assert layout.measure(batch)[0]["loss"].isfinite()
