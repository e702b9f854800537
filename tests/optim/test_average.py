"""The moving average of weights: against torch's own, and what counts as a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from llmtrain.engine.step import Step
from llmtrain.objective.causal import Causal
from llmtrain.optim.average import Average, standing
from llmtrain.optim.optimizer import build_optimizer, freeze
from llmtrain.parallel.layout import Replicated
from llmtrain.parallel.mesh import Mesh
from llmtrain.schema.optim import AdamWConfig
from llmtrain.schema.parallel import Degrees
from tests.helpers.models import make_model, random_batch, small_config


def make_step(decay: float, tied: bool = True) -> tuple[Step, Average]:
    model = make_model(small_config(tie_embeddings=tied))
    layout = Replicated(model, Mesh.here(Degrees(), torch.device("cpu")), "fp32")
    average = Average(layout.parameters, decay)
    average.start()
    optimizer = build_optimizer(AdamWConfig(lr=1e-2), model)
    return Step(layout, optimizer, Causal(False), clip_norm=1.0, seed=0, average=average), average


def take(step: Step, number: int) -> None:
    step([random_batch(seed=number)], {"labels": 32.0}, number)
    step.clear_gradients()


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_the_average_of_torch(tied: bool) -> None:
    """After the warm-up every bit; torch's takes the first weights as they are, as ours does."""
    step, average = make_step(0.95, tied)
    theirs = AveragedModel(step.layout.model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    theirs.update_parameters(step.layout.model)
    average.count.fill_(1000)
    for number in range(5):
        take(step, number)
        theirs.update_parameters(step.layout.model)
    expected = dict(theirs.module.named_parameters())
    assert average.averages.keys() == expected.keys()
    for name, value in average.averages.items():
        assert torch.equal(value, expected[name]), name
        assert not torch.equal(value, step.layout.parameters[name])


def test_the_decay_warms_up() -> None:
    """min(decay, (1 + t) / (10 + t)), written out for one number."""
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average({"weight": weight}, 0.5)
    average.start()
    expected = 1.0
    for step in range(1, 20):
        with torch.no_grad():
            weight.copy_(torch.tensor([float(step % 3)]))
        average.update(torch.tensor(True))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.item()
        assert average.averages["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert average.count.item() == 19


def test_a_step_that_is_skipped_does_not_count() -> None:
    step, average = make_step(0.9)
    take(step, 0)
    before = {name: value.clone() for name, value in average.averages.items()}
    result = step([random_batch(seed=1)], {"labels": 0.0}, 1)
    assert not result.finite[1]
    assert average.count.item() == 1
    assert all(torch.equal(before[name], value) for name, value in average.averages.items())
    step.clear_gradients()
    take(step, 2)
    assert average.count.item() == 2
    assert not any(torch.equal(before[name], value) for name, value in average.averages.items())


def test_what_does_not_learn_has_no_average() -> None:
    model = make_model(small_config())
    freeze(model, {"backbone.embedding.weight"})
    average = Average(dict(model.named_parameters()), 0.9)
    assert average.averages.keys() == dict(model.named_parameters()).keys() - {"backbone.embedding.weight"}


def test_averages_stand_in_for_the_weights_and_leave_again() -> None:
    step, average = make_step(0.9)
    take(step, 0)
    weights = {name: one.detach().clone() for name, one in step.layout.parameters.items()}
    averages = {name: one.clone() for name, one in average.averages.items()}
    with standing(average):
        for name, one in step.layout.parameters.items():
            assert torch.equal(one, averages[name])
    with pytest.raises(KeyError), standing(average):
        raise KeyError
    for name, one in step.layout.parameters.items():
        assert torch.equal(one, weights[name])
        assert torch.equal(average.averages[name], averages[name])
    with standing(None):
        pass
