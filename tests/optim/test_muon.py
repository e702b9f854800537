"""Muon against PyTorch's own, against singular values, and in shares."""

from __future__ import annotations

import pytest
import torch

from llmtrain.optim.optimizer import build_optimizer, named_state
from llmtrain.optim.orthogonal import COEFFICIENTS, STEPS, orthogonalise
from llmtrain.optim.owners import choose_owners
from llmtrain.schema.fields import Precision
from llmtrain.schema.optim import MuonConfig, Products
from tests.helpers.models import make_model, random_batch, small_config

FP32 = MuonConfig(lr=1e-2, adam_lr=1e-3, products=Products.fp32)


def random_matrices(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_singular_values_go_through_the_polynomial_and_their_vectors_stay():
    """In fp64, from the singular value decomposition; lying, standing and several of one shape."""
    matrices = [one.double() for one in random_matrices((8, 20), (20, 8), (8, 8), (8, 20))]
    a, b, c = COEFFICIENTS
    for matrix, result in zip(matrices, orthogonalise(matrices), strict=True):
        u, values, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
        for _ in range(STEPS):
            values = a * values + b * values**3 + c * values**5
        assert values.min() > 0.6
        assert values.max() < 1.25
        torch.testing.assert_close(result, u @ values.diag() @ v, rtol=1e-6, atol=1e-7)


def test_many_small_matrices_are_multiplied_in_parts(monkeypatch):
    matrices = random_matrices(*[(4, 6)] * 5)
    expected = orthogonalise(matrices)
    monkeypatch.setattr("llmtrain.optim.orthogonal.PART", 50)
    for one, other in zip(expected, orthogonalise(matrices), strict=True):
        torch.testing.assert_close(one, other)


def test_no_gradient_gives_no_update():
    assert orthogonalise([torch.zeros(3, 4)])[0].eq(0).all()


@pytest.mark.parametrize(("products", "tolerance"), [(Products.fp32, 1e-4), (Products.bf16, 0.2)])
def test_steps_equal_those_of_torch(products, tolerance, monkeypatch):
    """Matrices of the blocks as torch's Muon has them, the rest as its AdamW.

    Torch multiplies in bf16, whose roundings grow from step to step of Newton-Schulz; kept from it, it does
    exactly the same.
    """
    if products is Products.fp32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    ours, theirs = make_model(small_config()), make_model(small_config())
    optimizer = build_optimizer(MuonConfig(lr=1e-2, adam_lr=1e-3, products=products), ours)
    named = dict(theirs.named_parameters())
    hidden = {n: p for n, p in named.items() if p.ndim == 2 and n.startswith("backbone.blocks.")}
    rest = [p for n, p in named.items() if n not in hidden]
    assert len(hidden) == 12
    references = [
        torch.optim.Muon(hidden.values(), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    before = {name: value.detach().clone() for name, value in ours.named_parameters()}
    for number in range(3):
        theirs.load_state_dict(ours.state_dict())  # roundings must not add up
        for model, steps in ((ours, [optimizer]), (theirs, references)):
            model.zero_grad()
            model.sums(random_batch(seed=number))["loss"].backward()
            for one in steps:
                one.step()
        for name, value in ours.named_parameters():
            if name in hidden:
                moved, expected = value - before[name], named[name] - before[name]
                assert (moved - expected).norm() < tolerance * expected.norm(), name
            else:
                assert value.equal(named[name]), name
        before = {name: value.detach().clone() for name, value in ours.named_parameters()}


def test_the_whole_state_is_tensors_and_built_without_a_step(monkeypatch):
    monkeypatch.setattr("llmtrain.optim.muon.orthogonalise", None)
    model = make_model(small_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(FP32, model)
    state = named_state(optimizer, dict(model.named_parameters()))
    assert "backbone.blocks.0.attention.query.weight.momentum" in state
    assert {"backbone.embedding.weight.exp_avg", "backbone.norm.weight.step"} <= set(state)
    assert not any(value.any() for value in state.values())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_rates_of_matrices_and_of_the_rest():
    model = make_model(small_config(tie_embeddings=False))
    optimizer = build_optimizer(MuonConfig(lr=4.0, adam_lr=1.0, layer_decay=0.5), model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["head.projection.weight"] == found["backbone.norm.weight"] == 1.0
    assert found["backbone.blocks.1.mlp.up.weight"] == 2.0
    assert found["backbone.blocks.0.mlp.up.weight"] == 1.0
    assert found["backbone.blocks.0.mlp.up.bias"] == 0.25
    assert MuonConfig(lr=4.0).rate(hidden=False) == 4.0


@pytest.mark.parametrize("device_route", [False, True])
def test_a_bad_step_changes_nothing(device_route, monkeypatch):
    """On a GPU without waiting for the answer: the same by arithmetic, here on the CPU."""
    ours, other = make_model(small_config()), make_model(small_config())
    optimizers = build_optimizer(FP32, ours), build_optimizer(FP32, other)
    for bad in (False, True, False):
        for model, optimizer in zip((ours, other), optimizers, strict=True):
            model.sums(random_batch())["loss"].backward()
            if bad:
                model.backbone.blocks["0"].mlp.up.weight.grad.fill_(torch.nan)
            before = {name: value.clone() for name, value in model.state_dict().items()}
            if model is ours:
                monkeypatch.setattr("llmtrain.optim.muon.WAITS", () if device_route else ("cpu",))
                optimizer.found_inf = torch.tensor(float(bad))
                optimizer.step()
            elif not bad:
                optimizer.step()
            same = [value.equal(before[name]) for name, value in model.state_dict().items()]
            assert all(same) if bad else not any(same)
            optimizer.zero_grad()
    for (name, value), expected in zip(ours.state_dict().items(), other.state_dict().values(), strict=True):
        if name.endswith("key.bias"):  # which has no true gradient: AdamW makes steps of its noise
            continue
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_products_follow_the_training_step():
    for precision, products in ((Precision.bf16, Products.bf16), (Precision.fp32, Products.fp32)):
        config = MuonConfig()
        config.settle(precision)
        assert config.products is products
    config = MuonConfig(products=Products.bf16)
    config.settle(Precision.fp32)
    assert config.products is Products.bf16


def test_owners_have_as_much_to_do():
    owners = choose_owners([5, 1, 4, 2, 3, 3], [7, 9])
    assert sum(cost for cost, owner in zip([5, 1, 4, 2, 3, 3], owners, strict=True) if owner == 7) == 9
    assert choose_owners([1.0, 1.0, 1.0], [0]) == [0, 0, 0]


def test_a_state_that_was_kept_goes_on_with_the_same_bits():
    """As from a checkpoint: tensors by name, into an optimizer that is newly built."""
    whole, again = make_model(small_config()), make_model(small_config(), seed=1)
    first, second = build_optimizer(FP32, whole), build_optimizer(FP32, again)

    def step(model, optimizer, seed):
        model.sums(random_batch(seed=seed))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    step(whole, first, 0)
    again.load_state_dict(whole.state_dict())
    kept = named_state(first, dict(whole.named_parameters()))
    for name, value in named_state(second, dict(again.named_parameters())).items():
        value.copy_(kept[name])
    for model, optimizer in ((whole, first), (again, second)):
        step(model, optimizer, 1)
    assert all(one.equal(other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))
