"""Sampling, against the processors of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.generation import logits_process as theirs

from llmtrain.generate.sampler import choose, draw, next_token_probabilities, penalise
from llmtrain.schema.fields import SampleConfig

LOGITS = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
OFF = {"top_k": None, "temperature": 1.0}


def probabilities(**settings: object) -> list[float]:
    return next_token_probabilities(LOGITS, SampleConfig(**(OFF | settings)))[0].tolist()


def test_temperature() -> None:
    assert probabilities() == pytest.approx([0.5, 0.2, 0.2, 0.1])
    assert probabilities(temperature=0.5) == pytest.approx(
        [0.25 / 0.34, 0.04 / 0.34, 0.04 / 0.34, 0.01 / 0.34]
    )


def test_top_k_top_p_and_min_p() -> None:
    assert probabilities(top_k=1) == pytest.approx([1, 0, 0, 0])
    assert probabilities(top_k=100) == pytest.approx([0.5, 0.2, 0.2, 0.1])
    assert probabilities(top_p=0.4) == pytest.approx([1, 0, 0, 0])
    assert probabilities(top_p=0.95)[3] == pytest.approx(0.1)
    kept = probabilities(top_p=0.6)
    assert kept[0] == pytest.approx(0.5 / 0.7)
    assert sum(kept) == pytest.approx(1)
    assert kept[3] == 0
    assert probabilities(min_p=0.3) == pytest.approx([5 / 9, 2 / 9, 2 / 9, 0])
    assert probabilities(min_p=1) == pytest.approx([1, 0, 0, 0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 20},
        {"top_p": 0.8},
        {"top_k": 40, "top_p": 0.9},
        {"min_p": 0.05},
        {"temperature": 0.6, "top_k": 30, "top_p": 0.95, "min_p": 0.02},
        {"repetition_penalty": 1.3, "temperature": 0.9, "top_k": 50, "top_p": 0.7, "min_p": 0.1},
        {"repetition_penalty": 0.8, "top_k": 5},
    ],
)
def test_probabilities_are_those_of_transformers(settings: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(6, 500, generator=generator)
    ids = torch.randint(0, 500, (6, 80), generator=generator)
    config = SampleConfig(**(OFF | settings))
    # the order in which `GenerationMixin._get_logits_processor` puts them
    processors = theirs.LogitsProcessorList()
    if config.repetition_penalty != 1:
        processors.append(theirs.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.temperature != 1:
        processors.append(theirs.TemperatureLogitsWarper(config.temperature))
    if config.top_k is not None:
        processors.append(theirs.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        processors.append(theirs.TopPLogitsWarper(config.top_p))
    if config.min_p > 0:
        processors.append(theirs.MinPLogitsWarper(config.min_p))
    expected = processors(ids, logits).softmax(dim=-1).double()
    seen = torch.zeros(6, 500, dtype=torch.bool).scatter(1, ids, True)
    found = next_token_probabilities(penalise(logits, seen, config.repetition_penalty), config)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_draws_follow_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = next_token_probabilities(LOGITS, SampleConfig(**OFF)).expand(4000, -1)
    counts = torch.bincount(draw(rows, [generator] * 4000), minlength=4) / 4000
    # Four standard deviations of a share of 0.5 among 4,000 draws are 0.032.
    assert (counts - torch.tensor([0.5, 0.2, 0.2, 0.1])).abs().max() < 0.032


def test_greedy_takes_the_likeliest_that_is_left() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0], [0.5, 3.0, 2.9]])
    generators = [torch.Generator(), torch.Generator()]
    config = SampleConfig(temperature=0)
    assert choose(logits, config, [None, None], generators) == [0, 1]
    seen = [torch.tensor([True, False, False]), torch.tensor([False, True, True])]
    config = SampleConfig(temperature=0, repetition_penalty=1.5)
    assert choose(logits, config, seen, generators) == [1, 1]


def test_a_row_is_drawn_as_alone() -> None:
    logits = torch.randn(5, 60, generator=torch.Generator().manual_seed(2))
    config = SampleConfig(temperature=1.0)
    together = choose(logits, config, [None] * 5, [torch.Generator().manual_seed(n) for n in range(5)])
    alone = [
        choose(logits[n : n + 1], config, [None], [torch.Generator().manual_seed(n)])[0] for n in range(5)
    ]
    assert together == alone
    assert not math.isclose(len(set(together)), 1)
